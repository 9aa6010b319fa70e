"""The way to a step's first send grows in no persistent kernel; and what reads machine code reads it right."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu import critical_path
from tests.cuda import compile as nvrtc
from tests.cuda import machine_code
from tests.cuda.machine_code import Instruction, cycles, parse
from tests.cuda.one_launch import needs_nvrtc

OTHER = 1.1  # what another compiler may make of the same source
needs_disassembler = pytest.mark.skipif(
    machine_code.disassembler() is None, reason="needs nvdisasm: pip install nvidia-cuda-nvdisasm"
)
KEPT = json.loads(critical_path.FILE.read_text())


@needs_nvrtc
@needs_disassembler
def test_no_way_to_the_first_send_grows() -> None:
    now, found = KEPT["now"], critical_path.all_points()
    room = 1 if nvrtc.version() == now["nvrtc"] else OTHER
    assert set(found) == set(now["points"]), "python -m benchmarks.gpu.critical_path"
    for name, one in found.items():
        kept = now["points"][name]
        for what in ("instructions", "cycles", "registers"):
            assert one[what] <= kept[what] * room, f"{name}: {one[what]} {what} up to the first send, {kept[what]} were kept"


def test_the_way_is_half_of_what_it_was() -> None:
    before, now = KEPT["before"]["points"], KEPT["now"]["points"]
    assert now["cluster, lstm forward, bfloat16"]["cycles"] <= 1100
    for name, one in now.items():
        if name.startswith("cluster"):
            assert one["cycles"] < 0.53 * before[name]["cycles"], name
    assert critical_path.table(KEPT).count("\n") == len(now) + 5


def _line(text: str, stall: int = 1, write: int = 7, read: int = 7, wait: int = 0) -> str:
    control = stall | write << 5 | read << 8 | wait << 11
    return f"    /*0000*/    {text} ;    /* 0x0000000000000000 */\n    /* 0x{control << 41:016x} */\n"


LISTING = "".join(
    [
        _line("MOV R1, R2"),
        ".L_x_1:\n",
        _line("LDS R3, [R1]", stall=2, write=0),
        _line("@!P0 BRA `(.L_x_4)"),
        ".L_x_2:\n",
        _line("FFMA R4, R3, R3, R4", stall=4, wait=1),
        _line("BRA.DIV ~URZ, `(.L_x_1)"),
        _line("@P1 BRA `(.L_x_2)", stall=5),
        ".L_x_4:\n",
        _line("STAS.128 [R6.64], R4"),
        _line("@P2 BRA `(.L_x_1)"),
        _line("MEMBAR.ALL.GPU"),
        _line("DADD R2, R2, R4"),
    ]
)


def test_the_way_through_a_listing() -> None:
    kernel = parse(LISTING)
    loop = kernel.step_loop()
    assert (loop.start, loop.send, loop.end) == (1, 6, 7)
    assert [one.bare.split()[0] for one in loop.path(())] == ["LDS", "BRA", "FFMA", "BRA.DIV", "BRA"]
    assert cycles(loop.path(())) == 30 + 4 + 1 + 5, "30 for what the first reads"
    assert len(loop.path((3,))) == 5 + 2 * 3, "a product three times"
    assert kernel.has(machine_code.WHOLE_GPU) == ["MEMBAR.ALL.GPU"]
    assert not loop.body.has(machine_code.WHOLE_GPU)
    assert len(kernel.has(machine_code.DOUBLE)) == 1
    with pytest.raises(ValueError, match="no loop sends"):
        parse(LISTING.replace("STAS", "STS")).step_loop()


def test_kinds_of_instructions() -> None:
    texts = [
        "@!P0 LDL R1, [R2]",
        "STL.64 [R1], R2",
        "LDG.E R1, [R2]",
        "F2F.F64.F32 R2, R4",
        "MUFU.RCP64H R3, R4",
        "FADD R1, R2, R3",
        "@P0 CCTL.IVALL",
        "MEMBAR.ALL.CTA",
        "@!PT DFMA R2, R4, R6, R8",
    ]
    kernel = machine_code.Kernel(tuple(Instruction(text, 0) for text in texts), {})
    assert kernel.has(machine_code.SPILL) == texts[:2]
    assert kernel.has(machine_code.DOUBLE) == [texts[3], texts[4], texts[8]]
    assert kernel.has(machine_code.WHOLE_GPU) == [texts[6]]
