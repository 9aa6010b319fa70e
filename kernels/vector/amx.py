"""bfloat16 products in tile registers, where the processor has AMX; knows what gemm.py asks of a tile, nothing of networks.

A tile register holds 16 rows of 64 bytes. Four of them sum a block of 32 x 32 floats, two hold 32 rows of A, two 32 columns
of B; a step takes 16 words, that is 32 elements, of the depth. The rows of partial blocks are set by a palette for each
number of rows; loading one empties the pipeline, so it is loaded only where the number changes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .parts import device
from .simd import I64, Simd

ROWS = 32
I8 = ir.IntType(8)
BYTES = I8.as_pointer()


def _palettes() -> bytes:
    """For 0..32 rows, 64 bytes each: registers 0-3 sums, 4-5 rows of A, 6-7 columns of B."""
    out = bytearray()
    for rows in range(ROWS + 1):
        palette = bytearray(64)
        palette[0] = 1
        upper, lower = min(rows, 16), max(0, rows - 16)
        for register, height in enumerate((upper, upper, lower, lower, upper, lower, 16, 16)):
            if height:
                palette[16 + 2 * register], palette[48 + register] = 64, height
        out += palette
    return bytes(out)


def tile_op(builder: Any, name: str, *values: Any) -> None:
    """Call one of LLVM's tile intrinsics."""
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), values)


@intrinsic
def _shape(typing: Any, rows: Any) -> Any:
    def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
        table = cgutils.global_constant(b, "palettes", ir.Constant(ir.ArrayType(I8, 64 * (ROWS + 1)), bytearray(_palettes())))
        tile_op(b, "ldtilecfg", b.gep(b.bitcast(table, BYTES), [b.mul(a[0], ir.Constant(I64, 64))]))
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def release(typing: Any) -> Any:
    """Give the tile registers back: until then the system saves and restores eight kilobytes with every switch of threads."""

    def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
        tile_op(b, "tilerelease")
        return context.get_dummy_value()

    return types.void(), emit


def make_next_tile() -> Any:
    """next_tile(left, shaped) -> rows of the next tile, for which the registers then are shaped; see `gemm.make_tile`."""

    @device
    def next_tile(left, shaped):
        rows = min(left, ROWS)
        if rows != shaped:
            _shape(rows)
        return rows

    return next_tile


def emit_tile(simd: Simd, vectors: int) -> Any:
    """The tile of `gemm._emit_tile` for 1..32 rows, as the registers are shaped; a_k is 1, depth a multiple of 16."""

    def emit_columns(b: Any, args: Any, at: int, wide: bool, tall: bool) -> None:
        """Two vectors of columns (one, if not `wide`) from vector `at`; more than 16 rows if `tall`."""
        _, a, a_row, _, panel, b_k, depth, c_in, c_in_row, c, c_row, _ = args
        reg, num = (lambda n: ir.Constant(I8, n)), (lambda n: ir.Constant(I64, n))

        def words(count: Any) -> Any:
            return b.shl(count, num(2))

        def at_bytes(base: Any, offset: Any) -> Any:
            return b.inttoptr(b.add(base, offset), BYTES)

        a_stride, b_stride = words(a_row), words(b_k)
        sums = [(0, 0, 0)] + [(1, 0, 1)] * wide + ([(2, 1, 0)] + [(3, 1, 1)] * wide) * tall

        def each_sum(name: str, base: Any, row: Any) -> None:
            stride = words(row)
            for register, low, right in sums:
                offset = b.add(b.mul(stride, num(16 * low)), num(64 * (at + right)))
                tile_op(b, name, reg(register), at_bytes(base, offset), stride)

        each_sum("tileloadd64", c_in, c_in_row)
        entry, loop, end = b.block, b.append_basic_block("depth"), b.append_basic_block("end")
        b.branch(loop)
        b.position_at_end(loop)
        k = b.phi(I64)
        a_at, b_at = b.add(a, words(k)), b.add(b.add(panel, b.mul(k, b_stride)), num(64 * at))
        tile_op(b, "tileloadd64", reg(4), at_bytes(a_at, num(0)), a_stride)
        tile_op(b, "tileloadd64", reg(6), at_bytes(b_at, num(0)), b_stride)
        tile_op(b, "tdpbf16ps", reg(0), reg(4), reg(6))
        if wide:
            tile_op(b, "tileloadd64", reg(7), at_bytes(b_at, num(64)), b_stride)
            tile_op(b, "tdpbf16ps", reg(1), reg(4), reg(7))
        if tall:
            tile_op(b, "tileloadd64", reg(5), at_bytes(a_at, b.mul(a_stride, num(16))), a_stride)
            tile_op(b, "tdpbf16ps", reg(2), reg(5), reg(6))
            if wide:
                tile_op(b, "tdpbf16ps", reg(3), reg(5), reg(7))
        k_next = b.add(k, num(16))
        k.add_incoming(num(0), entry)
        k.add_incoming(k_next, loop)
        b.cbranch(b.icmp_signed("<", k_next, depth), loop, end)
        b.position_at_end(end)
        each_sum("tilestored64", c, c_row)

    @intrinsic
    def tile(typing, a):
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            args = cgutils.unpack_tuple(builder, args[0])
            with builder.if_else(builder.icmp_signed(">", args[0], ir.Constant(I64, 16))) as (tall, flat):
                for block, is_tall in ((tall, True), (flat, False)):
                    with block:
                        for at in range(0, vectors, 2):
                            emit_columns(builder, args, at, at + 1 < vectors, is_tall)
            return context.get_dummy_value()

        return types.void(a), emit

    return tile
