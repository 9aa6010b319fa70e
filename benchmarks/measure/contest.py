"""Contests: contenders are timed together in alternating blocks, and then reported one by one.

A contender is a case and a library that runs it, such as ("lstm", "torch"). A contender that cannot be made or run, or whose
results differ from fastlstm's, takes no part; the reason is stored. Of pytest this file only knows the `benchmark` fixture, in
`replay`.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import alternate
from benchmarks.peers.layers import agree
from benchmarks.speed.roofline import blas_threads

OURS = "fastlstm"
Key = tuple[str, str]  # case, library
Makers = Mapping[Key, Callable[[], Callable[[], Any]]]


@dataclass
class Outcome:
    """The result of a contest.

    Attributes
    ----------
    rounds : list of mapping
        Times, as `alternate.alternate` returns them.
    failed : mapping
        For each contender that took no part, the reason.
    """

    rounds: list[dict[Key, float]] = field(default_factory=list)
    failed: dict[Key, str] = field(default_factory=dict)

    def blocks(self, key: Key) -> list[float]:
        """Return the seconds per call in each block of a contender."""
        return [times[key] for times in self.rounds if key in times]

    def measured(self, key: Key) -> bool:
        """Return whether a contender has a time."""
        return bool(self.rounds) and key in self.rounds[0]

    def entry(self, key: Key) -> dict[str, float]:
        """Return the median seconds per call, and how many times as fast fastlstm is on the same case."""
        case, _ = key
        found = {"seconds": alternate.median(self.rounds, key)}
        if self.measured((case, OURS)):
            found["speedup"] = alternate.ratio(self.rounds, key, (case, OURS))
        return found


def reason(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def hold(makers: Makers, *, blocks: int, seconds: float) -> Outcome:
    """Make all contenders, compare their results with fastlstm's, and time them.

    Parameters
    ----------
    makers : mapping
        For each contender a function that makes the function to time. In each case fastlstm comes first. The functions return
        arrays, which must agree, or the loss of a training step, which must be finite.
    blocks : int
    seconds : float
        See `alternate.alternate`. A contender that takes three times as long as this allows gets fewer blocks.
    """
    outcome, functions, results = Outcome(), {}, {}
    for (case, who), make in makers.items():
        try:
            function = make()
            result = function()
            if isinstance(result, float):
                if not math.isfinite(result):
                    raise ArithmeticError(f"the loss is {result}")
            else:
                agree({OURS: results.setdefault(case, result), who: result})
        except Exception as error:  # an error of one peer must not stop the others
            outcome.failed[case, who] = reason(error)
        else:
            functions[case, who] = function
    with blas_threads():
        outcome.rounds = alternate.alternate(functions, blocks=blocks, seconds=seconds, limit=3 * blocks * seconds)
    functions.clear()
    gc.collect()
    return outcome


class Clock:
    """A timer for pytest-benchmark that shows times which were measured before."""

    __name__ = "alternating blocks, measured beforehand"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the time on."""
        self.now += seconds


CLOCK = Clock()


def replay(benchmark: Any, times: Iterable[float]) -> None:
    """Report each time as a round, through the `benchmark` fixture of a test whose timer is `CLOCK`."""
    given = list(times)
    each = iter(given)
    benchmark.pedantic(lambda: CLOCK.advance(next(each)), rounds=len(given))
