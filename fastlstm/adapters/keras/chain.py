"""Chain: layers one after another, called as the Keras model that they came from, where no model of fastlstm fits.

Knows no Keras. Inference only; to train, train the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...layers.basic import Dropout, Embedding, Linear
from ...layers.recurrent import Layer


def _softmax(x: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(x - x.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": _softmax,
    "sigmoid": lambda x: (np.tanh(x * 0.5) + 1) * 0.5,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}


class Activation:
    """A function of every element, or of the last axis, by its Keras name: softmax, sigmoid, tanh or relu."""

    def __init__(self, name: str) -> None:
        if name not in ACTIVATIONS:
            raise ValueError(f"name is {name!r}; expected one of {', '.join(map(repr, ACTIVATIONS))}")
        self.name = name

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """A new array like x."""
        return ACTIVATIONS[self.name](x)


class Last:
    """What a recurrent layer says at its end: the forward direction's last step and the reverse direction's first."""

    def __repr__(self) -> str:
        return "Last()"


class Chain:
    """Layers one after another; a call gives what the Keras model gives, in its layouts.

    Parameters
    ----------
    parts : sequence
        fastlstm's RNN, LSTM, GRU (with batch_first), Linear, Embedding and Dropout; `Last` right after a recurrent layer,
        where Keras has return_sequences=False; `Activation`.

    Raises
    ------
    TypeError
        For a part of another type.
    ValueError
        For a layer without batch_first, a `Last` or `Activation` in a place where it can be of no use, or no layer with
        parameters at all.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> from fastlstm.adapters.keras import Chain, Last
    >>> lstm = fastlstm.LSTM(3, 8, batch_first=True, seed=0)
    >>> chain = Chain([lstm, fastlstm.GRU(8, 4, batch_first=True, seed=1), Last(), fastlstm.Linear(4, 1, seed=2)])
    >>> chain(np.ones((5, 7, 3), np.float32)).shape
    (5, 1)
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        for part, before in zip(self.parts, [None, *self.parts], strict=False):
            if isinstance(part, Layer) and not part.batch_first:
                raise ValueError(f"parts has {part!r}; expected batch_first=True: a chain has Keras's layout [B, T, I]")
            if isinstance(part, Last) and not isinstance(before, Layer):
                raise ValueError("parts has Last(); expected it right after a recurrent layer only")
            if isinstance(part, Activation) and before is None:
                raise ValueError(f"parts begins with {part!r}; expected a layer")
            if not isinstance(part, Layer | Linear | Embedding | Dropout | Last | Activation):
                raise TypeError(
                    f"parts has {type(part).__name__}; expected RNN, LSTM, GRU, Linear, Embedding, Dropout, Last or Activation"
                )
        if not any(isinstance(part, Layer | Linear | Embedding) for part in self.parts):
            raise ValueError(f"parts is {self.parts!r}; expected at least one layer with parameters")

    def __repr__(self) -> str:
        shown = (repr(part) if isinstance(part, Layer | Last | Activation) else type(part).__name__ for part in self.parts)
        return f"Chain([{', '.join(shown)}])"

    def __call__(self, x: Any) -> np.ndarray:
        """A new array for x [B, T, I], or for ids [B, T] where the first part is an Embedding; no dropout."""
        for part, before in zip(self.parts, [None, *self.parts], strict=False):
            if isinstance(part, Layer):
                x, _ = part(x)
            elif isinstance(part, Last):
                assert isinstance(before, Layer)
                width = before.shape.width
                x = np.concatenate([x[:, -1, :width], x[:, 0, width:]], axis=-1)
            else:
                x = part(x)
        return np.asarray(x)
