"""Vanilla RNN over a sequence, forward and backward (Elman 1990).

    h = act(x W_ih' + b_ih + b_hh + h_prev W_hh'),  act = tanh or relu

Buffers as in lstm.py with one gate: gates [steps, B, H] hold x's part and the biases; kept, only in backward, takes their
gradients.
"""

from __future__ import annotations

from typing import Any

from .gemm import block_rows, make_plain
from .sequence import make_rows, rounded, rows_behind, rows_of, split
from .vector.activations import make_tanh
from .vector.atomics import sync
from .vector.lanes import make_ends
from .vector.narrow import make_operand
from .vector.simd import Simd, get_i64, get_u8


def forward(simd: Simd) -> Any:
    """All steps of a chunk; weights: W_hh packed by columns, one gate; relu: 0 for tanh; spare as the LSTM's."""
    plain, tanh, where_greater, block_size = make_plain(simd), make_tanh(simd), simd.where_greater, block_rows(simd)
    gather, cleared, carry, carry_operand = make_rows(simd)
    (read, _), (keep, _) = make_ends(simd), make_operand(simd)
    store, zeros, lanes, size = simd.store, simd.splat(0.0), simd.lanes, simd.itemsize
    narrow = bool(simd.narrow)

    def kernel(
        thread,
        threads,
        steps,
        batch,
        hidden,
        depth,
        op_row,
        reverse,
        time,
        units,
        barrier,
        relu,
        gates,
        h,
        op,
        weights,
        ids,
        table,
        lengths,
        clear,
        starts,
        spare,
    ):
        padded = rounded(hidden, lanes)
        begin, limit, first, last = split(units, batch, padded // lanes, 4, starts, steps, thread, threads)
        row_h, row_o = padded * size, op_row * size
        if units != 0:
            spare += thread * batch * (row_o + row_h)
        for s in range(steps):
            t = steps - 1 - s if reverse != 0 else s
            own, before, after, rows = rows_of(t, batch, reverse, starts)
            end = min(limit, rows)
            group = max(1, last - first) if end - begin == 1 else 4
            g_t, h_prev, h_next = gates + own * row_h, h + before * row_h, h + after * row_h
            op_prev, op_next = op + before * row_o, op + after * row_o
            op_from = op_prev
            if ids != 0:
                gather(begin, end, first * lanes, last * lanes, padded, ids + own * 4, table, g_t)
            if clear != 0:
                op_from = spare
                cleared(begin, end, 0, op_row, op_row, clear + own, op_prev, op_from)
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                at, out = g_t + block * row_h, h_next + block * row_h
                for v in range(first, last, group):
                    v_end = min(v + group, last)
                    plain(
                        v,
                        v_end,
                        1,
                        0,
                        stop - block,
                        depth,
                        padded,
                        op_from + block * row_o,
                        op_row,
                        weights,
                        at,
                        padded,
                        out,
                        padded,
                    )
                    for r in range(stop - block):
                        for u in range(v, v_end):
                            x = read(out + r * row_h, u * lanes, hidden)  # what stands in the padding may not be a number
                            # relu written so that not-a-number passes
                            y = tanh(x) if relu == 0 else where_greater(zeros(), x, zeros(), x)
                            store(out, r * padded + u * lanes, y)
                            if narrow:
                                keep(op_next + (block + r) * row_o, u * lanes, y)
            if lengths != 0:
                carry(begin, end, first * lanes, last * lanes, padded, time + t, lengths, h_prev, h_next)
                if narrow:
                    carry_operand(begin, end, first * lanes, last * lanes, op_row, time + t, lengths, op_prev, op_next)
            if units != 0:
                sync(barrier, threads)

    return kernel


def backward(simd: Simd) -> Any:
    """All steps of a chunk, last to first; arguments as the LSTM's. Derivatives follow from h: 1 - h*h, or h > 0."""
    plain, where_greater, block_size = make_plain(simd), simd.where_greater, block_rows(simd)
    (read, _), (keep, _) = make_ends(simd), make_operand(simd)
    load, store, one, zeros, lanes, size = simd.load, simd.store, simd.splat(1.0), simd.splat(0.0), simd.lanes, simd.itemsize

    def kernel(
        thread,
        threads,
        steps,
        batch,
        hidden,
        depth,
        reverse,
        time,
        start,
        units,
        barrier,
        relu,
        kept,
        kept_row,
        h,
        dout,
        dout_row,
        dh,
        weights,
        lengths,
        clear,
        starts,
    ):
        padded = rounded(hidden, lanes)
        begin, limit, first, last = split(units, batch, padded // lanes, 4, starts, steps, thread, threads)
        row_k, row_h, row_d = kept_row * size, padded * size, dout_row * size
        for s in range(steps):
            t = s if reverse != 0 else steps - 1 - s
            own, _, after, rows = rows_of(t, batch, reverse, starts)
            behind, linked = rows_behind(t, batch, reverse, start == 0 or s > 0, starts)
            end = min(limit, rows)
            group = max(1, last - first) if end - begin == 1 else 4
            kept_t, kept_after, d_t, h_next = kept + own * row_k, kept + behind * row_k, dout + own * row_d, h + after * row_h
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                for v in range(first, last, group):
                    v_end = min(v + group, last)
                    if linked > block:
                        at = dh + block * row_h
                        plain(
                            v,
                            v_end,
                            1,
                            0,
                            min(stop, linked) - block,
                            depth,
                            padded,
                            kept_after + block * row_k,
                            kept_row,
                            weights,
                            at,
                            padded,
                            at,
                            padded,
                        )
                    for r in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, r)
                        cut = r < linked and clear != 0 and get_u8(clear + behind, r) != 0
                        for u in range(v, v_end):
                            unit = u * lanes * size
                            at = dh + r * row_h + unit
                            total = zeros() if cut else read(dh + r * row_h, u * lanes, hidden)
                            if ended:
                                store(at, 0, total)
                                keep(kept_t + r * row_k, u * lanes, zeros())
                            else:
                                total = total + read(d_t + r * row_d, u * lanes, hidden)  # grad: out
                                y = load(h_next + r * row_h + unit, 0)
                                slope = one() - y * y if relu == 0 else where_greater(y, zeros(), one(), zeros())
                                keep(kept_t + r * row_k, u * lanes, total * slope)  # grad: preact
                                store(at, 0, zeros())
            if units != 0:
                sync(barrier, threads)

    return kernel
