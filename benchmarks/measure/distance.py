"""How far apart two threads are: the time that a line of memory takes from one's processor to the other's and back.

Processors that share a third-level cache are near each other, those of different core complexes or sockets several times as
far, and a virtual machine's move from one to the other while it runs. What threads share by rows depends on it, small shapes
most: a record keeps it with each point, so that points are compared with what was measured at the same distance.
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

TIMES, EACH = 5, 400  # medians of so many batches of round trips; the first ones bring the threads together


@cache
def _echo() -> Any:
    """echo(place, first, last): wait for each of the numbers first, first + 2, ... below last, and answer with the next."""
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
    """Of a round trip; None where there is one processor or thread alone."""
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
