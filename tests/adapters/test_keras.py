"""Weights between Keras 3 and fastlstm, against the real Keras on PyTorch's backend; and files that are not what they say."""

import ctypes
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import fastlstm

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

from fastlstm.adapters.keras import Activation, Chain, Last, from_keras, to_keras  # noqa: E402

# Keras's own, in every conversion to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

L = keras.layers
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
CELLS = {
    "rnn": (L.SimpleRNN, {}),
    "relu": (L.SimpleRNN, {"activation": "relu"}),
    "lstm": (L.LSTM, {}),
    "gru": (L.GRU, {}),
    "gru before": (L.GRU, {"reset_after": False}),
}


def numpy(value):
    return keras.ops.convert_to_numpy(value)


def settle(layer, seed=0):
    """Random weights everywhere, biases too, which Keras starts at zero."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(0, 0.4, weight.shape) for weight in layer.get_weights()])
    return layer


def built(layer, width, seed=0):
    layer.build((None, None, width))
    return settle(layer, seed)


def inputs(batch=3, steps=7, width=5, dtype="float32", seed=1):
    return np.random.default_rng(seed).normal(size=(batch, steps, width)).astype(dtype)


def close(found, expected, dtype="float32", atol=None):
    found, expected = numpy(found), numpy(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol or TOLERANCE[dtype])


def same_weights(one, other):
    assert len(one.get_weights()) == len(other.get_weights()) > 0
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def same_parameters(one, other):
    assert dict(one.params).keys() == dict(other.params).keys()
    for name in one.params:
        np.testing.assert_array_equal(one.params[name], other.params[name])


# Layers


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_layers_give_the_same_both_ways(cell, bias, bidirectional, dtype):
    make, options = CELLS[cell]
    theirs = make(6, use_bias=bias, return_sequences=True, return_state=True, dtype=dtype, **options)
    if bidirectional:
        theirs = L.Bidirectional(theirs, dtype=dtype)
    built(theirs, 5)
    # What Keras loops over itself on PyTorch is some 1e-7 from NumPy's float64; LSTM and GRU it leaves to PyTorch.
    atol = 1e-6 if dtype == "float64" and cell not in ("lstm", "gru") else None
    x, rng = inputs(dtype=dtype), np.random.default_rng(2)
    out, *state = theirs(x)
    ours = from_keras(theirs)
    assert ours.batch_first
    assert ours.dtype == dtype
    found, final = ours(x)
    close(found, out, dtype, atol)
    parts, directions = (2 if cell == "lstm" else 1), 1 + bidirectional
    final = final if parts == 2 else (final,)
    for k, value in enumerate(state):
        close(final[k % parts][k // parts], value, dtype, atol)
    given = rng.normal(size=(parts, directions, 3, 6)).astype(dtype)
    starts = [keras.ops.convert_to_tensor(given[p, d]) for d in range(directions) for p in range(parts)]
    close(ours(x, tuple(given) if parts == 2 else given[0])[0], theirs(x, initial_state=starts)[0], dtype, atol)
    back = to_keras(ours)
    same_weights(back, theirs)
    assert type(back) is type(theirs)
    close(back(x), out, dtype, atol)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("kind", "options"), [
    ("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("LSTM", {}), ("LSTM", {"bias": False}), ("GRU", {}),
    ("GRU", {"reset_after": False}),
])  # fmt: skip
def test_own_layers_go_to_keras_and_come_back(kind, options, bidirectional, num_layers):
    dropout = 0.25 if num_layers > 1 else 0.0
    ours = getattr(fastlstm, kind)(
        5, 6, num_layers, bidirectional=bidirectional, batch_first=True, dropout=dropout, seed=3, **options
    )
    x = inputs()
    theirs = to_keras(ours)
    close(theirs(x), ours(x)[0])
    assert isinstance(theirs, keras.Sequential) == (num_layers > 1)
    last = ours(x)[0]
    close(to_keras(ours, return_sequences=False)(x), np.concatenate([last[:, -1, :6], last[:, 0, 6:]], axis=-1))
    back = from_keras(theirs)
    assert repr(back) == repr(ours)
    close(back(x)[0], ours(x)[0])
    same_weights(to_keras(back), theirs)
    same_parameters(from_keras(to_keras(back)), back)
    if (kind == "GRU" and ours.reset_after) or not ours.bias:
        same_parameters(back, ours)  # nothing is summed on the way


def test_a_time_major_layer_goes_as_well():
    ours, x = fastlstm.GRU(5, 6, seed=0), inputs()
    close(to_keras(ours)(x), ours(x.swapaxes(0, 1))[0].swapaxes(0, 1))


def test_both_biases_of_reset_after_are_kept_apart():
    ours = fastlstm.GRU(2, 3, seed=0)
    bias = to_keras(ours).get_weights()[2]
    z, r, n = (ours.params["bias_hh_l0"][3 * k : 3 * k + 3] for k in (1, 0, 2))
    np.testing.assert_array_equal(bias[1], np.concatenate([z, r, n]))
    theirs = to_keras(fastlstm.LSTM(2, 3, seed=0))
    assert theirs.get_weights()[2].shape == (12,)


def test_random_layers_and_stacks():
    rng = np.random.default_rng(4)
    for trial in range(40):
        make, options = CELLS[rng.choice(list(CELLS))]
        width, units, depth, bias, twice = (int(n) for n in rng.integers((1, 1, 1, 0, 0), (9, 12, 4, 2, 2)))
        layers = []
        for _ in range(depth):
            one = make(units, use_bias=bool(bias), return_sequences=True, **options)
            layers.append(L.Bidirectional(one) if twice else one)
        theirs = settle(keras.Sequential([keras.Input((None, width)), *layers]), trial)
        x = inputs(int(rng.integers(1, 5)), int(rng.integers(1, 9)), width, seed=trial)
        ours = from_keras(theirs)
        assert (ours.num_layers, ours.hidden_size, ours.bidirectional, ours.bias) == (depth, units, bool(twice), bool(bias))
        close(ours(x)[0], theirs(x))
        again = to_keras(ours)
        close(again(x), theirs(x))
        same_weights(again, theirs)


def test_bfloat16_is_a_mixed_policy():
    ours = fastlstm.LSTM(5, 6, dtype="bfloat16", batch_first=True, seed=0)
    theirs = to_keras(ours)
    assert theirs.dtype_policy.name == "mixed_bfloat16"
    back = from_keras(theirs)
    assert back.dtype == "bfloat16"
    same_weights(to_keras(back), theirs)
    np.testing.assert_allclose(back(inputs())[0], ours(inputs())[0], atol=1e-2)


# Chains and models


def sequential(*layers, entry=(None, 5), **options):
    return settle(keras.Sequential([keras.Input(entry, **options), *layers]))


def ids(batch=3, steps=6, vocabulary=7):
    return np.random.default_rng(5).integers(0, vocabulary, (batch, steps))


def same_chain(theirs, x, dtype="float32"):
    """Both ways, and through a file."""
    ours = from_keras(theirs)
    assert isinstance(ours, Chain)
    close(ours(x), theirs(x), dtype)
    again = to_keras(ours)
    same_weights(again, theirs)
    close(again(x), theirs(x), dtype)
    return ours


def test_chains_that_are_no_model():
    theirs = sequential(L.LSTM(8, return_sequences=True), L.LSTM(4), L.Dense(3, activation="relu"), L.Dense(1))
    ours = same_chain(theirs, inputs())
    assert [type(part).__name__ for part in ours.parts] == ["LSTM", "LSTM", "Last", "Linear", "Activation", "Linear"]
    theirs = sequential(L.Dense(4, activation="tanh"), L.GRU(4, return_sequences=True), L.TimeDistributed(L.Dense(2)))
    same_chain(theirs, inputs())
    same_chain(sequential(L.Bidirectional(L.GRU(4, return_sequences=True)), L.Bidirectional(L.GRU(3)), L.Dense(2, "softmax")),
               inputs())  # fmt: skip
    same_chain(sequential(L.Embedding(7, 4), L.LSTM(5), L.Dense(1, activation="sigmoid"), entry=(None,)), ids())
    same_chain(sequential(L.LSTM(4, use_bias=False), L.Dense(2), L.Activation("tanh"), L.Softmax()), inputs())
    same_chain(sequential(L.GRU(4, return_sequences=True, dtype="float64"), L.LSTM(3, dtype="float64"), dtype="float64"),
               inputs(dtype="float64"), "float64")  # fmt: skip


def test_neighbours_become_layers_of_one():
    def layer(sequences=True, units=4):
        return L.LSTM(units, return_sequences=sequences)

    ours = from_keras(sequential(layer(), L.Dropout(0.3), layer(), L.Dropout(0.3), layer(False)))
    assert repr(ours) == "LSTM(5, 4, num_layers=3, batch_first=True, dropout=0.3)"
    ours = from_keras(sequential(layer(), L.Dropout(0.3), layer(), layer()))
    assert [repr(part) for part in ours.parts] == [
        "LSTM(5, 4, num_layers=2, batch_first=True, dropout=0.3)", "LSTM(4, 4, batch_first=True)"]  # fmt: skip
    ours = from_keras(sequential(layer(), L.Bidirectional(layer(units=2)), L.Dropout(0.1)))
    assert [type(part).__name__ for part in ours.parts] == ["LSTM", "LSTM", "Dropout"]
    assert ours.parts[2].p == 0.1
    for one, other in (
        (L.GRU(4, return_sequences=True, reset_after=False), L.GRU(4, return_sequences=True)),
        (L.SimpleRNN(4, return_sequences=True, activation="relu"), L.SimpleRNN(4, return_sequences=True)),
        (L.LSTM(4, return_sequences=True, use_bias=False), L.LSTM(4, return_sequences=True)),
    ):
        assert len(same_chain(sequential(one, other), inputs()).parts) == 2
    ours = same_chain(sequential(L.LSTM(4, return_sequences=True), L.Dense(2)), inputs())  # every step, so no model of series
    assert [type(part).__name__ for part in ours.parts] == ["LSTM", "Linear"]


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "gru before"])
def test_language_models(cell, softmax):
    make, options = CELLS[cell]
    entry = keras.Input((None,), dtype="int32")
    h = L.Embedding(7, 4)(entry)
    h = make(6, return_sequences=True, return_state=True, **options)(h)[0]
    h = make(6, return_sequences=True, **options)(L.Dropout(0.2)(h))
    theirs = settle(keras.Model(entry, L.Dense(7, activation="softmax" if softmax else None)(h)))
    ours = from_keras(theirs)
    assert isinstance(ours, fastlstm.LanguageModel)
    assert (ours.shape.num_layers, ours.shape.dropout, ours.embedding_size) == (2, 0.2, 4)
    logits = ours(ids().T)[0].swapaxes(0, 1)
    expected = numpy(theirs(ids()))
    close(Activation("softmax")(logits) if softmax else logits, expected)
    back = to_keras(ours)
    close(back(ids()), logits)
    same_weights(back, theirs)


def test_tied_weights_become_two_copies():
    ours = fastlstm.LanguageModel(7, hidden_size=6, tie_weights=True, seed=0)
    with pytest.warns(UserWarning, match="tie_weights"):
        theirs = to_keras(ours)
    close(theirs(ids()), ours(ids().T)[0].swapaxes(0, 1))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_series_models(bidirectional):
    def top(units):
        return L.Bidirectional(L.GRU(units)) if bidirectional else L.GRU(units)

    x = inputs()
    theirs = sequential(top(6), L.Dense(3))
    ours = from_keras(theirs)
    assert isinstance(ours, fastlstm.SequenceRegressor)
    close(ours(x.swapaxes(0, 1))[:, 0], theirs(x))
    same_weights(to_keras(ours), theirs)
    theirs = sequential(top(6), L.Dense(3, activation="softmax"))
    ours = from_keras(theirs)
    assert isinstance(ours, fastlstm.SequenceClassifier)
    close(ours.predict_probabilities(x.swapaxes(0, 1)), theirs(x))
    close(to_keras(ours)(x), theirs(x))


@pytest.mark.parametrize("fitted", [False, True])
def test_normalisation_goes_along(fitted):
    rng = np.random.default_rng(6)
    regressor = fastlstm.SequenceRegressor(5, 2, horizon=3, hidden_size=6, num_layers=2, seed=0)
    classifier = fastlstm.SequenceClassifier(5, 4, cell="gru", hidden_size=6, bidirectional=True, seed=0)
    x = (inputs() * 3 + 40).astype(np.float32)
    if fitted:
        regressor.fit_normalization(x, rng.normal(-5, 2, (50, 2)))
        classifier.fit_normalization(x)
    theirs = to_keras(regressor)
    assert len(theirs.layers) == (6 if fitted else 4)
    close(theirs(x), regressor(x.swapaxes(0, 1)))
    back = from_keras(theirs)
    assert (back.horizon, back.output_size, back.normalize) == (3, 2, fitted)
    close(back(x.swapaxes(0, 1)), regressor(x.swapaxes(0, 1)))
    theirs = to_keras(classifier)
    close(theirs(x), classifier.predict_probabilities(x.swapaxes(0, 1)))
    close(from_keras(theirs)(x.swapaxes(0, 1)), classifier(x.swapaxes(0, 1)))


def test_what_keras_has_adapted(tmp_path):
    x = inputs() * 3 + 40
    normalization = L.Normalization()
    normalization.adapt(x)
    theirs = keras.Sequential([keras.Input((None, 5)), normalization, L.LSTM(4), L.Dense(2)])
    theirs.save(tmp_path / "model.keras")
    for source in (theirs, tmp_path / "model.keras"):
        ours = from_keras(source)
        assert ours.fitted
        close(ours(x.swapaxes(0, 1))[:, 0], theirs(x))


def test_single_layers_beside_recurrent_ones():
    x = inputs()
    dense = built(L.Dense(3), 5)
    close(from_keras(dense)(x), dense(x))
    same_weights(to_keras(from_keras(dense)), dense)
    table = L.Embedding(7, 4)
    table.build((None, None))
    close(from_keras(table)(ids()), table(ids()))
    same_weights(to_keras(from_keras(table)), table)
    assert to_keras(fastlstm.Dropout(0.3)).rate == 0.3


def test_own_chains():
    parts = [fastlstm.LSTM(5, 8, batch_first=True, seed=0), fastlstm.Dropout(0.1), fastlstm.GRU(8, 4, batch_first=True, seed=1),
             Last(), fastlstm.Linear(4, 3, bias=False, seed=2), Activation("sigmoid")]  # fmt: skip
    chain = Chain(parts)
    close(to_keras(chain)(inputs()), chain(inputs()))
    assert repr(chain).endswith("Last(), Linear, Activation('sigmoid')])")
    chain = Chain([fastlstm.Linear(5, 3, seed=2)])
    close(to_keras(chain)(inputs()[:, 0]), chain(inputs()[:, 0]))
    for wrong, error, text in (
        ([], ValueError, "at least one layer"), ([fastlstm.Dropout()], ValueError, "at least one layer"),
        ([fastlstm.LSTM(2, 3)], ValueError, "batch_first"), ([Last()], ValueError, "Last"),
        ([Activation("tanh")], ValueError, "begins"), ([parts[0], 3], TypeError, "int"),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            Chain(wrong)
    with pytest.raises(ValueError, match="elu"):
        Activation("elu")


# Files


def stored(tmp_path, theirs):
    theirs.save(tmp_path / "model.keras")
    theirs.save_weights(tmp_path / "model.weights.h5")
    return tmp_path / "model.keras", tmp_path / "model.weights.h5"


def test_files_of_a_chain(tmp_path):
    theirs = sequential(L.Bidirectional(L.LSTM(4, return_sequences=True)), L.Dropout(0.1),
                        L.GRU(3, return_sequences=True, name="mine"), L.GRU(2, reset_after=False),
                        L.Dense(2, name="lstm"))  # fmt: skip
    whole, weights = stored(tmp_path, theirs)
    ours = from_keras(str(whole))
    close(ours(inputs()), theirs(inputs()))
    empty = from_keras(settle(keras.models.clone_model(theirs), seed=9))
    assert from_keras(weights, into=empty) is empty
    close(empty(inputs()), theirs(inputs()))


def test_files_of_many_layers_keep_their_order(tmp_path):
    theirs = sequential(*[L.GRU(5, return_sequences=True) for _ in range(12)])
    for source in stored(tmp_path, theirs):
        ours = from_keras(source)
        assert ours.num_layers == 12
        close(ours(inputs()), theirs(inputs())) if isinstance(ours, Chain) else close(ours(inputs())[0], theirs(inputs()))
        same_weights(to_keras(ours), theirs)


def test_files_of_models(tmp_path):
    theirs = sequential(L.Embedding(7, 4), L.LSTM(6, return_sequences=True), L.Dense(7), entry=(None,))
    whole, weights = stored(tmp_path, theirs)
    ours = from_keras(whole)
    other = fastlstm.LanguageModel(7, embedding_size=4, hidden_size=6, num_layers=1)
    from_keras(weights, into=other)
    same_parameters(ours, other)
    close(other(ids().T)[0].swapaxes(0, 1), theirs(ids()))


@pytest.mark.parametrize("make", [
    lambda: L.LSTM(4, return_sequences=True), lambda: L.GRU(4, return_sequences=True),
    lambda: L.GRU(4, return_sequences=True, reset_after=False), lambda: L.Bidirectional(L.LSTM(4, return_sequences=True)),
])  # fmt: skip
def test_weights_alone_say_what_they_are(make, tmp_path):
    theirs = sequential(make(), make())
    _, weights = stored(tmp_path, theirs)
    ours = from_keras(weights)
    assert ours.num_layers == 2
    close(ours(inputs())[0], theirs(inputs()))


def test_weights_that_do_not_say_enough(tmp_path):
    def weights(*layers):
        return stored(tmp_path, sequential(*layers))[1]

    with pytest.raises(ValueError, match="activation simple_rnn has; pass into="):
        from_keras(weights(L.SimpleRNN(4)))
    with pytest.raises(ValueError, match="gru without biases"):
        from_keras(weights(L.GRU(4, use_bias=False)))
    with pytest.raises(ValueError, match="weights of dense, lstm"):
        from_keras(weights(L.LSTM(4), L.Dense(2)))
    lstm = weights(L.LSTM(4))
    with pytest.raises(ValueError, match="weights of lstm; into needs gru"):
        from_keras(lstm, into=fastlstm.GRU(5, 4))
    before = fastlstm.LSTM(5, 3, seed=0)
    with pytest.raises(ValueError, match=r"lstm, has variables of shapes \[\[5, 16\].*expected \[\[5, 12\]"):
        from_keras(lstm, into=before)
    same_parameters(before, fastlstm.LSTM(5, 3, seed=0))
    with pytest.raises(ValueError, match="tie_weights"):
        from_keras(lstm, into=fastlstm.LanguageModel(7, hidden_size=4, tie_weights=True))
    with pytest.raises(TypeError, match="layer is int"):
        from_keras(lstm, into=3)
    with pytest.raises(ValueError, match="only: others say what they hold"):
        from_keras(built(L.LSTM(4), 5), into=fastlstm.LSTM(5, 4))


def run(code, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment)


def test_files_need_no_keras(tmp_path):
    theirs = sequential(L.LSTM(4))
    whole, weights = stored(tmp_path, theirs)
    code = """
import sys
sys.modules["keras"] = None
from fastlstm.adapters.keras import from_keras, to_keras
for path in sys.argv[1:]:
    layer = from_keras(path)
    print(layer)
assert not {"torch", "tensorflow", "jax"} & set(sys.modules)
try:
    to_keras(layer)
except ImportError as error:
    print(error)
try:
    from_keras(layer)
except TypeError as error:
    print(error)
sys.modules["h5py"] = None
try:
    from_keras(path)
except ImportError as error:
    print(error)
"""
    done = run(code, whole, weights)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[:2] == ["LSTM(5, 4, batch_first=True)"] * 2
    assert lines[2].startswith('to_keras needs Keras 3 and a backend of it: pip install "fastlstm[keras]"')
    assert lines[3].startswith("source is LSTM; expected a layer or model of Keras 3, or the path")
    assert lines[4] == 'reading files of Keras needs h5py: pip install "fastlstm[keras]"'


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("top", [
    lambda: [L.SimpleRNN(6, return_sequences=True, activation="relu")],
    lambda: [L.LSTM(6, return_sequences=True), L.LSTM(6, return_sequences=True)],
    lambda: [L.GRU(6, return_sequences=True, reset_after=False)],
    lambda: [L.Normalization(mean=[1.0] * 5, variance=[4.0] * 5), L.GRU(6, return_sequences=True), L.GRU(6), L.Dense(3)],
])  # fmt: skip
def test_from_keras_to_plain_c(top, tmp_path):
    c = pytest.importorskip("fastlstm.adapters.c")
    theirs = sequential(*top())
    theirs.save(tmp_path / "model.keras")
    done = c.export(from_keras(tmp_path / "model.keras"), tmp_path)
    subprocess.run(["cc", "-std=c99", "-O1", "-shared", "-fPIC", "-o", tmp_path / "model.so", done.source, "-lm"], check=True)
    program = ctypes.CDLL(str(tmp_path / "model.so"))
    state, x, expected = ctypes.create_string_buffer(done.state_bytes), inputs(), numpy(theirs(inputs()))
    found = np.zeros_like(expected)
    for b in range(len(x)):
        program.model_reset(state)
        for t in range(x.shape[1]):
            out = found[b, t] if expected.ndim == 3 else found[b]
            program.model_step(state, np.ascontiguousarray(x[b, t]).ctypes.data_as(ctypes.c_void_p),
                               out.ctypes.data_as(ctypes.c_void_p))  # fmt: skip
    close(found, expected)


# What is not served


def twice(**options):
    return L.Bidirectional(L.LSTM(4, return_sequences=True), **options)


REFUSED = {
    "activation": (lambda: L.LSTM(4, activation="relu"), r"\(LSTM\) has activation='relu'"),
    "rnn activation": (lambda: L.SimpleRNN(4, activation="sigmoid"), r"\(SimpleRNN\) has activation='sigmoid'"),
    "no activation": (lambda: L.GRU(4, activation=None), r"\(GRU\) has activation='linear'"),
    "recurrent_activation": (lambda: L.GRU(4, recurrent_activation="hard_sigmoid"), "recurrent_activation='hard_sigmoid'"),
    "go_backwards": (lambda: L.LSTM(4, go_backwards=True), "go_backwards=True"),
    "merge_mode sum": (lambda: twice(merge_mode="sum"), "merge_mode='sum'"),
    "merge_mode mul": (lambda: twice(merge_mode="mul"), "merge_mode='mul'"),
    "merge_mode ave": (lambda: twice(merge_mode="ave"), "merge_mode='ave'"),
    "merge_mode None": (lambda: twice(merge_mode=None), "merge_mode=None"),
    "float16": (lambda: L.LSTM(4, dtype="float16", recurrent_initializer="zeros"), "dtype='float16'"),
    "two directions": (
        lambda: L.Bidirectional(L.LSTM(4), backward_layer=L.LSTM(3, go_backwards=True)), "two directions of different options"),
    "two kinds": (lambda: L.Bidirectional(L.LSTM(4), backward_layer=L.GRU(4, go_backwards=True)), "wraps LSTM and GRU"),
    "turned round": (lambda: L.Bidirectional(L.LSTM(4, go_backwards=True), backward_layer=L.LSTM(4)), "go_backwards=True"),
    "RNN": (lambda: L.RNN(L.LSTMCell(4)), r"\(RNN\) is not served"),
    "Conv1D": (lambda: L.Conv1D(4, 3), r"\(Conv1D\) is not served"),
    "Dense": (lambda: L.Dense(4, activation="gelu"), r"\(Dense\) has activation='gelu'"),
    "TimeDistributed": (lambda: L.TimeDistributed(L.Flatten()), "wraps Flatten"),
    "Normalization": (lambda: L.Normalization(axis=None, mean=0, variance=1), "axis=\\[\\]"),
    "Rescaling": (lambda: L.Rescaling(-1.0), "scale that is not positive"),
    "Reshape": (lambda: L.Reshape((5, -1)), "target_shape"),
    "Dropout": (lambda: L.Dropout(0.1, noise_shape=(1, 1, 5)), "noise_shape"),
    "Softmax": (lambda: L.Softmax(axis=1), "axis=1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_options_are_refused_by_name(case):
    make, text = REFUSED[case]
    layer = make()
    layer.build((2, 7, 5))
    with pytest.raises(ValueError, match=f"layer '{layer.name}' .*{text}|layer 'forward.*{text}"):
        from_keras(layer)


def test_states_and_masks_are_refused():
    with pytest.raises(ValueError, match="stateful=True.*pass the state"):
        from_keras(keras.Sequential([keras.Input((None, 5), batch_size=2), L.LSTM(4, stateful=True)]))
    with pytest.raises(ValueError, match="mask_zero=True.*lengths"):
        from_keras(sequential(L.Embedding(7, 4, mask_zero=True), L.LSTM(4), entry=(None,)))
    with pytest.raises(ValueError, match=r"\(Masking\) is not served"):
        from_keras(sequential(L.Masking(), L.LSTM(4)))


def test_models_that_are_no_chain():
    def two_outputs(x):
        h = L.LSTM(4, return_sequences=True)(x)
        return [L.Dense(2)(h), h]

    def shared(x):
        layer = L.LSTM(5, return_sequences=True)
        return layer(layer(x))

    def state(x):
        out, h, c = L.LSTM(4, return_sequences=True, return_state=True)(x)
        return L.LSTM(4)(out, initial_state=[h, c])

    def final(x):
        return L.Dense(2)(L.GRU(4, return_state=True)(x)[1])

    def active(x):
        return L.Dropout(0.5)(L.GRU(4)(x), training=True)

    for make, text in (
        (two_outputs, "other inputs and outputs"), (shared, "not called exactly once"), (state, "expected the input alone"),
        (final, "does not read"), (active, "is called with True"), (lambda x: x + L.GRU(5, return_sequences=True)(x), "Add"),
    ):  # fmt: skip
        entry = keras.Input((None, 5))
        with pytest.raises(ValueError, match=text):
            from_keras(keras.Model(entry, make(entry)))
    a, b = keras.Input((None, 5)), keras.Input((None, 5))
    with pytest.raises(ValueError, match="second input|does not read"):
        from_keras(keras.Model([a, b], L.LSTM(4)(L.Concatenate()([a, b]))))

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.lstm = L.LSTM(4)

        def call(self, x):
            return self.lstm(x)

    model = Own()
    model(inputs())
    with pytest.raises(ValueError, match="Own.*is no Sequential or Functional"):
        from_keras(model)

    class Changed(L.LSTM):
        pass

    with pytest.raises(ValueError, match="Changed.*is not served"):
        from_keras(built(Changed(4), 5))
    with pytest.raises(ValueError, match="Sequential.*is not served"):
        from_keras(sequential(keras.Sequential([L.LSTM(4)])))


def test_layers_in_places_that_nothing_serves():
    with pytest.raises(ValueError, match=r"\(Normalization\) stands where fastlstm has no such step"):
        from_keras(keras.Sequential([keras.Input((None, 5)), L.Normalization(), L.LSTM(4)]))
    with pytest.raises(ValueError, match="one dtype"):
        from_keras(sequential(L.LSTM(4, return_sequences=True), L.GRU(4, dtype="float64")))
    with pytest.raises(ValueError, match=r"\(Embedding\) stands behind"):
        from_keras(keras.Sequential([keras.Input((None,)), L.Activation("relu"), L.Embedding(5, 4), L.LSTM(4)]))


def test_what_acts_in_training_only_is_said():
    layer = built(L.LSTM(4, dropout=0.1, recurrent_dropout=0.2, kernel_regularizer="l2", bias_constraint="non_neg"), 5)
    options = " of layer .*".join(("dropout", "recurrent_dropout", "kernel_regularizer", "bias_constraint"))
    with pytest.warns(UserWarning, match=f"{options} of layer '{layer.name}'"):
        ours = from_keras(layer)
    close(ours(inputs())[0][:, -1], layer(inputs()))
    theirs = sequential(L.Embedding(7, 4), L.SpatialDropout1D(0.1), L.Bidirectional(L.LSTM(4, recurrent_dropout=0.2)),
                        L.Dense(1, kernel_regularizer="l2"), entry=(None,))  # fmt: skip
    with pytest.warns(UserWarning, match="SpatialDropout1D.*recurrent_dropout of layer 'b.*kernel_regularizer of layer 'dense"):
        close(from_keras(theirs)(ids()), theirs(ids()))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="not built"):
        from_keras(L.LSTM(4))
    with pytest.raises(TypeError, match="source is int"):
        from_keras(3)
    with pytest.raises(TypeError, match="layer is int"):
        to_keras(3)
    with pytest.raises(ValueError, match="proj_size=2"):
        to_keras(fastlstm.LSTM(5, 4, proj_size=2))
    with pytest.raises(FileNotFoundError, match="nowhere.keras"):
        from_keras("nowhere.keras")


# Files that are not what they say


def rezipped(source, target, **members):
    """A copy of a .keras file with other members; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in {*old.namelist(), *members}:
            content = members[name] if name in members else old.read(name)
            if content is not None:
                new.writestr(name, content)
    return target


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras")
    theirs = sequential(L.Bidirectional(L.LSTM(4, return_sequences=True)), L.GRU(3), L.Dense(2))
    return stored(folder, theirs)[0]


def weights_of(whole, edit):
    """The HDF5 part of a .keras file, edited."""
    with zipfile.ZipFile(whole) as archive:
        data = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(data, "a") as file:
        edit(file)
    return data.getvalue()


def test_a_file_packed_again_is_read(whole, tmp_path):
    x = inputs()
    np.testing.assert_array_equal(from_keras(rezipped(whole, tmp_path / "a.keras"))(x), from_keras(whole)(x))


def test_damaged_files(whole, tmp_path):
    def refused(content, text):
        path = tmp_path / "bad.keras"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=text):
            from_keras(path)

    content = whole.read_bytes()
    refused(b"", "neither a .keras file nor")
    refused(b"\x80\x04\x95 pickled", "neither a .keras file nor")
    refused(content[: len(content) // 2], "neither a .keras file nor")
    with zipfile.ZipFile(whole) as archive:
        weights = archive.read("model.weights.h5")
    refused(weights[:2000], "is damaged")
    for members, text in (
        ({"config.json": b"{"}, "config.json is not JSON"), ({"config.json": b"[" * 100_000}, "is not JSON"),
        ({"config.json": b"[]"}, "not a JSON object"), ({"config.json": b"{}"}, "expected class_name and config"),
        ({"config.json": None}, "expected config.json and model.weights.h5"),
        ({"model.weights.h5": None, "model.weights.npz": b""}, "expected config.json and model.weights.h5"),
        ({"model.weights.h5": b"no"}, "is damaged"), ({"model.weights.h5": weights[:3000]}, "is damaged"),
        ({"metadata.json": b'{"keras_version": "2.13.1"}'}, "written by Keras 2.13.1"),
        ({"config.json": b" " * (1 << 25)}, "declares 33554432 bytes of config.json"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            from_keras(rezipped(whole, tmp_path / "bad.keras", **members))
    with pytest.raises(ValueError, match="is a folder"):
        from_keras(tmp_path)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["layer_names"] = ["a"]
    with pytest.raises(ValueError, match="Keras 2"):
        from_keras(tmp_path / "old.h5")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["lstm/vars/0"] = np.zeros(3)
    with pytest.raises(ValueError, match="no layers with weights"):
        from_keras(tmp_path / "none.h5")


def test_arrays_that_lead_elsewhere_or_declare_too_much(whole, tmp_path):
    place = "layers/gru/cell/vars/0"
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.zeros((8, 9), np.float32)
    (tmp_path / "raw").write_bytes(bytes(288))

    def soft(file):
        file[place] = h5py.SoftLink("/layers/gru/cell/vars/1")

    def outside(file):
        file[place] = h5py.ExternalLink(str(secret), "kernel")

    def raw(file):
        file.create_dataset(place, (8, 9), np.float32, external=[(str(tmp_path / "raw"), 0, 288)])

    def virtual(file):
        layout = h5py.VirtualLayout((8, 9), np.float32)
        layout[:] = h5py.VirtualSource(secret, "kernel", (8, 9))
        file.create_virtual_dataset(place, layout)

    def huge(file):
        file.create_dataset(place, (1 << 32, 9), np.float32, chunks=(1 << 10, 9), compression="gzip")

    def text(file):
        file[place] = "kernel"

    def wider(file):
        file[place] = np.zeros((9, 9), np.float32)

    def group(file):
        file.create_group(place)

    def nothing(file):
        file[place] = h5py.Empty("f")

    for change, expected in (
        (soft, "has a link at"), (outside, "has a link at"), (raw, "no plain array"), (virtual, "no plain array"),
        (huge, "declares 154618822656 bytes"), (text, "dtype object"), (wider, "reads 9 features.*gives 8"),
        (group, "no plain array"), (nothing, "no plain array"), (lambda file: None, "has variables"),
    ):  # fmt: skip

        def edit(file, change=change):
            del file[place]
            change(file)

        path = rezipped(whole, tmp_path / "bad.keras", **{"model.weights.h5": weights_of(whole, edit)})
        with pytest.raises(ValueError, match=expected):
            from_keras(path)


def test_nothing_in_a_file_is_run(tmp_path):
    mark = tmp_path / "run"
    theirs = keras.Sequential([keras.Input((None, 5)), L.LSTM(4, return_sequences=True), L.Lambda(lambda x: x)])
    theirs.save(tmp_path / "lambda.keras")
    with pytest.raises(ValueError, match=r"\(Lambda\) is not served"):
        from_keras(tmp_path / "lambda.keras")
    layer = {"module": "os", "class_name": "system", "config": {"name": "a", "command": f"touch {mark}"}}
    config = {"module": "keras", "class_name": "Sequential", "config": {"name": "b", "layers": [layer]}}
    path = rezipped(tmp_path / "lambda.keras", tmp_path / "bad.keras", **{"config.json": json.dumps(config)})
    with pytest.raises(ValueError, match=r"\(os.system\) is not served"):
        from_keras(path)
    assert not mark.exists()


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.filterwarnings("ignore:left out")
def test_any_change_of_a_configuration_is_read_or_refused(tmp_path):
    """Never another exception than ValueError, never anything but a layer or model."""
    entry = keras.Input((None, 5))
    h = L.Bidirectional(L.GRU(3, return_sequences=True))(L.Normalization()(entry))
    h = L.Dense(2)(L.Bidirectional(L.GRU(3))(L.Dropout(0.1)(h)))
    theirs = keras.Model(entry, L.Rescaling(2.0, 1.0)(L.Reshape((1, 2))(h)))
    path, bad = tmp_path / "model.keras", tmp_path / "bad.keras"
    theirs.save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    assert from_keras(path).shape.num_layers == 2
    rng, every = np.random.default_rng(7), list(places(config))
    refused = 0
    for place in every:
        new = [None, True, -1, 1e300, "x", [], {}, [{}], {"class_name": "y"}, 2**70][int(rng.integers(10))]
        rezipped(path, bad, **{"config.json": json.dumps(replaced(config, place, new))})
        try:
            from_keras(bad)
        except ValueError:
            refused += 1
    assert 0.2 * len(every) < refused < 0.9 * len(every)
