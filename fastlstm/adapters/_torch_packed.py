"""A packed batch of sequences of unequal lengths through the kernels, without padding: as many rows as there are steps.

torch packs step after step, the longest sequence first, so that steps have fewer and fewer rows. Here each step's rows stand
in the other order: then the rows that go on are the last ones of a step, and lie right before the rows of the next step, where
the kernels look for the states before a step. So all steps that have equally many rows, a span, are one batch of whole
sequences to the kernels, on views of buffers in which spans follow each other. The reverse direction is the forward one over
sequences turned around, each at its own end. Knows nothing of modules and of autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlstm.program import Program
from fastlstm.recurrence import Recurrence
from fastlstm.weight_sums import WeightSums
from fastlstm.workspace import Workspace

from ._torch_core import Core, Results, place
from ._torch_threads import threads


class Layout:
    """Where the rows of a packed batch stand; all indices are of rows.

    Parameters
    ----------
    batch_sizes : Tensor [T]
        Rows of each step, never more than of the step before.
    """

    def __init__(self, batch_sizes: Tensor) -> None:
        sizes = batch_sizes.numpy()
        self.rows, self.batch = int(sizes.sum()), int(sizes[0])
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        changes = np.flatnonzero(np.diff(sizes)) + 1
        firsts = np.concatenate([[0], changes])
        counts = np.diff(np.concatenate([firsts, [len(sizes)]]))
        self.spans = [(int(offsets[t]), int(n), int(sizes[t])) for t, n in zip(firsts, counts, strict=True)]
        lengths = np.searchsorted(-sizes, -np.arange(self.batch), side="left")  # of each sequence
        step = np.repeat(np.arange(len(sizes)), sizes)
        sequence = sizes[step] - 1 - (np.arange(self.rows) - offsets[step])
        orders = [offsets[step] + sequence, offsets[lengths[sequence] - 1 - step] + sequence]
        # For each direction: which of torch's rows stands in a row here, and the other way round.
        self.order = [torch.from_numpy(order) for order in orders]
        self.inverse = [torch.from_numpy(np.argsort(order)) for order in orders]
        # In buffers that begin with the initial states: the state before each row, and each sequence's first and last state.
        self.before = torch.from_numpy(np.arange(self.rows) + self.batch - sizes[step])
        self.first = torch.arange(self.batch - 1, -1, -1)
        last = self.batch + offsets[lengths - 1] + sizes[lengths - 1] - 1 - np.arange(self.batch)
        self.last = torch.from_numpy(last)


class _Window(Workspace):
    """A workspace whose arrays of sequences are views, for one span at a time, of buffers that hold all rows of a batch.

    A buffer [B + rows, row] begins with one row for each sequence, the initial states where it is one of states.
    """

    CARRIED = ("dh", "dc", "dm")  # [B, row]: of one step, handed on

    def __init__(self, core: Core, layout: Layout) -> None:
        super().__init__(core.engine)
        self.core, self.layout = core, layout
        self.bases: dict[str, np.ndarray] = {}

    def base(self, name: str, row: int) -> Tensor:
        """The whole buffer as a tensor; when new, with zeros for each sequence and unknown content in the rows."""
        if name not in self.bases:
            rows = self.layout.batch + (0 if name in self.CARRIED else self.layout.rows)
            self.bases[name] = self.core.take_rows(rows, row)
            self.bases[name][: self.layout.batch] = 0
        return torch.from_numpy(self.bases[name])

    def close(self) -> None:
        """Give the buffers back."""
        for base in self.bases.values():
            self.core.give_rows(base)
        self.bases, self.arrays = {}, {}

    def rows(self, name: str) -> int:
        """Address of the first step's rows."""
        base = self.bases[name]
        return int(base.ctypes.data) + self.layout.batch * base.strides[0]

    def open(self, first: int, steps: int, batch: int) -> None:
        """Turn to the span that begins at row `first`."""
        self.span = first, steps, batch
        for name in self.bases:
            self.arrays[name] = self._view(name, steps + (name in ("h", "c")))

    def _view(self, name: str, slots: int) -> np.ndarray:
        base, (first, steps, batch) = self.bases[name], self.span
        if name in self.CARRIED:
            return base[self.layout.batch - batch : self.layout.batch]
        begin = self.layout.batch + first - (slots - steps) * batch
        return base[begin : begin + slots * batch].reshape(slots, batch, base.shape[1])

    def _made(self, name: str, shape: tuple[int, ...], make: Callable[..., np.ndarray]) -> np.ndarray:
        if len(shape) != 3 and name not in self.CARRIED:
            return super()._made(name, shape, make)
        if name not in self.bases:
            self.base(name, shape[-1])
            self.arrays[name] = self._view(name, shape[0])
        return self.arrays[name]


class _Elsewhere:
    """Stands where a backward pass sums the weights' gradients: they are summed over all spans at once instead."""

    def add(self, *arguments: Any) -> None:
        """Nothing."""


def _made(record: Callable[[], None]) -> None:
    """Make the calls that `record` makes, all by one call of the threads. The program is not kept: no batch is like another."""
    program = Program()
    program.record(record)
    program.run()


class PackedRun:
    """A packed batch: the forward pass, made at once, and its backward pass; as `Run`, with x [rows, I] and `batch_sizes`."""

    def __init__(
        self, core: Core, x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Sequence[Tensor], seed: int, save: bool,
        batch_sizes: Tensor,
    ) -> None:  # fmt: skip
        self._inputs: list[list[Tensor]] = []  # of each layer and direction, in its own order
        self._windows: list[list[_Window]] = []
        self.core, self.layout, self.seed = core, Layout(batch_sizes), seed
        self.drops = core.shape.dropout > 0 and save
        h_n, c_n = core.empty_states(x, self.layout.batch)
        with core.lock, threads:
            self._version = core.hold(weights)
            for layer in range(core.shape.num_layers):
                if layer > 0 and self.drops:
                    x = x * self._mask(layer - 1, x)
                x = self._layer(layer, x, h_0, c_0, h_n, c_n)
        self.outputs: Results = (x, h_n) if c_n is None else (x, h_n, c_n)
        if not save:
            self.close()

    def _mask(self, layer: int, like: Tensor) -> Tensor:
        return self.core.mask(self.layout.rows, layer, self.seed, like)

    def _directions(self, layer: int) -> list[Recurrence]:
        return [part.reversed() if part.reverse else part for part in self.core.stack.layers[layer]]

    def _layer(
        self, layer: int, x: Tensor, h_0: Tensor | None, c_0: Tensor | None, h_n: Tensor, c_n: Tensor | None
    ) -> Tensor:
        """One layer's outputs [rows, directions*R] in torch's order; its final states go into h_n and c_n."""
        layout, parts = self.layout, self._directions(layer)
        inputs = [x.index_select(0, layout.order[d]) for d in range(len(parts))]
        windows = [_Window(self.core, layout) for _ in parts]
        ends = []
        for d, (part, ws) in enumerate(zip(parts, windows, strict=True)):
            index = layer * len(parts) + d
            pairs = [(ws.base("h", part.h_row)[:, : part.width], h_0, h_n)]
            if c_n is not None:
                pairs.append((ws.base("c", part.padded)[:, : part.hidden], c_0, c_n))
            for base, initial, final in pairs:
                if initial is not None:
                    base[layout.first] = initial[index]
                ends.append((base, final[index]))

        def record() -> None:
            for part, ws, own in zip(parts, windows, inputs, strict=True):
                for first, steps, batch in layout.spans:
                    ws.open(first, steps, batch)
                    part.forward(ws, steps, batch, True, x=place(own, first), x_row=part.inputs)

        _made(record)
        for base, final in ends:
            final[:] = base[layout.last]
        outputs = [ws.base("h", part.h_row)[layout.batch :, : part.width].index_select(0, layout.inverse[d])
                   for d, (part, ws) in enumerate(zip(parts, windows, strict=True))]  # fmt: skip
        self._inputs.append(inputs)
        self._windows.append(windows)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)

    def backward(
        self, x: Tensor, weights: Sequence[Tensor], dout: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None,
        wants_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor | None, list[Tensor]]:  # fmt: skip
        """As `Run.backward`."""
        core = self.core
        dh_0, dc_0 = core.empty_states(x, self.layout.batch)
        with core.lock, threads:
            core.hold(weights, self._version)
            core.clear_gradients()
            for layer in reversed(range(core.shape.num_layers)):
                dout = self._layer_backward(layer, dout, dh_n, dc_n, dh_0, dc_0, layer > 0 or wants_dx)
                if layer > 0 and self.drops:
                    assert dout is not None
                    dout = dout * self._mask(layer - 1, dout)
            gradients = core.gradients()
        self.close()
        return dout, dh_0, dc_0, gradients

    def _layer_backward(
        self, layer: int, dout: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, dh_0: Tensor, dc_0: Tensor | None,
        wants_dx: bool,
    ) -> Tensor | None:  # fmt: skip
        """The gradient of a layer's inputs in torch's order, if wanted; those of its initial states go into dh_0 and dc_0."""
        layout, parts, windows, inputs = self.layout, self._directions(layer), self._windows[layer], self._inputs[layer]
        ends, incoming = [], []
        for d, (part, ws) in enumerate(zip(parts, windows, strict=True)):
            index, own = layer * len(parts) + d, inputs[d].new_zeros(layout.rows, part.h_row)
            if dout is not None:
                side = dout[:, d * part.width : (d + 1) * part.width]
                own[:, : part.width] = side.index_select(0, layout.order[d])
            incoming.append(own)
            pairs = [(ws.base("dh", part.h_row)[:, : part.width], dh_n, dh_0)]
            if dc_0 is not None:
                pairs.append((ws.base("dc", part.padded)[:, : part.hidden], dc_n, dc_0))
            for base, final, initial in pairs:
                if final is not None:
                    base[layout.first] = final[index]
                ends.append((base, initial[index]))
        before = [torch.from_numpy(ws.bases["h"]).index_select(0, layout.before) for ws in windows]
        width = self.core.engine.padded(parts[0].inputs)
        outgoing = [own.new_empty(layout.rows, width) for own in inputs] if wants_dx else []

        def record() -> None:
            for d, (part, ws) in enumerate(zip(parts, windows, strict=True)):
                for first, steps, batch in reversed(layout.spans):
                    ws.open(first, steps, batch)
                    part.backward(ws, steps, batch, place(incoming[d], first), part.h_row, sums=_Elsewhere())
                self._weight_gradients(part, ws, inputs[d], before[d])
                if wants_dx:
                    self._input_gradients(part, ws, outgoing[d])

        _made(record)
        for base, initial in ends:
            initial[:] = base[layout.first]
        dx = None
        for d, own in enumerate(outgoing):
            back = own[:, : parts[d].inputs].index_select(0, layout.inverse[d])
            dx = back if dx is None else dx.add_(back)
        return dx

    def _weight_gradients(self, part: Recurrence, ws: _Window, x: Tensor, before: Tensor) -> None:
        """Add one direction's, of all rows at once; before: h before each row."""
        rows, engine = self.layout.rows, self.core.engine
        sums = WeightSums(part, Workspace(engine))
        gates, side_row = (ws.rows("gates"), part.kept_row), engine.row(part.hidden)
        inner: tuple[int, int] = (ws.rows("inner"), ws.bases["inner"].shape[1]) if part.cell == "gru" else gates
        sums.add("ih", rows, *gates, part.columns, place(x), part.inputs, part.inputs)
        sums.add("hh", rows, *inner, part.columns, place(before), part.op_row, part.width)
        if part.projected:
            sums.add("hr", rows, ws.rows("dp"), part.op_row, part.h_row, ws.rows("m"), side_row, part.hidden)
        sums.finish()

    def _input_gradients(self, part: Recurrence, ws: _Window, dx: Tensor) -> None:
        """One direction's, of all rows at once, to dx [rows, padded I]."""
        engine, rows, row = self.core.engine, self.layout.rows, dx.shape[1]
        engine.run("gemm.product", 1, rows, part.gates_depth, row, 0, ws.rows("gates"), part.kept_row,
                   part.packed("x_back"), engine.zeros(row), 0, place(dx), row, work=rows * part.columns * row)  # fmt: skip

    def close(self) -> None:
        """Give the buffers back."""
        windows, self._inputs, self._windows = self._windows, [], []
        for ws in (ws for directions in windows for ws in directions):
            ws.close()

    def __del__(self) -> None:
        self.close()  # of a graph that was dropped without its backward pass
