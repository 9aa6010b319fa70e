"""What a persistent kernel is given: the parameters of persistent.cu and wave.cu, in the order of device/cells.cuh.

The fields are those of all cells; 0 stands for what a cell has no use for. Types are those of operations.py; distances from row
to row are in elements or, for words, in words of 16 bits where products read those.
"""

from __future__ import annotations

from typing import NamedTuple

from ..operations import Bytes, Flag, Int32s, Int64s, Reals, Size, Words


class PersistentForward(NamedTuple):
    """All steps of a recurrence, forward."""

    steps: Size
    batch: Size
    hidden: Size
    reverse: Flag
    time: Size
    relu: Flag
    gates: Reals
    gates_row: Size  # 0: one row for all
    kept: Words
    kept_row: Size
    side: Words
    side_row: Size
    h: Reals
    op: Words
    op_row: Size
    c: Reals
    c_slots: Size
    bias: Reals
    ids: Int32s
    table: Reals
    lengths: Int64s
    clear: Bytes
    weights: Words
    weights_row: Size


class PersistentBackward(NamedTuple):
    """All steps of a recurrence, last to first."""

    steps: Size
    batch: Size
    hidden: Size
    reverse: Flag
    time: Size
    start: Flag
    relu: Flag
    kept: Words
    inner: Words
    kept_row: Size
    side: Words
    side_row: Size
    h: Reals
    c: Reals
    dout: Reals
    dout_row: Size
    dh: Reals
    dc: Reals
    lengths: Int64s
    clear: Bytes
    weights: Words
    weights_row: Size


Persistent = PersistentForward | PersistentBackward
