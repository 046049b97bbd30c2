"""`patchindex tune`."""

from __future__ import annotations

from pathlib import Path

import click

import patchindex

from .options import LocalPath, json_option, print_json, seed_option, threads_option
from .progress import stages
from .running import untuned
from .words import some

__all__ = ["tune"]


@click.command()
@click.argument("store", type=LocalPath())
@click.option("--overwrite", is_flag=True, help="Measure anew what is measured already.")
@seed_option
@threads_option
@json_option
def tune(store: Path, overwrite: bool, seed: int, threads: int | None, as_json: bool) -> None:
    """Measure the operating curve of a STORE, by which estimators choose their options.

    What `build` and `append` do at their end, unless --no-tune is given. The scales that have one are
    left alone.

    \b
    Example:
      patchindex tune fashion.zarr
    """
    index = patchindex.open_index(store)
    todo = list(index.scales) if overwrite else untuned(index)
    with stages() as progress:
        index = patchindex.tune(store, seed=seed, threads=threads, overwrite=overwrite, progress=progress)
    if as_json:
        curves = {k: index.scale(k).attributes["operating_curve"] for k in index.scales}
        print_json({"path": str(store), "measured": todo, "operating_curves": curves})
    elif todo:
        click.echo(f"{store}: operating curve measured at k = {some(todo, len(todo))}; info shows it")
    else:
        click.echo(f"{store}: nothing to do: " + ("all have one" if index.scales else "it has no index"))
