"""The codes of largest weight, looked for in the likeliest lists: the compiled part.

Two levels work alike. Items (lists of a cell, codes of a list) lie in tiles of `CODES`, dimension by dimension;
a query scores all items of the groups that it visits, `score = u . item + offset`, and keeps the best so far.
Groups are taken one after the other, with all queries that visit them, so that a tile is read once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.index.retrieval import CODES, NEVER, STEPS, decode, nth_highest
from patchindex.simd import BLOCK, LANES, compiled, inlined, load_block, splat_block, store
from patchindex.simd_codes import bits_below, load_id, lowest_bit

__all__ = ["Best", "best_codes", "best_lists", "list_tiles", "patch_ids"]


class Best(NamedTuple):
    """The best items of each query: arrays of shape (queries, capacity), and values of shape (queries,).

    Attributes
    ----------
    score : array of float32
    item : array of int64
    held : array of int64, shape (queries,)
    threshold : array of float32, shape (queries,)
        Items that do not score above it are not kept.
    """

    score: np.ndarray
    item: np.ndarray
    held: np.ndarray
    threshold: np.ndarray

    @classmethod
    def none(cls, queries: int, keep: int) -> Best:
        """Return room for a search that keeps so many."""
        shape = (queries, 4 * keep + CODES)
        return cls(
            np.empty(shape, np.float32),
            np.empty(shape, np.int64),
            np.zeros(queries, np.int64),
            np.full(queries, NEVER, np.float32),
        )


@inlined
def _cut(best, q, keep, room, histogram):  # type: ignore[no-untyped-def]
    """Keep the items of a query that score above the one after its `keep` best."""
    best.threshold[q] = limit = nth_highest(best.score[q], best.held[q], keep, room, histogram)
    n = 0
    for i in range(best.held[q]):
        best.score[q, n] = best.score[q, i]
        best.item[q, n] = best.item[q, i]
        n += int(best.score[q, i] > limit)
    best.held[q] = n


@inlined
def _offer(tile, at, dims, offsets, offset_at, u, q, number, best, keep, scores, room, histogram):  # type: ignore[no-untyped-def]
    """Score a tile of items for a query, and keep the best; the first item's number is given."""
    for i in range(0, CODES, BLOCK):
        even, odd = load_block(offsets, offset_at + i), splat_block(np.float32(0))
        for d in range(0, dims - 1, 2):
            even = even + splat_block(u[q, d]) * load_block(tile, at + d * CODES + i)
            odd = odd + splat_block(u[q, d + 1]) * load_block(tile, at + (d + 1) * CODES + i)
        if dims % 2:
            even = even + splat_block(u[q, dims - 1]) * load_block(tile, at + (dims - 1) * CODES + i)
        score = even + odd
        bits = bits_below(splat_block(best.threshold[q]), score)
        if bits:
            store(scores, i, score)
            n = best.held[q]
            while bits:
                j = i + lowest_bit(bits)
                bits &= bits - np.uint64(1)
                best.score[q, n] = scores[j]
                best.item[q, n] = number + j
                n += 1
            best.held[q] = n
            if n > best.score.shape[1] - CODES:
                _cut(best, q, keep, room, histogram)


@compiled
def list_tiles(means, variances, sizes, first_tile, cell_bounds, a, beta, tiles, offsets):  # type: ignore[no-untyped-def]
    """Write what lists are scored by, `[z^2, z] . tile + offset`: tiles (tiles, 2 dims, CODES), offsets.

    The score of a list of mean m and variances s^2 is the logarithm of the expected squared weight of one of its
    codes, were they Gaussian: `-1/2 sum_d ((z_d - a m_d)^2 / v_d + log v_d)` with `v_d = beta / 2 + a^2 s_d^2`.
    """
    dims = means.shape[1]
    for cell in range(len(cell_bounds) - 1):
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
                    v = beta / 2 + a * a * variances[c, d]
                    slope = a * means[c, d] / v
                    tiles[(tile * 2 * dims + d) * CODES + i] = -0.5 / v
                    tiles[(tile * 2 * dims + dims + d) * CODES + i] = slope
                    offset -= 0.5 * a * means[c, d] * slope
                    product *= v / beta
                    if d % 8 == 7 or d == dims - 1:
                        offset -= 0.5 * np.log(product)
                        product = 1.0
                offsets[tile * CODES + i] = offset


@compiled
def best_lists(tiles, offsets, first_tile, cell_bounds, u, start, visitors, keep, best):  # type: ignore[no-untyped-def]
    """Keep the best lists of the cells that queries visit.

    `visitors[start[i] : start[i + 1]]` are the queries that visit cell i.
    """
    dims = u.shape[1]
    scores = np.empty(CODES, np.float32)
    room, histogram = np.empty(best.score.shape[1], np.float32), np.zeros(STEPS, np.int32)
    for cell in range(len(start) - 1):
        for tile in range(first_tile[cell], first_tile[cell + 1]):
            number = cell_bounds[cell] + (tile - first_tile[cell]) * CODES
            for visit in range(start[cell], start[cell + 1]):
                _offer(
                    tiles, tile * dims * CODES, dims, offsets, tile * CODES, u, visitors[visit], number,
                    best, keep, scores, room, histogram,
                )  # fmt: skip
    for q in range(len(u)):
        if best.held[q] > keep:
            _cut(best, q, keep, room, histogram)


@compiled
def best_codes(codes, z, scale, lists, keep, best, scanned):  # type: ignore[no-untyped-def]
    """Keep the best codes of the lists that queries hold, a `Best`, and count the codes scanned.

    The score of a code y is `z . y - scale |y|^2`. An item is `list 2^32 + its place in the list`.
    """
    n_lists = len(codes.size)
    start = np.zeros(n_lists + 1, np.int32)
    total = 0
    for q in range(len(z)):
        for v in range(lists.held[q]):
            start[lists.item[q, v] + 1] += 1
        total += lists.held[q]
    for c in range(n_lists):
        start[c + 1] += start[c]
    visitors = np.empty(total, np.int32)
    for q in range(len(z)):
        for v in range(lists.held[q]):
            c = lists.item[q, v]
            visitors[start[c]] = q
            start[c] += 1
    raw = np.zeros(LANES * LANES, np.uint8)
    tile = np.zeros(len(codes.step) * CODES, np.float32)
    norms = np.zeros(CODES, np.float32)
    scores = np.empty(CODES, np.float32)
    room, histogram = np.empty(best.score.shape[1], np.float32), np.zeros(STEPS, np.int32)
    first_visit = 0
    for c in range(n_lists):
        if start[c] == first_visit:
            continue
        for first in range(0, codes.size[c], CODES):
            decode(codes, c, first, -scale, raw, tile, norms)
            number = (np.int64(c) << 32) + first
            n = min(CODES, codes.size[c] - first)
            for visit in range(first_visit, start[c]):
                scanned[visitors[visit]] += n
                _offer(
                    tile, 0, codes.dims, norms, 0, z, visitors[visit], number,
                    best, keep, scores, room, histogram,
                )  # fmt: skip
        first_visit = start[c]
    for q in range(len(z)):
        if best.held[q] > keep:
            _cut(best, q, keep, room, histogram)


@compiled
def patch_ids(file, ids_at, best, ids):  # type: ignore[no-untyped-def]
    """Write the patch ids of the codes that queries hold, (queries, most), -1 where there are no more."""
    for q in range(len(ids)):
        for i in range(ids.shape[1]):
            if i < best.held[q]:
                item = best.item[q, i]
                ids[q, i] = load_id(file, ids_at[item >> 32] + 8 * (item & 0xFFFFFFFF))
            else:
                ids[q, i] = -1
