"""Inverted lists: their number, their centroids, and the list of each patch.

Every position class has its own range of lists, and a patch belongs to a list of its class. So a search in
the lists of a pixel's class finds only patches of that class, for every machine.

The lists of a class are grouped in cells: k-means finds the cells, and then the centroids of the lists in
each cell. Assigning a patch computes distances to the cells, then to the lists of the two nearest cells:
about `2 sqrt(lists)` distances instead of `lists`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchindex.kernels.assign import Tiles, assign_lists
from patchindex.kernels.simd import BLOCK, aligned
from patchindex.runtime import faiss_gpus, pool, require_faiss

__all__ = [
    "TRAINING_PATCHES_PER_LIST",
    "InvertedLists",
    "cells_of",
    "clustering_work",
    "k_means",
    "list_counts",
    "most_lists",
    "to_gpu",
    "train_lists",
]

# Shorter lists are ranked more sharply; beyond MOST_LISTS, ranking them takes longer than it saves.
PATCHES_PER_LIST = 256
MOST_LISTS = 1 << 17
MIN_PATCHES_PER_LIST = 32
TRAINING_PATCHES_PER_LIST = 40
TRAINING_PATCHES_PER_CELL = 256
LISTS_WITHOUT_CELLS = 64  # with fewer lists, cells save no time
CELLS_PROBED = 2
MOST_LISTS_PER_CELL = 4  # times the average
ASSIGNED_AT_ONCE = 1 << 16  # vectors per thread; on a GPU their distances to all cells take 64 MiB
TILES_HELD = 1024  # position classes whose tiles are kept
KMEANS_ITERATIONS = 10


def most_lists(patches: int) -> int:
    """Return the default number of lists: one per 256 patches, at most 131 072."""
    return min(MOST_LISTS, max(1, patches // PATCHES_PER_LIST))


def list_counts(patches_by_class: np.ndarray, lists: int) -> np.ndarray:
    """Return the number of lists of each position class, in proportion to its patches.

    A class gets at least one list, and at most one per 32 patches.
    """
    total = int(patches_by_class.sum())
    share = np.rint(min(lists, total) * patches_by_class / total).astype(np.int64)
    return np.clip(share, 1, np.maximum(1, patches_by_class // MIN_PATCHES_PER_LIST))


def cells_of(lists: int) -> int:
    """Return the number of cells that the lists of a position class are grouped in."""
    return 1 if lists <= LISTS_WITHOUT_CELLS else round(math.sqrt(lists))


class InvertedLists:
    """Centroids of the inverted lists, in ranges of lists by position class.

    `centroids`, float32 (lists, dims), are ordered by class, and inside a class by cell. Class c has the
    lists `bounds[c]` to `bounds[c + 1] - 1`. `cells`, float32 (cells, dims), are the centroids of the cells
    in this order, and cell i has the lists `cell_bounds[i]` to `cell_bounds[i + 1] - 1`, all of one class.
    `device` searches for nearest centroids.
    """

    def __init__(
        self,
        centroids: np.ndarray,
        bounds: np.ndarray,
        cells: np.ndarray,
        cell_bounds: np.ndarray,
        device: torch.device,
    ) -> None:
        self.centroids, self.bounds, self.device = centroids, bounds, device
        self.cells, self.cell_bounds = cells, cell_bounds
        self._tiles_of: dict[int, tuple[Tiles, Tiles]] = {}

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
        """Return the lists of each vector's class with the nearest centroids.

        int64 (n, probes), the nearest first; -1 where a class has fewer lists.
        """
        found = np.full((len(vectors), probes), -1, np.int64)
        for c, index in enumerate(self._by_class):
            # One class, the common case, needs no copies.
            mine: Any = slice(None) if len(self._by_class) == 1 else np.flatnonzero(classes == c)
            wanted = min(probes, index.ntotal)
            if len(vectors[mine]):
                found[mine, :wanted] = index.search(vectors[mine], wanted)[1] + self.bounds[c]
        return found

    def assign(self, vectors: Tensor, classes: np.ndarray) -> np.ndarray:
        """Return the list of each vector, int64 (n,): the nearest in the two nearest cells of its class."""
        n_classes = len(self.bounds) - 1
        if n_classes == 1:  # the common case, needs no copies
            return self._assign(vectors, np.array([0, len(vectors)]))
        order = np.argsort(classes, kind="stable")
        bounds = np.searchsorted(classes[order], np.arange(n_classes + 1))
        found = np.empty(len(vectors), np.int64)
        found[order] = self._assign(vectors[torch.from_numpy(order).to(vectors.device)], bounds)
        return found

    def _assign(self, vectors: Tensor, bounds: np.ndarray) -> np.ndarray:
        """Return the list of each vector; the rows `bounds[c]` to `bounds[c + 1] - 1` have class c."""
        out, threads = np.empty(len(vectors), np.int64), torch.get_num_threads()
        on_cpu = vectors.device.type == "cpu"
        most = min(ASSIGNED_AT_ONCE, len(vectors) // threads + 1) if on_cpu else ASSIGNED_AT_ONCE
        pieces = [
            (c, piece)
            for c, (lo, hi) in enumerate(pairwise(bounds.tolist()))
            for piece in pairwise([*range(lo, hi, most), hi])
        ]
        if not on_cpu:
            for c, (lo, hi) in pieces:
                out[lo:hi] = self._assign_by_torch(vectors[lo:hi], c).cpu()
            return out
        flat = np.ascontiguousarray(vectors.numpy())

        def assign(piece: tuple[tuple[Tiles, Tiles], tuple[int, int]]) -> None:
            (cells, lists), (lo, hi) = piece
            n = hi - lo
            assign_lists(
                cells, lists, flat[lo:hi].reshape(-1), np.empty((n, 2), np.float32),
                np.empty((n, 2), np.int64), np.empty(len(lists.first), np.int64), np.empty(2 * n, np.int64),
                aligned(BLOCK), out[lo:hi],
            )  # fmt: skip

        # As many classes at once as have their tiles kept.
        for _, some in groupby(pieces, lambda piece: piece[0] // TILES_HELD):
            list(pool(threads).map(assign, [(self._tiles(c), rows) for c, rows in some]))
        return out

    def _tiles(self, c: int) -> tuple[Tiles, Tiles]:
        """Return the tiles of the cells and of the lists of a class, kept for `TILES_HELD` classes."""
        found = self._tiles_of.get(c)
        if found is None:
            if len(self._tiles_of) >= TILES_HELD:
                self._tiles_of.clear()
            lo, hi = self.bounds[c : c + 2]
            first, last = np.searchsorted(self.cell_bounds, (lo, hi))
            cells = Tiles.of(self.cells[first:last], np.array([0, last - first]))
            lists = Tiles.of(self.centroids[lo:hi], self.cell_bounds[first : last + 1] - lo)
            found = self._tiles_of[c] = cells, lists._replace(bounds=lists.bounds + lo)
        return found

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centroids of lists and cells on the device, and their squared norms."""
        lists, cells = (torch.from_numpy(a).to(self.device) for a in (self.centroids, self.cells))
        return lists, lists.square().sum(1), cells, cells.square().sum(1)

    def _assign_by_torch(self, vectors: Tensor, c: int) -> Tensor:
        """Assign vectors of class c on any device, by matrix products."""
        lists, list_norms, cells, cell_norms = self._tensors
        first, last = np.searchsorted(self.cell_bounds, self.bounds[c : c + 2])
        distances = torch.addmm(cell_norms[first:last], vectors, cells[first:last].T, alpha=-2)
        best = torch.full((len(vectors),), torch.inf, dtype=torch.float32, device=vectors.device)
        found = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        for _ in range(min(CELLS_PROBED, int(last - first))):
            nearest = distances.argmin(1)
            distances.scatter_(1, nearest[:, None], torch.inf)
            # One matrix product for all vectors of a cell.
            counts = nearest.bincount(minlength=int(last - first)).tolist()
            for i, rows in enumerate(nearest.argsort(stable=True).split(counts)):
                if len(rows):
                    lo, hi = self.cell_bounds[first + i : first + i + 2]
                    smallest, at = torch.addmm(
                        list_norms[lo:hi], vectors[rows], lists[lo:hi].T, alpha=-2
                    ).min(1)
                    nearer = smallest < best[rows]
                    rows = rows[nearer]
                    best[rows], found[rows] = smallest[nearer], at[nearer] + int(lo)
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
    sample: np.ndarray,
    classes: np.ndarray,
    counts: np.ndarray,
    seed: int,
    device: torch.device,
    progress: Callable[[float, float], object] = lambda done, total: None,
) -> InvertedLists:
    """Find the cells of each class, and the lists of each cell, by k-means of a sample (n, dims).

    `counts` has the lists of each class; the sample has at least as many patches of a class as lists.
    `progress` is called after each k-means, with the work that is done and all work: patches times centroids.
    Equal samples and seeds give equal centroids, on any number of threads.
    """
    members = np.bincount(classes, minlength=len(counts))
    finding, filling = clustering_work(members, counts)
    done, work = 0.0, finding.sum() + filling.sum()
    cells, fillings, bounds = [], list[_Filling](), [0]
    for c, (count, rows) in enumerate(zip(counts.tolist(), _rows_of(classes, len(counts)), strict=True)):
        mine = sample if len(counts) == 1 else sample[rows]
        n_cells = cells_of(count)
        top = k_means(mine, n_cells, TRAINING_PATCHES_PER_CELL, seed, device)
        done += finding[c]
        progress(done, work)
        all_in_one = np.array([0, n_cells])
        flat = InvertedLists(top, all_in_one, mine.mean(0, keepdims=True), all_in_one, device)
        cell_of = flat.assign(torch.from_numpy(mine).to(device), np.zeros(len(mine), np.int64))
        in_cell = [rows[at] for at in _rows_of(cell_of, n_cells)]
        kept = [i for i, some in enumerate(in_cell) if len(some)]
        cells.append(top[kept])
        shares = _shares(count, np.array([len(in_cell[i]) for i in kept])).tolist()
        fillings += [
            _Filling(in_cell[i], lists, filling[c] * len(in_cell[i]) / members[c])
            for i, lists in zip(kept, shares, strict=True)
        ]
        bounds.append(bounds[-1] + sum(shares))

    def fill(cell: _Filling) -> np.ndarray:
        return k_means(sample[cell.rows], cell.lists, TRAINING_PATCHES_PER_LIST, seed, device)

    centroids = []
    # Cells are many and small, so each is computed by one thread. Other work may wait for the threads of
    # `pool`, so these are others. FAISS computes on a GPU from one thread at a time.
    workers = ThreadPoolExecutor(1 if _on_gpu(device) else torch.get_num_threads(), "patchindex-k-means")
    try:
        for cell, found in zip(fillings, workers.map(fill, fillings), strict=True):
            centroids.append(found)
            done += cell.work
            progress(min(done, work), work)
    finally:
        workers.shutdown(cancel_futures=True)
    return InvertedLists(
        np.concatenate(centroids),
        np.array(bounds),
        np.concatenate(cells),
        np.concatenate([[0], np.cumsum([cell.lists for cell in fillings])]),
        device,
    )


class _Filling(NamedTuple):
    """A cell whose lists are to be found: rows of its patches in the sample, number of lists, and work."""

    rows: np.ndarray
    lists: int
    work: float


def _rows_of(groups: np.ndarray, n: int) -> list[np.ndarray]:
    """Return the rows of each of n groups, ascending."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.searchsorted(groups[order], np.arange(1, n)))


def clustering_work(members: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the work of finding the cells of each class, and the lists in its cells: patches x centroids.

    `members` are the training patches of each class, and `counts` its lists.
    """
    cells = np.array([cells_of(int(count)) for count in counts])
    return np.minimum(members, cells * TRAINING_PATCHES_PER_CELL) * cells, members * counts / cells


def _shares(total: int, members: np.ndarray) -> np.ndarray:
    """Return the number of lists of each cell, in proportion to its members, at least one; about `total`."""
    most = math.ceil(MOST_LISTS_PER_CELL * total / len(members))
    edges = np.rint(np.cumsum(members) * (total - len(members)) / members.sum()).astype(np.int64)
    # No more lists than members, and no cell so large that assigning to its lists takes long.
    return np.minimum(1 + np.diff(edges, prepend=0), np.minimum(members, most))


def k_means(vectors: np.ndarray, n: int, sample: int, seed: int, device: torch.device) -> np.ndarray:
    """Return n centroids, found from at most `sample` vectors for each; float32, shape (n, dims).

    On the CPU, FAISS computes on the calling thread alone, so that the centroids do not depend on the number
    of threads.
    """
    faiss, on_gpu = require_faiss(), _on_gpu(device)
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        n,
        niter=KMEANS_ITERATIONS,
        seed=seed % 2**31,  # FAISS takes a C int
        min_points_per_centroid=1,  # small classes have few patches, and FAISS warns on stderr
        max_points_per_centroid=sample,
        gpu=on_gpu,
    )
    threads = faiss.omp_get_max_threads()  # of the calling thread
    faiss.omp_set_num_threads(threads if on_gpu else 1)
    try:
        kmeans.train(vectors)
    finally:
        faiss.omp_set_num_threads(threads)
    return np.asarray(kmeans.centroids, np.float32)


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda" and faiss_gpus() > 0
