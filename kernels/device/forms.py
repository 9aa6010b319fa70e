"""Which form of a recurrence serves a shape on a device: a model of what a step costs, and the choice.

    general     a product by cuBLAS and a pointwise kernel for each step (launches.py)
    grid        weights in registers and shared memory of all blocks, which meet in global memory once a step (persistent.cuh)
    cluster     weights in those of a cluster's blocks, which send each other operands (exchange.cuh); clusters share the batch
    block       weights in those of one block; blocks share the batch and never meet
    wave        two layers of a stack at once (wave.cuh), each as one of the three before

A persistent step is a chain: blocks meet, the operand comes from the second-level cache, the product, the pointwise part; what
it moves and computes says how long each link takes at least. Latencies and rates are estimates from published figures; what the
kernels do themselves was counted in their machine code (`python -m benchmarks.gpu.critical_path`), as is said beside each
number. Nothing was measured: they order the plans, and `python -m benchmarks.gpu.run` puts the times that they promise beside
the real ones. FASTLSTM_CUDA_FORM names a form to take wherever it can serve a shape.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from .persistent import CELLS, WORD_BYTES, Chip, Plan, plans

CLOCK = 1.7e9  # cycles per second
MEETING = 0.65e-6  # a counter in global memory: arrive, and see that all have
SENDING = 0.3e-6  # a write into another block's shared memory, and the mbarrier that tells of it
SENT_BYTES = 32  # per cycle from other blocks' registers into one's shared memory
RESIDENT = 0.92  # of the multiprocessors have a place in clusters: 15 clusters of 8 on 132
CACHE_LATENCY = 0.4e-6  # from the second-level cache to shared memory, and the block's barrier after it
CACHE_BYTES = 64  # per cycle to one multiprocessor
SHARED_BYTES = 128  # per cycle
POINTWISE_KERNEL = 0.2e-6  # of the general form, beside its launch
# Counted in machine code for 256 units, 64 rows and sm_90. Cycles from the block barrier behind the product to the first send,
# one (row, unit) pair a thread, forward and backward: the larger of bfloat16's and float32's in the cluster form.
POINTWISE = {"lstm": (260, 210), "gru": (250, 190), "rnn": (215, 175)}
PAIR = 90  # cycles of each further pair: 45 instructions of the LSTM's, by two warps of each of four schedulers
ARRIVING = 80  # cycles of the grid form from the last operand to the arrival: a block barrier, and issuing a fence
ISSUING = 220  # cycles of the grid form from the barrier behind the meeting to its last cp.async
PRODUCT_START = 100  # cycles that a product by tensor cores takes beside 6 for each of its instructions: 194 for 16, 116 for 4
SPLITTING = 4.2  # instructions for each register of weights and eight rows, where float32 is split: 540 for 128
REDUCING = 166  # instructions of the multiply-add loop that are none, 422 less 256, for the sums of 32 pairs of row and column
FUSED = 0.75  # of multiply-adds that cuBLAS's float32 products reach
LAUNCH = 3e-6  # of a kernel that fills the device
IN_GRAPH = 1.5e-6  # from one kernel of a graph to the next
MEMORY_BYTES = 2e12  # per second, for weights from memory or the second-level cache by a whole device
# Multiply-adds per cycle of a multiprocessor by mma.sync with 16-bit operands and float32 sums; half of them with tf32.
TENSOR = {75: 256, 80: 1024, 86: 256, 89: 256, 90: 1340, 100: 1340, 120: 256}
FORMS = ("general", "grid", "cluster", "block", "wave")
COUNTED = 1 << 31  # rows of all steps, and those of the state before them, that persistent kernels count in 32 bits


@dataclass(frozen=True)
class Estimate:
    """What one form needs for a sequence; times in seconds, counts of one step."""

    form: str
    plan: Plan | None
    start: float  # before the first step
    meeting: float
    exchange: float
    product: float
    pointwise: float
    barriers: int
    bytes: int  # that a multiprocessor takes in
    operations: int  # multiply-adds of the whole device

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.meeting + self.exchange + self.product + self.pointwise

    def seconds(self, steps: int) -> float:
        """Of a sequence."""
        return self.start + steps * self.step

    def __str__(self) -> str:
        parts = f"meet {self.meeting * 1e6:.2f}, fetch {self.exchange * 1e6:.2f}, multiply {self.product * 1e6:.2f}, "
        made = ""
        if self.plan is not None:
            p = self.plan
            made = f"; {p.grid[0]} x {p.grid[1]} blocks of {p.units} units x {p.passes * p.rows} rows, {p.registers} registers"
            made += f" and {p.shared_weights >> 10} KiB shared" if p.shared_weights else ""
            made += ", float32 in three products of tf32" if p.split else ""
        form = f"wave of two layers, {self.form}" if self.plan and self.plan.layers > 1 else self.form
        return f"{form}: about {self.step * 1e6:.2f} us a step ({parts}rest {self.pointwise * 1e6:.2f}){made}"


def multiplications(capability: int, dtype: str, split: bool = False) -> float:
    """Multiply-adds per cycle of one multiprocessor."""
    if split:
        return multiplications(capability, "tf32") / 3
    if dtype in ("float32", "float64"):
        return 128 * FUSED
    rate = TENSOR[max(known for known in TENSOR if known <= max(75, capability))]
    return rate / 2 if dtype == "tf32" else rate


def _product(plan: Plan, chip: Chip) -> float:
    """Cycles of one layer's product with its own operand."""
    rows, columns = plan.rows * plan.passes, plan.column_warps * plan.warp_columns
    by_tensor_cores = plan.split or plan.dtype != "float32"
    each, together = rows * columns, 8 if by_tensor_cores else 32 // plan.warp_columns  # rows for which weights are read once
    read = rows * (plan.column_warps * plan.depth * WORD_BYTES[plan.dtype] + plan.shared_weights / plan.layers / together)
    if not by_tensor_cores:
        return max(each * (plan.depth + REDUCING * plan.depth_warps) / 128, read / SHARED_BYTES)
    splitting = SPLITTING * each * plan.depth / 128 / 8 if plan.split else 0
    arithmetic = each * plan.depth / multiplications(chip.capability, plan.dtype, plan.split)
    return plan.passes * PRODUCT_START + max(arithmetic, splitting, read / SHARED_BYTES)


def persistent(plan: Plan, chip: Chip) -> Estimate:
    """Of a plan; of a wave all steps of both layers, of which the second is a step behind and has two products."""
    taken = plan.rows * plan.passes * plan.depth * WORD_BYTES[plan.dtype]
    copying = plan.passes * (CACHE_LATENCY + ISSUING / CLOCK) + taken / CACHE_BYTES / CLOCK
    meeting, exchange = {
        "grid": (MEETING + ARRIVING / CLOCK, copying),
        "cluster": (SENDING, taken / SENT_BYTES / CLOCK),
        "block": (0.0, 0.0),
    }[plan.form]
    product = _product(plan, chip) / CLOCK
    if plan.layers == 2:  # what the first layer made is on its way during the second's own exchange and product
        exchange += max(0.0, copying - exchange - product)
    pairs = -(-plan.rows * plan.units // plan.threads)
    pointwise = plan.passes * (POINTWISE[plan.cell][plan.backward] + (pairs - 1) * PAIR) / CLOCK
    groups, parts, _ = plan.grid
    waves = -(-parts // max(1, int(chip.multiprocessors * (RESIDENT if plan.form == "cluster" else 1)) // groups))
    weights = (2 * plan.layers - 1) * CELLS[plan.cell][0] * plan.hidden**2
    one = Estimate(
        plan.form,
        plan,
        start=LAUNCH + waves * weights * WORD_BYTES[plan.dtype] / MEMORY_BYTES,
        meeting=waves * meeting,
        exchange=waves * exchange,
        product=plan.layers * waves * product,
        pointwise=waves * pointwise,
        barriers=int(plan.form != "block"),
        bytes=(plan.layers - int(plan.form == "block")) * taken,
        operations=weights * plan.batch,
    )
    return one if plan.layers == 1 else replace(one, start=one.start + one.step)


def general(cell: str, dtype: str, hidden: int, batch: int, chip: Chip) -> Estimate:
    """Of the general form."""
    operations = CELLS[cell][0] * hidden**2 * batch
    weights = CELLS[cell][0] * hidden**2 * WORD_BYTES.get(dtype, 8)
    product = max(weights / MEMORY_BYTES, _multiplied(operations, dtype, chip)) + CACHE_LATENCY
    bytes_each = weights // chip.multiprocessors
    return Estimate("general", None, 0.0, 2 * IN_GRAPH, 0.0, product, POINTWISE_KERNEL, 2, bytes_each, operations)


def _multiplied(operations: int, dtype: str, chip: Chip) -> float:
    """Seconds that cuBLAS takes for so many multiply-adds, at half of what the device can."""
    return operations / (multiplications(chip.capability, dtype) * chip.multiprocessors * CLOCK) * 2


@lru_cache(4096)
def estimates(cell: str, backward: bool, dtype: str, hidden: int, batch: int, chip: Chip) -> tuple[Estimate, ...]:
    """The best of each form that can serve the shape."""
    found = {"general": general(cell, dtype, hidden, batch, chip)}
    for plan in plans(cell, backward, dtype, hidden, batch, chip):
        estimate = persistent(plan, chip)
        if plan.form not in found or _order(estimate) < _order(found[plan.form]):
            found[plan.form] = estimate
    return tuple(found.values())


def _order(one: Estimate) -> tuple[float, int]:
    """What makes one better: the step, and where those are the same and operands are split, columns for which it is done."""
    return one.step, -one.plan.warp_columns if one.plan and one.plan.split else 0


def forced() -> str | None:
    """The form that the environment asks for.

    Raises
    ------
    ValueError
        Where it names none.
    """
    name = os.environ.get("FASTLSTM_CUDA_FORM") or None
    if name not in (None, *FORMS):
        raise ValueError(f"FASTLSTM_CUDA_FORM is {name!r}; expected one of {', '.join(FORMS)}")
    return name


def choice(
    cell: str, backward: bool, dtype: str, hidden: int, batch: int, steps: int, chip: Chip, form: str | None = None
) -> Estimate:
    """The cheapest form, or `form` where it can serve the shape, else the general one."""
    listed = estimates(cell, backward, dtype, hidden, batch, chip)
    if form is not None:
        return next((one for one in listed if one.form == form), listed[0])
    return min(listed, key=lambda one: one.seconds(steps))


@lru_cache(4096)
def wave(cell: str, backward: bool, dtype: str, hidden: int, batch: int, chip: Chip) -> Estimate | None:
    """Two layers at once in the best way, if they can be."""
    found = (persistent(plan, chip) for plan in plans(cell, backward, dtype, hidden, batch, chip, layers=2))
    return min(found, key=_order, default=None)


def one_by_one(cell: str, backward: bool, dtype: str, hidden: int, batch: int, steps: int, chip: Chip) -> float:
    """Seconds of the same two layers one after another, each in its best form, with the product between them."""
    between = CELLS[cell][0] * hidden**2 * batch * steps
    alone = choice(cell, backward, dtype, hidden, batch, steps, chip).seconds(steps)
    return 2 * alone + IN_GRAPH + _multiplied(between, dtype, chip)


def choose(cell: str, backward: bool, dtype: str, hidden: int, batch: int, steps: int, device: Any) -> Plan | None:
    """The plan to launch on a device, the cheapest of those that it has room for; None for the general form."""
    if device.chip is None or (steps + 1) * batch > COUNTED:
        return None
    shape, form = (cell, backward, dtype, hidden, batch), forced()
    listed = sorted(estimates(*shape, device.chip), key=lambda one: one.seconds(steps))
    if form is not None:
        listed = [choice(*shape, steps, device.chip, form)]
    return next((one.plan for one in listed if one.plan is None or device.holds(one.plan)), None)


def overlap(cell: str, backward: bool, dtype: str, hidden: int, batch: int, steps: int, device: Any) -> Plan | None:
    """The plan for two layers at once on a device, None where they had better run one by one, or must."""
    form = forced()
    if device.chip is None or (steps + 1) * batch > COUNTED or form not in (None, "wave"):
        return None
    shape = (cell, backward, dtype, hidden, batch)
    found = wave(*shape, device.chip)
    if found is None or (form is None and found.seconds(steps) >= one_by_one(*shape, steps, device.chip)):
        return None
    return found.plan if found.plan is not None and device.holds(found.plan) else None
