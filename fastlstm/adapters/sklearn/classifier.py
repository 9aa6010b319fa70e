"""SeriesClassifier: of which class a series is. Knows scikit-learn, panels and fastlstm.SequenceClassifier."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from ...models.series import SequenceClassifier
from ...runtime import check
from .base import CHUNK, SeriesEstimator
from .network import Batch
from .panel import Moments, Panel, filled
from .store import CLASSIFIER, array_or_texts


class SeriesClassifier(ClassifierMixin, SeriesEstimator):  # type: ignore[misc]
    """Says of which class a series is.

    Parameters
    ----------
    bidirectional : bool
        Read from both ends.
    cell, hidden_size, num_layers, dropout, epochs, batch_size, learning_rate, weight_decay, dtype, random_state
        As of `SeriesForecaster`; epochs is a number.

    Attributes
    ----------
    classes_ : ndarray
    network_ : fastlstm.SequenceClassifier
        Reads [T, B, 2 * F]: values with gaps filled, and the logarithm of 1 + the steps since each was observed.
    loss_curve_, n_features_in_, feature_names_in_
        As of `SeriesForecaster`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.adapters.sklearn import SeriesClassifier
    >>> rng = np.random.default_rng(0)
    >>> series = [rng.normal(0, 1, rng.integers(10, 30)) for _ in range(60)]          # of unequal lengths
    >>> kind = np.array(["steady", "rising"])[np.arange(60) % 2]
    >>> series = [one + np.arange(len(one)) / 4 * (name == "rising") for one, name in zip(series, kind)]
    >>> classifier = SeriesClassifier(hidden_size=8, epochs=20, random_state=0).fit(series[:40], kind[:40])
    >>> classifier.score(series[40:], kind[40:]) > 0.9
    True
    """

    _fitted = SeriesEstimator._fitted | {"network_": CLASSIFIER, "classes_": array_or_texts}

    def __init__(
        self,
        bidirectional: bool = False,
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
        self.bidirectional = bidirectional
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

    def _check_fitted(self) -> None:
        super()._check_fitted()
        if self.classes_.ndim != 1 or not np.array_equal(np.unique(self.classes_), self.classes_):
            raise ValueError(f"classes_ has shape {list(self.classes_.shape)}; expected one axis, sorted, without repeats")
        if not self.network_.normalize or self.network_.device != "cpu":
            raise ValueError("network_ does not normalise, or is not on the CPU; expected both")
        self._check_sizes(input_size=2 * self.n_variables_, num_classes=len(self.classes_))

    def fit(self, X: Any, y: Any) -> Self:
        """Learn anew.

        Parameters
        ----------
        X : table [N, T], array [N, T, F] or list of [T] or [T, F] arrays
            Series. NaN is a missing value; at the end of a row of a table or 3-D array it is padding.
        y : array [N]
            Their classes: numbers or text.
        """
        self._check_params()
        return self._fit(X, y, None, first=True, whole=True)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Learn for one epoch more, from these series.

        Parameters
        ----------
        X, y : as of `fit`
        classes : array, optional
            All classes there will be; needed in the first call.
        """
        first = not hasattr(self, "network_")
        if first:
            self._check_params()
            if classes is None:
                raise ValueError("classes is None; expected all classes in the first call of partial_fit")
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes is {classes!r}; expected {self.classes_!r}, as in the first call")
        return self._fit(X, y, classes, first, whole=False)

    def _fit(self, X: Any, y: Any, classes: Any, first: bool, whole: bool) -> Self:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        panel, labels = self._panel(X, reset=first), column_or_1d(y, warn=True)
        check_classification_targets(labels)
        check_consistent_length(panel.values, labels)
        if first:
            self.classes_ = np.unique(labels if classes is None else classes)
        strange = np.setdiff1d(labels, self.classes_)
        if len(strange):
            raise ValueError(f"y contains {strange!r}; expected classes among {self.classes_!r}")
        numbers, inputs = np.searchsorted(self.classes_, labels), self._inputs(panel)
        if first:
            self._begin(lambda seed: self._network(Moments.of(panel.values), seed))

        def make(chosen: np.ndarray) -> Batch:
            lengths = panel.ends[chosen]
            return self._batch(inputs, chosen, lengths), numbers[chosen], lengths

        self._learn(len(panel), make, self.epochs if whole else None)
        return self

    def _network(self, units: Moments, seed: int) -> SequenceClassifier:
        """The classifier with these units as its normalisation."""
        width = len(units.center)
        network = SequenceClassifier(
            2 * width,
            len(self.classes_),
            self.cell,
            self.hidden_size,
            self.num_layers,
            self.dropout,
            self.bidirectional,
            dtype=self.dtype,
            seed=seed,
        )
        ones, zeros = np.ones(width), np.zeros(width)
        state = {"fitted": np.ones(1), "input_mean": [*units.center, *zeros], "input_std": [*units.scale, *ones]}
        network.load_state_dict(network.state_dict() | {f"normalization.{name}": value for name, value in state.items()})
        with network.edit() as params:
            # Gaps cannot disturb as long as no training data have shown what they mean.
            for name in ("rnn.weight_ih_l0", *(["rnn.weight_ih_l0_reverse"] if self.bidirectional else [])):
                params[name][:, width:] = 0
        return network

    def _inputs(self, panel: Panel) -> np.ndarray:
        """[N, T, 2 * F]; NaN where nothing is known yet."""
        values, gaps = filled(panel, 1)
        return np.concatenate([values, np.log1p(gaps)], axis=2)

    def _batch(self, inputs: np.ndarray, chosen: Any, lengths: np.ndarray) -> np.ndarray:
        """Some rows of the inputs, time-major, as long as their longest; what is not known is the mean."""
        found = inputs[chosen, : lengths.max()].swapaxes(0, 1)
        mean: np.ndarray = self.network_.state_dict()["normalization.input_mean"]
        return np.where(np.isnan(found), mean, found)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [N, classes], in the order of `classes_`; X as of `fit`, of any length."""
        check_is_fitted(self)
        panel = self._panel(X, reset=False)
        inputs, found = self._inputs(panel), []
        for first in range(0, len(panel), CHUNK):
            part = slice(first, first + CHUNK)
            logits = self.network_(self._batch(inputs, part, panel.ends[part]), panel.ends[part]).astype(np.float64)
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            found.append(powers / powers.sum(axis=1, keepdims=True))
        return np.concatenate(found)

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each series, [N]."""
        probabilities = self.predict_proba(X)
        found: np.ndarray = self.classes_[probabilities.argmax(axis=1)]
        return found
