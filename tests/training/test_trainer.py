"""The trainer: steps, fits, early stop, other models, callbacks and bad arguments."""

import json
import math
import time

import numpy as np
import pytest

import fastlstm
from fastlstm import optim
from fastlstm.models.series import SequenceClassifier, SequenceRegressor
from fastlstm.text.tokens import CharTokenizer
from fastlstm.training import checkpoint, saving
from fastlstm.training.fit import UNLIMITED
from fastlstm.training.state import Callback
from fastlstm.training.update import DivergedError
from tests.support.training import IDS, VALID, Stop, assert_same_run, language_model, series, stream, trainer_in

# Steps


def test_steps_learn_and_carry_the_state():
    model = language_model(dropout=0.0)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=0.05), progress=False)
    seen = []
    train_batch = model.train_batch

    def spy(inputs, targets, state=None, *, lengths=None):
        seen.append(None if state is None else np.array(state))
        return train_batch(inputs, targets, state, lengths=lengths)

    model.train_batch = spy
    inputs, targets = next(iter(stream()))
    losses = [trainer.step(inputs, targets) for _ in range(30)]
    assert all(isinstance(loss, float) for loss in losses)
    assert losses[0] == pytest.approx(math.log(7), rel=0.1)
    assert losses[-1] < 0.8 * losses[0]
    assert seen[0] is None
    assert seen[1].any()
    assert trainer.steps == 30

    trainer.reset_state()
    trainer.step(inputs, targets)
    assert seen[-1] is None
    trainer.step(inputs, targets)
    trainer.step(np.ascontiguousarray(inputs[:, :2]), np.ascontiguousarray(targets[:, :2]))
    assert seen[-1] is None, "rows of another batch size are other rows"


def test_the_default_optimizer():
    trainer = fastlstm.Trainer(language_model(), progress=False)
    assert trainer.optimizer.config["type"] == "Adam"
    assert trainer.optimizer.lr == 1e-3


@pytest.mark.parametrize(("clip_norm", "clipped"), [(1e-3, True), (1e3, False), (None, False)])
def test_clipping_and_plain_descent(clip_norm, clipped):
    model = language_model(dropout=0.0, dtype="float64")
    before = model.state_dict()
    trainer = fastlstm.Trainer(model, fastlstm.SGD(lr=0.5), clip_norm, progress=False)
    trainer.step(*next(iter(stream())))
    norm = optim.grad_norm(model.grads)
    scale = clip_norm / (norm + 1e-6) if clipped else 1.0
    for name, grad in model.grads.items():
        np.testing.assert_allclose(model.params[name], before[name] - 0.5 * scale * grad, rtol=1e-12, atol=1e-15)


def test_a_schedule_multiplies_the_base_rate():
    trainer = fastlstm.Trainer(language_model(), fastlstm.Adam(lr=0.1), schedule=lambda step: 1 / (1 + step), progress=False)
    rates = []
    for batch in list(stream())[:3]:
        trainer.step(*batch)
        rates.append(trainer.optimizer.lr)
    assert rates == [0.1, 0.1 * (1 / 2), 0.1 * (1 / 3)]


def test_a_seed_decides_the_dropout():
    inputs, targets = next(iter(stream()))

    def first_losses(seed):
        trainer = fastlstm.Trainer(language_model(dropout=0.5), seed=seed, progress=False)
        return [trainer.step(inputs, targets) for _ in range(2)]

    assert first_losses(5) == first_losses(5)
    assert first_losses(5) != first_losses(6)


# Fits


def test_fit_returns_and_writes_the_history(tmp_path):
    train, valid = stream(), stream(VALID)
    trainer = trainer_in(tmp_path / "run")
    history = trainer.fit(train, valid, epochs=3)
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert [record["step"] for record in history] == [len(train), 2 * len(train), 3 * len(train)]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["perplexity"] == pytest.approx(math.exp(history[-1]["loss"]))
    assert history[-1]["tokens_per_second"] > 0
    lines = (tmp_path / "run" / checkpoint.HISTORY).read_text().splitlines()
    assert [json.loads(line) for line in lines] == history

    results = trainer.evaluate(valid)
    assert history[-1]["valid_loss"] == results["loss"]
    assert results["bits_per_token"] == pytest.approx(results["loss"] / math.log(2))
    assert results["count"] == valid.num_tokens
    assert trainer.best_loss == min(record["valid_loss"] for record in history)


def test_fit_is_the_sum_of_its_steps():
    by_hand, by_epochs = (trainer_in(None) for _ in range(2))
    by_epochs.fit(stream(), epochs=2)
    for _ in range(2):
        losses = [by_hand.step(*batch) for batch in stream()]
        by_hand.schedule.update(float(np.mean(losses)))
        by_hand.reset_state()
    for name, array in by_hand.model.params.items():
        assert (by_epochs.model.params[name] == array).all(), name


def test_each_epoch_has_its_own_order(monkeypatch):
    asked = []
    batches = fastlstm.TokenStream.batches

    def spy(self, epoch=0, start=0):
        asked.append((epoch, start))
        return batches(self, epoch, start)

    monkeypatch.setattr(fastlstm.TokenStream, "batches", spy)
    trainer = trainer_in(None)
    trainer.fit(stream(), epochs=2)
    trainer.fit(stream(), epochs=1)
    assert asked == [(0, 0), (1, 0), (2, 0)]


def test_a_second_fit_goes_on():
    twice, once = (trainer_in(None) for _ in range(2))
    once.fit(stream(), epochs=3)
    twice.fit(stream(), epochs=1)
    twice.fit(stream(), epochs=2)
    assert_same_run(once, twice)


def test_patience_ends_a_fit_that_does_not_improve(tmp_path):
    trainer = trainer_in(tmp_path)
    losses = iter([2.0, 1.0, 1.5, 0.9, 1.2, 0.95, 0.8])
    trainer._judge = lambda data, stop: {"loss": next(losses), "count": 1}
    history = trainer.fit(stream(), stream(VALID), epochs=10, patience=2)
    assert [record["valid_loss"] for record in history] == [2.0, 1.0, 1.5, 0.9, 1.2, 0.95]
    assert trainer.best_loss == 0.9
    best = checkpoint.read_checkpoint(tmp_path / checkpoint.BEST)[1]
    last = checkpoint.read_checkpoint(tmp_path / checkpoint.LAST)[1]
    assert (best["epoch"], last["epoch"]) == (4, 6)
    assert len(last["history"]) == 6


@pytest.mark.parametrize("apart", [0.0, 1e9])
def test_short_epochs_are_not_saved_one_by_one(tmp_path, monkeypatch, apart):
    monkeypatch.setattr(saving, "_SECONDS_APART", apart)
    written = []
    write = checkpoint.write_checkpoint

    def spy(path, arrays, record):
        written.append((path.stem, record["epoch"]))
        write(path, arrays, record)

    monkeypatch.setattr(checkpoint, "write_checkpoint", spy)
    trainer = trainer_in(tmp_path)
    losses = iter([5.0, 4.0, 3.0, float("nan")])
    trainer._judge = lambda data, stop: {"loss": next(losses), "count": 1}
    with pytest.raises(DivergedError):
        trainer.fit(stream(), stream(VALID), epochs=5)
    if apart:
        assert written == [("best", 1), ("last", 1), ("best", 3)]
    else:
        assert written == [(name, epoch) for epoch in (1, 2, 3) for name in ("best", "last")]
    lines = (tmp_path / checkpoint.HISTORY).read_text().splitlines()
    assert len(lines) == 3
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), stream(VALID), progress=False)
    resumed.fit(epochs=3)
    lines = (tmp_path / checkpoint.HISTORY).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_other_validation_data_start_a_new_best():
    trainer = trainer_in(None)
    trainer.fit(stream(), stream(VALID))
    trainer.best_loss = -1.0
    trainer.fit(stream(), stream(VALID))
    assert trainer.best_loss == -1.0
    trainer.fit(stream(), stream(VALID[50:]))
    assert trainer.best_loss > 0


def test_callbacks_hear_and_stop():
    steps, epochs = [], []

    class Hear(Callback):
        def on_step(self, trainer, loss):
            steps.append(loss)

    def after_epoch(trainer, record):
        epochs.append(record["epoch"])
        return record["epoch"] == 2

    trainer = trainer_in(None, callbacks=[Hear(), after_epoch, Callback()])
    trainer.fit(stream(), epochs=5)
    assert epochs == [1, 2]
    assert len(steps) == 2 * len(stream())


@pytest.mark.parametrize("last_batch", [False, True])
def test_a_callback_stops_at_a_step(last_batch):
    step = len(stream()) if last_batch else 10
    trainer = trainer_in(None, callbacks=[Stop(step, lambda: True)])
    trainer.fit(stream(), stream(VALID), epochs=5)
    assert trainer.steps == step
    (record,) = trainer.history
    if last_batch:
        assert (trainer.epoch, trainer.batch, record["epoch"]) == (1, 0, 1)
        assert "partial" not in record
    else:
        assert (trainer.epoch, trainer.batch) == (0, 10)
        assert record["partial"] is True
        assert record["epoch"] == round(10 / len(stream()), 4)


def test_time_ends_a_fit_and_it_goes_on(tmp_path):
    trainer = trainer_in(tmp_path, callbacks=[Stop(7, lambda: time.sleep(0.05))])
    trainer.fit(stream(), stream(VALID), epochs=UNLIMITED, time_limit=0.05)
    assert 1 < trainer.steps <= 7
    assert trainer.history[-1]["partial"]
    assert trainer.pace.elapsed >= 0.05
    trainer.fit(epochs=2)
    once = trainer_in(None)
    once.fit(stream(), stream(VALID), epochs=2)
    for name, array in once.model.params.items():
        assert (trainer.model.params[name] == array).all(), name


def test_time_ends_a_fit_between_epochs():
    train = stream(IDS[:44])
    assert len(train) == 1
    trainer = trainer_in(None, callbacks=[lambda trainer, record: time.sleep(0.02)])
    trainer.fit(train, epochs=UNLIMITED, time_limit=0.1)
    assert 1 < len(trainer.history) < 10
    assert not any("partial" in record for record in trainer.history)


def test_time_that_runs_out_in_a_callback_loses_nothing(tmp_path):
    train = stream(IDS[:44])
    trainer = trainer_in(tmp_path, callbacks=[lambda trainer, record: time.sleep(0.2 * (record["epoch"] == 2))])
    trainer.fit(train, epochs=UNLIMITED, time_limit=0.1)
    saved = fastlstm.Trainer.resume(tmp_path, train)
    assert saved.steps == trainer.steps
    assert saved.history == trainer.history


def test_a_long_validation_is_cut_when_time_is_up(monkeypatch):
    trainer = trainer_in(None)
    judged = []
    evaluate = trainer.model.eval_batch

    def slow(*arguments, **options):
        judged.append(1)
        time.sleep(0.3)
        return evaluate(*arguments, **options)

    trainer.model.eval_batch = slow
    trainer.fit(stream(), stream(VALID), epochs=UNLIMITED, time_limit=1e-9)
    assert 1 <= len(judged) < len(stream(VALID))
    assert trainer.history[-1]["valid_count"] == 40 * len(judged)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train": None}, TypeError, "train: expected data"),
        ({"train": [1, 2]}, TypeError, "train: expected data .* got list, which has no batches"),
        ({"valid": 3}, TypeError, "valid: expected data .* got int"),
        ({"epochs": 0}, ValueError, "epochs is 0; expected at least 1"),
        ({"epochs": 1.5}, TypeError, "epochs is 1.5 .float.; expected an integer"),
        ({"epochs": True}, TypeError, "epochs is True; expected an integer"),
        ({"patience": 1}, ValueError, "patience is 1, but valid is None"),
        ({"valid": "valid", "patience": 0}, ValueError, "patience is 0; expected at least 1"),
        ({"valid": "valid", "patience": 2.5}, TypeError, "patience is 2.5"),
        ({"time_limit": 0}, ValueError, "time_limit: expected a positive"),
    ],
)
def test_bad_arguments_of_fit(options, error, message):
    options = {"train": stream(), **options}
    if options.get("valid") == "valid":
        options["valid"] = stream(VALID)
    with pytest.raises(error, match=message):
        trainer_in(None).fit(**options)


def test_empty_data_are_refused():
    class Empty:
        carries_state = False

        def __len__(self):
            return 0

        def batches(self, epoch, start=0):
            return iter(())

        def describe(self):
            return {}

    with pytest.raises(ValueError, match="train: there are no batches"):
        trainer_in(None).fit(Empty())
    with pytest.raises(ValueError, match="data: there are no batches"):
        trainer_in(None).evaluate(Empty())


def test_a_tokenizer_whose_vocabulary_is_told_by_a_method():
    class Pieces:
        config, encode = None, list

        def vocab_size(self):
            return 9

    assert fastlstm.Trainer(language_model(), tokenizer=Pieces()).tokenizer.vocab_size() == 9


def test_bad_arguments_of_the_trainer():
    with pytest.raises(ValueError, match="clip_norm: expected a positive number or None, got 0"):
        fastlstm.Trainer(language_model(), clip_norm=0)
    with pytest.raises(TypeError, match="model: expected a model such as fastlstm.LanguageModel, got LSTM, which has no tr"):
        fastlstm.Trainer(fastlstm.LSTM(2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": fastlstm.Adam}, r"optimizer: expected .*, got the class Adam; make one of it: Adam\(...\)"),
        ({"optimizer": "adam"}, "optimizer: expected .*, got str, which has no step, lr"),
        ({"schedule": fastlstm.Plateau}, "schedule: expected .*, got the class Plateau"),
        ({"schedule": 0.5}, "schedule: expected .*, got float"),
        ({"callbacks": print}, "callbacks: expected a sequence .*, got builtin_function_or_method"),
        ({"callbacks": "print"}, "callbacks: expected a sequence .*, got str"),
        ({"callbacks": [print, fastlstm.Callback]}, r"callbacks\[1\]: expected .*, got the class Callback"),
        ({"callbacks": [7]}, r"callbacks\[0\]: expected .*, got int"),
        ({"seed": 1.9}, "seed is 1.9"),
        ({"seed": True}, "seed is True"),
        ({"clip_norm": "1"}, "clip_norm is '1'"),
        ({"clip_norm": 10**400}, "clip_norm is too large for a float"),
        ({"checkpoint_every": 10**5000}, "checkpoint_every is too large for a float"),
        ({"checkpoint_every": "60"}, "checkpoint_every is '60'"),
        ({"checkpoint_every": -1}, "checkpoint_every: expected a number from 0 of seconds, got -1"),
        ({"checkpoint_every": float("nan")}, "checkpoint_every: expected a number from 0 of seconds, got nan"),
        ({"tokenizer": "char"}, "tokenizer: expected .*, got str, which has no config"),
        ({"tokenizer": CharTokenizer("abcdefghi")}, "tokenizer has 9 tokens, the model 7"),
    ],
)
def test_arguments_of_the_wrong_kind(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fastlstm.Trainer(language_model(), **arguments)


def test_a_model_is_no_class_and_a_time_limit_a_number():
    with pytest.raises(TypeError, match="model: expected .*, got the class LanguageModel"):
        fastlstm.Trainer(fastlstm.LanguageModel)
    with pytest.raises(TypeError, match="time_limit is '60'"):
        trainer_in(None).fit(stream(), time_limit="60")


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    trainer_in(tmp_path).fit(stream())
    other = trainer_in(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds a run already.*Trainer\.resume"):
        other.fit(stream())
    assert other.steps == 0


# Other models


def test_a_regressor_with_shuffled_batches_and_lengths():
    inputs, lengths = series()
    targets = inputs.mean(axis=1, keepdims=True)
    data = fastlstm.Batches(inputs, targets, batch_size=8, lengths=lengths, seed=2)
    model = SequenceRegressor(2, 2, cell="gru", hidden_size=8, num_layers=1, seed=0)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=0.02), progress=False)
    history = trainer.fit(data, data, epochs=15)
    assert history[-1]["loss"] < history[0]["loss"]
    assert "perplexity" not in history[-1]
    assert {"loss", "count", "mean_absolute_error"} == trainer.evaluate(data).keys()
    assert trainer.step(*next(iter(data))[:2]) > 0
    assert trainer.state.carried is None, "sequences that do not follow on each other carry nothing"


def test_a_classifier():
    inputs, _ = series()
    data = fastlstm.Batches(inputs, (inputs[:, -1, 0] > 0).astype(int), batch_size=7, seed=2)
    model = SequenceClassifier(2, 2, cell="lstm", hidden_size=8, num_layers=1, seed=0)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=0.05), progress=False)
    trainer.fit(data, epochs=15)
    results = trainer.evaluate(data)
    assert results["accuracy"] > 0.8
    assert results["count"] == 20


def test_evaluating_does_not_disturb_a_carried_state():
    plain, judged = (trainer_in(None) for _ in range(2))
    for batch in list(stream())[:4]:
        plain.step(*batch)
        judged.step(*batch)
        judged.evaluate(stream(VALID))
    assert_same_run(plain, judged)
