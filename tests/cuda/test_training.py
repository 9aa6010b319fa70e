"""Training with device="cuda" on the simulated device: a step is one graph, read late, and memory may run out at any place."""

import shutil

import numpy as np
import pytest

import fastlstm
from fastlstm.runtime.arrays import as_numpy
from fastlstm.training.fit import MOST_UNREAD

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which builds CUDA kernels for the CPU")
DRAW = np.random.default_rng(0)
IDS = DRAW.integers(0, 9, 400)
X, TARGETS, LENGTHS = DRAW.normal(3, 2, (24, 5, 2)), DRAW.normal(-2, 3, (24, 2, 1)), DRAW.integers(0, 6, 24)


@pytest.fixture
def device():
    from tests.cuda.simulator.device import simulated

    with simulated() as made:
        yield made


def text_model(device):
    return fastlstm.LanguageModel(9, hidden_size=5, num_layers=2, dropout=0.1, seed=0, device=device)


def stream():
    return fastlstm.TokenStream(IDS, batch_size=4, seq_len=6)


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_a_step_is_one_graph_and_nothing_is_fetched(kind, device):
    from tests.cuda.simulator.device import Array

    if kind == "text":
        trainer = fastlstm.Trainer(text_model("cuda"), progress=False)
        batches = [(IDS[k : k + 12].reshape(6, 2), IDS[k + 1 : k + 13].reshape(6, 2), None) for k in range(6)]
    else:
        trainer = fastlstm.Trainer(fastlstm.SequenceRegressor(2, 1, 2, hidden_size=4, seed=0, device="cuda"), progress=False)
        trainer.model.fit_normalization(X, TARGETS)
        batches = [(X[k : k + 3].swapaxes(0, 1), TARGETS[k : k + 3], LENGTHS[k : k + 3]) for k in range(6)]
    for inputs, targets, lengths in batches[:3]:
        trainer._apply(inputs, targets, lengths, kind == "text")
    trainer._settle()
    graphs, runs, alone, fetched = device.graphs, device.runs, device.alone, Array.fetched
    for inputs, targets, lengths in batches[3:]:
        trainer._apply(inputs, targets, lengths, kind == "text")
    assert device.graphs == graphs
    assert device.runs == runs + 3
    assert device.alone == alone, "work beside the graph"
    assert Array.fetched == fetched
    assert device.launched[-1] == "adam"


def histories(train, valid, make, **options):
    """Of the same fit on both devices; times are left out."""
    for where in ("cpu", "cuda"):
        trainer = fastlstm.Trainer(make(where), fastlstm.Adam(0.01), progress=False, **options)
        trainer.fit(train(), valid(), epochs=2)
        yield [{k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second")} for record in trainer.history]


def test_a_fit_has_the_history_of_the_cpu(device):
    def numbers(where):
        return fastlstm.SequenceRegressor(2, 1, 2, hidden_size=4, seed=0, device=where)

    def panel():
        return fastlstm.Batches(X, TARGETS, lengths=LENGTHS, batch_size=5, seed=0)

    for train, make in ((stream, text_model), (panel, numbers)):
        cpu, cuda = histories(train, train, make)
        assert len(cpu) == 2
        for one, two in zip(cpu, cuda, strict=True):
            assert one.keys() == two.keys()
            for name, value in one.items():
                assert two[name] == pytest.approx(value, rel=2e-5), name


def test_outcomes_are_read_in_time(device):
    """Each step's loss where somebody asks for it, and never later than some tens of steps."""
    losses, read = [], []

    class Told(fastlstm.Callback):
        def on_step(self, trainer, loss):
            losses.append(loss)

    trainer = fastlstm.Trainer(text_model("cuda"), callbacks=[Told()], progress=False)
    trainer.fit(stream(), epochs=1)
    assert len(losses) == len(stream())
    assert trainer.history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-12)

    trainer = fastlstm.Trainer(text_model("cuda"), progress=False)
    settle = trainer._settle
    trainer._settle = lambda: read.append(trainer.steps) or settle()
    data = fastlstm.TokenStream(IDS[:150], batch_size=2, seq_len=2)
    trainer.fit(data, epochs=1)
    assert read == [1, *range(1 + MOST_UNREAD, len(data), MOST_UNREAD), len(data)]


def test_a_step_that_cannot_be_taken_is_named_though_it_is_found_later(device):
    class Break(fastlstm.Callback):
        def on_epoch(self, trainer, record):
            with trainer.model.edit() as params:
                params["head.bias"][0] = np.inf

    trainer = fastlstm.Trainer(text_model("cuda"), callbacks=[Break()], progress=False)
    with pytest.raises(fastlstm.DivergedError, match="the loss is nan"):
        trainer.fit(stream(), epochs=2)
    assert trainer.steps == trainer.optimizer.steps == len(stream())
    assert (trainer.epoch, trainer.batch) == (1, 0)
    assert np.isfinite(as_numpy(trainer.model.params["rnn.weight_hh_l0"])).all()


class Short:
    """A stream that has fewer batches than it says, or that fails."""

    carries_state = True

    def __init__(self, error=None):
        self.data, self.error = stream(), error

    def __len__(self):
        return len(self.data)

    def describe(self):
        return self.data.describe()

    def batches(self, epoch, start=0):
        for number, batch in enumerate(self.data.batches(epoch, start), start):
            if number == 9:
                if self.error:
                    raise self.error
                return
            yield batch


def test_steps_are_counted_however_their_data_end(device):
    wanted = fastlstm.Trainer(text_model("cuda"), progress=False)
    losses = [wanted.step(*batch) for batch in list(stream().batches(0))[:9]]
    trainer = fastlstm.Trainer(text_model("cuda"), progress=False)
    trainer.fit(Short(), epochs=1)
    assert trainer.history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    trainer = fastlstm.Trainer(text_model("cuda"), progress=False)
    with pytest.raises(OSError, match="disk"):
        trainer.fit(Short(OSError("disk")), epochs=1)
    assert trainer.steps == trainer.optimizer.steps == trainer.batch == 9
    assert trainer.state.job.loss_sum == pytest.approx(np.sum(losses) * 24, rel=1e-12)
    assert trainer.state.job.targets == 9 * 24


def test_memory_that_runs_out_anywhere_leaves_all_as_it_was(device):
    inputs, targets = IDS[:12].reshape(6, 2), IDS[1:13].reshape(6, 2)
    calm = fastlstm.Trainer(text_model("cuda"), progress=False)
    wanted = [calm.step(inputs, targets) for _ in range(3)]
    trainer = fastlstm.Trainer(text_model("cuda"), progress=False)
    before, room, errors = as_numpy(trainer.model.params.flat), 0, []

    def attempt():
        device.room = room
        try:
            return trainer.step(inputs, targets)
        except MemoryError as error:
            errors.append(str(error))

    while (loss := attempt()) is None:
        assert "bytes" in errors[-1]
        assert np.array_equal(as_numpy(trainer.model.params.flat), before)
        assert trainer.steps == trainer.optimizer.steps == 0
        trainer.model.dropout_calls = 0
        room = room * 3 // 2 + 100
    assert len(errors) > 5
    device.room = 1 << 40
    assert [loss, *(trainer.step(inputs, targets) for _ in range(2))] == wanted
