"""Objects of the library that threads share: what the operations of operations.py are done on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm
from fastlstm.text import tokens

VOCABULARY = "abcdefghij\n"


class Scene:
    """One object of every kind, made when first asked for; equal seeds make equal ones.

    Parameters
    ----------
    seed : int
        Of all weights and inputs; also chooses cells and sizes, of which some are worth several threads.
    folder : Path
        Where it may save.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.path = seed, folder / f"{seed}.safetensors"
        choice = np.random.default_rng([seed, 1])
        self.cell = str(choice.choice(["lstm", "gru", "rnn"]))
        self.hidden, self.steps, self.batch = [(7, 3, 2), (12, 5, 4), (96, 12, 24)][int(choice.integers(3))]
        self.dtype = str(choice.choice(["float32", "float32", "float64", "bfloat16"]))
        self.layers, self.bidirectional = int(choice.integers(1, 3)), bool(choice.integers(3) == 0)

    def numbers(self, *shape: int, stream: int = 0) -> np.ndarray:
        drawn: np.ndarray = np.random.default_rng([self.seed, 2, stream]).standard_normal(shape)
        return drawn.astype("float64" if self.dtype == "float64" else "float32")

    def _options(self) -> dict[str, Any]:
        return {
            "cell": self.cell,
            "hidden_size": min(self.hidden, 48),
            "num_layers": self.layers,
            "dtype": self.dtype,
            "seed": self.seed,
        }

    @cached_property
    def layer(self) -> Any:
        made = {"lstm": fastlstm.LSTM, "gru": fastlstm.GRU, "rnn": fastlstm.RNN}[self.cell]
        return made(6, self.hidden, self.layers, bidirectional=self.bidirectional, dtype=self.dtype, seed=self.seed)

    @cached_property
    def x(self) -> np.ndarray:
        return self.numbers(self.steps, self.batch, 6)

    @cached_property
    def weights(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The layer's own, and others."""
        own = self.layer.state_dict()
        return own, {name: -array for name, array in own.items()}

    @cached_property
    def forward_layer(self) -> Any:
        """One that can stream."""
        return fastlstm.GRU(6, self.hidden, self.layers, dtype=self.dtype, seed=self.seed)

    @cached_property
    def stream(self) -> fastlstm.Stream:
        return fastlstm.Stream(self.forward_layer)

    @cached_property
    def row(self) -> np.ndarray:
        return self.numbers(6)

    @cached_property
    def cell_layer(self) -> Any:
        made = {"lstm": fastlstm.LSTMCell, "gru": fastlstm.GRUCell, "rnn": fastlstm.RNNCell}[self.cell]
        return made(6, self.hidden, dtype=self.dtype, seed=self.seed)

    @cached_property
    def linear(self) -> fastlstm.Linear:
        return fastlstm.Linear(6, self.hidden * 3, dtype=self.dtype, seed=self.seed)

    @cached_property
    def embedding(self) -> fastlstm.Embedding:
        return fastlstm.Embedding(11, self.hidden, dtype=self.dtype, seed=self.seed)

    @cached_property
    def ids(self) -> np.ndarray:
        return np.random.default_rng([self.seed, 3]).integers(0, 11, (self.steps, self.batch))

    @cached_property
    def model(self) -> fastlstm.LanguageModel:
        return fastlstm.LanguageModel(len(VOCABULARY), **self._options())

    @cached_property
    def trainer(self) -> fastlstm.Trainer:
        tokenizer = tokens.CharTokenizer(VOCABULARY)
        return fastlstm.Trainer(self.model, progress=False, tokenizer=tokenizer)

    @cached_property
    def run(self) -> fastlstm.Run:
        return fastlstm.Run(self.model, self.trainer.tokenizer)

    @cached_property
    def text(self) -> fastlstm.TokenStream:
        return fastlstm.TokenStream(np.tile(self.ids.ravel(), 8)[:200], batch_size=2, seq_len=9)

    @cached_property
    def regressor(self) -> fastlstm.SequenceRegressor:
        return fastlstm.SequenceRegressor(6, 2, bidirectional=self.bidirectional, **self._options())

    @cached_property
    def targets(self) -> np.ndarray:
        return self.numbers(self.batch, 1, 2, stream=1)

    @cached_property
    def optimizer(self) -> fastlstm.Adam:
        return fastlstm.Adam(lr=1e-3)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        return {"w": self.numbers(self.hidden * 100), "b": self.numbers(3)}

    def restore(self) -> None:
        """Bring back what operations have changed of objects that exist."""
        made = vars(self)
        for name, kept in self._kept.items():
            made[name].load_state_dict(kept)
            made[name].zero_grads()
        if "stream" in made:
            self.stream.refresh()
            self.stream.reset()
        if "trainer" in made:
            self.trainer.reset_state()
        if "arrays" in made:
            del self.arrays  # made anew when asked for

    def keep(self) -> None:
        """Note how the objects that exist are, for `restore`."""
        owners = ("layer", "forward_layer", "cell_layer", "linear", "embedding", "model", "regressor")
        self._kept = {name: vars(self)[name].state_dict() for name in owners if name in vars(self)}
