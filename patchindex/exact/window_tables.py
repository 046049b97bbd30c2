"""Tables of the fused kernel: the windows of position classes, and the query windows of wanted pixels.

In one position class, the same pixels of all windows are inside the image: a rectangle, `Span` times `Span`.
Pixels outside are zero on both sides and add nothing to a distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchindex.geometry import Axis, Geometry

__all__ = ["BLOCK_ROWS", "MOST_HELD", "Layout", "Queries", "Tables", "tables_of"]

BLOCK_ROWS = (16, 128)  # rows of a program: the least that tensor cores take, and many for large classes
MOST_HELD = 256  # numbers of a window: 128 of them take 128 KiB of shared memory
STREAMED = 64  # numbers of a longer window at a time
SPLIT = 1 << 18  # numbers of query windows that are split at a time: 30 MiB of temporary arrays
EXPONENT = 13  # query windows are scaled to numbers below 2^13; float16 ends at 2^16


class Span(NamedTuple):
    """The windows of a class along one axis."""

    train: tuple[int, int]  # positions [lo, hi)
    first: int  # the first pixel of a window, from its centre
    length: int  # pixels of a window


def _spans(axis: Axis) -> list[Span]:
    """Return the windows of each position, in order of positions."""
    d = axis.k // 2
    if axis.circular:
        first, length = (-d, axis.k) if axis.k <= axis.size else (0, axis.size)
        return [Span((int(lo), int(hi)), first, length) for lo, hi in axis.ranges]
    return [
        Span((int(lo), int(hi)), -min(i, d), min(i, d) + min(axis.size - 1 - i, d) + 1)
        for i, (lo, hi) in enumerate(axis.ranges)
    ]


def _repeats(axis: Axis) -> np.ndarray:
    """Return the number of times that a window covers each of its pixels: ones, unless it wraps around."""
    if not axis.circular or axis.k <= axis.size:
        return np.ones(axis.size)
    return np.bincount(np.arange(-(axis.k // 2), axis.k // 2 + 1) % axis.size, minlength=axis.size)


class Layout(NamedTuple):
    """The numbers of a window as the kernel multiplies them, padded to powers of two."""

    first: int  # numbers of the first product, or of each
    rest: int  # numbers of the second product, or 0
    held: bool  # True when the two products are all

    @classmethod
    def of(cls, numbers: int, most_held: int = MOST_HELD) -> Layout:
        """Choose the layout with the least padding; windows longer than `most_held` are not held.

        >>> Layout.of(147), Layout.of(289)
        (Layout(first=128, rest=32, held=True), Layout(first=64, rest=0, held=False))
        """
        powers = [1 << i for i in range(4, MOST_HELD.bit_length())]
        pairs = [(a, b) for a in powers for b in (0, *powers) if b < a and numbers <= a + b <= most_held]
        if not pairs:
            return cls(STREAMED, 0, False)
        return cls(*min(pairs, key=lambda pair: (sum(pair), pair[1])), True)

    def padded(self, numbers: int) -> int:
        """Return the padded length of a window."""
        return self.first + self.rest if self.held else -(-numbers // self.first) * self.first


@dataclass(frozen=True)
class Tables:
    """The tables of a geometry. Images are padded where training windows wrap around.

    The numbers of a window go by rows, columns and channels. `offsets` has a row for each kind of window;
    `kinds`, `lengths` and `places` have an entry for each position class: its row of `offsets`, the length of
    its windows as the kernel reads them, and the centres of its training windows.
    """

    geometry: Geometry
    channels: int
    before: tuple[int, int]  # padding of rows and columns
    padded: tuple[int, int]  # height and width of a padded image
    layout: Layout
    stride: int  # numbers of the longest window, padded
    offsets: np.ndarray  # int32
    kinds: np.ndarray
    lengths: np.ndarray
    places: list[np.ndarray]

    @property
    def counts(self) -> np.ndarray:
        """Number of training windows of an image in each class."""
        return np.array([len(places) for places in self.places])


@lru_cache(maxsize=32)
def tables_of(geometry: Geometry, channels: int, most_held: int = MOST_HELD) -> Tables:
    """Return the tables of a geometry for images of 1 or 3 channels, with `most_held` as in `Layout.of`."""
    spans = _spans(geometry.y), _spans(geometry.x)
    wrapped = geometry.y.train_padding == "wrapped"
    before = [-min(s.first for s in along) if wrapped else 0 for along in spans]
    after = [max(s.first + s.length - 1 for s in along) if wrapped else 0 for along in spans]
    height, width = (n + b + a for n, b, a in zip(geometry.size, before, after, strict=True))
    longest = channels * math.prod(max(s.length for s in along) for along in spans)
    layout = Layout.of(longest, most_held)
    stride = layout.padded(longest)
    offsets, numbered = list[np.ndarray](), dict[tuple[int, ...], int]()
    kinds, lengths, places = list[int](), list[int](), list[np.ndarray]()
    # One position stands for all of its class.
    ys, xs = (np.unique(axis.classes, return_index=True)[1] for axis in (geometry.y, geometry.x))
    for y in ys:
        for x in xs:
            (train_y, *window_y), (train_x, *window_x) = spans[0][y], spans[1][x]
            rows, columns = (np.arange(first, first + n) for first, n in (window_y, window_x))
            kind = (*window_y, *window_x)
            if kind not in numbered:
                numbered[kind] = len(offsets)
                pixels = (rows[:, None] * width + columns)[..., None] * channels + np.arange(channels)
                # Behind a window comes its centre, which is multiplied by zeros.
                offsets.append(np.pad(pixels.reshape(-1), (0, stride - pixels.size)))
            kinds.append(numbered[kind])
            lengths.append(layout.padded(len(rows) * len(columns) * channels))
            at = (np.arange(*train_y)[:, None] + before[0]) * width + np.arange(*train_x) + before[1]
            places.append(at.reshape(-1))
    return Tables(
        geometry=geometry,
        channels=channels,
        before=(before[0], before[1]),
        padded=(height, width),
        layout=layout,
        stride=stride,
        offsets=np.stack(offsets).astype(np.int32),
        kinds=np.array(kinds),
        lengths=np.array(lengths),
        places=places,
    )


class Queries:
    """The windows of wanted pixels as rows of a matrix, in order of their position classes.

    Attributes
    ----------
    pixels : Tensor, shape (M,), int64
        The pixel of each row, as a number into (B, H, W).
    high, low : Tensor, shape (M, stride), float16
        `scales * (high + low)` are the windows in the units of the kernel.
    scales : Tensor, shape (M,), float32
        Powers of two.
    blocks : list of (int, ndarray)
        For each of `BLOCK_ROWS` that is used, the table `blocks` of the kernel.
    places : ndarray, int32
        The table `places` of the kernel: the training windows of the classes of the rows.
    """

    def __init__(self, tables: Tables, centred: Tensor, scale: float, mask: Tensor | None) -> None:
        """Take queries (B, C, H, W) in float64, multiply them by `scale`, and cut out the wanted windows."""
        geometry, (batch, _, height, width) = tables.geometry, centred.shape
        wanted = np.arange(batch * height * width)
        if mask is not None:
            wanted = np.flatnonzero(mask.cpu().numpy())
        classes = geometry.query_classes.reshape(-1)[wanted % (height * width)]
        order = np.argsort(classes, kind="stable")
        rows, classes = wanted[order], classes[order]
        self.places, self.blocks = _places_and_blocks(tables, classes)
        self.pixels = torch.from_numpy(rows).to(centred.device)
        shape = (len(rows), tables.stride)
        self.high, self.low = (torch.empty(shape, dtype=torch.half, device=centred.device) for _ in range(2))
        self.scales = torch.empty(len(rows), device=centred.device)
        cut = _Cut(tables, centred)
        step = max(1, SPLIT // tables.stride)
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            windows = cut(self.pixels[part]) * scale
            # Multiplied by a power of two so that the low part is not subnormal.
            _, exponent = torch.frexp(windows.abs().amax(1))
            scaled = torch.ldexp(windows, (EXPONENT - exponent)[:, None])
            self.high[part] = scaled.half()
            self.low[part] = (scaled - self.high[part].double()).half()
            self.scales[part] = torch.ldexp(torch.ones_like(self.scales[part]), exponent - EXPONENT)


class _Cut:
    """A function from pixels to their windows, (n, stride) in float64, with zeros behind each window."""

    def __init__(self, tables: Tables, images: Tensor) -> None:
        geometry, device = tables.geometry, images.device
        self._images, self._size, self._channels = images.reshape(-1), geometry.size, tables.channels
        self._spans = [
            torch.tensor([(s.first, s.length) for s in _spans(axis)], device=device)
            for axis in (geometry.y, geometry.x)
        ]
        self._repeats = [torch.from_numpy(_repeats(axis)).to(images) for axis in (geometry.y, geometry.x)]
        self._numbers = torch.arange(tables.stride, device=device)

    def __call__(self, pixels: Tensor) -> Tensor:
        height, width = self._size
        area, numbers = height * width, self._numbers
        image, y, x = pixels // area, pixels % area // width, pixels % width
        (first_y, rows), (first_x, columns) = (
            span[at].T.unsqueeze(2) for span, at in zip(self._spans, (y, x), strict=True)
        )
        row, column = numbers // self._channels // columns, numbers // self._channels % columns
        inside, row = row < rows, row.clamp_max(height - 1)
        at_y = (y[:, None] + first_y + row) % height
        at_x = (x[:, None] + first_x + column) % width
        plane = image[:, None] * self._channels + numbers % self._channels
        values = self._images[plane * area + at_y * width + at_x]
        return values * (inside * self._repeats[0][row] * self._repeats[1][column])


def _places_and_blocks(
    tables: Tables, classes: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Return the tables `places` and `blocks` for rows of ascending `classes`."""
    small, large = BLOCK_ROWS
    numbers, first, rows = np.unique(classes, return_index=True, return_counts=True)
    counts = tables.counts[numbers]
    before = counts.cumsum() - counts
    which = np.repeat(np.arange(len(numbers)), counts)
    columns = (
        np.concatenate([tables.places[number] for number in numbers]),
        tables.kinds[numbers[which]] * tables.stride, before[which], counts[which],
        np.arange(len(which)) - before[which],
    )  # fmt: skip
    places = np.stack(columns, 1).astype(np.int32)
    # A class is cut into large blocks, if it is not small, and its last rows into small blocks.
    whole = np.where(rows > 2 * small, -(-(rows - small) // large), 0)
    found = []
    for size, start, stop in ((large, 0 * rows, whole * large), (small, whole * large, rows)):
        stop = np.minimum(stop, rows)
        pieces = np.maximum(-(-(stop - start) // size), 0)
        which = np.repeat(np.arange(len(numbers)), pieces)
        at = start[which] + size * (np.arange(len(which)) - np.repeat(pieces.cumsum() - pieces, pieces))
        columns = (
            first[which] + at, np.minimum(size, stop[which] - at), tables.lengths[numbers[which]],
            before[which], counts[which],
        )  # fmt: skip
        if len(which):
            found.append((size, np.stack(columns, 1).astype(np.int32)))
    return places, found
