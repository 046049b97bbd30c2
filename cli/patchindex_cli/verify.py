"""`patchindex verify`."""

from __future__ import annotations

from pathlib import Path

import click

from patchindex.errors import StoreError
from patchindex.index import verify as check

from .options import StorePath, json_option, print_json
from .progress import stages
from .words import counted, size

__all__ = ["verify"]

SHOWN = 20  # problems; all are in --json


@click.command()
@click.argument("store", type=StorePath())
@json_option
def verify(store: Path | str, as_json: bool) -> None:
    """Compare a STORE with its checksums, and look into every list of it.

    Ends with exit code 1 when something is wrong.

    \b
    Example:
      patchindex verify fashion.zarr
    """
    with stages() as progress:
        report = check(store, progress=progress)
    if as_json:
        print_json(report.as_dict())
    else:
        for where, what in report.problems[:SHOWN]:
            click.echo(f"{where}: {what}")
        if len(report.problems) > SHOWN:
            click.echo(f"... and {len(report.problems) - SHOWN} more")
        click.echo(
            f"{store}: {counted(report.files, 'file')} of {size(report.bytes)} compared with checksums, "
            f"{counted(report.patches, 'patch')} looked up, {report.encoded:,} encoded again"
        )
    if not report.whole:
        raise StoreError(
            f"{len(report.problems)} problems",
            where=store,
            remedy="build it again, or copy it again from where it is whole",
        )
