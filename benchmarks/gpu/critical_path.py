"""Reads from machine code how long a warp works in a step before it sends: `python -m benchmarks.gpu.critical_path`.

It needs no GPU. It counts the instructions and cycles from the top of a step to its first send to other blocks, in the machine
code of the persistent kernels for an H200 (tests/cuda/machine_code.py), at 256 units and 64 rows, for each cell, direction,
precision and form. Waiting for other blocks and for global memory is not counted. The numbers are stored in
benchmarks/results/critical-path.json by section: "now", and "before", of the kernels before they were made shorter.
tests/cuda/test_machine_code.py fails if one grows. --table prints the stored numbers in Markdown.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.measure.record import RESULTS
from fastlstm.kernels.device import cuda, forms
from fastlstm.kernels.device.persistent import CELLS, MACROS, WORD_BYTES, Plan
from tests.cuda import compile as nvrtc
from tests.cuda import machine_code
from tests.cuda.one_launch import AS_CUPY, CHIPS

FILE = RESULTS / "critical-path.json"
H200 = CHIPS[90]
HIDDEN, ROWS, STEPS = 256, 64, 100
FORMS = ("cluster", "grid")
WAYS = ("forward", "backward")


def points() -> dict[str, Plan]:
    """Return the plan of each form for each cell, direction and precision."""
    found = {}
    for form in FORMS:
        for cell in CELLS:
            for way in WAYS:
                for dtype in MACROS:
                    shape = (cell, way == "backward", dtype, HIDDEN, ROWS, STEPS)
                    plan = forms.choice(*shape, H200, form).plan
                    assert plan is not None
                    found[f"{form}, {cell} {way}, {dtype}"] = plan
    return found


def turns(plan: Plan) -> list[int]:
    """Return how often the loops of products run: the loop over weights in shared memory, and the loop over rows."""
    own = plan.depth // plan.depth_warps
    if plan.dtype == "float32" and not plan.split:
        wide = next(n for n in (4, 2, 1) if own // 32 % n == 0)
        each, together = 32 * wide, 32 // plan.warp_columns
    else:
        each, together = 64 // WORD_BYTES[plan.dtype], 8
    return [n for n in ((own - plan.held) // each, plan.rows // together) if n > 1]


def kernel(plan: Plan) -> tuple[nvrtc.Usage, machine_code.Kernel]:
    """Compile a plan's kernel for an H200; return the resources that it takes of a multiprocessor, and its code."""
    usage, code = nvrtc.compiled(cuda.FOLDER / f"{plan.file}.cu", (AS_CUPY, *plan.macros), H200.capability)
    return usage[plan.kernel], machine_code.read(code)


def measure(plan: Plan) -> dict[str, Any]:
    """Count one plan's instructions and cycles up to the first send."""
    usage, code = kernel(plan)
    path = code.step_loop().path(turns(plan))
    blocks, groups, _ = plan.grid
    tile = f"{groups} x {blocks} blocks of {plan.threads} threads, {plan.rows * plan.passes} rows, {plan.units} units"
    return {"instructions": len(path), "cycles": machine_code.cycles(path), "registers": usage.registers, "tile": tile}


def all_points() -> dict[str, dict[str, Any]]:
    """Count those of all plans, two at a time."""
    plans = points()
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(plans, pool.map(measure, plans.values()), strict=True))


def table(content: dict[str, Any]) -> str:
    """Return the stored numbers as a table in Markdown."""
    now, before = content["now"], content["before"]
    lines = [
        f"Cycles of a warp, and its instructions, from the top of a step to its first send; {HIDDEN} units, {ROWS} rows, H200,",
        f"NVRTC {now['nvrtc']}, before {before['nvrtc']}. Read from machine code, not measured; waits for others and global",
        "memory are not in it.",
        "",
        "| form, cell, precision | cycles | before | part | instructions | before | registers |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for name, one in now["points"].items():
        old = before["points"][name]
        lines.append(
            f"| {name} | {one['cycles']:,} | {old['cycles']:,} | {one['cycles'] / old['cycles']:.2f} | "
            f"{one['instructions']:,} | {old['instructions']:,} | {one['registers']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Count, store and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--section", default="now", choices=("now", "before"), help="the name under which the numbers are stored"
    )
    parser.add_argument("--table", action="store_true", help="only print the stored numbers")
    args = parser.parse_args()
    content = json.loads(FILE.read_text()) if FILE.exists() else {}
    if not args.table:
        content[args.section] = {"nvrtc": nvrtc.version(), "points": all_points()}
        FILE.write_text(json.dumps(content, indent=1) + "\n")
    if {"now", "before"} <= set(content):
        print(table(content))


if __name__ == "__main__":
    main()
