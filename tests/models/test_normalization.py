"""The normalisation that models of series learn: moments, which steps count, units, offsets, and what is refused."""

import numpy as np
import pytest

import fastlstm
from fastlstm.models.series_base import Moments
from tests.models.test_series import batch, classifier, regressor


def test_moments():
    rng, learned = np.random.default_rng(3), Moments(4)
    values = rng.normal(1e6, 1e-2, (1000, 4)) * [1, 2, 0, 1e3]
    for part in np.split(values, [0, 1, 10, 700]):
        learned.add(part)
    assert np.allclose(learned.mean, values.mean(0), rtol=1e-15)
    assert np.allclose(learned.std, [*values.std(0)[:2], 1.0, values.std(0)[3]], rtol=1e-9)
    assert Moments(2).std.tolist() == [1, 1]
    constant = Moments(1)
    constant.add(np.full((7, 1), 0.1))
    assert constant.std == 1


def test_preparing_looks_at_valid_steps_of_all_batches():
    x, y, target, lengths = batch(rows=23)
    valid = np.concatenate([x[:n, k] for k, n in enumerate(lengths)])
    data = fastlstm.Batches(x.swapaxes(0, 1), y, batch_size=4, lengths=lengths, seed=1)
    model = regressor("rnn")
    assert not model.fitted
    model.prepare(data)
    assert model.fitted
    learned = model.state_dict()
    assert np.allclose(learned["normalization.input_mean"], valid.mean(0), rtol=1e-13)
    assert np.allclose(learned["normalization.input_std"], valid.std(0), rtol=1e-13)
    assert np.allclose(learned["normalization.target_mean"], y.mean((0, 1)), rtol=1e-13)
    assert np.allclose(learned["normalization.target_std"], y.std((0, 1)), rtol=1e-13)
    model.prepare(fastlstm.Batches(x.swapaxes(0, 1) + 100, y))  # known by now
    assert np.array_equal(model.state_dict()["normalization.input_mean"], learned["normalization.input_mean"])
    model.fit_normalization(x + 100, y)
    assert np.allclose(model.state_dict()["normalization.input_mean"], x.mean((0, 1)) + 100)
    other = classifier("rnn")
    other.prepare(fastlstm.Batches(x.swapaxes(0, 1), target, lengths=lengths))
    assert np.allclose(other.state_dict()["normalization.input_mean"], valid.mean(0), rtol=1e-13)
    plain = regressor("rnn", normalize=False)
    assert plain.fitted
    plain.prepare(None)  # has nothing to learn


def test_units_of_the_data_do_not_matter():
    """Shifted and scaled data give the same losses, predictions in their units, and gradients of the same weights."""
    x, y, _, _ = batch()
    model = regressor("lstm")
    model.fit_normalization(x, y)
    loss, _ = model.train_batch(x, y)
    grads, predicted = model.grads.flat.copy(), model.predict(x)
    moved_x, moved_y = x * [1e-3, 2, 5e4] + [3, -1e3, 7], y * 1e-3 + 5
    model.fit_normalization(moved_x, moved_y)
    assert model.train_batch(moved_x, moved_y)[0] == pytest.approx(loss, rel=1e-9)
    assert np.allclose(model.grads.flat, grads, rtol=1e-7, atol=1e-12)
    assert np.allclose(model.predict(moved_x), predicted * 1e-3 + 5, rtol=1e-9)


def test_large_offsets_keep_their_precision():
    """The mean is subtracted in float64: seconds since 1970 are fit for a float32 model."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(6, 5, 1)), rng.normal(size=(5, 1, 1))
    near, far = (fastlstm.SequenceRegressor(1, 1, hidden_size=8, seed=0) for _ in range(2))
    near.fit_normalization(x, y)
    far.fit_normalization(x + 1.7e9, y)
    assert np.allclose(near.predict(x), far.predict(x + 1.7e9), atol=1e-5)


def test_a_normalisation_is_of_finite_numbers():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(5, 4, 2)), draw.normal(size=(4, 1))
    model = fastlstm.SequenceRegressor(2, 1, hidden_size=4, seed=0)
    for inputs, targets, name in ((np.where(x == x[3, 1, 1], np.nan, x), y, "inputs"), (x, np.full_like(y, np.inf), "targets")):
        with pytest.raises(ValueError, match=f"{name}: expected finite numbers to learn the normalisation from"):
            model.fit_normalization(inputs, targets)
        assert not model.fitted
    model.fit_normalization(x, y)
    for name, value, wanted in (("input_std", 0, "above 0"), ("input_std", -1, "above 0"), ("target_mean", np.nan, "numbers")):
        state = dict(model.state_dict())
        state[f"normalization.{name}"] = np.full_like(state[f"normalization.{name}"], value)
        with pytest.raises(ValueError, match=f"normalization.{name} is .*; expected .*{wanted}"):
            model.load_state_dict(state)
    assert np.isfinite(model.predict(x)).all()
