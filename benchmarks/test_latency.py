"""Times one step from Python against PyTorch and ONNX Runtime: two cases of `benchmarks.speed.latency`, or with --full all.

Every call is timed by itself and is a round of pytest-benchmark, so that its table shows the distribution.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np

import fastlstm
from benchmarks.measure.alternate import REST
from benchmarks.measure.contest import OURS, Outcome, reason
from benchmarks.speed import latency
from benchmarks.speed.latency import CASES, WAKING

WHO = (OURS, "onnxruntime, 1 thread", "onnxruntime, all threads", "torch")


def pytest_generate_tests(metafunc):
    cases = CASES if metafunc.config.getoption("full") else CASES[:2]
    found = [(shape, who) for shape in cases for who in WHO]
    metafunc.parametrize(("shape", "who"), found, ids=[f"{shape}-{who}" for shape, who in found])


def contender(shape, who):
    """Return a step and a function that makes its argument. Its outputs have been compared with fastlstm's."""
    if who == OURS:
        return latency.contenders(shape, [], ["float32"])[f"{OURS} float32"]()
    threads = fastlstm.num_threads() if who.endswith("all threads") else 1
    name = f"onnxruntime, {threads} thread{'s' * (threads > 1)}" if who.startswith("onnxruntime") else who
    return latency.contenders(shape, [who.split(",")[0]], ["float32"])[name]()


def hold(makers, shape, *, blocks, seconds):
    """Hold a contest as `contest.hold` does, but with one call in each round."""
    outcome, steps = Outcome(), {}
    for key, make in makers.items():
        try:
            steps[key] = make()
        except Exception as error:
            outcome.failed[key] = reason(error)
    taken, calls = {key: [] for key in steps}, max(1, round(1000 * seconds))
    for _ in range(blocks):
        for key, (step, convert) in steps.items():
            time.sleep(REST)
            taken[key].append(latency.timed(step, convert, latency.inputs(shape), WAKING + calls)[WAKING:])
    each = {key: np.concatenate(parts) / 1e9 for key, parts in taken.items()}
    outcome.rounds = [{key: float(times[k]) for key, times in each.items()} for k in range(blocks * calls)]
    return outcome


def test_step(shape, who, contest, suite):
    makers = {("", one): partial(contender, shape, one) for one in WHO}
    name = f"one step {shape}"
    entry = contest(name, "", who, makers, section="latency", hold=partial(hold, shape=shape))
    entry |= latency.summary(1e9 * np.array(suite.outcomes[name].blocks(("", who))))
