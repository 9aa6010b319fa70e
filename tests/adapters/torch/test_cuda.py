"""The drop-ins on a CUDA device: on a simulated one, with tensors in host memory standing for the device's; and on a real one.

The simulation has no streams: what is looked at is that all work is given to the one that torch's would be.
"""

import shutil
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs PyTorch, which is what it serves")

import torch
from torch.autograd import gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm.adapters.torch.modules as adapter
from fastlstm.adapters.torch import cuda as _torch_cuda
from fastlstm.adapters.torch import serve
from fastlstm.kernels.device import cuda
from fastlstm.runtime import cuda as engines
from tests.adapters.torch.test_modules import CELLS, LAYERS, TOLERANCE, assert_same, error, flat, leaf, twins

STREAM = 7
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which builds CUDA kernels for the CPU")
needs_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and PyTorch and CuPy for it")


@pytest.fixture
def device(monkeypatch):
    """A simulated one, on which torch's current stream is `STREAM` and all work must be done."""
    from tests.cuda.simulator.device import simulated

    with simulated() as made:
        monkeypatch.setattr(_torch_cuda, "current", lambda x: (0, STREAM))
        for name in ("launch", "multiply", "copy", "zeros", "empty", "graph", "upload", "queue", "mark", "wait"):
            monkeypatch.setattr(made, name, watched(made, getattr(made, name)))
        yield made


def watched(device, method):
    def inside(*arguments, **options):
        assert device.stream == STREAM
        return method(*arguments, **options)

    return inside


def options_of(name):
    return {"num_layers": 2, "bidirectional": True} if name in LAYERS else {}


def inputs_of(name, dtype):
    if name in CELLS:
        return [torch.randn(3, n, dtype=dtype) for n in (4, 5, 5)[: 3 if name == "LSTMCell" else 2]]
    return [torch.randn(5, 3, 4, dtype=dtype), *(torch.randn(4, 3, 5, dtype=dtype) for _ in range(1 + (name == "LSTM")))]


@needs_compiler
@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_on_a_device_are_torchs(name, dtype, device):
    """One by one, then as a graph; other weights each time."""
    torch.manual_seed(0)
    ours, theirs = twins(name, 4, 5, dtype=dtype, **options_of(name))
    for _ in range(3):
        tensors = inputs_of(name, dtype)
        assert_same(ours, theirs, dtype, tensors, 0)
        assert_same(ours, theirs, dtype, tensors[:1], 0)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.data.add_(0.1)
            b.data.add_(0.1)
    assert device.launched
    assert device.runs > 0


@needs_compiler
def test_nothing_is_fetched_and_inference_needs_no_gradients(device):
    from tests.cuda.simulator.device import Array

    ours, theirs = twins("GRU", 4, 5, batch_first=True)
    x, before = torch.randn(3, 6, 4), Array.fetched
    with torch.no_grad():
        for _ in range(3):
            assert error(ours(x)[0], theirs(x)[0]) < 1e-6
    with torch.inference_mode():
        assert error(ours(x[0])[0], theirs(x[0])[0]) < 1e-6
    assert Array.fetched == before


@needs_compiler
def test_each_stream_has_buffers_of_its_own(device, monkeypatch):
    layer, x = adapter.RNN(4, 5), torch.randn(3, 2, 4)
    first = layer(x)[0]
    monkeypatch.setattr(_torch_cuda, "current", lambda x: (0, STREAM + 1))
    with pytest.raises(AssertionError):
        layer(x)  # on the other stream, which the simulated device is told not to expect
    assert [place for _, _, place in serve._cores[layer]] == [(0, STREAM)]
    monkeypatch.setattr(_torch_cuda, "current", lambda x: None)
    assert error(layer(x)[0], first) < 1e-6
    assert len(serve._cores[layer]) == 2


@needs_compiler
def test_second_passes_and_derivatives(device):
    ours, theirs = twins("LSTM", 4, 5, dtype=torch.float64)
    x, grads = torch.randn(3, 2, 4, dtype=torch.float64), []
    for module in (ours, theirs):
        loss = module(x)[0].square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        grads.append([parameter.grad for parameter in module.parameters()])
    assert max(error(a, b) for a, b in zip(*grads, strict=True)) < 1e-10
    small = adapter.GRU(2, 2, dtype=torch.float64)
    assert gradgradcheck(lambda x: small(x)[0], leaf(torch.randn(2, 2, 2, dtype=torch.float64)))


@needs_compiler
def test_dropout_is_the_same_by_torchs_operations(device):
    layer, x, slopes = adapter.LSTM(4, 8, 2, dropout=0.5, dtype=torch.float64), torch.randn(4, 3, 4, dtype=torch.float64), []
    for create in (False, True):
        torch.manual_seed(1)
        given = leaf(x)
        slopes += torch.autograd.grad(layer(given)[0].square().sum(), given, create_graph=create)
    assert error(slopes[0], slopes[1].detach()) < 1e-10


def test_what_a_moment_forbids_is_no_reason_to_leave_a_layer_as_it_is(monkeypatch):
    monkeypatch.setenv(_torch_cuda.SWITCH, "1")
    monkeypatch.setattr(_torch_cuda, "_missing", lambda index: None)
    monkeypatch.setattr(_torch_cuda, "_capturing", lambda: False)
    assert _torch_cuda.elsewhere() is None
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    assert _torch_cuda.obstacle(torch.device("cuda", 0), torch.float32) is None
    assert "autocast" in _torch_cuda.elsewhere()
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(_torch_cuda, "_capturing", lambda: True)
    assert "captured" in _torch_cuda.elsewhere()
    assert "captured" in serve._elsewhere(SimpleNamespace(is_cpu=False))
    assert serve._elsewhere(torch.zeros(1)) is None


def test_why_a_device_is_not_served(monkeypatch):
    place = torch.device("cuda", 0)
    monkeypatch.delenv(_torch_cuda.SWITCH, raising=False)
    assert "FASTLSTM_TORCH_CUDA=1" in _torch_cuda.obstacle(place, torch.float32)
    monkeypatch.setenv(_torch_cuda.SWITCH, "1")
    assert _torch_cuda.obstacle(torch.device("mps"), torch.float32).startswith("tensors are on the device mps")
    assert "bfloat16" in _torch_cuda.obstacle(place, torch.bfloat16)

    def none(index):
        raise cuda.Unavailable("CuPy is missing")

    monkeypatch.setattr(cuda, "device", none)
    monkeypatch.setattr(engines, "engines", {})
    _torch_cuda._missing.cache_clear()
    assert _torch_cuda.obstacle(place, torch.float32) == "device is 'cuda:0': CuPy is missing"
    _torch_cuda._missing.cache_clear()


@needs_device
@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_real_device(name, dtype, monkeypatch):
    pytest.importorskip("cupy", reason="needs CuPy")
    monkeypatch.setenv(_torch_cuda.SWITCH, "1")
    ours, theirs = (module.to("cuda") for module in twins(name, 64, 64, dtype=dtype, **options_of(name)))
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            for _ in range(3):
                x = torch.randn(*(() if name in CELLS else (20,)), 16, 64, dtype=dtype)
                found = [device_run(module, x) for module in (ours, theirs)]
                for a, b in zip(*found, strict=True):
                    assert error(a, b) < TOLERANCE[dtype]
    places = [place for _, _, place in serve._cores[ours]]
    assert len(places) == 2
    assert None not in places
    if name in LAYERS:
        packed = pack_padded_sequence(torch.randn(4, 3, 64, dtype=dtype, device="cuda"), [4, 3, 1])
        with pytest.warns(UserWarning, match="packed batches"):
            assert error(flat(ours(packed))[0], flat(theirs(packed))[0]) < TOLERANCE[dtype]


def device_run(module, x):
    """As `run`, on the device, with the same random weights of the loss."""
    x = x.to("cuda").requires_grad_()
    module.zero_grad()
    results = flat(module(x))
    generator = torch.Generator().manual_seed(0)
    sum((r * torch.randn(r.shape, generator=generator, dtype=r.dtype).to("cuda")).sum() for r in results).backward()
    return [part.cpu() for part in (*results, x.grad, *(parameter.grad for parameter in module.parameters()))]
