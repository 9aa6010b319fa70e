"""Time several functions beside each other: alternating blocks of calls with rests, medians, ratios of blocks.

Peers keep their threads spinning for some milliseconds after a call, and a machine's clock drifts: blocks that alternate,
each after a rest, see the same machine, and the ratio of two neighbours is steadier than either time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

REST = 0.06  # seconds before each block: onnxruntime's threads keep a processor busy for 30 to 50 ms after a call
Name = TypeVar("Name", bound=Hashable)


def alternate(
    functions: Mapping[Name, Callable[[], Any]], *, blocks: int, seconds: float, limit: float = float("inf")
) -> list[dict[Name, float]]:
    """Seconds per call of each function in each round.

    Parameters
    ----------
    functions : mapping of callables
    blocks : int
        Rounds; each round times one block of every function.
    seconds : float
        About how long a block lasts; a block is one call at least.
    limit : float
        Seconds; a function whose blocks have taken longer together sits out the rounds that follow.

    Returns
    -------
    list of mapping
        For each round what the functions in it took.
    """
    calls = {}
    for name, function in functions.items():
        function()
        begin = time.perf_counter()
        function()
        calls[name] = max(1, round(seconds / (time.perf_counter() - begin)))
    spent = dict.fromkeys(functions, 0.0)
    rounds: list[dict[Name, float]] = []
    for _ in range(blocks):
        times = {}
        for name, function in functions.items():
            if spent[name] > limit:
                continue
            time.sleep(REST)
            if calls[name] > 1:
                function()  # wakes the threads, which a single long call does by itself
            begin = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name] = (time.perf_counter() - begin) / calls[name]
            spent[name] += times[name] * calls[name]
        rounds.append(times)
    return rounds


def median(rounds: Sequence[Mapping[Name, float]], name: Name) -> float:
    """Median seconds per call."""
    return statistics.median(times[name] for times in rounds if name in times)


def ratio(rounds: Sequence[Mapping[Name, float]], name: Name, other: Name) -> float:
    """The median, over the rounds that both are in, of one's time over the other's."""
    return statistics.median(times[name] / times[other] for times in rounds if name in times and other in times)


def beside(functions: dict[str, Callable[[], Any]], *, blocks: int = 7, seconds: float = 0.4) -> dict[str, dict[str, float]]:
    """Median seconds per call of each function, and the first one's speed relative to each.

    Parameters
    ----------
    functions : mapping of str to callable
        Ours first, then the peers.
    blocks, seconds
        As of `alternate`.

    Returns
    -------
    mapping
        For each name ``seconds`` (median over blocks) and ``speedup``: the median over rounds of its time over ours.
    """
    rounds, ours = alternate(functions, blocks=blocks, seconds=seconds), next(iter(functions))
    return {name: {"seconds": median(rounds, name), "speedup": ratio(rounds, name, ours)} for name in functions}
