"""What learning runs tell, as benchmarks/results/NAME.json keeps it: `python -m benchmarks.learning.learn collect` writes it.

Of each run: settings, losses of every epoch, the best of them with perplexity and, of tokens that give the text back whole,
bits per character; hours; a sample for the article's prompt. Hours are steps times the measured time of a step (`learn time`),
which names its machine; where that was not measured, what the run's own clock said.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning import trained
from benchmarks.learning.runs import STEP, history, prepare
from benchmarks.measure.record import Record
from fastlstm.training import checkpoint

PROMPT, TEMPERATURE = "To be or not to be", 0.8
LENGTH = {"char": 400, "bpe": 180, "word": 90}  # tokens


def summary(folder: Path, remark: str = "") -> dict[str, Any]:
    """What a run's folder says."""
    settings, epochs = checkpoint.read_json(folder / checkpoint.SETTINGS), history(folder)
    prepared = prepare(settings)
    losses = [epoch["valid_loss"] for epoch in epochs]
    best, steps = min(losses), len(prepared.train)
    characters = prepared.valid.characters_per_token  # of words there is none: <unk> stands for what is not predicted
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
    """What the best model makes of the prompt."""
    model = trained.load(folder)
    prompt = model.tokenizer.encode(PROMPT)
    drawn = model.draw(prompt, LENGTH[tokens], 1, 0, TEMPERATURE)[:, 0]
    decoded: str = model.tokenizer.decode(np.concatenate([prompt, drawn]))
    return decoded.lstrip(" ")


def write(name: str, folders: list[Path], remark: str = "") -> None:
    """These runs into their file, beside those that it has."""
    record = Record(name, timed=False)
    for folder in folders:
        one = record.content["results"][folder.name] = record.signed(summary(folder, remark))
        record.save()
        print(f"{folder.name}: {one['epochs']} epochs, best {one['best_loss']:.4f} in epoch {one['best_epoch']}", flush=True)
