"""Draws the forms of a recurrence on a GPU: their times over hidden size with the floors, and the form that is chosen for each
shape.

benchmarks/gpu/form_roofline.py calls it with its points. The colours are those of Okabe and Ito, which colour-blind people can
tell apart; forms differ in their markers too.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.gpu.forms import GRID, name
from benchmarks.report.pictures import pyplot, save

COLOURS = {"general": "#777777", "grid": "#0072B2", "cluster": "#D55E00", "block": "#009E73"}
MARKERS = {"general": "s", "grid": "o", "cluster": "^", "block": "D"}
WAYS = ("forward", "backward")
DTYPES = ("float32", "bfloat16")
STEPS = 100
WRONG = 1.1  # times as long as the fastest form takes


def draw_times(points: dict[str, Any], title: str, path: Path) -> None:
    """Draw an LSTM's forward with backward: expected times as lines, floors as dashed lines, measured times as filled marks."""
    plt = pyplot()
    hiddens = sorted({hidden for _, hidden, _, _ in GRID})
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 7.4), sharex=True, sharey="row", layout="constrained")
    drawn: dict[str, Any] = {}
    for axis, (batch, dtype) in zip(axes.flat, product((1, 64), DTYPES), strict=True):
        found = {hidden: points[name("lstm", hidden, batch, STEPS, dtype)]["forms"] for hidden in hiddens}
        for form, colour in COLOURS.items():
            own = {hidden: [forms[form].get(way) for way in WAYS] for hidden, forms in found.items() if form in forms}
            whole = {hidden: ways for hidden, ways in own.items() if all(ways)}
            if not whole:
                continue
            for key, what, style in (("floor", "floor", "--."), ("estimated", "expected", f"-{MARKERS[form]}")):
                times = [sum(way[key] for way in ways) for ways in whole.values()]
                (line,) = axis.loglog([*whole], times, style, color=colour, lw=1.4, ms=5, mfc="white")
                drawn.setdefault(f"{form}, {what}", line)
            timed = {hidden: [way.get("us per step") for way in ways] for hidden, ways in whole.items()}
            taken = {hidden: sum(times) for hidden, times in timed.items() if all(times)}
            if taken:
                (line,) = axis.loglog([*taken], [*taken.values()], MARKERS[form], color=colour, ms=7)
                drawn.setdefault(f"{form}, measured", line)
        axis.set_title(f"B={batch}, {dtype}", fontsize=10)
        axis.set_xticks(hiddens, hiddens)
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(color="0.9", lw=0.6)
    for axis in axes[1]:
        axis.set_xlabel("hidden size")
    figure.supylabel("microseconds of a step, forward and backward", fontsize=10)
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle(f"An LSTM's step on an {title}", fontsize=10)
    save(figure, path)


def draw_choices(points: dict[str, Any], title: str, path: Path) -> None:
    """Draw the chosen form over hidden size and batch with microseconds of a step; a frame means that another form was faster.

    A cell is blank if the chosen form has no time. A "~" marks times that are only expected, if others are measured.
    """
    plt = pyplot()
    hiddens, batches = (sorted({shape[k] for shape in GRID}) for k in (1, 2))
    panels = list(product(("lstm", "gru"), DTYPES))
    forms = (ways for point in points.values() for ways in point["forms"].values())
    measured = any("us per step" in one for ways in forms for one in ways.values())
    figure, axes = plt.subplots(2, len(panels), figsize=(15.6, 6.2), sharex=True, sharey=True, layout="constrained")
    for (row, column), axis in ((at, axes[at]) for at in product(range(2), range(len(panels)))):
        way, (cell, dtype) = WAYS[row], panels[column]
        for (x, hidden), (y, batch) in product(enumerate(hiddens), enumerate(batches)):
            point = points[name(cell, hidden, batch, STEPS, dtype)]
            choice = point["choices"][way]
            form = choice["chosen"]
            one, wrong = point["forms"].get(form, {}).get(way), choice.get("lost", 1.0) > WRONG
            if one is None:
                continue
            axis.add_patch(plt.Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fc=COLOURS[form], alpha=0.35, lw=0))
            mark = "~" if measured and "us per step" not in one else ""
            text = f"{form}\n{mark}{one.get('us per step', one['estimated']):.2f}"
            if wrong:
                axis.add_patch(plt.Rectangle((x - 0.44, y - 0.44), 0.88, 0.88, fill=False, ec="black", lw=2))
                text += f"\n{choice['fastest']} {choice['lost']:.1f}x"
            axis.text(x, y, text, ha="center", va="center", fontsize=8)
        axis.set(xlim=(-0.5, len(hiddens) - 0.5), ylim=(-0.5, len(batches) - 0.5))
        axis.set_title(f"{cell.upper()} {way}, {dtype}", fontsize=10)
        axis.set_xticks(range(len(hiddens)), hiddens)
        axis.set_yticks(range(len(batches)), batches)
        axis.tick_params(length=0)
    for axis in axes[1]:
        axis.set_xlabel("hidden size")
    for axis in axes[:, 0]:
        axis.set_ylabel("batch")
    expected = ", ~ where only expected" if measured else ""
    figure.suptitle(f"The form that is chosen, microseconds of a step (T={STEPS}{expected}); {title}", fontsize=10)
    save(figure, path)
