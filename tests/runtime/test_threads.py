"""One layer or model in many hands: interrupts, other numbers of threads, calls at once, and forks in the midst of them."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels.native import jit, team

HERE = Path(fastlstm.__file__).parents[1]  # so that processes of their own import what this one did
X = np.random.default_rng(0).standard_normal((12, 40, 64)).astype(np.float32)
NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(autouse=True)
def threads():
    before = team.num_threads()
    yield
    team.set_num_threads(before)


def output_of(code, *arguments):
    """What a program of its own prints: it may crash or hang."""
    # Without coverage, whose own lock an interrupt can leave taken.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=HERE,
        timeout=120,
        env=environment | {"FASTLSTM_QUIET": "1"},
    )
    return done.stdout, f"exit status {done.returncode}\n{done.stderr}"


def at_once(*functions):
    """Run functions in threads that start together; the exceptions."""
    start, errors = threading.Barrier(len(functions)), []

    def run(function):
        try:
            start.wait()
            function()
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=run, args=(function,)) for function in functions]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return errors


INTERRUPTS = """
import random, signal, time
import numpy as np, fastlstm
from fastlstm.kernels.native import team

def interrupt(*arguments): raise KeyboardInterrupt

team.set_num_threads(2)
layer = fastlstm.GRU(64, 64, seed=0)
x = np.random.default_rng(0).standard_normal((12, 40, 64)).astype(np.float32)
want = layer(x)[0].tobytes()
signal.signal(signal.SIGALRM, interrupt)
random.seed(0)
begin, interrupts, wrong = time.monotonic(), 0, 0
while time.monotonic() - begin < 2:
    try:
        time.sleep(0.0015)  # some threads fall asleep in it
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 6e-4))
        layer(x)
        time.sleep(0.001)
    except KeyboardInterrupt:
        interrupts += 1
    wrong += layer(x)[0].tobytes() != want
time.sleep(0.1)
before = time.process_time()
time.sleep(0.2)
print(interrupts > 100, wrong, time.process_time() - before < 0.1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGALRM")
def test_an_interrupt_at_any_time_leaves_the_team_whole():
    out, told = output_of(INTERRUPTS)
    assert out == "True 0 True\n", told


CHANGES = """
import sys
import numpy as np, fastlstm
from fastlstm.runtime import cpu
from fastlstm.kernels.native import team

kind, when = sys.argv[1:]
owner, name = (team, "call") if when == "calling" else (cpu.Cpu, "run")
real, on = getattr(owner, name), False

def change(*arguments, **options):
    if on:
        team.set_num_threads(40)  # as another thread might just now
    return real(*arguments, **options)

setattr(owner, name, change)
X = np.random.default_rng(0).standard_normal((12, 40, 64)).astype(np.float32)

def layer():
    layer = fastlstm.GRU(64, 64, seed=0, dtype="bfloat16")
    out, _, backprop = layer.forward_train(X)
    backprop(out)
    return out.tobytes() + layer.grads.flat.tobytes()

def linear():
    layer = fastlstm.layers.basic.Linear(64, 500, seed=0, dtype="bfloat16")
    out, backprop = layer.forward_train(X)
    return out.tobytes() + backprop(out).tobytes() + layer.grads.flat.tobytes()

def stream():
    step = fastlstm.Stream(fastlstm.LSTM(64, 500, seed=0, dtype="bfloat16"), batch_size=40)
    out = step(X[0]).tobytes()
    step.reset()
    return out + step(X[1]).tobytes()

team.set_num_threads(1)
want = globals()[kind]()
for _ in range(3):
    team.set_num_threads(2)
    on = True
    assert globals()[kind]() == want
    on = False
print("same")
"""


@pytest.mark.parametrize("kind", ["layer", "linear", "stream"])
@pytest.mark.parametrize("when", ["calling", "recording"])
def test_more_threads_from_one_moment_to_the_next(kind, when):
    """Scratch is for as many threads as there were: more may not touch it."""
    out, told = output_of(CHANGES, kind, when)
    assert out == "same\n", told


def test_the_number_can_be_held():
    team.set_num_threads(2)
    with team.steady() as count:
        team.set_num_threads(5)
        assert count == team.num_threads() == 2
        with team.steady() as inner:
            assert inner == 2
        found = []
        at_once(lambda: found.append(team.num_threads()))
        assert found == [5], "only in the thread that holds it"
    assert team.num_threads() == 5


MODELS = {
    "layer": lambda: (fastlstm.LSTM(64, 64, 2, seed=0), X),
    "language model": lambda: (fastlstm.LanguageModel(300, hidden_size=200, seed=0), np.arange(12).reshape(4, 3)),
    "regressor": lambda: (fastlstm.SequenceRegressor(64, 3, hidden_size=100, normalize=False, seed=0), X),
    "linear": lambda: (fastlstm.layers.basic.Linear(64, 300, seed=0), X),
}


def result(model, x):
    out = model(x)
    return (out[0] if isinstance(out, tuple) else out).copy()


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_calls_at_once_after_an_edit(make):
    """All find the packed weights old at the same time."""
    model, x = make()
    want, found, interval = result(model, x), [], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(15):
            with model.edit():
                pass
            assert not at_once(*[lambda: found.append(result(model, x))] * 4)
    finally:
        sys.setswitchinterval(interval)
    assert all(np.array_equal(one, want) for one in found)
    assert np.array_equal(result(model, x), want)


def test_gradients_of_passes_at_once_all_count():
    layer, x = fastlstm.layers.basic.Linear(64, 300, seed=0), np.ones((12, 64), np.float32)
    dout = np.ones((12, 300), np.float32)

    def work():
        for _ in range(50):
            layer.forward_train(x)[1](dout)

    assert not at_once(*[work] * 4)
    assert (layer.grads["weight"] == 4 * 50 * 12).all()


class Stuck:
    """Another thread that stays in the midst of a layer's call until it is let go."""

    def __init__(self, monkeypatch, function):
        self.inside, self.free = threading.Event(), threading.Event()
        real, self.thread = team.call, threading.Thread(target=function)

        def call(*arguments):
            if threading.current_thread() is self.thread:
                self.inside.set()
                self.free.wait()
            real(*arguments)

        monkeypatch.setattr(team, "call", call)
        self.thread.start()
        assert self.inside.wait(60)

    def let_go(self):
        self.free.set()
        self.thread.join()


def test_nobody_waits_for_anothers_call(monkeypatch):
    layer = fastlstm.GRU(64, 64, seed=0)
    want, found = layer(X)[0], []
    stuck = Stuck(monkeypatch, lambda: found.append(layer(X)[0]))
    other = threading.Thread(target=lambda: found.append(layer(X)[0]))
    other.start()
    other.join(60)
    assert len(found) == 1, "waits"
    stuck.let_go()
    assert len(found) == 2
    assert all(np.array_equal(one, want) for one in found)


def ends_well(child):
    """Whether a forked child ends with status 0."""
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


@NEEDS_FORK
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("where", ["forward", "packing", "backward"])
def test_a_fork_in_the_midst_of_another_threads_call(monkeypatch, where):
    layer = fastlstm.GRU(64, 64, seed=0)

    def everything():
        out, _, backprop = layer.forward_train(X)
        backprop(out)
        return out.tobytes()

    want = everything()
    out, _, backprop = layer.forward_train(X)
    if where == "packing":
        with layer.edit():
            pass
    stuck = Stuck(monkeypatch, (lambda: backprop(out)) if where == "backward" else lambda: layer(X))
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        status = 1
        try:
            status = 0 if everything() == want else 2
        finally:
            os._exit(status)
    good = ends_well(child)
    stuck.let_go()
    assert good
    assert everything() == want


@NEEDS_FORK
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_fork_waits_for_what_is_being_compiled():
    inside = threading.Event()

    def compile():
        with jit._lock:
            inside.set()
            time.sleep(0.3)

    other = threading.Thread(target=compile)
    other.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if jit._lock.acquire(timeout=5) else 1)
    assert not other.is_alive() or jit._lock.acquire(timeout=5)
    assert ends_well(child)
    other.join()
