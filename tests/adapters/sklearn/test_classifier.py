"""SeriesClassifier: unequal lengths, missing values, labels of any kind, and learning in parts."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from fastlstm.adapters.sklearn import SeriesClassifier

NAN = np.nan
FAST = {"hidden_size": 8, "random_state": 0}


def shapes(count=120, seed=0):
    """Sines and squares of unequal lengths, and which is which."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, count)
    lengths = rng.integers(20, 40, count)
    waves = [np.sin(np.arange(n) / 2 + rng.uniform(0, 6)) for n in lengths]
    return [np.sign(wave) if k else wave for wave, k in zip(waves, kind, strict=True)], kind


def test_unequal_lengths_and_labels_of_text():
    X, kind = shapes()
    names = np.array(["sine", "square"], object)[kind]
    classifier = SeriesClassifier(**FAST).fit(X[:80], names[:80])
    assert classifier.classes_.tolist() == ["sine", "square"]
    assert classifier.score(X[80:], names[80:]) > 0.9
    probabilities = classifier.predict_proba(X[80:])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (classifier.classes_[probabilities.argmax(axis=1)] == classifier.predict(X[80:])).all()


def test_what_is_missing_can_tell():
    rng = np.random.default_rng(1)
    X, kind = rng.normal(0, 1, (200, 12)), np.arange(200) % 2
    for row, k in zip(X, kind, strict=True):
        row[rng.choice(11, 4 if k else 1, replace=False)] = NAN
    classifier = SeriesClassifier(epochs=30, **FAST).fit(X[:140], kind[:140])
    assert classifier.score(X[140:], kind[140:]) > 0.9


def test_gaps_do_not_disturb_who_has_not_seen_any():
    X, kind = shapes(60)
    series = [one.copy() for one in X]
    for one in series:
        one[5:8] = NAN
    filled = [np.where(np.isnan(one), one[4], one) for one in series]
    classifier = SeriesClassifier(bidirectional=True, epochs=5, **FAST).fit(X, kind)
    np.testing.assert_array_equal(classifier.predict_proba(series), classifier.predict_proba(filled))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_beginning_counts_too(bidirectional):
    rng = np.random.default_rng(2)
    X = rng.normal(0, 1, (160, 8))
    kind = (X[:, 0] > 0).astype(int)
    classifier = SeriesClassifier(bidirectional=bidirectional, **FAST).fit(X[:120], kind[:120])
    assert classifier.score(X[120:], kind[120:]) > 0.85


def test_partial_fit():
    X, kind = shapes()
    classifier = SeriesClassifier(**FAST)
    with pytest.raises(ValueError, match="classes is None; expected all classes in the first call"):
        classifier.partial_fit(X, kind)
    only = kind == 0
    classifier.partial_fit([one for one, first in zip(X, only, strict=True) if first], kind[only], classes=[0, 1])
    for _ in range(45):
        classifier.partial_fit(X[:80], kind[:80])
    assert len(classifier.loss_curve_) == 46
    assert classifier.score(X[80:], kind[80:]) > 0.85
    with pytest.raises(ValueError, match=r"classes is \[0, 2\]; expected array\(\[0, 1\]\)"):
        classifier.partial_fit(X, kind, classes=[0, 2])
    with pytest.raises(ValueError, match=r"y contains array\(\[7\]\); expected classes among"):
        classifier.partial_fit(X, np.where(np.arange(len(kind)) == 0, 7, kind))


def test_units_are_in_the_network():
    X = 1000 + 50 * np.random.default_rng(3).normal(0, 1, (40, 10))
    classifier = SeriesClassifier(epochs=1, **FAST).fit(X, np.arange(40) % 2)
    state = classifier.network_.state_dict()
    np.testing.assert_allclose(state["normalization.input_mean"], [X.mean(), 0])
    np.testing.assert_allclose(state["normalization.input_std"], [X.std(), 1])
    logits = classifier.network_(np.stack([X.T, np.zeros_like(X.T)], axis=2))
    powers = np.exp(logits.astype(float))
    np.testing.assert_allclose(classifier.predict_proba(X), powers / powers.sum(axis=1, keepdims=True), atol=1e-6)
