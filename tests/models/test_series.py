"""SequenceRegressor and SequenceClassifier: gradients, normalisation, protocol, and that they learn what they are for."""

import json

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels import reference
from fastlstm.models import language

KINDS = {
    "rnn": {"cell": "rnn"},
    "lstm": {"cell": "lstm", "num_layers": 2},
    "lstm-projected": {"cell": "lstm", "proj_size": 3, "bidirectional": True},
    "gru": {"cell": "gru", "num_layers": 2, "bidirectional": True},
    "gru-original": {"cell": "gru", "reset_after": False},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def regressor(kind, **changes):
    options = {"horizon": 4, "hidden_size": 7, "dtype": "float64", "seed": 5}
    return fastlstm.SequenceRegressor(3, 2, **(options | KINDS[kind] | changes))


def classifier(kind, **changes):
    return fastlstm.SequenceClassifier(3, 5, **({"hidden_size": 7, "dtype": "float64", "seed": 5} | KINDS[kind] | changes))


def batch(steps=6, rows=5, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(20, 3, (steps, rows, 3)), rng.normal(-4, 0.5, (rows, 4, 2))
    return x, y, rng.integers(0, 5, rows), rng.integers(1, steps + 1, rows)


def by_reference(model, x, lengths):
    """Head's outputs [B, N] and a function from their gradient to (dx, gradients by name), x and dx normalised."""
    s = model.shape
    params = {name.removeprefix("rnn."): value for name, value in model.params.items() if name.startswith("rnn.")}
    _, state, saved = reference.stack_forward(
        s.cell, x, params, num_layers=s.num_layers, bidirectional=s.bidirectional, reset_after=s.reset_after, lengths=lengths
    )
    h = state[0] if s.cell == "lstm" else state
    last = np.concatenate(list(h[-s.directions :]), axis=1)
    weight = model.params["head.weight"]

    def backward(dout):
        dlast, dweight, dbias = reference.linear_backward(last, weight, dout)
        dh = np.zeros_like(h)
        dh[-s.directions :] = np.split(dlast, s.directions, axis=1)
        dstate = (dh, np.zeros_like(state[1])) if s.cell == "lstm" else dh
        dx, _, grads = reference.stack_backward(saved, np.zeros((*x.shape[:2], model.features)), dstate)
        return dx, {f"rnn.{n}": g for n, g in grads.items()} | {"head.weight": dweight, "head.bias": dbias}

    return reference.linear_forward(last, weight, model.params["head.bias"]), backward


def assert_gradients(model, wanted):
    assert set(wanted) == set(model.grads)
    for name, gradient in model.grads.items():
        assert np.allclose(gradient, wanted[name], rtol=1e-10, atol=1e-13), name


@every_kind
@pytest.mark.parametrize("ragged", [False, True])
def test_a_regressor_is_stack_head_and_squared_error(kind, ragged):
    model, (x, y, _, lengths) = regressor(kind), batch()
    lengths = lengths if ragged else None
    model.fit_normalization(x, y)
    mean, std, offset, unit = x.mean((0, 1)), x.std((0, 1)), y.mean((0, 1)), y.std((0, 1))
    out, backward = by_reference(model, (x - mean) / std, lengths)
    wanted, dout = reference.mean_squared_error(out, ((y - offset) / unit).reshape(5, 8))
    loss, state = model.train_batch(x, y, lengths=lengths)
    assert state is None
    assert loss == pytest.approx(wanted, rel=1e-12)
    assert_gradients(model, backward(dout)[1])
    once = model.grads.flat.copy()
    model.train_batch(x, y, lengths=lengths)
    assert np.array_equal(model.grads.flat, once)  # zeroed first

    predicted = out.reshape(5, 4, 2) * unit + offset
    assert np.allclose(model.predict(x, lengths), predicted, rtol=1e-12)
    sums, _ = model.eval_batch(x, y, lengths=lengths)
    assert sums == pytest.approx({"loss": wanted * y.size, "count": y.size, "absolute": abs(predicted - y).sum()}, rel=1e-11)


@every_kind
@pytest.mark.parametrize("ragged", [False, True])
def test_a_classifier_is_stack_head_and_cross_entropy(kind, ragged):
    model, (x, _, target, lengths) = classifier(kind), batch()
    lengths = lengths if ragged else None
    model.fit_normalization(x)
    logits, backward = by_reference(model, (x - x.mean((0, 1))) / x.std((0, 1)), lengths)
    wanted, dlogits = reference.softmax_cross_entropy(logits, target)
    loss, _ = model.train_batch(x, target, lengths=lengths)
    assert loss == pytest.approx(wanted, rel=1e-12)
    assert_gradients(model, backward(dlogits)[1])
    assert np.allclose(model(x, lengths), logits, rtol=1e-12)
    assert np.array_equal(model.predict(x, lengths), logits.argmax(1))
    chances = model.predict_probabilities(x, lengths)
    assert np.allclose(chances, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-12)
    sums, _ = model.eval_batch(x, target, lengths=lengths)
    hits = (logits.argmax(1) == target).sum()
    assert sums == pytest.approx({"loss": wanted * 5, "count": 5, "correct": hits}, rel=1e-12)


@pytest.mark.parametrize("make", [regressor, classifier])
def test_by_hand(make):
    """forward_train and backprop in the data's units, against the reference and finite differences in x."""
    model, (x, y, _, lengths) = make("gru"), batch()
    model.prepare(fastlstm.Batches(x.swapaxes(0, 1), y if make is regressor else np.arange(5)))
    out, backprop = model.forward_train(x, lengths)
    assert np.array_equal(out, model(x, lengths))
    dout = np.random.default_rng(1).normal(size=out.shape)
    dx = backprop(dout)
    for place in ((0, 0, 0), (2, 3, 1), (5, 4, 2)):
        step = 1e-5
        moved = [x.copy(), x.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        slope = ((model(moved[0], lengths) - model(moved[1], lengths)) * dout).sum() / (2 * step)
        assert dx[place] == pytest.approx(slope, rel=1e-6, abs=1e-9)
    unit = y.std((0, 1)) if make is regressor else 1.0
    mean, std = x.mean((0, 1)), x.std((0, 1))
    wanted_dx, wanted = by_reference(model, (x - mean) / std, lengths)[1]((dout * unit).reshape(5, -1))
    assert np.allclose(dx, wanted_dx / std, rtol=1e-10, atol=1e-14)
    assert_gradients(model, wanted)
    with pytest.raises(RuntimeError, match="backprop was called before"):
        backprop(dout)
    grads = model.grads.flat.copy()
    _, backprop = model.forward_train(x)
    backprop.close()
    assert np.array_equal(grads, model.grads.flat)
    _, backprop = model.forward_train(x)
    backprop(dout)
    assert not np.array_equal(grads, model.grads.flat)  # they add up


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_odd_sizes_without_normalisation(dtype):
    rng = np.random.default_rng(2)
    for inputs, outputs, hidden, steps, rows in ((1, 1, 1, 1, 1), (17, 3, 33, 2, 19), (4, 16, 16, 9, 1)):
        model = fastlstm.SequenceRegressor(inputs, outputs, hidden_size=hidden, normalize=False, dtype=dtype, seed=1)
        x, y = rng.normal(size=(steps, rows, inputs)).astype(dtype), rng.normal(size=(rows, 1, outputs)).astype(dtype)
        out, backward = by_reference(model, x, None)
        wanted, dout = reference.mean_squared_error(out, y.reshape(rows, outputs))
        tolerance = 1e-5 if dtype == "float32" else 1e-12
        assert model.train_batch(x, y)[0] == pytest.approx(wanted, rel=tolerance)
        for name, gradient in backward(dout)[1].items():
            assert np.linalg.norm(model.grads[name] - gradient) <= tolerance * np.linalg.norm(gradient), name
        assert model.predict(x).dtype == dtype


def test_one_sequence_is_a_batch_of_one():
    x, _, _, _ = batch()
    model = regressor("lstm")
    assert np.array_equal(model.predict(x[:, 0]), model.predict(x)[0])
    model = classifier("lstm")
    assert model.predict(x[:, 0]) == model.predict(x)[0]
    assert np.array_equal(model.predict_probabilities(x[:, 0]), model.predict_probabilities(x)[0])


def test_rows_do_not_depend_on_their_batch():
    model, (x, _, _, lengths) = regressor("gru", dtype="float32"), batch(rows=30)
    whole = model.predict(x, lengths)
    for k in range(30):
        assert np.array_equal(model.predict(x[:, k : k + 1], lengths[k : k + 1])[0], whole[k])


def test_integers_are_numbers():
    x = np.random.default_rng(5).integers(0, 100, (6, 5, 3))
    model = regressor("rnn", dtype="float32")
    model.fit_normalization(x, np.ones((5, 4, 2)))
    assert np.array_equal(model.predict(x), model.predict(x.astype(float)))


def test_axes_of_one_may_be_missing_in_targets():
    x, rng = np.random.default_rng(6).normal(size=(4, 5, 3)), np.random.default_rng(7)
    for horizon, outputs, short in ((1, 1, (5,)), (4, 1, (5, 4)), (1, 2, (5, 2))):
        model = fastlstm.SequenceRegressor(3, outputs, horizon, hidden_size=4, seed=0)
        y = rng.normal(3, 2, short)
        model.prepare(fastlstm.Batches(x.swapaxes(0, 1), y))
        full = y.reshape(5, horizon, outputs)
        assert np.allclose(model.state_dict()["normalization.target_mean"], full.mean((0, 1)))
        assert model.train_batch(x, y)[0] == model.train_batch(x, full)[0]


@every_kind
def test_state_and_config_make_the_model_again(kind):
    x, y, _, _ = batch()
    for model in (regressor(kind, dropout=0.2), classifier(kind)):
        model.fit_normalization(*((x, y) if hasattr(model, "horizon") else (x,)))
        again = language.from_config(json.loads(json.dumps(model.config)))
        assert type(again) is type(model)
        assert again.config == model.config
        again.load_state_dict(model.state_dict())
        assert again.fitted
        assert np.array_equal(again.predict(x), model.predict(x))


def test_dropout_goes_by_the_random_state():
    x, y, _, _ = batch()
    model = regressor("lstm", dropout=0.5)
    state = model.random_state
    assert json.loads(json.dumps(state)) == state
    losses = [model.train_batch(x, y)[0] for _ in range(3)]
    assert len(set(losses)) == 3
    model.random_state = state
    assert [model.train_batch(x, y)[0] for _ in range(3)] == losses
    assert np.array_equal(model.predict(x), model.predict(x))


@pytest.mark.parametrize("make", [regressor, classifier])
def test_calls_that_are_refused_do_not_count(make):
    x, y, labels, lengths = batch()
    model, target = make("lstm", dropout=0.5), y if make is regressor else labels
    for arguments, given in (((x, target[:4]), None), ((x[..., :2], target), None), ((x, target), [9] * 5)):
        with pytest.raises(ValueError, match="expected"):
            model.train_batch(*arguments, lengths=given)
    assert model.dropout_calls == 0
    model.train_batch(x, target, lengths=lengths)
    assert model.dropout_calls == 1


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("make", [regressor, classifier])
def test_what_stands_beyond_a_length_does_not_matter(make, dtype):
    x, y, labels, lengths = batch()
    model, target = make("lstm", dtype=dtype), y if make is regressor else labels
    model.prepare(fastlstm.Batches(x.swapaxes(0, 1), target))
    assert lengths.min() < len(x)
    found = []
    for rubbish in (0.0, np.nan, -np.inf):
        given = np.where(np.arange(len(x))[:, None, None] < lengths[:, None], x, rubbish)
        loss, _ = model.train_batch(given, target, lengths=lengths)
        sums, _ = model.eval_batch(given, target, lengths=lengths)
        grads = model.grads.flat.copy()
        out, backprop = model.forward_train(given, lengths)
        found.append((loss, sums["loss"], grads, out, backprop(np.ones_like(out)), model(given, lengths)))
    for other in found[1:]:
        assert all(np.isfinite(a).all() and np.array_equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("make", [regressor, classifier])
def test_old_activations_do_not_meet_new_weights(make):
    model, (x, *_) = make("gru"), batch()
    out, backprop = model.forward_train(x)
    with model.edit() as params:
        params["head.bias"][:] = 1
    with pytest.raises(RuntimeError, match="parameters were edited between forward_train and its backprop"):
        backprop(out)
    assert not model.grads.flat.any()


def test_what_does_not_fit_is_not_loaded():
    model = regressor("rnn")
    model.fit_normalization(*batch()[:2])
    state = model.state_dict()
    before = model.state_dict()
    with pytest.raises(KeyError, match=r"missing normalization.input_std"):
        model.load_state_dict({name: value for name, value in state.items() if name != "normalization.input_std"})
    with pytest.raises(ValueError, match=r"normalization.input_mean has shape \[4\]; expected \[3\]"):
        model.load_state_dict(state | {"normalization.input_mean": np.ones(4), "head.bias": np.ones(8)})
    with pytest.raises(ValueError, match="head.bias has shape"):
        model.load_state_dict(state | {"normalization.input_mean": np.ones(3), "head.bias": np.ones(9)})
    with pytest.raises(KeyError, match="unexpected"):
        regressor("rnn", normalize=False).load_state_dict(state)
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())
    model.load_state_dict({"head.bias": np.ones(8)}, strict=False)
    assert (model.params["head.bias"] == 1).all()
    assert model.fitted


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x, y: m.train_batch(x[..., :2], y), ValueError, r"inputs has shape \[6, 5, 2\]; expected \[T, B, 3\]"),
        (lambda m, x, y: m.train_batch(x, y[:4]), ValueError, r"targets has shape \[4, 4, 2\]; expected \[5, 4, 2\]"),
        (lambda m, x, y: m.train_batch(x, y[:, :3]), ValueError, r"targets has shape \[5, 3, 2\]; expected \[5, 4, 2\]"),
        (lambda m, x, y: m.train_batch(x, y, np.zeros(3)), ValueError, "state is given"),
        (lambda m, x, y: m.eval_batch(x, y, lengths=[7] * 5), ValueError, "lengths has values from 7 to 7; expected 0 to 6"),
        (lambda m, x, y: m.predict(x[:0]), ValueError, "expected no size to be zero"),
        (lambda m, x, y: m.predict(x > 0), TypeError, "x has dtype bool; expected float64"),
        (lambda m, x, y: m.fit_normalization(x[..., :1], y), ValueError, r"inputs has shape \[6, 5, 1\]; expected \[..., 3\]"),
        (lambda m, x, y: m.fit_normalization(x, y[..., :1]), ValueError, r"targets has shape \[5, 4, 1\]; expected \[..., 2\]"),
        (lambda m, x, y: m.fit_normalization(x[:0], y), ValueError, "inputs or targets are empty"),
        (lambda m, x, y: regressor("rnn", normalize=False).fit_normalization(x, y), ValueError, "normalize is False"),
        (lambda m, x, y: classifier("rnn").train_batch(x, [0, 1, 2, 3, 5]), ValueError, "targets has values from 0 to 5"),
        (lambda m, x, y: classifier("rnn").train_batch(x, [0.0] * 5), TypeError, "targets has dtype float64"),
        (lambda m, x, y: fastlstm.SequenceRegressor(3, 0), ValueError, "output_size is 0"),
        (lambda m, x, y: fastlstm.SequenceRegressor(3, 1, horizon=0), ValueError, "horizon is 0"),
        (lambda m, x, y: fastlstm.SequenceClassifier(3, 0), ValueError, "num_classes is 0"),
        (lambda m, x, y: fastlstm.SequenceClassifier(3, 2, cell="tcn"), ValueError, "cell is 'tcn'"),
        (lambda m, x, y: fastlstm.SequenceClassifier(3, 2, cell="gru", proj_size=2), ValueError, "only an LSTM projects"),
    ],
)
def test_errors(call, error, message):
    x, y, _, _ = batch()
    with pytest.raises(error, match=message):
        call(regressor("rnn"), x, y)


def waves(count=150, steps=20):
    rng = np.random.default_rng(8)
    phase = rng.uniform(0, 6, count)[:, None] + np.arange(steps + 2) / 3
    return (1000 + 50 * np.sin(phase))[..., None]


def test_a_fit_learns_the_normalisation_and_the_task(tmp_path):
    series = waves()
    x, y = series[:, :20], series[:, 20:]
    model = fastlstm.SequenceRegressor(1, 1, horizon=2, hidden_size=16, seed=0)
    data = fastlstm.Batches(x, y, batch_size=25, seed=0)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=0.01), checkpoint_dir=tmp_path, progress=False)
    history = trainer.fit(data, data, epochs=12)
    assert history[-1]["valid_mean_absolute_error"] < 10 < abs(y - x[:, -1:]).mean()
    again = fastlstm.Trainer.resume(tmp_path, data, data, progress=False)
    assert np.array_equal(again.model.predict(x[0]), model.predict(x[0]))
    assert abs(model.predict(x[0]) - y[0]).max() < 40


def test_a_classifier_learns_to_tell_long_from_short(tmp_path):
    rng = np.random.default_rng(9)
    label, lengths = rng.integers(0, 3, 240), rng.integers(5, 21, 240)
    waves = np.sin((label[:, None] + 1) * np.arange(20) / 3 + rng.uniform(0, 6, 240)[:, None])
    x = (waves + rng.normal(0, 0.1, (240, 20)))[..., None]
    model = fastlstm.SequenceClassifier(1, 3, cell="gru", hidden_size=16, seed=0)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=0.02), progress=False)
    data = fastlstm.Batches(x, label, batch_size=24, lengths=lengths, seed=0)
    trainer.fit(data, epochs=12)
    assert trainer.evaluate(data)["accuracy"] > 0.9
