"""The model of one scale: principal components and lists, trained, or kept when images are appended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.geometry import Geometry, gather_patches
from patchindex.index.drift import ratio
from patchindex.index.lists import TRAINING_PATCHES_PER_LIST, InvertedLists, list_counts, train_lists
from patchindex.index.model import ScaleModel, fit_ranges, project_all
from patchindex.index.pca import PCA, fit_pca
from patchindex.index.scale import ScaleIndex
from patchindex.random_streams import random_stream
from patchindex.runtime import Progress

__all__ = [
    "LOSS_SAMPLE",
    "PCA_SAMPLE",
    "SPREAD",
    "draw_patches",
    "draw_vectors",
    "keep_model",
    "sampled_images",
    "train_scale",
]

PCA_SAMPLE = 20_000  # patches
SPREAD = 4
LEAST_IMAGES = 256
LOSS_SAMPLE = 8192
DRIFT_SAMPLE = 8192  # patches
KEPT = ("k", "lists", "position_classes", "pca_dims", "pca_energy", "assignment")


def train_scale(
    pixels: Tensor,
    geometry: Geometry,
    *,
    dims: int,
    lists: int,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> tuple[ScaleModel, dict[str, Any]]:
    """Train one scale on a sample of its patches; return the model and the attributes of the scale.

    `pixels` are the training images, uint8 (N, H, W, C); `dims` is the number of components in a code, and
    `lists` the number of lists that the position classes share.
    """
    clock = [time.perf_counter()]
    rng = random_stream(seed, geometry.k)
    ids = draw_patches(geometry, len(pixels), PCA_SAMPLE, rng)
    pca = fit_pca(gather_patches(pixels, geometry, torch.from_numpy(ids)), dims)
    by_class = len(pixels) * np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    counts = list_counts(by_class, lists)
    drawing, training = (
        f"k = {geometry.k}: drawing patches",
        f"k = {geometry.k}: training {counts.sum()} lists",
    )
    sample, classes = _training_sample(pixels, geometry, pca, counts, rng, device, partial(progress, drawing))
    clock.append(time.perf_counter())
    progress(training, 0, len(sample))
    inverted = train_lists(sample, classes, counts, seed, device, partial(progress, training))
    ranges = fit_ranges(sample)
    loss = _assignment_loss(inverted, sample, classes, rng)
    clock.append(time.perf_counter())
    return ScaleModel(pca, inverted, ranges), {
        "k": geometry.k,
        "lists": len(inverted.centroids),
        "position_classes": geometry.n_classes,
        "pca_dims": pca.dims,
        "pca_energy": pca.energy,
        "assignment": loss,
        "seconds": dict(zip(("sample", "train"), np.round(np.diff(clock), 3).tolist(), strict=True)),
    }


def draw_patches(geometry: Geometry, images: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Draw up to `most` different patches of some images; return their ids, ascending."""
    total = images * geometry.patches_per_image
    return np.sort(rng.choice(total, min(most, total), replace=False))


def _training_sample(
    pixels: Tensor,
    geometry: Geometry,
    pca: PCA,
    counts: np.ndarray,
    rng: np.random.Generator,
    device: torch.device,
    progress: Callable[[int, int], object],
) -> tuple[np.ndarray, np.ndarray]:
    """Return projected training patches, float32 (n, dims), and their position classes, (n,)."""
    by_class = np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    n_images = sampled_images(len(pixels), geometry, counts)
    images = np.sort(rng.choice(len(pixels), n_images, replace=False))
    chance = np.minimum(1, counts * TRAINING_PATCHES_PER_LIST / (n_images * by_class))[geometry.train_classes]
    parts = project_all(pixels, geometry, pca, device, images)
    return draw_vectors(parts, geometry, chance, rng, lambda done: progress(done, n_images))


def draw_vectors(
    parts: Iterable[tuple[int, int, Tensor]],
    geometry: Geometry,
    chance: np.ndarray,
    rng: np.random.Generator,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw from projected patches, as `project_all` yields them: vectors (n, dims) and position classes (n,).

    `chance` has the chance of each position; `progress` is called with the images that are done.
    """
    vectors, classes = [], []
    for start, stop, projected in parts:
        kept = np.flatnonzero(rng.random((stop - start, len(chance))) < chance)
        vectors.append(projected[torch.from_numpy(kept).to(projected.device)].cpu().numpy())
        classes.append(geometry.train_classes[kept % len(chance)])
        progress(stop)
    return np.concatenate(vectors), np.concatenate(classes)


def sampled_images(images: int, geometry: Geometry, counts: np.ndarray) -> int:
    """Return the number of images that training patches are drawn from; `counts` has the lists of each class.

    Neighbouring patches are alike, so the sample comes from `SPREAD` times the images that it needs.
    """
    by_class = np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    share = (counts * TRAINING_PATCHES_PER_LIST / (images * by_class)).max()
    return min(images, max(LEAST_IMAGES, math.ceil(SPREAD * share * images)))


def _assignment_loss(
    inverted: InvertedLists, sample: np.ndarray, classes: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Return the share of patches in their nearest list, and the excess of the mean squared distance."""
    chosen = rng.choice(len(sample), min(LOSS_SAMPLE, len(sample)), replace=False)
    vectors, classes = np.ascontiguousarray(sample[chosen]), classes[chosen]
    assigned = inverted.assign(torch.from_numpy(vectors).to(inverted.device), classes)
    nearest = inverted.nearest(vectors, classes, 1)[:, 0]
    got, least = (
        float(np.square(vectors - inverted.centroids[lists]).sum()) for lists in (assigned, nearest)
    )
    return {
        "nearest": round(float((assigned == nearest).mean()), 4),
        "excess": round(got / least - 1, 4) if least else 0.0,
    }


def keep_model(
    old: ScaleIndex, pixels: Tensor, old_images: np.ndarray, new_images: np.ndarray
) -> tuple[ScaleModel, dict[str, Any]]:
    """Return the model of a scale that gets more images, and its attributes with the drift of these images.

    `old_images` and `new_images` are the numbers of the images in `pixels`, uint8 (N, H, W, C).
    """
    model = old.model
    distance, left_out, clipped = _fit(model, pixels, old.geometry, new_images)
    _, _, clipped_before = _fit(model, pixels, old.geometry, old_images)
    drift = {
        "images": len(new_images),
        "distance": ratio(distance, old.moments.mean_distance()),
        "left_out": ratio(left_out, 1 - model.pca.energy),
        "clipped": round(max(0.0, clipped - clipped_before), 6),
    }
    drifts = {"drift": [*old.attributes.get("drift", []), drift], "seconds": {"train": 0.0}}
    return model, {name: old.attributes[name] for name in KEPT} | drifts


def _fit(
    model: ScaleModel, pixels: Tensor, geometry: Geometry, images: np.ndarray
) -> tuple[float, float, float]:
    """Return the distance to centroids, and the shares that codes leave out and clip, of some patches."""
    drawn = draw_patches(geometry, len(images), DRIFT_SAMPLE, np.random.default_rng(0))
    image, position = np.divmod(drawn, geometry.patches_per_image)
    ids = torch.from_numpy(images[image] * geometry.patches_per_image + position)
    patches = gather_patches(pixels, geometry, ids)
    vectors = model.pca.project(patches)
    lists = model.lists.assign(vectors, geometry.train_classes[position])
    y = vectors.numpy()
    distance = np.square(y - model.lists.centroids[lists]).sum(1).mean()
    low, width = model.ranges
    energy = float((patches - torch.from_numpy(model.pca.mean)).square().flatten(1).sum(1).mean())
    left_out = 1 - float(np.square(y).sum(1).mean()) / energy if energy > 0 else 0.0
    return float(distance), left_out, float(((y < low) | (y > low + width)).mean())
