"""More images for a finished store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchindex.build.contents import build_scale, write_attributes, write_images
from patchindex.build.limits import check_memory, check_space, failing_disk
from patchindex.build.more_scales import labelled_images
from patchindex.build.plan import ScalePlan, parse_memory, plan_append
from patchindex.build.scale import ScaleBuild
from patchindex.build.settings import appended_settings
from patchindex.build.shards import Members, SortedPatches
from patchindex.build.workdir import (
    ExistingOutput,
    build_id_of,
    check_writable,
    existing_output,
    locked,
    move_into_place,
    real_path,
    working_directory,
)
from patchindex.errors import Option
from patchindex.geometry import Geometry, gather_patches
from patchindex.images import ImagesLike, ImageSource, LabelsLike, open_images
from patchindex.images.by_label import TrainingImages
from patchindex.images.concat import ConcatSource
from patchindex.index.layout import replaced_path
from patchindex.index.model import ScaleModel
from patchindex.index.patch_index import PatchIndex, open_index
from patchindex.index.scale import ScaleIndex
from patchindex.runtime import Progress, no_progress, require_faiss, resolve_device, threads

__all__ = ["append"]

DRIFT_SAMPLE = 8192  # patches

_threads = threads  # a parameter has this name


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

    If `distance` exceeds 1.2 or `clipped` exceeds 0.01, build the store anew: estimates stay correct, but
    retrieval misses more patches, and `auto` takes longer.

    Parameters
    ----------
    store : str or Path
    images : array, path or name
        Images of the store's size and channels; anything that `open_images` takes.
    labels : array of int or path, optional
        Labels of the new images; by default the labels of their source. A store with labels needs labels, and
        a store without labels refuses them. Named labels are matched by name; new names follow the old ones.
    threads, memory, device, progress
        As for `build_index`.
    resume : bool
        Continue an interrupted call with the same images.

    Returns
    -------
    PatchIndex
        The store, opened. Its `source_ids` number the new images after the old ones.

    Raises
    ------
    InputError
        When the images or labels do not fit the store. Nothing is written.
    OutputExistsError
        When there is an unfinished build of the store, and `resume` is not given.
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
    path, where, progress = real_path(store), resolve_device(device), progress or no_progress
    source = open_images(images, labels=labels)
    if not replaced_path(path).exists():
        open_index(path)  # refuse what is not a store before a lock is made
    check_writable(path)
    with _threads(threads), locked(path), failing_disk(path, "go on with ", Option("resume", True)):
        old = open_index(path)
        both = ConcatSource([labelled_images(old), source])
        settings = appended_settings(old.attributes["settings"], old.scales, both, source)
        existing = existing_output(path, settings, resume=resume, appending=True)
        if existing is ExistingOutput.FINISHED:
            return open_index(path, device=device)
        plan = plan_append(both, old.machine, old.train_windows, [_trained(old, k) for k in old.scales])
        budget = parse_memory(memory)
        check_memory(plan, budget)
        check_space(path, plan)
        if old.scales:
            require_faiss()
        training, old_places, new_places = _in_label_order(old, both)
        with working_directory(path, settings, existing) as folder:
            write_images(folder, training, progress)
            build_id = build_id_of(folder)
            for scale in plan.scales:
                work = _ScaleAppend(
                    folder, old.scale(scale.k), scale, old_places, new_places, device=where, build_id=build_id
                )
                build_scale(work, progress)
            write_attributes(folder, settings, both, [*old.attributes["skipped"], *source.skipped])
            move_into_place(folder, path, replace=True)
        return open_index(path, device=device)


def _trained(index: PatchIndex, k: int) -> tuple[Geometry, int, int]:
    attributes = index.scale(k).attributes
    return index.geometry(k), attributes["pca_dims"], attributes["lists"]


def _in_label_order(old: PatchIndex, both: ImageSource) -> tuple[TrainingImages, np.ndarray, np.ndarray]:
    """Return all images in label order, and the places of the old and the new images, each ascending."""
    training, n = TrainingImages(both), len(old.training)
    places = np.empty(len(both), np.int64)
    places[training.source_ids] = np.arange(len(both))
    source_ids = np.concatenate([old.training.source_ids, np.arange(n, len(both))])
    training.source_ids = source_ids[training.source_ids]
    return training, places[:n], np.sort(places[n:])


class _OldLists(SortedPatches):
    """The lists of an old scale, with the places that its images have in the new store."""

    def __init__(self, scale: ScaleIndex, places: np.ndarray) -> None:
        self._scale, self._places = scale, places

    def sizes(self) -> np.ndarray:
        return self._scale.list_sizes()

    def part(self, c: int, start: int, stop: int) -> Members:
        ids, codes = self._scale.part(c, start, stop)
        image, position = np.divmod(ids, self._scale.geometry.patches_per_image)
        return self._places[image] * self._scale.geometry.patches_per_image + position, codes


class _ScaleAppend(ScaleBuild):
    """The build of a scale with the model and all patches of an old scale."""

    def __init__(
        self,
        root: Path,
        old: ScaleIndex,
        plan: ScalePlan,
        old_places: np.ndarray,
        new_places: np.ndarray,
        *,
        device: torch.device,
        build_id: str,
    ) -> None:
        super().__init__(
            root, old.geometry, plan, seed=0, device=device, build_id=build_id, images=new_places
        )
        self._old, self._old_places = old, old_places

    def _others(self) -> SortedPatches:
        return _OldLists(self._old, self._old_places)

    def _train(self, progress: Progress) -> tuple[ScaleModel, dict[str, Any]]:
        old = self._old
        model = old.model
        kept = ("k", "lists", "position_classes", "pca_dims", "pca_energy", "assignment")
        drift = [*old.attributes.get("drift", []), self._drift(model)]
        attributes = {name: old.attributes[name] for name in kept}
        return model, attributes | {"drift": drift, "seconds": {"train": 0.0}}

    def _drift(self, model: ScaleModel) -> dict[str, Any]:
        """Compare a sample of the new patches with the old ones."""
        distance, left_out, clipped = self._fit(model, self._images)
        _, _, clipped_before = self._fit(model, self._old_places)
        return {
            "images": len(self._images),
            "distance": _ratio(distance, self._old.moments.mean_distance()),
            "left_out": _ratio(left_out, 1 - model.pca.energy),
            "clipped": round(max(0.0, clipped - clipped_before), 6),
        }

    def _fit(self, model: ScaleModel, images: np.ndarray) -> tuple[float, float, float]:
        """Return the distance to centroids, and the shares that codes leave out and clip, of some patches."""
        per_image = self._geometry.patches_per_image
        total = len(images) * per_image
        chosen = np.sort(np.random.default_rng(0).choice(total, min(DRIFT_SAMPLE, total), replace=False))
        image, position = np.divmod(chosen, per_image)
        ids = torch.from_numpy(images[image] * per_image + position)
        patches = gather_patches(self._pixels, self._geometry, ids)
        vectors = model.pca.project(patches)
        lists = model.lists.assign(vectors, self._geometry.train_classes[position])
        y = vectors.numpy()
        distance = np.square(y - model.lists.centroids[lists]).sum(1).mean()
        low, width = model.ranges
        energy = float((patches - torch.from_numpy(model.pca.mean)).square().flatten(1).sum(1).mean())
        left_out = 1 - float(np.square(y).sum(1).mean()) / energy if energy > 0 else 0.0
        return float(distance), left_out, float(((y < low) | (y > low + width)).mean())


def _ratio(new: float, old: float) -> float | None:
    """Return `new / old`; None when `old` is 0."""
    return round(new / old, 4) if old > 1e-9 else None
