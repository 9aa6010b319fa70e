"""Operands into the order in which the products read them, and gradients back out of it.

Gate-interleaved order: hidden units in blocks of `unit` (padded with zeros to a whole block), within a block all gates,
within a gate the units: column (j // unit) * gates * unit + g * unit + j % unit holds gate g of unit j. A tile of the
product then holds every gate of its units. gates=1 is plain order.
"""

from __future__ import annotations

from typing import Any

from .compile import device
from .gemm import share
from .simd import Simd


@device
def source_row(column, gates, unit, hidden):
    """Row of the weight matrix that interleaved `column` stands for; -1 for padding."""
    block, inside = column // (gates * unit), column % (gates * unit)
    j = block * unit + inside % unit
    return inside // unit * hidden + j if j < hidden else -1


def pack_columns(simd: Simd) -> Any:
    """B[k, column] = w[source_row(column), k]: the weights of a product x @ w.T, panels of `vectors` vectors.

    w [gates*hidden, depth], row stride w_row. columns = gates * padded hidden. With vectors=4 up to three single vectors
    follow the whole panels.
    """
    get, put, lanes, zero = simd.get, simd.put, simd.lanes, simd.scalar(0)

    def kernel(thread, threads, hidden, gates, unit, depth, columns, vectors, w, w_row, packed):
        width = vectors * lanes
        full = columns // width * width
        begin, end = share(columns, thread, threads, lanes)
        for column in range(begin, end, lanes):
            panel, pitch = (column // width * width, width) if column < full else (column, lanes)
            # A vector's columns are neighbouring units of one gate. Square by square, so that the lines read and the lines
            # written both stay in the first-level cache.
            for start in range(0, depth, 16):
                for lane in range(lanes):
                    row = source_row(column + lane, gates, unit, hidden)
                    at = panel * depth + column - panel + lane
                    for k in range(start, min(depth, start + 16)):
                        put(packed, at + k * pitch, get(w, row * w_row + k) if row >= 0 else zero)

    return kernel


def pack_rows(simd: Simd) -> Any:
    """B[k, column] = w[source_row(k), column]: panels of four vectors, then single vectors; padding becomes zero.

    w [gates*hidden, width], row stride w_row; depth = gates * padded hidden; columns = width padded to the lanes. The second
    operand of products with a weight untransposed.
    """
    get, put, load, store, lanes = simd.get, simd.put, simd.load, simd.store, simd.lanes
    zeros, zero = simd.splat(0.0), simd.scalar(0)

    def kernel(thread, threads, hidden, gates, unit, depth, width, columns, w, w_row, packed):
        full = columns // (4 * lanes) * 4 * lanes
        begin, end = share(depth, thread, threads, 1)
        for k in range(begin, end):
            row = source_row(k, gates, unit, hidden)
            for v in range(0, columns, lanes):
                panel, pitch = (v // (4 * lanes) * 4 * lanes, 4 * lanes) if v < full else (v, lanes)
                at = panel * depth + k * pitch + v - panel
                if row < 0:
                    store(packed, at, zeros())
                elif v + lanes <= width:
                    store(packed, at, load(w, row * w_row + v))
                else:
                    for lane in range(lanes):
                        put(packed, at + lane, get(w, row * w_row + v + lane) if v + lane < width else zero)

    return kernel


def pack_bias(simd: Simd) -> Any:
    """out[column] = a[source_row(column)] + b[...]: the sum of two biases; either may be 0 (none).

    For gates from `split` on only a counts (the GRU's b_hn stands elsewhere).
    """
    get, put, zero = simd.get, simd.put, simd.scalar(0)

    def kernel(thread, threads, hidden, gates, unit, columns, split, a, b, out):
        begin, end = share(columns, thread, threads, 1)
        for column in range(begin, end):
            row = source_row(column, gates, unit, hidden)
            value = zero
            if row >= 0:
                if a != 0:
                    value = get(a, row)
                if b != 0 and row < split * hidden:
                    value = value + get(b, row)
            put(out, column, value)

    return kernel


def add_rows(simd: Simd) -> Any:
    """out[source_row(column), :width] += c[column, :width]: a gradient in interleaved order to where it belongs."""
    get, put = simd.get, simd.put

    def kernel(thread, threads, hidden, gates, unit, columns, width, c, c_row, out, out_row):
        begin, end = share(columns, thread, threads, 1)
        for column in range(begin, end):
            row = source_row(column, gates, unit, hidden)
            if row >= 0:
                for k in range(width):
                    put(out, row * out_row + k, get(out, row * out_row + k) + get(c, column * c_row + k))

    return kernel
