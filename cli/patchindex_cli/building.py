"""The steps that `build` and `append` share: show progress, tune the estimators, print a summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import BuildOptions, RunOptions
from .output import byte_size, count, echo, print_json, shorten
from .progress import resumable, stages

if TYPE_CHECKING:
    from patchindex import PatchIndex
    from patchindex.build import BuildPlan
    from patchindex.runtime import Progress


EQUAL_SHOWN = 4  # pairs of equal images
EXACT_IS_FASTER = "exact scores take less time than estimators for so few images"


def run_build(
    build: Callable[[Progress], PatchIndex],
    output: Path,
    options: BuildOptions,
    run: RunOptions,
    *,
    appended: bool = False,
    added_scales: Sequence[int] | None = None,
) -> PatchIndex:
    """Build or append, tune the estimators, and print a summary; return the store.

    `added_scales` are the new scales of `--add-scales`, or None for another build.
    """
    import patchindex

    start = time.perf_counter()
    with resumable(output), stages() as progress:
        index = build(_WithTuning(progress, options.tune))
        if is_tuned(index, options.tune):
            index = patchindex.tune(output, seed=run.seed, threads=run.threads, progress=progress)
    if options.tune is None and untuned_scales(index):
        echo(f"not tuned: {EXACT_IS_FASTER}; --tune measures the estimators all the same", err=True)
    seconds = time.perf_counter() - start
    if run.as_json:
        print_json(summary_of(index, seconds, appended=appended, added_scales=added_scales))
    else:
        _print_summary(index, output, seconds, appended)
    return index


class _WithTuning:
    """The progress of a build, whose expected seconds have the stages of tuning at their end."""

    def __init__(self, progress: Progress, asked: bool | None) -> None:
        self._progress, self._asked = progress, asked

    def __call__(self, stage: str, done: float, total: float, /) -> None:
        self._progress(stage, done, total)

    def expect(self, seconds: Mapping[str, float], plan: BuildPlan) -> None:
        """Begin the stages of a build with this plan, which take these expected seconds."""
        from patchindex.study.tune_times import tuning_seconds

        expect = getattr(self._progress, "expect", None)
        if expect is not None:
            expect({**seconds, **(tuning_seconds(plan) if is_tuned(plan, self._asked) else {})})


def summary_of(
    index: PatchIndex, seconds: float, *, appended: bool = False, added_scales: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return what `build` and `append` print with --json; the parameters are as for `run_build`."""
    found = {**index.info(), "seconds": round(seconds, 2)}
    if appended:
        found["added"] = found["settings"]["appended"][-1]["images"]
    if added_scales is not None:
        found["added_scales"] = [*added_scales]
    return found


def _print_summary(index: PatchIndex, output: Path, seconds: float, appended: bool) -> None:
    info = index.info()
    added = info["settings"]["appended"][-1]["images"] if appended else None
    patches = sum(scale["patches"] for scale in info["indexes"].values())
    echo(
        f"{output}: {count(info['images'], 'image')}{f' ({added:,} added)' if appended else ''}, "
        f"{count(patches, 'patch')} at {count(len(index.scales), 'scale')}, {byte_size(info['bytes'])}, "
        f"in {seconds:.1f} s"
    )
    if appended:
        last = info["settings"]["appended"][-1]
        if "duplicates" in last:  # not in the entry of an earlier version
            echo(describe_duplicates(last["duplicates"], last["images"]))
            for pair in last.get("equal", [])[:EQUAL_SHOWN]:
                new, other = map(index.training.numbered, pair)
                echo(f"  image {new} equals image {other}")
        for k, scale in info["indexes"].items():
            drift = describe_drift(scale["drift"][-1], scale["pca_energy"])
            echo(f"k = {k}: new patches: {drift}")
    if index.locality is None and index.machine != "IS":
        echo("the store has no locality schedule: sample takes a preset unless you give --locality")
    elif unused := sorted(set(index.scales) - set(index.locality.distinct if index.locality else ())):
        echo(f"the locality schedule does not use k = {shorten(unused)}: give --locality to sample")


def describe_drift(drift: dict[str, Any], energy: float) -> str:
    """Say how far appended patches differ from the patches that the lists were trained on, and the limits."""
    from patchindex.index.drift import CLIPPED, FARTHER, LEFT_OUT_MORE, is_far, leaves_out_more

    parts = []
    if (distance := drift["distance"]) is not None:
        side = "farther from" if distance >= 1 else "nearer to"
        parts.append(
            f"{abs(distance - 1):.0%} {side} the lists than the training patches, in squared distance "
            f"(fine below {FARTHER - 1:.0%})"
        )
    clipped = f"{drift['clipped']:.2%}".replace("0.00%", "0%")
    parts.append(f"{clipped} of code values out of range (fine below {CLIPPED:.0%})")
    if leaves_out_more(drift, energy):
        parts.append(
            f"codes leave out {drift['left_out']:.1f} times as much variance (fine below {LEFT_OUT_MORE:.0f})"
        )
    text = "; ".join(parts).replace("%", " %")
    return f"{text}: build the store again" if is_far(drift, energy) else text


def describe_duplicates(duplicates: dict[str, int], images: int) -> str:
    """Say how many appended images are equal to an image of the store, and to one another."""
    if not any(duplicates.values()):
        return "no new image is equal to an image of the store or to another new image"
    return (
        f"{duplicates['store']:,} of {count(images, 'new image')} equal an image of the store, and "
        f"{duplicates['new']:,} more equal an earlier new image; all were added"
    )


def is_tuned(index: PatchIndex | BuildPlan, asked: bool | None) -> bool:
    """Return whether to tune a store, built or planned; unless asked, if exact scores can take longer."""
    from patchindex.study.tune import exact_is_faster

    return not exact_is_faster(index) if asked is None else asked


def untuned_scales(index: PatchIndex) -> list[int]:
    """Return the scales of a store that are not tuned: they have no operating curve."""
    from patchindex.estimators.curve import OperatingCurve

    return [k for k in index.scales if OperatingCurve.of(index.scale(k)) is None]
