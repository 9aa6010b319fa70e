"""Times several functions in alternating blocks of calls, with rests between them; takes medians and ratios of blocks.

After a call a peer's threads spin for some milliseconds, and a machine's clock drifts. With alternating blocks, each after a
rest, all functions run on the same machine in the same state, and the ratio of two neighbouring blocks is steadier than either
time.
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
    """Return the seconds per call of each function in each round.

    Parameters
    ----------
    functions : mapping of callables
    blocks : int
        Rounds; each round times one block of every function.
    seconds : float
        About how long a block lasts; a block has at least one call.
    limit : float
        A function whose blocks have taken more seconds than this in all takes no part in further rounds.

    Returns
    -------
    list of mapping
        For each round, seconds per call by the function's name.
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
                function()  # wakes the threads; a single long call needs no such call before it
            begin = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name] = (time.perf_counter() - begin) / calls[name]
            spent[name] += times[name] * calls[name]
        rounds.append(times)
    return rounds


def median(rounds: Sequence[Mapping[Name, float]], name: Name) -> float:
    """Return the median seconds per call."""
    return statistics.median(times[name] for times in rounds if name in times)


def ratio(rounds: Sequence[Mapping[Name, float]], name: Name, other: Name) -> float:
    """Return the median of one function's time over the other's, of the rounds that have both."""
    return statistics.median(times[name] / times[other] for times in rounds if name in times and other in times)


def compare(functions: dict[str, Callable[[], Any]], *, blocks: int = 7, seconds: float = 0.4) -> dict[str, dict[str, float]]:
    """Return the median seconds per call of each function, and how many times as long as the first function's that is.

    Parameters
    ----------
    functions : mapping of str to callable
        fastlstm first, then the peers.
    blocks, seconds
        See `alternate`.

    Returns
    -------
    mapping
        For each name ``seconds`` (median over blocks) and ``speedup``: the median over rounds of its time over the first's.
    """
    rounds, ours = alternate(functions, blocks=blocks, seconds=seconds), next(iter(functions))
    return {name: {"seconds": median(rounds, name), "speedup": ratio(rounds, name, ours)} for name in functions}
