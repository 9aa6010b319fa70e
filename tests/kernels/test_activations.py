"""Sigmoid, tanh and exp of the kernels against more exact arithmetic; their error bounds are the ones asserted here."""

import itertools

import numpy as np
import pytest

from fastlstm.kernels.native import jit
from fastlstm.kernels.vector import activations
from fastlstm.kernels.vector.parts import device
from fastlstm.kernels.vector.simd import Simd

DTYPES = ("float32", "float64")
# Largest relative errors, in units of the dtype's eps: of tanh 1.8e-7 in float32 and 3.3e-16 in float64.
BOUNDS = {"tanh": 1.5, "sigmoid": 1.25, "exp": 0.75}
EXACT = np.longdouble
needs_extended = pytest.mark.skipif(np.finfo(EXACT).nmant <= 52, reason="needs long double with more digits than double")


def compiled(name, dtype, isa):
    """The activation as a function of an array, from a kernel of its own."""
    simd = Simd(dtype, jit.WIDTHS[isa])
    function, load, store, lanes = getattr(activations, f"make_{name}")(simd), simd.load, simd.store, simd.lanes

    @device
    def kernel(count, x, y):
        for k in range(0, count, lanes):
            store(y, k, function(load(x, k)))

    def call(x):
        x = np.asarray(x, dtype)
        padded = np.zeros(-(-x.size // lanes) * lanes, dtype)
        padded[: x.size] = x
        out = np.full_like(padded, np.nan)
        kernel(padded.size, padded.ctypes.data, out.ctypes.data)
        return out[: x.size]

    return call


@pytest.fixture(scope="module")
def functions():
    return {key: compiled(*key) for key in itertools.product(("tanh", "sigmoid", "exp"), DTYPES, jit.supported())}


def wanted(name, x):
    x = x.astype(EXACT)
    if name == "tanh":
        return np.tanh(x)
    return np.exp(x) if name == "exp" else 1 / (1 + np.exp(-x))


def inputs(name, dtype):
    """Densely where results are between the tails, by powers of two towards zero, and at the ends of the range."""
    rng = np.random.default_rng(0)
    tail = {"float32": 80.0, "float64": 700.0}[dtype]
    small = np.exp2(rng.uniform(-100 if dtype == "float32" else -1000, 0, 20_000))
    x = np.concatenate([np.linspace(-20, 20, 200_001), rng.uniform(-tail, tail, 20_000), small, -small])
    if name == "exp":
        x = -np.abs(x)
    x = x.astype(dtype)
    return x[x != 0]


@needs_extended
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "exp"])
def test_errors_are_within_their_bounds(name, dtype, functions):
    x = inputs(name, dtype)
    want = wanted(name, x)
    got = functions[name, dtype, jit.supported()[0]](x)
    off = np.abs((got.astype(EXACT) - want) / want) / EXACT(np.finfo(dtype).eps)
    worst = int(np.argmax(off))
    assert off[worst] <= BOUNDS[name], f"{name}({x[worst]!r}) is off by {float(off[worst]):.2f} units"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "exp"])
def test_every_instruction_set_gives_the_same_bits(name, dtype, functions):
    x = inputs(name, dtype)
    best, *others = jit.supported()
    want = functions[name, dtype, best](x)
    for isa in others:
        assert np.array_equal(functions[name, dtype, isa](x).view(np.uint8), want.view(np.uint8)), isa


@pytest.mark.parametrize("isa", jit.supported())
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_range(dtype, isa, functions):
    tanh, sigmoid, exp = (functions[name, dtype, isa] for name in ("tanh", "sigmoid", "exp"))
    tiny, huge = np.finfo(dtype).tiny, np.finfo(dtype).max
    ends = np.array([0.0, -0.0, np.inf, -np.inf, huge, -huge, 1e4, -1e4], dtype)
    assert tanh(ends).tolist() == [0, 0, 1, -1, 1, -1, 1, -1]
    assert np.array_equal(np.signbit(tanh(ends)), np.signbit(ends))
    low = sigmoid(ends)
    assert low[[0, 1, 2, 4, 6]].tolist() == [0.5, 0.5, 1, 1, 1]
    assert (low[[3, 5, 7]] >= 0).all()
    assert (low[[3, 5, 7]] < 4 * tiny).all()
    # Below the smallest normal number's logarithm exp stays about there: softmax divides by what is at least 1.
    assert exp(np.array([0.0, -0.0], dtype)).tolist() == [1, 1]
    assert (exp(np.array([-np.inf, -huge, -1e4], dtype)) < 4 * tiny).all()
    assert np.isnan(tanh(np.array([np.nan, -np.nan], dtype))).all()
    assert np.isnan(sigmoid(np.array([np.nan], dtype))).all()
    small = np.array([tiny, -tiny, 2.0**-60, -(2.0**-60)], dtype)
    assert np.array_equal(tanh(small), small)
    assert np.array_equal(sigmoid(small), np.full(4, 0.5, dtype))
    denormal = np.array([tiny / 4, -tiny / 1024], dtype)  # themselves, or zero where a kernel flushes them
    assert np.abs(tanh(denormal)).max() < tiny
    assert sigmoid(denormal).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_rise_and_stay_between_their_limits(dtype, functions):
    """Monotonic but for the last places, never beyond 1: gates must not amplify, 1 - tanh**2 not turn negative."""
    x = np.sort(inputs("tanh", dtype))
    for name, low in (("tanh", -1.0), ("sigmoid", 0.0)):
        y = functions[name, dtype, jit.supported()[0]](x)
        assert y.min() >= low
        assert y.max() <= 1.0
        assert (np.diff(y) >= -4 * np.finfo(dtype).eps * np.abs(y[1:])).all()
    y = functions["tanh", dtype, jit.supported()[0]](x)
    assert np.array_equal(functions["tanh", dtype, jit.supported()[0]](-x), -y)
