"""Makes the report's sections on learning: curves by kind of tokens, generated text, and how far back models remember."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from benchmarks.report import figures, tables
from benchmarks.report.html import Html, details, figure, missing, paragraph, table
from benchmarks.report.quality import remembered
from benchmarks.report.results import LARGER, NAMES, absent, runs

TOKENS = {"char": "By character", "bpe": "By byte pairs", "word": "By word"}
MODELS = NAMES | LARGER
BY = (" by byte pair", " by word")  # measures of characters have no such ending
EXPLAINED = {
    "gradient": "**Gradient**, of trained text models: how much of the gradient of a token's loss is left at the input some "
    "tokens back. If nothing is left, the model cannot learn from that input. The span ends before the first distance at "
    "which less is left than the share named below the table.",
    "context": "**Context**, of the same models: the loss if only some of the last tokens are the right ones. Before these, a "
    "recurrent model has read another part of the text, and a Transformer nothing.",
    "recall": "**Recall**, of small models trained for it: the model must name one symbol that it saw among noise some "
    "tokens before.",
    "copy": "**Copy**, of small models trained for it: the model must repeat every token of a stream some tokens later, so "
    "it must remember all tokens in between.",
}
UPS = {
    "recall": "share recalled",
    "copy": "share repeated",
    "gradient": "share of the gradient's norm",
    "context": "loss, nats",
}
CAPTIONS = {
    "gradient": "Share of the gradient's norm that is left, by tokens back",
    "context": "Loss in nats, by the number of right tokens",
    "recall": "Share of symbols that are recalled, by tokens in between",
    "copy": "Share of tokens that are repeated, by the delay in tokens",
}


def learning() -> Html:
    """Return curves by kind of tokens, and text that the models generate."""
    found = runs()
    if not found:
        return missing(absent("article-learning"))
    made = []
    for tokens in dict.fromkeys(run["tokens"] for _, run in found):
        made.append(learned(tokens, {name: run for name, run in found if run["tokens"] == tokens}))
    kinds = {run["tokens"] for _, run in found}
    lacking = [words for tokens, words in (("bpe", "byte pairs"), ("word", "words")) if tokens not in kinds]
    lacking += ["a Transformer"] * all(run["cell"] != "transformer" for _, run in found)
    if lacking:
        made.append(missing(f"{', '.join(lacking)}: no such run is stored in benchmarks/results/*-learning.json"))
    return Html("".join(made))


def learned(tokens: str, own: dict[str, dict[str, Any]]) -> Html:
    """Return the section of one kind of tokens: the best of each run, curves, samples."""
    longest = max(run["epochs"] for run in own.values())
    top = min(max(run["valid_loss"][0] for run in own.values()), min(run["best_loss"] for run in own.values()) + 0.6)

    def panel(name: str, title: str, across: str, faint: bool = False) -> tuple[Html, Html]:
        lines: figures.Lines = {}
        thin: figures.Lines = {}
        for label, run in own.items():
            x = np.arange(1, run["epochs"] + 1) if across == "epoch" else np.cumsum(run["seconds"]) / 3600
            lines[label] = (x, run["valid_loss"])
            thin[label] = (x, run["train_loss"]) if faint else ([], [])
        return figures.curves(f"{name}{tokens}", title, lines, across, f"nats by {tokens}", faint=thin, ends=(None, top))

    panels = [
        panel("all", "held-out loss", "epoch"),
        panel("train", "held-out and training loss (thin)", "epoch", faint=True),
        panel("time", "held-out loss by time", "hours"),
    ]
    losses = [run["valid_loss"] for run in own.values()]
    numbers = [[k + 1, *(f"{loss[k]:.3f}" if k < len(loss) else "" for loss in losses)] for k in range(longest)]
    files: dict[str, dict[str, str]] = {}
    for name, run in own.items():
        files.setdefault(f"{run['file']}.json: {run['clock']['processor']}.", {})[name] = run["remark"]
    told = " ".join(f"{file} {tables.remarks(by)}" for file, by in files.items())
    caption = f"Loss on the held-out tenth of Shakespeare, natural logarithm. {told}"
    samples = [f"<h3>{name}</h3><pre>{escape(run['sample'])}</pre>" for name, run in own.items() if run.get("sample")]
    return Html(
        f"<h3>{TOKENS.get(tokens, tokens)}</h3>{bests(tokens, own)}{reached(own)}"
        + figure([drawn for drawn, _ in panels], caption, table(["epoch", *own], numbers), panels[0][1])
        + details("Text that they generate after “To be or not to be”, temperature 0.8", "".join(samples))
    )


def bests(tokens: str, own: dict[str, dict[str, Any]]) -> Html:
    """Return the best epoch of each run."""
    overlaps = any("valid_loss_with_context" in run for run in own.values())
    heads = ["model", "epochs", "hours", "best held-out loss", "in epoch", "perplexity", "bits per character"]
    heads += ["best loss where windows overlap"] * overlaps
    rows = []
    for name, run in own.items():
        bits = None if tokens == "word" else run["best_bits_per_character"]
        row = [
            name,
            run["epochs"],
            f"{run['hours']:.2f}",
            f"{run['best_loss']:.3f}",
            run["best_epoch"],
            f"{run['best_perplexity']:.2f}",
            f"{bits:.2f}" if bits else "–",
        ]
        overlapping = run.get("valid_loss_with_context")
        rows.append(row + [f"{min(overlapping):.3f}" if overlapping else "–"] * overlaps)
    words = (
        ""
        if not overlaps
        else paragraph(
            "A Transformer carries no state from window to window. Its loss is measured on the batches of the recurrent "
            "models, where a token has 50 tokens before it on average; if windows overlap by half, every token has 51 or "
            f"more.{beside_lstm(own)}"
        )
    )
    return Html(table(heads, rows) + words)


def beside_lstm(own: dict[str, dict[str, Any]]) -> str:
    """Return a sentence that says whether the Transformer of the LSTM's size reaches the LSTM's loss."""
    lstms = [own[name]["best_loss"] for name in ("LSTM", "LSTM, bfloat16") if name in own]
    if not lstms or "Transformer" not in own:
        return ""
    lstm, attention = min(lstms), own["Transformer"]
    best, overlapping = attention["best_loss"], min(attention["valid_loss_with_context"])
    said = "reaches" if min(best, overlapping) <= lstm else "**does not reach**"
    return f" The Transformer of the LSTM's size {said} the LSTM's best loss of {lstm:.3f}: {best:.3f}, or {overlapping:.3f}."


def reached(own: dict[str, dict[str, Any]]) -> str:
    """Return the hours until each run reached certain losses, for runs whose steps were timed on an idle machine."""
    timed = {name: run for name, run in own.items() if run.get("step")}
    if not timed:
        return ""
    lowest = math.ceil(20 * min(run["best_loss"] for run in timed.values())) / 20
    losses = [lowest + above for above in (0.8, 0.4, 0.2, 0.1, 0.05, 0)]
    rows = []
    for name, run in timed.items():
        least = np.minimum.accumulate(run["valid_loss"])
        epochs = [int((least > loss).sum()) + 1 for loss in losses]
        rows.append([name, *(f"{n * run['hours'] / run['epochs']:.3f}" if n <= run["epochs"] else "–" for n in epochs)])
    return details("Hours until the held-out loss fell to", table(["model", *(f"{loss:.2f}" for loss in losses)], rows))


def spans(found: dict[str, Any]) -> str:
    """Return memory spans: for each way to measure them a table, and a figure with a panel for each kind of tokens."""
    made: str = paragraph(
        "By the article an RNN remembers 5–10 tokens, an LSTM and a GRU 30–50. It does not say how it counts them. The "
        "number depends on the tokens and on what remembering means:"
    )
    for kind, explained in EXPLAINED.items():
        names = [measure for measure in (f"{kind}{by}" for by in ("", *BY)) if measure in found["results"]]
        own = {measure: ordered(found["results"][measure]) for measure in names}
        if not own:
            continue
        models = list(dict.fromkeys(name for one in own.values() for name in one))
        plain = "by character" if kind in ("gradient", "context") else "tokens"
        heads = [f"by {by}" if (by := measure.partition(" by ")[2]) else plain for measure in own]
        spans = [[name, *(remembered(one[name]) if name in one else "not run" for one in own.values())] for name in models]
        criteria = dict.fromkeys(one[name]["criterion"] for one in own.values() for name in one)
        panels, rows = [], []
        for measure, one in own.items():
            series = {name: (one[name]["tokens"], one[name]["values"]) if name in one else ([], []) for name in models}
            panels.append(
                figures.curves(
                    f"span{measure.replace(' ', '')}",
                    measure,
                    series,
                    "tokens",
                    UPS[kind],
                    log=kind == "gradient",
                    across_log=kind == "context",
                    ends=(0, 1.03) if kind in ("recall", "copy") else (None, None),
                )
            )
            rows += [[measure, name, x, f"{y:.3g}"] for name, (xs, ys) in series.items() for x, y in zip(xs, ys, strict=True)]
        drawn, key = figures.shared(panels)
        made += paragraph(explained) + table(["tokens remembered", *heads], spans)
        made += paragraph("Remembered: " + "; or, ".join(criteria) + ".", "soft")
        entries = {f"{name} ({measure})": entry for measure, one in own.items() for name, entry in one.items()}
        caption = f"{CAPTIONS[kind]}. {tables.made(found, entries)}."
        made += figure(drawn, caption, table(["", "model", "tokens", "value"], rows), key)
    return made


def ordered(models: dict[str, Any]) -> dict[str, Any]:
    """Return models by the names that tables show, in one order."""
    known = [*(name for name in MODELS if name in models), *(name for name in models if name not in MODELS)]
    return {MODELS.get(name, name): models[name] for name in known}


def generation(found: dict[str, Any]) -> str:
    """Return the share of real words by position, and how much of the training text is copied."""
    own = ordered(found["results"])
    rows = [
        [name, f"{np.mean(one['real words']):.1%}", f"{one['span']:.3g}", one["longest match"], f"{one['median match']:.3g}"]
        for name, one in own.items()
    ]
    words = paragraph(
        "1,000 samples of 400 characters after “To be or not to be”, at temperature 0.8, by models of characters. A word is "
        "real if it occurs in the training text. The held-out text, cut into as many pieces, is measured by the same rules. "
        "It too has words that do not occur in the training text, so no model can be expected to do better than it."
    )
    heads = [
        "model",
        "real words",
        "words before the first that is not real, median",
        "longest copied piece, characters",
        "median",
    ]
    series = {name: (one["position"], one["real words"]) for name, one in own.items()}
    drawn, key = figures.curves("realwords", "real words by position", series, "word of the sample", "share")
    numbers = [[name, x, f"{y:.3f}"] for name, (xs, ys) in series.items() for x, y in zip(xs, ys, strict=True)]
    caption = f"Share of samples whose word at that place is a word of the training text. {tables.made(found, own)}."
    lacking = [
        missing(f"{MODELS.get(name, name)}: {why}")
        for name, why in found.get("not measured", {}).items()
        if name not in found["results"]
    ]
    shown = words + table(heads, rows) + "".join(lacking)
    return shown + figure([drawn], caption, table(["model", "word", "share"], numbers), key)
