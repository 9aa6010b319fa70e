"""One batch through a LanguageModel: embedding, recurrent stack, head and cross-entropy, and all the way back.

Where the vocabulary is smaller than the batch's tokens, layer 0 needs no product with its inputs: a table of every token's
gate pre-activations serves forward, and the gates' gradients summed by token serve backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels.operations import AddRows, GatherRows, ScatterOperands, ScatterRows, SoftmaxCrossEntropy
from ..layers.recurrent import State
from ..runtime import check
from ..runtime.arrays import put
from ..runtime.program import Later, Place, Result, address
from ..runtime.workspace import as_operands
from ..stack.batch_run import BatchRun
from ..stack.products import Matrix
from ..stack.stack import Call

HEAD_BYTES = 1 << 21  # logits made at a time


INITIAL, FINAL = (Later("h_0"), Later("c_0")), (Result("h_n"), Result("c_n"))  # states that the caller gives and gets


class TokenBatch(BatchRun):
    """One batch through a LanguageModel; in training its state is carried in buffers of the model, `carried`."""

    def __init__(self, model: Any, ids: Any, state: State, save: bool, targets: np.ndarray | None = None) -> None:
        name = "ids" if targets is None else "inputs"
        ids = check.not_empty(name, check.tokens(name, ids, model.vocab_size))
        steps, batch = ids.shape
        given = check.states("state", state, model.shape, batch, model._engine)
        if targets is not None:
            targets = check.tokens("targets", targets, model.vocab_size, ids.shape)
        elif save:
            ids = ids.copy()  # a backward pass may come after the caller has changed his
        model.dropout_calls += save  # all is checked: calls that are refused do not count
        super().__init__(model.slots, model._pool, Call(steps, batch, save), (steps, batch, save))
        self.model = model
        self.count = steps * batch
        self.by_table = bool(model.vocab_size < self.count)
        self.values = {"ids": ids, "targets": targets}
        if model.shape.dropout:
            self.values |= model.stack.dropout_values(model.seed, model.dropout_calls)
        self.initial: tuple[Place, Place] = INITIAL
        self.final: tuple[Place, Place] = FINAL
        if save and targets is not None:
            self.carried = self._carry(given)
        else:
            self.values |= {"h_0": given[0], "c_0": given[1]}

    def _carry(self, given: tuple[Any, Any]) -> State:
        """The model's own buffers for the state in training, with what was given."""
        model, batch = self.model, self.call.batch
        kept = model._carried.get(batch)
        if kept is None:
            h, c = model._states(lambda name, *sizes: model._own.array(f"{name}_{batch}", *sizes), batch)
            kept = model._carried[batch] = h, c, (address(h), 0 if c is None else address(c))
        h, c, places = kept
        for buffer, value in zip((h, c), given, strict=True):
            if buffer is not None and value is None:
                buffer.fill(0)
            elif buffer is not None and value is not buffer:
                put(buffer, value)
        self.initial = self.final = places
        return h if c is None else (h, c)

    def _forward(self) -> None:
        """Record all layers."""
        model, call, own = self.model, self.call, self.own
        width, first = model.embedding_size, model.stack.layers[0][0]
        embedding = self._embedding()
        if self.by_table:
            rows, row = as_operands(own, "embedding", 1, model.vocab_size, embedding, width, width)
            table = first.table(own, "table", model.vocab_size, rows, row)
            model.stack.forward(self.spaces, call, self.initial, ids=Later("ids"), table=address(table))
        else:
            x = own.array("x", call.steps, call.batch, width)
            model._engine.run(
                GatherRows(
                    rows=call.steps * call.batch,
                    columns=width,
                    ids=Later("ids"),
                    source=embedding,
                    source_row=width,
                    out=x,
                    out_row=width,
                ),
                work=x.size,
            )
            at, row = as_operands(own, "x_op", call.steps, call.batch, address(x), width, width)
            model.stack.forward(self.spaces, call, self.initial, x=at, x_row=row)

    def _embedding(self, grad: bool = False) -> int:
        """Address of the embedding or its gradient."""
        slots, size = self.model.slots, self.model._engine.itemsize
        begin: int = slots.places["embedding.weight"][0]
        return address(slots.store.grads if grad else slots.store.params) + begin * int(size)

    def _outputs(self) -> tuple[int, int]:
        """Address and row of the top layer's h as products read it."""
        top = self.model.stack.layers[-1][0]
        return top.outputs(self.spaces.of[-1][0])[1], top.op_row

    def state(self) -> State:
        """State after the batch: new arrays."""
        return self.with_state("state", self._final)

    def with_state(self, what: str, record: Callable[[], None]) -> State:
        """Run a program that `record` makes and that ends with `_final`; returns the state, new arrays."""
        h, c = self.model._states(lambda _, *sizes: self.model._engine.new(sizes), self.call.batch)
        self.run(what, record, h_n=h, c_n=c)
        return h if c is None else (h, c)

    def _final(self) -> None:
        """Record the state after the batch."""
        self.model.stack.final_state(self.spaces, self.call, *self.final)

    def logits(self) -> np.ndarray:
        """Run forward: new array [T, B, V]."""
        head, steps, batch = self.model.head, self.call.steps, self.call.batch
        out: np.ndarray = self.model._engine.new((steps, batch, head.columns))

        def record() -> None:
            self._forward()
            head.forward(steps * batch, *self._outputs(), Result("logits"), head.columns)

        self.run("logits", record, logits=out)
        return out if head.columns == head.outputs else out[:, :, : head.outputs].copy()

    @property
    def losses(self) -> np.ndarray:
        """The cross-entropy of each target, float64, where `judge` and `gradients` put it."""
        return self.own.doubles("losses", self.count)

    def judge(self) -> None:
        """Record forward, losses and the state after the batch."""
        self._learn(gradient=False)

    def gradients(self) -> None:
        """Record the same with backward: gradients of the mean loss are added to the model's."""
        self._learn(gradient=True)

    def _learn(self, gradient: bool) -> None:
        model, head, size, own, rows = self.model, self.model.head, self.model._engine.itemsize, self.own, self.count
        losses = self.losses
        self._forward()
        self._final()
        h, h_row = self._outputs()
        d_row = model.stack.layers[-1][0].h_row
        part = rows if model._engine.whole else max(64, min(rows, HEAD_BYTES // (head.columns * size)))
        logits = own.array("logits", part, head.columns)
        dout = own.array("dout", rows, d_row) if gradient else None
        scale = own.array("scale", 1)
        scale[0] = 1 / rows
        for begin in range(0, rows, part):
            n = min(part, rows - begin)
            at = h + begin * h_row * size
            head.forward(n, at, h_row, address(logits), head.columns)
            model._engine.run(
                SoftmaxCrossEntropy(
                    rows=n,
                    classes=head.outputs,
                    logits=logits,
                    row=head.columns,
                    targets=Later("targets", 4 * begin),
                    scale=scale,
                    losses=losses[begin:],
                    gradient=int(gradient),
                    correct=0,
                ),
                work=n * head.columns * 20,
            )
            if dout is not None:
                head.backward(own, n, address(logits), at, h_row, address(dout[begin:]), d_row)
        if dout is not None:
            self._backward(address(dout), d_row, (0, 0))

    def _backward(self, dout: Place, dout_row: int, dstate: tuple[Place, Place]) -> None:
        """Record all layers back, and the embedding."""
        model, own, call = self.model, self.own, self.call
        width, padded = model.embedding_size, model._engine.padded(model.embedding_size)
        first, run, vocabulary = model.stack.layers[0][0], model._engine.run, model.vocab_size
        demb = own.zeros("d_embedding", vocabulary, padded)
        rows = call.steps * call.batch
        if self.by_table:
            model.stack.backward(self.spaces, call, dout, dout_row, dstate)
            dtable = own.zeros("d_table", vocabulary, first.gates_row)
            gates = first.gradients(self.spaces.of[0][0])
            run(
                ScatterOperands(
                    rows=rows,
                    columns=first.columns,
                    ids=Later("ids"),
                    source=gates,
                    source_row=first.kept_row,
                    out=dtable,
                    out_row=first.gates_row,
                ),
                work=rows * first.columns,
            )
            at, _ = as_operands(own, "d_table_op", 1, vocabulary, address(dtable), first.gates_row, first.columns)
            x, row = as_operands(own, "embedding", 1, vocabulary, self._embedding(), width, width)
            first.add_table(
                self.spaces.of[0][0], Matrix(at, first.kept_row, first.columns), vocabulary, (x, row), (address(demb), padded)
            )
        else:
            dx, read = own.array("dx", rows, padded), own.arrays["x_op" if model._engine.narrow else "x"]
            model.stack.backward(
                self.spaces, call, dout, dout_row, dstate, x=address(read), x_row=read.shape[2], dx=address(dx), dx_row=padded
            )
            run(
                ScatterRows(
                    rows=rows, columns=padded, ids=Later("ids"), source=dx, source_row=padded, out=demb, out_row=padded
                ),
                work=rows * padded,
            )
        grads = self._embedding(grad=True)
        run(
            AddRows(
                hidden=vocabulary,
                gates=1,
                unit=model._engine.lanes,
                columns=vocabulary,
                width=width,
                c=demb,
                c_row=padded,
                gradient=grads,
                gradient_row=width,
            ),
            work=vocabulary * width,
        )

    def checked_gradients(self, dlogits: Any, dstate_n: State = None) -> tuple[Any, Any, Any]:
        """Check the gradients that a user gives: (dlogits [T, B, V] or None, dh_n, dc_n)."""
        self.check_unedited()
        model, engine, steps, batch = self.model, self.model._engine, self.call.steps, self.call.batch
        if dlogits is not None:
            dlogits = check.array("dlogits", dlogits, engine.storage, (steps, batch, model.vocab_size), engine.take)
        return dlogits, *check.states("dstate_n", dstate_n, model.shape, batch, engine)

    def backward(self, dlogits: Any, dh_n: Any, dc_n: Any) -> tuple[None, State]:
        """Add to the model's gradients; return those of the ids (none) and of the initial state."""
        model, head, engine, call = self.model, self.model.head, self.model._engine, self.call
        steps, batch = call.steps, call.batch
        dh_0, dc_0 = model._states(lambda _, *sizes: engine.new(sizes), batch)

        def record() -> None:
            d_row = model.stack.layers[-1][0].h_row
            dout = self.own.array("dout", steps * batch, d_row)
            head.backward(self.own, steps * batch, address(padded), *self._outputs(), address(dout), d_row)
            self._backward(address(dout), d_row, (Later("dh_n"), Later("dc_n")))
            model.stack.initial_gradients(self.spaces, call, Result("dh_0"), Result("dc_0"))

        padded = self.own.cleared("d_logits", steps * batch, head.columns)
        if dlogits is None:
            padded.fill(0)
        else:
            put(padded[:, : head.outputs], dlogits.reshape(steps * batch, -1))
        with model.slots.store.adding:
            self.run("backprop", record, dh_n=dh_n, dc_n=dc_n, dh_0=dh_0, dc_0=dc_0)
        self.close()
        return None, dh_0 if dc_0 is None else (dh_0, dc_0)
