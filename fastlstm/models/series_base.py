"""What SequenceRegressor and SequenceClassifier share: a recurrent stack whose last valid h goes through a linear head.

Also the normalisation of their data, which is learned from the data and kept with the weights. Knows nothing of losses
or targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..layers.module import Owner
from ..layers.recurrent import fresh_seed, uniform
from ..runtime import check
from ..runtime.arrays import as_numpy
from ..runtime.engine import engine
from ..runtime.params import Slots, load_into
from ..shape import Shape
from ..stack.products import PackedLinear
from ..stack.stack import Pool, Stack
from .series_batch import SeriesBatch

PREFIX = "normalization."


class Moments:
    """Mean and standard deviation of each feature, merged batch by batch (Chan, Golub & LeVeque 1983)."""

    def __init__(self, features: int) -> None:
        self.count = 0
        self.mean = np.zeros(features)
        self._squares = np.zeros(features)

    def add(self, values: np.ndarray) -> None:
        """Values [N, features], float64."""
        if len(values) == 0:
            return
        mean = values.mean(axis=0)
        step, count = mean - self.mean, self.count + len(values)
        self._squares += ((values - mean) ** 2).sum(axis=0) + step**2 * (self.count * len(values) / count)
        self.mean += step * (len(values) / count)
        self.count = count

    @property
    def std(self) -> np.ndarray:
        """Standard deviations; 1 where a feature is constant, up to rounding."""
        std = np.sqrt(self._squares / max(1, self.count))
        return np.where(std > 1e-12 * np.abs(self.mean), std, 1.0)


class Reader(Owner):
    """Inputs [T, B, I] to outputs [B, N]: normalisation, a recurrent stack, a linear head on the last valid h.

    Any number of threads may call one at once; one thread at a time trains it.
    """

    def __init__(
        self,
        input_size: int,
        outputs: int,
        *,
        cell: str,
        hidden_size: int,
        num_layers: int,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        reset_after: bool,
        normalize: bool,
        device: str,
        dtype: str,
        seed: int | None,
    ) -> None:
        check.choice("cell", cell, ("lstm", "gru", "rnn"))
        hidden_size = check.positive("hidden_size", hidden_size)
        self.device, self.dtype, self._engine = device, dtype, engine(device, dtype)
        self.seed = fresh_seed() if seed is None else check.integer("seed", seed)
        self.normalize = bool(normalize)
        self.shape = Shape(
            cell,
            check.positive("input_size", input_size),
            hidden_size,
            check.positive("num_layers", num_layers),
            dropout=check.dropout(dropout, num_layers),
            bidirectional=bool(bidirectional),
            proj_size=check.projection(proj_size, hidden_size, cell),
            reset_after=bool(reset_after),
        )
        self.features = self.shape.directions * self.shape.width
        storage, zeros = self._engine.storage, self._engine.buffer
        rnn = Slots(self.shape.parameters(), storage, zeros)
        head = Slots({"weight": (outputs, self.features), "bias": (outputs,)}, storage, zeros)
        uniform(rnn.params, 1 / math.sqrt(hidden_size), self.seed)
        uniform(head.params, 1 / math.sqrt(self.features), self.seed, stream=1)
        self.slots = Slots.joined({"rnn": rnn, "head": head})
        self.dropout_calls = 0
        self._build()
        self._buffers: dict[str, np.ndarray] = {}
        if self.normalize:
            self._buffers = {"fitted": np.zeros(1), "input_mean": np.zeros(input_size), "input_std": np.ones(input_size)}

    BUILT = ("stack", "head", "_pool")

    def _build(self) -> None:
        self.stack = Stack(self._engine, self.shape, self.slots.parts["rnn"])
        self.head = PackedLinear(self._engine, self.slots, "head.weight", "head.bias")
        self._pool = Pool(self.stack)

    def _config(self, **own: Any) -> dict[str, Any]:
        s = self.shape
        return {
            "type": type(self).__name__,
            "input_size": s.input_size,
            **own,
            "cell": s.cell,
            "hidden_size": s.hidden_size,
            "num_layers": s.num_layers,
            "dropout": s.dropout,
            "bidirectional": s.bidirectional,
            "proj_size": s.proj_size,
            "reset_after": s.reset_after,
            "normalize": self.normalize,
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

    # The normalisation is no parameter, but belongs to the weights that were trained with it.

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters by name, and of the normalisation (float64) as ``normalization.input_mean`` and so on."""
        return super().state_dict() | {PREFIX + name: array.copy() for name, array in self._buffers.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Copy NumPy, CuPy or torch arrays in, the normalisation as well; nothing is written if one does not fit.

        Raises
        ------
        KeyError
            With `strict`, for missing or unexpected names.
        ValueError
            For a wrong shape, or a normalisation that no data can have.
        """
        others, found = dict(state_dict), {}
        for name, own in self._buffers.items():
            if PREFIX + name in others:
                found[name] = check.array(PREFIX + name, others.pop(PREFIX + name), "float64", own.shape).copy()
                least, wanted = (0.0, "finite numbers above 0") if name.endswith("_std") else (-np.inf, "finite numbers")
                if not (np.isfinite(found[name]) & (found[name] > least)).all():
                    raise ValueError(f"{PREFIX + name} is {found[name].tolist()}; expected {wanted}")
            elif strict:
                raise KeyError(f"state_dict does not fit: missing {PREFIX + name}")
        load_into(self.params, others, strict)
        self._buffers |= found

    @property
    def buffers(self) -> dict[str, np.ndarray]:
        """The normalisation as it is now, by name; empty if there is none."""
        return dict(self._buffers)

    @property
    def fitted(self) -> bool:
        """Whether the normalisation is known, or none is wanted."""
        return not self.normalize or bool(self._buffers["fitted"][0])

    def prepare(self, data: Any) -> None:
        """Learn the normalisation from one pass over data, such as `fastlstm.Batches`, unless it is known.

        `Trainer.fit` calls this with its training data.
        """
        if self.fitted:
            return
        learned = self._moments()
        for inputs, targets, *lengths in data.batches(0):
            x, ends = self._checked("inputs", inputs, lengths[0] if lengths else None)
            valid = np.ones(x.shape[:2], bool) if ends is None else np.arange(len(x))[:, None] < ends
            self._learn(learned, as_numpy(x)[valid], targets)
        self._keep(learned)

    def _fit(self, inputs: Any, targets: Any = None) -> None:
        """Learn the normalisation anew from whole arrays."""
        if not self.normalize:
            raise ValueError("normalize is False: this model has no normalisation to fit")
        learned = self._moments()
        self._learn(learned, inputs, targets)
        if any(moments.count == 0 for moments in learned.values()):
            raise ValueError("inputs or targets are empty; expected at least one value of each to learn from")
        self._keep(learned)

    def _moments(self) -> dict[str, Moments]:
        return {"input": Moments(self.shape.input_size)}

    def _learn(self, learned: dict[str, Moments], inputs: Any, targets: Any) -> None:
        learned["input"].add(rows_of("inputs", inputs, self.shape.input_size))

    def _keep(self, learned: dict[str, Moments]) -> None:
        for name, moments in learned.items():
            if not (np.isfinite(moments.mean).all() and np.isfinite(moments.std).all()):
                raise ValueError(f"{name}s: expected finite numbers to learn the normalisation from, got NaN or infinity")
        for name, moments in learned.items():
            self._buffers[f"{name}_mean"], self._buffers[f"{name}_std"] = moments.mean, moments.std
        self._buffers["fitted"] = np.ones(1)

    def _checked(self, name: str, inputs: Any, lengths: Any, single: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Inputs [T, B, I], of a single sequence [T, I], float32 as they are or else as float64, and lengths."""
        found = check.given(name, inputs, self._engine.take)
        # Not the storage's dtype as yet: the mean is subtracted before precision is lost.
        dtype = "float32" if found.dtype.kind == "f" and found.dtype.itemsize == 4 else "float64"
        found = check.array(name, found, dtype, (*("T", "B")[: 1 if single else 2], self.shape.input_size))
        check.not_empty(name, found)
        if single:
            found = found[:, None]
        return found, None if lengths is None else check.lengths(lengths, found.shape[1], len(found))

    def shaped(self, out: np.ndarray) -> np.ndarray:
        """Outputs of the head [B, N] in the form of a prediction: a view."""
        return out

    def train_batch(self, inputs: Any, targets: Any, state: None = None, *, lengths: Any = None) -> tuple[float, None]:
        """Gradients of one batch: zeroes `grads`, runs forward and backward.

        Parameters
        ----------
        inputs : array [T, B, I]
        targets : array
            Of a regressor [B, horizon, O], where axes of size 1 after the first may be missing; of a classifier integers [B].
        state : None
        lengths : integers [B], optional

        Returns
        -------
        loss : float
            Of a regressor the mean squared error in normalised units, of a classifier the mean cross-entropy in nats.
        state : None
        """
        run = self.training(inputs, targets, state, lengths=lengths)
        self.zero_grads()
        run.run("gradients", run.gradients)
        loss = float(run.losses.sum())
        run.close()
        return loss / run.count, None

    def training(self, inputs: Any, targets: Any, state: None = None, *, lengths: Any = None, save: bool = True) -> SeriesBatch:
        """One batch of `train_batch` before anything has been computed, for programs of which its gradients are a part."""
        no_state(state)
        x, lengths = self._checked("inputs", inputs, lengths)
        return SeriesBatch(self, x, lengths, save, self._targets(x.shape[1], targets))

    def eval_batch(
        self, inputs: Any, targets: Any, state: None = None, *, lengths: Any = None
    ) -> tuple[dict[str, float], None]:
        """Sums over one batch, without dropout.

        "loss" as of `train_batch` and "count", what that divides by; of a regressor "absolute" (errors in the data's units), of
        a classifier "correct".
        """
        run = self.training(inputs, targets, state, lengths=lengths, save=False)
        run.run("losses", run.judge)
        sums = self._sums(run) | {"count": float(run.count)}
        run.close()
        return sums, None

    def _targets(self, batch: int, targets: Any) -> np.ndarray:
        """Targets as `_judge` reads them."""
        raise AssertionError("subclasses say")

    def _judge(self, run: SeriesBatch, gradient: bool) -> None:
        """Record the losses of `run.out`, with `gradient` also their mean's gradient in its place."""
        raise AssertionError("subclasses say")

    def _sums(self, run: SeriesBatch) -> dict[str, float]:
        """What `eval_batch` says beside the count."""
        raise AssertionError("subclasses say")

    def _inference(self, x: Any, lengths: Any) -> tuple[np.ndarray, bool]:
        """New array [B, outputs], as the head gives it, and whether x was one sequence [T, I]."""
        x = check.given("x", x, self._engine.take)
        single = x.ndim == 2
        run = SeriesBatch(self, *self._checked("x", x, lengths, single), save=False)
        out = run.outputs()
        run.close()
        return out, single

    def _forward_train(self, x: Any, lengths: Any) -> tuple[np.ndarray, SeriesBatch]:
        run = SeriesBatch(self, *self._checked("x", x, lengths), save=True)
        return run.outputs(), run


def normalise(buffers: Mapping[str, np.ndarray], inputs: np.ndarray, out: np.ndarray) -> None:
    """Inputs [..., I] of any numbers as a model with these buffers reads them; the same where it does not normalise."""
    if "input_mean" in buffers:
        np.subtract(inputs, buffers["input_mean"], out=out, casting="same_kind")
        np.divide(out, buffers["input_std"].astype(out.dtype), out=out)
    else:
        out[...] = inputs


def restore(buffers: Mapping[str, np.ndarray], out: np.ndarray, wide: np.ndarray, restored: np.ndarray) -> None:
    """Predictions of a model that normalises its targets in their own units; `wide` is scratch, float64."""
    np.multiply(out, buffers["target_std"], out=wide)
    np.add(wide, buffers["target_mean"], out=restored, casting="same_kind")


def rows_of(name: str, values: Any, width: int) -> np.ndarray:
    """Values [..., width] as [N, width] in float64."""
    found: np.ndarray = check.real(name, values, take=as_numpy)
    if found.ndim == 0 or found.shape[-1] != width:
        raise ValueError(f"{name} has shape {list(found.shape)}; expected [..., {width}]")
    return check.array(name, found, "float64", found.shape).reshape(-1, width)


def no_state(state: Any) -> None:
    """These models carry no state from batch to batch."""
    if state is not None:
        raise ValueError("state is given; expected None: every sequence starts from zeros")
