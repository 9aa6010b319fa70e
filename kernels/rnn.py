"""Vanilla RNN over a sequence, forward and backward (Elman 1990).

    h = act(x W_ih' + b_ih + b_hh + h_prev W_hh'),  act = tanh or relu

Buffers as in lstm.py with one gate: gates [steps, B, H] hold x's part and the biases, after backward their gradients.
"""

from __future__ import annotations

from typing import Any

from .activations import make_tanh
from .gemm import BLOCK, make_plain, share
from .sequence import make_rows
from .simd import Simd, get_i64, get_u8


def forward(simd: Simd) -> Any:
    """All steps of a chunk; weights: W_hh packed by columns, one gate; relu: 0 for tanh; spare [B, H] scratch."""
    plain, tanh, where_greater = make_plain(simd), make_tanh(simd), simd.where_greater
    gather, cleared, carry = make_rows(simd)
    load, store, zeros, lanes, size = simd.load, simd.store, simd.splat(0.0), simd.lanes, simd.itemsize

    def kernel(
        thread, threads, steps, batch, hidden, padded, reverse, time, relu,
        gates, h, weights, ids, table, lengths, clear, spare,
    ):  # fmt: skip
        begin, end = share(batch, thread, threads, 1)
        row_h = padded * size
        for s in range(steps):
            t = steps - 1 - s if reverse != 0 else s
            g_t = gates + t * batch * row_h
            h_prev, h_next = h + (t + reverse) * batch * row_h, h + (t + 1 - reverse) * batch * row_h
            h_from = h_prev
            if ids != 0:
                gather(begin, end, padded, ids + t * batch * 4, table, g_t)
            if clear != 0:
                h_from = spare
                cleared(begin, end, padded, clear + t * batch, h_prev, h_from)
            for block in range(begin, end, BLOCK):
                stop = min(end, block + BLOCK)
                at, out = g_t + block * row_h, h_next + block * row_h
                for v in range(0, padded // lanes, 4):
                    v_end = min(v + 4, padded // lanes)
                    plain(v, v_end, stop - block, hidden, padded, h_from + block * row_h, padded, weights,
                          at, padded, out, padded)  # fmt: skip
                    for r in range(stop - block):
                        for u in range(v, v_end):
                            x = load(out, r * padded + u * lanes)
                            # relu written so that not-a-number passes
                            store(out, r * padded + u * lanes, tanh(x) if relu == 0 else where_greater(zeros(), x, zeros(), x))
            if lengths != 0:
                carry(begin, end, padded, time + t, lengths, h_prev, h_next)

    return kernel


def backward(simd: Simd) -> Any:
    """All steps of a chunk, last to first; arguments as the LSTM's. Derivatives follow from h: 1 - h*h, or h > 0."""
    plain, where_greater = make_plain(simd), simd.where_greater
    load, store, one, zeros, lanes, size = simd.load, simd.store, simd.splat(1.0), simd.splat(0.0), simd.lanes, simd.itemsize

    def kernel(
        thread, threads, steps, batch, padded, reverse, time, first, relu,
        gates, h, dout, dout_row, dh, weights, lengths, clear,
    ):  # fmt: skip
        begin, end = share(batch, thread, threads, 1)
        row_h, row_d = padded * size, dout_row * size
        for s in range(steps):
            t = s if reverse != 0 else steps - 1 - s
            after = t - 1 if reverse != 0 else t + 1
            linked = first == 0 or s > 0
            g_t, g_after, d_t = gates + t * batch * row_h, gates + after * batch * row_h, dout + t * batch * row_d
            h_next = h + (t + 1 - reverse) * batch * row_h
            for block in range(begin, end, BLOCK):
                stop = min(end, block + BLOCK)
                for v in range(0, padded // lanes, 4):
                    v_end = min(v + 4, padded // lanes)
                    if linked:
                        at = dh + block * row_h
                        plain(v, v_end, stop - block, padded, padded, g_after + block * row_h, padded, weights,
                              at, padded, at, padded)  # fmt: skip
                    for r in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, r)
                        cut = linked and clear != 0 and get_u8(clear + after * batch, r) != 0
                        for u in range(v, v_end):
                            unit = u * lanes * size
                            at, g_at = dh + r * row_h + unit, g_t + r * row_h + unit
                            total = zeros() if cut else load(at, 0)
                            if ended:
                                store(at, 0, total)
                                store(g_at, 0, zeros())
                            else:
                                total = total + load(d_t + r * row_d + unit, 0)  # grad: out
                                y = load(h_next + r * row_h + unit, 0)
                                slope = one() - y * y if relu == 0 else where_greater(y, zeros(), one(), zeros())
                                store(g_at, 0, total * slope)  # grad: preact
                                store(at, 0, zeros())

    return kernel
