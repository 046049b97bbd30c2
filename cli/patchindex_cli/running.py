"""What commands that build do: show progress, measure the operating curve, and say what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import patchindex
from patchindex.errors import PatchIndexError
from patchindex.estimators.curve import OperatingCurve
from patchindex.index import PatchIndex

from .options import print_json
from .progress import Stages, stages
from .words import counted, size, some

__all__ = ["drifted", "run_build", "untuned"]

FAR, CLIPPED = 1.2, 0.01  # of patches that are appended: what lists that were trained on others bear


def run_build(
    build: Callable[[Stages], PatchIndex],
    output: Path,
    tune: bool,
    seed: int,
    threads: int | None,
    as_json: bool,
    *,
    appended: bool = False,
) -> PatchIndex:
    """Build or append, measure the operating curve, and say what came of it; return the store."""
    start = time.perf_counter()
    try:
        with stages() as progress:
            index = build(progress)
            if tune:
                index = patchindex.tune(output, seed=seed, threads=threads, progress=progress)
    except KeyboardInterrupt:
        raise PatchIndexError(
            "interrupted", where=output, remedy="run it again with --resume to go on"
        ) from None
    seconds = round(time.perf_counter() - start, 2)
    info = index.info()
    added = info["settings"]["appended"][-1]["images"] if appended else None
    if as_json:
        print_json({**info, "seconds": seconds} | ({"added": added} if appended else {}))
        return index
    patches = sum(scale["patches"] for scale in info["indexes"].values())
    click.echo(
        f"{output}: {counted(info['images'], 'image')}{f' ({added:,} added)' if appended else ''}, "
        f"{counted(patches, 'patch')} at {counted(len(index.scales), 'scale')}, {size(info['bytes'])}, "
        f"in {seconds:.1f} s"
    )
    if appended:
        for k, scale in info["indexes"].items():
            click.echo(f"k = {k}: {drifted(scale['drift'][-1])}")
    if index.locality is None and index.machine != "IS":
        click.echo("it has no schedule of its own: give --locality when you sample")
    elif unused := sorted(set(index.scales) - set(index.locality.distinct if index.locality else ())):
        click.echo(f"its schedule does not use k = {some(unused)}: give --locality when you sample")
    return index


def drifted(drift: dict[str, Any]) -> str:
    """Say how far images that were appended are from what the lists were trained on."""
    distance, clipped = drift["distance"], drift["clipped"]
    far = (distance or 0) > FAR or clipped > CLIPPED
    words = "" if distance is None else f"{distance} times as far from their lists, "
    remedy = "; build the store anew" if far else ""
    return f"patches appended: {words}{clipped:.2%} of their codes out of range{remedy}"


def untuned(index: PatchIndex) -> list[int]:
    """Return the scales of a store that have no operating curve."""
    return [k for k in index.scales if OperatingCurve.of(index.scale(k)) is None]
