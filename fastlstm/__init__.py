"""Recurrent networks at the speed of the hardware, without a framework."""

__version__ = "0.1.0"

from typing import Any

from . import losses
from .cells import GRUCell, LSTMCell, RNNCell
from .checkpoint import CheckpointError
from .data import Batches, TokenStream
from .descent import DivergedError
from .fitting import Callback
from .generate import Run, load
from .kernels.team import num_threads, set_num_threads
from .layers import GRU, LSTM, RNN
from .models import LanguageModel
from .nn import Dropout, Embedding, Linear
from .optim import SGD, Adam, AdamW, RMSprop, clip_grad_norm, clip_grad_value, grad_norm
from .owner import flatten
from .schedules import Constant, CosineWarmup, Plateau, StepDecay
from .schema import FileError
from .series import SequenceClassifier, SequenceRegressor
from .stream import Stream
from .trainer import Trainer

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "Batches",
    "Callback",
    "CheckpointError",
    "Constant",
    "CosineWarmup",
    "DivergedError",
    "Dropout",
    "Embedding",
    "FileError",
    "GRUCell",
    "LSTMCell",
    "LanguageModel",
    "Linear",
    "Plateau",
    "RMSprop",
    "RNNCell",
    "Run",
    "SequenceClassifier",
    "SequenceRegressor",
    "StepDecay",
    "Stream",
    "TokenStream",
    "Trainer",
    "clip_grad_norm",
    "clip_grad_value",
    "flatten",
    "grad_norm",
    "gru_step",
    "load",
    "losses",
    "lstm_step",
    "num_threads",
    "rnn_step",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    """The steps for a user's own @njit code: they alone need Numba at import."""
    if name in ("lstm_step", "gru_step", "rnn_step"):
        from . import step

        return getattr(step, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
