"""Option types and options that commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError
from patchindex.schedules import LOCALITY_PRESETS, LocalitySchedule, NoiseSchedule
from patchindex.schedules.checks import problem_of_scale

if TYPE_CHECKING:
    from distributed import Client

# Schedules where none is given. Networks with zero padding are the common ones.
GRAY_PRESET, COLOUR_PRESET = "fashion-mnist-resnet-zeros", "cifar10-resnet-zeros"
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


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
        """Return a name as the library spells it; upper and lower case are equal."""
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
    tune: bool | None  # None: where estimators can be faster than exact scores
    resume: bool


@dataclass(frozen=True)
class SamplingOptions:
    """Options of `sample`, `study` and `compare`."""

    locality: str | None
    resize_locality: bool
    label: tuple[str, ...]
    steps: int
    batch_size: int
    overwrite: bool


def grouped(name: str, kind: type[Any], options: Sequence[Decorator]) -> Decorator:
    """Return a decorator that adds options and passes their values as one `kind` called `name`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**values: Any) -> Any:
            values[name] = kind(**{each.name: values.pop(each.name) for each in fields(kind)})
            return command(**values)

        return add_options(options, run)

    return decorate


def add_options(options: Sequence[Decorator], command: Callable[..., Any]) -> Callable[..., Any]:
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


def device_option(several: bool = False) -> Decorator:
    """Return the option of a device, or of several GPUs."""
    more = "; for exact scores also cuda:0,cuda:1,... or cuda:all" if several else ""
    return click.option(
        "--device",
        metavar="DEVICE",
        default="cpu",
        show_default=True,
        help=f"cpu, cuda, cuda:N, mps, xpu or xpu:N{more}.",
    )


def run_options(seed_help: str, several_devices: bool = False) -> Decorator:
    """Return a decorator that adds the options of each command that computes, as `run`."""
    options: list[Decorator] = [
        seed_option(seed_help),
        threads_option,
        device_option(several_devices),
        json_option,
    ]
    return grouped("run", RunOptions, options)


build_options = grouped(
    "options",
    BuildOptions,
    [
        click.option(
            "--memory",
            metavar="SIZE",
            help="Memory budget, such as 500M or 4G.  [default: half of the memory that the process may use]",
        ),
        click.option(
            "--tune/--no-tune",
            default=None,
            help="Measure estimator settings, so that sampling can choose good ones.  [default: measure them "
            "unless exact scores take less time than estimators, as for few images]",
        ),
        click.option("--resume", is_flag=True, help="Continue an interrupted run of the same command."),
    ],
)


ONE_LABEL = "Use the training images of this label only."


def locality_option(help_text: str, otherwise: str = "the store's schedule; without one") -> Decorator:
    """Return a decorator that adds --locality and --resize-locality; `parse_locality` reads the values.

    `otherwise` says what is taken without the option, before the presets.
    """
    presets = ", ".join(LOCALITY_PRESETS)
    schedule = click.option(
        "--locality",
        metavar="SCHEDULE|K,K,...",
        help=f"{help_text} A preset ({presets}), a .json file, or locality scales by time, lowest noise "
        f"first: 3,3,5,7.  [default: {otherwise} {GRAY_PRESET} for gray images and {COLOUR_PRESET} for "
        "colour images, resized]",
    )
    resize = click.option(
        "--resize-locality",
        is_flag=True,
        help="Scale the locality schedule by the ratio of the size of the images to the size of the images "
        "that the schedule was calibrated on.",
    )
    return functools.partial(add_options, [schedule, resize])


def one_label(labels: Sequence[str]) -> str | None:
    """Return the only label, None without one; refuse several."""
    if len(labels) > 1:
        raise InputError(f"is given {len(labels)} times", parameter="label", remedy="give it once")
    return labels[0] if labels else None


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
    scales = parse_integers(text, parameter, "3,5,7")
    for k in scales:
        if (problem := problem_of_scale(k)) is not None:
            raise InputError(problem, parameter=parameter, remedy="write for example 3,5,7")
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


def sampling_options(batch_size: int, label_help: str = ONE_LABEL) -> Decorator:
    """Return a decorator that adds the options of `sample`, `study` and `compare`, as `options`."""
    options: list[Decorator] = [
        locality_option("Locality schedule, in place of the store's schedule."),
        click.option("--label", metavar="NUMBER|NAME", multiple=True, help=label_help),
        count_option("--steps", "Grid points; N gives N-1 denoising steps.", 20, least=2),
        count_option("--batch-size", "Images per batch.", batch_size),
        click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run."),
    ]
    return grouped("options", SamplingOptions, options)


def cluster_option(verb: str) -> Decorator:
    """Return the option of a Dask cluster; `verb` says what its workers do."""
    return click.option(
        "--cluster",
        metavar="ADDRESS|local",
        help=f"{verb} on the Dask cluster with this scheduler, whose workers must see the store, or on local "
        "processes.",
    )


def connected(cluster: str | None) -> AbstractContextManager[Client | None]:
    """Return a connection to a cluster; without an address, None."""
    if cluster is None:
        return nullcontext()
    from patchindex.cluster import connect

    return connect(cluster)
