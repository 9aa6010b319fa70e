"""SeriesAnomalyDetector: strange series, strange steps, and where the borders lie."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from fastlstm.adapters.sklearn import SeriesAnomalyDetector
from fastlstm.adapters.sklearn.panel import panel_of_table

NAN = np.nan
FAST = {"hidden_size": 12, "random_state": 0}


def waves(count=40, steps=60, seed=0):
    rng = np.random.default_rng(seed)
    return np.sin(np.arange(steps) / 3 + rng.uniform(0, 6, (count, 1))) + rng.normal(0, 0.05, (count, steps))


def test_steps_that_break_the_pattern():
    X = waves(1, 600)
    detector = SeriesAnomalyDetector(**FAST).fit(X[:, :400])
    X[0, 450] += 1.0
    X[0, 520:528] = X[0, 520]
    scores = detector.score_steps(X)
    assert scores.shape == (1, 600)
    assert scores[0].argmin() == 450
    labels = detector.predict_steps(X)[0]
    assert labels[450] == -1
    assert (labels[521:528] == -1).any()
    assert (labels[60:440] == -1).mean() < 0.02
    np.testing.assert_array_equal(labels == -1, scores[0] < detector.step_offset_)


def test_series_that_are_of_another_kind():
    X = waves(80)
    rng = np.random.default_rng(1)
    strange = [rng.normal(0, 0.7, 60), np.sin(np.arange(60) * 1.5), np.zeros(60) + 0.7 * (np.arange(60) % 2)]
    detector = SeriesAnomalyDetector(**FAST).fit(X[:60])
    assert (detector.predict(strange) == -1).all()
    assert (detector.predict(X[60:]) == 1).mean() > 0.8
    assert detector.score_samples(strange).max() < detector.score_samples(X[60:]).min()
    np.testing.assert_allclose(detector.decision_function(X), detector.score_samples(X) - detector.offset_)


def test_contamination_sets_the_borders():
    X = waves()
    detector = SeriesAnomalyDetector(contamination=0.1, epochs=3, **FAST).fit(X)
    assert (detector.predict(X) == -1).sum() == 4
    assert (detector.predict_steps(X) == -1).sum() == X.size // 10
    np.testing.assert_array_equal(detector.fit_predict(X), detector.predict(X))
    for wrong in (0.0, 0.6, "some"):
        with pytest.raises(ValueError, match="contamination is"):
            SeriesAnomalyDetector(contamination=wrong).fit(X)


def test_borders_by_hand():
    X = waves()
    detector = SeriesAnomalyDetector(epochs=2, **FAST).fit(X)
    for scores, offset, fence in (
        (detector.score_samples(X), detector.offset_, 1.5),
        (detector.score_steps(X).ravel(), detector.step_offset_, 3),
    ):
        low, high = np.percentile(scores, [25, 75])
        assert offset == pytest.approx(low - fence * (high - low))
    assert np.median(-detector.score_steps(X)) == pytest.approx(0.6745, rel=1e-6)  # as of a normal error of deviation 1
    np.testing.assert_allclose(detector.score_samples(X), -np.sqrt((detector.score_steps(X) ** 2).mean(axis=1)))


def test_missing_steps_have_no_score():
    X = waves(6)
    X[1, 10:13] = NAN
    X[2, 50:] = NAN
    detector = SeriesAnomalyDetector(epochs=2, **FAST).fit(X)
    scores = detector.score_steps(X)
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(X))
    np.testing.assert_array_equal(detector.predict_steps(X) == 0, np.isnan(X))
    assert np.isfinite(detector.score_samples(X)).all()


def test_a_step_is_judged_by_what_came_before_only():
    X = waves(3)
    detector = SeriesAnomalyDetector(epochs=2, **FAST).fit(X)
    changed = X.copy()
    changed[:, 30:] += 5
    np.testing.assert_array_equal(detector.score_steps(changed)[:, :30], detector.score_steps(X)[:, :30])
    # The forecast of the step itself has not changed: all of the change is error.
    before, after = (detector._errors(panel_of_table(values))[:, 30, 0] for values in (X, changed))
    np.testing.assert_allclose(after - before, 5 / detector.units_.scale[0])
    np.testing.assert_array_equal(detector.score_steps(X[:, :60])[:, :40], detector.score_steps(list(X[:, :40])))


def test_some_variables_may_be_missing():
    X = np.stack([waves(5), waves(5, seed=1) * 100], axis=2)
    X[:, 20, 0] = NAN
    X[:, 21] = NAN
    detector = SeriesAnomalyDetector(epochs=3, **FAST).fit(X)
    assert np.isnan(detector.score_steps(X)).sum() == 5
    assert detector.error_.shape == (2,)
    flat = np.ones((4, 10, 2))
    assert np.isfinite(SeriesAnomalyDetector(epochs=1, **FAST).fit(flat).score_steps(flat)).all()


def test_partial_fit_moves_the_borders():
    X = waves()
    detector = SeriesAnomalyDetector(**FAST).partial_fit(X)
    first = detector.error_.copy()
    for _ in range(25):
        detector.partial_fit(X)
    assert detector.error_ < first  # errors are smaller now, and so is what is usual
    assert len(detector.loss_curve_) == 26
