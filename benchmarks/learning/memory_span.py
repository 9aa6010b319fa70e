"""Measures in several ways how far back models remember: `python -m benchmarks.learning.memory_span FOLDER` writes
memory-span.json.

recall, copy
    Accuracy by distance, of small models trained for the task: to name one symbol seen among noise
    (benchmarks/learning/recall.py), or to repeat every token of a stream with a delay (benchmarks/learning/copying.py).
gradient
    Of trained text models: the norm of the gradient of a token's loss with respect to the input k tokens back, as a share of
    the norm at the last input.
context
    Of trained text models: the loss by the number of right tokens. A recurrent model first reads another part of the text, then
    the n tokens before the one to predict: what it remembers from farther back is wrong. A Transformer gets only these n
    tokens.

FOLDER is the folder of the runs of `benchmarks.learning.learn train`. The names "by byte pair" and "by word" are of models of
such tokens; names without them are of characters. Results that are in the file are kept: remove it to measure anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning import copying, recall, trained
from benchmarks.measure.record import Record
from fastlstm import text
from fastlstm.training import checkpoint

KINDS = {"char": "", "bpe": " by byte pair", "word": " by word"}
CONTEXTS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200)
BACK = 100  # steps of the gradients
LEFT, NEAR = 0.01, 0.01
ROWS = 512  # sequences at a time, which bounds the memory taken


def held_out(folder: Path) -> tuple[np.ndarray, Any]:
    """Return the held-out tokens of a run, and its model."""
    model = trained.load(folder)
    settings = checkpoint.read_json(folder / checkpoint.SETTINGS)
    corpus = text.load_corpus(settings["text"])
    places, _ = text.split_ids(np.arange(len(corpus)), "tail")
    return model.tokenizer.encode(corpus[len(places) :]), model


def before(ids: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` tokens before each place, [count, B]."""
    return ids[places - np.arange(count, 0, -1)[:, None]]


def gradient(model: Any, ids: np.ndarray, count: int = 256, back: int = BACK) -> dict[str, Any]:
    """Return the mean norms of gradients by distance, over `count` places of the held-out text."""
    places = np.linspace(back, len(ids) - 1, count).astype(int)
    norms = model.input_gradients(before(ids, places, back), ids[places]).mean(axis=1)[::-1]
    values = norms / norms[0]
    below = np.flatnonzero(values < LEFT)
    most = "" if len(below) else "the longest measured, so at least that; "
    return {
        "tokens": list(range(back)),
        "values": values.tolist(),
        "span": int(below[0]) - 1 if len(below) else back - 1,
        "criterion": f"the distance up to which {LEFT:.0%} of the gradient's norm at the last token is left; {most}mean over "
        f"{count} places of the held-out text",
    }


def context(model: Any, ids: np.ndarray, count: int = 2048, contexts: tuple[int, ...] = CONTEXTS) -> dict[str, Any]:
    """Return the mean losses of the same `count` tokens by the number of right tokens before each."""
    allowed = [n for n in contexts if model.window is None or n <= model.window]
    places = np.linspace(max(contexts[-1], BACK), len(ids) - 1, count).astype(int)
    sums = np.zeros(len(allowed))
    for own in np.array_split(places, -(-count // ROWS)):
        elsewhere = model.after(before(ids, BACK + (own + len(ids) // 2) % (len(ids) - BACK), BACK))
        sums += [float(model.losses(before(ids, own, n), ids[own], elsewhere).sum()) for n in allowed]
    values = (sums / count).tolist()
    span = next(n for n, value in zip(allowed, values, strict=True) if value <= min(values) * (1 + NEAR))
    return {
        "tokens": allowed,
        "values": values,
        "span": span,
        "criterion": f"the fewest right tokens with which the loss is within {NEAR:.0%} of its lowest, up to {allowed[-1]}; "
        f"mean over {count} tokens of the held-out text",
    }


def runs(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield the kind of tokens, the model's name and the folder of each run that has a best checkpoint."""
    for run in sorted(folder.iterdir()):
        if any((run / f"best{suffix}").exists() for suffix in (checkpoint.SUFFIX, ".pt")):
            tokens, name = run.name.split("-", 1)
            yield tokens, name, run


def main() -> None:
    """Measure the runs that are not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="*", help="runs to measure; default: all in the folder that have a best checkpoint")
    parser.add_argument("--record", default="memory-span", metavar="NAME")
    parser.add_argument("--no-tasks", action="store_true", help="leave out recall and copy, which train models of their own")
    options = parser.parse_args()
    record = Record(options.record, timed=False)

    def put(measure: str, name: str, found: dict[str, Any]) -> None:
        record.section(measure)[name] = record.signed(found)
        record.save()
        print(f"{measure}: {name} {found['span']}", flush=True)

    for tokens, name, folder in runs(options.folder):
        if options.runs and folder.name not in options.runs:
            continue
        wanted = {f"{way}{KINDS[tokens]}": measure for way, measure in (("gradient", gradient), ("context", context))}
        if any(name not in record.section(measure) for measure in wanted):
            ids, model = held_out(folder)
            for way, measure in wanted.items():
                put(way, name, measure(model, ids))
    tasks = {} if options.no_tasks else {"recall": recall.measure, "copy": copying.measure}
    for measure, of in tasks.items():
        for kind in ("rnn", "lstm", "gru", "transformer"):
            if kind not in record.section(measure):
                put(measure, kind, of(kind))


if __name__ == "__main__":
    main()
