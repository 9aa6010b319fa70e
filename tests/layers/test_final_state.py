"""A loss on the final state alone: `backprop(None, dstate)` is backprop of zeros, to the bit, wherever there is a state."""

import numpy as np
import pytest

import fastlstm
from tests.layers.test_cells import KINDS as CELLS
from tests.layers.test_cells import make, pair, random_state
from tests.support.layer_cases import every_kind, flat, opened, small


def both_ways(layer, open_one, zeros):
    """All gradients by None and by zeros, twice by turns: what stands in for None must not keep what came in between."""
    found = []
    for dout in (None, zeros) * 2:
        layer.zero_grads()
        backprop, dstate = open_one()
        results = backprop(dout, dstate)
        found.append([*flat(*(part for part in results if part is not None)), layer.grads.flat.copy()])
        layer.zero_grads()
        backprop, _ = open_one()
        backprop(np.ones_like(zeros))
    return found


def alike(found):
    assert all(np.array_equal(a, b) for one in found[1:] for a, b in zip(one, found[0], strict=True))
    assert all(np.isfinite(array).all() for array in found[0])
    assert found[0][-1].any()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"form": "batch-first"},
        {"form": "unbatched", "batch": 1, "lengths": False},
        {"lengths": False, "resets": False},
        {"bidirectional": False, "layers": 1},
        {"steps": 1, "batch": 1},
    ],
    ids=lambda changes: ", ".join(f"{name} {value}" for name, value in changes.items()) or "all",
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@every_kind
def test_of_layers(kind, dtype, changes):
    case = small(kind, **changes)
    layer = case.layer(dtype)

    def open_one():
        _, backprop, (_, dstate) = opened(case, layer)
        return backprop, dstate

    shape = layer(case.data("float32").given.x)[0].shape
    alike(both_ways(layer, open_one, np.zeros(shape, np.float32)))


@pytest.mark.parametrize("only", [0, 1])
def test_one_part_of_a_pair_is_enough(only):
    layer, x = fastlstm.LSTM(3, 4, seed=0), np.ones((5, 2, 3), np.float32)
    dstate = [None, None]
    dstate[only] = np.ones((1, 2, 4), np.float32)
    alike(both_ways(layer, lambda: (layer.forward_train(x)[2], tuple(dstate)), np.zeros((5, 2, 4), np.float32)))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_of_a_language_model(cell):
    model = fastlstm.LanguageModel(7, cell=cell, hidden_size=5, seed=0)
    ids, rng = np.arange(12).reshape(6, 2) % 7, np.random.default_rng(0)
    dstate = tuple(rng.normal(size=(2, 2, 5)).astype(np.float32) for _ in range(2))
    dstate = dstate if cell == "lstm" else dstate[0]
    alike(both_ways(model, lambda: (model.forward_train(ids)[2], dstate), np.zeros((6, 2, 7), np.float32)))
    model.zero_grads()
    model.forward_train(ids)[2](None, dstate)
    assert not model.grads["head.weight"].any()


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_has_no_other(kind):
    """And its layer's outputs, which nobody sees, have no gradient."""
    cell, rng = make(kind, dtype="float64"), np.random.default_rng(0)
    x, dstate = rng.normal(size=(3, 5)), random_state(rng, kind, 3, 7)
    _, backprop = cell.forward_train(x)
    dx, _ = backprop(dstate)
    layer = cell._layer
    _, _, whole = layer.forward_train(x[None])
    lifted = tuple(part[None] for part in pair(dstate))
    wanted, _ = whole(np.zeros((1, 3, 7)), lifted if kind == "lstm" else lifted[0])
    assert np.array_equal(dx, wanted[0])


@every_kind
def test_no_loss_at_all_has_gradients_of_zero(kind):
    case = small(kind)
    layer = case.layer("float32")
    for nothing in (None, (None, None)) if kind.startswith("lstm") else (None,):
        _, backprop, _ = opened(case, layer)
        assert not any(array.any() for array in flat(*backprop(None, nothing)))
        assert not layer.grads.flat.any()
