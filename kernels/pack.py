"""Operands into the order in which the products read them, and gradients back out of it.

Gate-interleaved order: hidden units in blocks of `unit`, within a block all gates, within a gate the units; the last block
may be narrower, then its gates stand as much closer together, and zeros follow up to a whole vector. A tile of the product
then holds every gate of its units, and sizes that are no whole vectors cost little more than they must. gates=1 is plain
order. With bfloat16 products a row of a packed operand is a row of words (narrow.py), each of two neighbours in depth; rows
beyond the depth that there is are zero.
"""

from __future__ import annotations

from typing import Any

from .gemm import share
from .operations import PACK_SCRATCH, AddColumns, AddRows, PackBias, PackColumns, PackRows
from .vector.lanes import make_ends, make_square
from .vector.narrow import make_join, make_operand
from .vector.parts import device
from .vector.simd import Simd


@device
def source_row(column, gates, unit, hidden):
    """Row of the weight matrix that interleaved `column` stands for; -1 for padding."""
    if column >= gates * hidden:
        return -1
    first = column // (gates * unit) * unit
    width, inside = min(unit, hidden - first), column - gates * first
    return inside // width * hidden + first + inside % width


@device
def source_rows(column, count, gates, unit, hidden):
    """`source_row` of `column`, and whether those of the `count` columns from there on follow one by one."""
    row = source_row(column, gates, unit, hidden)
    return row, row >= 0 and source_row(column + count - 1, gates, unit, hidden) == row + count - 1


def pack_columns(simd: Simd) -> Any:
    """B[k, column] = w[source_row(column), k]: the weights of a product x @ w.T, panels of `vectors` vectors.

    w [gates*hidden, width], row stride w_row; depth: rows of B. columns: gates * hidden, padded to the lanes. Where these are
    no whole panels, single vectors follow.
    """
    read, _ = make_ends(simd)
    (keep, _), square = make_operand(simd), make_square(simd)
    load, store, lanes, size, zeros = simd.load, simd.store, simd.lanes, simd.itemsize, simd.splat(0.0)
    pair = 2 if simd.narrow else 1

    def kernel(thread, threads, a: PackColumns):
        panel_width = a.vectors * lanes
        full = a.columns // panel_width * panel_width
        begin, end = share(a.columns, thread, threads, lanes)
        own = a.scratch + thread * PACK_SCRATCH * size
        turned = own + lanes * lanes * size
        for column in range(begin, end, lanes):
            panel, pitch = (column // panel_width * panel_width, panel_width) if column < full else (column, lanes)
            row_0, run = source_rows(column, lanes, a.gates, a.unit, a.hidden)
            # Square by square, rows become columns.
            for start in range(0, a.depth, lanes):
                for lane in range(lanes):
                    row = row_0 + lane if run else source_row(column + lane, a.gates, a.unit, a.hidden)
                    for half in range(pair):
                        k = pair * start + half * lanes
                        x = read(a.w + row * a.w_row * size, k, a.width) if row >= 0 else zeros()
                        keep(own + lane * lanes * size, half * lanes, x)
                at = a.packed + (panel * a.depth + start * pitch + column - panel) * size
                if start + lanes <= a.depth:
                    square(own, lanes, at, pitch)
                else:
                    square(own, lanes, turned, lanes)
                    for k in range(a.depth - start):
                        store(at, k * pitch, load(turned, k * lanes))

    return kernel


def pack_rows(simd: Simd) -> Any:
    """B[k, column] = w[source_row(k), column]: panels of four vectors, then single vectors; padding becomes zero.

    w [gates*hidden, width], row stride w_row; depth: rows of B; columns = width padded to the lanes. The second operand of
    products with a weight untransposed.
    """
    read, _ = make_ends(simd)
    store, lanes, size, zeros = simd.store, simd.lanes, simd.itemsize, simd.splat(0.0)
    pair = 2 if simd.narrow else 1

    @device
    def part(row, v, width, w, w_row):
        return read(w + row * w_row * size, v, width) if row >= 0 else zeros()

    if simd.narrow:
        (keep, _), (words, join) = make_operand(simd), make_join(simd)

        @device
        def row_of(row, row_above, v, width, w, w_row, own):
            keep(own, 0, part(row, v, width, w, w_row))
            keep(own, lanes, part(row_above, v, width, w, w_row))
            return join(words(own, 0), words(own, lanes))

    else:

        @device
        def row_of(row, row_above, v, width, w, w_row, own):
            return part(row, v, width, w, w_row)

    def kernel(thread, threads, a: PackRows):
        full = a.columns // (4 * lanes) * 4 * lanes
        begin, end = share(a.depth, thread, threads, 1)
        own = a.scratch + thread * PACK_SCRATCH * size
        for k in range(begin, end):
            rows = source_row(pair * k, a.gates, a.unit, a.hidden), source_row(pair * k + pair - 1, a.gates, a.unit, a.hidden)
            for v in range(0, a.columns, lanes):
                panel, pitch = (v // (4 * lanes) * 4 * lanes, 4 * lanes) if v < full else (v, lanes)
                store(a.packed, panel * a.depth + k * pitch + v - panel, row_of(*rows, v, a.width, a.w, a.w_row, own))

    return kernel


def pack_bias(simd: Simd) -> Any:
    """out[column] = a[source_row(column)] + b[...]: the sum of two biases; either may be 0 (none).

    For gates from `split` on only a counts (the GRU's b_hn stands elsewhere).
    """
    get, put, zero = simd.get, simd.put, simd.scalar(0)

    def kernel(thread, threads, a: PackBias):
        begin, end = share(a.columns, thread, threads, 1)
        for column in range(begin, end):
            row = source_row(column, a.gates, a.unit, a.hidden)
            value = zero
            if row >= 0:
                if a.first != 0:
                    value = get(a.first, row)
                if a.second != 0 and row < a.split * a.hidden:
                    value = value + get(a.second, row)
            put(a.packed, column, value)

    return kernel


def add_rows(simd: Simd) -> Any:
    """out[source_row(column), :width] += c[column, :width]."""
    read, write = make_ends(simd)
    lanes, size = simd.lanes, simd.itemsize

    def kernel(thread, threads, a: AddRows):
        begin, end = share(a.columns, thread, threads, 1)
        for column in range(begin, end):
            row = source_row(column, a.gates, a.unit, a.hidden)
            if row >= 0:
                source, target = a.c + column * a.c_row * size, a.gradient + row * a.gradient_row * size
                for k in range(0, a.width, lanes):
                    write(target, k, a.width, read(target, k, a.width) + read(source, k, a.width))

    return kernel


def add_columns(simd: Simd) -> Any:
    """out[source_row(column), :width] += c[:width, column], bias[source_row(column)] += sums[column]: what outer.product made.

    columns is a multiple of the lanes, which threads share as there; c has rows up to the next multiple of the lanes behind
    width, of any content. bias 0: none.
    """
    (read, write), square = make_ends(simd), make_square(simd)
    load, get, put, lanes, size = simd.load, simd.get, simd.put, simd.lanes, simd.itemsize

    def kernel(thread, threads, a: AddColumns):
        begin, end = share(a.columns, thread, threads, lanes)
        own = a.scratch + thread * PACK_SCRATCH * size
        for column in range(begin, end, lanes):
            row_0, run = source_rows(column, lanes, a.gates, a.unit, a.hidden)
            for k in range(0, a.width, lanes):
                square(a.c + (k * a.c_row + column) * size, a.c_row, own, lanes)
                for lane in range(lanes):
                    row = row_0 + lane if run else source_row(column + lane, a.gates, a.unit, a.hidden)
                    if row >= 0:
                        target = a.gradient + row * a.gradient_row * size
                        write(target, k, a.width, read(target, k, a.width) + load(own, lane * lanes))
            for k in range(column, column + lanes):
                row = source_row(k, a.gates, a.unit, a.hidden)
                if a.bias != 0 and row >= 0:
                    put(a.bias, row, get(a.bias, row) + get(a.sums, k))

    return kernel
