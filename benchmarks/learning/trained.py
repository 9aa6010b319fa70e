"""Loads models of learning runs, with one interface for those of fastlstm and PyTorch: losses, input gradients, new text.

A run's model is the one with the lowest held-out loss. Recurrent models compute in float32, even if they were trained in
bfloat16. Ids have time first, [T, B]. A recurrent model begins in the zero state if no other is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

import fastlstm
from benchmarks.peers.layers import CELLS
from fastlstm.training import checkpoint


class Trained(Protocol):
    """The interface of both kinds of models."""

    tokenizer: Any
    window: int | None
    """The largest number of ids that the model takes; None if there is no limit."""

    def after(self, ids: np.ndarray) -> Any:
        """Return the state after `ids`; None if the model has no state."""

    def losses(self, ids: np.ndarray, targets: np.ndarray, state: Any = None) -> np.ndarray:
        """Return the cross-entropy [B] of the tokens `targets` [B] after `ids`, from a state that `after` returned."""

    def input_gradients(self, ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the norms [T, B] of the gradients of `losses` with respect to the embedded ids."""

    def draw(self, prompt: np.ndarray, length: int, count: int, seed: int, temperature: float) -> np.ndarray:
        """Return ids [length, count]: `count` continuations of one prompt [P], drawn with one seed."""


def load(folder: Path) -> Trained:
    """Return the model of a run."""
    settings = checkpoint.read_json(folder / checkpoint.SETTINGS)
    return Attention(folder) if settings["cell"] == "transformer" else Recurrent(folder)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss [B] of each row of logits [B, V], and its gradient."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    sums = powers.sum(axis=1)
    rows = np.arange(len(targets))
    gradient = powers / sums[:, None]
    gradient[rows, targets] -= 1
    return np.log(sums) - shifted[rows, targets], gradient


def drawn(logits: np.ndarray, draw: np.random.Generator, temperature: float) -> np.ndarray:
    """Draw a token for each row of logits [B, V], by the probabilities at this temperature."""
    found: np.ndarray = (logits / temperature + draw.gumbel(size=logits.shape)).argmax(axis=1)
    return found


class Recurrent:
    """A model of fastlstm."""

    window = None

    def __init__(self, folder: Path) -> None:
        run = fastlstm.load(folder)
        config = {key: value for key, value in run.model.config.items() if key != "type"}
        self.tokenizer = run.tokenizer
        self.model = fastlstm.LanguageModel(**config | {"dtype": "float32"})
        values = run.model.state_dict()
        self.model.load_state_dict(values)
        make = getattr(fastlstm, CELLS[config["cell"]])
        self.layers = make(config["embedding_size"], config["hidden_size"], config["num_layers"])
        self.layers.load_state_dict({name[4:]: value for name, value in values.items() if name.startswith("rnn.")})
        self.embedding, self.weight, self.bias = (
            np.asarray(values[name], np.float32) for name in ("embedding.weight", "head.weight", "head.bias")
        )

    def after(self, ids: np.ndarray) -> Any:
        """See `Trained`."""
        return self.layers(self.embedding[ids])[1]

    def losses(self, ids: np.ndarray, targets: np.ndarray, state: Any = None) -> np.ndarray:
        """See `Trained`."""
        out, _ = self.layers(self.embedding[ids], state)
        return cross_entropy(out[-1] @ self.weight.T + self.bias, targets)[0]

    def input_gradients(self, ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Trained`."""
        out, _, backprop = self.layers.forward_train(self.embedding[ids])
        dout = np.zeros_like(out)
        dout[-1] = cross_entropy(out[-1] @ self.weight.T + self.bias, targets)[1] @ self.weight
        norms: np.ndarray = np.linalg.norm(backprop(dout)[0], axis=2)
        return norms

    def draw(self, prompt: np.ndarray, length: int, count: int, seed: int, temperature: float) -> np.ndarray:
        """See `Trained`."""
        generator, found = np.random.default_rng(seed), np.empty((length, count), np.int32)
        logits, state = self.model(np.repeat(prompt[:, None], count, axis=1))
        for k in range(length):
            found[k] = drawn(logits[-1], generator, temperature)
            logits, state = self.model(found[k : k + 1], state)
        return found


class Attention:
    """A Transformer."""

    def __init__(self, folder: Path) -> None:
        from benchmarks.learning.learn_transformer import best

        self.model, prepared = best(folder)
        self.tokenizer, self.window = prepared.tokenizer, self.model.window

    def after(self, ids: np.ndarray) -> None:
        """See `Trained`."""

    def losses(self, ids: np.ndarray, targets: np.ndarray, state: None = None) -> np.ndarray:
        """See `Trained`."""
        return cross_entropy(self._last(ids), targets)[0]

    def _last(self, ids: np.ndarray) -> np.ndarray:
        """Return the logits [B, V] of the last step."""
        import torch

        with torch.no_grad():
            found: np.ndarray = self.model(torch.tensor(ids).long())[-1].numpy()
        return found

    def input_gradients(self, ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Trained`."""
        import torch

        embedded: list[Any] = []
        hook = self.model.tokens.register_forward_hook(lambda module, inputs, output: embedded.append(output))
        logits = self.model(torch.tensor(ids).long())[-1]
        hook.remove()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets).long(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, embedded)
        norms: np.ndarray = gradient.norm(dim=2).T.numpy()
        return norms

    def draw(self, prompt: np.ndarray, length: int, count: int, seed: int, temperature: float) -> np.ndarray:
        """See `Trained`. If the window is full, its older half is dropped."""
        import torch

        generator, found = np.random.default_rng(seed), np.empty((length, count), np.int32)
        known = new = np.repeat(prompt[:, None], count, axis=1)
        kept: list[Any] = []
        with torch.no_grad():
            for k in range(length):
                if len(known) > self.window:
                    known = new = known[-(self.window // 2) :]
                    kept = []
                found[k] = drawn(self.model(torch.tensor(new).long(), kept)[-1].numpy(), generator, temperature)
                new = found[k : k + 1]
                known = np.concatenate([known, new])
        return found
