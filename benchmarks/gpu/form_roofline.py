"""Prints the least time of a recurrence's step on a GPU, in each form: `python -m benchmarks.gpu.form_roofline [--gpu H200]
[--all]`.

The table has barriers, bytes and operations, the floor that follows from them (benchmarks/gpu/floors.py), and the time that the
cost model expects (kernels/device/forms.py). If benchmarks/results/gpu-*.json has the device, the table also has the measured
time and the floor's share of it; otherwise it says that all times are estimates. It needs no GPU. --pictures draws times over
hidden size with their floors, and a map of the form that is chosen for each shape, with a frame around a choice that was
measured to be wrong.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import floors, forms
from benchmarks.gpu.floors import GPUS
from benchmarks.gpu.form_pictures import WAYS, draw_choices, draw_times
from benchmarks.measure.record import RESULTS, gpu_files
from benchmarks.report.tables import table
from fastlstm.kernels.device import forms as device_forms

HEAD = [
    "",
    "form",
    "barriers",
    "operand, KiB",
    "arrays, KiB",
    "operations, M",
    "floor, us",
    "bound by",
    "expected, us",
    "measured, us",
    "floor / measured",
]


def estimated(cell: str, hidden: int, rows: int, steps: int, dtype: str, gpu: floors.Gpu) -> dict[str, Any]:
    """Return a point as `forms.measure` does, but without measurements."""
    found: dict[str, Any] = {}
    choices = {}
    for way in WAYS:
        shape = (cell, way == "backward", dtype, hidden, rows)
        for one in device_forms.estimates(*shape, gpu.chip):
            found.setdefault(one.form, {})[way] = floors.numbers(one, *shape, steps, gpu)
        choices[way] = {"chosen": device_forms.choice(*shape, steps, gpu.chip).form}
    return {"forms": found, "choices": choices}


def measured(gpu: str) -> tuple[str | None, dict[str, Any]]:
    """Return the newest file that has measurements of a device, None if there is none, and the file's points."""
    for path in gpu_files(RESULTS):
        results = json.loads(path.read_text())["results"]
        if set(gpu.split()) <= set(results["machine"]["device"]["device"].replace("-", " ").split()):
            return path.name, {name: one for name, one in results.get("forms", {}).items() if "forms" in one}
    return None, {}


def collected(gpus: list[str]) -> dict[str, Any]:
    """Return, by device, the file of its measurements (None if there are only estimates) and all points."""
    content = {}
    for gpu in gpus:
        file, known = measured(gpu)
        points = {name: known.get(name) or estimated(*shape, GPUS[gpu]) for name, shape in forms.points().items()}
        content[gpu] = {"measured": file, "points": points}
    return content


def title(gpu: str, one: dict[str, Any]) -> str:
    """Return the device's name, and whether its numbers were measured."""
    return f"{gpu}: " + (f"measured ({one['measured']})" if one["measured"] else "estimates only, nothing was measured")


def rows(name: str, point: dict[str, Any]) -> Iterator[list[str]]:
    """Yield a row for each way and form of a point; the chosen form is in bold."""
    for way in WAYS:
        for form, ways in point["forms"].items():
            if way in ways:
                one = ways[way]
                chosen = point["choices"].get(way, {}).get("chosen") == form
                time = one.get("us per step")
                yield [
                    f"{name} {way}",
                    f"**{form}**" if chosen else form,
                    str(one["barriers"]),
                    f"{one['operand'] / 1024:.3g}",
                    f"{one['arrays'] / 1024:.4g}",
                    f"{one['operations'] / 1e6:.4g}",
                    f"{one['floor']:.2f}",
                    one["bound"],
                    f"{one['estimated']:.2f}",
                    f"{time:.2f}" if time else "–",
                    f"{one['share']:.0%}" if time else "–",
                ]


def lines(content: dict[str, Any], names: list[str]) -> list[str]:
    """Return tables in Markdown, one for each device."""
    made: list[str] = []
    for gpu, one in content.items():
        body = [row for name in names for row in rows(name, one["points"][name])]
        made += [f"**{title(gpu, one)}**; of each step, the form that is chosen in bold:", *table(HEAD, body), ""]
    return made


def main() -> None:
    """Print the table; write points and draw pictures if the options say so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", nargs="+", choices=GPUS, default=["H200", "RTX 3090"])
    parser.add_argument("--all", action="store_true", help="all shapes, not only those of published figures")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all points")
    parser.add_argument("--pictures", action="store_true", help="draw benchmarks/results/form-*.png")
    o = parser.parse_args()
    content = collected(o.gpu)
    shown = [name for name, (*shape, _) in forms.points().items() if o.all or tuple(shape) in forms.SHAPES]
    print(*lines(content, shown), sep="\n")
    if o.json:
        o.json.write_text(json.dumps(content, indent=1) + "\n")
    if o.pictures:
        for gpu, one in content.items():
            end = f"{gpu.lower().replace(' ', '-')}.png"
            draw_times(one["points"], title(gpu, one), RESULTS / f"form-times-{end}")
            draw_choices(one["points"], title(gpu, one), RESULTS / f"form-choices-{end}")


if __name__ == "__main__":
    main()
