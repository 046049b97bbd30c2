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
    """Slide a window of 2 d + 1 positions over ascending centres.

    Positions without `exists` are left out.

    Examples
    --------
    >>> [tuple(step) for step in slide([1, 2], 1, lambda i: i < 3)]
    [(0, None, None), (1, None, None), (2, None, 1), (None, 0, 2)]
    """
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
    """Tables for all pixels of a query.

    Attributes
    ----------
    row_start : array of int64, shape (pairs of row offsets + 1,)
        Where the steps of each pair of row offsets begin in `rows`.
    rows : array of int64, shape (steps, 3)
        The training rows that enter and leave, and the row whose logits are ready; -1 for none.
    query_rows : array of int64, shape (steps, 3, 2)
        Their query rows at either offset. Where an offset has no product, row H (zeros) enters and leaves;
        where it has no logits, row -1 is ready.
    slot_train, slot_query : arrays of int64, shape (blocks, most slots)
        First training column (padded) and query column of the column sums of a block of offsets.
    slots, steps : arrays of int64, shape (blocks,)
        Number of slots and steps of each block.
    columns : array of int64, shape (blocks, most steps, 4)
        The slots that enter and leave (the last slot is always zero), the first training column (padded) and
        the query column that are ready, or -1.
    mask : array of int64, shape (blocks,)
        Number of the mask of training columns of each block.
    start : array of float32, shape (blocks * BLOCK,)
        0 for the offsets of a block, `FAR_BELOW` for columns that it must leave out.
    """

    row_start: np.ndarray
    rows: np.ndarray
    query_rows: np.ndarray
    slot_train: np.ndarray
    slot_query: np.ndarray
    slots: np.ndarray
    steps: np.ndarray
    columns: np.ndarray
    mask: np.ndarray
    start: np.ndarray

    @property
    def units(self) -> int:
        """Number of independent units: pairs of row offsets times blocks of column offsets."""
        return (len(self.row_start) - 1) * len(self.slots)


class Singles(NamedTuple):
    """Tables for single pixels, beside the `WindowTables`.

    Attributes
    ----------
    mask : array of int64, shape (W,)
        Mask of training columns of each query column.
    start : array of float32, shape (width * BLOCK,)
        As in `Full`, for blocks with 1, 2, ... columns in range.
    """

    mask: np.ndarray
    start: np.ndarray


@dataclass(frozen=True)
class Plan:
    """All tables of a geometry, for tiles of `lanes` images.

    Attributes
    ----------
    geometry : Geometry
    channels : int
    lanes : int
        Images of a tile, a power of two up to BLOCK.

    Examples
    --------
    >>> plan = Plan(Geometry.of("ELS", 3, (8, 8)), 3, 32)
    >>> plan.masks.shape, len(plan.full.row_start)
    ((2, 8), 5)
    """

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
        blocks = [(mask, first) for mask in (0, 1) for first in self._first_offsets(mask)]
        slot_lists, step_lists = [], []
        for mask, first in blocks:
            slots = self._slots(mask, first)
            slot_lists.append(slots)
            step_lists.append(self._columns(mask, first, slots))
        zero_slot = max(map(len, slot_lists))
        most = max(map(len, step_lists))
        slot_train = np.zeros((len(blocks), zero_slot), np.int64)
        slot_query = np.zeros_like(slot_train)
        columns = np.full((len(blocks), most, 4), NOTHING)
        start = np.zeros((len(blocks), self.width, self.lanes), np.float32)
        for b, ((mask, first), slots, steps) in enumerate(zip(blocks, slot_lists, step_lists, strict=True)):
            slot_train[b, : len(slots)] = [self._train_column(u + first) for u in slots]
            slot_query[b, : len(slots)] = np.array(slots) % self.geometry.x.size
            for j, (add, sub, train, query) in enumerate(steps):
                columns[b, j] = (
                    zero_slot if add is None else add,
                    zero_slot if sub is None else sub,
                    train,
                    query,
                )
            allowed = self._last_offset(mask) - first + 1
            start[b, max(0, allowed) :] = FAR_BELOW
        return Full(
            row_start=np.cumsum([0, *(len(train) for train, _ in rows)]),
            rows=np.concatenate([train for train, _ in rows]),
            query_rows=np.concatenate([query for _, query in rows]),
            slot_train=slot_train,
            slot_query=slot_query,
            slots=np.array([len(s) for s in slot_lists]),
            steps=np.array([len(s) for s in step_lists]),
            columns=columns,
            mask=np.array([mask for mask, _ in blocks]),
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

    def _first_offsets(self, mask: int) -> range:
        """Return the first column offset of each block."""
        axis = self.geometry.x
        count = len(_positions(axis)[mask])
        if count == 0:
            return range(0)
        if mask == 1:
            return range(1)
        return range(0 if axis.circular else 1 - count, self._last_offset(mask) + 1, self.width)

    def _last_offset(self, mask: int) -> int:
        axis = self.geometry.x
        if mask == 1:
            return 0
        return axis.size - 1 if axis.circular else len(_positions(axis)[0]) - 1

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

    def _columns(
        self, mask: int, first: int, slots: list[int]
    ) -> list[tuple[int | None, int | None, int, int]]:
        """Return the steps of a block along a row: slots that enter and leave, training and query column."""
        size = self.geometry.x.size
        number = {u: i for i, u in enumerate(slots)}
        if self.geometry.x.train_padding == "wrapped":
            modular = {u % size: i for u, i in number.items()}
            number = {
                u: modular[u % size] for u in range(slots[0] - self.geometry.k, slots[-1] + self.geometry.k)
            }
        steps = slide(self._outputs(mask, first), self.geometry.k // 2, lambda u: self._exists(u, first))
        table = []
        for add, sub, centre in steps:
            ready = (
                (NOTHING, NOTHING) if centre is None else (self._train_column(centre + first), centre % size)
            )
            table.append((None if add is None else number[add], None if sub is None else number[sub], *ready))
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
