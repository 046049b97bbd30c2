"""The offline builder: from images to a store, stage by stage.

A build works in a folder beside the store, `<store>.building`: it writes the images, then scale after scale,
and renames the folder when all is complete. So the store at the final path is complete or absent, and
`resume=True` continues an interrupted build after its last complete stage.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from patchindex.build.contents import check_attributes, write_attributes, write_images
from patchindex.build.limits import check_limits, failing_disk
from patchindex.build.on_cluster import build_scale
from patchindex.build.plan import parse_memory, plan_build
from patchindex.build.scale import ScaleBuild
from patchindex.build.settings import BuildSettings
from patchindex.build.times import announce
from patchindex.build.workdir import (
    GO_ON,
    ExistingOutput,
    build_id_of,
    existing_output,
    locked,
    move_into_place,
    real_path,
    working_directory,
)
from patchindex.devices import resolve_device
from patchindex.errors import InputError
from patchindex.geometry import Geometry
from patchindex.images import ImagesLike, LabelsLike, open_images
from patchindex.images.by_label import TrainingImages
from patchindex.index.patch_index import PatchIndex, open_index
from patchindex.runtime import Progress, as_progress, plain_state, require_faiss
from patchindex.runtime import threads as use_threads

__all__ = ["build_index"]


@plain_state()
def build_index(
    images: ImagesLike,
    path: str | os.PathLike[str],
    scales: Sequence[int] | int | None = None,
    labels: LabelsLike | None = None,
    *,
    machine: str = "ELS",
    train_windows: str = "valid",
    locality: Any = None,
    pca_dims: int | None = None,
    lists: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory: int | str | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    client: Any = None,
) -> PatchIndex:
    """Build a store: an index of every patch of the images at each locality scale.

    Parameters
    ----------
    images : array, path or name
        uint8 images (N, H, W) or (N, H, W, C), or anything that `open_images` takes.
    path : str or Path
        The folder of the new store.
    scales : sequence of int, or int, optional
        Odd locality scales; by default the scales of `locality`.
    labels : array of int or path, optional
        Class of each image, shape (N,); by default the labels of the source.
    machine : str
        `"ELS"` or `"bbELS"`; `"LS"` and `"IS"` make stores of images without an index.
    train_windows : str
        `"valid"` or `"wrapped"`, for ELS.
    locality : str, path, int, sequence of int, or LocalitySchedule, optional
        The name of a published preset, or a schedule, as for `LocalitySchedule.of`; a list is read at the
        times of the cosine noise schedule. The store keeps the schedule as the default for sampling, with
        each entry moved to the nearest scale of the store.
    pca_dims : int, optional
        Number of principal components in a code. By default, at the lowest noise at which `locality` or any
        preset uses the scale, the left-out variance of the logits is below 0.2 with at most 56 components, or
        below 1 with at most 128.
    lists : int, optional
        Number of inverted lists per scale. By default one for every 256 patches, at most 131 072; halved,
        down to 1 024, while training needs more than `memory`.
    seed : int
        Seed for k-means and the sampling of training patches.
    threads : int, optional
        CPU threads. Stores built with different numbers of threads may differ by rounding.
    memory : int or str, optional
        Memory budget in bytes, or as `"4G"`; by default half of the memory that the process may use,
        in a container for example. A build that needs more is refused before it starts.
    device : str or torch.device, optional
        `"cpu"` (default) or `"cuda"`: the device that trains lists and assigns patches. FAISS does not
        support `"mps"` and `"xpu"`: the CPU does the work, with a warning.
    overwrite : bool
        Replace a store at `path` when the new one is complete.
    resume : bool
        Continue an interrupted build of the same settings. Does nothing when the store is finished.
    progress : callable, optional
        Called as `progress(stage, done, total)`. If it has a method `expect`, this is called first, with a
        dict of the expected seconds of each stage (their ratios hold on most machines) and the `BuildPlan`.
    client : distributed.Client, optional
        A Dask cluster whose workers see `path`: the workers train and fill the lists.

    Returns
    -------
    PatchIndex
        The store, opened.

    Raises
    ------
    InputError
        When images, labels or settings are not acceptable, or the build needs more memory or disk than is
        available. Nothing is written.
    OutputExistsError
        When the store, or an unfinished build of it, exists already.
    PatchIndexError
        When the disk fails or is full during the build. The build can be resumed.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> build_index(images, tempfile.mkdtemp() + "/s.zarr", scales=(3, 5)).scales
    (3, 5)
    """
    path, progress = real_path(path), as_progress(progress)
    if not path.name:
        raise InputError(
            "is not a name for a store", where=path, remedy="give a folder that does not exist yet"
        )
    settings = BuildSettings(scales, machine, train_windows, locality, pca_dims, lists, seed)
    source, budget = open_images(images, labels=labels), parse_memory(memory)
    plan, schedule = plan_build(source, settings, memory=budget)
    where = resolve_device(device, needs_faiss=True)
    if plan.scales:
        require_faiss()
    stored = settings.to_json(source, [scale.k for scale in plan.scales], schedule)
    check_attributes(stored, source, source.skipped)
    if not path.parent.exists():  # a refused build leaves nothing, not even the parent folders
        check_limits(path, plan, budget)
    with use_threads(threads), failing_disk(path, *GO_ON), locked(path):
        existing = existing_output(path, stored, overwrite=overwrite, resume=resume)
        if existing is ExistingOutput.FINISHED:
            return open_index(path, device=device)
        check_limits(path, plan, budget)
        announce(plan, progress)
        with working_directory(path, stored, existing) as folder:
            write_images(folder, TrainingImages(source), progress)
            build_id = build_id_of(folder)
            for scale in plan.scales:
                geometry = Geometry.of(machine, scale.k, source.shape[1:3], train_windows)
                work = ScaleBuild(folder, geometry, scale, settings.seed, where, build_id)
                build_scale(work, progress, client, threads)
            write_attributes(folder, stored, source, source.skipped)
            move_into_place(folder, path, replace=overwrite)
        return open_index(path, device=device)
