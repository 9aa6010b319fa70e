"""The article's figures and claims beside what the stored results say, each with a verdict and the reason for it: the tables.

Those on time and size are answered here, those on quality in report_quality.
"""

from __future__ import annotations

from typing import Any

import fastlstm
from benchmarks.peers.layers import CELLS
from benchmarks.report import quality, tables
from benchmarks.report.answer import Answer, Claim, compared, holds
from benchmarks.report.quality import COHERENT, PERPLEXITY
from benchmarks.report.results import (
    EPOCHS,
    NAMES,
    STEPS,
    TRANSFORMERS,
    absent,
    best_runs,
    content,
    no_step,
    step,
    stored_ratio,
)

HIDDEN, LAYERS, VOCABULARY = 256, 2, 65
HOURS = {"rnn": (6, None), "lstm": (18, 2), "gru": (14, 1.5), "transformer": (None, 0.5)}  # CPU, GPU


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
        found.append(Claim(f"{name}: perplexity", f"{PERPLEXITY[cell]}", quality.perplexity(cell)))
        found.append(Claim(f"{name}: generates coherent text over", COHERENT[cell], quality.generation(cell)))
    return found


def _hours(best: dict[str, Any], side: str, cell: str, article: float, by: str) -> Answer:
    """Hours of the 50 epochs: from the whole run where there is one, and from the time of a step."""
    cases = {"": cell} if cell != "transformer" else {f"{size}, ": case for size, case in TRANSFORMERS.items()}
    times = {size: time for size, case in cases.items() if (time := step(side, case, by))}
    hours = {
        f"{size}{EPOCHS} epochs of {STEPS} steps of {time.seconds * 1e3:.3g} ms": time.seconds * EPOCHS * STEPS / 3600
        for size, time in times.items()
    }
    notes = list(dict.fromkeys(f"a step's time on {time.where}" for time in times.values()))
    run = best.get("char", {}).get(cell) if (side, by) == ("CPU", "fastlstm") else None
    if run and run["epochs"] == EPOCHS:
        if not hours:
            hours["the whole run"] = run["hours"]
        notes.append(f"{run['hours']:.2f} h the whole run, on {run['clock']['processor']}. {run['remark']}".rstrip(". "))
    if not hours:
        return Answer(note="; ".join(dict.fromkeys(no_step(side, case, by) for case in cases.values())))
    *_, last = hours.values()
    machine_of = "it names no processor" if side == "CPU" else "it used an RTX 3090"
    notes = [f"{article / last:.3g} times as fast as the article", machine_of, *notes]
    return Answer(", ".join(f"{value:.2f} h ({how})" for how, value in hours.items()), holds(last, article), "; ".join(notes))


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
            Claim(
                f"parameters: {NAMES[a]} / {NAMES[b]}",
                f"{article:g}",
                compared(
                    size[a] / size[b],
                    article,
                    f"layers {size[a]:,} / {size[b]:,}; with embedding and head {whole[a] / whole[b]:.3g}",
                ),
            )
            for a, b, article in (("lstm", "rnn", 4.0), ("gru", "lstm", 0.75))
        ),
        Claim("perplexity: RNN > GRU > LSTM > Transformer", "125.3 > 48.2 > 45.7 > 28.4", quality.order()),
        Claim("memory: tokens remembered, RNN", "5–10", quality.span(["rnn"], 5, 10)),
        Claim("memory: tokens remembered, LSTM and GRU", "30–50", quality.span(["lstm", "gru"], 30, 50)),
        Claim("gradients survive through the cell state", "LSTM yes, RNN no", quality.gradients()),
    ]


def _over_transformer(article: float) -> Answer:
    """The LSTM's time by fastlstm over the Transformers' by PyTorch, on the GPU."""
    found = {size: stored_ratio(f"GPU: LSTM time / Transformer time, {size}", "fastlstm") for size in TRANSFORMERS}
    values = {size: one for size, one in found.items() if one}
    if not values:
        here = {size: stored_ratio(f"CPU: LSTM time / Transformer time, {size}", "fastlstm") for size in TRANSFORMERS}
        on_cpu = " and ".join(f"{1 / one[0]:.2g} ({size})" for size, one in here.items() if one)
        notes = [no_step("GPU", case, "transformer") for case in TRANSFORMERS.values()]
        notes += [f"on the CPU the Transformer is {on_cpu} times as slow as the LSTM"] if on_cpu else []
        return Answer(note="; ".join(dict.fromkeys(notes)))
    shown = ", ".join(f"{value:.3g} ({size})" for size, (value, _) in values.items())
    return Answer(shown, any(holds(value, article) for value, _ in values.values()), next(iter(values.values()))[1])


def more() -> list[Claim]:
    """Claims of the article's text."""
    faster = "CPU: GRU time / LSTM time", 1.25, ("CPU", "gru"), ("CPU", "lstm")
    return [
        Claim(
            "the GRU is 25 % faster than the LSTM",
            "1.25 times as fast",
            *(ratio(*faster, by, inverse=True) for by in ("fastlstm", "torch")),
        ),
        Claim("the LSTM's perplexity is 3 times better than the RNN's", "3 (2.7 by its own table)", quality.better(2.7)),
        Claim("Transformers are 10 times faster", "10 (4 by its own table)", _over_transformer(10.0)),
        Claim("a Transformer's memory is quadratic in length", "quadratic", quality.quadratic()),
        Claim("a hard limit of about 50 tokens; 512 units or 3 layers move it little", "about 50", quality.remedies()),
        Claim("a recurrence is impossible to parallelise", "impossible", _parallel()),
        Claim("text stays coherent over 30–50 words (LSTM) against 5–10 (RNN)", "30–50 against 5–10", quality.coherence()),
        Claim(
            "its sample texts",
            "To be or not to be …",
            Answer(
                "not in the text",
                None,
                "neither its prompt nor “slings and "
                "arrows” (both of Hamlet) occurs in the megabyte of Shakespeare, so they cannot be checked against it",
            ),
        ),
    ]


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


def markdown() -> list[str]:
    """The README's table: every claim with its verdict in a few words."""
    rows = []
    for claim in [*systems(), *ratios(), *more()]:
        peer = claim.torch
        other = f"{peer.value}, {peer.verdict}: {peer.brief}" if peer and peer.value else "–"
        rows.append([claim.what, claim.article, claim.here.value or "–", other, f"{claim.here.verdict}: {claim.here.brief}"])
    first = "**The article beside here.** A figure holds within 10 % of the article's; `docs/report.html` has all figures."
    speeds = content("article-speed")
    machine = [f"Times: {tables.where(speeds)}.", ""] if speeds else []
    return [first, *tables.table(["claim", "article", "fastlstm", "PyTorch", "verdict"], rows), "", *machine]
