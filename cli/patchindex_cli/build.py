"""`patchindex build`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

import patchindex
from patchindex.build import build_index, parse_memory, plan_build, plan_scales
from patchindex.errors import InputError
from patchindex.geometry import INDEXED_MACHINES, MACHINES, TRAIN_WINDOWS
from patchindex.index import PatchIndex, open_index

from .forecast import of_scales, tell_clamped, tell_plan
from .options import (
    LocalPath,
    building_options,
    common,
    image_options,
    locality_option,
    open_source,
    parse_locality,
    parse_scales,
)
from .progress import Stages
from .running import run_build, untuned
from .words import some

__all__ = ["build"]


@click.command()
@click.argument("source", required=False)
@click.option("-o", "--output", required=True, type=LocalPath(), help="The store to make.")
@click.option("--scales", help="Odd locality scales: 3,5,7.  [default: those of --locality]")
@locality_option("Schedule kept in the store for sampling, moved to the nearest of --scales.")
@click.option(
    "--machine",
    type=click.Choice(MACHINES, case_sensitive=False),
    metavar=f"[{'|'.join(MACHINES)}]",
    default="ELS",
    show_default=True,
    help="Score machine.",
)
@click.option("--train-windows", type=click.Choice(TRAIN_WINDOWS), default="valid", show_default=True)
@click.option("--add-scales", help="Index more scales of a finished store's images: 9,11. No SOURCE then.")
@image_options
@click.option(
    "--pca-dims",
    type=click.IntRange(1),
    help="Code size.  [default: by the lowest noise, 128 at most]",
)
@click.option(
    "--lists",
    type=click.IntRange(1),
    help="Inverted lists a scale.  [default: a 256th of the patches, if memory does]",
)
@building_options
@click.option("--overwrite", is_flag=True, help="Replace a store that is there, once the new one is whole.")
@click.option(
    "--cluster", help="Build on a Dask cluster: its scheduler's address, or 'local' for processes here."
)
@click.option("--dry-run", is_flag=True, help="Print patches, bytes and memory a scale, and check them only.")
@common
def build(
    source: str | None,
    output: Path,
    scales: str | None,
    locality: str | None,
    machine: str,
    train_windows: str,
    add_scales: str | None,
    pca_dims: int | None,
    lists: int | None,
    memory: str | None,
    tune: bool,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    cluster: str | None,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
    **image: Any,
) -> None:
    """Build a store of per-scale patch indexes from the images of SOURCE.

    SOURCE is a folder or .zip of images, the folder of CelebA, a .npz, .npy, HDF5, zarr or IDX file, several
    by a pattern with *, the URL of a zarr array, or the name of a known set.

    \b
    Examples:
      patchindex build data/fashion_mnist_6k.npz -o fashion.zarr --scales 3,7,15
      patchindex build photos/ -o photos.zarr --crop square --resize 32 --labels folders \\
          --locality celeba-resnet-zeros --dry-run
      patchindex build --add-scales 9,11 -o photos.zarr
    """
    # What both ways share; a refusal comes before any image is opened.
    how: dict[str, Any] = {"seed": seed, "threads": threads, "memory": memory, "device": device}
    codes: dict[str, Any] = {"pca_dims": pca_dims, "lists": lists}
    tell = partial(
        tell_plan, output=output, budget=parse_memory(memory), overwrite=overwrite, resume=resume,
        device=device, as_json=as_json,
    )  # fmt: skip
    if add_scales is not None:
        _refuse_given(
            ("source", "scales", "locality", "machine", "train_windows", "overwrite", *image),
            "is fixed in the store",
            "leave it out with --add-scales",
        )
        wanted = parse_scales(add_scales, "--add-scales")
        store = open_index(output)
        more = sorted(set(wanted) - set(store.scales))
        if not more:
            click.echo(f"nothing to add: {output} has k = {some(wanted)} already", err=True)
            if dry_run or not (tune and untuned(store)):
                return
        if dry_run:
            plan = plan_scales(store, more, **codes, memory=parse_memory(memory))
            tell(plan, settings=codes, more_scales=True)
            return

        def add(progress: Stages) -> PatchIndex:
            with _client(cluster) as client:
                return patchindex.add_scales(output, more, **codes, **how, progress=progress, client=client)

        index = run_build(add, output, tune, seed, threads, as_json)
        tell_clamped(of_scales(index, more), **codes)
        return
    if source is None:
        raise click.UsageError("Missing argument 'SOURCE'.")
    if machine not in INDEXED_MACHINES:
        _refuse_given(
            ("scales", "pca_dims", "lists", "cluster"), f"{machine} has no index for this", "leave it out"
        )
    settings: dict[str, Any] = {
        "scales": None if scales is None else parse_scales(scales),
        "machine": machine,
        "train_windows": train_windows,
        "locality": parse_locality(locality),
        **codes,
    }
    images = open_source(source, image)
    if dry_run:
        plan, _ = plan_build(images, **settings, memory=parse_memory(memory))
        planned = {"scales": [s.k for s in plan.scales], "source": images.name, "shape": list(images.shape)}
        fixed = {"machine": machine, "train_windows": train_windows, "seed": seed}
        tell(plan, settings={**codes, **fixed, **planned})
        return

    def make(progress: Stages) -> PatchIndex:
        with _client(cluster) as client:
            return build_index(
                images, output, **settings, **how, overwrite=overwrite, resume=resume, progress=progress,
                client=client,
            )  # fmt: skip

    index = run_build(make, output, tune, seed, threads, as_json)
    tell_clamped(of_scales(index, index.scales), **codes)


def _client(cluster: str | None) -> Any:
    """Connect to a cluster, if there is to be one."""
    return nullcontext() if cluster is None else patchindex.cluster.connect(cluster)


def _refuse_given(names: Sequence[str], what: str, remedy: str) -> None:
    """Refuse options that cannot apply."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT):
            raise InputError(what, where=name, remedy=remedy)
