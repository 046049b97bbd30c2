"""The offline builder: from images to a store, stage by stage, visible only when it is whole.

A build works in a folder beside the store, `<store>.building`: first the images, then scale after scale, each
renamed into place when it is whole, at last the folder itself. So whatever interrupts it, what stands under
the final path is complete or is not there, and `resume=True` goes on after the last whole stage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import torch

from patchindex.build.contents import digest, digest_of_images, finish, run_stages, stages_on, write_images
from patchindex.build.plan import parse_memory, plan_build
from patchindex.build.scale import ScaleBuild
from patchindex.build.train import Progress
from patchindex.build.workdir import (
    build_of,
    building,
    check_memory,
    check_output,
    check_space,
    check_writable,
    failing_disk,
    locked,
    move_into_place,
    real_path,
)
from patchindex.errors import InputError
from patchindex.geometry import Geometry
from patchindex.images import ImagesLike, LabelsLike, open_images
from patchindex.images.by_label import TrainingImages
from patchindex.index.patch_index import PatchIndex, open_index
from patchindex.runtime import require_faiss, resolve_device, threads
from patchindex.schedules import LocalitySchedule

__all__ = ["build_index"]


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
    """Put every patch of the images, at each locality scale, into a store.

    Parameters
    ----------
    images : array, path or name
        uint8 images (N, H, W) or (N, H, W, C), or anything `open_images` takes.
    path : str or Path
        The store to make, a folder.
    scales : sequence of int, or int, optional
        Odd locality scales; by default those of `locality`.
    labels : array of int or path, optional
        Class of each image, shape (N,); the source's own by default.
    machine : str
        `"ELS"`, `"bbELS"`, or `"LS"` and `"IS"`, whose stores hold images and no index.
    train_windows : str
        `"valid"` or `"wrapped"`, for ELS.
    locality : str or sequence of int, optional
        A published preset's name or a schedule, kept in the store as the default for sampling, moved to the
        nearest of the scales that there are.
    pca_dims, lists : int, optional
        Code size and number of inverted lists. By default as many principal components as keep the logits'
        variance from what is left out below 0.2 at the lowest noise where a scale is used, by `locality` or
        any preset, and at most 56, or as many as keep it below 1, and at most 128; and a list for every 256
        patches, up to 131 072, halved down to 1 024 as long as `memory` does not do.
    seed : int
        Seed of the samples that PCA and k-means are trained on.
    threads : int, optional
        CPU threads. Stores built with different numbers differ in rounding.
    memory : int or str, optional
        What the build may take, in bytes or as `"4G"`; by default half of the machine's memory. A build
        that needs more is refused before it starts.
    device : str or torch.device, optional
        `"cpu"` (default) or `"cuda"`: where lists are trained and patches assigned to them.
    overwrite : bool
        Replace a store that is there, once the new one is whole.
    resume : bool
        Go on with an interrupted build of the same settings. For a finished store: nothing to do.
    progress : callable, optional
        Called as `progress(stage, done, total)`.
    client : distributed.Client, optional
        Of a Dask cluster whose workers see the path: they train and fill the lists.

    Returns
    -------
    PatchIndex
        The store, opened.

    Raises
    ------
    InputError
        When images, labels or settings are not acceptable, or memory or disk will not do; nothing was
        written then.
    OutputExistsError
        When the store, or an unfinished build of it, is there already.
    PatchIndexError
        When the disk fails or is full during the build, which can be resumed then.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> build_index(images, tempfile.mkdtemp() + "/s.zarr", scales=(3, 5)).scales
    (3, 5)
    """
    path = real_path(path)
    if not path.name:
        raise InputError("is no name for a store", where=path, remedy="give a folder that does not exist yet")
    if seed < 0:
        raise InputError(f"must be at least 0, got {seed}", where="seed", remedy="use 0 or more")
    source = open_images(images, labels=labels)
    budget = parse_memory(memory)
    plan, schedule = plan_build(
        source,
        scales,
        machine=machine,
        train_windows=train_windows,
        locality=locality,
        pca_dims=pca_dims,
        lists=lists,
        memory=budget,
    )
    where = resolve_device(device, needs_faiss=True)
    if plan.scales:
        require_faiss()
    if plan.scales and locality is not None:
        schedule = LocalitySchedule.of(locality)  # as it is given: more scales may be added
    settings = {
        "machine": machine,
        "train_windows": train_windows,
        "scales": [scale.k for scale in plan.scales],
        "locality": {"name": schedule.name, "scales": schedule.scales} if schedule else None,
        "pca_dims": pca_dims,
        "lists": lists,
        "seed": seed,
        "source": source.name,
        "shape": source.shape,
        "images": digest_of_images(source),
        "labels": None if source.labels is None else digest(source.labels),
    }
    settings = json.loads(json.dumps(settings))  # as they come back from the store: lists for tuples
    if not path.parent.exists():  # what is refused leaves nothing, not even the folders that lead there
        check_writable(path)
        check_memory(plan, budget)
        check_space(path, plan)
    with _threads(threads), locked(path):
        if not check_output(path, settings, overwrite, resume):
            check_memory(plan, budget)
            check_space(path, plan)
            run = run_stages if client is None else stages_on(client, threads)
            with failing_disk(path, "go on with resume=True"), building(path, settings, resume) as folder:
                write_images(folder, TrainingImages(source), progress)
                of = build_of(folder)
                for scale in plan.scales:
                    geometry = Geometry.of(machine, scale.k, source.shape[1:3], train_windows)
                    run(ScaleBuild(folder, geometry, scale.dims, scale.list_goal, seed, where, of), progress)
                finish(folder, settings, source.labels, source.label_names, source.skipped)
                move_into_place(folder, path, overwrite)
        return open_index(path, device=device)


_threads = threads  # build_index's own parameter has this name
