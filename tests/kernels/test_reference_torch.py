"""The reference against PyTorch in float64, in all that PyTorch can hold: layers, packed sequences, losses, optimizers.

It knows of no kernel and no layer of ours. Without PyTorch these tests are shown as skipped.
"""

import numpy as np
import pytest

from fastlstm.kernels import reference

torch = pytest.importorskip("torch", reason="needs PyTorch, which is what it compares with")

LAYERS = {
    "rnn-tanh": ("rnn", torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn-relu": ("rnn", torch.nn.RNN, {"nonlinearity": "relu"}),
    "lstm": ("lstm", torch.nn.LSTM, {}),
    "lstm-projected": ("lstm", torch.nn.LSTM, {"proj_size": 2}),
    "gru": ("gru", torch.nn.GRU, {}),
}
OPTIMIZERS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd-momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.03}),
    "sgd-nesterov": ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop-momentum": ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.03, "momentum": 0.7}),
    "adam": ("Adam", {}),
    "adam-decayed": ("Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.03}),
    "adamw": ("AdamW", {}),
    "adamw-decayed": ("AdamW", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
}


def assert_same(got, wanted, tolerance=1e-12):
    wanted = wanted.detach().numpy()
    assert got.shape == wanted.shape
    assert np.linalg.norm(got - wanted) <= tolerance * np.linalg.norm(wanted)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, num_layers, bidirectional, bias, packed):
    cell, layer_type, options = LAYERS[name]
    torch.manual_seed(0)
    layer = layer_type(3, 4, num_layers, bias=bias, bidirectional=bidirectional, dtype=torch.float64, **options)
    x = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    widths = {"lstm": (4, 4), "lstm-projected": (2, 4)}.get(name, (4,))
    state = [
        torch.randn(num_layers * (1 + bidirectional), 4, width, dtype=torch.float64, requires_grad=True) for width in widths
    ]
    lengths = [4, 6, 1, 3] if packed else None
    pack, unpack = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
    given = pack(x, lengths, enforce_sorted=False) if packed else x
    out, state_n = layer(given, tuple(state) if cell == "lstm" else state[0])
    if packed:
        out, _ = unpack(out, total_length=6)
    results = [out, *(state_n if cell == "lstm" else [state_n])]
    dresults = [torch.randn_like(result) for result in results]
    torch.autograd.backward(results, dresults)

    arrays, dstate_n = ([part.detach().numpy() for part in parts] for parts in (state, dresults[1:]))
    params = {key: weight.detach().numpy() for key, weight in layer.named_parameters()}
    got, got_n, saved = reference.stack_forward(
        cell,
        x.detach().numpy(),
        params,
        arrays if cell == "lstm" else arrays[0],
        num_layers=num_layers,
        bidirectional=bidirectional,
        lengths=lengths,
        nonlinearity=options.get("nonlinearity", "tanh"),
    )
    dx, dstate_0, dparams = reference.stack_backward(saved, dresults[0].numpy(), dstate_n if cell == "lstm" else dstate_n[0])
    for ours, wanted in zip([got, *(got_n if cell == "lstm" else [got_n])], results, strict=True):
        assert_same(ours, wanted)
    for ours, given in zip(dstate_0 if cell == "lstm" else [dstate_0], state, strict=True):
        assert_same(ours, given.grad)
    assert_same(dx, x.grad)
    assert set(dparams) == set(params)
    for key, weight in layer.named_parameters():
        assert_same(dparams[key], weight.grad)


def test_losses():
    torch.manual_seed(0)
    functional = torch.nn.functional
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    pred = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    target, targets = torch.randn(4, 3, 2, dtype=torch.float64), torch.randint(0, 5, (7,))
    for ours, theirs, given, wanted in (
        (reference.softmax_cross_entropy, functional.cross_entropy, logits, targets),
        (reference.mean_squared_error, functional.mse_loss, pred, target),
        (reference.mean_absolute_error, functional.l1_loss, pred, target),
    ):
        loss, grad = ours(given.detach().numpy(), wanted.numpy())
        value = theirs(given, wanted)
        (value_grad,) = torch.autograd.grad(value, given)
        assert loss == pytest.approx(value.item(), rel=1e-13)
        assert_same(grad, value_grad)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    kind, options = OPTIMIZERS[name]
    torch.manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    ours = theirs.detach().numpy().copy()
    optimizer = getattr(torch.optim, kind)([theirs], **options)
    memory = [np.zeros_like(ours) for _ in range(1 if kind == "SGD" else 2)]
    for step in range(1, 7):
        theirs.grad = torch.randn(4, 3, dtype=torch.float64)
        theirs.grad[0] = 0.0  # an element that never has a gradient keeps a second moment of 0
        counted = {"step": step} if kind.startswith("Adam") else {}
        ours, *memory = getattr(reference, kind.lower())(ours, theirs.grad.numpy(), *memory, **counted, **options)
        optimizer.step()
        assert_same(ours, theirs, 1e-13)
