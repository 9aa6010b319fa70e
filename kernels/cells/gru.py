"""GRU over a sequence, forward and backward, in both forms (Cho et al. 2014; reset_after: the form of cuDNN).

    r, z = sigmoid(x W_ir' + b_ir + h_prev W_hr' + b_hr), likewise z
    reset_after:  n = tanh(x W_in' + b_in + r * (h_prev W_hn' + b_hn))
    original:     n = tanh(x W_in' + b_in + b_hn + (r * h_prev) W_hn')
    h = (1 - z) * n + z * h_prev

Buffers as in lstm.py with three gates: gates [steps, B, G] hold x's part and the biases (b_hn not, with reset_after); kept
takes r, z, n, in backward the gradients on x's side. side [steps, B, side_row] words keeps what else backward needs, in the
operands' form: h_prev W_hn' + b_hn with reset_after, r * h_prev in the original, whose product reads it.
"""

from __future__ import annotations

from typing import Any

from ..gemm import Panels, PlainPanels, Tile, block_rows, make_panels, make_plain, make_singles, make_tile, tile_rows
from ..operations import GruBackward, GruForward, GruOriginalBackward, GruOriginalForward
from ..sequence import make_rows, rounded, rows_behind, rows_of, split, walk
from ..vector.activations import make_sigmoid, make_tanh
from ..vector.atomics import sync
from ..vector.lanes import make_ends, whole_or_not
from ..vector.narrow import make_operand, make_operand_ends
from ..vector.simd import Simd, get_i64, get_u8


def forward(simd: Simd) -> Any:
    """All steps of a chunk with reset_after. kept and side 0: nothing is saved.

    weights: W_hh packed by columns, 3 gates; bias [H]: b_hn; spare: a tile or a row of scratch for each thread, then as
    the LSTM's.
    """
    (tile, next_tile), most = make_tile(simd, 3), tile_rows(simd, 3)
    sigmoid, tanh, fma = make_sigmoid(simd), make_tanh(simd), simd.fma
    gather, cleared, carry, carry_operand = make_rows(simd)
    (read, write), (keep, _), (keep_first, _) = make_ends(simd), make_operand(simd), make_operand_ends(simd)
    load, store, lanes, size, narrow = simd.load, simd.store, simd.lanes, simd.itemsize, bool(simd.narrow)
    wide, panels, singles, tiled = 3 * lanes, make_panels(simd, 3), make_singles(simd), simd.narrow == "amx"

    def take(count, gates, bias, sums):
        """What the sums of a vector of `count` units begin with: x's part of r and z, the bias of n's other part."""
        write(sums, 0, count, read(gates, 0, count))
        write(sums, count, 2 * count, read(gates, count, 2 * count))
        write(sums, 2 * count, 3 * count, load(bias, 0))

    def cell(count, sums, gates, h_prev, h, kept, side, column):
        """h of a vector of `count` units from `column` on; kept and side are addresses of rows."""
        k = 3 * column
        r, z, hn = sigmoid(read(sums, 0, count)), sigmoid(read(sums, count, 2 * count)), read(sums, 2 * count, 3 * count)
        new = tanh(fma(r, hn, read(gates, 2 * count, 3 * count)))
        value = fma(z, load(h_prev, 0) - new, new)
        store(h, 0, value)
        if kept != 0:
            keep_first(kept, k, k + count, r)
            keep_first(kept, k + count, k + 2 * count, z)
            keep_first(kept, k + 2 * count, k + 3 * count, new)
            keep(side, column, hn)
        return value

    take, cell = whole_or_not(simd, take), whole_or_not(simd, cell)

    def kernel(thread, threads, a: GruForward):
        spare = a.spare
        padded, columns = rounded(a.hidden, lanes), rounded(3 * a.hidden, lanes)
        whole, gates_row = columns // wide, columns if narrow else a.kept_row
        begin, limit, first, last = split(a.units, a.batch, padded // lanes, 1, a.starts, a.steps, thread, threads)
        row_g, row_k, row_s, row_h, row_o = (
            gates_row * size,
            a.kept_row * size,
            a.side_row * size,
            padded * size,
            a.op_row * size,
        )
        scratch = max(most * wide, columns) * size
        local = spare + thread * scratch
        spare += threads * scratch
        if a.units != 0:
            spare += thread * a.batch * (row_o + row_h)
        n = 0
        for s in range(a.steps):
            t = a.steps - 1 - s if a.reverse != 0 else s
            own, before, after, rows = rows_of(t, a.batch, a.reverse, a.starts)
            end = min(limit, rows)
            g_t, kept_t, side_t = a.gates + own * row_g, a.kept + own * row_k, a.side + own * row_s
            h_prev, h_next, op_prev, op_next = (
                a.h + before * row_h,
                a.h + after * row_h,
                a.op + before * row_o,
                a.op + after * row_o,
            )
            h_from, op_from = h_prev, op_prev
            if a.ids != 0:
                gather(
                    (begin, end), (3 * first * lanes, min(3 * last * lanes, columns)), gates_row, a.ids + own * 4, a.table, g_t
                )
            if a.clear != 0:
                op_from, h_from = spare, spare + a.batch * row_o
                cleared((begin, end), (0, a.op_row), a.op_row, a.clear + own, op_prev, op_from)
                cleared((begin, end), (first * lanes, last * lanes), padded, a.clear + own, h_prev, h_from)
            single = not tiled and end - begin == 1
            if single:  # as in the LSTM
                at, from_row, pairs = g_t + begin * row_g, op_from + begin * row_o, (min(last, whole) - first + 1) // 2
                for k in range(first, last):
                    take(
                        min(lanes, a.hidden - k * lanes),
                        at + k * wide * size,
                        a.bias + k * lanes * size,
                        local + k * wide * size,
                    )
                for k in range(pairs):
                    p = first + 2 * walk(k, 0, pairs, s + a.reverse)
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
                            c_in=local,
                            c_in_row=columns,
                            c=local,
                            c_row=columns,
                        )
                    )
                if last > whole:
                    singles(
                        Panels(
                            begin=3 * whole,
                            end=columns // lanes,
                            steps=1,
                            batch=0,
                            rows=1,
                            depth=a.depth,
                            a=from_row,
                            a_row=a.op_row,
                            b=a.weight,
                            c_in=local,
                            c_in_row=columns,
                            c=local,
                            c_row=columns,
                        )
                    )
            for k in range(first, last):
                p = walk(k, first, last, s + a.reverse)
                w_p, column = a.weight + p * wide * a.depth * size, p * lanes
                unit, sums, count = column * size, local, min(lanes, a.hidden - column)
                if single:
                    sums += 3 * unit
                row = begin
                while row < end:
                    n = next_tile(end - row, n)
                    if not single:
                        for i in range(n):
                            take(count, g_t + (row + i) * row_g + 3 * unit, a.bias + unit, sums + i * wide * size)
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
                                    c_in=sums,
                                    c_in_row=wide,
                                    c=sums,
                                    c_row=wide,
                                    ahead=sums,
                                )
                            )
                        else:
                            singles(
                                Panels(
                                    begin=3 * p,
                                    end=columns // lanes,
                                    steps=1,
                                    batch=0,
                                    rows=n,
                                    depth=a.depth,
                                    a=op_from + row * row_o,
                                    a_row=a.op_row,
                                    b=a.weight,
                                    c_in=sums - 3 * unit,
                                    c_in_row=wide,
                                    c=sums - 3 * unit,
                                    c_row=wide,
                                )
                            )
                    for r in range(row, row + n):
                        at_h, kept_r = r * row_h + unit, kept_t + r * row_k if a.kept != 0 else 0
                        value = cell(
                            count,
                            sums + (r - row) * wide * size,
                            g_t + r * row_g + 3 * unit,
                            h_from + at_h,
                            h_next + at_h,
                            kept_r,
                            side_t + r * row_s,
                            column,
                        )
                        if narrow:
                            keep(op_next + r * row_o, column, value)
                    row += n
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
    """All steps of a chunk with reset_after, last to first; arguments as the LSTM's.

    kept takes the gradients on x's side, inner [steps, B, kept_row] those on h's side: they differ in n by the factor r.
    """
    plain, block_size = make_plain(simd), block_rows(simd)
    (read, _), (_, recall), (keep_first, recall_first) = make_ends(simd), make_operand(simd), make_operand_ends(simd)
    load, store, one, zeros, lanes, size = simd.load, simd.store, simd.splat(1.0), simd.splat(0.0), simd.lanes, simd.itemsize
    several = 16 if simd.narrow == "amx" else 4

    def unit(count, at, marks, dout, rows, side, column, h_prev):
        """Gradients of a vector of `count` units from `column` on; rows: those of kept and inner.

        marks: whether the state after the step was cleared, whether the row has ended, whether the state before was cleared.
        """
        (cut, ended, fresh), (g, i), at_r = marks, rows, 3 * column
        at_z, at_n, stop = at_r + count, at_r + 2 * count, at_r + 3 * count
        total = zeros() if cut else read(at, 0, count)
        if ended:
            store(at, 0, total)
            for k in range(at_r, stop, count):
                keep_first(g, k, k + count, zeros())
                keep_first(i, k, k + count, zeros())
        else:
            total = total + read(dout, 0, count)  # grad: out
            r, z, n = recall_first(g, at_r, at_z), recall_first(g, at_z, at_n), recall_first(g, at_n, stop)
            before = zeros() if fresh else load(h_prev, 0)
            d_n = total * (one() - z) * (one() - n * n)  # grad: n
            d_r = d_n * recall(side, column) * (r * (one() - r))  # grad: r
            d_z = total * (before - n) * (z * (one() - z))  # grad: z
            keep_first(g, at_r, at_z, d_r)
            keep_first(g, at_z, at_n, d_z)
            keep_first(g, at_n, stop, d_n)
            keep_first(i, at_r, at_z, d_r)
            keep_first(i, at_z, at_n, d_z)
            keep_first(i, at_n, stop, d_n * r)  # grad: hn
            store(at, 0, total * z)  # grad: h_prev

    unit = whole_or_not(simd, unit)

    def kernel(thread, threads, a: GruBackward):
        padded = rounded(a.hidden, lanes)
        begin, limit, first, last = split(a.units, a.batch, padded // lanes, 4, a.starts, a.steps, thread, threads)
        row_k, row_s, row_h, row_d = a.kept_row * size, a.side_row * size, padded * size, a.dout_row * size
        for s in range(a.steps):
            t = s if a.reverse != 0 else a.steps - 1 - s
            own, prev, _, rows = rows_of(t, a.batch, a.reverse, a.starts)
            behind, linked = rows_behind(t, a.batch, a.reverse, a.start == 0 or s > 0, a.starts)
            end = min(limit, rows)
            group = max(1, last - first) if end - begin == 1 else several
            kept_t, inner_t, inner_after = a.kept + own * row_k, a.inner + own * row_k, a.inner + behind * row_k
            side_t, d_t, h_prev = a.side + own * row_s, a.dout + own * row_d, a.h + prev * row_h
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
                                a=inner_after + block * row_k,
                                a_row=a.kept_row,
                                b=a.weight,
                                c_in=at,
                                c_in_row=padded,
                                c=at,
                                c_row=padded,
                            )
                        )
                    for row in range(block, stop):
                        ended = a.lengths != 0 and a.time + t >= get_i64(a.lengths, row)
                        cut = row < linked and a.clear != 0 and get_u8(a.clear + behind, row) != 0
                        fresh = a.clear != 0 and get_u8(a.clear + own, row) != 0
                        for u in range(v, v_end):
                            at = u * lanes * size
                            unit(
                                min(lanes, a.hidden - u * lanes),
                                a.dh + row * row_h + at,
                                (cut, ended, fresh),
                                d_t + row * row_d + at,
                                (kept_t + row * row_k, inner_t + row * row_k),
                                side_t + row * row_s,
                                u * lanes,
                                h_prev + row * row_h + at,
                            )
            if a.units != 0:
                sync(a.barrier, threads)

    return kernel


def original_forward(simd: Simd) -> Any:
    """All steps of a chunk, reset before the product. kept 0: r, z and n are not saved; side is needed all the same.

    weights: rows r, z of W_hh packed by columns, 2 gates; weights_n: the rest packed by columns, 1 gate; spare as in forward.
    """
    (tile, next_tile), most, plain, block_size = make_tile(simd, 2), tile_rows(simd, 2), make_plain(simd), block_rows(simd)
    sigmoid, tanh, fma = make_sigmoid(simd), make_tanh(simd), simd.fma
    gather, cleared, carry, carry_operand = make_rows(simd)
    (read, write), (keep, _), (keep_first, _) = make_ends(simd), make_operand(simd), make_operand_ends(simd)
    load, store, lanes, size, narrow = simd.load, simd.store, simd.lanes, simd.itemsize, bool(simd.narrow)
    wide, singles = 2 * lanes, make_singles(simd)

    def kernel(thread, threads, a: GruOriginalForward):
        spare = a.spare
        padded, columns, vectors = rounded(a.hidden, lanes), rounded(3 * a.hidden, lanes), rounded(2 * a.hidden, lanes) // lanes
        whole, gates_row = vectors // 2, columns if narrow else a.kept_row
        begin, limit, first, last = split(a.units, a.batch, padded // lanes, 4, a.starts, a.steps, thread, threads)
        row_g, row_k, row_s, row_h, row_o = (
            gates_row * size,
            a.kept_row * size,
            a.side_row * size,
            padded * size,
            a.op_row * size,
        )
        local = spare + thread * most * wide * size
        spare += threads * most * wide * size
        if a.units != 0:
            spare += thread * a.batch * (row_o + row_h)
        for s in range(a.steps):
            t = a.steps - 1 - s if a.reverse != 0 else s
            own, before, after, rows = rows_of(t, a.batch, a.reverse, a.starts)
            end = min(limit, rows)
            group = max(1, last - first) if end - begin == 1 else 4
            g_t, kept_t, side_t = a.gates + own * row_g, a.kept + own * row_k, a.side + own * row_s
            h_prev, h_next, op_prev, op_next = (
                a.h + before * row_h,
                a.h + after * row_h,
                a.op + before * row_o,
                a.op + after * row_o,
            )
            h_from, op_from = h_prev, op_prev
            if a.ids != 0:
                gather(
                    (begin, end), (3 * first * lanes, min(3 * last * lanes, columns)), gates_row, a.ids + own * 4, a.table, g_t
                )
            if a.clear != 0:
                op_from, h_from = spare, spare + a.batch * row_o
                cleared((begin, end), (0, a.op_row), a.op_row, a.clear + own, op_prev, op_from)
                cleared((begin, end), (first * lanes, last * lanes), padded, a.clear + own, h_prev, h_from)
            n = 0
            for p in range(first, last):
                w_p, column = a.weight + p * wide * a.depth * size, p * lanes
                unit, count = column * size, min(lanes, a.hidden - column)
                row = begin
                while row < end:
                    n = next_tile(end - row, n)
                    for i in range(n):
                        at = g_t + (row + i) * row_g + 3 * unit
                        sums = local + i * wide * size
                        write(sums, 0, count, read(at, 0, count))
                        write(sums, count, 2 * count, read(at, count, 2 * count))
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
                                c_in=local,
                                c_in_row=wide,
                                c=local,
                                c_row=wide,
                                ahead=local,
                            )
                        )
                    else:
                        singles(
                            Panels(
                                begin=2 * p,
                                end=vectors,
                                steps=1,
                                batch=0,
                                rows=n,
                                depth=a.depth,
                                a=op_from + row * row_o,
                                a_row=a.op_row,
                                b=a.weight,
                                c_in=local - 2 * unit,
                                c_in_row=wide,
                                c=local - 2 * unit,
                                c_row=wide,
                            )
                        )
                    for i in range(n):
                        at, at_h = g_t + (row + i) * row_g + 3 * unit, (row + i) * row_h + unit
                        sums, at_k, k = local + i * wide * size, kept_t + (row + i) * row_k, 3 * column
                        r, z = sigmoid(read(sums, 0, count)), sigmoid(read(sums, count, 2 * count))
                        write(at, count, 2 * count, z)
                        if a.kept != 0:
                            keep_first(at_k, k, k + count, r)
                            keep_first(at_k, k + count, k + 2 * count, z)
                        keep(side_t + (row + i) * row_s, column, r * load(h_from + at_h, 0))
                        # n's part of x waits where its sum is formed
                        store(h_next + at_h, 0, read(at, 2 * count, 3 * count))
                    row += n
            if a.units != 0:
                sync(a.barrier, threads)
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                for v in range(first, last, group):
                    v_end = min(v + group, last)
                    out = h_next + block * row_h
                    plain(
                        PlainPanels(
                            begin=v,
                            end=v_end,
                            steps=1,
                            batch=0,
                            rows=stop - block,
                            depth=a.depth,
                            columns=padded,
                            a=side_t + block * row_s,
                            a_row=a.side_row,
                            b=a.weight_n,
                            c_in=out,
                            c_in_row=padded,
                            c=out,
                            c_row=padded,
                        )
                    )
                    for row in range(block, stop):
                        for u in range(v, v_end):
                            at, at_h = g_t + row * row_g + 3 * u * lanes * size, row * row_h + u * lanes * size
                            count, k = min(lanes, a.hidden - u * lanes), 3 * u * lanes
                            new = tanh(read(h_next + at_h, 0, count))
                            value = fma(read(at, count, 2 * count), load(h_from + at_h, 0) - new, new)
                            store(h_next + at_h, 0, value)
                            if a.kept != 0:
                                keep_first(kept_t + row * row_k, k + 2 * count, k + 3 * count, new)
                            if narrow:
                                keep(op_next + row * row_o, u * lanes, value)
            if a.lengths != 0:
                carry((begin, end), (first * lanes, last * lanes), padded, a.time + t, a.lengths, h_prev, h_next)
                if narrow:
                    carry_operand(
                        (begin, end), (first * lanes, last * lanes), a.op_row, a.time + t, a.lengths, op_prev, op_next
                    )
            if a.units != 0:
                sync(a.barrier, threads)

    return kernel


def original_backward(simd: Simd) -> Any:
    """All steps of a chunk, reset before the product, last to first; arguments as the LSTM's.

    weights: rows r, z of W_hh packed by rows, 2 gates, `depth` deep; weights_n: the rest packed by rows, `side_depth` deep.
    inner [steps, B, inner_row] and inner_n [steps, B, side_row], words, take the gradients of r, z and of n once more,
    apart; spare [B, H]; zeros_row [H].
    """
    plain, block_size = make_plain(simd), block_rows(simd)
    (read, _), (keep, _), (keep_first, recall) = make_ends(simd), make_operand(simd), make_operand_ends(simd)
    load, store, one, zeros, lanes, size = simd.load, simd.store, simd.splat(1.0), simd.splat(0.0), simd.lanes, simd.itemsize

    def kernel(thread, threads, a: GruOriginalBackward):
        padded = rounded(a.hidden, lanes)
        begin, limit, first, last = split(a.units, a.batch, padded // lanes, 4, a.starts, a.steps, thread, threads)
        row_k, row_i, row_s, row_h, row_d = (
            a.kept_row * size,
            a.inner_row * size,
            a.side_row * size,
            padded * size,
            a.dout_row * size,
        )
        for s in range(a.steps):
            t = s if a.reverse != 0 else a.steps - 1 - s
            own, prev, _, rows = rows_of(t, a.batch, a.reverse, a.starts)
            behind, linked = rows_behind(t, a.batch, a.reverse, a.start == 0 or s > 0, a.starts)
            end = min(limit, rows)
            group = max(1, last - first) if end - begin == 1 else 4
            kept_t, inner_t, inner_after = a.kept + own * row_k, a.inner + own * row_i, a.inner + behind * row_i
            n_t, d_t, h_prev = a.inner_n + own * row_s, a.dout + own * row_d, a.h + prev * row_h
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
                                a=inner_after + block * row_i,
                                a_row=a.inner_row,
                                b=a.weight,
                                c_in=at,
                                c_in_row=padded,
                                c=at,
                                c_row=padded,
                            )
                        )
                    for row in range(block, stop):
                        ended = a.lengths != 0 and a.time + t >= get_i64(a.lengths, row)
                        cut = row < linked and a.clear != 0 and get_u8(a.clear + behind, row) != 0
                        fresh = a.clear != 0 and get_u8(a.clear + own, row) != 0
                        g = kept_t + row * row_k
                        for u in range(v, v_end):
                            unit, count = u * lanes * size, min(lanes, a.hidden - u * lanes)
                            at_r = 3 * u * lanes
                            at_z, at_n, stop_n = at_r + count, at_r + 2 * count, at_r + 3 * count
                            at = a.dh + row * row_h + unit
                            total = zeros() if cut else read(at, 0, count)
                            if ended:
                                store(at, 0, total)
                                keep(n_t + row * row_s, u * lanes, zeros())
                            else:
                                total = total + read(d_t + row * row_d + unit, 0, count)  # grad: out
                                z, n = recall(g, at_z, at_n), recall(g, at_n, stop_n)
                                before = zeros() if fresh else load(h_prev + row * row_h + unit, 0)
                                d_n = total * (one() - z) * (one() - n * n)  # grad: n
                                keep_first(g, at_z, at_n, total * (before - n) * (z * (one() - z)))  # grad: z
                                keep_first(g, at_n, stop_n, d_n)
                                keep(n_t + row * row_s, u * lanes, d_n)
                                store(at, 0, total * z)  # grad: h_prev
            if a.units != 0:
                sync(a.barrier, threads)
            for block in range(begin, end, block_size):
                stop = min(end, block + block_size)
                for v in range(first, last, group):
                    v_end = min(v + group, last)
                    plain(
                        PlainPanels(
                            begin=v,
                            end=v_end,
                            steps=1,
                            batch=0,
                            rows=stop - block,
                            depth=a.side_depth,
                            columns=padded,
                            a=n_t + block * row_s,
                            a_row=a.side_row,
                            b=a.weight_n,
                            c_in=a.zeros,
                            c_in_row=0,
                            c=a.spare + block * row_h,
                            c_row=padded,
                        )
                    )
                    for row in range(block, stop):
                        ended = a.lengths != 0 and a.time + t >= get_i64(a.lengths, row)
                        fresh = a.clear != 0 and get_u8(a.clear + own, row) != 0
                        g, i = kept_t + row * row_k, inner_t + row * row_i
                        for u in range(v, v_end):
                            unit, count, inner_r = u * lanes * size, min(lanes, a.hidden - u * lanes), 2 * u * lanes
                            at_r, inner_z = 3 * u * lanes, inner_r + count
                            at_z, at_n, stop_z = at_r + count, at_r + 2 * count, inner_z + count
                            at = a.dh + row * row_h + unit
                            if ended:
                                for k in range(at_r, at_n + count, count):
                                    keep_first(g, k, k + count, zeros())
                                keep_first(i, inner_r, inner_z, zeros())
                                keep_first(i, inner_z, stop_z, zeros())
                            else:
                                r, d_rh = recall(g, at_r, at_z), load(a.spare + row * row_h + unit, 0)
                                before = zeros() if fresh else load(h_prev + row * row_h + unit, 0)
                                d_r = d_rh * before * (r * (one() - r))  # grad: r
                                store(at, 0, load(at, 0) + d_rh * r)  # grad: h_prev through r
                                keep_first(g, at_r, at_z, d_r)
                                keep_first(i, inner_r, inner_z, d_r)
                                keep_first(i, inner_z, stop_z, recall(g, at_z, at_n))
            if a.units != 0:
                sync(a.barrier, threads)

    return kernel
