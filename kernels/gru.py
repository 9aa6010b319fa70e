"""GRU over a sequence, forward and backward, in both forms (Cho et al. 2014; reset_after: the form of cuDNN).

    r, z = sigmoid(x W_ir' + b_ir + h_prev W_hr' + b_hr), likewise z
    reset_after:  n = tanh(x W_in' + b_in + r * (h_prev W_hn' + b_hn))
    original:     n = tanh(x W_in' + b_in + b_hn + (r * h_prev) W_hn')
    h = (1 - z) * n + z * h_prev

Buffers as in lstm.py with three gates: gates [steps, B, 3H] hold x's part and the biases (b_hn not, with reset_after); kept
takes r, z, n, in backward the gradients on x's side. side [steps, B, side_row] words keeps what else backward needs, in the
operands' form: h_prev W_hn' + b_hn with reset_after, r * h_prev in the original, whose product reads it.
"""

from __future__ import annotations

from typing import Any

from .activations import make_sigmoid, make_tanh
from .atomics import sync
from .compile import device
from .gemm import block_rows, make_panels, make_plain, make_tile, tile_rows
from .operand import make_operand
from .sequence import make_rows, split, walk
from .simd import Simd, get_i64, get_u8


def forward(simd: Simd) -> Any:
    """All steps of a chunk with reset_after. kept and side 0: nothing is saved.

    weights: W_hh packed by columns, 3 gates; bias [H]: b_hn; spare: a tile or a row of scratch for each thread, then as
    the LSTM's.
    """
    (tile, next_tile), most = make_tile(simd, 3), tile_rows(simd, 3)
    sigmoid, tanh, fma = make_sigmoid(simd), make_tanh(simd), simd.fma
    gather, cleared, carry, carry_operand = make_rows(simd)
    keep, _ = make_operand(simd)
    load, store, lanes, size, narrow = simd.load, simd.store, simd.lanes, simd.itemsize, bool(simd.narrow)
    wide, panels, tiled = 3 * lanes, make_panels(simd, 3), simd.narrow == "amx"

    @device
    def take(gates, bias, sums):
        """What the sums of a vector of units begin with: x's part of r and z, the bias of n's other part."""
        store(sums, 0, load(gates, 0))
        store(sums, lanes, load(gates, lanes))
        store(sums, 2 * lanes, load(bias, 0))

    def kernel(
        thread, threads, steps, batch, padded, depth, op_row, reverse, time, units, barrier,
        gates, kept, kept_row, side, side_row, h, op, weights, bias, ids, table, lengths, clear, spare,
    ):  # fmt: skip
        begin, end, first, last = split(units, batch, padded // lanes, 1, thread, threads)
        row_g, row_k, row_s, row_h, row_o = 3 * padded * size, kept_row * size, side_row * size, padded * size, op_row * size
        own = max(most * wide, 3 * padded) * size
        local = spare + thread * own
        spare += threads * own
        if units != 0:
            spare += thread * batch * (row_o + row_h)
        n = 0
        for s in range(steps):
            t = steps - 1 - s if reverse != 0 else s
            before, after = (t + reverse) * batch, (t + 1 - reverse) * batch
            g_t, kept_t, side_t = gates + t * batch * row_g, kept + t * batch * row_k, side + t * batch * row_s
            h_prev, h_next, op_prev, op_next = h + before * row_h, h + after * row_h, op + before * row_o, op + after * row_o
            h_from, op_from = h_prev, op_prev
            if ids != 0:
                gather(begin, end, 3 * first * lanes, 3 * last * lanes, 3 * padded, ids + t * batch * 4, table, g_t)
            if clear != 0:
                op_from, h_from = spare, spare + batch * row_o
                cleared(begin, end, 0, op_row, op_row, clear + t * batch, op_prev, op_from)
                cleared(begin, end, first * lanes, last * lanes, padded, clear + t * batch, h_prev, h_from)
            single = not tiled and end - begin == 1
            if single:  # as in the LSTM
                pairs, at = (last - first + 1) // 2, g_t + begin * row_g
                for k in range(first, last):
                    take(at + k * wide * size, bias + k * lanes * size, local + k * wide * size)
                for k in range(pairs):
                    p = first + 2 * walk(k, 0, pairs, s + reverse)
                    panels(p, min(p + 2, last), 1, 0, 1, depth, op_from + begin * row_o, op_row, weights,
                           local, 3 * padded, local, 3 * padded)  # fmt: skip
            for k in range(first, last):
                p = walk(k, first, last, s + reverse)
                w_p, column = weights + p * wide * depth * size, p * lanes
                unit, sums = column * size, local
                if single:
                    sums += 3 * unit
                row = begin
                while row < end:
                    n = next_tile(end - row, n)
                    if not single:
                        for i in range(n):
                            take(g_t + (row + i) * row_g + 3 * unit, bias + unit, sums + i * wide * size)
                        tile(n, op_from + row * row_o, op_row, 1, w_p, wide, depth, sums, wide, sums, wide, sums)
                    for i in range(n):
                        at, at_h = g_t + (row + i) * row_g + 3 * unit, (row + i) * row_h + unit
                        r, z = sigmoid(load(sums, i * wide)), sigmoid(load(sums, i * wide + lanes))
                        hn = load(sums, i * wide + 2 * lanes)
                        new = tanh(fma(r, hn, load(at, 2 * lanes)))
                        value = fma(z, load(h_from + at_h, 0) - new, new)
                        store(h_next + at_h, 0, value)
                        if narrow:
                            keep(op_next + (row + i) * row_o, column, value)
                        if kept != 0:
                            at_k = kept_t + (row + i) * row_k
                            keep(at_k, 3 * column, r)
                            keep(at_k, 3 * column + lanes, z)
                            keep(at_k, 3 * column + 2 * lanes, new)
                            keep(side_t + (row + i) * row_s, column, hn)
                    row += n
            if lengths != 0:
                carry(begin, end, first * lanes, last * lanes, padded, time + t, lengths, h_prev, h_next)
                if narrow:
                    carry_operand(begin, end, first * lanes, last * lanes, op_row, time + t, lengths, op_prev, op_next)
            if units != 0:
                sync(barrier, threads)

    return kernel


def backward(simd: Simd) -> Any:
    """All steps of a chunk with reset_after, last to first; arguments as the LSTM's.

    kept takes the gradients on x's side, inner [steps, B, kept_row] those on h's side: they differ in n by the factor r.
    """
    plain, block_size = make_plain(simd), block_rows(simd)
    keep, recall = make_operand(simd)
    load, store, one, zeros, lanes, size = simd.load, simd.store, simd.splat(1.0), simd.splat(0.0), simd.lanes, simd.itemsize
    several = 16 if simd.narrow == "amx" else 4

    def kernel(
        thread, threads, steps, batch, padded, depth, reverse, time, start, units, barrier,
        kept, inner, kept_row, side, side_row, h, dout, dout_row, dh, weights, lengths, clear,
    ):  # fmt: skip
        begin, end, first, last = split(units, batch, padded // lanes, 4, thread, threads)
        group = max(1, last - first) if end - begin == 1 else several
        row_k, row_s, row_h, row_d = kept_row * size, side_row * size, padded * size, dout_row * size
        for s in range(steps):
            t = s if reverse != 0 else steps - 1 - s
            after = t - 1 if reverse != 0 else t + 1
            linked = start == 0 or s > 0
            kept_t, inner_t, inner_after = kept + t * batch * row_k, inner + t * batch * row_k, inner + after * batch * row_k
            side_t, d_t, h_prev = side + t * batch * row_s, dout + t * batch * row_d, h + (t + reverse) * batch * row_h
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                for v in range(first, last, group):
                    v_end = min(v + group, last)
                    if linked:
                        at = dh + block * row_h
                        plain(v, v_end, 1, 0, stop - block, depth, padded, inner_after + block * row_k, kept_row, weights,
                              at, padded, at, padded)  # fmt: skip
                    for row in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, row)
                        cut = linked and clear != 0 and get_u8(clear + after * batch, row) != 0
                        fresh = clear != 0 and get_u8(clear + t * batch, row) != 0
                        g, i = kept_t + row * row_k, inner_t + row * row_k
                        for u in range(v, v_end):
                            unit, column = u * lanes * size, 3 * u * lanes
                            at = dh + row * row_h + unit
                            total = zeros() if cut else load(at, 0)
                            if ended:
                                store(at, 0, total)
                                for k in range(3):
                                    keep(g, column + k * lanes, zeros())
                                    keep(i, column + k * lanes, zeros())
                            else:
                                total = total + load(d_t + row * row_d + unit, 0)  # grad: out
                                r, z, n = recall(g, column), recall(g, column + lanes), recall(g, column + 2 * lanes)
                                before = zeros() if fresh else load(h_prev + row * row_h + unit, 0)
                                d_n = total * (one() - z) * (one() - n * n)  # grad: n
                                d_r = d_n * recall(side_t + row * row_s, u * lanes) * (r * (one() - r))  # grad: r
                                d_z = total * (before - n) * (z * (one() - z))  # grad: z
                                keep(g, column, d_r)
                                keep(g, column + lanes, d_z)
                                keep(g, column + 2 * lanes, d_n)
                                keep(i, column, d_r)
                                keep(i, column + lanes, d_z)
                                keep(i, column + 2 * lanes, d_n * r)  # grad: hn
                                store(at, 0, total * z)  # grad: h_prev
            if units != 0:
                sync(barrier, threads)

    return kernel


def original_forward(simd: Simd) -> Any:
    """All steps of a chunk, reset before the product. kept 0: r, z and n are not saved; side is needed all the same.

    weights: rows r, z of W_hh packed by columns, 2 gates; weights_n: the rest packed by columns, 1 gate; spare as in forward.
    """
    (tile, next_tile), most, plain, block_size = make_tile(simd, 2), tile_rows(simd, 2), make_plain(simd), block_rows(simd)
    sigmoid, tanh, fma = make_sigmoid(simd), make_tanh(simd), simd.fma
    gather, cleared, carry, carry_operand = make_rows(simd)
    keep, _ = make_operand(simd)
    load, store, lanes, size, narrow = simd.load, simd.store, simd.lanes, simd.itemsize, bool(simd.narrow)
    wide = 2 * lanes

    def kernel(
        thread, threads, steps, batch, padded, depth, op_row, reverse, time, units, barrier,
        gates, kept, kept_row, side, side_row, h, op, weights, weights_n, ids, table, lengths, clear, spare,
    ):  # fmt: skip
        begin, end, first, last = split(units, batch, padded // lanes, 4, thread, threads)
        group = max(1, last - first) if end - begin == 1 else 4
        row_g, row_k, row_s, row_h, row_o = 3 * padded * size, kept_row * size, side_row * size, padded * size, op_row * size
        local = spare + thread * most * wide * size
        spare += threads * most * wide * size
        if units != 0:
            spare += thread * batch * (row_o + row_h)
        for s in range(steps):
            t = steps - 1 - s if reverse != 0 else s
            before, after = (t + reverse) * batch, (t + 1 - reverse) * batch
            g_t, kept_t, side_t = gates + t * batch * row_g, kept + t * batch * row_k, side + t * batch * row_s
            h_prev, h_next, op_prev, op_next = h + before * row_h, h + after * row_h, op + before * row_o, op + after * row_o
            h_from, op_from = h_prev, op_prev
            if ids != 0:
                gather(begin, end, 3 * first * lanes, 3 * last * lanes, 3 * padded, ids + t * batch * 4, table, g_t)
            if clear != 0:
                op_from, h_from = spare, spare + batch * row_o
                cleared(begin, end, 0, op_row, op_row, clear + t * batch, op_prev, op_from)
                cleared(begin, end, first * lanes, last * lanes, padded, clear + t * batch, h_prev, h_from)
            n = 0
            for p in range(first, last):
                w_p, column = weights + p * wide * depth * size, p * lanes
                unit = column * size
                row = begin
                while row < end:
                    n = next_tile(end - row, n)
                    for i in range(n):
                        at = g_t + (row + i) * row_g + 3 * unit
                        store(local, i * wide, load(at, 0))
                        store(local, i * wide + lanes, load(at, lanes))
                    tile(n, op_from + row * row_o, op_row, 1, w_p, wide, depth, local, wide, local, wide, local)
                    for i in range(n):
                        at, at_h = g_t + (row + i) * row_g + 3 * unit, (row + i) * row_h + unit
                        r, z = sigmoid(load(local, i * wide)), sigmoid(load(local, i * wide + lanes))
                        store(at, lanes, z)
                        if kept != 0:
                            keep(kept_t + (row + i) * row_k, 3 * column, r)
                            keep(kept_t + (row + i) * row_k, 3 * column + lanes, z)
                        keep(side_t + (row + i) * row_s, column, r * load(h_from + at_h, 0))
                        # n's part of x waits where its sum is formed
                        store(h_next + at_h, 0, load(at, 2 * lanes))
                    row += n
            if units != 0:
                sync(barrier, threads)
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                for v in range(first, last, group):
                    v_end = min(v + group, last)
                    out = h_next + block * row_h
                    plain(v, v_end, 1, 0, stop - block, depth, padded, side_t + block * row_s, side_row, weights_n,
                          out, padded, out, padded)  # fmt: skip
                    for row in range(block, stop):
                        for u in range(v, v_end):
                            at, at_h = g_t + row * row_g + 3 * u * lanes * size, row * row_h + u * lanes * size
                            new = tanh(load(h_next + at_h, 0))
                            value = fma(load(at, lanes), load(h_from + at_h, 0) - new, new)
                            store(h_next + at_h, 0, value)
                            if kept != 0:
                                keep(kept_t + row * row_k, (3 * u + 2) * lanes, new)
                            if narrow:
                                keep(op_next + row * row_o, u * lanes, value)
            if lengths != 0:
                carry(begin, end, first * lanes, last * lanes, padded, time + t, lengths, h_prev, h_next)
                if narrow:
                    carry_operand(begin, end, first * lanes, last * lanes, op_row, time + t, lengths, op_prev, op_next)
            if units != 0:
                sync(barrier, threads)

    return kernel


def original_backward(simd: Simd) -> Any:
    """All steps of a chunk, reset before the product, last to first; arguments as the LSTM's.

    weights: rows r, z of W_hh packed by rows, 2 gates, `depth` deep; weights_n: the rest packed by rows, `side_depth` deep.
    inner [steps, B, inner_row] and inner_n [steps, B, side_row], words, take the gradients of r, z and of n once more,
    apart; spare [B, H]; zeros_row [H].
    """
    plain, block_size = make_plain(simd), block_rows(simd)
    keep, recall = make_operand(simd)
    load, store, one, zeros, lanes, size = simd.load, simd.store, simd.splat(1.0), simd.splat(0.0), simd.lanes, simd.itemsize

    def kernel(
        thread, threads, steps, batch, padded, depth, side_depth, reverse, time, start, units, barrier,
        kept, kept_row, inner, inner_row, inner_n, side_row, h, dout, dout_row, dh, weights, weights_n, zeros_row, lengths,
        clear, spare,
    ):  # fmt: skip
        begin, end, first, last = split(units, batch, padded // lanes, 4, thread, threads)
        group = max(1, last - first) if end - begin == 1 else 4
        row_k, row_i, row_s, row_h, row_d = kept_row * size, inner_row * size, side_row * size, padded * size, dout_row * size
        for s in range(steps):
            t = s if reverse != 0 else steps - 1 - s
            after = t - 1 if reverse != 0 else t + 1
            linked = start == 0 or s > 0
            kept_t, inner_t, inner_after = kept + t * batch * row_k, inner + t * batch * row_i, inner + after * batch * row_i
            n_t, d_t, h_prev = inner_n + t * batch * row_s, dout + t * batch * row_d, h + (t + reverse) * batch * row_h
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                for v in range(first, last, group):
                    v_end = min(v + group, last)
                    if linked:
                        at = dh + block * row_h
                        plain(v, v_end, 1, 0, stop - block, depth, padded, inner_after + block * row_i, inner_row, weights,
                              at, padded, at, padded)  # fmt: skip
                    for row in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, row)
                        cut = linked and clear != 0 and get_u8(clear + after * batch, row) != 0
                        fresh = clear != 0 and get_u8(clear + t * batch, row) != 0
                        g = kept_t + row * row_k
                        for u in range(v, v_end):
                            unit, column = u * lanes * size, 3 * u * lanes
                            at = dh + row * row_h + unit
                            total = zeros() if cut else load(at, 0)
                            if ended:
                                store(at, 0, total)
                                keep(n_t + row * row_s, u * lanes, zeros())
                            else:
                                total = total + load(d_t + row * row_d + unit, 0)  # grad: out
                                z, n = recall(g, column + lanes), recall(g, column + 2 * lanes)
                                before = zeros() if fresh else load(h_prev + row * row_h + unit, 0)
                                d_n = total * (one() - z) * (one() - n * n)  # grad: n
                                keep(g, column + lanes, total * (before - n) * (z * (one() - z)))  # grad: z
                                keep(g, column + 2 * lanes, d_n)
                                keep(n_t + row * row_s, u * lanes, d_n)
                                store(at, 0, total * z)  # grad: h_prev
            if units != 0:
                sync(barrier, threads)
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                for v in range(first, last, group):
                    v_end = min(v + group, last)
                    plain(v, v_end, 1, 0, stop - block, side_depth, padded, n_t + block * row_s, side_row, weights_n,
                          zeros_row, 0, spare + block * row_h, padded)  # fmt: skip
                    for row in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, row)
                        fresh = clear != 0 and get_u8(clear + t * batch, row) != 0
                        g, i = kept_t + row * row_k, inner_t + row * row_i
                        for u in range(v, v_end):
                            unit, column = u * lanes * size, 3 * u * lanes
                            at = dh + row * row_h + unit
                            if ended:
                                for k in range(3):
                                    keep(g, column + k * lanes, zeros())
                                keep(i, 2 * u * lanes, zeros())
                                keep(i, 2 * u * lanes + lanes, zeros())
                            else:
                                r, d_rh = recall(g, column), load(spare + row * row_h + unit, 0)
                                before = zeros() if fresh else load(h_prev + row * row_h + unit, 0)
                                d_r = d_rh * before * (r * (one() - r))  # grad: r
                                store(at, 0, load(at, 0) + d_rh * r)  # grad: h_prev through r
                                keep(g, column, d_r)
                                keep(i, 2 * u * lanes, d_r)
                                keep(i, 2 * u * lanes + lanes, recall(g, column + lanes))
            if units != 0:
                sync(barrier, threads)

    return kernel
