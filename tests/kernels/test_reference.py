"""The reference: every gradient against central finite differences; values against PyTorch, loops and its own rules.

Nothing here knows of kernels or layers. What it judges is plain float64, so it judges to 1e-6 (gradients by
differences, whose own error is near 1e-10) and 1e-12 (values).
"""

import ast
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from fastlstm.kernels import reference

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
KINDS = {
    "rnn-tanh": ("rnn", {"nonlinearity": "tanh"}),
    "rnn-relu": ("rnn", {"nonlinearity": "relu"}),
    "lstm": ("lstm", {}),
    "lstm-projected": ("lstm", {}),
    "gru-after": ("gru", {"reset_after": True}),
    "gru-before": ("gru", {"reset_after": False}),
}
LENGTHS = np.array([5, 0, 3])
RESETS = np.zeros((5, 3), bool)
RESETS[[2, 4, 0, 1, 0, 2, 3], [0, 0, 1, 1, 2, 2, 2]] = True  # the last one stands where the third row has ended
SITUATIONS = {
    "plain": {},
    "unbiased": {"bias": False},
    "lengths": {"lengths": LENGTHS},
    "resets": {"resets": RESETS},
    "lengths-resets": {"lengths": LENGTHS, "resets": RESETS},
    "single": {"steps": 1, "batch": 1},
}

every_kind = pytest.mark.parametrize("kind", KINDS)
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def draw(kind, *, steps=5, batch=3, inputs=2, hidden=3, bias=True):
    """Random arguments of a kind's forward function, by name."""
    cell, _ = KINDS[kind]
    rng = np.random.default_rng(list(kind.encode()))
    rows, width = GATES[cell] * hidden, 2 if kind == "lstm-projected" else hidden
    shapes = {
        "x": (steps, batch, inputs),
        "h_0": (batch, width),
        "c_0": (batch, hidden),
        "w_ih": (rows, inputs),
        "w_hh": (rows, width),
        "b_ih": (rows,),
        "b_hh": (rows,),
        "w_hr": (width, hidden),
    }
    absent = {"c_0"} - ({"c_0"} if cell == "lstm" else set()) | ({"w_hr"} if width == hidden else set())
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items() if name not in absent}
    return arrays | ({} if bias else {"b_ih": None, "b_hh": None})


def forward(kind, arrays, **how):
    """Everything that a forward gives (out, final states) as one list, and what it saved."""
    cell, options = KINDS[kind]
    *results, saved = getattr(reference, f"{cell}_forward")(**arrays, **options, **how)
    return results, saved


def backward(kind, saved, *dresults, **how):
    return getattr(reference, f"{KINDS[kind][0]}_backward")(saved, *dresults, **how)


def like(results, seed=7):
    """Random gradients of the results."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(result.shape) for result in results]


def assert_close(got, want, tolerance, what=""):
    """By relative norm; where everything wanted is 0, so must be everything got."""
    assert np.shape(got) == np.shape(want), what
    error, norm = np.linalg.norm(np.subtract(got, want)), np.linalg.norm(want)
    assert error <= tolerance * norm, f"{what}: relative error {error / norm if norm else error:.2e} > {tolerance:.0e}"


def assert_gradients(run, arrays, results, dresults, grads):
    """Compare ``grads`` with central differences of sum(results * dresults) over every element of ``arrays``."""
    assert set(grads) == {name for name, array in arrays.items() if array is not None}

    def objective():
        return sum(float(np.vdot(result, d)) for result, d in zip(run(), dresults, strict=True))

    for name, grad in grads.items():
        array, wanted = arrays[name], np.empty_like(arrays[name])
        for index in np.ndindex(array.shape):
            value, sides = array[index], []
            for step in (1e-5, -1e-5):
                array[index] = value + step
                sides.append(objective())
            array[index] = value
            wanted[index] = (sides[0] - sides[1]) / 2e-5
        assert_close(grad, wanted, 1e-6, name)


@both_ways
@pytest.mark.parametrize("situation", SITUATIONS)
@every_kind
def test_gradients(kind, situation, reverse):
    shape = {k: v for k, v in SITUATIONS[situation].items() if k in ("bias", "steps", "batch")}
    how = {k: v for k, v in SITUATIONS[situation].items() if k not in shape} | {"reverse": reverse}
    arrays = draw(kind, **shape)
    results, saved = forward(kind, arrays, **how)
    dresults = like(results)
    grads = backward(kind, saved, *dresults)
    assert_gradients(lambda: forward(kind, arrays, **how)[0], arrays, results, dresults, grads)


@every_kind
def test_gradients_default_to_zero_for_the_final_state(kind):
    results, saved = forward(kind, draw(kind))
    dout, *dfinal = like(results)
    default = backward(kind, saved, dout)
    zeros = backward(kind, saved, dout, *(np.zeros_like(d) for d in dfinal))
    assert all(np.array_equal(default[name], zeros[name]) for name in zeros)
    nothing = backward(kind, saved, np.zeros_like(dout))
    assert not any(grad.any() for grad in nothing.values())


def test_relu_takes_a_mask_for_its_derivative():
    arrays = draw("rnn-relu", steps=1)
    (out, h_n), saved = forward("rnn-relu", arrays)
    dout, dh_n = like([out, h_n])
    own, given = (backward("rnn-relu", saved, dout, dh_n, **k) for k in ({}, {"mask": out > 0}))
    assert all(np.array_equal(own[name], given[name]) for name in own)
    other = np.arange(out.size).reshape(out.shape) % 2 == 0
    da = (dout + dh_n) * other
    grads = backward("rnn-relu", saved, dout, dh_n, mask=other)
    assert_close(grads["x"], da @ arrays["w_ih"], 1e-12)
    assert_close(grads["w_hh"], da[0].T @ arrays["h_0"], 1e-12)
    _, tanh_saved = forward("rnn-tanh", arrays)
    with pytest.raises(ValueError, match="mask given for a tanh layer"):
        backward("rnn-tanh", tanh_saved, dout, mask=other)
    with pytest.raises(ValueError, match="nonlinearity is 'sigmoid'"):
        reference.rnn_forward(**arrays, nonlinearity="sigmoid")


@both_ways
@every_kind
def test_a_ragged_row_is_the_row_cut_short_and_run_alone(kind, reverse):
    arrays = draw(kind)
    (out, *final), _ = forward(kind, arrays, lengths=LENGTHS, reverse=reverse)
    for row, length in enumerate(LENGTHS):
        alone = {name: a[row : row + 1] if name in ("h_0", "c_0") else a for name, a in arrays.items()}
        alone["x"] = arrays["x"][:length, row : row + 1]
        (out_alone, *final_alone), _ = forward(kind, alone, reverse=reverse)
        assert_close(out[:length, row], out_alone[:, 0], 1e-14)
        assert not out[length:, row].any()
        for state, state_alone in zip(final, final_alone, strict=True):
            assert_close(state[row], state_alone[0], 1e-14)


@both_ways
@every_kind
def test_what_stands_in_the_padding_does_not_matter(kind, reverse):
    arrays = draw(kind)
    padding = np.arange(5)[:, None] >= LENGTHS
    nan = np.where(padding[..., None], np.nan, 0.0)
    results, saved = forward(kind, arrays, lengths=LENGTHS, reverse=reverse)
    filled = arrays | {"x": arrays["x"] + nan}
    results_filled, saved_filled = forward(kind, filled, lengths=LENGTHS, resets=padding, reverse=reverse)
    assert all(np.array_equal(a, b) for a, b in zip(results, results_filled, strict=True))
    dout, *dfinal = like(results)
    grads = backward(kind, saved, dout, *dfinal)
    grads_filled = backward(kind, saved_filled, dout + nan, *dfinal)
    assert all(np.array_equal(grads[name], grads_filled[name]) for name in grads)


@both_ways
@every_kind
def test_resets_start_anew_from_zero(kind, reverse):
    arrays = draw(kind)
    (out, *final), _ = forward(kind, arrays, resets=RESETS, reverse=reverse)
    for row in range(3):
        marks = np.flatnonzero(RESETS[1:, row]) + 1
        parts = list(itertools.pairwise([0, *marks, 5]))
        state = {name: arrays[name][row : row + 1] for name in ("h_0", "c_0") if name in arrays}
        if RESETS[0, row] and not reverse:  # in reverse there is no step beyond the first to enter
            state = {name: np.zeros_like(a) for name, a in state.items()}
        for start, stop in reversed(parts) if reverse else parts:
            (out_part, *final_part), _ = forward(
                kind, arrays | state | {"x": arrays["x"][start:stop, row : row + 1]}, reverse=reverse
            )
            assert_close(out[start:stop, row], out_part[:, 0], 1e-14)
            state = {name: np.zeros_like(a) for name, a in state.items()}
        for got, want in zip(final, final_part, strict=True):
            assert_close(got[row], want[0], 1e-14)


@every_kind
def test_any_dtype_and_layout_is_taken_and_left_alone(kind):
    arrays = draw(kind)
    single = {name: a.astype(np.float32) for name, a in arrays.items()}
    strided = {name: np.repeat(a, 2, axis=-1)[..., ::2] for name, a in single.items()}
    for array in (*single.values(), *strided.values()):
        array.flags.writeable = False
    wanted, saved = forward(kind, {name: a.astype(np.float64) for name, a in single.items()})
    dresults = like(wanted)
    grads = backward(kind, saved, *dresults)
    for given in (single, strided):
        results, saved = forward(kind, given)
        assert all(np.array_equal(a, b) and a.dtype == np.float64 for a, b in zip(results, wanted, strict=True))
        for result in results:
            result.fill(np.nan)  # it is the caller's: nothing saved may live in it
        got = backward(kind, saved, *dresults)
        assert all(np.array_equal(got[name], grads[name]) for name in grads)


def test_the_articles_cell():
    """An LSTM of one unit, all weights 1 and no biases, over scalars."""
    series, h, c, wanted = [0.5, -1.0, 2.0, 0.25, -0.75], 0.0, 0.0, []
    for x in series:
        forget = write = read = 1 / (1 + math.exp(-(x + h)))
        c = forget * c + write * math.tanh(x + h)
        h = read * math.tanh(c)
        wanted.append(h)
    zero, ones = np.zeros((1, 1)), np.ones((4, 1))
    out, h_n, c_n, _ = reference.lstm_forward(np.reshape(series, (5, 1, 1)), zero, zero, ones, ones, None, None)
    assert_close(out[:, 0, 0], wanted, 1e-14)
    assert_close((h_n[0, 0], c_n[0, 0]), (h, c), 1e-14)


def test_the_original_gru_element_by_element():
    arrays = draw("gru-before", batch=1)
    (out, _), _ = forward("gru-before", arrays)
    w_ih, w_hh, b_ih, b_hh = (
        arrays[name].reshape(3, 3, *arrays[name].shape[1:]).tolist() for name in ("w_ih", "w_hh", "b_ih", "b_hh")
    )
    h = arrays["h_0"][0].tolist()
    for t in range(5):
        x = arrays["x"][t, 0].tolist()

        def affine(gate, j, state, x=x):
            terms = [w_ih[gate][j][k] * x[k] for k in range(2)] + [w_hh[gate][j][k] * state[k] for k in range(3)]
            return sum(terms) + b_ih[gate][j] + b_hh[gate][j]

        r, z = ([1 / (1 + math.exp(-affine(gate, j, h))) for j in range(3)] for gate in (0, 1))
        r_h = [a * b for a, b in zip(r, h, strict=True)]
        h = [(1 - z[j]) * math.tanh(affine(2, j, r_h)) + z[j] * h[j] for j in range(3)]
        assert_close(out[t, 0], h, 1e-14)


def test_sigmoid_keeps_its_tails():
    with np.errstate(all="raise", under="ignore"):
        got = reference.sigmoid(np.array([-1000.0, -700.0, -40.0, 0.0, 40.0, 1000.0]))
    assert_close(got[1:3], [math.exp(-700.0), math.exp(-40.0)], 1e-15)
    assert got[[0, 3, 5]].tolist() == [0.0, 0.5, 1.0]


def draw_stack(kind, *, num_layers, bidirectional, bias=True, steps=5, batch=3, inputs=2, hidden=3):
    """x, parameters by torch's names, and initial state of a stack."""
    sides = ("", "_reverse")[: 1 + bidirectional]
    params, states = {}, []
    rng = np.random.default_rng(5)
    for layer, side in itertools.product(range(num_layers), sides):
        width = hidden if kind != "lstm-projected" else 2
        arrays = draw(kind, inputs=width * len(sides) if layer else inputs, hidden=hidden, batch=batch, bias=bias)
        for short, long in {"w": "weight", "b": "bias"}.items():
            for end in ("ih", "hh", "hr"):
                if (array := arrays.get(f"{short}_{end}")) is not None:
                    params[f"{long}_{end}_l{layer}{side}"] = rng.permuted(array)
        states.append([rng.permuted(arrays[name]) for name in ("h_0", "c_0") if name in arrays])
    return rng.standard_normal((steps, batch, inputs)), params, [np.stack(parts) for parts in zip(*states, strict=True)]


def run_stack(kind, x, params, state, **how):
    cell, options = KINDS[kind]
    out, state_n, saved = reference.stack_forward(
        cell, x, params, tuple(state) if cell == "lstm" else state[0], **options, **how
    )
    return [out, *(state_n if cell == "lstm" else [state_n])], saved


def run_stack_back(kind, saved, dout, *dstate_n, **how):
    lstm = KINDS[kind][0] == "lstm"
    dx, dstate_0, dparams = reference.stack_backward(saved, dout, dstate_n if lstm else dstate_n[0], **how)
    return dx, list(dstate_0) if lstm else [dstate_0], dparams


@pytest.mark.parametrize(("num_layers", "bidirectional"), [(2, True), (3, False)], ids=["2-layers-both", "3-layers"])
@every_kind
def test_gradients_of_a_stack(kind, num_layers, bidirectional):
    x, params, state = draw_stack(kind, num_layers=num_layers, bidirectional=bidirectional)
    width = state[0].shape[2] * (1 + bidirectional)
    masks = 1.25 * (np.random.default_rng(3).random((num_layers - 1, 5, 3, width)) < 0.8)
    how = {
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        "dropout_masks": list(masks),
        "lengths": LENGTHS,
        "resets": RESETS,
    }
    results, saved = run_stack(kind, x, params, state, **how)
    dresults = like(results)
    dx, dstate_0, dparams = run_stack_back(kind, saved, *dresults)
    arrays = {"x": x, "h_0": state[0], "c_0": state[-1]} | params
    grads = {"x": dx, "h_0": dstate_0[0], "c_0": dstate_0[-1]} | dparams
    if len(state) == 1:
        del arrays["c_0"], grads["c_0"]
    assert_gradients(lambda: run_stack(kind, x, params, state, **how)[0], arrays, results, dresults, grads)


@pytest.mark.parametrize("kind", ["rnn-relu", "lstm-projected"])
def test_a_stack_takes_zeros_for_states_not_given(kind):
    x, params, state = draw_stack(kind, num_layers=2, bidirectional=True)
    cell, options = KINDS[kind]
    how = {"num_layers": 2, "bidirectional": True}
    out, _, _ = reference.stack_forward(cell, x, params, **options, **how)
    results, saved = run_stack(kind, x, params, [np.zeros_like(part) for part in state], **how)
    assert np.array_equal(out, results[0])
    dout, *dfinal = like(results)
    dx, _, _ = reference.stack_backward(saved, dout)
    dx_zeros, _, _ = run_stack_back(kind, saved, dout, *(np.zeros_like(d) for d in dfinal))
    assert np.array_equal(dx, dx_zeros)


def test_a_stack_hands_each_layer_and_direction_its_mask():
    x, params, state = draw_stack("rnn-relu", num_layers=2, bidirectional=True)
    (out, h_n), saved = run_stack("rnn-relu", x, params, state, num_layers=2, bidirectional=True)
    for closed, key in enumerate(("l0", "l0_reverse", "l1", "l1_reverse")):
        masks = [np.full((5, 3, 3), k != closed) for k in range(4)]
        _, _, dparams = run_stack_back("rnn-relu", saved, *like([out, h_n]), masks=masks)
        shut = {name for name, grad in dparams.items() if not grad.any()}
        assert shut == {name for name in params if name.endswith(f"_{key}")}


def check_head(run, arrays, dresult, grads):
    assert_gradients(lambda: [run()], arrays, [run()], [dresult], grads)


def test_gradients_of_embedding_and_linear():
    rng = np.random.default_rng(0)
    ids, weight = rng.integers(0, 4, (3, 2)), rng.standard_normal((4, 3))  # six tokens of four kinds: some are repeated
    dout = rng.standard_normal((3, 2, 3))
    assert np.array_equal(reference.embedding_forward(weight, ids)[2, 1], weight[ids[2, 1]])
    check_head(
        lambda: reference.embedding_forward(weight, ids),
        {"weight": weight},
        dout,
        {"weight": reference.embedding_backward(ids, dout, 4)},
    )
    arrays = {name: rng.standard_normal(shape) for name, shape in (("x", (3, 2, 4)), ("weight", (5, 4)), ("bias", 5))}
    dout = rng.standard_normal((3, 2, 5))
    grads = reference.linear_backward(arrays["x"], arrays["weight"], dout)
    check_head(lambda: reference.linear_forward(**arrays), arrays, dout, dict(zip(arrays, grads, strict=True)))


def test_losses_and_their_gradients():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    loss, dlogits = reference.softmax_cross_entropy(logits, targets)
    wanted = [math.log(np.exp(row).sum()) - row[k] for row, k in zip(logits, targets, strict=True)]
    assert_close(loss, np.mean(wanted), 1e-14)
    check_head(lambda: reference.softmax_cross_entropy(logits, targets)[0], {"x": logits}, 1.0, {"x": dlogits})
    loss, _ = reference.softmax_cross_entropy(logits + 1e4, targets)
    assert math.isfinite(loss)
    pred, target = rng.standard_normal((2, 4, 3))
    for function, wanted in (
        (reference.mean_squared_error, ((pred - target) ** 2).mean()),
        (reference.mean_absolute_error, abs(pred - target).mean()),
    ):
        loss, dpred = function(pred, target)
        assert_close(loss, wanted, 1e-14)
        check_head(lambda f=function: f(pred, target)[0], {"x": pred}, 1.0, {"x": dpred})
    assert not reference.mean_absolute_error(pred, pred)[1].any()


def test_the_oracle_imports_nothing_that_it_judges():
    folder = Path(reference.__file__).parent
    for path in folder.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        modules |= {f"{'.' * node.level}{node.module or ''}" for node in nodes if isinstance(node, ast.ImportFrom)}
        names = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        if path.name == "reference.py":
            assert modules <= {"__future__", "collections.abc", "types", "typing", "numpy", "numpy.typing"}
        elif path.name != "__init__.py":
            assert not {name for name in modules | names if name.rpartition(".")[2] == "reference"}, path.name
