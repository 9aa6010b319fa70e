"""Layers in other processes: sent to workers of every kind, and where control groups of Linux limit processors and memory."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm.training import checkpoint

HERE = Path(__file__).parents[2]
GROUPS = Path("/sys/fs/cgroup")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE)}
WORKERS = """
import multiprocessing, sys
import numpy as np
import fastlstm

def work(layer, seed):
    x = np.random.default_rng(seed).standard_normal((12, 40, 64)).astype(np.float32)
    out, _, backprop = layer.forward_train(x)
    backprop(out)
    return layer, out.tobytes() + layer.grads.flat.tobytes()

if __name__ == "__main__":
    layers = [fastlstm.GRU(64, 64, seed=0), fastlstm.LSTM(64, 64, bidirectional=True, dtype="bfloat16", seed=1)]
    layers += [fastlstm.RNN(64, 64, 2, dropout=0.5, seed=2)]
    for layer in layers:
        layer(np.zeros((2, 3, 64), np.float32))  # it has buffers and packed weights
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        there = pool.starmap(work, [(layer, seed) for seed, layer in enumerate(layers)])
    for seed, (layer, (back, result)) in enumerate(zip(layers, there)):
        assert work(layer, seed)[1] == result, "the same in a worker and here"
        assert np.array_equal(back.grads.flat, layer.grads.flat), "what comes back is whole"
        assert work(back, 9)[1] == work(layer, 9)[1], "and goes on the same"
    print("same")
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_layers_are_sent_to_workers_and_back(method, tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run([sys.executable, script, method], capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.stdout == "same\n", done.stderr


@contextlib.contextmanager
def control_group(controller, **limits):
    """A control group of its own with limits, as the file of its processes; skips where there is no leave to make one."""
    first = not (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS / controller if first else GROUPS) / f"fastlstm-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            for name, value in limits["first" if first else "second"].items():
                (group / name).write_text(value)
        except OSError as error:
            pytest.skip(f"no limits can be set here: {error}")
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


ENTER = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"


def test_a_limit_on_processors_is_seen():
    code = ENTER + "from fastlstm.kernels.native import system, team; print(system.processors(), team.num_threads())"
    quota = {"first": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}, "second": {"cpu.max": "50000 100000"}}
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "FASTLSTM_NUM_THREADS"}
    with control_group("cpu", **quota) as processes:
        done = subprocess.run([sys.executable, "-c", code, processes], capture_output=True, text=True, env=environment)
        assert done.stdout == "1 1\n", done.stderr


HUNGRY = (
    ENTER
    + """
import numpy as np
from fastlstm.training import checkpoint
held = []
while True:
    checkpoint.write_checkpoint(sys.argv[2], {"weight": np.full(300_000, len(held), np.float32)}, {"number": len(held)})
    held.append(np.ones(4_000_000))
"""
)


def test_a_limit_on_memory_leaves_a_whole_checkpoint(tmp_path):
    """The system kills who exceeds it, at whatever moment."""
    path, size = tmp_path / "last.safetensors", str(400 << 20)
    limit = {"first": {"memory.limit_in_bytes": size}, "second": {"memory.max": size, "memory.swap.max": "0"}}
    with control_group("memory", **limit) as processes:
        done = subprocess.run([sys.executable, "-c", HUNGRY, processes, path], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode in (-signal.SIGKILL, 1), done.stderr
    assert "MemoryError" in done.stderr or done.returncode == -signal.SIGKILL, done.stderr
    arrays, record = checkpoint.read_checkpoint(path)
    assert (arrays["weight"] == record["number"]).all()
    checkpoint.write_checkpoint(path, {}, {})
    assert os.listdir(tmp_path) == [path.name]
