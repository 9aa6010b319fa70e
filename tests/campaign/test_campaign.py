"""The campaign itself: a short fixed piece of every part, and that faults planted in a part are found and told apart."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest

import fastlstm
from tests.campaign import numerics, operations, report, runner, scene, soak, threads, worker

PLANTED = """
import atexit, os, signal, time
NAME, TRIALS, LIMIT = "seeds.planted", 8, 1.5
FAULTS = {faults}

def prepare(folder):
    (folder / "base").write_text("made")

def trial(rng, folder):
    assert (folder / "base").read_text() == "made"
    match FAULTS.get(rng.random()):
        case "crash": print("said before", flush=True); os.kill(os.getpid(), signal.SIGSEGV)
        case "exit": os._exit(3)
        case "hang": time.sleep(60)
        case "failure": raise AssertionError("planted here")
        case "end": atexit.register(os._exit, 5)
    return 1
"""


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Makes a part whose trials of some seeds have a fault; returns its name."""

    def made(text=PLANTED, **faults):
        package = tmp_path / "seeds"
        package.mkdir()
        (package / "__init__.py").touch()
        places = {random.Random(f"seeds.planted {seed}").random(): fault for fault, seed in faults.items()}
        (package / "planted.py").write_text(text.format(faults=places))
        return "seeds.planted"

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    yield made
    for name in ("seeds", "seeds.planted"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", runner.parts())
def test_a_short_piece_of_each_part(name):
    trials = max(1, worker.part(name).TRIALS // 5000)
    campaign = runner.Campaign([name], trials=trials, workers=2, minutes=10)  # a failure counts as no trial
    campaign.run()
    assert not campaign.tallies[0].failures, report.summary(campaign)
    assert campaign.tallies[0].trials >= trials


def test_faults_are_found_and_told_apart(plant):
    told, campaign = [], runner.Campaign([plant(crash=1, exit=2, hang=4, failure=6)], workers=2)
    campaign.tell = told.append
    campaign.run()
    (tally,) = campaign.tallies
    assert {(failure.seed, failure.kind) for failure in told} == {(1, "crash"), (2, "crash"), (4, "hang"), (6, "failure")}
    text = {failure.seed: failure.text for failure in tally.failures}
    assert "SIGSEGV" in text[1]
    assert "said before" in text[1]
    assert "exit status 3" in text[2]
    assert "no answer within 1.5 s" in text[4]
    assert "in trial" in text[4], "a hang says where"
    assert "AssertionError: planted here" in text[6]
    assert tally.trials == 8
    assert tally.dealt == 12, "a fault counts as no trial, and the next seed follows"
    for fault in ("seed 1", "SIGSEGV", "python -m tests.campaign.worker seeds.planted 6"):
        assert fault in report.summary(campaign)


def test_a_process_that_fails_at_its_end(plant):
    campaign = runner.Campaign([plant(end=3)])
    campaign.run()
    (failure,) = campaign.tallies[0].failures
    assert (failure.kind, failure.seed, failure.before) == ("crash", None, list(range(8)))
    assert failure.command.endswith("seeds.planted 0 1 2 3 4 5 6 7")


def test_a_part_that_cannot_start(plant):
    campaign = runner.Campaign([plant(PLANTED.replace('(folder / "base").write_text("made")', "raise OSError('no room')"))])
    campaign.run()
    (failure,) = campaign.tallies[0].failures
    assert "no room" in failure.text
    assert campaign.tallies[0].trials == 0


def test_the_command_repeats_a_failure(plant):
    campaign = runner.Campaign([plant(failure=2)], seed=3, trials=3)
    campaign.tallies[0].first = 0
    campaign.run()
    (failure,) = campaign.tallies[0].failures
    command = [sys.executable, *shlex.split(failure.command)[1:]]
    again = subprocess.run(command, cwd=runner.ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "planted here" in again.stdout


def test_it_ends_in_time(plant):
    start = time.monotonic()
    campaign = runner.Campaign([plant(PLANTED.replace("8, 1.5", "10**9, 1.5"))], minutes=1 / 20, workers=2)
    campaign.run()
    assert 3 <= time.monotonic() - start < 15
    assert 0 < campaign.tallies[0].trials < 10**9
    assert not campaign.tallies[0].failures
    assert f"{campaign.tallies[0].trials:,} of 1,000,000,000" in report.summary(campaign)


def test_the_part_that_is_furthest_behind_comes_next(plant):
    campaign = runner.Campaign([plant()] * 2)
    campaign._until = float("inf")
    first, second = campaign.tallies
    first.target, first.trials, second.target, second.trials = 1000, 500, 10, 4
    assert campaign._next() is second
    second.trials, second.running = 8, 0
    assert campaign._next() is first
    first.trials = 1000
    second.trials = 10
    assert campaign._next() is None


def test_a_record_becomes_the_table(plant, tmp_path):
    campaign = runner.Campaign([plant(failure=2)])
    campaign.run()
    (tmp_path / "record.json").write_text(json.dumps(report.record(campaign)))
    (tmp_path / "page.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_table(tmp_path / "record.json", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| seeds.planted | 8 | 8 | 1 |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_a_seed_gives_the_same_numbers(plant, tmp_path):
    text = PLANTED.replace("    return 1", "    raise ValueError(str(rng.random()))")
    module = worker.part(plant(text))
    module.prepare(tmp_path)
    first, again, other = (worker.attempt(lambda seed=seed: worker.trial(module, tmp_path, seed)).error for seed in (7, 7, 8))
    assert first == again != other


# That the parts can fail


def test_wrong_numbers_are_found():
    layer = fastlstm.RNN(3, 5, seed=0)
    want = {"out": np.linspace(1, 2, 9), "other": np.zeros(3)}
    numerics.judge({name: array.astype("f4") for name, array in want.items()}, lambda: want, layer, "x")
    kept = layer.params.flat.copy()
    with pytest.raises(AssertionError, match="out is off by 1.0e-04 in float32"):
        numerics.judge(want | {"out": want["out"] * 1.0001}, lambda: want, layer, "x")
    assert np.array_equal(layer.params.flat, kept)


def test_what_cancels_may_be_off_by_as_much_as_rounding_moves_it():
    layer = fastlstm.RNN(3, 5, seed=0)

    def wanted():
        return {"sum": np.array([layer.params.flat.sum(dtype="f8") - kept + 1e-7])}

    kept = layer.params.flat.sum(dtype="f8")
    numerics.judge({"sum": np.array([2e-7])}, wanted, layer, "x")
    with pytest.raises(AssertionError, match="sum is off"):
        numerics.judge({"sum": np.array([1e-2])}, wanted, layer, "x")


def act_once(_):
    """Gives other numbers after the first call of all."""
    calls.append(1)
    return np.array([float(len(calls) > 1)])


calls = []


@pytest.mark.parametrize("writes", ["", "a"])
def test_other_bits_beside_another_operation_are_found(tmp_path, writes):
    calls.clear()
    shared = scene.Scene(1, tmp_path)
    wrong = operations.Operation("wrong", act_once, frozenset({"a"}), frozenset())
    other = operations.Operation("other", lambda _: None, frozenset(), frozenset({writes} - {""}))
    pair = [threads.Call(wrong, shared), threads.Call(other, shared)]
    with pytest.raises(AssertionError, match="array 0 of wrong on 1 has 1 of 1 other bits"):
        threads.together(pair, 0.0)
    assert pair[0].exact == (not writes)
    assert len(calls) > 4 or not writes, "where the other writes what it reads, only afterwards"


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("dictionary changed size during iteration")])
def test_an_error_beside_another_operation_is_found(tmp_path, error):
    def fail(_):
        raise errors[0]

    shared, errors = scene.Scene(1, tmp_path), [RuntimeError("refused")]
    writer = threads.Call(operations.Operation("writer", lambda _: None, frozenset(), frozenset({"a"})), shared)
    failing = threads.Call(operations.Operation("failing", lambda _: None, frozenset({"a"}), frozenset()), shared)
    failing.operation = operations.Operation("failing", fail, frozenset({"a"}), frozenset())
    threads.together([failing, writer], 0.0)
    errors = [error]
    with pytest.raises(type(error), match=str(error)):
        threads.together([failing, writer], 0.0)


def test_a_leak_is_found():
    kept = []
    soak.judge("flat", lambda: np.ones(4000), 200)
    with pytest.raises(AssertionError, match="MiB more after 200 steps"):
        soak.judge("arrays", lambda: kept.append(np.ones(5000)), 200)
    with pytest.raises(AssertionError, match="more objects after 200 steps"):
        soak.judge("objects", lambda: kept.append([[]]), 200)
