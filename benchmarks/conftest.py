"""Runs the suite under pytest: the fixture `contest`, the record that --record writes, and the tables at the end."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.measure.contest import CLOCK, OURS, Makers, Outcome, hold, replay
from benchmarks.measure.record import DISTURBED, PEERS, Record
from benchmarks.peers import layers
from benchmarks.speed import ratios

SUITE = pytest.StashKey["Suite"]()
SMOKE = layers.Size(hidden=16, layers=2, steps=6, batch=4)


class Suite:
    """The measurements of a session, by contest, and their record.

    Attributes
    ----------
    size : layers.Size
        Size of the model whose training steps and inference are timed.
    outcomes : dict
        Outcome by the contest's name, which is a way ("training step") or a way and a shape.
    notes : dict
        By case and contender, why it took no part; by contest, how it was disturbed.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.full, self.smoke = config.getoption("full"), config.getoption("smoke")
        chosen = config.getoption("peers")
        self.chosen = None if chosen is None else chosen.split(",")
        self.size = SMOKE if self.smoke else layers.ARTICLE
        self.blocks, self.seconds = (2, 0.005) if self.smoke else (15, 0.4) if self.full else (7, 0.3)
        self.outcomes: dict[str, Outcome] = {}
        self.notes: dict[str, str] = {}
        try:
            self.record = Record(config.getoption("record"), more=PEERS)
        except SystemExit as error:
            raise pytest.UsageError(str(error)) from None
        if self.smoke and self.record.path:
            raise pytest.UsageError("--smoke measures nothing worth a record: leave --record or --smoke out")

    def absent(self, who: str, device: str = "cpu") -> str:
        """Return why a contender cannot take part; empty if it can."""
        peer = {"transformer": "torch"}.get(who, who.split(",")[0])
        needs = layers.NEEDS.get(peer, ())
        if self.chosen is not None and needs and peer not in self.chosen:
            return f"{peer} is left out by --peers"
        for module in needs:
            if importlib.util.find_spec(module) is None:
                return f"{peer} does not take part: {module} is not installed"
        return ratios.without_gpu(peer) if device == "cuda" else ""

    def hold(self, name: str, makers: Makers, section: str | None, hold: Callable[..., Outcome]) -> Outcome:
        """Hold a contest that has not been held yet, and record it."""
        if name not in self.outcomes:
            self.record.mark()
            begin = time.perf_counter()
            outcome = self.outcomes[name] = hold(makers, blocks=self.blocks, seconds=self.seconds)
            missing = self.record.content.setdefault("not measured", {})
            for case, who in makers:
                title = f"{name} {case}".strip()
                if outcome.measured((case, who)):
                    self.place(title, section)[who] = outcome.entry((case, who))
                    missing.get(title, {}).pop(who, None)
                else:
                    missing.setdefault(title, {})[who] = self.notes[f"{title}, {who}"] = outcome.failed[case, who]
            self.disturbance(name, begin)
            self.record.save()
        return self.outcomes[name]

    def disturbance(self, name: str, begin: float) -> None:
        """Note and store how much other processes used the processors meanwhile."""
        if (share := self.record.circumstances(name)) > DISTURBED:
            passed = time.perf_counter() - begin
            self.notes[name] = f"disturbed: others took {share:.0%} of a processor during its {passed:.0f} s"

    def place(self, title: str, section: str | None) -> dict[str, Any]:
        """Return the record's entries of a case, by contender."""
        if section is None:
            return self.record.section(title)
        case: dict[str, Any] = self.record.section(section).setdefault(title, {})
        return case


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("benchmark_only", default=False):
        layers.same_threads()
        config.stash[SUITE] = Suite(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "contest" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    """The session's `Suite`."""
    return request.config.stash[SUITE]


@pytest.fixture
def contest(benchmark: Any, suite: Suite) -> Callable[..., dict[str, Any]]:
    """Return `contest(name, case, who, makers)`, which reports one contender through pytest-benchmark.

    The first call that names a contest holds it, with all contenders that are installed. The call returns the contender's entry
    in the record; the caller may add to it. A contender that is not installed is skipped. A peer that fails is an expected
    failure, with its reason; but fastlstm and PyTorch have to work.
    """

    def enter(
        name: str, case: str, who: str, makers: Makers, *, device: str = "cpu", section: str | None = None, hold: Any = hold
    ) -> dict[str, Any]:
        absent = suite.absent(who, device)
        title = f"{name} {case}".strip()
        if absent:
            suite.notes[f"{title}, {who}"] = absent
            pytest.skip(absent)
        there = {key: make for key, make in makers.items() if not suite.absent(key[1], device)}
        outcome = suite.hold(name, there, section, hold)
        benchmark.group = title
        if (case, who) in outcome.failed:
            (pytest.fail if who in (OURS, "torch") else pytest.xfail)(f"{who}: {outcome.failed[case, who]}")
        entry: dict[str, Any] = suite.place(title, section)[who]
        benchmark.extra_info["entry"] = entry
        replay(benchmark, outcome.blocks((case, who)))
        return entry

    return enter


def pytest_sessionfinish(session: pytest.Session) -> None:
    suite = session.config.stash.get(SUITE, None)
    if suite and suite.outcomes:
        known = suite.record.content.setdefault("ratios", {})
        for claim, one in ratios.computed(suite.outcomes).items():
            if claim not in known or any("value" in one[who] for who in ratios.WHO):
                known[claim] = one
        suite.record.save()


@pytest.hookimpl(trylast=True)  # after the tables of pytest-benchmark
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    suite = config.stash.get(SUITE, None)
    if not suite or not suite.outcomes:
        return
    terminalreporter.section("milliseconds, and how many times as long as fastlstm")
    for line in table(suite.outcomes):
        terminalreporter.write_line(line)
    if ratios.STEP in suite.outcomes:
        terminalreporter.section("the article's ratios and this machine's")
        for line in ratios.lines(ratios.computed(suite.outcomes)):
            terminalreporter.write_line(line)
    if suite.notes:
        terminalreporter.section("not measured, or disturbed")
        for why in dict.fromkeys(suite.notes.values()):
            what = [one for one, reason in suite.notes.items() if reason == why]
            terminalreporter.write_line(f"{what[0]}{f' and {len(what) - 1} more' if what[1:] else ''}: {why}")
    if suite.record.path:
        terminalreporter.write_line(f"recorded in {suite.record.path}")


def table(outcomes: dict[str, Outcome]) -> list[str]:
    """Return a line for each case: its contenders, and how fast each is."""
    rows: dict[str, list[str]] = {}
    for name, outcome in outcomes.items():
        for key in outcome.rounds[0] if outcome.rounds else ():
            entry, (case, who) = outcome.entry(key), key
            ratio = f" {entry['speedup']:.2f}x" if "speedup" in entry and who != OURS else ""
            rows.setdefault(f"{name} {case}".strip(), []).append(f"{who} {entry['seconds'] * 1e3:.4g}{ratio}")
    return [f"{title:46} {'   '.join(row)}" for title, row in rows.items()]
