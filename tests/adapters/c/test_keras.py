"""Keras to fastlstm to C: what the compiled program gives is what Keras gives."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

from fastlstm.adapters.keras import from_keras  # noqa: E402
from tests.adapters.c.programs import needs_cc, run  # noqa: E402
from tests.adapters.keras.models import CELLS, QUIET, L  # noqa: E402

pytestmark = [needs_cc, QUIET]


def settled(model):
    """The model with random weights, biases too, which Keras starts at zero."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if not isinstance(layer, L.Normalization):
            layer.set_weights([rng.normal(0, 0.3, weight.shape) for weight in layer.get_weights()])
    return model


def outputs(model, x):
    return keras.ops.convert_to_numpy(model(x))


def assert_close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def series(batch, steps, width):
    return np.random.default_rng(1).normal(size=(batch, steps, width)).astype(np.float32)


@pytest.mark.parametrize("cell", CELLS)
def test_stacks_of_layers(cell, tmp_path):
    kind, options = CELLS[cell]
    parts = [kind(11, return_sequences=True, **options), kind(11, return_sequences=True, **options)]
    model = settled(keras.Sequential([keras.Input((None, 5)), *parts]))
    x = series(2, 60, 5)
    assert_close(run(from_keras(model), x, tmp_path), outputs(model, x))


def test_a_forecaster_with_its_normalization(tmp_path):
    x = series(3, 25, 4) * np.float32([1, 20, 0.1, 3]) + np.float32([50, -7, 0, 900])
    normalization = L.Normalization()
    normalization.adapt(x)
    model = settled(keras.Sequential([keras.Input((None, 4)), normalization, L.LSTM(9), L.Dense(2)]))
    assert_close(run(from_keras(model), x, tmp_path)[:, -1], outputs(model, x))


def test_a_classifier(tmp_path):
    model = settled(keras.Sequential([keras.Input((None, 4)), L.GRU(9), L.Dense(3, activation="softmax")]))
    x = series(3, 25, 4)
    powers = np.exp(run(from_keras(model), x, tmp_path)[:, -1])
    assert_close(powers / powers.sum(axis=1, keepdims=True), outputs(model, x))


def test_a_language_model(tmp_path):
    parts = [L.Embedding(17, 6), L.GRU(8, return_sequences=True), L.Dense(17)]
    model = settled(keras.Sequential([keras.Input((None,), dtype="int32"), *parts]))
    ids = np.random.default_rng(1).integers(0, 17, (2, 40))
    assert_close(run(from_keras(model), ids, tmp_path), outputs(model, ids))
