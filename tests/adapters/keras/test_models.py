"""Layers, chains and models between Keras 3 and fastlstm, against the real Keras on PyTorch's backend."""

import numpy as np
import pytest

import fastlstm

pytest.importorskip("keras")
pytest.importorskip("h5py")

from fastlstm.adapters.keras import Activation, Chain, Last, from_keras, to_keras
from tests.adapters.keras.models import (
    CELLS,
    QUIET,
    L,
    built,
    close,
    ids,
    inputs,
    keras,
    numpy,
    same_chain,
    same_parameters,
    same_weights,
    sequential,
    settle,
)

pytestmark = QUIET


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
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu"}),
        ("LSTM", {}),
        ("LSTM", {"bias": False}),
        ("GRU", {}),
        ("GRU", {"reset_after": False}),
    ],
)
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


def test_chains_that_are_no_model():
    theirs = sequential(L.LSTM(8, return_sequences=True), L.LSTM(4), L.Dense(3, activation="relu"), L.Dense(1))
    ours = same_chain(theirs, inputs())
    assert [type(part).__name__ for part in ours.parts] == ["LSTM", "LSTM", "Last", "Linear", "Activation", "Linear"]
    theirs = sequential(L.Dense(4, activation="tanh"), L.GRU(4, return_sequences=True), L.TimeDistributed(L.Dense(2)))
    same_chain(theirs, inputs())
    same_chain(
        sequential(L.Bidirectional(L.GRU(4, return_sequences=True)), L.Bidirectional(L.GRU(3)), L.Dense(2, "softmax")), inputs()
    )
    same_chain(sequential(L.Embedding(7, 4), L.LSTM(5), L.Dense(1, activation="sigmoid"), entry=(None,)), ids())
    same_chain(sequential(L.LSTM(4, use_bias=False), L.Dense(2), L.Activation("tanh"), L.Softmax()), inputs())
    same_chain(
        sequential(L.GRU(4, return_sequences=True, dtype="float64"), L.LSTM(3, dtype="float64"), dtype="float64"),
        inputs(dtype="float64"),
        "float64",
    )


def test_neighbours_become_layers_of_one():
    def layer(sequences=True, units=4):
        return L.LSTM(units, return_sequences=sequences)

    ours = from_keras(sequential(layer(), L.Dropout(0.3), layer(), L.Dropout(0.3), layer(False)))
    assert repr(ours) == "LSTM(5, 4, num_layers=3, batch_first=True, dropout=0.3)"
    ours = from_keras(sequential(layer(), L.Dropout(0.3), layer(), layer()))
    assert [repr(part) for part in ours.parts] == [
        "LSTM(5, 4, num_layers=2, batch_first=True, dropout=0.3)",
        "LSTM(4, 4, batch_first=True)",
    ]
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
    parts = [
        fastlstm.LSTM(5, 8, batch_first=True, seed=0),
        fastlstm.Dropout(0.1),
        fastlstm.GRU(8, 4, batch_first=True, seed=1),
        Last(),
        fastlstm.Linear(4, 3, bias=False, seed=2),
        Activation("sigmoid"),
    ]
    chain = Chain(parts)
    close(to_keras(chain)(inputs()), chain(inputs()))
    assert repr(chain).endswith("Last(), Linear, Activation('sigmoid')])")
    chain = Chain([fastlstm.Linear(5, 3, seed=2)])
    close(to_keras(chain)(inputs()[:, 0]), chain(inputs()[:, 0]))
    for wrong, error, text in (
        ([], ValueError, "at least one layer"),
        ([fastlstm.Dropout()], ValueError, "at least one layer"),
        ([fastlstm.LSTM(2, 3)], ValueError, "batch_first"),
        ([Last()], ValueError, "Last"),
        ([Activation("tanh")], ValueError, "begins"),
        ([parts[0], 3], TypeError, "int"),
    ):
        with pytest.raises(error, match=text):
            Chain(wrong)
    with pytest.raises(ValueError, match="elu"):
        Activation("elu")
