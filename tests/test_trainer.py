"""The trainer: steps, fits, early stop, divergence, interruption, and runs that go on bit for bit after a kill."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastlstm
from fastlstm import checkpoint, keeper, optim, progress
from fastlstm.fitting import UNLIMITED, Callback
from fastlstm.progress import Interrupts, Progress, Status
from fastlstm.series import SequenceClassifier, SequenceRegressor
from fastlstm.trainer import DivergedError

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
    trainer = fastlstm.Trainer(
        language_model(), fastlstm.Adam(lr=0.1), schedule=lambda step: 1 / (1 + step), progress=False
    )
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
    monkeypatch.setattr(keeper, "_SECONDS_APART", apart)
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


def test_bad_arguments_of_the_trainer():
    with pytest.raises(ValueError, match="clip_norm: expected a positive number or None, got 0"):
        fastlstm.Trainer(language_model(), clip_norm=0)
    with pytest.raises(TypeError, match="model: expected a model such as fastlstm.LanguageModel, got LSTM, which has no tr"):
        fastlstm.Trainer(fastlstm.LSTM(2, 3))


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    trainer_in(tmp_path).fit(stream())
    other = trainer_in(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds a run already.*Trainer\.resume"):
        other.fit(stream())
    assert other.steps == 0


# Other models


def series():
    rng = np.random.Generator(np.random.Philox(key=4))
    inputs = rng.standard_normal((20, 6, 2)).astype(np.float32)
    return inputs, rng.integers(1, 7, 20)


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
    assert trainer._state is None, "sequences that do not follow on each other carry nothing"


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


# Divergence


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


# Interruption and resuming


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_to_the_bit(tmp_path, number):
    once = trainer_in(tmp_path / "once")
    once.fit(stream(), stream(VALID), epochs=3)
    handler = signal.getsignal(number)
    trainer = trainer_in(tmp_path / "run", callbacks=[Stop(37, lambda: os.kill(os.getpid(), number))])
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 37 .*Trainer\.resume"):
        trainer.fit(stream(), stream(VALID), epochs=3)
    assert signal.getsignal(number) is handler
    resumed = fastlstm.Trainer.resume(tmp_path / "run", stream(), stream(VALID), progress=False)
    assert (resumed.steps, resumed.batch) == (37, 37 - len(stream()))
    resumed.fit()
    assert_same_run(once, resumed)
    lines = (tmp_path / "run" / checkpoint.HISTORY).read_text().splitlines()
    assert without_times(map(json.loads, lines)) == without_times(once.history)


@POSIX
def test_a_signal_during_validation(tmp_path):
    once = trainer_in(None)
    once.fit(stream(), stream(VALID), epochs=2)
    trainer = trainer_in(tmp_path)
    evaluate = trainer.model.eval_batch

    def interrupted(*arguments, **options):
        trainer.model.eval_batch = evaluate
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments, **options)

    trainer.model.eval_batch = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(stream(), stream(VALID), epochs=2)
    assert (trainer.epoch, trainer.batch) == (0, len(stream()))
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), stream(VALID), progress=False)
    resumed.fit(stream(), stream(VALID), epochs=2)
    assert_same_run(once, resumed)


@POSIX
def test_without_a_folder_an_interrupted_fit_goes_on_in_the_process():
    once = trainer_in(None)
    once.fit(stream(), epochs=2)
    trainer = trainer_in(None, callbacks=[Stop(5, lambda: os.kill(os.getpid(), signal.SIGINT))])
    with pytest.raises(KeyboardInterrupt, match=r"nothing is saved, but fit\(\)"):
        trainer.fit(stream(), epochs=2)
    assert trainer.fit_began == 0
    trainer.fit()
    assert trainer.fit_began == 2
    assert_same_run(once, trainer)


@POSIX
def test_a_second_signal_does_not_wait():
    def twice():
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupts.pending
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="second signal"):
        twice()


@POSIX
def test_a_signal_that_nobody_asked_for_is_not_lost():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped by a signal"), Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler

    def fail():
        with Interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


@POSIX
@pytest.mark.parametrize("limit", [{"time_limit": 1e-9, "epochs": 50}, {"epochs": 1}], ids=["time is up", "all is done"])
def test_a_signal_during_the_last_checkpoint(tmp_path, monkeypatch, limit):
    real = keeper.Keeper.save

    def save(self):
        monkeypatch.setattr(keeper.Keeper, "save", real)
        os.kill(os.getpid(), signal.SIGINT)
        real(self)

    monkeypatch.setattr(keeper.Keeper, "save", save)
    trainer = trainer_in(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="and saved"):
        trainer.fit(stream(), **limit)
    assert len(trainer.history) == 1
    assert fastlstm.Trainer.resume(tmp_path, stream()).steps == trainer.steps


def test_signals_are_left_alone_where_they_must_be():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)
    result = []
    thread = threading.Thread(target=lambda: result.append(trainer_in(None).fit(stream())))
    thread.start()
    thread.join()
    assert len(result[0]) == 1


VICTIM = """
import sys, time
sys.path.insert(0, {tests!r})
from test_trainer import Callback, VALID, stream, trainer_in
trainer = trainer_in({folder!r}, checkpoint_every=0.0)
class Slow(Callback):
    def on_step(self, trainer, loss):
        print(trainer.steps, flush=True)
        time.sleep(0.005)
trainer.callbacks.append(Slow())
trainer.fit(stream(), stream(VALID), epochs=3)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("step", [6, 30])
def test_a_killed_run_goes_on_to_the_bit(tmp_path, step):
    once = trainer_in(tmp_path / "once")
    once.fit(stream(), stream(VALID), epochs=3)
    folder = str(tmp_path / "run")
    code = VICTIM.format(tests=os.path.dirname(__file__), folder=folder)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, encoding="ascii") as process:
        for line in process.stdout:
            if int(line) >= step:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    resumed = fastlstm.Trainer.resume(folder, stream(), stream(VALID), progress=False)
    assert step - 2 <= resumed.steps < 3 * len(stream())
    assert resumed.batch > 0, "it was killed within an epoch"
    resumed.fit(stream(), stream(VALID), epochs=3)
    assert_same_run(once, resumed)


def test_shuffled_batches_resume_where_they_were(tmp_path):
    inputs, lengths = series()
    data = fastlstm.Batches(inputs, inputs[:, :1], batch_size=3, lengths=lengths, seed=2)

    def make(folder, **options):
        model = SequenceRegressor(2, 2, cell="lstm", hidden_size=4, num_layers=1, seed=0)
        schedule = optim.CosineWarmup(3, 40)
        return fastlstm.Trainer(model, fastlstm.Adam(lr=0.02), None, schedule, folder, False, **options)

    once = make(None)
    once.fit(data, epochs=4)
    copies = []
    trainer = make(None, callbacks=[Stop(10, lambda: copies.append(trainer.save(tmp_path / "copy.safetensors")))])
    trainer.fit(data, epochs=4)
    resumed = fastlstm.Trainer.resume(copies[0], data, progress=False)
    assert (resumed.epoch, resumed.batch, resumed.clip_norm) == (1, 3, None)
    resumed.fit(data, epochs=4)
    assert_same_run(once, resumed)


def test_a_resumed_fit_can_be_given_another_length(tmp_path):
    trainer = trainer_in(tmp_path, callbacks=[Stop(30, lambda: True)])
    trainer.fit(stream(), stream(VALID), epochs=5, patience=9)
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), stream(VALID), progress=False)
    resumed.fit(stream(), stream(VALID), epochs=2, patience=3)
    assert resumed.epoch == 2
    assert resumed._job.patience == 3


def test_a_finished_run_trains_on(tmp_path):
    once = trainer_in(None)
    once.fit(stream(), epochs=3)
    trainer_in(tmp_path).fit(stream(), epochs=1)
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), progress=False)
    resumed.fit(epochs=2)
    assert_same_run(once, resumed)


def test_steps_by_hand_are_saved_with_their_state(tmp_path):
    batches = list(stream())
    for cell in ("lstm", "rnn"):
        once, trainer = (trainer_in(None, model=language_model(cell=cell)) for _ in range(2))
        for batch in batches[:6]:
            once.step(*batch)
        for batch in batches[:3]:
            trainer.step(*batch)
        path = trainer.save(tmp_path / cell)
        assert path == tmp_path / cell / checkpoint.LAST
        resumed = fastlstm.Trainer.resume(path, stream(), progress=False)
        for batch in batches[3:6]:
            resumed.step(*batch)
        assert_same_run(once, resumed)


def test_other_data_are_refused(tmp_path):
    trainer = trainer_in(tmp_path, callbacks=[Stop(30, lambda: True)])
    trainer.fit(stream(), stream(VALID), epochs=5)
    with pytest.raises(ValueError, match=r"train: these are not the data .*: .*sha256 was"):
        fastlstm.Trainer.resume(tmp_path, stream(IDS[1:1001]), stream(VALID))
    with pytest.raises(ValueError, match=r"valid: .* had some such data, now there are none"):
        fastlstm.Trainer.resume(tmp_path, stream())
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), stream(VALID), progress=False)
    with pytest.raises(ValueError, match="batch_size was 4, is 2"):
        resumed.fit(stream(batch_size=2), stream(VALID))
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), stream(VALID), progress=False)
    resumed.fit(epochs=1)


def test_parts_of_ones_own_making_must_be_given_again(tmp_path):
    def schedule(step):
        return 0.5

    trainer = fastlstm.Trainer(language_model(), schedule=schedule, progress=False, checkpoint_dir=tmp_path)
    trainer.fit(stream())
    with pytest.raises(ValueError, match=r"schedule: .* of your own making"):
        fastlstm.Trainer.resume(tmp_path, stream())
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), schedule=schedule, progress=False)
    assert resumed.schedule is schedule

    class Own(fastlstm.SGD):
        config = None

    trainer = fastlstm.Trainer(language_model(), Own(lr=0.1), progress=False)
    path = trainer.save(tmp_path / "own")
    with pytest.raises(ValueError, match=r"optimizer: .* of your own making"):
        fastlstm.Trainer.resume(path, stream())
    model = language_model(seed=9)
    resumed = fastlstm.Trainer.resume(path, stream(), model=model, optimizer=Own(lr=0.1), progress=False)
    assert resumed.model is model
    assert (model.params["head.weight"] == trainer.model.params["head.weight"]).all()


# What is shown


class Terminal:
    """A stderr that says it is a terminal."""

    encoding = "ascii"

    def __init__(self):
        self.text = ""

    def write(self, text):
        text.encode("ascii")
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


STATUS = Status(
    epoch=2, epochs=5, step=120, loss=1.5, perplexity=4.48169, rate=45678.0, unit="tokens", fraction=0.25, left=65.0
)


def test_status_lines():
    assert STATUS.line() == "epoch 2/5  step 120  loss 1.5000  perplexity 4.48  45.7k tokens/s  left 1:05"
    other = Status(
        epoch=2, epochs=None, step=3, loss=0.5, perplexity=None, rate=0.0, unit="steps", fraction=0.5, left=math.inf
    )
    assert other.line() == "epoch 2  step 3  loss 0.5000  left ?"


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(True) as progress:
        assert progress.due()
        progress.show(STATUS)
        assert not progress.due()
    assert re.search(r" 25%\|##.*\| epoch 2/5  loss 1\.5000  ppl 4\.48  45\.7k tokens/s  left 1:05", terminal.text)


def test_fit_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fastlstm.Trainer(language_model()).fit(stream(), epochs=2)
    assert "epoch 2/2" in terminal.text
    assert "100%" in terminal.text


def test_lines_elsewhere(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_FIRST_LINE_SECONDS", 1e9)
    fastlstm.Trainer(language_model()).fit(stream(), epochs=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("epoch 2/2  step ")
    assert "tokens/s  left 0:00" in captured.err


def test_lines_are_rare(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(True) as progress:
        for second, due in [(0, False), (1, False), (3, True), (4, False), (12, False), (13, True)]:
            now[0] = 1000.0 + second
            assert progress.due() == due, second
            if due:
                progress.show(STATUS)
    assert capsys.readouterr().err.count("\n") == 2


def test_nothing_is_shown_where_nobody_looks(capsys, monkeypatch):
    trainer_in(None).fit(stream())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)
    fastlstm.Trainer(language_model()).fit(stream())


def test_a_closed_stderr_does_not_stop_the_training(monkeypatch):
    class Closed:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    history = fastlstm.Trainer(language_model()).fit(stream(), epochs=2)
    assert len(history) == 2
