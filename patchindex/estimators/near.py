"""The near field: the heaviest patches of each pixel, as the index finds them.

Cells are ranked first, then the lists in them (`NearLists`). The codes of the likeliest lists are scanned,
and the best patches compared exactly, for the pixel and for its neighbours (`NearField`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from patchindex.estimators.base import ScoreContext, index_of, label_index, project
from patchindex.estimators.neighbours import NOTHING, PAIR_BYTES, NeighbourRefiner
from patchindex.estimators.policy import DEFAULT_POLICY, AutoPolicy
from patchindex.exact import ScoreRequest
from patchindex.index import ScaleIndex
from patchindex.kernels.codes import CODES, Queries
from patchindex.kernels.known_patches import KnownPatches
from patchindex.kernels.nearest import (
    Best,
    Scratch,
    best_codes,
    best_lists,
    capacity,
    list_tiles,
    patch_ids,
    visitors_of,
)
from patchindex.kernels.simd import aligned
from patchindex.runtime import pool
from patchindex.softmax import SoftmaxState

__all__ = ["Near", "NearField", "NearLists"]

RESULT_BYTES = 12  # per item that a search has room for: its score and its number


class Near(NamedTuple):
    """The near field of one noisy image."""

    members: KnownPatches  # retrieved patches with their exact logits
    state: SoftmaxState  # of the members, (H * W,)
    codes: int  # scanned
    heaviest: np.ndarray  # keys of each pixel's heaviest members, in order of their images


class NearField:
    """The near fields of the noisy images of a request, from so many probes and candidates per pixel.

    `recalled` is `Near.heaviest` of an earlier step for each image. These patches are tried again, so that
    fewer probes and candidates are enough.
    """

    def __init__(
        self,
        context: ScoreContext,
        request: ScoreRequest,
        probes: int,
        candidates: int,
        recalled: Sequence[np.ndarray] = (),
        policy: AutoPolicy = DEFAULT_POLICY,
    ) -> None:
        self._policy = policy
        index = index_of(context, "auto")
        self._scale = index.scale(request.geometry.k)
        self._request = request
        self._label = label_index(index, request)
        self._threads, self._memory = torch.get_num_threads(), request.memory
        self._z, self._area = project(self._scale, request).numpy(), request.x[0, 0].numel()
        self._refiner = NeighbourRefiner(index.pixels.numpy(), request, policy)
        self._lists: dict[int, NearLists] = {}
        self.probes, self.candidates, self._recalled = probes, candidates, recalled
        if recalled:
            probes = max(1, probes // policy.fewer_probes)
            candidates = max(1, candidates // policy.fewer_candidates)
        self._ids, self._codes = self._search(np.arange(len(self._z)), probes, candidates, policy.cells)

    def image(self, i: int) -> Near:
        """Return the near field of image i."""
        recalled = self._recalled[i] if self._recalled else NOTHING
        mine = slice(i * self._area, (i + 1) * self._area)
        members, state, heaviest = self._refiner.run(i, self._ids[mine], np.arange(self._area), recalled)
        return Near(members, state, int(self._codes[mine].sum()), heaviest)

    @property
    def most_deeper(self) -> int:
        """The number of pixels whose larger near field fits into the memory."""
        return max(1, self._memory // (self._policy.deeper * self.candidates * PAIR_BYTES))

    def deeper(self, i: int, near: Near, pixels: np.ndarray) -> Near:
        """Return a larger near field of some pixels of image i, raster numbers; it has no other pixels."""
        times = self._policy.deeper
        rows, cells = i * self._area + pixels, self._policy.deeper_cells
        ids, codes = self._search(rows, times * self.probes, times * self.candidates, cells)
        known = near.heaviest[np.isin(self._refiner.tables.pixels_of(near.heaviest), pixels)]
        members, state, heaviest = self._refiner.run(i, ids, pixels, known, around=False)
        return Near(members, state, int(codes.sum()), heaviest)

    def _search(
        self, rows: np.ndarray, probes: int, candidates: int, cells: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the patch ids of the best codes of pixels, (rows, candidates), and the codes scanned."""
        n = len(rows)
        classes = self._scale.geometry.query_classes.reshape(-1)[rows % self._area]
        ids, codes = np.full((n, candidates), -1, np.int64), np.zeros(n, np.int64)

        def search(lists: NearLists, some: np.ndarray) -> None:
            ids[some], codes[some] = lists.search(self._z[rows[some]], probes, candidates, cells)

        # As many pixels at once as the memory allows: a list is decoded once for all of them.
        room = sum(capacity(keep) for keep in (cells, probes, candidates))
        at_once = max(1, self._memory // 2 // (RESULT_BYTES * self._threads * room))
        at_once = min(at_once, n // self._threads + 1)
        parts = []
        for c in np.unique(classes).tolist():
            if c not in self._lists:
                self._lists[c] = NearLists(self._scale, c, self._label, self._request, self._threads)
            mine = np.flatnonzero(classes == c)
            number = math.ceil(len(mine) / at_once)
            parts += [(self._lists[c], some) for some in np.array_split(mine, number)]
        list(pool(self._threads).map(lambda part: search(*part), parts))
        return ids, codes


class NearLists:
    """The lists of a position class at one noise level, ranked by `patchindex.kernels.nearest.list_tiles`."""

    def __init__(
        self, scale: ScaleIndex, c: int, label: int | None, request: ScoreRequest, threads: int
    ) -> None:
        self._codes, self._ids_at = scale.codes(c, label)
        means, variances, self._bounds, of_cells = scale.moments.of_class(c, label)
        self._a, self._beta, self._threads = request.a, request.beta, threads
        self._lists = self._table(means, variances, self._codes.size, self._bounds)
        self._cells = self._table(*of_cells, np.array([0, len(of_cells[0])]))

    def _table(
        self, means: np.ndarray, variances: np.ndarray, sizes: np.ndarray, bounds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return arguments of `best_lists`: tiles, offsets, the first tile of each group, and the groups."""
        first = np.concatenate([[0], np.cumsum(-(-np.diff(bounds) // CODES))])
        tiles, offsets = aligned(first[-1] * 2 * means.shape[1] * CODES), aligned(first[-1] * CODES)

        def write(groups: tuple[int, int]) -> None:
            list_tiles(means, variances, sizes, first, bounds, groups, self._a, self._beta, tiles, offsets)

        edges = np.linspace(0, len(bounds) - 1, self._threads + 1).astype(int).tolist()
        list(pool(self._threads).map(write, pairwise(edges)))
        return tiles, offsets, first, bounds

    def search(
        self, z: np.ndarray, probes: int, candidates: int, most_cells: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the best codes, (n, candidates), and the codes scanned, (n,); z is projected."""
        n, dims = z.shape
        u = np.concatenate([z * z, z], 1).reshape(-1)

        def likeliest(
            table: tuple[np.ndarray, ...], visits: tuple[np.ndarray, np.ndarray], keep: int
        ) -> Best:
            best = Best.none(n, keep)
            best_lists(*table, u, 2 * dims, *visits, keep, best, Scratch.of(1, keep))
            return best

        cells = likeliest(self._cells, (np.array([0, n]), np.arange(n, dtype=np.int32)), most_cells)
        lists = likeliest(self._lists, _visitors(cells, len(self._bounds) - 1), probes)
        queries = Queries.of(self._codes, z * (self._a / self._beta), self._a**2 / (2 * self._beta))
        best, scanned, scratch = Best.none(n, candidates), np.zeros(n, np.int64), Scratch.of(dims, candidates)
        visits = _visitors(lists, len(self._codes.size))
        best_codes(self._codes, queries, *visits, candidates, best, scratch, scanned)
        ids = np.empty((n, candidates), np.int64)
        patch_ids(self._codes.file, self._ids_at, best, ids)
        return ids, scanned


def _visitors(best: Best, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the queries that hold each item: the queries of item i are start[i] to start[i + 1]."""
    start, visitors = np.zeros(items + 1, np.int64), np.empty(int(best.held.sum()), np.int32)
    visitors_of(best, start, visitors)
    return start, visitors
