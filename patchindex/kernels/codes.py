"""Codes of patches and queries, compared in integers of 16 bits.

    score(q) = z . y - scale |y|^2,    y_d = low_d + (q_d + 1/2) step_d

for a code q of bytes. With the bytes less 128 and two tables of integers u and s, that is

    score(q) = unit sum_d u_d q_d - square_unit sum_d s_d q_d^2 + constant

Why it is fast. Two 16-bit integers lie in one of 32 bits, so that one instruction multiplies and adds both
(`simd_pairs`). A tile of `CODES` codes is decoded once and compared with every query that visits its list.

============ ============================== =========================================================
array        dtype, shape                   content
============ ============================== =========================================================
codes.file   uint8                          the FAISS file: the codes of a list row by row, then its ids
tile         int32 (pairs, CODES)           a decoded tile: dimensions 0 and 2 of every four are a pair, and
                                            1 and 3
norms        float32 (CODES,)               -square_unit sum s q^2, far below any score where a list ends
queries      int32 (queries, pairs)         u, in the same pairs
============ ============================== =========================================================
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.kernels.compile import inlined
from patchindex.kernels.simd import BLOCK, LANES, splat_block, store
from patchindex.kernels.simd_pairs import add_squares, decode_pairs, load_ints, no_ints, to_floats

__all__ = ["CODES", "NEVER", "STEPS", "Codes", "Queries", "decode", "nth_highest"]

CODES = 64  # per tile; they fill four AVX-512 registers
NEVER = np.float32(-1e30)  # score of an absent item, and threshold of a query that keeps everything
STEPS = 1024  # of a histogram
MOST_16 = np.iinfo(np.int16).max


class Codes(NamedTuple):
    """The codes of some lists, of all images or of the images of one label."""

    file: np.ndarray
    offset: np.ndarray  # int64 (lists,): the first byte of each list's codes
    size: np.ndarray  # int64 (lists,): the number of codes of each list
    low: np.ndarray  # float32 (padded dims,), 0 beyond the dimensions
    step: np.ndarray  # float32 (padded dims,), 0 beyond the dimensions
    dims: int


class Queries(NamedTuple):
    """Queries as 16-bit integers: the numbers of the formula above."""

    pairs: np.ndarray  # int32 (queries * pairs,): u, one query after the other
    unit: np.ndarray  # float32 (queries,)
    constant: np.ndarray  # float32 (queries,)
    squares: np.ndarray  # int32 (pairs,): s
    square_unit: np.float32

    @classmethod
    def of(cls, codes: Codes, z: np.ndarray, scale: float) -> Queries:
        """Prepare queries z, (n, dims), for scores `z . y - scale |y|^2`.

        u is rounded to 1/32767 of its largest entry.
        """
        dims = codes.dims
        step = codes.step.astype(np.float64)
        middle = (codes.low + 128.5 * step)[:dims]
        u = np.zeros((len(z), len(step)))
        u[:, :dims] = step[:dims] * (z - 2 * scale * middle)
        squares = scale * step * step
        tiny = np.finfo(np.float32).tiny  # steps are 0 when all patches are equal
        # Bytes less 128 are up to 2^7, their squares up to 2^14; both sums must stay below 2^31.
        size = np.abs(u)
        unit = np.maximum(size.max(1) / MOST_16, size.sum(1) / (2**24 - len(step)))
        unit = np.maximum(unit, tiny)
        square_unit = max(squares.max() / MOST_16, squares.sum() / (2**17 - len(step)), tiny)
        return cls(
            _pairs(u / unit[:, None]).reshape(-1),
            unit.astype(np.float32),
            (z @ middle - scale * np.square(middle).sum()).astype(np.float32),
            _pairs(squares / square_unit),
            np.float32(square_unit),
        )


def _pairs(numbers: np.ndarray) -> np.ndarray:
    """Round numbers (..., 4 n) and return pairs (..., 2 n): 0 and 2 of every four, then 1 and 3."""
    fours = np.rint(numbers).astype("<i2").reshape(*numbers.shape[:-1], -1, 2, 2)
    return np.ascontiguousarray(fours.swapaxes(-1, -2)).reshape(*numbers.shape[:-1], -1).view("<i4")


@inlined
def decode(codes, c, first, queries, raw, tile, norms):  # type: ignore[no-untyped-def]
    """Decode a tile of list c from code `first` on: its pairs, and the norms of its codes."""
    begin = codes.offset[c] + first * codes.dims
    padded = len(codes.step)
    inside = begin + CODES * codes.dims + LANES <= len(codes.file)
    for i in range(0, CODES, LANES):
        for d in range(0, padded, LANES):
            to = d // 2 * CODES + i
            at = begin + i * codes.dims + d
            if inside:
                decode_pairs(codes.file, at, codes.dims, tile, to, CODES)
            else:  # the vector would end beyond the file
                for row in range(LANES):
                    for j in range(LANES):
                        byte = at + row * codes.dims + j
                        raw[row * LANES + j] = codes.file[byte] if byte < len(codes.file) else 0
                decode_pairs(raw, 0, LANES, tile, to, CODES)
    for i in range(0, CODES, BLOCK):
        sums = no_ints()
        for j in range(2 * -(-codes.dims // 4)):
            sums = add_squares(sums, load_ints(tile, j * CODES + i), queries.squares[j])
        store(norms, i, to_floats(sums) * splat_block(-queries.square_unit))
    for i in range(codes.size[c] - first, CODES):
        norms[i] = 8 * NEVER


@inlined
def nth_highest(values, count, n, room, histogram):  # type: ignore[no-untyped-def]
    """Return the value that comes after the n highest of the first `count` values.

    A histogram of even steps finds the step that holds the value; the values of this step get the next
    histogram, until all of them are equal.
    """
    for i in range(count):
        room[i] = values[i]
    while True:
        high = low = room[0]
        for i in range(count):
            high, low = max(high, room[i]), min(low, room[i])
        if high == low:
            return high
        steps = (len(histogram) - 1) / (np.float64(high) - np.float64(low))
        histogram[:] = 0
        for i in range(count):
            histogram[int((high - room[i]) * steps)] += 1
        step = 0
        while histogram[step] <= n:
            n -= histogram[step]
            step += 1
        some = 0
        for i in range(count):
            value = room[i]
            room[some] = value
            some += int(int((high - value) * steps) == step)
        count = some
