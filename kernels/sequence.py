"""What all recurrences do to the rows of a step beside the cell's own equations.

Rows of a batch are independent: a thread runs all steps of its rows, so nothing here waits for another thread.
"""

from __future__ import annotations

from typing import Any

from .compile import device
from .simd import Simd, get_i32, get_i64, get_u8


def make_rows(simd: Simd) -> Any:
    """gather, cleared, carry, blank: copies of whole rows (`width` a multiple of the lanes) for rows begin..end."""
    load, store, lanes, zeros = simd.load, simd.store, simd.lanes, simd.splat(0.0)

    @device
    def gather(begin, end, width, ids, table, out):
        """out[row] = table[ids[row]]."""
        for row in range(begin, end):
            token = get_i32(ids, row)
            for k in range(0, width, lanes):
                store(out, row * width + k, load(table, token * width + k))

    @device
    def cleared(begin, end, width, clear, source, out):
        """out[row] = source[row], or zeros where clear[row]."""
        for row in range(begin, end):
            for k in range(0, width, lanes):
                if get_u8(clear, row) != 0:
                    store(out, row * width + k, zeros())
                else:
                    store(out, row * width + k, load(source, row * width + k))

    @device
    def carry(begin, end, width, time, lengths, source, out):
        """out[row] = source[row] where the sequence has ended by `time`."""
        for row in range(begin, end):
            if time >= get_i64(lengths, row):
                for k in range(0, width, lanes):
                    store(out, row * width + k, load(source, row * width + k))

    return gather, cleared, carry


def emit_rows(simd: Simd) -> Any:
    """out[t, row, :width] = h[t, row, :width], zeros after the row's length, times mask where one is given.

    h has rows of `h_row` elements, out of `out_row`; mask (0: none) is laid out like out. Both directions write one out.
    """
    get, put, load, store, lanes = simd.get, simd.put, simd.load, simd.store, simd.lanes
    zero, zeros = simd.scalar(0), simd.splat(0.0)

    def kernel(thread, threads, steps, batch, width, h, h_row, out, out_row, lengths):
        rows = steps * batch
        for i in range(rows * thread // threads, rows * (thread + 1) // threads):
            ended = lengths != 0 and i // batch >= get_i64(lengths, i % batch)
            k = 0
            while k + lanes <= width:
                store(out, i * out_row + k, zeros() if ended else load(h, i * h_row + k))
                k += lanes
            while k < width:
                put(out, i * out_row + k, zero if ended else get(h, i * h_row + k))
                k += 1

    return kernel


def absorb_rows(simd: Simd) -> Any:
    """out[i, :] = source[i, :width], then zeros up to out_row: rows padded to whole vectors; the reverse of emit_rows."""
    get, put, load, store, lanes = simd.get, simd.put, simd.load, simd.store, simd.lanes
    zero = simd.scalar(0)

    def kernel(thread, threads, rows, width, source, source_row, out, out_row):
        for i in range(rows * thread // threads, rows * (thread + 1) // threads):
            k = 0
            while k + lanes <= width:
                store(out, i * out_row + k, load(source, i * source_row + k))
                k += lanes
            while k < out_row:
                put(out, i * out_row + k, get(source, i * source_row + k) if k < width else zero)
                k += 1

    return kernel
