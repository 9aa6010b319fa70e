"""Models as plain C: compiled by the compilers that are here, compared with Python, sizes checked, bad input refused.

What needs a compiler is skipped, visibly, where there is none.
"""

import importlib.util
import pydoc_data.topics
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.adapters import c
from tests.adapters.c.programs import (
    LAYERS,
    STRICT,
    assert_close,
    build,
    command,
    dequantize,
    layer_outputs,
    make,
    needs_cc,
    run,
    sequences,
    strengthened,
)

SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SHAPES = [(1, 1, {}), (3, 5, {"num_layers": 2}), (4, 8, {"bias": False}), (7, 18, {"num_layers": 3, "batch_first": True})]
CASES = [
    *((kind, inputs, hidden, options) for kind in LAYERS for inputs, hidden, options in SHAPES),
    ("lstm", 3, 9, {"proj_size": 4, "num_layers": 2}),
    ("lstm", 5, 6, {"proj_size": 1, "bias": False}),
    ("lstm", 32, 64, {}),
    ("gru", 6, 11, {"dtype": "float64"}),
]


@needs_cc
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_equal_python(case, tmp_path):
    layer = make(*case)
    x = sequences(layer)
    assert_close(run(layer, x, tmp_path), layer_outputs(layer, x))


@needs_cc
@pytest.mark.parametrize("kind", LAYERS)
def test_long_sequences_stay_equal(kind, tmp_path):
    layer = make(kind, 4, 24)
    x = sequences(layer, batch=1, steps=20_000)
    assert_close(run(layer, x, tmp_path, flags=["-O3"]), layer_outputs(layer, x))


@needs_cc
@pytest.mark.parametrize("kind", LAYERS)
def test_fast_math_stays_equal(kind, tmp_path):
    layer = make(kind, 5, 16)
    x = sequences(layer)
    assert_close(run(layer, x, tmp_path, flags=["-O3", "-ffast-math"]), layer_outputs(layer, x))


@needs_cc
def test_an_integrator_stays_equal(tmp_path):
    """Gates that are almost shut and almost open: absolute errors of a sigmoid's tail would add up."""
    layer = fastlstm.LSTM(1, 1, seed=0)
    with layer.edit() as params:
        for values in params.values():
            values[...] = 0
        params["weight_ih_l0"][2] = 1
        params["bias_ih_l0"][:] = [-12, 20, 0.5, 3]  # i, f, g, o
    x = np.abs(sequences(layer, batch=1, steps=20_000))
    expected = layer_outputs(layer, x)
    assert 0.03 < expected[0, -1, 0] < 0.9
    assert_close(run(layer, x, tmp_path), expected)


@needs_cc
@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("tied", [False, True])
def test_language_models(tied, weights, cc, tmp_path):
    if shutil.which(cc) is None:
        pytest.skip(f"no {cc} here")
    cell, size = ("gru", None) if tied else ("lstm", 6)
    model = fastlstm.LanguageModel(13, cell, embedding_size=size, hidden_size=10, tie_weights=tied, seed=0)
    strengthened(model)
    ids = np.random.default_rng(1).integers(0, 13, (2, 200))
    if weights == "int8":
        dequantize(model)
    assert_close(run(model, ids, tmp_path, weights, cc=cc), model(ids.T)[0].swapaxes(0, 1))


@needs_cc
def test_tokens_out_of_range_are_refused_and_change_nothing(tmp_path):
    model = fastlstm.LanguageModel(7, hidden_size=4, seed=0)
    c.export(model, tmp_path, name="lm")
    main = """
#include "lm.h"
#include <string.h>
int main(void)
{
    lm_state state, before;
    float logits[LM_OUTPUT_SIZE], others[LM_OUTPUT_SIZE];
    lm_reset(&state);
    if (lm_step(&state, 3, logits) != 0 || lm_step(&state, LM_VOCAB_SIZE - 1, logits) != 0) return 1;
    before = state;
    memcpy(others, logits, sizeof logits);
    if (lm_step(&state, -1, logits) != -1 || lm_step(&state, LM_VOCAB_SIZE, logits) != -1) return 2;
    if (memcmp(&state, &before, sizeof state) || memcmp(logits, others, sizeof logits)) return 3;
    return 0;
}
"""
    command([build(tmp_path, "lm", main, SANITIZE)])


@needs_cc
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("horizon", [1, 3])
def test_regressors_after_every_step(horizon, normalize, tmp_path):
    model = fastlstm.SequenceRegressor(2, 2, horizon=horizon, cell="gru", hidden_size=9, normalize=normalize, seed=0)
    rng = np.random.default_rng(0)
    x = (rng.normal(0, 1, (1, 40, 2)) * [0.1, 30] + [2000, -5]).astype(np.float32)
    if normalize:
        model.fit_normalization(x, rng.normal(0, 1, (50, 2)) * [2, 500] + [70, 3])
    expected = np.stack([model.predict(x[0, : t + 1]).ravel() for t in range(40)])
    found = run(model, x, tmp_path)[0]
    # In units of what the model learned; beside stands the rounding of numbers that lie far from zero.
    unit = np.tile([2, 500], horizon) if normalize else 1
    assert (np.abs(found - expected) <= 1e-5 * unit + np.spacing(np.abs(expected))).all()


@needs_cc
def test_classifiers_after_every_step(tmp_path):
    model = fastlstm.SequenceClassifier(3, 4, cell="lstm", hidden_size=12, num_layers=2, proj_size=5, seed=0)
    x = sequences(model, batch=1, steps=30) * 5 + 100
    model.fit_normalization(x)
    expected = np.stack([model(x[0, : t + 1]) for t in range(30)])
    assert_close(run(model, x, tmp_path)[0], expected)


@needs_cc
@pytest.mark.parametrize("case", [*CASES[1:20:4], *CASES[20:]], ids=str)
def test_int8_is_python_with_rounded_weights(case, tmp_path):
    layer = make(*case)
    x = sequences(layer)
    exact = layer_outputs(layer, x)
    found = run(layer, x, tmp_path, "int8")
    assert_close(found, layer_outputs(dequantize(layer), x))
    assert np.abs(found - exact).max() > 1e-4, "weights were not rounded at all"


def test_floats_are_kept_to_the_bit(tmp_path):
    layer = fastlstm.LSTM(3, 5, seed=0)
    with layer.edit() as params:
        params["weight_ih_l0"][0] = [0.0, -0.0, 1e-42]
        params["weight_ih_l0"][1] = [np.finfo(np.float32).max, 1 / 3, -1]
    text = c.export(layer, tmp_path).source.read_text()
    numbers = re.search(r"weight_ih_l0_values\[60\] = \{(.*?)\}", text, re.DOTALL)[1]
    found = np.array([float.fromhex(number.strip().removesuffix("F")) for number in numbers.split(",")], np.float32)
    assert found.reshape(3, 20).T.tobytes() == layer.params["weight_ih_l0"].tobytes()


@needs_cc
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_sanitizers_find_nothing(weights, tmp_path):
    model = fastlstm.SequenceRegressor(3, 2, horizon=2, cell="lstm", hidden_size=7, num_layers=2, proj_size=3, seed=0)
    x = sequences(model, steps=50)
    x[1] *= 1e30  # gates far beyond where exp overflows
    found = run(model, x, tmp_path, weights, flags=SANITIZE)
    assert np.isfinite(found).all()
    for other in (make(kind, 2, 5) for kind in LAYERS):
        run(other, sequences(other, steps=50), tmp_path, weights, flags=SANITIZE)


@needs_cc
def test_not_a_number_is_passed_on(tmp_path):
    for layer in (make(kind, 2, 4) for kind in LAYERS):
        x = sequences(layer, batch=2, steps=6)
        x[0, 3, 1] = np.nan
        found = run(layer, x, tmp_path)
        assert np.isnan(found[0, 3:]).all()
        assert np.isfinite(found[0, :3]).all()
        assert np.isfinite(found[1]).all(), "a reset did not clear the state"


@needs_cc
def test_models_live_side_by_side_and_states_are_apart(tmp_path):
    """Two exports in one program, one of them with two states, outputs left out in between."""
    layer = fastlstm.GRU(2, 3, seed=1)
    c.export(layer, tmp_path, name="one")
    c.export(fastlstm.GRU(2, 3, seed=2), tmp_path, "int8", name="two")
    main = """
#include "one.h"
#include "two.h"
#include <stdio.h>
int main(void)
{
    static one_state a, b;
    static two_state other;
    const float up[] = {1, 2}, down[] = {-1, 0.5F};
    float output[ONE_OUTPUT_SIZE], rest[TWO_OUTPUT_SIZE];
    one_reset(&a); one_reset(&b); two_reset(&other);
    for (int t = 0; t < 5; t++) {
        one_step(&a, up, 0);
        one_step(&b, down, output);
        two_step(&other, down, rest);
    }
    one_step(&a, up, output);
    fwrite(output, sizeof output, 1, stdout);
    return 0;
}
"""
    program = build(tmp_path, "one", main, others=["two"])
    found = np.frombuffer(command([program]), np.float32)
    assert_close(found, layer(np.tile(np.float32([1, 2]), (6, 1)))[0][-1])


@needs_cc
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_sizes_are_those_of_the_compiled_program(weights, tmp_path):
    """The header's macros, the returned sizes and the compiler's own account agree."""
    model = fastlstm.SequenceRegressor(3, 2, horizon=2, cell="lstm", hidden_size=7, num_layers=2, proj_size=3, seed=0)
    done = c.export(model, tmp_path, weights)
    assert (done.header, done.source) == (tmp_path / "model.h", tmp_path / "model.c")
    macros = dict(re.findall(r"#define MODEL_(\w+) (\d+)", done.header.read_text()))
    assert {name: int(value) for name, value in macros.items()} == {
        "INPUT_SIZE": 3,
        "HORIZON": 2,
        "OUTPUT_SIZE": 4,
        "STATE_BYTES": done.state_bytes,
        "WEIGHT_BYTES": done.weight_bytes,
        "MACS_PER_STEP": done.macs_per_step,
    }
    assert done.macs_per_step == sum(values.size for values in model.params.values() if values.ndim == 2)
    # -O0 keeps every array as it is; matrices hold addresses and are no weights.
    command(["gcc", "-O0", "-c", done.source, "-o", tmp_path / "model.o"])
    symbols = re.findall(r"([0-9a-f]+) [rR] (\w+)\n", command(["nm", "-S", tmp_path / "model.o"]).decode())
    arrays = {name: int(size, 16) for size, name in symbols if not re.fullmatch(r"weight_\w\w_l\d|head", name)}
    assert sum(arrays.values()) == done.weight_bytes
    assert len(arrays) == (7 * (2 if weights == "int8" else 1)) + 2 + 1 + 3 + 2
    main = '#include "model.h"\nint main(void) { return sizeof(model_state) == MODEL_STATE_BYTES ? 0 : 1; }\n'
    command([build(tmp_path, "model", main)])


def test_tied_weights_are_kept_once(tmp_path):
    models = [fastlstm.LanguageModel(50, hidden_size=8, tie_weights=tied, seed=0) for tied in (False, True)]
    apart, tied = (c.export(model, tmp_path) for model in models)
    assert apart.weight_bytes - tied.weight_bytes == 4 * 50 * 8
    assert apart.macs_per_step == tied.macs_per_step == 4 * 8 * 8 * 4 + 50 * 8


@needs_cc
def test_the_header_serves_cpp(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    c.export(fastlstm.GRU(2, 3, seed=0), tmp_path)
    (tmp_path / "main.cpp").write_text(
        '#include "model.h"\nint main() { model_state s; model_reset(&s); float x[2] = {}; model_step(&s, x, nullptr); }\n'
    )
    command(["gcc", *STRICT, "-c", "model.c", "-o", "model.o"], cwd=tmp_path)
    command(["g++", "-Wall", "-Wextra", "-Werror", "-pedantic", "main.cpp", "model.o", "-o", "main", "-lm"], cwd=tmp_path)
    command([tmp_path / "main"])


def test_what_is_not_served_is_refused(tmp_path):
    layer = fastlstm.GRU(2, 3, seed=0)
    with pytest.raises(ValueError, match="bidirectional: its reverse direction starts at the end"):
        c.export(fastlstm.LSTM(2, 3, bidirectional=True), tmp_path)
    with pytest.raises(ValueError, match="bidirectional"):
        c.export(fastlstm.SequenceClassifier(2, 3, bidirectional=True), tmp_path)
    with pytest.raises(TypeError, match="model is Linear; expected an RNN, LSTM or GRU layer"):
        c.export(fastlstm.Linear(2, 3), tmp_path)
    with pytest.raises(ValueError, match="weights is 'int4'; expected one of 'float32', 'int8'"):
        c.export(layer, tmp_path, weights="int4")
    for name in ("", "2nd", "a-b", "_a", "größe", "a b", "a\n", "math", "Math", 3):
        with pytest.raises(ValueError, match="name is .*; expected letters"):
            c.export(layer, tmp_path, name=name)
    for bad in (np.nan, np.inf):
        with layer.edit() as params:
            params["weight_hh_l0"][1, 1] = bad
        with pytest.raises(ValueError, match="weight_hh_l0 has values that are not finite in float32"):
            c.export(layer, tmp_path)
    model = fastlstm.SequenceRegressor(1, 1, hidden_size=2, seed=0)
    model.load_state_dict(model.state_dict() | {"normalization.input_std": np.array([1e-60])})
    with pytest.raises(ValueError, match="input_std has values down to 1e-60"):
        c.export(model, tmp_path)
    assert not list(tmp_path.iterdir()), "a refused export left a file"


def test_the_same_model_gives_the_same_files(tmp_path):
    model = fastlstm.LanguageModel(9, hidden_size=4, seed=0)
    one, two = c.export(model, tmp_path / "a" / "b", "int8"), c.export(model, str(tmp_path / "c"), "int8")
    assert one.source.read_bytes() == two.source.read_bytes()
    assert one.header.read_bytes() == two.header.read_bytes()


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).resolve().parents[3] / "examples" / "embedded.py"
    spec = importlib.util.spec_from_file_location("embedded", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_cc
def test_int8_of_a_trained_classifier(example, capsys):
    """The example trains a classifier that is right; float32 C is Python, int8 C nearly so."""
    found = example.main(["--runs", "2000", "--epochs", "12"])
    python, float32, int8 = (found[name] for name in ("python", "float32", "int8"))
    assert python["accuracy"] > 0.9
    assert float32["agreement"] == 1
    assert float32["largest"] < 1e-5 * python["largest"]
    assert int8["agreement"] > 0.98
    assert 1e-4 < int8["mean"] < 0.01 * python["largest"]
    assert "us for a step" in capsys.readouterr().out


def test_the_example_without_compilers(example, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert list(example.main(["--runs", "200", "--epochs", "1"])) == ["python"]
    assert "No C compiler here" in capsys.readouterr().out


@needs_cc
def test_int8_of_a_trained_language_model(tmp_path):
    """Loss per character, in nats, on text that was learned; an untrained model's is log V."""
    text = pydoc_data.topics.topics["lambda"] + pydoc_data.topics.topics["for"]
    symbols = sorted(set(text))
    ids = np.array([symbols.index(letter) for letter in text])
    model = fastlstm.LanguageModel(len(symbols), hidden_size=64, num_layers=1, seed=0)
    data = fastlstm.TokenStream(ids, batch_size=4, seq_len=32)
    fastlstm.Trainer(model, fastlstm.Adam(lr=1e-2), progress=False).fit(data, epochs=30)
    read, target = ids[None, :-1], ids[1:]
    losses = {}
    for weights in ("float32", "int8"):
        logits = run(model, read, tmp_path, weights)[0].astype(np.float64)
        losses[weights] = float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(target)), target]))
        if weights == "float32":
            assert_close(logits, model(read.T)[0][:, 0])
    assert losses["float32"] < 1.0 < np.log(len(symbols))
    assert abs(losses["int8"] - losses["float32"]) < 0.02
