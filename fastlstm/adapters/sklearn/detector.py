"""SeriesAnomalyDetector: what goes on otherwise than expected. Knows scikit-learn, panels and the network."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted

from ...files import schema
from ...optim.schedules import real
from ...runtime import check
from .base import CHUNK, SeriesEstimator, check_scale, check_units
from .network import Batch, StepNetwork
from .panel import Moments, Panel, filled
from .store import ARRAY, MOMENTS, STEP_NETWORK, plain_of


class SeriesAnomalyDetector(OutlierMixin, SeriesEstimator):  # type: ignore[misc]
    """Tells series, and steps of them, that go on otherwise than those it learnt from.

    A network forecasts each step from those before it; the error, in units of the usual one, is how strange a step is.

    Parameters
    ----------
    contamination : "auto" or float
        Part of the training series (and, for `predict_steps`, steps) that is taken for anomalous, above 0 and up to 0.5.
        "auto": series beyond Tukey's inner fence, 1.5 times the range of the middle half from it; of steps there are many
        more, so those beyond the outer fence, 3 times that range.
    window : int
        Steps of the pieces that are learnt from.
    cell, hidden_size, num_layers, dropout, epochs, batch_size, learning_rate, weight_decay, dtype, random_state
        As of `SeriesForecaster`; epochs is a number.

    Attributes
    ----------
    offset_, step_offset_ : float
        Scores of series and of steps below these are anomalous.
    units_ : Moments
        Mean and deviation of each variable.
    error_ : ndarray [F]
        The usual error of each variable's forecasts, in these units.
    network_, loss_curve_, n_features_in_, feature_names_in_
        As of `SeriesForecaster`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.adapters.sklearn import SeriesAnomalyDetector
    >>> wave = np.sin(np.arange(400) / 4) + np.random.default_rng(0).normal(0, 0.05, 400)
    >>> detector = SeriesAnomalyDetector(hidden_size=16, random_state=0).fit(wave[None, :300])
    >>> wave[350] += 1
    >>> int(detector.score_steps(wave[None]).argmin())
    350
    """

    _fitted = SeriesEstimator._fitted | {
        "network_": STEP_NETWORK,
        "units_": MOMENTS,
        "error_": ARRAY,
        "offset_": plain_of(schema.number()),
        "step_offset_": plain_of(schema.number()),
    }

    def __init__(
        self,
        contamination: str | float = "auto",
        window: int = 64,
        cell: str = "lstm",
        hidden_size: int = 32,
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        epochs: int = 40,
        batch_size: int = 32,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        dtype: str = "float32",
        random_state: Any = None,
    ) -> None:
        self.contamination = contamination
        self.window = window
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.dtype = dtype
        self.random_state = random_state

    def _check_params(self) -> None:
        super()._check_params()
        check.positive("epochs", self.epochs)
        check.positive("window", self.window)
        if self.contamination != "auto":
            real("contamination", self.contamination, 0.0, 0.5, above=True)

    def _check_fitted(self) -> None:
        super()._check_fitted()
        width = self.n_variables_
        check_units("units_", self.units_, width)
        check_scale("error_", self.error_, width)
        if self.network_.config["levels"] is not None:
            raise ValueError(f"network_.levels is {self.network_.config['levels']}; expected null")
        self._check_sizes(input_size=2 * width, output_size=width)

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn anew, and set the borders of what is anomalous.

        Parameters
        ----------
        X : table [N, T], array [N, T, F] or list of [T] or [T, F] arrays
            Series. NaN is a missing value; at the end of a row of a table or 3-D array it is padding.
        y
            Of no effect.
        """
        self._check_params()
        return self._fit(X, first=True, whole=True)

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn for one epoch more, from these series, and set the borders anew by them."""
        first = not hasattr(self, "network_")
        if first:
            self._check_params()
        return self._fit(X, first, whole=False)

    def _fit(self, X: Any, first: bool, whole: bool) -> Self:
        panel = self._panel(X, reset=first)
        if first:
            self.units_ = Moments.of(panel.values)
            width = panel.variables
            self._begin(
                lambda seed: StepNetwork(
                    self.cell,
                    2 * width,
                    width,
                    self.hidden_size,
                    self.num_layers,
                    dropout=self.dropout,
                    dtype=self.dtype,
                    seed=seed,
                    silent=(width, 2 * width),
                )
            )
        inputs, targets = self._steps(panel)
        # Pieces that overlap by half, so that most steps are learnt with what came before them.
        starts = [np.arange(0, max(1, end - self.window // 2), -(-self.window // 2)) for end in panel.ends]
        series, begin = np.repeat(np.arange(len(panel)), [len(found) for found in starts]), np.concatenate(starts)
        known = np.array([not np.isnan(targets[n, t : t + self.window]).all() for n, t in zip(series, begin, strict=True)])
        series, begin = series[known], begin[known]

        def make(chosen: np.ndarray) -> Batch:
            n, t = series[chosen], begin[chosen]
            lengths = np.minimum(self.window, panel.ends[n] - t)
            step = np.minimum(t[:, None] + np.arange(lengths.max()), inputs.shape[1] - 1)
            wanted, valid = targets[n[:, None], step], np.arange(lengths.max()) < lengths[:, None]
            weight = valid[..., None] & ~np.isnan(wanted)
            judged = np.where(weight, wanted, 0).swapaxes(0, 1), weight.swapaxes(0, 1).astype(float)
            return inputs[n[:, None], step].swapaxes(0, 1), (None, *judged), lengths

        self._learn(len(series), make, self.epochs if whole else None)
        errors = np.abs(self._errors(panel)).reshape(-1, panel.variables)
        # The median's, so that anomalies in the training data hardly count: 0.6745 is a normal error's.
        usual = np.nanmedian(errors, axis=0) / 0.6745
        self.error_ = np.where(usual > 0, usual, 1.0)
        scores, steps = self._scores(panel)
        self.offset_, self.step_offset_ = self._border(scores, 1.5), self._border(steps[~np.isnan(steps)], 3.0)
        return self

    def _border(self, scores: np.ndarray, fence: float) -> float:
        if not isinstance(self.contamination, str):
            return float(np.percentile(scores, 100 * self.contamination))
        low, high = np.percentile(scores, [25, 75])
        return float(low - fence * (high - low))

    def _steps(self, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
        """What is read before each step [N, T, 2 * F], and the step itself [N, T, F], NaN where it is missing."""
        values, gaps = filled(panel, 1)
        values = np.nan_to_num((values - self.units_.center) / self.units_.scale, nan=0.0)
        read = np.concatenate([values, np.log1p(gaps)], axis=2)
        return np.concatenate([np.zeros_like(read[:, :1]), read[:, :-1]], axis=1), (
            panel.values - self.units_.center
        ) / self.units_.scale

    def _errors(self, panel: Panel) -> np.ndarray:
        """Errors of the forecasts of each step [N, T, F], in the panel's units; NaN where it is missing."""
        inputs, targets = self._steps(panel)
        for first in range(0, len(panel), CHUNK):
            part = slice(first, first + CHUNK)
            targets[part] -= self.network_(inputs[part].swapaxes(0, 1), panel.ends[part]).swapaxes(0, 1)
        return targets

    def _scores(self, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the series [N] and of their steps [N, T]: the root of the mean square of errors, negative."""
        squares = (self._errors(panel) / self.error_) ** 2
        known = ~np.isnan(squares)
        sums, counts = np.where(known, squares, 0).sum(axis=2), known.sum(axis=2)
        steps = -np.sqrt(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0))
        return -np.sqrt(sums.sum(axis=1) / counts.sum(axis=1)), steps

    def score_samples(self, X: Any) -> np.ndarray:
        """How usual each series is, [N]: minus the root of the mean square of its errors, of which 1 is usual."""
        check_is_fitted(self)
        return self._scores(self._panel(X, reset=False))[0]

    def score_steps(self, X: Any) -> np.ndarray:
        """How usual each step is, [N, T], as of `score_samples`; NaN where it is missing or beyond a series' end.

        X is as of `fit`; a table may have gained columns.
        """
        check_is_fitted(self)
        return self._scores(self._panel(X, reset=False, grows=True))[1]

    def decision_function(self, X: Any) -> np.ndarray:
        """`score_samples` less `offset_`, [N]: below 0 for anomalies."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """-1 for anomalous series, 1 for others, [N]."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def predict_steps(self, X: Any) -> np.ndarray:
        """-1 for anomalous steps, 1 for others, 0 where a step is missing or beyond a series' end, [N, T].

        X is as of `score_steps`.
        """
        scores = self.score_steps(X)
        return np.where(np.isnan(scores), 0, np.where(scores < self.step_offset_, -1, 1))
