"""Vectors of float32 inside numba functions.

Numba leaves vectors to LLVM's loop vectoriser, which cannot keep the running sums of a stencil in registers.
This file names LLVM's own vector types and instructions, so that kernels can write them:

=========== ======= ===========================================================================
type        floats  registers
=========== ======= ===========================================================================
block       BLOCK   LLVM splits it: 4 of AVX-512 (64 floats) or of AVX2 (32 floats), 8 of NEON
lanes       LANES   one of AVX-512, two of AVX2
=========== ======= ===========================================================================

The instructions are LLVM's portable ones, so the same code runs on x86 and ARM. `a + b`, `a - b` and `a * b`
work on vectors; products and sums may fuse. Indices count floats and are not checked.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import config, types
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic, overload

__all__ = [
    "BLOCK",
    "FEATURES",
    "LANES",
    "aligned",
    "any_above",
    "exp2",
    "fold_max",
    "fold_product",
    "fold_sum",
    "largest",
    "load_block",
    "load_lanes",
    "splat_block",
    "splat_lanes",
    "store",
    "total",
]


def _widest(features: frozenset[str]) -> int:
    """Return the floats per block for these processor features: as many as leave registers free for sums."""
    return 64 if "+avx512f" in features else 32


# Numba compiles for the features in its setting, by default for those of this processor.
_SETTING = config.CPU_FEATURES
FEATURES = frozenset((binding.get_host_cpu_features().flatten() if _SETTING is None else _SETTING).split(","))
LANES = 16
BLOCK = _widest(FEATURES)
FLAGS = ("nnan", "nsz", "contract")  # the kernels make no NaN; products and sums may fuse

# 2^f = sum_i EXP2[i] f^i on [-1/2, 1/2], relative error 1e-7: see `exp2`.
EXP2 = (1.0, 0.69314698, 0.24022242, 0.055507337, 0.0096715126, 0.0013264727)


def aligned(n: int) -> np.ndarray:
    """Return n zeros, float32, aligned to a cache line: a vector across two lines loads half as fast."""
    room = np.zeros(n * 4 + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * n].view(np.float32)


class Floats(types.Type):
    """The numba type of a vector of float32."""

    def __init__(self, n: int) -> None:
        self.n = n
        super().__init__(name=f"Floats({n})")


@register_default(Floats)
class _FloatsModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Floats) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.FloatType(), kind.n))


_block, _lanes = Floats(BLOCK), Floats(LANES)


def _vector(n: int) -> ir.VectorType:
    return ir.VectorType(ir.FloatType(), n)


def _constant(x: float, n: int) -> ir.Constant:
    return ir.Constant(_vector(n), [float(np.float32(x))] * n)


def _splat(builder: Any, x: Any, n: int) -> Any:
    one = builder.insert_element(ir.Constant(_vector(n), ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), n), [0] * n))


def _parts(builder: Any, v: Any) -> list[Any]:
    """Cut a vector into vectors of LANES; this takes no instructions."""
    n = v.type.count
    return [
        builder.shuffle_vector(
            v, v, ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(i, i + LANES)))
        )
        for i in range(0, n, LANES)
    ]


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(result, [a.type for a in args]))
    return builder.call(function, args, fastmath=FLAGS)


def _max(builder: Any, a: Any, b: Any) -> Any:
    return _call(builder, f"llvm.maxnum.v{a.type.count}f32", a.type, a, b)


def _tree(builder: Any, combine: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        parts = [combine(builder, a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, n: int) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _vector(n).as_pointer())


def _loader(result: Floats) -> Any:
    def load(typingctx: Any, array: Any, index: Any) -> Any:
        """Load consecutive floats of a flat float32 array, from `index`."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _pointer(context, builder, signature.args[0], args[0], args[1], result.n)
            return builder.load(pointer, align=4)

        return result(array, types.intp), codegen

    return intrinsic(load)


load_block, load_lanes = _loader(_block), _loader(_lanes)


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Store a vector into a flat float32 array, from `index`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], signature.args[2].n)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


def _splatter(result: Floats) -> Any:
    def splat(typingctx: Any, x: Any) -> Any:
        """Return a vector of equal floats."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _splat(builder, args[0], result.n)

        return result(types.float32), codegen

    return intrinsic(splat)


splat_block, splat_lanes = _splatter(_block), _splatter(_lanes)


def _arithmetic(name: str, instruction: str) -> Any:
    def combine(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args, flags=FLAGS)

        return a(a, b), codegen

    combine.__name__ = name
    return intrinsic(combine)


_add, _sub, _mul = _arithmetic("add", "fadd"), _arithmetic("sub", "fsub"), _arithmetic("mul", "fmul")


def _two(function: Any) -> Any:
    def operation(a: Any, b: Any) -> Any:
        if isinstance(a, Floats) and a == b:

            def compute(a: Any, b: Any) -> Any:
                return function(a, b)

            return compute
        return None

    return operation


for _symbol, _function in ((operator.add, _add), (operator.sub, _sub), (operator.mul, _mul)):
    overload(_symbol)(_two(_function))


@intrinsic
def fold_max(typingctx: Any, v: Any) -> Any:
    """Return the largest value of each lane over the parts of a block."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _tree(builder, _max, _parts(builder, args[0]))

    return _lanes(v), codegen


@intrinsic
def fold_sum(typingctx: Any, sums: Any, v: Any) -> Any:
    """Add the parts of a block to lane sums."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = _tree(builder, lambda b, x, y: b.fadd(x, y, flags=FLAGS), _parts(builder, args[1]))
        return builder.fadd(args[0], whole, flags=FLAGS)

    return _lanes(sums, v), codegen


@intrinsic
def fold_product(typingctx: Any, sums: Any, a: Any, b: Any) -> Any:
    """Add the parts of the product of two blocks to lane sums."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = args[0]
        for x, y in zip(_parts(builder, args[1]), _parts(builder, args[2]), strict=True):
            total = builder.fadd(total, builder.fmul(x, y, flags=FLAGS), flags=FLAGS)
        return total

    return _lanes(sums, a, b), codegen


@intrinsic
def any_above(typingctx: Any, v: Any, x: Any) -> Any:
    """Return true if any lane is larger than x."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = builder.fcmp_ordered(">", args[0], _splat(builder, args[1], LANES))
        bits = builder.bitcast(mask, ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(v, types.float32), codegen


@intrinsic
def largest(typingctx: Any, v: Any) -> Any:
    """Return the largest lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, f"llvm.vector.reduce.fmax.v{LANES}f32", ir.FloatType(), args[0])

    return types.float32(v), codegen


@intrinsic
def total(typingctx: Any, v: Any) -> Any:
    """Return the sum of all lanes, in float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.fpext(args[0], ir.VectorType(ir.DoubleType(), LANES))
        function = builder.module.declare_intrinsic(
            f"llvm.vector.reduce.fadd.v{LANES}f64",
            fnty=ir.FunctionType(ir.DoubleType(), [ir.DoubleType(), wide.type]),
        )
        zero = ir.Constant(ir.DoubleType(), 0.0)
        return builder.call(function, [zero, wide], fastmath=("reassoc",))

    return types.float64(v), codegen


@intrinsic
def exp2(typingctx: Any, v: Any, floor: Any) -> Any:
    """Return 2^max(v, floor), for an integer floor of -126 or more.

    v = n + f with n an integer and |f| <= 1/2; 2^f is a polynomial, and n is added to its exponent. Adding
    1.5 * 2^23 to v rounds it to an integer and leaves n in the low bits.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        n = args[0].type.count
        ints = ir.VectorType(ir.IntType(32), n)
        v = _max(builder, args[0], _splat(builder, args[1], n))
        magic = _constant(1.5 * 2**23, n)
        shifted = builder.fadd(v, magic)  # no flags: it must not be simplified away
        f = builder.fsub(v, builder.fsub(shifted, magic), flags=("nnan", "nsz"))
        result = _constant(EXP2[-1], n)
        for coefficient in EXP2[-2::-1]:
            product = builder.fmul(result, f, flags=FLAGS)
            result = builder.fadd(product, _constant(coefficient, n), flags=FLAGS)
        exponent = builder.shl(builder.bitcast(shifted, ints), ir.Constant(ints, [23] * n))
        return builder.bitcast(builder.add(builder.bitcast(result, ints), exponent), v.type)

    return v(v, types.float32), codegen
