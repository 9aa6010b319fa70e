"""What all recurrences do to the rows of a step beside the cell's own equations, and how threads share a step.

Either threads split the rows of the batch, which are independent: then none waits for another in the whole sequence. Or,
with `units`, they split the hidden units, whose weights then lie in each thread's own cache, and meet after every step.

Batches may be ragged: each step then has only the rows of those that have not ended, the longest sequence first, and rows of
all steps follow each other. `starts` [T + 3] int64 says where, 0 for sequences of one length: in buffers of states, where the
initial ones come first, the states before step t begin at row starts[t] and those after it at starts[t + 1]; the last two
numbers are the buffer's end.
"""

from __future__ import annotations

from typing import Any

from .gemm import share
from .operations import AbsorbRows, ClearRows, EmitRows, FillZeros, OperandRows
from .vector.narrow import make_operand
from .vector.parts import device
from .vector.simd import Simd, get_i32, get_i64, get_u8


@device
def border(starts, steps, batch, most):
    """How many of the longest sequences of a ragged batch have about `most` rows together."""
    length, total = steps, 0
    for b in range(batch):
        while length > 0 and get_i64(starts, length + 1) - get_i64(starts, length) <= b:
            length -= 1
        if 2 * total + length >= 2 * most:
            return b
        total += length
    return batch


@device
def split(units, batch, panels, multiple, starts, steps, thread, threads):
    """(begin, end, first, last): a thread's rows and its panels; with `units` all rows and, in multiples, some panels."""
    if units != 0:
        first, last = share(panels, thread, threads, multiple)
        return 0, batch, first, last
    if starts != 0:
        rows = get_i64(starts, steps + 1) - batch
        return (
            border(starts, steps, batch, rows * thread // threads),
            border(starts, steps, batch, rows * (thread + 1) // threads),
            0,
            panels,
        )
    begin, end = share(batch, thread, threads, 1)
    return begin, end, 0, panels


@device
def rounded(size, lanes):
    """`size` up to whole vectors."""
    return (size + lanes - 1) // lanes * lanes


@device
def rows_of(t, batch, reverse, starts):
    """(first, before, after, count): step t's first row, where states before and after it begin, and its number of rows."""
    if starts != 0:
        after = get_i64(starts, t + 1)
        return after - batch, get_i64(starts, t), after, get_i64(starts, t + 2) - after
    return t * batch, (t + reverse) * batch, (t + 1 - reverse) * batch, batch


@device
def rows_behind(t, batch, reverse, linked, starts):
    """(first, count): the rows, of the step that comes after t in the recurrence, whose gradients reach step t."""
    if starts != 0:
        return get_i64(starts, t + 2) - batch, get_i64(starts, t + 3) - get_i64(starts, t + 2)
    return (t - 1 if reverse != 0 else t + 1) * batch, batch if linked else 0


@device
def walk(i, first, last, turn):
    """Panel i of first..last, from the other end in every second turn: of weights that exceed a cache half are still there."""
    return i if turn % 2 == 0 else first + last - 1 - i


def make_rows(simd: Simd) -> Any:
    """gather, cleared, carry, carry_operand: they copy a range of rows in a range of columns, multiples of the lanes.

    A range is (first, end). `row` is the rows' length in elements, for operands (vector/narrow.py) in words.
    """
    load, store, lanes, size, zeros = simd.load, simd.store, simd.lanes, simd.itemsize, simd.splat(0.0)
    keep, recall = make_operand(simd)

    @device
    def gather(rows, columns, row, ids, table, out):
        """out[i] = table[ids[i]]."""
        for i in range(rows[0], rows[1]):
            token = get_i32(ids, i)
            for k in range(columns[0], columns[1], lanes):
                store(out, i * row + k, load(table, token * row + k))

    @device
    def cleared(rows, columns, row, clear, source, out):
        """out[i] = source[i], or zeros where clear[i]; of operands, columns are words."""
        for i in range(rows[0], rows[1]):
            for k in range(columns[0], columns[1], lanes):
                store(out, i * row + k, zeros() if get_u8(clear, i) != 0 else load(source, i * row + k))

    @device
    def carry(rows, columns, row, time, lengths, source, out):
        """out[i] = source[i] where the sequence has ended by `time`."""
        for i in range(rows[0], rows[1]):
            if time >= get_i64(lengths, i):
                for k in range(columns[0], columns[1], lanes):
                    store(out, i * row + k, load(source, i * row + k))

    @device
    def carry_operand(rows, columns, row, time, lengths, source, out):
        """The same of operands; columns are elements."""
        for i in range(rows[0], rows[1]):
            if time >= get_i64(lengths, i):
                for k in range(columns[0], columns[1], lanes):
                    keep(out + i * row * size, k, recall(source + i * row * size, k))

    return gather, cleared, carry, carry_operand


def emit_rows(simd: Simd) -> Any:
    """out[t, row, :width] = h[t, row, :width], zeros after the row's length.

    h has rows of `h_row` elements, out of `out_row`. Both directions write one out. Threads split the batch.
    """
    get, put, load, store, lanes = simd.get, simd.put, simd.load, simd.store, simd.lanes
    zero, zeros = simd.scalar(0), simd.splat(0.0)

    def kernel(thread, threads, a: EmitRows):
        begin, end = share(a.batch, thread, threads, 1)
        for t in range(a.steps):
            for row in range(begin, end):
                i = t * a.batch + row
                ended = a.lengths != 0 and t >= get_i64(a.lengths, row)
                k = 0
                while k + lanes <= a.width:
                    store(a.out, i * a.out_row + k, zeros() if ended else load(a.h, i * a.h_row + k))
                    k += lanes
                while k < a.width:
                    put(a.out, i * a.out_row + k, zero if ended else get(a.h, i * a.h_row + k))
                    k += 1

    return kernel


def absorb_rows(simd: Simd) -> Any:
    """out[i, :] = source[i, :width], then zeros up to out_row: rows padded to whole vectors; without a source (0) zeros.

    Threads split the batch.
    """
    get, put, load, store, lanes = simd.get, simd.put, simd.load, simd.store, simd.lanes
    zero, zeros = simd.scalar(0), simd.splat(0.0)

    def kernel(thread, threads, a: AbsorbRows):
        begin, end = share(a.batch, thread, threads, 1)
        for t in range(a.steps):
            for i in range(t * a.batch + begin, t * a.batch + end):
                k = 0
                while k + lanes <= a.width:
                    store(a.out, i * a.out_row + k, load(a.source, i * a.source_row + k) if a.source != 0 else zeros())
                    k += lanes
                while k < a.out_row:
                    put(
                        a.out, i * a.out_row + k, get(a.source, i * a.source_row + k) if a.source != 0 and k < a.width else zero
                    )
                    k += 1

    return kernel


def operand_rows(simd: Simd) -> Any:
    """out[i, :] = source[i, :width] in the operands' form, zeros in the rest of the row; with no source (0) zeros.

    source has rows of `source_row` elements, out of `out_row` words. Threads split the batch.
    """
    get, put, load, lanes, size = simd.get, simd.put, simd.load, simd.lanes, simd.itemsize
    keep, _ = make_operand(simd)
    zeros, zero = simd.splat(0.0), simd.scalar(0)
    pair = 2 if simd.narrow else 1

    def kernel(thread, threads, a: OperandRows):
        begin, end = share(a.batch, thread, threads, 1)
        tail = a.scratch + thread * lanes * size
        for t in range(a.steps):
            for i in range(t * a.batch + begin, t * a.batch + end):
                for k in range(0, pair * a.out_row, lanes):
                    at = i * a.source_row + k
                    if a.source == 0 or k >= a.width:
                        keep(a.out + i * a.out_row * size, k, zeros())
                    elif k + lanes <= a.width:
                        keep(a.out + i * a.out_row * size, k, load(a.source, at))
                    else:
                        for lane in range(lanes):
                            put(tail, lane, get(a.source, at + lane) if k + lane < a.width else zero)
                        keep(a.out + i * a.out_row * size, k, load(tail, 0))

    return kernel


def fill_zeros(simd: Simd) -> Any:
    """out[:count] = 0."""
    store, put, lanes, zeros, zero = simd.store, simd.put, simd.lanes, simd.splat(0.0), simd.scalar(0)

    def kernel(thread, threads, a: FillZeros):
        begin, end = share(a.size, thread, threads, lanes)
        whole = begin + (end - begin) // lanes * lanes
        for k in range(begin, whole, lanes):
            store(a.out, k, zeros())
        for k in range(whole, end):
            put(a.out, k, zero)

    return kernel


def clear_rows(simd: Simd) -> Any:
    """out[i] = source[i], zeros where clear[i]: rows of `row` elements or words, multiples of the lanes. May be in place."""
    _, cleared, _, _ = make_rows(simd)

    def kernel(thread, threads, a: ClearRows):
        begin, end = share(a.batch, thread, threads, 1)
        for t in range(a.steps):
            cleared((t * a.batch + begin, t * a.batch + end), (0, a.row), a.row, a.clear, a.source, a.out)

    return kernel
