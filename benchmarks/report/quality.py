"""Answers the article's claims on quality: perplexity, coherence of generated text, memory.

The answers come from the learning runs and from two other files:

memory-span.json, written by benchmarks/learning/memory_span.py
    results[measure][model] = {"tokens": [...], "values": [...], "span": number, "criterion": str}
generation.json, written by benchmarks/learning/generation.py
    results[model] = {"position": [...], "real words": [...], "span": words, "criterion": str, "longest match": characters,
    "median match": characters}

Models are "rnn", "lstm", "gru" and "transformer". Other names are those of larger models; in generation.json one is the text
itself.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from benchmarks.article import COHERENCE, EPOCHS, SYSTEMS, UPDATES
from benchmarks.report.answer import Answer, distance, holds
from benchmarks.report.results import LARGER, NAMES, TRANSFORMERS, absent, best_runs, content, larger_runs, step

ORDER = sorted(SYSTEMS, key=lambda name: -SYSTEMS[name].perplexity)  # as the article claims, the highest perplexity first
TOKENS = {"char": "characters", "bpe": "byte pairs", "word": "words"}
HELD_OUT = "held-out text"
UNNAMED = "the article does not name its tokens, on which perplexity depends"
MOST, LITTLE = 60, 1.25  # "about 50 tokens", "little"
TIE = 0.02  # perplexities nearer to each other than this share are equal: each run has one seed


def perplexity(cell: str) -> Answer:
    """Return a cell's perplexity by each kind of tokens. The article does not name its kind, so any of them may fit."""
    article = SYSTEMS[cell].perplexity
    found = {tokens: own[cell] for tokens, own in best_runs().items() if cell in own}
    if not found:
        return Answer(note=f"no learning run of the {NAMES[cell]} is stored")
    value = ", ".join(f"{run['best_perplexity']:.3g} by {TOKENS[tokens]}" for tokens, run in found.items())
    fits = [tokens for tokens, run in found.items() if holds(run["best_perplexity"], article)]
    near = nearest({TOKENS[tokens]: run["best_perplexity"] for tokens, run in found.items()}, article)
    notes = [_bits(found)]
    for larger in larger_runs(cell).values():
        notes += [f"{name}: {_best(run)}" for name, run in larger.items()]
    if cell == "transformer" and not larger_runs(cell) and (time := step("CPU", TRANSFORMERS["large"], "transformer")):
        hours = time.seconds * EPOCHS * UPDATES / 3600
        notes.append(f"the large one was not trained, whose {EPOCHS} epochs take {hours:.2g} h on {time.where}")
    if cell == "transformer" and "char" in found:
        notes.append(f"by characters {_with_context(found['char'])}")
    notes += [
        f"by {TOKENS[tokens]} in {run['settings']['dtype']}"
        for tokens, run in found.items()
        if run["settings"]["dtype"] != "float32"
    ]
    detail = "; ".join(note for note in notes if note)
    if fits:
        return Answer(value, True, f"{near}; {UNNAMED}; it fits {' and '.join(TOKENS[tokens] for tokens in fits)}; {detail}")
    if set(found) == {"char"}:
        return Answer(value, None, f"{UNNAMED}, and only runs by character are stored; {detail}")
    return Answer(value, False, f"{near}; {UNNAMED}; none of those measured fits; {detail}")


def nearest(by: dict[str, float], article: float) -> str:
    """Return which of several figures is the nearest to the article's, and how far off it is."""
    tokens, value = min(by.items(), key=lambda one: abs(math.log(one[1] / article)))
    return f"nearest: {value:.3g} by {tokens}, {distance(value, article)}"


def _bits(found: dict[str, dict[str, Any]]) -> str:
    """Return bits per character for the kinds of tokens that can give the text back exactly."""
    shown = [
        f"{run['best_bits_per_character']:.2f} by {TOKENS[tokens]}"
        for tokens, run in found.items()
        if tokens != "word" and run["best_bits_per_character"]
    ]
    return f"bits per character {', '.join(shown)}" if shown else ""


def _best(run: dict[str, Any]) -> str:
    """Return a run's best perplexity, its epoch, and whether the loss was still falling."""
    shown = f"{run['best_perplexity']:.3g} by {TOKENS[run['tokens']]} in epoch {run['best_epoch']} of {run['epochs']}"
    shown += ", its loss still falling" if falling(run) else ""
    return shown + (f", {_with_context(run)}" if run["cell"] == "transformer" else "")


def falling(run: dict[str, Any]) -> bool:
    """Return whether a run stopped while its held-out loss was still falling."""
    return bool(run["best_epoch"] == run["epochs"])


def _with_context(run: dict[str, Any]) -> str:
    """Return a Transformer's perplexity if its held-out windows overlap."""
    return f"{math.exp(min(run['valid_loss_with_context'])):.3g} where every token has half a window of context or more"


def order() -> Answer:
    """Return the order of perplexities by kind of tokens. Two that are nearer than `TIE` have no order."""
    best = best_runs()
    if not best:
        return Answer(note=absent("article-learning"))
    values, notes, verdicts = [], [], []
    first = f"one seed each, so perplexities that differ by less than {TIE:.0%} (≈) have no order"
    for tokens, own in best.items():
        ranked = sorted(own, key=lambda cell: -own[cell]["best_loss"])
        losses = [own[cell]["best_loss"] for cell in ranked]
        signs = ["", *(" > " if math.exp(a - b) >= 1 + TIE else " ≈ " for a, b in pairwise(losses))]
        shown = [f"{sign}{NAMES[cell]} {own[cell]['best_perplexity']:.3g}" for sign, cell in zip(signs, ranked, strict=True)]
        values.append(f"by {TOKENS[tokens]}: {''.join(shown)}")
        verdicts.append(ranked == [cell for cell in ORDER if cell in own] and len(own) > 1 and " ≈ " not in signs)
        first += "".join(
            f", and {NAMES[cell]} by {TOKENS[tokens]} stopped at epoch {run['epochs']}, its loss still falling"
            for cell, run in own.items()
            if falling(run)
        )
        if lacking := [NAMES[cell] for cell in ORDER if cell not in own]:
            notes.append(f"{', '.join(lacking)} not trained here by {TOKENS[tokens]}")
    for larger in larger_runs("transformer").values():
        notes += [f"{name} {_best(run)}" for name, run in larger.items()]
    return Answer("; ".join(values), all(verdicts), "; ".join([first, *notes]))


def better(article: float) -> Answer:
    """Return the RNN's perplexity over the LSTM's."""
    found = {
        tokens: own["rnn"]["best_perplexity"] / own["lstm"]["best_perplexity"]
        for tokens, own in best_runs().items()
        if {"rnn", "lstm"} <= set(own)
    }
    if not found:
        return Answer(note=absent("article-learning"))
    named = {TOKENS[tokens]: ratio for tokens, ratio in found.items()}
    value = ", ".join(f"{ratio:.3g} by {tokens}" for tokens, ratio in named.items())
    note = f"{nearest(named, article)}; compared with the {article:g} of its table; best validation losses"
    return Answer(value, any(holds(ratio, article) for ratio in found.values()), note)


def generation(cell: str) -> Answer:
    """Return how many words a sample has before it loses coherence."""
    file = content("generation")
    if file is None or cell not in file["results"]:
        return Answer(note=absent("generation") if file is None else f"generation.json has no {NAMES[cell]}")
    one, (low, high) = file["results"][cell], SYSTEMS[cell].coherent_words
    most = file["results"].get(HELD_OUT, {}).get("span", math.inf)  # of the real text
    notes = [one["criterion"], f"the longest piece copied from the training text has {one['longest match']} characters"]
    if most < math.inf:
        counted = "counts words up to the first that is not in the training text"
        notes.insert(0, f"{counted}, and the held-out text itself reaches {most:.3g}")
    measurable = max(high, one["span"]) <= most
    return Answer(f"{one['span']:.3g} words", low <= one["span"] <= high if measurable else None, "; ".join(notes))


def coherence() -> Answer:
    """Return how many words samples of the LSTM and the RNN have before they lose coherence."""
    found = {cell: generation(cell) for cell in ("lstm", "rnn")}
    results = (content("generation") or {"results": {}})["results"]
    if any(cell not in results for cell in found):
        return Answer(note=absent("generation") if not results else "generation.json has not both")
    spans = {cell: results[cell]["span"] for cell in found}
    within = all(low <= spans[cell] <= high for cell, (low, high) in COHERENCE.items())
    fits = None if found["lstm"].holds is None else within
    return Answer(", ".join(f"{NAMES[cell]} {span:.3g}" for cell, span in spans.items()), fits, found["lstm"].note)


def remembered(one: dict[str, Any]) -> str:
    """Return a span of memory-span.json as text: "≥" if all distances that were measured are remembered."""
    return f"{'≥ ' if one['span'] >= max(one['tokens']) else ''}{one['span']:.3g}"


def span(cells: list[str], low: float, high: float) -> Answer:
    """Return how many tokens cells remember, by each measure, against the article's range."""
    file = content("memory-span")
    if file is None:
        return Answer(note=absent("memory-span"))
    found = {
        f"{NAMES[cell]} {measure}": own[cell]
        for cell in cells
        for measure, own in sorted(file["results"].items())
        if cell in own
    }
    if not found:
        return Answer(note=f"memory-span.json has no {' nor '.join(NAMES[cell] for cell in cells)}")
    within = [name for name, one in found.items() if low <= one["span"] <= high]
    ways: dict[str, list[str]] = {}
    for name, one in found.items():
        ways.setdefault(name.split(" by ")[0], []).append(remembered(one))
    value = ", ".join(f"{way} {' / '.join(spans)}" for way, spans in ways.items())
    several = "" if len(ways) == len(found) else "; a / b / c: by characters, byte pairs, words"
    note = f"within {low}–{high} by {', '.join(within) if within else 'none'}{several}; the measures stand under Memory span"
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, one in found.items():
        way, _, tokens = name.removeprefix(f"{name.split()[0]} ").partition(" by ")
        by = way if way not in ("gradient", "context") else "by byte pairs or words" if tokens else "by characters"
        groups.setdefault(by, []).append(one)
    sides: dict[bool, list[str]] = {}
    for by, ones in groups.items():
        ends = dict.fromkeys(remembered(one) for one in sorted(ones, key=lambda one: one["span"]))
        holding = all(low <= one["span"] <= high for one in ones)
        sides.setdefault(holding, []).append(f"{by} {'–'.join([*ends][:: max(len(ends) - 1, 1)])}")
    said = {True: " (holds)", False: " (does not)"} if len(sides) == 2 else {}
    fits = ", ".join(", ".join(sides[side]) + said.get(side, "") for side in sorted(sides, reverse=True))
    return Answer(value, set(sides) == {True}, f"{fits}; {note}", "depends on the measure" if len(sides) == 2 else "")


def gradients() -> Answer:
    """Return how much of the gradient is left far back, for the LSTM and the RNN."""
    file = content("memory-span")
    if file is None or not {"lstm", "rnn"} <= set(file["results"].get("gradient", {})):
        return Answer(note=absent("memory-span") if file is None else "memory-span.json has no gradients of both cells")
    own = {cell: dict(zip(one["tokens"], one["values"], strict=True)) for cell, one in file["results"]["gradient"].items()}
    far = max(set(own["lstm"]) & set(own["rnn"]))
    left = {cell: own[cell][far] for cell in ("lstm", "rnn")}
    note = f"share of the gradient's norm that is left {far} tokens back; holds if the LSTM's is ten times the RNN's"
    return Answer(f"LSTM {left['lstm']:.2g}, RNN {left['rnn']:.2g}", left["lstm"] > 10 * left["rnn"], note)


def remedies() -> Answer:
    """Return how many tokens larger LSTMs remember, compared with one of the article's size; all are trained on text."""
    file = content("memory-span")
    losses = {name: run for own in larger_runs("lstm").values() for name, run in own.items()}
    epochs = {
        name.removesuffix(f", {run['settings']['dtype']}"): f" (after {run['epochs']} epochs)"
        for name, run in losses.items()
        if run["tokens"] == "char"
    }
    values, fits = [], {}
    for measure, own in (file or {"results": {}})["results"].items():
        larger = {name: one["span"] for name, one in own.items() if name in LARGER and name.startswith("lstm")}
        if larger and "lstm" in own:
            base = own["lstm"]["span"]
            shown = [
                f"{LARGER[name].removeprefix('LSTM, ')} {one:.3g}{epochs.get(LARGER[name], '')}" for name, one in larger.items()
            ]
            values.append(f"{measure}: {base:.3g}, with {', '.join(shown)}")
            fits[measure] = all(one <= min(MOST, LITTLE * base) for one in larger.values())
    if not values:
        return Answer(note=absent("memory-span") if file is None else "memory-span.json has no larger LSTMs")
    if file and (one := file["results"].get("recall", {}).get("lstm")):
        values.append(f"a small one trained to recall: {remembered(one)}")
        fits["recall"] = one["span"] <= MOST
    failing = [measure for measure, fit in fits.items() if not fit]
    notes = [f"fails only by {', '.join(failing)}"] if 0 < len(failing) < len(fits) else []
    notes.append(f"tokens; holds if none remembers more than {MOST}, or over a quarter more than 2 layers of 256")
    notes += [f"{name} {_best(run)}" for name, run in losses.items()]
    return Answer("; ".join(values), not failing, "; ".join(notes))


def quadratic() -> Answer:
    """Return the power of the sequence length with which the memory of attention grows."""
    file = content("attention-memory")
    if file is None:
        return Answer(note=absent("attention-memory"))
    value = ", ".join(f"{kind}: {one['power']:.2g}" for kind, one in file["results"].items())
    lengths = next(iter(file["results"].values()))["tokens"][-2:]
    table, fused = (file["results"][f"attention, {kind}"]["power"] for kind in ("a table of weights", "fused"))
    note = f"the power of the length that a training step's memory grows with, {lengths[0]} to {lengths[1]} tokens"
    depends = "holds if the table of weights is stored, not with fused kernels" if table > 1.8 > fused else ""
    return Answer(value, table > 1.8 and fused > 1.8, note, depends)
