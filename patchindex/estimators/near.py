"""The near field: the patches of largest weight, retrieved for each pixel and tried for those around."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from patchindex.estimators.base import Data, Query, index_of, scale_of
from patchindex.exact.sampled import Members
from patchindex.index import ScaleIndex
from patchindex.index.nearest import Best, best_codes, best_lists, list_tiles, patch_ids
from patchindex.index.retrieval import CODES
from patchindex.index.spread import REACH, pair_keys, query_lines, spread_logits, spread_tables, sums_of
from patchindex.softmax import SoftmaxState

__all__ = ["CELLS", "Near", "near_field"]

CELLS = 48  # whose lists are looked at


class Near(NamedTuple):
    """The near field of one noisy image.

    Attributes
    ----------
    members : Members
        Retrieved patches and their exact logits.
    state : SoftmaxState, shape (H, W)
        Their sums.
    codes : int
        Codes scanned.
    """

    members: Members
    state: SoftmaxState
    codes: int


def near_field(data: Data, query: Query, probes: int, candidates: int) -> Iterator[Near]:
    """Retrieve patches for each image of a query, one image after the other.

    Parameters
    ----------
    data, query
        As for an estimator.
    probes : int
        Lists whose codes are scanned for a pixel.
    candidates : int
        Codes that are compared exactly, for the pixel that found them and the pixels around.
    """
    index = index_of(data, "auto")
    scale = index.scale(scale_of(query, "auto"))
    label = None if query.label is None else index.attributes["labels"].index(query.label)
    batch, channels, height, width = query.x.shape
    area = height * width
    threads = torch.get_num_threads()
    ids, scanned = _search(scale, query, label, probes, candidates, threads)
    images = index.pixels.numpy().reshape(-1)
    spread = spread_tables(scale.geometry, channels)
    distance_scale = np.float32((query.a / 127.5) ** 2 / (2 * query.beta))
    for i in range(batch):
        keys = pair_keys(np.arange(area), ids[i * area : (i + 1) * area], scale.geometry)
        lines = query_lines(query.x[i], spread, query.a)
        # Pairs of a plane stay together.
        planes = keys // area
        edges = np.linspace(0, len(keys), threads + 1).astype(int)
        edges[1:-1] = np.searchsorted(planes, planes[edges[1:-1]]) if len(keys) else 0

        def spread_some(edge: tuple[int, int], keys: np.ndarray = keys, lines: np.ndarray = lines) -> Members:
            some = keys[edge[0] : edge[1]]
            room = len(some) * (2 * REACH + 1) ** 2
            members = Members(np.empty(room, np.int32), np.empty(room, np.int64), np.empty(room, np.float32))
            found = np.zeros(1, np.int64)
            spread_logits(images, some, lines, distance_scale, spread, *members, found)
            return Members(*(array[: found[0]] for array in members))

        with ThreadPoolExecutor(threads, "patchindex-near") as pool:
            parts = list(pool.map(spread_some, pairwise(edges.tolist())))
        members = Members(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        top, sums, found = np.full(area, -np.inf), np.zeros((area, 2 + channels)), np.zeros(1, np.int64)
        sums_of(images, channels, *members, top, sums, found)
        members = Members(*(array[: found[0]] for array in members))
        state = SoftmaxState.empty((area,), channels)
        state.max_logit = torch.from_numpy(top)
        state.weight, state.weight_sq, state.centre = torch.from_numpy(sums).split([1, 1, channels], 1)
        state.weight, state.weight_sq = state.weight[:, 0], state.weight_sq[:, 0]
        state.count = torch.from_numpy(np.bincount(members.pixel, minlength=area))
        yield Near(members, state.reshape((height, width)), int(scanned[i * area : (i + 1) * area].sum()))


def _search(
    scale: ScaleIndex, query: Query, label: int | None, probes: int, candidates: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the patch ids of the best codes of each pixel, (pixels, candidates), and codes scanned."""
    # One image at a time: products of another shape would round otherwise.
    z = torch.cat([scale.pca.project_queries(x[None], scale.geometry, query.a) for x in query.x]).numpy()
    classes = np.tile(scale.geometry.query_classes.reshape(-1), len(query.x))
    ids = np.full((len(z), candidates), -1, np.int64)
    scanned = np.zeros(len(z), np.int64)
    for c in np.unique(classes):
        rows = np.flatnonzero(classes == c)
        lists = _Lists(scale, int(c), label, query.a, query.beta)
        parts = [part for part in np.array_split(rows, threads) if len(part)]

        def one(part: np.ndarray, lists: _Lists = lists) -> None:
            ids[part], scanned[part] = lists.search(z[part], probes, candidates)

        with ThreadPoolExecutor(threads, "patchindex-near") as pool:
            list(pool.map(one, parts))
    return ids, scanned


class _Lists:
    """The lists of a position class at one noise level, to be searched."""

    def __init__(self, scale: ScaleIndex, c: int, label: int | None, a: float, beta: float) -> None:
        self._codes, self._ids_at = scale.codes(c, label)
        means, variances, bounds, of_cells = scale.moments(c, label)
        self._bounds, self._a, self._beta = bounds, a, beta
        tiles = -(-np.diff(bounds) // CODES)
        self._first_tile = np.concatenate([[0], np.cumsum(tiles)])
        self._tiles = self._table(means, variances, self._codes.size, self._first_tile, bounds)
        cells = len(of_cells[0])
        self._all = np.array([0, cells])
        self._first_cell_tile = np.array([0, -(-cells // CODES)])
        self._cell_tiles = self._table(*of_cells, self._first_cell_tile, self._all)

    def _table(
        self,
        means: np.ndarray,
        variances: np.ndarray,
        sizes: np.ndarray,
        first: np.ndarray,
        bounds: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        tiles = np.empty(first[-1] * 2 * means.shape[1] * CODES, np.float32)
        offsets = np.empty(first[-1] * CODES, np.float32)
        list_tiles(means, variances, sizes, first, bounds, self._a, self._beta, tiles, offsets)
        return tiles, offsets

    def search(self, z: np.ndarray, probes: int, candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the best codes, (n, candidates), and how many were scanned for each."""
        n = len(z)
        u = np.concatenate([z * z, z], 1)
        cells = Best.none(n, CELLS)
        everyone = np.arange(n, dtype=np.int32)
        best_lists(
            *self._cell_tiles, self._first_cell_tile, self._all, u, np.array([0, n]), everyone, CELLS, cells
        )
        start, visitors = _visitors(cells, len(self._bounds) - 1)
        lists = Best.none(n, probes)
        best_lists(*self._tiles, self._first_tile, self._bounds, u, start, visitors, probes, lists)
        best, scanned = Best.none(n, candidates), np.zeros(n, np.int64)
        factor = self._a / self._beta
        best_codes(
            self._codes,
            (z * np.float32(factor)).astype(np.float32),
            np.float32(self._a * factor / 2),
            lists,
            candidates,
            best,
            scanned,
        )
        ids = np.empty((n, candidates), np.int64)
        patch_ids(self._codes.file, self._ids_at, best, ids)
        return ids, scanned


def _visitors(best: Best, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the queries that hold each item: those of item i from start[i] to start[i + 1]."""
    held = np.arange(best.item.shape[1]) < best.held[:, None]
    query, item = np.nonzero(held)[0].astype(np.int32), best.item[held]
    start = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=items))])
    return start, query[np.argsort(item, kind="stable")]
