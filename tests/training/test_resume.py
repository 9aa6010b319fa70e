"""Interruption, and runs that go on bit for bit after a stop or a kill."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import optim
from fastlstm.models.series import SequenceRegressor
from fastlstm.text.tokens import CharTokenizer
from fastlstm.training import checkpoint, saving
from fastlstm.training.progress import Interrupts
from tests.support.training import (
    IDS,
    POSIX,
    VALID,
    Stop,
    assert_same_run,
    language_model,
    series,
    stream,
    trainer_in,
    without_times,
)


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
    real = saving.Files.save

    def save(self):
        monkeypatch.setattr(saving.Files, "save", real)
        os.kill(os.getpid(), signal.SIGINT)
        real(self)

    monkeypatch.setattr(saving.Files, "save", save)
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
sys.path.insert(0, {root!r})
from fastlstm import Callback
from tests.support.training import VALID, stream, trainer_in
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
    code = VICTIM.format(root=str(Path(__file__).parents[2]), folder=folder)
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
    assert resumed.state.job.patience == 3


def test_a_finished_run_trains_on(tmp_path):
    once = trainer_in(None)
    once.fit(stream(), epochs=3)
    trainer_in(tmp_path).fit(stream(), epochs=1)
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), progress=False)
    resumed.fit(epochs=2)
    assert_same_run(once, resumed)


def test_nothing_is_left_of_a_finished_run(tmp_path):
    trainer = trainer_in(tmp_path)
    trainer.fit(stream(), stream(VALID), epochs=2)
    for arguments in ((), (stream(), stream(VALID))):
        resumed = fastlstm.Trainer.resume(tmp_path, stream(), stream(VALID), progress=False)
        assert resumed.fit(*arguments) == trainer.history
        assert_same_run(trainer, resumed)
    assert len(resumed.fit(epochs=1)) == 3  # a fit of its own
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), progress=False)
    assert len(resumed.fit(stream(IDS[1:1001]))) == 4  # other data are another fit


def test_nothing_is_left_of_a_run_that_patience_ended(tmp_path):
    trainer = trainer_in(tmp_path, model=language_model(dropout=0.0))
    trainer.optimizer.lr = trainer.state.base_lr = 1e-12
    trainer.fit(stream(), stream(VALID), epochs=9, patience=1)
    ended = trainer.epoch
    assert ended < 9
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), stream(VALID), progress=False)
    resumed.fit()
    assert resumed.epoch == ended


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


class Moving:
    """An optimizer of somebody's own, with a state of its own."""

    def __init__(self):
        self.lr, self.steps, self._mean = 0.1, 0, {}

    def step(self, params, grads, *, scale=1.0):
        self.steps += 1
        with params.edit() as views:
            for name, grad in grads.items():
                self._mean[name] = 0.9 * self._mean.get(name, 0) + scale * grad
                views[name][...] -= self.lr * self._mean[name]

    def state_arrays(self):
        return {f"mean.{name}": array for name, array in self._mean.items()}

    def load_state_arrays(self, arrays):
        self._mean = {name.removeprefix("mean."): np.array(array) for name, array in arrays.items()}


class MyAdam(fastlstm.Adam):
    pass


class MyPlateau(fastlstm.Plateau):
    pass


class MyRegressor(fastlstm.SequenceRegressor):
    pass


def my_regressor():
    return MyRegressor(1, 1, hidden_size=4, seed=0)


@pytest.mark.parametrize(
    ("part", "make"),
    [("optimizer", Moving), ("optimizer", MyAdam), ("schedule", MyPlateau), ("model", my_regressor)],
)
def test_a_part_of_ones_own_class_is_asked_for_by_its_argument(part, make, tmp_path):
    parts = {"model": language_model(), part: make()}
    waves = np.random.default_rng(0).standard_normal((8, 5, 1)).astype("f4")
    data = stream() if part != "model" else fastlstm.Batches(waves, waves[:, 0])
    trainer = fastlstm.Trainer(**parts, progress=False, checkpoint_dir=tmp_path)
    trainer.fit(data)
    with pytest.raises(ValueError, match=rf"last\.safetensors.* your own making.* give one like it \({part}=...\)"):
        fastlstm.Trainer.resume(tmp_path, data)
    resumed = fastlstm.Trainer.resume(tmp_path, data, progress=False, **{part: make()})
    resumed.checkpoint_dir = trainer.checkpoint_dir = None
    one, other = (trainer.fit(data, epochs=1) for trainer in (trainer, resumed))
    assert without_times(one) == without_times(other)


def test_loading_warns_of_nothing_that_its_writer_chose(tmp_path, recwarn):
    with pytest.warns(UserWarning, match="does nothing here"):
        model = fastlstm.LanguageModel(7, hidden_size=4, num_layers=1, dropout=0.5, seed=0)
    fastlstm.Trainer(model, progress=False, checkpoint_dir=tmp_path, tokenizer=CharTokenizer("abcdefg")).fit(stream())
    recwarn.clear()
    assert fastlstm.Trainer.resume(tmp_path, stream()).model.config == model.config
    assert fastlstm.load(tmp_path).model.config == model.config
    assert not recwarn.list
    with pytest.warns(UserWarning, match="does nothing here"):
        fastlstm.GRU(2, 3, dropout=0.5)


def test_a_part_that_is_given_and_does_not_fit_is_told_by_name(tmp_path):
    trainer = fastlstm.Trainer(language_model(), schedule=fastlstm.Plateau(), progress=False, checkpoint_dir=tmp_path)
    trainer.fit(stream())
    wrong = {
        "model": fastlstm.LanguageModel(7, num_layers=3, seed=0),
        "optimizer": fastlstm.SGD(0.1),
        "schedule": fastlstm.Constant(),
    }
    for name, part in wrong.items():
        with pytest.raises(ValueError, match=rf"^{name}: does not fit the checkpoint .*last\.safetensors: ") as told:
            fastlstm.Trainer.resume(tmp_path, stream(), **{name: part})
        assert not isinstance(told.value, fastlstm.FileError)


def test_parts_that_cannot_be_saved_are_refused_before_the_training(tmp_path):
    class Plain:
        lr = 0.1

        def step(self, params, grads):
            pass

    message = "optimizer: expected .* that can be saved.*, got Plain, which has no state_arrays, load_state_arrays, steps"
    with pytest.raises(TypeError, match=message):
        fastlstm.Trainer(language_model(), Plain(), checkpoint_dir=tmp_path)
    trainer = fastlstm.Trainer(language_model(), Plain(), progress=False)
    with pytest.raises(TypeError, match=message):
        trainer.save(tmp_path)


def test_a_kill_while_the_history_is_written_loses_no_line(tmp_path, monkeypatch):
    """A run whose last checkpoint says that all is done is not gone on with, so all else has to be there before it."""

    def killed(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_lines", killed)
        with pytest.raises(RuntimeError, match="killed"):
            trainer_in(tmp_path, checkpoint_every=0.0).fit(stream(), stream(VALID), epochs=1)
    resumed = fastlstm.Trainer.resume(tmp_path, stream(), stream(VALID), progress=False)
    assert resumed.epoch == 0
    resumed.fit()
    assert resumed.epoch == 1
    lines = (tmp_path / checkpoint.HISTORY).read_text().splitlines()
    assert without_times(map(json.loads, lines)) == without_times(resumed.history)


def test_a_step_taken_while_a_checkpoint_is_written_is_not_in_it(tmp_path, monkeypatch):
    """As by another thread; the state that is carried from batch to batch lies where each step overwrites it."""
    trainer, ids = trainer_in(None), IDS[:48].reshape(12, 4)
    trainer.step(ids, ids)
    write = checkpoint.write_tensors

    def beside(*arguments):
        trainer.step(ids, ids)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_tensors", beside)
    trainer.save(tmp_path / "first.safetensors")
    monkeypatch.undo()
    found, record = checkpoint.read_checkpoint(tmp_path / "first.safetensors")
    assert record["steps"] == 1
    other = trainer_in(None)
    other.step(ids, ids)
    other.save(tmp_path / "other.safetensors")
    for name, array in checkpoint.read_checkpoint(tmp_path / "other.safetensors")[0].items():
        np.testing.assert_array_equal(found[name], array)
