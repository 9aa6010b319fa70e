"""Products over rows: weight gradients, the sum over all steps and rows of a gate's gradient times what it was made of.

Both operands lie in rows, as the recurrences wrote them (narrow.py), and are packed here, so that the tiles of gemm.py read
them. Chunks of the depth are by shape alone: the bits do not depend on threads.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from .gemm import Tile, make_tile, share
from .operations import OUTER_DEPTH as DEPTH
from .operations import OUTER_ROWS, OuterProduct
from .vector.lanes import make_ends, make_square
from .vector.narrow import high_elements, low_elements, make_join
from .vector.parts import device
from .vector.simd import I32, Simd


def _make_rows(simd: Simd) -> tuple[Any, Any]:
    """`make_row_pairs` where a step of the depth is one row."""
    (read, _), zeros, size = make_ends(simd), simd.splat(0.0), simd.itemsize

    @device
    def across(a, a_row, k, rows, column, end):
        return read(a + k * a_row * size, column, end) if k < rows else zeros()

    @device
    def total(x):
        return x

    return across, total


def make_row_pairs(simd: Simd) -> tuple[Any, Any]:
    """across(a, a_row, k, rows, column, end) -> step k of the depth over rows of A or B, a vector; total(x) sums its elements.

    A step is one row, or with bfloat16 products two rows, joined element by element to words; rows from `rows` on are zero.
    Of rows that are the values themselves no column from `end` on is read.
    """
    if not simd.narrow:
        return _make_rows(simd)
    zeros = simd.splat(0.0)
    (words, join), size = make_join(simd), simd.itemsize
    integers = ir.VectorType(I32, simd.lanes)

    @intrinsic
    def total(typing: Any, x: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            word = b.bitcast(a[0], integers)
            return b.fadd(low_elements(b, simd, word), high_elements(b, simd, word))

        return simd.vec(simd.vec), emit

    @device
    def across(a, a_row, k, rows, column, end):
        if 2 * k >= rows:
            return zeros()
        low, high = a + 2 * k * a_row * size, a + (2 * k + 1) * a_row * size
        return join(words(low, column), words(high, column)) if 2 * k + 1 < rows else words(low, column)

    return across, total


def make_block(simd: Simd, vectors: int) -> Any:
    """block(columns, height, steps, left, right, c, nothing): C[height, columns] += A @ B, `steps` deep.

    columns: (first, end). left: packed A, and its distances from row to row and from step to step. right: packed B. c: C and
    the length of its rows. nothing: `vectors` vectors of zeros that C begins with; or 0.
    """
    (tile, next_tile), width, size = make_tile(simd, vectors), vectors * simd.lanes, simd.itemsize

    @device
    def block(columns, height, steps, left, right, c, nothing):
        (begin, end), (a, a_next, a_step), (place, c_row), n = columns, left, c, 0
        for v in range(begin, end, width):
            panel, row = right + (v - begin) * (DEPTH + 1) * size, 0
            while row < height:
                n = next_tile(height - row, n)
                at = place + (row * c_row + v) * size
                ahead = at + min(n, height - row - n) * c_row * size
                at_in, in_row = (nothing, 0) if nothing != 0 else (at, c_row)
                tile(
                    Tile(
                        rows=n,
                        a=a + row * a_next * size,
                        a_row=a_next,
                        a_k=a_step,
                        b=panel,
                        b_k=width,
                        depth=steps,
                        c_in=at_in,
                        c_in_row=in_row,
                        c=at,
                        c_row=c_row,
                        ahead=ahead,
                    )
                )
                row += n

    return block


def product(simd: Simd) -> Any:
    """C[rows, columns] += A[depth, rows].T @ B[depth, columns], sums[columns] += the column sums of B: weight gradients.

    With `start` C and sums are overwritten. columns is a multiple of the lanes; A lies in rows of a_row, B of b_row elements
    (words with bfloat16 products). scratch holds `space` elements for each thread, at least
    (DEPTH + 1) * (rows + OUTER_ROWS + columns), rows being rounded up to OUTER_ROWS.
    """
    vectors = 2 if simd.narrow == "amx" else 4
    wide, single = make_block(simd, vectors), make_block(simd, 1)
    across, total = make_row_pairs(simd)
    load, store, zeros, lanes, size = simd.load, simd.store, simd.splat(0.0), simd.lanes, simd.itemsize
    square, tiled = make_square(simd), simd.narrow == "amx"
    pair = 2 if simd.narrow else 1
    width = vectors * lanes
    # Panels and blocks are one row longer than needed: a power of two apart they would fall into the same cache lines.
    panel_size, block_size = (DEPTH + 1) * width * size, (DEPTH + 1) * OUTER_ROWS * size

    def kernel(thread, threads, a: OuterProduct):
        empty = a.scratch + thread * a.space * size
        turned = empty + width * size
        right = turned + DEPTH * OUTER_ROWS * size
        left = right + (DEPTH + 1) * a.columns * size
        begin, end = share(a.columns, thread, threads, lanes)
        full = begin + (end - begin) // width * width
        for v in range(0, width, lanes):
            store(empty, v, zeros())
        if a.start != 0:
            for v in range(begin, end, lanes):
                store(a.sums, v, zeros())
        for first in range(0, a.depth, pair * DEPTH):
            part = min(pair * DEPTH, a.depth - first)
            steps = (part + pair - 1) // pair
            if tiled:
                steps = (steps + 15) // 16 * 16
            a_at, b_at = a.a + first * a.a_row * size, a.b + first * a.b_row * size
            nothing = empty if a.start != 0 and first == 0 else 0
            # Row by row, as they lie in memory, into panels of B and blocks of A.
            for k in range(steps):
                at = right + k * width * size
                for panel in range(begin, full, width):
                    for v in range(panel, panel + width, lanes):
                        x = across(b_at, a.b_row, k, part, v, end)
                        store(a.sums, v, load(a.sums, v) + total(x))
                        store(at, v - panel, x)
                    at += panel_size
                for v in range(full, end, lanes):
                    x = across(b_at, a.b_row, k, part, v, end)
                    store(a.sums, v, load(a.sums, v) + total(x))
                    store(right + (v - begin) * (DEPTH + 1) * size, k * lanes, x)
                at = left + k * OUTER_ROWS * size
                for block in range(0, a.rows, OUTER_ROWS):
                    for v in range(0, min(OUTER_ROWS, a.rows - block), lanes):
                        store(at, v, across(a_at, a.a_row, k, part, block + v, a.rows))
                    at += block_size
            own = left - block_size
            for block in range(0, a.rows, OUTER_ROWS):
                height = min(OUTER_ROWS, a.rows - block)
                own += block_size
                packed = (own, 1, OUTER_ROWS)
                if tiled:
                    for k in range(0, steps, lanes):
                        for v in range(0, height, lanes):
                            square(own + (k * OUTER_ROWS + v) * size, OUTER_ROWS, turned + (v * DEPTH + k) * size, DEPTH)
                    packed = (turned, DEPTH, 1)
                at = a.c + block * a.c_row * size
                wide((begin, full), height, steps, packed, right, (at, a.c_row), nothing)
                rest = right + (full - begin) * (DEPTH + 1) * size
                single((full, end), height, steps, packed, rest, (at, a.c_row), nothing)

    return kernel
