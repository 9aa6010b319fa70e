"""What this machine offers and which kernels serve it; and kernels compiled ahead of use."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from ..kernels.native import jit, team
from ..kernels.operations import OPERATIONS
from ..shape import DTYPES
from . import cuda


def warmup(progress: Callable[[str], None] = lambda line: None, dtypes: tuple[str, ...] = DTYPES) -> None:
    """Compile every kernel for this processor ahead of use, for images and read-only systems."""
    for dtype in dtypes:
        for operation in OPERATIONS.values():
            if operation.kernel is not None:
                progress(f"{operation.kernel} {dtype}")
                jit.compiled(operation.kernel, dtype)


def describe() -> dict[str, Any]:
    """What this machine offers and which kernels serve it."""
    return {
        "processor": processor(),
        "llvm_processor": jit.host()[0],
        "instruction_sets": jit.supported(),
        "in_use": jit.isa(),
        "vector_bits": jit.WIDTHS[jit.isa()] * 8,
        "bfloat16_products": list(jit.bfloat16_products(jit.isa())),
        "bfloat16_in_use": jit.bfloat16_product(),
        "tiles": jit.tiles(),
        "threads": team.num_threads(),
        "dtypes": list(DTYPES),
        "compiled_kernels": jit.cache_described(),
        "cuda": cuda.describe(),
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
