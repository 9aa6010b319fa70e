"""The layers beside those of torch.nn: values, gradients, packed sequences, names, defaults.

Without PyTorch these tests are shown as skipped.
"""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest

import fastlstm
from tests.layers.test_recurrent import every_kind, flat, small
from tests.support import cases

torch = pytest.importorskip("torch", reason="needs PyTorch, which is what it compares with")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", [kind for kind in cases.KINDS if kind != "gru-original"])
def test_same_results(kind, bidirectional, packed, dtype):
    case = small(kind, bidirectional=bidirectional, lengths=packed, resets=False, inputs=17, hidden=20)
    ours = case.layer(dtype)
    theirs = twin(case, dtype)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    given = case.data(dtype).given
    if packed:
        given.lengths[:] = np.maximum(given.lengths, 1)  # PyTorch packs no empty sequences
    leaves = {
        name: torch.from_numpy(getattr(given, name)).requires_grad_()
        for name in ("x", "h", "c")
        if getattr(given, name) is not None
    }
    x, state = leaves["x"], case.pair(SimpleNamespace(**leaves))
    if packed:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, given.lengths, enforce_sorted=False)
    out, end = theirs(x, state)
    if packed:
        out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, total_length=case.steps)
    results = flat(out, end)
    arguments = [torch.from_numpy(np.ascontiguousarray(a)) for a in (given.dout, given.dh, given.dc) if a is not None]
    torch.autograd.backward(results, arguments)

    got, state_n, backprop = ours.forward_train(given.x, case.pair(given), lengths=given.lengths)
    dx, dstate = backprop(given.dout, case.pair(given, "d"))
    pairs = {
        "results": (flat(got, state_n), results),
        "inputs": (flat(dx, dstate), [v.grad for v in leaves.values()]),
        "params": ([ours.grads[name] for name, _ in theirs.named_parameters()], [value.grad for value in theirs.parameters()]),
    }
    for name, (mine, wanted) in pairs.items():
        for k, (a, b) in enumerate(zip(mine, wanted, strict=True)):
            assert cases.error(a, b.detach().numpy()) < 5 * cases.TOLERANCE[dtype], f"{name} {k}"


def twin(case, dtype):
    options = {"nonlinearity": case.kind[4:]} if case.cell == "rnn" else {"proj_size": case.proj} if case.proj else {}
    return getattr(torch.nn, case.cell.upper())(
        case.inputs,
        case.hidden,
        case.layers,
        bias=case.bias,
        bidirectional=case.bidirectional,
        dtype=getattr(torch, dtype),
        **options,
    )


@every_kind
def test_state_dicts_go_both_ways(kind):
    for bias in (True, False):
        case = small(kind, bias=bias)
        ours, theirs = case.layer("float32"), twin(case, "float32")
        assert {name: value.shape for name, value in ours.params.items()} == {
            name: tuple(value.shape) for name, value in theirs.state_dict().items()
        }
        assert [*ours.params] == [*theirs.state_dict()]
        ours.load_state_dict(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            assert np.array_equal(ours.params[name], value.numpy())
        ours.load_state_dict({name: value.bfloat16() for name, value in theirs.state_dict().items()})
        for name, value in theirs.state_dict().items():
            assert np.array_equal(ours.params[name], value.bfloat16().float().numpy())


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_same_constructor(name):
    ours, theirs = getattr(fastlstm, name)(3, 4), getattr(torch.nn, name)(3, 4)
    for attribute in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    positional = [p for p in inspect.signature(type(ours)).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional[:2]] == ["input_size", "hidden_size"]
    for parameter in positional[2:]:
        if parameter.name != "reset_after":
            assert getattr(theirs, parameter.name) == parameter.default, parameter.name


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_dropout_of_all_is_theirs(cell):
    ours, theirs = getattr(fastlstm, cell)(3, 5, 3, dropout=1.0, seed=0), getattr(torch.nn, cell)(3, 5, 3, dropout=1.0)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    out, _, backprop = ours.forward_train(x)
    dx, _ = backprop(np.ones_like(out))
    leaf = torch.from_numpy(x).requires_grad_()
    wanted = theirs(leaf)[0]
    wanted.sum().backward()
    assert cases.error(out, wanted.detach().numpy()) < 1e-5
    assert not dx.any()
    assert not leaf.grad.any()
    for name, value in theirs.named_parameters():
        assert cases.error(ours.grads[name], value.grad.numpy()) < 1e-5, name
