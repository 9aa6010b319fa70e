"""What differs between cells where a recurrence runs: their gates, their buffers, and the operations of their steps.

`recurrence.py` has the loops over a sequence and asks a cell for what is its own. `layer` is a `Recurrence`, `run` a pass over
a sequence (`Forward` or `Backward`) and `chunk` a few of its steps. `common` are the fields that the records of all cells have.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..kernels.operations import (
    GruBackward,
    GruForward,
    GruOriginalBackward,
    GruOriginalForward,
    LstmBackward,
    LstmForward,
    Product,
    ProductByThree,
    RnnBackward,
    RnnForward,
)
from ..runtime.program import address
from ..runtime.workspace import Workspace


class Inner(NamedTuple):
    """The gradients of the gates on h's side, as products read them: place, elements of a row, columns that count."""

    at: int
    row: int
    columns: int


class Cell:
    """A simple recurrent cell; the others say what is different."""

    gates = 1
    inner_gates = 1  # gates whose product with h comes before everything else in a step
    split = 1  # gates from this one on, in which the bias on h's side is not a part of the input product's
    product: type[Product] = Product  # of the inputs
    interleaves = False  # whether a tile of the product with h holds all gates of a vector of units
    strides = False  # whether rows of gates keep a distance that spreads them over the cache
    meets = True  # whether calls whose threads share the units may follow each other without a barrier

    def start(self, layer: Any, ws: Workspace, slots: int, batch: int) -> None:
        """Make the buffers of states beside h, for so many steps."""

    def states(self, ws: Workspace, slot: int) -> np.ndarray | None:
        """Return the second state in a slot, if there is one."""
        return None

    def saved(self, layer: Any, run: Any) -> int:
        """Return where forward keeps what backward needs beside the gates; 0 for nothing."""
        return 0

    def forward(self, layer: Any, run: Any, chunk: Any, common: dict[str, Any]) -> Any:
        """Return the operation of a chunk's steps."""
        return RnnForward(relu=layer.relu, **common)

    def inner(self, layer: Any, run: Any) -> Inner:
        """Return where the gradients of the gates on h's side are."""
        return Inner(run.kept, layer.kept_row, layer.columns)

    def backward(self, layer: Any, run: Any, chunk: Any, common: dict[str, Any]) -> Any:
        """Return the operation of a chunk's steps, last to first."""
        return RnnBackward(relu=layer.relu, h=run.h_at(chunk), **common)

    def add_sums(self, layer: Any, run: Any, chunk: Any) -> None:
        """Add a chunk's part to the gradients of weights beside W_ih and W_hh."""


class Lstm(Cell):
    """Long short-term memory, with a projection of h or without."""

    gates = inner_gates = split = 4
    interleaves = strides = True

    def start(self, layer: Any, ws: Workspace, slots: int, batch: int) -> None:
        """Make the buffer of c."""
        ws.array("c", slots, batch, layer.padded)

    def states(self, ws: Workspace, slot: int) -> np.ndarray | None:
        """Return c in a slot."""
        c = ws.arrays["c"]
        state: np.ndarray = c[slot % len(c)]
        return state

    def saved(self, layer: Any, run: Any) -> int:
        """Return where m is kept, which the projection reads."""
        return run.place("m", layer.side_row) if layer.projected else 0

    def forward(self, layer: Any, run: Any, chunk: Any, common: dict[str, Any]) -> Any:
        """Return the operation of a chunk's steps."""
        c = run.ws.arrays["c"]
        return LstmForward(
            width=layer.h_row,
            kept=run.kept_at(chunk),
            kept_row=layer.kept_row,
            c=c,
            c_slots=len(c),
            m=run.saved_at(chunk),
            m_row=layer.side_row,
            m_depth=layer.engine.depth(layer.hidden),
            projection=layer.packed("p") if layer.projected else 0,
            zeros=layer.zeros(run.ws),
            **common,
        )

    def inner(self, layer: Any, run: Any) -> Inner:
        """Return where the gradients of the gates are."""
        run.own["dp"] = address(run.ws.cleared("dp", run.steps, run.batch, layer.op_row)) if layer.projected else 0
        return super().inner(layer, run)

    def backward(self, layer: Any, run: Any, chunk: Any, common: dict[str, Any]) -> Any:
        """Return the operation of a chunk's steps, last to first."""
        arrays = run.ws.arrays
        return LstmBackward(
            width=layer.h_row,
            c=arrays["c"][chunk.first :],
            dc=arrays["dc"],
            projection=layer.packed("p_back") if layer.projected else 0,
            zeros=layer.zeros(run.ws),
            dp=run.at(run.own["dp"], chunk, layer.op_row),
            dp_row=layer.op_row,
            dp_depth=layer.engine.depth(layer.width),
            spare=run.spare(),
            **common,
        )

    def add_sums(self, layer: Any, run: Any, chunk: Any) -> None:
        """Add to the gradient of W_hr."""
        if layer.projected:
            m = run.at(address(run.ws.arrays["m"]), chunk, layer.side_row)
            run.sum("hr", chunk, (run.at(run.own["dp"], chunk, layer.op_row), layer.op_row, layer.h_row), (m, layer.side_row))


class Gru(Cell):
    """A gated recurrent unit whose reset gate acts after the product."""

    gates = inner_gates = 3
    split = 2
    product = ProductByThree
    interleaves = strides = True

    def saved(self, layer: Any, run: Any) -> int:
        """Return where n's part of the product with h is kept."""
        return run.place("side", layer.side_row) if run.save else 0

    def forward(self, layer: Any, run: Any, chunk: Any, common: dict[str, Any]) -> Any:
        """Return the operation of a chunk's steps."""
        return GruForward(bias=layer.packed("bias_n"), **self._kept(layer, run, chunk), **common)

    def _kept(self, layer: Any, run: Any, chunk: Any) -> dict[str, Any]:
        return {
            "kept": run.kept_at(chunk),
            "kept_row": layer.kept_row,
            "side": run.saved_at(chunk),
            "side_row": layer.side_row,
        }

    def inner(self, layer: Any, run: Any) -> Inner:
        """Make the gradients on h's side, which differ from those on the input's side in n."""
        return self._inner(layer, run, layer.columns)

    def _inner(self, layer: Any, run: Any, columns: int) -> Inner:
        row = layer.row(columns)
        return Inner(address(run.ws.cleared("inner", run.steps, run.batch, row)), row, columns)

    def backward(self, layer: Any, run: Any, chunk: Any, common: dict[str, Any]) -> Any:
        """Return the operation of a chunk's steps, last to first."""
        side = run.at(address(run.ws.arrays["side"]), chunk, layer.side_row)
        return GruBackward(inner=run.inner_at(chunk), side=side, side_row=layer.side_row, h=run.h_at(chunk), **common)


class OriginalGru(Gru):
    """The original gated recurrent unit, whose reset gate acts on h before the product."""

    inner_gates = 2
    split = 3
    interleaves = False
    meets = False

    def saved(self, layer: Any, run: Any) -> int:
        """Return where r * h is kept, which the product reads."""
        place: int = run.place("side", layer.side_row)
        return place

    def forward(self, layer: Any, run: Any, chunk: Any, common: dict[str, Any]) -> Any:
        """Return the operation of a chunk's steps."""
        return GruOriginalForward(weight_n=layer.packed("n"), **self._kept(layer, run, chunk), **common)

    def inner(self, layer: Any, run: Any) -> Inner:
        """Make the gradients of r and z once more, and apart from them those of n."""
        run.own["n"] = address(run.ws.cleared("inner_n", run.steps, run.batch, layer.side_row))
        return self._inner(layer, run, layer.engine.padded(2 * layer.hidden))

    def backward(self, layer: Any, run: Any, chunk: Any, common: dict[str, Any]) -> Any:
        """Return the operation of a chunk's steps, last to first."""
        return GruOriginalBackward(
            side_depth=layer.engine.depth(layer.hidden),
            inner=run.inner_at(chunk),
            inner_row=run.inner.row,
            inner_n=run.at(run.own["n"], chunk, layer.side_row),
            side_row=layer.side_row,
            h=run.h_at(chunk),
            weight_n=layer.packed("n_back"),
            zeros=layer.zeros(run.ws),
            spare=run.spare(),
            **common,
        )

    def add_sums(self, layer: Any, run: Any, chunk: Any) -> None:
        """Add to the gradient of the rows n of W_hh."""
        side = run.at(address(run.ws.arrays["side"]), chunk, layer.side_row)
        gradient = run.at(run.own["n"], chunk, layer.side_row), layer.side_row, layer.padded
        run.sum("n", chunk, gradient, (side, layer.side_row))


def cell_of(name: str, reset_after: bool) -> Cell:
    """Return the cell that a name stands for."""
    if name == "gru" and not reset_after:
        return OriginalGru()
    return {"rnn": Cell, "lstm": Lstm, "gru": Gru}[name]()
