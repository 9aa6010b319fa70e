"""What the tests of recurrences in one launch share: chips, bounds of errors, and mistakes planted in the sources."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from fastlstm.kernels.device import cuda, persistent
from fastlstm.kernels.device.persistent import Chip, Plan
from tests.cuda import compile as nvrtc
from tests.cuda import machine_code
from tests.cuda.simulator import translate
from tests.cuda.simulator.simulator import Module

needs_compiler = pytest.mark.skipif(translate.compiler() is None, reason="needs g++, which builds CUDA kernels for the CPU")
needs_nvrtc = pytest.mark.skipif(nvrtc.missing() is not None, reason=f"needs NVRTC's wheels: pip install {nvrtc.missing()}")

AS_CUPY = "-ftz=true"  # with which CuPy compiles
BOUNDS = {"float32": 1e-5, "tf32": 3e-3, "bfloat16": 1e-2, "float16": 1e-2}
SMALL = Chip(90, 8, 160 << 10)  # few multiprocessors, so that several passes are needed
CHIPS = {
    75: Chip(75, 40, 64 << 10),
    80: Chip(80, 108, 163 << 10),
    86: Chip(86, 82, 99 << 10),
    89: Chip(89, 128, 99 << 10),
    90: Chip(90, 132, 227 << 10),
    100: Chip(100, 148, 227 << 10),
    120: Chip(120, 170, 99 << 10),
}


def plant(text: str, other: str, file: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From here on kernels of `file` are built from sources that have `other` where `text` stands, in one place."""
    from tests.cuda.simulator import device as devices

    found = 0
    for path in (*cuda.FOLDER.rglob("*.cu"), *cuda.FOLDER.rglob("*.cuh")):
        source, target = path.read_text(), folder / path.relative_to(cuda.FOLDER)
        found += source.count(text)
        target.parent.mkdir(exist_ok=True)
        target.write_text(source.replace(text, other))
    assert found == 1, f"{found} places for {text!r}"
    whole = devices.module

    @cache
    def module(name: str, macros: tuple[str, ...], orders: tuple[str, ...]) -> Module:
        return Module(folder / f"{file}.cu", macros, orders=orders) if name == file else whole(name, macros, orders)

    monkeypatch.setattr(devices, "module", module)


def assert_in_registers(file: str, plan: Plan, architecture: int) -> None:
    """A plan's kernel holds its weights in registers, of which there are enough, and declares no more than it may.

    Where there is a disassembler its code is looked at too: no local memory and no arithmetic in double, and in the loop of a
    cluster no fence that the whole GPU takes part in.
    """
    usage, code = nvrtc.compiled(cuda.FOLDER / f"{file}.cu", (AS_CUPY, *plan.macros), architecture)
    assert list(usage) == [plan.kernel]
    used = usage[plan.kernel]
    assert used.spilled == used.stack == 0, f"{plan}: {used}"
    assert used.shared <= persistent.STATIC
    assert plan.registers < used.registers <= 65536 // plan.threads
    if machine_code.disassembler() is None:
        return
    kernel = machine_code.read(code)
    assert len(kernel.code) > 500
    assert not kernel.has(machine_code.SPILL)
    assert not kernel.has(machine_code.DOUBLE)
    if plan.form == "cluster" and plan.layers == 1:
        assert not kernel.step_loop().body.has(machine_code.WHOLE_GPU)
