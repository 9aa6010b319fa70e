"""Find the anomalous years of the sea off Peru: the detector learns to forecast the temperature, and finds where it was wrong.

The monthly temperatures come with statsmodels, a row for each year. The picture needs matplotlib.

python examples/sklearn_anomaly.py --help
"""

import argparse
from collections.abc import Sequence

import numpy as np


def temperatures() -> tuple[np.ndarray, np.ndarray]:
    """Return the mean temperature of each month [years, 12] in degrees Celsius, and the years."""
    from statsmodels.datasets import elnino

    data = elnino.load().data
    return data.drop(columns="YEAR").to_numpy(), data["YEAR"].to_numpy().astype(int)


def draw(path: str, table: np.ndarray, years: np.ndarray, scores: np.ndarray, steps: np.ndarray, border: float) -> None:
    """Draw the temperatures with the anomalous years shaded and their months marked, and the score of each year below."""
    from matplotlib import pyplot

    months = years[0] + np.arange(table.size) / 12
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(11, 5.5), sharex=True, height_ratios=(3, 2), layout="constrained")
    top.plot(months, table.ravel(), "k", lw=0.8, label="sea surface temperature")
    strange = steps.ravel() < 0
    top.plot(months[strange], table.ravel()[strange], "C3o", ms=5, label="month not as expected")
    bottom.bar(years + 0.5, -scores, width=0.8, color=np.where(scores < border, "C3", "C0"))
    bottom.axhline(-border, color="C3", lw=1, ls=":", label="limit for anomalous years")
    for year in years[scores < border]:
        top.axvspan(year, year + 1, color="C3", alpha=0.15, lw=0)
        bottom.annotate(str(year), (year + 0.5, -scores[years == year][0]), ha="center", va="bottom", rotation=90, fontsize=8)
    top.set(ylabel="degrees Celsius", title="Sea surface temperature off Peru, and when it was not as expected")
    bottom.set(xlabel="year", ylabel="error / usual error", ylim=(0, 1.3 * -scores.min()))
    top.legend(loc="upper left", fontsize=8)
    bottom.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[int]:
    """Print the most anomalous years, draw them, and return those that the detector calls anomalous."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="sklearn_anomaly.png", help="file to draw into")
    options = parser.parse_args(arguments)

    from fastlstm.adapters.sklearn import SeriesAnomalyDetector

    table, years = temperatures()
    detector = SeriesAnomalyDetector(epochs=options.epochs, random_state=options.seed).fit(table)
    scores, steps = detector.score_samples(table), detector.predict_steps(table)
    print(f"The largest errors of {len(years)} years, divided by the usual error (anomalous above {-detector.offset_:.2f}):")
    for n in scores.argsort()[:6]:
        print(f"  {years[n]}  {-scores[n]:.2f}  {'anomalous' if scores[n] < detector.offset_ else ''}")
    try:
        draw(options.picture, table, years, scores, steps, detector.offset_)
        print(f"Picture: {options.picture}")
    except ModuleNotFoundError:
        print("matplotlib is not installed: no picture")
    return [int(year) for year in years[detector.predict(table) == -1]]


if __name__ == "__main__":
    main()
