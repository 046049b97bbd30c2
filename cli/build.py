"""`patchindex build`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

import patchindex
from patchindex.errors import PatchIndexError
from patchindex.images import open_images
from patchindex.index import BuildPlan, build_index, free_bytes, parse_memory, plan_build
from patchindex.patches import MACHINES, TRAIN_WINDOWS

from .options import common, locality_option, parse_locality, parse_scales, print_json
from .progress import stages

__all__ = ["build"]


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The store to make.")
@click.option("--scales", help="Odd locality scales: 3,5,7.  [default: those of --locality]")
@locality_option("Schedule kept in the store for sampling, moved to the nearest of --scales.")
@click.option(
    "--machine", type=click.Choice(MACHINES), default="ELS", show_default=True, help="Score machine."
)
@click.option("--train-windows", type=click.Choice(TRAIN_WINDOWS), default="valid", show_default=True)
@click.option("--limit", type=int, help="Only the first LIMIT images.")
@click.option("--labels", help="File of labels (.npy, .npz, .txt, .csv, IDX), or 'folders'.")
@click.option("--dataset", help="Images inside an HDF5 file or zarr group.")
@click.option("--crop", type=int, help="Centre crop to CROP x CROP pixels, before --resize.")
@click.option("--resize", type=int, help="Resize to RESIZE x RESIZE pixels.")
@click.option("--grayscale", is_flag=True, help="Convert to one channel.")
@click.option("--pca-dims", type=int, help="Code size.  [default: by the lowest noise, 128 at most]")
@click.option(
    "--lists", type=int, help="Inverted lists a scale.  [default: a 256th of the patches, if memory does]"
)
@click.option("--memory", help="What the build may take: 500M, 4G.  [default: half of the machine's]")
@click.option(
    "--calibrate/--no-calibrate",
    default=True,
    show_default=True,
    help="Measure what the estimators' options are good for, by which they are chosen in sampling.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted build.")
@click.option("--overwrite", is_flag=True, help="Replace a store that is there, once the new one is whole.")
@click.option("--dry-run", is_flag=True, help="Print patches, bytes and memory a scale, and do nothing.")
@common
def build(
    source: str,
    output: Path,
    scales: str | None,
    locality: str | None,
    machine: str,
    train_windows: str,
    limit: int | None,
    labels: str | None,
    dataset: str | None,
    crop: int | None,
    resize: int | None,
    grayscale: bool,
    pca_dims: int | None,
    lists: int | None,
    memory: str | None,
    calibrate: bool,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Build a store of per-scale patch indexes from the images of SOURCE.

    SOURCE is a folder of images, a .npz, .npy, HDF5, zarr or IDX file, or the name of a known set.

    \b
    Examples:
      patchindex build data/fashion_mnist_6k.npz -o fashion.zarr --scales 3,7,15
      patchindex build photos/ -o photos.zarr --crop 148 --resize 32 --labels folders \\
          --locality celeba-resnet-zeros --dry-run
    """
    settings: dict[str, Any] = {
        "scales": None if scales is None else parse_scales(scales),
        "machine": machine,
        "train_windows": train_windows,
        "locality": parse_locality(locality),
        "pca_dims": pca_dims,
        "lists": lists,
    }
    images = open_images(
        source, labels=labels, dataset=dataset, limit=limit, crop=crop, resize=resize, grayscale=grayscale
    )
    if dry_run:
        budget = parse_memory(memory)
        plan, _ = plan_build(images, **settings, memory=budget)
        if as_json:
            print_json({**plan.as_dict(), "memory_budget": budget, "disk_free": free_bytes(output)})
        else:
            _print_plan(plan, budget, free_bytes(output))
        return
    start = time.perf_counter()
    try:
        with stages() as progress:
            index = build_index(
                images,
                output,
                **settings,
                seed=seed,
                threads=threads,
                memory=memory,
                device=device,
                overwrite=overwrite,
                resume=resume,
                progress=progress,
            )
            if calibrate:
                index = patchindex.calibrate(output, seed=seed, threads=threads, progress=progress)
    except KeyboardInterrupt:
        raise PatchIndexError(
            "interrupted", where=output, remedy="run it again with --resume to go on"
        ) from None
    seconds = round(time.perf_counter() - start, 2)
    info = index.info()
    if as_json:
        print_json({**info, "seconds": seconds})
        return
    patches = sum(scale["patches"] for scale in info["indexes"].values())
    click.echo(
        f"{output}: {info['images']:,} images, {patches:,} patches at {len(index.scales)} scales, "
        f"{decimal(info['bytes'])}, built in {seconds:.1f} s"
    )


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
    console = Console()
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
