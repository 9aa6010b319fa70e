"""Memory that outlives a call: buffers by name and shape, and packed weights by version. Knows nothing of cells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .engine import Cpu, address
from .kernels import jit
from .params import Slots

OUTER_SCRATCH = 256 * 48  # elements of scratch that gemm.outer wants for each thread


class Workspace:
    """Named arrays for one shape of call; allocated at first use, then kept."""

    def __init__(self, engine: Cpu) -> None:
        self.engine = engine
        self.arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, *shape: int) -> np.ndarray:
        """The array `name`, of unknown content when new."""
        array = self.arrays.get(name)
        if array is None or array.shape != shape:
            array = self.arrays[name] = self.engine.empty(*shape)
        return array

    def zeros(self, name: str, *shape: int) -> np.ndarray:
        """The array `name`, zeroed."""
        array = self.array(name, *shape)
        array.fill(0)
        return array


class Packs:
    """Weights as the kernels read them, made once per version of the parameters and per instruction set.

    Parameters
    ----------
    engine : Cpu
    slots : Slots
        The parameters that they are made of.
    make : callable
        ``make(kind)`` fills ``space(kind, size)``.
    """

    def __init__(self, engine: Cpu, slots: Slots, make: Callable[[str], None]) -> None:
        self.engine, self.slots, self.make = engine, slots, make
        self._arrays: dict[str, np.ndarray] = {}
        self._fresh: set[str] = set()
        self._stamp: tuple[str, int, int] = ("", 0, 0)

    def space(self, kind: str, size: int) -> np.ndarray:
        """Where the pack `kind` of `size` elements lies."""
        array = self._arrays.get(kind)
        if array is None or array.size != size:
            array = self._arrays[kind] = self.engine.empty(size)
        return array

    def __call__(self, kind: str) -> np.ndarray:
        """The pack `kind`, up to date."""
        stamp = (jit.isa(), id(self.slots.store), self.slots.store.version)
        if stamp != self._stamp:
            self._stamp = stamp
            self._fresh.clear()
        if kind not in self._fresh:
            self.make(kind)
            self._fresh.add(kind)
        return self._arrays[kind]


def whole_rows(ws: Workspace, rows: int, x: int, x_row: int, width: int) -> tuple[int, int]:
    """(address, row) of x [rows, :width], copied only where its rows are shorter than the vectors that read them."""
    padded = ws.engine.padded(width)
    if x_row >= padded:
        return x, x_row
    out = ws.array(f"whole_{rows}_{width}", rows, padded)
    ws.engine.run("sequence.absorb_rows", rows, width, x, x_row, out, padded, work=rows * padded)
    return address(out), padded
