"""Building one scale: sample, PCA, k-means, then every patch into its list."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from patchindex.backends import require_faiss
from patchindex.index.lists import TRAINING_PATCHES_A_LIST, InvertedLists, list_counts, train_lists
from patchindex.index.pca import PCA, fit_pca
from patchindex.index.plan import CHUNK_BYTES, PCA_SAMPLE
from patchindex.index.raw import RawWriter
from patchindex.index.scale import FAISS_ARRAY
from patchindex.patches import Geometry
from patchindex.training import to_unit
from patchindex.windows import gather_patches

__all__ = ["Progress", "build_scale"]

Progress = Callable[[str, int, int], None]  # stage, done, total


def build_scale(
    folder: Path,
    pixels: Tensor,
    labels: np.ndarray | None,
    geometry: Geometry,
    *,
    pca_dims: int | None,
    lists: int | None,
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
    pca_dims, lists, seed, device, progress
        As for `build_index`.
    """
    stage = f"k={geometry.k}"
    clock = [time.perf_counter()]
    rng = np.random.default_rng([seed, geometry.k])
    pca = fit_pca(_sample(pixels, geometry, rng), pca_dims)
    by_class = len(pixels) * np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    counts = list_counts(by_class, lists)
    sample, classes = _training_sample(pixels, geometry, pca, counts, rng)
    clock.append(time.perf_counter())
    if progress is not None:
        progress(f"{stage} training {counts.sum()} lists", 0, len(pixels))
    inverted = train_lists(sample, classes, counts, seed, device)
    clock.append(time.perf_counter())
    index = _empty_index(inverted, sample)
    del sample, classes
    label_index = (
        np.zeros(len(pixels), np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    )
    list_counts_by_label = np.zeros((int(label_index.max()) + 1, len(inverted.centroids)), np.int64)
    squares = np.zeros(pca.dims)
    for start, stop, codes in _project_all(pixels, geometry, pca, device):
        n = stop - start
        classes = np.tile(geometry.train_classes, n)
        assigned = np.ascontiguousarray(inverted.nearest(codes, classes, 1)[:, 0])
        _add(index, codes, start * geometry.patches_per_image, assigned)
        squares += np.square(codes - inverted.centroids[assigned]).sum(0, dtype=np.float64)
        label_of = np.repeat(label_index[start:stop], geometry.patches_per_image)
        np.add.at(list_counts_by_label, (label_of, assigned), 1)
        if progress is not None:
            progress(f"{stage} adding patches", stop, len(pixels))
    clock.append(time.perf_counter())
    group = zarr.open_group(folder, mode="w-")
    _write_faiss(folder, index)
    clock.append(time.perf_counter())
    group.create_array("pca_components", data=pca.components)
    group.create_array("pca_mean", data=pca.mean)
    group.create_array("centroids", data=inverted.centroids)
    group.create_array("list_bounds", data=inverted.bounds)
    group.create_array("list_counts", data=list_counts_by_label)
    group.create_array("within_list_variance", data=(squares / index.ntotal).astype(np.float32))
    group.attrs.update(
        {
            "k": geometry.k,
            "patches": int(index.ntotal),
            "lists": len(inverted.centroids),
            "position_classes": geometry.n_classes,
            "pca_dims": pca.dims,
            "pca_energy": pca.energy,
            "seconds": dict(
                zip(("sample", "train", "add", "write"), np.round(np.diff(clock), 3).tolist(), strict=True)
            ),
        }
    )


def _sample(pixels: Tensor, geometry: Geometry, rng: np.random.Generator) -> Tensor:
    """Return up to `PCA_SAMPLE` patches drawn evenly from all, shape (n, k, k, C)."""
    total = len(pixels) * geometry.patches_per_image
    ids = np.sort(rng.choice(total, min(PCA_SAMPLE, total), replace=False))
    return gather_patches(pixels, geometry, torch.from_numpy(ids))


def _training_sample(
    pixels: Tensor, geometry: Geometry, pca: PCA, counts: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return projected patches to train lists on, (n, dims) float32, and their position classes, (n,)."""
    chosen = []
    for c, count in enumerate(counts):
        places = np.flatnonzero(geometry.train_classes == c)
        total = len(pixels) * len(places)
        drawn = rng.choice(total, min(int(count) * TRAINING_PATCHES_A_LIST, total), replace=False)
        image, place = np.divmod(np.sort(drawn), len(places))
        chosen.append(image * geometry.patches_per_image + places[place])
    ids = torch.from_numpy(np.concatenate(chosen))
    # A patch in flight: indices of its pixels, its floats, and the floats less their mean.
    step = max(1, CHUNK_BYTES // (24 * pca.mean.size))
    projected = [pca.project(gather_patches(pixels, geometry, part)) for part in ids.split(step)]
    classes = np.repeat(np.arange(len(counts)), [len(part) for part in chosen])
    return torch.cat(projected).numpy(), classes


def _empty_index(inverted: InvertedLists, sample: np.ndarray) -> Any:
    """Return a FAISS index with these lists and 8-bit codes, empty."""
    faiss = require_faiss()
    n_lists, dims = inverted.centroids.shape
    quantizer = faiss.IndexFlatL2(dims)
    quantizer.add(inverted.centroids)
    by_residual = False  # one code table for all lists: a code means the same wherever it is
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, dims, n_lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2, by_residual
    )
    index.sq.train(np.ascontiguousarray(sample))
    index.is_trained = True
    return index


def _project_all(
    pixels: Tensor, geometry: Geometry, pca: PCA, device: torch.device
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield images [start, stop) and the projections of all their patches, (n, dims) float32."""
    height, width = geometry.size
    # An image in flight: padded pixels, projections in two layouts, and differences to centroids.
    per_image = 4 * (4 * height * width * pixels.shape[3] + 4 * geometry.patches_per_image * pca.dims)
    step = max(1, CHUNK_BYTES // per_image)
    for start in range(0, len(pixels), step):
        tile = to_unit(pixels[start : start + step].to(device).permute(0, 3, 1, 2))
        yield start, start + len(tile), pca.project_images(tile, geometry).cpu().numpy()


def _add(index: Any, codes: np.ndarray, first_id: int, assigned: np.ndarray) -> None:
    """Add patches with consecutive ids to the lists that they were assigned to."""
    faiss = require_faiss()
    codes = np.ascontiguousarray(codes)
    ids = np.arange(first_id, first_id + len(codes))
    index.add_core(len(codes), *(faiss.swig_ptr(array) for array in (codes, ids, assigned)))


def _write_faiss(folder: Path, index: Any) -> None:
    """Stream FAISS's file into the chunk of a zarr array."""
    faiss = require_faiss()
    with RawWriter(folder, FAISS_ARRAY, "uint8") as out:
        writer = faiss.PyCallbackIOWriter(out.write)
        faiss.write_index(index, writer)
        del writer  # flushes what it still holds
