"""`patchindex tune`."""

from __future__ import annotations

from pathlib import Path

import click

from .building import untuned_scales
from .computing import Computing
from .options import LocalPath, json_option, seed_option, threads_option
from .output import echo, print_json, shorten
from .progress import stages


@click.command(cls=Computing, short_help="Measure estimator settings for a store.")
@click.argument("store", type=LocalPath())
@click.option("--overwrite", is_flag=True, help="Measure all scales again, also tuned scales.")
@seed_option("Seed for the images that the estimators are tuned on.")
@threads_option
@json_option
def tune(store: Path, overwrite: bool, seed: int, threads: int | None, as_json: bool) -> None:
    """Measure estimator settings on this machine and save them in a STORE.

    The result is an operating curve for each scale: the cost and the error of each setting. `auto` and `topk`
    read it to choose how much to retrieve. `build` and `append` tune the store, unless you give --no-tune or
    exact scores take less time than estimators, as for few images.

    \b
    Examples:
      patchindex tune fashion.zarr
      patchindex tune fashion.zarr --overwrite --threads 8
    """
    import patchindex

    index = patchindex.open_index(store)
    todo = list(index.scales) if overwrite else untuned_scales(index)
    with stages() as progress:
        index = patchindex.tune(store, seed=seed, threads=threads, overwrite=overwrite, progress=progress)
    if as_json:
        curves = {k: index.scale(k).attributes["operating_curve"] for k in index.scales}
        print_json({"path": str(store), "measured": todo, "operating_curves": curves})
    elif todo:
        echo(f"{store}: tuned k = {shorten(todo, len(todo))}; see patchindex info {store}")
    else:
        reason = "all scales are tuned" if index.scales else "the store has no index"
        echo(f"{store}: nothing to do: {reason}")
