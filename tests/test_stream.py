"""Stream: the bits of the whole sequence, one step at a time; a snapshot with its own state."""

import numpy as np
import pytest

import fastlstm

LAYERS = {
    "rnn": lambda: fastlstm.RNN(5, 9, 2, seed=0),
    "lstm": lambda: fastlstm.LSTM(5, 9, 2, seed=0),
    "projected": lambda: fastlstm.LSTM(5, 9, 2, proj_size=4, seed=0, dtype="float64"),
    "gru": lambda: fastlstm.GRU(5, 9, 2, seed=0),
    "original gru": lambda: fastlstm.GRU(5, 9, reset_after=False, seed=0),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def inputs(layer, steps=6, rows=3):
    return np.random.default_rng(0).standard_normal((steps, rows, 5)).astype(layer.dtype)


def parts(state):
    return state if isinstance(state, tuple) else (state,)


@every_layer
def test_steps_have_the_bits_of_the_sequence(make):
    layer = make()
    x = inputs(layer)
    out, state = layer(x)
    step = fastlstm.Stream(layer, batch_size=3)
    assert np.array_equal([step(row).copy() for row in x], out)
    assert all(np.array_equal(a, b) for a, b in zip(parts(step.state), parts(state), strict=True))


@every_layer
def test_resets_zero_the_marked_rows(make):
    layer = make()
    x = inputs(layer)
    resets = np.zeros((6, 3), bool)
    resets[2, 1] = resets[4] = True
    out, _ = layer(x, resets=resets)
    step = fastlstm.Stream(layer, batch_size=3)
    assert np.array_equal([step(row, resets=marks).copy() for row, marks in zip(x, resets, strict=True)], out)


def test_one_row_may_come_without_its_axis():
    layer = LAYERS["lstm"]()
    x = inputs(layer, rows=1)
    out, _ = layer(x)
    step = fastlstm.Stream(layer)
    assert np.array_equal([step(row[0]).copy() for row in x], out[:, 0])


def test_a_language_model_reads_ids():
    model = fastlstm.LanguageModel(11, "gru", hidden_size=8, seed=0)
    ids = np.random.default_rng(0).integers(0, 11, (5, 2))
    logits, _ = model(ids)
    step = fastlstm.Stream(model, batch_size=2)
    assert np.array_equal([step(row).copy() for row in ids], logits)
    one = fastlstm.Stream(model)
    assert np.array_equal([one(int(i)).copy() for i in ids[:, 0]], logits[:, 0])


def test_the_state_can_be_kept_and_put_back():
    layer = LAYERS["lstm"]()
    x = inputs(layer)
    step = fastlstm.Stream(layer, batch_size=3)
    step(x[0])
    kept = step.state
    later = [step(row).copy() for row in x[1:]]
    step.state = kept
    assert np.array_equal([step(row).copy() for row in x[1:]], later)
    step.reset()
    assert np.array_equal(step(x[0]), layer(x[:1])[0][0])


def test_weights_are_a_snapshot_until_refresh():
    layer = LAYERS["gru"]()
    x = inputs(layer)
    step = fastlstm.Stream(layer, batch_size=3)
    before = step(x[0]).copy()
    with layer.edit() as params:
        params["weight_ih_l0"][:] *= 2
    step.reset()
    assert np.array_equal(step(x[0]), before)
    step.reset()
    step.refresh()
    assert np.array_equal(step(x[0]), layer(x[:1])[0][0])


def test_out_is_written_to():
    layer = LAYERS["rnn"]()
    x, out = inputs(layer), np.empty((3, 9), np.float32)
    step = fastlstm.Stream(layer, batch_size=3)
    assert step(x[0], out=out) is out
    with pytest.raises(ValueError, match=r"out has shape \[2, 9\]"):
        step(x[0], out=out[:2])


def test_what_cannot_stream_is_refused():
    with pytest.raises(ValueError, match="bidirectional"):
        fastlstm.Stream(fastlstm.LSTM(3, 4, bidirectional=True))
    with pytest.raises(TypeError, match="source is int"):
        fastlstm.Stream(3)
    with pytest.raises(ValueError, match="batch_size is 0"):
        fastlstm.Stream(LAYERS["gru"](), batch_size=0)
    with pytest.raises(ValueError, match="x has shape"):
        fastlstm.Stream(LAYERS["gru"]())(np.zeros(4))
