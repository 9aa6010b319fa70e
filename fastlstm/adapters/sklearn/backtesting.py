"""A walk-forward backtest: a forecaster at past origins of a panel, beside the naive and the seasonal naive forecast.

Knows panels, and of forecasters only fit, predict and predict_quantiles.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime import check
from .panel import Panel, covariate_array, is_panel, panel_of_series, panel_of_table


@dataclass(frozen=True)
class Backtest:
    """Forecasts from every origin, what came true, and their errors.

    Attributes
    ----------
    forecast, naive, seasonal, actual : ndarray [folds, N, horizon, F]
        By fold, the earliest first; `actual` is NaN where a value is missing.
    quantiles : ndarray [folds, N, horizon, F, Q] or None
        If the forecaster learnt quantiles.
    levels : tuple of float
        Of `quantiles`.
    origins : ndarray [folds, N]
        The first forecast step of each series.
    scale : ndarray [N, F]
        Mean absolute error of the seasonal naive forecast over one step before the first origin: the unit of MASE.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.adapters.sklearn import SeriesForecaster, backtest
    >>> load = 10 + np.tile([0.0, 4.0, 8.0, 4.0], 40) + np.arange(160) / 4
    >>> forecaster = SeriesForecaster(horizon=4, season_length=4, hidden_size=8, epochs=30, random_state=0)
    >>> result = backtest(forecaster, load[None], folds=2)
    >>> result.forecast.shape, result.scores["forecast"]["mae"] < result.scores["seasonal naive"]["mae"]
    ((2, 1, 4, 1), True)
    """

    forecast: np.ndarray
    naive: np.ndarray
    seasonal: np.ndarray
    actual: np.ndarray
    quantiles: np.ndarray | None
    levels: tuple[float, ...]
    origins: np.ndarray
    scale: np.ndarray

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Mean absolute, root mean square and mean absolute scaled error (Hyndman & Koehler 2006) of each forecast.

        Of quantiles also "pinball", the mean pinball loss, and "coverage", the part of what came true that lies between
        the lowest and the highest level.
        """
        found = {
            name: self._errors(values)
            for name, values in (("forecast", self.forecast), ("naive", self.naive), ("seasonal naive", self.seasonal))
        }
        if self.quantiles is not None:
            short, levels = self.actual[..., None] - self.quantiles, np.array(self.levels)
            inside = (self.actual >= self.quantiles.min(axis=-1)) & (self.actual <= self.quantiles.max(axis=-1))
            found["forecast"]["pinball"] = float(np.nanmean(np.maximum(levels * short, (levels - 1) * short)))
            found["forecast"]["coverage"] = float(inside[~np.isnan(self.actual)].mean())
        return found

    def _errors(self, forecast: np.ndarray) -> dict[str, float]:
        error = forecast - self.actual
        scaled = np.abs(error) / self.scale[:, None]
        return {
            "mae": float(np.nanmean(np.abs(error))),
            "rmse": float(np.sqrt(np.nanmean(error**2))),
            "mase": float(np.nanmean(scaled)),
        }

    def __str__(self) -> str:
        folds, series, horizon, _ = self.forecast.shape
        lines = [f"{folds} origins, {series} series, {horizon} steps ahead", f"{'':15}{'MAE':>10}{'RMSE':>10}{'MASE':>8}"]
        for name, errors in self.scores.items():
            lines.append(f"{name:15}{errors['mae']:10.4g}{errors['rmse']:10.4g}{errors['mase']:8.3f}")
        return "\n".join(lines)


def backtest(
    forecaster: Any, X: Any, *, covariates: Any = None, folds: int = 3, step: int | None = None, refit: bool = True
) -> Backtest:
    """Forecast the ends of series as if they were not known yet, from one origin after the other.

    Parameters
    ----------
    forecaster : SeriesForecaster
        Not changed. Its `horizon` is what is forecast, its `season_length` that of the seasonal naive forecast.
    X : table [N, T], array [N, T, F] or list of [T] or [T, F] arrays
        As of `SeriesForecaster.fit`. Origins count from each series' own end.
    covariates : as of `SeriesForecaster.fit`, optional
    folds : int
        Number of origins; the last one is `horizon` steps before the end.
    step : int, optional
        Steps between two origins; None is the horizon.
    refit : bool
        Learn anew before every origin, or only before the first.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not what was said, or series too short for the origins.
    """
    horizon = check.positive("horizon", forecaster.horizon or 1)
    season = check.positive("season_length", forecaster.season_length)
    folds, step = check.positive("folds", folds), check.positive("step", horizon if step is None else step)
    panel = panel_of_series(X) if is_panel(X) else panel_of_table(np.asarray(X, np.float64))
    known = None if covariates is None else covariate_array("covariates", covariates, panel.ends, None)
    behind = horizon + step * np.arange(folds)[::-1, None]
    origins = panel.ends - behind
    if (origins[0] <= panel.starts).any():
        short = int((panel.ends - panel.starts).min())
        raise ValueError(f"X has a series of {short} steps; expected more than {behind[0, 0]} for these folds and this horizon")

    model = copy.deepcopy(forecaster)
    forecasts, quantiles = [], []
    for fold, ends in enumerate(origins):
        series = [_shaped(panel, one[:end]) for one, end in zip(panel.values, ends, strict=True)]
        past, future = {}, {}
        if known is not None:
            past = {"covariates": [one[:end] for one, end in zip(known, ends, strict=True)]}
            future = {"covariates": [one[: end + horizon] for one, end in zip(known, ends, strict=True)]}
        if fold == 0 or refit:
            model.fit(series, **past)
        forecasts.append(_with_variables(panel, model.predict(series, **future)))
        if forecaster.quantiles is not None:
            quantiles.append(_with_variables(panel, model.predict_quantiles(series, **future)))

    return Backtest(
        np.stack(forecasts),
        _naive(panel, origins, horizon, 1),
        _naive(panel, origins, horizon, season),
        panel.values[np.arange(len(panel))[:, None], origins[..., None] + np.arange(horizon)],
        np.stack(quantiles) if quantiles else None,
        tuple(map(float, forecaster.quantiles or ())),
        origins,
        _scale(panel, origins[0], season),
    )


def _shaped(panel: Panel, series: np.ndarray) -> np.ndarray:
    """A series [T, F] in the form in which it came."""
    return series[:, 0] if panel.flat else series


def _with_variables(panel: Panel, found: np.ndarray) -> np.ndarray:
    """Forecasts [N, horizon, ...] with an axis of variables."""
    return found[:, :, None] if panel.flat else found


def _naive(panel: Panel, origins: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """The last known value at the same place of a season, [folds, N, horizon, F]; where there is none, the last one at all."""
    found = np.full((*origins.shape, horizon, panel.variables), np.nan)
    for fold, n, k in np.ndindex(*origins.shape, horizon):
        back = panel.values[n, : origins[fold, n]][::-1]
        for v, series in enumerate(back.T):
            same = series[season - 1 - k % season :: season]
            known = same[~np.isnan(same)] if not np.isnan(same).all() else series[~np.isnan(series)]
            if len(known):
                found[fold, n, k, v] = known[0]
    return found


def _scale(panel: Panel, ends: np.ndarray, season: int) -> np.ndarray:
    """The mean change over a season of each series before its end [N, F]; 1 where there is none."""
    scales = np.ones((len(panel), panel.variables))
    for scale, values, end in zip(scales, panel.values, ends, strict=True):
        change = np.abs(values[season:end] - values[: max(0, end - season)])
        known = ~np.isnan(change)
        mean = np.where(known, change, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
        scale[mean > 0] = mean[mean > 0]
    return scales
