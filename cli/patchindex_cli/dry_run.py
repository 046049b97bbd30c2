"""Print the plan and the time of a build (`build --dry-run`), and report clamped options."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchindex.errors import InputError

from .building import EXACT_IS_FASTER, is_tuned
from .options import BuildOptions, RunOptions
from .output import add_row, byte_size, count, echo, new_table, print_json, print_table, quiet

if TYPE_CHECKING:
    from patchindex import PatchIndex
    from patchindex.build import BuildPlan
    from patchindex.images import ImageSource

# The columns of times, and how the names of their stages begin.
STAGES = {"train": ("drawing", "training"), "assign": ("assigning",), "merge": ("merging",)}
TUNING = {"tune": ("operating",)}


def report_plan(
    plan: BuildPlan,
    images: ImageSource,
    output: Path,
    settings: dict[str, Any],
    options: BuildOptions,
    run: RunOptions,
    *,
    overwrite: bool = False,
) -> None:
    """Print a plan and the time of the build, then refuse the build for the same reasons as `build`.

    `images` are the images of the plan, or a sample of them. `output` is the new store, or the existing store
    if the plan adds scales. `settings` are as a store keeps them, or only `lists` and `pca_dims` if the plan
    adds scales.
    """
    from torch import get_num_threads

    from patchindex.build import free_bytes, measure_rates, parse_memory, stage_seconds
    from patchindex.build.limits import check_limits
    from patchindex.build.workdir import ExistingOutput, check_no_unfinished, existing_output, real_path
    from patchindex.devices import resolve_device
    from patchindex.runtime import threads
    from patchindex.study.tune_times import measure_slowness, tuning_seconds

    path, budget = real_path(output), parse_memory(options.memory)
    if not path.name:
        raise InputError("is not a name for a store", where=path, remedy="give a folder that does not exist")
    free = free_bytes(path)
    device = resolve_device(run.device, needs_faiss=True)
    with threads(run.threads):
        n_threads = get_num_threads()
        seconds = stage_seconds(plan, measure_rates(images, plan, device))
        tuned = bool(plan.scales) and is_tuned(plan, options.tune)
        if tuned:
            seconds |= tuning_seconds(plan, slower=measure_slowness(images, plan))
    if run.as_json:
        more = {"memory_budget": budget, "disk_free": free, "measured_images": len(images)}
        print_json({**plan.as_dict(), **more, "seconds": seconds, "total_seconds": sum(seconds.values())})
    else:
        with quiet(False):  # the plan is the result
            _print_plan(plan, seconds, n_threads, budget, free, tuned=tuned)
            _print_basis(plan, len(images), settings["pca_dims"])
            if plan.scales and not tuned and options.tune is None:
                echo(f"not tuned: {EXACT_IS_FASTER}; --tune measures the estimators all the same")
    report_clamped(((s.k, s.lists, s.dims) for s in plan.scales), settings["lists"], settings["pca_dims"])
    if plan.adds_scales:
        if not os.access(path, os.W_OK):
            raise InputError("is read-only", where=path, remedy="copy the store to a folder you can write to")
        check_no_unfinished(path)
    elif (
        existing_output(path, settings, overwrite=overwrite, resume=options.resume) is ExistingOutput.FINISHED
    ):
        echo(f"{output} is complete: --resume has nothing to do", err=True)
        return
    check_limits(path, plan, budget)


def _print_plan(
    plan: BuildPlan, seconds: dict[str, float], n_threads: int, budget: int, free: int, *, tuned: bool
) -> None:
    from patchindex.study.tune_times import CURVE_STAGE, DRAW_STAGE

    n, height, width, channels = plan.images
    size = f"{height} x {width} x {channels}"
    echo(f"{plan.machine}, {count(n, 'image')} of {size}; sizes are upper bounds, times are estimates")
    stages = STAGES | (TUNING if tuned else {})
    table = new_table(("k", "patches", "lists", "code", "on disk", "memory", *stages))
    for s in plan.scales:
        row = (s.k, f"{s.patches:,}", f"{s.lists:,}", f"{s.dims} B", byte_size(s.disk_bytes))
        times = [_duration(_sum_of(seconds, f"k = {s.k}: ", words)) for words in stages.values()]
        add_row(table, *map(str, row), byte_size(s.memory_bytes), *times)
    print_table(table)
    echo(
        f"time: about {_duration(sum(seconds.values()))} for reading images, training, assigning, merging"
        f"{', tuning' if tuned else ''}, by short measurements here, on {count(n_threads, 'thread')}"
    )
    if tuned:
        tuning = sum(time for stage, time in seconds.items() if stage.endswith((DRAW_STAGE, CURVE_STAGE)))
        echo(f"{_duration(tuning)} of it are for tuning; --no-tune leaves it out")
    disk = plan.disk_bytes + plan.scratch_bytes
    for name, need, text, have in (
        ("memory", plan.memory_bytes, f"a budget of {byte_size(budget)}", budget),
        ("disk", disk, f"{byte_size(free)} free; the store keeps {byte_size(plan.disk_bytes)}", free),
    ):
        echo(f"{name}: {byte_size(need)} of {text}: {'fits' if need <= have else 'DOES NOT FIT'}")


def _sum_of(seconds: dict[str, float], scale: str, words: tuple[str, ...]) -> float:
    """Return the seconds of the stages of a scale whose names begin with some words."""
    return sum(
        time for stage, time in seconds.items() if stage.startswith(tuple(f"{scale}{word}" for word in words))
    )


def _duration(seconds: float) -> str:
    """Return a time as it is read: two digits are more than the estimate knows."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _print_basis(plan: BuildPlan, images: int, pca_dims: int | None) -> None:
    """Say what the sizes and times rest on, and what they leave out."""
    from patchindex.build.plan import SURVEY_IMAGES
    from patchindex.index.pca import MAX_DIMS

    if images < plan.images[0]:
        echo(f"sizes and times are scaled from the {count(images, 'image')} of SOURCE")
    if plan.scales and pca_dims is None:
        seen = count(min(images, SURVEY_IMAGES), "image")
        echo(f"the size of a code follows from the content of {seen}: others may need 8 to {MAX_DIMS} B")


def codes_of(index: PatchIndex, scales: Iterable[int]) -> list[tuple[int, int, int]]:
    """Return k, the number of lists and the code size of some scales of a store."""
    found = ((k, index.scale(k).attributes) for k in scales)
    return [(k, scale["lists"], scale["pca_dims"]) for k, scale in found]


def report_clamped(
    scales: Iterable[tuple[int, int, int]], lists: int | None = None, pca_dims: int | None = None
) -> None:
    """Report on stderr each scale whose number of lists or code size is not as asked."""
    from patchindex.index.lists import MIN_PATCHES_PER_LIST

    few = f"each list needs {MIN_PATCHES_PER_LIST} patches, each position class needs a list"
    for k, actual_lists, actual_dims in scales:
        for flag, actual, asked, reason in (
            ("--lists", actual_lists, lists, few),
            ("--pca-dims", actual_dims, pca_dims, "a patch has no more values"),
        ):
            if asked is not None and actual != asked:
                echo(f"{flag}: {actual:,} instead of {asked:,} at k = {k}: {reason}", err=True)
