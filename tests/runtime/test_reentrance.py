"""Python runs finalizers and handlers of signals in the middle of other code: what they call may disturb nothing there."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import fastlstm
from fastlstm import losses
from fastlstm.kernels.native import jit, team
from fastlstm.kernels.operations import FillZeros
from fastlstm.layers import basic
from fastlstm.runtime import cpu
from fastlstm.runtime.engine import engine
from fastlstm.runtime.program import Later
from fastlstm.runtime.workspace import Workspace
from fastlstm.stack.stack import Pool


def linear(rows=3, inputs=30, outputs=20):
    layer, x = basic.Linear(inputs, outputs, seed=0), np.linspace(-1, 1, rows * inputs, dtype=np.float32).reshape(rows, inputs)
    return lambda: layer(x)


def linear_backward():
    layer, x = basic.Linear(5, 4, seed=0), np.ones((3, 5), np.float32)
    return lambda: layer.forward_train(x)[1](np.ones((3, 4), np.float32))


def embedding():
    layer = basic.Embedding(9, 4, seed=0)
    return lambda: layer(np.arange(9))


def embedding_backward():
    def run():
        layer = basic.Embedding(9, 4, seed=0)
        layer.forward_train(np.arange(9))[1](np.ones((9, 4), np.float32))
        return layer.grads["weight"].copy()

    return run


def dropout():
    x = np.ones((5, 6), np.float32)
    return lambda: basic.Dropout(0.5, seed=1).forward_train(x)[0]


def optimizer(kind=fastlstm.Adam):
    def run():
        params = {"w": np.ones(50, np.float32)}
        kind(lr=0.1).step(params, {"w": np.linspace(-1, 1, 50, dtype=np.float32)})
        return params["w"]

    return run


def norm():
    grads = {"w": np.linspace(0, 1, 9000, dtype=np.float32)}
    return lambda: fastlstm.grad_norm(grads)


def clip():
    def run():
        grads = {"w": np.linspace(0, 1, 9000, dtype=np.float32)}
        fastlstm.clip_grad_norm(grads, 1.0)
        return grads["w"]

    return run


def cross_entropy():
    logits = np.linspace(-1, 1, 28).reshape(4, 7)
    return lambda: losses.softmax_cross_entropy(logits, np.arange(4))[1]


def squared_error():
    return lambda: losses.mean_squared_error(np.linspace(0, 1, 9000), np.zeros(9000))[0]


def layer_call(cell=fastlstm.LSTM, **options):
    layer, x = cell(4, 6, seed=0, **options), np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 2, 4)
    return lambda: layer(x)[0]


def layer_backward():
    layer, x = fastlstm.GRU(4, 6, seed=0), np.ones((5, 2, 4), np.float32)

    def run():
        out, _, backprop = layer.forward_train(x)
        return backprop(np.ones_like(out))[0]

    return run


def stream():
    layer = fastlstm.LSTM(4, 6, seed=0, dtype="bfloat16")

    def run():
        step = fastlstm.Stream(layer)
        step.state = np.ones((1, 1, 6), np.float32), np.ones((1, 1, 6), np.float32)
        return step(np.ones(4, np.float32)).copy()

    return run


def token_stream():
    model = fastlstm.LanguageModel(11, hidden_size=6, num_layers=1, seed=0)
    return lambda: fastlstm.Stream(model)(3).copy()


def compiled_step():
    layer = fastlstm.RNN(4, 6, seed=0)
    return lambda: layer.compiled()[1].copy()  # packed weights


def language_model():
    ids = np.ones((3, 2), int)
    return lambda: np.array(fastlstm.LanguageModel(11, hidden_size=6, num_layers=1, seed=0).train_batch(ids, ids)[0])


CALLS = (
    linear,
    linear_backward,
    embedding,
    embedding_backward,
    dropout,
    optimizer,
    norm,
    clip,
    cross_entropy,
    squared_error,
    layer_call,
    layer_backward,
    stream,
    token_stream,
    compiled_step,
    language_model,
)


@pytest.mark.parametrize("make", CALLS)
def test_a_call_within_a_recording_is_made_at_once_and_is_no_part_of_it(make):
    call, cpu = make(), engine("cpu", "float32")
    wanted, target, found = call(), np.zeros(64, np.float32), []

    def record():
        found.append(make()())
        found.append(call())
        cpu.run(FillZeros(size=target.size, out=Later("where")), work=0)

    program = cpu.program()
    program.record(record)
    for one in found:
        np.testing.assert_array_equal(one, wanted)
    assert len(program._calls) == 1
    program.run(where=target)
    np.testing.assert_array_equal(call(), wanted)


class Cycle:
    """A cycle, so that the collector finds it some time, within whatever is allocating then; and calls."""

    def __init__(self, call):
        self.me, self.call = self, call

    def __del__(self):
        self.call()


@pytest.mark.parametrize("make", CALLS)
def test_finalizers_may_call_within_any_call(make):
    """With the collector at work after each few allocations, so that it comes between any two operations."""
    call, other, wanted = make(), linear(7, 300, 200), make()()
    before = gc.get_threshold()
    try:
        gc.set_threshold(7, 10**6, 10**6)
        for _ in range(100):
            Cycle(other)
            Cycle(call)
            np.testing.assert_array_equal(call(), wanted)
    finally:
        gc.set_threshold(*before)
        gc.collect()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
@pytest.mark.parametrize("make", CALLS)
def test_handlers_of_signals_may_call_within_any_call(make):
    call, other, wanted, count = make(), linear(7, 300, 200), make()(), []

    def handler(*_):
        other()
        call()
        count.append(1)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for k in range(300):
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + k))  # once, at another moment of each call
            np.testing.assert_array_equal(call(), wanted)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert count


def test_a_program_that_is_run_within_its_own_call_runs_alone():
    """The threads of the two runs would mix up whose pieces they claim."""
    cpu, target = engine("cpu", "float32"), np.ones(1 << 22, np.float32)
    before = team.num_threads()
    try:
        team.set_num_threads(2)
        program = cpu.program()
        program.record(lambda: cpu.run(FillZeros(size=target.size, out=Later("where")), work=10**8))
        assert program.parallel
        epoch = program._epochs.pop()  # as a call that is interrupted leaves it
        program.run(where=target)
        program._epochs.append(epoch)
        assert not target.any()
        target[:] = 1
        program.run(where=target)
        assert not target.any()
        assert program._epochs == [epoch + 1]
    finally:
        team.set_num_threads(before)


def test_who_calls_while_the_team_is_started_runs_alone():
    found, before = [], team.num_threads()

    class Starting(team.Team):
        def __init__(self, size):
            found.append(linear(200, 300, 400)())  # as a finalizer does that the first allocation wakes
            super().__init__(size)

    wanted, original = linear(200, 300, 400)(), team.Team
    try:
        team.Team = Starting
        team.set_num_threads(3)
        threading.Thread(target=lambda: found.append(linear(200, 300, 400)()), daemon=True).start()
        end = time.monotonic() + 10
        while len(found) < 2 and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        team.Team = original
        team.set_num_threads(before)
    assert len(found) == 2
    for one in found:
        np.testing.assert_array_equal(one, wanted)


def test_a_finalizer_while_another_thread_compiles_waits_for_nobody(monkeypatch):
    """One thread would hold the weights' lock and want the compiler's, the other the compiler's and want the weights'."""
    layer, x, compiling = basic.Linear(4, 8, seed=0, dtype="float64"), np.ones((3, 4)), threading.Event()
    other, reading = fastlstm.GRU(4, 8, seed=0), jit._read
    Cycle(lambda: layer(x))

    def read(*arguments):
        if threading.current_thread().name == "compiles" and not compiling.is_set():
            compiling.set()
            time.sleep(0.2)
            gc.collect()
        return reading(*arguments)

    monkeypatch.setattr(jit, "_addresses", {})
    monkeypatch.setattr(cpu, "_prepared", set())
    monkeypatch.setattr(jit, "_read", read)
    threads = [threading.Thread(target=lambda: other(np.ones((2, 1, 4), np.float32)), name="compiles", daemon=True)]
    threads[0].start()
    assert compiling.wait(10)
    threads.append(threading.Thread(target=lambda: layer(x), daemon=True))
    threads[1].start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_finalizer_may_call_while_the_pool_is_looked_through():
    layer = fastlstm.LSTM(4, 8, seed=0)
    for steps in range(1, 60):
        layer(np.ones((steps, 1, 4), np.float32))
    before, count = gc.get_threshold(), 0
    try:
        for k in range(60):
            gc.disable()
            Cycle(lambda k=k: layer(np.ones((100 + k, 1, 4), np.float32)))
            gc.set_threshold(1 + k, 10**6, 10**6)
            gc.enable()
            count = len(layer._pool.free)
    finally:
        gc.set_threshold(*before)
        gc.enable()
    assert count >= 59


def test_memory_of_a_burst_goes_when_nobody_has_wanted_it_for_long(monkeypatch):
    monkeypatch.setattr(Pool, "ROOM", 0)
    monkeypatch.setattr(Pool, "LONG", 64)
    layer, x = fastlstm.LSTM(4, 8, seed=0), np.ones((5, 2, 4), np.float32)
    for *_, backprop in [layer.forward_train(x) for _ in range(30)]:
        backprop.close()
    assert len(layer._pool.free) == 30
    for _ in range(200):
        layer(x)
    assert len(layer._pool.free) == Pool.KEPT


def test_buffers_that_two_threads_make_at_once_both_stay():
    """Programs may hold the address of either."""
    ws, made = Workspace(engine("cpu", "float32")), []

    def make(*shape):
        if not made:
            made.append(None)
            made.append(weakref.ref(ws._made("h", (4,), make)))
        return np.zeros(shape, np.float32)

    ws._made("h", (4,), make)
    gc.collect()
    assert made[1]() is not None


def test_what_runs_a_program_keeps_it():
    cpu, target = engine("cpu", "float32"), np.ones(64, np.float32)
    program = cpu.program()
    program.record(lambda: cpu.run(FillZeros(size=target.size, out=target), work=0))
    run, seen = program.runner(), weakref.ref(program)
    del program
    gc.collect()
    assert seen() is not None
    run()
    assert not target.any()
    del run
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("source", ["layer", "two_layers", "tokens", "series"])
def test_a_step_beside_refreshes_has_the_weights_of_one_of_them(source):
    if source == "tokens":
        model, x = fastlstm.LanguageModel(11, hidden_size=24, num_layers=1, seed=0), 3
    elif source == "series":
        model, x = fastlstm.SequenceRegressor(4, 2, hidden_size=24, num_layers=1, seed=0), np.ones(4, np.float32)
        targets = np.arange(6.0).reshape(3, 1, 2)
        model.fit_normalization(np.random.default_rng(0).normal(size=(50, 3, 4)), targets)
    else:
        model, x = fastlstm.GRU(4, 48, 2 if source == "two_layers" else 1, seed=0), np.ones(4, np.float32)
    states, wanted = [model.state_dict(), {name: -2 * part for name, part in model.state_dict().items()}], []
    states[1] |= {name: part for name, part in model.state_dict().items() if name.startswith("normalization.")}
    if source == "series":
        states[1] = {name: part + (name.endswith("_mean")) for name, part in states[1].items()}
    for state in states:
        model.load_state_dict(state)
        wanted.append(fastlstm.Stream(model)(x).tobytes())
    assert wanted[0] != wanted[1]
    step, done = fastlstm.Stream(model), threading.Event()

    def refresh():
        while not done.is_set():
            for state in states:
                model.load_state_dict(state)
                step.refresh()

    thread, before = threading.Thread(target=refresh), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        thread.start()
        end, seen = time.monotonic() + 1.0, set()
        while time.monotonic() < end:
            step.reset()
            seen.add(step(x).tobytes())
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(before)
    assert seen <= set(wanted)
    assert len(seen) == 2


def backward_of_a_layer():
    layer = fastlstm.LSTM(8, 64, seed=0)
    out, _, backprop = layer.forward_train(np.ones((40, 16, 8), np.float32))
    return layer, lambda: backprop(np.ones_like(out)), backprop.close


def backward_of_a_model():
    model = fastlstm.LanguageModel(11, hidden_size=32, num_layers=1, seed=0)
    logits, _, backprop = model.forward_train(np.ones((20, 8), int))
    return model, lambda: backprop(np.ones_like(logits)), backprop.close


def backward_of_a_series_model():
    model = fastlstm.SequenceRegressor(4, 2, hidden_size=32, num_layers=1, normalize=False, seed=0)
    out, backprop = model.forward_train(np.ones((20, 8, 4), np.float32))
    return model, lambda: backprop(np.ones_like(out)), backprop.close


def backward_of_a_cell():
    cell = fastlstm.GRUCell(8, 32, seed=0)
    h, backprop = cell.forward_train(np.ones((16, 8), np.float32))
    return cell, lambda: backprop(np.ones_like(h)), backprop.close


def backward_of_a_linear():
    layer = basic.Linear(40, 30, seed=0)
    out, backprop = layer.forward_train(np.ones((50, 40), np.float32))
    return layer, lambda: backprop(np.ones_like(out)), backprop.close


BACKWARDS = (backward_of_a_layer, backward_of_a_model, backward_of_a_series_model, backward_of_a_cell, backward_of_a_linear)


@pytest.mark.parametrize("make", BACKWARDS)
def test_one_of_two_threads_makes_a_backward_pass(make):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            model, backward, _ = make()
            results, start = [], threading.Barrier(2)

            def run(backward=backward, results=results, start=start):
                start.wait()
                try:
                    backward()
                    results.append("made")
                except RuntimeError as error:
                    results.append(str(error))

            threads = [threading.Thread(target=run) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(results) == ["backprop was called before or closed: its saved activations are used up", "made"]
            found = model.grads.flat.copy()
            model, backward, _ = make()
            backward()
            np.testing.assert_array_equal(found, model.grads.flat)
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("make", BACKWARDS)
def test_a_backward_pass_after_an_edit_is_refused_each_time(make):
    model, backward, close = make()
    with model.edit():
        pass
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the parameters were edited"):
            backward()
    close()
    if hasattr(model, "_pool"):
        assert len(model._pool.free) == 1


@pytest.mark.parametrize("make", BACKWARDS)
def test_what_is_closed_or_used_is_refused(make):
    _, backward, close = make()
    backward()
    close()
    with pytest.raises(RuntimeError, match="called before or closed"):
        backward()
    _, backward, close = make()
    close()
    close()
    with pytest.raises(RuntimeError, match="called before or closed"):
        backward()


def test_a_gradient_that_does_not_fit_leaves_the_backward_pass_to_be_made():
    layer = fastlstm.LSTM(8, 64, seed=0)
    out, _, backprop = layer.forward_train(np.ones((4, 2, 8), np.float32))
    with pytest.raises(ValueError, match="dout has shape"):
        backprop(np.ones((4, 2, 3)))
    assert backprop(np.ones_like(out))[0].shape == (4, 2, 8)
