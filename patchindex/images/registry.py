"""The image formats, and `open_images`."""

from __future__ import annotations

import copy
import glob
import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

from patchindex.checks import accessing, as_bool, check_optional, is_name_in
from patchindex.errors import InputError, Option, SourceNotFoundError, printable
from patchindex.images.arrays import ArraySource, choose_values
from patchindex.images.axes import AXES
from patchindex.images.concat import ConcatSource
from patchindex.images.datasets import DatasetSource, is_dataset
from patchindex.images.files import SUFFIXES
from patchindex.images.float_values import VALUES
from patchindex.images.format import Format, Options
from patchindex.images.formats import all_formats, zarr
from patchindex.images.label_files import check_order, read_label_file
from patchindex.images.labels import LabelsLike, LabelSpec, as_labels
from patchindex.images.preparation import Preparation
from patchindex.images.source import ImageSource
from patchindex.images.transform import Size, Transform
from patchindex.images.transformed import transformed
from patchindex.images.untrusted import check_regular, missing

__all__ = ["FORMATS", "KNOWN_SETS", "ImageOptions", "ImagesLike", "open_images", "paths_of"]

FORMATS = all_formats()  # the first that matches a path opens it

# Name: (file, how to install it).
KNOWN_SETS = {
    "fashion-mnist": (
        Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"),
        "apt install dataset-fashion-mnist",
    ),
}

# File systems may hold a name in another form than the keyboard writes: an accent may be a character.
UNICODE_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
NAMES_SHOWN = 4  # in a message


class Items(Protocol):
    """An array, a tensor, a stored array, a sequence of paths or a data set object."""

    def __getitem__(self, index: Any, /) -> Any: ...


ImagesLike: TypeAlias = ImageSource | Items | str | os.PathLike[str]


class ImageOptions(TypedDict, total=False):
    """The options of `open_images` besides `labels`, for functions that pass them on."""

    dataset: str | None
    limit: int | None
    resize: Size | None
    crop: Size | str | None
    grayscale: bool
    split: str | None
    skip_bad: bool
    axes: str | None
    values: str | None
    max_pixels: int | None
    external_links: bool


def open_images(
    source: ImagesLike,
    *,
    labels: LabelsLike | None = None,
    dataset: str | None = None,
    limit: int | None = None,
    resize: Size | None = None,
    crop: Size | str | None = None,
    grayscale: bool = False,
    split: str | None = None,
    skip_bad: bool = False,
    axes: str | None = None,
    values: str | None = None,
    max_pixels: int | None = None,
    external_links: bool = False,
) -> ImageSource:
    """Open images of any kind that this package reads.

    Parameters
    ----------
    source : str, Path, sequence of paths, array-like, data set or ImageSource
        - An array or CPU tensor of shape (N, H, W) or (N, H, W, C), C 1 or 3; uint8, or a uint8 image scaled
          exactly to floats in [0, 1] or [-1, 1].  A shape such as (20, 24, 3), which may also be one image in
          colour, needs `axes`.
        - A path: .npz, .npy, HDF5 (`file.h5` or `file.h5::path/in/file`), zarr, IDX (also .gz), the binary
          version of CIFAR, CelebA as it is distributed, a folder or .zip of image files. Several paths: a
          list, or a pattern with `*`.
        - The URL of a zarr array or group, opened with `fsspec` (`s3://...`).
        - A data set object of torchvision or Hugging Face `datasets`.
        - The name of a known set: "fashion-mnist".
    labels : array-like of int, str or Path, optional
        An array of shape (N,) for all images of `source`, also for images that `skip_bad` leaves out; a file
        of labels (.npy, .npz, .txt, .csv, IDX); "folders", the sub-folders of a folder of image files;
        "attr:NAME,NAME", attributes of CelebA, each of which is one bit of the label; the first is the least
        significant; or "none". By default the labels that are stored with the images, if there are any.
    dataset : str, optional
        Path of the images inside an HDF5 file or a zarr group.
    limit : int, optional
        Only the first `limit` images.
    resize, crop : int or (height, width), optional
        In pixels; an int means a square. crop="square" means a square of the shorter side. The centre crop
        comes first.
    grayscale : bool, optional
        Convert to one channel.
    split : {"train", "valid", "test", "all"}, optional
        Of CelebA; by default "train" if there is a partition list.
    skip_bad : bool, optional
        Leave out image files, or images of a data set, that cannot be decoded; `skipped` of the result names
        them. Every image is decoded once more for that. Errors of the disk or the system are raised all the
        same.
    axes : {"NHW", "NHWC", "NCHW", "HW", "HWC", "CHW"}, optional
        The order of the axes of an array, or of the items of a data set. An array without N is one image.
    values : {"unit", "signed"}, optional
        The range of floats: [0, 1] or [-1, 1]. By default [-1, 1] if any value is below 0, and [0, 1] if any
        value is not an odd multiple of 1/255; otherwise both fit, which is an error. All files of a source
        have one range.
    max_pixels : int, optional
        The number of pixels of the largest image file; by default 178 956 970, the limit of Pillow.
    external_links : bool, optional
        Follow links of an HDF5 file to other HDF5 files.

    Returns
    -------
    ImageSource
        uint8 images of shape (N, H, W, C), read on demand if the format allows it. An `ImageSource` without
        any option is returned as it is.

    Raises
    ------
    SourceNotFoundError
        No such file, or a known set that is not installed.
    InputError
        An unknown format, a damaged file, a file that is not regular (a FIFO, a device), images or labels
        that are not acceptable.

    Warns
    -----
    PatchIndexWarning
        Image files in formats that are not read; separate labels of files whose names sort as text.

    Examples
    --------
    >>> import numpy as np
    >>> source = open_images(np.zeros((10, 28, 28), np.uint8), labels=range(10), limit=4)
    >>> source.shape, source.labels.tolist()
    ((4, 28, 28, 1), [0, 1, 2, 3])
    """
    check_optional(limit=(limit, 1), max_pixels=(max_pixels, 1))
    if dataset is not None and not isinstance(dataset, str):
        raise InputError(
            f"must be a name, got {dataset!r}", parameter="dataset", remedy="use 'images', for example"
        )
    options = Options(
        dataset,
        LabelSpec.parse(labels),
        Transform.parse(crop, resize, grayscale),
        as_bool(skip_bad, "skip_bad"),
        split,
        _one_of("axes", axes, AXES),
        _one_of("values", values, VALUES),
        as_bool(external_links, "external_links"),
        None if max_pixels is None else int(max_pixels),
    )
    paths = paths_of(source)
    found = [_open_object(source, options)] if paths is None else [_open_path(p, options) for p in paths]
    choose_values([part for part, _ in found], options.values)
    if options.labels.separate:
        check_order([part for part, _ in found], paths or [])
    if paths is not None and len(paths) > 1:
        _name_by_folder([part for part, _ in found], paths)
    parts = [transformed(part, transform) for part, transform in found]
    opened = parts[0] if paths is None or len(paths) == 1 else ConcatSource(parts, _joint_name(paths))
    if options.labels.separate:
        opened = _with_labels(opened, options.labels, just_opened=opened is not source)
    elif options.labels.kind == "none" and opened.labels is not None:
        opened = copy.copy(opened)
        opened.labels = opened.label_names = None
    if opened is not source:
        before = source.prepared if isinstance(source, ImageSource) else Preparation()
        opened.prepared = before.then(options.transform, options.labels)
    return opened if limit is None else opened.subset(int(limit))


def _one_of(parameter: str, value: str | None, known: Collection[str]) -> str | None:
    if value is not None and not is_name_in(value, known):
        raise InputError(f"there is no {value!r}", parameter=parameter, remedy=f"use {', '.join(known)}")
    return value


def _name_by_folder(parts: Sequence[ImageSource], paths: Sequence[str | os.PathLike[str]]) -> None:
    """Put the folder of each part, below the folder that holds all parts, in front of its file names."""
    roots = [Path(path) if Path(path).is_dir() else Path(path).parent for path in paths]
    above = os.path.commonpath(list(map(os.path.abspath, roots)))
    for part, root, path in zip(parts, roots, paths, strict=True):
        own = root if Path(path).suffix.lower() in SUFFIXES else Path(path)
        if part.file_names is not None and (folder := os.path.relpath(own, above)) != ".":
            part.file_names = part.file_names.below(folder)


def _joint_name(paths: Sequence[object]) -> str:
    return printable(f"{paths[0]} and {len(paths) - 1} more")


def paths_of(source: Any) -> list[str | os.PathLike[str]] | None:
    """Return the paths that a source means, None if it is an object."""
    if isinstance(source, list | tuple) and source and all(isinstance(s, str | os.PathLike) for s in source):
        return list(source)
    if isinstance(source, str) and "*" in source and "://" not in source:
        with accessing(source):
            found = [source] if Path(source).exists() else sorted(glob.glob(source))
        if not found:
            raise SourceNotFoundError(
                "no path matches this pattern", where=source, remedy="check the pattern"
            )
        return list(found)
    return [source] if isinstance(source, str | os.PathLike) else None


def _open_object(source: Any, options: Options) -> tuple[ImageSource, Transform]:
    """Return the images of an object, and the transform that is still to be done."""
    kind = options.labels.kind
    for parameter, value in (
        ("dataset", options.dataset),
        ("split", options.split),
        ("labels", kind if kind in ("folders", "attributes") else None),
        ("max_pixels", options.max_pixels),
        ("external_links", options.external_links or None),
        ("skip_bad", (options.skip_bad and not is_dataset(source)) or None),
    ):
        if value is not None:
            raise InputError(
                f"{value!r} needs a path, got an array",
                parameter=parameter,
                remedy=["leave out ", Option(parameter)],
            )
    if isinstance(source, ImageSource):
        for parameter in ("axes", "values", "skip_bad"):
            if getattr(options, parameter):
                raise InputError(
                    "the images are open already",
                    parameter=parameter,
                    remedy=["leave out ", Option(parameter)],
                )
        return source, options.transform
    if hasattr(source, "keys"):  # an HDF5 file, a group of zarr, the result of np.load, a dict of data sets
        names = [str(name) for name in source.keys()]  # noqa: SIM118
        one = "images" if "images" in names or not names else names[0]
        shown = ", ".join(names[:NAMES_SHOWN]) + ", ..." * (len(names) > NAMES_SHOWN)
        raise InputError(
            f"holds several objects by name ({shown})",
            where=type(source).__name__,
            remedy=f"give one of them: source[{one!r}], or the path of the file",
        )
    if is_dataset(source):
        return DatasetSource(source, options), Transform()
    return ArraySource(source, axes=options.axes), options.transform


def _open_path(source: str | os.PathLike[str], options: Options) -> tuple[ImageSource, Transform]:
    """Return the images at a path, and the transform that is still to be done."""
    if isinstance(source, str) and "://" in source:
        _check_features(zarr.FORMAT, options, source)
        return zarr.open_zarr(source, options), options.transform
    path, dataset = _locate(source, options.dataset)
    options = replace(options, dataset=dataset)
    fmt = next((fmt for fmt in FORMATS if fmt.matches(path)), None)
    if fmt is None:
        check_regular(path)
        known = "; ".join(fmt.description for fmt in FORMATS)
        raise InputError("not a known format", where=path, remedy=f"give one of: {known}")
    _check_features(fmt, options, path)
    opened = fmt.open(path, options)
    opened.name = options.name_of(source if dataset is None else path)
    return opened, Transform() if "transform" in fmt.features else options.transform


def _check_features(fmt: Format, options: Options, where: object) -> None:
    """Refuse options that a format does not take care of."""
    dataset, kind, file = options.dataset, options.labels.kind, ("give ", Option("labels", "FILE"))
    for feature, asked, what, remedy in (
        ("split", options.split is not None, "has no splits", ("leave out ", Option("split"))),
        ("arrays", options.axes is not None, "has no choice of axes", ("leave out ", Option("axes"))),
        ("arrays", options.values is not None, "has no floats", ("leave out ", Option("values"))),
        (
            *("pictures", options.max_pixels is not None, "is not a folder of image files"),
            ("leave out ", Option("max_pixels")),
        ),
        (
            *("pictures", options.skip_bad, "is not a folder of image files"),
            ("leave out ", Option("skip_bad")),
        ),
        (
            *("external_links", options.external_links, "has no links to other files"),
            ("leave out ", Option("external_links")),
        ),
        ("dataset", dataset is not None, f"has no dataset {dataset!r}", ("leave out ", Option("dataset"))),
        ("folders", kind == "folders", "is not a folder of image files", file),
        ("attributes", kind == "attributes", "is not a folder of CelebA", file),
    ):
        if asked and feature not in fmt.features:
            raise InputError(what, where=where, remedy=remedy)


def _locate(source: str | os.PathLike[str], dataset: str | None) -> tuple[Path, str | None]:
    """Return the existing path that `source` means, and the dataset inside it."""
    if source in KNOWN_SETS:
        path, remedy = KNOWN_SETS[str(source)]
        if not path.is_file():
            raise SourceNotFoundError("this known set is not installed", where=source, remedy=remedy)
        return path, dataset
    path = Path(source)
    with accessing(source):
        if str(source) and path.exists():
            return path, dataset
        for form in UNICODE_FORMS:
            same = Path(unicodedata.normalize(form, str(source)))
            if str(source) and same.exists():
                return same, dataset
        before, colons, inside = str(source).partition("::")
        if colons and before and inside and Path(before).exists():
            if dataset is not None and dataset != inside:
                raise InputError(
                    f"names the dataset {inside!r}, and the parameter names {dataset!r}",
                    where=source,
                    remedy="name one",
                )
            return Path(before), inside
    if path.is_symlink():
        raise missing(path)
    raise SourceNotFoundError(
        "no such file or folder",
        where=source if str(source) else "''",
        remedy=f"check the path, or name a known set: {', '.join(KNOWN_SETS)}",
    )


def _with_labels(source: ImageSource, labels: LabelSpec, *, just_opened: bool) -> ImageSource:
    """Return a copy of the source with labels of a file or an array.

    Labels are for all images that were found; for a source that the caller opened, for the images in it.
    """
    kept = source.kept if just_opened else None
    count = source.found if just_opened else len(source)
    values = as_labels(labels.values, count) if labels.path is None else read_label_file(labels.path, count)
    labelled = copy.copy(source)
    labelled.labels, labelled.label_names = values if kept is None else values[kept], None
    return labelled
