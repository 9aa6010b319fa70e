"""Random layers, cells and models against the float64 reference, and the bits that are promised to be the same.

A trial draws one configuration: sizes, options, dtype, layouts, lengths, resets, states, an instruction set, a number of
threads. Its forward and backward results are held against `fastlstm.kernels.reference` by the bounds of tests/support/cases.py.
A layer's bits are then held against those with other numbers of threads, of a row alone and, step by step, of a stream.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm
from fastlstm.kernels import reference
from fastlstm.kernels.native import jit, team
from fastlstm.stack import recurrence
from tests.models import test_models, test_series
from tests.support import cases

NAME, TRIALS = "numerics", 100_000
LIMIT = 300.0  # the first of an instruction set may have to compile
DTYPES = ("float32", "float32", "float64", "bfloat16")
ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-9}
SHAKES = 5  # times that the parameters are changed by as much
Results = dict[Any, np.ndarray]
CELLS = {"rnn": fastlstm.RNNCell, "lstm": fastlstm.LSTMCell, "gru": fastlstm.GRUCell}


def trial(rng: random.Random, folder: Path) -> int:
    """One configuration."""
    act = rng.choices((layer, cell, language_model, series_model), (7, 1, 1, 1))[0]
    with machine(rng) as dtype:
        act(rng, dtype)
    return 1


@contextlib.contextmanager
def machine(rng: random.Random) -> Iterator[str]:
    """A dtype, and the instruction set, the way of products and the threads that serve it within the block."""
    dtype, threads = rng.choice(DTYPES), team.num_threads()
    with jit.use_isa(rng.choice([*jit.supported()[:1] * 16, *jit.supported()])):
        offered = jit.bfloat16_products(jit.isa())
        with jit.use_bfloat16_product(rng.choice([*offered[:1] * 2, *offered])):
            team.set_num_threads(rng.choice((1, 2, 3)))
            try:
                yield dtype
            finally:
                team.set_num_threads(threads)


def draw(rng: random.Random) -> cases.Case:
    """A call of a layer."""
    kind = rng.choice(list(cases.KINDS))
    form = rng.choice(("time-major", "time-major", "batch-first", "unbatched"))
    hidden = rng.choice((rng.randint(1, 9), rng.randint(1, 70), rng.choice(cases.SIZES)))
    if kind == "lstm-projected":
        hidden = max(2, hidden)
    states = cases.STATES if kind.startswith("lstm") else cases.STATES[:2]
    return cases.Case(
        kind,
        rng.randrange(2**31),
        steps=rng.choice((1, 1, 2, 3, 5, 8, 13)),
        batch=1 if form == "unbatched" else rng.choice((1, 1, 2, 3, 5, 8, 13, 20)),
        inputs=rng.choice((rng.randint(1, 9), rng.randint(1, 70))),
        hidden=hidden,
        proj=rng.randint(1, hidden - 1) if kind == "lstm-projected" else 0,
        layers=rng.choice((1, 1, 2, 3)),
        bidirectional=rng.random() < 0.35,
        bias=rng.random() < 0.8,
        lengths=rng.random() < 0.4,
        resets=rng.random() < 0.4,
        state=rng.choice(states),
        dstate=rng.choice(states),
        dout=rng.random() < 0.95,
        form=form,
        layout=rng.choice(cases.LAYOUTS),
        chunk=rng.choice((0, 0, 1, 2, 3)),
    )


def layer(rng: random.Random, dtype: str) -> None:
    """A layer's call, forward and backward, against the reference; inference gives the same bits."""
    case = draw(rng)
    made = case.layer(dtype)
    usual = recurrence.CHUNK_BYTES
    recurrence.CHUNK_BYTES = case.chunk_bytes(made) or usual
    try:
        got, masks = case.results(made)
        judge(got, lambda: case.wanted(made, masks), made, repr(case))
        given = case.data(cases.storage(made)).given
        out, _ = made(given.x, case.pair(given), lengths=given.lengths, resets=given.resets)
        same(case._time_major(out, "out"), got["out"], f"inference and forward_train of {case}")
        for property_of in (threads, row, stream):
            property_of(case, made, got)
    finally:
        recurrence.CHUNK_BYTES = usual


def threads(case: cases.Case, made: Any, got: Results) -> None:
    """Any number of threads gives the same bits."""
    before = team.num_threads()
    for count in {1, 2, 3} - {before}:
        team.set_num_threads(count)
        made.zero_grads()
        again, _ = case.results(made)
        for name, array in got.items():
            same(again[name], array, f"{name} with {count} and {before} threads of {case} in {made.dtype}")
    team.set_num_threads(before)


def row(case: cases.Case, made: Any, got: Results) -> None:
    """A row alone has the bits that it has in its batch."""
    if case.form == "unbatched" or made.dtype == "bfloat16":  # whose products may be made in another way for other batches
        return
    given = case.data(cases.storage(made)).given
    one = case.seed % case.batch

    def cut(array: Any, axis: int) -> Any:
        return None if array is None else array.take([one], axis)

    first = int(case.form == "time-major")
    state, dstate = (type(given)(h=cut(given.h, 1), c=cut(given.c, 1)), type(given)(dh=cut(given.dh, 1), dc=cut(given.dc, 1)))
    out, _, backprop = made.forward_train(
        cut(given.x, first), case.pair(state), lengths=cut(given.lengths, 0), resets=cut(given.resets, first)
    )
    dx, _ = backprop(cut(given.dout, first), case.pair(dstate, "d"))
    for name, array in {"out": out, "dx": dx}.items():
        same(case._time_major(array, name)[:, 0], got[name][:, one], f"{name} of row {one} alone of {case} in {made.dtype}")


def stream(case: cases.Case, made: Any, got: Results) -> None:
    """A stream's steps have the bits of the whole sequence."""
    if case.bidirectional or case.lengths:
        return
    data = case.data(cases.storage(made))
    step = fastlstm.Stream(made, batch_size=case.batch)
    if case.state != "none":
        step.state = case.pair(data.plain)
    x = case._time_major(np.asarray(data.given.x), "x")
    resets = data.plain.resets
    for t in range(case.steps):
        out = step(x[t], resets=None if resets is None else resets[t])
        if made.dtype != "bfloat16":
            same(out, got["out"][t], f"step {t} of a stream of {case} in {made.dtype}")


def cell(rng: random.Random, dtype: str) -> None:
    """A cell's step and its backward, batched or not."""
    kind, inputs, hidden, seed = rng.choice(list(CELLS)), rng.randint(1, 40), rng.randint(1, 50), rng.randrange(2**31)
    options: dict[str, Any] = {"rnn": {"nonlinearity": "tanh"}, "gru": {"reset_after": rng.random() < 0.5}}.get(kind, {})
    made = CELLS[kind](inputs, hidden, rng.random() < 0.8, dtype=dtype, seed=seed, **options)
    draws, storage = np.random.default_rng(seed), made.params.flat.dtype
    shape = () if rng.random() < 0.3 else (rng.choice((1, 2, 3, 7, 20)),)
    x = (draws.standard_normal((*shape, inputs)) * moderate(inputs, hidden)).astype(storage)
    parts = [draws.standard_normal((*shape, hidden)).astype(storage) for _ in range(4)]
    pairs = [tuple(parts[:2]), tuple(parts[2:])] if kind == "lstm" else [parts[0], parts[2]]
    state, backprop = made.forward_train(x, pairs[0])
    dx, dstate = backprop(pairs[1])
    same(flat(made(x, pairs[0]))[0], flat(state)[0], f"inference and forward_train of {made}")

    def lifted(array: np.ndarray) -> np.ndarray:
        return array.reshape(1, -1, array.shape[-1])

    first, last = ([lifted(part) for part in flat(pair)] for pair in pairs)

    def wanted() -> Results:
        out, end, saved = reference.stack_forward(
            kind,
            lifted(x),
            {f"{name}_l0": value for name, value in made.params.items()},
            tuple(first) if kind == "lstm" else first[0],
            **options,
        )
        dx, dstate, grads = reference.stack_backward(saved, np.zeros_like(out), tuple(last) if kind == "lstm" else last[0])
        return dict(enumerate((*flat(end), dx, *flat(dstate)))) | {name.removesuffix("_l0"): grads[name] for name in grads}

    got = dict(enumerate(lifted(part) for part in (*flat(state), dx, *flat(dstate)))) | dict(made.grads)
    judge(got, wanted, made, f"{made} of x {[*shape, inputs]}, seed {seed}")


def stack_options(rng: random.Random) -> dict[str, Any]:
    """What models take of their layers."""
    cell, hidden = rng.choice(("lstm", "gru", "rnn")), rng.randint(2, 40)
    proj = rng.randint(1, hidden - 1) if cell == "lstm" and rng.random() < 0.3 else 0
    return {
        "cell": cell,
        "hidden_size": hidden,
        "num_layers": rng.choice((1, 1, 2)),
        "proj_size": proj,
        "reset_after": rng.random() < 0.6,
        "seed": rng.randrange(2**31),
    }


def language_model(rng: random.Random, dtype: str) -> None:
    """Loss, logits and gradients of a batch of tokens."""
    options = stack_options(rng) | {"dtype": dtype}
    width, vocabulary = options["proj_size"] or options["hidden_size"], rng.choice((2, 11, 40, 150))
    options |= rng.choice(({"tie_weights": True}, {"embedding_size": rng.randint(1, 40)}, {}))
    made = fastlstm.LanguageModel(vocabulary, **options)
    ids, targets = test_models.batch(vocabulary, rng.choice((1, 2, 5, 9)), rng.choice((1, 2, 5, 13)), options["seed"])
    state = None
    if rng.random() < 0.5:
        draws = np.random.default_rng(options["seed"])
        state = tuple(
            draws.standard_normal((options["num_layers"], ids.shape[1], n)).astype(made.params.flat.dtype)
            for n in (width, options["hidden_size"])
        )
        state = state if options["cell"] == "lstm" else state[0]

    def wanted() -> Results:
        loss, grads, logits = test_models.by_reference(made, ids, targets, state)
        return {"loss": np.array([loss]), "logits": logits} | grads

    loss, _ = made.train_batch(ids, targets, state)
    got = {"loss": np.array([loss]), "logits": made(ids, state)[0]} | dict(made.grads)
    judge(got, wanted, made, f"{made.config} of ids {ids.shape}, state {state is not None}")


def series_model(rng: random.Random, dtype: str) -> None:
    """Loss, outputs and gradients of a batch of sequences of numbers."""
    options = stack_options(rng) | {"dtype": dtype, "bidirectional": rng.random() < 0.3, "normalize": False}
    inputs, outputs, horizon = rng.randint(1, 30), rng.randint(2, 9), rng.randint(1, 3)
    steps, batch = rng.choice((1, 2, 5, 9)), rng.choice((1, 2, 5, 13))
    draws = np.random.default_rng(options["seed"])
    x = draws.standard_normal((steps, batch, inputs)) * moderate(inputs, options["hidden_size"])
    x = x.astype("float64" if dtype == "float64" else "float32")
    lengths = draws.integers(0, steps + 1, batch) if rng.random() < 0.5 else None
    made: Any
    if rng.random() < 0.5:
        made, targets = fastlstm.SequenceClassifier(inputs, outputs, **options), draws.integers(0, outputs, batch)
        loss_of = reference.softmax_cross_entropy
    else:
        made = fastlstm.SequenceRegressor(inputs, outputs, horizon, **options)
        targets, loss_of = draws.standard_normal((batch, horizon, outputs)), reference.mean_squared_error

    def wanted() -> Results:
        out, backward = test_series.by_reference(made, x, lengths)
        loss, dout = loss_of(out, targets.reshape(batch, -1) if targets.ndim > 1 else targets)
        return {"loss": np.array([loss]), "out": out} | backward(dout)[1]

    loss, _ = made.train_batch(x, targets, lengths=lengths)
    got = {"loss": np.array([loss]), "out": made(x, lengths).reshape(batch, -1)} | dict(made.grads)
    judge(got, wanted, made, f"{made.config}, x {x.shape}, lengths {lengths}")


def moderate(inputs: int, hidden: int) -> float:
    """A factor on inputs: many would saturate few units, of whose 1 - tanh**2 float32 keeps few digits."""
    return min(1.0, (hidden / inputs) ** 0.5)


def flat(value: Any) -> tuple[np.ndarray, ...]:
    """A state's arrays."""
    return value if isinstance(value, tuple) else (value,)


def same(got: np.ndarray, want: np.ndarray, what: str) -> None:
    """The same bits."""
    if not np.array_equal(got, want):
        raise AssertionError(f"other bits: {what}; {np.count_nonzero(got != want)} of {got.size} elements differ")


def judge(got: Results, wanted: Callable[[], Results], owner: Any, what: str) -> None:
    """Every result within the bounds of tests/support/cases.py, times how sensitive it is.

    Sums that cancel and units that saturate lose more digits than those bounds have. How many is found by changing the owner's
    parameters by a rounding error: the bounds are for what moves by as much.
    """
    want = wanted()
    assert set(got) == set(want), f"{set(got) ^ set(want)} of {what}"
    largest = max(float(np.abs(array).max()) for array in want.values())
    coarse = owner.dtype in cases.COARSE and largest > 0

    def off(name: Any) -> float:
        return cases.coarse_error(got[name], want[name], largest) if coarse else cases.error(got[name], want[name])

    far = {name: found for name in want if not (found := off(name)) < cases.TOLERANCE[owner.dtype]}
    if not far:
        return
    kept, draws = owner.params.flat.copy(), np.random.default_rng(0)
    # In bfloat16 states, inputs and gradients of gates are rounded as the weights are.
    change = ROUNDING[owner.dtype] * (4 if coarse else 1)
    moved = dict.fromkeys(far, 0.0)
    for _ in range(SHAKES):
        with owner.edit():
            owner.params.flat[...] = kept * (1 + change * draws.standard_normal(kept.shape))
        again = wanted()
        moved = {name: max(most, float(np.linalg.norm(again[name] - want[name]))) for name, most in moved.items()}
    with owner.edit():
        owner.params.flat[...] = kept
    for name, found in far.items():
        bound = cases.TOLERANCE[owner.dtype] * moved[name] / ROUNDING[owner.dtype]
        if coarse:  # a bias's gradient sums rounded ones, which may cancel, and does not move with any weight
            bound = max(bound, change * largest)
        distance = float(np.linalg.norm(got[name] - want[name]))
        assert distance < bound, f"{name} is off by {found:.1e} in {owner.dtype}, {distance:.1e} of {bound:.1e}: {what}"
