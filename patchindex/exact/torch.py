"""The exact scan in torch, for every machine and any device.

For a fixed offset o between query and training positions, the inner products of all windows that are o apart
are pixel products summed over windows, and a window sum is a product with a matrix of ones along each axis.
So a tile of n images costs, for each of the pairs of row and column offsets, two batched matrix products:

    R[x, y, j] = sum_{c, i} window_y[y, i] (a q[c, i - o_y, x - o_x] v[c, i, x, j] - a^2/2 v[c, i, x, j]^2)
    logit[x', y, j] = 1/beta sum_x window_x[x', x] R[x, y, j]

(q: the query image, v: training image j), which is `-|W - a P|^2 / (2 beta)` but for the query's own norm,
added once at the end. The work a pair is about (C + 1) H + W multiply-adds in matrix products whatever k is,
and no patch is ever unfolded. The five machines differ in the offsets, padding and window matrices only, and
all of those come from the `Geometry`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from patchindex.patches import Geometry
from patchindex.softmax import SoftmaxState
from patchindex.training import TrainingImages, as_tensor, read_ahead, to_unit
from patchindex.windows import query_norms, windows

__all__ = ["query_bytes", "scan"]

QUERIES_A_TILE = 8

# What the two ways cost, in multiply-adds of the window sums, measured by benchmarks/exact.py on a CPU: a
# multiply-add of windows, which are copied first, as much as COPIED queries cost; a class of positions, in a
# tile, for its dozen calls. Only the time depends on them.
WINDOW, COPIED, CLASS = 1.0, 8, 1e6


def query_bytes(geometry: Geometry, channels: int) -> int:
    """Return what a query takes besides its share of `memory` in a tile: its states, with copies."""
    height, width = geometry.size
    return 8 * height * width * (5 + 3 * channels) * 3


def scan(
    training: TrainingImages,
    lo: int,
    hi: int,
    geometry: Geometry,
    x: Tensor,
    a: float,
    beta: float,
    *,
    mask: Tensor | None,
    memory: int,
    dtype: torch.dtype,
    told: Callable[[float], None],
) -> SoftmaxState:
    """Scan in the dtype and on the device asked for: see `Engine`."""
    batch, channels, height, width = x.shape
    state = SoftmaxState.empty((width, height, batch), channels, x.device)
    few = None if mask is None else _Few(geometry, x.to(dtype), a, beta, mask)
    if few is not None and few.cost < _full_cost(geometry, batch, channels):
        per_image = few.bytes_an_image
    else:
        few = None
        # Half of the memory is for the tile and half for what a query takes whatever the tile: its shifted
        # rows, and the states of all pairs of columns, with copies. At least one query is taken.
        rows = 3 * width * height * (channels + 1) * height * dtype.itemsize
        states = geometry.x.slots.size * height * 8 * (5 + 3 * channels)
        queries = min(batch, QUERIES_A_TILE, max(1, memory // 2 // (3 * rows + 2 * states)))
        # An image takes its pixels in three layouts, and R, the logits and three temporaries a query.
        per_image = (3 * (channels + 1) + 6 * queries) * height * width * dtype.itemsize
    step = int(min(max(1, memory // 2 // per_image), 256))  # past 256 images a tile falls out of the cache
    done = 0
    with read_ahead(training.blocks(lo, hi, step)) as blocks:
        for block in blocks:
            tile = to_unit(as_tensor(block, x.device).permute(0, 3, 1, 2), dtype)
            if few is not None:
                few.add(state, tile)
            else:
                for first in range(0, batch, queries):
                    part = slice(first, min(first + queries, batch))
                    _scan_tile(state, part, tile, geometry, x[part].to(dtype), a, beta)
            done += len(block)
            told(done / (hi - lo))
    state = SoftmaxState(*(field.transpose(0, 2).contiguous() for field in vars(state).values()))
    state.max_logit -= query_norms(x.double(), geometry) / (2 * beta)
    return state


def _full_cost(geometry: Geometry, batch: int, channels: int) -> float:
    """Return the multiply-adds of an image and all queries in `_scan_tile`."""
    height, width = geometry.size
    rows, columns = (sum(len(offset.query) for offset in axis.offsets) for axis in (geometry.y, geometry.x))
    return batch * rows * width * (len(geometry.x.offsets) * (channels + 1) * height + columns)


class _Few:
    """Some pixels of the queries, class by class: a matrix product of their windows and the patches'."""

    def __init__(self, geometry: Geometry, x: Tensor, a: float, beta: float, mask: Tensor) -> None:
        self.geometry, self.a, self.beta = geometry, a, beta
        width = geometry.size[1]
        queries = windows(x, geometry, query=True)
        batch, place = mask.nonzero(as_tuple=True)
        classes = torch.from_numpy(geometry.query_classes.reshape(-1)).to(x.device)[place]
        members = torch.from_numpy(geometry.train_classes).to(x.device)
        self._classes = []
        self.cost, self.bytes_an_image = 0.0, 1
        for number in classes.unique():
            mine = classes == number
            b, y, x_ = batch[mine], place[mine] // width, place[mine] % width
            patches = (members == number).nonzero()[:, 0]
            window = queries[b, :, y, x_].flatten(1) * (a / beta)
            self._classes.append((window, (x_, y, b), patches))
            size = window.shape[1]
            self.cost += len(patches) * size * (len(b) + COPIED) * WINDOW + CLASS
            taken = len(patches) * (3 * size + 4 * len(b)) * x.element_size()
            self.bytes_an_image = max(self.bytes_an_image, taken)

    def add(self, state: SoftmaxState, tile: Tensor) -> None:
        """Add a tile of images (n, C, H, W) to the state, of shape (W, H, B)."""
        patches = windows(tile, self.geometry, query=False)
        rows, columns = (axis.train_positions for axis in (self.geometry.y, self.geometry.x))
        for window, at, members in self._classes:
            y, x = members // len(columns), members % len(columns)
            mine = patches[:, :, y, x].transpose(1, 2).reshape(len(tile) * len(members), -1)
            norms = mine.square().sum(1) * (-0.5 * self.a * self.a / self.beta)
            centres = tile[:, :, y + rows[0], x + columns[0]].transpose(1, 2).reshape(len(mine), -1)
            state.merge(SoftmaxState.of(torch.addmm(norms, window, mine.T), centres), at)


def _scan_tile(
    state: SoftmaxState, part: slice, tile: Tensor, geometry: Geometry, x: Tensor, a: float, beta: float
) -> None:
    """Add a tile of images (n, C, H, W) to the state of some queries (b, C, H, W)."""
    n, channels, height, width = tile.shape
    window_y, window_x = (_tensor(axis.window, x) for axis in (geometry.y, geometry.x))
    # Layout (W, C, H, n): images innermost, for long vectors; columns outermost, the batch of the product.
    pixels = tile.permute(3, 1, 2, 0).contiguous()
    right = torch.cat([pixels, pixels.square().sum(1, keepdim=True)], 1)
    right = right.reshape(width, (channels + 1) * height, n)
    centres = pixels.permute(0, 2, 3, 1).contiguous()  # (W, H, n, C)
    padded = _pad(x, geometry)  # (b, C, 3 H, 3 W): every shift of x is a slice of it
    slots = torch.from_numpy(geometry.x.slots).to(x.device)
    for offset_y, query_y, train_y in geometry.y.offsets:
        rows = window_y[train_y]  # (Ty, H)
        shifted = padded[:, :, height - offset_y : 2 * height - offset_y].permute(3, 0, 1, 2)  # (3W, b, C, H)
        left = a * shifted.unsqueeze(1) * rows[None, :, None, None, :]  # (3W, Ty, b, C, H)
        squares = (-0.5 * a * a * rows)[:, None, None, :].expand(*left.shape[:3], 1, height)
        left = torch.cat([left, squares], 3).reshape(3 * width, len(rows) * len(x), -1)
        states = []
        for offset_x, _, train_x in geometry.x.offsets:
            partial = torch.bmm(left[width - offset_x : 2 * width - offset_x], right)  # (W, Ty b, n)
            columns = window_x[train_x] / beta
            logits = (columns @ partial.reshape(width, -1)).reshape(len(columns), len(rows), len(x), n)
            states.append(SoftmaxState.of(logits, centres[train_x, train_y].unsqueeze(2)))
        # Each pair of columns has a state by now: give each query column its own, and merge them.
        states.append(SoftmaxState.empty((1, len(rows), len(x)), channels, x.device))
        merged = SoftmaxState.cat(states)[slots].reduce(1)  # (W, Ty, b)
        at = (torch.arange(width)[:, None], torch.from_numpy(query_y)[None, :], part)
        state.merge(merged, at)


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like)


def _pad(x: Tensor, geometry: Geometry) -> Tensor:
    """Surround x with an image's size on every side: itself where windows are circular, else zeros."""
    height, width = geometry.size
    if geometry.y.circular:
        return x.repeat(1, 1, 3, 3)
    return torch.nn.functional.pad(x, (width, width, height, height))
