"""Codes and queries as the compiled parts of retrieval compare them: in whole numbers of 16 bits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.kernels.compile import inlined
from patchindex.kernels.simd import BLOCK, LANES, splat_block, store
from patchindex.kernels.simd_pairs import add_squares, decode_pairs, load_ints, no_ints, to_floats

__all__ = ["CODES", "NEVER", "STEPS", "Codes", "Queries", "decode", "nth_highest"]

CODES = 64  # a block's; 64 codes fill four AVX-512 registers, and a list is some blocks
NEVER = np.float32(-1e30)  # log weight of what is not there, and threshold of those who keep everything
STEPS = 1024
MOST_16 = np.iinfo(np.int16).max


class Codes(NamedTuple):
    """The codes of some lists, of all images or of those of a label.

    Attributes
    ----------
    file : array of uint8
        FAISS's file.
    offset : array of int64, shape (lists,)
        Byte where the codes of each list begin.
    size : array of int64, shape (lists,)
    low, step : array of float32, shape (padded dims,)
        Code q of dimension d stands for `low[d] + (q + 1/2) step[d]`; both are 0 beyond the dimensions.
    dims : int
    """

    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    low: np.ndarray
    step: np.ndarray
    dims: int


class Queries(NamedTuple):
    """What codes are compared with, as whole numbers of 16 bits, two in one of 32.

    The score of a code q, its numbers taken less 128, is

        unit sum_d u_d q_d - square_unit sum_d s_d q_d^2 + constant

    with whole u, s and sums. The numbers 0 and 2 of every four dimensions are a pair, and 1 and 3.

    Attributes
    ----------
    pairs : array of int32, shape (queries * pairs,)
        u, a query after the other.
    unit, constant : array of float32, shape (queries,)
    squares : array of int32, shape (pairs,)
        s.
    square_unit : float32
    """

    pairs: np.ndarray
    unit: np.ndarray
    constant: np.ndarray
    squares: np.ndarray
    square_unit: np.float32

    @classmethod
    def of(cls, codes: Codes, z: np.ndarray, scale: float) -> Queries:
        """Prepare queries z, (n, dims), whose score of a code that stands for y is `z . y - scale |y|^2`.

        They are rounded to 1/32767 of their largest entry, times the step of its dimension.
        """
        dims = codes.dims
        step = codes.step.astype(np.float64)
        middle = (codes.low + 128.5 * step)[:dims]
        u = np.zeros((len(z), len(step)))
        u[:, :dims] = step[:dims] * (z - 2 * scale * middle)
        squares = scale * step * step
        tiny = np.finfo(np.float32).tiny  # where patches are all alike, steps are 0
        # Sums of products with codes, of up to 2^7, and with their squares, of up to 2^14, stay below 2^31.
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
    """Round numbers (..., 4 n) and return them as pairs (..., 2 n): 0 and 2 of every four, and 1 and 3."""
    fours = np.rint(numbers).astype("<i2").reshape(*numbers.shape[:-1], -1, 2, 2)
    return np.ascontiguousarray(fours.swapaxes(-1, -2)).reshape(*numbers.shape[:-1], -1).view("<i4")


@inlined
def decode(codes, c, first, queries, raw, tile, norms):  # type: ignore[no-untyped-def]
    """Decode a block of list c from code `first`: pairs (pairs, CODES), and what its squares make of scores.

    That is below every threshold for codes that are not there.
    """
    begin = codes.offset[c] + first * codes.dims
    padded = len(codes.step)
    inside = begin + CODES * codes.dims + LANES <= len(codes.file)
    for i in range(0, CODES, LANES):
        for d in range(0, padded, LANES):
            to = d // 2 * CODES + i
            at = begin + i * codes.dims + d
            if inside:
                decode_pairs(codes.file, at, codes.dims, tile, to, CODES)
            else:  # where the file ends
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
    """Return which of the first `count` values comes after the n highest.

    They are counted in even steps from the highest to the lowest; then so are those of the step that holds
    the one looked for, until they are all alike.
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
