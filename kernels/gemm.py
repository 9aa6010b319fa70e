"""Matrix products on packed operands; the one micro-kernel that all recurrent kernels share.

C[rows, columns] = C_in + A[rows, depth] @ B[depth, columns]. B is packed in panels of a few vectors, so that a panel is
read once, in order, while a tile of C stays in registers. In float32 and float64 every element of C is one chain of fused
multiply-adds, depth ascending, from its initial value: the bits do not depend on tiles, threads or vector width. With
bfloat16 products (vector/narrow.py) a step of the depth is a word of two elements, in A and B alike; sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .native.compile import external
from .native.jit import REGISTERS, isa_of, plain
from .operations import Product, ProductByThree
from .vector import amx
from .vector.narrow import BFLOAT, high_elements, low_elements
from .vector.parts import device, inlined
from .vector.simd import I32, I64, Simd, element


class Tile(NamedTuple):
    """A tile C[rows, vectors * lanes] = C_in + A @ B; all places are addresses.

    A[m, k] stands at a + m * a_row + k * a_k (elements; words with bfloat16 products), B[k, :] at b + k * b_k, C_in[m, :] at
    c_in + m * c_in_row (0: one row for all, a bias), C[m, :] at c + m * c_row. C_in may be C.
    """

    rows: int  # 1..tile_rows
    a: int
    a_row: int
    a_k: int
    b: int
    b_k: int
    depth: int
    c_in: int
    c_in_row: int
    c: int
    c_row: int
    ahead: int  # where the next tile stores, which is brought near meanwhile; never where another thread stores


class Panels(NamedTuple):
    """Panels begin..end of C = C_in + A @ B: of each of `steps` groups of `batch` rows the first `rows`; see `Tile`."""

    begin: int
    end: int
    steps: int
    batch: int
    rows: int
    depth: int
    a: int
    a_row: int
    b: int
    c_in: int
    c_in_row: int
    c: int
    c_row: int


class PlainPanels(NamedTuple):
    """The same for a B of `columns` columns, packed by `pack_rows` or `pack_columns`; begin and end count vectors."""

    begin: int  # a multiple of 4
    end: int
    steps: int
    batch: int
    rows: int
    depth: int
    columns: int
    a: int
    a_row: int
    b: int
    c_in: int
    c_in_row: int
    c: int
    c_row: int


def tile_rows(simd: Simd, vectors: int) -> int:
    """Most rows of the tile of `vectors` vectors: accumulators, one panel row and one broadcast fill the registers."""
    if simd.narrow == "amx":
        return amx.ROWS
    rows = {32: (12, 12, 8, 6), 16: (8, 6, 4, 3)}
    if simd.narrow == "convert":  # twice the panel rows and broadcasts
        rows = {32: (12, 12, 7, 5), 16: (6, 4, 2, 1)}
    return rows[REGISTERS[isa_of(simd.width)]][vectors - 1]


def block_rows(simd: Simd) -> int:
    """Rows of A that pass a panel of B at a time, staying in the first-level cache."""
    return 2 * amx.ROWS if simd.narrow == "amx" else 48


def _multiply_add(simd: Simd) -> tuple[ir.Type, Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """(element, panel, spread, add): add(b, spread(b, element), panel(b, vector), acc) is acc plus the products of A and B."""
    if not simd.narrow:
        return simd.scalar_ir, lambda b, v: v, simd.broadcast, lambda b, x, y, acc: simd.call_fma(b, x, y, acc)
    words = ir.VectorType(I32, simd.lanes)

    def broadcast(b: Any, word: Any) -> Any:
        undef = ir.Constant(words, ir.Undefined)
        return b.shuffle_vector(b.insert_element(undef, word, ir.Constant(I32, 0)), undef, ir.Constant(words, [0] * simd.lanes))

    if simd.narrow == "dot":
        pairs = ir.VectorType(BFLOAT, 2 * simd.lanes)
        kind = ir.FunctionType(simd.vec.ir, [simd.vec.ir, pairs, pairs])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{8 * simd.width}"

        def dot(b: Any, x: Any, y: Any, acc: Any) -> Any:
            return b.call(cgutils.get_or_insert_function(b.module, kind, name), [acc, b.bitcast(x, pairs), b.bitcast(y, pairs)])

        return I32, lambda b, v: v, broadcast, dot

    def halves(b: Any, v: Any) -> tuple[Any, Any]:
        return low_elements(b, simd, v), high_elements(b, simd, v)

    def add(b: Any, x: Any, y: Any, acc: Any) -> Any:
        return simd.call_fma(b, x[1], y[1], simd.call_fma(b, x[0], y[0], acc))

    return I32, halves, lambda b, word: halves(b, broadcast(b, word)), add


def _emit_tile(simd: Simd, vectors: int, panels: int = 1) -> Any:
    """tile(Tile) computes a tile of C, `vectors` vectors wide.

    With two panels, `depth` rows of B apart, there is one row: one panel alone has too few sums to hide an addition's latency.
    """
    if simd.narrow == "amx":
        return _as_kernel(amx.emit_tile(simd, vectors))
    lanes, most, size = simd.lanes, tile_rows(simd, vectors) if panels == 1 else 1, simd.itemsize
    word, panel_of, spread, add = _multiply_add(simd)
    word_vector = ir.VectorType(word, lanes).as_pointer()
    prefetch = ir.FunctionType(ir.VoidType(), [simd.vec.ir.as_pointer(), I32, I32, I32])

    def const(n: int) -> ir.Constant:
        return ir.Constant(I64, n)

    def emit_rows(builder: Any, rows: int, args: Any, done: Any) -> None:
        _, a, a_row, a_k, b, b_k, depth, c_in, c_in_row, c, c_row, ahead = args  # the fields of `Tile`

        def places(base: Any, row: Any) -> list[Any]:
            return [
                simd.vector_at(builder, base, builder.add(builder.mul(row, const(m)), const(n * lanes)))
                for m in range(rows)
                for n in range(panels * vectors)
            ]

        first = [builder.load(at, align=size) for at in places(c_in, c_in_row)]
        # By the time that the next sums are stored their lines are here: a store that misses would hold up all that follow.
        fetch = cgutils.get_or_insert_function(builder.module, prefetch, "llvm.prefetch.p0")
        for at in places(ahead, c_row):
            builder.call(fetch, [at, *(ir.Constant(I32, n) for n in (1, 3, 1))])
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
        rows_at = [b_at, builder.add(b_at, builder.mul(b_step, depth))][:panels]
        at = [
            builder.bitcast(element(builder, row, const(n * lanes), word), word_vector)
            for row in rows_at
            for n in range(vectors)
        ]
        panel = [panel_of(builder, builder.load(place, align=size)) for place in at]
        new = []
        for m in range(rows):
            offset = builder.mul(a_row, const(m % group))
            x = spread(builder, builder.load(element(builder, a_at[m // group], offset, word)))
            new += [add(builder, x, y, acc[m * len(panel) + n]) for n, y in enumerate(panel)]
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
        for value, place in zip(new, places(c, c_row), strict=True):
            builder.store(value, place, align=size)
        builder.branch(done)

    @intrinsic
    def tile(typing, a):
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            args = cgutils.unpack_tuple(builder, args[0])
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

        return types.void(a), emit

    return _as_kernel(tile)


def _as_kernel(tile: Any) -> Any:
    def kernel(a: Tile):
        tile(a)

    return kernel


@plain("void")
def tile1(simd: Simd) -> Any:
    """The tile one vector wide."""
    return _emit_tile(simd, 1)


@plain("void")
def tile2(simd: Simd) -> Any:
    """The tile two vectors wide."""
    return _emit_tile(simd, 2)


@plain("void")
def tile3(simd: Simd) -> Any:
    """The tile three vectors wide."""
    return _emit_tile(simd, 3)


@plain("void")
def tile4(simd: Simd) -> Any:
    """The tile four vectors wide."""
    return _emit_tile(simd, 4)


@plain("void")
def pair1(simd: Simd) -> Any:
    """A row by two panels one vector wide."""
    return _emit_tile(simd, 1, 2)


@plain("void")
def pair3(simd: Simd) -> Any:
    """A row by two panels three vectors wide."""
    return _emit_tile(simd, 3, 2)


@plain("void")
def pair4(simd: Simd) -> Any:
    """A row by two panels four vectors wide."""
    return _emit_tile(simd, 4, 2)


def make_tile(simd: Simd, vectors: int) -> tuple[Any, Any]:
    """The tile as a function that kernels call (see `_emit_tile`), and next_tile(left, shaped) -> its rows.

    next_tile comes before each tile and is given its last answer, at first 0: processors with tile registers are told
    their shape when it changes.
    """
    if simd.narrow == "amx":
        return external(simd, f"gemm.tile{vectors}"), amx.make_next_tile()
    most = tile_rows(simd, vectors)

    @device
    def next_tile(left, shaped):
        """As even as possible, at most `most`."""
        if left <= most:
            return left
        tiles = (left + most - 1) // most
        return (left + tiles - 1) // tiles

    return external(simd, f"gemm.tile{vectors}"), next_tile


@device
def share(count, thread, threads, multiple):
    """The range of 0..count that falls to `thread`, its borders multiples of `multiple`."""
    units = (count + multiple - 1) // multiple
    begin = min(count, units * thread // threads * multiple)
    end = min(count, units * (thread + 1) // threads * multiple)
    return begin, end


def make_panels(simd: Simd, vectors: int) -> Any:
    """panels(Panels) computes those panels of C, `vectors` vectors wide."""
    (tile, next_tile), width, size, most = make_tile(simd, vectors), vectors * simd.lanes, simd.itemsize, block_rows(simd)
    tiled, tall = simd.narrow == "amx", tile_rows(simd, vectors)
    pair = tile if tiled else external(simd, f"gemm.pair{vectors}")

    @inlined
    def tile_of(a, rows, row, panel, at_in, at_out, ahead):
        """The tile of `rows` rows from `row` on, with a panel of B."""
        return Tile(
            rows=rows,
            a=a.a + row * a.a_row * size,
            a_row=a.a_row,
            a_k=1,
            b=panel,
            b_k=width,
            depth=a.depth,
            c_in=at_in,
            c_in_row=a.c_in_row,
            c=at_out,
            c_row=a.c_row,
            ahead=ahead,
        )

    @inlined
    def panels(a):
        if not tiled and a.steps == 1 and a.rows <= tall:  # often a step of a small layer, where the divisions below take long
            if a.rows <= 0:
                return
            begin = a.begin
            if a.rows == 1:
                while begin + 1 < a.end:
                    at = begin * width * size
                    pair(tile_of(a, 1, 0, a.b + at * a.depth, a.c_in + at, a.c + at, a.c + at))
                    begin += 2
            for p in range(begin, a.end):
                at = p * width * size
                tile(tile_of(a, a.rows, 0, a.b + at * a.depth, a.c_in + at, a.c + at, a.c + at))
            return
        n = 0
        group = max(1, most // max(a.rows, 1))
        for first in range(0, a.steps, group):
            last = min(a.steps, first + group)
            for block in range(0, a.rows, most):
                for p in range(a.begin, a.end):
                    b_p, column = a.b + p * width * a.depth * size, p * width
                    for step in range(first, last):
                        row, stop = step * a.batch + block, step * a.batch + min(a.rows, block + most)
                        while row < stop:
                            n = next_tile(stop - row, n)
                            at_in = a.c_in + (row * a.c_in_row + column) * size
                            at_out = a.c + (row * a.c_row + column) * size
                            ahead = at_out
                            if row + n < stop:
                                ahead += min(n, stop - row - n) * a.c_row * size
                            elif step + 1 < last:
                                ahead = a.c + ((step + 1) * a.batch + block) * a.c_row * size + column * size
                            tile(tile_of(a, n, row, b_p, at_in, at_out, ahead))
                            row += n

    return panels


@device
def panels_of(a, begin, end):
    """Panels begin..end of plain ones."""
    return Panels(
        begin=begin,
        end=end,
        steps=a.steps,
        batch=a.batch,
        rows=a.rows,
        depth=a.depth,
        a=a.a,
        a_row=a.a_row,
        b=a.b,
        c_in=a.c_in,
        c_in_row=a.c_in_row,
        c=a.c,
        c_row=a.c_row,
    )


@plain("void")
def plain_panels(simd: Simd) -> Any:
    """Panels four vectors wide, then up to three single vectors."""
    wide, single = make_panels(simd, 4), make_singles(simd)
    lanes = simd.lanes

    def kernel(a: PlainPanels):
        full = a.columns // lanes // 4
        if a.begin // 4 < min(full, a.end // 4):
            wide(panels_of(a, a.begin // 4, min(full, a.end // 4)))
        if max(a.begin, full * 4) < a.end:
            single(panels_of(a, max(a.begin, full * 4), a.end))

    return kernel


@plain("void")
def single_panels(simd: Simd) -> Any:
    """Panels one vector wide: the few after the wide ones, where sizes are odd."""
    panels = make_panels(simd, 1)

    def kernel(a: Panels):
        panels(a)

    return kernel


def make_singles(simd: Simd) -> Any:
    """`single_panels` as a function that kernels call."""
    return external(simd, "gemm.single_panels")


def make_plain(simd: Simd) -> Any:
    """`plain_panels` as a function that kernels call."""
    return external(simd, "gemm.plain_panels")


def product(simd: Simd) -> Any:
    """`operations.Product`. Threads split the batch, as recurrences do, so that what one writes here it reads there."""
    panels, lanes, size = make_plain(simd), simd.lanes, simd.itemsize

    def kernel(thread, threads, a: Product):
        vectors = a.columns // lanes
        by_columns = threads == 1 or a.units != 0
        begin, end = share(vectors, thread, threads, 4) if by_columns else (0, vectors)
        first, last = (0, a.steps * a.batch) if by_columns else share(a.batch, thread, threads, 1)
        panels(
            PlainPanels(
                begin=begin,
                end=end,
                steps=1 if by_columns else a.steps,
                batch=0 if by_columns else a.batch,
                rows=last - first,
                depth=a.depth,
                columns=a.columns,
                a=a.a + first * a.a_row * size,
                a_row=a.a_row,
                b=a.weight,
                c_in=a.c_in + first * a.c_in_row * size,
                c_in_row=a.c_in_row,
                c=a.c + first * a.c_row * size,
                c_row=a.c_row,
            )
        )

    return kernel


def product_by_three(simd: Simd) -> Any:
    """`product` for B in panels of three vectors (the GRU's gates, interleaved), single ones after them."""
    wide, single, lanes, size = make_panels(simd, 3), make_singles(simd), simd.lanes, simd.itemsize

    @device
    def panels_of(a, begin, end, by_columns, first, last):
        return Panels(
            begin=begin,
            end=end,
            steps=1 if by_columns else a.steps,
            batch=0 if by_columns else a.batch,
            rows=last - first,
            depth=a.depth,
            a=a.a + first * a.a_row * size,
            a_row=a.a_row,
            b=a.weight,
            c_in=a.c_in + first * a.c_in_row * size,
            c_in_row=a.c_in_row,
            c=a.c + first * a.c_row * size,
            c_row=a.c_row,
        )

    def kernel(thread, threads, a: ProductByThree):
        vectors = a.columns // lanes
        full, panels = vectors // 3, (vectors + 2) // 3
        by_columns = threads == 1 or a.units != 0
        begin, end = share(panels, thread, threads, 1) if by_columns else (0, panels)
        first, last = (0, a.steps * a.batch) if by_columns else share(a.batch, thread, threads, 1)
        wide(panels_of(a, begin, min(end, full), by_columns, first, last))
        if end > full:
            single(panels_of(a, 3 * full, vectors, by_columns, first, last))

    return kernel
