"""SeriesForecaster: what it forecasts, from which forms of data, with covariates and quantiles, and the backtest beside it."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from fastlstm.adapters.sklearn import SeriesForecaster, backtest

NAN = np.nan
FAST = {"hidden_size": 12, "random_state": 0}


def seasonal(count=6, steps=96, season=6, noise=0.2, seed=0):
    """Series of different levels, trends and heights, with a season: [count, steps]."""
    rng = np.random.default_rng(seed)
    shape = np.sin(2 * np.pi * np.arange(steps) / season + rng.uniform(0, 6, (count, 1))) + 0.5 * np.cos(
        4 * np.pi * np.arange(steps) / season
    )
    trend = rng.uniform(-0.2, 0.2, (count, 1)) * np.arange(steps)
    return 100 * np.arange(count)[:, None] + trend + rng.uniform(1, 5, (count, 1)) * shape + rng.normal(0, noise, shape.shape)


def test_it_is_better_than_naive_in_a_backtest():
    X = list(seasonal())
    for n in range(3):
        X[n] = X[n][10 * n :]  # unequal lengths
    X[4][[20, 21, 50, 51, 52]] = NAN
    result = backtest(SeriesForecaster(horizon=6, season_length=6, **FAST), X, folds=3)
    scores = result.scores
    assert scores["forecast"]["mae"] < 0.7 * scores["seasonal naive"]["mae"] < 0.7 * scores["naive"]["mae"]
    assert scores["forecast"]["mase"] < 0.8
    assert str(result).splitlines()[0] == "3 origins, 6 series, 6 steps ahead"
    assert [line.split()[0] for line in str(result).splitlines()[2:]] == ["forecast", "naive", "seasonal"]


def test_a_backtest_by_hand():
    X = np.array([[1.0, 2.0, 3.0, 5.0, 8.0, 13.0, NAN, 34.0], [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]])

    class Double:
        """Forecasts twice the last value, and remembers what it has seen."""

        horizon, season_length, quantiles, seen = 2, 2, None, []

        def fit(self, X):
            self.seen.append([one.tolist() for one in X])
            return self

        def predict(self, X):
            return np.array([[2 * one[-1]] * 2 for one in X])

    result = backtest(Double(), X, folds=2, step=1)
    assert Double.seen == [[X[0, :5].tolist(), X[1, :5].tolist()], [X[0, :6].tolist(), X[1, :6].tolist()]]
    assert result.origins.tolist() == [[5, 5], [6, 6]]
    np.testing.assert_array_equal(result.forecast[:, :, 0, 0], [[16, 0], [26, 2]])
    np.testing.assert_array_equal(result.naive[:, 0, :, 0], [[8, 8], [13, 13]])
    np.testing.assert_array_equal(result.seasonal[:, 0, :, 0], [[5, 8], [8, 13]])
    np.testing.assert_array_equal(result.seasonal[:, 1, :, 0], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(result.actual[:, 0, :, 0], [[13, NAN], [NAN, 34]])
    assert result.scores["naive"]["mae"] == pytest.approx(np.mean([5, 21, 1, 0, 1, 0]))
    assert result.scores["naive"]["rmse"] == pytest.approx(np.sqrt(np.mean([25, 441, 1, 0, 1, 0])))
    np.testing.assert_allclose(result.scale[:, 0], [np.mean([2, 3, 5]), 1])
    assert result.scores["naive"]["mase"] == pytest.approx(np.mean([5 * 3 / 10, 21 * 3 / 10, 1, 0, 1, 0]))
    before = len(Double.seen)
    backtest(Double(), X, folds=2, refit=False)
    assert len(Double.seen) == before + 1
    with pytest.raises(ValueError, match="X has a series of 8 steps; expected more than 8"):
        backtest(Double(), X, folds=4)


def test_the_backtest_does_not_look_ahead():
    X = seasonal(2, 60)
    changed = X.copy()
    changed[:, -6:] += 1000  # the last fold's future
    forecaster = SeriesForecaster(horizon=6, epochs=2, quantiles=(0.2, 0.8), **FAST)
    one, other = (backtest(forecaster, values, folds=2) for values in (X, changed))
    np.testing.assert_array_equal(one.forecast, other.forecast)
    np.testing.assert_array_equal(one.quantiles, other.quantiles)
    np.testing.assert_array_equal(one.seasonal, other.seasonal)


def test_covariates_known_beforehand_are_used():
    rng = np.random.default_rng(0)
    sale = (rng.random((4, 120)) < 0.3).astype(float)
    price = rng.normal(0, 1, (4, 120))
    X = 20 + 10 * sale - 3 * price + rng.normal(0, 0.3, sale.shape)
    known = np.stack([sale, price], axis=2)
    past, truth = X[:, :-8], X[:, -8:]
    forecaster = SeriesForecaster(horizon=8, epochs=25, **FAST).fit(past, covariates=known[:, :-8])
    errors = np.abs(forecaster.predict(past, covariates=known) - truth).mean()
    blind = np.abs(SeriesForecaster(horizon=8, epochs=25, **FAST).fit(past).predict(past) - truth).mean()
    assert errors < 1 < 3 < blind
    wrong = known.copy()
    wrong[:, -8:] = known[:, -8:][:, ::-1]
    assert np.abs(forecaster.predict(past, covariates=wrong) - truth).mean() > 3 * errors
    listed = forecaster.predict([one[40 * n :] for n, one in enumerate(past[:2])], covariates=[known[0], known[1, 40:]])
    np.testing.assert_array_equal(listed, forecaster.predict(past, covariates=known)[:2])
    assert forecaster.score(X, covariates=known) > 0.8

    with pytest.raises(ValueError, match="covariates are missing; expected as in fit"):
        forecaster.predict(past)
    with pytest.raises(ValueError, match=r"covariates\[0\] has shape \[112, 2\]; expected at least 120 steps"):
        forecaster.predict(past, covariates=known[:, :-8])
    with pytest.raises(ValueError, match="covariates are given; expected as in fit"):
        SeriesForecaster(horizon=8, epochs=1, **FAST).fit(past).predict(past, covariates=known)


def test_a_backtest_with_covariates():
    rng = np.random.default_rng(1)
    known = rng.normal(0, 1, (3, 60, 1))
    X = known[..., 0] * 5 + rng.normal(0, 0.1, (3, 60))
    result = backtest(SeriesForecaster(horizon=3, epochs=30, **FAST), X, covariates=known, folds=2)
    assert result.scores["forecast"]["mae"] < 0.3 * result.scores["naive"]["mae"]


def test_quantiles_as_an_array():
    X = np.random.default_rng(0).normal(size=(3, 30))
    for levels in (np.array([0.2, 0.8]), np.array([0.2]), np.array([])):
        forecaster = SeriesForecaster(horizon=2, quantiles=levels, epochs=1, **FAST).fit(X)
        assert forecaster.levels_.tolist() == (sorted({*levels, 0.5}) if levels.size else [])


def test_quantiles():
    rng = np.random.default_rng(2)
    X = rng.exponential(1, (8, 150))
    levels = (0.9, 0.1, 0.5)
    forecaster = SeriesForecaster(horizon=3, quantiles=levels, epochs=8, **FAST).fit(X)
    found = forecaster.predict_quantiles(X)
    assert found.shape == (8, 3, 3)
    assert (np.diff(found[..., [1, 2, 0]]) >= 0).all()
    np.testing.assert_array_equal(found[..., 2], forecaster.predict(X))
    np.testing.assert_allclose(found.mean(axis=(0, 1)), -np.log(1 - np.array(levels)), atol=0.2)
    result = backtest(SeriesForecaster(horizon=3, quantiles=(0.1, 0.9), epochs=8, **FAST), X, folds=5, refit=False)
    assert 0.7 < result.scores["forecast"]["coverage"] < 0.9
    short = result.actual[..., None] - result.quantiles
    expected = np.where(short > 0, [0.1, 0.9], np.array([0.1, 0.9]) - 1) * short
    assert result.scores["forecast"]["pinball"] == pytest.approx(expected.mean())

    with forecaster.network_.edit() as params:
        params["head.weight"][...] = 0
        params["head.bias"][...] = [3, 1, 2]  # crossed
    sorted_ = forecaster.predict_quantiles(X)
    assert (sorted_[..., 1] < sorted_[..., 2]).all()
    assert (sorted_[..., 2] < sorted_[..., 0]).all()
    with pytest.raises(ValueError, match="quantiles is None"):
        SeriesForecaster(epochs=1, **FAST).fit(X).predict_quantiles(X)
    with pytest.raises(ValueError, match="quantiles is 1.5; expected a number > 0 and < 1"):
        SeriesForecaster(quantiles=(0.5, 1.5)).fit(X)


def test_shapes():
    X, wide = seasonal(3, 40), np.stack([seasonal(3, 40), seasonal(3, 40, seed=1)], axis=2)
    few = {"epochs": 1, **FAST}
    assert SeriesForecaster(**few).fit(X).predict(X).shape == (3, 1)
    assert SeriesForecaster(5, **few).fit(X).predict(X).shape == (3, 5)
    assert SeriesForecaster(5, **few).fit(wide).predict(wide).shape == (3, 5, 2)
    assert SeriesForecaster(5, quantiles=[0.3], **few).fit(wide).predict_quantiles(wide).shape == (3, 5, 2, 1)
    assert SeriesForecaster(5, **few).fit(list(wide)).predict([one[7 * n :] for n, one in enumerate(wide)]).shape == (3, 5, 2)
    for y in (X[:, 0], X[:, :4], wide[:, :3]):
        forecaster = SeriesForecaster(**few).fit(wide, y)
        assert forecaster.predict(wide).shape == y.shape
        assert isinstance(forecaster.score(wide, y), float)
        with pytest.raises(ValueError, match="y is given as steps of 1; expected"):
            forecaster.partial_fit(wide, X[:, :1])
    with pytest.raises(ValueError, match="y has 4 columns; expected horizon = 5"):
        SeriesForecaster(5, **few).fit(X, X[:, :4])
    with pytest.raises(ValueError, match="anchor is 'naive', but y has 2 variables and X has 1"):
        SeriesForecaster(anchor="naive", **few).fit(X, wide[:, :3])
    with pytest.raises(ValueError, match="y contains NaN only"):
        SeriesForecaster(**few).fit(X, np.full(3, NAN))


def test_y_may_be_missing_and_is_what_is_learnt():
    rng = np.random.default_rng(3)
    X = [rng.normal(0, 1, rng.integers(5, 12)) for _ in range(300)]
    y = np.array([3 * one[-1] - one[-2] for one in X])
    y[::7] = NAN
    forecaster = SeriesForecaster(hidden_size=16, random_state=0).fit(X[:200], y[:200])
    assert forecaster.score(X[200:], y[200:]) > 0.9
    weight = np.ones(100)
    weight[50:] = 0
    assert forecaster.score(X[200:], y[200:], sample_weight=weight) == pytest.approx(forecaster.score(X[200:250], y[200:250]))


def test_the_score_without_y_is_by_hand():
    X = seasonal(3, 60)
    forecaster = SeriesForecaster(horizon=6, season_length=6, window=12, epochs=3, **FAST).fit(X)
    past, truth = X[:, :-6], X[:, -6:]
    unit = past[:, -12:].std(axis=1)[:, None]
    error, naive = (np.abs((guess - truth) / unit).sum() for guess in (forecaster.predict(list(past)), past[:, -6:]))
    assert forecaster.score(X) == pytest.approx(1 - error / naive)
    with pytest.raises(ValueError, match="hold out"):
        forecaster.score([np.ones(6)] * 3)


def test_partial_fit_goes_on():
    X = seasonal(6, 60)
    forecaster = SeriesForecaster(horizon=6, **FAST)
    for _ in range(8):
        forecaster.partial_fit(X[:3]).partial_fit(list(X[3:, :50]))
    assert len(forecaster.loss_curve_) == 16
    assert forecaster.loss_curve_[-2] < 0.7 * forecaster.loss_curve_[0]
    before = forecaster.network_.params["head.bias"].copy()
    forecaster.partial_fit(X)
    assert np.abs(forecaster.network_.params["head.bias"] - before).max() > 0


def test_weights_decay_and_dtypes():
    X = seasonal(4, 50)
    norms = [
        float((SeriesForecaster(horizon=2, weight_decay=decay, **FAST).fit(X).network_.params["rnn.weight_hh_l0"] ** 2).sum())
        for decay in (0.0, 5.0)
    ]
    assert norms[1] < 0.5 * norms[0]
    double = SeriesForecaster(horizon=2, dtype="float64", epochs=1, **FAST).fit(X)
    assert double.network_.params["head.weight"].dtype == np.float64


def test_too_short_series_are_named():
    with pytest.raises(ValueError, match="X has no series longer than 4 steps; expected more than the horizon"):
        SeriesForecaster(horizon=4).fit(np.ones((2, 4)))


def test_a_missing_value_is_no_zero():
    rng = np.random.default_rng(4)
    X = 50 + np.cumsum(rng.normal(0, 1, (5, 80)), axis=1)
    holes = X.copy()
    holes[:, -3:-1] = NAN
    forecaster = SeriesForecaster(horizon=2, **FAST).fit(X)
    np.testing.assert_allclose(forecaster.predict(holes), forecaster.predict(X), atol=4)
