"""Building one scale: sample, PCA, k-means, then every patch into its list."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor

from patchindex.index.ivf import empty_index, write_index
from patchindex.index.lists import TRAINING_PATCHES_A_LIST, InvertedLists, list_counts, train_lists
from patchindex.index.pca import PCA, fit_pca
from patchindex.index.plan import CHUNK_BYTES, PCA_SAMPLE
from patchindex.index.raw import RawWriter
from patchindex.index.scale import FAISS_ARRAY
from patchindex.index.sorting import ListSorter
from patchindex.index.statistics import CodeMoments, code_ranges
from patchindex.patches import Geometry
from patchindex.training import to_unit
from patchindex.windows import gather_patches

__all__ = ["Progress", "build_scale"]

SORTING = "sorting"  # folder of patches on their way into the lists
SPREAD = 4
LEAST_IMAGES = 256
LOSS_SAMPLE = 8192

Progress = Callable[[str, int, int], None]  # stage, done, total


def build_scale(
    folder: Path,
    pixels: Tensor,
    labels: np.ndarray | None,
    geometry: Geometry,
    *,
    dims: int,
    lists: int,
    seed: int,
    device: torch.device,
    progress: Progress | None,
) -> None:
    """Train and fill the index of one scale, in a new folder.

    Parameters
    ----------
    folder : Path
        The scale's group, which does not exist yet.
    pixels : Tensor, shape (N, H, W, C), uint8
        The training images in label order.
    labels : array, shape (N,), or None
        Ascending.
    geometry : Geometry
        Machine and locality scale.
    dims : int
        How many principal components its codes keep.
    lists : int
        How many lists position classes share.
    seed, device, progress
        As for `build_index`.
    """
    stage = f"k={geometry.k}"
    clock = [time.perf_counter()]
    rng = np.random.default_rng([seed, geometry.k])
    pca = fit_pca(_sample(pixels, geometry, rng), dims)
    by_class = len(pixels) * np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    counts = list_counts(by_class, lists)
    sample, classes = _training_sample(pixels, geometry, pca, counts, rng, device)
    clock.append(time.perf_counter())
    if progress is not None:
        progress(f"{stage} training {counts.sum()} lists", 0, len(pixels))
    inverted = train_lists(sample, classes, counts, seed, device)
    clock.append(time.perf_counter())
    index = empty_index(inverted.centroids, sample)
    loss = _assignment_loss(inverted, sample, classes, rng)
    del sample, classes
    label_index = (
        np.zeros(len(pixels), np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    )
    n_lists, per_image = len(inverted.centroids), geometry.patches_per_image
    list_counts_by_label = np.zeros((int(label_index.max()) + 1, n_lists), np.int64)
    group = zarr.open_group(folder, mode="w-")
    with ListSorter(folder / SORTING, n_lists, pca.dims, len(pixels) * per_image) as sorter:
        for start, stop, vectors in _project_all(pixels, geometry, pca, device):
            assigned = inverted.assign(vectors, np.tile(geometry.train_classes, stop - start))
            ids = np.arange(start * per_image, stop * per_image)
            sorter.add(assigned, ids, index.sq.compute_codes(vectors.cpu().numpy()))
            label_of = np.repeat(label_index[start:stop], per_image)
            list_counts_by_label += np.bincount(
                label_of * n_lists + assigned, minlength=list_counts_by_label.size
            ).reshape(list_counts_by_label.shape)
            if progress is not None:
                progress(f"{stage} assigning patches", stop, len(pixels))
        clock.append(time.perf_counter())
        moments = CodeMoments(n_lists, pca.dims)
        with RawWriter(folder, FAISS_ARRAY, "uint8") as out:
            write_index(out, index, list_counts_by_label.sum(0), moments.watch(sorter.buckets()))
    (folder / SORTING).rmdir()
    means, variances = moments.decoded(*code_ranges(index))
    clock.append(time.perf_counter())
    group.create_array("pca_components", data=pca.components)
    group.create_array("pca_mean", data=pca.mean)
    group.create_array("centroids", data=inverted.centroids)
    group.create_array("list_bounds", data=inverted.bounds)
    group.create_array("cells", data=inverted.cells)
    group.create_array("cell_bounds", data=inverted.cell_bounds)
    group.create_array("list_counts", data=list_counts_by_label)
    group.create_array("list_means", data=means)
    group.create_array("list_variances", data=variances)
    group.attrs.update(
        {
            "k": geometry.k,
            "patches": len(pixels) * per_image,
            "lists": n_lists,
            "position_classes": geometry.n_classes,
            "pca_dims": pca.dims,
            "pca_energy": pca.energy,
            "assignment": loss,
            "seconds": dict(
                zip(("sample", "train", "assign", "write"), np.round(np.diff(clock), 3).tolist(), strict=True)
            ),
        }
    )


def _sample(pixels: Tensor, geometry: Geometry, rng: np.random.Generator) -> Tensor:
    """Return up to `PCA_SAMPLE` patches drawn evenly from all, shape (n, k, k, C)."""
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
    """Return projected patches to train lists on, (n, dims) float32, and their position classes, (n,).

    They come from `SPREAD` times as many images as would do: neighbouring patches of an image are alike.
    """
    by_class = np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    share = (counts * TRAINING_PATCHES_A_LIST / (len(pixels) * by_class)).max()
    n_images = min(len(pixels), max(LEAST_IMAGES, math.ceil(SPREAD * share * len(pixels))))
    images = pixels[torch.from_numpy(np.sort(rng.choice(len(pixels), n_images, replace=False)))]
    chance = np.minimum(1, counts * TRAINING_PATCHES_A_LIST / (n_images * by_class))[geometry.train_classes]
    vectors, classes = [], []
    for start, stop, projected in _project_all(images, geometry, pca, device):
        kept = np.flatnonzero(rng.random((stop - start, len(chance))) < chance)
        vectors.append(projected[torch.from_numpy(kept).to(device)].cpu().numpy())
        classes.append(geometry.train_classes[kept % len(chance)])
    return np.concatenate(vectors), np.concatenate(classes)


def _assignment_loss(
    inverted: InvertedLists, sample: np.ndarray, classes: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Compare the lists that patches get with the truly nearest ones.

    Returns the share of patches in their nearest list, and by how much the mean squared distance to the
    centroid is above the least possible.
    """
    some = rng.choice(len(sample), min(LOSS_SAMPLE, len(sample)), replace=False)
    vectors, classes = np.ascontiguousarray(sample[some]), classes[some]
    assigned = inverted.assign(torch.from_numpy(vectors).to(inverted.device), classes)
    nearest = inverted.nearest(vectors, classes, 1)[:, 0]
    got, least = (
        float(np.square(vectors - inverted.centroids[lists]).sum()) for lists in (assigned, nearest)
    )
    return {
        "nearest": round(float((assigned == nearest).mean()), 4),
        "excess": round(got / least - 1, 4) if least else 0.0,
    }


def _project_all(
    pixels: Tensor, geometry: Geometry, pca: PCA, device: torch.device
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield images [start, stop) and the projections of their patches, (n, dims) float32 on the device."""
    height, width = geometry.size
    # An image in flight: padded pixels, projections in two layouts, and records to be sorted.
    per_image = 4 * (4 * height * width * pixels.shape[3] + 4 * geometry.patches_per_image * pca.dims)
    step = max(1, CHUNK_BYTES // per_image)
    for start in range(0, len(pixels), step):
        tile = to_unit(pixels[start : start + step].to(device).permute(0, 3, 1, 2))
        yield start, start + len(tile), pca.project_images(tile, geometry)
