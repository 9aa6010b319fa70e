"""The benchmark suite as users run it: plain `pytest` runs none of it, --benchmark-only runs nothing else, failures are
reported.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measure import contest, distance, record
from benchmarks.measure.alternate import alternate, ratio
from benchmarks.speed import compare, grid, ratios, repeat
from fastlstm.kernels.native import system, team

ROOT = Path(__file__).resolve().parents[2]


def run(*options, **variables):
    """Run `pytest` at the root in a process of its own; return its status and output."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *options]
    # A worker of pytest-xdist must not pass its name on: pytest-benchmark would measure nothing.
    here = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=here | variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_plain_pytest_collects_tests_alone():
    code, out = run("--collect-only", "--ignore-glob=*/tests/test_*", "--ignore-glob=*/tests/[!b]*/*")
    assert code == 0, out
    assert "tests/benchmarks/test_benchmarks.py::test_plain_pytest_collects_tests_alone" in out
    assert not [line for line in out.splitlines() if line.startswith("benchmarks/")]


def test_benchmarks_named_by_hand_are_skipped():
    code, out = run("benchmarks/test_product.py")
    assert code == 0, out
    assert "--benchmark-skip active" in out
    assert "passed" not in out


def test_benchmarks_alone(tmp_path):
    """With the smallest shapes and no peer but NumPy, every contest is held, reported by pytest-benchmark, and judged."""
    stored = tmp_path / "stored.json"
    code, out = run("--benchmark-only", "--smoke", "--peers=", f"--benchmark-json={stored}")
    assert code == 0, out
    assert not [line for line in out.splitlines() if line.startswith("tests/")]
    found = {one["name"]: one for one in json.loads(stored.read_text())["benchmarks"]}
    assert {"test_training_step[lstm-fastlstm]", "test_layers[gru-fastlstm]", "test_inference[rnn-fastlstm]"} <= set(found)
    one = found["test_training_step[lstm-fastlstm]"]
    assert one["group"] == "training step lstm"
    assert one["stats"]["median"] == pytest.approx(one["extra_info"]["entry"]["seconds"])
    assert one["stats"]["rounds"] == 2
    for one in ratios.quotients():
        assert one.text in out
    assert "not measurable here" in out
    assert "torch is left out by --peers" in out
    assert "parameters: GRU / LSTM" in out


def test_smoke_is_not_recorded():
    code, out = run("--benchmark-only", "--smoke", "--record", "nothing")
    assert code != 0
    assert "--smoke measures nothing worth a record" in out
    assert not (ROOT / "benchmarks" / "results" / "nothing.json").exists()


def wait(seconds):
    """Return a function that takes so many seconds."""
    return lambda: time.sleep(seconds)


def test_rounds_alternate_and_slow_functions_leave():
    order = []
    functions = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    rounds = alternate(functions, blocks=3, seconds=0)
    assert [set(times) for times in rounds] == [{"a", "b"}] * 3
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 3
    rounds = alternate({"quick": wait(0.001), "slow": wait(0.05)}, blocks=3, seconds=0.002, limit=0.04)
    assert [sorted(times) for times in rounds] == [["quick", "slow"], ["quick"], ["quick"]]
    assert ratio(rounds, "slow", "quick") > 5


def broken():
    raise RuntimeError("out of order")


def test_a_peer_that_fails_takes_no_part_and_has_a_reason():
    makers = {
        ("lstm", "fastlstm"): lambda: lambda: 1.0,
        ("lstm", "unmade"): broken,
        ("lstm", "stops"): lambda: broken,
        ("lstm", "diverges"): lambda: lambda: float("nan"),
        ("lstm", "peer"): lambda: lambda: 2.0,
    }
    outcome = contest.hold(makers, blocks=2, seconds=1e-4)
    assert outcome.failed == {
        ("lstm", "unmade"): "RuntimeError: out of order",
        ("lstm", "stops"): "RuntimeError: out of order",
        ("lstm", "diverges"): "ArithmeticError: the loss is nan",
    }
    assert [set(times) for times in outcome.rounds] == [{("lstm", "fastlstm"), ("lstm", "peer")}] * 2


def test_a_peer_with_other_results_takes_no_part():
    makers = {("", who): lambda off=off: lambda: np.full((2, 3), off) for who, off in (("fastlstm", 0), ("peer", 0.1))}
    outcome = contest.hold(makers, blocks=1, seconds=1e-4)
    assert list(outcome.rounds[0]) == [("", "fastlstm")]
    assert "fastlstm and peer differ" in outcome.failed["", "peer"]


def outcomes(**milliseconds):
    """Return a contest with given times of fastlstm in each round, by cell."""
    rounds = [{(cell, "fastlstm"): times[k] for cell, times in milliseconds.items()} for k in range(3)]
    return {ratios.STEP: contest.Outcome(rounds)}


def test_ratios_are_medians_over_rounds_with_verdicts():
    found = ratios.computed(outcomes(lstm=[30, 60, 90], rnn=[10, 20, 30], gru=[15, 30, 90]))
    assert found["CPU: LSTM time / RNN time"]["fastlstm"] == {"value": 3, "verdict": "holds"}
    assert found["CPU: GRU time / LSTM time"]["fastlstm"]["verdict"] == "does not hold: 36% below the article's"
    missing = found["CPU: LSTM time / RNN time"]["torch"]
    assert missing == {"verdict": "not measurable here: no training step of lstm by torch in this session"}
    assert found["parameters: LSTM / RNN"]["fastlstm"] == {"value": 4, "verdict": "holds"}
    assert ratios.verdict(3.29, 3) == "holds"
    assert ratios.verdict(3.31, 3) == "does not hold: 10% above the article's"
    assert ratios.verdict(3.31, None) == "the article has no figure"


def test_transformer_of_the_same_size_sees_no_future():
    torch = pytest.importorskip("torch")
    from benchmarks.peers import transformer

    torch.manual_seed(0)
    model = transformer.same_size(1_086_017, 65, 20).eval()
    assert abs(transformer.parameters(model) - 1_086_017) < 1000
    with pytest.raises(ValueError, match="count is 1000; expected at least"):
        transformer.same_size(1000, 65, 20)
    ids = torch.randint(0, 65, (20, 3))
    changed = ids.clone()
    changed[10:] = (ids[10:] + 1) % 65
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert before.shape == (20, 3, 65)
    torch.testing.assert_close(before[:10], after[:10])
    assert (before[10:] - after[10:]).abs().amin(-1).max() > 0
    kept = []
    with torch.no_grad():
        steps = [model(ids[:7], kept), *(model(ids[k : k + 1], kept) for k in range(7, 20))]
    torch.testing.assert_close(torch.cat(steps), before)
    with pytest.raises(ValueError, match="ids are of 21 steps"):
        model(torch.zeros((21, 1), dtype=torch.long))


@pytest.mark.parametrize(
    ("growth", "word"),
    [
        ((1.0, 1.02, 0.98, 1.01), ""),
        ((1.2, 1.3, 1.25, 1.22), "REGRESSION"),
        ((0.7, 0.8, 0.75, 0.78), "faster"),
        ((1.0, 1.2, 1.3, 0.9), "uncertain"),
        ((1.05, 1.2, 1.3, 1.08), "REGRESSION, uncertain"),
    ],
)
def test_two_commits_are_judged_by_pairs_of_blocks(growth, word):
    drift = (1.0, 3.0, 10.0, 0.5)  # of the machine: the same for both of a pair
    judged = compare.judged([(d, d * g) for d, g in zip(drift, growth, strict=True)])
    assert judged["word"] == word
    assert judged["ratio"] == pytest.approx(np.median(growth))
    assert word in compare.line("case", judged)


def test_each_commit_has_a_process_that_measures_cases(tmp_path):
    asked = [["one step lstm 32->64 B=1 T=1", 0], ["one step lstm 32->64 B=1 T=1", 3], ["no such case", 1]]
    command = [sys.executable, "-m", "benchmarks.speed.compare", "--serve"]
    given = "".join(json.dumps(one) + "\n" for one in asked)
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=True)
    cases, first, second, third = map(json.loads, done.stdout.splitlines())
    assert {f"training step {cell}" for cell in compare.CELLS} <= set(cases["cases"])
    assert 0 < second["seconds"] < 1
    assert 0 < first["seconds"] < 1
    assert third == {"error": "KeyError: 'no such case'"}


def test_two_commits_are_stored_as_pytest_benchmark_stores_runs(tmp_path):
    from types import SimpleNamespace

    side = SimpleNamespace(commit="0123456789abcdef")
    results = {"case": compare.judged([(1.0, 2.0), (1.0, 3.0)]), "lost": {"failed": "too old"}}
    paths = [compare.store(tmp_path, side, which, results) for which in (0, 1)]
    assert [path.name for path in paths] == ["0001_before-01234567.json", "0002_after-01234567.json"]
    command = [sys.executable, "-m", "pytest_benchmark", "--storage", f"file://{tmp_path}", "compare", "--columns=median"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2.50" in done.stdout
    assert "lost" not in done.stdout


def test_a_file_has_times_of_one_machine_only(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    first = record.Record("some", timed=False)
    first.section("here")["one"] = first.signed({"value": 1})
    first.save()
    monkeypatch.setattr(record, "machine", lambda: {"processor": "another"})
    with pytest.raises(SystemExit, match="some.json is of another machine"):
        record.Record("some")
    second = record.Record("some", timed=False)
    second.section("here")["two"] = second.signed({"value": 2})
    second.save()
    kept = json.loads((tmp_path / "some.json").read_text())
    assert kept["machine"] == first.content["machine"]
    about = {"machine": {"processor": "another"}, "versions": record.versions()}
    assert kept["results"]["here"] == {"one": {"value": 1}, "two": {"value": 2} | about}


def test_the_distance_of_two_threads_is_measured_if_there_are_two_processors():
    before = team.num_threads()
    try:
        team.set_num_threads(1)
        assert distance.nanoseconds() is None
        if system.processors() > 1:
            team.set_num_threads(2)
            assert distance.nanoseconds() > 5
    finally:
        team.set_num_threads(before)


def test_a_record_has_the_distance_of_threads_for_each_point(monkeypatch):
    distances = iter([70.4, 300.2, 80.0, 60.0, 60.0])  # at first, then after each point and before the next
    monkeypatch.setattr(record.distance, "nanoseconds", lambda: next(distances))
    found = record.Record()
    found.put("here", "one", {"seconds": 1})
    found.put("here", "two", {"seconds": 1})
    assert found.content["apart"] == {"here: one": 300, "here: two": 80}
    assert found.content["results"]["here"]["one"] == {"seconds": 1}
    record.Record(timed=False)
    assert next(distances, None) is None


def test_the_process_without_avx512_imports_what_there_is():
    """The code of that process is a string, so no other test would see an import that is wrong."""
    lines = grid.AVX2_STEP.strip().splitlines()
    exec("\n".join(line for line in lines if line.startswith(("import ", "from "))), {})


def test_two_records_are_compared_ratio_by_ratio():
    first, second = (
        {
            "ratios": {
                "CPU: LSTM time / RNN time": {"article": 3, "fastlstm": {"value": value}, "torch": {"verdict": "not here"}},
                "parameters: LSTM / RNN": {"article": 4, "fastlstm": {"value": 4.0}},
            }
        }
        for value in (3.0, 3.3)
    )
    found = repeat.compared(first, second)
    assert list(found) == ["CPU: LSTM time / RNN time"]
    one = found["CPU: LSTM time / RNN time"]
    assert list(one) == ["fastlstm"]
    assert one["fastlstm"]["values"] == [3.0, 3.3]
    assert one["fastlstm"]["off"] == pytest.approx(0.1)
