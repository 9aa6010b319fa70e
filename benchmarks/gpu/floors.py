"""Computes the floor of a recurrence's step on a GPU in one of its forms: the least time for barriers, traffic and products.

With G gates (LSTM 4, GRU 3, RNN 1), H units, a batch of B, words of w bytes in products and everything else in float32, a step
has

====================  ==========================================================================================================
barriers              1 of a grid or a cluster, none of a block; in the general form the borders of its 2 kernels
operand               bytes that one multiprocessor reads: the rows that its blocks multiply, DEPTH w each; in the general form
                      its share of the weights, from the second-level cache
weights               G H^2 w bytes from memory, once in a sequence
arrays                bytes that cross the memory bus once: see `arrays`
operations            2 G H^2 B, where a multiply-add is two; the peak is that of the multiprocessors that have a block
====================  ==========================================================================================================

    floor = barriers + max(operand / its rate, (weights / T + arrays) / memory bandwidth, operations / peak)

Only barriers count with their latency, and traffic is assumed to overlap with computation. So no launch can be faster than the
floor as long as the rates are right. The rates of barriers, operands and products are those of kernels/device/forms.py, which
are estimates from published figures; memory bandwidths are from data sheets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastlstm.kernels.device import forms
from fastlstm.kernels.device.forms import Estimate
from fastlstm.kernels.device.persistent import CELLS, WORD_BYTES, Chip


@dataclass(frozen=True)
class Gpu:
    """A device as its data sheet describes it."""

    chip: Chip
    memory: float  # bytes per second


GPUS = {
    "H200": Gpu(Chip(90, 132, 227 << 10), 4.8e12),
    "H100": Gpu(Chip(90, 132, 227 << 10), 3.35e12),
    "A100": Gpu(Chip(80, 108, 163 << 10), 2.039e12),
    "RTX 4090": Gpu(Chip(89, 128, 99 << 10), 1.008e12),
    "RTX 3090": Gpu(Chip(86, 82, 99 << 10), 0.936e12),
    "T4": Gpu(Chip(75, 40, 64 << 10), 0.32e12),
}


def gpu(name: str, chip: Chip) -> Gpu:
    """Return a device by the name that its driver gives, such as "NVIDIA H200".

    A device that is not in the table has an infinite memory bandwidth.
    """
    words = set(name.replace("-", " ").split())
    return Gpu(chip, next((one.memory for key, one in GPUS.items() if words.issuperset(key.split())), math.inf))


def arrays(cell: str, backward: bool, dtype: str, hidden: int, batch: int) -> int:
    """Return the bytes of a training's step that cross the memory bus once. Each array is [B, H] or [B, G H].

    Forward reads the sums of the gates. It writes activations and h (in 16 bits h a second time, for products), of an LSTM also
    c, and of a GRU the candidate's product. Backward reads these and the gradients of the outputs. It writes the gradients of
    the gates, of a GRU also those on the side of h. The state that a step shares with the one before it is not read again.
    """
    word, gates = WORD_BYTES[dtype], CELLS[cell][0]
    kept = gates * word if cell != "rnn" else 0  # an RNN's activation is h
    state = {"lstm": 4, "gru": word, "rnn": 0}[cell]
    if not backward:
        return batch * hidden * (4 * gates + kept + 4 + (word if word < 4 else 0) + state)
    h = 4 if cell != "lstm" else 0
    inner = gates * word if cell == "gru" else 0
    return batch * hidden * (kept + state + h + 4 + gates * word + inner)


@dataclass(frozen=True)
class Floor:
    """The floor of one step. Times are in seconds; each is the time of one part if there were no other."""

    barriers: float
    operand: float
    traffic: float
    operations: float
    arrays: int  # bytes
    weights: int  # bytes, of a sequence

    @property
    def seconds(self) -> float:
        """The floor."""
        return self.barriers + max(self.operand, self.traffic, self.operations)

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        parts = {"barriers": self.barriers, "operand": self.operand, "memory": self.traffic, "operations": self.operations}
        return max(parts, key=lambda name: parts[name])


def floor(estimate: Estimate, cell: str, backward: bool, dtype: str, hidden: int, batch: int, steps: int, on: Gpu) -> Floor:
    """Return the floor of a form for a shape, from the cost model's estimate of it."""
    weights = CELLS[cell][0] * hidden**2 * WORD_BYTES[dtype]
    moved = arrays(cell, backward, dtype, hidden, batch)
    rate = forms.SENT_BYTES if estimate.form == "cluster" else forms.CACHE_BYTES
    split = estimate.plan is not None and estimate.plan.split
    products = forms.multiplications(on.chip.capability, dtype, split)
    products /= forms.FUSED if dtype == "float32" and not split else 1
    taken = on.chip.multiprocessors if estimate.plan is None else min(on.chip.multiprocessors, estimate.plan.blocks)
    peak = products * taken * forms.CLOCK
    return Floor(
        estimate.meeting,
        estimate.bytes / rate / forms.CLOCK,
        (weights / steps + moved) / on.memory,
        estimate.operations / peak,
        moved,
        weights,
    )


def numbers(
    estimate: Estimate, cell: str, backward: bool, dtype: str, hidden: int, batch: int, steps: int, on: Gpu
) -> dict[str, Any]:
    """Return the numbers of a form's step that results contain: microseconds, bytes, operations."""
    least = floor(estimate, cell, backward, dtype, hidden, batch, steps, on)
    return {
        "estimated": estimate.seconds(steps) * 1e6 / steps,
        "floor": least.seconds * 1e6,
        "bound": least.bound,
        "barriers": estimate.barriers,
        "operand": estimate.bytes,
        "arrays": least.arrays,
        "weights": least.weights,
        "operations": 2 * estimate.operations,
        "plan": str(estimate),
    }
