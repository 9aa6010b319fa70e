"""A network with an output at each step, the losses that it learns by, and the loop that all series estimators train in.

Knows arrays and the layers; nothing of panels, windows or estimators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...layers.basic import Linear
from ...layers.module import Owner
from ...layers.recurrent import GRU, LSTM, RNN
from ...optim.clipping import clip_scale
from ...optim.optimizers import Adam, AdamW, grad_norm
from ...optim.schedules import Constant, CosineWarmup
from ...runtime import check
from ...runtime.params import Slots
from ...training.update import DivergedError

CLIP_NORM = 1.0  # gradients longer than this are shortened to it
Loss = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, np.ndarray]]
Batch = tuple[np.ndarray, Any, np.ndarray]
CELLS: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


def squared_error(prediction: np.ndarray, target: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted mean of (prediction - target)^2 and its gradient.

    Parameters
    ----------
    prediction, target, weight : ndarray [..., O]
        What has weight 0 does not count, and may be anything.

    Returns
    -------
    loss : float
    dprediction : ndarray [..., O]
    """
    error = np.where(weight > 0, prediction - target, 0)
    share = weight / weight.sum()
    return float((share * error**2).sum()), (2 * share * error).astype(prediction.dtype)


class Pinball:
    """The quantile loss: what is above the target costs 1 - level for each unit, what is below costs the level.

    Its mean over all outcomes is least where the prediction is the quantile of that level (Koenker & Bassett 1978).

    Parameters
    ----------
    levels : ndarray [Q]
        Each above 0 and below 1.

    Examples
    --------
    >>> loss = Pinball(np.array([0.9]))
    >>> value, gradient = loss(np.array([[1.0], [3.0]]), np.array([[2.0], [2.0]]), np.ones((2, 1)))
    >>> round(value, 6), gradient.round(6).tolist()
    (0.5, [[-0.45], [0.05]])
    """

    def __init__(self, levels: np.ndarray) -> None:
        self.levels = levels

    def __call__(self, prediction: np.ndarray, target: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
        """Weighted mean over targets and levels, and its gradient.

        Parameters
        ----------
        prediction : ndarray [..., O * Q]
            The levels of each target side by side.
        target, weight : ndarray [..., O]
        """
        found = prediction.reshape(*target.shape, len(self.levels))
        short = np.where(weight[..., None] > 0, target[..., None] - found, 0)
        share = weight[..., None] / (weight.sum() * len(self.levels))
        # The slope on either side of the target; where they are equal, none.
        slope = np.where(short > 0, -self.levels, np.where(short < 0, 1 - self.levels, 0))
        return float((share * -slope * short).sum()), (share * slope).reshape(prediction.shape).astype(prediction.dtype)


class StepNetwork(Owner):
    """A recurrent network with a linear head on the h of each step.

    The head starts at zero: before it has learnt, a network corrects nothing. So do the weights of some inputs, which
    therefore cannot disturb as long as no training data have shown what they mean.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn"}
    input_size, output_size, hidden_size, num_layers : int
    dropout : float
        Between layers.
    dtype : str
    seed : int
    silent : (int, int)
        Begin and end of the inputs whose weights start at zero.
    levels : sequence of float, optional
        Learn by the pinball loss of these levels, for each target as many outputs side by side; else by squared errors.

    Attributes
    ----------
    config : dict
        The arguments with "type", as JSON holds them.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        output_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        dropout: float,
        dtype: str,
        seed: int,
        silent: tuple[int, int],
        levels: Sequence[float] | None = None,
    ) -> None:
        check.choice("cell", cell, tuple(CELLS))
        self.rnn = CELLS[cell](input_size, hidden_size, num_layers, dropout=dropout, dtype=dtype, seed=seed)
        self.config = {
            "type": "StepNetwork",
            "cell": cell,
            "input_size": input_size,
            "output_size": output_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "dropout": dropout,
            "dtype": dtype,
            "seed": seed,
            "silent": list(silent),
            "levels": None if levels is None else list(levels),
        }
        self.head = Linear(hidden_size, output_size, dtype=dtype, seed=seed)
        self.slots = Slots.joined({"rnn": self.rnn.slots, "head": self.head.slots})
        self._loss: Loss = squared_error if levels is None else Pinball(np.array(levels))
        with self.edit() as params:
            params["rnn.weight_ih_l0"][:, slice(*silent)] = 0
            params["head.weight"][...] = 0
            params["head.bias"][...] = 0

    @property
    def random_state(self) -> dict[str, int]:
        """What the next dropout mask depends on; settable."""
        return {"seed": self.rnn.seed, "dropout_calls": self.rnn.dropout_calls}

    @random_state.setter
    def random_state(self, value: dict[str, int]) -> None:
        self.rnn.seed, self.rnn.dropout_calls = int(value["seed"]), int(value["dropout_calls"])

    def __call__(self, x: np.ndarray, lengths: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        """Outputs [T, B, O] for x [T, B, I], or [K, B, O] of the steps `at` [K, B] alone; no dropout."""
        out, _ = self.rnn(x, lengths=lengths)
        found: np.ndarray = self.head(out if at is None else np.take_along_axis(out, at[..., None], axis=0))
        return found

    def train_batch(self, inputs: np.ndarray, targets: Any, state: None = None, *, lengths: Any = None) -> tuple[float, None]:
        """Gradients of one batch: zeroes `grads`, runs forward and backward.

        Parameters
        ----------
        inputs : ndarray [T, B, I]
        targets : (at, target, weight)
            Steps [K, B] that are judged, or None for all; the targets [K, B, O] and what each counts.
        """
        at, target, weight = targets
        out, _, backprop = self.rnn.forward_train(inputs, lengths=lengths)
        judged, head_backprop = self.head.forward_train(out if at is None else np.take_along_axis(out, at[..., None], axis=0))
        loss, gradient = self._loss(judged, target, weight)
        self.zero_grads()
        dout = head_backprop(gradient)
        if at is not None:
            judged_dout, dout = dout, np.zeros_like(out)
            np.put_along_axis(dout, at[..., None], judged_dout, axis=0)
        backprop(dout)
        return loss, None


def optimizer_of(learning_rate: float, weight_decay: float) -> Adam:
    """Adam, with decoupled weight decay where there is any."""
    return AdamW(learning_rate, weight_decay=weight_decay) if weight_decay else Adam(learning_rate)


def learn(
    network: Any,
    optimizer: Adam,
    rows: int,
    make: Callable[[np.ndarray], Batch],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    done: int = 0,
    decay: bool = True,
) -> Iterator[float]:
    """Train, epoch by epoch.

    Parameters
    ----------
    network : StepNetwork or SequenceClassifier
    optimizer : Adam
    rows : int
        Number of examples.
    make : callable
        The batch (inputs, targets, lengths) of some examples, by their numbers.
    epochs, batch_size : int
    seed, done : int
        With the number of epochs done before, they decide the order of the examples.
    decay : bool
        The learning rate falls to zero over the epochs as half a cosine.

    Yields
    ------
    float
        The mean loss of an epoch.

    Raises
    ------
    fastlstm.DivergedError
        If a loss or gradient is not finite.
    """
    base, step = optimizer.lr, 0
    factor = CosineWarmup(0, -(-rows // batch_size) * epochs) if decay else Constant()
    for epoch in range(done, done + epochs):
        draw = np.random.Philox(key=np.array([seed, epoch], np.uint64))
        order, total = np.argsort(draw.random_raw(rows), kind="stable"), 0.0
        for first in range(0, rows, batch_size):
            chosen = order[first : first + batch_size]
            inputs, targets, lengths = make(chosen)
            loss, _ = network.train_batch(inputs, targets, lengths=lengths)
            norm, step = grad_norm(network.grads), step + 1
            if not math.isfinite(loss) or not math.isfinite(norm):
                what = f"the loss is {loss}, the norm of its gradient {norm}"
                raise DivergedError(what, step, "try a smaller learning_rate", None)
            optimizer.lr = base * factor(step - 1)
            optimizer.step(network.params, network.grads, scale=clip_scale(norm, CLIP_NORM))
            total += loss * len(chosen)
        yield total / rows
