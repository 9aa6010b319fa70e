"""LanguageModel: embedding, recurrent stack and head, trained as one without autograd; and models from their config.

What happens to one batch is in ``token_batch``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..layers.module import Owner
from ..layers.recurrent import State, fresh_seed
from ..runtime import check
from ..runtime.arrays import put
from ..runtime.engine import engine
from ..runtime.params import Slots
from ..runtime.workspace import Workspace
from ..shape import Shape
from ..stack.batch_run import Backprop
from ..stack.products import PackedLinear
from ..stack.stack import Pool, Stack
from .token_batch import TokenBatch


class LanguageModel(Owner):
    """Tokens in, logits of the next token out.

    Any number of threads may call it at once; one thread at a time trains it.

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
        self,
        vocab_size: int,
        cell: str = "lstm",
        embedding_size: int | None = None,
        hidden_size: int = 256,
        num_layers: int = 2,
        dropout: float = 0.0,
        tie_weights: bool = False,
        proj_size: int = 0,
        reset_after: bool = True,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
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
            cell,
            embedding_size,
            hidden_size,
            check.positive("num_layers", num_layers),
            dropout=check.dropout(dropout, num_layers),
            proj_size=proj_size,
            reset_after=bool(reset_after),
        )
        storage, zeros = self._engine.storage, self._engine.buffer
        embedding = Slots({"weight": (self.vocab_size, embedding_size)}, storage, zeros)
        rnn = Slots(self.shape.parameters(), storage, zeros)
        weights = {} if tie_weights else {"weight": (self.vocab_size, width)}
        head = Slots({**weights, "bias": (self.vocab_size,)}, storage, zeros)
        self.slots = Slots.joined({"embedding": embedding, "rnn": rnn, "head": head})
        self._initialise(1 / math.sqrt(hidden_size), 1 / math.sqrt(width))
        self.dropout_calls = 0
        self._build()

    BUILT = ("stack", "head", "_pool", "_own", "_carried")

    def _build(self) -> None:
        weight = "embedding.weight" if self.tie_weights else "head.weight"
        self.stack = Stack(self._engine, self.shape, self.slots.parts["rnn"])
        self.head = PackedLinear(self._engine, self.slots, weight, "head.bias")
        self._pool = Pool(self.stack)
        self._own = Workspace(self._engine)
        self._carried: dict[int, Any] = {}  # by batch size: the state in training, (h, c, their addresses)

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
            "type": "LanguageModel",
            "vocab_size": self.vocab_size,
            "cell": s.cell,
            "embedding_size": self.embedding_size,
            "hidden_size": s.hidden_size,
            "num_layers": s.num_layers,
            "dropout": s.dropout,
            "tie_weights": self.tie_weights,
            "proj_size": s.proj_size,
            "reset_after": s.reset_after,
            "device": self.device,
            "dtype": self.dtype,
            "seed": self.seed,
        }

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
        run = TokenBatch(self, ids, state, save=False)
        logits, state = run.logits(), run.state()
        run.close()
        return logits, state

    def forward_train(self, ids: Any, state: State = None) -> tuple[np.ndarray, State, Backprop]:
        """As a call, with dropout; the third value is ``backprop(dlogits, dstate_n=None) -> (None, dstate_0)``.

        It adds to `grads`, once only; ids have no gradient. None is zeros, for either part of a pair too.
        ``backprop.close()`` instead frees what was saved.
        """
        run = TokenBatch(self, ids, state, save=True)
        return run.logits(), run.state(), Backprop(run.checked_gradients, run.backward, run.close)

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
        loss = float(run.losses.sum())
        run.close()
        return loss / run.count, run.carried

    def training(self, inputs: Any, targets: Any, state: State = None, *, lengths: Any = None) -> TokenBatch:
        """One batch of `train_batch` before anything has been computed, for programs of which its gradients are a part."""
        _no_lengths(lengths)
        return TokenBatch(self, inputs, state, save=True, targets=check.given("targets", targets))

    def eval_batch(
        self, inputs: Any, targets: Any, state: State = None, *, lengths: Any = None
    ) -> tuple[dict[str, float], State]:
        """Summed loss (nats) and count of one batch, without dropout; and the state after it, new arrays."""
        _no_lengths(lengths)
        run = TokenBatch(self, inputs, state, save=False, targets=check.given("targets", targets))
        state = run.with_state("losses", run.judge)
        loss = float(run.losses.sum())
        run.close()
        return {"loss": loss, "count": float(run.count)}, state


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
    with check.recorded():
        return kinds[kind](**arguments)
