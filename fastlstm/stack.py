"""Layers and directions on top of each other: forward and backward of a whole recurrent stack on kernel buffers.

Between layers lies either the lower layer's own h, or, with two directions or dropout, a buffer of its own. Nothing is
validated here; layers.py and models.py do that.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from .engine import Cpu, address
from .params import Slots
from .recurrence import GATES, Recurrence
from .workspace import Workspace


@dataclass(frozen=True)
class Shape:
    """What a stack is made of; names and meanings as in the public layers."""

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    relu: bool = False
    reset_after: bool = True

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1

    @property
    def width(self) -> int:
        """Width of one direction's h."""
        return self.proj_size or self.hidden_size

    def suffixes(self) -> list[list[str]]:
        """Parameter name suffixes [layer][direction]."""
        return [[f"_l{k}", f"_l{k}_reverse"][: self.directions] for k in range(self.num_layers)]

    def layer_inputs(self, layer: int) -> int:
        """Width of a layer's inputs."""
        return self.input_size if layer == 0 else self.directions * self.width

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters, in torch.nn's order."""
        shapes: dict[str, tuple[int, ...]] = {}
        gates = GATES[self.cell] * self.hidden_size
        for layer, suffixes in enumerate(self.suffixes()):
            for suffix in suffixes:
                shapes[f"weight_ih{suffix}"] = (gates, self.layer_inputs(layer))
                shapes[f"weight_hh{suffix}"] = (gates, self.width)
                if self.bias:
                    shapes[f"bias_ih{suffix}"] = shapes[f"bias_hh{suffix}"] = (gates,)
                if self.proj_size:
                    shapes[f"weight_hr{suffix}"] = (self.proj_size, self.hidden_size)
        return shapes


@dataclass
class Call:
    """One sequence through the stack: sizes and options that forward and backward share."""

    steps: int
    batch: int
    save: bool
    lengths: np.ndarray | None = None  # [B] int64
    clear: tuple[np.ndarray | None, np.ndarray | None] = (None, None)  # [T, B] uint8 by direction
    dropout_key: tuple[int, int] = (0, 0)  # seed and the number of this call


class Stack:
    """A recurrent stack over the parameters in `slots`."""

    def __init__(self, engine: Cpu, shape: Shape, slots: Slots) -> None:
        self.engine, self.shape, self.slots = engine, shape, slots
        sizes = [(shape.layer_inputs(k), shape.hidden_size, shape.width) for k in range(shape.num_layers)]
        self.layers = [
            [
                Recurrence(engine, shape.cell, sizes[k], slots, suffix, reverse=d == 1, relu=shape.relu,
                           reset_after=shape.reset_after)
                for d, suffix in enumerate(suffixes)
            ]
            for k, suffixes in enumerate(shape.suffixes())
        ]  # fmt: skip
        self.joins = shape.bidirectional or shape.dropout > 0
        self._probability = np.array([shape.dropout])

    def workspace(self) -> Spaces:
        """Buffers for one call."""
        return Spaces(self)

    def forward(
        self, spaces: Spaces, call: Call, state: tuple[Any, Any], *, x: int = 0, x_row: int = 0, ids: int = 0, table: int = 0
    ) -> None:
        """All layers. state: (h_0, c_0), each [layers*directions, B, width] or None; x or ids by address for layer 0."""
        steps, batch, shape = call.steps, call.batch, self.shape
        lengths = 0 if call.lengths is None else address(call.lengths)
        for k, directions in enumerate(self.layers):
            for d, recurrence in enumerate(directions):
                ws, index, clear = spaces.of[k][d], k * shape.directions + d, call.clear[d]
                h_0, c_0 = (None if part is None else part[index] for part in state)
                recurrence.begin(ws, steps, batch, h_0, c_0, call.save)
                first = k == 0
                recurrence.forward(
                    ws, steps, batch, call.save, x=x, x_row=x_row, ids=ids if first else 0, table=table if first else 0,
                    lengths=lengths, clear=0 if clear is None else address(clear),
                )  # fmt: skip
            if k + 1 < shape.num_layers:
                x, x_row = self._between(spaces, call, k)

    def _between(self, spaces: Spaces, call: Call, layer: int) -> tuple[int, int]:
        """Address and row of the next layer's inputs."""
        if not self.joins:
            return self.layers[layer][0].outputs(spaces.of[layer][0]), self.layers[layer][0].row
        joined = spaces.joined(layer, call)
        self.emit(spaces, call, layer, address(joined), joined.shape[2], masked=False)
        if call.save and self.shape.dropout > 0:
            self._drop(joined, joined.shape[2], call, layer)
        return address(joined), joined.shape[2]

    def _drop(self, data: np.ndarray, width: int, call: Call, layer: int) -> None:
        """Zero some and scale the rest, the same elements in forward and backward of one call."""
        seed, number = call.dropout_key
        signed = (seed + 2**63) % 2**64 - 2**63
        self.engine.run("random.dropout", call.steps * call.batch, width, data, data.shape[2], signed,
                        number * self.shape.num_layers + layer, self._probability)  # fmt: skip

    def emit(self, spaces: Spaces, call: Call, layer: int, out: int, out_row: int, *, masked: bool = True) -> None:
        """A layer's outputs, both directions side by side, to out [T, B, out_row]; zeros beyond the lengths if `masked`."""
        lengths = call.lengths if masked else None
        for d, recurrence in enumerate(self.layers[layer]):
            at = out + d * self.shape.width * self.engine.itemsize
            rows = call.steps * call.batch
            self.engine.run("sequence.emit_rows", call.steps, call.batch, self.shape.width,
                            recurrence.outputs(spaces.of[layer][d]), recurrence.row, at, out_row, lengths,
                            work=rows * self.shape.width)  # fmt: skip

    def final_state(
        self, spaces: Spaces, call: Call, out: tuple[Any, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(h_n, c_n): new arrays, or those in `out` overwritten."""
        ends = [r.end(spaces.of[k][d], call.steps, call.save) for k, ds in enumerate(self.layers) for d, r in enumerate(ds)]
        return _stacked([h for h, _ in ends], out and out[0]), _stacked([c for _, c in ends], out and out[1])

    def backward(
        self, spaces: Spaces, call: Call, dout: int, dout_row: int, dstate: tuple[Any, Any], *, x: int = 0, x_row: int = 0,
        dx: int = 0, dx_row: int = 0,
    ) -> None:  # fmt: skip
        """All layers back. dout [T, B, dout_row] by address, rows at least as wide as the outputs; dstate as `state`.

        dx: where the inputs' gradients [T, B, dx_row] go, 0 for nowhere.
        """
        steps, batch, shape, engine = call.steps, call.batch, self.shape, self.engine
        lengths = 0 if call.lengths is None else address(call.lengths)
        for k in reversed(range(shape.num_layers)):
            if k == 0:
                source, source_row, target, target_row = x, x_row, dx, dx_row
            else:
                source, source_row = spaces.between(k - 1, call)
                below = spaces.gradient(k - 1, call)
                target, target_row = address(below), below.shape[2]
            for d, recurrence in enumerate(self.layers[k]):
                ws, index = spaces.of[k][d], k * shape.directions + d
                recurrence.begin_backward(ws, batch, *(None if part is None else part[index] for part in dstate))
                at, row = dout + d * shape.width * engine.itemsize, dout_row
                if shape.width % engine.lanes and (shape.bidirectional or dout_row != recurrence.row):
                    own = ws.array("dout", steps, batch, recurrence.row)
                    engine.run("sequence.absorb_rows", steps * batch, shape.width, at, dout_row, own, recurrence.row)
                    at, row = address(own), recurrence.row
                recurrence.backward(ws, steps, batch, at, row, x=source, x_row=source_row, dx=target, dx_row=target_row,
                                    add_dx=d > 0, lengths=lengths, clear=call.clear[d])  # fmt: skip
            if k > 0:
                if shape.dropout > 0:
                    self._drop(below, shape.layer_inputs(k), call, k - 1)
                dout, dout_row = target, target_row

    def initial_gradients(self, spaces: Spaces) -> tuple[np.ndarray, np.ndarray | None]:
        """New arrays (dh_0, dc_0)."""
        ends = [r.end_backward(spaces.of[k][d]) for k, ds in enumerate(self.layers) for d, r in enumerate(ds)]
        return _stacked([h for h, _ in ends]), _stacked([c for _, c in ends])


class Spaces:
    """The buffers of one call of a stack: a workspace for each layer and direction, and one for what lies between."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.of = [[Workspace(stack.engine) for _ in directions] for directions in stack.layers]
        self.own = Workspace(stack.engine)

    def joined(self, layer: int, call: Call) -> np.ndarray:
        """[T, B, D*R]: a layer's outputs as the next one reads them."""
        shape = self.stack.shape
        return self.own.array(f"joined_{layer}", call.steps, call.batch, shape.directions * shape.width)

    def between(self, layer: int, call: Call) -> tuple[int, int]:
        """Address and row of what the layer above read."""
        if self.stack.joins:
            joined = self.joined(layer, call)
            return address(joined), joined.shape[2]
        recurrence = self.stack.layers[layer][0]
        return recurrence.outputs(self.of[layer][0]), recurrence.row

    def gradient(self, layer: int, call: Call) -> np.ndarray:
        """[T, B, padded D*R]: gradient of a layer's outputs; one buffer serves all pairs of neighbours in turn."""
        shape = self.stack.shape
        row = self.stack.engine.padded(shape.directions * shape.width)
        return self.own.array(f"gradient_{layer % 2}", call.steps, call.batch, row)


def _stacked(parts: list[Any], out: Any = None) -> Any:
    return None if parts[0] is None else np.stack(parts, out=out)


class Pool:
    """Spaces by shape of call, handed out and taken back; a few are kept."""

    KEPT = 8

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.free: list[tuple[tuple[Any, ...], Spaces]] = []
        self.lock = threading.Lock()

    def take(self, key: tuple[Any, ...]) -> Spaces:
        """Spaces last used with `key`, or new ones."""
        with self.lock:
            for k, (known, spaces) in enumerate(self.free):
                if known == key:
                    del self.free[k]
                    return spaces
        return Spaces(self.stack)

    def give(self, key: tuple[Any, ...], spaces: Spaces) -> None:
        """Back for reuse; the longest unused goes."""
        with self.lock:
            self.free.append((key, spaces))
            del self.free[: -self.KEPT]
