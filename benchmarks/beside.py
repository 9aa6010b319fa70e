"""Time several functions beside each other: alternating blocks of calls with rests, medians, ratios of blocks.

Peers keep their threads spinning for some milliseconds after a call, and a machine's clock drifts: blocks that alternate,
each after a rest, see the same machine, and the ratio of two neighbours is steadier than either time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

REST = 0.02  # seconds before each block


def beside(functions: dict[str, Callable[[], Any]], *, blocks: int = 7, seconds: float = 0.4) -> dict[str, dict[str, float]]:
    """Median seconds per call of each function, and the first one's speed relative to each.

    Parameters
    ----------
    functions : mapping of str to callable
        Ours first, then the peers.
    blocks : int
        Rounds; each round times one block of every function.
    seconds : float
        About how long a block lasts.

    Returns
    -------
    mapping
        For each name ``seconds`` (median over blocks) and ``speedup``: the median over rounds of its time over ours.
    """
    calls = {}
    for name, function in functions.items():
        function()
        begin = time.perf_counter()
        function()
        calls[name] = max(1, round(seconds / (time.perf_counter() - begin)))
    rounds: list[dict[str, float]] = []
    for _ in range(blocks):
        times = {}
        for name, function in functions.items():
            time.sleep(REST)
            function()  # wakes the threads
            begin = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name] = (time.perf_counter() - begin) / calls[name]
        rounds.append(times)
    ours = next(iter(functions))
    return {
        name: {
            "seconds": statistics.median(times[name] for times in rounds),
            "speedup": statistics.median(times[name] / times[ours] for times in rounds),
        }
        for name in functions
    }
