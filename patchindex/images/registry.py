"""Which format a path is in, and `open_images`, the one way in."""

from __future__ import annotations

import copy
import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from patchindex.errors import InputError, SourceNotFoundError
from patchindex.images import celeba, folder, hdf5, idx, npy, npz, zarr
from patchindex.images.arrays import ArraySource
from patchindex.images.concat import ConcatSource
from patchindex.images.datasets import DatasetSource, is_dataset
from patchindex.images.label_files import read_label_file
from patchindex.images.labels import as_labels
from patchindex.images.options import Options
from patchindex.images.source import ImageSource
from patchindex.images.transform import Transform, as_size, transformed

__all__ = ["FORMATS", "KNOWN_SETS", "Format", "open_images"]


class Format(Protocol):
    """A format: a module with these names."""

    DESCRIPTION: str

    def matches(self, path: Path) -> bool:
        """Whether an existing path is in this format."""

    def open(self, path: Path, options: Options) -> ImageSource:
        """Open it."""


# In the order they are tried: zarr and CelebA are folders too.
FORMATS: tuple[Format, ...] = (npz, npy, hdf5, zarr, idx, celeba, folder)

# Formats that hold several arrays, one of which `dataset` names.
HOLD_DATASETS: tuple[Format, ...] = (hdf5, zarr)

ATTRIBUTES = "attr:"  # begins labels that are attributes

SHOWN = 4  # names in a message

# Name: (file, how to get it).
KNOWN_SETS = {
    "fashion-mnist": (
        Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"),
        "apt install dataset-fashion-mnist",
    ),
}


def open_images(
    source: Any,
    *,
    labels: Any = None,
    dataset: str | None = None,
    limit: int | None = None,
    resize: int | Sequence[int] | None = None,
    crop: int | Sequence[int] | str | None = None,
    grayscale: bool = False,
    split: str | None = None,
    skip_bad: bool = False,
) -> ImageSource:
    """Open images of any kind this package reads.

    Parameters
    ----------
    source : ImageSource, array-like, data set, str, Path, or sequence of paths
        An array or CPU tensor of shape (N, H, W) or (N, H, W, C), C 1 or 3, uint8, or float in [0, 1] or
        [-1, 1] where that is exactly a uint8 image scaled. Or a path: .npz, .npy, HDF5 (`file.h5` or
        `file.h5::path/in/file`), zarr, IDX (also .gz), CelebA as it is distributed, a folder or .zip of image
        files; or several of these, as a list or by a pattern with `*`. Or the URL of a zarr array or group,
        which `fsspec` opens (`s3://...`). Or a data set object of torchvision or Hugging Face `datasets`. Or
        the name of a known set: "fashion-mnist".
    labels : array-like of int, str or Path, optional
        Shape (N,), for all N images of `source`, also those that `skip_bad` leaves out; or a file of them
        (.npy, .npz, .txt, .csv, IDX); or "folders": the sub-folders of a folder of image files; or
        "attr:NAME,NAME": attributes of CelebA, a bit each. By default the labels that come with the images,
        if there are any.
    dataset : str, optional
        Path of the images inside an HDF5 file or a zarr group.
    limit : int, optional
        Only the first `limit` images.
    resize, crop : int or (height, width), optional
        In pixels; an int means a square, and "square" as a crop that of the shorter side. The centre crop
        comes first.
    grayscale : bool, optional
        Convert to one channel.
    split : {"train", "valid", "test", "all"}, optional
        Of CelebA; by default "train" where there is a partition.
    skip_bad : bool, optional
        Leave out images that cannot be decoded; they are named in `skipped` of what is returned. All are
        decoded once more for that. What the disk or the system does not let read is an error all the same.

    Returns
    -------
    ImageSource
        uint8 images of shape (N, H, W, C), read when asked for where the format allows it. An `ImageSource`
        for which nothing else is asked is returned as it is.

    Raises
    ------
    SourceNotFoundError
        No such file, or a known set that is not installed.
    InputError
        An unknown format, a damaged file, images or labels that are not acceptable.

    Examples
    --------
    >>> import numpy as np
    >>> source = open_images(np.zeros((10, 28, 28), np.uint8), labels=range(10), limit=4)
    >>> source.shape, source.labels.tolist()
    ((4, 28, 28, 1), [0, 1, 2, 3])
    """
    transform = Transform(as_size(crop, "crop"), as_size(resize, "resize"), grayscale)
    options = Options(dataset, "stored", transform, skip_bad, split)
    if isinstance(source, list | tuple) and source and all(isinstance(s, str | Path) for s in source):
        opened = _open_several(source, labels, options)
    elif isinstance(source, str) and "://" in source:
        opened = zarr.open_url(source, _for_labels(options, labels, None, source))
    elif isinstance(source, str) and "*" in source and not Path(source).exists():
        found = sorted(glob.glob(source))
        if not found:
            raise SourceNotFoundError("nothing is called so", where=source, remedy="check the pattern")
        opened = _open_several(found, labels, options)
    elif isinstance(source, str | Path):
        opened = _open_path(source, labels, options)
    else:
        own_labels = labels if _come_with_images(labels) else None
        for what, value in (("dataset", dataset), ("split", split), ("labels", own_labels)):
            if value is not None:
                raise InputError(
                    f"{value!r} needs a path, got an array", where=what, remedy=f"leave {what} out"
                )
        opened = _opened_object(source, options)
    if labels is not None and not _come_with_images(labels):
        # A source of the caller's own is labelled as it is, whatever was left out when it was opened.
        kept = None if opened is source else opened.kept
        count = len(opened) + (0 if kept is None else len(opened.skipped))
        from_file = isinstance(labels, str | Path)
        values = read_label_file(Path(labels), count) if from_file else as_labels(labels, count)
        # A copy, because the source may be the caller's own.
        opened = copy.copy(opened)
        opened.labels, opened.label_names = values if kept is None else values[kept], None
    return opened if limit is None else opened.subset(_as_limit(limit))


def _opened_object(source: Any, options: Options) -> ImageSource:
    if isinstance(source, ImageSource):
        return transformed(source, options.transform)
    if hasattr(source, "keys"):  # an HDF5 file, a group of zarr, what np.load returns, a dict of data sets
        names = [str(name) for name in source.keys()]  # noqa: SIM118
        one = "images" if "images" in names or not names else names[0]
        raise InputError(
            f"holds several things by name ({', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)})",
            where=type(source).__name__,
            remedy=f"give one of them: source[{one!r}], or the path of the file",
        )
    if is_dataset(source):
        return DatasetSource(source, options.transform, skip_bad=options.skip_bad)
    return transformed(ArraySource(source), options.transform)


def _open_several(sources: Sequence[str | Path], labels: Any, options: Options) -> ImageSource:
    """Open paths as one source, named after them all."""
    parts = [_open_path(source, labels, options) for source in sources]
    name = str(sources[0]) if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more"
    return ConcatSource(parts, name)


def _for_labels(options: Options, labels: Any, fmt: Format | None, where: object) -> Options:
    """Return the options with what is asked for in place of the stored labels; refuse what there is not."""
    if options.split is not None and fmt is not celeba:
        raise InputError("has no splits", where=where, remedy="leave the split out")
    if labels is None:
        return options
    if isinstance(labels, str) and labels == "folders":
        if fmt is not folder:
            raise InputError(
                'labels="folders" needs a folder of image files',
                where=where,
                remedy="give a file of labels",
            )
        return replace(options, labels="folders")
    if isinstance(labels, str) and labels.startswith(ATTRIBUTES):
        if fmt is not celeba:
            raise InputError(
                f"{labels!r} needs a folder of CelebA", where=where, remedy="give a file of labels"
            )
        wanted = tuple(name for name in labels.removeprefix(ATTRIBUTES).split(",") if name)
        if not wanted:
            raise InputError(
                f"{labels!r} names no attribute", where="labels", remedy='give "attr:Smiling", say'
            )
        return replace(options, labels="none", attributes=wanted)
    return replace(options, labels="none")


def _open_path(source: str | Path, labels: Any, options: Options) -> ImageSource:
    path, dataset = _locate(source, options.dataset)
    fmt = next((fmt for fmt in FORMATS if fmt.matches(path)), None)
    if fmt is None:
        raise InputError(
            "not a known format",
            where=path,
            remedy="give one of: " + "; ".join(fmt.DESCRIPTION for fmt in FORMATS),
        )
    if dataset is not None and fmt not in HOLD_DATASETS:
        raise InputError(
            f"there are no datasets to choose {dataset!r} from", where=path, remedy="leave the dataset out"
        )
    opened = fmt.open(path, _for_labels(replace(options, dataset=dataset), labels, fmt, path))
    opened.name = str(source) if dataset is None else f"{path}::{dataset}"
    return opened


def _locate(source: str | Path, dataset: str | None) -> tuple[Path, str | None]:
    """Find the existing path that `source` means, and the dataset inside it."""
    if source in KNOWN_SETS:
        path, remedy = KNOWN_SETS[str(source)]
        if not path.is_file():
            raise SourceNotFoundError("this known set is not installed", where=source, remedy=remedy)
        return path, dataset
    path = Path(source)
    try:
        if str(source) and path.exists():
            return path, dataset
        before, colons, inside = str(source).partition("::")
        if colons and before and inside and Path(before).exists():
            if dataset is not None and dataset != inside:
                raise InputError(
                    f"two datasets are named, {inside!r} and {dataset!r}", where=source, remedy="name one"
                )
            return Path(before), inside
    except OSError as error:
        raise InputError(
            f"cannot be looked at ({error.strerror})",
            where=source,
            remedy="check the path and its permissions",
        ) from error
    raise SourceNotFoundError(
        "no such file or folder",
        where=source if str(source) else "''",
        remedy=f"check the path, or name a known set: {', '.join(KNOWN_SETS)}",
    )


def _come_with_images(labels: Any) -> bool:
    """Whether labels come with the opening of the images, and not from a file or an array."""
    return isinstance(labels, str) and (labels == "folders" or labels.startswith(ATTRIBUTES))


def _as_limit(limit: Any) -> int:
    try:
        return int(limit.__index__())
    except AttributeError as error:
        raise InputError(
            f"{limit!r} is not a number of images", where="limit", remedy="give an integer"
        ) from error
