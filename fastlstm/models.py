"""LanguageModel: embedding, recurrent stack and head, trained as one without autograd; and models from their config.

Where the vocabulary is smaller than the batch's tokens, layer 0 needs no product with its inputs: a table of every token's
gate pre-activations serves forward, and the gates' gradients summed by token serve backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import check
from .arrays import as_numpy, put
from .batch import Batch
from .engine import engine
from .layers import State, fresh_seed
from .linear import PackedLinear
from .owner import Owner
from .params import Slots
from .program import Later, Result, address
from .stack import Call, Pool, Shape, Stack
from .workspace import Workspace, as_operands

HEAD_BYTES = 1 << 21  # logits made at a time


class LanguageModel(Owner):
    """Tokens in, logits of the next token out.

    Parameters
    ----------
    vocab_size : int
        Number of tokens V.
    cell : {"lstm", "gru", "rnn"}
    embedding_size : int, optional
        Width E of the embedding; default: the width of h.
    hidden_size, num_layers, dropout, proj_size, reset_after
        As of the layers; dropout acts between layers.
    tie_weights : bool
        The head's weight is the embedding's; needs embedding_size equal to the width of h.
    device, dtype, seed
        As of the layers.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> model = fastlstm.LanguageModel(11, hidden_size=16, seed=0)
    >>> logits, state = model(np.array([[1, 2], [3, 4], [5, 6]]))
    >>> logits.shape, state[0].shape
    ((3, 2, 11), (2, 2, 16))
    """

    def __init__(
        self, vocab_size: int, cell: str = "lstm", embedding_size: int | None = None, hidden_size: int = 256,
        num_layers: int = 2, dropout: float = 0.0, tie_weights: bool = False, proj_size: int = 0, reset_after: bool = True,
        device: str = "cpu", dtype: str = "float32", seed: int | None = None,
    ) -> None:  # fmt: skip
        check.choice("cell", cell, ("lstm", "gru", "rnn"))
        hidden_size = check.positive("hidden_size", hidden_size)
        proj_size = check.projection(proj_size, hidden_size, cell)
        width = proj_size or hidden_size
        embedding_size = width if embedding_size is None else check.positive("embedding_size", embedding_size)
        if tie_weights and embedding_size != width:
            raise ValueError(f"embedding_size is {embedding_size}; with tie_weights expected the width of h, {width}")
        self.vocab_size, self.embedding_size = check.positive("vocab_size", vocab_size), embedding_size
        self.device, self.dtype, self._engine = device, dtype, engine(device, dtype)
        self.seed = fresh_seed() if seed is None else check.integer("seed", seed)
        self.tie_weights = bool(tie_weights)
        self.shape = Shape(
            cell, embedding_size, hidden_size, check.positive("num_layers", num_layers),
            dropout=check.probability("dropout", dropout), proj_size=proj_size, reset_after=bool(reset_after),
        )  # fmt: skip
        storage, zeros = self._engine.storage, self._engine.buffer
        embedding = Slots({"weight": (self.vocab_size, embedding_size)}, storage, zeros)
        rnn = Slots(self.shape.parameters(), storage, zeros)
        weights = {} if tie_weights else {"weight": (self.vocab_size, width)}
        head = Slots({**weights, "bias": (self.vocab_size,)}, storage, zeros)
        self.slots = Slots.joined({"embedding": embedding, "rnn": rnn, "head": head})
        self._initialise(1 / math.sqrt(hidden_size), 1 / math.sqrt(width))
        self.dropout_calls = 0
        self._build()

    BUILT = ("stack", "head", "_pool", "_own")

    def _build(self) -> None:
        weight = "embedding.weight" if self.tie_weights else "head.weight"
        self.stack = Stack(self._engine, self.shape, self.slots.parts["rnn"])
        self.head = PackedLinear(self._engine, self.slots, weight, "head.bias")
        self._pool = Pool(self.stack)
        self._own = Workspace(self._engine)

    def _initialise(self, recurrent: float, head: float) -> None:
        """As torch.nn: embedding normal(0, 1), layers and head uniform; a tied embedding as the head, its stricter use."""
        draw = np.random.Generator(np.random.Philox(key=np.array([self.seed & (2**64 - 1), 0], np.uint64)))
        with self.edit() as params:
            for name, values in params.items():
                if name == "embedding.weight" and not self.tie_weights:
                    put(values, draw.standard_normal(values.shape))
                else:
                    bound = recurrent if name.startswith("rnn.") else head
                    put(values, draw.uniform(-bound, bound, values.shape))

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments with "type", as JSON holds them."""
        s = self.shape
        return {
            "type": "LanguageModel", "vocab_size": self.vocab_size, "cell": s.cell, "embedding_size": self.embedding_size,
            "hidden_size": s.hidden_size, "num_layers": s.num_layers, "dropout": s.dropout, "tie_weights": self.tie_weights,
            "proj_size": s.proj_size, "reset_after": s.reset_after, "device": self.device, "dtype": self.dtype,
            "seed": self.seed,
        }  # fmt: skip

    @property
    def random_state(self) -> dict[str, int]:
        """What the next dropout mask depends on; settable."""
        return {"seed": self.seed, "dropout_calls": self.dropout_calls}

    @random_state.setter
    def random_state(self, value: dict[str, int]) -> None:
        self.seed, self.dropout_calls = int(value["seed"]), int(value["dropout_calls"])

    def _states(self, make: Callable[..., Any], batch: int) -> tuple[Any, Any]:
        """h and c (None without) of a batch, made by ``make(name, *shape)``."""
        shape = self.shape
        h = make("h", shape.num_layers, batch, shape.width)
        return h, make("c", shape.num_layers, batch, shape.hidden_size) if shape.cell == "lstm" else None

    def __call__(self, ids: Any, state: State = None) -> tuple[np.ndarray, State]:
        """Logits [T, B, V] for ids [T, B], and the state after them; no dropout."""
        run = Run(self, ids, state, save=False)
        logits, state = run.logits(), run.state()
        run.close()
        return logits, state

    def forward_train(self, ids: Any, state: State = None) -> tuple[np.ndarray, State, Backprop]:
        """As a call, with dropout; the third value is ``backprop(dlogits, dstate_n=None) -> (None, dstate_0)``.

        It adds to `grads`, once only; ids have no gradient. ``backprop.close()`` instead gives its buffers back unused.
        """
        run = Run(self, ids, state, save=True)
        return run.logits(), run.state(), Backprop(run)

    def train_batch(self, inputs: Any, targets: Any, state: State = None, *, lengths: Any = None) -> tuple[float, State]:
        """Gradients of one batch: zeroes `grads`, runs forward and backward.

        Parameters
        ----------
        inputs, targets : integers [T, B]
        state : optional
            From the batch before; the gradient does not flow into it.

        Returns
        -------
        loss : float
            Mean cross-entropy per token, nats.
        state
            Buffers of the model, overwritten by the next `train_batch` with this batch size.
        """
        run = self.training(inputs, targets, state, lengths=lengths)
        self.zero_grads()
        run.run("gradients", run.gradients)
        loss = run.loss()
        run.close()
        return loss / run.count, run.carried

    def training(self, inputs: Any, targets: Any, state: State = None, *, lengths: Any = None) -> Run:
        """One batch of `train_batch` before anything has been computed, for programs of which its gradients are a part."""
        _no_lengths(lengths)
        return Run(self, inputs, state, save=True, targets=as_numpy(targets))

    def eval_batch(
        self, inputs: Any, targets: Any, state: State = None, *, lengths: Any = None
    ) -> tuple[dict[str, float], State]:
        """Summed loss (nats) and count of one batch, without dropout.

        The state is buffers of the model, overwritten by the next `eval_batch` with this batch size; those of `train_batch`
        are others, so that evaluation between two steps leaves the training as it is.
        """
        _no_lengths(lengths)
        run = Run(self, inputs, state, save=False, targets=as_numpy(targets))
        run.run("losses", run.judge)
        loss = run.loss()
        run.close()
        return {"loss": loss, "count": float(run.count)}, run.carried


class Backprop:
    """The backward pass of one `LanguageModel.forward_train`: call it once, or `close` it to give its buffers back unused."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, dlogits: Any, dstate_n: State = None) -> tuple[None, State]:
        """Add to the model's gradients.

        Parameters
        ----------
        dlogits : array [T, B, V]
        dstate_n : like `state`, optional
            Gradient of the final state; either part of a pair may be None.

        Returns
        -------
        None
            Ids have no gradient.
        dstate_0 : like `state`

        Raises
        ------
        RuntimeError
            On a second call, and after an edit of the parameters.
        """
        return self._run.backward(dlogits, dstate_n)

    def close(self) -> None:
        """Give the saved activations back without a backward pass."""
        self._run.close()


class Run(Batch):
    """One batch through a LanguageModel; with targets its state is carried in buffers of the model, `carried`."""

    def __init__(self, model: LanguageModel, ids: Any, state: State, save: bool, targets: np.ndarray | None = None) -> None:
        ids = check.not_empty("ids", check.tokens("ids", ids, model.vocab_size))
        steps, batch = ids.shape
        given = check.states("state", state, model.shape, batch, model._engine)
        if targets is not None:
            targets = check.tokens("targets", targets, model.vocab_size, ids.shape)
        model.dropout_calls += save  # all is checked: calls that are refused do not count
        super().__init__(model, Call(steps, batch, save))
        self.count = steps * batch
        self.by_table = model.vocab_size < self.count
        self.values = {"ids": ids, "targets": targets} | model.stack.dropout_values(model.seed, model.dropout_calls)
        self.initial: tuple[int, int] = (Later("h_0"), Later("c_0"))
        if targets is None:
            self.values |= {"h_0": given[0], "c_0": given[1]}
        else:
            self.carried = self._carry(given)

    def _carry(self, given: tuple[Any, Any]) -> State:
        """The model's own buffers for the state, of which training and evaluation have each theirs, with what was given."""
        model, batch, use = self.model, self.call.batch, "train" if self.call.save else "eval"
        h, c = model._states(lambda name, *sizes: model._own.array(f"{name}_{use}_{batch}", *sizes), batch)
        for buffer, value in zip((h, c), given, strict=True):
            if buffer is not None and value is None:
                buffer.fill(0)
            elif buffer is not None and value is not buffer:
                put(buffer, value)
        self.initial = address(h), 0 if c is None else address(c)
        return h if c is None else (h, c)

    def _variant(self) -> bool:
        return self.by_table

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
            model._engine.run("head.gather_rows", call.steps * call.batch, width, Later("ids"), embedding, width, x, width,
                              work=x.size)  # fmt: skip
            at, row = as_operands(own, "x_op", call.steps, call.batch, address(x), width, width)
            model.stack.forward(self.spaces, call, self.initial, x=at, x_row=row)

    def _embedding(self, grad: bool = False) -> int:
        """Address of the embedding or its gradient."""
        slots, size = self.model.slots, self.model._engine.itemsize
        return address(slots.store.grads if grad else slots.store.params) + slots.places["embedding.weight"][0] * size

    def _outputs(self) -> tuple[int, int]:
        """Address and row of the top layer's h as products read it."""
        top = self.model.stack.layers[-1][0]
        return top.outputs(self.spaces.of[-1][0])[1], top.op_row

    def state(self) -> State:
        """State after the batch: new arrays."""
        h, c = self.model._states(lambda _, *sizes: self.model._engine.new(*sizes), self.call.batch)
        self.run("state", lambda: self._final(Result("h_n"), Result("c_n")), h_n=h, c_n=c)
        return h if c is None else (h, c)

    def _final(self, h: int, c: int) -> None:
        self.model.stack.final_state(self.spaces, self.call, h, c)

    def logits(self) -> np.ndarray:
        """Run forward: new array [T, B, V]."""
        head, steps, batch = self.model.head, self.call.steps, self.call.batch
        out: np.ndarray = self.model._engine.new(steps, batch, head.columns)

        def record() -> None:
            self._forward()
            head.forward(steps * batch, *self._outputs(), Result("logits"), head.columns)

        self.run("logits", record, logits=out)
        return out if head.columns == head.outputs else out[:, :, : head.outputs].copy()

    @property
    def losses(self) -> np.ndarray:
        """The cross-entropy of each target, float64, where `judge` and `gradients` put it."""
        return self.own.doubles("losses", self.count)

    def loss(self) -> float:
        """The sum of the cross-entropies."""
        return float(self.losses.sum())

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
        self._final(*self.initial)
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
            model._engine.run("head.softmax_cross_entropy", n, head.outputs, logits, head.columns, Later("targets", 4 * begin),
                              scale, losses[begin:], int(gradient), 0, work=n * head.columns * 20)  # fmt: skip
            if dout is not None:
                head.backward(own, n, address(logits), at, h_row, address(dout[begin:]), d_row)
        if dout is not None:
            self._backward(address(dout), d_row, (0, 0))

    def _backward(self, dout: int, dout_row: int, dstate: tuple[int, int]) -> None:
        """Record all layers back, and the embedding."""
        model, own, call = self.model, self.own, self.call
        width, padded = model.embedding_size, model._engine.padded(model.embedding_size)
        first, run, vocabulary = model.stack.layers[0][0], model._engine.run, model.vocab_size
        demb = own.zeros("d_embedding", vocabulary, padded)
        rows = call.steps * call.batch
        if self.by_table:
            model.stack.backward(self.spaces, call, dout, dout_row, dstate)
            dtable = own.zeros("d_table", vocabulary, first.columns)
            gates = first.gradients(self.spaces.of[0][0])
            run("head.scatter_operands", rows, first.columns, Later("ids"), gates, first.kept_row, dtable, first.columns,
                work=rows * first.columns)  # fmt: skip
            at, _ = as_operands(own, "d_table_op", 1, vocabulary, address(dtable), first.columns, first.columns)
            x, row = as_operands(own, "embedding", 1, vocabulary, self._embedding(), width, width)
            first.add_table(self.spaces.of[0][0], at, vocabulary, x, row, address(demb), padded)
        else:
            dx, read = own.array("dx", rows, padded), own.arrays["x_op" if model._engine.narrow else "x"]
            model.stack.backward(self.spaces, call, dout, dout_row, dstate, x=address(read), x_row=read.shape[2],
                                 dx=address(dx), dx_row=padded)  # fmt: skip
            run("head.scatter_rows", rows, padded, Later("ids"), dx, padded, demb, padded, work=rows * padded)
        grads = self._embedding(grad=True)
        run("pack.add_rows", vocabulary, 1, model._engine.lanes, vocabulary, width, demb, padded, grads, width,
            work=vocabulary * width)  # fmt: skip

    def backward(self, dlogits: Any, dstate_n: State) -> tuple[None, State]:
        """Adds to the model's gradients; see `Backprop`."""
        spaces, call = self.spaces, self.call
        check.unedited(self.stamp, self.model.params.stamp)
        model, head, steps, batch, engine = self.model, self.model.head, call.steps, call.batch, self.model._engine
        dlogits = check.array("dlogits", engine.take(dlogits), engine.storage, (steps, batch, model.vocab_size))
        dh_n, dc_n = check.states("dstate_n", dstate_n, model.shape, batch, engine)
        padded = self.own.cleared("d_logits", steps * batch, head.columns)
        put(padded[:, : head.outputs], dlogits.reshape(steps * batch, -1))
        dh_0, dc_0 = model._states(lambda _, *sizes: engine.new(*sizes), batch)

        def record() -> None:
            d_row = model.stack.layers[-1][0].h_row
            dout = self.own.array("dout", steps * batch, d_row)
            head.backward(self.own, steps * batch, address(padded), *self._outputs(), address(dout), d_row)
            self._backward(address(dout), d_row, (Later("dh_n"), Later("dc_n")))
            model.stack.initial_gradients(spaces, call, Result("dh_0"), Result("dc_0"))

        with model.slots.store.adding:
            self.run("backprop", record, dh_n=dh_n, dc_n=dc_n, dh_0=dh_0, dc_0=dc_0)
        self.close()
        return None, dh_0 if dc_0 is None else (dh_0, dc_0)


def _no_lengths(lengths: Any) -> None:
    if lengths is not None:
        raise ValueError("lengths is given; a LanguageModel reads streams of tokens without lengths")


def from_config(config: dict[str, Any]) -> Any:
    """The model that `config` (of `model.config`) describes, freshly initialised.

    Raises
    ------
    ValueError
        For an unknown "type".
    """
    from .series import SequenceClassifier, SequenceRegressor

    kinds = {kind.__name__: kind for kind in (LanguageModel, SequenceRegressor, SequenceClassifier)}
    arguments = dict(config)
    kind = arguments.pop("type", None)
    if kind not in kinds:
        raise ValueError(f"config has type {kind!r}; expected one of {', '.join(kinds)}")
    return kinds[kind](**arguments)
