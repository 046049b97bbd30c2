"""The inverted list of each patch: the nearest centroid in the two nearest cells.

    score(v, c) = v . c - |c|^2 / 2,    the larger the nearer

Why it is fast. Only the best two centroids of a vector are kept, so products are never written to memory;
matrix products and the minima of their rows take 3.7 times as long. A loaded tile serves four vectors.

======== ====================================== ========================================================
array    dtype, shape, stored flat              content
======== ====================================== ========================================================
values   float32 (tiles, dims, CODES)           centroids, dimension by dimension
offsets  float32 (tiles, CODES)                 -|c|^2 / 2, below any score where a tile has no centroid
======== ====================================== ========================================================

The cells are one group of tiles, and the lists of each cell are a group. Sums run over dimensions in order,
so the list of a vector depends neither on the other vectors nor on threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.kernels.codes import CODES, NEVER
from patchindex.kernels.compile import inlined, lean
from patchindex.kernels.simd import BLOCK, aligned, bits_below, load_block, lowest_bit, splat_block, store

__all__ = ["Tiles", "assign_lists"]


class Tiles(NamedTuple):
    """The centroids of some groups, in tiles."""

    values: np.ndarray
    offsets: np.ndarray
    first: np.ndarray  # int64 (groups + 1,): the first tile of each group
    bounds: np.ndarray  # int64 (groups + 1,): the first centroid of each group
    dims: int

    @classmethod
    def of(cls, centroids: np.ndarray, bounds: np.ndarray) -> Tiles:
        """Put centroids (n, dims) into tiles; group i has the centroids `bounds[i]` to `bounds[i + 1]`."""
        dims = centroids.shape[1]
        sizes = np.diff(bounds)
        first = np.concatenate([[0], np.cumsum(-(-sizes // CODES))])
        rows = np.arange(len(centroids)) - np.repeat(bounds[:-1] - first[:-1] * CODES, sizes)
        values, offsets = aligned(int(first[-1]) * dims * CODES), aligned(int(first[-1]) * CODES)
        offsets[:] = 2 * NEVER
        offsets[rows] = -0.5 * np.square(centroids, dtype=np.float64).sum(1)
        values.reshape(-1, dims, CODES)[rows // CODES, :, rows % CODES] = centroids
        return cls(values, offsets, first, np.asarray(bounds, np.int64), dims)


@inlined
def _offer(scores, q, number, score, item, room):  # type: ignore[no-untyped-def]
    """Keep the best two centroids of a vector, among `number`, `number + 1`, ... of a block."""
    bits = bits_below(splat_block(score[q, 1]), scores)
    if not bits:
        return
    store(room, 0, scores)
    while bits:
        j = np.int64(lowest_bit(bits))
        bits &= bits - np.uint64(1)
        new = room[j]
        if new > score[q, 0]:
            score[q, 1], item[q, 1] = score[q, 0], item[q, 0]
            score[q, 0], item[q, 0] = new, number + j
        elif new > score[q, 1]:
            score[q, 1], item[q, 1] = new, number + j


@inlined
def _best_two(tiles, v, start, visitors, score, item, room):  # type: ignore[no-untyped-def]
    """Keep the best two centroids of the groups that vectors visit.

    `visitors[start[i] : start[i + 1]]` are the vectors that visit group i; `v` holds all vectors, flat.
    """
    dims = tiles.dims
    for group in range(len(start) - 1):
        lo, hi = start[group], start[group + 1]
        for tile in range(tiles.first[group], tiles.first[group + 1]):
            number = tiles.bounds[group] + (tile - tiles.first[group]) * CODES
            at = tile * dims * CODES
            for visit in range(lo, hi, 4):
                # Four vectors share each load; the last vector is repeated to fill up a four.
                p, q = visitors[visit], visitors[min(visit + 1, hi - 1)]
                r, s = visitors[min(visit + 2, hi - 1)], visitors[min(visit + 3, hi - 1)]
                for i in range(0, CODES, BLOCK):
                    a = b = c = d = load_block(tiles.offsets, tile * CODES + i)
                    for j in range(dims):
                        value = load_block(tiles.values, at + j * CODES + i)
                        a = a + splat_block(v[p * dims + j]) * value
                        b = b + splat_block(v[q * dims + j]) * value
                        c = c + splat_block(v[r * dims + j]) * value
                        d = d + splat_block(v[s * dims + j]) * value
                    _offer(a, p, number + i, score, item, room)
                    if visit + 1 < hi:
                        _offer(b, q, number + i, score, item, room)
                    if visit + 2 < hi:
                        _offer(c, r, number + i, score, item, room)
                    if visit + 3 < hi:
                        _offer(d, s, number + i, score, item, room)


@lean
def assign_lists(cells, lists, v, score, item, start, visitors, room, out):  # type: ignore[no-untyped-def]
    """Write the list of each vector to `out`, int64 (n,); `v` holds the vectors (n, dims), flat.

    `cells` is one group, and `lists` has a group per cell. `score` to `room` are scratch memory: float32
    (n, 2), int64 (n, 2), int64 (cells + 1,), int64 (2 n,) and float32 (BLOCK,).
    """
    n = len(out)
    for q in range(n):
        score[q, 0] = score[q, 1] = 2 * NEVER
        item[q, 0] = item[q, 1] = -1
        visitors[q] = q
    start[0], start[1] = 0, n
    _best_two(cells, v, start[:2], visitors, score, item, room)
    # Sort the vectors by cell, by counting.
    start[:] = 0
    for q in range(n):
        for i in range(2):
            if item[q, i] >= 0:
                start[item[q, i] + 1] += 1
    for cell in range(len(start) - 1):
        start[cell + 1] += start[cell]
    for q in range(n):
        for i in range(2):
            if item[q, i] >= 0:
                visitors[start[item[q, i]]] = q
                start[item[q, i]] += 1
    for cell in range(len(start) - 1, 0, -1):
        start[cell] = start[cell - 1]
    start[0] = 0
    for q in range(n):
        score[q, 0] = score[q, 1] = 2 * NEVER
    _best_two(lists, v, start, visitors, score, item, room)
    for q in range(n):
        out[q] = item[q, 0]
