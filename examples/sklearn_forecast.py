"""Forecast the carbon dioxide over Mauna Loa with quantiles, and test the forecaster on past data.

The weekly measurements come with statsmodels; some are missing. The picture needs matplotlib.

python examples/sklearn_forecast.py --help
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np


def measurements() -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each month in parts per million (NaN if it is missing), and the month's date in years."""
    from statsmodels.datasets import co2

    monthly = co2.load().data["co2"].resample("MS").mean()
    return monthly.to_numpy(), (monthly.index.year + (monthly.index.month - 1) / 12).to_numpy()


def draw(path: str, result: Any, series: np.ndarray, years: np.ndarray, ahead: np.ndarray) -> None:
    """Draw the backtest's forecasts and the true values, the errors by month, and the forecast [horizon, 3] after the end."""
    from matplotlib import pyplot

    folds, _, horizon, _ = result.actual.shape
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 2), layout="constrained")
    shown = slice(int(result.origins[0, 0]) - horizon, None)
    left.plot(years[shown], series[shown], "k.-", lw=0.8, ms=4, label="measured")
    for fold in range(folds):
        steps = years[result.origins[fold, 0] + np.arange(horizon)]
        first = fold == 0
        left.plot(steps, result.forecast[fold, 0, :, 0], "C0", label="forecast a year ahead" if first else None)
        left.fill_between(steps, *result.quantiles[fold, 0, :, 0, [0, -1]], color="C0", alpha=0.2, lw=0)
        left.plot(steps, result.seasonal[fold, 0, :, 0], "C1:", label="the same month a year before" if first else None)
    steps = years[-1] + (1 + np.arange(horizon)) / 12
    left.plot(steps, ahead[:, 1], "C2", label="forecast from the end, 10 to 90 %")
    left.fill_between(steps, ahead[:, 0], ahead[:, 2], color="C2", alpha=0.2, lw=0)
    left.set(xlabel="year", ylabel="CO$_2$, parts per million", title="Each forecast uses only values before it")
    left.legend(fontsize=8)
    for name, values, style in (
        ("forecast", result.forecast, "C0o-"),
        ("seasonal naive", result.seasonal, "C1o:"),
        ("naive", result.naive, "C7o:"),
    ):
        right.plot(1 + np.arange(horizon), np.nanmean(np.abs(values - result.actual), axis=(0, 1, 3)), style, ms=4, label=name)
    right.set(xlabel="months ahead", ylabel="mean absolute error, ppm", ylim=(0, None), title=f"Errors of {folds} forecasts")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Print the errors of a walk-forward backtest and a forecast, draw both, and return the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--horizon", type=int, default=12, help="months to forecast")
    parser.add_argument("--folds", type=int, default=8, help="origins of the backtest")
    parser.add_argument("--window", type=int, default=36, help="months that the network reads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="sklearn_forecast.png", help="file to draw into")
    options = parser.parse_args(arguments)

    from fastlstm.adapters.sklearn import SeriesForecaster, backtest

    series, years = measurements()
    forecaster = SeriesForecaster(
        horizon=options.horizon, window=options.window, season_length=12, quantiles=(0.1, 0.5, 0.9), random_state=options.seed
    )
    result = backtest(forecaster, [series], folds=options.folds)
    print(result)
    scores = result.scores
    print(f"Between the quantiles for 10 and 90 %: {scores['forecast']['coverage']:.0%} of the true values")

    ahead = forecaster.fit([series]).predict_quantiles([series])[0]
    print("Next months:", " ".join(f"{value:.1f}" for value in ahead[:, 1]))
    try:
        draw(options.picture, result, series, years, ahead)
        print(f"Picture: {options.picture}")
    except ModuleNotFoundError:
        print("matplotlib is not installed: no picture")
    return scores


if __name__ == "__main__":
    main()
