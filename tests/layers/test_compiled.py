"""lstm_step, gru_step, rnn_step: the layer's bits from Python and from @njit code, in place, without allocation or the GIL."""

import copy
import inspect
import pickle
import threading
import time

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError
from numba.core.runtime import _nrt_python, rtsys

import fastlstm
from fastlstm.kernels.native import jit
from fastlstm.layers import compiled as steps
from fastlstm.layers.compiled import ROWS, check_state, check_x
from fastlstm.runtime.overlaps import apart

lstm_step, gru_step, rnn_step = fastlstm.lstm_step, fastlstm.gru_step, fastlstm.rnn_step

LAYERS = {
    "rnn-tanh": lambda *a, **o: fastlstm.RNN(*a, **o),
    "rnn-relu": lambda *a, **o: fastlstm.RNN(*a, nonlinearity="relu", **o),
    "lstm": lambda *a, **o: fastlstm.LSTM(*a, **o),
    "lstm-projected": lambda *a, **o: fastlstm.LSTM(*a, proj_size=max(1, a[1] // 3), **o),
    "gru": lambda *a, **o: fastlstm.GRU(*a, **o),
    "gru-original": lambda *a, **o: fastlstm.GRU(*a, reset_after=False, **o),
}


def start(layer, batch, rng):
    """x [T, B, I] and a state [layers, B, width] of random numbers."""
    shape, dtype = layer.shape, layer.dtype
    x = rng.normal(size=(4, batch, shape.input_size)).astype(dtype)
    h = rng.normal(size=(shape.num_layers, batch, shape.width)).astype(dtype)
    if shape.cell != "lstm":
        return x, (h,)
    return x, (h, rng.normal(size=(shape.num_layers, batch, shape.hidden_size)).astype(dtype))


def step_of(layer):
    return {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}[layer.shape.cell]


def judge(layer, x, state):
    """All steps against the layer, with every axis there is."""
    out, final = layer(x, state if len(state) > 1 else state[0])
    cell, mine, step = layer.compiled(), [part.copy() for part in state], step_of(layer)
    for t in range(len(x)):
        y = step(cell, x[t], *mine)
        assert np.array_equal(y, out[t]), t
        assert np.shares_memory(y, mine[0])
    for got, wanted in zip(mine, final if isinstance(final, tuple) else (final,), strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_batch_has_the_bits_of_the_layer(kind, dtype):
    rng = np.random.default_rng(0)
    sizes = [(1, 1, 1, 1), (3, 5, 7, 2), (ROWS, 16, 32, 1), (2 * ROWS + 3, 33, 17, 3)]
    for batch, inputs, hidden, layers in sizes:
        if kind == "lstm-projected" and hidden == 1:
            continue
        layer = LAYERS[kind](inputs, hidden, layers, bias=hidden != 7, dtype=dtype, seed=1)
        judge(layer, *start(layer, batch, rng))


@pytest.mark.parametrize("isa", jit.supported())
def test_on_every_instruction_set(isa):
    with jit.use_isa(isa):
        for kind in ("lstm-projected", "gru-original"):
            layer = LAYERS[kind](5, 19, 2, seed=2)
            judge(layer, *start(layer, 3, np.random.default_rng(1)))


@pytest.mark.parametrize(("layers", "batch"), [(1, 1), (1, 5), (2, 1)])
def test_axes_of_one_may_be_left_out(layers, batch):
    rng = np.random.default_rng(2)
    layer = LAYERS["lstm-projected"](5, 7, layers, seed=3)
    x, state = start(layer, batch, rng)
    out, _ = layer(x, state if len(state) > 1 else state[0])
    mine = [part.copy() for part in state]
    mine = [part[:, 0] if batch == 1 else part for part in mine]
    mine = [part[0] if layers == 1 else part for part in mine]
    cell = layer.compiled()
    for t in range(len(x)):
        y = step_of(layer)(cell, x[t, 0] if batch == 1 else x[t], *mine)
        assert np.array_equal(y, out[t, 0] if batch == 1 else out[t])


def test_inside_compiled_loops():
    @numba.njit(nogil=True)
    def run(cell, other, third, x, h, c, g, r):
        for t in range(len(x)):
            gru_step(other, lstm_step(cell, x[t], h, c), g)
            rnn_step(third, g, r)

    one, two, three = fastlstm.LSTM(5, 7, 2, seed=0), fastlstm.GRU(7, 4, seed=1), fastlstm.RNN(4, 3, seed=2)
    x = np.random.default_rng(3).normal(size=(6, 5)).astype(np.float32)
    h, c, g, r = (np.zeros(shape, np.float32) for shape in ((2, 7), (2, 7), (4,), (3,)))
    run(one.compiled(), two.compiled(), three.compiled(), x, h, c, g, r)
    a, (h_n, c_n) = one(x)
    b, _ = two(a)
    d, _ = three(b)
    assert np.array_equal(h, h_n)
    assert np.array_equal(c, c_n)
    assert np.array_equal(g, b[-1])
    assert np.array_equal(r, d[-1])


def test_steps_may_be_arguments_of_compiled_code():
    @numba.njit
    def loop(step, cell, xs, h, c):
        for t in range(len(xs)):
            step(cell, xs[t], h, c)

    @numba.njit
    def loop_without_c(step, cell, xs, h):
        for t in range(len(xs)):
            step(cell, xs[t], h)

    xs = np.random.default_rng(3).normal(size=(6, 5)).astype(np.float32)
    one, two = fastlstm.LSTM(5, 7, seed=0), fastlstm.GRU(5, 7, seed=1)
    h, c, g = zeros(7), zeros(7), zeros(7)
    loop(lstm_step, one.compiled(), xs, h, c)
    loop_without_c(gru_step, two.compiled(), xs, g)
    assert np.array_equal(h, one(xs)[0][-1])
    assert np.array_equal(g, two(xs)[0][-1])


@pytest.mark.parametrize(("step", "name"), [(lstm_step, "lstm_step"), (gru_step, "gru_step"), (rnn_step, "rnn_step")])
def test_steps_are_as_functions_to_tools(step, name):
    assert step.__name__ == name
    assert "step of a" in step.__doc__
    assert list(inspect.signature(step).parameters) == ["cell", "x", "h", "c"][: 4 if step is lstm_step else 3]
    assert pickle.loads(pickle.dumps(step)) is copy.deepcopy(step) is step
    with pytest.raises(TypeError, match=rf"{name}\(\) missing"):
        step(None)


def test_arrays_of_the_usual_kind_go_to_the_compiled_step_at_once(monkeypatch):
    """A step takes microseconds: checks in Python would take ten times as long."""

    def checked(*arguments):
        raise AssertionError("went the long way")

    monkeypatch.setattr(steps, "_checked", checked)
    for kind, layers, batch in (("lstm", 1, 1), ("lstm-projected", 2, 3), ("gru", 1, 2), ("rnn-tanh", 2, 1)):
        layer = LAYERS[kind](5, 7, layers, seed=0)
        judge(layer, *start(layer, batch, np.random.default_rng(0)))
    x = np.ones(5, np.float32)
    x.flags.writeable = False
    rnn_step(cell=fastlstm.RNN(5, 7).compiled(), x=x, h=zeros(7))


@numba.njit(nogil=True)
def many_steps(cell, x, h, c, count):
    for _ in range(count):
        lstm_step(cell, x, h, c)


def test_nothing_is_allocated():
    layer = fastlstm.LSTM(8, 16, seed=0)
    cell, x, h, c = layer.compiled(), np.ones((3, 8), np.float32), np.zeros((3, 16), np.float32), np.zeros((3, 16), np.float32)
    many_steps(cell, x, h, c, 1)
    _nrt_python.memsys_enable_stats()
    before = rtsys.get_allocation_stats()
    many_steps(cell, x, h, c, 1000)
    after = rtsys.get_allocation_stats()
    # What wraps the arguments of the one call is not counted by steps.
    assert after.alloc - before.alloc < 20
    assert after.alloc - before.alloc == after.free - before.free


def test_the_gil_is_released_and_each_thread_has_its_snapshot():
    layer = fastlstm.LSTM(32, 64, seed=0)
    x = np.random.default_rng(4).normal(size=(2, 32)).astype(np.float32)
    states = [(np.zeros(64, np.float32), np.zeros(64, np.float32)) for _ in range(2)]
    many_steps(layer.compiled(), x[0], *(part.copy() for part in states[0]), 1)
    threads = [threading.Thread(target=many_steps, args=(layer.compiled(), x[k], *states[k], 100_000)) for k in range(2)]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.001)
        seen += 1
    # With the GIL held, this loop would have stood still after its first rounds.
    assert seen > 20
    for k in range(2):
        h, c = np.zeros(64, np.float32), np.zeros(64, np.float32)
        many_steps(layer.compiled(), x[k], h, c, 100_000)
        assert np.array_equal(h, states[k][0])
        assert np.array_equal(c, states[k][1])


def test_arrays_may_be_strided_and_of_another_dtype():
    layer = fastlstm.LSTM(5, 7, seed=0)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3, 5)).astype(np.float32)
    _, (h_n, c_n) = layer(x)
    # Doubles hold floats exactly, so that the bits stay comparable.
    h, c = np.zeros((7, 2))[:, 0], np.zeros(14, np.float32)[::2]
    cell, columns = layer.compiled(), np.asfortranarray(x.astype(np.float64))
    columns.flags.writeable = False
    for t in range(3):
        lstm_step(cell, columns[t], h, c)
    assert np.array_equal(h, h_n[0])
    assert np.array_equal(c, c_n[0])


def test_a_snapshot_keeps_its_weights():
    layer = fastlstm.GRU(3, 4, seed=0)
    x, wanted = np.ones(3, np.float32), layer(np.ones((1, 3), np.float32))[0][0]
    cell = layer.compiled()
    with layer.edit() as params:
        for values in params.values():
            values[...] = 0
    h = np.zeros(4, np.float32)
    assert np.array_equal(gru_step(cell, x, h), wanted)
    h[...] = 0
    assert not np.array_equal(gru_step(layer.compiled(), x, h), wanted)


def test_cells_have_steps_too():
    for cell, step in (
        (fastlstm.LSTMCell(3, 4, seed=0), lstm_step),
        (fastlstm.RNNCell(3, 4, nonlinearity="relu", seed=0), rnn_step),
        (fastlstm.GRUCell(3, 4, reset_after=False, seed=0), gru_step),
    ):
        x, parts = np.ones(3, np.float32), [np.full(4, 0.5, np.float32) for _ in range(1 + (step is lstm_step))]
        wanted = cell(x, tuple(parts) if len(parts) > 1 else parts[0])
        step(cell.compiled(), x, *parts)
        assert np.array_equal(parts[0], wanted[0] if step is lstm_step else wanted)


def test_no_denormals_slow_it_down():
    """The kernels flush them; a state that fades away must not cost more and more."""
    layer = fastlstm.LSTM(1, 8, bias=False, seed=0)
    h, c = np.full(8, 1e-42, np.float32), np.full(8, 1e-42, np.float32)
    lstm_step(layer.compiled(), np.zeros(1, np.float32), h, c)
    assert not c.any()


def test_one_direction_only():
    with pytest.raises(ValueError, match="layer is bidirectional"):
        fastlstm.LSTM(3, 4, bidirectional=True).compiled()


def zeros(*shape):
    return np.zeros(shape, np.float32)


@numba.njit
def compiled_step(cell, x, h, c):
    return lstm_step(cell, x, h, c)


STEPS = pytest.mark.parametrize("step", [lstm_step, compiled_step], ids=["from Python", "compiled"])


WRONG_SHAPES = [  # and what Python and compiled code are told
    (1, zeros(4), zeros(6), zeros(7), r"x has shape \[4\]; expected \[5\]", "x: expected"),
    (1, zeros(5), zeros(7), zeros(7), r"h has shape \[7\]; expected \[1, 6\] or \[6\]", "layer's width"),
    (1, zeros(5), zeros(6), zeros(6), r"c has shape \[6\]; expected \[1, 7\] or \[7\]", "layer's width"),
    (1, zeros(2, 5), zeros(3, 6), zeros(3, 7), r"h has shape \[3, 6\]; expected \[1, 2, 6\] or \[2, 6\]", "batch size of x"),
    (1, zeros(2, 5), zeros(2, 6), zeros(3, 7), r"c has shape \[3, 7\]; expected \[1, 2, 7\] or \[2, 7\]", "batch size of x"),
    (2, zeros(5), zeros(6), zeros(7), r"h has shape \[6\]; expected \[2, 6\]$", "more than one"),
    (2, zeros(5), zeros(1, 6), zeros(1, 7), r"h has shape \[1, 6\]; expected \[2, 6\]$", "one for each layer"),
    (1, zeros(2, 5), zeros(6), zeros(7), r"h has shape \[6\]; expected \[1, 2, 6\] or \[2, 6\]", r"expected \[H\] or"),
]


@pytest.mark.parametrize(("layers", "x", "h", "c", "message", "compiled"), WRONG_SHAPES)
def test_wrong_shapes(layers, x, h, c, message, compiled):
    layer = fastlstm.LSTM(5, 7, layers, proj_size=6, seed=0)
    with pytest.raises(ValueError, match=message):
        lstm_step(layer.compiled(), x, h, c)
    with pytest.raises(ValueError, match=compiled):
        compiled_step(layer.compiled(), x, h, c)
    assert not h.any()


def test_wrong_cells():
    cell, x, h = fastlstm.GRU(3, 4, seed=0).compiled(), zeros(3), zeros(4)
    with pytest.raises(ValueError, match="of another kind"):
        rnn_step(cell, x, h)
    with pytest.raises(ValueError, match="of another kind"):
        lstm_step(cell, x, h, zeros(4))
    with pytest.raises(ValueError, match="copies cannot be used"):
        gru_step(tuple(part.copy() for part in cell), x, h)


def test_the_package_imports_numba_only_for_steps(tmp_path):
    import subprocess
    import sys

    # A process of its own: this one has everything loaded.
    script = "import sys, fastlstm; a = 'numba' in sys.modules; fastlstm.lstm_step; print(a, 'numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@STEPS
def test_states_are_of_floating_point_numbers(step):
    """They are written back, where whole numbers would be cut at every step."""
    cell, x = fastlstm.LSTM(2, 3, seed=0).compiled(), np.ones(2, np.float32)
    for h, c in ((np.zeros(3, int), np.zeros(3)), (np.zeros(3), np.zeros(3, bool))):
        with pytest.raises((ValueError, TypingError), match=r"[hc] (has dtype|is array).*; expected .*float32 or float64"):
            step(cell, x, h, c)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda plan, memory: (plan[:1], memory), "whole"),
        (lambda plan, memory: (plan[:0], memory), "whole"),
        (lambda plan, memory: (plan[:-1], memory), "whole"),
        (lambda plan, memory: (plan[::2], memory), "whole"),
        (lambda plan, memory: (plan, memory[:-1]), "whole"),
        (lambda plan, memory: (plan, memory[::2]), "whole"),
        (lambda plan, memory: (plan, memory.view(np.float64)), "whole"),
        (lambda plan, memory: (plan, memory[1:]), "copies cannot be used"),
        (lambda plan, memory: (plan, np.lib.stride_tricks.as_strided(memory, strides=(0,))), "whole"),
        (lambda plan, memory: (plan.astype(float), memory), r"cell is .*expected what layer.compiled\(\) returned"),
        (lambda plan, memory: (plan, memory.view(np.int32)), r"cell is .*expected what layer.compiled\(\) returned"),
        (lambda plan, memory: (plan,), r"cell is .*expected what layer.compiled\(\) returned"),
    ],
)
def test_a_cell_that_is_not_whole_is_refused(cut, message):
    """A plan is read by address: one that is cut would have a step read beyond it."""
    layer, x = fastlstm.LSTM(2, 3, seed=0), np.ones(2, np.float32)
    cell, h, c = layer.compiled(), zeros(3), zeros(3)
    with pytest.raises((ValueError, TypeError), match=message):
        lstm_step(cut(*cell), x, h, c)
    assert not h.any()
    assert not c.any()


def test_compiled_code_refuses_such_a_cell_too():
    cell, x, h, c = fastlstm.LSTM(2, 3, seed=0).compiled(), zeros(2), zeros(3), zeros(3)
    with pytest.raises(ValueError, match="whole"):
        compiled_step((cell[0][:1], cell[1]), x, h, c)
    for wrong in ((cell[0].astype(float), cell[1]), (cell[0], cell[1].view(np.int32)), (cell[0],), cell[0]):
        with pytest.raises(TypingError, match=r"cell is .*; expected what layer.compiled\(\) returned"):
            compiled_step(wrong, x, h, c)
    with pytest.raises(TypingError, match="x is .*; expected an array"):
        compiled_step(cell, np.ones(2, bool), h, c)
    with pytest.raises(TypeError, match="c is None; expected an array"):
        compiled_step(cell, x, h, None)


def laid(kind, layers, batch, hidden):
    """(h, c) of zeros, views of one array."""
    if kind == "side by side":
        both = zeros(layers, batch, 2 * hidden)
        return both[..., :hidden], both[..., hidden:]
    if kind == "interleaved":
        both = zeros(layers, batch, hidden, 2)
        return both[..., 0], both[..., 1]
    if kind == "backwards":
        both = zeros(layers, batch, 2 * hidden)[::-1, :, ::-1]
        return both[..., :hidden], both[..., hidden:]
    both = zeros(2, layers, batch, hidden)
    if kind == "the same":
        return both[0], both[0]
    if kind == "shifted":
        flat = both.ravel()
        return flat[: both[0].size].reshape(both[0].shape), flat[1 : both[0].size + 1].reshape(both[0].shape)
    if kind == "turned":
        return both[0], both[0][:, ::-1]
    return both[0], both[1]  # one after the other


@STEPS
@pytest.mark.parametrize("batch", [3, 30])
@pytest.mark.parametrize("kind", ["one after the other", "side by side", "interleaved", "backwards"])
def test_states_in_one_array_that_lie_apart_are_right(step, kind, batch):
    layer, x = fastlstm.LSTM(2, 3, 2, seed=0), np.ones((batch, 2), np.float32)
    h, c = laid(kind, 2, batch, 3)
    step(layer.compiled(), x, h, c)
    _, (h_n, c_n) = layer(x[None])
    assert np.array_equal(h, h_n)
    assert np.array_equal(c, c_n)


@pytest.mark.parametrize("kind", ["the same", "shifted", "turned"])
def test_states_that_overlap_are_refused(kind):
    layer, x = fastlstm.LSTM(2, 3, 2, seed=0), np.ones((4, 2), np.float32)
    h, c = laid(kind, 2, 4, 3)
    with pytest.raises(ValueError, match="c overlaps h"):
        lstm_step(layer.compiled(), x, h, c)
    assert not apart(h, c)


def test_compiled_code_refuses_states_that_overlap():
    layer, x = fastlstm.LSTM(2, 3, 2, seed=0), np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="overlap"):
        compiled_step(layer.compiled(), x, *laid("the same", 2, 4, 3))


def test_apart_is_what_numpy_finds():
    flat, block = zeros(14), zeros(3, 4)
    lines = [flat[a:b][::k] for k in (-3, -2, -1, 1, 2, 3) for a in range(0, 10, 3) for b in range(a + 1, 15, 4)]
    turned = (block, block[::-1], block[:, ::-1], block[::-1, ::-1])
    parts = [one[rows, columns] for one in turned for rows in (slice(2), slice(1, 3)) for columns in (slice(2), slice(1, 4, 2))]
    pairs = [(a, b) for views in (lines, parts) for a in views for b in views]
    told = [(apart.py_func(a, b), not np.shares_memory(a, b), a.strides == b.strides) for a, b in pairs]
    # Other strides may be taken for an overlap; an overlap is always found.
    assert [known for known, wanted, same in told if known and not wanted] == []
    assert [known for known, wanted, same in told if same and known != wanted] == []
    assert sum(known for known, _, _ in told) > 50
    pair = np.zeros(3, np.dtype([("a", np.float32), ("b", np.float64), ("c", np.float32)]))
    assert apart.py_func(pair["a"], pair["b"])
    assert apart.py_func(pair["b"], pair["c"])
    assert not apart.py_func(pair["a"], pair["a"])


@STEPS
def test_a_reversed_state_given_twice_is_refused(step):
    state = zeros(8)[::-1]
    with pytest.raises(ValueError, match="overlap"):
        step(fastlstm.LSTM(2, 8, seed=0).compiled(), np.ones(2, np.float32), state, state)


def test_rows_that_an_earlier_turn_has_overwritten_are_no_input():
    block = zeros(ROWS + 9, 2, 3)
    state = block[1:].transpose(1, 0, 2)  # the layers of a row side by side, so that the row before is two layers away
    check_x.py_func(state[0], state)
    check_x.py_func(state[1], state)
    with pytest.raises(ValueError, match="x: overlaps"):
        check_x.py_func(block[:-1, 0], state)
    backwards = zeros(ROWS + 9, 3)[:, ::-1]
    check_x.py_func(backwards, backwards[None])
    with pytest.raises(ValueError, match="x: overlaps"):
        check_x.py_func(backwards[:-1], backwards[1:][None])


def test_states_whose_elements_share_memory_are_refused():
    cell, x, c = fastlstm.LSTM(2, 3, seed=0).compiled(), zeros(4, 2), zeros(4, 3)
    h = np.lib.stride_tricks.as_strided(zeros(3), (4, 3), (0, 4))
    with pytest.raises(ValueError, match="h has elements that share memory"):
        lstm_step(cell, x, h, c)
    with pytest.raises(ValueError, match="h or c: has elements that share memory"):
        check_state(cell[0], x, h, 3)


@STEPS
@pytest.mark.parametrize("batch", [4, 30])
def test_inputs_in_the_states_memory(step, batch):
    """The last layer's h as the next input is right at every size; rows that a step has overwritten are none."""
    layer, rng = fastlstm.LSTM(3, 3, 2, seed=0), np.random.default_rng(0)
    given = rng.standard_normal((2, 2, batch, 3)).astype(np.float32)
    for shift in (0, -3):  # the rows of h as x, and for each row the one before it
        h, c = given.copy()
        x = h.ravel()[batch * 3 + shift :][: batch * 3].reshape(batch, 3)
        _, wanted = layer(x[None].copy(), tuple(given.copy()))
        if shift and step is compiled_step and batch > ROWS:
            with pytest.raises(ValueError, match="x: overlaps"):
                step(layer.compiled(), x, h, c)
            continue
        step(layer.compiled(), x, h, c)
        assert np.array_equal(h, wanted[0])
        assert np.array_equal(c, wanted[1])
