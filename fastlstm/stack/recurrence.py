"""One direction of one recurrent layer on kernel buffers: packed weights, and passes over a sequence in chunks.

A chunk is a few steps whose gates stay in cache between the input product, the recurrence and the products of the gradients.
All buffers are time-major, rows padded to whole vectors; nothing is validated here. What products read comes in rows of
`engine.row` elements of storage (kernels/vector/narrow.py). What differs between cells is in cells.py.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np

from ..kernels.native import team
from ..kernels.operations import AbsorbRows, ClearRows, GatherRows, OperandRows, Product, recurrence_space
from ..runtime.engine import Engine
from ..runtime.params import Slots
from ..runtime.program import Place, address, product_work
from ..runtime.workspace import Packs, Workspace
from . import sharing
from .cells import cell_of
from .products import Matrix, add_outer, outer_product
from .ragged import Ragged

CHUNK_BYTES = 1 << 21


class Recurrence:
    """One direction of one layer.

    Parameters
    ----------
    engine : Engine
        Runs the operations.
    cell : {"rnn", "lstm", "gru"}
    sizes : tuple of int
        Input width I, hidden units H, and R, the width of h (H, or the projection's).
    slots : Slots
        Parameters `weight_ih` + suffix and so on.
    suffix : str
        As `_l0_reverse`.
    reverse, relu, reset_after : bool
    """

    def __init__(
        self,
        engine: Engine,
        cell: str,
        sizes: tuple[int, int, int],
        slots: Slots,
        suffix: str,
        *,
        reverse: bool = False,
        relu: bool = False,
        reset_after: bool = True,
    ) -> None:
        self.engine, self.cell, self.slots, self.suffix = engine, cell, slots, suffix
        self.inputs, self.hidden, self.width = sizes
        self.kind = cell_of(cell, reset_after)
        self.reverse, self.relu, self.reset_after = int(reverse), int(relu), reset_after
        self.projected = self.width != self.hidden or f"weight_hr{suffix}" in slots.places
        self.biased = f"bias_ih{suffix}" in slots.places
        self.packed = Packs(engine, slots, self._pack)

    def reversed(self) -> Recurrence:
        """Return the same weights in the other direction."""
        twin = copy.copy(self)
        twin.reverse = 1 - self.reverse
        return twin

    # Sizes in the current instruction set's padding.
    @property
    def padded(self) -> int:
        """Hidden units, padded."""
        return self.engine.padded(self.hidden)

    @property
    def h_row(self) -> int:
        """Width of h, padded."""
        return self.engine.padded(self.width)

    @property
    def op_row(self) -> int:
        """Storage of a row of h as products read it."""
        return self.engine.row(self.width)

    @property
    def side_row(self) -> int:
        """Storage of a row of the hidden units as products read them."""
        return self.engine.row(self.hidden)

    @property
    def columns(self) -> int:
        """Width of the interleaved gates."""
        return self.engine.padded(self.kind.gates * self.hidden)

    @property
    def gates_depth(self) -> int:
        """Words of a row of gates that a product reads."""
        return self.engine.depth(self.kind.gates * self.hidden)

    @property
    def inner_depth(self) -> int:
        """The same of the gates' gradients on h's side."""
        return self.engine.depth(self.kind.inner_gates * self.hidden)

    @property
    def gates_row(self) -> int:
        """Distance from one row of gates to the next."""
        return self.columns if self.engine.narrow else self.kept_row

    @property
    def kept_row(self) -> int:
        """The same of gates as products read them; without narrow operands both lie in one place."""
        return self.row(self.columns)

    def row(self, columns: int) -> int:
        """Return the distance between rows of so many columns of gates, as products read them."""
        if self.engine.narrow:
            return self.engine.row(columns)
        return self.engine.stride(columns) if self.kind.strides else columns  # a simple cell's gates lie as h does

    def _at(self, name: str, row: int = 0, *, grad: bool = False) -> int:
        """Return the address of a row of a parameter or its gradient, 0 where there is no such parameter."""
        place = self.slots.places.get(name + self.suffix)
        if place is None:
            return 0
        begin, shape = place
        buffer = self.slots.store.grads if grad else self.slots.store.params
        return address(buffer) + (begin + row * (shape[1] if len(shape) > 1 else 1)) * self.engine.itemsize

    def _pack(self, kind: str) -> None:
        """Pack the weight of one kind of product.

        x: inputs times W_ih. h: h times W_hh. n: h times W_hh's rows of the gate n. p: the LSTM's projection, times W_hr.
        With `_back`: the product of the backward pass. bias, bias_n: the biases of x's product, and of the gate n alone.
        """
        hidden, gates, inner, packed = self.hidden, self.kind.gates, self.kind.inner_gates, self.packed
        vectors = {1: 4, 2: 2, 3: 3, 4: 4}
        if kind == "x":
            packed.columns(kind, hidden, gates, self.inputs, vectors[gates], self._at("weight_ih"))
        elif kind == "h":
            packed.columns(kind, hidden, inner, self.width, vectors[inner], self._at("weight_hh"))
        elif kind == "n":
            packed.columns(kind, hidden, 1, hidden, 4, self._at("weight_hh", 2 * hidden))
        elif kind == "p":
            packed.columns(kind, self.width, 1, hidden, 4, self._at("weight_hr"))
        elif kind == "x_back":
            packed.rows(kind, hidden, gates, self.inputs, self._at("weight_ih"))
        elif kind == "h_back":
            packed.rows(kind, hidden, inner, self.width, self._at("weight_hh"))
        elif kind == "n_back":
            packed.rows(kind, hidden, 1, hidden, self._at("weight_hh", 2 * hidden))
        elif kind == "p_back":
            packed.rows(kind, self.width, 1, hidden, self._at("weight_hr"))
        elif kind == "bias":
            packed.bias(kind, hidden, gates, self.kind.split, self._at("bias_ih"), self._at("bias_hh"))
        elif kind == "bias_n":
            packed.bias(kind, hidden, 1, 0, self._at("bias_hh", 2 * hidden) if self.biased else 0, 0)

    def share(self, batch: int, ragged: Ragged | None = None, backward: bool = False) -> sharing.Share:
        """Return how threads share the steps; those of a ragged batch have half of its rows or so."""
        if ragged:
            batch = -(-batch // 2)
        if self.engine.whole:
            return sharing.Share(False, False, 0.0)
        lanes, wide = self.engine.lanes, 4 * self.engine.lanes
        panels = -(-min(self.padded, self.h_row) // wide)
        if self.kind.interleaves and not (backward or self.projected):
            panels = self.padded // lanes
        weight = self.columns * self.h_row + (self.padded * self.h_row if self.projected else 0)
        return sharing.choose(self.engine.dtype, batch, weight, panels, team.num_threads())

    def table(self, ws: Workspace, name: str, rows: int, source: Place, source_row: int) -> np.ndarray:
        """Return the gates [rows, gates_row] of `rows` inputs, such as all tokens of a vocabulary; x as products read it."""
        out = ws.array(name, rows, self.gates_row)
        self.input_product((1, rows), 1, source, source_row, address(out), None)
        return out

    def input_product(self, grid: tuple[int, int], units: int, x: Place, x_row: int, out: Place, shared_by: Any) -> None:
        """Make the gates' part of the inputs, with the bias: out [*grid, gates_row]."""
        steps, batch = grid
        self.engine.run(
            self.kind.product(
                steps=steps,
                batch=batch,
                depth=self.engine.depth(self.inputs),
                columns=self.columns,
                units=units,
                a=x,
                a_row=x_row,
                weight=self.packed("x"),
                c_in=self.packed("bias"),
                c_in_row=0,
                c=out,
                c_row=self.gates_row,
            ),
            work=product_work(steps * batch, self.inputs * self.columns),
            shared_by=shared_by,
        )

    def _absorb(self, batch: int, width: int, source: Place, out: Any, out_row: int) -> None:
        """Copy rows of a caller's array [batch, width] (0: zeros) to padded ones."""
        self.engine.run(
            AbsorbRows(steps=1, batch=batch, width=width, source=source, source_row=width, out=out, out_row=out_row),
            work=batch * width,
            shared_by=(batch, "rows"),
        )

    def begin(self, ws: Workspace, steps: int, batch: int, h_0: Place, c_0: Place, save: bool) -> None:
        """Put the initial states [B, R] and [B, H], by address (0: zeros), where the first step reads them."""
        first = steps if self.reverse else 0
        h = ws.array("h", steps + 1, batch, self.h_row)
        self._absorb(batch, self.width, h_0, h[first], self.h_row)
        if self.engine.narrow:
            op = ws.cleared("op", steps + 1, batch, self.op_row)
            self.engine.run(
                OperandRows(
                    steps=1,
                    batch=batch,
                    width=self.width,
                    source=h[first],
                    source_row=self.h_row,
                    out=op[first],
                    out_row=self.op_row,
                    scratch=ws.array("tails", team.num_threads(), self.engine.lanes),
                ),
                work=batch * self.op_row,
                shared_by=(batch, "rows"),
            )
        self.kind.start(self, ws, steps + 1 if save else 2, batch)
        c = self.kind.states(ws, first)
        if c is not None:
            self._absorb(batch, self.hidden, c_0, c, self.padded)

    def operands(self, ws: Workspace) -> np.ndarray:
        """Return h of all steps as products read it, [T+1, B, op_row]."""
        return ws.arrays["op" if self.engine.narrow else "h"]

    def end(self, ws: Workspace, steps: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the final states [B, h_row] and [B, padded]."""
        last = 0 if self.reverse else steps
        return ws.arrays["h"][last], self.kind.states(ws, last)

    def outputs(self, ws: Workspace) -> tuple[int, int]:
        """Return the address of h of step 0, rows of `h_row` elements; and of h as products read it, rows of `op_row`."""
        h, op = ws.arrays["h"], self.operands(ws)
        skip = 0 if self.reverse else 1
        return address(h) + skip * h[0].nbytes, address(op) + skip * op[0].nbytes

    def zeros(self, ws: Workspace) -> np.ndarray:
        """Return a row of zeros, as long as any."""
        return ws.cleared("zeros", max(self.h_row, self.padded, self.engine.padded(self.inputs)))

    def forward(self, ws: Workspace, steps: int, batch: int, save: bool, **options: Any) -> None:
        """Run all steps, from the states that `begin` put; the arguments are those of `Forward`."""
        Forward(self, ws, steps, batch, save, **options).run()

    def begin_backward(self, ws: Workspace, batch: int, dh_n: Place, dc_n: Place) -> None:
        """Put the gradients of the final states, by address (0: zeros)."""
        self._absorb(batch, self.width, dh_n, ws.array("dh", batch, self.h_row), self.h_row)
        if self.kind.states(ws, 0) is not None:
            self._absorb(batch, self.hidden, dc_n, ws.array("dc", batch, self.padded), self.padded)

    def end_backward(self, ws: Workspace) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the gradients of the initial states, [B, h_row] and [B, padded]."""
        return ws.arrays["dh"], ws.arrays.get("dc")

    def gradients(self, ws: Workspace) -> np.ndarray:
        """Return, after backward, the gradients of the gates as products read them [T, B, kept_row]."""
        return ws.arrays["kept" if self.engine.narrow else "gates"]

    def sum_gradient(self, ws: Workspace, kind: str, rows: int, gradient: Matrix, x: tuple[Place, int], start: bool) -> None:
        """Sum a part of a weight's gradient: ih, hh, n, hr as in `_pack`; x is (address, row)."""
        width = {"ih": self.inputs, "hh": self.width, "n": self.hidden, "hr": self.hidden}[kind]
        outer_product(ws, kind, rows, gradient, Matrix(*x, width), start)

    def add_gradient(self, ws: Workspace, kind: str) -> None:
        """Add what was summed to the gradients of the weight and its bias."""
        units, width, weight, row = {
            "ih": ((self.hidden, self.kind.gates), self.inputs, "weight_ih", 0),
            "hh": ((self.hidden, self.kind.inner_gates), self.width, "weight_hh", 0),
            "n": ((self.hidden, 1), self.hidden, "weight_hh", 2 * self.hidden),
            "hr": ((self.width, 1), self.hidden, "weight_hr", 0),
        }[kind]
        bias = self._at("bias_ih" if kind == "ih" else "bias_hh", row, grad=True) if self.biased and kind != "hr" else 0
        add_outer(ws, kind, units, width, self._at(weight, row, grad=True), bias)

    def add_table(self, ws: Workspace, table: Matrix, rows: int, x: tuple[Place, int], dx: tuple[Place, int]) -> None:
        """Add the gradient of a `table` to those of weight_ih and the biases, and find that of the inputs.

        table: the gradient [V, kept_row], as products read it. x [V, x_row] as products read it and dx [V, dx_row]: address
        and row.
        """
        self.sum_gradient(ws, "ih", rows, table, x, start=True)
        self.add_gradient(ws, "ih")
        self.engine.run(
            Product(
                steps=1,
                batch=rows,
                depth=self.gates_depth,
                columns=dx[1],
                units=0,
                a=table.at,
                a_row=table.row,
                weight=self.packed("x_back"),
                c_in=self.zeros(ws),
                c_in_row=0,
                c=dx[0],
                c_row=dx[1],
            ),
            work=rows * self.columns * dx[1],
        )


class Chunk(NamedTuple):
    """A few steps of a sequence: the index of the first, how many, and the first one's first row among all steps' rows."""

    first: int
    steps: int
    row: int


class _Pass:
    """What forward and backward over a sequence have in common: sizes, chunks, and how threads share them."""

    def __init__(
        self,
        layer: Recurrence,
        ws: Workspace,
        steps: int,
        batch: int,
        *,
        lengths: Place,
        clear: Place,
        ragged: Ragged | None,
        backward: bool,
    ) -> None:
        self.layer, self.ws, self.steps, self.batch = layer, ws, steps, batch
        self.engine = layer.engine
        self.lengths, self.clear, self.ragged = lengths, clear, ragged
        self.sharing = layer.share(batch, ragged, backward)
        self.units = int(self.sharing.parallel and self.sharing.units)
        self.meeting = self.engine.meeting(ws)
        self.chunks = self._chunks()

    def _chunks(self) -> list[Chunk]:
        """Return the chunks in the order of the recurrence."""
        steps, layer = self.steps, self.layer
        if self.engine.whole or self.ragged:
            return [Chunk(0, steps, 0)]
        most = max(1, CHUNK_BYTES // (self.batch * layer.columns * self.engine.itemsize))
        size = -(-steps // -(-steps // most))
        chunks = [Chunk(t, min(size, steps - t), t * self.batch) for t in range(0, steps, size)]
        return chunks[::-1] if layer.reverse else chunks

    @property
    def shared_by(self) -> Any:
        """How threads share the data, for `program.Program`: rows of the batch, or this recurrence's units."""
        if self.ragged:
            return None
        if self.units:
            return (id(self.layer), "units") if self.layer.kind.meets else None
        return (self.batch, "rows")

    def grid(self, chunk: Chunk) -> tuple[int, int]:
        """Return (steps, rows) for operations that take one row like another."""
        return (1, self.ragged.rows) if self.ragged else (chunk.steps, self.batch)

    def rows(self, chunk: Chunk) -> int:
        """Return how many rows a chunk's steps have together."""
        return self.ragged.rows if self.ragged else chunk.steps * self.batch

    def at(self, place: int, chunk: Chunk, row: int) -> int:
        """Return where a chunk's first row is in an array of all steps, whose rows lie `row` elements apart; 0 for none."""
        return place and place + chunk.row * row * self.engine.itemsize

    def common(self, chunk: Chunk) -> dict[str, Any]:
        """Return the fields that the records of forward and backward have."""
        return {
            "steps": self.ragged.steps if self.ragged else chunk.steps,
            "batch": self.batch,
            "hidden": self.layer.hidden,
            "reverse": self.layer.reverse,
            "time": chunk.first,
            "units": self.units,
            "barrier": self.meeting,
            "lengths": self.lengths,
            "clear": self.clear and self.clear + chunk.row,
            "starts": self.ragged.starts if self.ragged else 0,
        }


class Forward(_Pass):
    """All steps of a sequence, from the states that `Recurrence.begin` put.

    Parameters
    ----------
    layer : Recurrence
    ws : Workspace
    steps, batch : int
    save : bool
        Whether to keep what `Backward` needs.
    x, x_row : int
        The inputs [T, B, x_row] as products read them, by address; or instead
    ids, table : int
        ids [T, B] int32 into table [V, gates] (`Recurrence.table`), by address. Neither: all gates start with the bias.
    lengths, clear : int
        [B] int64 and [T, B] uint8 by address, 0 for none.
    ragged : Ragged, optional
        A batch of sequences without padding. Its rows fit into `steps` steps of `batch` rows. Not with ids, lengths or clear,
        and not in reverse.
    """

    def __init__(
        self,
        layer: Recurrence,
        ws: Workspace,
        steps: int,
        batch: int,
        save: bool,
        *,
        x: Place = 0,
        x_row: int = 0,
        ids: Place = 0,
        table: Place = 0,
        lengths: Place = 0,
        clear: Place = 0,
        ragged: Ragged | None = None,
    ) -> None:
        super().__init__(layer, ws, steps, batch, lengths=lengths, clear=clear, ragged=ragged, backward=False)
        self.save, self.x, self.x_row, self.ids, self.table = save, x, x_row, ids, table
        engine = self.engine
        self._longest = max(chunk.steps for chunk in self.chunks)
        self._in_place = save and not engine.narrow
        self._gates = address(ws.array("gates", steps if self._in_place else self._longest, batch, layer.gates_row))
        self._kept = 0
        if save:
            self._kept = self._gates if self._in_place else address(ws.cleared("kept", steps, batch, layer.kept_row))
        space = recurrence_space(
            team.num_threads(),
            engine.lanes,
            layer.columns,
            batch=batch,
            rows_each=layer.op_row + layer.h_row + layer.padded,
            units=self.units > 0,
            whole=engine.whole,
            op_row=layer.op_row,
        )
        self._spare = ws.array("spare", space)
        self._saved = layer.kind.saved(layer, self)

    def place(self, name: str, row: int) -> int:
        """Return the address of an array of the steps that are kept: all, or a chunk's."""
        return address(self.ws.cleared(name, self.steps if self.save else self._longest, self.batch, row))

    def kept_at(self, chunk: Chunk) -> int:
        """Return where a chunk's activations are kept; 0 for nowhere."""
        return self.at(self._kept, chunk, self.layer.kept_row)

    def saved_at(self, chunk: Chunk) -> int:
        """Return where a chunk's part is of what the cell keeps beside the gates; 0 for nowhere."""
        return self.at(self._saved, chunk, self.layer.side_row) if self.save else self._saved

    def _gates_at(self, chunk: Chunk) -> int:
        return self.at(self._gates, chunk, self.layer.gates_row) if self._in_place else self._gates

    def input_product(self, chunk: Chunk) -> None:
        """Make the inputs' part of a chunk's gates, where it does not come from a table."""
        if self.ids:
            return
        parallel = self.sharing.parallel
        self.layer.input_product(
            self.grid(chunk),
            self.units or int(not parallel),
            self.at(self.x, chunk, self.x_row),
            self.x_row,
            self._gates_at(chunk),
            self.shared_by if parallel else None,
        )

    def record(self, chunk: Chunk, follows: bool = False) -> Any:
        """Return the operation of a chunk's steps.

        follows: the layer follows the one below in a `Wave`, which brings the inputs; all gates start with the bias.
        """
        layer, arrays = self.layer, self.ws.arrays
        common = self.common(chunk) | {
            "depth": self.engine.depth(layer.width),
            "op_row": layer.op_row,
            "gates": address(layer.packed("bias")) if follows else self._gates_at(chunk),
            "h": self.at(address(arrays["h"]), chunk, layer.h_row),
            "op": self.at(address(layer.operands(self.ws)), chunk, layer.op_row),
            "weight": layer.packed("h"),
            "ids": self.ids and self.ids + chunk.row * 4,
            "table": self.table,
            "spare": self._spare,
        }
        return layer.kind.forward(layer, self, chunk, common)

    def run(self) -> None:
        """Run all chunks."""
        for chunk in self.chunks:
            self.input_product(chunk)
            work = chunk.steps * product_work(self.batch, self.layer.columns * self.layer.width)
            self.engine.run(
                self.record(chunk),
                work=work if self.sharing.parallel else 0,
                shared_by=self.shared_by,
                meets=self.units > 0,
            )


class Backward(_Pass):
    """All steps of a sequence, last to first; it adds to the parameters' gradients and uses up what `Forward` kept.

    Parameters
    ----------
    layer : Recurrence
    ws : Workspace
    steps, batch : int
    dout, dout_row : int
        Gradients of the outputs [T, B, dout_row], by address; 0 where the layer follows the one above in a `Wave`.
    x, x_row : int
        The inputs again; 0 if they came from a table: the caller then finds the gates' gradients by `Recurrence.gradients`.
    dx, dx_row : int
        Where the inputs' gradients go, rows padded; 0 for nowhere.
    add_dx : bool
        Whether they are added there.
    lengths, clear, ragged
        As of `Forward`.
    """

    def __init__(
        self,
        layer: Recurrence,
        ws: Workspace,
        steps: int,
        batch: int,
        *,
        dout: Place,
        dout_row: int,
        x: Place = 0,
        x_row: int = 0,
        dx: Place = 0,
        dx_row: int = 0,
        add_dx: bool = False,
        lengths: Place = 0,
        clear: Place = 0,
        ragged: Ragged | None = None,
    ) -> None:
        super().__init__(layer, ws, steps, batch, lengths=lengths, clear=clear, ragged=ragged, backward=True)
        self.chunks.reverse()
        self.dout, self.dout_row, self.x, self.x_row = dout, dout_row, x, x_row
        self.dx, self.dx_row, self.add_dx = dx, dx_row, add_dx
        self.kept = address(layer.gradients(ws))
        self.own: dict[str, int] = {}  # addresses of what the cell keeps for itself
        self.inner = layer.kind.inner(layer, self)
        self._summed: set[str] = set()

    def spare(self) -> np.ndarray:
        """Return scratch for a row of hidden units of each row."""
        return self.ws.array("dm", self.batch, self.layer.padded)

    def h_at(self, chunk: Chunk) -> int:
        """Return where a chunk's states are."""
        return self.at(address(self.ws.arrays["h"]), chunk, self.layer.h_row)

    def inner_at(self, chunk: Chunk) -> int:
        """Return where a chunk's gradients of the gates on h's side are."""
        return self.at(self.inner.at, chunk, self.inner.row)

    def record(self, chunk: Chunk) -> Any:
        """Return the operation of a chunk's steps."""
        layer = self.layer
        common = self.common(chunk) | {
            "depth": layer.inner_depth,
            "start": int(chunk == self.chunks[0]),
            "kept": self.at(self.kept, chunk, layer.kept_row),
            "kept_row": layer.kept_row,
            "dout": self.dout + chunk.row * self.dout_row * self.engine.itemsize,
            "dout_row": self.dout_row,
            "dh": self.ws.arrays["dh"],
            "weight": layer.packed("h_back"),
        }
        return layer.kind.backward(layer, self, chunk, common)

    def sum(self, kind: str, chunk: Chunk, gradient: tuple[Place, int, int], x: tuple[Place, int]) -> None:
        """Add a chunk's part of a weight's gradient to its sum; `gradient` as a `Matrix`, x as address and row."""
        self.layer.sum_gradient(self.ws, kind, self.rows(chunk), Matrix(*gradient), x, start=kind not in self._summed)
        self._summed.add(kind)

    def after(self, chunk: Chunk) -> None:
        """Make what follows from the gradients of a chunk's gates: those of the inputs and the weights."""
        layer = self.layer
        gates = self.at(self.kept, chunk, layer.kept_row), layer.kept_row, layer.columns
        if self.x:
            if self.dx:
                self._inputs_gradient(chunk)
            self.sum("ih", chunk, gates, (self.at(self.x, chunk, self.x_row), self.x_row))
        inner = self.inner_at(chunk), self.inner.row, self.inner.columns
        self.sum("hh", chunk, inner, (self._states_before(chunk), layer.op_row))
        layer.kind.add_sums(layer, self, chunk)

    def _inputs_gradient(self, chunk: Chunk) -> None:
        layer, (steps, batch) = self.layer, self.grid(chunk)
        at = self.dx + chunk.row * self.dx_row * self.engine.itemsize
        self.engine.run(
            Product(
                steps=steps,
                batch=batch,
                depth=layer.gates_depth,
                columns=self.dx_row,
                units=self.units,
                a=self.at(self.kept, chunk, layer.kept_row),
                a_row=layer.kept_row,
                weight=layer.packed("x_back"),
                c_in=at if self.add_dx else layer.zeros(self.ws),
                c_in_row=self.dx_row if self.add_dx else 0,
                c=at,
                c_row=self.dx_row,
            ),
            work=self.rows(chunk) * layer.columns * self.dx_row,
            shared_by=None if self.units or self.ragged else (self.batch, "rows"),
        )

    def _states_before(self, chunk: Chunk) -> int:
        """Return the address of the states that a chunk's steps read, without those that were cleared."""
        layer, ws, row = self.layer, self.ws, self.layer.op_row
        op = address(layer.operands(ws))
        before = op + (chunk.first + layer.reverse) * self.batch * row * self.engine.itemsize
        if self.ragged:
            out = ws.array("before", self.steps, self.batch, row)
            gather = GatherRows(
                rows=self.rows(chunk),
                columns=row,
                ids=self.ragged.before,
                source=op,
                source_row=row,
                out=out,
                out_row=row,
            )
            self.engine.run(gather, work=self.steps * self.batch * row)
            before = address(out)
        if self.clear:
            out = ws.array(f"cleared_{chunk.steps}", chunk.steps, self.batch, row)
            self._clear(chunk.steps, chunk.row, row, before, out)
            before = address(out)
        return before

    def _clear(self, steps: int, first: int, row: int, source: Any, out: Any) -> None:
        """Copy the rows of steps, with zeros in those before which the state was cleared; `first` is the first one's number."""
        self.engine.run(
            ClearRows(steps=steps, batch=self.batch, row=row, clear=self.clear + first, source=source, out=out),
            work=steps * self.batch * row,
        )

    def finish(self) -> None:
        """Complete the gradients of the initial states, and add the weights' gradients where they belong."""
        layer, arrays, row = self.layer, self.ws.arrays, self.layer.h_row
        first = (self.steps - 1 if layer.reverse else 0) * self.batch
        self.engine.run(
            Product(
                steps=1,
                batch=self.batch,
                depth=layer.inner_depth,
                columns=row,
                units=self.units,
                a=self.inner.at + first * self.inner.row * self.engine.itemsize,
                a_row=self.inner.row,
                weight=layer.packed("h_back"),
                c_in=arrays["dh"],
                c_in_row=row,
                c=arrays["dh"],
                c_row=row,
            ),
            work=self.batch * self.inner.columns * row,
        )
        if self.clear:
            for state in layer.end_backward(self.ws):
                if state is not None:
                    self._clear(1, first, state.shape[1], state, state)
        for kind in sorted(self._summed):
            layer.add_gradient(self.ws, kind)

    def run(self) -> None:
        """Run all chunks."""
        layer = self.layer
        for chunk in self.chunks:
            work = chunk.steps * self.batch * layer.columns * layer.width
            self.engine.run(
                self.record(chunk),
                work=work if self.sharing.parallel else 0,
                shared_by=self.shared_by,
                meets=self.units > 0,
            )
            self.after(chunk)
        self.finish()
