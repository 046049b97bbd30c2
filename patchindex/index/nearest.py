"""The codes of largest weight, looked for in the likeliest lists: the compiled part.

Two levels work alike. Items (lists of a cell, codes of a list) lie in tiles of `CODES`, dimension by
dimension. A query scores all items of the groups that it visits, `score = u . item + offset`, and keeps the
best so far. Groups are taken one after the other, with all queries that visit them, so that a tile is read
once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.index.retrieval import CODES, NEVER, STEPS, decode, nth_highest
from patchindex.simd import BLOCK, LANES, aligned, compiled, inlined, load_block, splat_block, store
from patchindex.simd_codes import bits_below, load_id, lowest_bit

__all__ = [
    "Best",
    "Scratch",
    "best_codes",
    "best_lists",
    "capacity",
    "list_tiles",
    "merge",
    "patch_ids",
]


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
        shape = (queries, capacity(keep))
        return cls(
            np.empty(shape, np.float32),
            np.empty(shape, np.int64),
            np.zeros(queries, np.int64),
            np.full(queries, NEVER, np.float32),
        )


class Scratch(NamedTuple):
    """Room that a thread needs: a decoded tile, scores of two queries, and what `nth_highest` takes."""

    tile: np.ndarray
    norms: np.ndarray
    scores: np.ndarray
    raw: np.ndarray
    room: np.ndarray
    histogram: np.ndarray

    @classmethod
    def of(cls, dims: int, keep: int) -> Scratch:
        """Return room for items of so many dimensions."""
        return cls(
            aligned(-(-dims // LANES) * LANES * CODES),
            aligned(CODES),
            aligned(2 * CODES),
            np.zeros(LANES * LANES, np.uint8),
            np.empty(capacity(keep), np.float32),
            np.zeros(STEPS, np.int32),
        )


def capacity(keep: int) -> int:
    """Return how many items a query has room for: what is too much is dropped when it is full."""
    return 3 * keep + CODES


@inlined
def _cut(best, q, keep, scratch):  # type: ignore[no-untyped-def]
    """Keep the items of a query that score above the one after its `keep` best.

    So what is kept in the end depends on neither the order of the items nor on who has seen which: of those
    that are as good as the first that is left out, none is kept.
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
def _take(bits, at, q, number, best, keep, scratch):  # type: ignore[no-untyped-def]
    """Keep the items of a block whose bits are set; their scores are in the scratch from `at`."""
    n = best.held[q]
    while bits:
        j = np.int64(lowest_bit(bits))
        bits &= bits - np.uint64(1)
        best.score[q, n] = scratch.scores[at + j]
        best.item[q, n] = number + j
        n += 1
    best.held[q] = n
    if n > best.score.shape[1] - CODES:
        _cut(best, q, keep, scratch)


@inlined
def _offer(tile, at, dims, offsets, offset_at, u, one, two, number, best, keep, scratch):  # type: ignore[no-untyped-def]
    """Score a tile of items for two queries, and keep the best; the first item's number is given.

    `u` is flat. Both numbers may be the same query, which then gets the items once.
    """
    for i in range(0, CODES, BLOCK):
        first = second = load_block(offsets, offset_at + i)
        for d in range(dims):
            value = load_block(tile, at + d * CODES + i)
            first = first + splat_block(u[one * dims + d]) * value
            second = second + splat_block(u[two * dims + d]) * value
        bits = bits_below(splat_block(best.threshold[one]), first)
        if bits:
            store(scratch.scores, 0, first)
            _take(bits, 0, one, number + i, best, keep, scratch)
        if one == two:
            continue
        bits = bits_below(splat_block(best.threshold[two]), second)
        if bits:
            store(scratch.scores, CODES, second)
            _take(bits, CODES, two, number + i, best, keep, scratch)


@compiled
def list_tiles(means, variances, sizes, first_tile, cell_bounds, a, beta, tiles, offsets):  # type: ignore[no-untyped-def]
    """Write what lists are scored by, `[z^2, z] . tile + offset`: tiles (tiles, 2 dims, CODES), offsets.

    The score of a list of mean m and variances s^2 is the logarithm of the expected squared weight of one of
    its codes, were they Gaussian: `-1/2 sum_d ((z_d - a m_d)^2 / v_d + log v_d)` with
    `v_d = beta / 2 + a^2 s_d^2`.
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
def best_lists(tiles, offsets, first_tile, cell_bounds, u, dims, start, visitors, cells, keep, best, scratch):  # type: ignore[no-untyped-def]
    """Keep the best lists of some cells, `cells[0]` to `cells[1] - 1`, for the queries that visit them.

    `visitors[start[i] : start[i + 1]]` are the queries that visit cell i, and `u` is flat.
    """
    for cell in range(cells[0], cells[1]):
        for tile in range(first_tile[cell], first_tile[cell + 1]):
            number = cell_bounds[cell] + (tile - first_tile[cell]) * CODES
            for visit in range(start[cell], start[cell + 1], 2):
                one, two = visitors[visit], visitors[min(visit + 1, start[cell + 1] - 1)]
                _offer(
                    tiles, tile * dims * CODES, dims, offsets, tile * CODES, u, one, two, number,
                    best, keep, scratch,
                )  # fmt: skip
    _finish(best, keep, scratch)


@compiled
def best_codes(codes, z, scale, start, visitors, lists, keep, best, scratch, scanned):  # type: ignore[no-untyped-def]
    """Keep the best codes of some lists, `lists[0]` to `lists[1] - 1`, and count the codes scanned.

    `visitors[start[i] : start[i + 1]]` are the queries that visit list i, and `z` is flat. The score of a
    code y is `z . y - scale |y|^2`. An item is `list 2^32 + its place in the list`.
    """
    for c in range(lists[0], lists[1]):
        if start[c] == start[c + 1]:
            continue
        for first in range(0, codes.size[c], CODES):
            decode(codes, c, first, -scale, scratch.raw, scratch.tile, scratch.norms)
            number = (np.int64(c) << 32) + first
            for visit in range(start[c], start[c + 1], 2):
                one, two = visitors[visit], visitors[min(visit + 1, start[c + 1] - 1)]
                _offer(
                    scratch.tile, 0, codes.dims, scratch.norms, 0, z, one, two, number,
                    best, keep, scratch,
                )  # fmt: skip
        for visit in range(start[c], start[c + 1]):
            scanned[visitors[visit]] += codes.size[c]
    _finish(best, keep, scratch)


@inlined
def _finish(best, keep, scratch):  # type: ignore[no-untyped-def]
    """Keep no more than is asked for."""
    for q in range(len(best.held)):
        if best.held[q] > keep:
            _cut(best, q, keep, scratch)


@compiled
def merge(others, keep, best, scratch):  # type: ignore[no-untyped-def]
    """Add what another thread has kept."""
    for q in range(len(best.held)):
        n = best.held[q]
        for i in range(others.held[q]):
            best.score[q, n] = others.score[q, i]
            best.item[q, n] = others.item[q, i]
            n += 1
        best.held[q] = n
        best.threshold[q] = max(best.threshold[q], others.threshold[q])
        _cut(best, q, keep, scratch)


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
