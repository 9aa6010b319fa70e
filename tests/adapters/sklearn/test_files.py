"""Files of series estimators: exact, atomic, read without evaluating anything, and refused when they are not whole."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

import fastlstm
from fastlstm.adapters import sklearn as adapter
from fastlstm.adapters.sklearn import SeriesAnomalyDetector, SeriesClassifier, SeriesForecaster
from fastlstm.training import checkpoint

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


def test_what_load_would_refuse_is_not_saved(tmp_path):
    detector = SeriesAnomalyDetector(**FAST)
    with np.errstate(all="ignore"):
        detector.fit(waves() * 1e300)
    with pytest.raises(ValueError, match="expected finite numbers"):
        detector.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_loading_warns_of_nothing_that_its_writer_chose(tmp_path, recwarn):
    with pytest.warns(UserWarning, match="does nothing here"):
        forecaster = SeriesForecaster(dropout=0.5, **FAST).fit(waves())
    forecaster.save(tmp_path / "a")
    recwarn.clear()
    SeriesForecaster.load(tmp_path / "a")
    pickle.loads(pickle.dumps(forecaster))
    assert not recwarn.list


def test_messages_name_the_first_offender():
    detector = made(SeriesAnomalyDetector)
    detector.error_ = np.array([np.inf])
    with pytest.raises(ValueError, match="^error_ has inf; expected finite numbers above 0"):
        detector._check_fitted()
    detector.feature_names_in_ = np.array(["a", "b"], object)
    with pytest.raises(ValueError, match="^feature_names_in_ has 2 names; expected 40, as n_features_in_"):
        detector._check_fitted()
    classifier = made(SeriesClassifier)
    classifier.classes_ = classifier.classes_[::-1]
    with pytest.raises(ValueError, match="^classes_ .*; expected one axis, sorted, without repeats"):
        classifier._check_fitted()


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
    (("params", "system"), "echo", "params has the unknown 'system'"),
    (("params",), [], "holds no estimator"),
    (("params", "cell"), {}, "params.cell is {}; expected a number, text"),
    (("params", "cell"), "os", "cell is 'os'"),
    (("params", "quantiles"), 7, "params: "),
    (("params", "batch_size"), "7", "params: batch_size is '7'"),
    (("fitted", "parts", "extra"), {"kind": "plain", "value": 1}, "fitted.parts has the unknown 'extra'"),
    (("fitted", "parts", "frame_"), None, "fitted.parts lacks frame_"),
    (("fitted", "parts", "seed_"), {"kind": "eval", "value": "print()"}, "seed_.kind is 'eval'; expected one of 'plain'"),
    (("fitted", "parts", "seed_"), {"kind": "plain", "value": {"a": 1}}, "seed_.value is .*; expected a whole number"),
    (("fitted", "parts", "seed_"), 7, "fitted.parts.seed_ is 7; expected an object"),
    (("fitted", "parts", "table_"), {"kind": "plain", "value": 1}, "table_.value is 1; expected true or false"),
    (("fitted", "parts", "n_variables_"), {"kind": "plain", "value": 2}, "n_variables_ is 2; expected 1"),
    (("fitted", "parts", "form_"), {"kind": "plain", "value": "rows"}, "form_.value is 'rows'"),
    (("fitted", "parts", "levels_"), {"kind": "plain", "value": 0.5}, "levels_ has the unknown 'value'; expected kind"),
    (("fitted", "parts", "frame_", "parts", "horizon", "value"), 10**9, "horizon.value is .*; expected .* to 1000000"),
    (("fitted", "parts", "frame_", "parts", "naive", "value"), 3, "naive.value is 3; expected true or false"),
    (("fitted", "parts"), 7, "fitted.parts is 7; expected an object"),
    ((*NETWORK, "kind"), "os", "kind is 'os'"),
    ((*NETWORK, "config", "hidden_size"), 10**9, r"expected \[4000000000, .*\] of float32, by fitted.network_.config"),
    ((*NETWORK, "config", "num_layers"), 10**9, "num_layers is 1000000000; expected at most 6"),
    ((*NETWORK, "config", "output_size"), 10**9, r"array head.bias is \[1\] of float32; expected \[1000000000\]"),
    ((*NETWORK, "config", "levels"), [0.5], r"network_.levels is \[0.5\]; expected \[\], as levels_"),
    ((*NETWORK, "config", "cell"), "os", "cell is 'os'"),
    ((*NETWORK, "config", "dtype"), "object", "dtype"),
    ((*NETWORK, "config", "dtype"), "float64", "expected .* of float64"),
    ((*NETWORK, "config", "more"), 1, "has the unknown 'more'"),
    ((*NETWORK, "random_state"), 7, "random_state is 7; expected an object"),
    (("fitted", "parts", "optimizer_", "config", "type"), "eval", "type is 'eval'"),
    (("fitted", "parts", "optimizer_", "config", "betas"), [0.9], "betas is .*; expected a list of 2"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), FORGED, ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_forged_records_are_refused(path, value, message, tmp_path):
    made(SeriesForecaster).save(tmp_path / "a")
    arrays, record = checkpoint.read_checkpoint(tmp_path / "a")
    _set(record, path, value)
    checkpoint.write_checkpoint(tmp_path / "a", arrays, json.loads(json.dumps(record)))
    with pytest.raises(fastlstm.CheckpointError, match=message) as told:
        adapter.load(tmp_path / "a")
    assert str(tmp_path / "a") in str(told.value)


@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        (SeriesForecaster, "network_/rnn.bias_hh_l0", None, "bias_hh_l0"),
        (SeriesForecaster, "network_/more", np.ones(2), "unknown .*more"),
        (SeriesForecaster, "nobody/", np.ones(2), "array 'nobody/' is unknown"),
        (SeriesForecaster, "network_/head.bias", np.zeros((1, 1), np.float32), "head.bias is .*; expected"),
        (SeriesForecaster, "optimizer_/m", np.zeros(3, np.float32), r"array m is \[3\]"),
        (SeriesForecaster, "optimizer_/m.x", np.zeros(3, np.float32), "array 'm.x' is unknown"),
        (SeriesForecaster, "frame_/inputs/scale/", np.zeros(1), "frame_.inputs.scale has 0.0; expected finite numbers above 0"),
        (SeriesForecaster, "frame_/targets/center/", np.full(1, np.nan), "frame_.targets.center has NaN"),
        (SeriesForecaster, "frame_/targets/scale/", np.ones(2), "frame_.targets.*is"),
        (SeriesForecaster, "levels_/", np.array([0.5, 0.1]), "levels_ is .*; expected rising levels"),
        (SeriesForecaster, "loss_curve_/", np.zeros(2, np.int8), "loss_curve_ is .* of int8"),
        (SeriesAnomalyDetector, "error_/", np.ones((1, 1)), "error_ is"),
        (SeriesAnomalyDetector, "units_/scale/", np.ones(0), "units_.scale is"),
        (SeriesClassifier, "network_/normalization.input_std", np.zeros(2), "normalization.input_std is .* above 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_forged_arrays_are_refused(kind, name, change, message, tmp_path):
    made(kind).save(tmp_path / "a")
    arrays, record = checkpoint.read_checkpoint(tmp_path / "a")
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change
    checkpoint.write_checkpoint(tmp_path / "a", arrays, record)
    with pytest.raises(fastlstm.CheckpointError, match=message):
        adapter.load(tmp_path / "a")


def test_classes_are_as_many_as_the_network_knows(tmp_path):
    made(SeriesClassifier).save(tmp_path / "a")
    arrays, record = checkpoint.read_checkpoint(tmp_path / "a")
    for values, message in (["b", "a"], "one axis, sorted, without repeats"), (["a", "b", "c"], "num_classes is 2; expected 3"):
        record["fitted"]["parts"]["classes_"]["values"] = values
        checkpoint.write_checkpoint(tmp_path / "a", arrays, record)
        with pytest.raises(fastlstm.CheckpointError, match=message):
            adapter.load(tmp_path / "a")


def test_quantiles_named_after_fit_are_refused():
    forecaster = made(SeriesForecaster, quantiles=(0.1,)).set_params(quantiles=(0.1, 0.99))
    with pytest.raises(ValueError, match=r"quantiles is \(0.1, 0.99\); expected the levels to be named before fit"):
        forecaster.predict_quantiles(waves())


def test_what_cannot_be_read_again_is_not_saved(tmp_path):
    forecaster = made(SeriesForecaster)
    forecaster.frame_ = dataclasses.replace(forecaster.frame_, window=2_000_000)
    with pytest.raises(ValueError, match="window.value is 2000000; expected a whole number from 1 to 1000000"):
        forecaster.save(tmp_path / "a")
    with pytest.raises(ValueError, match="cell is 'os'"):
        made(SeriesForecaster).set_params(cell="os").save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
