"""Estimators of scikit-learn for panels of series: SeriesForecaster, SeriesClassifier and SeriesAnomalyDetector.

Each is in a private file beside this one, where panels, windows, networks and the walk-forward backtest are too.
"""

from .estimators import Backtest, SeriesAnomalyDetector, SeriesClassifier, SeriesForecaster, backtest, load

__all__ = ["Backtest", "SeriesAnomalyDetector", "SeriesClassifier", "SeriesForecaster", "backtest", "load"]
