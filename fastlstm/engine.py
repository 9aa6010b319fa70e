"""(device, dtype) -> the kernels that serve it: how a layer or model runs an operation, and what this machine offers.

Knows the kernels' names and how arguments reach them; nothing of layers, models or training.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .kernels import jit, team

DTYPES = ("float32", "float64")


def address(array: np.ndarray) -> int:
    """Where an array's first element lies."""
    return int(array.__array_interface__["data"][0])


class _Arguments(threading.local):
    """One block of int64 per Python thread, reused by every call."""

    def __init__(self) -> None:
        self.block = np.zeros(64, np.int64)
        self.at = address(self.block)


_arguments = _Arguments()


class Cpu:
    """Runs kernels of one dtype on the processor.

    `run(name, *arguments)` takes ints and arrays; an array stands for its address (None: 0). Shapes and types are the
    caller's affair: kernels check nothing.
    """

    # Below this much work (multiplications) waking a thread costs more than it saves.
    PARALLEL_WORK = 300_000

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.itemsize = np.dtype(dtype).itemsize

    @property
    def lanes(self) -> int:
        """Elements in a vector of the instruction set in use."""
        return jit.WIDTHS[jit.isa()] // self.itemsize

    def padded(self, size: int) -> int:
        """`size` rounded up to whole vectors."""
        lanes = self.lanes
        return (size + lanes - 1) // lanes * lanes

    def empty(self, *shape: int) -> np.ndarray:
        """Uninitialised array, its first element on a cache line."""
        return _aligned(np.empty, shape, self.dtype)

    def zeros(self, *shape: int) -> np.ndarray:
        """Array of zeros, its first element on a cache line."""
        return _aligned(np.zeros, shape, self.dtype)

    def run(self, name: str, *arguments: Any, work: int = 1 << 62) -> None:
        """Run kernel `name`; on all threads if `work` is worth it."""
        local = _arguments
        block = local.block
        for k, argument in enumerate(arguments):
            if argument.__class__ is not int:
                argument = 0 if argument is None else address(argument) if isinstance(argument, np.ndarray) else int(argument)
            block[k] = argument
        team.call(jit.compiled(name, self.dtype), local.at, work >= self.PARALLEL_WORK)


def _aligned(make: Callable[..., np.ndarray], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = make(size + 64, np.uint8)
    skip = -address(raw) % 64
    return raw[skip : skip + size].view(dtype).reshape(shape)


_engines: dict[str, Cpu] = {}


def engine(device: str, dtype: str) -> Cpu:
    """The engine for a device and dtype.

    Raises
    ------
    ValueError
        For a device or dtype that there is none for.
    """
    if device != "cpu":
        if isinstance(device, str) and device.split(":")[0] == "cuda":
            raise ValueError(f"device is {device!r}: this version runs on the CPU only; expected 'cpu'")
        raise ValueError(f"device is {device!r}; expected 'cpu'")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if dtype not in _engines:
        _engines[dtype] = Cpu(dtype)
    return _engines[dtype]


KERNELS = (
    "gemm.product", "gemm.product_by_three", "gemm.outer",
    "pack.pack_columns", "pack.pack_rows", "pack.pack_bias", "pack.add_rows",
    "sequence.emit_rows", "sequence.absorb_rows",
    "lstm.forward", "lstm.backward", "rnn.forward", "rnn.backward",
    "gru.forward", "gru.backward", "gru.original_forward", "gru.original_backward",
    "head.gather_rows", "head.scatter_rows", "head.softmax_cross_entropy",
    "update.adam", "update.rmsprop", "update.sgd", "update.scale", "update.clip_value",
    "update.square_sums", "update.absolute_sums", "random.dropout",
)  # fmt: skip


def warmup(progress: Callable[[str], None] = lambda line: None, dtypes: tuple[str, ...] = DTYPES) -> None:
    """Compile every kernel for this processor ahead of use, for images and read-only systems."""
    for dtype in dtypes:
        for name in KERNELS:
            progress(f"{name} {dtype}")
            jit.compiled(name, dtype)


def describe() -> dict[str, Any]:
    """What this machine offers and which kernels serve it."""
    folder = jit.cache_folder()
    return {
        "processor": processor(),
        "llvm_processor": jit.host()[0],
        "instruction_sets": jit.supported(),
        "in_use": jit.isa(),
        "vector_bits": jit.WIDTHS[jit.isa()] * 8,
        "threads": team.num_threads(),
        "dtypes": list(DTYPES),
        "compiled_kernels": "kept in memory only: no folder can be written" if folder is None else str(folder),
        "cuda": "not in this version",
    }


def processor() -> str:
    """The processor's name as its maker gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
