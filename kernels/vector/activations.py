"""Sigmoid and tanh on vectors, from one core: expm1 by range reduction and a polynomial; also as fractions.

Where many activations meet, divisions hold all else up. Two that are both wanted, a/b and c/d, share one: with q = 1 / (b*d)
they are a*d*q and c*b*q; denominators stay small enough for that.

exp(x) = 2**k * exp(r) with k = round(x / ln 2) and |r| <= ln(2)/2, where the Taylor series of expm1(r) is cut below half
a unit in the last place. Largest errors measured against 50-digit arithmetic stand in the tests.
"""

from __future__ import annotations

import math
from typing import Any

from .parts import device
from .simd import Simd

_LN2_HIGH = {"float32": 0.693359375, "float64": 0.6931471803691238}
_LN2_LOW = {"float32": -2.12194440054690583e-4, "float64": 1.9082149292705877e-10}
_DEGREE = {"float32": 7, "float64": 13}
_LIMIT = {"float32": 87.0, "float64": 708.0}
_SHARED = {"float32": 80.0, "float64": 700.0}  # leaves the product of a sigmoid's and a tanh's denominators a normal inverse


def _make_reduced_expm1(simd: Simd) -> Any:
    """parts(x) -> (p, s) with exp(x) = s + s * p: s a power of two, p = expm1 of the rest."""
    fma, power_of_two = simd.fma, simd.power_of_two
    magic = simd.splat(1.5 * 2.0**simd.mantissa)
    log2e = simd.splat(1 / math.log(2))
    minus_high, minus_low = simd.splat(-_LN2_HIGH[simd.dtype]), simd.splat(-_LN2_LOW[simd.dtype])
    degree = _DEGREE[simd.dtype]
    c = [simd.splat(1 / math.factorial(n)) for n in range(14)]
    _, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = c[1:]
    double = degree == 13

    @device
    def parts(x):
        shifted = fma(x, log2e(), magic())
        k = shifted - magic()
        r = fma(k, minus_low(), fma(k, minus_high(), x))
        # Sums of two terms, then of two such sums: hardly more operations than one after the other, in half the time.
        r2 = r * r
        p = fma(fma(c7(), r, c6()), r2, fma(c5(), r, c4()))
        if double:
            r4 = r2 * r2
            q = fma(fma(c13(), r, c12()), r2, fma(c11(), r, c10()))
            p = fma(fma(q, r2, fma(c9(), r, c8())), r4, p)
        p = fma(fma(p, r2, fma(c3(), r, c2())), r2, r)
        return p, power_of_two(shifted)

    return parts


def make_exp(simd: Simd) -> Any:
    """exp(x) for x <= 0; below the smallest normal number's logarithm it is that number."""
    parts, fma, where_greater = _make_reduced_expm1(simd), simd.fma, simd.where_greater
    low = simd.splat(-_LIMIT[simd.dtype])

    @device
    def exp(x):
        p, s = parts(where_greater(low(), x, low(), x))
        return fma(p, s, s)

    return exp


def make_sigmoid(simd: Simd) -> Any:
    """sigmoid(x) = 1 / (1 + exp(-x)); NaN stays NaN."""
    denominator, one = _make_inverse_sigmoid(simd, _LIMIT[simd.dtype]), simd.splat(1.0)

    @device
    def sigmoid(x):
        return one() / denominator(x)

    return sigmoid


def make_sigmoid_denominator(simd: Simd) -> Any:
    """d(x) = 1 + exp(-x), of which sigmoid(x) is the inverse; at most 1 + exp(80) (float64: exp(700))."""
    return _make_inverse_sigmoid(simd, _SHARED[simd.dtype])


def _make_inverse_sigmoid(simd: Simd, limit: float) -> Any:
    parts, fma, where_greater = _make_reduced_expm1(simd), simd.fma, simd.where_greater
    zero, one, low, high = simd.splat(0.0), simd.splat(1.0), simd.splat(-limit), simd.splat(limit)

    @device
    def denominator(x):
        y = zero() - x
        y = where_greater(low(), y, low(), y)
        y = where_greater(y, high(), high(), y)
        p, s = parts(y)
        return one() + fma(p, s, s)

    return denominator


def make_tanh(simd: Simd) -> Any:
    """tanh(x), with relative accuracy down to zero; NaN stays NaN."""
    fraction = make_tanh_fraction(simd)

    @device
    def tanh(x):
        above, below = fraction(x)
        return above / below

    return tanh


def make_tanh_fraction(simd: Simd) -> Any:
    """(n, d) with tanh(x) = n / d: -e and 2 + e, e = expm1(-2|x|), n with the sign of x; 1 < d <= 2."""
    parts, fma, where_greater = _make_reduced_expm1(simd), simd.fma, simd.where_greater
    zero, one, two, minus_two = simd.splat(0.0), simd.splat(1.0), simd.splat(2.0), simd.splat(-2.0)
    low, absolute, copy_sign = simd.splat(-_LIMIT[simd.dtype]), simd.absolute, simd.copy_sign

    @device
    def fraction(x):
        y = minus_two() * absolute(x)
        p, s = parts(where_greater(low(), y, low(), y))
        e = fma(p, s, s - one())
        return copy_sign(zero() - e, x), two() + e

    return fraction
