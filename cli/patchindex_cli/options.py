"""Option types and options that commands share."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError, Option, OutputExistsError
from patchindex.schedules import LOCALITY_PRESETS, LocalitySchedule, NoiseSchedule

from .output import count, shorten

if TYPE_CHECKING:
    from patchindex import ImageSource, PatchIndex
    from patchindex.denoisers import TrainingDenoiser

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

LABELS_SHOWN = 20


def store_path(value: str) -> Path | str:
    """Return a `Path`, or a URL as it is."""
    return value if "://" in value else Path(value)


class LocalPath(click.ParamType):
    """A path on this machine, for output."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Return a `Path`; refuse a URL, for which `Path` would make a folder called `s3:`."""
        if "://" in str(value):
            raise InputError("is a URL", where=value, remedy="write to a local disk and copy it there")
        if not str(value):
            raise InputError("is empty", parameter=param.name, remedy="give a path")
        return Path(value)


class CropSize(click.ParamType):
    """A number of pixels, or `square`."""

    name = "pixels|square"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a number, or `square`."""
        if value == "square":
            return value
        if not re.fullmatch(r"-?\d+", str(value)):
            self.fail(f"{value!r} is neither a number of pixels nor 'square'.", param, ctx)
        return click.IntRange(1).convert(value, param, ctx)


class NameIn(click.ParamType):
    """A name in a tuple or table of the library, imported for the check only: the import takes seconds."""

    name = "name"

    def __init__(self, module: str, table: str) -> None:
        self._module, self._table = module, table

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the library's spelling of a name that is given in any case."""
        names = getattr(import_module(self._module), self._table)
        found = next((name for name in names if name.lower() == str(value).lower()), None)
        if found is None:
            self.fail(f"{value!r} is not one of {', '.join(names)}.", param, ctx)
        return found


@dataclass(frozen=True)
class RunOptions:
    """Options of each command that computes."""

    seed: int
    threads: int | None
    device: str
    as_json: bool


@dataclass(frozen=True)
class BuildOptions:
    """Options of `build` and `append`."""

    memory: str | None
    tune: bool
    resume: bool


@dataclass(frozen=True)
class SamplingOptions:
    """Options of `sample` and `study`."""

    locality: str | None
    resize_locality: bool
    label: str | None
    steps: int
    batch_size: int
    overwrite: bool


def _grouped(name: str, kind: type[Any], options: Sequence[Decorator]) -> Decorator:
    """Return a decorator that adds options and passes their values as one `kind` called `name`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**values: Any) -> Any:
            values[name] = kind(**{each.name: values.pop(each.name) for each in fields(kind)})
            return command(**values)

        return _add(options, run)

    return decorate


def _add(options: Sequence[Decorator], command: Callable[..., Any]) -> Callable[..., Any]:
    """Add options, the first on top in --help."""
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def count_option(
    name: str, help_text: str, default: int | None = None, *, least: int = 1, most: int | None = None
) -> Decorator:
    """Return an option whose value is a whole number from `least` to `most`."""
    return click.option(
        name,
        type=click.IntRange(least, most),
        metavar="N",
        default=default,
        show_default=default is not None,
        help=help_text,
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
threads_option = count_option("--threads", "CPU threads.  [default: all]", most=1024)
seed_option = functools.partial(count_option, "--seed", default=0, least=0)


def run_options(seed_help: str) -> Decorator:
    """Return a decorator that adds the options of each command that computes, as `run`."""
    device = click.option(
        "--device", metavar="DEVICE", default="cpu", show_default=True, help="cpu, cuda or cuda:N."
    )
    return _grouped("run", RunOptions, [seed_option(seed_help), threads_option, device, json_option])


build_options = _grouped(
    "options",
    BuildOptions,
    [
        click.option(
            "--memory",
            metavar="SIZE",
            help="Memory budget, such as 500M or 4G.  [default: half of the machine's memory]",
        ),
        click.option(
            "--tune/--no-tune",
            default=True,
            show_default=True,
            help="Measure estimator settings, so that sampling can choose good ones. "
            "Takes most of the time of a small build.",
        ),
        click.option("--resume", is_flag=True, help="Continue an interrupted run of the same command."),
    ],
)


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
            metavar="FILE|folders|attr:NAMES",
            help="Labels of the images: a file (.npy, .npz, .txt, .csv, IDX), one label per sub-folder "
            "(numbered by name), or attributes of CelebA, such as attr:Smiling,Male.",
        ),
        click.option(
            "--split",
            metavar="NAME",
            help="CelebA split: train, valid, test or all.  [default: train, if the folder lists the splits]",
        ),
        click.option("--skip-bad", is_flag=True, help="Skip image files that cannot be decoded."),
        click.option(
            "--dataset", metavar="NAME", help="Name of the images inside an HDF5 file or zarr group."
        ),
        click.option(
            "--crop",
            type=CropSize(),
            metavar="PIXELS|square",
            help="Crop to a centred square: PIXELS wide, or as large as the image. Comes before --resize.",
        ),
        count_option("--resize", "Resize to N x N pixels."),
        click.option("--grayscale", is_flag=True, help="Convert to one channel."),
    ]
    return _add(options, command)


def open_source(source: str, image: dict[str, Any]) -> ImageSource:
    """Open images with the options of `image_options`; report skipped files and a too large limit."""
    import patchindex

    images = patchindex.open_images(source, **image)
    if images.skipped:
        files = count(len(images.skipped), "file")
        click.echo(f"skipped {files} that cannot be decoded: {shorten(images.skipped)}", err=True)
    limit = image.get("limit")
    if limit is not None and len(images) < limit:
        click.echo(f"--limit: {source} has {count(len(images), 'image')}, fewer than {limit:,}", err=True)
    return images


def locality_option(help_text: str) -> Decorator:
    """Return a decorator that adds --locality and --resize-locality; `parse_locality` reads the values."""
    presets = ", ".join(LOCALITY_PRESETS)
    schedule = click.option(
        "--locality",
        metavar="SCHEDULE",
        help=f"{help_text} A preset ({presets}), a .json file, or locality scales by time, lowest noise "
        "first: 3,3,5,7.",
    )
    resize = click.option(
        "--resize-locality",
        is_flag=True,
        help="Scale the locality schedule by the ratio of the size of the images to the size of the images "
        "that the schedule was calibrated on.",
    )
    return functools.partial(_add, [schedule, resize])


def parse_integers(text: str, parameter: str, example: str = "64,128") -> list[int]:
    """Read a list such as `64,128`."""
    try:
        numbers = [int(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        numbers = []
    if not numbers:
        raise InputError(
            f"{text!r} is not a list of integers", parameter=parameter, remedy=f"write for example {example}"
        )
    return numbers


def parse_scales(text: str, parameter: str = "scales") -> list[int]:
    """Read `3,5,7`."""
    try:
        scales = [int(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        raise InputError(
            f"{text!r} is not a list of scales", parameter=parameter, remedy="write for example 3,5,7"
        ) from None
    if not scales:
        raise InputError("the list is empty", parameter=parameter, remedy="write for example 3,5,7")
    return scales


def parse_locality(text: str | None, noise: str | NoiseSchedule = "cosine") -> LocalitySchedule | None:
    """Read the name of a preset, a .json file, or scales such as `3,3,5,7` by time of a noise schedule."""
    if text is None:
        return None
    numbers = text.replace(",", "").replace(" ", "").isdigit()
    return LocalitySchedule.of(parse_scales(text, "locality") if numbers else text, noise)


def resized_locality(schedule: LocalitySchedule | None, size: tuple[int, int]) -> LocalitySchedule:
    """Return the schedule for images of this size, for --resize-locality."""
    if schedule is None:
        raise InputError("there is no schedule", parameter="resize_locality", remedy="give --locality")
    return schedule.resized(size)


def choose_locality(
    options: SamplingOptions, index: PatchIndex, noise: str | NoiseSchedule = "cosine"
) -> LocalitySchedule | None:
    """Return the schedule of --locality, or else of the store, resized with --resize-locality.

    `noise` is the noise schedule of the denoiser, for scales by time.
    """
    given, size = parse_locality(options.locality, noise), index.training.size
    if not options.resize_locality:
        return given or index.locality
    if given is not None or index.locality is None:
        return resized_locality(given, size)
    # The schedule as it was given to the build, so that scales are rounded only once.
    schedule = LocalitySchedule.from_dict(index.attributes["locality"]).resized(size)
    return schedule.nearest(index.scales) if index.scales else schedule


def sampling_options(batch_size: int) -> Decorator:
    """Return a decorator that adds the options of `sample` and `study`, as `options`."""
    options: list[Decorator] = [
        locality_option("Locality schedule, in place of the store's schedule."),
        click.option("--label", metavar="NUMBER|NAME", help="Use the training images of this label only."),
        count_option("--steps", "Grid points; N gives N-1 denoising steps.", 20, least=2),
        count_option("--batch-size", "Images per batch.", batch_size),
        click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run."),
    ]
    return _grouped("options", SamplingOptions, options)


def parse_label(text: str | None, index: PatchIndex) -> int | None:
    """Return the number of a label, given the number or the name that the store has for it."""
    if text is None:
        return None
    if re.fullmatch(r"-?\d+", text):  # a number, even in a store whose labels are named by numbers
        return int(text)
    labels, names = index.attributes["labels"] or [], index.attributes["label_names"] or []
    if text in names:
        return int(names.index(text))
    known = shorten([names[label] for label in labels] if names else labels, LABELS_SHOWN, "; ")
    remedy = f"use one of: {known}" if known else "leave it out: the store has no labels"
    raise InputError(f"the store has no label called {text!r}", parameter="label", remedy=remedy)


def open_denoiser(
    text: str,
    index: PatchIndex,
    run: RunOptions,
    *,
    locality: LocalitySchedule | None = None,
    label: int | None = None,
    settings: Mapping[str, Any] | None = None,
    parameter: str = "machine",
) -> TrainingDenoiser:
    """Return the denoiser of a text such as `wiener:circulant=true`, for the images of a store.

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
        When the name or an option is unknown, or does not fit the store.
    """
    from patchindex.denoisers import denoiser, parse_denoiser, takes_locality

    name, options = parse_denoiser(text, parameter)
    if takes_locality(name):
        options["locality"] = locality
        if locality is None and name != "IS":
            raise InputError(
                "the store has no schedule", parameter="locality", remedy="give a preset or locality scales"
            )
    common = {"label": label, "device": run.device, "threads": run.threads}
    return denoiser(name, index, **options, **common, **(settings or {}))


def check_output_folder(output: Path, files: Sequence[str], overwrite: bool) -> None:
    """Refuse a folder that cannot be written to, or that already has one of the files."""
    existing = [name for name in files if (output / name).exists()]
    if existing and not overwrite:
        raise OutputExistsError(
            f"already has {', '.join(existing)}",
            where=output,
            remedy=["use another folder, or ", Option("overwrite", True)],
        )
    parent = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError("is not a folder that you can write to", where=parent, remedy="use another path")
