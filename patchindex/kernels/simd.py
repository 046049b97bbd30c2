"""Vectors inside numba functions.

Numba leaves vectors to LLVM's loop vectoriser, which cannot keep the running sums of a stencil in registers.
This file names LLVM's own vector types and instructions, so that kernels can write them:

=========== ======= ===========================================================================
type        entries registers
=========== ======= ===========================================================================
block       BLOCK   LLVM splits it: 4 of AVX-512 (64 entries) or of AVX2 (32 entries), 8 of NEON
lanes       LANES   one of AVX-512, two of AVX2
=========== ======= ===========================================================================

The instructions are LLVM's portable ones, so the same code runs on x86 and ARM. `a + b`, `a - b` and `a * b`
work on float32; products and sums may fuse. Arrays are flat, indices count entries, and both are unchecked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import config, types
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic, overload

__all__ = [
    "BLOCK",
    "F32",
    "FEATURES",
    "I8",
    "I32",
    "LANES",
    "Vector",
    "aligned",
    "any_above",
    "bits_below",
    "combined",
    "exp2",
    "fold_max",
    "fold_product",
    "fold_sum",
    "instruction",
    "largest",
    "load_block",
    "load_bytes",
    "load_id",
    "load_lanes",
    "loader",
    "lowest_bit",
    "parts",
    "pointer_to",
    "prefetch",
    "shuffled",
    "splat",
    "splat_block",
    "splat_lanes",
    "store",
    "sum_lanes",
    "total",
    "vector",
]


def _widest(features: frozenset[str]) -> int:
    """Return the entries per block for these processor features: as many as leave registers free for sums."""
    return 64 if "+avx512f" in features else 32


# Numba compiles for the features in its setting, by default for those of this processor.
_SETTING = config.CPU_FEATURES
FEATURES = frozenset((binding.get_host_cpu_features().flatten() if _SETTING is None else _SETTING).split(","))
LANES = 16
BLOCK = _widest(FEATURES)
FLAGS = ("nnan", "nsz", "contract")  # the kernels make no NaN; products and sums may fuse

# 2^f = sum_i EXP2[i] f^i on [-1/2, 1/2], relative error 1e-7: see `exp2`.
EXP2 = (1.0, 0.69314698, 0.24022242, 0.055507337, 0.0096715126, 0.0013264727)

F32, F64 = ir.FloatType(), ir.DoubleType()
I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def aligned(n: int) -> np.ndarray:
    """Return n zeros, float32, aligned to a cache line: a vector across two lines loads half as fast."""
    room = np.zeros(n * 4 + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * n].view(np.float32)


class Vector(types.Type):
    """The numba type of a vector of n float32 or int32."""

    def __init__(self, kind: str, n: int) -> None:
        self.kind, self.n = kind, n
        super().__init__(name=f"Vector({kind}, {n})")

    @property
    def llvm(self) -> ir.VectorType:
        """The type of LLVM."""
        return vector({"float32": F32, "int32": I32}[self.kind], self.n)


@register_default(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.llvm)


_block, _lanes = Vector("float32", BLOCK), Vector("float32", LANES)


def instruction(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an instruction of a function that writes it: `write(builder, *values)`.

    `result` and `arguments` are numba types. Ellipsis means the type that is passed, for the result that of
    the first argument. An array is passed as the pointer to its first entry.
    """

    def decorate(write: Callable[..., Any]) -> Any:
        @wraps(write)
        def define(_: Any, *given: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                values = [
                    context.make_array(kind)(context, builder, value).data
                    if isinstance(kind, types.Array)
                    else value
                    for kind, value in zip(signature.args, values, strict=True)
                ]
                written = write(builder, *values)
                return context.get_dummy_value() if result is types.void else written

            kinds = (own if kind is ... else kind for kind, own in zip(arguments, given, strict=True))
            return (given[0] if result is ... else result)(*kinds), generate

        return intrinsic(define)

    return decorate


def vector(kind: Any, n: int) -> ir.VectorType:
    """Return LLVM's type of n entries."""
    return ir.VectorType(kind, n)


def splat(builder: Any, x: Any, n: int) -> Any:
    """Return n entries that are x."""
    one = builder.insert_element(ir.Constant(vector(x.type, n), ir.Undefined), x, ir.Constant(I32, 0))
    return shuffled(builder, [0] * n, one, one)


def shuffled(builder: Any, order: Sequence[int], a: Any, b: Any) -> Any:
    """Return the entries at `order` of two vectors, one after the other."""
    return builder.shuffle_vector(a, b, ir.Constant(vector(I32, len(order)), list(order)))


def parts(builder: Any, v: Any, n: int) -> list[Any]:
    """Cut a vector into vectors of n; this takes no instructions."""
    return [shuffled(builder, range(i, i + n), v, v) for i in range(0, v.type.count, n)]


def combined(combine: Callable[[Any, Any], Any], vectors: list[Any]) -> Any:
    """Combine neighbouring vectors, then neighbouring results, until one is left."""
    while len(vectors) > 1:
        vectors = [combine(a, b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def pointer_to(builder: Any, data: Any, index: Any, kind: Any) -> Any:
    """Return the pointer to a value of LLVM's type `kind`, at an index of an array."""
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _call(builder: Any, name: str, result: Any, *values: Any, flags: tuple[str, ...] = ()) -> Any:
    function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(result, [v.type for v in values]))
    return builder.call(function, values, fastmath=flags)


def _constant(x: float, n: int) -> ir.Constant:
    return ir.Constant(vector(F32, n), [float(np.float32(x))] * n)


def _max(builder: Any, a: Any, b: Any) -> Any:
    return _call(builder, f"llvm.maxnum.v{a.type.count}f32", a.type, a, b, flags=FLAGS)


def loader(result: Vector) -> Any:
    """Make the instruction that loads a vector."""

    @instruction(result, ..., types.intp)
    def load(builder: Any, data: Any, index: Any) -> Any:
        """Load consecutive entries of an array of float32 or int32, from `index`."""
        return builder.load(pointer_to(builder, data, index, result.llvm), align=4)

    return load


def _splatter(result: Vector) -> Any:
    @instruction(result, types.float32)
    def splat_(builder: Any, x: Any) -> Any:
        """Return a vector of equal floats."""
        return splat(builder, x, result.n)

    return splat_


load_block, load_lanes = loader(_block), loader(_lanes)
splat_block, splat_lanes = _splatter(_block), _splatter(_lanes)


@instruction(types.void, ..., types.intp, ...)
def store(builder: Any, data: Any, index: Any, value: Any) -> None:
    """Store a vector into an array of float32, from `index`."""
    builder.store(value, pointer_to(builder, data, index, value.type), align=4)


def _arithmetic(symbol: Any, name: str) -> None:
    @instruction(..., ..., ...)
    def combine(builder: Any, a: Any, b: Any) -> Any:
        return getattr(builder, name)(a, b, flags=FLAGS)

    @overload(symbol)
    def operation(a, b):  # type: ignore[no-untyped-def]
        return (lambda a, b: combine(a, b)) if a == b and a in (_block, _lanes) else None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")


@instruction(_lanes, _block)
def fold_max(builder: Any, v: Any) -> Any:
    """Return the largest value of each lane over the parts of a block."""
    return combined(lambda a, b: _max(builder, a, b), parts(builder, v, LANES))


@instruction(_lanes, _lanes, _block)
def fold_sum(builder: Any, sums: Any, v: Any) -> Any:
    """Add the parts of a block to lane sums."""
    whole = combined(lambda a, b: builder.fadd(a, b, flags=FLAGS), parts(builder, v, LANES))
    return builder.fadd(sums, whole, flags=FLAGS)


@instruction(_lanes, _lanes, _block, _block)
def fold_product(builder: Any, sums: Any, a: Any, b: Any) -> Any:
    """Add the parts of the product of two blocks to lane sums."""
    for x, y in zip(parts(builder, a, LANES), parts(builder, b, LANES), strict=True):
        sums = builder.fadd(sums, builder.fmul(x, y, flags=FLAGS), flags=FLAGS)
    return sums


@instruction(types.boolean, _lanes, types.float32)
def any_above(builder: Any, v: Any, x: Any) -> Any:
    """Return true if any lane is larger than x."""
    mask = builder.fcmp_ordered(">", v, splat(builder, x, LANES))
    bits = builder.bitcast(mask, ir.IntType(LANES))
    return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))


@instruction(types.float32, _lanes)
def largest(builder: Any, v: Any) -> Any:
    """Return the largest lane."""
    return _call(builder, f"llvm.vector.reduce.fmax.v{LANES}f32", F32, v, flags=FLAGS)


@instruction(types.float64, _lanes)
def total(builder: Any, v: Any) -> Any:
    """Return the sum of all lanes, in float64."""
    wide = builder.fpext(v, vector(F64, LANES))
    zero = ir.Constant(F64, 0.0)
    return _call(builder, f"llvm.vector.reduce.fadd.v{LANES}f64", F64, zero, wide, flags=("reassoc",))


@instruction(types.float32, _lanes)
def sum_lanes(builder: Any, v: Any) -> Any:
    """Return the sum of all lanes, in float32."""
    zero = ir.Constant(F32, 0.0)
    return _call(builder, f"llvm.vector.reduce.fadd.v{LANES}f32", F32, zero, v, flags=("reassoc",))


@instruction(..., ..., types.float32)
def exp2(builder: Any, v: Any, floor: Any) -> Any:
    """Return 2^max(v, floor), for an integer floor of -126 or more.

    v = n + f with n an integer and |f| <= 1/2; 2^f is a polynomial, and n is added to its exponent. Adding
    1.5 * 2^23 to v rounds it to an integer and leaves n in the low bits.
    """
    n = v.type.count
    ints = vector(I32, n)
    v = _max(builder, v, splat(builder, floor, n))
    magic = _constant(1.5 * 2**23, n)
    shifted = builder.fadd(v, magic)  # no flags: it must not be simplified away
    f = builder.fsub(v, builder.fsub(shifted, magic), flags=("nnan", "nsz"))
    result = _constant(EXP2[-1], n)
    for coefficient in EXP2[-2::-1]:
        product = builder.fmul(result, f, flags=FLAGS)
        result = builder.fadd(product, _constant(coefficient, n), flags=FLAGS)
    exponent = builder.shl(builder.bitcast(shifted, ints), ir.Constant(ints, [23] * n))
    return builder.bitcast(builder.add(builder.bitcast(result, ints), exponent), v.type)


@instruction(_lanes, ..., types.intp)
def load_bytes(builder: Any, data: Any, index: Any) -> Any:
    """Load LANES consecutive bytes of a uint8 array as floats."""
    raw = builder.load(pointer_to(builder, data, index, vector(I8, LANES)), align=1)
    return builder.uitofp(raw, vector(F32, LANES))


@instruction(types.int64, ..., types.intp)
def load_id(builder: Any, data: Any, index: Any) -> Any:
    """Load a little-endian int64 from a uint8 array, at any byte."""
    return builder.load(pointer_to(builder, data, index, I64), align=1)


@instruction(types.void, ..., types.intp)
def prefetch(builder: Any, data: Any, index: Any) -> None:
    """Prefetch the cache line of an entry of a uint8 array."""
    pointer = builder.gep(data, [index])
    # 0: for reading, 3: keep in all caches, 1: data.
    settings = (ir.Constant(I32, n) for n in (0, 3, 1))
    _call(builder, f"llvm.prefetch.{pointer.type.intrinsic_name}", ir.VoidType(), pointer, *settings)


@instruction(types.uint64, _block, _block)
def bits_below(builder: Any, a: Any, b: Any) -> Any:
    """Return a bit for each entry of block a that is below that of b; the first entry is the lowest bit."""
    bits = builder.bitcast(builder.fcmp_ordered("<", a, b), ir.IntType(BLOCK))
    return bits if BLOCK == 64 else builder.zext(bits, I64)


@instruction(types.int64, types.uint64)
def lowest_bit(builder: Any, bits: Any) -> Any:
    """Return the position of the lowest set bit; undefined for 0."""
    return _call(builder, "llvm.cttz.i64", I64, bits, ir.Constant(ir.IntType(1), 1))
