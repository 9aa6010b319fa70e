"""Vanilla RNN over a sequence, forward and backward (Elman 1990).

    h = act(x W_ih' + b_ih + b_hh + h_prev W_hh'),  act = tanh or relu

Buffers as in lstm.py with one gate: gates [steps, B, H] hold x's part and the biases; kept, only in backward, takes their
gradients.
"""

from __future__ import annotations

from typing import Any

from ..gemm import PlainPanels, block_rows, make_plain
from ..operations import RnnBackward, RnnForward
from ..sequence import make_rows, rounded, rows_behind, rows_of, split
from ..vector.activations import make_tanh
from ..vector.atomics import sync
from ..vector.lanes import make_ends
from ..vector.narrow import make_operand
from ..vector.simd import Simd, get_i64, get_u8


def forward(simd: Simd) -> Any:
    """All steps of a chunk; weight: W_hh packed by columns, one gate; relu: 0 for tanh; spare as the LSTM's."""
    plain, tanh, where_greater, block_size = make_plain(simd), make_tanh(simd), simd.where_greater, block_rows(simd)
    gather, cleared, carry, carry_operand = make_rows(simd)
    (read, _), (keep, _) = make_ends(simd), make_operand(simd)
    store, zeros, lanes, size = simd.store, simd.splat(0.0), simd.lanes, simd.itemsize
    narrow = bool(simd.narrow)

    def kernel(thread, threads, a: RnnForward):
        spare = a.spare
        padded = rounded(a.hidden, lanes)
        begin, limit, first, last = split(a.units, a.batch, padded // lanes, 4, a.starts, a.steps, thread, threads)
        row_h, row_o = padded * size, a.op_row * size
        if a.units != 0:
            spare += thread * a.batch * (row_o + row_h)
        for s in range(a.steps):
            t = a.steps - 1 - s if a.reverse != 0 else s
            own, before, after, rows = rows_of(t, a.batch, a.reverse, a.starts)
            end = min(limit, rows)
            group = max(1, last - first) if end - begin == 1 else 4
            g_t, h_prev, h_next = a.gates + own * row_h, a.h + before * row_h, a.h + after * row_h
            op_prev, op_next = a.op + before * row_o, a.op + after * row_o
            op_from = op_prev
            if a.ids != 0:
                gather((begin, end), (first * lanes, last * lanes), padded, a.ids + own * 4, a.table, g_t)
            if a.clear != 0:
                op_from = spare
                cleared((begin, end), (0, a.op_row), a.op_row, a.clear + own, op_prev, op_from)
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                at, out = g_t + block * row_h, h_next + block * row_h
                for v in range(first, last, group):
                    v_end = min(v + group, last)
                    plain(
                        PlainPanels(
                            begin=v,
                            end=v_end,
                            steps=1,
                            batch=0,
                            rows=stop - block,
                            depth=a.depth,
                            columns=padded,
                            a=op_from + block * row_o,
                            a_row=a.op_row,
                            b=a.weight,
                            c_in=at,
                            c_in_row=padded,
                            c=out,
                            c_row=padded,
                        )
                    )
                    for r in range(stop - block):
                        for u in range(v, v_end):
                            x = read(out + r * row_h, u * lanes, a.hidden)  # what stands in the padding may not be a number
                            # relu written so that not-a-number passes
                            y = tanh(x) if a.relu == 0 else where_greater(zeros(), x, zeros(), x)
                            store(out, r * padded + u * lanes, y)
                            if narrow:
                                keep(op_next + (block + r) * row_o, u * lanes, y)
            if a.lengths != 0:
                carry((begin, end), (first * lanes, last * lanes), padded, a.time + t, a.lengths, h_prev, h_next)
                if narrow:
                    carry_operand(
                        (begin, end), (first * lanes, last * lanes), a.op_row, a.time + t, a.lengths, op_prev, op_next
                    )
            if a.units != 0:
                sync(a.barrier, threads)

    return kernel


def backward(simd: Simd) -> Any:
    """All steps of a chunk, last to first; arguments as the LSTM's. Derivatives follow from h: 1 - h*h, or h > 0."""
    plain, where_greater, block_size = make_plain(simd), simd.where_greater, block_rows(simd)
    (read, _), (keep, _) = make_ends(simd), make_operand(simd)
    load, store, one, zeros, lanes, size = simd.load, simd.store, simd.splat(1.0), simd.splat(0.0), simd.lanes, simd.itemsize

    def kernel(thread, threads, a: RnnBackward):
        padded = rounded(a.hidden, lanes)
        begin, limit, first, last = split(a.units, a.batch, padded // lanes, 4, a.starts, a.steps, thread, threads)
        row_k, row_h, row_d = a.kept_row * size, padded * size, a.dout_row * size
        for s in range(a.steps):
            t = s if a.reverse != 0 else a.steps - 1 - s
            own, _, after, rows = rows_of(t, a.batch, a.reverse, a.starts)
            behind, linked = rows_behind(t, a.batch, a.reverse, a.start == 0 or s > 0, a.starts)
            end = min(limit, rows)
            group = max(1, last - first) if end - begin == 1 else 4
            kept_t, kept_after, d_t, h_next = (
                a.kept + own * row_k,
                a.kept + behind * row_k,
                a.dout + own * row_d,
                a.h + after * row_h,
            )
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                for v in range(first, last, group):
                    v_end = min(v + group, last)
                    if linked > block:
                        at = a.dh + block * row_h
                        plain(
                            PlainPanels(
                                begin=v,
                                end=v_end,
                                steps=1,
                                batch=0,
                                rows=min(stop, linked) - block,
                                depth=a.depth,
                                columns=padded,
                                a=kept_after + block * row_k,
                                a_row=a.kept_row,
                                b=a.weight,
                                c_in=at,
                                c_in_row=padded,
                                c=at,
                                c_row=padded,
                            )
                        )
                    for r in range(block, stop):
                        ended = a.lengths != 0 and a.time + t >= get_i64(a.lengths, r)
                        cut = r < linked and a.clear != 0 and get_u8(a.clear + behind, r) != 0
                        for u in range(v, v_end):
                            unit = u * lanes * size
                            at = a.dh + r * row_h + unit
                            total = zeros() if cut else read(a.dh + r * row_h, u * lanes, a.hidden)
                            if ended:
                                store(at, 0, total)
                                keep(kept_t + r * row_k, u * lanes, zeros())
                            else:
                                total = total + read(d_t + r * row_d, u * lanes, a.hidden)  # grad: out
                                y = load(h_next + r * row_h + unit, 0)
                                slope = one() - y * y if a.relu == 0 else where_greater(y, zeros(), one(), zeros())
                                keep(kept_t + r * row_k, u * lanes, total * slope)  # grad: preact
                                store(at, 0, zeros())
            if a.units != 0:
                sync(a.barrier, threads)

    return kernel
