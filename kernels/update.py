"""What changes flat buffers element by element: optimizers in one pass, scaling and clipping, and the sums behind norms.

Knows no parameter's name. `hyper` is a small array of the element type; its entries are listed in their order. Gradients
are multiplied by `scale` on the way, so that clipping by norm costs no pass of its own; a scale that is not a number leaves
everything as it was. Threads split the elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .gemm import share
from .operations import Adam, ClipValue, Judge, Rmsprop, Scale, Sgd, SquareSums
from .vector.lanes import make_ends, make_total
from .vector.parts import device
from .vector.simd import Simd, get_f64, put_f64


def sgd(simd: Simd) -> Any:
    """buffer = momentum * buffer + g, params -= lr * d, where g = scale * grads + decay * params (Sutskever et al. 2013).

    d is the buffer, g + momentum * buffer with `nesterov`, or g where there is no buffer (0).
    hyper: scale, decay, momentum, -lr. params, buffer [count], changed in place.
    """
    read, write = make_ends(simd)
    fma, get, spread, lanes = simd.fma, simd.get, simd.spread, simd.lanes

    def kernel(thread, threads, a: Sgd):
        if get(a.hyper, 0) != get(a.hyper, 0):
            return
        scale, decay = spread(get(a.hyper, 0)), spread(get(a.hyper, 1))
        momentum, minus_lr = spread(get(a.hyper, 2)), spread(get(a.hyper, 3))
        begin, end = share(a.size, thread, threads, lanes)
        for k in range(begin, end, lanes):
            p = read(a.params, k, end)
            g = fma(decay, p, scale * read(a.grads, k, end))
            if a.buffer != 0:
                b = fma(momentum, read(a.buffer, k, end), g)
                write(a.buffer, k, end, b)
                g = fma(momentum, b, g) if a.nesterov != 0 else b
            write(a.params, k, end, fma(minus_lr, g, p))

    return kernel


def rmsprop(simd: Simd) -> Any:
    """square = alpha * square + (1 - alpha) * g**2, params -= lr * g / (sqrt(square) + eps) (Tieleman & Hinton 2012).

    g = scale * grads + decay * params. With a buffer (not 0): buffer = momentum * buffer + quotient, which then is the step.
    hyper: scale, decay, momentum, -lr, alpha, 1 - alpha, eps. params, square, buffer [count], changed in place.
    """
    read, write = make_ends(simd)
    fma, sqrt, get, spread, lanes = simd.fma, simd.sqrt, simd.get, simd.spread, simd.lanes

    def kernel(thread, threads, a: Rmsprop):
        if get(a.hyper, 0) != get(a.hyper, 0):
            return
        scale, decay = spread(get(a.hyper, 0)), spread(get(a.hyper, 1))
        momentum, minus_lr = spread(get(a.hyper, 2)), spread(get(a.hyper, 3))
        alpha, rest, eps = spread(get(a.hyper, 4)), spread(get(a.hyper, 5)), spread(get(a.hyper, 6))
        begin, end = share(a.size, thread, threads, lanes)
        for k in range(begin, end, lanes):
            p = read(a.params, k, end)
            g = fma(decay, p, scale * read(a.grads, k, end))
            s = fma(alpha, read(a.square, k, end), rest * g * g)
            write(a.square, k, end, s)
            g = g / (sqrt(s) + eps)
            if a.buffer != 0:
                g = fma(momentum, read(a.buffer, k, end), g)
                write(a.buffer, k, end, g)
            write(a.params, k, end, fma(minus_lr, g, p))

    return kernel


def adam(simd: Simd) -> Any:
    """Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019): the one has keep = 1, the other decay = 0.

        g = scale * grads + decay * params        m = beta1 * m + (1 - beta1) * g        v = beta2 * v + (1 - beta2) * g**2
        params = keep * params - rate * m / (sqrt(v) * unbias + eps)

    hyper: scale, decay, keep, beta1, 1 - beta1, beta2, 1 - beta2, -rate, unbias, eps, where step t has
    rate = lr / (1 - beta1**t) and unbias = 1 / sqrt(1 - beta2**t). params, m, v [count], changed in place.
    """
    read, write = make_ends(simd)
    fma, sqrt, get, spread, lanes = simd.fma, simd.sqrt, simd.get, simd.spread, simd.lanes

    def kernel(thread, threads, a: Adam):
        if get(a.hyper, 0) != get(a.hyper, 0):
            return
        scale, decay, keep = spread(get(a.hyper, 0)), spread(get(a.hyper, 1)), spread(get(a.hyper, 2))
        beta1, rest1 = spread(get(a.hyper, 3)), spread(get(a.hyper, 4))
        beta2, rest2 = spread(get(a.hyper, 5)), spread(get(a.hyper, 6))
        minus_rate, unbias, eps = spread(get(a.hyper, 7)), spread(get(a.hyper, 8)), spread(get(a.hyper, 9))
        begin, end = share(a.size, thread, threads, lanes)
        for k in range(begin, end, lanes):
            p = read(a.params, k, end)
            g = fma(decay, p, scale * read(a.grads, k, end))
            m_k = fma(beta1, read(a.m, k, end), rest1 * g)
            v_k = fma(beta2, read(a.v, k, end), rest2 * g * g)
            write(a.m, k, end, m_k)
            write(a.v, k, end, v_k)
            write(a.params, k, end, fma(minus_rate, m_k / fma(sqrt(v_k), unbias, eps), keep * p))

    return kernel


def scale(simd: Simd) -> Any:
    """values *= hyper[0]; values [count]."""
    read, write = make_ends(simd)
    get, spread, lanes = simd.get, simd.spread, simd.lanes

    def kernel(thread, threads, a: Scale):
        factor = spread(get(a.hyper, 0))
        begin, end = share(a.size, thread, threads, lanes)
        for k in range(begin, end, lanes):
            write(a.values, k, end, factor * read(a.values, k, end))

    return kernel


def clip_value(simd: Simd) -> Any:
    """Each of values [count] into -hyper[0]..hyper[0]; NaN stays NaN."""
    read, write = make_ends(simd)
    get, spread, where_greater, lanes = simd.get, simd.spread, simd.where_greater, simd.lanes

    def kernel(thread, threads, a: ClipValue):
        high, low = spread(get(a.hyper, 0)), spread(-get(a.hyper, 0))
        begin, end = share(a.size, thread, threads, lanes)
        for k in range(begin, end, lanes):
            x = read(a.values, k, end)
            x = where_greater(x, high, high, x)
            write(a.values, k, end, where_greater(low, x, low, x))

    return kernel


def _make_chunk_sums(simd: Simd, square: bool) -> Any:
    """Vectors of eight on every instruction set, four chains: the order of the additions depends on count and chunk alone."""
    eight, double = Simd(simd.dtype, 8 * simd.itemsize), Simd("float64", 64)
    load, (read, _) = eight.load, make_ends(eight)
    total, zeros, absolute, fma = make_total(double), double.splat(0.0), double.absolute, double.fma

    @intrinsic
    def widened(typing: Any, x: Any) -> Any:
        return double.vec(eight.vec), lambda context, b, sig, a: a[0] if simd.bits == 64 else b.fpext(a[0], double.vec.ir)

    @device
    def more(sums, part):
        x = widened(part)
        return fma(x, x, sums) if square else sums + absolute(x)

    def kernel(thread, threads, a: SquareSums):
        begin, end = share((a.size + a.chunk - 1) // a.chunk, thread, threads, 1)
        for j in range(begin, end):
            s0, s1, s2, s3 = zeros(), zeros(), zeros(), zeros()
            k, stop = j * a.chunk, min(a.size, (j + 1) * a.chunk)
            while k + 32 <= stop:
                s0, s1 = more(s0, load(a.values, k)), more(s1, load(a.values, k + 8))
                s2, s3 = more(s2, load(a.values, k + 16)), more(s3, load(a.values, k + 24))
                k += 32
            while k < stop:
                s0 = more(s0, read(a.values, k, stop))
                k += 8
            put_f64(a.sums, j, total((s0 + s1) + (s2 + s3)))

    return kernel


def square_sums(simd: Simd) -> Any:
    """sums[j] = sum of the squares of the j-th `chunk` elements of values [count]; float64. NaN and infinity show."""
    return _make_chunk_sums(simd, True)


def absolute_sums(simd: Simd) -> Any:
    """sums[j] = sum of the magnitudes of the j-th `chunk` elements of values [count]; float64. NaN and infinity show."""
    return _make_chunk_sums(simd, False)


@intrinsic
def root(typing: Any, x: Any) -> Any:
    """Square root of a float64."""

    def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
        kind = ir.FunctionType(ir.DoubleType(), [ir.DoubleType()])
        return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.sqrt.f64"), a)

    return types.float64(types.float64), emit


def judge(simd: Simd) -> Any:
    """Whether an optimizer may take its step, and how much of the gradient it takes; what came of it goes into the journal.

    losses [rows] and squares [chunks], float64: parts of the loss and of the gradient's squared norm. limits, float64: the
    norm down to which gradients are scaled (infinity: never), and the number of targets. journal, float64, to be read at any
    time: the sum of losses over targets, then the mean loss and the norm of the step that was judged last, the number of
    steps taken, and 1 from the first step on whose loss or norm is not finite: no later step is taken until it is 0 again.
    hyper[0], the `scale` of the optimizers, is written. One thread.
    """
    scalar, put = simd.scalar, simd.put

    def kernel(thread, threads, a: Judge):
        total, square = 0.0, 0.0
        for k in range(a.rows):
            total += get_f64(a.losses, k)
        for k in range(a.chunks):
            square += get_f64(a.squares, k)
        if get_f64(a.journal, 4) != 0.0:
            put(a.hyper, 0, scalar(np.nan))
            return
        loss, norm = total / get_f64(a.limits, 1), root(square)
        put_f64(a.journal, 1, loss)
        put_f64(a.journal, 2, norm)
        if not abs(loss) < np.inf or not norm < np.inf:
            put_f64(a.journal, 4, 1.0)
            put(a.hyper, 0, scalar(np.nan))
            return
        put_f64(a.journal, 0, get_f64(a.journal, 0) + loss * get_f64(a.limits, 1))
        put_f64(a.journal, 3, get_f64(a.journal, 3) + 1.0)
        # As torch.nn.utils.clip_grad_norm_ has it, with its small number that keeps the quotient finite.
        put(a.hyper, 0, scalar(min(1.0, get_f64(a.limits, 0) / (norm + 1e-6))))

    return kernel
