"""Collects the results of learning runs in benchmarks/results/NAME.json: `python -m benchmarks.learning.learn collect`.

For each run it stores the settings, the losses of every epoch, the best loss with its perplexity, bits per character (for
tokens that can give the text back exactly), hours, and a sample after the article's prompt. Hours are the number of updates
times the measured time of an update (`learn time`), which names its machine; if that was not measured, they are those of the
run's own clock.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.article import PROMPT
from benchmarks.learning import trained
from benchmarks.learning.runs import STEP, history, prepare
from benchmarks.measure.record import Record
from fastlstm.training import checkpoint

TEMPERATURE = 0.8
LENGTH = {"char": 400, "bpe": 180, "word": 90}  # tokens


def summary(folder: Path, remark: str = "") -> dict[str, Any]:
    """Return the results that a run's folder holds."""
    settings, epochs = checkpoint.read_json(folder / checkpoint.SETTINGS), history(folder)
    prepared = prepare(settings)
    losses = [epoch["valid_loss"] for epoch in epochs]
    best, steps = min(losses), len(prepared.train)
    characters = prepared.valid.characters_per_token  # None for words: <unk> cannot give its word back
    clock = checkpoint.read_json(folder / STEP) if (folder / STEP).exists() else None
    seconds = [clock["seconds"] * steps] * len(epochs) if clock else [epoch["seconds"] for epoch in epochs]
    found = {
        "settings": settings,
        "remark": remark,
        "epochs": len(epochs),
        "hours": sum(seconds) / 3600,
        "best_loss": best,
        "best_epoch": losses.index(best) + 1,
        "best_loss_12_epochs": min(losses[:12]),
        "best_perplexity": math.exp(best),
        "best_bits_per_character": best / math.log(2) / characters if characters else None,
        "vocabulary": prepared.tokenizer.vocab_size,
        "steps_per_epoch": steps,
        "step": clock,
        "train_loss": [round(epoch["loss"], 4) for epoch in epochs],
        "valid_loss": [round(loss, 4) for loss in losses],
        "seconds": [round(one, 1) for one in seconds],
        "sample": sample(folder, settings["tokens"]),
    }
    if "valid_loss_with_context" in epochs[0]:
        found["valid_loss_with_context"] = [round(epoch["valid_loss_with_context"], 4) for epoch in epochs]
    return found


def sample(folder: Path, tokens: str) -> str:
    """Return the text that the run's best model generates after the prompt."""
    model = trained.load(folder)
    prompt = model.tokenizer.encode(PROMPT)
    drawn = model.draw(prompt, LENGTH[tokens], 1, 0, TEMPERATURE)[:, 0]
    decoded: str = model.tokenizer.decode(np.concatenate([prompt, drawn]))
    return decoded.lstrip(" ")


def write(name: str, folders: list[Path], remark: str = "") -> None:
    """Write these runs into their file; other runs in it stay."""
    record = Record(name, timed=False)
    for folder in folders:
        one = record.content["results"][folder.name] = record.signed(summary(folder, remark))
        record.save()
        print(f"{folder.name}: {one['epochs']} epochs, best {one['best_loss']:.4f} in epoch {one['best_epoch']}", flush=True)
