"""How the parts of kernels are compiled, and which processors have code of their own."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from numba import njit

X86 = platform.machine().lower() in ("x86_64", "amd64")
ARM = platform.machine().lower() in ("aarch64", "arm64")
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": False}


def device(function: Callable[..., Any]) -> Any:
    """A part of a kernel: njit under the options that keep results the same everywhere."""
    return njit(**OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """A `device` function whose calls, several and with constants, are each worth a copy of it."""
    return njit(forceinline=True, **OPTIONS)(function)
