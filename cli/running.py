"""What commands that build do: show progress, measure the operating curve, and say what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.filesize import decimal

import patchindex
from patchindex.errors import PatchIndexError
from patchindex.index import PatchIndex

from .options import print_json
from .progress import Stages, stages

__all__ = ["run_build"]

FAR, CLIPPED = 1.2, 0.01  # of patches that are appended: what lists that were trained on others bear


def run_build(
    build: Callable[[Stages], PatchIndex],
    output: Path,
    calibrate: bool,
    seed: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Build, measure the operating curve, and say what came of it."""
    start = time.perf_counter()
    try:
        with stages() as progress:
            index = build(progress)
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
    for k, scale in info["indexes"].items():
        for drift in scale.get("drift", [])[-1:]:
            far = (drift["distance"] or 0) > FAR or drift["clipped"] > CLIPPED
            click.echo(
                f"k = {k}: patches appended are {drift['distance']} times as far from their lists, "
                f"{drift['clipped']:.2%} of their codes out of range"
                + ("; build the store anew" if far else "")
            )
    unused = set(index.scales) - set(index.locality.distinct) if index.locality else set()
    if unused:
        named = ", ".join(map(str, sorted(unused)))
        click.echo(f"its schedule does not use scale {named}: give --locality when you sample")
