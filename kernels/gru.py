"""GRU over a sequence, forward and backward, in both forms (Cho et al. 2014; reset_after: the form of cuDNN).

    r, z = sigmoid(x W_ir' + b_ir + h_prev W_hr' + b_hr), likewise z
    reset_after:  n = tanh(x W_in' + b_in + r * (h_prev W_hn' + b_hn))
    original:     n = tanh(x W_in' + b_in + b_hn + (r * h_prev) W_hn')
    h = (1 - z) * n + z * h_prev

Buffers as in lstm.py with three gates: gates [steps, B, 3H] hold x's part and the biases (b_hn not, with reset_after), then
r, z, n, after backward the gradients on x's side. side [steps, B, H] keeps what else backward needs: h_prev W_hn' + b_hn with
reset_after, r * h_prev in the original.
"""

from __future__ import annotations

from typing import Any

from .activations import make_sigmoid, make_tanh
from .gemm import BLOCK, make_plain, make_tile, next_tile, share, tile_rows
from .sequence import make_rows
from .simd import Simd, get_i64, get_u8


def forward(simd: Simd) -> Any:
    """All steps of a chunk with reset_after.

    weights: W_hh packed by columns, 3 gates; bias [H]: b_hn; spare [B, H] and, for each thread, one tile of scratch.
    """
    tile, most = make_tile(simd, 3), tile_rows(simd, 3)
    sigmoid, tanh, fma = make_sigmoid(simd), make_tanh(simd), simd.fma
    gather, cleared, carry = make_rows(simd)
    load, store, lanes, size = simd.load, simd.store, simd.lanes, simd.itemsize
    wide = 3 * lanes

    def kernel(
        thread, threads, steps, batch, hidden, padded, reverse, time, save,
        gates, side, h, weights, bias, ids, table, lengths, clear, spare,
    ):  # fmt: skip
        begin, end = share(batch, thread, threads, 1)
        row_g, row_h = 3 * padded * size, padded * size
        local = spare + batch * row_h + thread * most * wide * size
        for s in range(steps):
            t = steps - 1 - s if reverse != 0 else s
            g_t, side_t = gates + t * batch * row_g, side + t * batch * row_h
            h_prev, h_next = h + (t + reverse) * batch * row_h, h + (t + 1 - reverse) * batch * row_h
            h_from = h_prev
            if ids != 0:
                gather(begin, end, 3 * padded, ids + t * batch * 4, table, g_t)
            if clear != 0:
                h_from = spare
                cleared(begin, end, padded, clear + t * batch, h_prev, h_from)
            for p in range(padded // lanes):
                w_p, unit = weights + p * wide * hidden * size, p * lanes * size
                row = begin
                while row < end:
                    count = next_tile(end - row, most)
                    for i in range(count):
                        at = g_t + (row + i) * row_g + 3 * unit
                        store(local, i * wide, load(at, 0))
                        store(local, i * wide + lanes, load(at, lanes))
                        store(local, i * wide + 2 * lanes, load(bias + unit, 0))
                    tile(count, h_from + row * row_h, padded, 1, w_p, wide, hidden, local, wide, local, wide)
                    for i in range(count):
                        at, at_h = g_t + (row + i) * row_g + 3 * unit, (row + i) * row_h + unit
                        r, z = sigmoid(load(local, i * wide)), sigmoid(load(local, i * wide + lanes))
                        hn = load(local, i * wide + 2 * lanes)
                        n = tanh(fma(r, hn, load(at, 2 * lanes)))
                        store(h_next + at_h, 0, fma(z, load(h_from + at_h, 0) - n, n))
                        if save != 0:
                            store(at, 0, r)
                            store(at, lanes, z)
                            store(at, 2 * lanes, n)
                            store(side_t + at_h, 0, hn)
                    row += count
            if lengths != 0:
                carry(begin, end, padded, time + t, lengths, h_prev, h_next)

    return kernel


def backward(simd: Simd) -> Any:
    """All steps of a chunk with reset_after, last to first; arguments as the LSTM's.

    gates take the gradients on x's side, inner [steps, B, 3H] those on h's side: they differ in n by the factor r.
    """
    plain = make_plain(simd)
    load, store, one, zeros, lanes, size = simd.load, simd.store, simd.splat(1.0), simd.splat(0.0), simd.lanes, simd.itemsize

    def kernel(
        thread, threads, steps, batch, padded, reverse, time, first,
        gates, inner, side, h, dout, dout_row, dh, weights, lengths, clear,
    ):  # fmt: skip
        begin, end = share(batch, thread, threads, 1)
        row_g, row_h, row_d = 3 * padded * size, padded * size, dout_row * size
        for s in range(steps):
            t = s if reverse != 0 else steps - 1 - s
            after = t - 1 if reverse != 0 else t + 1
            linked = first == 0 or s > 0
            g_t, inner_t, inner_after = gates + t * batch * row_g, inner + t * batch * row_g, inner + after * batch * row_g
            side_t, d_t, h_prev = side + t * batch * row_h, dout + t * batch * row_d, h + (t + reverse) * batch * row_h
            for block in range(begin, end, BLOCK):
                stop = min(end, block + BLOCK)
                for v in range(0, padded // lanes, 4):
                    v_end = min(v + 4, padded // lanes)
                    if linked:
                        at = dh + block * row_h
                        plain(v, v_end, stop - block, 3 * padded, padded, inner_after + block * row_g, 3 * padded, weights,
                              at, padded, at, padded)  # fmt: skip
                    for row in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, row)
                        cut = linked and clear != 0 and get_u8(clear + after * batch, row) != 0
                        fresh = clear != 0 and get_u8(clear + t * batch, row) != 0
                        for u in range(v, v_end):
                            unit = u * lanes * size
                            at, g, i = dh + row * row_h + unit, g_t + row * row_g + 3 * unit, inner_t + row * row_g + 3 * unit
                            total = zeros() if cut else load(at, 0)
                            if ended:
                                store(at, 0, total)
                                for k in range(3):
                                    store(g, k * lanes, zeros())
                                    store(i, k * lanes, zeros())
                            else:
                                total = total + load(d_t + row * row_d + unit, 0)  # grad: out
                                r, z, n = load(g, 0), load(g, lanes), load(g, 2 * lanes)
                                before = zeros() if fresh else load(h_prev + row * row_h + unit, 0)
                                d_n = total * (one() - z) * (one() - n * n)  # grad: n
                                d_r = d_n * load(side_t + row * row_h + unit, 0) * (r * (one() - r))  # grad: r
                                d_z = total * (before - n) * (z * (one() - z))  # grad: z
                                store(g, 0, d_r)
                                store(g, lanes, d_z)
                                store(g, 2 * lanes, d_n)
                                store(i, 0, d_r)
                                store(i, lanes, d_z)
                                store(i, 2 * lanes, d_n * r)  # grad: hn
                                store(at, 0, total * z)  # grad: h_prev

    return kernel


def original_forward(simd: Simd) -> Any:
    """All steps of a chunk, reset before the product.

    weights: rows r, z of W_hh packed by columns, 2 gates; weights_n: the rest packed by columns, 1 gate; side is scratch as
    well; spare [B, H] and, for each thread, one tile of scratch.
    """
    tile, most, plain = make_tile(simd, 2), tile_rows(simd, 2), make_plain(simd)
    sigmoid, tanh, fma = make_sigmoid(simd), make_tanh(simd), simd.fma
    gather, cleared, carry = make_rows(simd)
    load, store, lanes, size = simd.load, simd.store, simd.lanes, simd.itemsize
    wide = 2 * lanes

    def kernel(
        thread, threads, steps, batch, hidden, padded, reverse, time,
        gates, side, h, weights, weights_n, ids, table, lengths, clear, spare,
    ):  # fmt: skip
        begin, end = share(batch, thread, threads, 1)
        row_g, row_h = 3 * padded * size, padded * size
        local = spare + batch * row_h + thread * most * wide * size
        for s in range(steps):
            t = steps - 1 - s if reverse != 0 else s
            g_t, side_t = gates + t * batch * row_g, side + t * batch * row_h
            h_prev, h_next = h + (t + reverse) * batch * row_h, h + (t + 1 - reverse) * batch * row_h
            h_from = h_prev
            if ids != 0:
                gather(begin, end, 3 * padded, ids + t * batch * 4, table, g_t)
            if clear != 0:
                h_from = spare
                cleared(begin, end, padded, clear + t * batch, h_prev, h_from)
            for p in range(padded // lanes):
                w_p, unit = weights + p * wide * hidden * size, p * lanes * size
                row = begin
                while row < end:
                    count = next_tile(end - row, most)
                    for i in range(count):
                        at = g_t + (row + i) * row_g + 3 * unit
                        store(local, i * wide, load(at, 0))
                        store(local, i * wide + lanes, load(at, lanes))
                    tile(count, h_from + row * row_h, padded, 1, w_p, wide, hidden, local, wide, local, wide)
                    for i in range(count):
                        at, at_h = g_t + (row + i) * row_g + 3 * unit, (row + i) * row_h + unit
                        r = sigmoid(load(local, i * wide))
                        store(at, 0, r)
                        store(at, lanes, sigmoid(load(local, i * wide + lanes)))
                        store(side_t + at_h, 0, r * load(h_from + at_h, 0))
                        # n's part of x waits where its sum is formed
                        store(h_next + at_h, 0, load(at, 2 * lanes))
                    row += count
            for block in range(begin, end, BLOCK):
                stop = min(end, block + BLOCK)
                for v in range(0, padded // lanes, 4):
                    v_end = min(v + 4, padded // lanes)
                    out = h_next + block * row_h
                    plain(v, v_end, stop - block, hidden, padded, side_t + block * row_h, padded, weights_n,
                          out, padded, out, padded)  # fmt: skip
                    for row in range(block, stop):
                        for u in range(v, v_end):
                            at, at_h = g_t + row * row_g + 3 * u * lanes * size, row * row_h + u * lanes * size
                            n = tanh(load(h_next + at_h, 0))
                            store(at, 2 * lanes, n)
                            store(h_next + at_h, 0, fma(load(at, lanes), load(h_from + at_h, 0) - n, n))
            if lengths != 0:
                carry(begin, end, padded, time + t, lengths, h_prev, h_next)

    return kernel


def original_backward(simd: Simd) -> Any:
    """All steps of a chunk, reset before the product, last to first; arguments as the LSTM's.

    weights: rows r, z of W_hh packed by rows, 2 gates; weights_n: the rest packed by rows. inner [steps, B, 2H] and
    inner_n [steps, B, H] take the gradients of r, z and of n once more, apart; spare [B, H]; zeros_row [H].
    """
    plain = make_plain(simd)
    load, store, one, zeros, lanes, size = simd.load, simd.store, simd.splat(1.0), simd.splat(0.0), simd.lanes, simd.itemsize

    def kernel(
        thread, threads, steps, batch, padded, reverse, time, first,
        gates, inner, inner_n, h, dout, dout_row, dh, weights, weights_n, zeros_row, lengths, clear, spare,
    ):  # fmt: skip
        begin, end = share(batch, thread, threads, 1)
        row_g, row_h, row_i, row_d = 3 * padded * size, padded * size, 2 * padded * size, dout_row * size
        for s in range(steps):
            t = s if reverse != 0 else steps - 1 - s
            after = t - 1 if reverse != 0 else t + 1
            linked = first == 0 or s > 0
            g_t, inner_t, inner_after = gates + t * batch * row_g, inner + t * batch * row_i, inner + after * batch * row_i
            n_t, d_t, h_prev = inner_n + t * batch * row_h, dout + t * batch * row_d, h + (t + reverse) * batch * row_h
            for block in range(begin, end, BLOCK):
                stop = min(end, block + BLOCK)
                for v in range(0, padded // lanes, 4):
                    v_end = min(v + 4, padded // lanes)
                    if linked:
                        at = dh + block * row_h
                        plain(v, v_end, stop - block, 2 * padded, padded, inner_after + block * row_i, 2 * padded, weights,
                              at, padded, at, padded)  # fmt: skip
                    for row in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, row)
                        cut = linked and clear != 0 and get_u8(clear + after * batch, row) != 0
                        fresh = clear != 0 and get_u8(clear + t * batch, row) != 0
                        for u in range(v, v_end):
                            unit = u * lanes * size
                            at, g = dh + row * row_h + unit, g_t + row * row_g + 3 * unit
                            total = zeros() if cut else load(at, 0)
                            if ended:
                                store(at, 0, total)
                                store(n_t + row * row_h + unit, 0, zeros())
                            else:
                                total = total + load(d_t + row * row_d + unit, 0)  # grad: out
                                z, n = load(g, lanes), load(g, 2 * lanes)
                                before = zeros() if fresh else load(h_prev + row * row_h + unit, 0)
                                d_n = total * (one() - z) * (one() - n * n)  # grad: n
                                store(g, lanes, total * (before - n) * (z * (one() - z)))  # grad: z
                                store(g, 2 * lanes, d_n)
                                store(n_t + row * row_h + unit, 0, d_n)
                                store(at, 0, total * z)  # grad: h_prev
                for v in range(0, padded // lanes, 4):
                    v_end = min(v + 4, padded // lanes)
                    plain(v, v_end, stop - block, padded, padded, n_t + block * row_h, padded, weights_n,
                          zeros_row, 0, spare + block * row_h, padded)  # fmt: skip
                    for row in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, row)
                        fresh = clear != 0 and get_u8(clear + t * batch, row) != 0
                        for u in range(v, v_end):
                            unit = u * lanes * size
                            at, g = dh + row * row_h + unit, g_t + row * row_g + 3 * unit
                            i = inner_t + row * row_i + 2 * unit
                            if ended:
                                for k in range(3):
                                    store(g, k * lanes, zeros())
                                store(i, 0, zeros())
                                store(i, lanes, zeros())
                            else:
                                r, d_rh = load(g, 0), load(spare + row * row_h + unit, 0)
                                before = zeros() if fresh else load(h_prev + row * row_h + unit, 0)
                                d_r = d_rh * before * (r * (one() - r))  # grad: r
                                store(at, 0, load(at, 0) + d_rh * r)  # grad: h_prev through r
                                store(g, 0, d_r)
                                store(i, 0, d_r)
                                store(i, lanes, load(g, lanes))

    return kernel
