"""Windows, patch ids and position classes: which training patches a pixel is compared with.

The score machines of Kamb & Ganguli (arXiv 2412.20292) differ in nothing else. Each is a partition of
positions into *position classes*; a pixel is compared with the training patches at the positions of its own
class. For all of them the partition is a product of one along each axis, so an `Axis` says everything, and a
`Geometry` is two of them.

==================== ============================== ================ =================
machine              position classes               query window     training window
==================== ============================== ================ =================
IS                   every position its own         whole image      whole image
LS                   every position its own         zero padded      zero padded
ELS                  one                            circular         inside the image
ELS, wrapped         one                            circular         circular
bbELS                same distances to the borders, zero padded      zero padded
                     counted up to k // 2
==================== ============================== ================ =================
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from patchindex.errors import InputError

__all__ = ["INDEXED_MACHINES", "MACHINES", "TRAIN_WINDOWS", "Axis", "Geometry", "Offset"]

MACHINES = ("IS", "LS", "ELS", "bbELS")
TRAIN_WINDOWS = ("valid", "wrapped")
INDEXED_MACHINES = ("ELS", "bbELS")  # the others compare a pixel with N patches only, and are always exact
LARGEST_SCALE = 1023  # pixels; more is a typing error


IdArray = TypeVar("IdArray", np.ndarray, Tensor)


class Offset(NamedTuple):
    """All pairs of a query and a training position along one axis that are `offset` apart.

    Pair i compares position `query[i]` with training position `train.start + i`, where the query window
    lies at `train - offset` (wrapped around where the windows are circular).
    """

    offset: int
    query: np.ndarray
    train: slice


@dataclass(frozen=True)
class Axis:
    """Positions, windows and position classes along one axis of the image.

    Attributes
    ----------
    size : int
        Pixels along this axis.
    k : int
        Window size, odd.
    circular : bool
        Whether query windows wrap around; otherwise they are padded with zeros.
    train_padding : str
        `"valid"`, `"wrapped"` or `"zeros"`.
    classes : tuple of int
        Position class of each position, numbered from 0. Training positions have the same classes.
    """

    size: int
    k: int
    circular: bool
    train_padding: str
    classes: tuple[int, ...]

    @property
    def train_positions(self) -> range:
        """The positions that a training window may have its centre at."""
        d = self.k // 2
        return range(d, self.size - d) if self.train_padding == "valid" else range(self.size)

    def pixels(self, wrapped: bool) -> np.ndarray:
        """Return which pixel position i - k // 2 is, int64, shape (size + 2 (k // 2),).

        Wrapped around, or -1 where there is none.
        """
        at = np.arange(-(self.k // 2), self.size + self.k // 2)
        return at % self.size if wrapped else np.where((at >= 0) & (at < self.size), at, -1)

    @cached_property
    def offsets(self) -> tuple[Offset, ...]:
        """Every (query, training) pair of positions of the same class, grouped by their difference."""
        if len(set(self.classes)) == self.size:
            differences = [0]
        elif self.circular:
            differences = list(range(self.size))
        else:
            differences = list(range(1 - self.size, self.size))
        found = []
        classes = np.array(self.classes)
        for difference in differences:
            train = np.array(self.train_positions)
            query = train - difference
            if self.circular:
                query %= self.size
            same = (query >= 0) & (query < self.size)
            same[same] = classes[query[same]] == classes[train[same]]
            if same.any():
                # Classes with more than one position are runs of them, so what is left is a run too.
                train = train[same]
                found.append(Offset(difference, query[same], slice(int(train[0]), int(train[-1]) + 1)))
        return tuple(found)

    @cached_property
    def compared(self) -> np.ndarray:
        """Whether query position i is compared with training position j: bool, shape (size, size)."""
        table = np.zeros((self.size, self.size), bool)
        for offset in self.offsets:
            table[offset.query, np.arange(offset.train.start, offset.train.stop)] = True
        return table

    @cached_property
    def slots(self) -> np.ndarray:
        """Which pairs each position has, as numbers into the pairs of all `offsets` in order.

        Shape (size, most pairs of a position), int64, padded with the total number of pairs.
        """
        query = np.concatenate([o.query for o in self.offsets])
        slots = np.full((self.size, np.bincount(query).max()), len(query))
        for position in range(self.size):
            mine = np.flatnonzero(query == position)
            slots[position, : len(mine)] = mine
        return slots

    @cached_property
    def window(self) -> np.ndarray:
        """How often the window centred on position i covers pixel j: shape (size, size), float64.

        Padding is zero and adds nothing. A circular window larger than the image covers pixels repeatedly.
        Rows of positions that no training window has are zero.
        """
        d = self.k // 2
        counts = np.zeros((self.size, self.size))
        for i in self.train_positions:
            for j in range(i - d, i + d + 1):
                if self.train_padding == "wrapped":
                    counts[i, j % self.size] += 1
                elif 0 <= j < self.size:
                    counts[i, j] += 1
        return counts


@dataclass(frozen=True)
class Geometry:
    """Which patches are compared: a machine at one locality scale on images of one size.

    Build it with `Geometry.of`.

    Attributes
    ----------
    machine : str
        One of `MACHINES`.
    k : int
        Locality scale: the window is k x k. For IS it is the smallest k whose windows hold the whole image.
    y, x : Axis
        The two axes.

    Examples
    --------
    >>> g = Geometry.of("ELS", 7, (32, 32))
    >>> g.patches_per_image
    676
    >>> g.position(np.array([677]))  # image 1, the second training position
    (array([1]), array([3]), array([4]))
    """

    machine: str
    k: int
    y: Axis
    x: Axis

    @classmethod
    def of(cls, machine: str, k: int | None, size: tuple[int, int], train_windows: str = "valid") -> Geometry:
        """Check the settings and make the geometry.

        Parameters
        ----------
        machine : str
            `"IS"`, `"LS"`, `"ELS"` or `"bbELS"`.
        k : int or None
            Odd locality scale. IS has none, and takes any value for it.
        size : (int, int)
            Height and width of the images.
        train_windows : str
            `"valid"` or `"wrapped"`: which windows of a training image ELS uses.

        Raises
        ------
        InputError
            When the machine is unknown, k is even, below 1 or above `LARGEST_SCALE`, or larger than the image
            where the machine has no window of that size (ELS with `valid` windows).
        """
        if machine not in MACHINES:
            raise InputError(
                f"unknown machine {machine!r}", where="machine", remedy=f"use {', '.join(MACHINES)}"
            )
        if train_windows not in TRAIN_WINDOWS:
            raise InputError(
                f"unknown value {train_windows!r}",
                where="train_windows",
                remedy=f"use {' or '.join(TRAIN_WINDOWS)}",
            )
        if train_windows != "valid" and machine != "ELS":
            raise InputError(
                f"{machine} has zero padded windows only",
                where=f"train_windows {train_windows!r}",
                remedy="leave it out, or use machine ELS",
            )
        if machine == "IS":
            k = 2 * max(size) - 1
        elif k is None or isinstance(k, bool) or int(k) != k or not 1 <= k <= LARGEST_SCALE or k % 2 == 0:
            raise InputError(
                f"k must be odd, from 1 to {LARGEST_SCALE}, got {k}",
                where="locality scale",
                remedy="use 3, 5, 7, ...",
            )
        largest = min(size) - 1 + min(size) % 2
        if machine == "ELS" and train_windows == "valid" and k > largest:
            raise InputError(
                f"k = {k} is larger than the images, which are {size[0]} x {size[1]}",
                where="locality scale",
                remedy=f"use k up to {largest}, train_windows='wrapped', or bbELS or LS",
            )
        k = int(k)
        padding = train_windows if machine == "ELS" else "zeros"

        def axis(n: int) -> Axis:
            return Axis(n, k, machine == "ELS", padding, _axis_classes(machine, k, n))

        return cls(machine, k, axis(size[0]), axis(size[1]))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.y.size, self.x.size

    @property
    def patches_per_image(self) -> int:
        """How many training windows an image has."""
        return len(self.y.train_positions) * len(self.x.train_positions)

    @property
    def is_exact(self) -> bool:
        """Whether a pixel is compared with one patch an image, so that an index has nothing to gain."""
        return self.machine not in INDEXED_MACHINES

    @property
    def n_classes(self) -> int:
        """How many position classes there are."""
        return (max(self.y.classes) + 1) * (max(self.x.classes) + 1)

    @cached_property
    def query_classes(self) -> np.ndarray:
        """Position class of every pixel, shape (H, W), int64."""
        y, x = np.array(self.y.classes), np.array(self.x.classes)
        return y[:, None] * (int(x.max()) + 1) + x[None, :]

    @cached_property
    def train_classes(self) -> np.ndarray:
        """Position class of every training window of an image in raster order, (patches_per_image,)."""
        ys, xs = np.array(self.y.train_positions), np.array(self.x.train_positions)
        return self.query_classes[np.ix_(ys, xs)].reshape(-1)

    def position(self, ids: IdArray) -> tuple[IdArray, IdArray, IdArray]:
        """Return image, y and x of patches; `id = image * patches_per_image + raster index of the window`.

        Parameters
        ----------
        ids : array or tensor of int64
        """
        columns = len(self.x.train_positions)
        image, place = ids // self.patches_per_image, ids % self.patches_per_image
        y, x = place // columns, place % columns
        return image, y + self.y.train_positions[0], x + self.x.train_positions[0]


def _axis_classes(machine: str, k: int, n: int) -> tuple[int, ...]:
    """Return the position classes along one axis of n pixels, numbered in the order they appear in."""
    d = k // 2
    keys: list[object] = []
    for i in range(n):
        if machine == "ELS":
            keys.append(0)
        elif machine == "bbELS":
            keys.append((min(i, d), min(n - 1 - i, d)))
        else:
            keys.append(i)
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(key, len(numbers)) for key in keys)
