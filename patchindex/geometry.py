"""Windows, patch ids and position classes: the training patches that a pixel is compared with.

The score machines of Kamb & Ganguli (arXiv 2412.20292) differ only in these. Each machine partitions the
positions into *position classes*, and compares a pixel with the training patches at the positions of its own
class. Every partition is the product of a partition along y and a partition along x, so a `Geometry` is two
`Axis` objects.

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

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import is_real
from patchindex.errors import InputError, Option
from patchindex.images.by_label import to_unit

__all__ = [
    "INDEXED_MACHINES",
    "LARGEST_SCALE",
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
INDEXED_MACHINES = ("ELS", "bbELS")  # IS and LS compare a pixel with only N patches, and are always exact
LARGEST_SCALE = 1023  # pixels; a larger scale is a typing error

IdArray = TypeVar("IdArray", np.ndarray, Tensor)


class Offset(NamedTuple):
    """All pairs of a query and a training position along one axis that are `offset` apart.

    Pair i is query position `query[i]` and training position `train.start + i`; the query position is
    `train - offset`, wrapped around where query windows are circular.
    """

    offset: int
    query: np.ndarray
    train: slice


@dataclass(frozen=True)
class Axis:
    """Positions, windows and position classes along one axis of the image."""

    size: int  # pixels along this axis
    k: int  # window size, odd
    circular: bool  # query windows wrap around, or are padded with zeros
    train_padding: str  # "valid", "wrapped" or "zeros"
    classes: tuple[int, ...]  # of each position, query or training, numbered from 0

    @property
    def train_positions(self) -> range:
        """Positions of the centres of training windows."""
        d = self.k // 2
        return range(d, self.size - d) if self.train_padding == "valid" else range(self.size)

    def pixels(self, margin: int, wrapped: bool) -> np.ndarray:
        """Return the pixel at positions -margin to size + margin - 1: int64, wrapped around or -1 outside."""
        at = np.arange(-margin, self.size + margin)
        return at % self.size if wrapped else np.where((at >= 0) & (at < self.size), at, -1)

    @cached_property
    def ranges(self) -> np.ndarray:
        """Training positions [lo, hi) that each position is compared with: int64, shape (size, 2)."""
        train, classes = np.array(self.train_positions), np.array(self.classes)
        # Position classes are runs, so the first and the last position are enough.
        same = (train[classes[train] == c] for c in self.classes)
        return np.array([(run[0], run[-1] + 1) for run in same])

    @cached_property
    def offsets(self) -> tuple[Offset, ...]:
        """Every (query, training) pair of positions of the same class, grouped by their difference."""
        alone = len(set(self.classes)) == self.size
        differences = range(1) if alone else range(0 if self.circular else 1 - self.size, self.size)
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
                # Position classes are runs, so the training positions are a run too.
                train = train[same]
                found.append(Offset(difference, query[same], slice(int(train[0]), int(train[-1]) + 1)))
        return tuple(found)

    @cached_property
    def slots(self) -> np.ndarray:
        """Pairs of each position, as numbers into the pairs of all `offsets` in order.

        int64, shape (size, most pairs of a position), padded with the total number of pairs.
        """
        query = np.concatenate([o.query for o in self.offsets])
        slots = np.full((self.size, np.bincount(query).max()), len(query))
        for position in range(self.size):
            mine = np.flatnonzero(query == position)
            slots[position, : len(mine)] = mine
        return slots

    @cached_property
    def window(self) -> np.ndarray:
        """Count of pixel j in the training window centred on position i: float64, shape (size, size).

        Padding is not counted. A circular window larger than the image covers pixels repeatedly. Rows of
        positions without a training window are zero.
        """
        pixels = self.pixels(self.k // 2, self.train_padding == "wrapped")
        counts = np.zeros((self.size, self.size))
        for i in self.train_positions:
            inside = pixels[i : i + self.k]
            np.add.at(counts[i], inside[inside >= 0], 1)
        return counts


@dataclass(frozen=True)
class Geometry:
    """The windows and position classes of a machine at one locality scale, for images of one size.

    >>> g = Geometry.of("ELS", 7, (32, 32))
    >>> g.patches_per_image
    676
    >>> g.position(np.array([677]))  # image 1, the second training position
    (array([1]), array([3]), array([4]))
    """

    machine: str  # one of `MACHINES`
    k: int  # windows are k x k; for IS, the smallest k whose windows cover the whole image
    y: Axis
    x: Axis

    @classmethod
    def of(cls, machine: str, k: int | None, size: tuple[int, int], train_windows: str = "valid") -> Geometry:
        """Check the settings and make the geometry, for images of `size` (height, width); IS ignores k.

        Raises InputError when the machine or `train_windows` is unknown, or another machine than ELS is to
        have other windows than `valid`; when k is even, below 1 or above `LARGEST_SCALE`; or when k is larger
        than the images and the machine is ELS with `valid` windows.
        """
        if machine not in MACHINES:
            raise InputError(
                f"unknown machine {machine!r}", parameter="machine", remedy=f"use {', '.join(MACHINES)}"
            )
        if train_windows not in TRAIN_WINDOWS:
            raise InputError(
                f"unknown value {train_windows!r}",
                parameter="train_windows",
                remedy=f"use {' or '.join(TRAIN_WINDOWS)}",
            )
        if train_windows != "valid" and machine != "ELS":
            raise InputError(
                f"{machine} has zero padded windows only",
                parameter="train_windows",
                remedy=["leave it out, or use ", Option("machine", "ELS")],
            )
        if machine == "IS":
            k = 2 * max(size) - 1
        elif not is_real(k) or not 1 <= k <= LARGEST_SCALE or k % 2 != 1:
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
                remedy=[
                    f"use k up to {largest}, ",
                    Option("train_windows", "wrapped"),
                    ", or machine bbELS or LS",
                ],
            )
        k = int(k)
        padding = train_windows if machine == "ELS" else "zeros"
        y, x = (Axis(n, k, machine == "ELS", padding, _axis_classes(machine, k, n)) for n in size)
        return cls(machine, k, y, x)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.y.size, self.x.size

    @property
    def patches_per_image(self) -> int:
        """Number of training windows per image."""
        return len(self.y.train_positions) * len(self.x.train_positions)

    @property
    def largest_class(self) -> int:
        """Largest number of training windows of an image that a pixel is compared with."""
        return int(np.bincount(self.train_classes).max())

    @property
    def is_exact(self) -> bool:
        """True for machines that compare a pixel with one patch per image, which need no index."""
        return self.machine not in INDEXED_MACHINES

    @property
    def n_classes(self) -> int:
        """Number of position classes."""
        return (max(self.y.classes) + 1) * (max(self.x.classes) + 1)

    @cached_property
    def query_classes(self) -> np.ndarray:
        """Position class of every pixel, shape (H, W), int64."""
        y, x = np.array(self.y.classes), np.array(self.x.classes)
        return y[:, None] * (int(x.max()) + 1) + x[None, :]

    @cached_property
    def train_classes(self) -> np.ndarray:
        """Position class of every training window of an image, raster order: int64 (patches_per_image,)."""
        ys, xs = np.array(self.y.train_positions), np.array(self.x.train_positions)
        return self.query_classes[np.ix_(ys, xs)].reshape(-1)

    def position(self, ids: IdArray) -> tuple[IdArray, IdArray, IdArray]:
        """Return image, y and x of patches: `id = image * patches_per_image + raster index of the window`."""
        columns = len(self.x.train_positions)
        image, place = ids // self.patches_per_image, ids % self.patches_per_image
        y, x = place // columns, place % columns
        return image, y + self.y.train_positions[0], x + self.x.train_positions[0]


def _axis_classes(machine: str, k: int, n: int) -> tuple[int, ...]:
    """Return the position classes along one axis of n pixels, numbered in the order they appear in."""
    d = k // 2
    if machine == "ELS":
        keys: list[object] = [0] * n
    elif machine == "bbELS":
        keys = [(min(i, d), min(n - 1 - i, d)) for i in range(n)]
    else:
        keys = list(range(n))
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(key, len(numbers)) for key in keys)


def pad(images: Tensor, geometry: Geometry, padding: str) -> Tensor:
    """Pad images (B, C, H, W), in [-1, 1], by k // 2 on each side.

    `padding` is `"valid"` (return the images unchanged), `"wrapped"` (circular) or `"zeros"`.
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
    """Return all windows of images (B, C, H, W), in [-1, 1]: a view (B, C, H, W, k, k) of the padded images.

    `query` says whether the images are noisy ones. Training images have windows only at training positions.
    """
    wrapped = "wrapped" if geometry.y.circular else "zeros"
    padded = pad(images, geometry, wrapped if query else geometry.y.train_padding)
    return padded.unfold(2, geometry.k, 1).unfold(3, geometry.k, 1)


def query_windows(x: Tensor, geometry: Geometry) -> Tensor:
    """Return the window of every pixel of noisy images (B, C, H, W): shape (B H W, k, k, C), raster order."""
    k, (height, width) = geometry.k, geometry.size
    by_pixel = windows(x, geometry, query=True).permute(0, 2, 3, 4, 5, 1)
    return by_pixel.reshape(len(x) * height * width, k, k, -1)


def query_counts(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return the count of pixel j in the query window centred on position i, along y and along x.

    float64, shapes (H, H) and (W, W). The squared norm of the window of pixel (p, q) of an image v is
    `sum_ij y[p, i] |v[i, j]|^2 x[q, j]`.
    """
    y, x = (
        replace(axis, train_padding="wrapped" if axis.circular else "zeros").window
        for axis in (geometry.y, geometry.x)
    )
    return y, x


def gather_patches(pixels: Tensor, geometry: Geometry, ids: Tensor) -> Tensor:
    """Return the patches with these ids (...) of images (N, H, W, C): (..., k, k, C), float32 in [-1, 1]."""
    if geometry.y.train_padding == "wrapped" or pixels[..., 0].numel() < geometry.k:
        return _gather_by_pixel(pixels, geometry, ids)
    # A row of a window is k pixels side by side. Copying whole rows is ten times as fast as copying pixels.
    # A row that leaves the image runs into the next row of pixels, which is then zeroed.
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
        # Rows that begin before the first pixel or end after the last one were moved by `clamp`.
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
    """Wrap or clamp positions along an axis into the image; also return which of them were inside."""
    if axis.train_padding == "wrapped":
        positions = positions % axis.size
    inside = (positions >= 0) & (positions < axis.size)
    return positions.clamp(0, axis.size - 1), inside
