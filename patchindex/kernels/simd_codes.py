"""Bytes, bit masks and prefetching inside numba functions: the instructions of retrieval beside `simd`.

Arrays are flat and unchecked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from patchindex.kernels.simd import BLOCK, LANES, Floats

__all__ = [
    "bits_below",
    "load_bytes",
    "load_id",
    "lowest_bit",
    "prefetch",
    "sum_lanes",
]

_block, _lanes = Floats(BLOCK), Floats(LANES)
_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _at(context: Any, builder: Any, kind: Any, array: Any, index: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _bytes(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Load LANES bytes as floats."""
    raw = builder.load(_at(context, builder, kind, array, index, ir.VectorType(_I8, LANES)), align=1)
    return builder.uitofp(raw, ir.VectorType(_F32, LANES))


@intrinsic
def load_bytes(typingctx: Any, array: Any, index: Any) -> Any:
    """Load LANES consecutive bytes of a uint8 array as floats."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _bytes(context, builder, signature.args[0], args[0], args[1])

    return _lanes(array, types.intp), codegen


@intrinsic
def load_id(typingctx: Any, array: Any, index: Any) -> Any:
    """Load a little-endian int64 from a uint8 array, at any byte."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.bitcast(builder.gep(data, [args[1]]), _I64.as_pointer()), align=1)

    return types.int64(array, types.intp), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Prefetch the cache line of an entry of a uint8 array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.gep(data, [args[1]])
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer.type], ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        )
        # 0: for reading, 3: keep in all caches, 1: data.
        builder.call(function, [pointer, *(ir.Constant(_I32, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def bits_below(typingctx: Any, a: Any, b: Any) -> Any:
    """Return a bit for each entry of block a that is below that of b; the first entry is the lowest bit."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = builder.fcmp_ordered("<", args[0], args[1])
        bits = builder.bitcast(mask, ir.IntType(BLOCK))
        return bits if BLOCK == 64 else builder.zext(bits, _I64)

    return types.uint64(a, b), codegen


@intrinsic
def lowest_bit(typingctx: Any, bits: Any) -> Any:
    """Return the position of the lowest set bit; undefined for 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = builder.module.declare_intrinsic(
            "llvm.cttz.i64", fnty=ir.FunctionType(_I64, [_I64, ir.IntType(1)])
        )
        return builder.call(function, [args[0], ir.Constant(ir.IntType(1), 1)])

    return types.int64(types.uint64), codegen


@intrinsic
def sum_lanes(typingctx: Any, v: Any) -> Any:
    """Return the sum of the lanes of a vector, float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = builder.module.declare_intrinsic(
            f"llvm.vector.reduce.fadd.v{LANES}f32", fnty=ir.FunctionType(_F32, [_F32, args[0].type])
        )
        return builder.call(function, [ir.Constant(_F32, 0.0), args[0]], fastmath=("reassoc",))

    return types.float32(v), codegen
