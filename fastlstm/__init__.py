"""Recurrent networks at the speed of the hardware, without a framework."""

from typing import Any

from . import losses
from .data import Batches, TokenStream
from .files.schema import FileError
from .generate import Run, load
from .kernels.native.team import num_threads, set_num_threads
from .layers.basic import Dropout, Embedding, Linear
from .layers.cells import GRUCell, LSTMCell, RNNCell
from .layers.module import flatten
from .layers.recurrent import GRU, LSTM, RNN
from .models.language import LanguageModel
from .models.series import SequenceClassifier, SequenceRegressor
from .models.stream import Stream
from .optim.optimizers import SGD, Adam, AdamW, RMSprop, clip_grad_norm, clip_grad_value, grad_norm
from .optim.schedules import Constant, CosineWarmup, Plateau, StepDecay
from .training.checkpoint import CheckpointError
from .training.state import Callback
from .training.trainer import Trainer
from .training.update import DivergedError
from .version import __version__ as __version__

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
        from .layers import compiled

        return getattr(compiled, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
