"""Matrix products on packed operands; the one micro-kernel that all recurrent kernels share.

C[rows, columns] = C_in + A[rows, depth] @ B[depth, columns]. B is packed in panels of a few vectors, so that a panel is
read once, in order, while a tile of C stays in registers. Every element of C is one chain of fused multiply-adds, depth
ascending, from its initial value: the bits do not depend on tiles, threads or vector width.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compile import device, external
from .jit import REGISTERS, isa_of, plain
from .simd import I64, Simd, element


def tile_rows(simd: Simd, vectors: int) -> int:
    """Rows of the tile of `vectors` vectors: accumulators, one panel row and one broadcast fill the registers."""
    rows = {32: (12, 12, 8, 6), 16: (8, 6, 4, 3)}
    return rows[REGISTERS[isa_of(simd.width)]][vectors - 1]


def _emit_tile(simd: Simd, vectors: int) -> Any:
    """tile(rows, a, a_row, a_k, b, b_k, depth, c_in, c_in_row, c, c_row): C[rows, vectors*lanes] = C_in + A @ B.

    `rows` is 1..tile_rows. A[m, k] stands at a + m*a_row + k*a_k (elements), B[k, :] at b + k*b_k, C_in[m, :] at
    c_in + m*c_in_row (0: one row for all, a bias), C[m, :] at c + m*c_row. C_in may be C.
    """
    lanes, most, size = simd.lanes, tile_rows(simd, vectors), simd.itemsize

    def const(n: int) -> ir.Constant:
        return ir.Constant(I64, n)

    def emit_rows(builder: Any, rows: int, args: Any, done: Any) -> None:
        _, a, a_row, a_k, b, b_k, depth, c_in, c_in_row, c, c_row = args
        first = [
            builder.load(
                simd.vector_at(builder, c_in, builder.add(builder.mul(c_in_row, const(m)), const(n * lanes))), align=size
            )
            for m in range(rows)
            for n in range(vectors)
        ]
        # Four row pointers advance together and reach three rows each by a scaled index: pointers for all rows
        # would not fit the scalar registers.
        group = 3
        starts = [builder.add(a, builder.mul(builder.mul(a_row, const(m)), const(size))) for m in range(0, rows, group)]
        step, b_step = builder.mul(a_k, const(size)), builder.mul(b_k, const(size))
        entry, loop, end = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("end")
        builder.cbranch(builder.icmp_signed(">", depth, const(0)), loop, end)
        builder.position_at_end(loop)
        k = builder.phi(I64)
        b_at = builder.phi(I64)
        a_at = [builder.phi(I64) for _ in starts]
        acc = [builder.phi(simd.vec.ir) for _ in first]
        panel = [builder.load(simd.vector_at(builder, b_at, const(n * lanes)), align=size) for n in range(vectors)]
        new = []
        for m in range(rows):
            offset = builder.mul(a_row, const(m % group))
            x = builder.load(element(builder, a_at[m // group], offset, simd.scalar_ir))
            x = simd.broadcast(builder, x)
            new += [simd.call_fma(builder, x, panel[n], acc[m * vectors + n]) for n in range(vectors)]
        k_next = builder.add(k, const(1))
        for phi, before, after in [
            (k, const(0), k_next),
            (b_at, b, builder.add(b_at, b_step)),
            *((phi, start, builder.add(phi, step)) for phi, start in zip(a_at, starts, strict=True)),
            *zip(acc, first, new, strict=True),
        ]:
            phi.add_incoming(before, entry)
            phi.add_incoming(after, loop)
        builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, end)
        builder.position_at_end(end)
        for i, (before, after) in enumerate(zip(first, new, strict=True)):
            value = builder.phi(simd.vec.ir)
            value.add_incoming(before, entry)
            value.add_incoming(after, loop)
            new[i] = value
        for i, value in enumerate(new):
            index = builder.add(builder.mul(c_row, const(i // vectors)), const(i % vectors * lanes))
            builder.store(value, simd.vector_at(builder, c, index), align=size)
        builder.branch(done)

    @intrinsic
    def tile(typing, rows, a, a_row, a_k, b, b_k, depth, c_in, c_in_row, c, c_row):
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            done, other = builder.append_basic_block("done"), builder.append_basic_block("other")
            switch = builder.switch(args[0], other)
            for rows in range(1, most + 1):
                block = builder.append_basic_block(f"rows{rows}")
                switch.add_case(const(rows), block)
                builder.position_at_end(block)
                emit_rows(builder, rows, args, done)
            builder.position_at_end(other)
            builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), emit

    def kernel(rows, a, a_row, a_k, b, b_k, depth, c_in, c_in_row, c, c_row):
        tile(rows, a, a_row, a_k, b, b_k, depth, c_in, c_in_row, c, c_row)

    return kernel


@plain("void", 11)
def tile1(simd: Simd) -> Any:
    """The tile one vector wide."""
    return _emit_tile(simd, 1)


@plain("void", 11)
def tile2(simd: Simd) -> Any:
    """The tile two vectors wide."""
    return _emit_tile(simd, 2)


@plain("void", 11)
def tile3(simd: Simd) -> Any:
    """The tile three vectors wide."""
    return _emit_tile(simd, 3)


@plain("void", 11)
def tile4(simd: Simd) -> Any:
    """The tile four vectors wide."""
    return _emit_tile(simd, 4)


def make_tile(simd: Simd, vectors: int) -> Any:
    """The tile as a function that kernels call; see `_emit_tile`."""
    return external(simd, f"gemm.tile{vectors}")


BLOCK = 48  # rows of A that stay in the first-level cache while a panel passes; also columns that `outer` packs at once


@device
def share(count, thread, threads, multiple):
    """The range of 0..count that falls to `thread`, its borders multiples of `multiple`."""
    units = (count + multiple - 1) // multiple
    begin = min(count, units * thread // threads * multiple)
    end = min(count, units * (thread + 1) // threads * multiple)
    return begin, end


@device
def next_tile(left, most):
    """Rows of the next tile when `left` rows remain: as even as possible, at most `most`."""
    tiles = (left + most - 1) // most
    return (left + tiles - 1) // tiles


def make_panels(simd: Simd, vectors: int) -> Any:
    """panels(begin, end, rows, depth, a, a_row, b, c_in, c_in_row, c, c_row): panels begin..end of C = C_in + A @ B."""
    tile, most, width, size = make_tile(simd, vectors), tile_rows(simd, vectors), vectors * simd.lanes, simd.itemsize

    @device
    def panels(begin, end, rows, depth, a, a_row, b, c_in, c_in_row, c, c_row):
        for block in range(0, rows, BLOCK):
            stop = min(rows, block + BLOCK)
            for p in range(begin, end):
                b_p, column = b + p * width * depth * size, p * width
                row = block
                while row < stop:
                    n = next_tile(stop - row, most)
                    at_in, at_out = c_in + (row * c_in_row + column) * size, c + (row * c_row + column) * size
                    tile(n, a + row * a_row * size, a_row, 1, b_p, width, depth, at_in, c_in_row, at_out, c_row)
                    row += n

    return panels


@plain("void", 12)
def plain_panels(simd: Simd) -> Any:
    """Vectors begin..end of C = C_in + A @ B, for a B of `columns` columns packed by `pack_rows` or `pack_columns`.

    Panels are four vectors wide; up to three single vectors follow. begin and end count vectors, begin a multiple of 4.
    """
    wide, single = make_panels(simd, 4), make_panels(simd, 1)
    lanes = simd.lanes

    def kernel(begin, end, rows, depth, columns, a, a_row, b, c_in, c_in_row, c, c_row):
        full = columns // lanes // 4
        wide(begin // 4, min(full, end // 4), rows, depth, a, a_row, b, c_in, c_in_row, c, c_row)
        single(max(begin, full * 4), end, rows, depth, a, a_row, b, c_in, c_in_row, c, c_row)

    return kernel


def make_plain(simd: Simd) -> Any:
    """`plain_panels` as a function that kernels call."""
    return external(simd, "gemm.plain_panels")


def product(simd: Simd) -> Any:
    """C[rows, columns] = C_in + A[rows, depth] @ B; columns a multiple of the lanes, B packed as `plain_panels` reads it."""
    panels, lanes, size = make_plain(simd), simd.lanes, simd.itemsize

    def kernel(thread, threads, rows, depth, columns, a, a_row, b, c_in, c_in_row, c, c_row):
        vectors = columns // lanes
        if rows >= 16 * threads:
            begin, end = share(rows, thread, threads, 1)
            at_in, at_out = c_in + begin * c_in_row * size, c + begin * c_row * size
            panels(0, vectors, end - begin, depth, columns, a + begin * a_row * size, a_row, b, at_in, c_in_row, at_out, c_row)
        else:
            begin, end = share(vectors, thread, threads, 4)
            panels(begin, end, rows, depth, columns, a, a_row, b, c_in, c_in_row, c, c_row)

    return kernel


def product_by_three(simd: Simd) -> Any:
    """`product` for B in panels of three vectors (the GRU's gates, interleaved)."""
    panels, lanes, size = make_panels(simd, 3), simd.lanes, simd.itemsize

    def kernel(thread, threads, rows, depth, columns, a, a_row, b, c_in, c_in_row, c, c_row):
        count = columns // (3 * lanes)
        if rows >= 16 * threads:
            begin, end = share(rows, thread, threads, 1)
            at_in, at_out = c_in + begin * c_in_row * size, c + begin * c_row * size
            panels(0, count, end - begin, depth, a + begin * a_row * size, a_row, b, at_in, c_in_row, at_out, c_row)
        else:
            begin, end = share(count, thread, threads, 1)
            panels(begin, end, rows, depth, a, a_row, b, c_in, c_in_row, c, c_row)

    return kernel


DEPTH = 256  # rows of both operands that `outer` takes at a time: a packed block of A then stays in the second-level cache


def outer(simd: Simd) -> Any:
    """C[rows, columns] += A[depth, rows].T @ B[depth, columns], sums[rows] += the column sums of A: weight gradients.

    rows and columns are multiples of the lanes; B lies in rows of b_row elements, as h does: it is read where it is.
    scratch holds, for each thread, DEPTH*BLOCK elements.
    """
    wide, single = make_tile(simd, 4), make_tile(simd, 1)
    load, store = simd.load, simd.store
    lanes, size, most = simd.lanes, simd.itemsize, tile_rows(simd, 4)

    def kernel(thread, threads, depth, rows, columns, a, a_row, b, b_row, c, c_row, sums, scratch):
        panel = scratch + thread * DEPTH * BLOCK * size
        begin, end = share(rows, thread, threads, BLOCK)
        full, vectors = columns // lanes // 4, columns // lanes
        for first in range(0, depth, DEPTH):
            part = min(DEPTH, depth - first)
            for block in range(begin, end, BLOCK):
                width = min(BLOCK, end - block)
                for v in range(0, width, lanes):
                    total = load(sums, block + v)
                    for k in range(part):
                        x = load(a, (first + k) * a_row + block + v)
                        total = total + x
                        store(panel, k * BLOCK + v, x)
                    store(sums, block + v, total)
                for p in range(full):
                    b_p = b + (first * b_row + p * 4 * lanes) * size
                    row = 0
                    while row < width:
                        n = next_tile(width - row, most)
                        at = c + ((block + row) * c_row + p * 4 * lanes) * size
                        wide(n, panel + row * size, 1, BLOCK, b_p, b_row, part, at, c_row, at, c_row)
                        row += n
                for v in range(full * 4, vectors):
                    b_v = b + (first * b_row + v * lanes) * size
                    row = 0
                    while row < width:
                        n = next_tile(width - row, most)
                        at = c + ((block + row) * c_row + v * lanes) * size
                        single(n, panel + row * size, 1, BLOCK, b_v, b_row, part, at, c_row, at, c_row)
                        row += n

    return kernel
