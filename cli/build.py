"""`patchindex build`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.filesize import decimal
from rich.table import Table

import patchindex
from patchindex.errors import InputError
from patchindex.index import (
    BuildPlan,
    PatchIndex,
    build_index,
    free_bytes,
    open_index,
    parse_memory,
    plan_build,
    plan_scales,
)
from patchindex.patches import MACHINES, TRAIN_WINDOWS

from .options import (
    building_options,
    common,
    image_options,
    locality_option,
    open_source,
    parse_locality,
    parse_scales,
    print_json,
    table_console,
)
from .progress import Stages
from .running import run_build

__all__ = ["build"]


@click.command()
@click.argument("source", required=False)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The store to make.")
@click.option("--scales", help="Odd locality scales: 3,5,7.  [default: those of --locality]")
@locality_option("Schedule kept in the store for sampling, moved to the nearest of --scales.")
@click.option(
    "--machine", type=click.Choice(MACHINES), default="ELS", show_default=True, help="Score machine."
)
@click.option("--train-windows", type=click.Choice(TRAIN_WINDOWS), default="valid", show_default=True)
@click.option("--add-scales", help="Index more scales of a finished store's images: 9,11. No SOURCE then.")
@image_options
@click.option("--pca-dims", type=int, help="Code size.  [default: by the lowest noise, 128 at most]")
@click.option(
    "--lists", type=int, help="Inverted lists a scale.  [default: a 256th of the patches, if memory does]"
)
@building_options
@click.option("--overwrite", is_flag=True, help="Replace a store that is there, once the new one is whole.")
@click.option(
    "--cluster", help="Build on a Dask cluster: its scheduler's address, or 'local' for processes here."
)
@click.option("--dry-run", is_flag=True, help="Print patches, bytes and memory a scale, and do nothing.")
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
    calibrate: bool,
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
      patchindex build photos/ -o photos.zarr --crop 148 --resize 32 --labels folders \\
          --locality celeba-resnet-zeros --dry-run
      patchindex build --add-scales 9,11 -o photos.zarr
    """
    how: dict[str, Any] = {"seed": seed, "threads": threads, "memory": memory, "device": device}
    codes: dict[str, Any] = {"pca_dims": pca_dims, "lists": lists}
    if add_scales is not None:
        _refuse_with_add_scales(
            "source", "scales", "locality", "machine", "train_windows", "overwrite", *image
        )
        more = parse_scales(add_scales, "--add-scales")
        if dry_run:
            budget = parse_memory(memory)
            _tell(plan_scales(open_index(output), more, **codes, memory=budget), budget, output, as_json)
            return

        def add(progress: Stages) -> PatchIndex:
            with _client(cluster) as client:
                return patchindex.add_scales(output, more, **codes, **how, progress=progress, client=client)

        run_build(add, output, calibrate, seed, threads, as_json)
        return
    if source is None:
        raise click.UsageError("Missing argument 'SOURCE'.")
    settings: dict[str, Any] = {
        "scales": None if scales is None else parse_scales(scales),
        "machine": machine,
        "train_windows": train_windows,
        "locality": parse_locality(locality),
        **codes,
    }
    images = open_source(source, image)
    if dry_run:
        budget = parse_memory(memory)
        plan, _ = plan_build(images, **settings, memory=budget)
        _tell(plan, budget, output, as_json)
        return

    def make(progress: Stages) -> PatchIndex:
        with _client(cluster) as client:
            return build_index(
                images,
                output,
                **settings,
                **how,
                overwrite=overwrite,
                resume=resume,
                progress=progress,
                client=client,
            )

    run_build(
        make,
        output, calibrate, seed, threads, as_json,
    )  # fmt: skip


def _client(cluster: str | None) -> Any:
    """Connect to a cluster, if there is to be one."""
    return nullcontext() if cluster is None else patchindex.cluster.connect(cluster)


def _tell(plan: BuildPlan, budget: int, output: Path, as_json: bool) -> None:
    """Print a plan."""
    if as_json:
        print_json({**plan.as_dict(), "memory_budget": budget, "disk_free": free_bytes(output)})
    else:
        _print_plan(plan, budget, free_bytes(output))


def _refuse_with_add_scales(*names: str) -> None:
    """Refuse what a finished store has already."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT):
            raise InputError("is fixed in the store", where=name, remedy="leave it out with --add-scales")


def _print_plan(plan: BuildPlan, budget: int, free: int) -> None:
    n, height, width, channels = plan.images
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{plan.machine}, {n:,} images of {height} x {width} x {channels}: at most"
    )
    for name in ("k", "patches", "lists", "code", "on disk", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in plan.scales:
        row = (s.k, f"{s.patches:,}", f"{s.lists:,}", s.dims, decimal(s.disk_bytes), decimal(s.memory_bytes))
        table.add_row(*map(str, row))
    console = table_console()
    console.print(table)
    for need, have, of in (
        (plan.memory_bytes, budget, f"of memory; the budget is {decimal(budget)}"),
        (
            plan.disk_bytes + plan.scratch_bytes,
            free,
            f"on disk, {decimal(plan.disk_bytes)} when it is built; {decimal(free)} are free",
        ),
    ):
        console.print(f"{decimal(need)} {of}: {'fits' if need <= have else 'DOES NOT FIT'}")
