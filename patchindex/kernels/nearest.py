"""The codes of largest score, searched in the lists of largest score.

    score(list) = -1/2 sum_d ((z_d - a m_d)^2 / v_d + log v_d)     m: mean, v: variance (`list_tiles`)
    score(code) = z . y - scale |y|^2                              (`patchindex.kernels.codes`)

The cells are searched first, then the lists of the best cells, then the codes of the best lists. Items (lists
of a cell, codes of a list) lie in tiles of `CODES`, dimension by dimension:

========= ======================================= =================================================
array     dtype, shape, stored flat               content
========= ======================================= =================================================
tiles     float32 (tiles, 2 dims, CODES)          slopes of z^2 and of z
offsets   float32 (tiles, CODES)                  the term without z, far below any score for no list
start     int64 (groups + 1,)                     queries `visitors[start[i] : start[i + 1]]` visit group i
visitors  int32
best      (queries, capacity)                     the best items so far, in no order
========= ======================================= =================================================

Why it is fast. Groups are taken one after the other, with all queries that visit them, so a tile is read once
from memory. A query compares the scores of a block with its threshold in one instruction, and sorts nothing:
when its room is full, it drops the items below the score of rank `keep`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.kernels.codes import CODES, NEVER, STEPS, decode, nth_highest
from patchindex.kernels.compile import inlined, lean
from patchindex.kernels.simd import (
    BLOCK,
    LANES,
    aligned,
    bits_below,
    load_block,
    load_id,
    lowest_bit,
    prefetch,
    splat_block,
    store,
)
from patchindex.kernels.simd_pairs import add_pairs, load_ints, no_ints, to_floats

__all__ = [
    "Best",
    "Scratch",
    "best_codes",
    "best_lists",
    "capacity",
    "list_tiles",
    "patch_ids",
    "visitors_of",
]

CACHE_LINE = 64


class Best(NamedTuple):
    """The best items of each query."""

    score: np.ndarray  # float32 (queries, capacity)
    item: np.ndarray  # int64 (queries, capacity)
    held: np.ndarray  # int64 (queries,): number of items
    threshold: np.ndarray  # float32 (queries,): items must score above the threshold

    @classmethod
    def none(cls, queries: int, keep: int) -> Best:
        """Return room for the `keep` best items of each query."""
        shape = (queries, capacity(keep))
        return cls(
            np.empty(shape, np.float32),
            np.empty(shape, np.int64),
            np.zeros(queries, np.int64),
            np.full(queries, NEVER, np.float32),
        )


class Scratch(NamedTuple):
    """Scratch memory of a thread: a decoded tile, the scores of a block, the arrays of `nth_highest`."""

    pairs: np.ndarray
    norms: np.ndarray
    scores: np.ndarray
    raw: np.ndarray
    room: np.ndarray
    histogram: np.ndarray

    @classmethod
    def of(cls, dims: int, keep: int) -> Scratch:
        """Return scratch memory for items of `dims` dimensions."""
        return cls(
            aligned(-(-dims // LANES) * LANES // 2 * CODES).view(np.int32),
            aligned(CODES),
            aligned(BLOCK),
            np.zeros(LANES * LANES, np.uint8),
            np.empty(capacity(keep), np.float32),
            np.zeros(STEPS, np.int32),
        )


def capacity(keep: int) -> int:
    """Return the number of items that a query has room for before some are dropped."""
    return 2 * keep + CODES


@inlined
def _cut(best, q, keep, scratch):  # type: ignore[no-untyped-def]
    """Keep the items of a query that score above the item of rank `keep + 1`.

    Items that score the same as that item are dropped too, so the result depends neither on the order of the
    items nor on threads.
    """
    limit = best.threshold[q]
    if best.held[q] > keep:
        limit = max(limit, nth_highest(best.score[q], best.held[q], keep, scratch.room, scratch.histogram))
    best.threshold[q] = limit
    n = 0
    for i in range(best.held[q]):
        best.score[q, n] = best.score[q, i]
        best.item[q, n] = best.item[q, i]
        n += int(best.score[q, i] > limit)
    best.held[q] = n


@inlined
def _offer(scores, q, number, best, keep, scratch):  # type: ignore[no-untyped-def]
    """Keep the items `number`, `number + 1`, ... of a block that score above a query's threshold."""
    bits = bits_below(splat_block(best.threshold[q]), scores)
    if not bits:
        return
    store(scratch.scores, 0, scores)
    n = best.held[q]
    while bits:
        j = np.int64(lowest_bit(bits))
        bits &= bits - np.uint64(1)
        best.score[q, n] = scratch.scores[j]
        best.item[q, n] = number + j
        n += 1
    best.held[q] = n
    if n > best.score.shape[1] - CODES:
        _cut(best, q, keep, scratch)


@lean
def list_tiles(means, variances, sizes, first_tile, cell_bounds, cells, a, beta, tiles, offsets):  # type: ignore[no-untyped-def]
    """Write the tiles of the cells `cells[0]` to `cells[1] - 1`: score = `[z^2, z] . tile + offset`.

    The score of a list of mean m and variances s^2 is `-1/2 sum_d ((z_d - a m_d)^2 / v_d + log(v_d / beta))`
    with `v_d = beta + a^2 s_d^2 / 4`. With s_d^2 in place of s_d^2 / 4, that is the log of the expected
    weight of a code in a Gaussian list. Lists are not Gaussian: a quarter of the variance ranks them better.
    """
    dims = means.shape[1]
    for cell in range(cells[0], cells[1]):
        lo, hi = cell_bounds[cell], cell_bounds[cell + 1]
        for tile in range(first_tile[cell], first_tile[cell + 1]):
            for i in range(CODES):
                c = lo + (tile - first_tile[cell]) * CODES + i
                if c >= hi or sizes[c] == 0:
                    offsets[tile * CODES + i] = 2 * NEVER
                    for d in range(2 * dims):
                        tiles[(tile * 2 * dims + d) * CODES + i] = 0
                    continue
                offset, product = 0.0, 1.0
                for d in range(dims):
                    v = beta + a * a * variances[c, d] / 4
                    slope = a * means[c, d] / v
                    tiles[(tile * 2 * dims + d) * CODES + i] = -0.5 / v
                    tiles[(tile * 2 * dims + dims + d) * CODES + i] = slope
                    offset -= 0.5 * a * means[c, d] * slope
                    product *= v / beta
                    if d % 8 == 7 or d == dims - 1:
                        offset -= 0.5 * np.log(product)
                        product = 1.0
                offsets[tile * CODES + i] = offset


@lean
def best_lists(tiles, offsets, first_tile, cell_bounds, u, dims, start, visitors, keep, best, scratch):  # type: ignore[no-untyped-def]
    """Keep the best lists of the cells that queries visit; `u` holds `[z^2, z]` of each query, flat."""
    for cell in range(len(start) - 1):
        for tile in range(first_tile[cell], first_tile[cell + 1]):
            number = cell_bounds[cell] + (tile - first_tile[cell]) * CODES
            at = tile * dims * CODES
            for visit in range(start[cell], start[cell + 1], 2):
                one, two = visitors[visit], visitors[min(visit + 1, start[cell + 1] - 1)]
                for i in range(0, CODES, BLOCK):
                    a = b = load_block(offsets, tile * CODES + i)
                    for d in range(dims):
                        value = load_block(tiles, at + d * CODES + i)
                        a = a + splat_block(u[one * dims + d]) * value
                        b = b + splat_block(u[two * dims + d]) * value
                    _offer(a, one, number + i, best, keep, scratch)
                    if one != two:
                        _offer(b, two, number + i, best, keep, scratch)
    _finish(best, keep, scratch)


@inlined
def _fetch(codes, begin):  # type: ignore[no-untyped-def]
    """Prefetch the next tile of codes: lists are too short for the processor to foresee it."""
    for at in range(begin, min(begin + CODES * codes.dims, len(codes.file)), CACHE_LINE):
        prefetch(codes.file, at)


@lean
def best_codes(codes, queries, start, visitors, keep, best, scratch, scanned):  # type: ignore[no-untyped-def]
    """Keep the best codes of the lists that queries visit, and count the codes scanned for each query.

    Items are numbered `list << 32 | place in the list`.
    """
    stride, used = len(codes.step) // 2, 2 * -(-codes.dims // 4)
    unit, constant = queries.unit, queries.constant
    for c in range(len(start) - 1):
        end = start[c + 1]
        if start[c] == end:
            continue
        next_list = c + 1
        while next_list < len(start) - 1 and start[next_list] == start[next_list + 1]:
            next_list += 1
        for first in range(0, codes.size[c], CODES):
            if first + CODES < codes.size[c]:
                _fetch(codes, codes.offset[c] + (first + CODES) * codes.dims)
            elif next_list < len(start) - 1:
                _fetch(codes, codes.offset[next_list])
            decode(codes, c, first, queries, scratch.raw, scratch.pairs, scratch.norms)
            number = (np.int64(c) << 32) + first
            for visit in range(start[c], end, 4):
                p, q = visitors[visit], visitors[min(visit + 1, end - 1)]
                r, s = visitors[min(visit + 2, end - 1)], visitors[min(visit + 3, end - 1)]
                for i in range(0, CODES, BLOCK):
                    w = x = y = z = no_ints()
                    for j in range(used):
                        pair = load_ints(scratch.pairs, j * CODES + i)
                        w = add_pairs(w, pair, queries.pairs[p * stride + j])
                        x = add_pairs(x, pair, queries.pairs[q * stride + j])
                        y = add_pairs(y, pair, queries.pairs[r * stride + j])
                        z = add_pairs(z, pair, queries.pairs[s * stride + j])
                    norms = load_block(scratch.norms, i)
                    w = to_floats(w) * splat_block(unit[p]) + norms
                    _offer(w + splat_block(constant[p]), p, number + i, best, keep, scratch)
                    if visit + 1 < end:
                        x = to_floats(x) * splat_block(unit[q]) + norms
                        _offer(x + splat_block(constant[q]), q, number + i, best, keep, scratch)
                    if visit + 2 < end:
                        y = to_floats(y) * splat_block(unit[r]) + norms
                        _offer(y + splat_block(constant[r]), r, number + i, best, keep, scratch)
                    if visit + 3 < end:
                        z = to_floats(z) * splat_block(unit[s]) + norms
                        _offer(z + splat_block(constant[s]), s, number + i, best, keep, scratch)
        for visit in range(start[c], end):
            scanned[visitors[visit]] += codes.size[c]
    _finish(best, keep, scratch)


@inlined
def _finish(best, keep, scratch):  # type: ignore[no-untyped-def]
    """Reduce every query to its `keep` best items."""
    for q in range(len(best.held)):
        if best.held[q] > keep:
            _cut(best, q, keep, scratch)


@lean
def visitors_of(best, start, visitors):  # type: ignore[no-untyped-def]
    """Write the queries that hold each item, ascending, as `start` and `visitors`.

    `start`, int64 (items + 1,), is zeros before the call.
    """
    items = len(start) - 1
    for q in range(len(best.held)):
        for i in range(best.held[q]):
            start[best.item[q, i] + 1] += 1
    for i in range(items):
        start[i + 1] += start[i]
    for q in range(len(best.held)):
        for i in range(best.held[q]):
            item = best.item[q, i]
            visitors[start[item]] = q
            start[item] += 1
    for i in range(items, 0, -1):
        start[i] = start[i - 1]
    start[0] = 0


@lean
def patch_ids(file, ids_at, best, ids):  # type: ignore[no-untyped-def]
    """Write the patch ids of the codes that queries hold, (queries, most), -1 beyond the last."""
    for q in range(len(ids)):
        for i in range(ids.shape[1]):
            if i < best.held[q]:
                item = best.item[q, i]
                ids[q, i] = load_id(file, ids_at[item >> 32] + 8 * (item & 0xFFFFFFFF))
            else:
                ids[q, i] = -1
