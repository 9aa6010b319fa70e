"""Memory that outlives a call: buffers by name and shape, and packed weights by version. Knows nothing of cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels.native import team
from ..kernels.operations import PACK_SCRATCH, FillZeros, OperandRows, PackBias, PackColumns, PackRows
from .engine import Engine
from .params import Slots
from .program import Place, address, at_once, recording

PACKING = (PackColumns, PackRows, PackBias)


class Workspace:
    """Named arrays for one shape of call; allocated at first use, then kept."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.arrays: dict[str, np.ndarray] = {}
        self._made_ever: list[np.ndarray] = []  # programs may hold the address of what was replaced, or lost to another thread

    def array(self, name: str, *shape: int) -> np.ndarray:
        """The array `name`, of unknown content when new."""
        return self._made(name, shape, self.engine.empty)

    def cleared(self, name: str, *shape: int) -> np.ndarray:
        """The array `name`, zeros when new: for padding that nothing writes to."""
        return self._made(name, shape, self.engine.zeros)

    def doubles(self, name: str, count: int) -> np.ndarray:
        """The one-dimensional float64 array `name`, of unknown content when new."""
        whole = self.array(name, count, 8 // self.engine.itemsize)
        return whole.view(np.float64).ravel()

    def bytes(self, name: str, count: int) -> np.ndarray:
        """The one-dimensional uint8 array `name`, of unknown content when new."""
        return self.array(name, count).view(np.uint8)[:count]

    def _made(self, name: str, shape: tuple[int, ...], make: Callable[..., np.ndarray]) -> np.ndarray:
        array = self.arrays.get(name)
        if array is None or array.shape != shape:
            array = make(*shape)
            self._made_ever.append(array)
            self.arrays[name] = array
        return array

    def zeros(self, name: str, *shape: int) -> np.ndarray:
        """The array `name`, set to zero by a kernel each time."""
        array = self.array(name, *shape)
        self.engine.run(FillZeros(size=array.size, out=array), work=array.size // 8)
        return array


class Packs:
    """Weights as the kernels read them, made once per version of the parameters and per kind of kernels.

    One thread makes them, the others wait for it. They are made where the old ones lie, so calls that still run meanwhile
    see them half made: each element is written once, as the old weight or the new one and never anything else, but a product,
    or one step after another, may mix both. Whoever edits parameters beside running calls has no say in which they use.

    Parameters
    ----------
    engine : Engine
    slots : Slots
        The parameters that they are made of.
    make : callable
        ``make(kind)`` calls `columns`, `rows` or `bias` for it.
    """

    def __init__(self, engine: Engine, slots: Slots, make: Callable[[str], None]) -> None:
        self.engine, self.slots, self.make = engine, slots, make
        self._arrays: dict[tuple[str, str], np.ndarray] = {}
        self._fresh: dict[tuple[str, str], tuple[int, int]] = {}  # stamps of the parameters that they were made of
        self._marks: dict[tuple[str, str], Any] = {}

    def __call__(self, kind: str) -> np.ndarray:
        """The pack `kind`, up to date; a program that is being recorded will see to it that it stays so."""
        if recording.program is not None:
            recording.program.needs.add((self, kind))
        if self.stale(kind):
            self.prepare()
            with self.slots.store.packing, at_once():
                if self.stale(kind):
                    stamp = self.slots.store.stamp
                    self.make(kind)
                    self.note(kind, stamp, self.engine.mark())
        return self._arrays[self.engine.kind, kind]

    def prepare(self) -> None:
        """Compile what makes packs, before the lock is taken."""
        self.engine.prepare(*PACKING)

    def stale(self, kind: str) -> bool:
        """Whether parameters have changed since the pack was made."""
        return self._fresh.get((self.engine.kind, kind)) != self.slots.store.stamp

    def note(self, kind: str, stamp: tuple[int, int], mark: Any) -> None:
        """The pack has been made of the parameters as they were at `stamp`, or as somebody was changing them to be, by work
        that ends at an engine's `mark`.
        """
        self._marks[self.engine.kind, kind] = mark
        self._fresh[self.engine.kind, kind] = stamp

    def mark(self, kind: str) -> Any:
        """Where the work ends that made the pack."""
        return self._marks.get((self.engine.kind, kind))

    def _space(self, kind: str, size: int) -> np.ndarray:
        key = (self.engine.kind, kind)
        if key not in self._arrays:
            self._arrays[key] = self.engine.zeros(size)
        return self._arrays[key]

    def columns(self, kind: str, hidden: int, gates: int, width: int, vectors: int, weight: int) -> None:
        """W [gates*hidden, width] by address, for products with its transpose, in panels of `vectors` vectors."""
        engine = self.engine
        depth, columns = engine.depth(width), engine.padded(gates * hidden)
        engine.run(
            PackColumns(
                hidden=hidden,
                gates=gates,
                unit=engine.lanes,
                width=width,
                depth=depth,
                columns=columns,
                vectors=vectors,
                w=weight,
                w_row=width,
                packed=self._space(kind, columns * depth),
                scratch=self._scratch(),
            ),
            work=4 * columns * depth,
            shared_by="pack",
        )

    def rows(self, kind: str, hidden: int, gates: int, width: int, weight: int) -> None:
        """W [gates*hidden, width] by address, for products with it as it is."""
        engine = self.engine
        depth, columns = engine.depth(gates * hidden), engine.padded(width)
        engine.run(
            PackRows(
                hidden=hidden,
                gates=gates,
                unit=engine.lanes,
                width=width,
                depth=depth,
                columns=columns,
                w=weight,
                w_row=width,
                packed=self._space(kind, columns * depth),
                scratch=self._scratch(),
            ),
            work=4 * columns * depth,
            shared_by="pack",
        )

    def bias(self, kind: str, hidden: int, gates: int, split: int, a: int, b: int) -> None:
        """The sum of two biases by address; see pack.pack_bias."""
        engine, count = self.engine, self.engine.padded(gates * hidden)
        engine.run(
            PackBias(
                hidden=hidden,
                gates=gates,
                unit=engine.lanes,
                columns=count,
                split=split,
                first=a,
                second=b,
                packed=self._space(kind, count),
            ),
            work=0,
        )

    def _scratch(self) -> np.ndarray:
        return self._space(f"scratch {team.num_threads()}", team.num_threads() * PACK_SCRATCH)


def as_operands(ws: Workspace, name: str, steps: int, batch: int, x: Place, x_row: int, width: int) -> tuple[int, int]:
    """(address, row) of x [steps, batch, :width] as products read it; itself, where they read the values as they are."""
    if not ws.engine.narrow:
        return x, x_row
    row = ws.engine.row(width)
    out, tails = ws.array(name, steps, batch, row), ws.array("tails", team.num_threads(), ws.engine.lanes)
    ws.engine.run(
        OperandRows(steps=steps, batch=batch, width=width, source=x, source_row=x_row, out=out, out_row=row, scratch=tails),
        work=steps * batch * width,
        shared_by=(batch, "rows"),
    )
    return address(out), row
