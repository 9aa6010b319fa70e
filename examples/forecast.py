"""Forecast a noisy seasonal series several steps ahead, and compare the errors with those of two simple forecasts.

python examples/forecast.py --help
"""

import argparse
from collections.abc import Sequence

import numpy as np

import fastlstm

PERIOD = 24


def make_series(hours: int, seed: int) -> np.ndarray:
    """Return an hourly load [hours]: a daily wave with a slowly changing height and level, and noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(hours)
    height = 80 + 30 * np.sin(2 * np.pi * t / (PERIOD * 9))
    level = 500 + 60 * np.sin(2 * np.pi * t / (PERIOD * 31))
    day = np.sin(2 * np.pi * t / PERIOD) + 0.4 * np.sin(4 * np.pi * t / PERIOD + 1)
    return level + height * day + rng.normal(0, 8, hours)


def windows(series: np.ndarray, length: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all inputs [N, length, 1] and the values after each, [N, horizon, 1]."""
    pieces = np.lib.stride_tricks.sliding_window_view(series, length + horizon)[..., None]
    return pieces[:, :length], pieces[:, length:]


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train, print the mean absolute errors on the last fifth of the series, and return them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=int, default=3000, help="length of the series")
    parser.add_argument("--horizon", type=int, default=12, help="hours to forecast")
    parser.add_argument("--window", type=int, default=2 * PERIOD, help="hours that the network reads")
    parser.add_argument("--cell", choices=["lstm", "gru", "rnn"], default="gru")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    series = make_series(options.hours, options.seed)
    border = options.hours * 4 // 5
    train = fastlstm.Batches(*windows(series[:border], options.window, options.horizon), batch_size=64, seed=options.seed)
    x, y = windows(series[border:], options.window, options.horizon)
    test = fastlstm.Batches(x, y, batch_size=256)

    model = fastlstm.SequenceRegressor(1, 1, horizon=options.horizon, cell=options.cell, hidden_size=48, seed=options.seed)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=5e-3))
    trainer.fit(train, epochs=options.epochs)

    errors = {
        "last value": float(np.abs(x[:, -1:] - y).mean()),
        "same hour yesterday": float(np.abs(x[:, -PERIOD:][:, : options.horizon] - y).mean()),
        options.cell: trainer.evaluate(test)["mean_absolute_error"],
    }
    print(f"Mean absolute error over {options.horizon} hours (of the noise alone: {8 * np.sqrt(2 / np.pi):.1f}):")
    for name, error in errors.items():
        print(f"  {name:20} {error:6.1f}")

    # Forecast the hours after the end of the series.
    forecast = model.predict(series[-options.window :, None])[:, 0]
    print("Next hours:", " ".join(f"{value:.0f}" for value in forecast))
    return errors


if __name__ == "__main__":
    main()
