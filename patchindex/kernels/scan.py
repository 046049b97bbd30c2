"""The CPU kernel: logits of all patches of a tile of images, folded into softmax sums as they appear.

For one offset between query and training positions, the inner product of two windows is a sum of pixel
products over the window, and neighbouring windows share all but a row and a column of it. So the kernel walks
down the rows of a tile with the running sums of k rows of products in one vector for each column
(`2 C` multiply-adds a pair), and along each row with the running sum of k columns (two additions, and three
that keep what those round off), whatever k is.

A vector is `BLOCK` floats: neighbouring training columns x images. Logits are in units of log 2, so that a
change of the running maximum, always a whole number, is an exact change of exponents. A block whose logits
are all `threshold` below the running maximum of its pixel is skipped before any exponential.

Layouts, all flat: tile values (H, C, padded W, lanes), integers `pixel - grey`; norms (mask, H, padded W,
lanes); query (H + 1, C, W), the last row zeros; sums (pixels, 2 + C, LANES): w, w^2, w times the centre's
channels.
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
    total,
)
from patchindex.kernels.windows import REACH

__all__ = [
    "NOTHING_YET",
    "NO_LOGIT",
    "Sums",
    "Tile",
    "flush",
    "flush_sample",
    "prepare",
    "scan_all",
    "scan_pixels",
]

# Running maximum of a pixel without members: above every logit that is masked.
NOTHING_YET = np.float32(-1e29)
FLOOR = np.float32(-62.0)  # weights are not below 2^FLOOR, whose square is a normal number still
SLACK = np.float32(16.0)  # weights may grow to 2^SLACK before the running maximum is moved
NO_LOGIT = np.float32(1e30)


class Tile(NamedTuple):
    """A tile of training images.

    Attributes
    ----------
    values, norms : arrays of float32, flat
    height, width, channels, lanes : int
        Width without padding.
    padded : int
        Columns with padding.
    """

    values: np.ndarray
    norms: np.ndarray
    height: int
    width: int
    channels: int
    lanes: int
    padded: int


class Sums(NamedTuple):
    """What a thread accumulates for one query.

    Attributes
    ----------
    top : array of float32, shape (pixels,)
        What logits are taken relative to, a whole number: their running maximum or at most `SLACK` below it;
        kept between tiles.
    sums : array of float32, flat
    columns : array of float32, flat
        Room for the column sums.
    threshold : float32
        Blocks so far below `top` are skipped.
    """

    top: np.ndarray
    sums: np.ndarray
    columns: np.ndarray
    threshold: np.float32


@compiled
def prepare(images, grey, scale, rows, columns, masks, wrapped, tile, down):  # type: ignore[no-untyped-def]
    """Write uint8 images (n, H, W, C) into a tile, with `scale` times the squared norms of their windows.

    `rows`, `columns` and `masks` are `norm_rows`, `norm_columns` and `masks` of the `Plan`; `down` is room
    for (W, lanes) float64. The tile's padding holds zeros and norms of `NO_LOGIT` already, and so have its
    norms outside the masks; where windows wrap around it is filled here. Sums of squares are exact: integers.
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
def _add(logits, pixel, mine, tile, centres):  # type: ignore[no-untyped-def]
    """Add a block of members to a pixel: their logits, and where the values of their centres begin."""
    top = fold_max(logits)
    reference = mine.top[pixel]
    if not any_above(top, reference - mine.threshold):
        return
    stride = tile.padded * tile.lanes
    at = pixel * (2 + tile.channels) * LANES
    if any_above(top, reference + SLACK):
        highest = np.float32(np.ceil(largest(top)))
        # Powers of two, so that this is exact. What was there is zero if there was nothing yet.
        scale = np.float32(2.0 ** max(np.float64(reference - highest), -200.0))
        for e in range(2 + tile.channels):
            factor = scale * scale if e == 1 else scale
            store(mine.sums, at + e * LANES, load_lanes(mine.sums, at + e * LANES) * splat_lanes(factor))
        mine.top[pixel] = reference = highest
    w = exp2(logits - splat_block(reference), FLOOR)
    store(mine.sums, at, fold_sum(load_lanes(mine.sums, at), w))
    store(mine.sums, at + LANES, fold_product(load_lanes(mine.sums, at + LANES), w, w))
    for c in range(tile.channels):
        e = at + (2 + c) * LANES
        centre = load_block(tile.values, centres + c * stride)
        store(mine.sums, e, fold_product(load_lanes(mine.sums, e), w, centre))


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
    """Add a change to a sum, and what is rounded off to `lost` (Dekker's fast sum)."""
    new = s + change
    return new, lost + (change - (new - s))


@compiled
def scan_all(tile, query, tables, units, mine):  # type: ignore[no-untyped-def]
    """Add a tile's patches to all pixels: the units of `Full` with these numbers.

    Both row offsets of a unit are done at once. Their column sums lie side by side.
    """
    lanes, channels, width = tile.lanes, tile.channels, tile.width
    line = tile.padded * lanes  # floats of a row of one channel
    query_line = channels * width
    nothing = splat_block(np.float32(0))
    for unit in units:
        pair, b = unit // len(tables.slots), unit % len(tables.slots)
        n_slots = tables.slots[b]
        for j in range(2 * n_slots):
            store(mine.columns, j * BLOCK, nothing)
        for j in range(2 * tables.slot_train.shape[1], 2 * tables.slot_train.shape[1] + 2):
            store(mine.columns, j * BLOCK, nothing)
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
                    store(mine.columns, at, load_block(mine.columns, at) + change_1)
                    store(mine.columns, at + BLOCK, load_block(mine.columns, at + BLOCK) + change_2)
            if y < 0:
                continue
            s_1 = s_2 = load_block(tables.start, b * BLOCK)
            lost_1 = lost_2 = nothing
            for j in range(tables.steps[b]):
                add, sub = tables.columns[b, j, 0] * 2 * BLOCK, tables.columns[b, j, 1] * 2 * BLOCK
                column, x = tables.columns[b, j, 2] * lanes, tables.columns[b, j, 3]
                change = load_block(mine.columns, add) - load_block(mine.columns, sub)
                s_1, lost_1 = _sum_exactly(s_1, lost_1, change)
                change = load_block(mine.columns, add + BLOCK) - load_block(mine.columns, sub + BLOCK)
                s_2, lost_2 = _sum_exactly(s_2, lost_2, change)
                if x >= 0:
                    norm = load_block(tile.norms, norms + y * line + column)
                    centres = y * channels * line + column
                    if y_1 >= 0:
                        _add(s_1 - norm + lost_1, y_1 * width + x, mine, tile, centres)
                    if y_2 >= 0:
                        _add(s_2 - norm + lost_2, y_2 * width + x, mine, tile, centres)


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
def scan_pixels(tile, query, windows, singles, pixels, mine):  # type: ignore[no-untyped-def]
    """Add a tile's patches to some pixels (raster numbers), one window product at a time.

    Two pixels in a row that are compared with the same positions share each training value that is loaded:
    loading takes as long as multiplying.
    """
    lanes, channels, width = tile.lanes, tile.channels, tile.width
    line = tile.padded * lanes
    pad = (tile.padded - width) // 2
    zeros = tile.height * channels * width  # the query row of zeros, for padding
    p = 0
    while p < len(pixels):
        one = two = pixels[p]
        if p + 1 < len(pixels) and _same_ranges(windows, one, pixels[p + 1]):
            two = pixels[p + 1]
        p += 1 + int(two != one)
        y_1, x_1, y_2, x_2 = one // width, one % width, two // width, two % width
        end = windows.range_x[x_1, 1]
        for i in range(windows.range_y[y_1, 0], windows.range_y[y_1, 1]):
            norms = (singles.mask[x_1] * tile.height + i) * line
            for j in range(windows.range_x[x_1, 0], end, BLOCK // lanes):
                s_1 = s_2 = load_block(singles.start, (min(end - j, BLOCK // lanes) - 1) * BLOCK)
                lost_1 = lost_2 = splat_block(np.float32(0))
                for dy in range(REACH, REACH + windows.k):
                    row_1, row_2, train_y = (
                        windows.query_y[y_1 + dy], windows.query_y[y_2 + dy], windows.train_y[i + dy]
                    )  # fmt: skip
                    if train_y < 0:
                        continue
                    change_1 = change_2 = splat_block(np.float32(0))
                    for dx in range(REACH, REACH + windows.k):
                        column_1, column_2, train_x = (
                            windows.query_x[x_1 + dx], windows.query_x[x_2 + dx], windows.train_x[j + dx]
                        )  # fmt: skip
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
                _add(s_1 - norm + lost_1, one, mine, tile, centres)
                if two != one:
                    _add(s_2 - norm + lost_2, two, mine, tile, centres)


@compiled
def flush(mine, channels, tops, totals):  # type: ignore[no-untyped-def]
    """Move a thread's sums into float64 totals (pixels, 2 + C), relative to 2^tops, and empty them."""
    for pixel in range(len(mine.top)):
        at = pixel * (2 + channels) * LANES
        weight = total(load_lanes(mine.sums, at))
        if weight == 0.0:
            continue
        # Another thread's maximum may be above this one's. Powers of two, so that this is exact.
        top = max(tops[pixel], np.float64(mine.top[pixel]))
        before, added = 2.0 ** max(tops[pixel] - top, -500.0), 2.0 ** max(mine.top[pixel] - top, -500.0)
        tops[pixel] = top
        for e in range(2 + channels):
            sums = total(load_lanes(mine.sums, at + e * LANES))
            if e == 1:
                totals[pixel, e] = totals[pixel, e] * before * before + sums * added * added
            else:
                totals[pixel, e] = totals[pixel, e] * before + sums * added
            store(mine.sums, at + e * LANES, splat_lanes(np.float32(0)))


@compiled
def flush_sample(mine, channels, tops, totals, squares):  # type: ignore[no-untyped-def]
    """Do as `flush` does, and sum squares of the lanes' sums, each of other images.

    `squares` (pixels, 1 + 2 C) has W^2, W times each channel's sum, and the squares of these.
    """
    for pixel in range(len(mine.top)):
        if mine.top[pixel] == NOTHING_YET:
            continue
        at = pixel * (2 + channels) * LANES
        top = max(tops[pixel], np.float64(mine.top[pixel]))
        before, added = 2.0 ** max(tops[pixel] - top, -500.0), 2.0 ** max(mine.top[pixel] - top, -500.0)
        tops[pixel] = top
        weight = load_lanes(mine.sums, at)
        squares[pixel, 0] = squares[pixel, 0] * before * before + total(weight * weight) * added * added
        for e in range(2 + channels):
            part = load_lanes(mine.sums, at + e * LANES)
            sums = total(part)
            if e == 1:
                totals[pixel, e] = totals[pixel, e] * before * before + sums * added * added
            else:
                totals[pixel, e] = totals[pixel, e] * before + sums * added
            if e > 1:
                one, two = total(weight * part), total(part * part)
                j = e - 1
                squares[pixel, j] = squares[pixel, j] * before * before + one * added * added
                j += channels
                squares[pixel, j] = squares[pixel, j] * before * before + two * added * added
            store(mine.sums, at + e * LANES, splat_lanes(np.float32(0)))
