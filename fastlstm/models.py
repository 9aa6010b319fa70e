"""LanguageModel: embedding, recurrent stack and head, trained as one without autograd; and models from their config.

Where the vocabulary is smaller than the batch's tokens, layer 0 needs no product with its inputs: a table of every token's
gate pre-activations serves forward, and the gates' gradients summed by token serve backward.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import check
from .engine import DTYPES, address, engine
from .layers import State, fresh_seed
from .linear import PackedLinear
from .owner import Owner
from .params import Slots
from .stack import Call, Pool, Shape, Spaces, Stack
from .workspace import Workspace

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
        self.device, self.dtype = device, check.choice("dtype", dtype, DTYPES)
        self._engine = engine(device, dtype)
        self.seed = fresh_seed() if seed is None else check.integer("seed", seed)
        self.tie_weights = bool(tie_weights)
        self.shape = Shape(
            cell, embedding_size, hidden_size, check.positive("num_layers", num_layers),
            dropout=check.probability("dropout", dropout), proj_size=proj_size, reset_after=bool(reset_after),
        )  # fmt: skip
        embedding = Slots({"weight": (self.vocab_size, embedding_size)}, dtype)
        rnn = Slots(self.shape.parameters(), dtype)
        head = Slots({**({} if tie_weights else {"weight": (self.vocab_size, width)}), "bias": (self.vocab_size,)}, dtype)
        self.slots = Slots.joined({"embedding": embedding, "rnn": rnn, "head": head})
        self._initialise(1 / math.sqrt(hidden_size), 1 / math.sqrt(width))
        self.stack = Stack(self._engine, self.shape, rnn)
        self.head = PackedLinear(self._engine, self.slots, "embedding.weight" if tie_weights else "head.weight", "head.bias")
        self.dropout_calls = 0
        self._pool = Pool(self.stack)
        self._own = Workspace(self._engine)

    def _initialise(self, recurrent: float, head: float) -> None:
        """As torch.nn: embedding normal(0, 1), layers and head uniform; a tied embedding as the head, its stricter use."""
        draw = np.random.Generator(np.random.Philox(key=np.array([self.seed & (2**64 - 1), 0], np.uint64)))
        with self.edit() as params:
            for name, values in params.items():
                if name == "embedding.weight" and not self.tie_weights:
                    values[...] = draw.standard_normal(values.shape)
                else:
                    bound = recurrent if name.startswith("rnn.") else head
                    values[...] = draw.uniform(-bound, bound, values.shape)

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

    def __call__(self, ids: Any, state: State = None) -> tuple[np.ndarray, State]:
        """Logits [T, B, V] for ids [T, B], and the state after them; no dropout."""
        run = _Run(self, ids, state, save=False)
        logits = run.logits()
        state = run.state()
        run.close()
        return logits, state

    def forward_train(self, ids: Any, state: State = None) -> tuple[np.ndarray, State, Any]:
        """As a call, with dropout; the third value is ``backprop(dlogits, dstate_n=None) -> (None, dstate_0)``.

        It adds to `grads`, once only; ids have no gradient.
        """
        run = _Run(self, ids, state, save=True)
        return run.logits(), run.state(), run.backprop

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
            Buffers of the model, overwritten by the next call with this batch size.
        """
        _no_lengths(lengths)
        run = _Run(self, inputs, state, save=True)
        targets = check.tokens("targets", targets, self.vocab_size, run.ids.shape)
        self.zero_grads()
        loss = run.loss(targets, gradient=True)
        state = run.state(reuse=True)
        run.close()
        return loss / targets.size, state

    def eval_batch(
        self, inputs: Any, targets: Any, state: State = None, *, lengths: Any = None
    ) -> tuple[dict[str, float], State]:
        """Summed loss (nats) and count of one batch, without dropout; state as of `train_batch`."""
        _no_lengths(lengths)
        run = _Run(self, inputs, state, save=False)
        targets = check.tokens("targets", targets, self.vocab_size, run.ids.shape)
        loss = run.loss(targets, gradient=False)
        state = run.state(reuse=True)
        run.close()
        return {"loss": loss, "count": float(targets.size)}, state


class _Run:
    """One batch through a LanguageModel."""

    def __init__(self, model: LanguageModel, ids: Any, state: State, save: bool) -> None:
        self.model = model
        self.ids = check.not_empty("ids", check.tokens("ids", ids, model.vocab_size))
        steps, batch = self.ids.shape
        model.dropout_calls += save
        self.call = Call(steps, batch, save, dropout_key=(model.seed, model.dropout_calls))
        self.key = (steps, batch, save, model._engine.lanes)
        self.spaces: Spaces | None = model._pool.take(self.key)
        self.own = self.spaces.own
        h_0, c_0 = check.states("state", state, model.shape, batch, model.dtype)
        embedding = address(model.slots.store.params) + model.slots.places["embedding.weight"][0] * model._engine.itemsize
        width, first = model.embedding_size, model.stack.layers[0][0]
        self.by_table = model.vocab_size < steps * batch
        if self.by_table:
            table = first.table(self.own, "table", model.vocab_size, embedding, width)
            model.stack.forward(self.spaces, self.call, (h_0, c_0), ids=address(self.ids), table=address(table))
        else:
            self.x = self.own.array("x", steps, batch, width)
            model._engine.run("head.gather_rows", steps * batch, width, self.ids, embedding, width, self.x, width)
            model.stack.forward(self.spaces, self.call, (h_0, c_0), x=address(self.x), x_row=width)
        self.embedding = embedding
        top = model.stack.layers[-1][0]
        self.h, self.h_row = top.outputs(self.spaces.of[-1][0]), top.row

    def state(self, reuse: bool = False) -> State:
        """State after the batch: new arrays, or the model's own buffers."""
        assert self.spaces is not None
        shape, batch, own = self.model.shape, self.call.batch, self.model._own
        out = None
        if reuse:
            out = (own.array(f"h_{batch}", shape.num_layers, batch, shape.width),
                   own.array(f"c_{batch}", shape.num_layers, batch, shape.hidden_size))  # fmt: skip
        h, c = self.model.stack.final_state(self.spaces, self.call, out)
        return h if c is None else (h, c)

    def logits(self) -> np.ndarray:
        """New array [T, B, V]."""
        head, (steps, batch) = self.model.head, self.ids.shape
        out = np.empty((steps, batch, head.columns), self.model.dtype)
        head.forward(steps * batch, self.h, self.h_row, address(out), head.columns)
        return out if head.columns == head.outputs else np.ascontiguousarray(out[:, :, : head.outputs])

    def loss(self, targets: np.ndarray, gradient: bool) -> float:
        """Sum of cross-entropies; with `gradient` also all gradients of their mean."""
        model, own, head, size = self.model, self.own, self.model.head, self.model._engine.itemsize
        rows = targets.size
        part = max(64, min(rows, HEAD_BYTES // (head.columns * size)))
        logits, losses = own.array("logits", part, head.columns), own.array("losses", rows, 2).view(np.float64).ravel()[:rows]
        dout = own.array("dout", rows, self.h_row) if gradient else None
        scale = own.array("scale", 1)
        scale[0] = 1 / rows
        for begin in range(0, rows, part):
            n = min(part, rows - begin)
            h = self.h + begin * self.h_row * size
            head.forward(n, h, self.h_row, address(logits), head.columns)
            model._engine.run("head.softmax_cross_entropy", n, head.outputs, logits, head.columns, targets.ravel()[begin:],
                              scale, losses[begin:], int(gradient), 0, work=n * head.columns * 20)  # fmt: skip
            if dout is not None:
                head.backward(own, n, address(logits), h, self.h_row, address(dout[begin:]), self.h_row)
        if dout is not None:
            self._backward(address(dout), self.h_row, (None, None))
        return float(losses.sum())

    def _backward(self, dout: int, dout_row: int, dstate: tuple[Any, Any]) -> None:
        model, own, call = self.model, self.own, self.call
        assert self.spaces is not None
        width, padded = model.embedding_size, model._engine.padded(model.embedding_size)
        first, run = model.stack.layers[0][0], model._engine.run
        demb = own.zeros("d_embedding", model.vocab_size, padded)
        rows = call.steps * call.batch
        if self.by_table:
            model.stack.backward(self.spaces, call, dout, dout_row, dstate)
            dtable = own.zeros("d_table", model.vocab_size, first.columns)
            run("head.scatter_rows", rows, first.columns, self.ids, self.spaces.of[0][0].arrays["gates"], first.columns,
                dtable, first.columns, work=rows * first.columns)  # fmt: skip
            first.add_table(
                self.spaces.of[0][0], address(dtable), model.vocab_size, self.embedding, width, address(demb), padded
            )
        else:
            dx = own.array("dx", rows, padded)
            model.stack.backward(self.spaces, call, dout, dout_row, dstate, x=address(self.x), x_row=width,
                                 dx=address(dx), dx_row=padded)  # fmt: skip
            run("head.scatter_rows", rows, padded, self.ids, dx, padded, demb, padded, work=rows * padded)
        grads = model.grads["embedding.weight"]
        grads += demb[:, :width]

    def backprop(self, dlogits: Any, dstate_n: State = None) -> tuple[None, State]:
        """Adds to the model's gradients; see `LanguageModel.forward_train`."""
        if self.spaces is None:
            raise RuntimeError("backprop was called before: its saved activations are used up")
        model, head, (steps, batch) = self.model, self.model.head, self.ids.shape
        dlogits = check.array("dlogits", dlogits, model.dtype, (steps, batch, model.vocab_size))
        dstate = check.states("dstate_n", dstate_n, model.shape, batch, model.dtype)
        padded = self.own.zeros("d_logits", steps * batch, head.columns)
        padded[:, : head.outputs] = dlogits.reshape(steps * batch, -1)
        dout = self.own.array("dout", steps * batch, self.h_row)
        head.backward(self.own, steps * batch, address(padded), self.h, self.h_row, address(dout), self.h_row)
        self._backward(address(dout), self.h_row, dstate)
        h, c = model.stack.initial_gradients(self.spaces)
        self.close()
        return None, h if c is None else (h, c)

    def close(self) -> None:
        """Give the buffers back."""
        spaces, self.spaces = self.spaces, None
        if spaces is not None:
            self.model._pool.give(self.key, spaces)


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
