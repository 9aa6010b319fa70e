"""Copies and pickles of layers, cells and models: the same numbers, nothing shared with what they were made of."""

import copy
import pickle

import numpy as np
import pytest

import fastlstm

X = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
IDS = np.arange(12).reshape(4, 3) % 7


def make_fitted():
    model = fastlstm.SequenceRegressor(5, 2, hidden_size=6, seed=0)
    model.fit_normalization(X, np.ones((3, 1, 2)) * [1, 2])
    return model


OWNERS = {
    "rnn": (lambda: fastlstm.RNN(5, 6, 2, nonlinearity="relu", seed=0), X),
    "lstm": (lambda: fastlstm.LSTM(5, 6, 2, bidirectional=True, dropout=0.5, seed=0), X),
    "gru bfloat16": (lambda: fastlstm.GRU(5, 6, reset_after=False, seed=0, dtype="bfloat16"), X),
    "rnn cell": (lambda: fastlstm.RNNCell(5, 6, seed=0), X[0]),
    "lstm cell": (lambda: fastlstm.LSTMCell(5, 6, seed=0), X[0]),
    "gru cell": (lambda: fastlstm.GRUCell(5, 6, seed=0), X[0]),
    "language model": (lambda: fastlstm.LanguageModel(7, hidden_size=6, seed=0), IDS),
    "tied language model": (lambda: fastlstm.LanguageModel(7, "gru", hidden_size=6, tie_weights=True, seed=0), IDS),
    "regressor": (make_fitted, X),
    "classifier": (lambda: fastlstm.SequenceClassifier(5, 3, hidden_size=6, seed=0), X),
    "linear": (lambda: fastlstm.layers.basic.Linear(5, 6, bias=False, seed=0), X),
    "embedding": (lambda: fastlstm.layers.basic.Embedding(7, 6, seed=0), IDS),
    "dropout": (lambda: fastlstm.layers.basic.Dropout(0.5, seed=0), X),
}
WAYS = {"copy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def flat(value):
    """All numbers of nested results, as bytes."""
    return b"".join(flat(part) for part in value) if isinstance(value, tuple) else np.asarray(value).tobytes()


def train(owner, x):
    *out, backprop = owner.forward_train(x)
    first = out[0]
    if isinstance(owner, fastlstm.RNNCell | fastlstm.GRUCell | fastlstm.LSTMCell):
        return flat(tuple(out))
    back = backprop(np.ones_like(first))
    return flat(tuple(out)) + flat(() if back is None else tuple(p for p in back if p is not None))


@every_way
@pytest.mark.parametrize(("make", "x"), OWNERS.values(), ids=OWNERS)
def test_a_copy_computes_the_same_and_apart(make, x, way):
    owner = make()
    train(owner, x)  # buffers, packed weights and gradients exist, dropout has begun
    before, grads = flat(owner(x)), owner.grads.flat.copy()
    twin = way(owner)
    assert type(twin) is type(owner)
    assert repr(twin) == repr(owner) or "object at" in repr(owner)
    assert flat(twin(x)) == before
    assert np.array_equal(twin.grads.flat, grads)
    assert twin.params.version == owner.params.version
    assert train(twin, x) == train(owner, x), "masks too"
    assert np.array_equal(twin.grads.flat, owner.grads.flat)
    if len(owner.params):
        with twin.edit() as params:
            for values in params.values():
                values *= 2
        assert flat(twin(x)) != before
        assert flat(owner(x)) == before


@every_way
def test_what_is_joined_stays_joined_in_a_copy_of_all(way):
    layers = [fastlstm.GRU(5, 6, seed=0), fastlstm.layers.basic.Linear(6, 2, seed=1)]
    joined = fastlstm.flatten(*layers)
    (gru, linear), slots = way((layers, joined))
    with slots.params.edit() as params:
        params["1.weight"][...] = 3
        params["0.weight_ih_l0"][...] = 4
    assert (linear.params["weight"] == 3).all()
    assert (gru.params["weight_ih_l0"] == 4).all()
    assert not (layers[1].params["weight"] == 3).any()
    x = np.ones((3, 6), np.float32)
    assert np.allclose(linear(x), 18 + linear.params["bias"])


def test_memory_is_known_by_a_number_that_is_never_used_again():
    """An address is: packed weights made of memory that is gone could pass for those of new memory in its place."""
    stamps = {fastlstm.layers.basic.Linear(2, 2, seed=0).params.stamp for _ in range(50)}
    assert len(stamps) == 50
    layer = fastlstm.layers.basic.Linear(2, 2, seed=0)
    assert copy.deepcopy(layer).params.stamp != layer.params.stamp


def test_an_edit_while_weights_are_packed_is_not_lost(monkeypatch):
    layer, x = fastlstm.layers.basic.Linear(5, 6, seed=0), X
    packed = layer._linear.packed
    make = packed.make

    def edited_meanwhile(kind):
        make(kind)
        with layer.edit() as params:
            params["weight"][...] = 0

    monkeypatch.setattr(packed, "make", edited_meanwhile)
    layer(x)
    monkeypatch.setattr(packed, "make", make)
    assert np.array_equal(layer(x), np.broadcast_to(layer.params["bias"], (4, 3, 6)))
