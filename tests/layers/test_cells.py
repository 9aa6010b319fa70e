"""RNNCell, LSTMCell, GRUCell: the layers' bits step by step, gradients against the reference, PyTorch's habits."""

import inspect

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels import reference

KINDS = {
    "rnn-tanh": (fastlstm.RNNCell, fastlstm.RNN, {}),
    "rnn-relu": (fastlstm.RNNCell, fastlstm.RNN, {"nonlinearity": "relu"}),
    "lstm": (fastlstm.LSTMCell, fastlstm.LSTM, {}),
    "gru": (fastlstm.GRUCell, fastlstm.GRU, {}),
    "gru-original": (fastlstm.GRUCell, fastlstm.GRU, {"reset_after": False}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind, inputs=5, hidden=7, **options):
    make_cell, _, own = KINDS[kind]
    return make_cell(inputs, hidden, **(own | {"seed": 3} | options))


def layer_like(kind, cell):
    """The layer of one layer with a cell's weights."""
    _, make_layer, own = KINDS[kind]
    layer = make_layer(cell.input_size, cell.hidden_size, bias=cell.bias, dtype=cell.dtype, seed=9, **own)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    return layer


def pair(state):
    return state if isinstance(state, tuple) else (state,)


def unpair(parts):
    return tuple(parts) if len(parts) > 1 else parts[0]


def random_state(rng, kind, *shape):
    return unpair([rng.normal(size=shape) for _ in range(1 + (kind == "lstm"))])


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("batch", "inputs", "hidden", "bias"), [(1, 1, 1, True), (3, 5, 7, False), (26, 17, 33, True)])
def test_steps_have_the_bits_of_the_layer(kind, dtype, batch, inputs, hidden, bias):
    cell = make(kind, inputs, hidden, bias=bias, dtype=dtype)
    layer, rng = layer_like(kind, cell), np.random.default_rng(0)
    x = rng.normal(size=(4, batch, inputs)).astype(dtype)
    state = unpair([part.astype(dtype) for part in pair(random_state(rng, kind, batch, hidden))])
    out, final = layer(x, unpair([part[None] for part in pair(state)]))
    for t in range(4):
        trained, backprop = cell.forward_train(x[t], state)
        backprop.close()
        state = cell(x[t], state)
        assert all(np.array_equal(a, b) for a, b in zip(pair(trained), pair(state), strict=True))
        assert np.array_equal(pair(state)[0], out[t])
    assert all(np.array_equal(a, b[0]) for a, b in zip(pair(state), pair(final), strict=True))


@every_kind
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("start", ["zeros", "given"])
def test_gradients_through_three_steps(kind, bias, start):
    """Backprops of single steps in reverse are back-propagation through time."""
    cell, rng, steps, batch = make(kind, bias=bias, dtype="float64"), np.random.default_rng(1), 3, 4
    x, dout = rng.normal(size=(steps, batch, 5)), rng.normal(size=(steps, batch, 7))
    first = None if start == "zeros" else random_state(rng, kind, batch, 7)
    dlast = random_state(rng, kind, batch, 7)
    options = {"nonlinearity": "relu"} if kind == "rnn-relu" else {"reset_after": False} if kind == "gru-original" else {}
    params = {f"{name}_l0": value for name, value in cell.params.items()}
    given = None if first is None else unpair([part[None] for part in pair(first)])
    out, _, saved = reference.stack_forward(kind.split("-")[0], x, params, given, **options)
    dx, dfirst, dparams = reference.stack_backward(saved, dout, unpair([part[None] for part in pair(dlast)]))

    state, back = first, []
    for t in range(steps):
        state, backprop = cell.forward_train(x[t], state)
        assert np.allclose(pair(state)[0], out[t], rtol=1e-12, atol=1e-14)
        back.append(backprop)
    dstate = dlast
    for t in reversed(range(steps)):
        dh, *dc = pair(dstate)
        dx_t, dstate = back[t](unpair([dh + dout[t], *dc]))
        assert np.allclose(dx_t, dx[t], rtol=1e-11, atol=1e-13)
    for got, wanted in zip(pair(dstate), pair(dfirst), strict=True):
        assert np.allclose(got, wanted[0], rtol=1e-11, atol=1e-13)
    assert set(dparams) == {f"{name}_l0" for name in cell.grads}
    for name, gradient in cell.grads.items():
        assert np.allclose(gradient, dparams[f"{name}_l0"], rtol=1e-11, atol=1e-13), name


@every_kind
def test_unbatched_is_a_batch_of_one(kind):
    cell, rng = make(kind), np.random.default_rng(2)
    x, state, dstate = rng.normal(size=5), random_state(rng, kind, 7), random_state(rng, kind, 7)
    one = unpair([part[None] for part in pair(state)])
    assert all(np.array_equal(a, b[0]) for a, b in zip(pair(cell(x, state)), pair(cell(x[None], one)), strict=True))
    _, backprop = cell.forward_train(x, state)
    dx, dstate_0 = backprop(dstate)
    single = cell.grads.flat.copy()
    cell.zero_grads()
    _, backprop = cell.forward_train(x[None], one)
    dx_one, dstate_one = backprop(unpair([part[None] for part in pair(dstate)]))
    assert np.array_equal(dx, dx_one[0])
    assert np.array_equal(single, cell.grads.flat)
    assert all(np.array_equal(a, b[0]) for a, b in zip(pair(dstate_0), pair(dstate_one), strict=True))


@every_kind
def test_torch_agrees(kind):
    torch = pytest.importorskip("torch")
    if kind == "gru-original":
        pytest.skip("torch has the other form only")
    cell, rng = make(kind, dtype="float64"), np.random.default_rng(3)
    options = {"nonlinearity": "relu"} if kind == "rnn-relu" else {}
    other = getattr(torch.nn, type(cell).__name__)(5, 7, dtype=torch.float64, **options)
    assert {name: tuple(p.shape) for name, p in other.named_parameters()} == {n: p.shape for n, p in cell.params.items()}
    cell.load_state_dict(other.state_dict())
    x = torch.tensor(rng.normal(size=(4, 5)), requires_grad=True)
    parts = [torch.tensor(part, requires_grad=True) for part in pair(random_state(rng, kind, 4, 7))]
    dstate = random_state(rng, kind, 4, 7)
    theirs = other(x, unpair(parts))
    torch.autograd.backward(pair(theirs), [torch.tensor(part) for part in pair(dstate)])
    state, backprop = cell.forward_train(x, unpair(parts))
    dx, dstate_0 = backprop(dstate)
    for got, wanted in zip(pair(state), pair(theirs), strict=True):
        assert np.allclose(got, wanted.detach().numpy(), rtol=1e-12, atol=1e-14)
    assert np.allclose(dx, x.grad.numpy(), rtol=1e-11, atol=1e-13)
    for got, wanted in zip(pair(dstate_0), parts, strict=True):
        assert np.allclose(got, wanted.grad.numpy(), rtol=1e-11, atol=1e-13)
    for name, parameter in other.named_parameters():
        assert np.allclose(cell.grads[name], parameter.grad.numpy(), rtol=1e-11, atol=1e-13), name


def test_constructors_begin_as_those_of_torch():
    torch = pytest.importorskip("torch")
    for name in ("RNNCell", "LSTMCell", "GRUCell"):
        ours = [p for p in inspect.signature(getattr(fastlstm, name)).parameters.values() if p.kind != p.KEYWORD_ONLY]
        theirs = list(inspect.signature(getattr(torch.nn, name)).parameters.values())
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs[: len(ours)]]
        assert [p.name for p in theirs[len(ours) :]] == ["device", "dtype"]


def test_initialisation_is_uniform_and_seeded():
    cell = fastlstm.LSTMCell(50, 100, seed=1)
    values = cell.params.flat
    assert abs(values).max() <= 0.1
    assert abs(values).max() > 0.0999
    assert abs(values.mean()) < 1e-3
    assert abs(values.std() - 0.1 / np.sqrt(3)) < 1e-3
    assert np.array_equal(values, fastlstm.LSTMCell(50, 100, seed=1).params.flat)
    assert not np.array_equal(values, fastlstm.LSTMCell(50, 100, seed=2).params.flat)
    assert not np.array_equal(fastlstm.GRUCell(3, 4).params.flat, fastlstm.GRUCell(3, 4).params.flat)


@every_kind
def test_a_part_of_a_gradient_may_be_missing(kind):
    cell, rng = make(kind, dtype="float64"), np.random.default_rng(4)
    x, zero, dh = rng.normal(size=(2, 5)), np.zeros((2, 7)), rng.normal(size=(2, 7))
    for short, full in [((dh, None), (dh, zero)), ((None, dh), (zero, dh))] if kind == "lstm" else [(None, zero)]:
        results = []
        for dstate in (short, full):
            cell.zero_grads()
            _, backprop = cell.forward_train(x)
            dx, dstate_0 = backprop(dstate)
            results.append([dx, *pair(dstate_0), cell.grads.flat.copy()])
        assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


@every_kind
def test_results_and_arguments_stay_whose_they_are(kind):
    cell, rng = make(kind), np.random.default_rng(5)
    x = rng.normal(size=(2, 5)).astype(np.float32)
    first, backprop = cell.forward_train(x)
    kept = [part.copy() for part in pair(first)]
    x[...] = np.nan  # backprop must have kept what it needs
    cell(rng.normal(size=(2, 5)), first)
    assert all(np.array_equal(a, b) for a, b in zip(pair(first), kept, strict=True))
    dx, _ = backprop(unpair([np.ones_like(part) for part in kept]))
    assert np.isfinite(dx).all()
    assert np.isfinite(cell.grads.flat).all()
    with pytest.raises(RuntimeError, match="backprop was called before or closed"):
        backprop(unpair(kept))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("lstm", (np.zeros((2, 4)),), r"x has shape \[2, 4\]; expected \[B, 5\]"),
        ("lstm", (np.zeros(4),), r"x has shape \[4\]; expected \[5\]"),
        ("lstm", (np.zeros((1, 2, 5)),), r"x has shape \[1, 2, 5\]; expected \[B, 5\]"),
        ("lstm", (np.zeros((0, 5)),), r"x has shape \[0, 5\]; expected no size to be zero"),
        ("lstm", (np.zeros((2, 5)), (np.zeros((2, 6)), None)), r"state \(h\) has shape \[2, 6\]; expected \[2, 7\]"),
        ("lstm", (np.zeros((2, 5)), (None, np.zeros((3, 7)))), r"state \(c\) has shape \[3, 7\]; expected \[2, 7\]"),
        ("gru", (np.zeros((2, 5)), np.zeros(7)), r"state has shape \[7\]; expected \[2, 7\]"),
        ("gru", (np.zeros(5), np.zeros((1, 7))), r"state has shape \[1, 7\]; expected \[7\]"),
    ],
)
def test_wrong_shapes(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(kind)(*arguments)


def test_wrong_kinds_of_state():
    with pytest.raises(TypeError, match=r"state is ndarray; expected a pair \(h, c\)"):
        make("lstm")(np.zeros((2, 5)), np.zeros((2, 7)))
    with pytest.raises(TypeError, match="state is tuple; expected one array h"):
        make("gru")(np.zeros((2, 5)), (np.zeros((2, 7)), np.zeros((2, 7))))
    _, backprop = make("lstm").forward_train(np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"dstate \(h\) has shape \[1, 7\]; expected \[2, 7\]"):
        backprop((np.zeros((1, 7)), None))
    backprop((np.zeros((2, 7)), None))  # the refused call did not use it up


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((0, 3), {}),
        ((3, -1), {}),
        ((3, 3), {"nonlinearity": "sigmoid"}),
        ((3, 3), {"dtype": "int8"}),
        ((3, 3), {"device": "tpu"}),
    ],
)
def test_wrong_constructor_arguments(arguments, options):
    with pytest.raises(ValueError, match="expected"):
        fastlstm.RNNCell(*arguments, **options)


def test_what_it_says_of_itself():
    assert repr(fastlstm.RNNCell(2, 3, nonlinearity="relu")) == "RNNCell(2, 3, nonlinearity='relu')"
    assert repr(fastlstm.LSTMCell(2, 3, bias=False, dtype="float64")) == "LSTMCell(2, 3, bias=False, dtype='float64')"
    assert repr(fastlstm.GRUCell(2, 3, reset_after=False)) == "GRUCell(2, 3, reset_after=False)"


def test_cells_join_into_one_buffer():
    one, two = make("lstm"), make("gru")
    whole = fastlstm.flatten(one, two)
    with whole.params.edit() as params:
        params["0.weight_ih"][...] = 0
    assert not one.params["weight_ih"].any()
    before = two(np.ones(5))
    with two.edit() as params:
        params["bias_ih"][...] += 1
    assert not np.array_equal(before, two(np.ones(5)))
