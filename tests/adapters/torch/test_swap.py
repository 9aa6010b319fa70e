"""Whole models: swapped and swapped back, measured, copied, pickled, moved, shared with processes, compiled, exported."""

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest

pytest.importorskip("torch", reason="needs PyTorch, which is what it serves")

import torch
import torch.multiprocessing
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm.adapters.torch.modules as adapter
from fastlstm.adapters.torch import serve, swap
from tests.adapters.torch.test_modules import CELLS, LAYERS, error, flat, twins


class Model(nn.Module):
    """Layers of all kinds, some of them deep inside."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(5, 8, 2, batch_first=True, bidirectional=True)
        self.parts = nn.ModuleList([nn.Sequential(nn.Linear(16, 6), nn.ReLU()), nn.GRU(6, 7, batch_first=True)])
        self.cell = nn.LSTMCell(7, 7)
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x):
        out, _ = self.encoder(x)
        out, _ = self.parts[1](self.parts[0](out))
        return self.norm(self.cell(out[:, -1])[0])


@pytest.fixture
def said():
    serve._said.clear()
    yield
    serve._said.clear()


def test_a_model_is_swapped_and_swapped_back():
    torch.manual_seed(0)
    model, x = Model(), torch.randn(3, 9, 5)
    twin = copy.deepcopy(model)
    parameters, text, optimizer = [*model.parameters()], repr(model), torch.optim.SGD(model.parameters(), lr=0.01)
    report = adapter.accelerate(model)
    assert report.swapped == ["encoder", "parts.1", "cell"]
    assert report.kept == {}
    assert str(report).splitlines() == ["encoder: swapped", "parts.1: swapped", "cell: swapped"]
    assert type(model.encoder) is adapter.LSTM
    assert repr(model) == text
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == list(twin.state_dict())
    steps = torch.optim.SGD(twin.parameters(), lr=0.01)
    for _ in range(3):
        results = []
        for one, its in ((model, optimizer), (twin, steps)):
            its.zero_grad()
            out = one(x)
            out.square().sum().backward()
            its.step()
            results.append(out)
        assert error(*results) < 1e-4
    assert adapter.accelerate(model).kept == dict.fromkeys(report.swapped, "is one of fastlstm's already")
    assert adapter.restore(model) == report.swapped
    assert type(model.encoder) is nn.LSTM
    assert adapter.restore(model) == []
    assert error(model.eval()(x), twin.eval()(x)) < 1e-4


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_the_module_itself_may_be_a_layer(name):
    layer = getattr(nn, name)(5, 6)
    assert adapter.accelerate(layer).swapped == [""]
    assert type(layer) is getattr(adapter, name)
    assert isinstance(layer, getattr(nn, name))
    adapter.restore(layer)
    assert type(layer) is getattr(nn, name)


def test_what_stays_and_why():
    class Own(nn.LSTM):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    class Base(nn.RNNBase):
        pass

    class Sealed(nn.GRU):
        def __init_subclass__(cls):
            raise TypeError("sealed")

    model = nn.ModuleDict(
        {
            "complex": nn.GRU(5, 6, dtype=torch.complex64),
            "own": Own(5, 6),
            "base": Base("GRU", 5, 6),
            "sealed": Sealed(5, 6),
            "meta": nn.RNN(5, 6, device="meta"),
            "parametrized": nn.GRU(5, 6),
            "good": nn.GRU(5, 6),
        }
    )
    parametrize.register_parametrization(model["parametrized"], "weight_hh_l0", nn.Identity())
    report = adapter.accelerate(model)
    assert report.swapped == ["good"]
    assert report.kept == {
        "complex": "tensors are complex64, and the kernels serve float32, float64, bfloat16, float16",
        "own": "Own is a class derived from torch.nn's with a forward of its own",
        "base": "Base is a class derived from none of RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell",
        "sealed": "Sealed is a class that none can be derived from: sealed",
        "meta": "tensors are on the device meta, and the kernels run on the CPU",
        "parametrized": "ParametrizedGRU is a class derived from torch.nn's with a weight_hh_l0 of its own",
    }
    assert "complex: kept, tensors are complex64" in str(report)
    assert str(adapter.accelerate(nn.Linear(2, 3))) == "no recurrent layer found"


class Mine(nn.LSTM):
    """A class as forecasting libraries have it: more methods, torch's forward pass."""

    def __init__(self, size, options=None):
        super().__init__(size, 6, 2)
        self.options = options

    def last(self, x):
        return self(x)[0][-1]


class MineOfPlain(Mine):
    pass


class MyCell(nn.GRUCell):
    pass


@pytest.mark.parametrize("kind", [Mine, MineOfPlain, MyCell])
def test_layers_of_classes_derived_from_torchs(kind, monkeypatch):
    layer, calls, by_kernels = kind(5) if kind is not MyCell else kind(5, 6), [], serve.call
    monkeypatch.setattr(serve, "call", lambda *arguments: calls.append(1) or by_kernels(*arguments))
    text, x = repr(layer), torch.randn(4, 3, 5)[: None if kind is not MyCell else 1].squeeze(0)
    want = flat(layer(x))
    assert adapter.accelerate(layer).swapped == [""]
    assert adapter.accelerate(layer).kept == {"": "is one of fastlstm's already"}
    assert isinstance(layer, kind)
    assert repr(layer) == text
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    twins = [layer, copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer, 0)), loaded]
    for each in twins:
        assert type(each) is type(layer)
        assert max(error(a, b) for a, b in zip(flat(each(x)), want, strict=True)) < 1e-6
    if kind is not MyCell:
        assert error(layer.last(x), want[0][-1]) < 1e-6
    assert len(calls) == 5 + (kind is not MyCell)
    assert adapter.restore(layer) == [""]
    assert type(layer) is kind


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_quantization_says_that_it_passes_over_the_drop_ins(said):
    model = nn.Sequential(nn.LSTM(4, 5))
    adapter.accelerate(model)
    with pytest.warns(UserWarning, match="LSTM is passed over by torch's quantization.*restore before it"):
        torch.ao.quantization.quantize_dynamic(model, dtype=torch.qint8)
    adapter.restore(model)
    quantized = torch.ao.quantization.quantize_dynamic(model, dtype=torch.qint8)
    assert type(quantized[0]) is torch.ao.nn.quantized.dynamic.LSTM


def test_arguments_of_the_wrong_kind():
    for function in (adapter.accelerate, adapter.restore):
        with pytest.raises(TypeError, match="module is str; expected a torch.nn.Module"):
            function("model")
    with pytest.raises(TypeError, match="example is given without dry_run=True"):
        adapter.accelerate(nn.GRU(5, 6), example=(torch.ones(3, 4, 5),))


def everything(model):
    """What a dry run might have changed."""
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return [type(layer) for layer in model.modules()], values, torch.get_rng_state()


def test_a_dry_run_measures_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(swap, "SECONDS", 0.001)
    model = Model()
    model(torch.randn(3, 9, 5)).sum().backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    example = (torch.randn(3, 9, 5),)
    before = everything(model)
    report = adapter.accelerate(model, dry_run=True, example=example)
    after = everything(model)
    assert before[0] == after[0]
    assert all(before[1][name].equal(after[1][name]) for name in before[1])
    assert before[2].equal(after[2])
    assert model.training
    assert all(a.equal(parameter.grad) for a, parameter in zip(grads, model.parameters(), strict=True))
    assert {name: gain["shape"] for name, gain in report.gains.items()} == {
        "encoder": "input [3, 9, 5]",
        "parts.1": "input [3, 9, 6]",
        "cell": "input [3, 7]",
    }
    assert all(gain[kind] > 0 for gain in report.gains.values() for kind in ("training", "inference"))
    assert str(report).startswith("encoder: would be swapped; input [3, 9, 5]: training ")


def test_a_dry_run_without_an_example_and_with_one_that_misses_a_layer(monkeypatch):
    monkeypatch.setattr(swap, "SECONDS", 0.001)
    layers = nn.ModuleList([nn.GRU(5, 6, batch_first=True), nn.RNN(5, 6), nn.GRUCell(5, 6)])
    gains = adapter.accelerate(layers, dry_run=True).gains
    assert [gain["shape"] for gain in gains.values()] == ["input [32, 100, 5]", "input [100, 32, 5]", "input [32, 5]"]

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.GRU(5, 6), nn.GRU(5, 6)

        def forward(self, x):
            return self.used(input=pack_padded_sequence(x, [4, 2]))

    gains = adapter.accelerate(Half(), dry_run=True, example=[torch.randn(4, 2, 5)]).gains
    assert gains["used"]["shape"] == "input [6, 5] packed"
    assert gains["unused"]["shape"] == "not called by the example"


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_copies_pickles_and_files(name):
    layer = getattr(adapter, name)(5, 6)
    x = torch.randn(3, 5) if name in CELLS else torch.randn(4, 3, 5)
    want = flat(layer(x))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert type(twin) is type(layer)
        assert all(error(a, b) == 0 for a, b in zip(flat(twin(x)), want, strict=True))
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.get_parameter("weight_ih" if name in CELLS else "weight_ih_l0").zero_()
    assert error(flat(twin(x))[0], want[0]) > 0
    assert error(flat(layer(x))[0], want[0]) == 0
    plain = getattr(nn, name)(5, 6)
    plain.load_state_dict(layer.state_dict())
    assert all(error(a, b) < 1e-6 for a, b in zip(flat(plain(x)), want, strict=True))


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_moves_between_dtypes_and_devices(name, said):
    ours, theirs = twins(name, 5, 6)
    x = torch.randn(3, 5) if name in CELLS else torch.randn(4, 3, 5)
    ours(x)
    for module in (ours, theirs):
        module.double()
    assert error(flat(ours(x.double()))[0], flat(theirs(x.double()))[0]) < 1e-12
    for module in (ours, theirs):
        module.to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cells are left to torch
        assert error(flat(ours(x.bfloat16()))[0].float(), flat(theirs(x.bfloat16()))[0].float()) < 2**-6
    for module in (ours, theirs):
        module.float()
    assert error(flat(ours(x))[0], flat(theirs(x))[0]) < 1e-6
    ours.to("meta")
    with pytest.warns(UserWarning, match="meta"):
        assert flat(ours(x.to("meta")))[0].is_meta
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    assert error(flat(ours(x))[0], flat(theirs(x))[0]) < 1e-6


def _train(layer, x):
    torch.set_num_threads(1)  # as in the workers of a DataLoader: torch's own threads do not survive a fork
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x)[0].square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_memory_shared_with_processes(method):
    """Another process trains; what it does to the weights is seen here, though nothing here was told."""
    layer, x = adapter.GRU(64, 64, 2), torch.randn(40, 32, 64)
    layer.share_memory()
    before = layer(x)[0].detach()
    worker = torch.multiprocessing.get_context(method).Process(target=_train, args=(layer, x))
    worker.start()
    worker.join(timeout=120)
    assert worker.exitcode == 0
    after, plain = layer(x)[0], nn.GRU(64, 64, 2)
    plain.load_state_dict(layer.state_dict())
    assert error(after, before) > 1e-3
    assert error(after, plain(x)[0]) < 1e-5


def test_threads_are_torchs_and_as_many():
    """The kernels start no threads of their own where torch has some; with one allowed, they run on the caller's."""
    code = """
import threading, torch
from torch import nn
import fastlstm.adapters.torch as adapter
layer, x = adapter.LSTM(64, 64), torch.randn(50, 32, 64)
plain = nn.LSTM(64, 64)
plain.load_state_dict(layer.state_dict())
for threads in (2, 1, 3):
    torch.set_num_threads(threads)
    out, _ = layer(x)
    out.sum().backward()
    assert torch.allclose(out, plain(x)[0], atol=1e-5)
print([thread.name for thread in threading.enumerate() if thread.name.startswith("fastlstm")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


WORKERS = """
import threading, torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
import fastlstm, fastlstm.adapters.torch as adapter
fastlstm.set_num_threads(3)
layer, x = adapter.LSTM(64, 64), torch.randn(50, 32, 64)
want = layer(x)[0].detach()

class Data(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, k):
        torch.set_num_threads(1 + k)  # of its own accord a worker has one
        with torch.no_grad():
            out = layer(x)[0]
        torch.set_num_threads(1)  # for torch's own operations, whose threads do not survive a fork
        right = torch.allclose(out, want, atol=1e-5)
        own = [thread for thread in threading.enumerate() if thread.name.startswith("fastlstm")]
        return get_worker_info() is not None, right, bool(own)

print([[part.item() for part in batch] for batch in DataLoader(Data(), num_workers=1, multiprocessing_context="fork")])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on this system")
def test_workers_of_a_dataloader_use_as_many_threads_as_torch_says():
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[[True, True, False], [True, True, True]]\n", done.stderr


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_compiled_models_break_their_graph_and_are_right(packed):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.layer, self.after = nn.Linear(5, 5), nn.LSTM(5, 6, 2), nn.Linear(6, 2)

        def forward(self, x):
            x = torch.relu(self.before(x))
            given = pack_padded_sequence(x, [4, 3, 1]) if packed else x
            out, (h, c) = self.layer(given)
            return self.after(torch.relu(out.data if packed else out)).sum() + h.sum() + c.sum()

    model, x = Net(), torch.randn(4, 3, 5)
    twin = copy.deepcopy(model)
    adapter.accelerate(model)
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        results = []
        for one in (compiled, twin):
            one.zero_grad()
            loss = one(x)
            loss.backward()
            results.append([loss, *(parameter.grad for parameter in one.parameters())])
        assert max(error(a, b) for a, b in zip(*results, strict=True)) < 1e-5
    assert not any("falls back" in text for text in serve._said)


@pytest.mark.filterwarnings("ignore")
def test_compiled_loops_over_a_cell():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(5, 6)

        def forward(self, xs):
            h = torch.zeros(xs.shape[1], 6)
            for x in xs:
                h = self.cell(torch.tanh(x), h)
            return h

    model, xs = Loop(), torch.randn(3, 4, 5)
    twin = copy.deepcopy(model)
    adapter.accelerate(model)
    compiled = torch.compile(model, backend="aot_eager")
    assert error(compiled(xs), twin(xs)) < 1e-6
    for one in (compiled, twin):
        one(xs).square().sum().backward()
    assert error(model.cell.weight_hh.grad, twin.cell.weight_hh.grad) < 1e-5


def test_exported_models_hold_torchs_layers():
    layer, theirs = twins("GRU", 5, 6)
    program = torch.export.export(layer, (torch.randn(4, 3, 5),))
    x = torch.randn(4, 3, 5)
    assert error(program.module()(x)[0], theirs(x)[0]) < 1e-6


def test_traced_models_hold_torchs_layers(said):
    layer, theirs = twins("GRU", 5, 6)
    x = torch.randn(4, 3, 5)
    with pytest.warns(UserWarning, match="torch.jit"):
        traced = torch.jit.trace(layer, (x,))
    assert error(traced(2 * x)[0], theirs(2 * x)[0]) < 1e-6


REBOUND = """
import torch, fastlstm.adapters.torch as adapter
from torch import nn
theirs = {name: getattr(nn, name) for name in ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")}
for name in theirs:
    setattr(nn, name, getattr(adapter, name))
for name in theirs:
    layer, plain = getattr(nn, name)(3, 4), theirs[name](3, 4)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3) if name.endswith("Cell") else torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    try:
        layer(x[..., :2])
    except RuntimeError as error:
        assert not isinstance(error, RecursionError), error
    assert torch.allclose(torch.func.functional_call(layer, {}, (x,))[0], plain(x)[0], atol=1e-6)
    assert torch.allclose(torch.jit.trace(layer, (x,))(x)[0], plain(x)[0], atol=1e-6)
    assert adapter.accelerate(plain).swapped == [""]
print("done")
"""


def test_names_of_torchs_may_be_rebound_to_the_drop_ins():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", REBOUND], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr
