"""Draws pictures of grid.json, latency.json and roofline.json into benchmarks/results: `python -m benchmarks.report.pictures`.

They are heat maps of speed-ups over hidden size and batch, the distribution of the time of one step, and the roofline. The
report draws the summary, docs/summary.png. All of it needs matplotlib.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.record import RESULTS
from benchmarks.peers.layers import CELLS

DPI = 110
HEAT_MAPS = (("forward+backward", "torch"), ("inference", "torch"), ("inference", "onnxruntime"))
PEERS = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}
MOST = 8.0  # from this speed-up on, colours do not become deeper
WAYS = ("inference", "forward+backward")


def pyplot() -> Any:
    """Return matplotlib.pyplot, set up to work without a screen."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("pictures need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def where(content: dict[str, Any]) -> str:
    """Return the machine as one line."""
    m = content["machine"]
    return f"{m['processor']} ({m['llvm_processor']}), {m['threads']} threads, {m['in_use']}"


def save(figure: Any, path: Path, dpi: int = DPI) -> None:
    """Write a figure, and print its path."""
    figure.savefig(path, dpi=dpi)
    pyplot().close(figure)
    print(path)


def draw_heat_map(content: dict[str, Any], way: str, peer: str, path: Path) -> bool:
    """Draw speed-ups over hidden size and batch, a panel for each cell; return False if the file has no such points."""
    points = [p for p in content["results"].get("main", {}).values() if peer in p.get(way, {})]
    cells = [cell for cell in CELLS if any(p["cell"] == cell for p in points)]
    if not points:
        return False
    plt = pyplot()
    hiddens, batches = (sorted({p[key] for p in points}) for key in ("hidden_size", "batch"))
    size = (1.9 + 0.78 * len(hiddens) * len(cells), 1.9 + 0.5 * len(batches))
    figure, axes = plt.subplots(1, len(cells), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, cell in zip(axes[0], cells, strict=True):
        ratios = np.full((len(batches), len(hiddens)), np.nan)
        for p in points:
            if p["cell"] == cell:
                ratios[batches.index(p["batch"]), hiddens.index(p["hidden_size"])] = p[way][peer]["speedup"]
        deepest = np.log2(MOST)
        image = axis.imshow(np.log2(ratios), cmap="RdBu", vmin=-deepest, vmax=deepest, origin="lower", aspect="auto")
        for (row, column), ratio in np.ndenumerate(ratios):
            if np.isfinite(ratio):
                dark = abs(np.log2(ratio)) > 0.6 * deepest
                text = f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
        mean = np.exp(np.nanmean(np.log(ratios)))
        axis.set_title(f"{CELLS[cell]}, geometric mean {mean:.2f}", fontsize=10)
        axis.set_xticks(range(len(hiddens)), hiddens)
        axis.set_yticks(range(len(batches)), batches)
        axis.set_xlabel("hidden size")
        axis.tick_params(length=0)
    axes[0][0].set_ylabel("batch")
    ticks = [k for k in range(-3, 4) if 2**k <= MOST]
    bar = figure.colorbar(image, ax=axes[0].tolist(), ticks=ticks, pad=0.01, aspect=14)
    bar.ax.set_yticklabels([f"{2.0**k:g}" for k in ticks])
    figure.suptitle(f"{way}: times as fast as {PEERS[peer]} (1 layer, T=100, float32; {where(content)})", fontsize=10)
    save(figure, path)
    return True


def draw_latency(content: dict[str, Any], path: Path) -> None:
    """Draw the time of one step by quantile, a panel for each case. The rare, slow steps are on the right."""
    plt = pyplot()
    cases = content["results"]["steps"]
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows + 0.7), squeeze=False, layout="constrained")
    names = dict.fromkeys(name for contenders in cases.values() for name in contenders)
    colours, drawn = dict(zip(names, plt.get_cmap("tab10").colors, strict=False)), {}
    for axis, (case, contenders) in zip(axes.flat, cases.items(), strict=False):
        for name, one in contenders.items():
            rare = 1 / (1 - np.array(one["quantiles"]) / 100)  # one step in `rare` is slower
            (drawn[name],) = axis.loglog(rare, one["microseconds"], color=colours[name], lw=1.6, label=name)
        axis.set_title(case.removesuffix(" T=1"), fontsize=10)
        axis.set_xticks([2, 10, 100, 1000], ["p50", "p90", "p99", "p99.9"])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlim(1, 1500)
        axis.grid(color="0.9", lw=0.6)
    for axis in axes.flat[len(cases) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("microseconds")
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=len(drawn), fontsize=9, frameon=False)
    figure.suptitle(f"Time of one step, called from Python ({where(content)})", fontsize=10)
    save(figure, path)


def draw_roofline(content: dict[str, Any], path: Path) -> None:
    """Draw operations per second over operations per byte, under the measured roofs; a panel for each cell."""
    plt = pyplot()
    limits, points = content["results"]["ceilings"]["measured"], list(content["results"]["points"].values())
    cells = [cell for cell in CELLS if any(p["cell"] == cell for p in points)]
    figure, axes = plt.subplots(
        1, len(cells), figsize=(1.2 + 4.3 * len(cells), 5.2), sharey=True, squeeze=False, layout="constrained"
    )
    hiddens, batches = (sorted({p[key] for p in points}) for key in ("hidden_size", "batch"))
    colours = dict(zip(batches, plt.get_cmap("tab10").colors, strict=False))
    intensities = [p[way]["intensity"] for p in points for way in WAYS]
    x, peak, drawn = np.geomspace(min([0.8, *intensities]), max([100.0, *intensities]) * 1.8, 200), limits["peak"], {}
    for axis, cell in zip(axes[0], cells, strict=True):
        for name, style in (("memory", "-"), ("cache", "--")):
            label = f"copy in {name}, {limits[name] / 1e9:.0f} GB/s"
            (drawn[label],) = axis.loglog(x, np.minimum(peak, x * limits[name]) / 1e9, style, color="0.35", lw=1.3)
        axis.text(x[-1] / 1.1, peak / 1e9 * 1.08, f"product, {peak / 1e9:.0f} GFLOP/s", ha="right", va="bottom", fontsize=8)
        for batch, colour in colours.items():
            own = sorted((p for p in points if (p["cell"], p["batch"]) == (cell, batch)), key=lambda p: p["hidden_size"])
            for way, marker, face in zip(WAYS, "os", ("white", colour), strict=True):
                places = [(p[way]["intensity"], p[way]["operations"] / p[way]["seconds"] / 1e9) for p in own]
                axis.plot(*zip(*places, strict=True), color=colour, lw=0.8, alpha=0.5)
                for p, place in zip(own, places, strict=True):
                    size = 4 + 1.7 * hiddens.index(p["hidden_size"])
                    (mark,) = axis.plot(*place, marker, color=colour, mfc=face, ms=size)
                    drawn.setdefault(f"B={batch}, {way}", mark)
        axis.set_title(CELLS[cell], fontsize=10)
        axis.set(xlabel="operations per byte of least traffic", xlim=(x[0], x[-1]))
        axis.set_ylim(min(axis.get_ylim()[0], peak / 1e11), 1.6 * peak / 1e9)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(color="0.9", lw=0.6)
        axis.set_axisbelow(True)
    axes[0][0].set_ylabel("GFLOP/s")
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=-(-len(drawn) // 2), fontsize=8, frameon=False)
    sizes = f"\nmarkers grow with the hidden size: {', '.join(map(str, hiddens))}" if len(hiddens) > 1 else ""
    figure.suptitle(where(content) + sizes, fontsize=10)
    save(figure, path)


def draw_summary(content: dict[str, Any], path: Path) -> None:
    """Draw the suite's times on one machine: speed-ups over PyTorch, one step from Python, and memory."""
    plt, results = pyplot(), content["results"]
    figure, (speed, step, memory) = plt.subplots(1, 3, figsize=(11, 3.1), width_ratios=(4, 3, 3), layout="constrained")
    ours, theirs, other = "#0072b2", "#999999", "#d8a24a"
    ways = ("training step", "forward+backward", "inference")
    bars = [(f"{way}, {CELLS[cell]}", results.get(f"{way} {cell}", {}).get("torch")) for way in ways for cell in CELLS]
    shown = {label: one["speedup"] for label, one in bars if one}
    drawn = speed.barh(list(shown), list(shown.values()), color=ours)
    speed.bar_label(drawn, [f"{value:.2f}" for value in shown.values()], padding=2, fontsize=8)
    speed.axvline(1, color="black", lw=1)
    speed.set_title("times as fast as PyTorch (1 is equal)", fontsize=9)
    _bars(step, [(who, one["p50"]) for who, one in _one_step(results).items()], {"fastlstm": ours, "torch": theirs}, other)
    step.set_title("one step of an LSTM 32 -> 64, microseconds", fontsize=9)
    sizes = [
        (f"{CELLS[cell]}, {who or 'fastlstm'}", results[key])
        for cell in CELLS
        for who in ("", "torch")
        if (key := f"peak memory of training, {cell}{f', {who}' if who else ''}, MiB") in results
    ]
    _bars(memory, sizes, {label: theirs for label, _ in sizes if label.endswith("torch")}, ours)
    memory.set_title("peak memory of training, MiB", fontsize=9)
    for axis in (speed, step, memory):
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.margins(x=0.16)
        axis.spines[["top", "right"]].set_visible(False)
    model = "Left and right: 2 layers of 256 units, batches of 64 x 100 characters, float32"
    figure.suptitle(f"{model}; {where(content)}", fontsize=8.5)
    save(figure, path, 85)  # a file below 60 KB


def _one_step(results: dict[str, Any]) -> dict[str, Any]:
    """Return the distributions of one step of a small LSTM, by contender."""
    found: dict[str, Any] = results.get("latency", {}).get("one step lstm 32->64 B=1 T=1", {})
    return found


def _bars(axis: Any, bars: list[tuple[str, float]], colours: dict[str, str], usual: str) -> None:
    """Draw horizontal bars with their values."""
    labels, values = [label for label, _ in bars], [value for _, value in bars]
    drawn = axis.barh(labels, values, color=[colours.get(label, usual) for label in labels])
    axis.bar_label(drawn, [f"{value:.3g}" for value in values], padding=2, fontsize=8)


def main() -> None:
    """Draw the pictures whose results are stored."""
    for name in ("grid", "latency", "roofline"):
        file = RESULTS / f"{name}.json"
        if not file.exists():
            print(f"left out: there is no {file}")
            continue
        content = json.loads(file.read_text())
        if name == "grid":
            for way, peer in HEAT_MAPS:
                path = RESULTS / f"grid-{way.replace('+', '-')}-{peer}.png"
                if not draw_heat_map(content, way, peer, path):
                    print(f"left out: {file} has no {way} by {peer}")
        else:
            (draw_latency if name == "latency" else draw_roofline)(content, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
