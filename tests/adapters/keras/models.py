"""Keras layers and models with settled weights for the tests, and what it means that two are the same."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

from fastlstm.adapters.keras import Chain, from_keras, to_keras  # noqa: E402

# Keras's own, in every conversion to NumPy.
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
L = keras.layers
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
CELLS = {
    "rnn": (L.SimpleRNN, {}),
    "relu": (L.SimpleRNN, {"activation": "relu"}),
    "lstm": (L.LSTM, {}),
    "gru": (L.GRU, {}),
    "gru before": (L.GRU, {"reset_after": False}),
}


def numpy(value):
    return keras.ops.convert_to_numpy(value)


def settle(layer, seed=0):
    """Random weights everywhere, biases too, which Keras starts at zero."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(0, 0.4, weight.shape) for weight in layer.get_weights()])
    return layer


def built(layer, width, seed=0):
    layer.build((None, None, width))
    return settle(layer, seed)


def inputs(batch=3, steps=7, width=5, dtype="float32", seed=1):
    return np.random.default_rng(seed).normal(size=(batch, steps, width)).astype(dtype)


def close(found, expected, dtype="float32", atol=None):
    found, expected = numpy(found), numpy(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol or TOLERANCE[dtype])


def same_weights(one, other):
    assert len(one.get_weights()) == len(other.get_weights()) > 0
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def same_parameters(one, other):
    assert dict(one.params).keys() == dict(other.params).keys()
    for name in one.params:
        np.testing.assert_array_equal(one.params[name], other.params[name])


def sequential(*layers, entry=(None, 5), **options):
    return settle(keras.Sequential([keras.Input(entry, **options), *layers]))


def ids(batch=3, steps=6, vocabulary=7):
    return np.random.default_rng(5).integers(0, vocabulary, (batch, steps))


def same_chain(theirs, x, dtype="float32"):
    """Both ways, and through a file."""
    ours = from_keras(theirs)
    assert isinstance(ours, Chain)
    close(ours(x), theirs(x), dtype)
    again = to_keras(ours)
    same_weights(again, theirs)
    close(again(x), theirs(x), dtype)
    return ours


def stored(tmp_path, theirs):
    theirs.save(tmp_path / "model.keras")
    theirs.save_weights(tmp_path / "model.weights.h5")
    return tmp_path / "model.keras", tmp_path / "model.weights.h5"
