"""The exact scan in torch, for every machine and any device, in few large operations.

Query row p and training row i of one position class, training column x and column offset o: the inner
products of columns of the two windows are a batched matrix product over x,

    R[x, (o, p), (i, j)] = sum_{c, r} a q[c, p + r, x - o] v[c, i + r, x, j] - a^2/2 v[c, i + r, x, j]^2

(q: the query image, v: training image j, |r| <= k // 2), and a window sums k columns, by a 0-1 matrix:

    logit[x', (o, p), (i, j)] = 1/beta sum_x window_x[x', x] R[x, (o, p), (i, j)]

which is `-|W - a P|^2 / (2 beta)` without the query's own norm; the end of the scan subtracts it. A pair of
windows takes k C + 1 + W multiply-adds. The columns of a query at all offsets from x lie side by side, so
that the left factors of all x are views of one small matrix. As many offsets, rows and images are in one
product as the memory allows (on a CPU, as the cache holds). The machines differ only in offsets, padding and
window matrices of the `Geometry`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchindex.devices import float64_device, to_float64
from patchindex.exact.parts import STAGE
from patchindex.exact.request import ScoreRequest
from patchindex.exact.single_pixels import SinglePixels
from patchindex.geometry import Axis, Geometry, query_counts
from patchindex.images.by_label import to_unit
from patchindex.images.on_device import blocks_on
from patchindex.softmax import SoftmaxState

__all__ = ["query_bytes", "scan_parts"]

QUERIES_PER_TILE = 8
# Images of a tile, and numbers of one result: on a CPU, larger ones fall out of the cache.
CPU_IMAGES, CPU_RESULT = 256, 1 << 18
IMAGES = 4096
LEAST_MEMORY = 1 << 20  # bytes for queries and results: with less, a scan takes a hundred times as long
PAIR = 75.0  # multiply-adds that take as long as the softmax of a pair
RESULTS = 6  # arrays of the size of R: R, the logits, and four temporaries of the softmax


def query_bytes(geometry: Geometry, channels: int) -> int:
    """Return the bytes of a query's states, with copies."""
    height, width = geometry.size
    return 8 * height * width * (5 + 3 * channels) * 3


def scan_parts(request: ScoreRequest, bounds: Sequence[int]) -> SoftmaxState:
    """Return the states of parts of the training images, (P, B, H, W), as `engine.scan_parts` does.

    The scan is in the dtype of the request, on the device of its noisy images.
    """
    geometry, x, memory, training = request.geometry, request.x, request.memory, request.training
    channels, height, width = x.shape[1:]
    lo, hi = (request.image_range[0] + bound for bound in (bounds[0], bounds[-1]))
    if len(bounds) > 2:  # the range of all images need not come in label order
        training, lo, hi = training.select(slice(lo, hi)), 0, hi - lo
    state = SoftmaxState.empty((len(bounds) - 1, width, height, len(x)), channels, x.device)
    scanner: _AllPixels | SinglePixels = _AllPixels(request, hi - lo)
    if request.mask is not None:
        single = SinglePixels(request, request.mask)
        if single.cost < _full_cost(geometry, len(x), channels):
            scanner = single
    most = max(1, memory // 2 // scanner.bytes_an_image)
    step = int(min(most, CPU_IMAGES if x.device.type == "cpu" else IMAGES))
    tiles = list(_tiles(bounds, step, scanner.parts))
    done, at_once = 0, max(step, memory // 4 // (channels * height * width))
    with blocks_on(training, x.device, lo, hi, at_once, multiple=step) as blocks:
        for tile, block in zip(tiles, _cut(blocks, [tile.images for tile in tiles]), strict=True):
            pixels = to_unit(block.permute(0, 3, 1, 2), request.dtype)
            stop = tile.part + tile.parts
            scanner.add(state[tile.part : stop], pixels.reshape(tile.parts, -1, *pixels.shape[1:]))
            done += tile.images
            request.progress(STAGE, done, hi - lo)
    state = state.transpose(1, 3)
    squares = to_float64(x).square().sum(1)
    along_y, along_x = (torch.from_numpy(counts).to(squares.device) for counts in query_counts(geometry))
    norms = torch.einsum("yi,bij,xj->byx", along_y, squares, along_x)
    state.max_logit -= norms / (2 * request.beta)
    return state


class _Tile(NamedTuple):
    """Images of one part of the training images, or of several whole parts with equally many images."""

    part: int  # the first one
    parts: int
    images: int


def _tiles(bounds: Sequence[int], images: int, parts: int) -> Iterator[_Tile]:
    """Cut parts into tiles of at most so many images, and parts where several fit into a tile."""
    sizes = [b - a for a, b in pairwise(bounds)]
    part = 0
    while part < len(sizes):
        size, together = sizes[part], 1
        while (
            together < min(parts, images // size) and sizes[part : part + together + 1].count(size) > together
        ):
            together += 1
        if size > images:
            yield from (_Tile(part, 1, min(images, size - i)) for i in range(0, size, images))
        else:
            yield _Tile(part, together, together * size)
        part += together


def _cut(blocks: Iterator[Tensor], sizes: Sequence[int]) -> Iterator[Tensor]:
    """Yield the images of the blocks in tiles of these sizes."""
    block = next(blocks)
    for size in sizes:
        while len(block) < size:
            block = torch.cat([block, next(blocks)])
        yield block[:size]
        block = block[size:] if size < len(block) else next(blocks, block[:0])


class _Rows(NamedTuple):
    """Rows of s position classes that have equally many: query rows (s, q), training rows (s, t)."""

    query: np.ndarray
    train: np.ndarray


class _Offsets(NamedTuple):
    """`number` neighbouring column offsets, the largest one `last`, and training columns of their pairs."""

    last: int
    number: int
    train: slice


def _rows_of(axis: Axis) -> list[_Rows]:
    """Return the rows of all position classes; classes of equal sizes are taken together."""
    train = np.array(axis.train_positions)
    found: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for number in range(max(axis.classes) + 1):
        query = np.flatnonzero(np.array(axis.classes) == number)
        mine = train[np.isin(train, query)]
        if len(mine):
            found.setdefault((len(query), len(mine)), []).append((query, mine))
    return [_Rows(*(np.stack(rows) for rows in zip(*same, strict=True))) for same in found.values()]


def _full_cost(geometry: Geometry, batch: int, channels: int) -> float:
    """Return the cost of an image and all queries in `_AllPixels`, in multiply-adds."""
    rows = sum(rows.query.size * rows.train.shape[1] for rows in _rows_of(geometry.y))
    width, offsets = geometry.size[1], geometry.x.offsets
    columns = sum(len(offset.query) for offset in offsets)
    return batch * rows * (width * (len(offsets) * (geometry.k * channels + 1) + columns) + PAIR * columns)


class _AllPixels:
    """All pixels, as described at the top of this module.

    A quarter of the memory is for the queries' columns and for states, one for each pair of columns, so that
    only some queries and some of their rows are in work at a time.
    """

    def __init__(self, request: ScoreRequest, images: int) -> None:
        geometry = request.geometry
        self._geometry, self._a, self._beta = geometry, request.a, request.beta
        self._x = x = request.x.to(request.dtype)
        memory = max(request.memory // 2, LEAST_MEMORY)
        batch, channels, height, width = x.shape
        circular = geometry.y.circular
        self._margin = geometry.k // 2 if circular else min(geometry.k // 2, height - 1)
        depth = (2 * self._margin + 1) * channels + 1
        offsets = geometry.x.offsets
        self._first, self._last = offsets[0].offset, offsets[-1].offset
        # Bytes per class, query and row of the columns and of the states, with copies.
        states = 2 * 8 * (5 + 3 * channels) * sum(len(offset.query) for offset in offsets)
        a_row = 3 * (width + self._last - self._first) * depth * x.element_size() + states
        most = max(1, memory // 2 // a_row)
        groups = _rows_of(geometry.y)
        rows = max(group.query.shape[1] for group in groups)
        self._queries = min(batch, QUERIES_PER_TILE, max(1, most // rows))
        self._rows = [part for group in groups for part in _split(group, max(1, most // self._queries))]
        largest = max(part.query.size for part in self._rows) * self._queries
        self.parts = max(1, memory // 2 // (largest * states))
        # An image takes its pixels three times, the columns of a row with copies, and the results.
        columns = 3 * max(len(part.query) for part in self._rows) * width * depth
        result = largest * width
        self.bytes_an_image = (
            3 * (channels + 1) * height * width + columns + RESULTS * result
        ) * x.element_size()
        step = max(1, min(images, memory // self.bytes_an_image))
        room = memory // (2 * RESULTS * x.element_size())
        if x.device.type == "cpu":
            step, room = min(step, CPU_IMAGES), min(room, CPU_RESULT)
        else:
            step = min(step, IMAGES)
        at_once = max(1, room // (result * step))  # offsets times training rows
        self._groups, self._train_rows = list(_grouped(geometry.x, at_once)), max(1, at_once // len(offsets))
        self._slots = torch.from_numpy(_slots(geometry.x, self._groups)).to(float64_device(x.device))

    def add(self, state: SoftmaxState, tile: Tensor) -> None:
        """Add images of P parts (P, m, C, H, W) to their states, of shape (P, W, H, B)."""
        # Images innermost, for long vectors: (H + 1, W, C, P, m), and row H is zero.
        pixels = torch.nn.functional.pad(tile, (0, 0, 0, 1)).permute(3, 4, 2, 0, 1).contiguous()
        for first in range(0, len(self._x), self._queries):
            for rows in self._rows:
                self._add(state, slice(first, min(first + self._queries, len(self._x))), pixels, rows)

    def _add(self, state: SoftmaxState, queries: slice, pixels: Tensor, rows: _Rows) -> None:
        """Add the images for some queries, and all pairs of some rows."""
        left = self._left(self._x[queries], rows.query)
        width, channels, parts = pixels.shape[1:4]
        for first in range(0, rows.train.shape[1], self._train_rows):
            train = rows.train[:, first : first + self._train_rows]
            right, centres = self._right(pixels, train)
            states = [self._states(left, right, centres, group) for group in self._groups]
            states.append(SoftmaxState.empty((1, *states[0].weight.shape[1:]), channels, left.device))
            # There is a state for each pair of columns: merge the states of each query column.
            merged = SoftmaxState.cat(states)[self._slots].reduce(1)  # (W, P, s, q b)
            merged = merged.transpose(0, 1).reshape((parts, width, rows.query.size, -1))
            at = (
                slice(None),
                torch.arange(width)[:, None],
                torch.from_numpy(rows.query.reshape(1, -1)),
                queries,
            )
            state.merge(merged, at)

    def _left(self, x: Tensor, rows: np.ndarray) -> Tensor:
        """Return the columns of query windows of some rows (s, q), and ones: (s, X, q b, k C + 1).

        Column X is column `X - last` of the query (b, C, H, W), where `last` is the largest offset.
        """
        axis, margin = self._geometry.x, self._margin
        at = torch.from_numpy(_window_rows(self._geometry.y, rows, margin, axis.circular)).to(x.device)
        along = np.arange(-self._last, axis.size - self._first)
        inside = (
            along % axis.size
            if axis.circular
            else np.where((along >= 0) & (along < axis.size), along, axis.size)
        )
        padded = torch.nn.functional.pad(self._a * x, (0, 1, 0, 1))  # row H and column W are zero
        strips = padded[:, :, at][..., torch.from_numpy(inside).to(x.device)]  # (b, C, s, q, k, X)
        strips = strips.permute(2, 5, 3, 0, 4, 1).reshape(len(rows), len(along), rows.shape[1] * len(x), -1)
        return torch.cat([strips, torch.ones_like(strips[..., :1])], -1).contiguous()

    def _right(self, pixels: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the columns of training windows of some rows (s, t), and their centres.

        The shapes are (s W, k C + 1, P t m), with the squares in the last row, and (s, W, P, 1, t m, C).
        """
        axis = self._geometry.y
        at = _window_rows(axis, rows, self._margin, axis.train_padding == "wrapped")
        strips = pixels[torch.from_numpy(at).to(pixels.device)]  # (s, t, k, W, C, P, m)
        strips = strips.permute(0, 3, 2, 4, 5, 1, 6)
        strips = strips.reshape(len(rows) * pixels.shape[1], at.shape[2] * pixels.shape[2], -1)
        squares = strips.square().sum(1, keepdim=True) * (-0.5 * self._a * self._a)
        centres = pixels[torch.from_numpy(rows).to(pixels.device)]  # (s, t, W, C, P, m)
        centres = centres.permute(0, 2, 4, 1, 5, 3).flatten(3, 4).unsqueeze(3)
        return torch.cat([strips, squares], 1), centres

    def _states(self, left: Tensor, right: Tensor, centres: Tensor, group: _Offsets) -> SoftmaxState:
        """Return a state for each pair of columns of a group of offsets: (columns g, P, s, q b)."""
        s, width, parts = centres.shape[:3]
        columns, rows, depth = left.shape[1:]
        start = left.storage_offset() + (self._last - group.last) * rows * depth
        size, strides = (
            (s, width, group.number * rows, depth),
            (columns * rows * depth, rows * depth, depth, 1),
        )
        slabs = left.as_strided(size, strides, start).reshape(s * width, -1, depth)
        partial = torch.bmm(slabs, right).reshape(s, width, -1)
        window = torch.from_numpy(self._geometry.x.window[group.train]).to(left) / self._beta
        logits = (window @ partial).reshape(s, len(window), group.number * rows, parts, -1)
        state = SoftmaxState.of(logits.transpose(2, 3), centres[:, group.train])  # (s, columns, P, g q b)
        state = state.reshape((s, len(window), parts, group.number, rows))
        return state.transpose(0, 1).transpose(1, 3).reshape((-1, parts, s, rows))


def _split(rows: _Rows, most: int) -> Iterator[_Rows]:
    """Yield parts of rows with at most so many query rows."""
    s, q = rows.query.shape
    classes, each = max(1, most // q), min(q, most)
    for first in range(0, s, classes):
        some = slice(first, first + classes)
        for row in range(0, q, each):
            yield _Rows(rows.query[some, row : row + each], rows.train[some])


def _window_rows(axis: Axis, rows: np.ndarray, margin: int, wrapped: bool) -> np.ndarray:
    """Return the rows of the windows of some rows (...): (..., 2 margin + 1), the size for a row outside."""
    at = rows[..., None] + np.arange(-margin, margin + 1)
    return at % axis.size if wrapped else np.where((at >= 0) & (at < axis.size), at, axis.size)


def _grouped(axis: Axis, most: int) -> Iterator[_Offsets]:
    """Yield the offsets of an axis in groups of at most so many."""
    for first in range(0, len(axis.offsets), most):
        some = axis.offsets[first : first + most]
        train = slice(min(o.train.start for o in some), max(o.train.stop for o in some))
        yield _Offsets(some[-1].offset, len(some), train)


def _slots(axis: Axis, groups: Sequence[_Offsets]) -> np.ndarray:
    """Return the pairs of each query column, as numbers into the states of all groups in order.

    int64, shape (W, most pairs of a column), padded with the total number of states.
    """
    offsets = {offset.offset: offset for offset in axis.offsets}
    pairs: list[list[int]] = [[] for _ in range(axis.size)]
    total = 0
    for group in groups:
        for i in range(group.number):
            offset = offsets[group.last - i]
            for query, train in zip(offset.query, range(offset.train.start, offset.train.stop), strict=True):
                pairs[query].append(total + (train - group.train.start) * group.number + i)
        total += (group.train.stop - group.train.start) * group.number
    most = max(map(len, pairs))
    return np.array([mine + [total] * (most - len(mine)) for mine in pairs])
