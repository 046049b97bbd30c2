"""The exact scan on the CPU: logits of all patches of a tile of images, added to softmax sums at once.

    logit_j = -||W(x, p) - a P_j||^2 / (2 beta) = q . P_j - norm_j + (a term of p alone, added at the end)

Here `q . P_j` is a sum of pixel products over the window, with `q = (a / beta) x` in units of log 2, and
`norm_j = a^2 ||P_j||^2 / (2 beta)`. A grey level is subtracted from x and P first, which keeps sums small.

Why it is fast. Neighbouring windows at one offset between query and training positions share all products but
a row and a column. `scan_all` walks down the rows of a tile with sums of k rows of products per column (2 C
multiply-adds per pair), and along each row with a sum of k columns (two additions, and three that keep what
those round off): the cost per pair does not depend on k. `scan_pixels` computes each window product, for few
pixels. A block of logits far below the maximum of its pixel is skipped before any exponential.

============== =============================== =======================================================
array, float32 shape, stored flat              content
============== =============================== =======================================================
tile.values    (H, C, padded W, lanes)         pixels of `lanes` images, integers `pixel - grey`
tile.norms     (masks, H, padded W, lanes)     norm_j, `NO_LOGIT` where the mask has no training window
query          (H + 1, C, W)                   q; the last row is zeros
sums.sums      (H W, 2 + C, LANES)             sums of w, of w^2 and of w times each channel of the centre
sums.columns   (slots + 1, 2, BLOCK)           sums of k rows of products, for two row offsets
============== =============================== =======================================================

A vector is `BLOCK` floats: neighbouring training columns times lanes. Logits are in units of log 2, and the
reference `top` of a pixel is a whole number, so moving it changes only exponents and is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.kernels.compile import compiled, inlined
from patchindex.kernels.simd import (
    BLOCK,
    LANES,
    any_above,
    exp2,
    fold_max,
    fold_product,
    fold_sum,
    largest,
    load_block,
    load_lanes,
    splat_block,
    splat_lanes,
    store,
)
from patchindex.kernels.windows import REACH

__all__ = [
    "NOTHING_YET",
    "NO_LOGIT",
    "Sums",
    "Tile",
    "add_block",
    "prepare",
    "scan_all",
    "scan_pixels",
]

NOTHING_YET = np.float32(-1e29)  # `top` of a pixel without members: above every masked logit
FLOOR = np.float32(-62.0)  # the smallest weight is 2^FLOOR, whose square is still a normal number
SLACK = np.float32(16.0)  # weights may grow to 2^SLACK before `top` is moved
NO_LOGIT = np.float32(1e30)  # norm of a window that must not count


class Tile(NamedTuple):
    """A tile of training images."""

    values: np.ndarray
    norms: np.ndarray
    height: int
    width: int
    channels: int
    lanes: int
    padded: int  # width with padding


class Sums(NamedTuple):
    """The softmax sums of one thread for one query."""

    top: np.ndarray  # float32 (pixels,), whole numbers: the largest logit so far, or at most `SLACK` below it
    sums: np.ndarray
    columns: np.ndarray  # scratch memory of `scan_all`
    threshold: np.float32  # blocks of logits that are this far below `top` are skipped


@compiled
def prepare(images, grey, scale, rows, columns, masks, wrapped, tile, down):  # type: ignore[no-untyped-def]
    """Write uint8 images (n, H, W, C) into a tile, with `scale` times the squared norms of their windows.

    `rows`, `columns` and `masks` are `norm_rows`, `norm_columns` and `masks` of the `Plan`; `down` is scratch
    memory, float64 (W, lanes). The caller has set the padding of the tile to 0, and norms in the padding and
    outside the masks to `NO_LOGIT`; for wrapped windows the padding is filled here. Sums of squares are sums
    of integers, so they are exact.
    """
    n = len(images)
    height, width, channels, lanes, padded = tile.height, tile.width, tile.channels, tile.lanes, tile.padded
    pad = (padded - width) // 2
    values = tile.values.reshape(height, channels, padded, lanes)
    norms = tile.norms.reshape(len(masks), height, padded, lanes)
    for y in range(height):
        for lane in range(n):
            for x in range(width):
                for c in range(channels):
                    values[y, c, pad + x, lane] = np.float32(images[lane, y, x, c]) - grey[c]
        for c in range(channels):
            values[y, c, pad : pad + width, n:] = np.float32(0)
            if wrapped:
                for x in range(pad):
                    values[y, c, pad - 1 - x] = values[y, c, pad + (-1 - x) % width]
                    values[y, c, pad + width + x] = values[y, c, pad + x % width]
    down[:] = 0.0
    for r in range(len(rows)):
        for entry in range(2):
            row, sign = rows[r, entry], 1.0 - 2.0 * entry
            if row >= 0:
                for c in range(channels):
                    for x in range(width):
                        for lane in range(lanes):
                            v = np.float64(values[row, c, pad + x, lane])
                            down[x, lane] += sign * v * v
        y = rows[r, 2]
        if y < 0:
            continue
        along = np.zeros(lanes)
        for j in range(len(columns)):
            for entry in range(2):
                column, sign = columns[j, entry], 1.0 - 2.0 * entry
                if column >= 0:
                    for lane in range(lanes):
                        along[lane] += sign * down[column, lane]
            x = columns[j, 2]
            if x < 0:
                continue
            for m in range(len(masks)):
                if masks[m, x]:
                    for lane in range(lanes):
                        norms[m, y, pad + x, lane] = np.float32(along[lane] * scale)
                    norms[m, y, pad + x, n:] = NO_LOGIT
        if wrapped:
            for x in range(pad):
                norms[0, y, pad - 1 - x] = norms[0, y, pad + (-1 - x) % width]
                norms[0, y, pad + width + x] = norms[0, y, pad + x % width]


@inlined
def add_block(logits, pixel, sums, tile, centres):  # type: ignore[no-untyped-def]
    """Add a block of logits to the sums of a pixel; `centres` is the index of their centres in the tile."""
    top = fold_max(logits)
    reference = sums.top[pixel]
    if not any_above(top, reference - sums.threshold):
        return
    stride = tile.padded * tile.lanes
    at = pixel * (2 + tile.channels) * LANES
    if any_above(top, reference + SLACK):
        highest = np.float32(np.ceil(largest(top)))
        # A power of two, so scaling is exact. The sums are zero when `top` is NOTHING_YET.
        scale = np.float32(2.0 ** max(np.float64(reference - highest), -200.0))
        for e in range(2 + tile.channels):
            factor = scale * scale if e == 1 else scale
            store(sums.sums, at + e * LANES, load_lanes(sums.sums, at + e * LANES) * splat_lanes(factor))
        sums.top[pixel] = reference = highest
    weights = exp2(logits - splat_block(reference), FLOOR)
    store(sums.sums, at, fold_sum(load_lanes(sums.sums, at), weights))
    store(sums.sums, at + LANES, fold_product(load_lanes(sums.sums, at + LANES), weights, weights))
    for c in range(tile.channels):
        e = at + (2 + c) * LANES
        centre = load_block(tile.values, centres + c * stride)
        store(sums.sums, e, fold_product(load_lanes(sums.sums, e), weights, centre))


@inlined
def _products(tile, query, values, one, two):  # type: ignore[no-untyped-def]
    """Multiply a block of training values by each of two query pixels, summed over channels."""
    stride = tile.padded * tile.lanes
    value = load_block(tile.values, values)
    first, second = splat_block(query[one]) * value, splat_block(query[two]) * value
    for c in range(1, tile.channels):
        value = load_block(tile.values, values + c * stride)
        first = first + splat_block(query[one + c * tile.width]) * value
        second = second + splat_block(query[two + c * tile.width]) * value
    return first, second


@inlined
def _sum_exactly(s, lost, change):  # type: ignore[no-untyped-def]
    """Add a change to a sum, and the rounding error to `lost` (Dekker's fast two-sum)."""
    new = s + change
    return new, lost + (change - (new - s))


@compiled
def scan_all(tile, query, tables, units, sums):  # type: ignore[no-untyped-def]
    """Add a tile's patches to all pixels, for some units of the tables `Full`.

    A unit is two row offsets, computed together, and a block of column offsets.
    """
    lanes, channels, width = tile.lanes, tile.channels, tile.width
    line = tile.padded * lanes  # floats of a row of one channel
    query_line = channels * width
    nothing = splat_block(np.float32(0))
    for unit in units:
        pair, b = unit // len(tables.slots), unit % len(tables.slots)
        n_slots = tables.slots[b]
        for j in range(2 * n_slots):
            store(sums.columns, j * BLOCK, nothing)
        for j in range(2 * tables.slot_train.shape[1], 2 * tables.slot_train.shape[1] + 2):
            store(sums.columns, j * BLOCK, nothing)
        norms = tables.mask[b] * tile.height * line
        for r in range(tables.row_start[pair], tables.row_start[pair + 1]):
            enters, leaves, y = tables.rows[r]
            (add_1, add_2), (sub_1, sub_2), (y_1, y_2) = tables.query_rows[r]
            if enters >= 0:
                for j in range(n_slots):
                    column, q = tables.slot_train[b, j] * lanes, tables.slot_query[b, j]
                    at = enters * channels * line + column
                    change_1, change_2 = _products(
                        tile, query, at, add_1 * query_line + q, add_2 * query_line + q
                    )
                    if leaves >= 0:
                        at = leaves * channels * line + column
                        old_1, old_2 = _products(
                            tile, query, at, sub_1 * query_line + q, sub_2 * query_line + q
                        )
                        change_1, change_2 = change_1 - old_1, change_2 - old_2
                    at = 2 * j * BLOCK
                    store(sums.columns, at, load_block(sums.columns, at) + change_1)
                    store(sums.columns, at + BLOCK, load_block(sums.columns, at + BLOCK) + change_2)
            if y < 0:
                continue
            s_1 = s_2 = load_block(tables.start, b * BLOCK)
            lost_1 = lost_2 = nothing
            for j in range(tables.steps[b]):
                add, sub = tables.columns[b, j, 0] * 2 * BLOCK, tables.columns[b, j, 1] * 2 * BLOCK
                column, x = tables.columns[b, j, 2] * lanes, tables.columns[b, j, 3]
                change = load_block(sums.columns, add) - load_block(sums.columns, sub)
                s_1, lost_1 = _sum_exactly(s_1, lost_1, change)
                change = load_block(sums.columns, add + BLOCK) - load_block(sums.columns, sub + BLOCK)
                s_2, lost_2 = _sum_exactly(s_2, lost_2, change)
                if x >= 0:
                    norm = load_block(tile.norms, norms + y * line + column)
                    centres = y * channels * line + column
                    if y_1 >= 0:
                        add_block(s_1 - norm + lost_1, y_1 * width + x, sums, tile, centres)
                    if y_2 >= 0:
                        add_block(s_2 - norm + lost_2, y_2 * width + x, sums, tile, centres)


@inlined
def _same_ranges(windows, one, two):  # type: ignore[no-untyped-def]
    """Return whether two pixels are compared with the same training positions."""
    y, x, other_y, other_x = windows.y_of[one], windows.x_of[one], windows.y_of[two], windows.x_of[two]
    same = True
    for e in range(2):
        same &= windows.range_y[y, e] == windows.range_y[other_y, e]
        same &= windows.range_x[x, e] == windows.range_x[other_x, e]
    return same


@compiled
def scan_pixels(tile, query, windows, singles, pixels, sums):  # type: ignore[no-untyped-def]
    """Add a tile's patches to some pixels (raster numbers), one window product at a time.

    Two pixels in a row that are compared with the same positions share each training value that is loaded:
    loading takes as long as multiplying.
    """
    lanes, channels, width = tile.lanes, tile.channels, tile.width
    line = tile.padded * lanes
    pad = (tile.padded - width) // 2
    side = windows.k
    zeros = tile.height * channels * width  # the query row of zeros, for padding
    p = 0
    while p < len(pixels):
        one = two = pixels[p]
        if p + 1 < len(pixels) and _same_ranges(windows, one, pixels[p + 1]):
            two = pixels[p + 1]
        p += 1 + int(two != one)
        y_1, x_1, y_2, x_2 = one // width, one % width, two // width, two % width
        first_y, last_y = windows.range_y[y_1, 0], windows.range_y[y_1, 1]
        first_x, end = windows.range_x[x_1, 0], windows.range_x[x_1, 1]
        mask = singles.mask[x_1]
        # Places in the tables of windows, which begin `REACH` pixels before the first window.
        y_1, x_1, y_2, x_2 = y_1 + REACH, x_1 + REACH, y_2 + REACH, x_2 + REACH
        for i in range(first_y, last_y):
            norms = (mask * tile.height + i) * line
            for j in range(first_x, end, BLOCK // lanes):
                s_1 = s_2 = load_block(singles.start, (min(end - j, BLOCK // lanes) - 1) * BLOCK)
                lost_1 = lost_2 = splat_block(np.float32(0))
                for dy in range(side):
                    row_1, row_2 = windows.query_y[y_1 + dy], windows.query_y[y_2 + dy]
                    train_y = windows.train_y[i + REACH + dy]
                    if train_y < 0:
                        continue
                    change_1 = change_2 = splat_block(np.float32(0))
                    for dx in range(side):
                        column_1, column_2 = windows.query_x[x_1 + dx], windows.query_x[x_2 + dx]
                        train_x = windows.train_x[j + REACH + dx]
                        if train_x < 0:
                            continue
                        q_1, q_2 = row_1 * channels * width + column_1, row_2 * channels * width + column_2
                        at = train_y * channels * line + (pad + train_x) * lanes
                        product_1, product_2 = _products(
                            tile, query, at,
                            q_1 if row_1 >= 0 and column_1 >= 0 else zeros,
                            q_2 if row_2 >= 0 and column_2 >= 0 else zeros,
                        )  # fmt: skip
                        change_1, change_2 = change_1 + product_1, change_2 + product_2
                    s_1, lost_1 = _sum_exactly(s_1, lost_1, change_1)
                    s_2, lost_2 = _sum_exactly(s_2, lost_2, change_2)
                column = (pad + j) * lanes
                norm = load_block(tile.norms, norms + column)
                centres = i * channels * line + column
                add_block(s_1 - norm + lost_1, one, sums, tile, centres)
                if two != one:
                    add_block(s_2 - norm + lost_2, two, sums, tile, centres)
