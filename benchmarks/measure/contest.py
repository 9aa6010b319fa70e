"""Contests: contenders timed in alternating blocks, once, and then reported one by one.

A contender is a case and who runs it, ("lstm", "torch"). One that cannot be made, cannot run or computes something else than
fastlstm is out, and the reason kept. Knows nothing of pytest but the `benchmark` fixture that `replay` feeds.
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
Key = tuple[str, str]  # case, who
Makers = Mapping[Key, Callable[[], Callable[[], Any]]]


@dataclass
class Outcome:
    """What a contest came to.

    Attributes
    ----------
    rounds : list of mapping
        As of `alternate.alternate`.
    failed : mapping
        Why those that are out are.
    """

    rounds: list[dict[Key, float]] = field(default_factory=list)
    failed: dict[Key, str] = field(default_factory=dict)

    def blocks(self, key: Key) -> list[float]:
        """Seconds per call in each block of a contender."""
        return [times[key] for times in self.rounds if key in times]

    def measured(self, key: Key) -> bool:
        """Whether a contender has a time."""
        return bool(self.rounds) and key in self.rounds[0]

    def entry(self, key: Key) -> dict[str, float]:
        """Median seconds per call, and how many times as fast fastlstm is on the same case."""
        case, _ = key
        found = {"seconds": alternate.median(self.rounds, key)}
        if self.measured((case, OURS)):
            found["speedup"] = alternate.ratio(self.rounds, key, (case, OURS))
        return found


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def hold(makers: Makers, *, blocks: int, seconds: float) -> Outcome:
    """Make all contenders, compare what they compute with what fastlstm does, and time them.

    Parameters
    ----------
    makers : mapping
        For each contender what makes its function. Those of fastlstm come first of their case. Functions return arrays, which
        have to agree, or the loss of a training step, which has to be finite.
    blocks : int
    seconds : float
        As of `alternate.alternate`; one that takes three times as long as that allows has fewer blocks.
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
        except Exception as error:  # whatever stops a peer must not stop the others
            outcome.failed[case, who] = reason(error)
        else:
            functions[case, who] = function
    with blas_threads():
        outcome.rounds = alternate.alternate(functions, blocks=blocks, seconds=seconds, limit=3 * blocks * seconds)
    functions.clear()
    gc.collect()
    return outcome


class Clock:
    """A timer for pytest-benchmark that shows times measured before."""

    __name__ = "alternating blocks, measured beforehand"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


CLOCK = Clock()


def replay(benchmark: Any, times: Iterable[float]) -> None:
    """Report times, each as a round, through the `benchmark` fixture of a test whose timer is `CLOCK`."""
    given = list(times)
    each = iter(given)
    benchmark.pedantic(lambda: CLOCK.advance(next(each)), rounds=len(given))
