"""What goes by the lanes of a vector: its first ones alone, where a row is no whole vector, and sums over all.

Knows no operation of a network. Memory behind the first lanes is neither read nor written, so that rows need no padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .parts import device, inlined
from .simd import I32, I64, Simd


def first_lanes(builder: Any, lanes: int, count: Any) -> Any:
    """LLVM mask of the lanes below the int64 `count`."""
    kind = ir.VectorType(I32, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), builder.trunc(count, I32), ir.Constant(I32, 0))
    counts = builder.shuffle_vector(one, one, ir.Constant(kind, [0] * lanes))
    return builder.icmp_signed("<", ir.Constant(kind, list(range(lanes))), counts)


def _masked(builder: Any, name: str, pointer: Any, result: Any, *arguments: Any) -> Any:
    """Call llvm.masked.load or .store for the vector that `pointer` points to."""
    kind = pointer.type.pointee
    element = {"float": "f32", "double": "f64"}.get(str(kind.element), str(kind.element))
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    full = f"llvm.masked.{name}.v{kind.count}{element}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, full), arguments)


def masked_load(builder: Any, pointer: Any, mask: Any, align: int) -> Any:
    """The vector at `pointer`, zero where not `mask`."""
    kind = pointer.type.pointee
    zeros = ir.Constant(kind, [ir.Constant(kind.element, 0)] * kind.count)
    return _masked(builder, "load", pointer, kind, pointer, ir.Constant(I32, align), mask, zeros)


def masked_store(builder: Any, pointer: Any, mask: Any, align: int, value: Any) -> None:
    """Write `value` to `pointer` where `mask`."""
    _masked(builder, "store", pointer, ir.VoidType(), value, pointer, ir.Constant(I32, align), mask)


def load_first(builder: Any, pointer: Any, count: Any, align: int) -> Any:
    """The vector at `pointer`, zero from element `count` on, which is not read."""
    kind = pointer.type.pointee
    with builder.if_else(builder.icmp_signed("<=", ir.Constant(I64, kind.count), count)) as (then, otherwise):
        with then:
            x, x_from = builder.load(pointer, align=align), builder.block
        with otherwise:
            y, y_from = masked_load(builder, pointer, first_lanes(builder, kind.count, count), align), builder.block
    value = builder.phi(kind)
    value.add_incoming(x, x_from)
    value.add_incoming(y, y_from)
    return value


def store_first(builder: Any, pointer: Any, count: Any, align: int, value: Any) -> None:
    """Write the first `count` elements of `value`."""
    kind = pointer.type.pointee
    with builder.if_else(builder.icmp_signed("<=", ir.Constant(I64, kind.count), count)) as (then, otherwise):
        with then:
            builder.store(value, pointer, align=align)
        with otherwise:
            masked_store(builder, pointer, first_lanes(builder, kind.count, count), align, value)


def make_ends(simd: Simd) -> Any:
    """read(address, k, end), write(address, k, end, vector): elements k and on, as many as a vector holds before `end`.

    Lanes from `end` on, which may be before k, are read as zero and not written.
    """

    @intrinsic
    def read(typing: Any, address: Any, k: Any, end: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            return load_first(b, simd.vector_at(b, a[0], a[1]), b.sub(a[2], a[1]), simd.itemsize)

        return simd.vec(types.int64, types.int64, types.int64), emit

    @intrinsic
    def write(typing: Any, address: Any, k: Any, end: Any, value: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            store_first(b, simd.vector_at(b, a[0], a[1]), b.sub(a[2], a[1]), simd.itemsize, a[3])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, simd.vec), emit

    return read, write


def whole_or_not(simd: Simd, function: Callable[..., Any]) -> Any:
    """function(count, ...) of the first `count` lanes, made a second time for whole vectors, which ask nothing lane by lane."""
    lanes, both = simd.lanes, inlined(function)

    @device
    def either(count, *others):
        if count == lanes:
            return both(lanes, *others)
        return both(count, *others)

    return either


def make_keep_first(simd: Simd) -> Any:
    """keep_first(count, x, y) -> x in the first `count` lanes, y in the others."""

    @intrinsic
    def keep_first(typing: Any, count: Any, x: Any, y: Any) -> Any:
        sig = simd.vec(types.int64, simd.vec, simd.vec)
        return sig, lambda context, b, sig, a: b.select(first_lanes(b, simd.lanes, a[0]), a[1], a[2])

    return keep_first


def _make_fold(simd: Simd, combine: Callable[[Any, Any, Any], Any]) -> Any:
    """fold(vector) -> scalar: the upper half joined to the lower, until one lane is left."""

    @intrinsic
    def fold(typing: Any, value: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            low, half = a[0], simd.lanes // 2
            while half:
                kind = ir.VectorType(I32, half)
                parts = [b.shuffle_vector(low, low, ir.Constant(kind, list(range(at, at + half)))) for at in (0, half)]
                low, half = combine(b, *parts), half // 2
            return b.extract_element(low, ir.Constant(I32, 0))

        return simd.scalar(simd.vec), emit

    return fold


def make_total(simd: Simd) -> Any:
    """total(vector) -> the sum of its lanes, by halves."""
    return _make_fold(simd, lambda b, x, y: b.fadd(x, y))


def make_largest(simd: Simd) -> Any:
    """largest(vector) -> the largest of its lanes; any where one is not a number."""
    return _make_fold(simd, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


def make_square(simd: Simd) -> Any:
    """square(source, source_row, out, out_row): out[j, k] = source[k, j] for as many rows and columns as a vector has lanes."""
    lanes, size = simd.lanes, simd.itemsize

    @intrinsic
    def square(typing: Any, source: Any, source_row: Any, out: Any, out_row: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            def at(base: Any, row: Any, m: int) -> Any:
                return simd.vector_at(b, base, b.mul(row, ir.Constant(I64, m)))

            def shuffled(x: Any, y: Any, order: list[int]) -> Any:
                return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, lanes), order))

            rows = [b.load(at(a[0], a[1], m), align=size) for m in range(lanes)]
            step = 1
            # Each round exchanges blocks of `step` columns between rows that lie as far apart.
            while step < lanes:
                low = [lanes + (j ^ step) if j & step else j for j in range(lanes)]
                high = [lanes + j if j & step else j | step for j in range(lanes)]
                for m in range(lanes):
                    if not m & step:
                        x, y = rows[m], rows[m | step]
                        rows[m], rows[m | step] = shuffled(x, y, low), shuffled(x, y, high)
                step *= 2
            for m in range(lanes):
                b.store(rows[m], at(a[2], a[3], m), align=size)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), emit

    return square
