"""The article's figures and claims beside what the stored results say, each with a verdict and the reason for it.

A measured figure holds where it is within 10 % of the article's: two runs on one machine may differ by that.

Two result files are read here that other programs write:

memory-span.json
    results[measure][cell] = {"tokens": [...], "values": [...], "span": number, "criterion": str}, measure one of "recall",
    "gradient" (norms, as a share of that at distance 0) and "context".
generation.json
    results[cell] = {"position": [...], "real words": [...], "span": words, "criterion": str, "longest match": characters}

Cells are "rnn", "lstm", "gru" and "transformer"; in memory-span.json other names are of larger models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import fastlstm
from benchmarks import tables
from benchmarks.peers import CELLS
from benchmarks.report_results import NAMES, TRANSFORMERS, absent, best_runs, content, no_step, step, stored_ratio

NEAR = 0.1
HIDDEN, LAYERS, VOCABULARY = 256, 2, 65
HOURS = {"rnn": (6, None), "lstm": (18, 2), "gru": (14, 1.5), "transformer": (None, 0.5)}  # CPU, GPU
PERPLEXITY = {"rnn": 125.3, "gru": 48.2, "lstm": 45.7, "transformer": 28.4}  # in the order that it claims
COHERENT = {"rnn": "10–15 words", "lstm": "40–50 words", "gru": "like the LSTM", "transformer": "500+ tokens"}
STEPS = 50 * 156  # epochs, and steps of 64 x 100 characters in the nine tenths of the text that are trained on
MEASURES = {"recall": "recall", "gradient": "gradient", "context": "context"}


@dataclass(frozen=True)
class Answer:
    """What was measured, whether the claim holds by it (None: not measured), and by how much or why not."""

    value: str = ""
    holds: bool | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """In words."""
        return {True: "holds", False: "does not hold", None: "not measurable here" if self.value else "not measured here"}[
            self.holds
        ]


@dataclass(frozen=True)
class Claim:
    """A claim of the article, and the answers to it."""

    what: str
    article: str
    here: Answer
    torch: Answer | None = None


def holds(measured: float, article: float) -> bool:
    """See the top of this file."""
    return abs(measured / article - 1) <= NEAR


def compared(measured: float, article: float, note: str) -> Answer:
    """A ratio beside the article's."""
    off = f"{measured / article - 1:+.0%}".replace("-", "−")
    return Answer(f"{measured:.3g}", holds(measured, article), f"{'the same' if off in ('+0%', '−0%') else off}; {note}")


def systems() -> list[Claim]:
    """The table of the article's four systems."""
    best = best_runs()
    found = []
    for cell, (cpu, gpu) in HOURS.items():
        name = NAMES[cell]
        for side, hours in (("CPU", cpu), ("GPU", gpu)):
            if hours is not None:
                contenders = ("transformer",) if cell == "transformer" else ("fastlstm", "torch")
                by = [_hours(best, side, cell, hours, who) for who in contenders]
                found.append(Claim(f"{name}: {side} time", f"{hours:g} h", *by))
        found.append(Claim(f"{name}: perplexity", f"{PERPLEXITY[cell]}", _perplexity(best, cell)))
        found.append(Claim(f"{name}: generates coherent text over", COHERENT[cell], _generation(cell)))
    return found


def _hours(best: dict[str, Any], side: str, cell: str, article: float, by: str) -> Answer:
    """Hours of the 50 epochs: from the whole run where there is one, and from the time of a step."""
    run = best.get("char", {}).get(cell) if (side, by) == ("CPU", "fastlstm") else None
    values = []
    if run and run["epochs"] == 50:
        how = f"whole run on {run['machine']['processor']}. {run['remark']}".rstrip(". ")
        values.append((run["hours"], how))
    cases = TRANSFORMERS.values() if cell == "transformer" else [cell]
    for case in cases:
        if time := step(side, case, by):
            named = f"{case}, " if len(cases) > 1 else ""
            values.append((time.seconds * STEPS / 3600, f"{named}{STEPS} times a step's time on {time.where}"))
    if not values:
        return Answer(note="; ".join(dict.fromkeys(no_step(side, case, by) for case in cases)))
    faster = article / values[-1][0]
    machine_of = "names no processor" if side == "CPU" else "used an RTX 3090"
    note = "; ".join(f"{value:.2f} h: {how}" for value, how in values)
    shown = " / ".join(f"{value:.2f} h" for value, _ in values)
    note = f"{faster:.3g} times as fast as the article, which {machine_of}; {note}"
    return Answer(shown, holds(values[-1][0], article), note)


def _perplexity(best: dict[str, Any], cell: str) -> Answer:
    """Perplexity by kind of tokens: only tokens of the article's kind could compare, and it does not name them."""
    found = {tokens: own[cell] for tokens, own in best.items() if cell in own}
    if not found:
        return Answer(note=f"no learning run of the {NAMES[cell]} is stored")
    value = ", ".join(f"{run['best_perplexity']:.3g} by {tokens}" for tokens, run in found.items())
    bits = [f"{run['best_bits_per_character']:.2f} bits per character" for tokens, run in found.items() if tokens == "char"]
    fits = [tokens for tokens, run in found.items() if holds(run["best_perplexity"], PERPLEXITY[cell])]
    unnamed = "the article does not name its tokens, on which perplexity depends"
    if fits:
        return Answer(value, True, f"{unnamed}; it fits {' and '.join(fits)} tokens")
    if set(found) == {"char"}:
        return Answer(value, None, f"{', '.join(bits)}; {unnamed}, and only runs by character are stored")
    return Answer(value, False, f"{unnamed}; none of those measured fits")


def _generation(cell: str) -> Answer:
    """Words before a sample loses coherence."""
    file = content("generation")
    if file is None or cell not in file["results"]:
        return Answer(note=absent("generation") if file is None else f"generation.json has no {NAMES[cell]}")
    one, ranges = file["results"][cell], {"rnn": (10, 15), "lstm": (40, 50), "gru": (40, 50), "transformer": (500, math.inf)}
    low, high = ranges[cell]
    return Answer(f"{one['span']:.3g} words", low <= one["span"] <= high, one["criterion"])


def ratio(claim: str, article: float, over: tuple[str, str], under: tuple[str, str], by: str, inverse: bool = False) -> Answer:
    """One (side, cell)'s step over another's: as the suite computed it, else from stored times; inverse turns that over."""
    if found := stored_ratio(claim, by):
        value, where = found
    else:
        times = [step(*part, by) for part in (over, under)]
        lacking = [no_step(*part, by) for part, time in zip((over, under), times, strict=True) if time is None]
        if lacking:
            return Answer(note="; ".join(dict.fromkeys(lacking)))
        above, below = (time for time in times if time)
        value = above.seconds / below.seconds
        where = above.where if above.where == below.where else f"{above.where}, over {below.where}"
        if above.file != below.file:
            where += ", two machines: it says as much of these two as of the cells"
    return compared(1 / value if inverse else value, article, where)


def ratios() -> list[Claim]:
    """The article's table of ratios."""
    best = best_runs()

    def both(what: str, article: float, over: tuple[str, str], under: tuple[str, str]) -> Claim:
        return Claim(what, f"{article:g}", *(ratio(what, article, over, under, by) for by in ("fastlstm", "torch")))

    size = {cell: getattr(fastlstm, kind)(HIDDEN, HIDDEN, LAYERS).params.flat.size for cell, kind in CELLS.items()}
    whole = {
        cell: fastlstm.LanguageModel(VOCABULARY, cell, hidden_size=HIDDEN, num_layers=LAYERS).params.flat.size for cell in CELLS
    }
    return [
        both("LSTM: CPU time / GPU time", 9.0, ("CPU", "lstm"), ("GPU", "lstm")),
        both("GRU: CPU time / GPU time", 9.33, ("CPU", "gru"), ("GPU", "gru")),
        both("CPU: LSTM time / RNN time", 3.0, ("CPU", "lstm"), ("CPU", "rnn")),
        both("CPU: GRU time / LSTM time", 0.78, ("CPU", "gru"), ("CPU", "lstm")),
        both("GPU: GRU time / LSTM time", 0.75, ("GPU", "gru"), ("GPU", "lstm")),
        Claim("GPU: LSTM time / Transformer time", "4", _over_transformer(4.0)),
        *(
            Claim(f"parameters: {NAMES[a]} / {NAMES[b]}", f"{article:g}", compared(size[a] / size[b], article,
                  f"layers {size[a]:,} / {size[b]:,}; with embedding and head {whole[a] / whole[b]:.3g}"))
            for a, b, article in (("lstm", "rnn", 4.0), ("gru", "lstm", 0.75))
        ),
        Claim("perplexity: RNN > GRU > LSTM > Transformer", "125.3 > 48.2 > 45.7 > 28.4", _order(best)),
        Claim("memory: tokens remembered, RNN", "5–10", _span(["rnn"], 5, 10)),
        Claim("memory: tokens remembered, LSTM and GRU", "30–50", _span(["lstm", "gru"], 30, 50)),
        Claim("gradients survive through the cell state", "LSTM yes, RNN no", _gradients()),
    ]  # fmt: skip


def _over_transformer(article: float) -> Answer:
    """The LSTM's time by fastlstm over the Transformers' by PyTorch, on the GPU."""
    found = {size: stored_ratio(f"GPU: LSTM time / Transformer time, {size}", "fastlstm") for size in TRANSFORMERS}
    values = {size: one for size, one in found.items() if one}
    if not values:
        return Answer(note="; ".join(dict.fromkeys(no_step("GPU", case, "transformer") for case in TRANSFORMERS.values())))
    shown = ", ".join(f"{value:.3g} ({size})" for size, (value, _) in values.items())
    return Answer(shown, any(holds(value, article) for value, _ in values.values()), next(iter(values.values()))[1])


def _order(best: dict[str, Any]) -> Answer:
    """The order of perplexities, by kind of tokens."""
    if not best:
        return Answer(note=absent("article-learning"))
    values, notes, verdicts = [], [], []
    for tokens, own in best.items():
        ranked = sorted(own, key=lambda cell: -own[cell]["best_loss"])
        values.append(f"{tokens}: " + " > ".join(f"{NAMES[cell]} {own[cell]['best_perplexity']:.3g}" for cell in ranked))
        verdicts.append(ranked == [cell for cell in PERPLEXITY if cell in own] and len(own) > 1)
        if lacking := [NAMES[cell] for cell in PERPLEXITY if cell not in own]:
            notes.append(f"{', '.join(lacking)} not trained here by {tokens}")
    return Answer("; ".join(values), all(verdicts), "; ".join(["one seed each", *notes]))


def _span(cells: list[str], low: float, high: float) -> Answer:
    """Tokens remembered, by each measure."""
    file = content("memory-span")
    if file is None:
        return Answer(note=absent("memory-span"))
    found = {f"{NAMES[cell]} {measure}": file["results"][measure][cell]["span"] for measure in MEASURES
             for cell in cells if cell in file["results"].get(measure, {})}  # fmt: skip
    if not found:
        return Answer(note=f"memory-span.json has no {' nor '.join(NAMES[cell] for cell in cells)}")
    within = [name for name, span in found.items() if low <= span <= high]
    value = ", ".join(f"{name} {span:.3g}" for name, span in found.items())
    return Answer(value, len(within) == len(found), f"within {low}–{high} by {', '.join(within) if within else 'none'}")


def _gradients() -> Answer:
    """How much of the gradient is left far back, LSTM beside RNN."""
    file = content("memory-span")
    if file is None or not {"lstm", "rnn"} <= set(file["results"].get("gradient", {})):
        return Answer(note=absent("memory-span") if file is None else "memory-span.json has no gradients of both cells")
    own = {cell: dict(zip(one["tokens"], one["values"], strict=True)) for cell, one in file["results"]["gradient"].items()}
    far = max(set(own["lstm"]) & set(own["rnn"]))
    left = {cell: own[cell][far] for cell in ("lstm", "rnn")}
    note = f"share of the gradient's norm that is left {far} tokens back; holds where the LSTM's is ten times the RNN's"
    return Answer(f"LSTM {left['lstm']:.2g}, RNN {left['rnn']:.2g}", left["lstm"] > 10 * left["rnn"], note)


def more() -> list[Claim]:
    """Claims of the article's text."""
    best = best_runs()
    faster = "CPU: GRU time / LSTM time", 1.25, ("CPU", "gru"), ("CPU", "lstm")
    unmeasured = "no stored run measures it yet"
    return [
        Claim("the GRU is 25 % faster than the LSTM", "1.25 times as fast",
              *(ratio(*faster, by, inverse=True) for by in ("fastlstm", "torch"))),
        Claim("the LSTM's perplexity is 3 times better than the RNN's", "3 (2.7 by its own table)", _better(best, 2.7)),
        Claim("Transformers are 10 times faster", "10 (4 by its own table)", _over_transformer(10.0)),
        Claim("a Transformer's memory is quadratic in length", "quadratic", Answer(note=unmeasured)),
        Claim("a hard limit of about 50 tokens; 512 units or 3 layers move it little", "about 50", _remedies()),
        Claim("a recurrence is impossible to parallelise", "impossible", _parallel()),
        Claim("text stays coherent over 30–50 words (LSTM) against 5–10 (RNN)", "30–50 against 5–10", _coherence()),
        Claim("its sample texts", "To be or not to be …", Answer("not in the text", None, "neither its prompt nor “slings and "
              "arrows” (both of Hamlet) occurs in the megabyte of Shakespeare, so they cannot be checked against it")),
    ]  # fmt: skip


def _better(best: dict[str, Any], article: float) -> Answer:
    """The RNN's perplexity over the LSTM's."""
    found = {tokens: own["rnn"]["best_perplexity"] / own["lstm"]["best_perplexity"] for tokens, own in best.items()
             if {"rnn", "lstm"} <= set(own)}  # fmt: skip
    if not found:
        return Answer(note=absent("article-learning"))
    value = ", ".join(f"{ratio:.3g} by {tokens}" for tokens, ratio in found.items())
    return Answer(
        value, any(holds(ratio, article) for ratio in found.values()), "beside the 2.7 of its table; best validation losses"
    )


def _remedies() -> Answer:
    """Memory of larger models."""
    file = content("memory-span")
    larger = {name: one for measure in (file or {"results": {}})["results"].values() for name, one in measure.items()
              if name not in NAMES}  # fmt: skip
    if not larger:
        return Answer(note=absent("memory-span") if file is None else "memory-span.json has no larger models")
    value = ", ".join(f"{name} {one['span']:.3g}" for name, one in larger.items())
    return Answer(value, all(one["span"] <= 60 for one in larger.values()), "holds where none remembers more than 60 tokens")


def _parallel() -> Answer:
    """What a second thread brings to a training step's layers."""
    file = content("grid")
    points = (file or {"results": {}})["results"].get("threads", {})
    if file is None or not points:
        return Answer(note=absent("grid") if file is None else "grid.json has no section of threads")
    value = ", ".join(f"{NAMES[name.split()[0]]} {one['speedup']:.2f}" for name, one in points.items())
    threads = next(iter(points.values()))["threads"]
    note = f"times as fast on {threads} threads as on one: steps follow each other, the rows and units within a step need not"
    return Answer(value, all(one["speedup"] < 1.1 for one in points.values()), note)


def _coherence() -> Answer:
    """Both cells' words before coherence is lost."""
    found = {cell: _generation(cell) for cell in ("lstm", "rnn")}
    if any(one.holds is None for one in found.values()):
        return Answer(note=absent("generation"))
    spans = {cell: (content("generation") or {})["results"][cell]["span"] for cell in found}
    return Answer(", ".join(f"{NAMES[cell]} {span:.3g}" for cell, span in spans.items()),
                  30 <= spans["lstm"] <= 50 and 5 <= spans["rnn"] <= 10, found["lstm"].note)  # fmt: skip


def markdown() -> list[str]:
    """The README's table: every claim with its verdict in a few words."""
    rows = []
    for claim in [*systems(), *ratios(), *more()]:
        reason = f": {claim.here.note}" if claim.here.holds is None else ""
        rows.append([claim.what, claim.article, claim.here.value or "–", (claim.torch and claim.torch.value) or "–",
                     f"{claim.here.verdict}{reason}".replace("|", "/")])  # fmt: skip
    first = "**The article beside here.** A figure holds within 10 % of the article's; `docs/report.html` has all figures."
    return [first, *tables.table(["claim", "article", "fastlstm", "PyTorch", "verdict"], rows), ""]
