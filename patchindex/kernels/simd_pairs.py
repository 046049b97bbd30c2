"""Sums of 16-bit products inside numba functions, for comparing codes with queries.

    sums_i += a_i b + c_i d,    where entry i is the pair (a_i, c_i), and (b, d) is a pair of the query

A pair is two 16-bit integers in one of 32 bits. One instruction multiplies both with those of another pair
and adds the products (`pmaddwd` of x86, or `vpdpwssd`, which also adds to a sum), so a comparison takes a
quarter of the time of float32. Integers do not round, so sums are the same on every processor.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from patchindex.kernels.simd import (
    BLOCK,
    F32,
    FEATURES,
    I8,
    I32,
    LANES,
    Vector,
    combined,
    instruction,
    loader,
    parts,
    pointer_to,
    shuffled,
    splat,
    vector,
)

__all__ = ["add_pairs", "add_squares", "decode_pairs", "load_ints", "no_ints", "to_floats"]

I16 = ir.IntType(16)
# int32 per register, and the instruction that adds the products of pairs.
WIDTH, INSTRUCTION = next(
    (
        (width, name)
        for feature, width, name in (
            ("+avx512bw", 16, "llvm.x86.avx512.pmaddw.d.512"),
            ("+avx2", 8, "llvm.x86.avx2.pmadd.wd"),
            ("+sse2", 4, "llvm.x86.sse2.pmadd.wd"),
        )
        if feature in FEATURES
    ),
    (4, None),
)

_ints = Vector("int32", BLOCK)
load_ints = loader(_ints)


def _joined(builder: Any, vectors: list[Any]) -> Any:
    return combined(lambda a, b: shuffled(builder, range(2 * a.type.count), a, b), vectors)


def _products(builder: Any, a: Any, b: Any) -> Any:
    """Sum the products of pairs of 16 bits, for vectors of WIDTH int32."""
    whole, halves = vector(I32, WIDTH), vector(I16, 2 * WIDTH)
    a, b = builder.bitcast(a, halves), builder.bitcast(b, halves)
    if INSTRUCTION is not None:
        function = builder.module.declare_intrinsic(
            INSTRUCTION, fnty=ir.FunctionType(whole, [halves, halves])
        )
        return builder.call(function, [a, b])

    def product(first: int) -> Any:
        wide = [builder.sext(shuffled(builder, range(first, 2 * WIDTH, 2), v, v), whole) for v in (a, b)]
        return builder.mul(*wide)

    return builder.add(product(0), product(1))


def _add_pairs(builder: Any, sums: Any, values: Any, x: Any) -> Any:
    factor = splat(builder, x, WIDTH)
    both = zip(parts(builder, sums, WIDTH), parts(builder, values, WIDTH), strict=True)
    return _joined(builder, [builder.add(before, _products(builder, v, factor)) for before, v in both])


@instruction(_ints)
def no_ints(builder: Any) -> Any:
    """Return a block of zeros, int32."""
    return ir.Constant(_ints.llvm, [0] * BLOCK)


@instruction(_ints, _ints, _ints, types.int32)
def add_pairs(builder: Any, sums: Any, values: Any, x: Any) -> Any:
    """Add to each entry of a block the products of its pair in `values` with the pair x."""
    return _add_pairs(builder, sums, values, x)


@instruction(Vector("float32", BLOCK), _ints)
def to_floats(builder: Any, v: Any) -> Any:
    """Return a block of int32 as float32."""
    return builder.sitofp(v, vector(F32, BLOCK))


@instruction(_ints, _ints, _ints, types.int32)
def add_squares(builder: Any, sums: Any, values: Any, x: Any) -> Any:
    """Add to each entry of a block the products of the squares of its pair, -128 to 127, with the pair x."""
    halves = builder.bitcast(values, vector(I16, 2 * BLOCK))
    squares = builder.bitcast(builder.mul(halves, halves), values.type)
    return _add_pairs(builder, sums, squares, x)


@instruction(types.void, ..., types.intp, types.intp, ..., types.intp, types.intp)
def decode_pairs(builder: Any, codes: Any, first: Any, stride: Any, out: Any, at: Any, line: Any) -> None:
    """Write LANES bytes of each of LANES rows, less 128, as pairs of 16 bits.

    Row i begins at byte `first + i stride` of `codes`. The first and third of every four columns are a pair,
    and the second and fourth; pair j of all rows is written to `out` (int32) from `at + j line` on.
    """
    rows = []
    for i in range(LANES):
        begin = builder.add(first, builder.mul(stride, ir.Constant(stride.type, i)))
        row = builder.load(pointer_to(builder, codes, begin, vector(I8, LANES)), align=1)
        rows.append(builder.bitcast(row, vector(I32, LANES // 4)))
    # A vector holds four rows of four columns of four bytes. Shuffles bring the same column of eight
    # rows together, then of sixteen.
    fours = [_joined(builder, rows[i : i + 4]) for i in range(0, LANES, 4)]

    def eights(i: int, column: int) -> Any:
        order = [base + 4 * i + c for c in (column, column + 1) for base in (0, 16) for i in range(4)]
        return shuffled(builder, order, *fours[i : i + 2])

    halves = vector(I16, 2 * LANES)
    eight = ir.Constant(halves, [8] * 2 * LANES)
    for column in (0, 2):
        some = eights(0, column), eights(2, column)
        for j in (0, 1):
            order = [*range(8 * j, 8 * j + 8), *range(16 + 8 * j, 24 + 8 * j)]
            sixteen = shuffled(builder, order, *some)
            signed = builder.xor(sixteen, ir.Constant(sixteen.type, [0x80808080] * LANES))
            v = builder.bitcast(signed, halves)
            for half, shifted in enumerate((builder.shl(v, eight), v)):
                to = builder.add(at, builder.mul(line, ir.Constant(line.type, 2 * (column + j) + half)))
                pair = builder.bitcast(builder.ashr(shifted, eight), sixteen.type)
                builder.store(pair, pointer_to(builder, out, to, vector(I32, LANES)), align=4)
