"""The near field: the patches of largest weight, retrieved for each pixel and tried for those around."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from patchindex.backends import pool
from patchindex.estimators.base import Data, Query, index_of, scale_of
from patchindex.estimators.lists import CELLS, NearLists
from patchindex.exact.members import Members
from patchindex.index import ScaleIndex
from patchindex.index.codes import NEVER
from patchindex.index.nearest import capacity
from patchindex.index.spread import (
    DEPTH,
    REACH,
    count_below,
    keys_above,
    largest_logits,
    merge_by_image,
    pair_keys,
    query_lines,
    spread_logits,
    spread_tables,
    sums_of,
)
from patchindex.softmax import SoftmaxState

__all__ = ["Near", "NearField"]

DEEP_CELLS = 256  # whose lists are looked at, of pixels for which more is retrieved
SAMPLE = 61  # every so many patch ids tell how images are shared out
FEWER = (8, 4)  # times as few probes and candidates, where most of the near field is known
NOTHING = np.empty(0, np.int64)
RECALLED = 1024  # members of a pixel that the next step is to try
BINS = 256  # of logits, by which these are found
HEAVY = 1 / 1024  # share of the near field that makes a member worth trying for the pixels around


class Near(NamedTuple):
    """The near field of one noisy image.

    Attributes
    ----------
    members : Members
        Retrieved patches and their exact logits.
    state : SoftmaxState, shape (H * W,)
        Their sums.
    codes : int
        Codes scanned.
    heaviest : array of int64
        Keys of the heaviest members of each pixel, in order of their images, for the next step to try.
    """

    members: Members
    state: SoftmaxState
    codes: int
    heaviest: np.ndarray


class NearField:
    """What is retrieved for the pixels of a query.

    Parameters
    ----------
    data, query
        As for an estimator.
    probes : int
        Lists whose codes are scanned for a pixel.
    candidates : int
        Codes that are compared exactly, for the pixel that found them and the pixels around.
    recalled : sequence of array, optional
        For each image what `Near.heaviest` was for it a step before. It is tried again, and has most of the
        near field: an eighth of the probes, and a quarter of the candidates, are enough for what is new.
    """

    def __init__(
        self,
        data: Data,
        query: Query,
        probes: int,
        candidates: int,
        recalled: Sequence[np.ndarray] = (),
    ) -> None:
        index = index_of(data, "auto")
        self._scale = index.scale(scale_of(query, "auto"))
        self._query = query
        self._label = None if query.label is None else index.attributes["labels"].index(query.label)
        self._threads, self._memory = torch.get_num_threads(), data.memory
        # One image at a time: products of another shape would round otherwise.
        geometry = self._scale.geometry
        self._z = torch.cat(
            [self._scale.pca.project_queries(x[None], geometry, query.a) for x in query.x]
        ).numpy()
        self._area = geometry.size[0] * geometry.size[1]
        self._spreading = _Spreading(index.pixels.numpy(), self._scale, query, self._threads)
        self._lists: dict[int, NearLists] = {}
        self.probes, self.candidates, self._recalled = probes, candidates, recalled
        fewer = FEWER if recalled else (1, 1)
        few = max(1, probes // fewer[0]), max(1, candidates // fewer[1])
        self._ids, self._codes = self._search(np.arange(len(self._z)), *few, CELLS)

    def image(self, i: int) -> Near:
        """Return the near field of image i."""
        recalled = self._recalled[i] if self._recalled else NOTHING
        mine = slice(i * self._area, (i + 1) * self._area)
        members, state, heaviest = self._spreading.run(i, self._ids[mine], np.arange(self._area), recalled)
        return Near(members, state, int(self._codes[mine].sum()), heaviest)

    def deeper(self, i: int, near: Near, pixels: np.ndarray, times: int) -> Near:
        """Return a larger near field of some pixels of image i, raster numbers; others have none in it.

        Of so many times as many probes and candidates.
        """
        more = times * self.probes, times * self.candidates
        ids, codes = self._search(i * self._area + pixels, *more, DEEP_CELLS)
        known = near.heaviest[np.isin(self._spreading.tables.pixels_of(near.heaviest), pixels)]
        members, state, heaviest = self._spreading.run(i, ids, pixels, known, around=False)
        return Near(members, state, int(codes.sum()), heaviest)

    def _search(
        self, rows: np.ndarray, probes: int, candidates: int, cells: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the patch ids of the best codes of pixels, (rows, candidates), and codes scanned."""
        query, n = self._query, len(rows)
        classes = self._scale.geometry.query_classes.reshape(-1)[rows % self._area]
        ids, codes = np.full((n, candidates), -1, np.int64), np.zeros(n, np.int64)

        def search(lists: NearLists, some: np.ndarray) -> None:
            ids[some], codes[some] = lists.search(self._z[rows[some]], probes, candidates, cells)

        # As many pixels at once as there is room for: the more, the fewer times a list is decoded.
        a_pixel = 12 * self._threads * sum(capacity(keep) for keep in (cells, probes, candidates))
        room = max(1, self._memory // 2 // a_pixel)
        workers = pool(self._threads)
        for c in np.unique(classes).tolist():
            if c not in self._lists:
                self._lists[c] = NearLists(self._scale, c, self._label, query, workers, self._threads)
            lists = self._lists[c]
            mine = np.flatnonzero(classes == c)
            parts = max(min(self._threads, len(mine)), math.ceil(len(mine) / room))
            list(workers.map(partial(search, lists), np.array_split(mine, parts)))
        return ids, codes


class _Spreading:
    """The exact comparison of what was retrieved, and of the same patches moved for the pixels around."""

    def __init__(self, images: np.ndarray, scale: ScaleIndex, query: Query, threads: int) -> None:
        self._images, self._geometry, self._query = images.reshape(-1), scale.geometry, query
        self.tables = spread_tables(scale.geometry, query.x.shape[1])
        self._scale = np.float32((query.a / 127.5) ** 2 / (2 * query.beta))
        self._threads = threads
        self._n = len(images)

    def run(
        self, i: int, ids: np.ndarray, pixels: np.ndarray, recalled: np.ndarray, around: bool = True
    ) -> tuple[Members, SoftmaxState, np.ndarray]:
        """Return the members of image i, their sums and the heaviest, given the patches that pixels found.

        With `around`, heavy ones are tried for the pixels around.
        """
        area = self.tables.height * self.tables.width
        lines = query_lines(self._query.x[i], self.tables, self._query.a)
        top, sums = np.full(area, NEVER, np.float32), np.zeros((area, 2 + self.tables.channels))

        def retrieved(images: tuple[int, int]) -> Members:
            found = self._written(ids.size, partial(pair_keys, ids, pixels, self.tables, images))
            again = slice(*np.searchsorted(recalled, [end << 2 * self.tables.bits for end in images]))
            keys = np.concatenate([found, recalled[again]])
            keys.sort()
            return self._compare(keys, NOTHING, lines, 0)

        def beside(members: Members) -> Members:
            bar = top + np.log(HEAVY * np.maximum(sums[:, 0], 1)).astype(np.float32)
            # Members are in the order of the keys that they were made from.
            heavy = self._keys(members, bar, np.ones(self._n, bool))
            wanted = np.zeros(self._n, bool)
            wanted[self.tables.images_of(heavy)] = True
            known = self._keys(members, np.full(area, -np.inf, np.float32), wanted)
            return self._compare(heavy, known, lines, REACH)

        # Each thread has images of its own.
        workers = pool(self._threads)
        parts = self._add(workers, list(workers.map(retrieved, self._shares(ids))), top, sums)
        more = [_room(0)] * len(parts)
        if around:
            more = self._add(workers, list(workers.map(beside, parts)), top, sums)
        members, parts = self._merged(workers, parts, more)
        bar = self._bar(parts, top)
        every = np.ones(self._n, bool)
        heaviest = np.concatenate(list(workers.map(lambda part: self._keys(part, bar, every), parts)))
        state = SoftmaxState.empty((area,), self.tables.channels)
        table = torch.from_numpy(sums)
        state.max_logit = torch.from_numpy(np.where(sums[:, 0] > 0, top.astype(np.float64), -np.inf))
        state.weight, state.weight_sq = table[:, 0], table[:, 1]
        state.centre = table[:, 2:] / 127.5 - table[:, :1]
        state.count = torch.from_numpy(np.bincount(members.pixel, minlength=area))
        return members, state, heaviest

    @staticmethod
    def _merged(
        workers: ThreadPoolExecutor, parts: list[Members], more: list[Members]
    ) -> tuple[Members, list[Members]]:
        """Return all members in order of their images, and those of each thread's images."""
        ends = np.cumsum([0] + [len(a.pixel) + len(b.pixel) for a, b in zip(parts, more, strict=True)])
        members = _room(int(ends[-1]))
        merged = [Members(*(array[lo:hi] for array in members)) for lo, hi in pairwise(ends)]
        list(workers.map(merge_by_image, parts, more, merged))
        return members, merged

    @staticmethod
    def _bar(parts: list[Members], top: np.ndarray) -> np.ndarray:
        """Return the logit from which on a pixel has about `RECALLED` members, twice as many at most."""
        counts = np.zeros((len(top), BINS), np.int32)
        for part in parts:
            count_below(part.pixel, part.logit, top, counts)
        total = counts.cumsum(1)
        bins = np.minimum((total < RECALLED).sum(1) + 1, (total <= 2 * RECALLED).sum(1))
        return top - (bins * (DEPTH / BINS)).astype(np.float32)

    def _shares(self, ids: np.ndarray) -> list[tuple[int, int]]:
        """Cut the images into a range for each thread, with about as many of these patches each."""
        some = ids.reshape(-1)[::SAMPLE]
        some = np.sort(some[some >= 0]) // self._geometry.patches_per_image
        edges = [0] * (self._threads + 1)
        edges[-1] = self._n
        for j in range(1, self._threads):
            edges[j] = int(some[j * len(some) // self._threads]) if len(some) else 0
        return list(pairwise(edges))

    def _add(
        self, workers: ThreadPoolExecutor, parts: list[Members], top: np.ndarray, sums: np.ndarray
    ) -> list[Members]:
        """Add members to the sums, relative to the largest logits; return those that are not negligible."""
        lower = top.copy()
        for part in parts:
            largest_logits(part.pixel, part.logit, top)
        factor = np.exp(np.maximum(lower - top, -500.0, dtype=np.float64))[:, None]
        sums[:, 1:2] *= factor
        sums *= factor

        def summed(members: Members) -> tuple[Members, np.ndarray]:
            mine, count = np.zeros_like(sums), np.zeros(1, np.int64)
            sums_of(self._images, len(top), self.tables.channels, *members, top, mine, count)
            return Members(*(array[: count[0]] for array in members)), mine

        done = list(workers.map(summed, parts))
        sums += sum(mine for _, mine in done)
        return [members for members, _ in done]

    def _compare(self, keys: np.ndarray, known: np.ndarray, lines: np.ndarray, reach: int) -> Members:
        members = _room(len(keys) * (2 * reach + 1) ** 2)
        count = np.zeros(1, np.int64)
        spread_logits(self._images, keys, lines, self._scale, self.tables, reach, known, members, count)
        return Members(*(array[: count[0]] for array in members))

    def _keys(self, members: Members, bar: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Return the keys of members of wanted images that reach their pixel's bar."""
        write = partial(keys_above, self.tables, *members, bar, wanted)
        return self._written(len(members.pixel), write)

    @staticmethod
    def _written(room: int, write: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
        """Return the keys that a kernel wrote to an array: as many as the count says that it set."""
        keys, count = np.empty(room, np.int64), np.zeros(1, np.int64)
        write(keys, count)
        return keys[: count[0]]


def _room(members: int) -> Members:
    return Members(*(np.empty(members, kind) for kind in (np.int32, np.int32, np.int32, np.float32)))
