"""Recurrent networks at the speed of the hardware, without a framework."""

__version__ = "0.1.0"

from .layers import GRU, LSTM, RNN, flatten

__all__ = ["GRU", "LSTM", "RNN", "flatten"]
