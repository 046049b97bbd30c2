"""An exact scan of a random part of the training patches, which can grow to all of them.

The patches are cut into *strata*. Images are put into tiles at random; a stratum is every `STEP`-th block of
offsets between query and training positions along either axis of a tile, or for single pixels a whole tile.
Strata are scanned in random order, so the sums over the scanned strata, times (all strata / scanned strata),
are unbiased. The sums leave out known patches and estimate the sum over all *other* patches. Each lane of a
stratum sums over images of its own; the variance is estimated from the sums of the lanes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from patchindex.exact.costs import lanes, plan_of
from patchindex.exact.cpu import new_sums, new_tile, prepare
from patchindex.exact.frame import SAMPLE, Frame
from patchindex.exact.groups import covariance_of_groups
from patchindex.exact.in_order import InOrder
from patchindex.exact.request import ScoreRequest
from patchindex.exact.tables import Plan
from patchindex.kernels import scan as kernel
from patchindex.kernels.known_patches import KnownPatches, Placed, StratumTables, find_members, remove
from patchindex.kernels.simd import LANES
from patchindex.kernels.totals import flush_sample, merge_sample
from patchindex.random_streams import random_stream
from patchindex.runtime import pool
from patchindex.softmax import SoftmaxState

__all__ = ["SampledScan"]

STEP = 2  # neighbouring offsets have similar logits, so they belong to different strata
CLASSES = STEP * STEP


class SampledScan:
    """A scan of a random sample of the training patches, for a request for one noisy image.

    `images` are all training images in the order of `request.training`. The sums leave out the `known`
    patches, which are in order of their images; `top` (H * W,) is the largest known logit of each pixel.
    Equal seeds, image numbers, noise variances and `salt` give equal samples. `scanned` counts the scanned
    strata.
    """

    def __init__(
        self,
        request: ScoreRequest,
        images: np.ndarray,
        known: KnownPatches,
        top: np.ndarray,
        salt: int = 0,
    ) -> None:
        (lo, hi), geometry, beta = request.image_range, request.geometry, request.beta
        channels = request.x.shape[1]
        self._images, self._n = images, hi - lo
        plan = plan_of(geometry, channels, lanes(geometry, self._n))
        self._frame = Frame.of(plan, request.x, beta, images[lo : min(hi, lo + SAMPLE)], self._n)
        level = int(np.float64(beta).view(np.uint64))
        rng = random_stream(request.seed, request.image_ids[0], level, salt)
        self._image_order = lo + rng.permutation(self._n)
        self._classes = CLASSES if request.mask is None else 1
        self.strata, self.scanned = -(-self._n // plan.lanes) * self._classes, 0
        # Each run of `classes` strata has one of each class: a pixel may have all its patches in one class.
        tiles = self.strata // self._classes
        by_class = [rng.permutation(tiles) * self._classes + c for c in range(self._classes)]
        self._stratum_order = np.stack(by_class, 1).reshape(-1)
        self._units = _units_of_classes(plan)
        area = geometry.size[0] * geometry.size[1]
        self._known = known
        # Tile and lane of each image.
        place = np.empty(self._n, np.int32)
        place[self._image_order - lo] = np.arange(self._n)
        self._lo, self._tiles, self._lanes = lo, place // plan.lanes, place % plan.lanes
        self._mask = np.ones(area, bool)
        self._asked: np.ndarray | None = None
        if request.mask is not None:
            self.restrict(request.mask)
        # The kernel's logits are relative to these whole numbers.
        reference = np.ceil((top + self._frame.norms.reshape(-1)) / math.log(2))
        self._top = np.where(np.isfinite(reference), reference, kernel.NOTHING_YET).astype(np.float32)
        self._tops = np.full(area, float(kernel.NOTHING_YET))
        self._totals = np.zeros((area, 2 + channels))
        self._squares = np.zeros((area, 1 + 2 * channels))
        self._counts = np.zeros(geometry.size, np.int64)
        self._since = np.zeros(area, np.int64)

    def restrict(self, pixels: Tensor) -> None:
        """Scan only these pixels from now on: a mask (H, W) of some of the wanted pixels."""
        self._mask = pixels.reshape(-1).numpy().copy()
        self._asked = np.flatnonzero(self._mask)

    def shares(self) -> Tensor:
        """Return the share of all strata that was scanned for each pixel, (H, W)."""
        return torch.from_numpy(self._since / self.strata).reshape(self._counts.shape)

    def _place(self, strata: list[int]) -> Placed:
        """Find the members that are in some strata."""
        frame, plan = self._frame, self._frame.plan
        wanted = np.zeros(self.strata, bool)
        wanted[strata] = True
        tiles = np.unique(np.array(strata, np.int64) // self._classes)
        order = np.pad(self._image_order, (0, -self._n % plan.lanes), mode="edge").reshape(-1, plan.lanes)
        images = np.unique(order[tiles]).astype(np.int32)
        first, end = (np.searchsorted(self._known.image, images, side) for side in ("left", "right"))
        room = int((end - first).sum()) + 1  # unwanted patches are overwritten
        found, stratum, count = np.empty(room, np.int64), np.empty(room, np.int64), np.zeros(1, np.int64)
        units = _stratum_tables(plan, self._classes)
        tile_of = self._tiles[images - self._lo]
        find_members(
            self._known, self._mask, units, images, first, end, tile_of, wanted, found, stratum, count
        )
        found, stratum = found[: count[0]], stratum[: count[0]]
        by_stratum = np.argsort(stratum, kind="stable")
        pixel, image, place, logits = (array[found[by_stratum]] for array in self._known)
        centres = self._images.reshape(len(self._images), -1, plan.channels)[image, place]
        logits = (logits + frame.norms.reshape(-1)[pixel]) / math.log(2)
        return Placed(
            stratum[by_stratum],
            pixel.astype(np.int64),
            self._lanes[image - self._lo].astype(np.int64),
            logits.astype(np.float32),
            centres.astype(np.float32) - frame.grey,
        )

    def grow(self, strata: int) -> None:
        """Scan more strata: `strata`, rounded up to whole classes, or all that are left."""
        strata = -(-strata // self._classes) * self._classes
        chosen = np.sort(self._stratum_order[self.scanned : self.scanned + strata]).tolist()
        self.scanned += len(chosen)
        self._since[slice(None) if self._asked is None else self._asked] += len(chosen)
        known = self._place(chosen)
        groups = groupby(chosen, lambda stratum: stratum // self._classes)
        tiles = deque((number, list(group)) for number, (_, group) in enumerate(groups))
        merging = InOrder(self._merge)
        threads = torch.get_num_threads()
        try:
            list(pool(threads).map(lambda _: self._work(tiles, known, merging), range(threads)))
        finally:
            tiles.clear()  # after an error or Ctrl-C, threads end with their current tile
        members = _members_of_classes(self._frame.plan)
        if self._asked is not None:
            members = members.sum(0, keepdims=True)
        for stratum in chosen:
            tile, offsets = divmod(stratum, self._classes)
            n = min(self._frame.plan.lanes, self._n - tile * self._frame.plan.lanes)
            mine = slice(None) if self._asked is None else self._asked
            self._counts.reshape(-1)[mine] += n * members[offsets].reshape(-1)[mine]

    def _merge(self, sums: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Add the sums of a tile."""
        merge_sample(*sums, self._tops, self._totals, self._squares)

    def _work(self, tiles: deque[tuple[int, list[int]]], known: Placed, merging: InOrder) -> None:
        """Take the strata of a tile at a time until there are none."""
        frame, plan = self._frame, self._frame.plan
        channels = plan.channels
        tile, down = new_tile(plan)
        mine = new_sums(plan, self._top.copy(), frame.threshold)
        for number, strata in _taken(tiles):
            tops = np.full(self._tops.shape, float(kernel.NOTHING_YET))
            totals, squares = np.zeros(self._totals.shape), np.zeros(self._squares.shape)
            first = strata[0] // self._classes * plan.lanes
            order = self._image_order[first : first + plan.lanes]
            prepare(frame, self._images[order], tile, down)
            for stratum in strata:
                mine.top[:] = self._top  # a stratum's sums do not depend on the thread's earlier strata
                if self._asked is None:
                    kernel.scan_all(tile, frame.queries[0], plan.full, self._units[stratum % CLASSES], mine)
                else:
                    kernel.scan_pixels(tile, frame.queries[0], plan.windows, plan.singles, self._asked, mine)
                lo, hi = np.searchsorted(known.stratum, (stratum, stratum + 1))
                remove(mine, channels, *(array[lo:hi] for array in known[1:]))
                flush_sample(mine, channels, tops, totals, squares)
            merging.add(number, (tops, totals, squares))

    def state(self) -> SoftmaxState:
        """Return the estimated state of all patches except the known ones, shape (H, W), with its variance.

        The groups of `covariance_of_groups` are images that shared a lane of a stratum: with n of M strata
        scanned there are `LANES n` of them, and their share is n / M.
        """
        frame, channels = self._frame, self._frame.plan.channels
        n = torch.from_numpy(np.maximum(self._since, 1)).double()[:, None]
        groups = n * LANES
        state = frame.state(self._tops[None], self._totals[None], self._counts)[0]
        unit = torch.from_numpy(frame.grey.astype(np.float64) / 127.5 - 1)
        v0, v1, v2 = torch.from_numpy(self._squares).split([1, channels, channels], 1)
        v1, v2 = v1 / 127.5 + unit * v0, v2 / 127.5**2 + 2 * unit * v1 / 127.5 + unit**2 * v0
        m = self.strata / n
        sums = state.weight.reshape(-1, 1), state.centre.reshape(-1, channels)
        covariance = covariance_of_groups(*sums, torch.cat([v0, v1, v2], 1), groups, 1 / m)
        state.variance = covariance.reshape(*state.weight.shape, -1)
        m = m.reshape(state.weight.shape)
        state.weight, state.weight_sq = state.weight * m, state.weight_sq * m
        state.centre *= m.unsqueeze(-1)
        return state


def _taken(tiles: deque[tuple[int, list[int]]]) -> Iterator[tuple[int, list[int]]]:
    with suppress(IndexError):  # another thread may take the last tile
        while True:
            yield tiles.popleft()


@lru_cache(maxsize=32)
def _pairs_of(plan: Plan) -> np.ndarray:
    """Return the pair of row offsets that compares query row i with training row j, -1 for none; (H, H)."""
    axis = plan.geometry.y
    pairs = np.full((axis.size, axis.size), -1)
    for i, offset in enumerate(axis.offsets):
        pairs[offset.query, np.arange(offset.train.start, offset.train.stop)] = i // 2
    return pairs


@lru_cache(maxsize=32)
def _blocks_of(plan: Plan) -> np.ndarray:
    """Return the block of offsets that compares query column i with training column j, -1 for none."""
    axis, full = plan.geometry.x, plan.full
    blocks = np.full((axis.size, axis.size), -1)
    in_block = full.start.reshape(-1, plan.width, plan.lanes)[:, :, 0] == 0
    for block, steps in enumerate(full.columns):
        for train, query in steps[: full.steps[block], 2:]:
            for column in np.flatnonzero(in_block[block]) + train - plan.pad:
                inside = axis.train_padding == "wrapped" or 0 <= column < axis.size
                if query >= 0 and inside and plan.masks[full.mask[block], column % axis.size]:
                    blocks[query, column % axis.size] = block
    return blocks


@lru_cache(maxsize=32)
def _stratum_tables(plan: Plan, classes: int) -> StratumTables:
    """Return the tables of strata that are classes of offsets, or with one class whole tiles."""
    height, width = plan.geometry.size
    y, x = np.divmod(np.arange(height * width), width)
    if classes == 1:
        return StratumTables(
            1, y, x, np.zeros((height, height), np.int64), np.zeros((width, width), np.int64)
        )
    return StratumTables(classes, y, x, STEP * (_pairs_of(plan) % STEP), _blocks_of(plan) % STEP)


@lru_cache(maxsize=32)
def _units_of_classes(plan: Plan) -> list[np.ndarray]:
    """Return the units of `Full` in each class: neighbours in either direction are in different classes."""
    units = np.arange(plan.full.units)
    pairs, blocks = np.divmod(units, len(plan.full.slots))
    classes = blocks % STEP + STEP * (pairs % STEP)
    return [units[classes == c] for c in range(CLASSES)]


@lru_cache(maxsize=32)
def _members_of_classes(plan: Plan) -> np.ndarray:
    """Return the number of patches of an image per class and pixel, (CLASSES, H, W)."""
    rows, columns = (
        np.stack([((table >= 0) & (table % STEP == c)).sum(1) for c in range(STEP)])
        for table in (_pairs_of(plan), _blocks_of(plan))
    )
    counts = rows[:, None, :, None] * columns[None, :, None, :]
    return counts.reshape(CLASSES, *plan.geometry.size)
