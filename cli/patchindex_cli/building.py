"""The steps that `build` and `append` share: show progress, tune the estimators, print a summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchindex.errors import Option, PatchIndexError

from .options import BuildOptions, RunOptions
from .output import byte_size, count, echo, print_json, shorten
from .progress import stages

if TYPE_CHECKING:
    from patchindex import PatchIndex
    from patchindex.runtime import Progress


def run_build(
    build: Callable[[Progress], PatchIndex],
    output: Path,
    options: BuildOptions,
    run: RunOptions,
    *,
    appended: bool = False,
) -> PatchIndex:
    """Build or append, tune the estimators, and print a summary; return the store."""
    import patchindex

    start = time.perf_counter()
    try:
        with stages() as progress:
            index = build(progress)
            if options.tune:
                index = patchindex.tune(output, seed=run.seed, threads=run.threads, progress=progress)
    except KeyboardInterrupt:
        raise PatchIndexError(
            "interrupted", where=output, remedy=["continue with ", Option("resume", True)]
        ) from None
    _print_summary(index, output, time.perf_counter() - start, run.as_json, appended)
    return index


def _print_summary(index: PatchIndex, output: Path, seconds: float, as_json: bool, appended: bool) -> None:
    info = index.info()
    added = info["settings"]["appended"][-1]["images"] if appended else None
    if as_json:
        print_json({**info, "seconds": round(seconds, 2)} | ({"added": added} if appended else {}))
        return
    patches = sum(scale["patches"] for scale in info["indexes"].values())
    echo(
        f"{output}: {count(info['images'], 'image')}{f' ({added:,} added)' if appended else ''}, "
        f"{count(patches, 'patch')} at {count(len(index.scales), 'scale')}, {byte_size(info['bytes'])}, "
        f"in {seconds:.1f} s"
    )
    if appended:
        for k, scale in info["indexes"].items():
            drift = describe_drift(scale["drift"][-1], scale["pca_energy"])
            echo(f"k = {k}: new patches: {drift}")
    if index.locality is None and index.machine != "IS":
        echo("the store has no locality schedule: give --locality to sample")
    elif unused := sorted(set(index.scales) - set(index.locality.distinct if index.locality else ())):
        echo(f"the locality schedule does not use k = {shorten(unused)}: give --locality to sample")


def describe_drift(drift: dict[str, Any], energy: float) -> str:
    """Say how far appended patches differ from the patches that the lists were trained on."""
    from patchindex.index.drift import CLIPPED, FARTHER, is_far

    distance, clipped = drift["distance"], drift["clipped"]
    text = f"{clipped:.2%} of their codes out of range (limit {CLIPPED:.0%})"
    if distance is not None:
        text = f"squared distance to centroids {distance - 1:+.1%} (limit {FARTHER - 1:+.0%}), {text}"
    return f"{text}; rebuild the store" if is_far(drift, energy) else text


def untuned_scales(index: PatchIndex) -> list[int]:
    """Return the scales of a store that are not tuned: they have no operating curve."""
    from patchindex.estimators.curve import OperatingCurve

    return [k for k in index.scales if OperatingCurve.of(index.scale(k)) is None]
