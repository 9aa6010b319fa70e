"""Same bits: from run to run, alone or in a batch, on any number of threads, in any vectors, step by step or at once."""

import numpy as np
import pytest

from fastlstm.kernels.native import jit, team
from tests.support import cases

every_kind = pytest.mark.parametrize("kind", cases.KINDS)
every_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


@pytest.fixture(autouse=True)
def threads():
    """Whatever a test sets, the next finds as it was."""
    before = team.num_threads()
    yield
    team.set_num_threads(before)


def case_of(kind, **changes):
    settings = {
        "steps": 5,
        "batch": 7,
        "inputs": 20,
        "hidden": 64,
        "layers": 2,
        "bidirectional": True,
        "lengths": True,
        "resets": True,
        "state": "both",
        "dstate": "both",
    }
    return cases.Case(kind, 11, proj=13 * (kind == "lstm-projected"), **(settings | changes))


def assert_same(got, want, what):
    different = [name for name in want if not np.array_equal(got[name], want[name])]
    assert not different, f"{what}: other bits in {', '.join(different)}"


@every_dtype
@every_kind
def test_from_run_to_run(kind, dtype):
    case = case_of(kind)
    first, _ = case.results(case.layer(dtype))
    layer = case.layer(dtype)
    for k in range(3):
        layer.zero_grads()
        again, _ = case.results(layer)
        assert_same(again, first, f"run {k}")


@every_dtype
@pytest.mark.parametrize("hidden", [17, 64, 130])
@every_kind
def test_a_row_is_the_same_in_any_batch(kind, hidden, dtype):
    case = case_of(kind, hidden=hidden, batch=64, steps=3, layers=1 if hidden == 130 else 2)
    layer = case.layer(dtype)
    given = case.data(dtype).given
    whole = run(layer, given, slice(None))
    for rows in (slice(0, 1), slice(63, 64), slice(30, 32), slice(5, 12), slice(16, 64)):
        part = run(layer, given, rows)
        assert_same(part, {name: array[:, rows] for name, array in whole.items()}, f"rows {rows.start} to {rows.stop}")


def run(layer, given, rows):
    """Outputs and states of some rows of a batch; gradients of inputs and states too, which are theirs alone."""
    h, c = (None if part is None else part[:, rows] for part in (given.h, given.c))
    dh, dc = (None if part is None else part[:, rows] for part in (given.dh, given.dc))
    out, state, backprop = layer.forward_train(
        given.x[:, rows], h if c is None else (h, c), lengths=given.lengths[rows], resets=given.resets[:, rows]
    )
    dx, dstate = backprop(given.dout[:, rows], dh if c is None else (dh, dc))
    pairs = {"state": state, "dstate": dstate}
    flat = {f"{name}.{k}": part for name, pair in pairs.items() for k, part in enumerate(pair if c is not None else (pair,))}
    return {"out": out, "dx": dx} | flat


@every_dtype
@every_kind
def test_any_number_of_threads(kind, dtype):
    """Gradients of the weights too. The sizes are such that work is worth more than one thread."""
    case = case_of(kind, batch=37, inputs=70, steps=12)
    layer = case.layer(dtype)
    team.set_num_threads(1)
    alone, _ = case.results(layer)
    for count in (2, 3):
        team.set_num_threads(count)
        layer.zero_grads()
        together, _ = case.results(layer)
        assert_same(together, alone, f"{count} threads")


@every_dtype
@every_kind
def test_every_instruction_set(kind, dtype):
    """Gradients of gated cells are summed over interleaved gates, whose order goes with the width of a vector."""
    case = case_of(kind, hidden=33, batch=5)
    best, *others = jit.supported()
    with jit.use_isa(best):
        want, _ = case.results(case.layer(dtype))
    for name in others:
        with jit.use_isa(name):
            got, _ = case.results(case.layer(dtype))
        exact = want if case.cell == "rnn" else {key: want[key] for key in ("out", "h", "c") if key in want}
        assert_same(got, exact, f"{name} against {best}")
        cases.check(case, got, want, dtype)


@every_dtype
@pytest.mark.parametrize("hidden", [17, 64])
@every_kind
def test_step_by_step(kind, hidden, dtype):
    case = case_of(kind, hidden=hidden, bidirectional=False, lengths=False, steps=6)
    layer = case.layer(dtype)
    given = case.data(dtype).given
    out, end = layer(given.x, case.pair(given), resets=given.resets)
    state, outs = case.pair(given), []
    for t in range(case.steps):
        one, state = layer(given.x[t : t + 1], state, resets=given.resets[t : t + 1])
        outs.append(one)
    ends = (state, end) if case.cell == "lstm" else ((state,), (end,))
    assert np.array_equal(np.concatenate(outs), out)
    assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))


@every_dtype
@every_kind
def test_a_ragged_row_is_the_row_cut_short(kind, dtype):
    case = case_of(kind, resets=False)
    layer = case.layer(dtype)
    given = case.data(dtype).given
    whole = run(layer, vary(given, resets=np.zeros((5, 7), bool)), slice(None))
    for row, length in enumerate(given.lengths):
        if length:
            short = vary(given, x=given.x[:length], dout=given.dout[:length], resets=np.zeros((length, 7), bool))
            alone = run(layer, short, slice(row, row + 1))
            for name, array in alone.items():
                want = whole[name][:length] if name in ("out", "dx") else whole[name]
                assert np.array_equal(array[:, 0], want[:, row]), f"{name} of row {row}, {length} steps"


def vary(given, **changes):
    return type(given)(**(vars(given) | changes))
