"""Computes the article's ratios from the contests of one session, for fastlstm and for PyTorch, with a verdict in words.

It knows the names of contests and counts parameters, but measures no times.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.article import CPU_LSTM_OVER_TRANSFORMER, NEAR, PARAMETERS, TIMES, Part
from benchmarks.measure import alternate
from benchmarks.measure.contest import OURS, Key, Outcome
from benchmarks.peers.layers import ARTICLE, CELLS, torch_layer
from fastlstm.runtime import cuda

STEP, STEP_CUDA = "training step", "training step on the GPU"
CONTESTS = {"CPU": STEP, "GPU": STEP_CUDA}
WHO = (OURS, "torch")
SAME, LARGE = ("Transformer of the same size", "transformer"), ("Transformer, large", "transformer")
SIZES = {"same size": SAME, "large": LARGE}


@dataclass(frozen=True)
class Quotient:
    """A ratio to compute: its text, the article's figure or None, and the contest and contender of both times.

    A contender is a cell, which stands for that cell by whoever the ratio is computed for, or a whole key of a contest.
    """

    text: str
    article: float | None
    over: tuple[str, str | Key]
    under: tuple[str, str | Key]


def quotients() -> list[Quotient]:
    """Return what is computed of a session: each of the article's ratios, those with a Transformer for both of its sizes."""

    def part(one: Part, transformer: Key = SAME) -> tuple[str, str | Key]:
        side, system = one
        return CONTESTS[side], transformer if system == "transformer" else system

    found = []
    for ratio in (*TIMES.values(), CPU_LSTM_OVER_TRANSFORMER):
        if ratio.under[1] == "transformer":
            for size, key in SIZES.items():
                found.append(Quotient(f"{ratio.text}, {size}", ratio.value, part(ratio.over), part(ratio.under, key)))
        else:
            found.append(Quotient(ratio.text, ratio.value, part(ratio.over), part(ratio.under)))
    return found


def without_gpu(who: str) -> str:
    """Return why a contender cannot use a GPU here; empty if it can."""
    if who == OURS:
        found = cuda.describe()
        return found if isinstance(found, str) else "" if found else "there is no GPU"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} finds no GPU"


def verdict(value: float, article: float | None) -> str:
    """Return in words whether a value holds, and how far off it is."""
    if article is None:
        return "the article has no figure"
    off = value / article - 1
    return "holds" if abs(off) <= NEAR else f"does not hold: {abs(off):.0%} {'above' if off > 0 else 'below'} the article's"


def judged(value: float, article: float | None) -> dict[str, Any]:
    """Return a value with its verdict."""
    return {"value": value, "verdict": verdict(value, article)}


def computed_for(who: str, wanted: Quotient, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return a ratio with its verdict: the median over rounds if both times are of one contest, else the ratio of medians."""
    (above, top), (below, bottom) = (
        (name, (what, who) if isinstance(what, str) else what) for name, what in (wanted.over, wanted.under)
    )
    for name, key in ((above, top), (below, bottom)):
        if name not in outcomes or not outcomes[name].measured(key):
            why = outcomes[name].failed.get(key, "") if name in outcomes else ""
            why = why or (without_gpu(who) if name == STEP_CUDA else "") or f"no {name} of {' by '.join(key)} in this session"
            return {"verdict": f"not measurable here: {why}"}
    if above == below:
        return judged(alternate.ratio(outcomes[above].rounds, top, bottom), wanted.article)
    over, under = alternate.median(outcomes[above].rounds, top), alternate.median(outcomes[below].rounds, bottom)
    return judged(over / under, wanted.article)


def counted(who: str) -> dict[str, int] | str:
    """Return the parameters of the article's recurrent layers by cell, or why they cannot be counted."""
    if who != OURS and importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    found = {}
    for cell in CELLS:
        shape = ARTICLE.shape(cell)
        layer = shape.layer()
        values = layer.state_dict().values() if who == OURS else torch_layer(layer, shape).state_dict().values()
        found[cell] = sum(value.size if who == OURS else value.numel() for value in values)
    return found


def computed(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return for each ratio, by its text, the article's figure and the value and verdict of fastlstm and torch."""
    found: dict[str, Any] = {}
    for one in quotients():
        found[one.text] = {"article": one.article} | {who: computed_for(who, one, outcomes) for who in WHO}
    counts = {who: counted(who) for who in WHO}
    for ratio in PARAMETERS.values():
        (_, over), (_, under) = ratio.over, ratio.under
        found[ratio.text] = {"article": ratio.value}
        for who, count in counts.items():
            known = isinstance(count, dict)
            found[ratio.text][who] = judged(count[over] / count[under], ratio.value) if known else {"verdict": count}
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the ratios as lines of a table."""
    head = f"{'':46}{'article':>8}{'fastlstm':>10}{'torch':>8}  verdict on each (holds: within {NEAR:.0%})"
    rows = [head]
    for claim, one in found.items():
        article = "-" if one["article"] is None else f"{one['article']:g}"
        values = [f"{one[who]['value']:.2f}" if "value" in one[who] else "-" for who in WHO]
        said = list(dict.fromkeys(one[who]["verdict"] for who in WHO))
        verdicts = said[0] if len(said) == 1 else "; ".join(f"{who}: {one[who]['verdict']}" for who in WHO)
        rows.append(f"{claim:46}{article:>8}{values[0]:>10}{values[1]:>8}  {verdicts}")
    return rows
