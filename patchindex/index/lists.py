"""Inverted lists: how many, where their centroids are, and which list a patch belongs to.

Every position class has a range of lists of its own, and a patch is assigned inside its class. So a search
that looks into the lists of a pixel's class finds patches of that class only, whatever the machine.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch

from patchindex.backends import faiss_gpus, require_faiss

__all__ = ["InvertedLists", "list_counts", "train_lists"]

LISTS_A_ROOT_PATCH = 2.5  # lists = 2.5 sqrt(patches): assigning and scanning then cost about the same
MIN_PATCHES_A_LIST = 32
TRAINING_PATCHES_A_LIST = 64
KMEANS_ITERATIONS = 10


def list_counts(patches_by_class: np.ndarray, lists: int | None = None) -> np.ndarray:
    """Return how many lists each position class gets.

    Parameters
    ----------
    patches_by_class : array of int, shape (n_classes,)
        How many patches each class has.
    lists : int, optional
        Lists in total; by default `2.5 sqrt(patches)`. They are shared out in proportion to the patches; a
        class gets at least one, and no more than one for each 32 patches.

    Examples
    --------
    >>> list_counts(np.array([1_000_000, 1_000]))
    array([2499,    2])
    """
    total = int(patches_by_class.sum())
    if lists is None:
        lists = round(LISTS_A_ROOT_PATCH * math.sqrt(total))
    share = np.rint(min(lists, total) * patches_by_class / total).astype(np.int64)
    return np.clip(share, 1, np.maximum(1, patches_by_class // MIN_PATCHES_A_LIST))


class InvertedLists:
    """Centroids of the inverted lists, in ranges of lists by position class.

    Parameters
    ----------
    centroids : array, shape (lists, dims), float32
        Ordered by class.
    bounds : array of int, shape (n_classes + 1,)
        Class c has the lists `bounds[c]` to `bounds[c + 1]`.
    device : torch.device
        Where nearest centroids are looked for.
    """

    def __init__(self, centroids: np.ndarray, bounds: np.ndarray, device: torch.device) -> None:
        self.centroids, self.bounds, self.device = centroids, bounds, device

    @cached_property
    def _by_class(self) -> list[Any]:
        faiss = require_faiss()
        found = []
        for lo, hi in zip(self.bounds[:-1], self.bounds[1:], strict=True):
            index = faiss.IndexFlatL2(self.centroids.shape[1])
            index.add(np.ascontiguousarray(self.centroids[lo:hi]))
            found.append(to_gpu(index, self.device))
        return found

    def nearest(self, vectors: np.ndarray, classes: np.ndarray, probes: int) -> np.ndarray:
        """Return the lists of its own class whose centroids are nearest to each vector.

        Parameters
        ----------
        vectors : array, shape (n, dims), float32
        classes : array of int, shape (n,)
        probes : int

        Returns
        -------
        array of int64, shape (n, probes)
            Nearest first; -1 where a class has no more lists.
        """
        found = np.full((len(vectors), probes), -1, np.int64)
        for c, index in enumerate(self._by_class):
            # One class is the common case, and needs no copies.
            mine: Any = slice(None) if len(self._by_class) == 1 else np.flatnonzero(classes == c)
            wanted = min(probes, index.ntotal)
            if len(vectors[mine]):
                found[mine, :wanted] = index.search(vectors[mine], wanted)[1] + self.bounds[c]
        return found


def to_gpu(index: Any, device: torch.device) -> Any:
    """Return a clone of a FAISS index on a CUDA device; on the CPU the index itself."""
    if device.type == "cpu":
        return index
    faiss = require_faiss()
    resources = faiss.StandardGpuResources()
    clone = faiss.index_cpu_to_gpu(resources, device.index or 0, index)
    clone.resources = resources  # the clone does not keep its resources alive by itself
    return clone


def train_lists(
    sample: np.ndarray, classes: np.ndarray, counts: np.ndarray, seed: int, device: torch.device
) -> InvertedLists:
    """Find centroids by k-means inside each class.

    Parameters
    ----------
    sample : array, shape (n, dims), float32
        Projected patches.
    classes : array of int, shape (n,)
        Their position classes; every class has at least as many patches here as lists.
    counts : array of int, shape (n_classes,)
        Lists of each class.
    seed : int
        Seed of the initial centroids.
    device : torch.device
        Where k-means runs.

    Notes
    -----
    k-means gives the same centroids for the same sample, seed and number of threads only.
    """
    faiss = require_faiss()
    centroids = []
    for c, count in enumerate(counts):
        mine = np.ascontiguousarray(sample[classes == c])
        kmeans = faiss.Kmeans(
            sample.shape[1],
            int(count),
            niter=KMEANS_ITERATIONS,
            seed=seed % 2**31,  # FAISS takes a C int
            min_points_per_centroid=1,  # small classes have few patches, and FAISS warns on stderr
            max_points_per_centroid=TRAINING_PATCHES_A_LIST,
            gpu=device.type == "cuda" and faiss_gpus() > 0,
        )
        kmeans.train(mine)
        centroids.append(kmeans.centroids)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    return InvertedLists(np.concatenate(centroids).astype(np.float32), bounds, device)
