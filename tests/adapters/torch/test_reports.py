"""What users of PyTorch's recurrent layers have reported as wrong: the drop-ins are right, and as torch's where that is."""

import gc
import threading

import pytest

pytest.importorskip("torch", reason="needs PyTorch, which is what it serves")

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm.adapters.torch.modules as adapter
from tests.adapters.torch.test_modules import CELLS, LAYERS, assert_same, error, flat, leaf, twins

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
every_layer = pytest.mark.parametrize("name", LAYERS)
every_cell = pytest.mark.parametrize("name", CELLS)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_more_than_one_sequence_in_both_directions(layers, batch_first):
    """Wrong values from the second sequence on, or outputs left transposed."""
    ours, theirs = twins("LSTM", 5, 3, layers, bidirectional=True, batch_first=batch_first)
    assert_same(ours, theirs, torch.float32, [torch.randn(4, 2, 5)], 0)
    x = torch.randn(4, 2, 5)
    assert [part.stride() for part in flat(ours(x))] == [part.stride() for part in flat(theirs(x))]


@every_layer
def test_layers_that_differ_in_options_only(name):
    """A cached graph whose key lacks bias or dropout serves the wrong layer."""
    for options in ({"bias": False}, {"bias": True}, {"bias": True, "dropout": 0.5}, {"bias": False}):
        ours, theirs = twins(name, 5, 6, 2, **options)
        assert_same(ours.eval(), theirs.eval(), torch.float32, [torch.randn(4, 2, 5)], 0)


@pytest.mark.parametrize("part", [0, 1], ids=["h", "c"])
def test_a_loss_of_the_final_state_alone(part):
    """The backward pass wants a gradient of the outputs that nobody used."""
    ours, theirs = twins("LSTM", 5, 6, 2, bidirectional=True)
    x, grads = torch.randn(4, 2, 5), []
    for module in (ours, theirs):
        given = leaf(x)
        module(given)[1][part].square().sum().backward()
        grads.append([given.grad, *(parameter.grad for parameter in module.parameters())])
    assert max(error(a, b) for a, b in zip(*grads, strict=True)) < 1e-5


@pytest.mark.parametrize("loss", [nn.functional.mse_loss, nn.functional.l1_loss])
@every_layer
def test_training_on_a_packed_batch(name, loss):
    """Gradients missing, or a crash."""
    ours, theirs = twins(name, 5, 6, 2)
    x, grads = torch.randn(4, 3, 5), []
    for module in (ours, theirs):
        given = leaf(x)
        out = pad_packed_sequence(module(pack_padded_sequence(given, [4, 2, 1]))[0])[0]
        loss(out, torch.zeros_like(out)).backward()
        grads.append([given.grad, *(parameter.grad for parameter in module.parameters())])
    assert max(error(a, b) for a, b in zip(*grads, strict=True)) < 1e-5


@every_layer
def test_one_call_and_step_by_step(name):
    """Losses agree and gradients do not."""
    layer, x, state, outs = getattr(adapter, name)(5, 6), torch.randn(7, 2, 5), None, []
    whole = torch.autograd.grad(layer(x)[0].mean(), [*layer.parameters()])
    for step in x:
        out, state = layer(step[None], state)
        outs.append(out.mean())
    parts = torch.autograd.grad(torch.stack(outs).mean(), [*layer.parameters()])
    assert max(error(a, b) for a, b in zip(whole, parts, strict=True)) < 1e-6


@every_cell
def test_a_cell_that_is_gone_before_the_backward_pass(name):
    """'No grad accumulator'."""
    x, h = torch.randn(3, 5, requires_grad=True), torch.zeros(3, 6)

    def loss():
        cell, state = getattr(adapter, name)(5, 6), (h, h) if name == "LSTMCell" else h
        for _ in range(5):
            state = cell(x, state)
        return flat(state)[0].sum()

    made = loss()
    gc.collect()
    made.backward()
    assert x.grad.abs().sum() > 0


@every_layer
def test_packed_sequences_are_those_of_runs_of_their_own(name):
    """Padding reaches valid steps; lengths out of order, or shorter than the padded batch."""
    layer, x = getattr(adapter, name)(3, 3, 2, bidirectional=True), torch.randn(8, 3, 3)
    for lengths in ([6, 5, 3], [5, 6, 4]):
        out, ends = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        out = pad_packed_sequence(out, total_length=8)[0]
        for k, n in enumerate(lengths):
            alone, end = layer(x[:n, k : k + 1])
            assert error(out[:n, k], alone[:, 0]) < 1e-6
            assert not out[n:, k].any()
            assert max(error(a[:, k], b[:, 0]) for a, b in zip(flat(ends), flat(end), strict=True)) < 1e-6


BATCHES = {
    "more rows than there are": [3, 4],
    "fewer": [2, 1, 1],
    "a step of none": [3, 2, 0],
    "negative": [-1, 6],
    "longer steps later": [2, 3],
    "of int32": torch.tensor([3, 2], dtype=torch.int32),
    "two axes": [[3, 2]],
    "no steps": torch.zeros(0, dtype=torch.int64),
}


@pytest.mark.parametrize("case", BATCHES)
@every_layer
def test_packed_batches_that_are_none(name, case):
    """Sizes of steps that do not fit the rows, by which memory beyond them would be used: they are torch's to judge."""
    ours, theirs = twins(name, 4, 6)
    batch = PackedSequence(torch.ones(5, 4), torch.as_tensor(BATCHES[case]))
    found = []
    for module in (theirs, ours):
        try:
            found.append([part.shape for part in flat(module(batch))])
        except Exception as error:
            found.append((type(error), str(error)))
    assert found[0] == found[1]


@every_cell
def test_weights_of_a_wrong_shape(name):
    """Memory beyond a weight is read."""
    ours, theirs = twins(name, 8, 9)
    for shape in ((1, 8), (36, 1), (0, 8)):
        messages = []
        for module in (ours, theirs):
            module.weight_ih = nn.Parameter(torch.zeros(shape))
            with pytest.raises(RuntimeError) as caught:
                module(torch.zeros(1, 8))
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@every_layer
def test_many_layers(name):
    """A crash from ten or so on."""
    ours, theirs = twins(name, 8, 8, 14)
    assert_same(ours, theirs, torch.float32, [torch.randn(1, 3, 8)], 0)


@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
def test_states_that_are_no_pair(kind):
    """A misleading error, or none."""
    ours, theirs = twins(kind, 1, 10)
    h = torch.zeros(2, 10) if kind == "LSTMCell" else torch.zeros(1, 2, 10)
    x = torch.ones(2, 1) if kind == "LSTMCell" else torch.ones(3, 2, 1)
    for state in (h, (h,), (h, None), (h, h, h), torch.stack([h, h])):
        messages = []
        for module in (ours, theirs):
            with pytest.raises(Exception) as caught:  # noqa: PT011 torch's own, of many types
                module(x, state)
            messages.append((type(caught.value), str(caught.value)))
        assert messages[0] == messages[1]


@every_layer
def test_huge_and_missing_numbers(name):
    """NaN where torch has none, and none beyond the sequence that has it."""
    ours, theirs = twins(name, 4, 5)
    x = torch.randn(3, 2, 4)
    assert torch.isfinite(ours(x * 1e30)[0]).all()
    x[:, 0] = float("nan")
    assert ours(x)[0].isnan().equal(theirs(x)[0].isnan())


def test_a_large_batch_and_a_long_sequence():
    """Sizes at which other libraries' fast paths end."""
    ours, theirs = twins("LSTM", 32, 32)
    x = torch.randn(5, 6464, 32)
    assert error(ours(x)[0], theirs(x)[0]) < 1e-5
    ours, theirs = twins("LSTM", 1, 8, batch_first=True)
    with torch.no_grad():
        x = torch.randn(1, 70_000, 1)
        assert error(ours(x)[0], theirs(x)[0]) < 1e-5


def test_all_elements_dropped():
    """Infinity times zero."""
    layer = adapter.LSTM(4, 4, 2, dropout=1.0)
    out, _ = layer(torch.randn(3, 2, 4))
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


@every_layer
def test_a_graph_may_be_gone_through_by_another_thread_and_by_many(name):
    layer, x = getattr(adapter, name)(5, 6, 2), torch.randn(6, 3, 5)
    loss = layer(x)[0].square().sum()
    want, found = torch.autograd.grad(loss, [*layer.parameters()], retain_graph=True), []
    loss = layer(x)[0].square().sum()

    def back():
        found.append(torch.autograd.grad(loss, [*layer.parameters()], retain_graph=True))

    threads = [threading.Thread(target=back) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 6
    assert max(error(a, b) for each in found for a, b in zip(each, want, strict=True)) < 1e-6
