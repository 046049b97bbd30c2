"""Sums of 16-bit products inside numba functions, for comparing codes with queries.

    sums_i += a_i b + c_i d,    where entry i is the pair (a_i, c_i), and (b, d) is a pair of the query

A pair is two 16-bit integers in one of 32 bits. One instruction multiplies both with those of another pair
and adds the products (`pmaddwd` of x86, or `vpdpwssd`, which also adds to a sum), so a comparison takes a
quarter of the time of float32. Integers do not round, so sums are the same on every processor.

Arrays are flat and unchecked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic

from patchindex.kernels.simd import BLOCK, FEATURES, LANES, Floats

__all__ = ["add_pairs", "add_squares", "decode_pairs", "load_ints", "no_ints", "to_floats"]

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
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


class Ints(types.Type):
    """The numba type of a vector of int32."""

    def __init__(self, n: int) -> None:
        self.n = n
        super().__init__(name=f"Ints({n})")


@register_default(Ints)
class _IntsModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Ints) -> None:
        super().__init__(manager, kind, _vector(_I32, kind.n))


_ints, _floats = Ints(BLOCK), Floats(BLOCK)


def _vector(kind: Any, n: int) -> ir.VectorType:
    return ir.VectorType(kind, n)


def _constant(x: int, n: int) -> ir.Constant:
    return ir.Constant(_vector(_I32, n), [x] * n)


def _order(indices: Any) -> ir.Constant:
    indices = list(indices)
    return ir.Constant(_vector(_I32, len(indices)), indices)


def _at(context: Any, builder: Any, kind: Any, array: Any, index: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _joined(builder: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        parts = [
            builder.shuffle_vector(a, b, _order(range(2 * a.type.count)))
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _products(builder: Any, a: Any, b: Any) -> Any:
    """Sum the products of pairs of 16 bits, for vectors of WIDTH int32."""
    whole, halves = _vector(_I32, WIDTH), _vector(_I16, 2 * WIDTH)
    a, b = builder.bitcast(a, halves), builder.bitcast(b, halves)
    if INSTRUCTION is not None:
        function = builder.module.declare_intrinsic(
            INSTRUCTION, fnty=ir.FunctionType(whole, [halves, halves])
        )
        return builder.call(function, [a, b])

    def product(first: int) -> Any:
        some = _order(range(first, 2 * WIDTH, 2))
        wide = [builder.sext(builder.shuffle_vector(v, v, some), whole) for v in (a, b)]
        return builder.mul(*wide)

    return builder.add(product(0), product(1))


@intrinsic
def no_ints(typingctx: Any) -> Any:
    """Return a block of zeros, int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _constant(0, BLOCK)

    return _ints(), codegen


@intrinsic
def load_ints(typingctx: Any, array: Any, index: Any) -> Any:
    """Load a block of consecutive entries of an int32 array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _at(context, builder, signature.args[0], args[0], args[1], _vector(_I32, BLOCK))
        return builder.load(pointer, align=4)

    return _ints(array, types.intp), codegen


def _add_pairs(builder: Any, sums: Any, values: Any, x: Any) -> Any:
    one = builder.insert_element(ir.Constant(_vector(_I32, WIDTH), ir.Undefined), x, ir.Constant(_I32, 0))
    factor = builder.shuffle_vector(one, one, _order([0] * WIDTH))
    parts = []
    for i in range(0, BLOCK, WIDTH):
        before, mine = (builder.shuffle_vector(v, v, _order(range(i, i + WIDTH))) for v in (sums, values))
        parts.append(builder.add(before, _products(builder, mine, factor)))
    return _joined(builder, parts)


@intrinsic
def add_pairs(typingctx: Any, sums: Any, values: Any, x: Any) -> Any:
    """Add to each entry of a block the products of its pair in `values` with the pair x."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _add_pairs(builder, *args)

    return sums(sums, values, types.int32), codegen


@intrinsic
def to_floats(typingctx: Any, v: Any) -> Any:
    """Return a block of int32 as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(args[0], _vector(ir.FloatType(), BLOCK))

    return _floats(v), codegen


@intrinsic
def add_squares(typingctx: Any, sums: Any, values: Any, x: Any) -> Any:
    """Add to each entry of a block the products of the squares of its pair, -128 to 127, with the pair x."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        halves = builder.bitcast(args[1], _vector(_I16, 2 * BLOCK))
        squares = builder.bitcast(builder.mul(halves, halves), args[1].type)
        return _add_pairs(builder, args[0], squares, args[2])

    return sums(sums, values, types.int32), codegen


@intrinsic
def decode_pairs(typingctx: Any, codes: Any, first: Any, stride: Any, out: Any, at: Any, line: Any) -> Any:
    """Write LANES bytes of each of LANES rows, less 128, as pairs of 16 bits.

    Row i begins at byte `first + i stride` of `codes`. The first and third of every four columns are a pair,
    and the second and fourth; pair j of all rows is written to `out` (int32) from `at + j line` on.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        codes, first, stride, out, at, line = args
        rows = []
        for i in range(LANES):
            begin = builder.add(first, builder.mul(stride, ir.Constant(stride.type, i)))
            pointer = _at(context, builder, signature.args[0], codes, begin, _vector(_I8, LANES))
            rows.append(builder.bitcast(builder.load(pointer, align=1), _vector(_I32, LANES // 4)))
        # A vector holds four rows of four columns of four bytes. Shuffles bring the same column of eight
        # rows together, then of sixteen.
        fours = [_joined(builder, rows[i : i + 4]) for i in range(0, LANES, 4)]

        def eights(pair: list[Any], column: int) -> Any:
            order = [base + 4 * i + c for c in (column, column + 1) for base in (0, 16) for i in range(4)]
            return builder.shuffle_vector(*pair, _order(order))

        halves = _vector(_I16, 2 * LANES)
        eight = ir.Constant(halves, [8] * 2 * LANES)
        for column in (0, 2):
            some = [eights(fours[i : i + 2], column) for i in (0, 2)]
            for j in (0, 1):
                order = [*range(8 * j, 8 * j + 8), *range(16 + 8 * j, 24 + 8 * j)]
                bytes_ = builder.shuffle_vector(*some, _order(order))
                v = builder.bitcast(
                    builder.xor(bytes_, ir.Constant(bytes_.type, [0x80808080] * LANES)), halves
                )
                for half, shifted in enumerate((builder.shl(v, eight), v)):
                    to = builder.mul(line, ir.Constant(line.type, 2 * (column + j) + half))
                    pointer = _at(
                        context, builder, signature.args[3], out, builder.add(at, to), _vector(_I32, LANES)
                    )
                    builder.store(
                        builder.bitcast(builder.ashr(shifted, eight), bytes_.type), pointer, align=4
                    )
        return context.get_dummy_value()

    ints = (types.intp, types.intp)
    return types.void(codes, *ints, out, types.intp, types.intp), codegen
