"""What a finished store can be given more of: scales, and images."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchindex.build.contents import digest, digest_of_images, finish, run_stages, stages_on, write_images
from patchindex.build.plan import BuildPlan, parse_memory, plan_append, plan_build
from patchindex.build.scale import ScaleBuild
from patchindex.build.shards import Part, Sorted
from patchindex.build.train import Progress
from patchindex.build.workdir import (
    build_of,
    building,
    check_memory,
    check_no_other,
    check_space,
    check_writable,
    failing_disk,
    locked,
    move_into_place,
    real_path,
    same_settings,
)
from patchindex.errors import InputError
from patchindex.geometry import Geometry, gather_patches
from patchindex.images import ImagesLike, ImageSource, LabelsLike, open_images
from patchindex.images.by_label import TrainingImages
from patchindex.images.concat import ConcatSource
from patchindex.index.model import ScaleModel
from patchindex.index.patch_index import PatchIndex, open_index, replaced_path, scales_of
from patchindex.index.scale import ScaleIndex
from patchindex.runtime import require_faiss, resolve_device, threads
from patchindex.schedules import LocalitySchedule
from patchindex.store.checksums import SCALES, list_scales, read_checksummed

__all__ = ["add_scales", "append", "plan_scales"]

DRIFT_SAMPLE = 8192  # patches

_threads = threads  # a parameter has this name


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

    The store can be used meanwhile; each scale is visible when it is whole. What was interrupted goes on when
    it is called again.

    Parameters
    ----------
    store : str or Path
    scales : sequence of int, or int
        Odd locality scales; those that the store has are left alone.
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
    >>> import tempfile, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> index = pi.build_index(images, tempfile.mkdtemp() + "/s.zarr", scales=[3])
    >>> pi.add_scales(index.path, [5, 7]).scales
    (3, 5, 7)
    """
    path = real_path(store)
    index = open_index(path)  # what is bad is refused before there is a lock
    wanted = _new_scales(index, scales)
    if not wanted and read_checksummed(path / SCALES) == list(index.scales):
        return open_index(path, device=device)
    if seed < 0:
        raise InputError(f"must be at least 0, got {seed}", where="seed", remedy="use 0 or more")
    if not os.access(path, os.W_OK):
        raise InputError("cannot be written to", where=path, remedy="copy it where it can")
    where, budget = resolve_device(device, needs_faiss=True), parse_memory(memory)
    run = run_stages if client is None else stages_on(client, threads)
    require_faiss()
    with _threads(threads), locked(path), failing_disk(path, "add them again"):
        index = open_index(path)
        check_no_other(path)
        list_scales(path, index.scales)  # one may have come and the list not, when it was killed
        if not wanted:
            return open_index(path, device=device)
        plan = plan_scales(index, wanted, pca_dims=pca_dims, lists=lists, memory=budget)
        check_memory(plan, budget)
        check_space(path, plan)
        of = digest([index.attributes["fingerprint"], pca_dims, lists, seed])
        for scale in plan.scales:
            geometry = index.geometry(scale.k)
            run(ScaleBuild(path, geometry, scale.dims, scale.list_goal, seed, where, of), progress)
            list_scales(path, {*index.scales, scale.k})
            index = open_index(path)
        return open_index(path, device=device)


def _new_scales(index: PatchIndex, scales: Sequence[int] | int) -> list[int]:
    """Return the scales that a store has not, or has lost, ascending."""
    return sorted(({scales} if isinstance(scales, int) else set(scales)) - set(scales_of(index.path)))


def plan_scales(
    index: PatchIndex,
    scales: Sequence[int],
    *,
    pca_dims: int | None = None,
    lists: int | None = None,
    memory: int | None = None,
) -> BuildPlan:
    """Forecast what more scales of a store take; the arguments are those of `plan_build`."""
    plan, _ = plan_build(
        _labelled(index.training, index.attributes["label_names"]),
        _new_scales(index, scales),
        machine=index.machine,
        train_windows=index.train_windows,
        locality=_given_locality(index),
        pca_dims=pca_dims,
        lists=lists,
        memory=memory,
        beside=index.scales,
    )
    if not plan.scales:
        raise InputError(f"{index.machine} has no index", where="scales", remedy="leave them out")
    return plan


def _given_locality(index: PatchIndex) -> LocalitySchedule | None:
    """Return the schedule of a store as it was given, for scales that it may not have yet."""
    given = index.attributes["locality"]
    return None if given is None else LocalitySchedule(given["name"], tuple(given["scales"]))


def _labelled(training: TrainingImages, label_names: Sequence[str] | None) -> ImageSource:
    """Return the images of a store with their labels."""
    source = copy.copy(training.source)
    source.labels = training.labels
    source.label_names = None if label_names is None else tuple(label_names)
    return source


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
    """Add images to a finished store, with the components and lists that it has.

    The new store is made beside the old one, which it replaces once it is whole; that takes as much of the
    disk again for the while. Operating curves are not kept: `tune` measures new ones. How far the new
    patches are from what the lists were trained on is measured, and written into each scale's attributes as
    `drift`, of all images that were appended at a time:

    - `distance`: their mean squared distance to the centroids of their lists, over that of the old patches;
    - `left_out`: the share of their variance that codes do not keep, over that of the old ones;
    - `clipped`: by how much the share of their codes' numbers that are out of range is above that of the old
      ones.

    Where distances are more than a fifth larger, or more than a hundredth is clipped, build it anew:
    estimates stay right, but more patches are missed in retrieval, and `auto` takes longer.

    Parameters
    ----------
    store : str or Path
    images : array, path or name
        Of the same size and channels; anything `open_images` takes.
    labels : array of int or path, optional
        Of the new images, by default the source's own; needed if the store has labels, and only then. Where
        labels have names, those of the same name are the same, and new names come after the old ones.
    threads, memory, device, progress
        As for `build_index`.
    resume : bool
        Go on with an interrupted one of the same images.

    Returns
    -------
    PatchIndex
        The store, opened. Its `source_ids` number the new images after the old ones.

    Raises
    ------
    InputError
        When the images or labels do not fit; nothing was written then.
    OutputExistsError
        When an unfinished build or append is there, and it is not to be resumed.
    SourceNotFoundError, StoreError
        As `open_index` does.

    Examples
    --------
    >>> import tempfile, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> index = pi.build_index(images[:6], tempfile.mkdtemp() + "/s.zarr", scales=[3])
    >>> index = pi.append(index.path, images[6:])
    >>> len(index.training), sorted(index.scale(3).attributes["drift"][0])
    (8, ['clipped', 'distance', 'images', 'left_out'])
    """
    path, where = real_path(store), resolve_device(device)
    source = open_images(images, labels=labels)
    if not replaced_path(path).exists():
        open_index(path)  # what is no store is refused before there is a lock
    check_writable(path)
    with _threads(threads), locked(path), failing_disk(path, "go on with resume=True"):
        old = open_index(path)
        both = ConcatSource([_labelled(old.training, old.attributes["label_names"]), source])
        settings = _settings_of_both(old, both, source)
        begun = check_no_other(path, settings if resume else None)
        before = old.attributes["settings"].get("appended", [])
        if resume and not begun and same_settings(before[-1:], settings["appended"][-1:]):
            return open_index(path, device=device)  # it was done already
        training = TrainingImages(both)
        # Where the images of the old store and the new ones are in the new store, both ascending.
        places = np.empty(len(both), np.int64)
        places[training.source_ids] = np.arange(len(both))
        places_old, places_new = np.split(places, [len(old.training)])
        training.source_ids = np.concatenate(
            [old.training.source_ids, np.arange(len(old.training), len(both))]
        )[training.source_ids]
        budget = parse_memory(memory)
        plan = plan_append(both, old.machine, old.train_windows, [_trained(old, k) for k in old.scales])
        check_memory(plan, budget)
        check_space(path, plan)
        if old.scales:
            require_faiss()
        with building(path, settings, begun) as folder:
            write_images(folder, training, progress)
            of = build_of(folder)
            for k in old.scales:
                scale = _ScaleAppend(folder, old.scale(k), places_old, np.sort(places_new), where, of)
                run_stages(scale, progress)
            skipped = [*old.attributes["skipped"], *source.skipped]
            finish(folder, settings, both.labels, both.label_names, skipped)
            move_into_place(folder, path, True)
        return open_index(path, device=device)


def _trained(index: PatchIndex, k: int) -> tuple[Geometry, int, int]:
    """Return the geometry of a scale, the size of its codes, and how many lists it has."""
    attributes = index.scale(k).attributes
    return index.geometry(k), attributes["pca_dims"], attributes["lists"]


def _settings_of_both(old: PatchIndex, both: ImageSource, source: ImageSource) -> dict[str, Any]:
    """Return the settings of a store that images are appended to."""
    appended = {
        "images": len(source),
        "source": source.name,
        "digest": digest_of_images(source),
        "labels": None if source.labels is None else digest(source.labels),
    }
    before = old.attributes["settings"]
    settings = before | {
        "shape": list(both.shape),
        "labels": None if both.labels is None else digest(both.labels),
        "scales": list(old.scales),
        "appended": [*before.get("appended", []), appended],
    }
    return dict(json.loads(json.dumps(settings)))


class _OldLists(Sorted):
    """The lists of a scale, with the numbers that their images have in another store."""

    def __init__(self, scale: ScaleIndex, places: np.ndarray) -> None:
        self._scale, self._places = scale, places

    def sizes(self) -> np.ndarray:
        return self._scale.list_sizes()

    def part(self, c: int, start: int, stop: int) -> Part:
        ids, codes = self._scale.part(c, start, stop)
        image, place = np.divmod(ids, self._scale.geometry.patches_per_image)
        return self._places[image] * self._scale.geometry.patches_per_image + place, codes


class _ScaleAppend(ScaleBuild):
    """A scale of a store that has all patches of an older one, and the lists that it was trained for."""

    def __init__(
        self,
        root: Path,
        old: ScaleIndex,
        places: np.ndarray,
        images: np.ndarray,
        device: torch.device,
        of: str,
    ) -> None:
        super().__init__(root, old.geometry, old.pca.dims, len(old.lists.centroids), 0, device, of, images)
        self._old, self._places = old, places

    def _others(self) -> Sorted:
        return _OldLists(self._old, self._places)

    def _train(self, progress: Progress | None) -> tuple[ScaleModel, dict[str, Any]]:
        old = self._old
        model = old.model
        kept = ("k", "lists", "position_classes", "pca_dims", "pca_energy", "assignment")
        facts = {name: old.attributes[name] for name in kept}
        drift = [*old.attributes.get("drift", []), self._drift(model)]
        return model, facts | {"drift": drift, "seconds": {"train": 0.0}}

    def _drift(self, model: ScaleModel) -> dict[str, Any]:
        """Compare some of the new patches with what the lists were made for."""
        distance, left_out, clipped = self._fit(model, self._images)
        clipped_before = self._fit(model, self._places)[2]
        return {
            "images": len(self._images),
            "distance": _ratio(distance, self._old.moments.mean_distance()),
            "left_out": _ratio(left_out, 1 - model.pca.energy),
            "clipped": round(max(0.0, clipped - clipped_before), 6),
        }

    def _fit(self, model: ScaleModel, images: np.ndarray) -> tuple[float, float, float]:
        """Return of patches of some images: distance to their lists, and what codes leave out and clip."""
        per_image = self._geometry.patches_per_image
        total = len(images) * per_image
        some = np.sort(np.random.default_rng(0).choice(total, min(DRIFT_SAMPLE, total), replace=False))
        image, place = np.divmod(some, per_image)
        patches = gather_patches(
            self._pixels, self._geometry, torch.from_numpy(images[image] * per_image + place)
        )
        vectors = model.pca.project(patches)
        lists = model.lists.assign(vectors, self._geometry.train_classes[place])
        y = vectors.numpy()
        distance = np.square(y - model.lists.centroids[lists]).sum(1).mean()
        low, width = model.ranges
        energy = float((patches - torch.from_numpy(model.pca.mean)).square().flatten(1).sum(1).mean())
        left_out = 1 - float(np.square(y).sum(1).mean()) / energy if energy > 0 else 0.0
        return float(distance), left_out, float(((y < low) | (y > low + width)).mean())


def _ratio(new: float, old: float) -> float | None:
    """Return one over the other; None where there is nothing to compare with."""
    return round(new / old, 4) if old > 1e-9 else None
