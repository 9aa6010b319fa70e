"""Writes the report, one HTML page, and a summary picture from the stored results: `python -m benchmarks.report.page`.

The page loads nothing from a network. In the place of results that are missing it gives the reason. Run it again after a result
file has come into benchmarks/results. It needs matplotlib.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.article import NEAR
from benchmarks.report import claims, figures, learning, pictures, tables
from benchmarks.report.answer import Answer, Row
from benchmarks.report.html import Html, details, figure, markdown, missing, page, paragraph, table, text
from benchmarks.report.results import NAMES, absent, content, gpu_name, stored_ratio, suites

DOCS = Path(__file__).parents[2] / "docs"
TITLE = "Recurrent networks on the CPU: an article's figures, measured"
MARKS = {True: ("yes", "✓"), False: ("no", "✗"), None: ("none", "–")}
PARTLY = ("part", "±")
COUNTED = {True: "hold", False: "do not hold", None: "have no answer here"}


def verdict(answer: Answer) -> Html:
    """Return the verdict in words, with a mark, a colour and its note."""
    kind, mark = PARTLY if answer.depends else MARKS[answer.holds]
    return Html(f"<span class={kind}>{mark} {answer.verdict}</span><small>{text(answer.note)}</small>")


def other(answer: Answer | None) -> Html | str:
    """Return PyTorch's answer as one cell."""
    if answer is None or answer.holds is None:
        return "–"
    kind, mark = MARKS[answer.holds]
    return Html(f"{text(answer.value)} <span class={kind}>{mark} {answer.verdict}</span><small>{text(answer.brief)}</small>")


def claims_table(rows: Iterable[Row]) -> Html:
    """Return a table of claims: the article's figures, those measured here, and verdicts."""
    return table(
        ["claim", "article", "fastlstm", "PyTorch", "verdict"],
        [[c.what, c.article, c.here.value or "–", other(c.torch), verdict(c.here)] for c in rows],
    )


def article() -> Html:
    """Return every figure and claim of the article with its answer."""
    return Html(
        paragraph(
            "The article trains 2 layers of 256 units on about 1 MB of Shakespeare, in batches of 64 sequences of 100 "
            "tokens, for 50 epochs, on a CPU that it does not name and on an RTX 3090. It does not name its tokens, its "
            "split, its optimizer or its input width. Here the tokens are characters, and also byte pairs (1,024) and "
            "words; the last tenth of the text is held out, the optimizer is Adam at 0.001, and the input width is 256."
        )
        + paragraph(
            "A figure **holds** if it is within 10 % of the article's, a margin chosen beforehand. Next to the verdict is "
            "how far off the figure is.",
            "soft",
        )
        + "<h3>Its ratios</h3>"
        + claims_table(claims.ratios())
        + twice()
        + "<h3>Its four systems</h3>"
        + claims_table(claims.systems())
        + "<h3>More of its claims</h3>"
        + claims_table(claims.more())
    )


def twice() -> Html:
    """Return how much the same ratios differ in two more runs of the suite."""
    found = content("repeat")
    if found is None:
        return missing(absent("repeat"))
    ways = [(claim, who, one) for claim, by in found["results"].items() for who, one in by.items()]
    most = max(abs(one["off"]) for *_, one in ways)
    shown = content("article-speed")
    again = [
        abs(value / now[0] - 1)
        for claim, who, one in ways
        for value in one["values"]
        if shown and shown["machine"] == found["machine"] and (now := stored_ratio(claim, who))
    ]
    rows = [[f"{claim}, {who}", *(f"{value:.3g}" for value in one["values"]), f"{one['off']:+.1%}"] for claim, who, one in ways]
    words = f"The suite ran twice more ({tables.where(found)}): the ratios of these two runs differ by {most:.1%} at most"
    words += f", and by {max(again):.1%} at most from those above" if again else ""
    words += "." if max([most, *again]) <= NEAR else ", more than the tenth by which a figure holds."
    numbers = table(["ratio", "first run", "second run", "off"], rows)
    return Html(paragraph(words) + details("Both runs' ratios", numbers))


def needs(name: str, make: Callable[[dict[str, Any]], str]) -> Html:
    """Return what `make` shows of a result file, or the reason why there is no such file."""
    found = content(name)
    return missing(absent(name)) if found is None else Html(make(found))


def speed() -> Html:
    """Return the times of the article's model, and those over many shapes."""
    made: str = needs("article-speed", lambda _: markdown(tables.speed()))
    made += "".join(peers(name, found) for name, found in suites().items())
    return Html(made + needs("grid", grid))


def peers(name: str, found: dict[str, Any]) -> str:
    """Return the times of all peers in a record of the suite, if it has others than PyTorch, and who could not be measured."""
    flat = {case: one for case, one in found["results"].items() if case not in ("grid", "latency")}  # sections of their own
    cases = {case: one for case, one in flat.items() if isinstance(one, dict) and not set(one) <= {"fastlstm"}}
    whos = list(dict.fromkeys(who for one in cases.values() for who in one))
    made = ""
    if set(whos) - {"fastlstm", "torch", "numpy"}:
        rows = [[case, *(_peer(one.get(who)) for who in whos)] for case, one in cases.items()]
        made += paragraph(f"{name}.json: milliseconds, and how many times as fast fastlstm is. {tables.where(found)}.")
        made += table(["", *whos], rows)
    reasons: dict[str, list[str]] = {}
    for case, lacking in found.get("not measured", {}).items():
        for who, why in lacking.items():
            reasons.setdefault(why, []).append(f"{case} by {who}")
    return made + "".join(missing(f"{', '.join(cases)} ({name}.json): {why}") for why, cases in reasons.items())


def _peer(one: dict[str, float] | None) -> str:
    """Return a time, with the speed-up if there is one."""
    if one is None:
        return "not run"
    milliseconds = one["seconds"] * 1e3
    shown = f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:.0f}"
    return shown + (f" ({one['speedup']:.2f})" if one.get("speedup", 1.0) != 1.0 else "")


def grid(found: dict[str, Any]) -> str:
    """Return means over shapes, and the heat maps."""
    maps = []
    for way, peer in pictures.HEAT_MAPS:
        points = [p for p in found["results"].get("main", {}).values() if peer in p.get(way, {})]
        name = pictures.PEERS[peer]
        if not points:
            maps.append(missing(f"grid.json has no {way} by {name}"))
            continue
        cells = dict.fromkeys(p["cell"] for p in points)
        hiddens, batches = (sorted({p[key] for p in points}) for key in ("hidden_size", "batch"))
        values = {(p["cell"], p["batch"], p["hidden_size"]): p[way][peer]["speedup"] for p in points}
        rows = [
            [f"{NAMES[cell]}, batch {batch}", *(_ratio(values.get((cell, batch, hidden))) for hidden in hiddens)]
            for cell in cells
            for batch in batches
        ]
        maps.append(
            figure(
                [figures.heat_map(found, way, peer, cell) for cell in cells],
                f"{way}: times as fast as {name}, 1 layer, T=100, float32. Above 1 (blue) fastlstm is faster, "
                f"below (red) {name}. {tables.where(found, 'onnxruntime')}.",
                table(["", *(f"H {hidden}" for hidden in hiddens)], rows),
            )
        )
    narrow = markdown(tables.bfloat16()) if tables.exists("bfloat16-speed.json") else ""
    return narrow + markdown(tables.grid()) + "".join(maps)


def _ratio(value: float | None) -> str:
    """Return a number as text; empty if there is none."""
    return "" if value is None else f"{value:.2f}"


def latency(found: dict[str, Any]) -> str:
    """Return the distribution of one step's time."""
    panels, key = figures.latency(found)
    quantiles = ("p50", "p99", "p99.9", "max", "after a rest")
    rows = [
        [case.removesuffix(" T=1"), name, *(f"{one[q]:.3g}" if q in one else "" for q in quantiles)]
        for case, contenders in found["results"]["steps"].items()
        for name, one in contenders.items()
    ]
    caption = (
        "Time of one step called from Python in microseconds, by quantile: one step in a hundred takes longer than p99. "
        f"Lower is better. {tables.where(found, 'onnxruntime')}."
    )
    drawn = figure(panels, caption, table(["case", "by", *quantiles], rows), key)
    return markdown(tables.latency()) + drawn


def roofline(found: dict[str, Any]) -> str:
    """Return how near layers come to the machine's limits."""
    panels, key = figures.roofline(found)
    ways = [(name, way, p[way]) for name, p in found["results"]["points"].items() for way in pictures.WAYS]
    rows = [
        [name, way, f"{p['intensity']:.3g}", f"{p['operations'] / p['seconds'] / 1e9:.3g}", f"{p['share']:.0%}"]
        for name, way, p in ways
    ]
    sizes = ", ".join(map(str, sorted({p["hidden_size"] for p in found["results"]["points"].values()})))
    drawn = figure(
        panels,
        f"Operations per second over operations per byte, under measured roofs; markers grow with the hidden size: {sizes}. "
        f"{tables.where(found)}.",
        table(["case", "", "operations per byte", "GFLOP/s", "share of the floor"], rows),
        key,
    )
    return markdown(tables.roofline()) + drawn


def gates(found: dict[str, Any]) -> str:
    """Return the three gates of an LSTM over a line of text."""
    made: list[str] = []
    for name, one in found["results"]["lstm"].items():
        line, activity = one["line"], {gate: np.array(values) for gate, values in one["gates"].items()}
        order = {gate: np.argsort(values.mean(1)) for gate, values in activity.items()}
        s = one["settings"]
        made.append(
            paragraph(
                f"An LSTM of {s['num_layers']} layer with {s['hidden_size']} units learned the {name} by character for "
                f"{s['epochs']} epochs ({one['seconds']:.0f} seconds, held-out loss {one['valid_loss']:.2f}). The line was "
                "held out. Dark means that the gate is closed, bright that it is open. The input gate lets new values into "
                "the cell, the forget gate keeps the cell's values, the output gate passes them to the layers above and to "
                "the next step."
            )
        )
        for gate, values in activity.items():
            mean = values.mean(0)
            unit = int(values.std(1).argmax())
            scaled = (mean - mean.min()) / (np.ptp(mean) or 1)
            made += [
                f"<h3>{gate} gate</h3>",
                paragraph(f"mean of all units, from {mean.min():.2f} (dark) to {mean.max():.2f} (bright):", "soft"),
                figures.strip(line, scaled.tolist()),
                paragraph(f"the unit that varies most, number {unit}, from 0 (dark) to 1 (bright):", "soft"),
                figures.strip(line, values[unit].tolist()),
            ]
        half = -(-len(line) // 2)
        panels = [figures.gate_map(line, one["gates"], at, min(at + half, len(line)), order) for at in (0, half)]
        rows = [
            [k + 1, "space" if c == " " else c, *(f"{values[:, k].mean():.2f}" for values in activity.values())]
            for k, c in enumerate(line)
        ]
        made.append(
            figure(
                panels,
                f"The gates of every unit over the line; units are sorted by their mean. {tables.where(found)}.",
                table(["", "character", *(f"{gate}, mean" for gate in activity)], rows),
            )
        )
    return "".join(made)


def gpu(found: dict[str, Any]) -> str:
    """Return times of training steps and layers on the GPU, and what failed there."""
    results, rows = found["results"], []
    for name, one in results.get("step", {}).items():
        rows.append([f"training step, {name}{_conditions(one)}", *_milliseconds(one)])
    for name, one in results.get("layers", {}).items():
        ways = {"": one} if "failed" in one else {way: one[way] for way in one if way != "conditions"}
        rows += [[f"{name} {way}".strip() + _conditions(one), *_milliseconds(times)] for way, times in ways.items()]
    checks = [one for section in ("check", "same", "train", "sanitize") for one in results.get(section, {}).values()]
    failed, missed = (sum(what in one for one in checks) for what in ("failed", "left out"))
    counts = f"Of {len(checks)} checks {failed} failed" + (f", {missed} left something out" if missed else "")
    made = paragraph(f"{gpu_name(found)}. {counts}.")
    return made + table(["", "fastlstm, ms", "PyTorch, ms", "times as fast"], rows)


def _conditions(one: dict[str, Any]) -> str:
    """Return why the usual forms could not be chosen; empty if they could."""
    return f" ({one['conditions']})" if "conditions" in one else ""


def _milliseconds(one: dict[str, Any]) -> list[str]:
    """Return fastlstm's time, torch's and their ratio; or the error."""
    if "failed" in one:
        return [f"failed: {one['failed'].strip().splitlines()[-1][:200]}", "", ""]
    return [f"{one[by]:.3g}" if by in one else "–" for by in ("fastlstm", "torch")] + [_ratio(one.get("speedup"))]


def torch_layers(found: dict[str, Any]) -> str:
    """Return the times of layers that are called through torch."""
    rows = []
    for section, points in found["results"].items():
        for name, point in points.items():
            for way in ("training", "inference"):
                one = point[way]
                share = f"{one['share']:.0%}" if "share" in one else "–"
                rows.append(
                    [
                        f"{name}, {section}",
                        way,
                        f"{one['through']:.3g}",
                        f"{one['torch']:.3g}",
                        f"{one['times as fast']:.2f}",
                        share,
                    ]
                )
    heads = [
        "layer",
        "",
        "fastlstm through torch, ms",
        "torch.nn, ms",
        "times as fast",
        "share of the native layer's advantage",
    ]
    return paragraph(f"{tables.where(found)}.") + table(heads, rows)


def _made_by(found: dict[str, Any]) -> tuple[str, str]:
    """Return machine and versions in words."""
    m = found["machine"]
    about = f"{m['processor']} ({m['llvm_processor']}), {m['threads']} threads, {m['in_use']}, {m['system']}"
    return about, ", ".join(f"{name} {version}" for name, version in found["versions"].items())


def machines() -> Html:
    """Return the machine and the versions of each result file."""
    rows = []
    for path in sorted(tables.RESULTS.glob("*.json")):
        found = tables.read(path.stem)
        if "machine" not in found:
            rows.append([path.name, *_without_machine(found), "–", "–"])
            continue
        disturbed = "; ".join(f"{point} ({share:.0%} of a processor)" for point, share in found.get("disturbed", {}).items())
        times = [*found.get("apart", {}).values()]
        rows.append([path.name, *_made_by(found), disturbed or "–", f"{min(times)}–{max(times)}" if times else "–"])
        others: dict[tuple[str, str], list[str]] = {}
        for name, entry in tables.signed(found["results"]):
            others.setdefault(_made_by(entry), []).append(name)
        rows += [[f"{path.name}, {', '.join(names)}", *by, "–", "–"] for by, names in others.items()]
    words = paragraph(
        "Each figure is of the machine that its file names, or that the figure names itself. Times that are compared with a "
        "peer's are medians of blocks of calls, which alternate in one process, after rests; ratios are medians of the "
        "ratios of neighbouring blocks. The processors of a virtual machine may move, so the time from one thread to "
        "another differs between points."
    )
    heads = ["file", "machine", "versions", "disturbed by others", "nanoseconds from thread to thread and back"]
    return Html(words + table(heads, rows))


def _without_machine(found: dict[str, Any]) -> tuple[str, str]:
    """Return machine and versions of a file that has no entry "machine": of a GPU, or of numbers that were not measured."""
    if "now" in found:
        return "none: read from machine code, not measured", f"NVRTC {found['now']['nvrtc']}"
    about = found["results"]["machine"]["device"]
    return gpu_name(found), ", ".join(
        f"{name} {about[name]}" for name in ("cupy", "runtime", "nvrtc", "torch") if name in about
    )


def html() -> str:
    """Return the page."""
    groups = [claims.ratios(), claims.systems(), claims.more()]
    answers = [claim.here for group in groups for claim in group]
    kinds = Counter("depend on what is measured" if one.depends else COUNTED[one.holds] for one in answers)
    counts = ", ".join(f"{kinds[words]} {words}" for words in dict.fromkeys((*COUNTED.values(), *kinds)))
    reasons = Counter(one.brief.split(": ")[0] for one in answers if one.holds is None)
    first = content("article-speed")
    introduction: str = paragraph(
        "A community article on LSTMs of October 2025 gives training times, perplexities and memory spans of a plain RNN, "
        "an LSTM, a GRU and a Transformer. This page compares each of its figures with those of fastlstm and PyTorch on the "
        f"machines named below. Of its {len(answers)} figures and claims {counts}. The GRU's 25 % and 0.78 are one "
        "measurement."
    )
    introduction += details(
        "Why some have no answer here",
        table(["figures and claims", "because"], [[count, reason] for reason, count in reasons.most_common()]),
    )
    introduction += paragraph(f"Speeds: {tables.where(first, 'onnxruntime')}." if first else absent("article-speed"), "soft")
    return page(
        TITLE,
        introduction,
        {
            "The article's figures": article(),
            "Speed": speed(),
            "One step": needs("latency", latency),
            "Roofline": needs("roofline", roofline),
            "Learning": learning.learning(),
            "Generation": needs("generation", learning.generation),
            "Memory span": needs("memory-span", learning.spans),
            "Gates": needs("gate-activity", gates),
            "GPU": needs("gpu", gpu),
            "Through PyTorch": needs("torch-layers", torch_layers),
            "Machine and versions": machines(),
        },
    )


def main() -> None:
    """Write the page and the summary picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", type=Path, default=DOCS / "report.html", help="the page (default: %(default)s)")
    parser.add_argument("--summary", type=Path, default=DOCS / "summary.png", help="the picture (default: %(default)s)")
    options = parser.parse_args()
    options.html.write_text(html(), encoding="utf-8")
    print(options.html)
    if speeds := content("article-speed"):
        pictures.draw_summary(speeds, options.summary)


if __name__ == "__main__":
    main()
