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
import torch
from torch import Tensor

from patchindex.errors import InputError
from patchindex.images.by_label import to_unit

__all__ = [
    "INDEXED_MACHINES",
    "MACHINES",
    "TRAIN_WINDOWS",
    "Axis",
    "Geometry",
    "Offset",
    "gather_patches",
    "pad",
    "query_counts",
    "query_windows",
    "windows",
]

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


def pad(images: Tensor, geometry: Geometry, padding: str) -> Tensor:
    """Surround images with what the windows at their borders see.

    Parameters
    ----------
    images : Tensor, shape (B, C, H, W)
        In [-1, 1], so that zero padding is zero.
    geometry : Geometry
        For the window size.
    padding : str
        `"valid"` (nothing), `"wrapped"` (the image itself) or `"zeros"`.

    Returns
    -------
    Tensor
        Shape (B, C, H + 2 d, W + 2 d) with d = k // 2, or the images for `"valid"`.
    """
    if padding == "valid":
        return images
    d = geometry.k // 2
    if padding == "zeros":
        return torch.nn.functional.pad(images, (d, d, d, d))
    for dim, axis in ((2, geometry.y), (3, geometry.x)):
        images = images.index_select(dim, torch.arange(-d, axis.size + d, device=images.device) % axis.size)
    return images


def windows(images: Tensor, geometry: Geometry, *, query: bool) -> Tensor:
    """Return all windows of images, as a view of the padded images.

    Parameters
    ----------
    images : Tensor, shape (B, C, H, W)
        In [-1, 1].
    geometry : Geometry
        Says how the windows are padded.
    query : bool
        Whether the images are noisy ones; else they are training images.

    Returns
    -------
    Tensor
        Shape (B, C, H, W, k, k); for training images only the positions that windows have.
    """
    wrapped = "wrapped" if geometry.y.circular else "zeros"
    padded = pad(images, geometry, wrapped if query else geometry.y.train_padding)
    return padded.unfold(2, geometry.k, 1).unfold(3, geometry.k, 1)


def query_windows(x: Tensor, geometry: Geometry) -> Tensor:
    """Return every pixel's window.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Noisy images.
    geometry : Geometry
        Says how the windows are padded.

    Returns
    -------
    Tensor
        Shape (B * H * W, k, k, C), pixels in raster order: a view of the padded images until it is reshaped.
    """
    k, (height, width) = geometry.k, geometry.size
    by_pixel = windows(x, geometry, query=True).permute(0, 2, 3, 4, 5, 1)
    return by_pixel.reshape(len(x) * height * width, k, k, -1)


def query_counts(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return how often the query windows centred on position i cover pixel j, along y and along x.

    With them, `sum_ij y[p, i] |x[i, j]|^2 x[q, j]` is the squared norm of the window of pixel (p, q).

    Parameters
    ----------
    geometry : Geometry
        Says how the windows are padded.

    Returns
    -------
    arrays of float64, shapes (H, H) and (W, W)
    """

    def counts(axis: Axis) -> np.ndarray:
        padding = "wrapped" if axis.circular else "zeros"
        return Axis(axis.size, axis.k, axis.circular, padding, axis.classes).window

    return counts(geometry.y), counts(geometry.x)


def gather_patches(pixels: Tensor, geometry: Geometry, ids: Tensor) -> Tensor:
    """Return training patches by id.

    Parameters
    ----------
    pixels : Tensor, shape (N, H, W, C), uint8
        The training images.
    geometry : Geometry
        Says where the windows are and how they are padded.
    ids : Tensor, shape (...), int64
        Patch ids, `image * patches_per_image + raster index of the window`.

    Returns
    -------
    Tensor
        Shape (..., k, k, C), float32 in [-1, 1].
    """
    if geometry.y.train_padding == "wrapped" or pixels[..., 0].numel() < geometry.k:
        return _gather_by_pixel(pixels, geometry, ids)
    # A row of a window is k pixels side by side. Copied whole, it is ten times as fast as by pixel; where it
    # leaves the image it runs into the next row, which is zeroed.
    image, y, x = (index.unsqueeze(-1) for index in geometry.position(ids))
    (height, width), k, channels = geometry.size, geometry.k, pixels.shape[3]
    window = torch.arange(k, device=ids.device) - k // 2
    rows, row_inside = _inside(y + window, geometry.y)
    starts = (image * height + rows) * width + x - k // 2
    last = pixels[..., 0].numel() - k
    runs = pixels.contiguous().as_strided((last + 1, k * channels), (channels, 1))
    flat = runs.index_select(0, starts.clamp(0, last).flatten())
    patches = to_unit(flat.reshape(*ids.shape, k, k, channels))
    if geometry.y.train_padding == "zeros":
        _, col_inside = _inside(x + window, geometry.x)
        patches.mul_(row_inside.to(patches)[..., None, None]).mul_(col_inside.to(patches)[..., None, :, None])
        # Runs that would begin before the first pixel, or end after the last, were moved.
        moved = ((starts < 0) | (starts > last)).any(-1)
        if moved.any():
            patches[moved] = _gather_by_pixel(pixels, geometry, ids[moved])
    return patches


def _gather_by_pixel(pixels: Tensor, geometry: Geometry, ids: Tensor) -> Tensor:
    image, y, x = geometry.position(ids)
    window = torch.arange(geometry.k, device=ids.device) - geometry.k // 2
    rows, row_inside = _inside(y.unsqueeze(-1) + window, geometry.y)
    cols, col_inside = _inside(x.unsqueeze(-1) + window, geometry.x)
    patches = to_unit(pixels[image[..., None, None], rows[..., :, None], cols[..., None, :]])
    return patches * (row_inside.unsqueeze(-1) & col_inside.unsqueeze(-2)).unsqueeze(-1)


def _inside(positions: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """Move positions along an axis into the image, around it or to its border, and say which were inside."""
    if axis.train_padding == "wrapped":
        positions = positions % axis.size
    inside = (positions >= 0) & (positions < axis.size)
    return positions.clamp(0, axis.size - 1), inside
