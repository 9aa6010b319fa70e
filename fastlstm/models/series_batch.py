"""One batch through a model that reads numbers: normalisation, recurrent stack, head and loss, and all the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels.operations import EmitRows, Normalise
from ..runtime.arrays import as_numpy, put
from ..runtime.program import Later, Place, Result, address
from ..runtime.workspace import as_operands
from ..stack.batch_run import BatchRun
from ..stack.stack import Call


class SeriesBatch(BatchRun):
    """One batch through a model: checked inputs [T, B, I] to `out` [B, padded outputs]; `targets` as the model reads them."""

    carried = None  # from batch to batch: no state

    def __init__(
        self, model: Any, inputs: np.ndarray, lengths: np.ndarray | None, save: bool, targets: np.ndarray | None = None
    ) -> None:
        steps, batch = inputs.shape[:2]
        model.dropout_calls += save
        call = Call(steps, batch, save, 0 if lengths is None else Later("lengths"))
        super().__init__(model.slots, model._pool, call, (steps, batch, save))
        self.model = model
        wide = inputs.dtype != np.float32
        self.values = {
            "wide": inputs if wide else None,
            "slim": None if wide else inputs,
            "lengths": lengths,
            "targets": targets,
            **{name: model._buffers.get(name) for name in ("input_mean", "input_std", "target_mean", "target_std")},
            **model.stack.dropout_values(model.seed, model.dropout_calls),
        }
        self.x = self.own.array("x", steps, batch, model.shape.input_size)
        self.last = self.own.array("last", batch, model.features)
        self.out = self.own.array("out", batch, model.head.columns)
        self.count = batch if targets is None else targets.size

    def run(self, what: Any, record: Callable[[], None], packing: bool = False, **values: Any) -> None:
        """Run the program called `what`, of which there is one with lengths and one without."""
        super().run((what, isinstance(self.call.lengths, Later)), record, packing, **values)

    @property
    def losses(self) -> np.ndarray:
        """The loss of each sequence, float64, where `judge` and `gradients` put it."""
        return self.own.doubles("losses", self.call.batch)

    def _inputs(self) -> tuple[int, int]:
        """Address and row of the inputs as products read them."""
        call, width = self.call, self.model.shape.input_size
        return as_operands(self.own, "x_op", call.steps, call.batch, address(self.x), width, width)

    def _forward(self) -> None:
        """Record normalisation, all layers, the last states side by side, and the head."""
        model, call, shape = self.model, self.call, self.model.shape
        # Beyond a length stands anything; what it meets in products is zero, but zero times not-a-number is not: it is cleared.
        model._engine.run(
            Normalise(
                steps=call.steps,
                batch=call.batch,
                width=shape.input_size,
                wide=Later("wide"),
                slim=Later("slim"),
                mean=Later("input_mean"),
                std=Later("input_std"),
                lengths=call.lengths,
                out=self.x,
            ),
            work=10 * self.x.size,
        )
        x, x_row = self._inputs()
        model.stack.forward(self.spaces, call, (0, 0), x=x, x_row=x_row)
        for d, top in enumerate(model.stack.layers[-1]):
            h, _ = top.end(self.spaces.of[-1][d], call.steps)
            model._engine.run(
                EmitRows(
                    steps=1,
                    batch=call.batch,
                    width=shape.width,
                    h=h,
                    h_row=top.h_row,
                    out=address(self.last) + d * shape.width * model._engine.itemsize,
                    out_row=model.features,
                    lengths=0,
                ),
                work=self.last.size,
            )
        model.head.forward(call.batch, *self._last(), address(self.out), model.head.columns)

    def _last(self) -> tuple[int, int]:
        """Address and row of the last states as products read them."""
        features = self.model.features
        return as_operands(self.own, "last_op", 1, self.call.batch, address(self.last), features, features)

    def outputs(self) -> np.ndarray:
        """Run forward: the head's outputs [B, outputs], a new array in host memory."""
        self.run("forward", self._forward)
        return np.array(as_numpy(self.out[:, : self.model.head.outputs]))

    def judge(self) -> None:
        """Record forward and losses."""
        self._forward()
        self.model._judge(self, gradient=False)

    def gradients(self) -> None:
        """Record the same with backward: gradients of the mean loss are added to the model's."""
        self._forward()
        self.model._judge(self, gradient=True)
        self._backward(address(self.out), 0)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """Add to the model's gradients, dout [B, outputs]. Return the inputs' gradient."""
        model, shape, call, storage = self.model, self.model.shape, self.call, self.model._engine.storage
        row = model._engine.padded(shape.input_size)
        dx = model._engine.new((call.steps, call.batch, row))
        padded = self.own.cleared("dout", *self.out.shape)
        put(padded[:, : dout.shape[1]], dout)
        with model.slots.store.adding:
            self.run("backward", lambda: self._backward(Later("dout"), row), dout=padded, dx=dx)
        self.close()
        dx = as_numpy(dx)[:, :, : shape.input_size]
        return dx / model._buffers["input_std"].astype(storage) if model.normalize else np.ascontiguousarray(dx)

    def _backward(self, dout: Place, dx_row: int) -> None:
        """Record the head and all layers back."""
        model, own, shape, call = self.model, self.own, self.model.shape, self.call
        engine, features, width, batch = model._engine, model.features, shape.width, call.batch
        dlast = own.array("dlast", batch, engine.padded(features))
        # All gradient comes through the final state of the top layer; those of every step's output are zero.
        dh = own.zeros("dh_n", shape.num_layers * shape.directions, batch, width)
        nothing = own.cleared("nothing", shape.directions * engine.padded(width))
        model.head.backward(own, batch, dout, *self._last(), address(dlast), dlast.shape[1])
        for d in range(shape.directions):
            engine.run(
                EmitRows(
                    steps=1,
                    batch=batch,
                    width=width,
                    h=address(dlast) + d * width * engine.itemsize,
                    h_row=dlast.shape[1],
                    out=dh[(shape.num_layers - 1) * shape.directions + d],
                    out_row=width,
                    lengths=0,
                ),
                work=dlast.size,
            )
        x, x_row = self._inputs()
        model.stack.backward(
            self.spaces,
            call,
            address(nothing),
            0,
            (address(dh), 0),
            x=x,
            x_row=x_row,
            dx=Result("dx") if dx_row else 0,
            dx_row=dx_row,
        )
