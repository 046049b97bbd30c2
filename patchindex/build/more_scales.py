"""More locality scales for a finished store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from patchindex.build.limits import check_limits, failing_disk
from patchindex.build.on_cluster import build_scale
from patchindex.build.plan import BuildPlan, parse_memory, plan_build
from patchindex.build.scale import ScaleBuild
from patchindex.build.settings import BuildSettings
from patchindex.build.times import announce
from patchindex.build.workdir import check_no_unfinished, locked, real_path
from patchindex.devices import resolve_device
from patchindex.errors import InputError, Option
from patchindex.index.layout import scales_of
from patchindex.index.patch_index import PatchIndex, open_index
from patchindex.runtime import Progress, as_progress, plain_state, require_faiss
from patchindex.runtime import threads as use_threads
from patchindex.schedules import LocalitySchedule
from patchindex.store.checksums import SCALES, fingerprint, read_checksummed, write_scales

__all__ = ["add_scales", "plan_scales"]

AGAIN = "add the scales again"  # in a remedy: how an interrupted call continues


@plain_state()
def add_scales(
    store: str | os.PathLike[str],
    scales: Sequence[int] | int,
    *,
    pca_dims: int | None = None,
    lists: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory: int | str | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    client: Any = None,
) -> PatchIndex:
    """Index more locality scales of a finished store's images.

    The store stays usable during the build. Each scale is visible when it is complete. After an interruption,
    call `add_scales` again to continue.

    Parameters
    ----------
    store : str or Path
    scales : sequence of int, or int
        Odd locality scales. Scales that the store has already are skipped.
    pca_dims, lists, seed, threads, memory, device, progress, client
        As for `build_index`.

    Returns
    -------
    PatchIndex
        The store, opened.

    Raises
    ------
    SourceNotFoundError, InputError, StoreError
        As `open_index` and `build_index` do.

    Examples
    --------
    >>> import tempfile, numpy as np, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> index = pi.build_index(images, tempfile.mkdtemp() + "/s.zarr", scales=[3])
    >>> pi.add_scales(index.path, [5, 7]).scales
    (3, 5, 7)
    """
    path, progress = real_path(store), as_progress(progress)
    index = open_index(path)  # refuse what is not a store before a lock is made
    settings = _settings(index, scales, pca_dims, lists, seed)
    if not settings.scales and read_checksummed(path / SCALES) == list(index.scales):
        return open_index(path, device=device)
    if not os.access(path, os.W_OK):
        raise InputError("cannot be written to", where=path, remedy="copy the store to a writable folder")
    where, budget = resolve_device(device, needs_faiss=True), parse_memory(memory)
    require_faiss()
    with use_threads(threads), failing_disk(path, AGAIN), locked(path):
        index = open_index(path)
        check_no_unfinished(path)
        write_scales(path, index.scales)  # an earlier call may have been killed before it wrote the list
        if not settings.scales:
            return open_index(path, device=device)
        plan = _plan(index, settings, budget)
        check_limits(path, plan, budget)
        announce(plan, progress)
        index.check_images(0, len(index.training))  # nothing else compares them with their checksums
        build_id = fingerprint(
            [index.attributes["fingerprint"], settings.pca_dims, settings.lists, settings.seed]
        )
        for scale in plan.scales:
            geometry = index.geometry(scale.k)
            work = ScaleBuild(path, geometry, scale, settings.seed, where, build_id, go_on=[AGAIN])
            build_scale(work, progress, client, threads)
            write_scales(path, {*index.scales, scale.k})
            index = open_index(path)
        return open_index(path, device=device)


def plan_scales(
    index: PatchIndex,
    scales: Sequence[int] | int,
    *,
    pca_dims: int | None = None,
    lists: int | None = None,
    memory: int | None = None,
) -> BuildPlan:
    """Forecast the build of more scales of a store, as `add_scales` would do it.

    Parameters
    ----------
    index : PatchIndex
        The store.
    scales : int or sequence of int
        Scales that the store has already are left out.
    pca_dims, lists : int, optional
        As for `build_index`.
    memory : int, optional
        Budget in bytes, as for `plan_build`.

    Returns
    -------
    BuildPlan

    Raises
    ------
    InputError
        When a scale does not fit the images, or the machine of the store has no index.

    Examples
    --------
    >>> import tempfile, numpy as np, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> index = pi.build_index(images, tempfile.mkdtemp() + "/s.zarr", scales=[3])
    >>> [(scale.k, scale.patches) for scale in plan_scales(index, [3, 5]).scales]
    [(5, 512)]
    """
    return _plan(index, _settings(index, scales, pca_dims, lists, 0), memory)


def _settings(
    index: PatchIndex, scales: Sequence[int] | int, pca_dims: int | None, lists: int | None, seed: int
) -> BuildSettings:
    given = index.attributes["locality"]
    settings = BuildSettings(
        scales=scales,
        machine=index.machine,
        train_windows=index.train_windows,
        # The schedule as it was given to the build: it may name scales that the store does not have yet.
        locality=None if given is None else LocalitySchedule.from_dict(given),
        pca_dims=pca_dims,
        lists=lists,
        seed=seed,
    )
    return replace(settings, scales=sorted(set(settings.scales or ()) - set(scales_of(index.path))))


def _plan(index: PatchIndex, settings: BuildSettings, memory: int | None) -> BuildPlan:
    plan, _ = plan_build(index.training.source, settings, memory=memory, beside=index.scales)
    if not plan.scales:
        raise InputError(
            f"{index.machine} has no index", parameter="scales", remedy=["leave out ", Option("scales")]
        )
    return replace(plan, adds_scales=True)
