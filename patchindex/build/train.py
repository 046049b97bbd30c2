"""Training of one scale: a sample of patches, its principal components, and the lists by k-means."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.build.plan import PCA_SAMPLE
from patchindex.geometry import Geometry, gather_patches
from patchindex.index.lists import TRAINING_PATCHES_A_LIST, InvertedLists, list_counts, train_lists
from patchindex.index.model import ScaleModel, fit_ranges, project_all
from patchindex.index.pca import PCA, fit_pca
from patchindex.runtime import Progress

__all__ = ["train_scale"]

SPREAD = 4
LEAST_IMAGES = 256
LOSS_SAMPLE = 8192


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
    rng = np.random.default_rng([seed, geometry.k])
    pca = fit_pca(_sample(pixels, geometry, rng), dims)
    by_class = len(pixels) * np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    counts = list_counts(by_class, lists)
    sample, classes = _training_sample(pixels, geometry, pca, counts, rng, device)
    clock.append(time.perf_counter())
    progress(f"k = {geometry.k}: training {counts.sum()} lists", 0, len(pixels))
    inverted = train_lists(sample, classes, counts, seed, device)
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


def _sample(pixels: Tensor, geometry: Geometry, rng: np.random.Generator) -> Tensor:
    """Draw up to `PCA_SAMPLE` of all patches, shape (n, k, k, C)."""
    total = len(pixels) * geometry.patches_per_image
    ids = np.sort(rng.choice(total, min(PCA_SAMPLE, total), replace=False))
    return gather_patches(pixels, geometry, torch.from_numpy(ids))


def _training_sample(
    pixels: Tensor,
    geometry: Geometry,
    pca: PCA,
    counts: np.ndarray,
    rng: np.random.Generator,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Return projected training patches, float32 (n, dims), and their position classes, (n,)."""
    # Neighbouring patches are alike, so the sample comes from `SPREAD` times the images that it needs.
    by_class = np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    share = (counts * TRAINING_PATCHES_A_LIST / (len(pixels) * by_class)).max()
    n_images = min(len(pixels), max(LEAST_IMAGES, math.ceil(SPREAD * share * len(pixels))))
    images = np.sort(rng.choice(len(pixels), n_images, replace=False))
    chance = np.minimum(1, counts * TRAINING_PATCHES_A_LIST / (n_images * by_class))[geometry.train_classes]
    vectors, classes = [], []
    for start, stop, projected in project_all(pixels, geometry, pca, device, images):
        kept = np.flatnonzero(rng.random((stop - start, len(chance))) < chance)
        vectors.append(projected[torch.from_numpy(kept).to(device)].cpu().numpy())
        classes.append(geometry.train_classes[kept % len(chance)])
    return np.concatenate(vectors), np.concatenate(classes)


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
