"""Where the rows of a ragged batch stand: sequences of unequal lengths without padding, as torch packs them.

Steps follow each other, each with the rows of the sequences that have not ended, the longest first (kernels/sequence.py says
how recurrences read them). The reverse direction is the forward one over sequences turned around, each within its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..runtime.program import Count, Later


@dataclass(frozen=True)
class Ragged:
    """One ragged batch, or, in a recorded program, any: then these are `Later`.

    Attributes
    ----------
    rows, steps : int
        Of all steps together, and how many steps.
    starts : int64 [steps + 3]
        As kernels take them.
    before, last, turned : int32 [rows], [B], [rows]
        In buffers of states, which begin with the B initial ones, the row before each row, and each sequence's last; and the
        row that stands in each row's place when sequences are turned around.
    """

    rows: int
    steps: int
    starts: Any
    before: Any
    last: Any
    turned: Any

    @property
    def values(self) -> dict[str, Any]:
        """What a recorded program wants."""
        return {f"ragged_{name}": value for name, value in vars(self).items()}


@lru_cache(maxsize=64)
def later(rows: int) -> Ragged:
    """For a program that serves all ragged batches of up to `rows` rows."""
    counts = Count("ragged_rows", rows), Count("ragged_steps", rows)
    return Ragged(*counts, *(Later(f"ragged_{name}") for name in ("starts", "before", "last", "turned")))


def places(sizes: np.ndarray, turns: bool, saves: bool) -> Ragged:
    """The batch whose steps have `sizes` rows, int64 and never more than the step before.

    turns, saves: whether there is a reverse direction, and a backward pass; places that only these want are left out else.
    """
    steps, batch = len(sizes), int(sizes[0])
    starts = np.empty(steps + 3, np.int64)
    starts[0], starts[1] = 0, batch
    np.cumsum(sizes, out=starts[2:-1])
    starts[2:-1] += batch
    starts[-1] = starts[-2]
    rows, sequences = int(starts[-1]) - batch, np.arange(batch)
    lengths = np.searchsorted(-sizes, -sequences, side="left")
    last = (starts[lengths] + sequences).astype(np.int32)
    before = turned = None
    if turns or saves:
        step = np.repeat(np.arange(steps), sizes)
        sequence = np.arange(batch, batch + rows) - starts[step + 1]
        before = (starts[step] + sequence).astype(np.int32)
        turned = (starts[lengths[sequence] - step] - batch + sequence).astype(np.int32)
    return Ragged(rows, steps, starts, before, last, turned)


def room(rows: int, batch: int) -> int:
    """Whole steps for at least so many rows: the same number for about as many, so that what is made for one serves others."""
    steps = -(-rows // batch)
    coarse = max(1, 1 << steps.bit_length() >> 4)
    return -(-steps // coarse) * coarse
