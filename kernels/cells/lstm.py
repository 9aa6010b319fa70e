"""LSTM over a sequence, forward and backward (Hochreiter & Schmidhuber 1997; Gers et al. 2000; projection: Sak et al. 2014).

    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of (x W_ih' + b_ih + b_hh) + h_prev W_hh'
    c = f * c_prev + i * g        m = o * tanh(c)        h = m, or m W_hr' with a projection

Both kernels run `steps` steps of a chunk; threads share them as sequence.py says. Buffers, all time-major, rows padded to
whole vectors (H: hidden units, R: width of h, G: gates, all padded; padding of c, h and what products read stays zero):

    gates [steps, B, G]      x's part and the biases, interleaved (pack.py), in float32 and float64 in rows of kept_row; scratch
                             afterwards
    kept [steps, B, kept_row] words: activations, interleaved alike, then their gradients, as products read them (narrow.py)
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

from ..gemm import Panels, PlainPanels, Tile, block_rows, make_panels, make_plain, make_singles, make_tile, tile_rows
from ..operations import LstmBackward, LstmForward
from ..sequence import make_rows, rounded, rows_behind, rows_of, split, walk
from ..vector.activations import make_sigmoid_denominator, make_tanh, make_tanh_fraction
from ..vector.atomics import sync
from ..vector.lanes import make_ends, whole_or_not
from ..vector.narrow import make_operand, make_operand_ends
from ..vector.parts import device
from ..vector.simd import Simd, get_i64, get_u8


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

    def kernel(thread, threads, a: LstmForward):
        spare = a.spare
        padded, columns = rounded(a.hidden, lanes), rounded(4 * a.hidden, lanes)
        whole, gates_row = columns // wide, columns if narrow else a.kept_row
        begin, limit, first, last = split(a.units, a.batch, padded // lanes, 1, a.starts, a.steps, thread, threads)
        _, _, first_h, last_h = split(a.units, a.batch, a.width // lanes, 4, 0, 0, thread, threads)
        row_g, row_h, row_c, row_o, row_m = gates_row * size, a.width * size, padded * size, a.op_row * size, a.m_row * size
        local = spare + thread * most * wide * size
        spare += threads * most * wide * size
        if a.units != 0:
            spare += thread * a.batch * (row_o + row_c)
        n = 0
        for s in range(a.steps):
            t = a.steps - 1 - s if a.reverse != 0 else s
            own, before, after, rows = rows_of(t, a.batch, a.reverse, a.starts)
            end = min(limit, rows)
            g_t, kept_t = a.gates + own * row_g, a.kept + own * a.kept_row * size
            h_prev, h_next = a.h + before * row_h, a.h + after * row_h
            c_prev, c_next = a.c + before * row_c, a.c + after * row_c
            if a.starts == 0:
                slot = a.time + t + a.reverse
                next_slot = slot + 1 - 2 * a.reverse
                if a.c_slots == 2:
                    slot, next_slot = slot % 2, next_slot % 2
                c_prev, c_next = a.c + slot * a.batch * row_c, a.c + next_slot * a.batch * row_c
            op_prev, op_next = a.op + before * row_o, a.op + after * row_o
            op_from, c_from, m_t = op_prev, c_prev, a.m + own * row_m
            if a.ids != 0:
                gather(
                    (begin, end), (4 * first * lanes, min(4 * last * lanes, columns)), gates_row, a.ids + own * 4, a.table, g_t
                )
            if a.clear != 0:
                op_from, c_from = spare, spare + a.batch * row_o
                cleared((begin, end), (0, a.op_row), a.op_row, a.clear + own, op_prev, op_from)
                cleared((begin, end), (first * lanes, last * lanes), padded, a.clear + own, c_prev, c_from)
            single = not tiled and end - begin == 1
            if single:  # all products first: the cells that follow then overlap, where a row of them would wait for each other
                at, from_row, pairs = g_t + begin * row_g, op_from + begin * row_o, (min(last, whole) - first + 1) // 2
                for i in range(pairs):
                    p = first + 2 * walk(i, 0, pairs, s + a.reverse)
                    panels(
                        Panels(
                            begin=p,
                            end=min(p + 2, last, whole),
                            steps=1,
                            batch=0,
                            rows=1,
                            depth=a.depth,
                            a=from_row,
                            a_row=a.op_row,
                            b=a.weight,
                            c_in=at,
                            c_in_row=gates_row,
                            c=at,
                            c_row=gates_row,
                        )
                    )
                if last > whole:
                    singles(
                        Panels(
                            begin=4 * whole,
                            end=columns // lanes,
                            steps=1,
                            batch=0,
                            rows=1,
                            depth=a.depth,
                            a=from_row,
                            a_row=a.op_row,
                            b=a.weight,
                            c_in=at,
                            c_in_row=gates_row,
                            c=at,
                            c_row=gates_row,
                        )
                    )
            for i in range(first, last):
                p = walk(i, first, last, s + a.reverse)
                w_p, column = a.weight + p * wide * a.depth * size, p * lanes
                unit, count = column * size, min(lanes, a.hidden - column)
                row = begin
                while row < end:
                    n = next_tile(end - row, n)
                    at = g_t + row * row_g + 4 * unit
                    if not single:
                        if p < whole:
                            tile(
                                Tile(
                                    rows=n,
                                    a=op_from + row * row_o,
                                    a_row=a.op_row,
                                    a_k=1,
                                    b=w_p,
                                    b_k=wide,
                                    depth=a.depth,
                                    c_in=at,
                                    c_in_row=gates_row,
                                    c=local,
                                    c_row=wide,
                                    ahead=local,
                                )
                            )
                        else:
                            singles(
                                Panels(
                                    begin=4 * p,
                                    end=columns // lanes,
                                    steps=1,
                                    batch=0,
                                    rows=n,
                                    depth=a.depth,
                                    a=op_from + row * row_o,
                                    a_row=a.op_row,
                                    b=a.weight,
                                    c_in=at - 4 * unit,
                                    c_in_row=gates_row,
                                    c=local - 4 * unit,
                                    c_row=wide,
                                )
                            )
                        at = local
                    for r in range(row, row + n):
                        value = cell(
                            count,
                            at + (r - row) * wide * size,
                            c_from + r * row_c + unit,
                            c_next + r * row_c + unit,
                            kept_t + r * a.kept_row * size,
                            4 * column,
                            a.kept != 0,
                        )
                        if a.projection != 0:
                            keep(m_t + r * row_m, column, value)
                        else:
                            store(h_next + r * row_h, column, value)
                            if narrow:
                                keep(op_next + r * row_o, column, value)
                    row += n
            if a.projection != 0:
                if a.units != 0:
                    sync(a.barrier, threads)
                n = 0
                plain(
                    PlainPanels(
                        begin=first_h,
                        end=last_h,
                        steps=1,
                        batch=0,
                        rows=end - begin,
                        depth=a.m_depth,
                        columns=a.width,
                        a=m_t + begin * row_m,
                        a_row=a.m_row,
                        b=a.projection,
                        c_in=a.zeros,
                        c_in_row=0,
                        c=h_next + begin * row_h,
                        c_row=a.width,
                    )
                )
                if narrow:
                    for r in range(begin, end):
                        for u in range(first_h, last_h):
                            keep(op_next + r * row_o, u * lanes, load(h_next + r * row_h, u * lanes))
            if a.lengths != 0:
                if a.projection == 0:
                    first_h, last_h = first, last
                carry((begin, end), (first_h * lanes, last_h * lanes), a.width, a.time + t, a.lengths, h_prev, h_next)
                carry((begin, end), (first * lanes, last * lanes), padded, a.time + t, a.lengths, c_prev, c_next)
                if narrow:
                    carry_operand(
                        (begin, end), (first_h * lanes, last_h * lanes), a.op_row, a.time + t, a.lengths, op_prev, op_next
                    )
            if a.units != 0:
                sync(a.barrier, threads)

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
    the outputs. weight: W_hh packed by rows, `depth` deep; projection: W_hr packed by
    rows, `dp_depth` deep; dp [steps, B, dp_row] words: gradient of h before the projection's inverse, out; spare [B, H].
    """
    plain, cell, block_size = make_plain(simd), make_cell_backward(simd), block_rows(simd)
    (keep, _), (keep_first, _) = make_operand(simd), make_operand_ends(simd)
    load, store, zeros, lanes, size = simd.load, simd.store, simd.splat(0.0), simd.lanes, simd.itemsize
    several = 16 if simd.narrow == "amx" else 4

    @device
    def unit(at, incoming, kept, column, count, states, marks):
        """A vector of `count` units of one row; `at` is its offset in rows of H, kept its row.

        states: c before the step, c after it, and its gradient. marks: whether the row has ended, whether the state after the
        step was cleared, whether the one before it was.
        """
        c_prev, c, dc = states
        ended, cut, fresh = marks
        if cut:
            store(dc + at, 0, zeros())
        if ended:
            for k in range(4 * column, 4 * (column + count), count):
                keep_first(kept, k, k + count, zeros())
        else:
            cell(count, kept, 4 * column, c_prev + at, c + at, dc + at, incoming, fresh)

    def kernel(thread, threads, a: LstmBackward):
        padded = rounded(a.hidden, lanes)
        begin, limit, first_h, last_h = split(a.units, a.batch, a.width // lanes, 4, a.starts, a.steps, thread, threads)
        _, _, first, last = split(a.units, a.batch, padded // lanes, 4, 0, 0, thread, threads)
        row_k, row_h, row_c, row_d, row_p = a.kept_row * size, a.width * size, padded * size, a.dout_row * size, a.dp_row * size
        for s in range(a.steps):
            t = s if a.reverse != 0 else a.steps - 1 - s
            own, before, after, rows = rows_of(t, a.batch, a.reverse, a.starts)
            behind, linked = rows_behind(t, a.batch, a.reverse, a.start == 0 or s > 0, a.starts)
            end = min(limit, rows)
            group = max(1, last_h - first_h) if end - begin == 1 else several
            kept_t, kept_after, d_t = a.kept + own * row_k, a.kept + behind * row_k, a.dout + own * row_d
            c_prev, c_next, p_t = a.c + before * row_c, a.c + after * row_c, a.dp + own * row_p
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                for v in range(first_h, last_h, group):
                    v_end = min(v + group, last_h)
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
                                columns=a.width,
                                a=kept_after + block * row_k,
                                a_row=a.kept_row,
                                b=a.weight,
                                c_in=at,
                                c_in_row=a.width,
                                c=at,
                                c_row=a.width,
                            )
                        )
                    for r in range(block, stop):
                        ended = a.lengths != 0 and a.time + t >= get_i64(a.lengths, r)
                        cut = r < linked and a.clear != 0 and get_u8(a.clear + behind, r) != 0
                        fresh = a.clear != 0 and get_u8(a.clear + own, r) != 0
                        for u in range(v, v_end):
                            offset = u * lanes * size
                            at = a.dh + r * row_h + offset
                            total = zeros() if cut else load(at, 0)
                            if ended:
                                store(at, 0, total)
                                total = zeros()
                            else:
                                total = total + load(d_t + r * row_d + offset, 0)  # grad: out
                                store(at, 0, zeros())
                            if a.projection != 0:
                                keep(p_t + r * row_p, u * lanes, total)
                            else:
                                unit(
                                    r * row_c + offset,
                                    total,
                                    kept_t + r * row_k,
                                    u * lanes,
                                    min(lanes, a.hidden - u * lanes),
                                    (c_prev, c_next, a.dc),
                                    (ended, cut, fresh),
                                )
            if a.projection != 0:
                if a.units != 0:
                    sync(a.barrier, threads)
                for block in range(begin, end, block_size):
                    stop = min(end, block + block_size)
                    dm = a.spare + block * row_c
                    plain(
                        PlainPanels(
                            begin=first,
                            end=last,
                            steps=1,
                            batch=0,
                            rows=stop - block,
                            depth=a.dp_depth,
                            columns=padded,
                            a=p_t + block * row_p,
                            a_row=a.dp_row,
                            b=a.projection,
                            c_in=a.zeros,
                            c_in_row=0,
                            c=dm,
                            c_row=padded,
                        )
                    )
                    for r in range(block, stop):
                        ended = a.lengths != 0 and a.time + t >= get_i64(a.lengths, r)
                        cut = r < linked and a.clear != 0 and get_u8(a.clear + behind, r) != 0
                        fresh = a.clear != 0 and get_u8(a.clear + own, r) != 0
                        for u in range(first, last):
                            at = r * row_c + u * lanes * size
                            unit(
                                at,
                                load(a.spare + at, 0),
                                kept_t + r * row_k,
                                u * lanes,
                                min(lanes, a.hidden - u * lanes),
                                (c_prev, c_next, a.dc),
                                (ended, cut, fresh),
                            )
            if a.units != 0:
                sync(a.barrier, threads)

    return kernel
