"""The order of work of the CPU kernel, as tables of integers made from a `Geometry`.

For one offset between query and training positions, window sums slide: a step along an axis adds the
products that enter the window and subtracts those that leave it. `slide` lists the steps. Padding, wrapping
and position classes are in these tables and in masks of training columns, so the kernel has no cases for
machines.

Training columns are handled in blocks of `width` neighbouring ones, `lanes` images each: the column offsets
`first, ..., first + width - 1` of a query column are one stretch of memory. Row offsets go two by two, so
that a training value once loaded is multiplied by two query rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from patchindex.geometry import Axis, Geometry
from patchindex.kernels.simd import BLOCK
from patchindex.kernels.windows import WindowTables

__all__ = ["Full", "Plan", "Singles"]

NOTHING = -1
# Added to logits that must not count: far below any, and sums with it are still finite.
FAR_BELOW = np.float32(-1e30)


class Step(NamedTuple):
    """One step of a sliding window: the positions that enter and leave, and the centre if it is wanted."""

    add: int | None
    sub: int | None
    centre: int | None


def slide(centres: Iterable[int], d: int, exists: Callable[[int], bool]) -> list[Step]:
    """Slide a window of 2 d + 1 positions over ascending centres; leave out positions without `exists`."""
    wanted = list(centres)
    ends = {centre + d: centre for centre in wanted}
    first = wanted[0] - d
    steps = []
    for front in range(first, wanted[-1] + d + 1):
        back = front - (2 * d + 1)
        step = Step(
            front if exists(front) else None,
            back if back >= first and exists(back) else None,
            ends.get(front),
        )
        if step != (None, None, None):
            steps.append(step)
    return steps


class Full(NamedTuple):
    """Tables for all pixels of a query. NOTHING = -1 stands for no row and no column."""

    # Pair i of row offsets has the steps row_start[i] to row_start[i + 1]: the training rows that enter and
    # leave, and the row whose logits are ready, (steps, 3); the query rows of each at either offset,
    # (steps, 3, 2). At an offset without products, row H (zeros) enters and leaves.
    row_start: np.ndarray
    rows: np.ndarray
    query_rows: np.ndarray
    # Blocks of column offsets: the first training column (padded) and the query column of each column sum
    # (*slot*), (blocks, most slots), and the number of slots and of steps of a block.
    slot_train: np.ndarray
    slot_query: np.ndarray
    slots: np.ndarray
    steps: np.ndarray
    # The slots that enter and leave (the last slot is always zero), and the first training column (padded)
    # and the query column that are ready: (blocks, most steps, 4).
    columns: np.ndarray
    mask: np.ndarray  # (blocks,): number of the mask of training columns
    start: np.ndarray  # (blocks * BLOCK,): 0, and FAR_BELOW for the columns that a block must leave out

    @property
    def units(self) -> int:
        """Number of independent units: pairs of row offsets times blocks of column offsets."""
        return (len(self.row_start) - 1) * len(self.slots)


class Singles(NamedTuple):
    """Tables for single pixels, beside the `WindowTables`."""

    mask: np.ndarray  # (W,): mask of training columns of each query column
    start: np.ndarray  # (width * BLOCK,): as in `Full`, for blocks with 1, 2, ... columns in range


@dataclass(frozen=True)
class Plan:
    """All tables of a geometry, for tiles of `lanes` images: a power of two up to BLOCK."""

    geometry: Geometry
    channels: int
    lanes: int

    @property
    def width(self) -> int:
        """Training columns of a block."""
        return BLOCK // self.lanes

    @property
    def pad(self) -> int:
        """Columns that a tile has on each side of its images."""
        return self.width - 1

    @property
    def padded(self) -> int:
        """Columns of a tile."""
        return self.geometry.x.size + 2 * self.pad

    @cached_property
    def masks(self) -> np.ndarray:
        """Masks of the training columns that share their class, and of those alone in it: bool, (2, W)."""
        masks = np.zeros((2, self.geometry.x.size), bool)
        for mask, positions in zip(masks, _positions(self.geometry.x), strict=True):
            mask[positions] = True
        return masks

    @cached_property
    def norm_rows(self) -> np.ndarray:
        """Steps of the sums of squares down the rows: row that enters, leaves, is ready; (steps, 3)."""
        return _norm_steps(self.geometry.y)

    @cached_property
    def norm_columns(self) -> np.ndarray:
        """Steps of the sums of squares along a row, as in `norm_rows`."""
        return _norm_steps(self.geometry.x)

    @cached_property
    def full(self) -> Full:
        """Tables for all pixels of a query."""
        offsets = [offset.offset for offset in self.geometry.y.offsets]
        rows = [self._rows(offsets[i : i + 2]) for i in range(0, len(offsets), 2)]
        blocks = self._blocks()
        slot_lists = [self._slots(mask, first) for mask, first, _ in blocks]
        zero_slot = max(map(len, slot_lists))
        step_lists = [
            self._columns(mask, first, slots)
            for (mask, first, _), slots in zip(blocks, slot_lists, strict=True)
        ]
        slot_train = np.zeros((len(blocks), zero_slot), np.int64)
        slot_query = np.zeros_like(slot_train)
        columns = np.full((len(blocks), max(map(len, step_lists)), 4), NOTHING)
        start = np.zeros((len(blocks), self.width, self.lanes), np.float32)
        for b, ((_, first, count), slots) in enumerate(zip(blocks, slot_lists, strict=True)):
            slot_train[b, : len(slots)] = [self._train_column(u + first) for u in slots]
            slot_query[b, : len(slots)] = np.array(slots) % self.geometry.x.size
            columns[b, : len(step_lists[b])] = step_lists[b]
            start[b, count:] = FAR_BELOW
        moving = columns[..., :2]
        moving[moving == NOTHING] = zero_slot
        return Full(
            row_start=np.cumsum([0, *(len(train) for train, _ in rows)]),
            rows=np.concatenate([train for train, _ in rows]),
            query_rows=np.concatenate([query for _, query in rows]),
            slot_train=slot_train,
            slot_query=slot_query,
            slots=np.array([len(s) for s in slot_lists]),
            steps=np.array([len(s) for s in step_lists]),
            columns=columns,
            mask=np.array([mask for mask, _, _ in blocks]),
            start=start.reshape(-1),
        )

    @cached_property
    def windows(self) -> WindowTables:
        """Tables of single windows."""
        return WindowTables.of(self.geometry, self.channels)

    @cached_property
    def singles(self) -> Singles:
        """Tables for single pixels."""
        x = self.geometry.x
        start = np.zeros((self.width, self.width, self.lanes), np.float32)
        for columns in range(self.width):
            start[columns, columns + 1 :] = FAR_BELOW
        shared = _positions(x)[0]
        mask = np.array([int(not (x.circular or i in shared)) for i in range(x.size)])
        return Singles(mask, start.reshape(-1))

    def _rows(self, offsets: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps of one or two row offsets, as in `Full.rows` and `Full.query_rows`."""
        axis = self.geometry.y
        shared, alone = _positions(axis)

        def multiplied(row: int, offset: int) -> bool:
            if axis.train_padding == "wrapped":
                return True
            inside = 0 <= row < axis.size
            return inside and (axis.circular or 0 <= row - offset < axis.size)

        def compared(row: int, offset: int) -> bool:
            if offset == 0:
                return row in shared or row in alone
            return row in shared and (axis.circular or row - offset in shared)

        def at(row: int | None, counts: Callable[[int, int], bool], otherwise: int) -> list[int]:
            query = [
                (row - offset) % axis.size if row is not None and counts(row, offset) else otherwise
                for offset in offsets
            ]
            return query + [otherwise] * (2 - len(offsets))

        centres = [i for i in range(axis.size) if any(compared(i, offset) for offset in offsets)]
        train, query = [], []
        for step in slide(
            centres, self.geometry.k // 2, lambda i: any(multiplied(i, offset) for offset in offsets)
        ):
            rows = [NOTHING if i is None else i % axis.size for i in step]
            if step.add is None and step.sub is not None:
                rows[0] = 0  # any row: it is multiplied by zeros
            train.append(rows)
            query.append(
                [
                    at(step.add, multiplied, axis.size),
                    at(step.sub, multiplied, axis.size),
                    at(step.centre, compared, NOTHING),
                ]
            )
        return np.array(train, np.int64), np.array(query, np.int64)

    def _blocks(self) -> list[tuple[int, int, int]]:
        """Return the mask, the first column offset and the number of column offsets of each block."""
        axis = self.geometry.x
        shared, alone = _positions(axis)
        first, end = (0, axis.size) if axis.circular else (1 - len(shared), len(shared))
        blocks = [(0, i, min(self.width, end - i)) for i in range(first, end, self.width)]
        return blocks + ([(1, 0, 1)] if alone else [])

    def _outputs(self, mask: int, first: int) -> list[int]:
        """Return the query columns, not wrapped around, that some offset of a block compares."""
        axis = self.geometry.x
        train = _positions(axis)[mask]
        if axis.train_padding == "wrapped":
            return list(range(-first, axis.size - first))
        if mask == 1:
            return list(train)
        columns = range(train[0] - first - self.pad, train[-1] - first + 1)
        return [u for u in columns if axis.circular or u in train]

    def _exists(self, column: int, first: int) -> bool:
        """Return whether a query column, not wrapped around, has products with a block's columns."""
        axis = self.geometry.x
        if axis.train_padding == "wrapped":
            return True
        inside = -self.pad <= column + first < axis.size
        return inside and (axis.circular or 0 <= column < axis.size)

    def _slots(self, mask: int, first: int) -> list[int]:
        """Return the query columns, not wrapped around, whose column sums a block needs."""
        axis, d = self.geometry.x, self.geometry.k // 2
        outputs = self._outputs(mask, first)
        if axis.train_padding == "wrapped":
            return outputs  # all columns; beyond them they repeat
        return [u for u in range(outputs[0] - d, outputs[-1] + d + 1) if self._exists(u, first)]

    def _columns(self, mask: int, first: int, slots: list[int]) -> list[tuple[int, int, int, int]]:
        """Return the steps of a block along a row: slots that enter and leave, training and query column."""
        size, k = self.geometry.x.size, self.geometry.k
        number = {u: i for i, u in enumerate(slots)}
        if self.geometry.x.train_padding == "wrapped":
            modular = {u % size: i for u, i in number.items()}
            number = {u: modular[u % size] for u in range(slots[0] - k, slots[-1] + k)}
        steps = slide(self._outputs(mask, first), k // 2, lambda u: self._exists(u, first))
        table = []
        for *moving, centre in steps:
            add, sub = (NOTHING if u is None else number[u] for u in moving)
            ready = (NOTHING, NOTHING)
            if centre is not None:
                ready = self._train_column(centre + first), centre % size
            table.append((add, sub, *ready))
        return table

    def _train_column(self, column: int) -> int:
        """Return where a block of training columns begins in a tile."""
        if self.geometry.x.train_padding == "wrapped":
            column %= self.geometry.x.size
        return column + self.pad


def _positions(axis: Axis) -> tuple[range | list[int], list[int]]:
    """Return the training positions that share their class with others, and those that are alone in it."""
    members: dict[int, list[int]] = {}
    for position in range(axis.size):
        members.setdefault(axis.classes[position], []).append(position)
    if axis.circular:
        return axis.train_positions, []
    shared = [m for m in members.values() if len(m) > 1]
    if len(shared) > 1:
        raise AssertionError("no machine has two classes with several positions along an axis")
    alone = [m[0] for m in members.values() if len(m) == 1]
    return (range(shared[0][0], shared[0][-1] + 1) if shared else range(0)), alone


def _norm_steps(axis: Axis) -> np.ndarray:
    wrapped = axis.train_padding == "wrapped"
    steps = slide(axis.train_positions, axis.k // 2, lambda i: wrapped or 0 <= i < axis.size)
    return np.array([[NOTHING if i is None else i % axis.size for i in step] for step in steps], np.int64)
