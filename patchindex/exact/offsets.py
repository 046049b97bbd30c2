"""The exact scan in torch, for every machine and any device.

For a fixed offset o between query and training positions, the inner products of all windows that are o apart
are window sums of pixel products, and a window sum is a product with a 0-1 matrix along each axis. A tile of
n images costs two batched matrix products for each pair of a row and a column offset:

    R[x, y, j] = sum_{c, i} window_y[y, i] (a q[c, i - o_y, x - o_x] v[c, i, x, j] - a^2/2 v[c, i, x, j]^2)
    logit[x', y, j] = 1/beta sum_x window_x[x', x] R[x, y, j]

(q: the query image, v: training image j), which is `-|W - a P|^2 / (2 beta)` without the query's own norm;
the end of the scan subtracts it. A pair of windows takes about (C + 1) H + W multiply-adds for any k, and no
patch is ever unfolded. The machines differ only in offsets, padding and window matrices of the `Geometry`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from patchindex.exact.parts import STAGE, scan_each
from patchindex.exact.request import ScoreRequest
from patchindex.geometry import Geometry, Offset, query_counts, windows
from patchindex.images.by_label import to_unit
from patchindex.images.on_device import blocks_on
from patchindex.softmax import SoftmaxState

__all__ = ["query_bytes", "scan_parts"]

QUERIES_PER_TILE = 8

# Costs of `_Few` in multiply-adds of `_All`: of a multiply-add, of copying windows (as much as COPIED
# queries), of the dozen calls for a position class. They choose the faster way and change no result;
# `benchmarks/exact.py --parts pixels` checks them on a CPU.
WINDOW, COPIED, CLASS = 1.0, 8, 1e6


def query_bytes(geometry: Geometry, channels: int) -> int:
    """Return the bytes of a query's states, with copies."""
    height, width = geometry.size
    return 8 * height * width * (5 + 3 * channels) * 3


def scan_parts(request: ScoreRequest, bounds: Sequence[int]) -> SoftmaxState:
    """Return the states of parts of the training images, (P, B, H, W), as `engine.scan_parts` does."""
    return scan_each(_scan, request, bounds)


def _scan(request: ScoreRequest) -> SoftmaxState:
    """Scan in the dtype of the request, on the device of its noisy images."""
    geometry, x, memory = request.geometry, request.x, request.memory
    lo, hi = request.image_range
    channels, height, width = x.shape[1:]
    state = SoftmaxState.empty((width, height, len(x)), channels, x.device)
    few = None if request.mask is None else _Few(request, request.mask)
    if few is not None and few.cost < _full_cost(geometry, len(x), channels):
        per_image, add = few.bytes_an_image, few.add
    else:
        whole = _All(request)
        per_image, add = whole.bytes_an_image, whole.add
    step = int(min(max(1, memory // 2 // per_image), 256))  # past 256 images a tile falls out of the cache
    done, tile_bytes = 0, channels * height * width
    most = max(step, memory // 4 // tile_bytes)
    with blocks_on(request.training, x.device, lo, hi, most, multiple=step) as blocks:
        for block in blocks:
            for tile in block.split(step):
                add(state, to_unit(tile.permute(0, 3, 1, 2), request.dtype))
                done += len(tile)
                request.progress(STAGE, done, hi - lo)
    state = state.transpose(0, 2)
    along_y, along_x = (torch.from_numpy(counts).to(x.device) for counts in query_counts(geometry))
    norms = torch.einsum("yi,bij,xj->byx", along_y, x.double().square().sum(1), along_x)
    state.max_logit -= norms / (2 * request.beta)
    return state


def _full_cost(geometry: Geometry, batch: int, channels: int) -> float:
    """Return the multiply-adds of an image and all queries in `_All`."""
    height, width = geometry.size
    rows, columns = (sum(len(offset.query) for offset in axis.offsets) for axis in (geometry.y, geometry.x))
    return batch * rows * width * (len(geometry.x.offsets) * (channels + 1) * height + columns)


class _Few:
    """Some pixels of the queries, class by class: a matrix product of their windows and the patches.

    Windows, patches and logits are made in parts that take a quarter of the memory each.
    """

    def __init__(self, request: ScoreRequest, mask: Tensor) -> None:
        geometry = request.geometry
        self.geometry, self.a, self.beta = geometry, request.a, request.beta
        x = request.x.to(request.dtype)
        self._queries = windows(x, geometry, query=True)
        self._numbers = request.memory // 4 // x.element_size()
        batch, place = mask.nonzero(as_tuple=True)
        classes = torch.from_numpy(geometry.query_classes.reshape(-1)).to(x.device)[place]
        members = torch.from_numpy(geometry.train_classes).to(x.device)
        self._classes: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._size = geometry.k**2 * x.shape[1]
        self.cost, most = 0.0, 1
        for number in classes.unique():
            mine = classes == number
            y, x_ = place[mine] // geometry.size[1], place[mine] % geometry.size[1]
            patches = (members == number).nonzero()[:, 0]
            self._classes.append((batch[mine], y, x_, patches))
            self.cost += len(patches) * self._size * (len(y) + COPIED) * WINDOW + CLASS
            most = max(most, len(patches))
        self.bytes_an_image = 3 * most * self._size * x.element_size()

    def add(self, state: SoftmaxState, tile: Tensor) -> None:
        """Add a tile of images (n, C, H, W) to the state, of shape (W, H, B)."""
        patches = windows(tile, self.geometry, query=False)
        rows, columns = (axis.train_positions for axis in (self.geometry.y, self.geometry.x))
        for batch, query_y, query_x, members in self._classes:
            for some in members.split(max(1, self._numbers // (3 * self._size * len(tile)))):
                y, x = some // len(columns), some % len(columns)
                mine = patches[:, :, y, x].transpose(1, 2).reshape(len(tile) * len(some), -1)
                norms = mine.square().sum(1) * (-0.5 * self.a * self.a / self.beta)
                centres = tile[:, :, y + rows[0], x + columns[0]].transpose(1, 2).reshape(len(mine), -1)
                at_once = max(1, self._numbers // (2 * self._size + 4 * len(mine)))
                for b, qy, qx in zip(*(p.split(at_once) for p in (batch, query_y, query_x)), strict=True):
                    window = self._queries[b, :, qy, qx].flatten(1) * (self.a / self.beta)
                    state.merge(SoftmaxState.of(torch.addmm(norms, window, mine.T), centres), (qx, qy, b))


class _All:
    """All pixels, offset by offset, as described at the top of this module.

    Shifted rows and states (one for each pair of columns) take half of the memory, so that only some queries
    and some of their rows are in work at a time.
    """

    def __init__(self, request: ScoreRequest) -> None:
        geometry = request.geometry
        self.geometry, self.a, self.beta = geometry, request.a, request.beta
        self.x = x = request.x.to(request.dtype)
        memory = request.memory // 2
        batch, channels, height, width = x.shape
        # Three times each, with copies.
        shifted = 3 * width * (channels + 1) * height * x.element_size()
        states = geometry.x.slots.size * 8 * (5 + 3 * channels)
        row = 3 * shifted + 2 * states
        self._queries = min(batch, QUERIES_PER_TILE, max(1, memory // (row * height)))
        self._rows = max(1, min(height, memory // (row * self._queries)))
        # An image takes its pixels in three layouts, and R, the logits and three temporaries.
        results = 6 * self._queries * self._rows * width
        self.bytes_an_image = (3 * (channels + 1) * height * width + results) * x.element_size()

    def add(self, state: SoftmaxState, tile: Tensor) -> None:
        """Add a tile of images (n, C, H, W) to the state, of shape (W, H, B)."""
        for first in range(0, len(self.x), self._queries):
            part = slice(first, min(first + self._queries, len(self.x)))
            self._add(state, part, tile, self.x[part])

    def _add(self, state: SoftmaxState, part: slice, tile: Tensor, x: Tensor) -> None:
        geometry, a = self.geometry, self.a
        n, channels, height, width = tile.shape
        window_y, window_x = (torch.from_numpy(axis.window).to(x) for axis in (geometry.y, geometry.x))
        # Layout (W, C, H, n): images innermost, for long vectors; columns outermost, a product each.
        pixels = tile.permute(3, 1, 2, 0).contiguous()
        right = torch.cat([pixels, pixels.square().sum(1, keepdim=True)], 1)
        right = right.reshape(width, (channels + 1) * height, n)
        centres = pixels.permute(0, 2, 3, 1).contiguous()  # (W, H, n, C)
        # Every shift of x is a slice of `padded`, (b, C, 3 H, 3 W): x amid copies or zeros.
        margins = (width, width, height, height)
        padded = x.repeat(1, 1, 3, 3) if geometry.y.circular else torch.nn.functional.pad(x, margins)
        slots = torch.from_numpy(geometry.x.slots).to(x.device)
        for offset_y, query_y, train_y in self._row_offsets():
            rows = window_y[train_y]  # (Ty, H)
            shifted = padded[:, :, height - offset_y : 2 * height - offset_y].permute(3, 0, 1, 2)
            left = a * shifted.unsqueeze(1) * rows[None, :, None, None, :]  # (3W, Ty, b, C, H)
            squares = (-0.5 * a * a * rows)[:, None, None, :].expand(*left.shape[:3], 1, height)
            left = torch.cat([left, squares], 3).reshape(3 * width, len(rows) * len(x), -1)
            states = []
            for offset_x, _, train_x in geometry.x.offsets:
                partial = torch.bmm(left[width - offset_x : 2 * width - offset_x], right)  # (W, Ty b, n)
                columns = window_x[train_x] / self.beta
                logits = (columns @ partial.reshape(width, -1)).reshape(len(columns), len(rows), len(x), n)
                states.append(SoftmaxState.of(logits, centres[train_x, train_y].unsqueeze(2)))
            # There is a state for each pair of columns: merge the states of each query column.
            states.append(SoftmaxState.empty((1, len(rows), len(x)), channels, x.device))
            merged = SoftmaxState.cat(states)[slots].reduce(1)  # (W, Ty, b)
            at = (torch.arange(width)[:, None], torch.from_numpy(query_y)[None, :], part)
            state.merge(merged, at)

    def _row_offsets(self) -> Iterator[Offset]:
        """Yield the row offsets, cut into parts of at most `_rows` rows."""
        for offset, query, train in self.geometry.y.offsets:
            for first in range(0, len(query), self._rows):
                some = query[first : first + self._rows]
                start = train.start + first
                yield Offset(offset, some, slice(start, start + len(some)))
