"""Products over rows: weight gradients, the sum over all steps and rows of a gate's gradient times what it was made of.

Both operands lie in rows, as the recurrences wrote them (operand.py), and are packed here, so that the tiles of gemm.py read
them. Chunks of the depth are by shape alone: the bits do not depend on threads.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from .gemm import make_tile, share
from .vector.lanes import make_ends, make_square
from .vector.narrow import high_elements, low_elements, make_join
from .vector.parts import device
from .vector.simd import I32, Simd

DEPTH = 128  # steps of the depth that `product` takes at a time: a packed panel of B then stays in the first-level cache
OUTER_ROWS = 64  # rows of C to which a packed block of A belongs


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
    """block(begin, end, height, steps, a, a_next, a_step, right, c, c_row, nothing): columns begin..end of C[height] += A @ B.

    nothing: `vectors` vectors of zeros that C begins with; or 0.
    """
    (tile, next_tile), width, size = make_tile(simd, vectors), vectors * simd.lanes, simd.itemsize

    @device
    def block(begin, end, height, steps, a, a_next, a_step, right, c, c_row, nothing):
        n = 0
        for v in range(begin, end, width):
            panel, row = right + (v - begin) * (DEPTH + 1) * size, 0
            while row < height:
                n = next_tile(height - row, n)
                at = c + (row * c_row + v) * size
                ahead = at + min(n, height - row - n) * c_row * size
                at_in, in_row = (nothing, 0) if nothing != 0 else (at, c_row)
                tile(n, a + row * a_next * size, a_next, a_step, panel, width, steps, at_in, in_row, at, c_row, ahead)
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

    def kernel(thread, threads, depth, rows, columns, start, a, a_row, b, b_row, c, c_row, sums, scratch, space):
        empty = scratch + thread * space * size
        turned = empty + width * size
        right = turned + DEPTH * OUTER_ROWS * size
        left = right + (DEPTH + 1) * columns * size
        begin, end = share(columns, thread, threads, lanes)
        full = begin + (end - begin) // width * width
        for v in range(0, width, lanes):
            store(empty, v, zeros())
        if start != 0:
            for v in range(begin, end, lanes):
                store(sums, v, zeros())
        for first in range(0, depth, pair * DEPTH):
            part = min(pair * DEPTH, depth - first)
            steps = (part + pair - 1) // pair
            if tiled:
                steps = (steps + 15) // 16 * 16
            a_at, b_at = a + first * a_row * size, b + first * b_row * size
            nothing = empty if start != 0 and first == 0 else 0
            # Row by row, as they lie in memory, into panels of B and blocks of A.
            for k in range(steps):
                at = right + k * width * size
                for panel in range(begin, full, width):
                    for v in range(panel, panel + width, lanes):
                        x = across(b_at, b_row, k, part, v, end)
                        store(sums, v, load(sums, v) + total(x))
                        store(at, v - panel, x)
                    at += panel_size
                for v in range(full, end, lanes):
                    x = across(b_at, b_row, k, part, v, end)
                    store(sums, v, load(sums, v) + total(x))
                    store(right + (v - begin) * (DEPTH + 1) * size, k * lanes, x)
                at = left + k * OUTER_ROWS * size
                for block in range(0, rows, OUTER_ROWS):
                    for v in range(0, min(OUTER_ROWS, rows - block), lanes):
                        store(at, v, across(a_at, a_row, k, part, block + v, rows))
                    at += block_size
            own = left - block_size
            for block in range(0, rows, OUTER_ROWS):
                height = min(OUTER_ROWS, rows - block)
                own += block_size
                a_first, a_next, a_step = own, 1, OUTER_ROWS
                if tiled:
                    for k in range(0, steps, lanes):
                        for v in range(0, height, lanes):
                            square(own + (k * OUTER_ROWS + v) * size, OUTER_ROWS, turned + (v * DEPTH + k) * size, DEPTH)
                    a_first, a_next, a_step = turned, DEPTH, 1
                at = c + block * c_row * size
                wide(begin, full, height, steps, a_first, a_next, a_step, right, at, c_row, nothing)
                rest = right + (full - begin) * (DEPTH + 1) * size
                single(full, end, height, steps, a_first, a_next, a_step, rest, at, c_row, nothing)

    return kernel
