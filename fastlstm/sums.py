"""Sums over whole arrays, in float64, whose bits depend on the array alone and not on the threads; know no meaning of them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from .engine import serving

CHUNK = 4096  # elements of one partial sum, whatever the number of threads


class _Scratch(threading.local):
    """Partial sums: one buffer per Python thread, which grows to the largest need."""

    def __init__(self) -> None:
        self.sums = np.empty(64)


_scratch = _Scratch()


def squares(values: np.ndarray) -> float:
    """Sum of the squares of a C-contiguous float32 or float64 array; nothing is allocated once the size has been seen."""
    return _sum("update.square_sums", values)


def magnitudes(values: np.ndarray) -> float:
    """Sum of the magnitudes, as `squares`."""
    return _sum("update.absolute_sums", values)


def chunks(size: int) -> int:
    """How many partial sums an array of `size` elements has."""
    return -(-size // CHUNK)


def _sum(kernel: str, values: Any) -> float:
    count = chunks(values.size)
    server = serving(values)
    if not isinstance(values, np.ndarray):
        parts = server.buffer(count, "float64")
        server.run(kernel, values.size, CHUNK, values, parts)
        return float(parts.sum())
    if count > _scratch.sums.size:
        _scratch.sums = np.empty(count)
    sums = _scratch.sums[:count]
    server.run(kernel, values.size, CHUNK, values, sums, work=values.size)
    return float(sums.sum())
