"""More images for a finished store."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from patchindex.build.contents import check_attributes, write_attributes, write_images
from patchindex.build.duplicates import find_duplicates
from patchindex.build.limits import check_limits, failing_disk
from patchindex.build.plan import parse_memory, plan_append
from patchindex.build.scale import ScaleBuild
from patchindex.build.settings import appended_settings
from patchindex.build.shards import OldLists
from patchindex.build.times import announce
from patchindex.build.workdir import (
    GO_ON,
    ExistingOutput,
    build_id_of,
    existing_append,
    locked,
    move_into_place,
    real_path,
    working_directory,
)
from patchindex.devices import device_of_faiss, resolve_device, warn_of_faiss
from patchindex.images import ImagesLike, ImageSource, LabelsLike, open_images
from patchindex.images.by_label import TrainingImages
from patchindex.images.concat import ConcatSource
from patchindex.images.preparation import Preparation
from patchindex.images.registry import paths_of
from patchindex.index.layout import replaced_path
from patchindex.index.patch_index import PatchIndex, open_index
from patchindex.runtime import Progress, as_progress, plain_state, require_faiss
from patchindex.runtime import threads as use_threads
from patchindex.store.raw import open_raw

__all__ = ["append", "image_options_of"]

PAIRS_KEPT = 8  # of equal images


@plain_state()
def append(
    store: str | os.PathLike[str],
    images: ImagesLike,
    labels: LabelsLike | None = None,
    *,
    threads: int | None = None,
    memory: int | str | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> PatchIndex:
    """Add images to a finished store, without training its components and lists again.

    The new store is built beside the old one, and replaces it when it is complete: until then both need disk
    space. Operating curves are not kept: call `tune` again. Each scale's attribute `drift` has one entry per
    call, which compares the new patches with the old ones:

    - `distance`: mean squared distance of the new patches to their centroids, over that of the old patches;
    - `left_out`: the share of variance that codes leave out, over that of the old patches;
    - `clipped`: the share of code values out of range, minus that of the old patches.

    If `distance` exceeds 1.2, if `clipped` exceeds 0.01, or if `left_out` exceeds 2 and the codes leave out
    more than 2 %, build the store anew: retrieval misses more patches, and `auto` takes longer. Beyond the
    limits of `clipped` and `left_out`, standard errors may be too small, and estimators warn.

    Parameters
    ----------
    store : str or Path
    images : array, path or name
        Images of the store's size and channels; anything that `open_images` takes. Paths and names are opened
        with the crop, resize, grayscale and labels of the build (`image_options_of`). Open them by
        `open_images` for other options.
    labels : array of int or path, optional
        Labels of the new images; by default as in the build, or else the labels of their source. A store with
        labels needs labels, and a store without labels refuses them. Named labels are matched by name; new
        names follow the old ones.
    threads, memory, device, progress
        As for `build_index`.
    resume : bool
        Continue an interrupted call with the same images.

    Returns
    -------
    PatchIndex
        The store, opened. Its `source_ids` number the new images after the old ones. The last entry of
        `attributes["settings"]["appended"]` has `duplicates`: the number of new images that are equal to an
        image of the store (`store`), and of further new images that are equal to an earlier new image
        (`new`). All of them are added. `equal` has the first eight of them: pairs of the new image and the
        image that it is equal to, by their numbers.

    Raises
    ------
    InputError
        When the images or labels do not fit the store. Nothing is written.
    OutputExistsError
        When there is an unfinished build of the store, and `resume` is not given.
    SourceNotFoundError, StoreError
        As `open_index` does; StoreError also when an image of the store is damaged.

    Examples
    --------
    >>> import tempfile, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> index = pi.build_index(images[:6], tempfile.mkdtemp() + "/s.zarr", scales=[3])
    >>> index = pi.append(index.path, images[6:])
    >>> len(index.training), sorted(index.scale(3).attributes["drift"][0])
    (8, ['clipped', 'distance', 'images', 'left_out'])
    """
    path, where, progress = real_path(store), resolve_device(device), as_progress(progress)
    warn_of_faiss(where)
    where = device_of_faiss(where)
    prepared = image_options_of(path)  # refuse what is not a store before a lock is made
    if paths_of(images) is None:  # objects are images as they are meant
        prepared = {}
    source = open_images(images, **prepared | ({} if labels is None else {"labels": labels}))
    with use_threads(threads), failing_disk(path, *GO_ON), locked(path):
        old = open_index(path)
        both = ConcatSource([old.training.source, source])
        settings = appended_settings(old.attributes["settings"], old.scales, both, source)
        skipped = [*old.attributes["skipped"], *source.skipped]
        check_attributes(settings, both, skipped)
        existing = existing_append(path, settings, resume=resume)
        if existing is ExistingOutput.FINISHED:
            return open_index(path, device=device)
        plan = plan_append(both, old)
        check_limits(path, plan, parse_memory(memory))
        if old.scales:
            require_faiss()
        training, old_places, new_places = _in_label_order(old, both)
        announce(plan, progress)
        old.check_images(0, len(old.training))  # the new store has checksums of what is copied
        with working_directory(path, settings, existing) as folder:
            write_images(folder, training, progress)
            found = find_duplicates(open_raw(folder, "images"), new_places, progress)
            settings["appended"][-1] |= {
                "duplicates": found.counts,
                "equal": training.source_ids[found.pairs[:PAIRS_KEPT]].tolist(),
            }
            build_id = build_id_of(folder)
            for scale in plan.scales:
                trained, geometry = OldLists(old.scale(scale.k), old_places), old.geometry(scale.k)
                ScaleBuild(folder, geometry, scale, 0, where, build_id, trained, new_places).run(progress)
            write_attributes(folder, settings, both, skipped)
            move_into_place(folder, path, replace=True)
        return open_index(path, device=device)


def image_options_of(store: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the crop, resize, grayscale and labels that the images of a store were opened with.

    The keys of the dict are options of `open_images`. Options with their default value are left out, and so
    are `labels` from a file or an array. The dict is empty for a store of an earlier version.

    Parameters
    ----------
    store : str or Path
        A store that `build_index` made.

    Returns
    -------
    dict of str to Any

    Raises
    ------
    SourceNotFoundError, InputError, StoreError
        As `open_index` does.

    Examples
    --------
    >>> import tempfile, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 16, 16), np.uint8)
    >>> store = pi.build_index(pi.open_images(images, resize=12), tempfile.mkdtemp() + "/s.zarr", scales=[3])
    >>> image_options_of(store.path)
    {'resize': (12, 12)}
    """
    path = real_path(store)
    before = replaced_path(path)  # of a call that stopped while it replaced the store
    index = open_index(path if path.exists() or not before.exists() else before)
    found = index.attributes["settings"].get("prepared")
    return {} if found is None else Preparation.from_dict(found).options()


def _in_label_order(old: PatchIndex, both: ImageSource) -> tuple[TrainingImages, np.ndarray, np.ndarray]:
    """Return all images in label order, and the places of the old and the new images, each ascending."""
    training, n = TrainingImages(both), len(old.training)
    places = np.empty(len(both), np.int64)
    places[training.source_ids] = np.arange(len(both))
    source_ids = np.concatenate([old.training.source_ids, np.arange(n, len(both))])
    training.source_ids = source_ids[training.source_ids]
    return training, places[:n], np.sort(places[n:])
