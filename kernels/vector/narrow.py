"""The form in which products read their left operand, and in which training keeps activations; knows no cell.

In float32 and float64 that is the values themselves. With bfloat16 products it is the values rounded to bfloat16, two to a
32-bit word: word k of a row holds elements 2k (low half) and 2k + 1. Everything that counts such rows counts words, so
that a kernel's addresses read alike in every precision.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .lanes import load_first, make_ends, store_first
from .simd import I32, Simd, element

I16 = ir.IntType(16)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


BFLOAT = _BFloat()


def make_operand(simd: Simd) -> tuple[Any, Any]:
    """keep(address, k, vector) and recall(address, k) -> vector: elements k and on of a row in the operands' form."""
    if not simd.narrow:
        return simd.store, simd.load
    lanes, shorts = simd.lanes, ir.VectorType(I16, simd.lanes)

    @intrinsic
    def keep(typing: Any, address: Any, k: Any, value: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            rounded = b.bitcast(b.fptrunc(a[2], ir.VectorType(BFLOAT, lanes)), shorts)
            b.store(rounded, b.bitcast(element(b, a[0], a[1], I16), shorts.as_pointer()), align=2)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, simd.vec), emit

    @intrinsic
    def recall(typing: Any, address: Any, k: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            bits = b.load(b.bitcast(element(b, a[0], a[1], I16), shorts.as_pointer()), align=2)
            return upper_half(b, simd, b.zext(bits, ir.VectorType(I32, lanes)))

        return simd.vec(types.int64, types.int64), emit

    return keep, recall


def make_operand_ends(simd: Simd) -> tuple[Any, Any]:
    """keep(address, k, end, vector) and recall(address, k, end): the same for as many elements as there are before `end`.

    The others are not written and read as zero; see `lanes.make_ends`.
    """
    if not simd.narrow:
        read, write = make_ends(simd)
        return write, read
    shorts = ir.VectorType(I16, simd.lanes)

    def place(b: Any, address: Any, k: Any) -> Any:
        return b.bitcast(element(b, address, k, I16), shorts.as_pointer())

    @intrinsic
    def keep(typing: Any, address: Any, k: Any, end: Any, value: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            rounded = b.bitcast(b.fptrunc(a[3], ir.VectorType(BFLOAT, simd.lanes)), shorts)
            store_first(b, place(b, a[0], a[1]), b.sub(a[2], a[1]), 2, rounded)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, simd.vec), emit

    @intrinsic
    def recall(typing: Any, address: Any, k: Any, end: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            bits = load_first(b, place(b, a[0], a[1]), b.sub(a[2], a[1]), 2)
            return upper_half(b, simd, b.zext(bits, ir.VectorType(I32, simd.lanes)))

        return simd.vec(types.int64, types.int64, types.int64), emit

    return keep, recall


def make_join(simd: Simd) -> tuple[Any, Any]:
    """words(address, k): elements k and on of an operand's row, each in the low half of a word; join(x, y): y above x.

    Words travel in vectors of floats, on which nothing but these, loads, stores and shuffles may act.
    """
    shorts, wide = ir.VectorType(I16, simd.lanes), ir.VectorType(I32, simd.lanes)

    @intrinsic
    def words(typing: Any, address: Any, k: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            bits = b.load(b.bitcast(element(b, a[0], a[1], I16), shorts.as_pointer()), align=2)
            return b.bitcast(b.zext(bits, wide), simd.vec.ir)

        return simd.vec(types.int64, types.int64), emit

    @intrinsic
    def join(typing: Any, x: Any, y: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            high = b.shl(b.bitcast(a[1], wide), ir.Constant(wide, [16] * simd.lanes))
            return b.bitcast(b.or_(b.bitcast(a[0], wide), high), simd.vec.ir)

        return simd.vec(simd.vec, simd.vec), emit

    return words, join


def upper_half(builder: Any, simd: Simd, words: Any) -> Any:
    """Floats whose upper halves are the low halves of `words`."""
    return builder.bitcast(builder.shl(words, ir.Constant(words.type, [16] * simd.lanes)), simd.vec.ir)


def low_elements(builder: Any, simd: Simd, words: Any) -> Any:
    """The elements of even index in a vector of words, as floats."""
    return upper_half(builder, simd, words)


def high_elements(builder: Any, simd: Simd, words: Any) -> Any:
    """The elements of odd index in a vector of words, as floats."""
    return builder.bitcast(builder.and_(words, ir.Constant(words.type, [-65536] * simd.lanes)), simd.vec.ir)
