"""LanguageModel against a composition of the reference; its states, its memory and its errors."""

import tracemalloc

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels import reference
from fastlstm.models import language

CELLS = ("rnn", "lstm", "gru")
OPTIONS = {
    "plain": {},
    "tied": {"tie_weights": True},
    "one layer, odd sizes": {"num_layers": 1, "embedding_size": 5, "hidden_size": 19},
}
every_cell = pytest.mark.parametrize("cell", CELLS)


def make(cell, vocab_size=13, **options):
    settings = {"hidden_size": 12, "num_layers": 2, "dtype": "float64", "seed": 3} | options
    return fastlstm.LanguageModel(vocab_size, cell, **settings)


def batch(vocab_size, steps=7, rows=4, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, (2, steps, rows))


def by_reference(model, ids, targets, state=None):
    """Loss and gradients by name, composed of the reference's parts."""
    params = model.state_dict()
    rnn = {name.removeprefix("rnn."): value for name, value in params.items() if name.startswith("rnn.")}
    embedding = params["embedding.weight"]
    weight = params.get("head.weight", embedding)
    kind, shape = model.shape.cell, model.shape
    x = reference.embedding_forward(embedding, ids)
    options = {"reset_after": shape.reset_after} if kind == "gru" else {}
    if state is None:
        zeros = [np.zeros((shape.num_layers, ids.shape[1], n)) for n in (shape.width, shape.hidden_size)]
        state = tuple(zeros) if kind == "lstm" else zeros[0]
    out, _, saved = reference.stack_forward(kind, x, rnn, state, num_layers=shape.num_layers, **options)
    flat = out.reshape(-1, out.shape[-1])
    logits = reference.linear_forward(flat, weight, params["head.bias"])
    loss, dlogits = reference.softmax_cross_entropy(logits, targets.ravel())
    dflat, dweight, dbias = reference.linear_backward(flat, weight, dlogits)
    dx, _, drnn = reference.stack_backward(saved, dflat.reshape(out.shape), None)
    grads = {f"rnn.{name}": value for name, value in drnn.items()}
    grads["embedding.weight"] = reference.embedding_backward(ids, dx, len(embedding))
    grads["head.bias"] = dbias
    tied = "head.weight" not in params
    grads["embedding.weight" if tied else "head.weight"] = dweight + (grads["embedding.weight"] if tied else 0)
    return loss, grads, logits.reshape(*ids.shape, -1)


@every_cell
@pytest.mark.parametrize("vocab_size", [13, 90], ids=["by the table", "by rows"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_and_gradients_are_the_references(cell, vocab_size, options):
    model = make(cell, vocab_size, **options)
    ids, targets = batch(vocab_size)
    want, grads, logits = by_reference(model, ids, targets)
    loss, _ = model.train_batch(ids, targets)
    assert loss == pytest.approx(want, rel=1e-12)
    assert set(grads) == set(model.grads)
    for name, wanted in grads.items():
        error = np.linalg.norm(model.grads[name] - wanted) / np.linalg.norm(wanted)
        assert error < 1e-12, f"{name}: {error}"
    np.testing.assert_allclose(model(ids)[0], logits, rtol=1e-11, atol=1e-12)
    sums, _ = model.eval_batch(ids, targets)
    assert sums["loss"] / sums["count"] == pytest.approx(want, rel=1e-12)


@every_cell
def test_by_hand_gives_what_train_batch_gives(cell):
    model = make(cell)
    ids, targets = batch(13)
    loss, _ = model.train_batch(ids, targets)
    wanted = model.grads.flat.copy()
    model.zero_grads()
    logits, _, backprop = model.forward_train(ids)
    by_hand, dlogits = fastlstm.losses.softmax_cross_entropy(logits, targets)
    nothing, _ = backprop(dlogits)
    assert nothing is None
    assert by_hand == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(model.grads.flat, wanted, rtol=1e-9, atol=1e-14)
    with pytest.raises(RuntimeError, match="used up"):
        backprop(dlogits)
    grads = model.grads.flat.copy()
    _, _, backprop = model.forward_train(ids)
    backprop.close()
    with pytest.raises(RuntimeError, match="closed"):
        backprop(dlogits)
    assert np.array_equal(model.grads.flat, grads)
    assert len(model._pool.free) == 1  # the closed buffers serve the next call


@every_cell
def test_old_activations_do_not_meet_new_weights(cell):
    model = make(cell)
    ids, _ = batch(13)
    logits, _, backprop = model.forward_train(ids)
    fastlstm.SGD(lr=0.1).step(model.params, model.grads)
    with pytest.raises(RuntimeError, match="parameters were edited between forward_train and its backprop"):
        backprop(logits)
    assert not model.grads.flat.any()


@every_cell
def test_evaluation_between_steps_leaves_the_training_alone(cell):
    ids, targets = batch(13)
    models, states = [make(cell) for _ in range(2)], [None, None]
    for _ in range(3):
        for k, model in enumerate(models):
            _, states[k] = model.train_batch(ids, targets, states[k])
            if k:
                _, judged = model.eval_batch(targets, ids)
                model.eval_batch(ids, targets, judged)
    assert np.array_equal(models[0].grads.flat, models[1].grads.flat)


def test_calls_that_are_refused_do_not_count():
    model = make("gru", dropout=0.5)
    ids, targets = batch(13)
    for call in (
        lambda: model.train_batch(ids, targets + 13),
        lambda: model.train_batch(ids, None),
        lambda: model.train_batch(ids + 13, targets),
        lambda: model.train_batch(ids, targets, np.zeros((9, 9))),
        lambda: model.forward_train(ids, (0, 0)),
        lambda: model.eval_batch(ids, None),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()
    assert model.dropout_calls == 0
    model.train_batch(ids, targets)
    assert model.dropout_calls == 1


@every_cell
def test_the_state_goes_on_from_batch_to_batch(cell):
    model = make(cell)
    ids, targets = batch(13, steps=8)
    whole, _ = model(ids)
    first, state = model(ids[:3])
    rest, _ = model(ids[3:], state)
    assert np.array_equal(np.concatenate([first, rest]), whole)
    sums, _ = model.eval_batch(ids, targets)
    part, state = model.eval_batch(ids[:3], targets[:3])
    more, _ = model.eval_batch(ids[3:], targets[3:], state)
    assert part["loss"] + more["loss"] == pytest.approx(sums["loss"], rel=1e-12)


def test_the_initial_states_gradient():
    model = make("lstm")
    ids, targets = batch(13)
    draw = np.random.default_rng(1)
    state = tuple(draw.standard_normal((2, 4, 12)) for _ in range(2))
    logits, _, backprop = model.forward_train(ids, state)
    _, dlogits = fastlstm.losses.softmax_cross_entropy(logits, targets)
    _, dstate = backprop(dlogits)

    def loss(h):
        logits, _ = model(ids, (h, state[1]))
        return fastlstm.losses.softmax_cross_entropy(logits, targets)[0]

    step = np.zeros_like(state[0])
    step[1, 2, 3] = 1e-6
    numeric = (loss(state[0] + step) - loss(state[0] - step)) / 2e-6
    assert dstate[0][1, 2, 3] == pytest.approx(numeric, rel=1e-6)


def test_dropout_draws_anew_and_from_its_random_state():
    model = make("gru", dropout=0.5)
    ids, targets = batch(13)
    before = model.random_state
    first, _ = model.train_batch(ids, targets)
    second, _ = model.train_batch(ids, targets)
    assert first != second
    model.random_state = before
    again, _ = model.train_batch(ids, targets)
    assert again == first


@every_cell
def test_a_step_allocates_nothing_after_the_first(cell):
    model = fastlstm.LanguageModel(65, cell, hidden_size=64, seed=0)
    trainer = fastlstm.Trainer(model, progress=False)
    ids, targets = batch(65, steps=50, rows=32).astype(np.int32)
    for _ in range(2):
        trainer.step(ids, targets)
    tracemalloc.start()
    trainer.step(ids, targets)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # the smallest buffer of this step, one state, has 16 KiB; what is left are small objects of Python
    assert peak < 16_000


@every_cell
def test_config_makes_the_same_model(cell):
    model = make(cell, dropout=0.25)
    twin = language.from_config(model.config)
    assert twin.config == model.config
    assert np.array_equal(twin.params.flat, model.params.flat)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "lsmt"}, "cell is 'lsmt'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"hidden_size": 2.5}, "hidden_size is 2.5"),
        ({"tie_weights": True, "embedding_size": 7}, "embedding_size is 7"),
        ({"cell": "gru", "proj_size": 3}, "proj_size is 3"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"device": "cuda"}, "device is 'cuda'"),
        ({"device": "tpu"}, "device is 'tpu'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"vocab_size": 13, "cell": "lstm"} | change
    with pytest.raises((ValueError, TypeError), match=message):
        fastlstm.LanguageModel(**arguments)


def test_bad_input_is_named():
    model = make("lstm")
    ids, targets = batch(13)
    with pytest.raises(ValueError, match=r"ids has values from 13 to 13; expected 0 to 12"):
        model(np.full((3, 2), 13))
    with pytest.raises(TypeError, match="ids has dtype float64"):
        model(ids.astype(float))
    with pytest.raises(ValueError, match="ids has shape"):
        model(np.zeros((0, 3), int))
    with pytest.raises(ValueError, match="targets has shape"):
        model.train_batch(ids, targets[:-1])
    with pytest.raises(ValueError, match="lengths is given"):
        model.train_batch(ids, targets, lengths=[1, 2, 3, 4])
    with pytest.raises(TypeError, match=r"expected a pair \(h, c\)"):
        model(ids, np.zeros((2, 4, 12)))
    with pytest.raises(ValueError, match="type 'Transformer'"):
        language.from_config({"type": "Transformer"})
