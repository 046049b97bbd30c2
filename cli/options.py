"""Option types and options that commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from patchindex.errors import InputError, OutputExistsError
from patchindex.schedules import LOCALITY_PRESETS, LocalitySchedule

__all__ = ["check_output", "common", "locality_option", "parse_locality", "parse_scales", "print_json"]


def parse_scales(text: str, where: str = "--scales") -> list[int]:
    """Read `3,5,7`."""
    try:
        return [int(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        raise InputError(f"{text!r} is no list of scales", where=where, remedy="give such as 3,5,7") from None


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


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every working command has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: all cores]"),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Equal seeds give equal results.",
        ),
    ):
        command = option(command)
    return command


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


def print_json(data: Any) -> None:
    """Print data as indented JSON."""
    click.echo(json.dumps(data, indent=2, default=str))
