"""The report's sections on what models learnt: curves by kind of tokens, what they write, how far back they remember."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from benchmarks import report_figures, tables
from benchmarks.report_html import Html, details, figure, missing, paragraph, table
from benchmarks.report_results import LARGER, NAMES, absent, runs

TOKENS = {"char": "By character", "bpe": "By byte pairs", "word": "By word"}
MODELS = NAMES | LARGER
EXPLAINED = {
    "recall": "one symbol among noise is asked for, so many tokens later. Small models trained for it",
    "copy": "every token of a stream is asked for again, so many tokens later: all between have to be held. Small models "
            "trained for it",
    "gradient": "what is left of the gradient of a token's loss at the input so many tokens back. Trained text models",
    "context": "loss when only so many tokens are those that really came before: a recurrent model has read another place of "
               "the text before them, a Transformer nothing. Trained text models",
}  # fmt: skip
UPS = {
    "recall": "share recalled", "copy": "share repeated", "gradient": "share of the gradient's norm", "context": "loss, nats",
}  # fmt: skip


def learning() -> Html:
    """Curves by kind of tokens, and what the models write."""
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
    """Runs of one kind of tokens: the best of each, curves, samples."""
    longest = max(run["epochs"] for run in own.values())
    top = min(max(run["valid_loss"][0] for run in own.values()), min(run["best_loss"] for run in own.values()) + 0.6)

    def panel(name: str, title: str, across: str, faint: bool = False) -> tuple[Html, Html]:
        lines: report_figures.Lines = {}
        thin: report_figures.Lines = {}
        for label, run in own.items():
            x = np.arange(1, run["epochs"] + 1) if across == "epoch" else np.cumsum(run["seconds"]) / 3600
            lines[label] = (x, run["valid_loss"])
            thin[label] = (x, run["train_loss"]) if faint else ([], [])
        return report_figures.curves(f"{name}{tokens}", title, lines, across, f"nats by {tokens}", faint=thin, top=top)

    panels = [
        panel("all", "held-out loss", "epoch"),
        panel("train", "held-out and training loss (thin)", "epoch", faint=True),
        panel("time", "held-out loss by time", "hours"),
    ]
    losses = [run["valid_loss"] for run in own.values()]
    numbers = [[k + 1, *(f"{loss[k]:.3f}" if k < len(loss) else "" for loss in losses)] for k in range(longest)]
    remarks = dict.fromkeys(f"{run['file']}.json: {run['machine']['processor']}. {run['remark']}" for run in own.values())
    caption = f"Loss on the held-out tenth of Shakespeare, natural logarithm. {' '.join(remarks)}"
    samples = [f"<h3>{name}</h3><pre>{escape(run['sample'])}</pre>" for name, run in own.items() if run.get("sample")]
    return Html(
        f"<h3>{TOKENS.get(tokens, tokens)}</h3>{bests(tokens, own)}{reached(own)}"
        + figure([drawn for drawn, _ in panels], caption, table(["epoch", *own], numbers), panels[0][1])
        + details("What they write after “To be or not to be”, temperature 0.8", "".join(samples))
    )


def bests(tokens: str, own: dict[str, dict[str, Any]]) -> Html:
    """The best epoch of each run."""
    overlaps = any("valid_loss_with_context" in run for run in own.values())
    heads = ["model", "epochs", "hours", "best held-out loss", "in epoch", "perplexity", "bits per character"]
    heads += ["best loss where windows overlap"] * overlaps
    rows = []
    for name, run in own.items():
        bits = None if tokens == "word" else run["best_bits_per_character"]
        row = [name, run["epochs"], f"{run['hours']:.2f}", f"{run['best_loss']:.3f}", run["best_epoch"],
               f"{run['best_perplexity']:.2f}", f"{bits:.2f}" if bits else "–"]  # fmt: skip
        overlapping = run.get("valid_loss_with_context")
        rows.append(row + [f"{min(overlapping):.3f}" if overlapping else "–"] * overlaps)
    words = "" if not overlaps else paragraph(
        "A Transformer carries nothing from window to window. Its loss is that of the recurrent models' batches, in which a "
        "token has 50 tokens before it in the mean; where windows overlap by half, all have 51 or more.", "soft"
    )  # fmt: skip
    return Html(table(heads, rows) + words)


def reached(own: dict[str, dict[str, Any]]) -> str:
    """Hours to given losses, where runs tell them."""
    told = {name: run["hours_to_loss"] for name, run in own.items() if "hours_to_loss" in run}
    if not told:
        return ""
    losses = sorted({float(loss) for one in told.values() for loss in one}, reverse=True)
    rows = [[name, *(f"{one[str(loss)]:.3f}" if str(loss) in one else "–" for loss in losses)] for name, one in told.items()]
    return details("Hours until the held-out loss fell to", table(["model", *(f"{loss:g}" for loss in losses)], rows))


def spans(found: dict[str, Any]) -> str:
    """Memory span by each measure."""
    made = ""
    for measure, own in found["results"].items():
        kind, _, by = measure.partition(" by ")
        series = {MODELS.get(model, model): (one["tokens"], one["values"]) for model, one in own.items()}
        drawn, key = report_figures.curves(
            f"span{measure.replace(' ', '')}", measure, series, "tokens", UPS.get(kind, ""), log=kind == "gradient"
        )
        rows = [[name, x, f"{y:.3g}"] for name, (xs, ys) in series.items() for x, y in zip(xs, ys, strict=True)]
        summary = table(["model", "tokens remembered", "criterion"], [
            [MODELS.get(model, model), f"{one['span']:.3g}", one["criterion"]] for model, one in own.items()
        ])  # fmt: skip
        caption = f"{measure}: {EXPLAINED.get(kind, '')}. {tables.where(found)}."
        tokens = f" of {by}s" if by else " of characters" if kind in ("gradient", "context") else ""
        made += f"<h3>{measure.capitalize()}</h3>" + paragraph(f"Models{tokens}: {EXPLAINED.get(kind, measure)}.")
        made += summary + figure([drawn], caption, table(["model", "tokens", "value"], rows), key)
    return made


def generation(found: dict[str, Any]) -> str:
    """Real words by position, and what is copied."""
    own = found["results"]
    rows = [
        [MODELS.get(model, model), f"{np.mean(one['real words']):.1%}", f"{one['span']:.3g}", one["longest match"],
         f"{one['median match']:.3g}"]
        for model, one in own.items()
    ]  # fmt: skip
    words = paragraph(
        "1,000 samples of 400 characters after “To be or not to be”, temperature 0.8, by models of characters. A word is real "
        "if the training text has it. The held-out text, cut into as many pieces, is measured by the same rules: it too has "
        "words that the training text lacks, so no model can be expected to go farther without one."
    )
    heads = ["model", "real words", "words before the first that is none, median", "longest copied piece, characters", "median"]
    series = {MODELS.get(model, model): (one["position"], one["real words"]) for model, one in own.items()}
    drawn, key = report_figures.curves("realwords", "real words by position", series, "word of the sample", "share")
    numbers = [[name, x, f"{y:.3f}"] for name, (xs, ys) in series.items() for x, y in zip(xs, ys, strict=True)]
    caption = f"Share of samples whose word at that place is a word of the training text. {tables.where(found)}."
    return words + table(heads, rows) + figure([drawn], caption, table(["model", "word", "share"], numbers), key)
