"""Optimisation steps as one program: the same as by hand, no step on what is not finite, and no trace of one that failed."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastlstm
from fastlstm import optim
from fastlstm.kernels.operations import Judge
from fastlstm.runtime import program
from fastlstm.runtime.engine import engine
from fastlstm.training import update as descent

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 9, (4, 2, 6, 3))
X, LENGTHS = RNG.normal(5, 2, (4, 6, 3, 2)), np.array([6, 0, 3])
MODELS = {
    "text": (
        lambda **options: fastlstm.LanguageModel(9, hidden_size=5, dropout=0.2, seed=1, **options),
        [(ids, targets, None) for ids, targets in IDS],
    ),
    "text, no table": (
        lambda **options: fastlstm.LanguageModel(40, "gru", hidden_size=5, tie_weights=True, seed=1, **options),
        [(ids, targets, None) for ids, targets in IDS],
    ),
    "regressor": (
        lambda **options: fastlstm.SequenceRegressor(2, 3, 2, hidden_size=5, seed=1, **options),
        [(x, RNG.normal(0, 1, (3, 2, 3)), LENGTHS) for x in X],
    ),
    "classifier": (
        lambda **options: fastlstm.SequenceClassifier(2, 4, hidden_size=5, bidirectional=True, seed=1, **options),
        [(x, np.array([0, 3, 1]), None) for x in X],
    ),
}
OPTIMIZERS = {
    "sgd": lambda: fastlstm.SGD(0.1),
    "momentum": lambda: fastlstm.SGD(0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda: fastlstm.RMSprop(0.01, momentum=0.5),
    "adam": lambda: fastlstm.Adam(0.01),
    "adamw": lambda: fastlstm.AdamW(0.01),
}


def fitted(name, **options):
    make, batches = MODELS[name]
    model = make(**options)
    if name == "regressor":
        model.fit_normalization(batches[0][0], batches[0][1])
    return model, batches


def run(name, kind, optimizer, clip_norm, **options):
    """Losses and parameters after a few steps of one kind, with the state carried for text."""
    model, batches = fitted(name, **options)
    steps, state, losses = kind(model, optimizer, clip_norm), None, []
    for inputs, targets, lengths in batches:
        steps.step(inputs, targets, state, lengths)
        state = steps.state
        losses.append(steps.read().loss)
    return losses, model.params.flat.copy(), steps.read()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", list(MODELS))
def test_one_program_does_what_the_parts_do(name, dtype):
    for make in OPTIMIZERS.values():
        for clip_norm in (0.05, None):
            whole, parts = (
                run(name, kind, make(), clip_norm, dtype=dtype) for kind in (descent.Descent, descent.DescentByParts)
            )
            exact = 1e-12 if dtype == "float64" else 1e-6
            np.testing.assert_allclose(whole[0], parts[0], rtol=exact)
            np.testing.assert_allclose(whole[1], parts[1], rtol=10 * exact, atol=exact)
            assert whole[2].total == pytest.approx(parts[2].total, rel=exact)
            assert whole[2].norm == pytest.approx(parts[2].norm, rel=10 * exact)


def test_a_model_of_ones_own_is_asked_part_by_part():
    class Own(fastlstm.LanguageModel):
        def train_batch(self, *arguments, **options):
            return super().train_batch(*arguments, **options)

    class Slow(fastlstm.SGD):
        def step(self, params, grads, *, scale=1.0):
            super().step(params, grads, scale=0.5 * scale)

    model, adam = fastlstm.LanguageModel(5, hidden_size=3), fastlstm.Adam()
    assert descent.kind(model, adam) is descent.Descent
    assert descent.kind(Own(5, hidden_size=3), adam) is descent.DescentByParts
    assert descent.kind(model, Slow(0.1)) is descent.DescentByParts
    model.train_batch = lambda *arguments: None
    assert descent.kind(model, adam) is descent.DescentByParts


@pytest.mark.parametrize("name", ["text", "regressor"])
def test_no_step_is_taken_on_what_is_not_finite_until_somebody_knows(name):
    model, batches = fitted(name)
    optimizer = fastlstm.Adam(0.01)
    steps = descent.Descent(model, optimizer, 1.0)
    steps.step(*batches[0][:2], None, batches[0][2])
    before, moments = model.params.flat.copy(), optimizer.state_arrays()
    total = steps.read().total
    weight = model.params["head.bias"][0].copy()
    with model.edit() as params:
        params["head.bias"][0] = np.inf
    broken = model.params.flat.copy()
    for inputs, targets, lengths in batches[1:]:
        steps.step(inputs, targets, steps.state, lengths)
    assert np.array_equal(model.params.flat, broken)
    assert optimizer.steps == 4
    outcome = steps.read()
    assert outcome.missed == 3
    assert not np.isfinite(outcome.loss)
    assert outcome.total == total
    assert optimizer.steps == 1
    for kind, values in optimizer.state_arrays().items():
        assert np.array_equal(values, moments[kind])
    with model.edit() as params:
        params["head.bias"][0] = weight
    assert np.array_equal(model.params.flat, before)
    steps.step(*batches[1][:2], None, batches[1][2])
    assert steps.read().missed == 0
    assert optimizer.steps == 2
    assert not np.array_equal(model.params.flat, before)


def test_the_trainer_names_the_step_and_goes_on_after_it():
    model, batches = fitted("text")
    trainer = fastlstm.Trainer(model, progress=False)
    trainer.step(*batches[0][:2])
    with model.edit() as params:
        params["head.bias"][0] = np.nan
    with pytest.raises(fastlstm.DivergedError, match="the loss is nan in step 2"):
        trainer.step(*batches[1][:2])
    assert trainer.steps == trainer.optimizer.steps == 1
    with model.edit() as params:
        params["head.bias"][0] = 0
    assert np.isfinite(trainer.step(*batches[1][:2]))
    assert trainer.steps == 2


def test_other_parts_put_into_a_trainer_are_used_from_then_on():
    model, batches = fitted("text")
    trainer = fastlstm.Trainer(model, progress=False)
    trainer.step(*batches[0][:2])
    trainer.optimizer, trainer.clip_norm = fastlstm.SGD(1e-3), None
    before = model.params.flat.copy()
    trainer.step(*batches[1][:2])
    np.testing.assert_allclose(model.params.flat, before - 1e-3 * model.grads.flat, rtol=1e-6, atol=1e-8)
    assert trainer.optimizer.steps == 1


def test_many_trainers_of_one_model_leave_no_programs_behind():
    model, batches = fitted("text")
    for _ in range(40):
        fastlstm.Trainer(model, progress=False).step(*batches[0][:2])
    ((_, spaces),) = model._pool.free
    assert len(spaces._programs) == spaces.PROGRAMS


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_judge(dtype):
    run, squares = engine("cpu", dtype).run, np.array([9.0, 16.0])
    hyper, journal = np.zeros(16, dtype), np.zeros(5)
    for losses, most, factor, expected in (
        ([2.0, 4.0], np.inf, 1.0, [6.0, 3.0, 5.0, 1.0, 0.0]),
        ([2.0, 2.0], 2.5, 0.5, [10.0, 2.0, 5.0, 2.0, 0.0]),
        ([1.0, np.inf], 1.0, np.nan, [10.0, np.inf, 5.0, 2.0, 1.0]),
        ([1.0, 1.0], 1.0, np.nan, [10.0, np.inf, 5.0, 2.0, 1.0]),
    ):
        losses = np.array(losses)
        run(
            Judge(rows=2, losses=losses, chunks=2, squares=squares, limits=np.array([most, 2.0]), journal=journal, hyper=hyper),
            work=0,
        )
        assert hyper[0] == pytest.approx(factor, rel=1e-6, nan_ok=True)
        np.testing.assert_allclose(journal, expected)
    journal[4], squares[0] = 0, np.nan
    run(Judge(rows=1, losses=np.ones(1), chunks=2, squares=squares, limits=np.ones(2), journal=journal, hyper=hyper), work=0)
    assert np.isnan(hyper[0])
    assert journal[4] == 1


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_a_scale_that_is_no_number_changes_nothing(make):
    optimizer, params, grads = make(), {"w": np.ones(21, np.float32)}, {"w": np.ones(21, np.float32)}
    optimizer.step(params, grads)
    before, state = params["w"].copy(), optimizer.state_arrays()
    optimizer.step(params, grads, scale=np.nan)
    assert np.array_equal(params["w"], before)
    assert all(np.array_equal(state[kind], array) for kind, array in optimizer.state_arrays().items())


def test_norms_are_those_of_grad_norm():
    model, batches = fitted("classifier", dtype="float64")
    steps = descent.Descent(model, fastlstm.Adam(), None)
    steps.step(*batches[0][:2], None, None)
    assert steps.read().norm == pytest.approx(optim.grad_norm(model.grads), rel=1e-14)


def test_whole_numbers_clip_as_well():
    ends = []
    for clip_norm in (1, 1.0):
        model, batches = fitted("text")
        trainer = fastlstm.Trainer(model, fastlstm.SGD(5.0), clip_norm, progress=False)
        ends.append([trainer.step(*batch[:2]) for batch in batches])
    assert ends[0] == ends[1]


def test_settings_of_an_optimizer_may_change_between_steps():
    ends = []
    for kind in (descent.Descent, descent.DescentByParts):
        model, batches = fitted("text", dtype="float64")
        optimizer = fastlstm.SGD(0.1, momentum=0.9)
        steps = kind(model, optimizer, None)
        for number, (inputs, targets, _) in enumerate(batches):
            optimizer.nesterov = number > 1
            optimizer.momentum = 0.9 - 0.1 * number
            steps.step(inputs, targets, None, None)
        ends.append(model.params.flat.copy())
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_step_was_taken_or_was_not(monkeypatch, after):
    """An interrupt shows when a program returns to Python, or before it is called."""
    model, batches = fitted("text")
    trainer = fastlstm.Trainer(model, progress=False)
    trainer.step(*batches[0][:2])
    before, call = model.params.flat.copy(), program.Program._call

    def interrupted(self):
        if after:
            call(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(program.Program, "_call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.step(*batches[1][:2])
    assert trainer.steps == trainer.optimizer.steps == 1 + after
    assert np.array_equal(model.params.flat, before) == (not after)
    assert np.isfinite(trainer.step(*batches[2][:2]))
    assert trainer.steps == trainer.optimizer.steps == 2 + after


def test_a_step_that_could_not_begin_is_no_divergence(monkeypatch):
    model, batches = fitted("text")
    trainer = fastlstm.Trainer(model, progress=False)
    trainer.step(*batches[0][:2])

    def refuse(*_):
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(optim.Adam, "_numbers", refuse)
        with pytest.raises(MemoryError, match="none left"):
            trainer.step(*batches[1][:2])
    assert np.isfinite(trainer.step(*batches[1][:2]))
    assert trainer.steps == trainer.optimizer.steps == 2


def test_threads_may_evaluate_side_by_side():
    model, _ = fitted("text")
    ids = RNG.integers(0, 9, (4, 2, 30, 3))
    want = [model.eval_batch(*pair)[0]["loss"] for pair in ids]

    def judge(k):
        return [model.eval_batch(*ids[k])[0]["loss"] for _ in range(100)]

    with ThreadPoolExecutor(4) as pool:
        for k, losses in enumerate(pool.map(judge, range(4))):
            assert set(losses) == {want[k]}


def test_ids_may_change_before_backprop():
    gradients = []
    for change in (False, True):
        model = fastlstm.LanguageModel(9, hidden_size=5, seed=1)
        ids = IDS[0, 0].astype(np.int32)
        logits, _, backprop = model.forward_train(ids)
        if change:
            ids[...] = 8
        backprop(np.ones(logits.shape, np.float32))
        gradients.append(model.grads.flat.copy())
    assert np.array_equal(*gradients)
