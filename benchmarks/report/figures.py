"""Makes the report's figures as inline SVG: those of `benchmarks.report.pictures`, one panel at a time, and some of its own.

Text and lines have the page's colours and fonts, so that they follow its light or dark theme. Series differ in dash or marker
as well as in colour.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.report import pictures
from benchmarks.report.html import Html, text

INK = "#123456"  # stands for the page's own colour of text until the SVG is written
SERIES = [f"var(--s{k})" for k in range(1, 7)]
DASHES = ["-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 2))]
KEYS = ["", "7 3", "8 2 2 2", "2 2", "6 1.5 1.5 1.5 1.5 1.5", "2 4"]  # the same dashes in a legend
STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "figure.constrained_layout.w_pad": 0.06,
}
Lines = dict[str, tuple[Any, Any]]  # label: x, y
NOWHERE = Path()  # the path of pictures that are collected instead of written
PANEL = (4.5, 3.1)  # inches; a phone shows it at four fifths


def svg(figure: Any, name: str, describes: str, white: str = "#ffffff") -> Html:
    """Return a figure as markup in the page's colours. `name` makes its inner references differ from those of other figures."""
    plt, out = pictures.pyplot(), io.StringIO()
    with plt.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    drawn = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
    drawn = drawn[drawn.index("<svg") :]
    used = set(re.findall(r'#([\w-]+)[")]', drawn))  # other ids would occur in several figures
    drawn = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", drawn)
    drawn = re.sub(r"font-family: [^;\"]*;?|font: [\d.]+px [^;\"]*;?", lambda m: _size(m[0]), drawn)
    tab10 = [tuple(round(255 * part) for part in colour) for colour in plt.get_cmap("tab10").colors]
    colours = {f"#{r:02x}{g:02x}{b:02x}": series for (r, g, b), series in zip(tab10, SERIES, strict=False)}
    colours |= {INK: "currentColor", "#e6e6e6": "var(--grid)", "#595959": "var(--soft)", "#ffffff": white}
    drawn = re.sub(r"#[0-9a-f]{6}", lambda m: colours.get(m[0], m[0]), drawn)
    drawn = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt"|width="[\d.]+pt"', "", drawn, count=2)
    drawn = re.sub(r"\n\s*", "\n", drawn)
    return Html(drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(describes)}" ', 1))


def _size(style: str) -> str:
    """Return only the size of a font."""
    found = re.search(r"([\d.]+px)", style)
    return f"font-size: {found[1]};" if found else ""


@contextlib.contextmanager
def collected() -> Iterator[list[Any]]:
    """Collect the figures that `benchmarks.report.pictures` draws inside the block, in the page's style, instead of writing
    them.
    """
    figures: list[Any] = []
    with pictures.pyplot().rc_context(STYLE), mock.patch.object(pictures, "save", lambda figure, _: figures.append(figure)):
        yield figures


def panel(
    draw: Callable[[], object], name: str, describes: str, size: tuple[float, float], white: str = "#ffffff"
) -> tuple[Html, Html]:
    """Return a figure of the pictures without its title and legend, and the legend. The page gives the title in words."""
    with collected() as figures:
        draw()
        (figure,) = figures
        figure.suptitle("")
        key = Html("")
        for drawn in list(figure.legends):
            for axis in figure.axes:
                _dashes(axis, drawn)
            key = legend(
                [(mark, label.get_text()) for mark, label in zip(drawn.legend_handles, drawn.get_texts(), strict=True)]
            )
            drawn.remove()
        figure.set_size_inches(size)
        return svg(figure, name, describes, white), key


def _dashes(axis: Any, drawn: Any) -> None:
    """Give each series that has no marker a dash of its own, in the axes and in the legend."""
    plain = [mark for mark in drawn.legend_handles if mark.get_marker() in ("None", "", None) and mark.get_linestyle() == "-"]
    if len(plain) == len(drawn.legend_handles):
        dashes = dict(zip((mark.get_color() for mark in plain), DASHES, strict=False))
        for line in [*axis.get_lines(), *plain]:
            line.set_linestyle(dashes.get(line.get_color(), "-"))


def legend(series: Iterable[tuple[Any, str]]) -> Html:
    """Return a legend: the meaning of each line or marker."""
    items, series = [], list(series)
    marked = any(
        mark.get_marker() in ("o", "s") for mark, _ in series
    )  # otherwise lines differ in dash, in the order of DASHES
    tab10 = [tuple(colour) for colour in pictures.pyplot().get_cmap("tab10").colors]
    for k, (mark, label) in enumerate(series):
        colour = mark.get_color()
        colour = SERIES[tab10.index(tuple(colour))] if not isinstance(colour, str) and tuple(colour) in tab10 else colour
        colour = colour if str(colour).startswith("var") else "var(--soft)"
        shape = ""
        if (style := mark.get_linestyle()) not in ("None", ""):
            dash = KEYS[DASHES.index(style)] if marked else KEYS[k % len(KEYS)]
            shape += f'<path d="M0 7H32" stroke="{colour}" stroke-width="2.4" stroke-dasharray="{dash}"/>'
        fill = "var(--page)" if mark.get_markerfacecolor() == "white" else colour
        if mark.get_marker() in ("o", "s"):
            rounded = 5 if mark.get_marker() == "o" else 0
            shape += f'<rect x="11" y="2" width="10" height="10" rx="{rounded}" stroke="{colour}" fill="{fill}"/>'
        items.append(f'<li><svg viewBox="0 0 32 14" aria-hidden="true" fill="none">{shape}</svg>{text(label)}</li>')
    return Html(f"<ul class=legend>{''.join(items)}</ul>")


def only(content: dict[str, Any], section: str, points: dict[str, Any]) -> dict[str, Any]:
    """Return a result file in which a section has only some of its points."""
    return content | {"results": content["results"] | {section: points}}


def shared(panels: list[tuple[Html, Html]]) -> tuple[list[Html], Html]:
    """Return panels with one legend if all have the same, otherwise each with its own."""
    if len({key for _, key in panels}) == 1:
        return [drawn for drawn, _ in panels], panels[0][1]
    return [Html(key + drawn) for drawn, key in panels], Html("")


def heat_map(content: dict[str, Any], way: str, peer: str, cell: str) -> Html:
    """Return the heat map of one cell's speed-ups over hidden size and batch."""
    points = {k: p for k, p in content["results"]["main"].items() if p["cell"] == cell and peer in p.get(way, {})}
    own = only(content, "main", points)
    size = [len({p[key] for p in points.values()}) for key in ("hidden_size", "batch")]
    describes = f"{way}: times as fast as {peer}, {cell}, over hidden size and batch"
    inches = (1.5 + 0.5 * size[0], 1.1 + 0.42 * size[1])
    return panel(lambda: pictures.draw_heat_map(own, way, peer, NOWHERE), f"{way}{peer}{cell}", describes, inches)[0]


def latency(content: dict[str, Any]) -> tuple[list[Html], Html]:
    """Return the time of one step by quantile: a panel for each case, and their legend."""
    return shared(
        [
            panel(
                partial(pictures.draw_latency, only(content, "steps", {case: contenders}), NOWHERE),
                case,
                f"time of one step by quantile, {case}",
                PANEL,
            )
            for case, contenders in content["results"]["steps"].items()
        ]
    )


def roofline(content: dict[str, Any]) -> tuple[list[Html], Html]:
    """Return operations per second under the roofs: a panel for each cell, and their legend."""
    cells: dict[str, dict[str, Any]] = {}
    for name, point in content["results"]["points"].items():
        cells.setdefault(point["cell"], {})[name] = point
    return shared(
        [
            panel(
                partial(pictures.draw_roofline, only(content, "points", points), NOWHERE),
                f"roof{cell}",
                f"operations per second over operations per byte, {cell}",
                (4.5, 3.7),
                "var(--page)",
            )
            for cell, points in cells.items()
        ]
    )


def curves(
    name: str,
    title: str,
    series: Lines,
    across: str,
    up: str,
    *,
    log: bool = False,
    across_log: bool = False,
    faint: Lines | None = None,
    ends: tuple[float | None, float | None] = (None, None),
) -> tuple[Html, Html]:
    """Return a panel of lines and its legend. `faint` has thin lines of the same series; `ends` are the limits of the vertical
    axis.
    """
    plt = pictures.pyplot()
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=PANEL, layout="constrained")
        colours = plt.get_cmap("tab10").colors
        drawn = []
        for k, (label, (x, y)) in enumerate(series.items()):
            dash = DASHES[k % len(DASHES)]
            colour = colours[(k + k // len(DASHES)) % len(SERIES)]  # no two have both colour and dash
            (line,) = axis.plot(x, y, color=colour, ls=dash, lw=1.8)
            drawn.append((line, label))
            if faint and label in faint:
                axis.plot(*faint[label], color=colour, ls=dash, lw=0.7)
        if log:
            axis.set_yscale("log")
        if across_log:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylim(*ends)
        axis.set(xlabel=across, ylabel=up)
        axis.set_title(title, fontsize=9.5)
        axis.grid(color="0.9", lw=0.6)
        axis.set_axisbelow(True)
        return svg(figure, name, f"{title}: {up} over {across}, {', '.join(series)}"), legend(drawn)


def gate_map(line: str, gates: dict[str, list[list[float]]], begin: int, end: int, order: dict[str, np.ndarray]) -> Html:
    """Return the gates of every unit over a part of a line of text, from closed (dark) to open (bright)."""
    plt = pictures.pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(gates), 1, figsize=(4.5, 4.2), sharex=True, layout="constrained")
        for axis, (name, values) in zip(axes, gates.items(), strict=True):
            shown = np.array(values)[order[name], begin:end]
            image = axis.imshow(shown, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axis.set_ylabel(f"{name}\n{len(shown)} units")
            axis.set_yticks([])
            axis.tick_params(length=0)
            axis.xaxis.set_tick_params(labelbottom=True)
            axis.set_xticks(range(end - begin), ["␣" if c == " " else c for c in line[begin:end]], fontsize=8)
        bar = figure.colorbar(image, ax=list(axes), ticks=[0, 0.5, 1], aspect=30, pad=0.01)
        bar.ax.set_yticklabels(["closed", "half", "open"], fontsize=8)
        return svg(figure, f"gates{begin}", f"input, forget and output gate of every unit over the text {line[begin:end]!r}")


def strip(line: str, values: list[float]) -> Html:
    """Return a line of text in which each character's background is the colour of a gate's value, from closed to open."""
    spans = []
    for character, value in zip(line, values, strict=True):
        r, g, b, _ = pictures.pyplot().get_cmap("cividis")(float(value), bytes=True)
        ink = "#ffffff" if value < 0.5 else "#000000"
        spans.append(
            f'<span style="background:#{r:02x}{g:02x}{b:02x};color:{ink}" title="{value:.2f}">{escape(character)}</span>'
        )
    return Html(f"<div class=strip>{''.join(spans)}</div>")
