"""The threads that run kernels: any number of callers, forks, spawns, sleep, settings; and the caller's float mode."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels.native import team

HERE = Path(fastlstm.__file__).parents[1]  # so that processes of their own import what this one did
X = np.random.default_rng(0).standard_normal((12, 40, 64)).astype(np.float32)


@pytest.fixture(autouse=True)
def threads():
    before = team.num_threads()
    yield
    team.set_num_threads(before)


def make(seed=0):
    return fastlstm.GRU(64, 64, seed=seed)


def everything(layer):
    """Output and gradient bytes; enough work for all threads."""
    out, _, backprop = layer.forward_train(X)
    dx, _ = backprop(out)
    return out.tobytes() + dx.tobytes() + layer.grads.flat.tobytes()


def wanted():
    team.set_num_threads(1)
    return everything(make())


def python(code, **environment):
    """Run a program in a process of its own, with this copy of the package."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE, timeout=300, env=os.environ | environment
    )


def test_any_number_of_threads_is_taken_up_and_given_up():
    want = wanted()
    for count in (3, 1, 2, 5, 2):
        team.set_num_threads(count)
        assert team.num_threads() == count
        assert everything(make()) == want, f"{count} threads"
        if count > 1:
            alive = [t for t in threading.enumerate() if t.name.startswith("fastlstm-")]
            assert len(alive) == count - 1


@pytest.mark.parametrize("shared", [True, False], ids=["one layer", "a layer each"])
def test_many_callers_at_once(shared):
    want_out = make()(X)[0].tobytes()
    want = wanted()
    team.set_num_threads(2)
    common, problems = make(), []
    start = threading.Barrier(6)

    def work():
        try:
            start.wait()
            for _ in range(5):
                if (common if shared else make())(X)[0].tobytes() != want_out:
                    problems.append("other output")
                if everything(make()) != want:
                    problems.append("other gradients")
        except BaseException as error:
            problems.append(repr(error))

    callers = [threading.Thread(target=work) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not problems


def test_settings_may_change_while_others_call():
    want = wanted()
    stop, problems = threading.Event(), []

    def work():
        while not stop.is_set():
            if everything(make()) != want:
                problems.append("other gradients")

    callers = [threading.Thread(target=work) for _ in range(2)]
    for caller in callers:
        caller.start()
    for k in range(20):
        team.set_num_threads(1 + k % 3)
        time.sleep(0.005)
    stop.set()
    for caller in callers:
        caller.join()
    assert not problems


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_has_a_team_of_its_own():
    want = wanted()
    team.set_num_threads(2)
    assert everything(make()) == want
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        status = 1
        try:
            names = [t.name for t in threading.enumerate() if t.name.startswith("fastlstm-")]
            good = everything(make()) == want and everything(make()) == want
            status = 0 if good and not names else 2
        finally:
            os._exit(status)
    assert everything(make()) == want  # the parent goes on beside it
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


CHILDREN = """
import multiprocessing, sys
import numpy as np
import fastlstm
from fastlstm.kernels.native import team

def work(seed):
    x = np.random.default_rng(seed).standard_normal((12, 40, 64)).astype(np.float32)
    return fastlstm.GRU(64, 64, seed=seed)(x)[0].tobytes()

if __name__ == "__main__":
    team.set_num_threads(2)
    here = [work(seed) for seed in range(4)]
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        assert pool.map(work, range(4)) == here
    assert work(0) == here[0]
    print("same")
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_of_every_kind(method, tmp_path):
    script = tmp_path / "children.py"
    script.write_text(CHILDREN)
    done = subprocess.run(
        [sys.executable, script, method],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    assert done.stdout == "same\n", done.stderr


def test_an_idle_team_sleeps():
    team.set_num_threads(3)
    everything(make())
    time.sleep(0.2)  # it spins for a while first
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    assert everything(make()) == wanted()


def test_a_team_that_cannot_start_is_done_without_until_it_can(monkeypatch):
    want, real, started = wanted(), threading.Thread.start, []

    def start(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    team.set_num_threads(2)
    everything(make())
    monkeypatch.setattr(threading.Thread, "start", start)
    team.set_num_threads(5)
    assert everything(make()) == want
    assert everything(make()) == want
    assert len(started) == 2, "not tried again at once"
    assert not any(thread.is_alive() for thread in started), "no thread is left over"
    monkeypatch.undo()
    team.set_num_threads(3)
    assert everything(make()) == want
    assert team._team.size == 3
    team.set_num_threads(5)
    monkeypatch.setattr(team, "RETRY", 0)
    assert everything(make()) == want
    assert team._team.size == 5


@pytest.mark.parametrize("count", [0, -1, 63, 1.0, True, "2", None])
def test_bad_counts(count):
    with pytest.raises(ValueError, match="count is .*; expected an integer from 1 to 62"):
        team.set_num_threads(count)


def test_the_environment_sets_the_count():
    code = "from fastlstm.kernels.native import system, team; print(team.num_threads(), min(62, system.processors()))"
    assert python(code, FASTLSTM_NUM_THREADS="5").stdout.split()[0] == "5"
    default, processors = python(code, FASTLSTM_NUM_THREADS="", OMP_NUM_THREADS="").stdout.split()
    assert default == processors
    for bad in ("0", "-1", "two", "1.5", "63", "²"):
        done = python(code, FASTLSTM_NUM_THREADS=bad)
        assert f"FASTLSTM_NUM_THREADS is {bad!r}; expected" in done.stderr, bad
    # An error at the first use is repeated at the next: nothing half-made is left behind.
    code = (
        "from fastlstm.kernels.native import team\nfor _ in range(2):\n try: team.num_threads()\n except ValueError: print(1)"
    )
    assert python(code, FASTLSTM_NUM_THREADS="x").stdout.split() == ["1", "1"]


@pytest.mark.parametrize(
    ("own", "openmp", "processors", "threads"),
    [
        ("", "1", 8, 1),
        ("", " 3 ", 8, 3),
        ("", "5,2", 8, 5),
        ("", "16", 8, 8),
        ("", "200", 100, team.MOST),
        ("6", "2", 8, 6),
        ("1", "4", 8, 1),
        ("", "", 8, 8),
        *(("", rubbish, 8, 8) for rubbish in ("0", "-2", "many", "2.5", "²", ",3")),
    ],
)
def test_openmp_s_variable_bounds_the_default(monkeypatch, own, openmp, processors, threads):
    """As pools of worker processes set it. What OpenMP would ignore is ignored, and FASTLSTM_NUM_THREADS wins."""
    monkeypatch.setenv("FASTLSTM_NUM_THREADS", own)
    monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    monkeypatch.setattr(team.system, "processors", lambda: processors)
    monkeypatch.setattr(team, "_size", None)
    assert team.num_threads() == threads


def test_workers_of_joblib_share_the_processors(monkeypatch):
    joblib = pytest.importorskip("joblib", reason="needs joblib, whose workers it asks")
    for name in ("FASTLSTM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    workers = 2
    with joblib.parallel_config("loky", n_jobs=workers):
        counts = joblib.Parallel()(joblib.delayed(fastlstm.num_threads)() for _ in range(4))
        results = joblib.Parallel()(joblib.delayed(everything)(make()) for _ in range(4))
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)
    assert set(counts) == {min(team.MOST, max(1, joblib.cpu_count() // workers))}
    assert set(results) == {everything(make())}


def test_a_program_ends_while_its_team_spins():
    code = "import numpy as np, fastlstm; fastlstm.GRU(64, 64)(np.ones((12, 40, 64), np.float32)); print('end')"
    done = python(code, FASTLSTM_NUM_THREADS="3")
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


@pytest.mark.parametrize("count", [1, 2])
def test_the_callers_denormals_are_left_alone(count):
    """Kernels flush them to zero; in NumPy, in this thread and in others, they stay numbers."""
    team.set_num_threads(count)
    for dtype, denormal in (("float32", 1e-40), ("float64", 1e-310)):
        layer = fastlstm.LSTM(64, 64, dtype=dtype)
        out, _, backprop = layer.forward_train(X)
        backprop(out)
        small = np.full(100, denormal, dtype)
        assert ((small * np.ones(100, dtype)) == small).all()
        assert small[0] / 2 != 0
        found = []
        thread = threading.Thread(target=lambda small=small, found=found: found.append(small[0] / 2 != 0))
        thread.start()
        thread.join()
        assert found == [True]


def test_kernels_flush_denormals():
    layer = fastlstm.RNN(1, 1, bias=False, nonlinearity="relu")
    with layer.edit() as params:
        params["weight_ih_l0"][:] = params["weight_hh_l0"][:] = 1
    out, _ = layer(np.full((1, 1, 1), 1e-40, np.float32))
    assert out.item() == 0
