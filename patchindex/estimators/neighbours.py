"""The exact comparison of retrieved patches with pixels, and of shifted patches with neighbouring pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from patchindex.estimators.policy import DEFAULT_POLICY, AutoPolicy
from patchindex.exact import ScoreRequest
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

__all__ = ["NOTHING", "PAIR_BYTES", "NeighbourRefiner"]

PAIR_BYTES = 64  # that a pixel and a patch take while they are compared
NOTHING = np.empty(0, np.int64)
SAMPLE = 61  # every 61st patch id is looked at, to share out the images
BINS = 256  # of the histogram of logits that finds the heaviest members


class NeighbourRefiner:
    """Exact logits of retrieved patches, computed from the (memory-mapped) uint8 images in place."""

    def __init__(
        self, images: np.ndarray, request: ScoreRequest, policy: AutoPolicy = DEFAULT_POLICY
    ) -> None:
        self._images, self._n, self._request, self._policy = images.reshape(-1), len(images), request, policy
        self.tables = WindowTables.of(request.geometry, request.x.shape[1])
        self._scale = np.float32((request.a / 127.5) ** 2 / (2 * request.beta))
        self._threads = torch.get_num_threads()
        self._workers = pool(self._threads)

    def run(
        self, i: int, ids: np.ndarray, pixels: np.ndarray, recalled: np.ndarray, around: bool = True
    ) -> tuple[KnownPatches, SoftmaxState, np.ndarray]:
        """Compare the patches `ids` (n, most), -1 for none, with the `pixels` (n,) of noisy image i.

        `recalled` has keys of more pairs, in order of their images. With `around`, heavy patches are also
        tried for the neighbouring pixels. Return the *members*, pairs whose weight is not negligible, in
        order of their images, their softmax (H * W,), and the keys of each pixel's heaviest members.
        """
        area = self.tables.height * self.tables.width
        lines = query_lines(self._request.x[i], self.tables, self._request.a)
        top, sums = np.full(area, NEVER, np.float32), np.zeros((area, 2 + self.tables.channels))
        compared = np.zeros(area, np.int64)
        all_images = np.ones(self._n, bool)

        def retrieved(images: tuple[int, int]) -> KnownPatches:
            found = self._written(ids.size, partial(pair_keys, ids, pixels, self.tables, images))
            again = slice(*np.searchsorted(recalled, [end << 2 * self.tables.bits for end in images]))
            keys = np.concatenate([found, recalled[again]])
            keys.sort()
            return self._compare(keys, NOTHING, lines, 0)

        def beside(members: KnownPatches) -> KnownPatches:
            bar = top + np.log(self._policy.heavy * np.maximum(sums[:, 0], 1)).astype(np.float32)
            # Members are in the order of the keys that they were made from.
            heavy = self._keys(members, bar, all_images)
            wanted = np.zeros(self._n, bool)
            wanted[self.tables.images_of(heavy)] = True
            known = self._keys(members, np.full(area, -np.inf, np.float32), wanted)
            return self._compare(heavy, known, lines, REACH)

        # Each thread has images of its own.
        parts = self._add(list(self._workers.map(retrieved, self._shares(ids))), top, sums, compared)
        more = [_room(0)] * len(parts)
        if around:
            more = self._add(list(self._workers.map(beside, parts)), top, sums, compared)
        members, parts = self._merged(parts, more)
        keys = partial(self._keys, bar=self._bar(parts, top), wanted=all_images)
        heaviest = np.concatenate(list(self._workers.map(keys, parts)))
        state = SoftmaxState.empty((area,), self.tables.channels)
        table = torch.from_numpy(sums)
        state.max_logit = torch.from_numpy(np.where(sums[:, 0] > 0, top.astype(np.float64), -np.inf))
        state.weight, state.weight_sq = table[:, 0], table[:, 1]
        state.centre = table[:, 2:] / 127.5 - table[:, :1]
        state.count = torch.from_numpy(compared)
        return members, state, heaviest

    def _merged(
        self, parts: list[KnownPatches], more: list[KnownPatches]
    ) -> tuple[KnownPatches, list[KnownPatches]]:
        """Return all members in order of their images, and the members of each thread's images."""
        ends = np.cumsum([0] + [len(a.pixel) + len(b.pixel) for a, b in zip(parts, more, strict=True)])
        members = _room(int(ends[-1]))
        merged = [KnownPatches(*(array[lo:hi] for array in members)) for lo, hi in pairwise(ends)]
        list(self._workers.map(merge_by_image, parts, more, merged))
        return members, merged

    def _bar(self, parts: list[KnownPatches], top: np.ndarray) -> np.ndarray:
        """Return logits above which each pixel has about `recalled` members, and at most twice as many."""
        counts = np.zeros((len(top), BINS), np.int32)
        for part in parts:
            count_below(part.pixel, part.logit, top, counts)
        total, wanted = counts.cumsum(1), self._policy.recalled
        bins = np.minimum((total < wanted).sum(1) + 1, (total <= 2 * wanted).sum(1))
        return top - (bins * (DEPTH / BINS)).astype(np.float32)

    def _shares(self, ids: np.ndarray) -> list[tuple[int, int]]:
        """Cut the images into one range per thread, each with about the same number of these patches."""
        some = ids.reshape(-1)[::SAMPLE]
        some = np.sort(some[some >= 0]) // self._request.geometry.patches_per_image
        edges = [0] * (self._threads + 1)
        edges[-1] = self._n
        for j in range(1, self._threads):
            edges[j] = int(some[j * len(some) // self._threads]) if len(some) else 0
        return list(pairwise(edges))

    def _add(
        self, parts: list[KnownPatches], top: np.ndarray, sums: np.ndarray, compared: np.ndarray
    ) -> list[KnownPatches]:
        """Add members to the sums, relative to `top`; return the members that are not negligible."""
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

        done = list(self._workers.map(summed, parts))
        sums += sum(mine for _, mine, _ in done)
        compared += sum(every for _, _, every in done)
        return [members for members, _, _ in done]

    def _compare(self, keys: np.ndarray, known: np.ndarray, lines: np.ndarray, reach: int) -> KnownPatches:
        members = _room(len(keys) * (2 * reach + 1) ** 2)
        count = np.zeros(1, np.int64)
        neighbour_logits(self._images, keys, lines, self._scale, self.tables, reach, known, members, count)
        return KnownPatches(*(array[: count[0]] for array in members))

    def _keys(self, members: KnownPatches, bar: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Return the keys of members of wanted images whose logit is at least their pixel's bar."""
        write = partial(keys_above, self.tables, *members, bar, wanted)
        return self._written(len(members.pixel), write)

    @staticmethod
    def _written(room: int, write: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
        """Return the keys that a kernel wrote into an array, given the count that it set."""
        keys, count = np.empty(room, np.int64), np.zeros(1, np.int64)
        write(keys, count)
        return keys[: count[0]]


def _room(members: int) -> KnownPatches:
    return KnownPatches(*(np.empty(members, kind) for kind in (np.int32, np.int32, np.int32, np.float32)))
