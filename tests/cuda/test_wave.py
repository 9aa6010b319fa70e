"""Two layers in one launch: results against the reference on the simulator, registers by NVRTC, when they go together."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm.kernels.device import forms, persistent
from fastlstm.kernels.device.persistent import CELLS, MACROS, Chip, Plan, plans
from fastlstm.runtime.arrays import as_numpy
from tests.cuda.one_launch import BOUNDS, CHIPS, assert_in_registers, needs_compiler, needs_nvrtc, plant
from tests.cuda.simulator.simulator import ORDERS, KernelError
from tests.support import cases

SMALL = Chip(90, 12, 160 << 10)  # few multiprocessors, so that several passes are needed
# Of a form, kind and precision: units, and into how many parts the depth is split among the warps.
KINDS = [
    ("grid", "lstm", "float32", 33, 1),
    ("grid", "gru", "float32", 20, 2),
    ("grid", "rnn-relu", "tf32", 33, 2),
    ("grid", "lstm", "bfloat16", 33, 2),
    ("cluster", "lstm", "float32", 33, 2),
    ("cluster", "gru", "bfloat16", 33, 1),
    ("cluster", "rnn-tanh", "float32", 50, 1),
    ("block", "lstm", "float32", 7, 1),
    ("block", "gru", "float16", 7, 2),
    ("block", "rnn-tanh", "tf32", 33, 4),
]
# Steps, rows, layers, and what else: lengths, resets, states.
CALLS = [(1, 1, 2, False, "none"), (3, 17, 2, False, "both"), (4, 5, 3, True, "both"), (5, 9, 4, True, "none")]


def small_wave(form: str, depth_warps: int, split: bool = False) -> Any:
    """A choice of one tile for all batches, so that few instances are built."""

    def wave(cell: str, backward: bool, dtype: str, hidden: int, batch: int, chip: Chip) -> forms.Estimate:
        for plan in plans(cell, backward, dtype, hidden, batch, chip, layers=2):
            if plan.form == form and plan.rows == 8 and plan.depth_warps == depth_warps and plan.split == split:
                return forms.persistent(plan, chip)
        raise AssertionError(f"no plan for {cell} {dtype} H={hidden} B={batch}")

    return wave


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTLSTM_CUDA_FORM", "wave")


def case_of(kind: str, hidden: int, call: int) -> cases.Case:
    steps, batch, layers, marked, state = CALLS[call]
    return cases.Case(
        kind,
        100 * hidden + call,
        steps,
        batch,
        5,
        hidden,
        layers=layers,
        lengths=marked,
        resets=marked,
        state=state,
        dstate=state,
    )


def check(case: cases.Case, dtype: str, device: Any) -> None:
    layer = case.layer(dtype, "cuda")
    device.launched.clear()
    got, masks = case.results(layer)
    launched = [name for name in device.launched if "forward" in name or "backward" in name]
    alone = ["lstm", "gru", "rnn"] if case.layers % 2 else []
    for way in ("forward", "backward"):
        assert launched.count(f"wave_{way}") == case.layers // 2
        assert any(f"{cell}_{way}" in launched for cell in alone) == bool(alone)
    want = case.wanted(layer, masks)
    scale = max(float(np.abs(array).max()) for array in want.values())
    for name, array in want.items():
        off = cases.error(got[name], array) if dtype == "float32" else cases.coarse_error(got[name], array, scale)
        assert off < BOUNDS[dtype], f"{name} is off by {off:.1e} in {dtype}: {case}"
    again, _ = case.results(layer)
    same = [np.array_equal(again[name], got[name]) for name in got if not name.startswith(("weight", "bias"))]
    assert len(same) > 2 and all(same), "a second launch differs"  # noqa: PT018
    given = case.data("float32").given
    out, _ = layer(given.x, case.pair(given), lengths=given.lengths, resets=given.resets)
    assert np.array_equal(as_numpy(out), got["out"]), "inference differs from training"


@needs_compiler
@pytest.mark.parametrize(("form", "kind", "dtype", "hidden", "parts"), KINDS, ids=str)
def test_waves_agree_with_the_reference(
    form: str, kind: str, dtype: str, hidden: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cuda.simulator.device import simulated

    monkeypatch.setattr(forms, "wave", small_wave(form, parts))
    for call in range(len(CALLS)):
        with simulated(chip=SMALL) as device:
            check(case_of(kind, hidden, call), dtype, device)


@needs_compiler
def test_waves_of_split_products_agree_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cuda.simulator.device import simulated

    monkeypatch.setattr(forms, "wave", small_wave("cluster", 2, split=True))
    with simulated(chip=SMALL) as device:
        check(case_of("lstm", 33, 1), "float32", device)


@needs_compiler
@pytest.mark.parametrize(("kind", "dtype", "registers"), [("gru", "float32", 16), ("gru", "bfloat16", 32)])
def test_weights_of_both_products_beyond_the_registers(
    kind: str, dtype: str, registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cuda.simulator.device import simulated

    monkeypatch.setattr(persistent, "REGISTERS", registers)
    monkeypatch.setattr(persistent, "BESIDE", registers)
    monkeypatch.setattr(forms, "wave", small_wave("grid", 1))
    chip = Chip(90, 48, 227 << 10)
    found = [small_wave("grid", 1)(kind, way, dtype, 90, 5, chip).plan for way in (False, True)]
    assert any(plan.shared_weights for plan in found if plan)
    with simulated(chip=chip) as device:
        check(dataclasses.replace(case_of(kind, 90, 2), layers=2), dtype, device)


@needs_compiler
@pytest.mark.parametrize(("form", "kind", "parts"), [("grid", "lstm", 2), ("cluster", "gru", 1), ("block", "rnn-tanh", 1)])
def test_results_do_not_depend_on_the_order_of_threads(
    form: str, kind: str, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cuda.simulator.device import simulated

    monkeypatch.setattr(forms, "wave", small_wave(form, parts))
    with simulated(ORDERS, SMALL) as device:
        check(case_of(kind, 7 if form == "block" else 33, 1), "float32", device)


@needs_compiler
def test_tokens_by_their_table_and_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    import fastlstm
    from tests.cuda.simulator.device import simulated

    monkeypatch.setattr(forms, "wave", small_wave("grid", 1))
    ids, targets = np.random.default_rng(0).integers(0, 5, (2, 4, 3))
    losses = {}
    with simulated(chip=SMALL) as device:
        for place in ("cuda", "cpu"):
            model = fastlstm.LanguageModel(5, hidden_size=7, num_layers=2, seed=3, device=place)
            trainer = fastlstm.Trainer(model, progress=False)
            losses[place] = [trainer.step(ids, targets) for _ in range(3)]
    assert {"wave_forward", "wave_backward"} <= set(device.launched)
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-5)


# Mistakes in a copy of the sources: the form, the text, what stands there then, and how it shows.
PLANTED = {
    "no wait for the first layer": ("grid", "while (load_acquire(made) <", "while (false && load_acquire(made) <", "race"),
    "a wait for the step before": ("grid", "(s + 1) * gridDim.x", "s * gridDim.x", "race"),
    "a wait for one block of them": ("grid", "(s + 1) * gridDim.x", "(s + 1)", "race"),
    "told before it is made": (
        "block",
        "__syncthreads();\n        if (threadIdx.x == 0) add_release(made",
        "if (threadIdx.x == 0) add_release(made",
        "race",
    ),
    "told without release": ("grid", "add_release(made, 1u)", "atomicAdd(made, 1u)", "race"),
    "last step not told": ("grid", "neighbour.give();", "if (s + 1 < cell.steps) neighbour.give();", "deadlock"),
    "tile before it is there": ("grid", "__syncthreads();\n        weights.multiply(tile", "weights.multiply(tile", "race"),
    "weights of the other layer": ("grid", "second ? weights_2 : weights_1", "weights_1", "wrong"),
    "states of the other layer": ("grid", "second ? CELL(_2) : first", "first", "wrong|race"),
    "h of the step before": (
        "block",
        "offered(const Step& step) const { return op.from(step.after",
        "offered(const Step& step) const { return op.from(step.before",
        "wrong",
    ),
    "gates less the product": ("cluster", "read.x[gate] += sums[gate]", "read.x[gate] -= sums[gate]", "wrong"),
    "gradient less the product": ("grid", "read.dout += sums[0]", "read.dout -= sums[0]", "wrong"),
    "sums of both products in one place": (
        "block",
        "neighbour.multiply(sums + PRODUCT)",
        "neighbour.multiply(sums)",
        "race|wrong",
    ),
    "copy not waited for": (
        "block",
        "        copy.end();\n        __syncthreads();",
        "        __syncthreads();",
        "misuse|wrong",
    ),
    "steps not counted from zero again": ("grid", "        store_release(made, 0u);\n", "", "race|wrong"),
    "parts not counted from zero again": (
        "block",
        "if (mine == gridDim.y - 1) add_release(begun, 0u - gridDim.y);",
        "",
        "deadlock|memory|race|wrong",
    ),
}


@needs_compiler
@pytest.mark.parametrize("mistake", PLANTED)
def test_planted_mistakes_turn_red(mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.cuda.simulator.device import simulated

    form, text, other, kinds = PLANTED[mistake]
    plant(text, other, "device/wave", monkeypatch, tmp_path)
    monkeypatch.setattr(forms, "wave", small_wave(form, 2))
    case = dataclasses.replace(case_of("lstm", 7 if form == "block" else 33, 2), layers=2)
    with simulated(ORDERS, SMALL) as device, pytest.raises((KernelError, AssertionError)) as error:
        check(case, "float32", device)
    kind = error.value.kind if isinstance(error.value, KernelError) else "wrong"
    assert re.fullmatch(kinds, kind), str(error.value)


def instances() -> list[tuple[str, int, str, bool, str, int]]:
    """(form, architecture, cell, backward, dtype, H) whose plan at B=16 is compiled."""
    ways = (False, True)
    found = [("grid", 90, cell, way, dtype, 256) for cell in CELLS for dtype in MACROS for way in ways]
    found += [("grid", 86, "lstm", way, dtype, 256) for dtype in MACROS for way in ways]
    found += [("cluster", 90, cell, way, "bfloat16", 256) for cell in ("lstm", "gru") for way in ways]
    found += [("cluster", 90, "rnn", way, "float32", 256) for way in ways]
    found += [("grid", 90, cell, way, "bfloat16", 768) for cell in ("lstm", "gru") for way in ways]  # some in shared memory
    found += [("block", 90, "gru", way, dtype, 64) for dtype in ("float32", "tf32") for way in ways]
    return [*found, ("grid", 80, "lstm", False, "float32", 256), ("grid", 75, "gru", False, "float16", 64)]


def best(form: str, cell: str, backward: bool, dtype: str, hidden: int, batch: int, chip: Chip) -> Plan:
    """The cheapest wave of a form."""
    found = [plan for plan in plans(cell, backward, dtype, hidden, batch, chip, layers=2) if plan.form == form]
    return min(found, key=lambda plan: forms.persistent(plan, chip).step)


@needs_nvrtc
@pytest.mark.parametrize(("form", "architecture", "cell", "backward", "dtype", "hidden"), instances())
def test_weights_of_both_products_stay_in_registers(
    form: str, architecture: int, cell: str, backward: bool, dtype: str, hidden: int
) -> None:
    plan = best(form, cell, backward, dtype, hidden, 16, CHIPS[architecture])
    assert_in_registers("device/wave", plan, architecture)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=map(str, CHIPS))
def test_plans_fit_the_device(chip: Chip) -> None:
    count = 0
    for cell, backward, dtype, hidden, batch in [
        (cell, backward, dtype, hidden, batch)
        for cell in CELLS
        for backward in (False, True)
        for dtype in MACROS
        for hidden in (1, 33, 256, 1000)
        for batch in (1, 64, 5000)
    ]:
        for plan in plans(cell, backward, dtype, hidden, batch, chip, layers=2):
            count += 1
            assert plan.form != "grid" or plan.blocks <= chip.multiprocessors, "blocks that wait for each other"
            assert plan.registers <= 128
            assert plan.shared + persistent.STATIC <= chip.shared_bytes
            assert plan.counters <= 256
            assert plan.grid[1] == 2 * plan.groups
            assert plan.groups * plan.rows * plan.passes >= batch
            twin = dataclasses.replace(plan, layers=1)
            assert plan.registers == 2 * twin.registers
            assert plan.shared > twin.shared
    assert count > 100


def test_layers_are_taken_together_where_that_is_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cuda.simulator.device import SimulatedDevice, simulated

    monkeypatch.delenv("FASTLSTM_CUDA_FORM")
    taken, by_model = {}, {}
    with simulated(chip=CHIPS[90]) as device:
        for dtype in ("float32", "bfloat16"):
            for hidden in (64, 256, 512, 1024):
                for batch in (1, 64):
                    shape = ("lstm", False, dtype, hidden, batch)
                    wave = forms.wave(*shape, device.chip)
                    taken[shape] = forms.overlap(*shape, 100, device)
                    apart = forms.one_by_one(*shape, 100, device.chip)
                    by_model[shape] = wave is not None and wave.seconds(100) < apart
        assert {shape: plan is not None for shape, plan in taken.items()} == by_model
        assert len(set(by_model.values())) == 2, "both must happen"
        shape = next(shape for shape, plan in taken.items() if plan)
        for form in forms.FORMS[:-1]:
            monkeypatch.setenv("FASTLSTM_CUDA_FORM", form)
            assert forms.overlap(*shape, 100, device) is None
        monkeypatch.setenv("FASTLSTM_CUDA_FORM", "wave")
        shape = next(shape for shape, plan in taken.items() if not plan and forms.wave(*shape, device.chip))
        assert forms.overlap(*shape, 100, device) is not None
        monkeypatch.setattr(SimulatedDevice, "holds", lambda *_: False)
        assert forms.overlap(*shape, 100, device) is None, "they are not resident all at once"


@needs_compiler
@pytest.mark.parametrize("why", ["dropout", "two directions", "another GRU", "no room"])
def test_layers_go_one_by_one_where_they_must(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cuda.simulator.device import SimulatedDevice, simulated

    if why == "no room":
        monkeypatch.setattr(SimulatedDevice, "holds", lambda *_: False)
    case = dataclasses.replace(
        case_of("gru-original" if why == "another GRU" else "lstm", 7, 1), bidirectional=why == "two directions"
    )
    with simulated(chip=SMALL) as device:
        layer = case.layer("float32", "cuda")
        if why == "dropout":
            layer = type(layer)(5, 7, 2, dropout=0.5, device="cuda", seed=0)
            layer.forward_train(case.data("float32").given.x)[2](np.ones((3, 17, 7), np.float32))
        else:
            got, masks = case.results(layer)
            cases.check(case, got, case.wanted(layer, masks), "float32")
    assert not [name for name in device.launched if name.startswith("wave")]


@needs_compiler
def test_the_benchmark_of_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import forms as benchmark
    from benchmarks.gpu import run as gpu
    from tests.cuda.simulator.device import SimulatedDevice, simulated

    ran = []

    def clock(run: Any) -> float:
        run(0)
        ran.append("wave_forward" in device.launched)
        device.launched.clear()
        return 2.0 if len(ran) < 3 else 1.0

    monkeypatch.setenv("FASTLSTM_CUDA_FORM", "general")
    monkeypatch.setattr(forms, "wave", small_wave("grid", 1))
    with simulated(chip=SMALL) as device:
        found = benchmark.waves("gru", 7, 3, 2, "float32", clock)
        for form in ("wave", "grid"):
            monkeypatch.setattr(benchmark, "broken", {(form, "float32")})
            assert benchmark.waves("gru", 7, 3, 2, "float32", clock) == {"left out": f"broken: {form} float32"}
        monkeypatch.setattr(benchmark, "broken", set())
        with monkeypatch.context() as less:
            less.setattr(SimulatedDevice, "holds", lambda _, plan: plan.layers == 1 or not plan.backward)
            assert "cannot hold" in benchmark.waves("gru", 7, 3, 2, "float32", clock)["left out"]
        monkeypatch.setattr(forms, "wave", lambda *_: None)
        assert benchmark.waves("gru", 7, 3, 2, "float32", clock)["left out"]
    assert ran == [False, False, True, True]
    assert found["error"] < 1e-5
    assert found["chosen at once"] == {"forward": False, "backward": False}
    assert found["at once"]["expected of the steps"]["inference"] > 0
    assert gpu.line("waves", "gru", found).endswith("2.00x  WRONG CHOICE")


@needs_compiler
def test_the_check_of_waves_is_of_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import checks
    from tests.cuda.simulator.device import SimulatedDevice, simulated

    kinds = ("lstm", "gru", "rnn-tanh", "rnn-relu")
    for kind in kinds:
        drawn = checks.cases_for("wave", kind, 1)
        assert len(drawn) == 2
        assert all(case.layers > 1 and not case.bidirectional for case in drawn)
    monkeypatch.setattr(forms, "wave", small_wave("grid", 1))
    stacks = {
        kind: [dataclasses.replace(case_of(kind, 7, call), layers=layers) for call, layers in ((0, 1), (1, 2), (2, 3))]
        for kind in kinds
    }
    monkeypatch.setattr(cases, "CASES", stacks)
    with simulated(chip=SMALL) as device:
        found = checks.check_form("wave", "float32", 1)
        assert device.launched.count("wave_forward") == device.launched.count("wave_backward") == 8
        assert set(found) == {"errors"}
        assert set(found["errors"]) == set(kinds)
        assert set(checks.check_form("general", "float32", 1)["errors"]) == set(kinds)
        monkeypatch.setattr(SimulatedDevice, "holds", lambda _, plan: plan.cell != "gru")
        found = checks.check_form("wave", "float32", 1)
    assert set(found["errors"]) == {*kinds} - {"gru"}
    assert found["left out"] == "wave form served no case of gru"
