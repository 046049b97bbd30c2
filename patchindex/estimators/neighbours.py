"""The exact comparison of retrieved patches with pixels, and of the same patches moved for those around."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from patchindex.exact import ScoreRequest
from patchindex.index import ScaleIndex
from patchindex.kernels.codes import NEVER
from patchindex.kernels.known_patches import KnownPatches
from patchindex.kernels.neighbours import (
    DEPTH,
    count_below,
    keys_above,
    largest_logits,
    merge_by_image,
    neighbour_logits,
    pair_keys,
    query_lines,
    sums_of,
)
from patchindex.kernels.windows import REACH, WindowTables
from patchindex.runtime import pool
from patchindex.softmax import SoftmaxState

__all__ = ["NOTHING", "NeighbourRefiner"]

SAMPLE = 61  # every so many patch ids tell how images are shared out
NOTHING = np.empty(0, np.int64)
RECALLED = 1024  # members of a pixel that the next step is to try
BINS = 256  # of logits, by which these are found
HEAVY = 1 / 1024  # share of the near field that makes a member worth trying for the pixels around


class NeighbourRefiner:
    """Exact logits of retrieved patches, read where they lie in the uint8 images.

    Parameters
    ----------
    images : array of uint8, shape (N, H, W, C)
        The training images, which may be memory-mapped.
    scale : ScaleIndex
    request : ScoreRequest
        The noisy images.
    threads : int
    """

    def __init__(self, images: np.ndarray, scale: ScaleIndex, request: ScoreRequest, threads: int) -> None:
        self._images, self._geometry, self._request = images.reshape(-1), scale.geometry, request
        self.tables = WindowTables.of(scale.geometry, request.x.shape[1])
        self._scale = np.float32((request.a / 127.5) ** 2 / (2 * request.beta))
        self._threads = threads
        self._n = len(images)

    def run(
        self, i: int, ids: np.ndarray, pixels: np.ndarray, recalled: np.ndarray, around: bool = True
    ) -> tuple[KnownPatches, SoftmaxState, np.ndarray]:
        """Compare patches with the pixels of noisy image i that found them.

        Parameters
        ----------
        i : int
        ids : array of int64, shape (n, most)
            Patches that each pixel found; -1 for none.
        pixels : array of int, shape (n,)
            Raster numbers of these pixels.
        recalled : array of int64
            Keys of more members, in order of their images.
        around : bool
            Whether heavy ones are tried for the pixels around as well.

        Returns
        -------
        KnownPatches
            In order of their images, without those that are negligible.
        SoftmaxState, shape (H * W,)
            Their sums.
        array of int64
            Keys of the heaviest of each pixel, in order of their images.
        """
        area = self.tables.height * self.tables.width
        lines = query_lines(self._request.x[i], self.tables, self._request.a)
        top, sums = np.full(area, NEVER, np.float32), np.zeros((area, 2 + self.tables.channels))
        compared = np.zeros(area, np.int64)

        def retrieved(images: tuple[int, int]) -> KnownPatches:
            found = self._written(ids.size, partial(pair_keys, ids, pixels, self.tables, images))
            again = slice(*np.searchsorted(recalled, [end << 2 * self.tables.bits for end in images]))
            keys = np.concatenate([found, recalled[again]])
            keys.sort()
            return self._compare(keys, NOTHING, lines, 0)

        def beside(members: KnownPatches) -> KnownPatches:
            bar = top + np.log(HEAVY * np.maximum(sums[:, 0], 1)).astype(np.float32)
            # KnownPatches are in the order of the keys that they were made from.
            heavy = self._keys(members, bar, np.ones(self._n, bool))
            wanted = np.zeros(self._n, bool)
            wanted[self.tables.images_of(heavy)] = True
            known = self._keys(members, np.full(area, -np.inf, np.float32), wanted)
            return self._compare(heavy, known, lines, REACH)

        # Each thread has images of its own.
        workers = pool(self._threads)
        parts = self._add(workers, list(workers.map(retrieved, self._shares(ids))), top, sums, compared)
        more = [_room(0)] * len(parts)
        if around:
            more = self._add(workers, list(workers.map(beside, parts)), top, sums, compared)
        members, parts = self._merged(workers, parts, more)
        bar = self._bar(parts, top)
        every = np.ones(self._n, bool)
        heaviest = np.concatenate(list(workers.map(lambda part: self._keys(part, bar, every), parts)))
        state = SoftmaxState.empty((area,), self.tables.channels)
        table = torch.from_numpy(sums)
        state.max_logit = torch.from_numpy(np.where(sums[:, 0] > 0, top.astype(np.float64), -np.inf))
        state.weight, state.weight_sq = table[:, 0], table[:, 1]
        state.centre = table[:, 2:] / 127.5 - table[:, :1]
        state.count = torch.from_numpy(compared)
        return members, state, heaviest

    @staticmethod
    def _merged(
        workers: ThreadPoolExecutor, parts: list[KnownPatches], more: list[KnownPatches]
    ) -> tuple[KnownPatches, list[KnownPatches]]:
        """Return all members in order of their images, and those of each thread's images."""
        ends = np.cumsum([0] + [len(a.pixel) + len(b.pixel) for a, b in zip(parts, more, strict=True)])
        members = _room(int(ends[-1]))
        merged = [KnownPatches(*(array[lo:hi] for array in members)) for lo, hi in pairwise(ends)]
        list(workers.map(merge_by_image, parts, more, merged))
        return members, merged

    @staticmethod
    def _bar(parts: list[KnownPatches], top: np.ndarray) -> np.ndarray:
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
        self,
        workers: ThreadPoolExecutor,
        parts: list[KnownPatches],
        top: np.ndarray,
        sums: np.ndarray,
        compared: np.ndarray,
    ) -> list[KnownPatches]:
        """Add members to the sums, relative to the largest logits; return those that are not negligible."""
        lower = top.copy()
        for part in parts:
            largest_logits(part.pixel, part.logit, top)
        factor = np.exp(np.maximum(lower - top, -500.0, dtype=np.float64))[:, None]
        sums[:, 1:2] *= factor
        sums *= factor

        def summed(members: KnownPatches) -> tuple[KnownPatches, np.ndarray, np.ndarray]:
            mine, every, count = np.zeros_like(sums), np.zeros_like(compared), np.zeros(1, np.int64)
            sums_of(self._images, len(top), self.tables.channels, *members, top, mine, every, count)
            return KnownPatches(*(array[: count[0]] for array in members)), mine, every

        done = list(workers.map(summed, parts))
        sums += sum(mine for _, mine, _ in done)
        compared += sum(every for _, _, every in done)
        return [members for members, _, _ in done]

    def _compare(self, keys: np.ndarray, known: np.ndarray, lines: np.ndarray, reach: int) -> KnownPatches:
        members = _room(len(keys) * (2 * reach + 1) ** 2)
        count = np.zeros(1, np.int64)
        neighbour_logits(self._images, keys, lines, self._scale, self.tables, reach, known, members, count)
        return KnownPatches(*(array[: count[0]] for array in members))

    def _keys(self, members: KnownPatches, bar: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Return the keys of members of wanted images that reach their pixel's bar."""
        write = partial(keys_above, self.tables, *members, bar, wanted)
        return self._written(len(members.pixel), write)

    @staticmethod
    def _written(room: int, write: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
        """Return the keys that a kernel wrote to an array: as many as the count says that it set."""
        keys, count = np.empty(room, np.int64), np.zeros(1, np.int64)
        write(keys, count)
        return keys[: count[0]]


def _room(members: int) -> KnownPatches:
    return KnownPatches(*(np.empty(members, kind) for kind in (np.int32, np.int32, np.int32, np.float32)))
