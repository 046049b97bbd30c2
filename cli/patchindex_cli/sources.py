"""The training images of a command: a store, or images that are read as `build` reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError
from patchindex.schedules import LocalitySchedule, NoiseSchedule

from .options import (
    COLOUR_PRESET,
    GRAY_PRESET,
    CropSize,
    RunOptions,
    SamplingOptions,
    add_options,
    count_option,
    parse_locality,
    resized_locality,
    store_path,
)
from .output import count, echo, shorten

if TYPE_CHECKING:
    from patchindex import Denoiser, ImageSource, PatchIndex
    from patchindex.denoisers import TrainingDenoiser

LABELS_SHOWN = 20


@dataclass(frozen=True)
class Training:
    """The training images of a command: a store, or images.

    Attributes
    ----------
    source : PatchIndex or ImageSource
        The source that denoisers are made of.
    images : ImageSource
        The images, also of a store.
    index : PatchIndex or None
        The store.
    """

    source: PatchIndex | ImageSource
    images: ImageSource
    index: PatchIndex | None = None

    @classmethod
    def of(cls, index: PatchIndex) -> Training:
        """Return the training images of a store."""
        return cls(index, index.training.source, index)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def labels(self) -> list[int]:
        """The labels in use, ascending; empty if there are none."""
        import numpy as np

        return [] if self.images.labels is None else np.unique(self.images.labels).tolist()

    @property
    def label_names(self) -> Sequence[str]:
        """Names of the labels 0, 1, ...; empty if there are none."""
        return self.images.label_names or []


def image_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `open_images`."""
    options = [
        count_option(
            "--limit",
            "Use the first N images only, in the order of file names. With one folder per class, these are "
            "images of the first classes.",
        ),
        click.option(
            "--labels",
            metavar="FILE|folders|attr:NAMES|none",
            help="Labels of the images: a file (.npy, .npz, .txt, .csv, IDX), one label per sub-folder "
            "(numbered by name), attributes of CelebA, such as attr:Smiling,Male, or none.  [default: the "
            "labels that are stored with the images]",
        ),
        click.option(
            "--split",
            metavar="NAME",
            help="CelebA split: train, valid, test or all.  [default: train, if the folder lists the splits]",
        ),
        click.option(
            "--skip-bad",
            is_flag=True,
            help="Skip image files that cannot be decoded, and files of several pictures. Other images are "
            "turned upright by their EXIF orientation, and transparent pixels are blended with white.",
        ),
        count_option("--max-pixels", "Pixels of the largest image file.  [default: 178956970]"),
        click.option(
            "--dataset", metavar="NAME", help="Name of the images inside an HDF5 file or zarr group."
        ),
        click.option("--external-links", is_flag=True, help="Follow links of an HDF5 file to other files."),
        click.option(
            "--axes",
            metavar="NHW|NHWC|NCHW|HW|HWC|CHW",
            help="Order of the axes of an array, when its shape does not tell. Without N, it is one image.",
        ),
        click.option(
            "--values",
            metavar="unit|signed",
            help="Range of floats, [0, 1] or [-1, 1], when the values do not tell.",
        ),
        click.option(
            "--crop",
            type=CropSize(),
            metavar="PIXELS|square",
            help="Crop to a centred square: PIXELS wide, or as large as the image. Comes before --resize.",
        ),
        count_option(
            "--resize", "Resize to N x N pixels. Images that are not square are stretched: add --crop square."
        ),
        click.option("--grayscale", is_flag=True, help="Convert to one channel."),
    ]
    return add_options(options, command)


def open_source(source: str, image: dict[str, Any]) -> ImageSource:
    """Open images with the options of `image_options`; report skipped files and a too large limit."""
    import patchindex

    images = patchindex.open_images(source, **image)
    if images.skipped:
        files = count(len(images.skipped), "file")
        echo(f"skipped {files} that cannot be decoded: {shorten(images.skipped)}", err=True)
    limit = image.get("limit")
    if limit is not None and len(images) < limit:
        echo(f"--limit: {source} has {count(len(images), 'image')}, fewer than {limit:,}", err=True)
    return images


def open_training(source: str, image: Mapping[str, Any], run: RunOptions) -> Training:
    """Open a store, which takes no image options, or images with the options of `image_options`."""
    import patchindex
    from patchindex.denoisers import is_store

    if is_store(source):
        for name, value in image.items():
            if value:
                raise InputError(
                    "is fixed in the store", parameter=name, remedy="leave it out, or give images"
                )
        return Training.of(patchindex.open_index(store_path(source), device=run.device))
    images = open_source(source, dict(image))
    return Training(images, images)


def choose_locality(
    options: SamplingOptions, training: Training, noise: str | NoiseSchedule = "cosine"
) -> LocalitySchedule | None:
    """Return the schedule of --locality, or else of the store, resized with --resize-locality.

    `noise` is the noise schedule of the denoiser, for scales by time.
    """
    given = parse_locality(options.locality, noise)
    own = None if training.index is None else training.index.locality
    if not options.resize_locality:
        return given or own
    if given is not None or training.index is None or own is None:
        return resized_locality(given, training.size)
    # The schedule as it was given to the build, so that scales are rounded only once.
    schedule = LocalitySchedule.from_dict(training.index.attributes["locality"]).resized(training.size)
    return schedule.nearest(training.index.scales) if training.index.scales else schedule


def default_locality(images: ImageSource, scales: Sequence[int] | None = None) -> LocalitySchedule:
    """Return a published schedule for images of this kind, resized to their size; name it on stderr.

    With the `scales` of a store, each entry of the schedule is moved to the nearest scale.
    """
    preset = GRAY_PRESET if images.shape[3] == 1 else COLOUR_PRESET
    schedule = LocalitySchedule.of(preset).resized(images.shape[1:3])
    if scales:
        schedule = schedule.nearest(scales)
    height, width = images.shape[1:3]
    found = shorten(schedule.distinct)
    echo(f"no --locality: taking {preset} for images of {height} x {width} (scales {found})", err=True)
    return schedule


def locality_of(
    text: str,
    options: SamplingOptions,
    training: Training,
    noise: str | NoiseSchedule = "cosine",
    parameter: str = "machine",
) -> LocalitySchedule | None:
    """Return the schedule of `choose_locality`, or a default if the denoiser cannot do without a schedule.

    `text` is the denoiser, such as `LS:estimator=exact`, and comes from `parameter`.
    """
    from patchindex.denoisers import parse_denoiser, takes_locality

    schedule = choose_locality(options, training, noise)
    name, _ = parse_denoiser(text, parameter)
    if schedule is not None or not takes_locality(name):
        return schedule
    return default_locality(training.images, None if training.index is None else training.index.scales)


def report_exact(text: str, training: Training) -> None:
    """Say on stderr that images without an index are compared exactly, and from how many on an index pays.

    `text` is the denoiser. Only the patches of ELS and bbELS can have an index.
    """
    from patchindex.denoisers import parse_denoiser
    from patchindex.study.tune import fewest_images

    if training.index is not None or parse_denoiser(text)[0] not in ("ELS", "bbELS"):
        return
    images, (height, width) = training.images, training.size
    fewest = f"{fewest_images(images.shape):,} images of {height} x {width}"
    echo(
        f"no index: exact scores of {count(len(images), 'image')}; "
        f"an index (patchindex build) can pay from about {fewest} on",
        err=True,
    )


def fingerprint_of(training: Training) -> str:
    """Return the fingerprint of a store, or of images."""
    from patchindex.networks.provenance import ImagesRecord

    if training.index is not None:
        return str(training.index.attributes["fingerprint"])
    return ImagesRecord.of(training.images).fingerprint


def store_record(source: object, training: Training, machines: Iterable[Denoiser] = ()) -> dict[str, Any]:
    """Return the path and the fingerprint of a store or of images, and of the curves that machines choose by.

    The JSON of results has the record under `store`.
    """
    from patchindex.denoisers import ScoreMachine
    from patchindex.estimators.curve import OperatingCurve
    from patchindex.store.checksums import fingerprint

    index, scales = training.index, set[int]()
    for machine in machines:
        if isinstance(machine, ScoreMachine) and machine.searches_index and machine.locality is not None:
            scales |= {*machine.locality.distinct}
    curves = [] if index is None else [OperatingCurve.of(index.scale(k)) for k in sorted(scales)]
    known = [curve.as_dict() for curve in curves if curve is not None]
    return {
        "path": str(source),
        "fingerprint": fingerprint_of(training),
        "operating_curves": fingerprint(known) if known else None,
    }


def parse_label(text: str | None, training: Training) -> int | None:
    """Return the number of a label, given the name or the number of the label.

    A name wins: folders of classes may be called 0, 1, 10, 2, ..., which are the labels 0, 1, 2, 3. For a
    number of named labels, a line on stderr says which label is taken.
    """
    from patchindex.images.unreadable import plain_name

    if text is None:
        return None
    labels, names = training.labels, [plain_name(name) for name in training.label_names]
    is_number = re.fullmatch("-?[0-9]{1,18}", text) is not None
    if plain_name(text) in names:
        label = names.index(plain_name(text))
        if is_number and label != int(text):
            echo(f"--label {text}: the label called {text!r}, which has the number {label}", err=True)
        return label
    if is_number:
        label = int(text)
        if 0 <= label < len(names):
            echo(f"--label {text}: the label with this number, called {names[label]!r}", err=True)
        return label
    known = shorten([names[label] for label in labels] if names else labels, LABELS_SHOWN, "; ")
    where = "the images have" if training.index is None else "the store has"
    remedy = f"use one of: {known}" if known else f"leave it out: {where} no labels"
    raise InputError(f"{where} no label called {text!r}", parameter="label", remedy=remedy)


def open_denoiser(
    text: str,
    training: Training,
    run: RunOptions,
    *,
    locality: LocalitySchedule | None = None,
    label: int | None = None,
    settings: Mapping[str, Any] | None = None,
    parameter: str = "machine",
) -> TrainingDenoiser:
    """Return the denoiser of a text such as `wiener:circulant=true`, for the training images.

    Parameters
    ----------
    text : str
        `NAME[:OPTION=VALUE,...]`, with the name of a registered denoiser.
    locality : LocalitySchedule, optional
        As `choose_locality` returns it. A denoiser without a locality schedule ignores the argument.
    settings : dict, optional
        More options, which the command line does not give in the text.
    parameter : str
        The parameter that the text comes from, for errors.

    Raises
    ------
    InputError
        When the name or an option is unknown, or does not fit the images.
    """
    from patchindex.denoisers import denoiser, parse_denoiser, takes_locality

    name, options = parse_denoiser(text, parameter)
    if takes_locality(name):
        options["locality"] = locality
        if locality is None:
            what = "there is no schedule" if training.index is None else "the store has no schedule"
            raise InputError(what, parameter="locality", remedy="give a preset, a .json file or scales")
    common = {"label": label, "device": run.device, "threads": run.threads}
    return denoiser(name, training.source, **options, **common, **(settings or {}))
