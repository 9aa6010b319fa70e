"""LSTM over a sequence, forward and backward (Hochreiter & Schmidhuber 1997; Gers et al. 2000; projection: Sak et al. 2014).

    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of (x W_ih' + b_ih + b_hh) + h_prev W_hh'
    c = f * c_prev + i * g        m = o * tanh(c)        h = m, or m W_hr' with a projection

Both kernels run `steps` steps of a chunk; threads share them as sequence.py says. Buffers, all time-major, rows padded to
whole vectors (H: hidden units, R: width of h, G: gates, all padded; padding of c, h and what products read stays zero):

    gates [steps, B, G]      x's part and the biases, interleaved (pack.py), in float32 and float64 in rows of kept_row; scratch
                             afterwards
    kept [steps, B, kept_row] words: activations, interleaved alike, then their gradients, in the operands' form (operand.py)
    h [steps+1, B, R], c [steps+1, B, H]   states; step t reads slot t and writes t+1, in reverse reads t+1 and writes t
    op [steps+1, B, op_row]  words: h as products read it; in float32 and float64 it is h
    m [steps, B, m_row]      words: before the projection, as products read it; only with one
    lengths [B] int64, clear [steps, B] uint8 (the state counts as zero before the marked step), ids [steps, B] int32: each
                             0 for none
    starts [T + 3] int64     where the steps of a ragged batch begin (sequence.py); 0 for none
    time                     index of the chunk's first step in the sequence, which lengths count from
"""

from __future__ import annotations

from typing import Any

from .gemm import block_rows, make_panels, make_plain, make_singles, make_tile, tile_rows
from .sequence import make_rows, rounded, rows_behind, rows_of, split, walk
from .vector.activations import make_sigmoid_denominator, make_tanh, make_tanh_fraction
from .vector.atomics import sync
from .vector.lanes import make_ends, whole_or_not
from .vector.narrow import make_operand, make_operand_ends
from .vector.parts import device
from .vector.simd import Simd, get_i64, get_u8


def make_cell(simd: Simd) -> Any:
    """forward(count, gates, c_prev, c, kept, at, save) -> m: a vector of `count` units, places by the address of the first.

    kept: address of the row, `at` the first gate's column in it. Lanes without a unit come out as zero.
    """
    denominator, fraction, one = make_sigmoid_denominator(simd), make_tanh_fraction(simd), simd.splat(1.0)
    fma, load, store = simd.fma, simd.load, simd.store
    (read, _), (keep, _) = make_ends(simd), make_operand_ends(simd)

    def forward(count, gates, c_prev, c, kept, at, save):
        i_below = denominator(read(gates, 0, count))
        g_above, g_below = fraction(read(gates, 2 * count, 3 * count))
        f, o_below = one() / denominator(read(gates, count, 2 * count)), denominator(read(gates, 3 * count, 4 * count))
        i_g = one() / (i_below * g_below)
        c_new = fma(f, load(c_prev, 0), g_above * i_g)
        store(c, 0, c_new)
        c_above, c_below = fraction(c_new)
        o_c = one() / (o_below * c_below)
        if save:
            keep(kept, at, at + count, g_below * i_g)
            keep(kept, at + count, at + 2 * count, f)
            keep(kept, at + 2 * count, at + 3 * count, g_above * (i_below * i_g))
            keep(kept, at + 3 * count, at + 4 * count, c_below * o_c)
        return c_above * o_c

    return whole_or_not(simd, forward)


def forward(simd: Simd) -> Any:
    """All steps of a chunk. table [V, G]: with ids, gates[t, b] = table[ids[t, b]] first. kept 0: nothing is saved.

    c [c_slots, B, H]: two slots, taken in turn, which do where nothing is saved; or as many as the sequence has states.
    weights: W_hh packed by columns, 4 gates, `depth` deep; projection: W_hr packed by columns, `m_depth` deep (0: none);
    zeros [R]; spare: a tile of scratch for each thread, then for all, with `units` for each, [B, op_row + H].
    """
    (tile, next_tile), most, cell, plain = make_tile(simd, 4), tile_rows(simd, 4), make_cell(simd), make_plain(simd)
    gather, cleared, carry, carry_operand = make_rows(simd)
    keep, _ = make_operand(simd)
    load, store, lanes, size, narrow = simd.load, simd.store, simd.lanes, simd.itemsize, bool(simd.narrow)
    wide, panels, singles, tiled = 4 * lanes, make_panels(simd, 4), make_singles(simd), simd.narrow == "amx"

    def kernel(
        thread,
        threads,
        steps,
        batch,
        hidden,
        width,
        depth,
        op_row,
        reverse,
        time,
        units,
        barrier,
        gates,
        kept,
        kept_row,
        h,
        op,
        c,
        c_slots,
        m,
        m_row,
        m_depth,
        weights,
        projection,
        zeros,
        ids,
        table,
        lengths,
        clear,
        starts,
        spare,
    ):
        padded, columns = rounded(hidden, lanes), rounded(4 * hidden, lanes)
        whole, gates_row = columns // wide, columns if narrow else kept_row
        begin, limit, first, last = split(units, batch, padded // lanes, 1, starts, steps, thread, threads)
        _, _, first_h, last_h = split(units, batch, width // lanes, 4, 0, 0, thread, threads)
        row_g, row_h, row_c, row_o, row_m = gates_row * size, width * size, padded * size, op_row * size, m_row * size
        local = spare + thread * most * wide * size
        spare += threads * most * wide * size
        if units != 0:
            spare += thread * batch * (row_o + row_c)
        n = 0
        for s in range(steps):
            t = steps - 1 - s if reverse != 0 else s
            own, before, after, rows = rows_of(t, batch, reverse, starts)
            end = min(limit, rows)
            g_t, kept_t = gates + own * row_g, kept + own * kept_row * size
            h_prev, h_next = h + before * row_h, h + after * row_h
            c_prev, c_next = c + before * row_c, c + after * row_c
            if starts == 0:
                slot = time + t + reverse
                next_slot = slot + 1 - 2 * reverse
                if c_slots == 2:
                    slot, next_slot = slot % 2, next_slot % 2
                c_prev, c_next = c + slot * batch * row_c, c + next_slot * batch * row_c
            op_prev, op_next = op + before * row_o, op + after * row_o
            op_from, c_from, m_t = op_prev, c_prev, m + own * row_m
            if ids != 0:
                gather(begin, end, 4 * first * lanes, min(4 * last * lanes, columns), gates_row, ids + own * 4, table, g_t)
            if clear != 0:
                op_from, c_from = spare, spare + batch * row_o
                cleared(begin, end, 0, op_row, op_row, clear + own, op_prev, op_from)
                cleared(begin, end, first * lanes, last * lanes, padded, clear + own, c_prev, c_from)
            single = not tiled and end - begin == 1
            if single:  # all products first: the cells that follow then overlap, where a row of them would wait for each other
                at, from_row, pairs = g_t + begin * row_g, op_from + begin * row_o, (min(last, whole) - first + 1) // 2
                for i in range(pairs):
                    p = first + 2 * walk(i, 0, pairs, s + reverse)
                    panels(p, min(p + 2, last, whole), 1, 0, 1, depth, from_row, op_row, weights, at, gates_row, at, gates_row)
                if last > whole:
                    singles(
                        4 * whole, columns // lanes, 1, 0, 1, depth, from_row, op_row, weights, at, gates_row, at, gates_row
                    )
            for i in range(first, last):
                p = walk(i, first, last, s + reverse)
                w_p, column = weights + p * wide * depth * size, p * lanes
                unit, count = column * size, min(lanes, hidden - column)
                row = begin
                while row < end:
                    n = next_tile(end - row, n)
                    at = g_t + row * row_g + 4 * unit
                    if not single:
                        if p < whole:
                            tile(n, op_from + row * row_o, op_row, 1, w_p, wide, depth, at, gates_row, local, wide, local)
                        else:
                            singles(
                                4 * p,
                                columns // lanes,
                                1,
                                0,
                                n,
                                depth,
                                op_from + row * row_o,
                                op_row,
                                weights,
                                at - 4 * unit,
                                gates_row,
                                local - 4 * unit,
                                wide,
                            )
                        at = local
                    for r in range(row, row + n):
                        value = cell(
                            count,
                            at + (r - row) * wide * size,
                            c_from + r * row_c + unit,
                            c_next + r * row_c + unit,
                            kept_t + r * kept_row * size,
                            4 * column,
                            kept != 0,
                        )
                        if projection != 0:
                            keep(m_t + r * row_m, column, value)
                        else:
                            store(h_next + r * row_h, column, value)
                            if narrow:
                                keep(op_next + r * row_o, column, value)
                    row += n
            if projection != 0:
                if units != 0:
                    sync(barrier, threads)
                n = 0
                plain(
                    first_h,
                    last_h,
                    1,
                    0,
                    end - begin,
                    m_depth,
                    width,
                    m_t + begin * row_m,
                    m_row,
                    projection,
                    zeros,
                    0,
                    h_next + begin * row_h,
                    width,
                )
                if narrow:
                    for r in range(begin, end):
                        for u in range(first_h, last_h):
                            keep(op_next + r * row_o, u * lanes, load(h_next + r * row_h, u * lanes))
            if lengths != 0:
                if projection == 0:
                    first_h, last_h = first, last
                carry(begin, end, first_h * lanes, last_h * lanes, width, time + t, lengths, h_prev, h_next)
                carry(begin, end, first * lanes, last * lanes, padded, time + t, lengths, c_prev, c_next)
                if narrow:
                    carry_operand(begin, end, first_h * lanes, last_h * lanes, op_row, time + t, lengths, op_prev, op_next)
            if units != 0:
                sync(barrier, threads)

    return kernel


def make_cell_backward(simd: Simd) -> Any:
    """backward(count, kept, at, c_prev, c, dc, dh, fresh): gradients of `count` units; kept holds i, f, g, o, takes theirs."""
    tanh, load, store = make_tanh(simd), simd.load, simd.store
    keep, recall = make_operand_ends(simd)
    one, zeros = simd.splat(1.0), simd.splat(0.0)

    def backward(count, kept, at, c_prev, c, dc, dh, fresh):
        at_f, at_g, at_o, end = at + count, at + 2 * count, at + 3 * count, at + 4 * count
        i, f, g, o = recall(kept, at, at_f), recall(kept, at_f, at_g), recall(kept, at_g, at_o), recall(kept, at_o, end)
        tc = tanh(load(c, 0))
        before = zeros() if fresh else load(c_prev, 0)
        d_c = load(dc, 0) + dh * o * (one() - tc * tc)  # grad: c
        keep(kept, at, at_f, d_c * g * (i * (one() - i)))  # grad: i
        keep(kept, at_f, at_g, d_c * before * (f * (one() - f)))  # grad: f
        keep(kept, at_g, at_o, d_c * i * (one() - g * g))  # grad: g
        keep(kept, at_o, end, dh * tc * (o * (one() - o)))  # grad: o
        store(dc, 0, d_c * f)  # grad: c_prev

    return whole_or_not(simd, backward)


def backward(simd: Simd) -> Any:
    """All steps of a chunk, last to first. kept: activations in, their gradients out (the chunk after holds gradients).

    dh [B, R], dc [B, H]: gradients of the states after the chunk in, before it out; but dh still lacks the chunk's first
    step's part through W_hh, which the next call, or the caller at the end, adds. dout [steps, B, dout_row]: gradient of
    the outputs. first: no step follows the chunk. weights: W_hh packed by rows, `depth` deep; projection: W_hr packed by
    rows, `dp_depth` deep; dp [steps, B, dp_row] words: gradient of h before the projection's inverse, out; spare [B, H].
    """
    plain, cell, block_size = make_plain(simd), make_cell_backward(simd), block_rows(simd)
    (keep, _), (keep_first, _) = make_operand(simd), make_operand_ends(simd)
    load, store, zeros, lanes, size = simd.load, simd.store, simd.splat(0.0), simd.lanes, simd.itemsize
    several = 16 if simd.narrow == "amx" else 4

    @device
    def unit(at, incoming, kept, column, count, c_prev, c, dc, ended, cut, fresh):
        """A vector of `count` units of one row; `at` is its offset in rows of H, kept its row."""
        if cut:
            store(dc + at, 0, zeros())
        if ended:
            for k in range(4 * column, 4 * (column + count), count):
                keep_first(kept, k, k + count, zeros())
        else:
            cell(count, kept, 4 * column, c_prev + at, c + at, dc + at, incoming, fresh)

    def kernel(
        thread,
        threads,
        steps,
        batch,
        hidden,
        width,
        depth,
        reverse,
        time,
        start,
        units,
        barrier,
        kept,
        kept_row,
        c,
        dout,
        dout_row,
        dh,
        dc,
        weights,
        projection,
        zeros_row,
        dp,
        dp_row,
        dp_depth,
        lengths,
        clear,
        starts,
        spare,
    ):
        padded = rounded(hidden, lanes)
        begin, limit, first_h, last_h = split(units, batch, width // lanes, 4, starts, steps, thread, threads)
        _, _, first, last = split(units, batch, padded // lanes, 4, 0, 0, thread, threads)
        row_k, row_h, row_c, row_d, row_p = kept_row * size, width * size, padded * size, dout_row * size, dp_row * size
        for s in range(steps):
            t = s if reverse != 0 else steps - 1 - s
            own, before, after, rows = rows_of(t, batch, reverse, starts)
            behind, linked = rows_behind(t, batch, reverse, start == 0 or s > 0, starts)
            end = min(limit, rows)
            group = max(1, last_h - first_h) if end - begin == 1 else several
            kept_t, kept_after, d_t = kept + own * row_k, kept + behind * row_k, dout + own * row_d
            c_prev, c_next, p_t = c + before * row_c, c + after * row_c, dp + own * row_p
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                for v in range(first_h, last_h, group):
                    v_end = min(v + group, last_h)
                    if linked > block:
                        at = dh + block * row_h
                        plain(
                            v,
                            v_end,
                            1,
                            0,
                            min(stop, linked) - block,
                            depth,
                            width,
                            kept_after + block * row_k,
                            kept_row,
                            weights,
                            at,
                            width,
                            at,
                            width,
                        )
                    for r in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, r)
                        cut = r < linked and clear != 0 and get_u8(clear + behind, r) != 0
                        fresh = clear != 0 and get_u8(clear + own, r) != 0
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
                                keep(p_t + r * row_p, u * lanes, total)
                            else:
                                unit(
                                    r * row_c + offset,
                                    total,
                                    kept_t + r * row_k,
                                    u * lanes,
                                    min(lanes, hidden - u * lanes),
                                    c_prev,
                                    c_next,
                                    dc,
                                    ended,
                                    cut,
                                    fresh,
                                )
            if projection != 0:
                if units != 0:
                    sync(barrier, threads)
                for block in range(begin, end, block_size):
                    stop = min(end, block + block_size)
                    dm = spare + block * row_c
                    plain(
                        first,
                        last,
                        1,
                        0,
                        stop - block,
                        dp_depth,
                        padded,
                        p_t + block * row_p,
                        dp_row,
                        projection,
                        zeros_row,
                        0,
                        dm,
                        padded,
                    )
                    for r in range(block, stop):
                        ended = lengths != 0 and time + t >= get_i64(lengths, r)
                        cut = r < linked and clear != 0 and get_u8(clear + behind, r) != 0
                        fresh = clear != 0 and get_u8(clear + own, r) != 0
                        for u in range(first, last):
                            at = r * row_c + u * lanes * size
                            unit(
                                at,
                                load(spare + at, 0),
                                kept_t + r * row_k,
                                u * lanes,
                                min(lanes, hidden - u * lanes),
                                c_prev,
                                c_next,
                                dc,
                                ended,
                                cut,
                                fresh,
                            )
            if units != 0:
                sync(barrier, threads)

    return kernel
