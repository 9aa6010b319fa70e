"""16-bit numbers on the CPU have the bits that they have on the device: against NumPy, ml_dtypes and CUDA's own headers."""

from __future__ import annotations

import ctypes
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda import compile as nvrtc
from tests.cuda.simulator import translate
from tests.cuda.simulator.simulator import Module, poisoned

pytestmark = pytest.mark.skipif(translate.compiler() is None, reason="needs g++")
SOURCE = Path(__file__).parent / "samples" / "mechanics.cu"
FLOAT = ("-DREAL=float", "-DWORD=float")
BFLOAT16 = ("-DREAL=float", "-DWORD=unsigned short", "-DNARROW_BFLOAT16")


@cache
def _module() -> Module:
    return Module(SOURCE)


def _floats() -> np.ndarray:
    """Every upper half of a float32, with lower halves on, just below and just above where rounding turns."""
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001], np.uint32)
    return (np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | low).reshape(-1).view(np.float32)


def _round(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    results = [poisoned(x.size, np.uint16) for _ in range(4)]
    arguments = (x, y, *results, np.int32(x.size))
    _module().get_function("round_to")((-(-x.size // 256),), (256,), arguments, orders=("forward",))
    return results


def _canonical(patterns: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(of), np.uint16(0x7FFF), patterns)  # the device has one NaN


def test_rounding_is_to_nearest_even() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = _floats()
    with np.errstate(all="ignore"):
        doubles = np.random.default_rng(0).permutation(x).astype(np.float64)
        doubles = np.nextafter(doubles, np.where(np.arange(x.size) % 2, np.inf, -np.inf))  # just off what float32 can hold
        half, bfloat16, half_of_double, bfloat16_of_double = _round(x, doubles)
        np.testing.assert_array_equal(half, _canonical(x.astype(np.float16).view(np.uint16), x))
        np.testing.assert_array_equal(bfloat16, _canonical(x.astype(ml_dtypes.bfloat16).view(np.uint16), x))
        np.testing.assert_array_equal(half_of_double, _canonical(doubles.astype(np.float16).view(np.uint16), doubles))
        # ml_dtypes rounds doubles twice, by way of float32; to odd first is what rounds once.
        nearest = doubles.astype(np.float32)
        away = np.abs(nearest) > np.abs(doubles)
        bits = nearest.view(np.uint32) - away
        odd = np.where(nearest == doubles, bits, bits | 1).view(np.float32)
        np.testing.assert_array_equal(bfloat16_of_double, _canonical(odd.astype(ml_dtypes.bfloat16).view(np.uint16), doubles))


def test_widening_is_exact() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    patterns = np.arange(1 << 16, dtype=np.uint16)
    half, bfloat16 = poisoned(1 << 16, np.float32), poisoned(1 << 16, np.float32)
    arguments = (patterns, patterns, half, bfloat16, np.int32(1 << 16))
    _module().get_function("widen")((256,), (256,), arguments, orders=("forward",))
    np.testing.assert_array_equal(half, patterns.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(bfloat16, patterns.view(ml_dtypes.bfloat16).astype(np.float32))


CUDA = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" void round_to(const float* x, const double* y, unsigned short* h, unsigned short* b, unsigned short* hd,
                         unsigned short* bd, int n) {
    for (int i = 0; i < n; ++i) {
        h[i] = __half_as_ushort(__float2half(x[i]));
        b[i] = __bfloat16_as_ushort(__float2bfloat16(x[i]));
        hd[i] = __half_as_ushort(__double2half(y[i]));
        bd[i] = __bfloat16_as_ushort(__double2bfloat16(y[i]));
    }
}
"""


def test_rounding_is_that_of_cudas_own_headers(tmp_path: Path) -> None:
    folders = nvrtc.include_folders()
    for header in ("cuda_fp16.h", "crt/host_defines.h", "nv/target"):
        if not any((folder / header).is_file() for folder in folders):
            pytest.skip(f"needs {header}: pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl")
    source, library = tmp_path / "cuda.cpp", tmp_path / "cuda.so"
    source.write_text(CUDA)
    command: list[Any] = [translate.CXX, "-O1", "-shared", "-fPIC", source, "-o", library]
    subprocess.run([*command, *(f"-I{folder}" for folder in folders)], check=True, capture_output=True)
    x = _floats()
    with np.errstate(all="ignore"):
        y = x.astype(np.float64) * (1 + 2.0**-30)
    expected = [np.zeros(x.size, np.uint16) for _ in range(4)]
    ctypes.CDLL(str(library)).round_to(*(ctypes.c_void_p(a.ctypes.data) for a in (x, y, *expected)), x.size)
    for got, wanted in zip(_round(x, y), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def _of_activations(kernel: str, x: np.ndarray, macros: tuple[str, ...]) -> list[np.ndarray]:
    results = [poisoned(x.size, np.float32) for _ in range(2)]
    function = Module(SOURCE.parent / "activations.cu", macros).get_function(kernel)
    function((-(-x.size // 256),), (256,), (x, *results, np.int32(x.size)), orders=("forward",))
    return [one.astype(np.float64) for one in results]


def test_instructions_are_off_by_as_much_as_they_may_be() -> None:
    x = np.arange(-8, 8, 2**-10, dtype=np.float32) + np.float32(1e-4)
    exact_values = np.exp2(x, dtype=np.float64), 1 / x.astype(np.float64)
    for got, exact, units in zip(_of_activations("instructions", x, FLOAT), exact_values, (2, 1), strict=True):
        off = (got - exact) / 2.0 ** (np.frexp(exact)[1] - 24)
        assert np.abs(off).max() <= units
        assert off.min() < 0.4 - units < units - 0.4 < off.max(), "to both sides"
    special = np.array([np.inf, -np.inf, np.nan, 0, -0.0, 1e-40, 200, -200], np.float32)
    powers, reciprocals = _of_activations("instructions", special, FLOAT)
    np.testing.assert_array_equal(powers[[0, 1, 2, 6, 7]], [np.inf, 0, np.nan, np.inf, 0])
    np.testing.assert_array_equal(reciprocals[:6], [0, 0, np.nan, np.inf, -np.inf, np.inf])


@pytest.mark.parametrize("macros", [FLOAT, BFLOAT16], ids=["float32", "bfloat16"])
def test_activations_keep_their_bounds(macros: tuple[str, ...]) -> None:
    exponents = np.arange(0x2000, 0x4180, dtype=np.uint32)[:, None] << 16 | np.arange(0, 1 << 16, 1999, dtype=np.uint32)
    x = np.concatenate([np.arange(0, 20, 2**-13, dtype=np.float32), exponents.reshape(-1).view(np.float32)])
    x = np.concatenate([x, -x])
    exact_sigmoid, exact_tanh = 1 / (1 + np.exp(-x.astype(np.float64))), np.tanh(x.astype(np.float64))
    of_sigmoid, of_tanh = _of_activations("activations", x, macros)
    assert np.abs(of_sigmoid - exact_sigmoid).max() < 1.5e-7
    assert np.abs(of_sigmoid / exact_sigmoid - 1)[np.abs(x) < 10].max() < 8e-7
    assert np.abs(of_tanh - exact_tanh).max() < 3e-7
    if macros == FLOAT:
        known = exact_tanh != 0
        assert np.abs(of_tanh[known] / exact_tanh[known] - 1).max() < 5e-7
    special = np.array([np.inf, -np.inf, np.nan, 1e30, -1e30], np.float32)
    of_sigmoid, of_tanh = _of_activations("activations", special, macros)
    np.testing.assert_allclose(of_sigmoid, [1, 0, np.nan, 1, 0], rtol=0, atol=1.5e-7)
    np.testing.assert_allclose(of_tanh, [1, -1, np.nan, 1, -1], rtol=0, atol=3e-7)
