"""SeriesForecaster: how series go on, or what belongs to the end of each. Knows scikit-learn, windows and the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted

from ...files import schema
from ...files.records import COUNT, check_stored
from ...optim.schedules import real
from ...runtime import check
from .base import CHUNK, SeriesEstimator, check_units
from .network import Batch, StepNetwork
from .panel import Panel, covariate_array
from .store import ARRAY, FRAME, STEP_NETWORK, plain_of
from .windows import Frame, Windows

# How y is checked: [N], [N, horizon] or [N, horizon, O], NaN where it is not known.
TARGETS = {"ensure_2d": False, "allow_nd": True, "ensure_all_finite": "allow-nan", "dtype": np.float64, "input_name": "y"}


class SeriesForecaster(RegressorMixin, SeriesEstimator):  # type: ignore[misc]
    """Forecasts how series go on; or, given y, learns what belongs to the end of each series.

    Without y every series is its own teacher: windows of it are read, and what came after them is to be forecast. The
    network corrects the seasonal naive forecast, which repeats the last season, or the mean.

    Parameters
    ----------
    horizon : int, optional
        Steps to forecast; None is as many as y has columns, or 1.
    window : int, optional
        Steps of history that are read; None is the whole series with y, else two seasons or two horizons, at least 16.
    season_length : int
        Steps of a season; 1 for none.
    quantiles : sequence of float, optional
        Levels for `predict_quantiles`; the network then learns by the pinball loss, and `predict` gives the median.
    anchor : {"auto", "naive", "mean"}
        What is corrected. "naive": the seasonal naive forecast, each window in its own units, for series that wander or
        differ in level. "mean": the mean, in units of the panel, for series that return to it. "auto": "naive" if levels
        differ more between windows than values do within them, and that forecast is closer to the targets.
    stride : int
        Steps from one training window to the next.
    cell : {"lstm", "gru", "rnn"}
    hidden_size, num_layers : int
    dropout : float
        Between layers.
    epochs : int, optional
        None is 60 with y, 20 without.
    batch_size : int
    learning_rate : float
        Of Adam; falls to zero over the epochs of a fit.
    weight_decay : float
        Decoupled, as of `fastlstm.AdamW`.
    dtype : {"float32", "float64", "bfloat16"}
    random_state : int, RandomState or None
        Decides the initial weights, dropout and the order of examples.

    Attributes
    ----------
    network_ : StepNetwork
        Its layers are `rnn` and `head`.
    frame_ : Frame
        Window, horizon and the units of inputs and outputs; ``frame_.naive`` says which anchor was taken.
    loss_curve_ : ndarray
        Mean loss of each epoch, in units of the network.
    n_features_in_, feature_names_in_
        As scikit-learn has them: columns of a table; of other panels, the number of variables.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.adapters.sklearn import SeriesForecaster
    >>> waves = np.sin(np.arange(60) / 3 + np.arange(8)[:, None]) * 5 + 100 * np.arange(8)[:, None]    # [8 series, 60 steps]
    >>> forecaster = SeriesForecaster(horizon=4, hidden_size=16, epochs=40, random_state=0).fit(waves[:, :-4])
    >>> forecast = forecaster.predict(waves[:, :-4])
    >>> forecast.shape, bool(abs(forecast - waves[:, -4:]).mean() < 0.5)
    ((8, 4), True)
    """

    _fitted = SeriesEstimator._fitted | {
        "network_": STEP_NETWORK,
        "frame_": FRAME,
        "form_": plain_of(schema.choice("values", "steps", "variables")),
        "levels_": ARRAY,
        "n_covariates_": plain_of(COUNT),
    }
    frame_: Frame
    form_: str

    def __init__(
        self,
        horizon: int | None = None,
        window: int | None = None,
        season_length: int = 1,
        quantiles: Sequence[float] | None = None,
        anchor: str = "auto",
        stride: int = 1,
        *,
        cell: str = "lstm",
        hidden_size: int = 32,
        num_layers: int = 1,
        dropout: float = 0.0,
        epochs: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        dtype: str = "float32",
        random_state: Any = None,
    ) -> None:
        self.horizon = horizon
        self.window = window
        self.season_length = season_length
        self.quantiles = quantiles
        self.anchor = anchor
        self.stride = stride
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        tags.target_tags.multi_output = True
        return tags

    def _check_params(self) -> None:
        super()._check_params()
        check.positive("season_length", self.season_length)
        check.positive("stride", self.stride)
        check.choice("anchor", self.anchor, ("auto", "naive", "mean"))
        for name in ("horizon", "window", "epochs"):
            if getattr(self, name) is not None:
                check.positive(name, getattr(self, name))
        for level in () if self.quantiles is None else self.quantiles:
            real("quantiles", level, 0.0, 1.0, above=True, below=True)

    def _check_fitted(self) -> None:
        super()._check_fitted()
        frame, width, levels = self.frame_, self.n_variables_, self.levels_
        check_stored("levels_", levels, "float64", (levels.size,))
        if levels.size and (levels.tolist() != sorted({*levels.tolist(), 0.5}) or not 0 < levels[0] <= levels[-1] < 1):
            raise ValueError(f"levels_ is {levels.tolist()}; expected rising levels above 0 and below 1, 0.5 among them")
        if self.network_.config["levels"] != (levels.tolist() or None):
            raise ValueError(f"network_.levels is {self.network_.config['levels']}; expected {levels.tolist()}, as levels_")
        outputs = width if frame.naive else frame.targets.scale.size
        for name, size in (("inputs", width), ("targets", outputs), ("covariates", self.n_covariates_)):
            check_units(f"frame_.{name}", getattr(frame, name), size)
        self._check_sizes(input_size=2 * width + self.n_covariates_, output_size=outputs * max(1, levels.size))

    def fit(self, X: Any, y: Any = None, covariates: Any = None) -> Self:
        """Learn anew.

        Parameters
        ----------
        X : table [N, T], array [N, T, F] or list of [T] or [T, F] arrays
            Series. NaN is a missing value; at the end of a row of a table or 3-D array it is padding.
        y : array [N], [N, horizon] or [N, horizon, O], optional
            What belongs to each series, such as its next values; NaN where it is not known. None: the series' own
            next values.
        covariates : array [N, T, C] or [N, T], or list of [T, C] or [T] arrays, optional
            What is known beforehand of each step of X, such as prices and holidays; with y, also of the next `horizon`.

        Raises
        ------
        TypeError, ValueError
            For arguments that are not what was said, or series too short to learn from.
        """
        self._check_params()
        return self._fit(X, y, covariates, first=True, whole=True)

    def partial_fit(self, X: Any, y: Any = None, covariates: Any = None) -> Self:
        """Learn for one epoch more, from these series; the first call fixes units, window and horizon as `fit` does."""
        first = not hasattr(self, "network_")
        if first:
            self._check_params()
        return self._fit(X, y, covariates, first, whole=False)

    def _fit(self, X: Any, y: Any, covariates: Any, first: bool, whole: bool) -> Self:
        panel = self._panel(X, reset=first, grows=True)
        targets, form = self._targets(y, panel)
        horizon = (self.horizon or 1) if targets is None else targets.shape[1]
        if targets is not None and self.horizon not in (None, horizon):
            raise ValueError(f"y has {horizon} columns; expected horizon = {self.horizon}")
        if not first and (form, horizon) != (self.form_, self.frame_.horizon):
            raise ValueError(f"y is given as {form} of {horizon}; expected {self.form_} of {self.frame_.horizon}, as before")
        windows = self._windows(panel, covariates, 0 if targets is None else horizon, reset=first)
        if first:
            usual = max(2 * self.season_length, 2 * horizon, 16)
            window = self.window or (panel.longest if targets is not None else min(usual, max(1, panel.longest - horizon)))
        else:
            window = self.frame_.window
        if targets is None:
            series, origins = windows.origins(window, horizon, self.stride)
        else:
            series = np.flatnonzero(~np.isnan(targets).all(axis=(1, 2)))
            if not len(series):
                raise ValueError("y contains NaN only; expected something to learn from")
            targets, origins = targets[series], panel.ends[series]
        if first:
            self.frame_ = Frame.of(windows, series, origins, targets, window, horizon, self.anchor)
            named = [] if self.quantiles is None else [float(level) for level in self.quantiles]
            self.form_, self.levels_ = form, np.array(sorted({0.5, *named}) if named else [])
            outputs, width = len(self.frame_.targets.scale), panel.variables
            self._begin(
                lambda seed: StepNetwork(
                    self.cell,
                    2 * width + self.n_covariates_,
                    outputs * max(1, len(self.levels_)),
                    self.hidden_size,
                    self.num_layers,
                    dropout=self.dropout,
                    dtype=self.dtype,
                    seed=seed,
                    silent=(width, 2 * width),
                    levels=self.levels_.tolist() or None,
                )
            )

        def make(chosen: np.ndarray) -> Batch:
            cut = windows.cut(series[chosen], origins[chosen], window, horizon)
            inputs, lengths, units = self.frame_.scaled(cut)
            found = windows.targets(series[chosen], origins[chosen], horizon) if targets is None else targets[chosen]
            scaled = (found.swapaxes(0, 1) - units.center) / units.scale
            known = ~np.isnan(scaled)
            return inputs, (cut.at, np.where(known, scaled, 0), known.astype(float)), lengths

        # Windows overlap, so that an epoch of them shows each value many times.
        self._learn(len(series), make, (self.epochs or (20 if targets is None else 60)) if whole else None)
        return self

    def _targets(self, y: Any, panel: Panel) -> tuple[np.ndarray | None, str]:
        """y as [N, horizon, O], and the form in which predictions are given."""
        if y is None:
            return None, "steps" if panel.flat else "variables"
        found = check_array(y, **TARGETS)
        check_consistent_length(panel.values, found)
        if found.ndim > 3:
            raise ValueError(f"y has shape {list(found.shape)}; expected [N], [N, horizon] or [N, horizon, O]")
        form = ("values", "steps", "variables")[found.ndim - 1]
        return found.reshape(*found.shape, *[1] * (3 - found.ndim)), form

    def _windows(self, panel: Panel, covariates: Any, ahead: int, reset: bool) -> Windows:
        if reset:
            self.n_covariates_ = 0
        elif (covariates is None) != (self.n_covariates_ == 0):
            raise ValueError(f"covariates are {'missing' if covariates is None else 'given'}; expected as in fit")
        found = np.zeros((len(panel), 1, 0))
        if covariates is not None:
            found = covariate_array("covariates", covariates, panel.ends + ahead, None if reset else self.n_covariates_)
            self.n_covariates_ = found.shape[2]
        return Windows(panel, found, check.positive("season_length", self.season_length))

    def _forecast(self, X: Any, covariates: Any) -> np.ndarray:
        """Forecasts [N, horizon, O, levels or 1]."""
        check_is_fitted(self)
        panel = self._panel(X, reset=False, grows=True)
        windows = self._windows(panel, covariates, self.frame_.horizon, reset=False)
        return self._of(windows, np.arange(len(panel)), panel.ends)

    def _of(self, windows: Windows, series: np.ndarray, origins: np.ndarray) -> np.ndarray:
        found = []
        for first in range(0, len(series), CHUNK):
            part = slice(first, first + CHUNK)
            cut = windows.cut(series[part], origins[part], self.frame_.window, self.frame_.horizon)
            inputs, lengths, units = self.frame_.scaled(cut)
            out = self.network_(inputs, lengths, cut.at).reshape(*units.center.shape, -1)
            # Levels are learnt each by itself; sorted, none crosses another (Chernozhukov et al. 2010).
            found.append((units.center[..., None] + units.scale[..., None] * np.sort(out, axis=-1)).swapaxes(0, 1))
        return np.concatenate(found)

    def _formed(self, found: np.ndarray) -> np.ndarray:
        """Forecasts [N, horizon, O, ...] in the form of what was learnt."""
        return {"values": found[:, 0, 0], "steps": found[:, :, 0], "variables": found}[self.form_]

    def predict(self, X: Any, covariates: Any = None) -> np.ndarray:
        """Forecasts; medians, if quantiles were learnt.

        Parameters
        ----------
        X : as of `fit`
            Of any length; a table may have gained columns, but not lost any.
        covariates : as of `fit`, optional
            Of the steps of X and the next `horizon`; to be given if they were in `fit`.

        Returns
        -------
        ndarray
            [N, horizon], or [N, horizon, F] where X in `fit` had an axis of variables; with y, of y's form.
        """
        found = self._forecast(X, covariates)
        return self._formed(found[..., int(np.searchsorted(self.levels_, 0.5))])

    def predict_quantiles(self, X: Any, covariates: Any = None) -> np.ndarray:
        """As `predict`, with a last axis for the levels of `quantiles`, in their order.

        Raises
        ------
        ValueError
            If no quantiles were learnt.
        """
        found = self._forecast(X, covariates)
        if self.quantiles is None or not np.isin(self.quantiles, self.levels_).all():
            raise ValueError(f"quantiles is {self.quantiles}; expected the levels to be named before fit")
        return self._formed(found[..., np.searchsorted(self.levels_, np.asarray(self.quantiles))])

    def score(self, X: Any, y: Any = None, sample_weight: Any = None, covariates: Any = None) -> float:
        """R^2 of the predictions of y; or, without y, by how much the end of each series is forecast better than naively.

        Parameters
        ----------
        X, y, covariates : as of `fit`
        sample_weight : array [N], optional
            With y only.

        Returns
        -------
        float
            Without y, the last `horizon` values of each series are held out: 1 - (mean absolute error / that of the
            seasonal naive forecast), each series in units of its own deviation.
        """
        if y is not None:
            found = self.predict(X, covariates)
            truth, guess = (values.reshape(len(found), -1).T for values in (check_array(y, **TARGETS), found))
            weight = np.ones(len(found)) if sample_weight is None else np.asarray(sample_weight)
            return float(np.mean([_r2(*column, weight) for column in zip(truth, guess, strict=True)]))
        check_is_fitted(self)
        panel, horizon = self._panel(X, reset=False, grows=True), self.frame_.horizon
        windows = self._windows(panel, covariates, 0, reset=False)
        series = np.flatnonzero(panel.ends - panel.starts > horizon)
        origins = panel.ends[series] - horizon
        known = windows.targets(series, origins, horizon)
        if not len(series) or known.shape[2] != len(self.frame_.targets.scale) or np.isnan(known).all():
            raise ValueError(f"X has no series with values after its first {horizon} steps to hold out; expected some, or y")
        cut = windows.cut(series, origins, self.frame_.window, horizon)
        unit = self.frame_._own_units(cut).scale
        guess = self._of(windows, series, origins)[..., int(np.searchsorted(self.levels_, 0.5))]
        error, naive = (np.nansum(abs(known - value) / unit) for value in (guess, cut.naive))
        return float(1 - error / naive) if naive else float(-error)


def _r2(truth: np.ndarray, guess: np.ndarray, weight: np.ndarray) -> float:
    """R^2 over the known truths."""
    known = ~np.isnan(truth)
    return float(r2_score(truth[known], guess[known], sample_weight=weight[known]))
