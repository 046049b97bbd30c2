"""Print the plan of a build (`build --dry-run`), and report where a build deviates from its options."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchindex.errors import InputError

from .options import BuildOptions, RunOptions
from .output import add_row, byte_size, count, echo, new_table, print_json, print_table, quiet

if TYPE_CHECKING:
    from patchindex import PatchIndex
    from patchindex.build import BuildPlan


def report_plan(
    plan: BuildPlan,
    output: Path,
    settings: dict[str, Any],
    options: BuildOptions,
    run: RunOptions,
    *,
    overwrite: bool = False,
    add_scales: bool = False,
) -> None:
    """Print a plan, then refuse it for the same reasons as the build.

    `output` is the new store, or with `add_scales` the existing store. `settings` are as a store keeps them,
    or with `add_scales` only `lists` and `pca_dims`.
    """
    from patchindex.build import free_bytes, parse_memory
    from patchindex.build.limits import check_limits
    from patchindex.build.workdir import ExistingOutput, check_no_unfinished, existing_output, real_path
    from patchindex.runtime import resolve_device

    path, budget = real_path(output), parse_memory(options.memory)
    if not path.name:
        raise InputError("is not a name for a store", where=path, remedy="give a folder that does not exist")
    free = free_bytes(path)
    if run.as_json:
        print_json({**plan.as_dict(), "memory_budget": budget, "disk_free": free})
    else:
        with quiet(False):  # the plan is the result
            _print_plan(plan, budget, free)
    report_clamped(((s.k, s.lists, s.dims) for s in plan.scales), settings["lists"], settings["pca_dims"])
    resolve_device(run.device, needs_faiss=True)
    if add_scales:
        if not os.access(path, os.W_OK):
            raise InputError("is read-only", where=path, remedy="copy the store to a folder you can write to")
        check_no_unfinished(path)
    elif (
        existing_output(path, settings, overwrite=overwrite, resume=options.resume) is ExistingOutput.FINISHED
    ):
        echo(f"{output} is complete: --resume has nothing to do", err=True)
        return
    check_limits(path, plan, budget)


def _print_plan(plan: BuildPlan, budget: int, free: int) -> None:
    n, height, width, channels = plan.images
    size = f"{height} x {width} x {channels}"
    echo(f"{plan.machine}, {count(n, 'image')} of {size}; all numbers are upper bounds")
    table = new_table(("k", "patches", "lists", "code", "on disk", "memory"))
    for s in plan.scales:
        row = (s.k, f"{s.patches:,}", f"{s.lists:,}", f"{s.dims} B", byte_size(s.disk_bytes))
        add_row(table, *map(str, row), byte_size(s.memory_bytes))
    print_table(table)
    disk = plan.disk_bytes + plan.scratch_bytes
    for name, need, text, have in (
        ("memory", plan.memory_bytes, f"a budget of {byte_size(budget)}", budget),
        ("disk", disk, f"{byte_size(free)} free; the store keeps {byte_size(plan.disk_bytes)}", free),
    ):
        echo(f"{name}: {byte_size(need)} of {text}: {'fits' if need <= have else 'DOES NOT FIT'}")


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
