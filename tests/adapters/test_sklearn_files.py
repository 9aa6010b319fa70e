"""Files of series estimators: exact, atomic, read without evaluating anything, and refused when they are not whole."""

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

import fastlstm
from fastlstm import checkpoint
from fastlstm.adapters import sklearn as adapter
from fastlstm.adapters.sklearn import SeriesAnomalyDetector, SeriesClassifier, SeriesForecaster

FAST = {"hidden_size": 6, "epochs": 2, "random_state": 0}


def waves(count=10, steps=40):
    rng = np.random.default_rng(0)
    return np.sin(np.arange(steps) / 3 + rng.uniform(0, 6, (count, 1))) + rng.normal(0, 0.1, (count, steps))


def made(kind, **arguments):
    X = waves()
    return kind(**FAST, **arguments).fit(X, *((np.array(["b", "a"])[np.arange(10) % 2],) if kind is SeriesClassifier else ()))


CASES = {
    "forecaster": (SeriesForecaster, {"horizon": 3, "season_length": 2, "quantiles": (0.1, 0.9), "weight_decay": 0.1}),
    "forecaster of means": (SeriesForecaster, {"horizon": 2, "cell": "gru", "num_layers": 2, "dropout": 0.1}),
    "classifier": (SeriesClassifier, {"bidirectional": True, "cell": "rnn"}),
    "detector": (SeriesAnomalyDetector, {"contamination": 0.2}),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def estimator(request):
    kind, arguments = CASES[request.param]
    return made(kind, **arguments)


def outputs(estimator, X):
    if isinstance(estimator, SeriesClassifier):
        return estimator.predict_proba(X)
    return estimator.score_steps(X) if isinstance(estimator, SeriesAnomalyDetector) else estimator.predict(X)


def continued(estimator):
    """What it says after one more epoch."""
    X = waves()
    y = (np.array(["b", "a"])[np.arange(10) % 2],) if isinstance(estimator, SeriesClassifier) else ()
    return outputs(estimator.partial_fit(X, *y), X)


def test_a_file_holds_all(estimator, tmp_path):
    X, path = waves(), tmp_path / "new" / "model.safetensors"
    estimator.save(path)
    for found in (type(estimator).load(path), adapter.load(path), pickle.loads(pickle.dumps(estimator))):
        assert type(found) is type(estimator)
        assert found.get_params() == estimator.get_params()
        np.testing.assert_array_equal(outputs(found, X), outputs(estimator, X))
        np.testing.assert_array_equal(found.loss_curve_, estimator.loss_curve_)
        assert found.n_features_in_ == 40
        found.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    # Training goes on as if it had never stopped: the optimizer and the order of examples are kept.
    np.testing.assert_array_equal(continued(type(estimator).load(path)), continued(estimator))


def test_quantiles_and_names_come_back(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(waves(), columns=[f"t{k}" for k in range(40)])
    forecaster = SeriesForecaster(quantiles=[0.25, 0.75], **FAST).fit(table)
    forecaster.save(tmp_path / "a")
    found = SeriesForecaster.load(tmp_path / "a")
    np.testing.assert_array_equal(found.predict_quantiles(table), forecaster.predict_quantiles(table))
    np.testing.assert_array_equal(found.feature_names_in_, forecaster.feature_names_in_)
    assert found.feature_names_in_.dtype == object


@pytest.mark.parametrize(
    "labels", [np.array([3, 1]), np.array([True, False]), np.array([1.0, 2.0]), np.array(["x", "yy"], object)]
)
def test_labels_of_any_kind(labels, tmp_path):
    X = waves()
    classifier = SeriesClassifier(**FAST).fit(X, labels[np.arange(10) % 2])
    classifier.save(tmp_path / "a")
    found = SeriesClassifier.load(tmp_path / "a")
    assert found.classes_.dtype == classifier.classes_.dtype
    np.testing.assert_array_equal(found.predict(X), classifier.predict(X))


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"random_state is RandomState\(.*; a file holds numbers, text and lists"):
        made(SeriesForecaster).set_params(random_state=np.random.RandomState(0)).save(tmp_path / "a")
    with pytest.raises(Exception, match="not fitted yet"):
        SeriesForecaster().save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    made(SeriesForecaster).save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        made(SeriesForecaster, horizon=2).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "a"
    made(SeriesClassifier).save(path)
    with pytest.raises(fastlstm.CheckpointError, match="holds a SeriesClassifier; expected SeriesForecaster"):
        SeriesForecaster.load(path)
    with pytest.raises(FileNotFoundError):
        adapter.load(tmp_path / "missing")
    path.write_bytes(pickle.dumps(made(SeriesForecaster)))
    with pytest.raises(fastlstm.CheckpointError, match="is damaged, or is not a checkpoint"):
        adapter.load(path)
    checkpoint.write_checkpoint(path, {"a": np.ones(2)}, {})
    with pytest.raises(fastlstm.CheckpointError, match="holds no estimator"):
        adapter.load(path)
    model = fastlstm.SequenceRegressor(1, 1, hidden_size=4)
    fastlstm.Trainer(model, progress=False).save(tmp_path / "run.safetensors")
    with pytest.raises(fastlstm.CheckpointError, match="holds no estimator"):
        adapter.load(tmp_path / "run.safetensors")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_cut_files_are_refused(part, tmp_path):
    path = tmp_path / "a"
    made(SeriesForecaster).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(fastlstm.CheckpointError, match="damaged"):
        adapter.load(path)


def _set(record, path, value):
    *inner, last = path
    for key in inner:
        record = record[key]
    if value is None:
        del record[last]
    else:
        record[last] = value


NETWORK = ("fitted", "parts", "network_")
FORGED = [
    (("estimator",), "os.system", "holds a os.system; expected SeriesForecaster"),
    (("estimator",), 3, "holds no estimator"),
    (("params", "system"), "echo", "unknown"),
    (("params",), [], "holds no estimator"),
    (("fitted", "parts", "extra"), {"kind": "plain", "value": 1}, "unknown"),
    (("fitted", "parts", "frame_"), None, "missing"),
    (("fitted", "parts", "seed_"), {"kind": "eval", "value": "print()"}, "kind 'eval'"),
    (("fitted", "parts", "seed_"), {"kind": "plain", "value": {"a": 1}}, "kind 'plain'"),
    (("fitted", "parts", "seed_"), 7, "TypeError"),
    (("fitted", "parts"), 7, "AttributeError"),
    ((*NETWORK, "kind"), "os", "kind 'os'"),
    ((*NETWORK, "config", "hidden_size"), 10**9, "hidden_size 1000000000; the arrays have 6"),
    ((*NETWORK, "config", "num_layers"), 10**9, "num_layers 1000000000; the arrays have 1"),
    ((*NETWORK, "config", "output_size"), 10**9, "output_size 1000000000; the arrays have"),
    ((*NETWORK, "config", "cell"), "os", "cell is 'os'"),
    ((*NETWORK, "config", "dtype"), "object", "dtype"),
    ((*NETWORK, "config", "more"), 1, "TypeError"),
    (("fitted", "parts", "optimizer_", "config", "type"), "eval", "type is 'eval'"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), FORGED, ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_forged_records_are_refused(path, value, message, tmp_path):
    made(SeriesForecaster).save(tmp_path / "a")
    arrays, record = checkpoint.read_checkpoint(tmp_path / "a")
    _set(record, path, value)
    checkpoint.write_checkpoint(tmp_path / "a", arrays, json.loads(json.dumps(record)))
    with pytest.raises(fastlstm.CheckpointError, match=message):
        adapter.load(tmp_path / "a")


def test_forged_arrays_are_refused(tmp_path):
    made(SeriesForecaster).save(tmp_path / "a")
    arrays, record = checkpoint.read_checkpoint(tmp_path / "a")
    del arrays["network_/rnn.bias_hh_l0"]
    checkpoint.write_checkpoint(tmp_path / "a", arrays, record)
    with pytest.raises(fastlstm.CheckpointError, match="bias_hh_l0"):
        adapter.load(tmp_path / "a")
