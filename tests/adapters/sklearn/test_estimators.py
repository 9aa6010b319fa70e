"""The series estimators keep scikit-learn's contract: its own checks, pipelines, searches, clones, pickles and frames."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastlstm.adapters.sklearn import SeriesAnomalyDetector, SeriesClassifier, SeriesForecaster

SMALL = {"hidden_size": 8, "epochs": 5, "random_state": 0}


@parametrize_with_checks([SeriesForecaster(), SeriesClassifier(), SeriesAnomalyDetector()])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_check_that_needs_a_variable_of_the_environment():
    program = (
        "from sklearn.utils.estimator_checks import check_array_api_input as check\n"
        "from fastlstm.adapters.sklearn import *\n"
        "for kind in (SeriesForecaster, SeriesClassifier, SeriesAnomalyDetector):\n"
        "    check(kind.__name__, kind(hidden_size=4, epochs=2), 'numpy', expect_only_array_outputs=False)\n"
    )
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def waves(count=12, steps=40, seed=0):
    """Sines of some phases, [count, steps]."""
    rng = np.random.default_rng(seed)
    return np.sin(np.arange(steps) / 3 + rng.uniform(0, 6, (count, 1))) + rng.normal(0, 0.1, (count, steps))


def fitted(kind, X, **arguments):
    y = (np.arange(len(X)) % 2,) if kind is SeriesClassifier else ()
    return kind(**{**SMALL, **arguments}).fit(X, *y)


KINDS = pytest.mark.parametrize("kind", [SeriesForecaster, SeriesClassifier, SeriesAnomalyDetector])


def outputs(estimator, X):
    """What an estimator says of X."""
    if isinstance(estimator, SeriesClassifier):
        return estimator.predict_proba(X)
    return estimator.score_steps(X) if isinstance(estimator, SeriesAnomalyDetector) else estimator.predict(X)


@KINDS
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_seed_decides_all(kind, cell):
    X = waves()
    X[2, 5:9] = np.nan
    one, same, other = (
        outputs(fitted(kind, X, cell=cell, num_layers=2, dropout=0.2, random_state=seed), X) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, same)
    assert np.nanmax(np.abs(one - other)) > 0


@KINDS
def test_a_series_is_read_alike_in_every_form_and_company(kind):
    X = waves()
    X[3, 30:] = np.nan  # shorter
    X[5, 10:14] = np.nan  # with a gap
    lengths = np.where(np.arange(len(X)) == 3, 30, 40)
    series = [row[:length] for row, length in zip(X, lengths, strict=True)]
    estimator = fitted(kind, X)
    expected = outputs(estimator, X)
    np.testing.assert_array_equal(outputs(estimator, X[..., None]), expected)
    np.testing.assert_array_equal(outputs(estimator, series), expected)
    np.testing.assert_array_equal(outputs(estimator, [one[:, None] for one in series]), expected)
    for n in (3, 5):
        alone = outputs(estimator, [series[n]])[0]
        np.testing.assert_array_equal(alone, expected[n][: len(alone)])
    again = fitted(kind, series)
    np.testing.assert_array_equal(outputs(again, X), expected)


@KINDS
def test_several_variables(kind):
    X = np.stack([waves(), 100 * waves(seed=1)], axis=2)
    estimator = fitted(kind, X)
    assert np.isfinite(outputs(estimator, X)).all()
    assert estimator.n_features_in_ == 2
    with pytest.raises(ValueError, match="X has 1 variables; expected 2, as in fit"):
        outputs(estimator, X[:, :, :1])


@KINDS
def test_clones_pickles_and_pipelines(kind):
    X = waves()
    estimator = fitted(kind, X)
    unfitted = clone(estimator)
    assert unfitted.get_params() == estimator.get_params()
    assert not hasattr(unfitted, "network_")
    np.testing.assert_array_equal(outputs(pickle.loads(pickle.dumps(estimator)), X), outputs(estimator, X))

    y = np.arange(len(X)) % 2
    pipeline = make_pipeline(StandardScaler(), kind(**SMALL)).fit(X, y)
    scaled = StandardScaler().fit_transform(X)
    np.testing.assert_array_equal(pipeline.predict(X), kind(**SMALL).fit(scaled, y).predict(scaled))


def test_searches_over_panels_without_y():
    X = list(waves(9, 50))
    search = GridSearchCV(SeriesForecaster(horizon=4, season_length=1, random_state=0), {"epochs": [1, 15]}, cv=3).fit(X)
    assert search.best_params_ == {"epochs": 15}
    assert search.best_score_ > 0.5  # the seasonal naive forecast has 0
    assert search.predict(X).shape == (9, 4)


def test_searches_in_processes():
    X, y = waves(40), np.arange(40) % 2
    X[y == 1] += 2
    classifier = SeriesClassifier(hidden_size=4, batch_size=4, random_state=0)
    search = GridSearchCV(classifier, {"epochs": [1, 12]}, cv=2, n_jobs=2).fit(X, y)
    assert search.best_params_ == {"epochs": 12}
    assert cross_val_score(search.best_estimator_, X, y, cv=2).min() > 0.9


def test_tables_may_have_names():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(waves(), columns=[f"t{k}" for k in range(40)])
    forecaster = SeriesForecaster(horizon=2, **SMALL).fit(table.iloc[:, :30])
    assert list(forecaster.feature_names_in_) == list(table.columns[:30])
    assert forecaster.predict(table).shape == (12, 2)  # time went on
    with pytest.raises(ValueError, match="unseen at fit time"):
        forecaster.predict(table.iloc[:, 1:])
    with pytest.raises(ValueError, match="now missing"):
        forecaster.predict(table.iloc[:, :29])


@KINDS
def test_tables_keep_their_columns_and_panels_need_not(kind):
    X = waves()
    estimator = fitted(kind, X[:, :30])
    wide = list(X)
    assert len(estimator.predict(wide)) == len(estimator.predict(X[..., None])) == 12
    with pytest.raises(ValueError, match="X has 29 features, but Series.* is expecting 30 features as input. .*list of arrays"):
        estimator.predict(X[:, :29])
    if kind is SeriesForecaster:
        np.testing.assert_array_equal(estimator.predict(X), estimator.predict(wide))
    else:
        with pytest.raises(ValueError, match="X has 40 features"):
            estimator.predict(X)


BAD_PANELS = [
    ([np.ones(3), np.array([])], ValueError, r"X\[1\] has shape \[0\]; expected \[T\] or \[T, F\]"),
    ([np.ones(3), np.array([1.0, np.inf])], ValueError, r"X\[1\] contains infinity"),
    ([np.ones(3), np.full(4, np.nan)], ValueError, "X has no observed value in series 1"),
    ([np.ones((3, 2)), np.ones((4, 3))], ValueError, "X has series of 2, 3 variables"),
    ([np.array(["a"]), np.ones(2)], TypeError, r"X\[0\] has dtype <U1; expected real numbers"),
    (np.ones((2, 0, 3)), ValueError, r"X has shape \[2, 0, 3\]; expected \[N, T, F\]"),
    (np.ones((2, 3, 1)) * 1j, TypeError, "X has dtype complex128"),
]


@KINDS
@pytest.mark.parametrize(("X", "error", "message"), BAD_PANELS, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_panels_are_named(kind, X, error, message):
    y = (np.arange(2),) if kind is SeriesClassifier else ()
    with pytest.raises(error, match=message):
        kind(**SMALL).fit(X, *y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": "elman"}, "cell is 'elman'; expected one of 'lstm', 'gru', 'rnn'"),
        ({"hidden_size": 0}, "hidden_size is 0; expected at least 1"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a number > 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
@KINDS
def test_bad_arguments_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        fitted(kind, waves(), **arguments)


def test_divergence_is_an_error():
    X = waves()
    with pytest.raises(ArithmeticError, match="try a smaller learning_rate"):
        SeriesForecaster(horizon=2, cell="rnn", learning_rate=1e30, random_state=0, dtype="float32").fit(X)


def test_without_scikit_learn_one_sentence_says_what_to_install(tmp_path):
    (tmp_path / "sklearn.py").write_text("raise ModuleNotFoundError(\"No module named 'sklearn'\", name='sklearn')")
    done = subprocess.run(
        [sys.executable, "-c", "import fastlstm.adapters.sklearn"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last == 'ImportError: fastlstm.adapters.sklearn needs scikit-learn: pip install "fastlstm[sklearn]"'
