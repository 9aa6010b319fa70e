"""Recurrences in one launch on the simulator: results against the reference, and planted mistakes that must turn red."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastlstm.kernels.device import clusters, forms, persistent
from fastlstm.kernels.device.persistent import Chip, Plan, plans
from fastlstm.runtime.arrays import as_numpy
from tests.cuda.one_launch import BOUNDS, CHIPS, SMALL, needs_compiler, plant
from tests.cuda.simulator.simulator import ORDERS, KernelError
from tests.support import cases

LARGE = Chip(90, 24, 227 << 10)
# Of a kind and precision: hidden sizes, and into how many parts the depth is split among the warps.
SIZES = [
    ("grid", "lstm", "float32", (7, 33, 100), 1),
    ("grid", "gru", "float32", (1, 50), 2),
    ("grid", "rnn-tanh", "float32", (64,), 4),
    ("grid", "rnn-relu", "float32", (33,), 8),
    ("cluster", "lstm", "float32", (33, 50), 2),
    ("cluster", "gru", "float32", (64,), 1),
    ("cluster", "rnn-tanh", "float32", (100,), 1),
    ("block", "lstm", "float32", (7,), 1),
    ("block", "gru", "bfloat16", (7,), 2),
    ("block", "rnn-tanh", "tf32", (33,), 4),
    *(
        (form, kind, dtype, sizes, parts)
        for form, dtype in (("grid", "tf32"), ("grid", "bfloat16"), ("cluster", "float16"))
        for kind, sizes, parts in (("lstm", (33,), 2), ("gru", (50,), 4), ("rnn-tanh", (64,), 1))
    ),
    ("cluster", "lstm", "float32", (125,), 1),
    ("cluster", "gru", "float16", (125,), 8),  # sixteen blocks
    ("grid", "lstm", "float16", (33,), 4),
    ("cluster", "lstm", "tf32", (50,), 2),
    ("cluster", "gru", "bfloat16", (33,), 1),
]
# Steps, rows, and what else: lengths, resets, states.
CALLS = [(1, 1, False, "none"), (2, 17, False, "both"), (4, 5, True, "both"), (9, 17, True, "none")]


def small_plan(form: str, depth_warps: int, split: bool = False) -> Any:
    """A choice of one tile for all batches, so that few instances are built."""

    def choose(cell: str, backward: bool, dtype: str, hidden: int, batch: int, steps: int, device: Any) -> Plan:
        for plan in plans(cell, backward, dtype, hidden, batch, device.chip):
            if plan.form == form and plan.rows == 8 and plan.depth_warps == depth_warps and plan.split == split:
                assert device.holds(plan)
                return plan
        raise AssertionError(f"no plan for {cell} {dtype} H={hidden} B={batch}")

    return choose


def case_of(kind: str, hidden: int, call: int) -> cases.Case:
    steps, batch, marked, state = CALLS[call]
    return cases.Case(
        kind,
        100 * hidden + call,
        steps,
        batch,
        5,
        hidden,
        bidirectional=True,
        lengths=marked,
        resets=marked,
        state=state,
        dstate=state,
    )


def check(case: cases.Case, dtype: str, device: Any) -> None:
    layer = case.layer(dtype, "cuda")
    device.launched.clear()
    got, masks = case.results(layer)
    assert {name for name in device.launched if "forward" in name or "backward" in name} == {"recur_forward", "recur_backward"}
    want = case.wanted(layer, masks)
    scale = max(float(np.abs(array).max()) for array in want.values())
    for name, array in want.items():
        off = cases.error(got[name], array) if dtype == "float32" else cases.coarse_error(got[name], array, scale)
        assert off < BOUNDS[dtype], f"{name} is off by {off:.1e} in {dtype}: {case}"
    given = case.data("float32").given
    out, _ = layer(given.x, case.pair(given), lengths=given.lengths, resets=given.resets)
    assert np.array_equal(as_numpy(out), got["out"]), "inference differs from training"


@needs_compiler
@pytest.mark.parametrize(("form", "kind", "dtype", "sizes", "parts"), SIZES, ids=str)
def test_forms_agree_with_the_reference(
    form: str, kind: str, dtype: str, sizes: tuple[int, ...], parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cuda.simulator.device import simulated

    monkeypatch.setattr(forms, "choose", small_plan(form, parts))
    for hidden in sizes:
        for call in range(4 if hidden <= 7 else 3):
            with simulated(chip=SMALL) as device:
                check(case_of(kind, hidden, call), dtype, device)


# Of a form and kind, float32 by three products of tensor cores: hidden size, parts of the depth, registers for weights.
SPLIT = [
    ("grid", "lstm", 33, 2, 128),
    ("grid", "rnn-relu", 100, 4, 128),
    ("cluster", "gru", 50, 1, 128),
    ("cluster", "lstm", 33, 2, 128),
    ("block", "rnn-tanh", 33, 4, 128),
    ("grid", "gru", 90, 1, 16),
]


@needs_compiler
@pytest.mark.parametrize(("form", "kind", "hidden", "parts", "registers"), SPLIT, ids=str)
def test_products_of_split_numbers_are_float32s(
    form: str, kind: str, hidden: int, parts: int, registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cuda.simulator.device import simulated

    monkeypatch.setattr(persistent, "REGISTERS", registers)
    monkeypatch.setattr(persistent, "BESIDE", registers)
    monkeypatch.setattr(forms, "choose", small_plan(form, parts, split=True))
    for call in range(3):
        with simulated(chip=LARGE if registers < 128 else SMALL) as device:
            check(case_of(kind, hidden, call), "float32", device)


# With few registers for weights, so that some lie in shared memory.
BEYOND = [
    ("grid", "gru", "float32", 90, 8),
    ("grid", "lstm", "float32", 60, 16),
    ("cluster", "rnn-tanh", "tf32", 90, 16),
    ("grid", "lstm", "bfloat16", 90, 16),
]


@needs_compiler
@pytest.mark.parametrize(("form", "kind", "dtype", "hidden", "registers"), BEYOND, ids=str)
def test_weights_beyond_the_registers_are_shared_memorys(
    form: str, kind: str, dtype: str, hidden: int, registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cuda.simulator.device import simulated

    monkeypatch.setattr(persistent, "REGISTERS", registers)
    monkeypatch.setattr(persistent, "BESIDE", registers)
    monkeypatch.setattr(forms, "choose", small_plan(form, 1))
    cell = kind.partition("-")[0]
    beyond = [
        small_plan(form, 1)(cell, way, dtype, hidden, 5, 4, SimpleNamespace(chip=LARGE, holds=lambda _: True))
        for way in (False, True)
    ]
    assert any(plan.shared_weights for plan in beyond)
    with simulated(chip=LARGE) as device:
        check(case_of(kind, hidden, 2), dtype, device)


@needs_compiler
@pytest.mark.parametrize(
    ("form", "kind", "dtype", "hidden", "parts"),
    [("grid", "lstm", "float32", 33, 1), ("grid", "gru", "bfloat16", 50, 4), ("cluster", "lstm", "float32", 33, 2)],
)
def test_results_do_not_depend_on_the_order_of_threads(
    form: str, kind: str, dtype: str, hidden: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cuda.simulator.device import simulated

    monkeypatch.setattr(forms, "choose", small_plan(form, parts))
    with simulated(ORDERS, SMALL) as device:
        check(case_of(kind, hidden, 2), dtype, device)


def test_the_driver_is_asked_for_room_for_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = pytest.importorskip("cuda.bindings.driver")
    ours = clusters.launch((16, 4, 1), 256, 77777, 16)
    theirs, attribute = bindings.CUlaunchConfig(), bindings.CUlaunchAttribute()
    theirs.gridDimX, theirs.gridDimY, theirs.gridDimZ = 16, 4, 1
    theirs.blockDimX, theirs.blockDimY, theirs.blockDimZ, theirs.sharedMemBytes = 256, 1, 1, 77777
    attribute.id = bindings.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    size = attribute.value.clusterDim
    size.x, size.y, size.z = 16, 1, 1
    theirs.attrs, theirs.numAttrs = [attribute], 1
    assert ctypes.sizeof(clusters.Attribute) == 72
    place = ctypes.c_void_p.from_address(theirs.getPtr() + clusters.Launch.attributes.offset).value
    assert ctypes.string_at(place, 72) == bytes(ours.attributes.contents)
    for field in ("grid", "block", "shared", "stream", "count"):
        part = getattr(clusters.Launch, field)
        assert ctypes.string_at(theirs.getPtr() + part.offset, part.size) == bytes(ours)[part.offset : part.offset + part.size]
    assert int(bindings.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) == clusters.ALLOWED

    def ask(count: Any, function: Any, launch: Any) -> int:
        count._obj.value = 7
        return {4321: 0, 1234: 912}.get(function.value, 700) if launch._obj is ours else 1

    monkeypatch.setattr(clusters, "driver", lambda: SimpleNamespace(cuOccupancyMaxActiveClusters=ask))
    assert clusters.resident(4321, ours) == 7
    assert clusters.resident(1234, ours) == 0, "CUDA_ERROR_INVALID_CLUSTER_SIZE: no room"
    with pytest.raises(RuntimeError, match="cuOccupancyMaxActiveClusters failed with CUDA error 700"):
        clusters.resident(99, ours)


@needs_compiler
def test_tokens_by_their_table(monkeypatch: pytest.MonkeyPatch) -> None:
    import fastlstm
    from tests.cuda.simulator.device import simulated

    monkeypatch.setattr(forms, "choose", small_plan("grid", 1))
    ids = np.random.default_rng(0).integers(0, 5, (4, 3))
    with simulated(chip=SMALL) as device:
        got, want = (fastlstm.LanguageModel(5, hidden_size=7, num_layers=1, seed=3, device=d)(ids)[0] for d in ("cuda", "cpu"))
    assert "recur_forward" in device.launched
    assert "gather_rows" not in device.launched
    assert cases.error(as_numpy(got), np.asarray(want, np.float64)) < 1e-5


@needs_compiler
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_choice_serves(kind: str) -> None:
    from tests.cuda.simulator.device import simulated

    with simulated(chip=CHIPS[90]) as device:
        check(case_of(kind, 20, 2), "float32", device)


# Mistakes in a copy of the sources: the form, the text, what stands there then, and how it shows.
PLANTED = {
    "no wait for the other blocks": ("grid", "while (load_acquire(arrived) < met)", "while (false)", "race"),
    "arrival without release": ("grid", "add_release(arrived, 1u)", "atomicAdd(arrived, 1u)", "race"),
    "arrival before the block is done": (
        "grid",
        "__syncthreads();\n        if (threadIdx.x == 0) add_release(arrived",
        "if (threadIdx.x == 0) add_release(arrived",
        "race",
    ),
    "tile read before it is there": ("grid", "__syncthreads();\n        return tile;", "return tile;", "race"),
    "sums read before they are there": ("grid", "__syncthreads();\n            each(pass", "each(pass", "race"),
    "tile not cleared": ("grid", "memory[n] = word_of(0);", "{}", "wrong"),
    "copies not waited for": ("grid", "cp_async_wait<0>();", "", "misuse|wrong"),
    "operand of another step": ("grid", "return op.from(step.before", "return op.from(step.after", "race|wrong|memory"),
    "rows and columns swapped": ("grid", "(row + lane() / WARP_COLUMNS) *", "(row + lane() % WARP_COLUMNS) *", "race|wrong"),
    "state not carried": ("grid", "state[0] = made.c;", "", "wrong"),
    "counters not put back": ("grid", "store_release(arrived, 0u);", "", "race|wrong"),
    "no wait for what is sent": ("cluster", "if (s > 0) mbarrier_wait(next, parity);", "", "race"),
    "no wait for who reads": ("cluster", "CLUSTER_BLOCKS - 1 + THREADS / 32", "THREADS / 32", "race|deadlock|wrong"),
    "no wait for own warps": ("cluster", "CLUSTER_BLOCKS - 1 + THREADS / 32", "CLUSTER_BLOCKS", "race|deadlock|wrong"),
    "readers that tell nobody": ("cluster", "mbarrier_arrive_remote(next, number);", "{}", "deadlock"),
    "the other phase": ("cluster", "parity = s / 2 % 2", "parity = (s / 2 + 1) % 2", "race|deadlock|wrong"),
    "bytes that nobody sends": ("cluster", "ROWS * SENT * sizeof(WORD)", "ROWS * SENT * sizeof(WORD) + 16", "deadlock"),
    "one tile": ("cluster", "turn = (s + 1) % 2;", "turn = 0;", "race|deadlock|wrong"),
    "sent before it is made": ("cluster", "__syncwarp();\n", "\n", "race"),
    "blocks that have not begun": ("cluster", "        cluster_sync();\n", "", "misuse|race|memory"),
}


@needs_compiler
@pytest.mark.parametrize("mistake", PLANTED)
def test_planted_mistakes_turn_red(mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.cuda.simulator.device import simulated

    form, text, other, kinds = PLANTED[mistake]
    plant(text, other, "device/persistent", monkeypatch, tmp_path)
    monkeypatch.setattr(forms, "choose", small_plan(form, 2))
    monkeypatch.setattr(forms, "overlap", lambda *_: None)
    case = dataclasses.replace(case_of("lstm", 33, 2), bidirectional=False)
    with simulated(chip=SMALL) as device, pytest.raises((KernelError, AssertionError)) as error:
        check(dataclasses.replace(case, layers=2), "float32", device)
    kind = error.value.kind if isinstance(error.value, KernelError) else "wrong"
    assert re.fullmatch(kinds, kind), str(error.value)


# Mistakes with weights in shared memory: which of BEYOND shows them, the text, and what stands there then.
SHARED = {
    "fragments of another thread": (3, "reinterpret_cast<uint4*>(memory) + number", "reinterpret_cast<uint4*>(memory)"),
    "fragments not all multiplied": (3, "for (int s = KEPT; s < STEPS; s += 2)", "for (int s = KEPT; s < STEPS - 2; s += 2)"),
    "weights of another thread": (0, "rest = memory + number * WIDE;", "rest = memory + number % 32 * WIDE;"),
    "weights not all multiplied": (0, "int i = KEPT; i < OWN; i += WIDE)", "int i = KEPT + WIDE; i < OWN; i += WIDE)"),
    "the operand of other weights": (1, "read(from + r * STRIDE + i * 32, x[r]);", "read(from + r * STRIDE, x[r]);"),
    "weights in the place of sums": (1, "Neighbour::words() + Weights::words());", "Neighbour::words());"),
}


@needs_compiler
@pytest.mark.parametrize("mistake", SHARED)
def test_planted_mistakes_with_shared_weights_turn_red(mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    which, text, other = SHARED[mistake]
    plant(text, other, "device/persistent", monkeypatch, tmp_path)
    with pytest.raises((KernelError, AssertionError)) as error:
        test_weights_beyond_the_registers_are_shared_memorys(*BEYOND[which], monkeypatch)
    assert "no plan" not in str(error.value)
