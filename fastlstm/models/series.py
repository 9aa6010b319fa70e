"""SequenceRegressor and SequenceClassifier: a sequence of numbers in, a forecast or a class out.

Normalisation is inside: data come in and predictions go out in the user's own units. Knows nothing of data sets or the
trainer, which meet these models through train_batch and eval_batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.operations import SoftmaxCrossEntropy, SquaredError
from ..runtime import check
from ..runtime.arrays import as_numpy
from ..runtime.program import Later
from ..stack.batch_run import Backprop
from .series_base import Moments, Reader, restore, rows_of
from .series_batch import SeriesBatch


class SequenceRegressor(Reader):
    """Reads a sequence and predicts the next values: the last valid step's h through a linear map.

    Parameters
    ----------
    input_size : int
        Width I of a step.
    output_size : int
        Width O of a predicted step.
    horizon : int
        Steps to predict, all at once.
    cell : {"lstm", "gru", "rnn"}
    hidden_size, num_layers, dropout, bidirectional, proj_size, reset_after
        As of the layers; dropout acts between layers.
    normalize : bool
        Inputs and targets are brought to mean 0 and standard deviation 1, each feature by itself, as learned from the
        training data (`prepare`, which `Trainer.fit` calls, or `fit_normalization`); until then they stay as they are.
        Losses are in these units, predictions and absolute errors in those of the data.
    device, dtype, seed
        As of the layers.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> wave = np.sin(np.arange(300) / 5) + 20
    >>> x = np.stack([wave[k : k + 30, None] for k in range(250)])
    >>> y = np.stack([wave[k + 30 : k + 32, None] for k in range(250)])
    >>> model = fastlstm.SequenceRegressor(1, 1, horizon=2, hidden_size=16, seed=0)
    >>> trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=0.01), progress=False)
    >>> history = trainer.fit(fastlstm.Batches(x, y, seed=0), epochs=10)
    >>> forecast = model.predict(wave[-30:, None])
    >>> forecast.shape, bool(abs(forecast[0, 0] - (np.sin(300 / 5) + 20)) < 0.2)
    ((2, 1), True)
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        horizon: int = 1,
        cell: str = "lstm",
        hidden_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        reset_after: bool = True,
        normalize: bool = True,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.output_size, self.horizon = check.positive("output_size", output_size), check.positive("horizon", horizon)
        super().__init__(
            input_size,
            output_size * horizon,
            cell=cell,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            reset_after=reset_after,
            normalize=normalize,
            device=device,
            dtype=dtype,
            seed=seed,
        )
        if self.normalize:
            self._buffers |= {"target_mean": np.zeros(output_size), "target_std": np.ones(output_size)}

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments with "type", as JSON holds them; the normalisation is in `state_dict`."""
        return self._config(output_size=self.output_size, horizon=self.horizon)

    def fit_normalization(self, inputs: Any, targets: Any) -> None:
        """Learn mean and standard deviation of inputs [..., input_size] and targets [..., output_size], anew.

        Raises
        ------
        ValueError
            If the model does not normalise, or a shape does not fit.
        """
        self._fit(inputs, targets)

    def _moments(self) -> dict[str, Moments]:
        return super()._moments() | {"target": Moments(self.output_size)}

    def _learn(self, learned: dict[str, Moments], inputs: Any, targets: Any) -> None:
        super()._learn(learned, inputs, targets)
        found = check.given("targets", targets, as_numpy)
        # A last axis of size 1 may be missing.
        learned["target"].add(rows_of("targets", found.reshape(-1, 1) if self.output_size == 1 else found, self.output_size))

    def _scale(self) -> np.ndarray:
        """[outputs] float64: what one normalised unit of each output is."""
        return np.tile(self._buffers["target_std"], self.horizon) if self.normalize else np.ones(self.head.outputs)

    def shaped(self, out: np.ndarray) -> np.ndarray:
        """Outputs of the head [B, horizon * O] as [B, horizon, O]: a view."""
        return out.reshape(len(out), self.horizon, self.output_size)

    def _original(self, out: np.ndarray) -> np.ndarray:
        """Outputs of the head [B, horizon * O] in the data's units, [B, horizon, O]; overwrites them."""
        out = self.shaped(out)
        if self.normalize:
            restore(self._buffers, out, np.empty(out.shape), out)
        return out

    def predict(self, x: Any, lengths: Any = None) -> np.ndarray:
        """Predictions in the units of the training targets.

        Parameters
        ----------
        x : array [T, B, I], time-major, or one sequence [T, I]
        lengths : integers [B], optional
            Valid steps of each sequence.

        Returns
        -------
        array [B, horizon, O], or [horizon, O] for one sequence
        """
        found, single = self._inference(x, lengths)
        out = self._original(found)
        return out[0] if single else out

    __call__ = predict

    def forward_train(self, x: Any, lengths: Any = None) -> tuple[np.ndarray, Backprop]:
        """Predictions [B, horizon, O] in the data's units, with dropout, and ``backprop(dout) -> dx``.

        It adds to `grads`, once only; x is [T, B, I].
        """
        out, run = self._forward_train(x, lengths)

        def read(dout: Any) -> tuple[np.ndarray]:
            run.check_unedited()
            return (check.array("dout", dout, self._engine.storage, (len(out), self.horizon, self.output_size)),)

        def backward(dout: np.ndarray) -> np.ndarray:
            return run.backward(dout.reshape(out.shape) * self._scale())

        return self._original(out), Backprop(read, backward, run.close)

    def _judge(self, run: SeriesBatch, gradient: bool) -> None:
        head, absolute = self.head, run.own.doubles("absolute", run.call.batch)
        self._engine.run(
            SquaredError(
                rows=run.call.batch,
                width=head.outputs,
                period=self.output_size,
                out=run.out,
                row=head.columns,
                targets=Later("targets"),
                mean=Later("target_mean"),
                std=Later("target_std"),
                losses=run.losses,
                absolute=absolute,
                gradient=int(gradient),
            ),
            work=10 * run.out.size,
        )

    def _sums(self, run: SeriesBatch) -> dict[str, float]:
        return {"loss": float(run.losses.sum()), "absolute": float(run.own.doubles("absolute", run.call.batch).sum())}

    def _targets(self, batch: int, targets: Any) -> np.ndarray:
        found, whole = check.given("targets", targets, as_numpy), (batch, self.horizon, self.output_size)
        if [n for n in found.shape[1:] if n != 1] != [n for n in whole[1:] if n != 1] or found.shape[:1] != whole[:1]:
            raise ValueError(f"targets has shape {list(found.shape)}; expected {list(whole)}")
        return check.array("targets", found.reshape(whole), "float64", whole)


class SequenceClassifier(Reader):
    """Reads a sequence and says which class it is of: the last valid step's h through a linear map and a softmax.

    Parameters
    ----------
    input_size : int
        Width I of a step.
    num_classes : int
    cell, hidden_size, num_layers, dropout, bidirectional, proj_size, reset_after, device, dtype, seed
        As of `SequenceRegressor`.
    normalize : bool
        Inputs are brought to mean 0 and standard deviation 1, as of `SequenceRegressor`.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> rng = np.random.default_rng(0)
    >>> label = rng.integers(0, 2, 200)
    >>> x = rng.normal(0, 1, (200, 20, 1)) + label[:, None, None]
    >>> model = fastlstm.SequenceClassifier(1, 2, hidden_size=8, seed=0)
    >>> trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=0.01), progress=False)
    >>> history = trainer.fit(fastlstm.Batches(x, label, seed=0), epochs=5)
    >>> bool((model.predict(x.swapaxes(0, 1)) == label).mean() > 0.95)
    True
    """

    def __init__(
        self,
        input_size: int,
        num_classes: int,
        cell: str = "lstm",
        hidden_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        reset_after: bool = True,
        normalize: bool = True,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.num_classes = check.positive("num_classes", num_classes)
        super().__init__(
            input_size,
            num_classes,
            cell=cell,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            reset_after=reset_after,
            normalize=normalize,
            device=device,
            dtype=dtype,
            seed=seed,
        )

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments with "type", as JSON holds them; the normalisation is in `state_dict`."""
        return self._config(num_classes=self.num_classes)

    def fit_normalization(self, inputs: Any) -> None:
        """Learn mean and standard deviation of inputs [..., input_size], anew.

        Raises
        ------
        ValueError
            If the model does not normalise, or the shape does not fit.
        """
        self._fit(inputs)

    def __call__(self, x: Any, lengths: Any = None) -> np.ndarray:
        """Logits [B, num_classes] for x [T, B, I], or [num_classes] for one sequence [T, I]; no dropout."""
        logits, single = self._inference(x, lengths)
        return logits[0] if single else logits

    def predict(self, x: Any, lengths: Any = None) -> Any:
        """The likeliest class of each sequence: integers [B] for x [T, B, I], or one for [T, I]."""
        return self(x, lengths).argmax(axis=-1)

    def predict_probabilities(self, x: Any, lengths: Any = None) -> np.ndarray:
        """The probability of every class, [B, num_classes] for x [T, B, I], or [num_classes] for [T, I]."""
        logits = self(x, lengths)
        powers: np.ndarray = np.exp(logits - logits.max(axis=-1, keepdims=True))
        powers /= powers.sum(axis=-1, keepdims=True)
        return powers

    def forward_train(self, x: Any, lengths: Any = None) -> tuple[np.ndarray, Backprop]:
        """Logits [B, num_classes], with dropout, and ``backprop(dlogits) -> dx``, which adds to `grads`; x is [T, B, I]."""
        out, run = self._forward_train(x, lengths)

        def read(dlogits: Any) -> tuple[np.ndarray]:
            run.check_unedited()
            return (check.array("dlogits", dlogits, self._engine.storage, out.shape),)

        return out, Backprop(read, run.backward, run.close)

    def _targets(self, batch: int, targets: Any) -> np.ndarray:
        return check.tokens("targets", targets, self.num_classes, (batch,))

    def _judge(self, run: SeriesBatch, gradient: bool) -> None:
        scale = run.own.array("scale", 1)
        scale[0] = 1 / run.call.batch
        correct = run.own.bytes("correct", run.call.batch)
        self._engine.run(
            SoftmaxCrossEntropy(
                rows=run.call.batch,
                classes=self.num_classes,
                logits=run.out,
                row=self.head.columns,
                targets=Later("targets"),
                scale=scale,
                losses=run.losses,
                gradient=int(gradient),
                correct=correct,
            ),
            work=20 * run.out.size,
        )

    def _sums(self, run: SeriesBatch) -> dict[str, float]:
        return {"loss": float(run.losses.sum()), "correct": float(run.own.bytes("correct", run.call.batch).sum())}
