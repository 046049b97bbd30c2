"""Text that all commands print alike: lines, counts, sizes, shortened lists, tables, JSON.

All commands print by the functions of this file, which escape control characters of names from outside.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

from patchindex.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

NAMES_SHOWN = 10
FILE_WIDTH = 120  # characters per line of a table in a file or a pipe


class _Silence:
    """The state of --quiet."""

    on = False


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Print errors and JSON only inside the block; with False, print everything again."""
    before, _Silence.on = _Silence.on, on
    try:
        yield
    finally:
        _Silence.on = before


def is_quiet() -> bool:
    """Return whether errors and JSON only are printed."""
    return _Silence.on


def is_plain(stream: TextIO) -> bool:
    """Return whether a stream gets no escape codes: NO_COLOR is set, or the stream is no terminal."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb" or not stream.isatty()


def echo(text: object, *, err: bool = False) -> None:
    """Print lines on stdout or stderr; names of files and strings of a store may be in them."""
    if not _Silence.on:
        _print(text, err=err)


def _print(text: object, *, err: bool = False) -> None:
    click.echo("\n".join(map(printable, str(text).split("\n"))), err=err)


def note(text: object) -> None:
    """Print a line on stderr, above a progress bar where there is one."""
    if not _Silence.on:
        print(printable(text), file=sys.stderr)  # `click.echo` would write into the line of the bar


def echo_field(name: str, value: object) -> None:
    """Print a name, in bold on a terminal, and its value in the same line."""
    name = f"{name:<12}"
    click.echo(f"{name if is_plain(sys.stdout) else click.style(name, bold=True)}{printable(value)}")


def count(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it has to be: `1 scale`, `1,200 images`."""
    ending = "" if n == 1 else "es" if noun.endswith("ch") else "s"
    return f"{n:,} {noun}{ending}"


def byte_size(n: float) -> str:
    """Return a number of bytes in the units that --memory takes.

    Examples
    --------
    >>> byte_size(1), byte_size(1536), byte_size(3 * 2**40)
    ('1 byte', '1.5 KiB', '3,072.0 GiB')
    """
    if n < 1024:
        return count(int(n), "byte")
    power = 1 if n < 2**20 else 2 if n < 2**30 else 3
    return f"{n / 1024**power:,.1f} {'KMG'[power - 1]}iB"


def shorten(names: Sequence[object], shown: int = NAMES_SHOWN, separator: str = ", ") -> str:
    """Join names; replace all after the first `shown` by an ellipsis."""
    return separator.join([*map(str, names[:shown]), *(["..."] if len(names) > shown else [])])


def new_table(columns: Sequence[str]) -> Table:
    """Return an empty table with right-aligned columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(printable(name), justify="right")
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a row of texts to a table."""
    table.add_row(*map(printable, cells))


def print_table(table: Table, *, err: bool = False) -> None:
    """Print a table, as wide as the terminal or, without a terminal, 120 characters."""
    from rich.console import Console

    if _Silence.on:
        return
    stream = sys.stderr if err else sys.stdout
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}  # cells are no markup
    if is_plain(stream):
        plain |= {"color_system": None, "force_terminal": stream.isatty()}
    if not stream.isatty():
        plain["width"] = FILE_WIDTH
    Console(stderr=err, **plain).print(table)


def print_json(data: dict[str, Any]) -> None:
    """Print data as indented JSON, with the options of the command; also with --quiet."""
    from .config import record_of

    ctx = click.get_current_context(silent=True)
    if ctx is not None and "quiet" in ctx.params:
        data = {**data, "command": record_of(ctx)}
    _print(json.dumps(data, indent=2, default=str))
