"""The two ends of a model: rows of a table by token, their gradient, and softmax cross-entropy with its gradient.

Knows nothing of layers. Rows may be of any width and stride; ids and targets are int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from .gemm import share
from .operations import GatherRows, ScatterOperands, ScatterRows, SoftmaxCrossEntropy
from .vector.activations import make_exp
from .vector.lanes import make_ends, make_keep_first, make_largest, make_total
from .vector.narrow import make_operand
from .vector.parts import device
from .vector.simd import Simd, get_i32, put_f64, put_u8


def gather_rows(simd: Simd) -> Any:
    """out[i, :columns] = source[ids[i], :columns], then zeros up to out_row: embedding.

    ids [rows]; source, a table of rows of `source_row` elements; out [rows, out_row], overwritten. Threads split the rows.
    """
    read, write = make_ends(simd)
    load, store, lanes, size = simd.load, simd.store, simd.lanes, simd.itemsize

    def kernel(thread, threads, a: GatherRows):
        whole = a.columns // lanes * lanes
        begin, end = share(a.rows, thread, threads, 1)
        for i in range(begin, end):
            from_row, to_row = a.source + get_i32(a.ids, i) * a.source_row * size, a.out + i * a.out_row * size
            for k in range(0, whole, lanes):
                store(to_row, k, load(from_row, k))
            for k in range(whole, a.out_row, lanes):
                write(to_row, k, a.out_row, read(from_row, k, a.columns))

    return kernel


def scatter_rows(simd: Simd) -> Any:
    """out[ids[i], :columns] += source[i, :columns], i ascending: the gradient of `gather_rows`.

    ids [rows]; source [rows, source_row]; out, a table of rows of `out_row` elements, added to. Threads split the columns.
    """
    read, write = make_ends(simd)
    lanes, size = simd.lanes, simd.itemsize

    def kernel(thread, threads, a: ScatterRows):
        begin, end = share(a.columns, thread, threads, lanes)
        for i in range(a.rows):
            from_row, to_row = a.source + i * a.source_row * size, a.out + get_i32(a.ids, i) * a.out_row * size
            for k in range(begin, end, lanes):
                write(to_row, k, end, read(to_row, k, end) + read(from_row, k, end))  # grad: embedding

    return kernel


def scatter_operands(simd: Simd) -> Any:
    """`scatter_rows` for a source of operands (narrow.py), rows of `source_row` words; columns a multiple of the lanes."""
    _, recall = make_operand(simd)
    load, store, lanes, size = simd.load, simd.store, simd.lanes, simd.itemsize

    def kernel(thread, threads, a: ScatterOperands):
        begin, end = share(a.columns, thread, threads, lanes)
        for i in range(a.rows):
            from_row, to_row = a.source + i * a.source_row * size, a.out + get_i32(a.ids, i) * a.out_row * size
            for k in range(begin, end, lanes):
                store(to_row, k, load(to_row, k) + recall(from_row, k))  # grad: table

    return kernel


def _reinterpret(source: Any, target: Any) -> Any:
    @intrinsic
    def reinterpret(typing: Any, x: Any) -> Any:
        return target(source), lambda context, b, sig, a: b.bitcast(a[0], context.get_value_type(target))

    return reinterpret


bits_of, from_bits = _reinterpret(types.float64, types.int64), _reinterpret(types.int64, types.float64)


@device
def log(x):
    """Natural logarithm of a float64 x >= 1 (NaN stays NaN): 2 atanh((m - 1) / (m + 1)) + k ln 2, x = m * 2**k.

    m lies between the square roots of 1/2 and 2; the series is cut below half a unit in the last place.
    """
    if not x < np.inf:
        return x
    bits = bits_of(x)
    k = (bits >> 52) - 1023
    m = from_bits((bits & 0xFFFFFFFFFFFFF) | (1023 << 52))
    if m > 1.4142135623730951:
        m, k = 0.5 * m, k + 1
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = 1.0 / 23.0
    for n in range(21, 1, -2):
        p = p * z + 1.0 / n
    return k * 0.6931471803691238 + (k * 1.9082149292705877e-10 + (2.0 * s * z * p + 2.0 * s))


def softmax_cross_entropy(simd: Simd) -> Any:
    """losses[i] = log(sum(exp(logits[i]))) - logits[i, targets[i]], and in place of the logits their gradient.

    logits [rows, row]: with `gradient`, row i becomes (softmax - onehot) * scale, then zeros from `classes` up to `row`;
    without, they stay. targets [rows] int32, a negative one: loss and gradient 0. scale: one scalar of the element type, by
    address. losses [rows] float64 in nats. correct [rows] uint8 or 0 (none): whether the first largest logit is the
    target's. A NaN among the logits, or a largest one of infinity, makes the loss NaN. Threads split the rows.
    """
    wide = Simd(simd.dtype, 64)  # on every instruction set: the order of the sums, and so their bits, are the same
    read, write = make_ends(wide)
    keep_first, total_of, largest_of, exp = make_keep_first(wide), make_total(wide), make_largest(wide), make_exp(wide)
    get, put, spread, where_greater = wide.get, wide.put, wide.spread, wide.where_greater
    lanes, size, zeros, lowest = wide.lanes, wide.itemsize, wide.splat(0.0), wide.splat(-np.inf)

    @device
    def largest_logit(x, classes):
        top = lowest()
        for k in range(0, classes, lanes):
            v = keep_first(classes - k, read(x, k, classes), lowest())
            top = where_greater(top, v, top, v)
        return largest_of(top)

    @device
    def is_first(x, target, top):
        """Whether x[target], and none before it, is the largest: a tie must not count for every class."""
        first = get(x, target) == top
        k = 0
        while first and k < target:
            first = get(x, k) < top
            k += 1
        return first

    def kernel(thread, threads, a: SoftmaxCrossEntropy):
        begin, end = share(a.rows, thread, threads, 1)
        factor = get(a.scale, 0)
        for i in range(begin, end):
            x, target = a.logits + i * a.row * size, get_i32(a.targets, i)
            if target < 0:
                put_f64(a.losses, i, 0.0)
                if a.correct != 0:
                    put_u8(a.correct, i, 0)
                if a.gradient != 0:
                    for k in range(0, a.row, lanes):
                        write(x, k, a.row, zeros())
                continue
            top, wanted = largest_logit(x, a.classes), get(x, target)
            if a.correct != 0:
                put_u8(a.correct, i, 1 if is_first(x, target, top) else 0)
            sums, shift = zeros(), spread(top)
            for k in range(0, a.classes, lanes):
                e = keep_first(a.classes - k, exp(read(x, k, a.classes) - shift), zeros())
                sums = sums + e
                if a.gradient != 0:
                    write(x, k, a.classes, e)
            total = total_of(sums)
            put_f64(a.losses, i, log(np.float64(total)) + (np.float64(top) - np.float64(wanted)))
            if a.gradient != 0:
                share_of = spread(factor / total)
                for k in range(0, a.row, lanes):
                    p = keep_first(a.classes - k, read(x, k, a.row), zeros())
                    write(x, k, a.row, p * share_of)  # grad: softmax
                put(x, target, get(x, target) - factor)  # grad: target

    return kernel
