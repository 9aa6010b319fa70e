"""The forms of a recurrence in one launch: registers by NVRTC, plans that fit their device, the choice, and its benchmark."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fastlstm.kernels.device import cuda, forms, persistent
from fastlstm.kernels.device.persistent import CELLS, MACROS, Chip, Plan, plans
from tests.cuda.one_launch import CHIPS, SMALL, assert_in_registers, needs_compiler, needs_nvrtc
from tests.support import cases


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
def test_weights_stay_in_registers(form: str, architecture: int, cell: str, backward: bool, dtype: str, hidden: int) -> None:
    plan = chosen(CHIPS[architecture], cell, backward, dtype, hidden, form)
    assert plan is not None
    assert plan.form == form
    assert_in_registers("device/persistent", plan, architecture)


def test_shared_memory_reaches_further_than_registers() -> None:
    def most(form: str, cell: str, backward: bool, dtype: str, shared: bool) -> int:
        found = (plan for hidden in range(128, 2305, 128) for plan in plans(cell, backward, dtype, hidden, 16, CHIPS[90]))
        return max(plan.hidden for plan in found if plan.form == form and (shared or not plan.shared_weights))

    assert [most("grid", "lstm", False, "bfloat16", shared) for shared in (False, True)] == [1024, 2048]
    assert [most("grid", "gru", True, "float32", shared) for shared in (False, True)] == [1024, 1408]
    assert [most("cluster", "lstm", False, "float32", shared) for shared in (False, True)] == [256, 512]
    assert all(
        plan.registers <= persistent.BESIDE
        for plan in plans("lstm", False, "float32", 512, 16, CHIPS[90])
        if plan.shared_weights
    )


@pytest.mark.parametrize("chip", CHIPS.values(), ids=map(str, CHIPS))
def test_plans_fit_the_device_and_cover_the_layer(chip: Chip) -> None:
    count = 0
    for cell, backward, dtype, hidden, batch in [
        (cell, backward, dtype, hidden, batch)
        for cell in CELLS
        for backward in (False, True)
        for dtype in MACROS
        for hidden in (1, 33, 256, 1000, 5000)
        for batch in (1, 17, 64, 5000)
    ]:
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
    from fastlstm.runtime import cuda as engines
    from tests.cuda.simulator.device import simulated

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
    from tests.cuda.simulator.device import SimulatedDevice, simulated

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
    from tests.cuda.simulator.device import SimulatedDevice, simulated

    if why == "forced":
        monkeypatch.setenv("FASTLSTM_CUDA_FORM", "general")
    else:
        monkeypatch.setattr(SimulatedDevice, "holds", lambda *_: False)
    case = cases.Case("lstm", 701, 2, 17, 5, 7, state="both", dstate="both")
    with simulated(chip=SMALL) as device:
        layer = case.layer("float32", "cuda")
        got, masks = case.results(layer)
        cases.check(case, got, case.wanted(layer, masks), "float32")
        assert "lstm_forward" in device.launched


def test_the_general_form_serves_more_rows_than_kernels_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cuda.simulator.device import SimulatedDevice

    device, most = SimulatedDevice(chip=CHIPS[90]), (1 << 31) // 64 - 1
    shape = ("lstm", False, "float32", 256, 64)
    assert forms.choose(*shape, most, device) is not None
    assert forms.choose(*shape, most + 1, device) is None
    assert forms.overlap(*shape, most, device) is not None
    assert forms.overlap(*shape, most + 1, device) is None
    monkeypatch.setenv("FASTLSTM_CUDA_FORM", "grid")
    assert forms.choose(*shape, most + 1, device) is None


def test_a_source_has_all_that_it_includes_once() -> None:
    source = cuda.source("device/persistent")
    assert "#include" not in source
    assert source.count("struct Grid") == source.count("#define PTX ") == source.count("typedef long long i64") == 1


@needs_compiler
@pytest.mark.parametrize(("cell", "dtype"), [("lstm", "float32"), ("gru", "bfloat16"), ("rnn", "tf32")])
def test_the_benchmark_of_forms(cell: str, dtype: str) -> None:
    from benchmarks.gpu import forms as benchmark
    from tests.cuda.simulator.device import simulated

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
    from benchmarks.gpu import forms as benchmark
    from tests.cuda.simulator.device import SimulatedDevice, simulated

    shape = ("lstm", 8, 3, 2, "float32", lambda run: run(0) or 1.0)
    monkeypatch.setattr(SimulatedDevice, "holds", lambda _, plan: plan.form != "block" or not plan.backward)
    with simulated(chip=SMALL) as device:
        found = benchmark.measure(*shape)
        assert set(found["forms"]) == {"general", "grid", "cluster"}, "no room for blocks alone backward"
        assert found["choices"]["forward"] == {"chosen": "block"}, "chosen, but not timed"
        assert found["choices"]["backward"]["chosen"] == "cluster"
        monkeypatch.setattr(benchmark, "broken", {("cluster", "float32"), ("block", "tf32")})
        found = benchmark.measure(*shape)
        assert set(found["forms"]) == {"general", "grid"}
        assert found["choices"]["backward"]["chosen"] == "grid"
        with benchmark.without_broken(device):
            served = forms.choose("lstm", True, "float32", 8, 3, 2, device)
        assert served is not None
        assert served.form == "grid"
        benchmark.broken.add(("general", "float32"))
        assert benchmark.measure(*shape)["left out"]
