"""Exporting ONNX: every layer and model passes onnx's checker and gives in onnxruntime what it gives here."""

import itertools
import json
import os

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

import fastlstm
from fastlstm.adapters import onnx as adapter
from tests.adapters.onnx.models import assert_close, by_runtime

SIZES = ((4, 3), (1, 1), (9, 2))
LAYERS = [
    (fastlstm.RNN, {}),
    (fastlstm.RNN, {"nonlinearity": "relu"}),
    (fastlstm.LSTM, {}),
    (fastlstm.GRU, {}),
    (fastlstm.GRU, {"reset_after": False}),
]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def exported(model, path, **options):
    """The file's path as text, checked."""
    adapter.export(model, path, **options)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return str(path)


def agree(path, inputs, wanted, atol=1e-5):
    """onnxruntime and `load` both give what is wanted."""
    for got in (by_runtime(path, inputs), adapter.load(path)(inputs)):
        assert_close(got, wanted, atol)


def named(layer, out, state):
    parts = state if isinstance(layer, fastlstm.LSTM) else (state,)
    return {"out": out} | dict(zip(("h_n", "c_n"), parts, strict=False))


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(("kind", "extra"), LAYERS)
def test_layers(tmp_path, kind, extra, num_layers, lengths):
    for bidirectional, bias, batch_first in itertools.product((False, True), repeat=3):
        options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
        layer = kind(3, 5, **options, **extra, seed=1)
        path = exported(layer, tmp_path / "layer.onnx", lengths=lengths)
        for steps, batch in SIZES:
            inputs = {"x": normal(2, *((batch, steps) if batch_first else (steps, batch)), 3)}
            valid = {"lengths": np.random.default_rng(3).integers(1, steps + 1, batch).astype(np.int32)} if lengths else {}
            agree(path, inputs | valid, named(layer, *layer(inputs["x"], **valid)))
            parts = [normal(4 + k, num_layers * (1 + bidirectional), batch, 5) for k in range(1 + (kind is fastlstm.LSTM))]
            out, state = layer(inputs["x"], tuple(parts) if len(parts) == 2 else parts[0], **valid)
            agree(path, inputs | valid | dict(zip(("h_0", "c_0"), parts, strict=False)), named(layer, out, state))


def test_a_layer_looks_the_same_outside(tmp_path):
    path = exported(fastlstm.LSTM(3, 5, num_layers=2, batch_first=True, seed=0), tmp_path / "a.onnx", lengths=True)
    session = onnxruntime.InferenceSession(path)
    assert [(value.name, value.shape, value.type) for value in session.get_inputs()] == [
        ("x", ["batch", "time", 3], "tensor(float)"),
        ("lengths", ["batch"], "tensor(int32)"),
    ]
    optional = [(value.name, value.shape) for value in session.get_overridable_initializers()]
    assert sorted(optional) == [("c_0", [2, "batch", 5]), ("h_0", [2, "batch", 5])]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [
        ("out", ["batch", "time", 5]),
        ("h_n", [2, "batch", 5]),
        ("c_n", [2, "batch", 5]),
    ]
    found = onnx.load(path)
    assert found.producer_name == "fastlstm"
    assert found.producer_version == fastlstm.__version__
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", 17)]
    assert found.ir_version == 8


def test_a_layer_state_may_be_carried(tmp_path):
    layer = fastlstm.GRU(3, 5, num_layers=2, seed=0)
    path, x = exported(layer, tmp_path / "a.onnx"), normal(0, 8, 2, 3)
    first = by_runtime(path, {"x": x[:3]})
    second = by_runtime(path, {"x": x[3:], "h_0": first["h_n"]})
    out, state = layer(x)
    np.testing.assert_allclose(np.concatenate([first["out"], second["out"]]), out, atol=1e-5)
    np.testing.assert_allclose(second["h_n"], state, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_steps_leave_the_state(tmp_path, bidirectional):
    for layer in (
        fastlstm.LSTM(3, 5, num_layers=2, bidirectional=bidirectional, seed=0),
        fastlstm.LanguageModel(7, hidden_size=5, seed=0),
    ):
        run, count = adapter.load(exported(layer, tmp_path / "a.onnx")), 4 if layer.shape.bidirectional else 2
        name, x = ("x", np.zeros((0, 2, 3))) if isinstance(layer, fastlstm.LSTM) else ("ids", np.zeros((0, 2), int))
        state = {"h_0": normal(0, count, 2, 5), "c_0": normal(1, count, 2, 5)}
        found = run({name: x} | state)
        assert next(iter(found.values())).shape[:2] == (0, 2)
        assert np.array_equal(found["h_n"], state["h_0"])
        assert np.array_equal(found["c_n"], state["c_0"])


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_states_as_asked(tmp_path, cell, batch_first, capfd):
    """Of optional ones, which have a default, onnxruntime says at each load that it cannot fold them; of others nothing."""
    layer = getattr(fastlstm, cell.upper())(3, 5, num_layers=2, bidirectional=True, batch_first=batch_first, seed=0)
    model = fastlstm.LanguageModel(7, cell, hidden_size=5, seed=0)
    parts = ("h_0", "c_0")[: 1 + (cell == "lstm")]
    severity = onnxruntime.set_default_logger_severity
    for made, name in ((layer, "x"), (model, "ids")):
        for states, wanted in (("optional", ()), ("required", parts), ("zeros", ())):
            path = exported(made, tmp_path / f"{states}.onnx", states=states)
            severity(2)
            try:
                session = onnxruntime.InferenceSession(path)
            finally:
                severity(4)
            assert capfd.readouterr().err.count("appears in graph inputs") == (len(parts) if states == "optional" else 0)
            assert [one.name for one in session.get_inputs()] == [name, *wanted]
            assert len(session.get_overridable_initializers()) == (len(parts) if states == "optional" else 0)
        for steps, batch in SIZES:
            shape = (batch, steps) if batch_first and name == "x" else (steps, batch)
            x = normal(1, *shape, 3) if name == "x" else np.ones(shape, int)
            count = 4 if made is layer else 2
            given = [normal(k, count, batch, 5) for k, _ in enumerate(parts)]
            for states, state in (("zeros", None), ("required", tuple(given) if len(parts) == 2 else given[0])):
                out, last = made(x, state)
                wanted = {"out" if made is layer else "logits": out}
                wanted |= dict(zip(("h_n", "c_n"), last if cell == "lstm" else (last,), strict=False))
                agree(
                    str(tmp_path / f"{states}.onnx"),
                    {name: x} | (dict(zip(parts, given)) if state is not None else {}),  # noqa: B905
                    wanted,
                )
    with pytest.raises(ValueError, match="states is 'none'; expected one of 'optional', 'required', 'zeros'"):
        adapter.export(layer, tmp_path / "a.onnx", states="none")


@pytest.mark.parametrize("kind", [fastlstm.RNN, fastlstm.LSTM, fastlstm.GRU])
def test_dtypes(tmp_path, kind):
    x = np.random.default_rng(0).normal(size=(5, 2, 3))
    double = kind(3, 5, num_layers=2, bidirectional=True, dtype="float64", seed=0)
    wanted = named(double, *double(x))
    path = exported(double, tmp_path / "double.onnx", dtype="float64")
    assert_close(adapter.load(path)({"x": x}), wanted, atol=1e-12)
    session = ReferenceEvaluator(path)  # onnxruntime has no recurrent operators in float64
    found = dict(zip(session.output_names, session.run(None, {"x": x}), strict=True))
    if kind is not fastlstm.GRU:  # in which onnx's own evaluator takes every GRU for the original one
        assert_close(found, wanted, atol=1e-10)

    single = {name: array.astype(np.float32) for name, array in wanted.items()}
    agree(exported(double, tmp_path / "single.onnx"), {"x": x.astype(np.float32)}, single)
    narrow = kind(3, 5, num_layers=2, bidirectional=True, dtype="bfloat16", seed=0)
    narrow.load_state_dict(double.state_dict())
    agree(exported(narrow, tmp_path / "narrow.onnx"), {"x": x.astype(np.float32)}, single)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_language_models(tmp_path, cell, tied, num_layers):
    model = fastlstm.LanguageModel(
        11,
        cell,
        embedding_size=None if tied else 5,
        hidden_size=8,
        num_layers=num_layers,
        tie_weights=tied,
        dropout=0.5,
        reset_after=False,
        seed=0,
    )
    path = exported(model, tmp_path / "model.onnx")
    assert {value.name for value in onnx.load(path).graph.initializer if value.name.startswith(("head.", "embedding."))} == {
        "embedding.weight",
        "head.bias",
        *(() if tied else ("head.weight",)),
    }
    state, inputs = None, {}
    for steps, batch in ((6, 3), (1, 3), (4, 3)):
        inputs["ids"] = np.random.default_rng(steps).integers(0, 11, (steps, batch))
        logits, state = model(inputs["ids"], state)
        parts = dict(zip("hc", state if cell == "lstm" else (state,), strict=False))
        agree(path, inputs, {"logits": logits} | {f"{part}_n": array for part, array in parts.items()})
        inputs |= {f"{part}_0": array for part, array in parts.items()}
    assert json.loads(adapter.load(path).metadata["model"]) == model.config


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
def test_series_models(tmp_path, cell, bidirectional, normalize, lengths):
    options = {"cell": cell, "hidden_size": 8, "bidirectional": bidirectional, "normalize": normalize, "seed": 0}
    # A mean that is large beside the deviations: float32 alone would lose what the network reads.
    x = (normal(1, 7, 4, 3) * [0.01, 20, 3] + ([500, 3000, -7] if normalize else 0)).astype(np.float32)
    inputs = {"x": x} | ({"lengths": np.array([7, 1, 3, 5], np.int32)} if lengths else {})
    valid = inputs.get("lengths")

    regressor = fastlstm.SequenceRegressor(3, 2, horizon=4, num_layers=2, **options)
    if normalize:
        regressor.fit_normalization(x, normal(2, 9, 2) * [3, 0.1] + [100, -2])
    wanted = {"prediction": regressor.predict(x, valid)}
    assert wanted["prediction"].shape == (4, 4, 2)
    agree(exported(regressor, tmp_path / "a.onnx", lengths=lengths), inputs, wanted)

    classifier = fastlstm.SequenceClassifier(3, 5, **options)
    if normalize:
        classifier.fit_normalization(x)
    wanted = {"logits": classifier(x, valid), "probabilities": classifier.predict_probabilities(x, valid)}
    path = exported(classifier, tmp_path / "b.onnx", lengths=lengths)
    agree(path, inputs, wanted)
    for steps, batch in SIZES:
        other = {"x": x[:1].repeat(steps, 0)[:, :1].repeat(batch, 1)}
        other |= {"lengths": np.full(batch, steps, np.int32)} if lengths else {}
        assert by_runtime(path, other)["logits"].shape == (batch, 5)


def test_a_trained_forecaster_in_double(tmp_path):
    wave = np.sin(np.arange(200) / 5) * 3 + 20
    x, y = np.stack([wave[k : k + 20, None] for k in range(150)]), np.stack([wave[k + 20 : k + 22, None] for k in range(150)])
    model = fastlstm.SequenceRegressor(1, 1, horizon=2, hidden_size=8, dtype="float64", seed=0)
    fastlstm.Trainer(model, progress=False).fit(fastlstm.Batches(x, y, seed=0), epochs=2)
    inputs = x[:5].swapaxes(0, 1)
    path = exported(model, tmp_path / "double.onnx", dtype="float64")
    assert_close(adapter.load(path)({"x": inputs}), {"prediction": model.predict(inputs)}, atol=1e-12)
    wanted = {"prediction": model.predict(inputs).astype(np.float32)}
    agree(exported(model, tmp_path / "single.onnx"), {"x": inputs.astype(np.float32)}, wanted)


# Files


def test_metadata(tmp_path):
    model = fastlstm.SequenceClassifier(2, 3, hidden_size=4, seed=0)
    path = exported(model, tmp_path / "a.onnx", metadata={"labels": "a b c"})
    assert adapter.load(path).metadata == {"model": json.dumps(model.config), "labels": "a b c"}
    assert adapter.load(exported(fastlstm.RNN(2, 3, seed=0), tmp_path / "b.onnx")).metadata == {}


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    path, layer = tmp_path / "new" / "a.onnx", fastlstm.RNN(2, 3, seed=0)
    adapter.export(layer, path)
    assert [file.name for file in path.parent.iterdir()] == ["a.onnx"]
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError("no space")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="no space"):
                adapter.export(fastlstm.GRU(2, 3, seed=0), path)
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir()] == ["a.onnx"]
    adapter.export(fastlstm.GRU(2, 3, seed=0), path)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: fastlstm.LSTM(2, 4, proj_size=3, seed=0), {}, ValueError, "proj_size is 3; expected 0: ONNX's LSTM has no"),
        (lambda: fastlstm.LanguageModel(5, hidden_size=4, proj_size=2, seed=0), {}, ValueError, "proj_size is 2; expected 0"),
        (lambda: fastlstm.LanguageModel(5, hidden_size=4, seed=0), {"lengths": True}, ValueError, "lengths is True; expected"),
        (lambda: fastlstm.RNN(2, 3, seed=0), {"dtype": "float16"}, ValueError, "dtype is 'float16'; expected one of 'float32'"),
        (lambda: fastlstm.LSTMCell(2, 3, seed=0), {}, TypeError, "model is LSTMCell; expected an RNN, LSTM or GRU layer"),
        (lambda: "model", {}, TypeError, "model is str; expected an RNN, LSTM or GRU layer, a LanguageModel, a Sequ"),
    ],
)
def test_what_onnx_cannot_hold(tmp_path, make, options, error, message):
    with pytest.raises(error, match=message):
        adapter.export(make(), tmp_path / "a.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_model_of_more_than_two_gibibytes(tmp_path, monkeypatch):
    monkeypatch.setattr("fastlstm.adapters.onnx.convert._LARGEST", 2**20 + 100)
    with pytest.raises(ValueError, match="bytes of weights; expected less than 2 GiB"):
        adapter.export(fastlstm.RNN(9, 9, seed=0), tmp_path / "a.onnx")
