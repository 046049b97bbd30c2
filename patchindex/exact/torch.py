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
from patchindex.training import TrainingImages, to_unit
from patchindex.windows import query_norms

__all__ = ["scan"]

QUERIES_A_TILE = 8


def scan(
    training: TrainingImages,
    geometry: Geometry,
    x: Tensor,
    a: float,
    beta: float,
    *,
    label: int | None = None,
    memory: int = 256 << 20,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[float], None] | None = None,
) -> SoftmaxState:
    """Scan by matrix products, in the device and dtype asked for; the state is float64 always.

    Parameters and results are those of `patchindex.exact.scan`.
    """
    batch, channels, height, width = x.shape
    state = SoftmaxState.empty((width, height, batch), channels, x.device)
    lo, hi = training.range_of(label)
    # Half of the memory is for the tile and half for what a query takes whatever the tile: its shifted rows,
    # and the states of all pairs of columns, with copies. At least one query is taken.
    rows = 3 * width * height * (channels + 1) * height * dtype.itemsize
    states = geometry.x.slots.size * height * 8 * (5 + 3 * channels)
    queries = min(batch, QUERIES_A_TILE, max(1, memory // 2 // (3 * rows + 2 * states)))
    # An image of a tile takes its pixels in three layouts, and R, the logits and three temporaries a query.
    per_image = (3 * (channels + 1) + 6 * queries) * height * width * dtype.itemsize
    step = int(min(max(1, memory // 2 // per_image), 256))  # past 256 images a tile falls out of the cache
    for start in range(lo, hi, step):
        stop = min(start + step, hi)
        tile = to_unit(training.tile(start, stop, x.device), dtype)
        for first in range(0, batch, queries):
            part = slice(first, min(first + queries, batch))
            _scan_tile(state, part, tile, geometry, x[part].to(dtype), a, beta)
        if progress is not None:
            progress((stop - lo) / (hi - lo))
    state = SoftmaxState(*(field.transpose(0, 2).contiguous() for field in vars(state).values()))
    state.max_logit -= query_norms(x.double(), geometry) / (2 * beta)
    return state


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
