"""Estimators of scikit-learn for panels of series: SeriesForecaster, SeriesClassifier and SeriesAnomalyDetector.

Each is in a private file beside this one, where panels, windows, networks and the walk-forward backtest are too.
"""

from __future__ import annotations

import os
from typing import Any

try:
    import sklearn  # noqa: F401
except ModuleNotFoundError:
    raise ImportError('fastlstm.adapters.sklearn needs scikit-learn: pip install "fastlstm[sklearn]"') from None

from .backtesting import Backtest, backtest
from .base import read
from .classifier import SeriesClassifier
from .detector import SeriesAnomalyDetector
from .forecaster import SeriesForecaster

__all__ = ["Backtest", "SeriesAnomalyDetector", "SeriesClassifier", "SeriesForecaster", "backtest", "load"]


def load(path: str | os.PathLike[str]) -> Any:
    """The estimator that its `save` wrote, of whichever class; nothing in the file is evaluated.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    fastlstm.CheckpointError
        If it is damaged or of another program.
    """
    return read(path, SeriesForecaster, SeriesClassifier, SeriesAnomalyDetector)
