"""Makes the tables of docs/results.md from benchmarks/results/*.json, in Markdown; the report shows them too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from benchmarks.article import EPOCHS, SYSTEMS
from benchmarks.measure.record import RESULTS
from benchmarks.peers.layers import Shape
from benchmarks.speed.grid import comparisons, mean
from benchmarks.speed.roofline import operations

OURS = "fastlstm"
NAMES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
PICTURES = "../benchmarks/results"  # seen from docs/


def read(name: str) -> dict[str, Any]:
    """Return the content of a result file."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def where(content: dict[str, Any], *peers: str) -> str:
    """Return the machine and the versions as one line."""
    m, v = content["machine"], content["versions"]
    versions = ", ".join(f"{name} {v[name]}" for name in ("python", "numba", "numpy", "torch", *peers) if name in v)
    return f"{m['processor']} ({m['llvm_processor']}), {m['threads']} threads, {m['in_use']}; {versions}"


def made(content: dict[str, Any], entries: dict[str, dict[str, Any]]) -> str:
    """Return `where` the entries of a file were made, with the names of entries if they were made on several machines."""
    found: dict[str, list[str]] = {}
    for name, one in entries.items():
        found.setdefault(where(content | one), []).append(name)
    return "; ".join(place if len(found) == 1 else f"{', '.join(names)}: {place}" for place, names in found.items())


def signed(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries that name a machine of their own, by section and name."""
    for name, one in results.items():
        if isinstance(one, dict):
            within = [("", one)] if {"machine", "versions"} <= set(one) else signed(one)
            yield from ((f"{name}: {inner}" if inner else name, entry) for inner, entry in within)


def clock(content: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Return the machine of a learning run's hours: that of its step's time if it was measured, else that of the run."""
    found: dict[str, Any] = (run.get("step") or {}).get("machine", (content | run)["machine"])
    return found


def learning() -> list[str]:
    """Return the table of learning runs with the best epoch of each; runs of the article's 50 epochs come first."""
    hours = [f"{SYSTEMS[cell].cpu_hours:g} ({name})" for cell, name in NAMES.items()]
    lines = [
        "**Learning** on Shakespeare, 90/10 split, Adam at 0.001, batches of 64 x 100; 2 layers of 256 unless stated.",
        "Perplexity depends on the tokens, which the article does not name; bits per character can be compared. Hours are",
        f"those of the epochs in the table; the article's {EPOCHS} epochs took {hours[0]}, {hours[1]} and {hours[2]} hours.",
    ]
    rows, notes = [], []
    for path in sorted(RESULTS.glob("*-learning.json"), key=lambda path: (path.stem != "article-learning", path.stem)):
        content = read(path.stem)
        for name, one in content["results"].items():
            bits = None if one["settings"]["tokens"] == "word" else one["best_bits_per_character"]
            rows.append(
                [
                    one["settings"]["tokens"],
                    label(name, one["settings"]),
                    one["settings"]["dtype"],
                    str(one["epochs"]),
                    f"{one['hours']:.2f}",
                    f"{one['best_loss']:.3f}",
                    str(one["best_epoch"]),
                    f"{one['best_perplexity']:.3g}",
                    f"{bits:.2f}" if bits else "–",
                ]
            )
        named = {
            f"{label(name, one['settings'])} by {one['settings']['tokens']}": one for name, one in content["results"].items()
        }
        told: dict[str, dict[str, str]] = {}
        for name, one in named.items():
            made_by, timed_on = (found["processor"] for found in ((content | one)["machine"], clock(content, one)))
            timed = f"; steps timed on {timed_on}" if timed_on != made_by else ""
            told.setdefault(where(content | one) + timed, {})[name] = one["remark"]
        notes += [f"{path.name}: {place}. {remarks(by)}" for place, by in told.items()]
    heads = [
        "tokens",
        "model",
        "dtype",
        "epochs",
        "hours",
        "best held-out loss",
        "in epoch",
        "perplexity",
        "bits per character",
    ]
    sample = read("article-learning")["results"]["lstm"]["sample"].rstrip()
    what = "A sample of the LSTM, 400 characters at temperature 0.8 (the page of `make report` has those of the other models):"
    return [*lines, *table(heads, rows), "", " ".join(notes), "", what, "", "```text", sample, "```", ""]


def remarks(told: dict[str, str]) -> str:
    """Return each sentence of the runs' remarks once, after the names of its runs if it is not about all of them."""
    of: dict[str, list[str]] = {}
    for name, remark in told.items():
        for sentence in filter(None, re.split(r"(?<=\.) ", remark)):
            of.setdefault(sentence, []).append(name)
    return " ".join(
        sentence if len(names) == len(told) else f"{' and '.join(names)}: {sentence[0].lower()}{sentence[1:]}"
        for sentence, names in of.items()
    )


def label(name: str, settings: dict[str, Any]) -> str:
    """Return a model's name, with the sizes that differ from the article's."""
    more = [
        f"{settings[key]} {word}"
        for key, usual, word in (("hidden_size", 256, "units"), ("num_layers", 2, "layers"))
        if settings.get(key, usual) != usual
    ]
    more += [settings["size"]] if "size" in settings else []
    return ", ".join([(NAMES | {"transformer": "Transformer"}).get(settings["cell"], name), *more])


def speed() -> list[str]:
    """Return the times of the article's model and PyTorch's, measured in one process, and those of start and memory."""
    content = read("article-speed")
    lines = [
        "**Speed** against PyTorch in the same process: the article's model (2 layers of 256, batches of 64 x 100), float32.",
        "A ratio is the median over neighbouring blocks of calls, so it may differ from the quotient of the two times.",
        "forward+backward and inference are of the layers alone, without embedding and head. forward+backward may take longer",
        "than the whole training step: in the step, the first layer takes the products of its few tokens from a table, but the",
        "layers alone multiply 256 inputs and also compute the gradient of the input.",
        "",
        "| | fastlstm, ms | torch, ms | times as fast |",
        "|---|---|---|---|",
    ]
    for case, one in content["results"].items():
        if isinstance(one, dict) and "torch" in one:
            ours, peer = one["fastlstm"]["seconds"], one["torch"]["seconds"]
            lines.append(f"| {case} | {ours * 1e3:.3g} | {peer * 1e3:.3g} | {one['torch']['speedup']:.2f} |")
    numbers = [f"| {name} | {value:.3g} |" for name, value in content["results"].items() if not isinstance(value, dict)]
    if numbers:
        lines += ["", "| start and memory | |", "|---|---|", *numbers]
    return [*lines, "", where(content) + ".", ""]


def exists(name: str) -> bool:
    """Return whether there is such a result or picture."""
    return (RESULTS / name).exists()


def picture(name: str, title: str) -> list[str]:
    """Return a picture of the results, if it was drawn."""
    return ["", f"![{title}]({PICTURES}/{name}.png)"] if exists(f"{name}.png") else []


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    return ["", *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))]


def span(points: dict[str, Any], key: str) -> str:
    """Return the smallest and the largest value of a size, as text."""
    sizes = {point[key] for point in points.values()}
    return "–".join(map(str, sorted({min(sizes), max(sizes)})))


def grid() -> list[str]:
    """Return means and minima over many shapes, then the other sections of the file, then the heat maps."""
    content = read("grid")
    rows = []
    for section in ("main", "article"):
        points = content["results"].get(section, {})
        found = comparisons(points)
        for way, peer in dict.fromkeys((way, peer) for _, way, peer in found):
            sizes = (("num_layers", "layers"), ("hidden_size", "H"), ("batch", "B"), ("steps", "T"))
            row = [f"{way} against {peer}: " + ", ".join(f"{name} {span(points, key)}" for key, name in sizes)]
            for cell in NAMES:
                ratios = found.get((cell, way, peer), {})
                least = min(ratios, key=ratios.__getitem__, default="")
                place = least.removeprefix(f"{cell} ").removesuffix(" T=100")
                row.append(f"{mean([*ratios.values()]):.2f}, least {ratios[least]:.2f} ({place})" if ratios else "")
            rows.append(row)
    lines = ["**Over shapes**, float32: how many times as fast, geometric mean and smallest value (with its shape)."]
    for part in (rows, at_most(content["results"]), others(content["results"])):
        lines += table(["", *NAMES.values()], part) if part else []
    for way, peer in (("forward+backward", "torch"), ("inference", "torch"), ("inference", "onnxruntime")):
        lines += picture(f"grid-{way.replace('+', '-')}-{peer}", f"{way}: times as fast as {peer} over hidden size and batch")
    return [*lines, "", where(content, "onnxruntime") + ".", ""]


def at_most(results: dict[str, Any]) -> list[list[str]]:
    """Return the speed-ups that are possible over the same shapes: those of the products alone, at the fastest measured speed.

    Only shapes in which products are most of the work count. The reached speed-up comes first.
    """
    speeds = [speed for point in results.get("ceiling", {}).values() for who, speed in point["gflops"].items() if who != OURS]
    if not speeds:
        return []
    speed, points, rows = max(speeds), results.get("main", {}), []
    for way, peer in dict.fromkeys((way, peer) for _, way, peer in comparisons(points)):
        row = [f"{way} against {peer}, H 128–512, B 8–64: reached / by the products alone, at {speed:.0f} GFLOP/s"]
        for cell in NAMES:
            own = [one for one in points.values() if one["cell"] == cell and one["hidden_size"] >= 128 and one["batch"] >= 8]
            most = [one[way][peer]["seconds"] * speed * 1e9 / operations(shape(one), way) for one in own]
            row.append(f"{mean([one[way][peer]['speedup'] for one in own]):.2f} / {mean(most):.2f}" if own else "")
        rows.append(row)
    return rows


def shape(point: dict[str, Any]) -> Shape:
    """Return the shape of a point of the grid."""
    return Shape(*(point[key] for key in ("cell", "hidden_size", "batch", "steps", "num_layers", "input_size")))


def others(results: dict[str, Any]) -> list[list[str]]:
    """Return rows on threads, the ceiling, AVX2 and odd sizes, with a number for each cell."""
    kinds = {
        "threads": ("times as fast on all threads as on one: forward+backward, 2 layers, H 256, B 64", lambda p: p["speedup"]),
        "ceiling": ("share of the speed of a 4096^3 product: forward+backward, H 256, B 64", lambda p: p["share"]),
        "avx2": (
            "article's training step against torch, both limited to AVX2",
            lambda p: p["training step"]["torch"]["speedup"],
        ),
        "odd": (
            "largest time per operation at H 50, 100, 200, 300, over that at the next multiple of 16",
            lambda p: max(p["per operation"].values()),
        ),
    }
    rows = []
    for section, (what, value) in kinds.items():
        points = results.get(section, {})
        if points and not (section == "avx2" and "torch" not in next(iter(points.values()))["training step"]):
            own = [[value(point) for name, point in points.items() if name.split()[0] == cell] for cell in NAMES]
            rows.append([what, *(f"{max(one):.2f}" if one else "" for one in own)])
    return rows


def bfloat16() -> list[str]:
    """Return the times of the article's training step in bfloat16."""
    content = read("bfloat16-speed")
    rows, points = [], content["results"]["bfloat16"]
    for cell, point in points.items():
        times = point["training step"]
        ours, *others = times.values()
        speedups = [f"{one['speedup']:.2f} ({one['seconds'] * 1e3:.3g} ms)" for one in others]
        rows.append([NAMES[cell], f"{ours['seconds'] * 1e3:.3g}", *speedups])
    names = {"fastlstm": "own float32", "torch": "torch float32", "torch autocast": "torch bfloat16 autocast"}
    heads = [f"times as fast as {names[name]}" for name in list(next(iter(points.values()))["training step"])[1:]]
    lines = ["**bfloat16**, the article's training step:", *table(["", "ms", *heads], rows)]
    return [*lines, "", where(content) + ".", ""]


def latency() -> list[str]:
    """Return the times of one step from Python."""
    content = read("latency")
    names = dict.fromkeys(name for found in content["results"]["steps"].values() for name in found)
    cases = content["results"]["steps"].items()
    rows = [[case.removesuffix(" T=1"), *(quantiles(found.get(name)) for name in names)] for case, found in cases]
    lines = ["**One step from Python**, microseconds, p50 / p99 / p99.9, float32 unless stated:", *table(["", *names], rows)]
    return [*lines, *picture("latency", "time of one step by quantile"), "", where(content, "onnxruntime") + ".", ""]


def quantiles(one: dict[str, Any] | None) -> str:
    """Return p50 / p99 / p99.9 as text."""
    values = [one[name] for name in ("p50", "p99", "p99.9")] if one else []
    return " / ".join(f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values)


def roofline() -> list[str]:
    """Return the times of layers, their floors, and the shares of the floors that are reached."""
    content = read("roofline")
    limits, points = content["results"]["ceilings"]["measured"], content["results"]["points"]
    rows = []
    for name, point in points.items():
        if point["batch"] == max(p["batch"] for p in points.values()):
            ways = [point[way] for way in ("inference", "forward+backward")]
            rows.append([name, *(f"{w['seconds'] * 1e3:.3g} of {w['floor'] * 1e3:.3g} ({w['share']:.0%})" for w in ways)])
    lines = [
        f"**Roofline.** Products reach {limits['peak'] / 1e9:.0f} GFLOP/s, copies in memory {limits['memory'] / 1e9:.0f} GB/s:",
        "these are the fastest measured. (The share of a product of 4096^3, under Many shapes, has another base.) The table",
        "has the time in milliseconds, the least time that these limits allow, and their quotient:",
        *table(["", "inference", "forward+backward"], rows),
    ]
    return [*lines, *picture("roofline", "operations per second over operations per byte"), "", where(content) + ".", ""]
