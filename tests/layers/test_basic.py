"""Embedding, Linear, Dropout against the reference and PyTorch, at odd sizes and with hostile inputs."""

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels import reference
from fastlstm.layers.basic import Dropout, Embedding, Linear

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def close(got, wanted, dtype):
    return np.linalg.norm(got - wanted) <= TOLERANCE[dtype] * max(1.0, np.linalg.norm(wanted))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("axes", "inputs", "outputs"),
    [((), 5, 7), ((1,), 1, 1), ((4, 9), 17, 33), ((50,), 64, 48), ((0, 3), 4, 5), ((2, 3, 4), 16, 1)],
)
def test_linear(dtype, bias, axes, inputs, outputs):
    layer, rng = Linear(inputs, outputs, bias, dtype=dtype, seed=1), np.random.default_rng(0)
    x, dout = rng.normal(size=(*axes, inputs)).astype(dtype), rng.normal(size=(*axes, outputs)).astype(dtype)
    weight, offset = layer.params["weight"], layer.params["bias"] if bias else None
    out, backprop = layer.forward_train(x)
    dx = backprop(dout)
    assert out.dtype == dx.dtype == dtype
    assert np.array_equal(out, layer(x))
    assert close(out, reference.linear_forward(x, weight, offset), dtype)
    wanted_dx, dweight, dbias = reference.linear_backward(x, weight, dout)
    assert dx.shape == x.shape
    assert close(dx, wanted_dx, dtype)
    assert close(layer.grads["weight"], dweight, dtype)
    assert set(layer.grads) == ({"weight", "bias"} if bias else {"weight"})
    if bias:
        assert close(layer.grads["bias"], dbias, dtype)


def test_linear_rows_do_not_depend_on_their_batch():
    layer, rng = Linear(37, 21, seed=0), np.random.default_rng(1)
    x = rng.normal(size=(50, 37)).astype(np.float32)
    whole = layer(x)
    assert all(np.array_equal(layer(x[k]), whole[k]) for k in range(50))
    strided = np.asfortranarray(np.repeat(x, 2, axis=0))[::2]
    assert np.array_equal(layer(strided), whole)


def test_gradients_add_up_and_forwards_may_be_open_together():
    layer, rng = Linear(5, 4, dtype="float64", seed=0), np.random.default_rng(2)
    x, dout = rng.normal(size=(2, 6, 5)), rng.normal(size=(2, 6, 4))
    opened = [layer.forward_train(part)[1] for part in x]
    kept = x.copy()
    x[...] = np.nan  # what backprop needs it must own
    for k in (1, 0):
        opened[k](dout[k])
    _, dweight, dbias = reference.linear_backward(kept, layer.params["weight"], dout)
    assert np.allclose(layer.grads["weight"], dweight, rtol=1e-13)
    assert np.allclose(layer.grads["bias"], dbias, rtol=1e-13)
    with layer.edit() as params:
        params["weight"][...] = 0
    assert np.array_equal(layer(kept[0]), np.broadcast_to(layer.params["bias"], (6, 4)))


def test_torch_agrees_about_linear_and_embedding():
    torch = pytest.importorskip("torch")
    linear, other = Linear(5, 7, dtype="float64", seed=0), torch.nn.Linear(5, 7, dtype=torch.float64)
    linear.load_state_dict(other.state_dict())
    x = np.random.default_rng(3).normal(size=(3, 4, 5))
    assert np.allclose(linear(x), other(torch.tensor(x)).detach().numpy(), rtol=1e-13)
    table, other = Embedding(9, 6, seed=0), torch.nn.Embedding(9, 6)
    table.load_state_dict(other.state_dict())
    ids = torch.tensor([[1, 8], [0, 1]])
    assert np.array_equal(table(ids), other(ids).detach().numpy())


def test_initialisation():
    linear = Linear(100, 300, seed=0)
    assert abs(linear.params.flat).max() <= 0.1
    assert abs(linear.params["weight"].std() - 0.1 / np.sqrt(3)) < 1e-3
    table = Embedding(300, 100, seed=0)
    assert abs(table.params.flat.mean()) < 0.02
    assert abs(table.params.flat.std() - 1) < 0.02
    for make in (lambda seed: Linear(3, 4, seed=seed), lambda seed: Embedding(3, 4, seed=seed)):
        assert np.array_equal(make(5).params.flat, make(5).params.flat)
        assert not np.array_equal(make(5).params.flat, make(6).params.flat)
        assert not np.array_equal(make(None).params.flat, make(None).params.flat)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "width", "shape"), [(1, 1, ()), (7, 5, (3, 4)), (20, 33, (50,)), (5, 16, (0,))])
def test_embedding(dtype, rows, width, shape):
    layer, rng = Embedding(rows, width, dtype=dtype, seed=0), np.random.default_rng(4)
    ids, dout = rng.integers(0, rows, shape), rng.normal(size=(*shape, width)).astype(dtype)
    out, backprop = layer.forward_train(ids)
    assert out.shape == (*shape, width)
    assert np.array_equal(out, layer.params["weight"][ids])
    assert np.array_equal(out, layer(ids))
    assert backprop(dout) is None
    assert close(layer.grads["weight"], reference.embedding_backward(ids, dout, rows), dtype)
    out[...] = np.nan  # it is the caller's
    assert np.isfinite(layer.params.flat).all()


def test_embedding_gradients_add_up():
    layer = Embedding(3, 2, seed=0)
    for _ in range(2):
        _, backprop = layer.forward_train([2, 0, 2])
        backprop(np.ones((3, 2)))
    assert layer.grads["weight"].tolist() == [[2, 2], [0, 0], [4, 4]]


def test_dropout_drops_and_scales():
    layer = Dropout(0.3, seed=0)
    x = np.random.default_rng(5).normal(size=(200, 333)).astype(np.float32) + 10
    out, backprop = layer.forward_train(x)
    kept = out != 0
    assert abs(kept.mean() - 0.7) < 0.01
    assert np.allclose(out[kept], x[kept] / 0.7, rtol=1e-6)
    assert np.array_equal(backprop(np.ones_like(x)) != 0, kept)
    assert np.array_equal(layer(x), x)


def test_dropout_masks_follow_seed_and_count():
    x = np.ones((17, 19))

    def masks(seed, calls=0):
        layer = Dropout(0.5, dtype="float64", seed=seed)
        layer.calls = calls
        return [layer.forward_train(x)[0] for _ in range(3)]

    one = masks(1)
    assert all(np.array_equal(a, b) for a, b in zip(one, masks(1), strict=True))
    assert np.array_equal(one[2], masks(1, calls=2)[0])
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one[0], masks(2)[0])
    assert not np.array_equal(masks(2**64 - 1)[0], one[0])


def test_dropout_at_its_ends():
    x = np.arange(5, dtype=np.float32)
    out, backprop = Dropout(0.0).forward_train(x)
    assert np.array_equal(out, x)
    assert np.array_equal(backprop(x), x)
    for dtype in ("float32", "float64", "bfloat16"):
        out, backprop = Dropout(1.0, dtype=dtype, seed=0).forward_train(x)
        assert not out.any()
        assert not backprop(x).any()
    assert Dropout(1).p == 1.0
    empty, _ = Dropout(0.5).forward_train(np.zeros((0, 3)))
    assert empty.shape == (0, 3)
    assert not Dropout().params


def test_dropout_of_all_leaves_none():
    """Call 121 under seed 0 draws the largest word that there is, which is kept of every p below 1."""
    layer, x = Dropout(1.0, seed=0), np.full(504_651, np.inf)
    layer.calls = 121
    out, _ = layer.forward_train(x)
    assert not out.any()


@pytest.mark.parametrize(
    ("layer", "given", "dout"),
    [
        (Linear(3, 2), np.ones((4, 3)), np.ones((4, 2))),
        (Embedding(3, 2), [0, 1], np.ones((2, 2))),
        (Dropout(0.5), np.ones(3), np.ones(3)),
    ],
)
def test_backprop_is_for_one_call(layer, given, dout):
    _, backprop = layer.forward_train(given)
    with pytest.raises(ValueError, match="dout has shape"):
        backprop(dout[1:])
    backprop(dout)  # the refused call did not use it up
    with pytest.raises(RuntimeError, match="backprop was called before or closed"):
        backprop(dout)
    _, backprop = layer.forward_train(given)
    backprop.close()
    with pytest.raises(RuntimeError, match="backprop was called before or closed"):
        backprop(dout)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Linear(0, 3), ValueError, "in_features is 0; expected at least 1"),
        (lambda: Linear(3, 0), ValueError, "out_features is 0; expected at least 1"),
        (lambda: Linear(3, 2)(np.zeros((4, 5))), ValueError, r"x has shape \[4, 5\]; expected \[4, 3\]"),
        (lambda: Linear(3, 2)(np.zeros(())), ValueError, r"x has shape \[\]; expected \[3\]"),
        (lambda: Linear(3, 2)(np.array(["a", "b", "c"])), TypeError, "x has dtype"),
        (lambda: Linear(3, 2, dtype="int8"), ValueError, "dtype is 'int8'"),
        (lambda: Embedding(3, 0), ValueError, "embedding_dim is 0; expected at least 1"),
        (lambda: Embedding(3, 2)([3]), ValueError, "ids has values from 3 to 3; expected 0 to 2"),
        (lambda: Embedding(3, 2)([-1]), ValueError, "ids has values from -1 to -1; expected 0 to 2"),
        (lambda: Embedding(3, 2)([0.5]), TypeError, "ids has dtype float64; expected integers"),
        (lambda: Dropout(1.5), ValueError, "p is 1.5; expected a number p with 0 <= p <= 1"),
        (lambda: Dropout(np.nan), ValueError, "p is nan; expected"),
        (lambda: Dropout(True), ValueError, "p is True; expected"),
        (lambda: Linear(3, 2).load_state_dict({"weight": np.zeros((2, 3))}), KeyError, "missing \\['bias'\\]"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_model_of_ones_own_learns():
    """Embedding, LSTM, Dropout and Linear composed by hand, the flat buffer stepped by Adam."""
    embed, rnn, drop, head = Embedding(5, 8, seed=0), fastlstm.LSTM(8, 16, seed=1), Dropout(0.1, seed=2), Linear(16, 5, seed=3)
    whole, optimizer = fastlstm.flatten(embed, rnn, head), fastlstm.Adam(lr=0.02)
    ids = np.tile(np.arange(5), 9)[:, None]
    losses = []
    for _ in range(40):
        whole.grads.flat.fill(0)
        x, back_embed = embed.forward_train(ids[:-1])
        h, _, back_rnn = rnn.forward_train(x)
        dropped, back_drop = drop.forward_train(h)
        logits, back_head = head.forward_train(dropped)
        loss, dlogits = fastlstm.losses.softmax_cross_entropy(logits, ids[1:])
        back_embed(back_rnn(back_drop(back_head(dlogits)))[0])
        optimizer.step(whole.params, whole.grads)
        losses.append(loss)
    assert losses[0] > 1.4
    assert losses[-1] < 0.2
