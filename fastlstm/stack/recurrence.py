"""One direction of one recurrent layer on kernel buffers: packed weights, forward and backward over a sequence in chunks.

A chunk is a few steps whose gates stay in cache between the input product, the recurrence and the products of the
gradients. All buffers are time-major, rows padded to whole vectors; nothing is validated here. What products read comes in
rows of `engine.row` elements of storage (kernels/vector/narrow.py).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from ..kernels.native import team
from ..kernels.operations import (
    AbsorbRows,
    ClearRows,
    GatherRows,
    GruBackward,
    GruForward,
    GruOriginalBackward,
    GruOriginalForward,
    LstmBackward,
    LstmForward,
    OperandRows,
    Product,
    ProductByThree,
    RnnBackward,
    RnnForward,
    recurrence_space,
)
from ..runtime.engine import Engine
from ..runtime.params import Slots
from ..runtime.program import address, product_work
from ..runtime.workspace import Packs, Workspace
from ..shape import GATES
from . import sharing
from .ragged import Ragged
from .walks import Walk
from .weight_sums import WeightSums

CHUNK_BYTES = 1 << 21


class Recurrence:
    """One direction of one layer.

    Parameters
    ----------
    engine : Engine
        Runs the kernels.
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
        self.gates = GATES[cell]
        self.reverse, self.relu, self.reset_after = int(reverse), int(relu), reset_after
        self.original = cell == "gru" and not reset_after
        self.projected = self.width != self.hidden or f"weight_hr{suffix}" in slots.places
        self.biased = f"bias_ih{suffix}" in slots.places
        self.packed = Packs(engine, slots, self._pack)

    def reversed(self) -> Recurrence:
        """The same weights in the other direction."""
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
    def columns(self) -> int:
        """Width of the interleaved gates."""
        return self.engine.padded(self.gates * self.hidden)

    @property
    def gates_depth(self) -> int:
        """Steps that a product over the gates takes."""
        return self.engine.depth(self.gates * self.hidden)

    @property
    def gates_row(self) -> int:
        """From one row of gates to the next."""
        return self.columns if self.engine.narrow else self.kept_row

    @property
    def kept_row(self) -> int:
        """The same of gates as products read them; without narrow operands they lie in one place."""
        return self._row(self.columns)

    def _row(self, columns: int) -> int:
        if self.engine.narrow:
            return self.engine.row(columns)
        return columns if self.cell == "rnn" else self.engine.stride(columns)  # the RNN's lie as h does

    def _at(self, name: str, row: int = 0, *, grad: bool = False) -> int:
        """Address of a parameter's (or its gradient's) row, 0 without that parameter."""
        place = self.slots.places.get(name + self.suffix)
        if place is None:
            return 0
        begin, shape = place
        buffer = self.slots.store.grads if grad else self.slots.store.params
        return address(buffer) + (begin + row * (shape[1] if len(shape) > 1 else 1)) * self.engine.itemsize

    def _pack(self, kind: str) -> None:
        """Make the pack `kind`: x, h, n, p for products with W_ih, W_hh, its rows of n, W_hr; `_back` for their gradients."""
        hidden, inner, packed = self.hidden, self.gates - self.original, self.packed
        wide = {1: 4, 2: 2, 3: 3, 4: 4}
        if kind == "x":
            packed.columns(kind, hidden, self.gates, self.inputs, wide[self.gates], self._at("weight_ih"))
        elif kind == "h":
            packed.columns(kind, hidden, inner, self.width, wide[inner], self._at("weight_hh"))
        elif kind == "n":
            packed.columns(kind, hidden, 1, hidden, 4, self._at("weight_hh", 2 * hidden))
        elif kind == "p":
            packed.columns(kind, self.width, 1, hidden, 4, self._at("weight_hr"))
        elif kind == "x_back":
            packed.rows(kind, hidden, self.gates, self.inputs, self._at("weight_ih"))
        elif kind == "h_back":
            packed.rows(kind, hidden, inner, self.width, self._at("weight_hh"))
        elif kind == "n_back":
            packed.rows(kind, hidden, 1, hidden, self._at("weight_hh", 2 * hidden))
        elif kind == "p_back":
            packed.rows(kind, self.width, 1, hidden, self._at("weight_hr"))
        elif kind == "bias":
            split = 2 if self.cell == "gru" and self.reset_after else self.gates
            packed.bias(kind, hidden, self.gates, split, self._at("bias_ih"), self._at("bias_hh"))
        elif kind == "bias_n":
            packed.bias(kind, hidden, 1, 0, self._at("bias_hh", 2 * hidden) if self.biased else 0, 0)

    def share(self, batch: int, ragged: Ragged | None = None, backward: bool = False) -> sharing.Share:
        """How threads share the steps, of which those of a ragged batch have half of its rows or so."""
        if ragged:
            batch = -(-batch // 2)
        if self.engine.whole:
            return sharing.Share(False, False, 0.0)
        lanes, wide = self.engine.lanes, 4 * self.engine.lanes
        panels = -(-min(self.padded, self.h_row) // wide)
        if not (backward or self.projected or self.original or self.cell == "rnn"):
            panels = self.padded // lanes  # a tile holds all gates of one vector of units
        weight = self.columns * self.h_row + (self.padded * self.h_row if self.projected else 0)
        return sharing.choose(self.engine.dtype, batch, weight, panels, team.num_threads())

    def _shared_by(self, batch: int, share: sharing.Share, ragged: Ragged | None) -> Any:
        """What `program.Program` may take as sharing data in one way: rows of the batch, or this recurrence's units."""
        if ragged:
            return None
        if share.parallel and share.units:
            return None if self.original else (id(self), "units")
        return (batch, "rows")

    def table(self, ws: Workspace, name: str, rows: int, source: int, source_row: int) -> np.ndarray:
        """Gate pre-activations [rows, gates_row] of `rows` inputs (all tokens of a vocabulary), given as products read them."""
        out = ws.array(name, rows, self.gates_row)
        self._input_product(1, rows, 1, source, source_row, address(out), None)
        return out

    def _input_product(self, steps: int, batch: int, units: int, x: int, x_row: int, out: int, shared_by: Any) -> None:
        product = ProductByThree if self.cell == "gru" else Product
        self.engine.run(
            product(
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

    def _chunks(self, steps: int, batch: int, ragged: Ragged | None) -> list[tuple[int, int]]:
        """(first step, number of steps) in the order of the recurrence."""
        if self.engine.whole or ragged:
            return [(0, steps)]
        most = max(1, CHUNK_BYTES // (batch * self.columns * self.engine.itemsize))
        size = -(-steps // -(-steps // most))
        chunks = [(t, min(size, steps - t)) for t in range(0, steps, size)]
        return chunks[::-1] if self.reverse else chunks

    def _absorb(self, batch: int, width: int, source: int, out: Any, out_row: int) -> None:
        """Copy rows of a caller's array [batch, width] (0: zeros) to padded ones."""
        self.engine.run(
            AbsorbRows(steps=1, batch=batch, width=width, source=source, source_row=width, out=out, out_row=out_row),
            work=batch * width,
            shared_by=(batch, "rows"),
        )

    def begin(self, ws: Workspace, steps: int, batch: int, h_0: int, c_0: int, save: bool) -> None:
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
        if self.cell == "lstm":
            c = ws.array("c", steps + 1 if save else 2, batch, self.padded)
            self._absorb(batch, self.hidden, c_0, c[first % len(c)], self.padded)

    def operands(self, ws: Workspace) -> np.ndarray:
        """h of all steps as products read it, [T+1, B, op_row]."""
        return ws.arrays["op" if self.engine.narrow else "h"]

    def end(self, ws: Workspace, steps: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The final states [B, h_row] and [B, padded]."""
        last = 0 if self.reverse else steps
        h = ws.arrays["h"][last]
        if self.cell != "lstm":
            return h, None
        c = ws.arrays["c"]
        return h, c[last % len(c)]

    def outputs(self, ws: Workspace) -> tuple[int, int]:
        """Address of h of step 0, rows of `h_row` elements; and of it as products read it, rows of `op_row`."""
        h, op = ws.arrays["h"], self.operands(ws)
        skip = 0 if self.reverse else 1
        return address(h) + skip * h[0].nbytes, address(op) + skip * op[0].nbytes

    def forward(
        self,
        ws: Workspace,
        steps: int,
        batch: int,
        save: bool,
        *,
        x: int = 0,
        x_row: int = 0,
        ids: int = 0,
        table: int = 0,
        lengths: int = 0,
        clear: int = 0,
        ragged: Ragged | None = None,
        follows: bool = False,
    ) -> Walk:
        """From the states that `begin` put, all steps; `save` keeps what `backward` needs.

        x [T, B, x_row] as products read it, by address, or ids [T, B] int32 into table [V, gates] (see `table`); neither where
        it `follows` the layer below in a wave, which then has all gates start with the bias.
        lengths [B] int64 and clear [T, B] uint8 by address, 0 for none. ragged: sequences of unequal lengths, for
        whose rows there is room in those of `steps` steps; without ids, lengths and clear, and not in reverse.
        """
        engine, size, padded, columns = self.engine, self.engine.itemsize, self.padded, self.columns
        share = self.share(batch, ragged)
        units, shared_by = int(share.parallel and share.units), self._shared_by(batch, share, ragged)
        chunks = self._chunks(steps, batch, ragged)
        longest = max(n for _, n in chunks)
        in_place = save and not engine.narrow
        gates = address(ws.array("gates", steps if in_place else longest, batch, self.gates_row))
        kept = gates if in_place else address(ws.cleared("kept", steps, batch, self.kept_row)) if save else 0
        h, op = address(ws.arrays["h"]), address(self.operands(ws))
        space = recurrence_space(
            team.num_threads(),
            engine.lanes,
            columns,
            batch=batch,
            rows_each=self.op_row + self.h_row + padded,
            units=units > 0,
            whole=engine.whole,
            op_row=self.op_row,
        )
        spare = ws.array("spare", space)
        depth, side_row, meeting = engine.depth(self.width), engine.row(self.hidden), engine.meeting(ws)
        if self.cell == "lstm":
            m = address(ws.cleared("m", steps if save else longest, batch, side_row)) if self.projected else 0
        elif self.cell == "gru":
            side = address(ws.cleared("side", steps if save else longest, batch, side_row)) if save or self.original else 0
        for t, n in chunks:
            rows = t * batch
            g_t = gates + (rows * self.gates_row * size if in_place else 0)
            kept_t = kept and kept + rows * self.kept_row * size
            at = rows if save else 0
            read: dict[str, Any] = {
                "reverse": self.reverse,
                "time": t,
                "units": units,
                "barrier": meeting,
                "ids": ids and ids + rows * 4,
                "table": table,
                "lengths": lengths,
                "clear": clear and clear + rows,
                "starts": ragged.starts if ragged else 0,
            }
            work = n * product_work(batch, columns * self.width) if share.parallel else 0
            options = {"work": work, "shared_by": shared_by, "meets": units > 0}
            grid = (1, ragged.rows) if ragged else (n, batch)
            n = ragged.steps if ragged else n
            if follows:
                g_t = address(self.packed("bias"))
            elif not ids:
                self._input_product(
                    *grid,
                    units or int(not share.parallel),
                    x + rows * x_row * size,
                    x_row,
                    g_t,
                    shared_by if share.parallel else None,
                )
            state: dict[str, Any] = {
                "steps": n,
                "batch": batch,
                "hidden": self.hidden,
                "depth": depth,
                "op_row": self.op_row,
                "gates": g_t,
                "h": h + rows * self.h_row * size,
                "op": op + rows * self.op_row * size,
                "weight": self.packed("h"),
                "spare": spare,
            }
            record: Any
            if self.cell == "lstm":
                c = ws.arrays["c"]
                record = LstmForward(
                    width=self.h_row,
                    kept=kept_t,
                    kept_row=self.kept_row,
                    c=c,
                    c_slots=len(c),
                    m=m and m + at * side_row * size,
                    m_row=side_row,
                    m_depth=engine.depth(self.hidden),
                    projection=self.packed("p") if self.projected else 0,
                    zeros=self._zeros(ws),
                    **state,
                    **read,
                )
            elif self.cell == "rnn":
                record = RnnForward(relu=self.relu, **state, **read)
            else:
                kept_here: dict[str, Any] = {
                    "kept": kept_t,
                    "kept_row": self.kept_row,
                    "side": side and side + at * side_row * size,
                    "side_row": side_row,
                }
                if self.original:
                    record = GruOriginalForward(weight_n=self.packed("n"), **kept_here, **state, **read)
                else:
                    record = GruForward(bias=self.packed("bias_n"), **kept_here, **state, **read)
            yield record, options

    def _zeros(self, ws: Workspace) -> np.ndarray:
        return ws.cleared("zeros", max(self.h_row, self.padded, self.engine.padded(self.inputs)))

    def begin_backward(self, ws: Workspace, batch: int, dh_n: int, dc_n: int) -> None:
        """Put the gradients of the final states, by address (0: zeros)."""
        self._absorb(batch, self.width, dh_n, ws.array("dh", batch, self.h_row), self.h_row)
        if self.cell == "lstm":
            self._absorb(batch, self.hidden, dc_n, ws.array("dc", batch, self.padded), self.padded)

    def end_backward(self, ws: Workspace) -> tuple[np.ndarray, np.ndarray | None]:
        """The gradients of the initial states, [B, h_row] and [B, padded]."""
        return ws.arrays["dh"], ws.arrays["dc"] if self.cell == "lstm" else None

    def backward(
        self,
        ws: Workspace,
        steps: int,
        batch: int,
        dout: int,
        dout_row: int,
        *,
        x: int = 0,
        x_row: int = 0,
        dx: int = 0,
        dx_row: int = 0,
        add_dx: bool = False,
        lengths: int = 0,
        clear: int = 0,
        ragged: Ragged | None = None,
    ) -> Walk:
        """All steps back; adds to the parameters' gradients. Uses up what `forward` saved.

        dout [T, B, dout_row] by address, 0 where it follows the layer above in a wave. x: the inputs again, 0 if they came from
        a table (the caller then finds the gates' gradients by `gradients`). dx: where the inputs' gradients go (rows padded), 0
        for nowhere; with add_dx they are added.
        """
        engine, size, padded, row, columns = self.engine, self.engine.itemsize, self.padded, self.h_row, self.columns
        run, arrays = engine.run, ws.arrays
        share = self.share(batch, ragged, backward=True)
        units, shared_by = int(share.parallel and share.units), self._shared_by(batch, share, ragged)
        kept, kept_row = address(self.gradients(ws)), self.kept_row
        h, op = address(arrays["h"]), address(self.operands(ws))
        dh, zeros = arrays["dh"], self._zeros(ws)
        spare = ws.array("dm", batch, padded)
        grads = WeightSums(self, ws)
        chunks, starts = self._chunks(steps, batch, ragged)[::-1], ragged.starts if ragged else 0
        inner, inner_columns, inner_row = kept, columns, kept_row
        side_row, h_back = engine.row(self.hidden), self.packed("h_back")
        if self.cell == "gru":
            inner_columns = engine.padded(2 * self.hidden) if self.original else columns
            inner_row = self._row(inner_columns)
            inner, side = address(ws.cleared("inner", steps, batch, inner_row)), address(arrays["side"])
            inner_n = address(ws.cleared("inner_n", steps, batch, side_row)) if self.original else 0
        if self.projected:
            dp, m = address(ws.cleared("dp", steps, batch, self.op_row)), address(arrays["m"])
        inner_depth, meeting = engine.depth((self.gates - self.original) * self.hidden), engine.meeting(ws)
        for index, (t, n) in enumerate(chunks):
            rows = t * batch
            kept_t, h_t, d_t = kept + rows * kept_row * size, h + rows * row * size, dout + rows * dout_row * size
            inner_t, side_at, clear_t = inner + rows * inner_row * size, rows * side_row * size, clear and clear + rows
            read: dict[str, Any] = {
                "steps": n,
                "batch": batch,
                "hidden": self.hidden,
                "depth": inner_depth,
                "reverse": self.reverse,
                "time": t,
                "start": int(index == 0),
                "units": units,
                "barrier": meeting,
                "kept": kept_t,
                "kept_row": kept_row,
                "dout": d_t,
                "dout_row": dout_row,
                "dh": dh,
                "weight": h_back,
                "lengths": lengths,
                "clear": clear_t,
                "starts": starts,
            }
            work = n * batch * columns * self.width if share.parallel else 0
            grid = (1, ragged.rows) if ragged else (n, batch)
            count = grid[0] * grid[1] if ragged is None else ragged.rows
            read["steps"] = n = ragged.steps if ragged else n
            options = {"work": work, "shared_by": shared_by, "meets": units > 0}
            record: Any
            if self.cell == "lstm":
                record = LstmBackward(
                    width=row,
                    c=arrays["c"][t:],
                    dc=arrays["dc"],
                    projection=self.packed("p_back") if self.projected else 0,
                    zeros=zeros,
                    dp=dp + rows * self.op_row * size if self.projected else 0,
                    dp_row=self.op_row,
                    dp_depth=engine.depth(self.width),
                    spare=spare,
                    **read,
                )
            elif self.cell == "rnn":
                record = RnnBackward(relu=self.relu, h=h_t, **read)
            elif self.original:
                record = GruOriginalBackward(
                    side_depth=engine.depth(self.hidden),
                    inner=inner_t,
                    inner_row=inner_row,
                    inner_n=inner_n + side_at,
                    side_row=side_row,
                    h=h_t,
                    weight_n=self.packed("n_back"),
                    zeros=zeros,
                    spare=spare,
                    **read,
                )
            else:
                record = GruBackward(inner=inner_t, side=side + side_at, side_row=side_row, h=h_t, **read)
            yield record, options
            if x:
                x_t = x + rows * x_row * size
                if dx:
                    at = dx + rows * dx_row * size
                    run(
                        Product(
                            steps=grid[0],
                            batch=grid[1],
                            depth=self.gates_depth,
                            columns=dx_row,
                            units=units,
                            a=kept_t,
                            a_row=kept_row,
                            weight=self.packed("x_back"),
                            c_in=at if add_dx else zeros,
                            c_in_row=dx_row if add_dx else 0,
                            c=at,
                            c_row=dx_row,
                        ),
                        work=count * columns * dx_row,
                        shared_by=None if units or ragged else (batch, "rows"),
                    )
                grads.add("ih", count, kept_t, kept_row, columns, x_t, x_row, self.inputs)
            before = op + (t + self.reverse) * batch * self.op_row * size
            if ragged:
                out = ws.array("before", steps, batch, self.op_row)
                run(
                    GatherRows(
                        rows=count,
                        columns=self.op_row,
                        ids=ragged.before,
                        source=op,
                        source_row=self.op_row,
                        out=out,
                        out_row=self.op_row,
                    ),
                    work=steps * batch * self.op_row,
                )
                before = address(out)
            if clear:
                out = ws.array(f"cleared_{n}", n, batch, self.op_row)
                run(
                    ClearRows(steps=n, batch=batch, row=self.op_row, clear=clear_t, source=before, out=out),
                    work=n * batch * row,
                )
                before = address(out)
            grads.add("hh", count, inner_t, inner_row, inner_columns, before, self.op_row, self.width)
            if self.original:
                grads.add("n", count, inner_n + side_at, side_row, padded, side + side_at, side_row, self.hidden)
            if self.projected:
                grads.add("hr", count, dp + rows * self.op_row * size, self.op_row, row, m + side_at, side_row, self.hidden)
        start = (steps - 1 if self.reverse else 0) * batch
        run(
            Product(
                steps=1,
                batch=batch,
                depth=inner_depth,
                columns=row,
                units=units,
                a=inner + start * inner_row * size,
                a_row=inner_row,
                weight=h_back,
                c_in=dh,
                c_in_row=row,
                c=dh,
                c_row=row,
            ),
            work=batch * inner_columns * row,
        )
        if clear:
            run(ClearRows(steps=1, batch=batch, row=row, clear=clear + start, source=dh, out=dh), work=batch * row)
            if self.cell == "lstm":
                run(
                    ClearRows(steps=1, batch=batch, row=padded, clear=clear + start, source=arrays["dc"], out=arrays["dc"]),
                    work=batch * padded,
                )
        grads.finish()

    def gradients(self, ws: Workspace) -> np.ndarray:
        """After `backward`: gradients of the gates as products read them [T, B, kept_row]."""
        return ws.arrays["kept" if self.engine.narrow else "gates"]

    def add_table(self, ws: Workspace, dtable: int, table_rows: int, x: int, x_row: int, dx: int, dx_row: int) -> None:
        """Backward of `table`: adds dtable [V, kept_row], as products read it, to the gradients of weight_ih and the biases.

        x [V, x_row] as products read it; dx [V, dx_row].
        """
        grads = WeightSums(self, ws)
        grads.add("ih", table_rows, dtable, self.kept_row, self.columns, x, x_row, self.inputs)
        grads.finish()
        self.engine.run(
            Product(
                steps=1,
                batch=table_rows,
                depth=self.gates_depth,
                columns=dx_row,
                units=0,
                a=dtable,
                a_row=self.kept_row,
                weight=self.packed("x_back"),
                c_in=self._zeros(ws),
                c_in_row=0,
                c=dx,
                c_row=dx_row,
            ),
            work=table_rows * self.columns * dx_row,
        )
