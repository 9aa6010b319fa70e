"""Losses, gradients and weights that are no finite numbers: training stops before they do harm."""

import math

import numpy as np
import pytest

import fastlstm
from fastlstm.training import checkpoint
from fastlstm.training.update import DivergedError
from tests.support.training import VALID, Stop, stream, trainer_in


def broken(model, at, what):
    """Makes a model's step give a number that is none, once."""
    train_batch = model.train_batch
    calls = []

    def train(*arguments, **options):
        loss, state = train_batch(*arguments, **options)
        calls.append(1)
        if len(calls) == at and what == "gradient":
            next(iter(model.grads.values())).flat[0] = np.inf
        return (float("nan") if len(calls) == at and what == "loss" else loss), state

    model.train_batch = train


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_stops_before_the_step(tmp_path, what):
    once = trainer_in(None)
    once.fit(stream(), epochs=1)
    trainer = trainer_in(tmp_path)
    length = len(stream())
    broken(trainer.model, length + 3, what)
    with pytest.raises(DivergedError, match=rf"step {length + 3}: try a learning rate below 0\.05") as caught:
        trainer.fit(stream(), epochs=3)
    assert caught.value.step == length + 3
    assert caught.value.checkpoint == tmp_path / checkpoint.LAST
    assert str(tmp_path) in str(caught.value)
    assert np.isfinite(np.concatenate([array.ravel() for array in trainer.model.params.values()])).all()
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), progress=False)
    assert resumed.steps == length
    for name, array in once.model.params.items():
        assert (resumed.model.params[name] == array).all(), name


def test_after_a_diverged_step_the_next_is_sound():
    trainer = trainer_in(None)
    batches = list(stream())
    trainer.step(*batches[0])
    model, good = trainer.model, trainer.model.state_dict()
    broken_weight(model)
    with pytest.raises(DivergedError, match="step 2"):
        trainer.step(*batches[1])
    model.load_state_dict(good)
    assert trainer.step(*batches[2]) > 0
    assert trainer.steps == 2


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = trainer_in(tmp_path, callbacks=[Stop(30, lambda: broken_weight(trainer.model))], checkpoint_every=0.0)
    with pytest.raises(DivergedError, match="weight is not finite in step 30"):
        trainer.fit(stream(), epochs=3)
    assert checkpoint.read_checkpoint(tmp_path / checkpoint.LAST)[1]["steps"] == 29


def broken_weight(model):
    weights = model.state_dict()
    weights["head.bias" if "head.bias" in weights else "head.weight"].flat[0] = -np.inf
    model.load_state_dict(weights)


def test_a_validation_loss_that_is_not_finite_stops(tmp_path):
    trainer = trainer_in(tmp_path)
    trainer._judge = lambda data, stop: {"loss": float("nan")}
    with pytest.raises(DivergedError, match="validation loss is nan"):
        trainer.fit(stream(), stream(VALID))


def test_a_huge_loss_has_an_infinite_perplexity():
    trainer = trainer_in(None)
    trainer.model.eval_batch = lambda *_, **__: ({"loss": 1e6, "count": 1}, None)
    assert trainer.evaluate(stream())["perplexity"] == math.inf
    trainer.fit(stream(), stream(VALID))
    assert trainer.history[-1]["valid_perplexity"] is None
