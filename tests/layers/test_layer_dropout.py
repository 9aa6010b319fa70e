"""Dropout between layers: the same elements forward and back, for training alone, drawn from the seed."""

import warnings

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels import reference
from fastlstm.runtime.program import Program
from fastlstm.stack.stack import Call
from tests.support import cases
from tests.support.layer_cases import every_kind, small


def dropping(kind, dtype="float64", p=0.3, **changes):
    """A case of three layers, and its layer with dropout between them."""
    case = small(kind, layers=3, batch=16, hidden=32, **changes)
    make, _, options = cases.KINDS[kind]
    options = options | ({"proj_size": case.proj} if case.proj else {})
    return case, make(case.inputs, case.hidden, 3, dropout=p, bidirectional=case.bidirectional, dtype=dtype, seed=77, **options)


def drawn(layer, case, number):
    """What call `number` of forward_train multiplies between layers: the kernel's own draw, upon ones."""
    masks = [np.ones((case.steps, case.batch, case.width * (1 + case.bidirectional)), layer.dtype) for _ in range(2)]
    call, drawing = Call(case.steps, case.batch, True), Program()

    def record():
        for k, mask in enumerate(masks):
            layer.stack._drop(mask, mask.shape[2], call, k)

    drawing.record(record)
    drawing.run(**layer.stack.dropout_values(layer.seed, number))
    return masks


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@every_kind
def test_dropout_masks_the_same_elements_back(kind, bidirectional):
    """Against the reference, which is given the masks; the second call draws others."""
    case, layer = dropping(kind, bidirectional=bidirectional)
    plain, used = case.data("float64").plain, []
    for number in (1, 2):
        masks = drawn(layer, case, number)
        layer.zero_grads()
        got, slopes = case.results(layer)
        out, _, saved = reference.stack_forward(
            case.cell,
            plain.x,
            dict(layer.params),
            case.pair(plain),
            num_layers=3,
            bidirectional=bidirectional,
            lengths=plain.lengths,
            resets=plain.resets,
            dropout_masks=masks,
            **cases.KINDS[kind][2],
        )
        dx, _, dparams = reference.stack_backward(saved, plain.dout, case.pair(plain, "d"), masks=slopes)
        for name, want in {"out": out, "dx": dx, **dparams}.items():
            assert cases.error(got[name], want) < 1e-12, name
        used += masks
    for k, mask in enumerate(used):
        assert {*np.unique(mask)} == {0.0, 1 / 0.7}
        assert abs((mask > 0).mean() - 0.7) < 5 * (0.21 / mask.size) ** 0.5
        assert not any(np.array_equal(mask, other) for other in used[:k])


def test_dropout_is_for_training_and_follows_the_seed():
    case, layer = dropping("lstm", "float32", lengths=False)
    given = case.data("float32").given
    _, without = dropping("lstm", "float32", p=0.0, lengths=False)
    assert np.array_equal(layer(given.x)[0], without(given.x)[0])
    _, twin = dropping("lstm", "float32", lengths=False)
    first, second = (layer.forward_train(given.x)[0] for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.array_equal(twin.forward_train(given.x)[0], first)
    assert np.array_equal(twin.forward_train(given.x)[0], second)
    twin.dropout_calls = 0
    assert np.array_equal(twin.forward_train(given.x)[0], first)
    _, double = dropping("lstm", "float64", lengths=False)
    for a, b in zip(drawn(layer, case, 5), drawn(double, case, 5), strict=True):
        assert np.array_equal(a > 0, b > 0)
    for seed in (-1, 2**64 - 1, 2**63):
        fastlstm.GRU(3, 4, 2, dropout=0.5, seed=seed).forward_train(np.ones((2, 3, 3)))


@every_kind
def test_dropout_of_all_leaves_what_the_biases_make(kind):
    """The layer above reads zeros, and the one below gets no gradient: nowhere is infinity times zero."""
    case, layer = dropping(kind, "float64", p=1.0, lengths=False, bidirectional=False)
    data = case.data("float64")
    got, slopes = case.results(layer)
    masks = [np.zeros((case.steps, case.batch, case.width))] * 2
    out, _, saved = reference.stack_forward(
        case.cell,
        data.plain.x,
        dict(layer.params),
        case.pair(data.plain),
        num_layers=3,
        resets=data.plain.resets,
        dropout_masks=masks,
        **cases.KINDS[kind][2],
    )
    dx, _, dparams = reference.stack_backward(saved, data.plain.dout, case.pair(data.plain, "d"), masks=slopes)
    for name, want in {"out": out, "dx": dx, **dparams}.items():
        assert cases.error(got[name], want) < 1e-12, name
    assert not got["weight_ih_l1"].any()


@pytest.mark.parametrize(
    "model",
    [
        lambda p: fastlstm.LanguageModel(5, hidden_size=4, dropout=p, seed=0),
        lambda p: fastlstm.SequenceRegressor(3, 2, hidden_size=4, num_layers=2, dropout=p, seed=0),
        lambda p: fastlstm.SequenceClassifier(3, 2, hidden_size=4, num_layers=2, dropout=p, seed=0),
    ],
)
def test_models_take_dropout_of_all(model):
    made = model(1.0)
    assert made.config["dropout"] == 1.0
    x = np.zeros((6, 2), np.int64) if made.config["type"] == "LanguageModel" else np.ones((6, 2, 3))
    out, *_, backprop = made.forward_train(x)
    backprop(np.ones_like(out))
    assert np.isfinite(out).all()
    assert np.isfinite(made.grads.flat).all()
    assert made.grads["rnn.weight_hh_l1"].any()
    assert not made.grads["rnn.weight_ih_l0"].any()
    with pytest.raises(ValueError, match="dropout is -0.1; expected a number p with 0 <= p <= 1"):
        model(-0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: fastlstm.RNN(3, 4, **options),
        lambda **options: fastlstm.LSTM(3, 4, **options),
        lambda **options: fastlstm.GRU(3, 4, **options),
        lambda **options: fastlstm.LanguageModel(5, hidden_size=4, **({"num_layers": 1} | options)),
        lambda **options: fastlstm.SequenceRegressor(3, 2, hidden_size=4, **options),
        lambda **options: fastlstm.SequenceClassifier(3, 2, hidden_size=4, **options),
    ],
)
def test_dropout_with_nothing_to_drop_is_said(make):
    with pytest.warns(UserWarning, match="dropout is 0.25 and num_layers 1: dropout acts between layers only") as said:
        make(dropout=0.25)
    assert [one.filename for one in said] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(dropout=0.0)
        make(dropout=0.25, num_layers=2)
