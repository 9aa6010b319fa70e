"""Recurrences in one launch: results against the reference on the simulator, registers by NVRTC, the choice among forms."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastlstm.arrays import as_numpy
from fastlstm.kernels import clusters, cuda, forms, persistent
from fastlstm.kernels.persistent import CELLS, MACROS, Chip, Plan, plans
from tests import cases
from tests.cuda import compile as nvrtc
from tests.cuda import translate
from tests.cuda.simulator import ORDERS, KernelError, Module

needs_compiler = pytest.mark.skipif(translate.compiler() is None, reason="needs g++, which builds CUDA kernels for the CPU")
needs_nvrtc = pytest.mark.skipif(nvrtc.missing() is not None, reason=f"needs NVRTC's wheels: pip install {nvrtc.missing()}")

BOUNDS = {"float32": 1e-5, "tf32": 3e-3, "bfloat16": 1e-2, "float16": 1e-2}
SMALL = Chip(90, 8, 160 << 10)  # few multiprocessors, so that several passes are needed
LARGE = Chip(90, 24, 227 << 10)
CHIPS = {75: Chip(75, 40, 64 << 10), 80: Chip(80, 108, 163 << 10), 86: Chip(86, 82, 99 << 10), 89: Chip(89, 128, 99 << 10),
         90: Chip(90, 132, 227 << 10), 100: Chip(100, 148, 227 << 10), 120: Chip(120, 170, 99 << 10)}  # fmt: skip
# Of a kind and precision: hidden sizes, and into how many parts the depth is split among the warps.
SIZES = [
    ("grid", "lstm", "float32", (7, 33, 100), 1), ("grid", "gru", "float32", (1, 50), 2),
    ("grid", "rnn-tanh", "float32", (64,), 4), ("grid", "rnn-relu", "float32", (33,), 8),
    ("cluster", "lstm", "float32", (33, 50), 2), ("cluster", "gru", "float32", (64,), 1),
    ("cluster", "rnn-tanh", "float32", (100,), 1),
    ("block", "lstm", "float32", (7,), 1), ("block", "gru", "bfloat16", (7,), 2), ("block", "rnn-tanh", "tf32", (33,), 4),
    *((form, kind, dtype, sizes, parts) for form, dtype in (("grid", "tf32"), ("grid", "bfloat16"), ("cluster", "float16"))
      for kind, sizes, parts in (("lstm", (33,), 2), ("gru", (50,), 4), ("rnn-tanh", (64,), 1))),
    ("cluster", "lstm", "float32", (125,), 1), ("cluster", "gru", "float16", (125,), 8),  # sixteen blocks
    ("grid", "lstm", "float16", (33,), 4), ("cluster", "lstm", "tf32", (50,), 2), ("cluster", "gru", "bfloat16", (33,), 1),
]  # fmt: skip
# Steps, rows, and what else: lengths, resets, states.
CALLS = [(1, 1, False, "none"), (2, 17, False, "both"), (4, 5, True, "both"), (9, 17, True, "none")]


def small_plan(form: str, depth_warps: int) -> Any:
    """A choice of one tile for all batches, so that few instances are built."""

    def choose(cell: str, backward: bool, dtype: str, hidden: int, batch: int, steps: int, device: Any) -> Plan:
        for plan in plans(cell, backward, dtype, hidden, batch, device.chip):
            if plan.form == form and plan.rows == 8 and plan.depth_warps == depth_warps:
                assert device.holds(plan)
                return plan
        raise AssertionError(f"no plan for {cell} {dtype} H={hidden} B={batch}")

    return choose


def case_of(kind: str, hidden: int, call: int) -> cases.Case:
    steps, batch, marked, state = CALLS[call]
    return cases.Case(kind, 100 * hidden + call, steps, batch, 5, hidden, bidirectional=True, lengths=marked, resets=marked,
                      state=state, dstate=state)  # fmt: skip


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
    from tests.cuda.device import simulated

    monkeypatch.setattr(forms, "choose", small_plan(form, parts))
    for hidden in sizes:
        for call in range(4 if hidden <= 7 else 3):
            with simulated(chip=SMALL) as device:
                check(case_of(kind, hidden, call), dtype, device)


# With few registers for weights, so that some lie in shared memory.
BEYOND = [("grid", "gru", "float32", 90, 8), ("grid", "lstm", "float32", 60, 16), ("cluster", "rnn-tanh", "tf32", 90, 16),
          ("grid", "lstm", "bfloat16", 90, 16)]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize(("form", "kind", "dtype", "hidden", "registers"), BEYOND, ids=str)
def test_weights_beyond_the_registers_are_shared_memorys(
    form: str, kind: str, dtype: str, hidden: int, registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cuda.device import simulated

    monkeypatch.setattr(persistent, "REGISTERS", registers)
    monkeypatch.setattr(persistent, "BESIDE", registers)
    monkeypatch.setattr(forms, "choose", small_plan(form, 1))
    cell = kind.partition("-")[0]
    beyond = [small_plan(form, 1)(cell, way, dtype, hidden, 5, 4, SimpleNamespace(chip=LARGE, holds=lambda _: True))
              for way in (False, True)]  # fmt: skip
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
    from tests.cuda.device import simulated

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
    from tests.cuda.device import simulated

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
    from tests.cuda.device import simulated

    with simulated(chip=CHIPS[90]) as device:
        check(case_of(kind, 20, 2), "float32", device)


# Mistakes in a copy of the sources: the form, the text, what stands there then, and how it shows.
PLANTED = {
    "no wait for the other blocks": ("grid", "while (load_acquire(arrived) < met)", "while (false)", "race"),
    "arrival without release": ("grid", "add_release(arrived, 1u)", "atomicAdd(arrived, 1u)", "race"),
    "arrival before the block is done": ("grid", "__syncthreads();\n        if (threadIdx.x == 0) add_release(arrived",
                                         "if (threadIdx.x == 0) add_release(arrived", "race"),
    "tile read before it is there": ("grid", "__syncthreads();\n        return tile;", "return tile;", "race"),
    "sums read before they are there": ("grid", "__syncthreads();\n            each(pass", "each(pass", "race"),
    "tile not cleared": ("grid", "memory[n] = word_of(0);", "{}", "wrong"),
    "copies not waited for": ("grid", "cp_async_wait<0>();", "", "misuse|wrong"),
    "operand of another step": ("grid", "op + step.before * batch", "op + step.after * batch", "race|wrong|memory"),
    "rows and columns swapped": ("grid", "(row + lane() / WARP_COLUMNS) *", "(row + lane() % WARP_COLUMNS) *", "race|wrong"),
    "state not carried": ("grid", "if (!over) state[0] = after;", "", "wrong"),
    "counters not put back": ("grid", "store_release(arrived, 0u);", "", "race|wrong"),
    "no wait for what is sent": ("cluster", "if (s > 0) mbarrier_wait(full + s % 2, (s - 1) / 2 % 2);", "", "race"),
    "no wait for who reads": ("cluster", "if (s > 0) mbarrier_wait(empty + turn, (s - 1) / 2 % 2);", "", "race"),
    "the other phase": ("cluster", "full + s % 2, (s - 1) / 2 % 2", "full + s % 2, (s + 1) / 2 % 2", "race|deadlock|wrong"),
    "bytes that nobody sends": ("cluster", "ROWS * SENT * sizeof(WORD)", "ROWS * SENT * sizeof(WORD) + 16", "deadlock"),
    "one tile": ("cluster", "int turn = (s + 1) % 2;", "int turn = 0;", "race|deadlock|wrong"),
    "sent before it is made": ("cluster", "__syncthreads();\n        if (threadIdx.x == 0) mbarrier",
                               "if (threadIdx.x == 0) mbarrier", "race"),
    "blocks that have not begun": ("cluster", "        cluster_sync();\n", "", "misuse|race|memory"),
}  # fmt: skip


def plant(text: str, other: str, file: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From here on kernels of `file` are built from sources that have `other` where `text` stands, in one place."""
    from tests.cuda import device as devices

    found = 0
    for path in (*cuda.FOLDER.glob("*.cu"), *cuda.FOLDER.glob("*.cuh")):
        source = path.read_text()
        found += source.count(text)
        (folder / path.name).write_text(source.replace(text, other))
    assert found == 1, f"{found} places for {text!r}"
    whole = devices.module

    @cache
    def module(name: str, macros: tuple[str, ...], orders: tuple[str, ...]) -> Module:
        return Module(folder / f"{file}.cu", macros, orders=orders) if name == file else whole(name, macros, orders)

    monkeypatch.setattr(devices, "module", module)


@needs_compiler
@pytest.mark.parametrize("mistake", PLANTED)
def test_planted_mistakes_turn_red(mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.cuda.device import simulated

    form, text, other, kinds = PLANTED[mistake]
    plant(text, other, "persistent", monkeypatch, tmp_path)
    monkeypatch.setattr(forms, "choose", small_plan(form, 2))
    monkeypatch.setattr(forms, "overlap", lambda *_: None)
    case = dataclasses.replace(case_of("lstm", 33, 2), bidirectional=False)
    with simulated(chip=SMALL) as device, pytest.raises((KernelError, AssertionError)) as error:
        check(dataclasses.replace(case, layers=2), "float32", device)
    kind = error.value.kind if isinstance(error.value, KernelError) else "wrong"
    assert re.fullmatch(kinds, kind), str(error.value)


def chosen(chip: Chip, cell: str, backward: bool, dtype: str, hidden: int, form: str) -> Plan | None:
    return forms.choice(cell, backward, dtype, hidden, 64, 100, chip, form).plan


def instances() -> list[tuple[str, int, str, bool, str, int]]:
    """(form, architecture, cell, backward, dtype, H) whose plan at B=64 is compiled."""
    ways = (False, True)
    found = [("grid", 90, cell, way, dtype, 256) for cell in CELLS for dtype in MACROS for way in ways]
    found += [("cluster", 90, cell, way, dtype, 256) for cell in ("lstm", "gru") for dtype in MACROS for way in ways]
    found += [("grid", 90, "lstm", way, dtype, 1024) for dtype in ("float32", "bfloat16") for way in ways]
    found += [("cluster", 90, "lstm", way, "bfloat16", 512) for way in ways]  # sixteen blocks
    found += [("grid", 90, "lstm", way, "bfloat16", 1536) for way in ways]  # from here on some in shared memory
    found += [("grid", 90, cell, way, dtype, 1088) for cell, dtype in (("lstm", "float32"), ("gru", "tf32")) for way in ways]
    found += [("cluster", 90, "lstm", way, dtype, 384) for dtype in ("float32", "tf32") for way in ways]
    found += [("grid", 86, "lstm", False, "float32", 704), ("grid", 80, "gru", True, "float16", 1664)]
    found += [("block", 90, "rnn", way, dtype, 128) for dtype in ("float32", "tf32") for way in ways]
    found += [("grid", chip, "lstm", way, dtype, 256) for chip in (80, 86) for dtype in MACROS for way in ways]
    found += [("grid", 75, "gru", True, dtype, 128) for dtype in ("float32", "float16")]
    return found + [("cluster" if chip > 90 else "grid", chip, "lstm", False, "float16", 256) for chip in (89, 100, 120)]


@needs_nvrtc
@pytest.mark.parametrize(("form", "architecture", "cell", "backward", "dtype", "hidden"), instances())
def test_weights_stay_in_registers(
    form: str, architecture: int, cell: str, backward: bool, dtype: str, hidden: int
) -> None:
    plan = chosen(CHIPS[architecture], cell, backward, dtype, hidden, form)
    assert plan is not None
    assert plan.form == form
    usage = nvrtc.compile_cubin(cuda.FOLDER / "persistent.cu", plan.macros, architecture)
    assert list(usage) == [plan.kernel]
    used = usage[plan.kernel]
    assert used.spilled == used.stack == 0, f"{plan}: {used}"
    assert used.shared <= persistent.STATIC
    assert plan.registers < used.registers <= 65536 // plan.threads


def test_shared_memory_reaches_further_than_registers() -> None:
    def most(form: str, cell: str, backward: bool, dtype: str, shared: bool) -> int:
        found = (plan for hidden in range(128, 2305, 128) for plan in plans(cell, backward, dtype, hidden, 16, CHIPS[90]))
        return max(plan.hidden for plan in found if plan.form == form and (shared or not plan.shared_weights))

    assert [most("grid", "lstm", False, "bfloat16", shared) for shared in (False, True)] == [1024, 2048]
    assert [most("grid", "gru", True, "float32", shared) for shared in (False, True)] == [1024, 1408]
    assert [most("cluster", "lstm", False, "float32", shared) for shared in (False, True)] == [256, 512]
    assert all(plan.registers <= persistent.BESIDE for plan in plans("lstm", False, "float32", 512, 16, CHIPS[90])
               if plan.shared_weights)  # fmt: skip


# Mistakes with weights in shared memory: which of BEYOND shows them, the text, and what stands there then.
SHARED = {
    "fragments of another thread": (3, "reinterpret_cast<uint4*>(memory) + threadIdx.x", "reinterpret_cast<uint4*>(memory)"),
    "fragments not all multiplied": (3, "for (int s = KEPT; s < STEPS; s += 2)", "for (int s = KEPT; s < STEPS - 2; s += 2)"),
    "weights of another thread": (0, "rest = memory + threadIdx.x * WIDE;", "rest = memory + threadIdx.x % 32 * WIDE;"),
    "weights not all multiplied": (0, "int i = KEPT; i < OWN; i += WIDE)", "int i = KEPT + WIDE; i < OWN; i += WIDE)"),
    "the operand of other weights": (1, "read(from + r * STRIDE + i * 32, x[r]);", "read(from + r * STRIDE, x[r]);"),
    "weights in the place of sums": (1, "Neighbour::words() + Weights::words());", "Neighbour::words());"),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("mistake", SHARED)
def test_planted_mistakes_with_shared_weights_turn_red(mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    which, text, other = SHARED[mistake]
    plant(text, other, "persistent", monkeypatch, tmp_path)
    with pytest.raises((KernelError, AssertionError)) as error:
        test_weights_beyond_the_registers_are_shared_memorys(*BEYOND[which], monkeypatch)
    assert "no plan" not in str(error.value)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=map(str, CHIPS))
def test_plans_fit_the_device_and_cover_the_layer(chip: Chip) -> None:
    count = 0
    for cell, backward, dtype, hidden, batch in [
        (cell, backward, dtype, hidden, batch) for cell in CELLS for backward in (False, True) for dtype in MACROS
        for hidden in (1, 33, 256, 1000, 5000) for batch in (1, 17, 64, 5000)
    ]:  # fmt: skip
        for plan in plans(cell, backward, dtype, hidden, batch, chip):
            count += 1
            if plan.form == "grid":
                assert plan.blocks <= chip.multiprocessors
            else:
                most = 16 if chip.capability in (90, 100) else 8
                assert plan.grid[0] in ((1,) if plan.form == "block" else [n for n in (2, 4, 8, 16) if n <= most])
                assert plan.form == "block" or chip.capability >= 90
            assert plan.shared + persistent.STATIC <= chip.shared_bytes
            assert plan.registers <= 128
            assert plan.grid[0] * plan.units >= hidden
            assert plan.grid[1] * plan.passes * plan.rows >= batch
            assert plan.depth >= hidden * (CELLS[cell][1] if backward else 1)
            assert plan.depth % (32 * plan.depth_warps) == 0
            assert plan.units * (1 if backward else CELLS[cell][0]) <= plan.column_warps * plan.warp_columns
    assert count > 100
    assert not list(plans("lstm", False, "float32", 5000, 1, chip))  # 400 MB of weights
    assert not list(plans("lstm", False, "float64", 64, 1, chip))
    if chip.capability < 80:
        assert not list(plans("lstm", False, "bfloat16", 64, 1, chip))


def test_what_a_kernel_declares_has_room_beside_its_plan() -> None:
    shape = ("lstm", False, "float32", 256, 64)
    for layers in (1, 2):
        largest = max(plans(*shape, CHIPS[90], layers=layers), key=lambda plan: plan.shared)
        room = dataclasses.replace(CHIPS[90], shared_bytes=largest.shared + persistent.STATIC)
        assert largest in plans(*shape, room, layers=layers)
        assert largest not in plans(*shape, dataclasses.replace(room, shared_bytes=room.shared_bytes - 1), layers=layers)


def test_what_forces_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = CHIPS[90]
    assert forms.choice("lstm", False, "float32", 256, 64, 100, chip).form != "general"
    assert forms.choice("lstm", False, "float32", 256, 64, 100, chip, "general").form == "general"
    assert forms.choice("lstm", False, "float32", 5000, 64, 100, chip, "grid").form == "general"
    assert "us a step" in str(forms.choice("lstm", False, "float32", 256, 64, 100, chip, "grid"))
    monkeypatch.setenv("FASTLSTM_CUDA_FORM", "gird")
    with pytest.raises(ValueError, match="FASTLSTM_CUDA_FORM is 'gird'; expected one of general, grid, cluster, block"):
        forms.forced()


def test_the_choice_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlstm import cuda as engines
    from tests.cuda.device import simulated

    with simulated(chip=CHIPS[90]):
        best, *others = engines.explain("lstm", 256, 64)
        monkeypatch.setattr(cuda, "count", lambda: 1)
        two, apart = engines.explain("lstm", 256, 64, layers=2)
        assert two.startswith("wave of two layers, grid: about")
        assert apart.startswith("one by one: about")
        assert engines.describe() == {"cuda:0": {"name": "simulated", "LSTM, H=256, B=64": best, "two such layers": two}}
        assert len({line.partition(":")[0] for line in (best, *others)}) == len(others) + 1 >= 3
        monkeypatch.setenv("FASTLSTM_CUDA_FORM", "general")
        assert engines.explain("lstm", 256, 64)[0].startswith("general: about")
        with pytest.raises(ValueError, match="cell is 'transformer'"):
            engines.explain("transformer", 256, 64)


def test_the_next_best_serves_where_the_best_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cuda.device import SimulatedDevice, simulated

    shape = ("lstm", False, "bfloat16", 512, 16)
    with simulated(chip=CHIPS[90]) as device:
        best = forms.choose(*shape, 100, device)
        assert best is not None
        assert (best.form, best.grid[0]) == ("cluster", 16)
        monkeypatch.setattr(SimulatedDevice, "holds", lambda _, plan: plan.form != "cluster")
        second = forms.choose(*shape, 100, device)
        assert second is not None
        assert second.form == "grid"


@needs_compiler
@pytest.mark.parametrize("why", ["no room", "forced"])
def test_the_general_form_serves_where_blocks_cannot_all_be_resident(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cuda.device import SimulatedDevice, simulated

    if why == "forced":
        monkeypatch.setenv("FASTLSTM_CUDA_FORM", "general")
    else:
        monkeypatch.setattr(SimulatedDevice, "holds", lambda *_: False)
    case = dataclasses.replace(case_of("lstm", 7, 1), bidirectional=False)
    with simulated(chip=SMALL) as device:
        layer = case.layer("float32", "cuda")
        got, masks = case.results(layer)
        cases.check(case, got, case.wanted(layer, masks), "float32")
        assert "lstm_forward" in device.launched


def test_a_source_has_all_that_it_includes_once() -> None:
    source = cuda.source("persistent")
    assert "#include" not in source
    assert source.count("struct Grid") == source.count("#define PTX ") == source.count("typedef long long i64") == 1



@needs_compiler
@pytest.mark.parametrize(("cell", "dtype"), [("lstm", "float32"), ("gru", "bfloat16"), ("rnn", "tf32")])
def test_the_benchmark_of_forms(cell: str, dtype: str) -> None:
    from benchmarks import forms as benchmark
    from tests.cuda.device import simulated

    def clock(run: Any) -> float:
        run(0)
        return 1.0

    with simulated(chip=SMALL):
        found = benchmark.measure(cell, 8, 3, 2, dtype, clock)
    assert {"general", "grid", "block"} <= set(found["forms"])
    assert found["forms"]["grid"]["backward"]["us per step"] == 500
    assert found["choices"]["forward"] | {"fastest": "block"} == {"chosen": "block", "fastest": "block", "lost": 1.0}


@needs_compiler
def test_the_benchmark_times_no_form_in_place_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import forms as benchmark
    from tests.cuda.device import SimulatedDevice, simulated

    shape = ("lstm", 8, 3, 2, "float32", lambda run: run(0) or 1.0)
    monkeypatch.setattr(SimulatedDevice, "holds", lambda _, plan: plan.form != "block" or not plan.backward)
    with simulated(chip=SMALL) as device:
        found = benchmark.measure(*shape)
        assert set(found["forms"]) == {"general", "grid", "cluster"}, "no room for blocks alone backward"
        assert found["choices"]["forward"] == {"chosen": "block"}, "chosen, but not timed"
        assert found["choices"]["backward"]["chosen"] == "cluster"
        monkeypatch.setattr(benchmark, "broken", {"cluster"})
        found = benchmark.measure(*shape)
        assert set(found["forms"]) == {"general", "grid"}
        assert found["choices"]["backward"]["chosen"] == "grid"
        with benchmark.without_broken(device):
            served = forms.choose("lstm", True, "float32", 8, 3, 2, device)
        assert served is not None
        assert served.form == "grid"
        benchmark.broken.add("general")
        assert benchmark.measure(*shape)["left out"]
