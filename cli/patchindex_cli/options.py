"""Option types and options that commands share."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from patchindex.errors import InputError, OutputExistsError
from patchindex.images import ImageSource, open_images
from patchindex.index import PatchIndex
from patchindex.schedules import LOCALITY_PRESETS, LocalitySchedule
from patchindex.store.remote import is_url

from .words import counted, some

__all__ = [
    "LocalPath",
    "StorePath",
    "building_options",
    "check_output",
    "common",
    "image_options",
    "json_option",
    "label_option",
    "locality_option",
    "open_source",
    "parse_label",
    "parse_locality",
    "parse_scales",
    "print_json",
    "seed_option",
    "table_console",
    "threads_option",
]


LABELS_SHOWN = 20
WIDTH = 120  # of tables in a file or a pipe


class StorePath(click.ParamType):
    """A path, or a URL as it is."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path | str:
        """Return a `Path`, or the URL."""
        return value if is_url(value) else Path(value)


class LocalPath(click.ParamType):
    """A path on this machine, where something is written."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Return a `Path`; a URL would be taken for one, and a folder called `s3:` made here."""
        if is_url(value):
            raise InputError("is a URL", where=value, remedy="write to a local disk, and copy it there")
        if not str(value):
            raise InputError("is empty", where=param.name, remedy="give a path")
        return Path(value)


class CropSize(click.ParamType):
    """Pixels, or the word for the shorter side."""

    name = "pixels|square"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a number, or `square`."""
        if value == "square":
            return value
        if not re.fullmatch(r"-?\d+", str(value)):
            self.fail(f"{value!r} is neither pixels nor 'square'.", param, ctx)
        return click.IntRange(1).convert(value, param, ctx)


def parse_scales(text: str, where: str = "--scales") -> list[int]:
    """Read `3,5,7`."""
    try:
        scales = [int(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        raise InputError(f"{text!r} is no list of scales", where=where, remedy="give such as 3,5,7") from None
    if not scales:
        raise InputError("there are none", where=where, remedy="give such as 3,5,7")
    return scales


def parse_locality(text: str | None) -> LocalitySchedule | None:
    """Read a preset's name, or scales by time such as `3,3,5,7`."""
    if text is None:
        return None
    numbers = text.replace(",", "").replace(" ", "").isdigit()
    return LocalitySchedule.of(parse_scales(text, "--locality") if numbers else text)


def locality_option(help_text: str) -> Callable[[Any], Any]:
    """Return the option --locality."""
    presets = ", ".join(LOCALITY_PRESETS)
    return click.option(
        "--locality",
        metavar="SCHEDULE",
        help=f"{help_text} A preset ({presets}), or scales by time, lowest noise first: 3,3,5,7.",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: all]")
seed_option = click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Equal seeds give equal images, up to rounding.",
)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every working command has."""
    device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
    for option in (json_option, device_option, threads_option, seed_option):
        command = option(command)
    return command


def image_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `open_images`."""
    for option in (
        click.option("--grayscale", is_flag=True, help="Convert to one channel."),
        click.option("--resize", type=click.IntRange(1), help="Resize to RESIZE x RESIZE pixels."),
        click.option(
            "--crop",
            type=CropSize(),
            metavar="PIXELS|square",
            help="Centre crop to a square of so many pixels, or of the shorter side. Before --resize.",
        ),
        click.option("--dataset", help="Images inside an HDF5 file or zarr group."),
        click.option("--skip-bad", is_flag=True, help="Leave out image files that cannot be decoded."),
        click.option(
            "--split",
            help="train, valid, test or all of CelebA.  [default: train where there is a partition list]",
        ),
        click.option(
            "--labels",
            help="File of labels (.npy, .npz, .txt, .csv, IDX), 'folders' (numbered by name), or "
            "'attr:Smiling,Male' of CelebA.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(1),
            help="Only the first LIMIT images, by name: with a folder a class, of the first classes.",
        ),
    ):
        command = option(command)
    return command


def building_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that build."""
    for option in (
        click.option("--resume", is_flag=True, help="Go on with an interrupted one."),
        click.option(
            "--tune/--no-tune",
            default=True,
            show_default=True,
            help="Measure what the estimators' options are good for, by which they are chosen in sampling.",
        ),
        click.option("--memory", help="What it may take: 500M, 4G.  [default: half of the machine's]"),
    ):
        command = option(command)
    return command


def open_source(source: str, image: dict[str, Any]) -> ImageSource:
    """Open images with the options of `image_options`; say which are left out, and if there are too few."""
    images = open_images(source, **image)
    if images.skipped:
        files = counted(len(images.skipped), "file")
        click.echo(f"{files} left out that cannot be decoded: {some(images.skipped)}", err=True)
    limit = image.get("limit")
    if limit is not None and len(images) < limit:
        click.echo(f"--limit: there are {counted(len(images), 'image')}, fewer than {limit:,}", err=True)
    return images


def label_option(help_text: str) -> Callable[[Any], Any]:
    """Return the option --label; `parse_label` reads it."""
    return click.option("--label", metavar="NUMBER|NAME", help=help_text)


def parse_label(text: str | None, index: PatchIndex) -> int | None:
    """Read the number of a label, or find that of its name in a store."""
    if text is None:
        return None
    if re.fullmatch(r"-?\d+", text):  # also where names are such
        return int(text)
    labels, names = index.attributes["labels"] or [], index.attributes["label_names"] or []
    if text in names:
        return int(names.index(text))
    known = some([names[label] for label in labels] if names else labels, LABELS_SHOWN, "; ")
    remedy = f"use one of: {known}" if known else "leave it out, since it has no labels"
    raise InputError(f"the store has no label called {text!r}", where="--label", remedy=remedy)


def check_output(output: Path, files: Sequence[str], overwrite: bool) -> None:
    """Refuse a folder that some of the files are in already, or that cannot be written to.

    Raises
    ------
    OutputExistsError, InputError
    """
    in_the_way = [name for name in files if (output / name).exists()]
    if in_the_way and not overwrite:
        raise OutputExistsError(
            f"holds {', '.join(in_the_way)} already",
            where=output,
            remedy="use another folder, or --overwrite",
        )
    parent = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError("is no folder that can be written to", where=parent, remedy="use another path")


def table_console() -> Console:
    """Return a console for tables: as wide as the terminal, or as they need where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_json(data: Any) -> None:
    """Print data as indented JSON."""
    click.echo(json.dumps(data, indent=2, default=str))
