"""Which rows the steps of a recurrence have, for those who launch steps one by one; sequence.py says it to compiled loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Starts = Any  # of a ragged batch's steps (sequence.py), as a tuple, since they say what is launched; 0 for whole sequences


def rows_of(t: int, batch: int, reverse: int, starts: Starts) -> tuple[int, int, int, int]:
    """Step t's first row, the rows of states before and after it, and how many it has."""
    if starts:
        return starts[t + 1] - starts[1], starts[t], starts[t + 1], starts[t + 2] - starts[t + 1]
    return t * batch, (t + reverse) * batch, (t + 1 - reverse) * batch, batch


def back(steps: int, batch: int, reverse: int, start: int, starts: Starts) -> Iterator[tuple[int, ...]]:
    """Steps in the order of backward: t, its first row, how many it has, rows of states before and after it, and of the step
    that comes after it in the recurrence the first row and how many reach t. `start`: no step comes after the chunk.
    """
    for s in range(steps):
        t = s if reverse else steps - 1 - s
        own, before, after, count = rows_of(t, batch, reverse, starts)
        if starts:
            behind, linked = starts[t + 2] - starts[1], starts[t + 3] - starts[t + 2]
        else:
            behind, linked = (t - 1 if reverse else t + 1) * batch, batch if s > 0 or not start else 0
        yield t, own, count, before, after, behind, linked
