"""A small model, its text, trainers with all that a resumed run must restore, and what it means that two runs are the same."""

import os

import numpy as np
import pytest

import fastlstm
from fastlstm import optim
from fastlstm.training.state import Callback

IDS = np.random.Generator(np.random.Philox(key=3)).integers(0, 7, 1500)
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def language_model(**changes):
    options = {"cell": "gru", "hidden_size": 8, "num_layers": 2, "dropout": 0.2, "seed": 1, **changes}
    return fastlstm.LanguageModel(7, **options)


def stream(ids=IDS[:1000], batch_size=4, seq_len=10):
    return fastlstm.TokenStream(ids, batch_size=batch_size, seq_len=seq_len)


VALID = IDS[1000:]


def trainer_in(folder, **changes):
    """A trainer with everything that a resumed run must restore: dropout, moments, a schedule with a memory."""
    schedule = optim.Plateau(factor=0.5, patience=0)
    return fastlstm.Trainer(
        changes.pop("model", None) or language_model(),
        fastlstm.Adam(lr=0.05),
        0.5,
        schedule,
        folder,
        progress=False,
        **changes,
    )


def assert_same_run(one, other):
    """Everything that decides how two trainers go on is the same, to the bit."""
    for name, array in one.model.state_dict().items():
        assert other.model.state_dict()[name].tobytes() == array.tobytes(), name
    moments = other.optimizer.state_arrays()
    assert moments.keys() == one.optimizer.state_arrays().keys()
    for name, array in one.optimizer.state_arrays().items():
        assert moments[name].tobytes() == array.tobytes(), name
    assert other.optimizer.config == one.optimizer.config
    assert other.optimizer.steps == one.optimizer.steps
    assert other.model.random_state == one.model.random_state
    assert other.schedule.state == one.schedule.state
    assert (other.steps, other.epoch, other.batch, other.best_loss) == (one.steps, one.epoch, one.batch, one.best_loss)
    assert without_times(other.history) == without_times(one.history)


def without_times(history):
    times = ("seconds", "tokens_per_second")
    return [{name: value for name, value in record.items() if name not in times} for record in history]


class Stop(Callback):
    """Does something after a certain step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, trainer, loss):
        return self.action() if trainer.steps == self.step else None


def series():
    rng = np.random.Generator(np.random.Philox(key=4))
    inputs = rng.standard_normal((20, 6, 2)).astype(np.float32)
    return inputs, rng.integers(1, 7, 20)
