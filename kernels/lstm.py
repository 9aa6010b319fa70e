"""LSTM over a sequence, forward and backward (Hochreiter & Schmidhuber 1997; Gers et al. 2000; projection: Sak et al. 2014).

    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of (x W_ih' + b_ih + b_hh) + h_prev W_hh'
    c = f * c_prev + i * g        m = o * tanh(c)        h = m, or m W_hr' with a projection

Both kernels run `steps` steps of a chunk, the batch split over threads. Buffers, all time-major and contiguous, rows
padded to whole vectors (H: hidden units, R: width of h, both padded; padding stays zero):

    gates [steps, B, 4H]   in: x's part and the biases, interleaved (pack.py); out: activations, then their gradients
    h [steps+1, B, R], c [steps+1, B, H]   states; step t reads slot t and writes t+1, in reverse reads t+1 and writes t
    m [steps, B, H]        before the projection; only with one
    lengths [B] int64, clear [steps, B] uint8 (the state counts as zero before the marked step), ids [steps, B] int32: each
                           0 for none
    time                   index of the chunk's first step in the sequence, which lengths count from
"""

from __future__ import annotations

from typing import Any

from .activations import make_sigmoid, make_tanh
from .compile import device
from .gemm import BLOCK, make_plain, make_tile, next_tile, share, tile_rows
from .sequence import make_rows
from .simd import Simd, get_i64, get_u8


def make_cell(simd: Simd) -> Any:
    """forward(gates, c_prev, c, h, save): one vector of units, every argument the address of its first element."""
    sigmoid, tanh, fma, load, store = make_sigmoid(simd), make_tanh(simd), simd.fma, simd.load, simd.store
    lanes = simd.lanes

    @device
    def forward(gates, c_prev, c, h, save):
        i, f = sigmoid(load(gates, 0)), sigmoid(load(gates, lanes))
        g, o = tanh(load(gates, 2 * lanes)), sigmoid(load(gates, 3 * lanes))
        c_new = fma(f, load(c_prev, 0), i * g)
        store(c, 0, c_new)
        store(h, 0, o * tanh(c_new))
        if save != 0:
            store(gates, 0, i)
            store(gates, lanes, f)
            store(gates, 2 * lanes, g)
            store(gates, 3 * lanes, o)

    return forward


def forward(simd: Simd) -> Any:
    """All steps of a chunk. table [V, 4H]: with ids, gates[t, b] = table[ids[t, b]] first. save=0: gates are scratch.

    weights: W_hh packed by columns, 4 gates; projection: W_hr packed by columns (0: none); spare [B, R + H] scratch;
    zeros [R].
    """
    tile, most, cell, plain = make_tile(simd, 4), tile_rows(simd, 4), make_cell(simd), make_plain(simd)
    gather, cleared, carry = make_rows(simd)
    lanes, size = simd.lanes, simd.itemsize

    def kernel(
        thread, threads, steps, batch, hidden, padded, width, reverse, time, save,
        gates, h, c, m, weights, depth, projection, zeros, ids, table, lengths, clear, spare,
    ):  # fmt: skip
        begin, end = share(batch, thread, threads, 1)
        row_g, row_h, row_c = 4 * padded * size, width * size, padded * size
        for s in range(steps):
            t = steps - 1 - s if reverse != 0 else s
            g_t = gates + t * batch * row_g
            h_prev, h_next = h + (t + reverse) * batch * row_h, h + (t + 1 - reverse) * batch * row_h
            c_prev, c_next = c + (t + reverse) * batch * row_c, c + (t + 1 - reverse) * batch * row_c
            h_from, c_from = h_prev, c_prev
            m_t = m + t * batch * row_c if projection != 0 else h_next
            if ids != 0:
                gather(begin, end, 4 * padded, ids + t * batch * 4, table, g_t)
            if clear != 0:
                h_from, c_from = spare, spare + batch * row_h
                cleared(begin, end, width, clear + t * batch, h_prev, h_from)
                cleared(begin, end, padded, clear + t * batch, c_prev, c_from)
            for p in range(padded // lanes):
                w_p, unit = weights + p * 4 * lanes * depth * size, p * lanes * size
                row = begin
                while row < end:
                    n = next_tile(end - row, most)
                    at = g_t + row * row_g + 4 * unit
                    tile(n, h_from + row * row_h, width, 1, w_p, 4 * lanes, depth, at, 4 * padded, at, 4 * padded)
                    for r in range(row, row + n):
                        cell(g_t + r * row_g + 4 * unit, c_from + r * row_c + unit, c_next + r * row_c + unit,
                             m_t + r * row_c + unit, save)  # fmt: skip
                    row += n
            if projection != 0:
                plain(0, width // lanes, end - begin, hidden, width, m_t + begin * row_c, padded, projection,
                      zeros, 0, h_next + begin * row_h, width)  # fmt: skip
            if lengths != 0:
                carry(begin, end, width, time + t, lengths, h_prev, h_next)
                carry(begin, end, padded, time + t, lengths, c_prev, c_next)

    return kernel


def make_cell_backward(simd: Simd) -> Any:
    """backward(gates, c_prev, c, dc, dh, fresh): gradients of one vector of units; gates hold i, f, g, o and take theirs."""
    tanh, load, store, lanes = make_tanh(simd), simd.load, simd.store, simd.lanes
    one, zeros = simd.splat(1.0), simd.splat(0.0)

    @device
    def backward(gates, c_prev, c, dc, dh, fresh):
        i, f, g, o = load(gates, 0), load(gates, lanes), load(gates, 2 * lanes), load(gates, 3 * lanes)
        tc = tanh(load(c, 0))
        before = zeros() if fresh else load(c_prev, 0)
        d_c = load(dc, 0) + dh * o * (one() - tc * tc)  # grad: c
        store(gates, 0, d_c * g * (i * (one() - i)))  # grad: i
        store(gates, lanes, d_c * before * (f * (one() - f)))  # grad: f
        store(gates, 2 * lanes, d_c * i * (one() - g * g))  # grad: g
        store(gates, 3 * lanes, dh * tc * (o * (one() - o)))  # grad: o
        store(dc, 0, d_c * f)  # grad: c_prev

    return backward


def backward(simd: Simd) -> Any:
    """All steps of a chunk, last to first. gates: activations in, their gradients out (the chunk after holds gradients).

    dh [B, R], dc [B, H]: gradients of the states after the chunk in, before it out; but dh still lacks the chunk's first
    step's part through W_hh, which the next call, or the caller at the end, adds. dout [steps, B, dout_row]: gradient of
    the outputs. first: no step follows the chunk. weights: W_hh packed by rows; projection: W_hr packed by rows;
    dp [steps, B, R]: gradient of h before the projection's inverse, out; spare [B, H].
    """
    plain, cell = make_plain(simd), make_cell_backward(simd)
    load, store, zeros, lanes, size = simd.load, simd.store, simd.splat(0.0), simd.lanes, simd.itemsize

    @device
    def unit(at, incoming, gates, c_prev, c, dc, ended, cut, fresh):
        """One vector of units of one row; `at` is its offset in rows of H."""
        if cut:
            store(dc + at, 0, zeros())
        if ended:
            for k in range(4):
                store(gates + 4 * at, k * lanes, zeros())
        else:
            cell(gates + 4 * at, c_prev + at, c + at, dc + at, incoming, fresh)

    def kernel(
        thread, threads, steps, batch, padded, width, reverse, time, first,
        gates, c, dout, dout_row, dh, dc, weights, projection, zeros_row, dp, lengths, clear, spare,
    ):  # fmt: skip
        begin, end = share(batch, thread, threads, 1)
        row_g, row_h, row_c, row_d = 4 * padded * size, width * size, padded * size, dout_row * size
        for s in range(steps):
            t = s if reverse != 0 else steps - 1 - s
            after = t - 1 if reverse != 0 else t + 1
            linked = first == 0 or s > 0
            g_t, g_after, d_t = gates + t * batch * row_g, gates + after * batch * row_g, dout + t * batch * row_d
            c_prev, c_next = c + (t + reverse) * batch * row_c, c + (t + 1 - reverse) * batch * row_c
            p_t = dp + t * batch * row_h
            for block in range(begin, end, BLOCK):
                stop = min(end, block + BLOCK)
                for v in range(0, width // lanes, 4):
                    v_end = min(v + 4, width // lanes)
                    if linked:
                        at = dh + block * row_h
                        plain(v, v_end, stop - block, 4 * padded, width, g_after + block * row_g, 4 * padded, weights,
                              at, width, at, width)  # fmt: skip
                    for r in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, r)
                        cut = linked and clear != 0 and get_u8(clear + after * batch, r) != 0
                        fresh = clear != 0 and get_u8(clear + t * batch, r) != 0
                        for u in range(v, v_end):
                            offset = u * lanes * size
                            at = dh + r * row_h + offset
                            total = zeros() if cut else load(at, 0)
                            if ended:
                                store(at, 0, total)
                                total = zeros()
                            else:
                                total = total + load(d_t + r * row_d + offset, 0)  # grad: out
                                store(at, 0, zeros())
                            if projection != 0:
                                store(p_t + r * row_h + offset, 0, total)
                            else:
                                unit(r * row_c + offset, total, g_t, c_prev, c_next, dc, ended, cut, fresh)
                if projection != 0:
                    dm = spare + block * row_c
                    plain(0, padded // lanes, stop - block, width, padded, p_t + block * row_h, width, projection,
                          zeros_row, 0, dm, padded)  # fmt: skip
                    for r in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, r)
                        cut = linked and clear != 0 and get_u8(clear + after * batch, r) != 0
                        fresh = clear != 0 and get_u8(clear + t * batch, r) != 0
                        for u in range(padded // lanes):
                            at = r * row_c + u * lanes * size
                            unit(at, load(spare + at, 0), g_t, c_prev, c_next, dc, ended, cut, fresh)

    return kernel
