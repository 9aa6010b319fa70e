"""The few vector operations that every CPU kernel is written in; knows nothing of networks.

`Simd(dtype, width)` is a vocabulary for one element type and one vector width: its methods return functions that Numba
compiles, so that a kernel reads as ordinary code (`store(out, k, fma(a, b, c))`) and becomes exactly those LLVM vector
instructions. Nothing is reassociated or contracted: a result depends on the order written here, not on the width.

Memory is addressed as `(address, index)`: an int64 byte address and an index counted in elements.
"""

from __future__ import annotations

import operator
from functools import cached_property
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

I32, I64 = ir.IntType(32), ir.IntType(64)
_ELEMENTS = {"float32": (ir.FloatType(), types.float32, 32, 23), "float64": (ir.DoubleType(), types.float64, 64, 52)}


class Vec(types.Type):
    """Numba type of a vector of `lanes` elements."""

    def __init__(self, dtype: str, lanes: int) -> None:
        super().__init__(f"Vec({dtype}x{lanes})")
        self.dtype, self.lanes = dtype, lanes

    @property
    def ir(self) -> ir.Type:
        """The LLVM vector type."""
        return ir.VectorType(_ELEMENTS[self.dtype][0], self.lanes)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Vec) -> None:
        super().__init__(manager, fe_type, fe_type.ir)


def _define(op: Any, method: str) -> None:
    """Let `op` act on two vectors of one type, lane by lane."""

    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vec) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    infer_global(op)(Template)
    lower_builtin(op, Vec, Vec)(lambda context, builder, sig, args: getattr(builder, method)(*args))


for _op, _method in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _define(_op, _method)


def element(builder: Any, address: Any, index: Any, of: ir.Type) -> Any:
    """Pointer to element `index` behind the int64 `address`."""
    return builder.gep(builder.inttoptr(address, of.as_pointer()), [index])


def _scalar_access(of: ir.Type, numba_type: Any) -> tuple[Any, Any]:
    @intrinsic
    def get(typing: Any, address: Any, index: Any) -> Any:
        return numba_type(types.int64, types.int64), lambda context, b, sig, a: b.load(element(b, a[0], a[1], of))

    @intrinsic
    def put(typing: Any, address: Any, index: Any, value: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            b.store(a[2], element(b, a[0], a[1], of))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, numba_type), emit

    return get, put


get_i32, put_i32 = _scalar_access(I32, types.int32)
get_i64, put_i64 = _scalar_access(I64, types.int64)
get_u8, put_u8 = _scalar_access(ir.IntType(8), types.uint8)
get_f32, _ = _scalar_access(ir.FloatType(), types.float32)
get_f64, put_f64 = _scalar_access(ir.DoubleType(), types.float64)


class Simd:
    """Vector operations for `dtype` in vectors of `width` bytes.

    Parameters
    ----------
    dtype : {"float32", "float64"}
        Element type.
    width : int
        Bytes in a vector: 64 (AVX-512), 32 (AVX2) or 16 (NEON, SSE).
    narrow : {"", "amx", "dot", "convert"}
        How products of bfloat16 are made (narrow.py), for dtype float32; "" where products have the dtype's precision.
    """

    def __init__(self, dtype: str, width: int, narrow: str = "") -> None:
        self.dtype, self.width, self.narrow = dtype, width, narrow
        self.scalar_ir, self.scalar, self.bits, self.mantissa = _ELEMENTS[dtype]
        self.itemsize = np.dtype(dtype).itemsize
        self.lanes = width // self.itemsize
        self.vec = Vec(dtype, self.lanes)
        self.get, self.put = _scalar_access(self.scalar_ir, self.scalar)

    @property
    def key(self) -> str:
        """The dtype by which kernels are asked for: with bfloat16 products, how these are made is part of it."""
        return f"bfloat16-{self.narrow}" if self.narrow else self.dtype

    def constant(self, value: float) -> ir.Constant:
        """An LLVM vector with `value` in every lane."""
        return ir.Constant(self.vec.ir, [ir.Constant(self.scalar_ir, float(value))] * self.lanes)

    def _ints(self, value: int) -> ir.Constant:
        return ir.Constant(ir.VectorType(ir.IntType(self.bits), self.lanes), [value] * self.lanes)

    def broadcast(self, builder: Any, value: Any) -> Any:
        """LLVM vector with the scalar `value` in every lane."""
        undef = ir.Constant(self.vec.ir, ir.Undefined)
        one = builder.insert_element(undef, value, ir.Constant(I32, 0))
        return builder.shuffle_vector(one, undef, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes))

    def vector_at(self, builder: Any, address: Any, index: Any) -> Any:
        """Pointer to the vector that begins at element `index`."""
        return builder.bitcast(element(builder, address, index, self.scalar_ir), self.vec.ir.as_pointer())

    def call_fma(self, builder: Any, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once (LLVM's own; llvmlite's builder.fma takes scalars only)."""
        kind = ir.FunctionType(self.vec.ir, [self.vec.ir] * 3)
        name = f"llvm.fma.v{self.lanes}f{self.bits}"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])

    @cached_property
    def load(self) -> Any:
        """load(address, index) -> vector."""

        @intrinsic
        def load(typing: Any, address: Any, index: Any) -> Any:
            return self.vec(types.int64, types.int64), lambda context, b, sig, a: b.load(
                self.vector_at(b, *a), align=self.itemsize
            )

        return load

    @cached_property
    def store(self) -> Any:
        """store(address, index, vector)."""

        @intrinsic
        def store(typing: Any, address: Any, index: Any, value: Any) -> Any:
            def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
                b.store(a[2], self.vector_at(b, a[0], a[1]), align=self.itemsize)
                return context.get_dummy_value()

            return types.void(types.int64, types.int64, self.vec), emit

        return store

    def splat(self, value: float) -> Any:
        """A function without arguments that returns the constant vector."""

        @intrinsic
        def constant(typing: Any) -> Any:
            return self.vec(), lambda context, b, sig, a: self.constant(value)

        return constant

    @cached_property
    def spread(self) -> Any:
        """spread(scalar) -> vector with it in every lane."""

        @intrinsic
        def spread(typing: Any, value: Any) -> Any:
            return self.vec(self.scalar), lambda context, b, sig, a: self.broadcast(b, a[0])

        return spread

    @cached_property
    def fma(self) -> Any:
        """fma(a, b, c) -> a * b + c, rounded once."""

        @intrinsic
        def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
            return self.vec(*[self.vec] * 3), lambda context, builder, sig, args: self.call_fma(builder, *args)

        return fma

    @cached_property
    def sqrt(self) -> Any:
        """sqrt(a), correctly rounded."""

        @intrinsic
        def sqrt(typing: Any, a: Any) -> Any:
            def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
                kind = ir.FunctionType(self.vec.ir, [self.vec.ir])
                name = f"llvm.sqrt.v{self.lanes}f{self.bits}"
                return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)

            return self.vec(self.vec), emit

        return sqrt

    def _select(self, comparison: str) -> Any:
        @intrinsic
        def select(typing: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Any:
            def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                return builder.select(builder.fcmp_ordered(comparison, args[0], args[1]), args[2], args[3])

            return self.vec(*[self.vec] * 4), emit

        return select

    @cached_property
    def where_greater(self) -> Any:
        """where_greater(a, b, x, y) -> x where a > b, else y (also where a or b is not a number)."""
        return self._select(">")

    @cached_property
    def copy_sign(self) -> Any:
        """copy_sign(magnitude, sign)."""
        return self._bitwise(lambda b, x, y, top: b.or_(b.and_(x, b.not_(top)), b.and_(y, top)))

    @cached_property
    def absolute(self) -> Any:
        """absolute(a)."""

        @intrinsic
        def absolute(typing: Any, a: Any) -> Any:
            def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
                bits = b.and_(b.bitcast(args[0], self._ints(0).type), self._ints((1 << (self.bits - 1)) - 1))
                return b.bitcast(bits, self.vec.ir)

            return self.vec(self.vec), emit

        return absolute

    def _bitwise(self, combine: Any) -> Any:
        @intrinsic
        def bitwise(typing: Any, x: Any, y: Any) -> Any:
            def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
                ints = self._ints(0).type
                top = self._ints(1 << (self.bits - 1))
                return b.bitcast(combine(b, b.bitcast(args[0], ints), b.bitcast(args[1], ints), top), self.vec.ir)

            return self.vec(self.vec, self.vec), emit

        return bitwise

    @cached_property
    def power_of_two(self) -> Any:
        """power_of_two(m) -> 2**k, where m is k plus 1.5 * 2**mantissa: k then stands in the lowest bits of m."""

        @intrinsic
        def power_of_two(typing: Any, m: Any) -> Any:
            def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
                bits = b.shl(b.bitcast(args[0], self._ints(0).type), self._ints(self.mantissa))
                one = ((1 << (self.bits - self.mantissa - 2)) - 1) << self.mantissa
                return b.bitcast(b.add(bits, self._ints(one)), self.vec.ir)

            return self.vec(self.vec), emit

        return power_of_two
