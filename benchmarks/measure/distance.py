"""Measures the distance of two threads: the time that a cache line takes from one's processor to the other's and back.

Processors that share a third-level cache are near each other; those of different core complexes or sockets are several times as
far apart, and the threads of a virtual machine may move between them while it runs. The speed of small shapes on two threads
depends on this distance. A record stores it with each point, so that you can compare points of the same distance.
"""

from __future__ import annotations

import statistics
import threading
import time
from functools import cache
from typing import Any

import numpy as np

from fastlstm.kernels.native import system, team
from fastlstm.runtime.program import address

TIMES, EACH = 5, 400  # batches, and round trips in each; the first ones bring the threads together


@cache
def _echo() -> Any:
    """Return echo(place, first, last): it waits for each number first, first + 2, ... below last, and answers with the next."""
    import numba

    from fastlstm.kernels.vector.atomics import load, pause, store

    @numba.njit(nogil=True)
    def echo(place, first, last):
        for number in range(first, last, 2):
            while load(place, 0) != number:
                pause()
            store(place, 0, number + 1)

    return echo


def nanoseconds() -> float | None:
    """Return the nanoseconds of a round trip; None if there is only one processor or thread."""
    if min(team.num_threads(), system.processors()) < 2:
        return None
    echo, line = _echo(), np.zeros(64, np.int64)
    place, found = address(line[8:]), []
    echo(place, 0, 1)  # compiles
    for _ in range(TIMES):
        line[:] = 0
        other = threading.Thread(target=echo, args=(place, 1, 2 * EACH), daemon=True)
        other.start()
        echo(place, 0, EACH)
        began = time.perf_counter()
        echo(place, EACH, 2 * EACH)
        found.append((time.perf_counter() - began) / (EACH // 2) * 1e9)
        other.join()
    return statistics.median(found)
