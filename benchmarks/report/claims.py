"""Answers the article's figures and claims from the stored results, each with a verdict and the reason for it.

Figures of time and size are answered here, those of quality in benchmarks/report/quality.py.
"""

from __future__ import annotations

from typing import Any

import fastlstm
from benchmarks.article import CLAIMS, EPOCHS, HIDDEN_SIZE, NUM_LAYERS, PARAMETERS, SYSTEMS, TIMES, UPDATES, VOCABULARY, Ratio
from benchmarks.peers.layers import CELLS
from benchmarks.report import quality, tables
from benchmarks.report.answer import Answer, Row, compared, holds
from benchmarks.report.results import (
    NAMES,
    TRANSFORMERS,
    absent,
    best_runs,
    content,
    gpu_ratio,
    no_step,
    step,
    stored_ratio,
)

WHO = ("fastlstm", "torch")


def systems() -> list[Row]:
    """Return the rows of the article's four systems."""
    best = best_runs()
    found = []
    for cell, system in SYSTEMS.items():
        name = NAMES[cell]
        for side, hours in (("CPU", system.cpu_hours), ("GPU", system.gpu_hours)):
            if hours is not None:
                contenders = ("transformer",) if cell == "transformer" else WHO
                by = [_hours(best, side, cell, hours, who) for who in contenders]
                found.append(Row(f"{name}: {side} time", f"{hours:g} h", *by))
        found.append(Row(f"{name}: perplexity", f"{system.perplexity}", quality.perplexity(cell)))
        found.append(Row(f"{name}: generates coherent text over", system.coherent, quality.generation(cell)))
    return found


def _hours(best: dict[str, Any], side: str, cell: str, article: float, by: str) -> Answer:
    """Return the hours that 50 epochs take, computed from the time of a step, or else of the whole run if there was one."""
    cases = {"": cell} if cell != "transformer" else {f"{size}, ": case for size, case in TRANSFORMERS.items()}
    times = {size: time for size, case in cases.items() if (time := step(side, case, by))}
    hours = {
        f"{size}{EPOCHS} epochs of {UPDATES} steps of {time.seconds * 1e3:.3g} ms": time.seconds * EPOCHS * UPDATES / 3600
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


def ratio(claim: Ratio, by: str, inverse_of: float | None = None) -> Answer:
    """Return the answer to a ratio of two training steps.

    The ratio is the one that was computed from a single session, if there is one, else that of two stored times.

    Parameters
    ----------
    claim : Ratio
    by : str
        "fastlstm" or "torch".
    inverse_of : float, optional
        The article's figure for the inverse of the ratio, which is then compared instead.
    """
    if found := stored_ratio(claim.text, by) or (gpu_ratio(claim) if by == "fastlstm" else None):
        value, where = found
    else:
        parts = claim.over, claim.under
        times = [step(*part, by) for part in parts]
        lacking = [no_step(*part, by) for part, time in zip(parts, times, strict=True) if time is None]
        if lacking:
            return Answer(note="; ".join(dict.fromkeys(lacking)))
        above, below = (time for time in times if time)
        value = above.seconds / below.seconds
        where = above.where if above.where == below.where else f"{above.where}, over {below.where}"
        if above.file != below.file:
            where += ", two machines: it says as much of these two as of the cells"
    if inverse_of is not None:
        return compared(1 / value, inverse_of, where)
    assert claim.value is not None
    return compared(value, claim.value, where)


def ratios() -> list[Row]:
    """Return the rows of the article's ratios."""
    rows = []
    for key, claim in TIMES.items():
        assert claim.value is not None
        transformer = key == "gpu_lstm_over_transformer"
        answers = [_over_transformer(claim.value)] if transformer else [ratio(claim, by) for by in WHO]
        rows.append(Row(claim.text, claim.figure, *answers))
    rows += [Row(claim.text, claim.figure, _parameters(claim)) for claim in PARAMETERS.values()]
    answers = {
        "perplexity_order": quality.order(),
        "rnn_memory": quality.span(["rnn"], *CLAIMS["rnn_memory"].between),
        "lstm_and_gru_memory": quality.span(["lstm", "gru"], *CLAIMS["lstm_and_gru_memory"].between),
        "gradients_survive": quality.gradients(),
    }
    return rows + _rows(answers)


def _rows(answers: dict[str, Answer]) -> list[Row]:
    """Return the rows of other claims, by their keys in `CLAIMS`."""
    return [Row(CLAIMS[key].text, CLAIMS[key].figure, answer) for key, answer in answers.items()]


def _parameters(claim: Ratio) -> Answer:
    """Return the ratio of two cells' parameters: of the layers alone, and in the note of whole models."""
    cells = claim.over[1], claim.under[1]
    above, below = (getattr(fastlstm, CELLS[cell])(HIDDEN_SIZE, HIDDEN_SIZE, NUM_LAYERS).params.flat.size for cell in cells)
    whole = [
        fastlstm.LanguageModel(VOCABULARY, cell, hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS).params.flat.size
        for cell in cells
    ]
    note = f"layers {above:,} / {below:,}; with embedding and head {whole[0] / whole[1]:.3g}"
    assert claim.value is not None
    return compared(above / below, claim.value, note)


def _over_transformer(article: float) -> Answer:
    """Return the LSTM's time by fastlstm over the time of both Transformers by PyTorch, on the GPU."""
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


def more() -> list[Row]:
    """Return the rows of the claims in the article's text."""
    faster = CLAIMS["gru_is_faster"]
    by = [ratio(TIMES["cpu_gru_over_lstm"], who, inverse_of=faster.value) for who in WHO]
    samples = Answer(
        "not in the text",
        None,
        "neither its prompt nor “slings and arrows” (both of Hamlet) occurs in the megabyte of Shakespeare, so they cannot be "
        "checked against it",
    )
    answers = {
        "lstm_is_better": quality.better(CLAIMS["lstm_is_better"].value),
        "transformer_is_faster": _over_transformer(CLAIMS["transformer_is_faster"].value),
        "transformer_memory": quality.quadratic(),
        "memory_limit": quality.remedies(),
        "no_parallelism": _parallel(),
        "lstm_coherence": quality.coherence(),
        "sample_texts": samples,
    }
    return [Row(faster.text, faster.figure, *by), *_rows(answers)]


def _parallel() -> Answer:
    """Return how many times as fast the layers of a training step are on two threads."""
    file = content("grid")
    points = (file or {"results": {}})["results"].get("threads", {})
    if file is None or not points:
        return Answer(note=absent("grid") if file is None else "grid.json has no section of threads")
    value = ", ".join(f"{NAMES[name.split()[0]]} {one['speedup']:.2f}" for name, one in points.items())
    threads = next(iter(points.values()))["threads"]
    note = f"times as fast on {threads} threads as on one: steps follow each other, the rows and units within a step need not"
    return Answer(value, all(one["speedup"] < 1.1 for one in points.values()), note)


def markdown() -> list[str]:
    """Return the table of docs/results.md: every claim with a short verdict."""
    rows = []
    for claim in [*systems(), *ratios(), *more()]:
        peer = claim.torch
        other = f"{peer.value}, {peer.verdict}: {peer.brief}" if peer and peer.value else "–"
        rows.append([claim.what, claim.article, claim.here.value or "–", other, f"{claim.here.verdict}: {claim.here.brief}"])
    first = "A figure holds if it is within 10 % of the article's, a margin chosen beforehand."
    speeds = content("article-speed")
    machine = [f"Times: {tables.where(speeds)}.", ""] if speeds else []
    return [first, *tables.table(["claim", "article", "fastlstm", "PyTorch", "verdict"], rows), "", *machine]
