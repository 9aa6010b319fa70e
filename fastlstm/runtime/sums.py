"""Sums over whole arrays, in float64, whose bits depend on the array alone and not on the threads; know no meaning of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.operations import AbsoluteSums, SquareSums
from .engine import serving
from .program import at_once

CHUNK = 4096  # elements of one partial sum, whatever the number of threads


def squares(values: np.ndarray) -> float:
    """Sum of the squares of a C-contiguous float32 or float64 array."""
    return _sum(SquareSums, values)


def magnitudes(values: np.ndarray) -> float:
    """Sum of the magnitudes, as `squares`."""
    return _sum(AbsoluteSums, values)


def chunks(size: int) -> int:
    """How many partial sums an array of `size` elements has."""
    return -(-size // CHUNK)


def _sum(operation: type[SquareSums | AbsoluteSums], values: Any) -> float:
    server = serving(values)
    parts = server.buffer(chunks(values.size), "float64")
    with at_once():
        server.run(operation(size=values.size, chunk=CHUNK, values=values, sums=parts), work=values.size)
    return float(parts.sum())
