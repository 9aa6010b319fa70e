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
    step.reset()
    assert np.array_equal([step(row).copy() for row in x], out), "with the batch's axis if x has it"


def test_a_language_model_reads_ids():
    model = fastlstm.LanguageModel(11, "gru", hidden_size=8, seed=0)
    ids = np.random.default_rng(0).integers(0, 11, (5, 2))
    logits, _ = model(ids)
    step = fastlstm.Stream(model, batch_size=2)
    assert np.array_equal([step(row).copy() for row in ids], logits)
    one = fastlstm.Stream(model)
    assert np.array_equal([one(int(i)).copy() for i in ids[:, 0]], logits[:, 0])
    for wrong in (-1, 11):
        with pytest.raises(ValueError, match=f"x has values from {wrong} to {wrong}; expected 0 to 10"):
            one(wrong)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["regressor", "classifier"])
def test_a_model_tells_after_each_step_what_it_makes_of_those_so_far(kind, normalize, dtype):
    rng = np.random.default_rng(1)
    x, y = rng.normal(20, 3, (6, 3, 5)), rng.normal(-4, 0.5, (3, 4, 2))
    options = {"num_layers": 2, "hidden_size": 9, "normalize": normalize, "dtype": dtype, "seed": 0}
    if kind == "regressor":
        model, learnt = fastlstm.SequenceRegressor(5, 2, 4, "lstm", proj_size=4, **options), (x, y)
    else:
        model, learnt = fastlstm.SequenceClassifier(5, 7, "gru", **options), (x,)
    if normalize:
        model.fit_normalization(*learnt)
    step, shape = fastlstm.Stream(model, batch_size=3), (4, 2) if kind == "regressor" else (7,)
    for t, row in enumerate(x):
        found, wanted = step(row), model(x[: t + 1])
        assert found.shape == (3, *shape)
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)
    assert np.array_equal(step(x[0], resets=np.ones(3, bool)), model(x[:1]))
    one, out = fastlstm.Stream(model), np.empty(shape, wanted.dtype)
    for t, row in enumerate(x[:, 1]):
        assert one(row, out=out) is out
        assert np.array_equal(out, model(x[: t + 1])[1])


def test_the_normalisation_is_part_of_the_snapshot():
    rng = np.random.default_rng(1)
    x, y = rng.normal(20, 3, (6, 3, 5)), rng.normal(-4, 0.5, (3, 2))
    model = fastlstm.SequenceRegressor(5, 2, hidden_size=9, seed=0)
    step = fastlstm.Stream(model, batch_size=3)
    before = step(x[0]).copy()
    model.fit_normalization(x, y)
    step.reset()
    assert np.array_equal(step(x[0]), before)
    step.refresh()
    step.reset()
    assert np.array_equal(step(x[0]), model(x[:1]))


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
    fixed = out.copy()
    fixed.flags.writeable = False
    before = step.state
    for bad, kind, message in (
        (out[:2], ValueError, r"out has shape \[2, 9\] and dtype float32; expected \[3, 9\] float32"),
        (out.astype(float), ValueError, r"out has shape \[3, 9\] and dtype float64; expected \[3, 9\] float32"),
        (out.tolist(), TypeError, r"out is list; expected an array \[3, 9\] of float32"),
        (fixed, ValueError, "out is read-only"),
    ):
        with pytest.raises(kind, match=message):
            step(x[1], out=bad, resets=np.array([True, False, True]))
    with pytest.raises(ValueError, match="resets has shape"):
        step(x[1], out=out, resets=np.array([True]))
    assert np.array_equal(step.state, before)


def test_what_cannot_stream_is_refused():
    with pytest.raises(ValueError, match="bidirectional"):
        fastlstm.Stream(fastlstm.LSTM(3, 4, bidirectional=True))
    with pytest.raises(TypeError, match="source is int"):
        fastlstm.Stream(3)
    with pytest.raises(ValueError, match="bidirectional"):
        fastlstm.Stream(fastlstm.SequenceClassifier(3, 4, bidirectional=True))
    with pytest.raises(TypeError, match="source is Linear; expected an RNN, LSTM or GRU layer, a LanguageModel, a Sequence"):
        fastlstm.Stream(fastlstm.Linear(3, 4))
    with pytest.raises(ValueError, match="batch_size is 0"):
        fastlstm.Stream(LAYERS["gru"](), batch_size=0)
    with pytest.raises(ValueError, match="x has shape"):
        fastlstm.Stream(LAYERS["gru"]())(np.zeros(4))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [fastlstm.RNN, fastlstm.LSTM, fastlstm.GRU])
@pytest.mark.parametrize("way", ["reset", "resets", "state"])
def test_not_a_number_is_gone_after_a_reset(kind, dtype, way):
    """It reaches the padding of the state as well, which the products of bfloat16 read in part."""
    step, x = fastlstm.Stream(kind(3, 9, seed=0, dtype=dtype), batch_size=2), np.ones((2, 3), np.float32)
    start = step.state
    want = [step(x).copy() for _ in range(4)]
    step(np.full((2, 3), np.nan, np.float32))
    marks = None
    if way == "reset":
        step.reset()
    elif way == "state":
        step.state = start
    else:
        marks = np.ones(2, bool)
    assert np.array_equal([step(x, resets=marks).copy()] + [step(x).copy() for _ in range(3)], want)
