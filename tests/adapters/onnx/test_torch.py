"""PyTorch's networks through ONNX: what torch.onnx writes is loaded, and torch's weights leave again by `export`."""

import copy
import io
import warnings

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import torch
from torch import nn

import fastlstm
from fastlstm.adapters import onnx as adapter
from tests.adapters.onnx.models import by_runtime


class Network(nn.Module):
    """Recurrent layers and a linear head on every step, the last step, or the last states."""

    def __init__(self, rnn, head, scores=False):
        super().__init__()
        self.rnn, self.head, self.scores = rnn, head, scores
        self.linear = nn.Linear(rnn.hidden_size * (1 + rnn.bidirectional), 3)

    def forward(self, x, *state):
        out, state = self.rnn(x, *([tuple(state)] if len(state) == 2 else state))
        if self.head == "last":
            out = out[:, -1] if self.rnn.batch_first else out[-1]
        elif self.head == "states":
            h = state[0] if isinstance(state, tuple) else state
            out = torch.cat([h[-2], h[-1]], 1) if self.rnn.bidirectional else h[-1]
        out = self.linear(torch.relu(out))
        if self.scores:
            out = torch.log_softmax(out, -1)
        return out, *(state if isinstance(state, tuple) else (state,))


class Language(nn.Module):
    """An embedding, an LSTM with dropout and a head."""

    def __init__(self, cell=nn.LSTM):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.rnn = cell(6, 8, num_layers=2, dropout=0.5)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(8, 11)

    def forward(self, ids, *state):
        state = (tuple(state) if len(state) == 2 else state[0]) if state else None
        out, state = self.rnn(self.dropout(self.embedding(ids)), state)
        return self.head(self.dropout(out)), *(state if isinstance(state, tuple) else (state,))


class Packed(nn.Module):
    """Sequences of unequal lengths."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 8, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, h = self.rnn(packed)
        return nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0], h


NETWORKS = {
    "lstm": lambda: Network(nn.LSTM(4, 8, num_layers=2), "steps"),
    "lstm last": lambda: Network(nn.LSTM(4, 8, 2, batch_first=True, bidirectional=True, dropout=0.3), "last", scores=True),
    "gru states": lambda: Network(nn.GRU(4, 8, num_layers=2, bidirectional=True), "states"),
    "gru state": lambda: Network(nn.GRU(4, 8, num_layers=2, batch_first=True), "steps"),
    "lstm state": lambda: Network(nn.LSTM(4, 8, bias=False), "last"),
    "rnn": lambda: Network(nn.RNN(4, 8, num_layers=2, bidirectional=True), "states"),
    "relu": lambda: Network(nn.RNN(4, 8, nonlinearity="relu", bias=False), "steps"),
    "language": Language,
}


def made(name):
    """A network with weights, and a maker of its inputs for sizes of time and batch."""
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()

    def inputs(steps, batch):
        generator = torch.Generator().manual_seed(steps)
        if name == "language":
            given = [torch.randint(11, (steps, batch), generator=generator)]
        else:
            given = [torch.randn(*((batch, steps) if net.rnn.batch_first else (steps, batch)), 4, generator=generator)]
        states = 2 if name in ("language", "lstm state") else int(name == "gru state")
        count = net.rnn.num_layers * (1 + net.rnn.bidirectional)
        return [*given, *(torch.randn(count, batch, 8, generator=generator) for _ in range(states))]

    return net, inputs


def assert_as_torch(run, net, inputs, atol=1e-5):
    with torch.no_grad():
        wanted = net(*inputs)
    got = run(dict(zip(run.inputs, inputs, strict=True)))
    for found, expected in zip(got.values(), wanted, strict=True):
        assert found.shape == tuple(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", NETWORKS)
def test_torchscript(name):
    net, inputs = made(name)
    given = inputs(5, 2)
    names = ["x", "h", "c"][: len(given)]
    axes = {"x": {0: "first", 1: "second"}} | {part: {1: "batch"} for part in names[1:]}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, tuple(given), file, dynamo=False, input_names=names, dynamic_axes=axes)
    run = adapter.load(file.getvalue())
    assert {step.node.op for step in run._plan._steps} & {"RNN", "LSTM", "GRU"}
    for steps, batch in ((5, 2), (7, 3), (1, 1)):
        assert_as_torch(run, net, inputs(steps, batch))


def test_torchscript_packed():
    torch.manual_seed(0)
    net = Packed().eval()
    x, file = torch.randn(3, 5, 4), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (x, torch.tensor([3, 5, 1])),
            file,
            dynamo=False,
            input_names=["x", "lengths"],
            dynamic_axes={"x": {0: "batch", 1: "time"}, "lengths": {0: "batch"}},
        )
    run = adapter.load(file.getvalue())
    for lengths in ([3, 5, 1], [5, 2, 2], [5, 5, 5]):
        assert_as_torch(run, net, (x, torch.tensor(lengths)))


@pytest.mark.parametrize("name", ["lstm last", "gru states", "language", "rnn"])
def test_dynamo(name):
    pytest.importorskip("onnxscript")
    net, inputs = made(name)
    given = inputs(5, 2)
    # The exporter keeps the number of steps that it saw; a simple RNN it even writes out step by step.
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0 if net.rnn.batch_first else 1: batch}, *([tuple({1: batch} for _ in given[1:])] if given[1:] else []))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(net, tuple(given), dynamo=True, verbose=False, dynamic_shapes=shapes)
    run = adapter.load(program.model_proto)
    for count in (2, 7, 1):
        assert_as_torch(run, net, inputs(5, count))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"), [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("LSTM", {}), ("LSTM", {"bias": False}), ("GRU", {})]
)
def test_from_torch_to_onnxruntime(tmp_path, kind, options, bidirectional, batch_first):
    """PyTorch -> fastlstm -> ONNX -> onnxruntime."""
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": batch_first, **options}
    theirs, ours = getattr(nn, kind)(5, 16, **options), getattr(fastlstm, kind)(5, 16, **options)
    ours.load_state_dict(theirs.state_dict())
    adapter.export(ours, tmp_path / "a.onnx")
    x = torch.randn(3, 30, 5)
    states = [torch.randn(2 * (1 + bidirectional), 3 if batch_first else 30, 16) for _ in range(1 + (kind == "LSTM"))]
    for parts in ((), states):
        with torch.no_grad():
            out, state = theirs(x, *([tuple(parts)] if len(parts) == 2 else parts))
        wanted = [out, *(state if kind == "LSTM" else (state,))]
        inputs = {"x": x.numpy()} | {f"{name}_0": part.numpy() for name, part in zip("hc", parts, strict=False)}
        for found, expected in zip(by_runtime(str(tmp_path / "a.onnx"), inputs).values(), wanted, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_a_language_model_from_torch_to_onnxruntime(tmp_path, cell):
    torch.manual_seed(0)
    theirs = Language(getattr(nn, cell)).eval()
    ours = fastlstm.LanguageModel(11, cell.lower(), embedding_size=6, hidden_size=8, num_layers=2)
    ours.load_state_dict(theirs.state_dict())
    adapter.export(ours, tmp_path / "a.onnx")
    ids = torch.randint(11, (12, 4))
    with torch.no_grad():
        wanted = theirs(ids)
    for found, expected in zip(by_runtime(str(tmp_path / "a.onnx"), {"ids": ids.numpy()}).values(), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_network_from_torch_and_back():
    """torch.onnx -> load -> the same numbers after the module has changed: the file is a copy."""
    net, inputs = made("lstm")
    file, before = io.BytesIO(), copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, tuple(inputs(5, 2)), file, dynamo=False, input_names=["x"])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    assert_as_torch(adapter.load(file.getvalue()), before, inputs(5, 2))
