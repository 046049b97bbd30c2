"""Which list a patch belongs to: the compiled part.

Centroids lie in tiles of `CODES`, dimension by dimension, the cells' in one group and the lists' in a group a
cell. A vector v scores a centroid c by `v . c - |c|^2 / 2`, the larger the nearer, and only the best two are
kept. So a product is never written to memory: it takes the multiply-adds and next to nothing besides, where
matrix products and the minima of their rows take 3.7 times as long (`benchmarks/assigning.py`).

Sums run over dimensions in order, whatever the other vectors, so that assignments do not depend on how many
vectors come at a time, or on threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.kernels.codes import CODES, NEVER
from patchindex.kernels.compile import inlined, lean
from patchindex.kernels.simd import BLOCK, aligned, load_block, splat_block, store
from patchindex.kernels.simd_codes import bits_below, lowest_bit

__all__ = ["Tiles", "assign_lists"]


class Tiles(NamedTuple):
    """Centroids of some groups.

    Attributes
    ----------
    values : array of float32, shape (tiles * dims * CODES,)
    offsets : array of float32, shape (tiles * CODES,)
        `-|c|^2 / 2`, and less than any score where there is no centroid.
    first : array of int64, shape (groups + 1,)
        The first tile of each group.
    bounds : array of int64, shape (groups + 1,)
        The first centroid of each group.
    dims : int
    """

    values: np.ndarray
    offsets: np.ndarray
    first: np.ndarray
    bounds: np.ndarray
    dims: int

    @classmethod
    def of(cls, centroids: np.ndarray, bounds: np.ndarray) -> Tiles:
        """Put centroids (n, dims), of which group i has `bounds[i]` to `bounds[i + 1]`, into tiles."""
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
    """Keep the best two centroids of a query; the first of a block is given."""
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
    """Keep the best two centroids of the groups that queries visit.

    `visitors[start[i] : start[i + 1]]` are the queries that visit group i, and `v` is flat.
    """
    dims = tiles.dims
    for group in range(len(start) - 1):
        lo, hi = start[group], start[group + 1]
        for tile in range(tiles.first[group], tiles.first[group + 1]):
            number = tiles.bounds[group] + (tile - tiles.first[group]) * CODES
            at = tile * dims * CODES
            for visit in range(lo, hi, 4):
                # Four at a time: what is loaded is of use four times. The last ones come several times over.
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
    """Find the nearest of the lists of the two nearest cells.

    Parameters
    ----------
    cells : Tiles
        One group.
    lists : Tiles
        A group for each of them.
    v : array of float32, flat
        Vectors, (n, dims).
    score : array of float32, shape (n, 2)
    item : array of int64, shape (n, 2)
    start : array of int64, shape (cells + 1,)
    visitors : array of int64, shape (2 n,)
    room : array of float32, shape (BLOCK,)
        Room, whose contents do not matter.
    out : array of int64, shape (n,)
        Set to the list of each vector.
    """
    n = len(out)
    for q in range(n):
        score[q, 0] = score[q, 1] = 2 * NEVER
        item[q, 0] = item[q, 1] = -1
        visitors[q] = q
    start[0], start[1] = 0, n
    _best_two(cells, v, start[:2], visitors, score, item, room)
    # The vectors of each cell, by counting them.
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
