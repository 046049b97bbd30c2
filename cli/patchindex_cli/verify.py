"""`patchindex verify`."""

from __future__ import annotations

from pathlib import Path

import click

from patchindex.errors import StoreError

from .computing import Computing
from .options import json_option, store_path
from .output import byte_size, count, echo, print_json
from .progress import stages

PROBLEMS_SHOWN = 20


@click.command(cls=Computing, short_help="Check a store for damage.")
@click.argument("store", type=store_path)
@json_option
def verify(store: Path | str, as_json: bool) -> None:
    """Check a STORE: compare all files with their checksums, and all lists with the images.

    Prints the first 20 problems (all with --json), and ends with exit code 1 if there are any.

    \b
    Examples:
      patchindex verify fashion.zarr
      patchindex verify fashion.zarr --json
    """
    import patchindex

    with stages() as progress:
        report = patchindex.verify(store, progress=progress)
    if as_json:
        print_json(report.as_dict())
    else:
        for where, what in report.problems[:PROBLEMS_SHOWN]:
            echo(f"{where}: {what}")
        if len(report.problems) > PROBLEMS_SHOWN:
            echo(f"... and {len(report.problems) - PROBLEMS_SHOWN} more; --json prints all")
        echo(
            f"{store}: checked {count(report.files, 'file')} ({byte_size(report.bytes)}) and "
            f"{count(report.patches, 'patch')}; encoded {count(report.encoded, 'patch')} again"
        )
    if not report.whole:
        raise StoreError(
            f"found {count(len(report.problems), 'problem')}",
            where=store,
            remedy="build the store again, or restore it from a copy",
        )
