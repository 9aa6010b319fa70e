"""Layers and directions on top of each other: forward and backward of a whole recurrent stack on kernel buffers.

Between layers lies either the lower layer's own h, or, with two directions or dropout, a buffer of its own. Nothing is
validated here; layers.py and models.py do that.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels.native import team
from ..kernels.operations import AbsorbRows, Dropout, EmitRows, GatherRows, ScatterRows, Wave
from ..runtime.engine import Engine
from ..runtime.params import Slots
from ..runtime.program import Later, Place, Program, address
from ..runtime.workspace import Workspace, as_operands
from ..shape import Shape
from .ragged import Ragged
from .recurrence import Backward, Forward, Recurrence


@dataclass
class Call:
    """One sequence through the stack: sizes and options that forward and backward share; places by address, 0 for none.

    In a program (program.py) places may be `Later`, and the dropout's seed and number are: "seed", "dropout".
    """

    steps: int
    batch: int
    save: bool
    lengths: Place = 0  # [B] int64
    clear: tuple[Place, Place] = (0, 0)  # [T, B] uint8 by direction
    ragged: Ragged | None = None  # of unequal lengths: then `steps` whole sequences would have at least as many rows

    @property
    def grid(self) -> tuple[int, int]:
        """(steps, batch) for operations that take one row like another."""
        return (self.steps, self.batch) if self.ragged is None else (1, self.ragged.rows)

    @property
    def rows(self) -> int:
        """Of all steps together."""
        return self.steps * self.batch if self.ragged is None else self.ragged.rows

    @property
    def shared_by(self) -> Any:
        """As of `program.Program`, where threads share `grid`."""
        return (self.batch, "rows") if self.ragged is None else (self.ragged, "rows")


class Stack:
    """A recurrent stack over the parameters in `slots`."""

    def __init__(self, engine: Engine, shape: Shape, slots: Slots) -> None:
        self.engine, self.shape, self.slots = engine, shape, slots
        sizes = [(shape.layer_inputs(k), shape.hidden_size, shape.width) for k in range(shape.num_layers)]
        self.layers = [
            [
                Recurrence(
                    engine, shape.cell, sizes[k], slots, suffix, reverse=d == 1, relu=shape.relu, reset_after=shape.reset_after
                )
                for d, suffix in enumerate(suffixes)
            ]
            for k, suffixes in enumerate(shape.suffixes())
        ]
        self.joins = shape.bidirectional or shape.dropout > 0
        self._probability = np.array([shape.dropout])

    def forward(
        self,
        spaces: Spaces,
        call: Call,
        state: tuple[Place, Place],
        *,
        x: Place = 0,
        x_row: int = 0,
        ids: Place = 0,
        table: Place = 0,
    ) -> None:
        """All layers. state: (h_0, c_0) by address, each [layers*directions, B, width], 0 for zeros.

        x, as products read it, or ids, by address, for layer 0.
        """
        steps, batch, shape = call.steps, call.batch, self.shape
        pairs = self._pairs(call, backward=False)
        for k, directions in enumerate(self.layers):
            for d, recurrence in enumerate(directions):
                ws, index = spaces.of[k][d], k * shape.directions + d
                own, own_row = x, x_row
                if call.ragged and recurrence.reverse:
                    recurrence = recurrence.reversed()
                    own, own_row = self._turned(ws, "x", call, x, x_row, x_row), x_row
                h_0, c_0 = self._slice(state, index, batch)
                recurrence.begin(ws, steps, batch, h_0, c_0, call.save or call.ragged is not None)
                first = k == 0
                run = Forward(
                    recurrence,
                    ws,
                    steps,
                    batch,
                    call.save,
                    x=own,
                    x_row=own_row,
                    ids=ids if first else 0,
                    table=table if first else 0,
                    lengths=call.lengths,
                    clear=call.clear[d],
                    ragged=call.ragged,
                )
                if k in pairs:
                    below = run
                elif k - 1 in pairs:
                    (chunk,) = below.chunks
                    below.input_product(chunk)
                    between = recurrence.packed("x")
                    self.engine.run(Wave(first=below.record(chunk), second=run.record(chunk, follows=True), between=between))
                else:
                    run.run()
            if k + 1 < shape.num_layers:
                x, x_row = self._between(spaces, call, k)

    def _pairs(self, call: Call, backward: bool) -> range:
        """The lower layers of the pairs whose steps are done at once."""
        shape = self.shape
        plain = not (self.joins or shape.proj_size or call.ragged) and (shape.cell != "gru" or shape.reset_after)
        if not plain or not self.engine.overlaps(shape.cell, backward, shape.hidden_size, call.batch, call.steps):
            return range(0)
        return range(0, shape.num_layers - 1, 2)

    def _turned(self, ws: Workspace, name: str, call: Call, source: Place, source_row: int, row: int, width: int = 0) -> int:
        """Where the rows of `source` now stand with the sequences of a ragged batch turned around; zeros from `width` on."""
        assert call.ragged is not None
        out = ws.array(f"turned_{name}", call.steps, call.batch, row)
        self.engine.run(
            GatherRows(
                rows=call.rows,
                columns=width or row,
                ids=call.ragged.turned,
                source=source,
                source_row=source_row,
                out=out,
                out_row=row,
            ),
            work=call.rows * row,
        )
        return address(out)

    def _slice(self, state: tuple[Place, Place], index: int, batch: int) -> tuple[int, int]:
        """Where layer and direction number `index` begin in (h, c)."""
        (h, c), shape, size = state, self.shape, self.engine.itemsize
        return h and h + index * batch * shape.width * size, c and c + index * batch * shape.hidden_size * size

    def _between(self, spaces: Spaces, call: Call, layer: int) -> tuple[int, int]:
        """Address and row of the next layer's inputs, as products read them."""
        if not self.joins:
            recurrence = self.layers[layer][0]
            return recurrence.outputs(spaces.of[layer][0])[1], recurrence.op_row
        joined, width = spaces.joined(layer, call), self.shape.directions * self.shape.width
        self.emit(spaces, call, layer, address(joined), width, masked=False)
        if call.save and self.shape.dropout > 0:
            self._drop(joined, width, call, layer)
        return as_operands(spaces.own, f"joined_op_{layer}", *call.grid, address(joined), width, width)

    def _drop(self, data: np.ndarray, width: int, call: Call, layer: int) -> None:
        """Zero some and scale the rest, the same elements in forward and backward of one call."""
        seed: Any = Later("seed")
        stream: Any = Later("dropout", layer)
        self.engine.run(
            Dropout(
                rows=call.rows,
                width=width,
                data=data,
                row=data.shape[2],
                seed=seed,
                stream=stream,
                p=self._probability,
            ),
            work=20 * call.rows * width,
        )

    def dropout_values(self, seed: int, number: int) -> dict[str, int]:
        """What a program wants for the masks of call `number`."""
        return {"seed": (seed + 2**63) % 2**64 - 2**63, "dropout": number * self.shape.num_layers}

    def emit(self, spaces: Spaces, call: Call, layer: int, out: Place, out_row: int, *, masked: bool = True) -> None:
        """A layer's outputs, both directions side by side, to out [T, B, out_row]; zeros beyond the lengths if `masked`."""
        for d, recurrence in enumerate(self.layers[layer]):
            at = out + d * self.shape.width * self.engine.itemsize
            ws, row = spaces.of[layer][d], recurrence.h_row
            if call.ragged and recurrence.reverse:
                h = self._turned(ws, "h", call, recurrence.reversed().outputs(ws)[0], row, row)
            else:
                h, _ = recurrence.outputs(ws)
            self.engine.run(
                EmitRows(
                    steps=call.grid[0],
                    batch=call.grid[1],
                    width=self.shape.width,
                    h=h,
                    h_row=row,
                    out=at,
                    out_row=out_row,
                    lengths=call.lengths if masked else 0,
                ),
                work=call.rows * self.shape.width,
                shared_by=call.shared_by,
            )

    def final_state(self, spaces: Spaces, call: Call, h_n: Place, c_n: Place) -> None:
        """The states after the last step to h_n and c_n by address, laid out as `state` of `forward`."""
        if call.ragged is not None:
            self._pick(spaces, call, call.ragged, h_n, c_n)
            return
        self._collect(
            [r.end(spaces.of[k][d], call.steps) for k, ds in enumerate(self.layers) for d, r in enumerate(ds)],
            call.batch,
            h_n,
            c_n,
        )

    def _pick(self, spaces: Spaces, call: Call, ragged: Ragged, h_out: Place, c_out: Place) -> None:
        """`_collect` the states after each sequence's own last step."""
        for index in range(self.shape.num_layers * self.shape.directions):
            arrays = spaces.of[index // self.shape.directions][index % self.shape.directions].arrays
            outs = self._slice((h_out, c_out), index, call.batch)
            for name, out, width in zip("hc", outs, (self.shape.width, self.shape.hidden_size), strict=True):
                if name in arrays:
                    self.engine.run(
                        GatherRows(
                            rows=call.batch,
                            columns=width,
                            ids=ragged.last,
                            source=arrays[name],
                            source_row=arrays[name].shape[2],
                            out=out,
                            out_row=width,
                        ),
                        work=call.batch * width,
                    )

    def _collect(self, ends: list[tuple[np.ndarray, np.ndarray | None]], batch: int, h_out: Place, c_out: Place) -> None:
        for index, parts in enumerate(ends):
            outs = self._slice((h_out, c_out), index, batch)
            for part, out, width in zip(parts, outs, (self.shape.width, self.shape.hidden_size), strict=True):
                if part is not None:
                    self.engine.run(
                        EmitRows(
                            steps=1, batch=batch, width=width, h=part, h_row=part.shape[1], out=out, out_row=width, lengths=0
                        ),
                        work=batch * width,
                        shared_by=(batch, "rows"),
                    )

    def backward(
        self,
        spaces: Spaces,
        call: Call,
        dout: Place,
        dout_row: int,
        dstate: tuple[Place, Place],
        *,
        x: Place = 0,
        x_row: int = 0,
        dx: Place = 0,
        dx_row: int = 0,
    ) -> None:
        """All layers back. dout [T, B, dout_row] by address, rows at least as wide as the outputs; dstate as `state`.

        x: as in `forward`. dx: where the inputs' gradients [T, B, dx_row] go, 0 for nowhere.
        """
        steps, batch, shape, engine = call.steps, call.batch, self.shape, self.engine
        pairs = self._pairs(call, backward=True)
        for k in reversed(range(shape.num_layers)):
            if k == 0:
                source, source_row, target, target_row = x, x_row, dx, dx_row
            elif k - 1 in pairs:
                (source, source_row), target, target_row = spaces.between(k - 1, call), 0, 0
            else:
                source, source_row = spaces.between(k - 1, call)
                below = spaces.gradient(k - 1, call)
                target, target_row = address(below), below.shape[2]
            for d, recurrence in enumerate(self.layers[k]):
                ws, index = spaces.of[k][d], k * shape.directions + d
                recurrence.begin_backward(ws, batch, *self._slice(dstate, index, batch))
                at, row = dout + d * shape.width * engine.itemsize, dout_row
                turned = call.ragged.turned if call.ragged is not None and recurrence.reverse else None
                x_at, dx_at = source, target
                if turned is not None:
                    recurrence = recurrence.reversed()
                    at, row = self._turned(ws, "dout", call, at, row, recurrence.h_row, shape.width), recurrence.h_row
                    x_at, dx_at = address(ws.arrays["turned_x"]), target and address(ws.array("dx", steps, batch, target_row))
                elif shape.width % engine.lanes and (shape.bidirectional or dout_row != recurrence.h_row):
                    own = ws.array("dout", steps, batch, recurrence.h_row)
                    engine.run(
                        AbsorbRows(
                            steps=call.grid[0],
                            batch=call.grid[1],
                            width=shape.width,
                            source=at,
                            source_row=dout_row,
                            out=own,
                            out_row=recurrence.h_row,
                        ),
                        work=call.rows * shape.width,
                        shared_by=call.shared_by,
                    )
                    at, row = address(own), recurrence.h_row
                run = Backward(
                    recurrence,
                    ws,
                    steps,
                    batch,
                    dout=at,
                    dout_row=row,
                    x=x_at,
                    x_row=source_row,
                    dx=dx_at,
                    dx_row=target_row,
                    add_dx=d > 0 and turned is None,
                    lengths=call.lengths,
                    clear=call.clear[d],
                    ragged=call.ragged,
                )
                if k - 1 in pairs:
                    above, between = run, recurrence.packed("x_back")
                elif k in pairs:
                    (chunk,) = run.chunks
                    engine.run(Wave(first=above.record(chunk), second=run.record(chunk), between=between))
                    for one in (above, run):
                        one.after(chunk)
                        one.finish()
                else:
                    run.run()
                if turned is not None and target:
                    engine.run(
                        ScatterRows(
                            rows=call.rows,
                            columns=target_row,
                            ids=turned,
                            source=dx_at,
                            source_row=target_row,
                            out=target,
                            out_row=target_row,
                        ),
                        work=call.rows * target_row,
                    )
            if k > 0:
                if shape.dropout > 0:
                    self._drop(below, shape.layer_inputs(k), call, k - 1)
                dout, dout_row = target, target_row

    def initial_gradients(self, spaces: Spaces, call: Call, dh_0: Place, dc_0: Place) -> None:
        """The gradients of the initial states to dh_0 and dc_0 by address, laid out as `state` of `forward`."""
        self._collect(
            [r.end_backward(spaces.of[k][d]) for k, ds in enumerate(self.layers) for d, r in enumerate(ds)],
            call.batch,
            dh_0,
            dc_0,
        )


class Spaces:
    """The buffers of one call of a stack, a workspace for each layer and direction and one for the rest; and its programs."""

    PROGRAMS = 16

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.of = [[Workspace(stack.engine) for _ in directions] for directions in stack.layers]
        self.own = Workspace(stack.engine)
        self.kind = stack.engine.kind  # padding differs between instruction sets: buffers of one do not serve another
        self.queue = stack.engine.queue()  # of the last run
        self.given = 0  # when it was given back, in its pool's count
        self.bytes = 0  # of its buffers, as its pool has last counted them; 0: they have changed
        self._programs: dict[Any, Program] = {}

    def program(self, key: Any, record: Callable[[], None], packing: bool = False) -> Program:
        """The program of calls that `record` makes, to be run now; recorded when `key` is new, and the longest unused goes."""
        if self.kind != (used := self.stack.engine.kind):
            raise RuntimeError(f"these activations were saved for {self.kind}; the kernels in use are for {used}")
        self.queue = self.stack.engine.queue()
        # Addresses of parameters are part of it, which move when layers are joined.
        key = (key, self.stack.slots.store.serial, team.num_threads())
        program = self._programs.pop(key, None)
        if program is None:
            program = self.stack.engine.program(self.stack.slots.store)
            program.record(record, packing)
            self.bytes = 0
            for old in list(self._programs)[: 1 - self.PROGRAMS]:
                del self._programs[old]
        self._programs[key] = program
        return program

    def joined(self, layer: int, call: Call) -> np.ndarray:
        """[T, B, D*R]: a layer's outputs, both directions side by side."""
        shape = self.stack.shape
        return self.own.array(f"joined_{layer}", call.steps, call.batch, shape.directions * shape.width)

    def between(self, layer: int, call: Call) -> tuple[int, int]:
        """Address and row of what the layer above read."""
        if self.stack.joins:
            array = self.own.arrays[f"joined_op_{layer}" if self.stack.engine.narrow else f"joined_{layer}"]
            return address(array), array.shape[2]
        recurrence = self.stack.layers[layer][0]
        return recurrence.outputs(self.of[layer][0])[1], recurrence.op_row

    def gradient(self, layer: int, call: Call) -> np.ndarray:
        """[T, B, padded D*R]: gradient of a layer's outputs; two buffers serve all pairs of neighbours in turn."""
        shape = self.stack.shape
        row = self.stack.engine.padded(shape.directions * shape.width)
        return self.own.array(f"gradient_{layer % 2}", call.steps, call.batch, row)


class Pool:
    """Spaces by shape of call, handed out and taken back.

    All that were in use at once are kept, since the next of a user's loops wants as many. Free ones beyond `ROOM` bytes go, the
    longest unused first, but never the last `KEPT`: those of other shapes when a new shape comes, and all that nobody has
    wanted for long.

    What is taken back may still be in use by work that waits on a device, so it is handed out only to what will wait behind
    that work.

    There is no lock, which a finalizer could find held by the very frame that it interrupts: every change is one operation of
    the interpreter. Spaces may be lost between two of them, and are then made anew.
    """

    KEPT = 8  # whatever their size
    ROOM = 1 << 26  # bytes
    LONG = 4096  # calls

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._free: dict[tuple[Any, ...], list[Spaces]] = {}  # by key, queue and kind
        self._given = itertools.count()

    @property
    def free(self) -> list[tuple[tuple[Any, ...], Spaces]]:
        """What is not in use, with its key, the longest unused first."""
        # By a list of the keys: to make pairs of them is work that a finalizer may interrupt, and change the dictionary.
        found = [(key[0], spaces) for key in list(self._free) for spaces in list(self._free.get(key, ()))]
        return sorted(found, key=lambda one: one[1].given)

    def take(self, key: tuple[Any, ...]) -> Spaces:
        """Spaces last used with `key`, that serve the kernels in use, or new ones."""
        try:
            return self._free[key, self.stack.engine.queue(), self.stack.engine.kind].pop()
        except (KeyError, IndexError):
            self._make_room()
            return self.new()

    def new(self) -> Spaces:
        """Spaces of nothing yet."""
        return Spaces(self.stack)

    def give(self, key: tuple[Any, ...], spaces: Spaces) -> None:
        """Back for reuse."""
        spaces.given = given = next(self._given)
        if not spaces.bytes:
            spaces.bytes = self.size(spaces)
        self._free.setdefault((key, spaces.queue, spaces.kind), []).append(spaces)
        if given % self.LONG == self.LONG - 1:
            self._make_room(given - self.LONG)

    def _make_room(self, until: float = math.inf) -> None:
        """Let go of what is too much and was given back before number `until`."""
        free = self.free
        excess = sum(spaces.bytes for _, spaces in free) - self.ROOM
        for key, spaces in free[: -self.KEPT]:
            if excess <= 0 or spaces.given > until:
                break
            fitting = key, spaces.queue, spaces.kind
            with contextlib.suppress(KeyError, ValueError):  # another call has taken it since
                self._free[fitting].remove(spaces)
                excess -= spaces.bytes
                if not self._free[fitting]:
                    del self._free[fitting]

    def size(self, spaces: Spaces) -> int:
        """Bytes of its buffers."""
        workspaces = [spaces.own, *(ws for directions in spaces.of for ws in directions)]
        return sum(array.nbytes for ws in workspaces for array in list(ws.arrays.values()))
