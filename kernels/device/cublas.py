"""Products of matrices by cuBLAS, past CuPy, whose own functions refuse to run while a stream is captured.

The library is the one that CuPy's module for it was linked to, and so is the handle. Knows nothing of what is multiplied.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

# How a product is computed: types of operands and of the result as the CUDA runtime counts them, and cublasComputeType_t.
_R32, _R64, _R16, _RB16 = 0, 1, 2, 14
_KINDS = {
    "float32": (_R32, _R32, 68),
    "tf32": (_R32, _R32, 77),
    "float64": (_R64, _R64, 70),
    "bfloat16": (_RB16, _R32, 68),
    "float16": (_R16, _R32, 68),
}
_NUMBERS = {wide: np.array([0, 1], np.float64 if wide else np.float32) for wide in (False, True)}
_DEFAULT = -1  # CUBLAS_GEMM_DEFAULT
# Bytes to work with that NVIDIA recommends; with less it takes slower ways.
WORKSPACE, WORKSPACE_BEFORE_HOPPER = 32 << 20, 4 << 20


class Failed(RuntimeError):
    """cuBLAS refused a call."""


@cache
def _library() -> Any:
    """Functions of the library that CuPy uses; handles of another would not be its own."""
    from cupy_backends.cuda.libs import cublas

    found = ctypes.CDLL(cublas.__file__)  # a symbol is looked for in what it is linked to as well
    whole, place = ctypes.c_int, ctypes.c_void_p
    found.cublasSetStream_v2.argtypes = [place, place]
    found.cublasSetWorkspace_v2.argtypes = [place, place, ctypes.c_size_t]
    found.cublasGemmEx.argtypes = [
        place,
        *[whole] * 5,
        place,
        place,
        whole,
        whole,
        place,
        whole,
        whole,
        place,
        place,
        whole,
        whole,
        whole,
        whole,
    ]
    return found


def _checked(name: str, status: int) -> None:
    if status:
        raise Failed(f"{name} failed with cuBLAS status {status}")


def begin(handle: int, stream: int, workspace: int, size: int) -> None:
    """Let products of a handle go to a stream, with memory to work with that no product on another stream has at the time.

    Raises
    ------
    Failed
        With cuBLAS's own number of the error.
    """
    library = _library()
    _checked("cublasSetStream", library.cublasSetStream_v2(handle, stream))
    _checked("cublasSetWorkspace", library.cublasSetWorkspace_v2(handle, workspace, size))  # which the other one forgets


def multiply(
    handle: int,
    kind: str,
    turned: tuple[bool, bool],
    sizes: tuple[int, int, int],
    a: tuple[int, int],
    b: tuple[int, int],
    c: tuple[int, int],
    add: bool,
) -> None:
    """As of `cuda.Device`."""
    rows, columns, depth = sizes
    operand, result, compute = _KINDS[kind]
    numbers = _NUMBERS[kind == "float64"]
    zero, one = numbers.ctypes.data, numbers.ctypes.data + numbers.itemsize
    # cuBLAS counts by columns: what it sees of row-major A, B and C are their transposes, and C' = B' A'.
    status = _library().cublasGemmEx(
        handle,
        int(turned[1]),
        int(turned[0]),
        columns,
        rows,
        depth,
        one,
        b[0],
        operand,
        b[1],
        a[0],
        operand,
        a[1],
        one if add else zero,
        c[0],
        result,
        c[1],
        compute,
        _DEFAULT,
    )
    _checked("cublasGemmEx", status)
