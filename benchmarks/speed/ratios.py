"""The ratios of the article's table, computed from a session's contests for fastlstm and for PyTorch, with a plain verdict.

Knows the contests' names and the article's figures; measures nothing but the count of parameters.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import alternate
from benchmarks.measure.contest import OURS, Key, Outcome
from benchmarks.peers.layers import ARTICLE, CELLS, torch_layer
from fastlstm.runtime import cuda

STEP, STEP_CUDA = "training step", "training step on the GPU"
NEAR = 0.1  # off by so much or less, a ratio holds: two runs on one machine may differ by that
WHO = (OURS, "torch")
SAME, LARGE = ("Transformer of the same size", "transformer"), ("Transformer, large", "transformer")
Part = tuple[str, str | Key]  # a contest, and a cell of whom the ratio is of or a whole key


@dataclass(frozen=True)
class Claim:
    """That one time is `article` times another; None where the article has no figure."""

    text: str
    article: float | None
    over: Part
    under: Part


CLAIMS = (
    Claim("LSTM: CPU time / GPU time", 9.0, (STEP, "lstm"), (STEP_CUDA, "lstm")),
    Claim("GRU: CPU time / GPU time", 9.33, (STEP, "gru"), (STEP_CUDA, "gru")),
    Claim("CPU: LSTM time / RNN time", 3.0, (STEP, "lstm"), (STEP, "rnn")),
    Claim("CPU: GRU time / LSTM time", 0.78, (STEP, "gru"), (STEP, "lstm")),
    Claim("GPU: GRU time / LSTM time", 0.75, (STEP_CUDA, "gru"), (STEP_CUDA, "lstm")),
    Claim("GPU: LSTM time / Transformer time, same size", 4.0, (STEP_CUDA, "lstm"), (STEP_CUDA, SAME)),
    Claim("GPU: LSTM time / Transformer time, large", 4.0, (STEP_CUDA, "lstm"), (STEP_CUDA, LARGE)),
    Claim("CPU: LSTM time / Transformer time, same size", None, (STEP, "lstm"), (STEP, SAME)),
    Claim("CPU: LSTM time / Transformer time, large", None, (STEP, "lstm"), (STEP, LARGE)),
)
COUNTS = (("parameters: LSTM / RNN", 4.0, "lstm", "rnn"), ("parameters: GRU / LSTM", 0.75, "gru", "lstm"))


def without_gpu(who: str) -> str:
    """Why `who` has no GPU here; empty where it has."""
    if who == OURS:
        found = cuda.describe()
        return found if isinstance(found, str) else "" if found else "there is no GPU"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} finds no GPU"


def verdict(value: float, article: float | None) -> str:
    """In words."""
    if article is None:
        return "the article has no figure"
    off = value / article - 1
    return "holds" if abs(off) <= NEAR else f"does not hold: {abs(off):.0%} {'above' if off > 0 else 'below'} the article's"


def judged(value: float, article: float | None) -> dict[str, Any]:
    """A value and what it says."""
    return {"value": value, "verdict": verdict(value, article)}


def quotient(claim: Claim, who: str, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """The ratio: from the same rounds where both are of one contest, of medians where not."""
    (above, top), (below, bottom) = (
        (name, (what, who) if isinstance(what, str) else what) for name, what in (claim.over, claim.under)
    )
    for name, key in ((above, top), (below, bottom)):
        if name not in outcomes or not outcomes[name].measured(key):
            why = outcomes[name].failed.get(key, "") if name in outcomes else ""
            why = why or (without_gpu(who) if name == STEP_CUDA else "") or f"no {name} of {' by '.join(key)} in this session"
            return {"verdict": f"not measurable here: {why}"}
    if above == below:
        return judged(alternate.ratio(outcomes[above].rounds, top, bottom), claim.article)
    over, under = alternate.median(outcomes[above].rounds, top), alternate.median(outcomes[below].rounds, bottom)
    return judged(over / under, claim.article)


def counted(who: str) -> dict[str, int] | str:
    """Parameters of the article's recurrent layers by cell; or why they cannot be counted."""
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
    """By claim: the article's figure, and for fastlstm and torch the value and the verdict."""
    found: dict[str, Any] = {}
    for claim in CLAIMS:
        found[claim.text] = {"article": claim.article} | {who: quotient(claim, who, outcomes) for who in WHO}
    counts = {who: counted(who) for who in WHO}
    for text, article, over, under in COUNTS:
        found[text] = {"article": article}
        for who, count in counts.items():
            known = isinstance(count, dict)
            found[text][who] = judged(count[over] / count[under], article) if known else {"verdict": count}
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """The ratios as text."""
    head = f"{'':46}{'article':>8}{'fastlstm':>10}{'torch':>8}  verdict on each (holds: within {NEAR:.0%})"
    rows = [head]
    for claim, one in found.items():
        article = "-" if one["article"] is None else f"{one['article']:g}"
        values = [f"{one[who]['value']:.2f}" if "value" in one[who] else "-" for who in WHO]
        said = list(dict.fromkeys(one[who]["verdict"] for who in WHO))
        verdicts = said[0] if len(said) == 1 else "; ".join(f"{who}: {one[who]['verdict']}" for who in WHO)
        rows.append(f"{claim:46}{article:>8}{values[0]:>10}{values[1]:>8}  {verdicts}")
    return rows
