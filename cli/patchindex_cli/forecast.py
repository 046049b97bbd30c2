"""What `build --dry-run` does: tell the plan, and refuse what the build would. And what was not as asked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from patchindex.build import BuildPlan, free_bytes
from patchindex.build.workdir import check_memory, check_no_other, check_output, check_space, real_path
from patchindex.errors import InputError
from patchindex.index import PatchIndex
from patchindex.index.lists import MIN_PATCHES_A_LIST
from patchindex.runtime import resolve_device

from .options import print_json, table_console
from .words import counted, size

__all__ = ["of_scales", "tell_clamped", "tell_plan"]

SHARED = f"{MIN_PATCHES_A_LIST} patches a list at least, a list for each position class, and none is empty"


def tell_plan(
    plan: BuildPlan,
    output: Path,
    budget: int,
    *,
    settings: dict[str, Any],
    overwrite: bool,
    resume: bool,
    device: str,
    as_json: bool,
    more_scales: bool = False,
) -> None:
    """Print a plan, and then refuse it where the build would.

    Parameters
    ----------
    plan : BuildPlan
    output : Path
        The store that is to be made, or given more scales.
    budget : int
        Bytes of memory.
    settings : dict
        Those of the build that an unfinished one has to share if it is to be resumed, `lists` and `pca_dims`
        among them.
    overwrite, resume, device
        As for the build.
    as_json : bool
        Print JSON in place of a table.
    more_scales : bool, optional
        Of a store that is there.

    Raises
    ------
    InputError
        When the output is in the way or cannot be written, or memory or disk will not do.
    """
    path = real_path(output)
    if not path.name:
        raise InputError("is no name for a store", where=path, remedy="give a folder that does not exist yet")
    free = free_bytes(path)
    if as_json:
        print_json({**plan.as_dict(), "memory_budget": budget, "disk_free": free})
    else:
        _print_plan(plan, budget, free)
    tell_clamped(((s.k, s.lists, s.dims) for s in plan.scales), settings["lists"], settings["pca_dims"])
    resolve_device(device, needs_faiss=True)
    if more_scales:
        if not os.access(path, os.W_OK):
            raise InputError("cannot be written to", where=path, remedy="copy it where it can")
        check_no_other(path)
    elif check_output(path, settings, overwrite, resume):
        click.echo(f"{output} is built already: --resume has nothing to do", err=True)
        return
    check_memory(plan, budget)
    check_space(path, plan)


def _print_plan(plan: BuildPlan, budget: int, free: int) -> None:
    n, height, width, channels = plan.images
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{plan.machine}, {counted(n, 'image')} of {height} x {width} x {channels}: at most",
    )
    for name in ("k", "patches", "lists", "code", "on disk", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in plan.scales:
        row = (s.k, f"{s.patches:,}", f"{s.lists:,}", s.dims, size(s.disk_bytes), size(s.memory_bytes))
        table.add_row(*map(str, row))
    console = table_console()
    console.print(table)
    for need, have, of in (
        (plan.memory_bytes, budget, f"of memory; the budget is {size(budget)}"),
        (
            plan.disk_bytes + plan.scratch_bytes,
            free,
            f"on disk, {size(plan.disk_bytes)} when it is built; {size(free)} are free",
        ),
    ):
        console.print(f"{size(need)} {of}: {'fits' if need <= have else 'DOES NOT FIT'}")


def of_scales(index: PatchIndex, scales: Iterable[int]) -> list[tuple[int, int, int]]:
    """Return k, lists and dimensions of codes, of some scales of a store."""
    found = ((k, index.scale(k).attributes) for k in scales)
    return [(k, scale["lists"], scale["pca_dims"]) for k, scale in found]


def tell_clamped(
    scales: Iterable[tuple[int, int, int]], lists: int | None = None, pca_dims: int | None = None
) -> None:
    """Say on stderr where a scale has other numbers of lists or dimensions than were asked for."""
    for k, its_lists, its_dims in scales:
        for flag, got, asked, why in (
            (
                "--lists",
                its_lists,
                lists,
                SHARED,
            ),
            ("--pca-dims", its_dims, pca_dims, "a patch has no more numbers"),
        ):
            if asked is not None and got != asked:
                click.echo(f"{flag}: {got:,} at k = {k}, not {asked:,}: {why}", err=True)
