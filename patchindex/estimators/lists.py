"""The lists of a position class at one noise level: which are likeliest for a pixel, and their best codes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from patchindex.exact import ScoreRequest
from patchindex.index import ScaleIndex
from patchindex.kernels.codes import CODES, Queries
from patchindex.kernels.nearest import (
    Best,
    Scratch,
    best_codes,
    best_lists,
    list_tiles,
    patch_ids,
    visitors_of,
)
from patchindex.kernels.simd import aligned

__all__ = ["CELLS", "NearLists"]

CELLS = 64  # whose lists are looked at


class NearLists:
    """The lists of a position class, to be searched.

    Cells first, then lists in them, by the distance of their means, softened by a quarter of their variances
    (`patchindex.kernels.nearest.list_tiles`).

    Parameters
    ----------
    scale : ScaleIndex
    c : int
        The position class.
    label : int or None
        Codes of the label with this index only.
    request : ScoreRequest
        Of the noise level.
    workers : ThreadPoolExecutor
    threads : int
    """

    def __init__(
        self,
        scale: ScaleIndex,
        c: int,
        label: int | None,
        request: ScoreRequest,
        workers: ThreadPoolExecutor,
        threads: int,
    ) -> None:
        self._codes, self._ids_at = scale.codes(c, label)
        means, variances, self._bounds, of_cells = scale.moments.of_class(c, label)
        self._a, self._beta, self._workers, self._threads = request.a, request.beta, workers, threads
        self._lists = self._table(means, variances, self._codes.size, self._bounds)
        self._cells = self._table(*of_cells, np.array([0, len(of_cells[0])]))

    def _table(
        self, means: np.ndarray, variances: np.ndarray, sizes: np.ndarray, bounds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return what `best_lists` takes: tiles, offsets, the first tile of each group, and the groups."""
        first = np.concatenate([[0], np.cumsum(-(-np.diff(bounds) // CODES))])
        tiles, offsets = aligned(first[-1] * 2 * means.shape[1] * CODES), aligned(first[-1] * CODES)

        def write(groups: tuple[int, int]) -> None:
            list_tiles(means, variances, sizes, first, bounds, groups, self._a, self._beta, tiles, offsets)

        edges = np.linspace(0, len(bounds) - 1, self._threads + 1).astype(int).tolist()
        list(self._workers.map(write, pairwise(edges)))
        return tiles, offsets, first, bounds

    def likeliest(self, z: np.ndarray, probes: int, most_cells: int) -> Best:
        """Return the likeliest lists for projected queries z, (n, dims), in no order."""
        n, dims = z.shape
        u = np.concatenate([z * z, z], 1).reshape(-1)

        def lists_of(table: tuple[np.ndarray, ...], visits: tuple[np.ndarray, np.ndarray], keep: int) -> Best:
            best = Best.none(n, keep)
            best_lists(*table, u, 2 * dims, *visits, keep, best, Scratch.of(1, keep))
            return best

        cells = lists_of(self._cells, (np.array([0, n]), np.arange(n, dtype=np.int32)), most_cells)
        return lists_of(self._lists, _visitors(cells, len(self._bounds) - 1), probes)

    def search(
        self, z: np.ndarray, probes: int, candidates: int, most_cells: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the best codes, (n, candidates), and how many were scanned for each."""
        n, dims = z.shape
        lists = self.likeliest(z, probes, most_cells)
        queries = Queries.of(self._codes, z * (self._a / self._beta), self._a**2 / (2 * self._beta))
        best, scanned, scratch = Best.none(n, candidates), np.zeros(n, np.int64), Scratch.of(dims, candidates)
        visits = _visitors(lists, len(self._codes.size))
        best_codes(self._codes, queries, *visits, candidates, best, scratch, scanned)
        ids = np.empty((n, candidates), np.int64)
        patch_ids(self._codes.file, self._ids_at, best, ids)
        return ids, scanned


def _visitors(best: Best, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the queries that hold each item: those of item i from start[i] to start[i + 1]."""
    start, visitors = np.zeros(items + 1, np.int64), np.empty(int(best.held.sum()), np.int32)
    visitors_of(best, start, visitors)
    return start, visitors
