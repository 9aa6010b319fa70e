"""cuBLAS on the host: products in float64 of operands as they are stored, tf32 ones cut off; and what its handle remembers."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np

from tests.cuda.pretend.machine import Machine
from tests.cuda.pretend.symbols import symbol

INVALID = 7
WORDS = {0: np.float32, 1: np.float64, 2: np.float16, 14: np.uint16}
TF32, DOUBLE = 77, 70  # CUBLAS_COMPUTE_*
LEAST_WORKSPACE = 16 << 10


class Blas:
    """The functions of libcublas that are called."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._handles: dict[int, dict[str, int]] = {}

    @symbol("p")
    def cublasCreate_v2(self, out: int) -> None:
        capturing = [stream.thread for stream in self.machine.streams.values() if stream.captured is not None]
        if threading.get_ident() in capturing:
            self.machine.fault("a handle of cuBLAS is made while a stream is captured")
        self._handles[made := self.machine.handle()] = {"stream": 0, "space": 0, "size": 0, "pointers": 0, "math": 0}
        ctypes.c_size_t.from_address(out).value = made

    @symbol("p")
    def cublasDestroy_v2(self, handle: int) -> None:
        del self._handles[handle]

    @symbol("pp")
    def cublasGetVersion_v2(self, handle: int, out: int) -> None:
        ctypes.c_int.from_address(out).value = 130100

    @symbol("pp")
    def cublasSetStream_v2(self, handle: int, stream: int) -> None:
        self._handles[handle] |= {"stream": stream, "space": 0, "size": 0}  # it forgets a workspace that it was given

    @symbol("pp")
    def cublasGetStream_v2(self, handle: int, out: int) -> None:
        ctypes.c_size_t.from_address(out).value = self._handles[handle]["stream"]

    @symbol("pi")
    def cublasSetPointerMode_v2(self, handle: int, mode: int) -> None:
        self._handles[handle]["pointers"] = mode

    @symbol("pp")
    def cublasGetPointerMode_v2(self, handle: int, out: int) -> None:
        ctypes.c_int.from_address(out).value = self._handles[handle]["pointers"]

    @symbol("pi")
    def cublasSetMathMode(self, handle: int, mode: int) -> None:
        self._handles[handle]["math"] = mode

    @symbol("pp")
    def cublasGetMathMode(self, handle: int, out: int) -> None:
        ctypes.c_int.from_address(out).value = self._handles[handle]["math"]

    @symbol("ppp")
    def cublasSetWorkspace_v2(self, handle: int, space: int, size: int) -> int:
        if space % 256 or size < LEAST_WORKSPACE:
            return INVALID
        self._handles[handle] |= {"space": space, "size": size}
        return 0

    @symbol("piiiiippiipiippiiii")
    def cublasGemmEx(self, *arguments: int) -> int:
        """C = alpha A B + beta C, by columns."""
        handle, turn_a, turn_b, m, n, k, alpha, *rest = arguments
        a, a_kind, lda, b, b_kind, ldb, beta, c, c_kind, ldc, compute, _ = rest
        if min(m, n, k) < 0 or lda < max(1, k if turn_a else m) or ldb < max(1, n if turn_b else k) or ldc < max(1, m):
            return INVALID
        state = self._handles[handle]
        real = ctypes.c_double if compute == DOUBLE else ctypes.c_float
        scale, add = real.from_address(alpha).value, real.from_address(beta).value
        space, size, machine = state["space"], state["size"], self.machine
        if state["pointers"]:
            machine.fault("a product whose numbers are said to lie on the device")
        if not space:
            machine.fault("a product without a workspace of its own: those on several streams would share cuBLAS's")

        def run(stream: int) -> None:
            if space:
                machine.bytes_at(space, size)[:: size // 4096] = 0xFF  # to do with as it likes
                machine.users.setdefault(space, set()).add(stream)
            left = self._values(a, a_kind, lda, (m, k) if turn_a else (k, m), compute)
            right = self._values(b, b_kind, ldb, (k, n) if turn_b else (n, k), compute)
            target = self._matrix(c, c_kind, ldc, (n, m))
            product = scale * ((right.T if turn_b else right) @ (left.T if turn_a else left))
            target[...] = product + add * target if add else product

        machine.calls["product"] = machine.calls.get("product", 0) + 1
        machine.issue(state["stream"], run)
        return 0

    def _matrix(self, address: int, kind: int, row: int, shape: tuple[int, int]) -> np.ndarray:
        """A matrix by rows, which are cuBLAS's columns."""
        word = np.dtype(WORDS[kind])
        if address % word.itemsize:
            raise IndexError(f"a matrix at {address:#x}, where no {word} can be")
        size = (row * max(0, shape[0] - 1) + shape[1]) * word.itemsize if all(shape) else 0
        flat = self.machine.bytes_at(address, size).view(word)
        return np.lib.stride_tricks.as_strided(flat, shape, (row * word.itemsize, word.itemsize))

    def _values(self, address: int, kind: int, row: int, shape: tuple[int, int], compute: int) -> Any:
        found = self._matrix(address, kind, row, shape)
        if kind == 14:
            found = (found.astype(np.uint32) << 16).view(np.float32)
        if compute == TF32:
            found = (np.ascontiguousarray(found).view(np.uint32) & 0xFFFFE000).view(np.float32)
        return found.astype(np.float64)
