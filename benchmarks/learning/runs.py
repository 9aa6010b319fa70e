"""What a run's name means, and what is in its folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastlstm import text
from fastlstm.command import train as first_run
from fastlstm.training import checkpoint

NAME = re.compile(r"(char|bpe|word)-(?:(rnn|lstm|gru)(?:-(\d+)|-(\d+)-layers)?|(transformer)(-large)?)")
VOCABULARY = 1024  # of byte pairs
DROPOUT = 0.2  # of the large Transformer, which would learn the text by heart without
STEP = "step.json"


def settings(run: str, dtype: str = "float32", epochs: int = 50, patience: int = 4) -> dict[str, Any]:
    """What a run's name means.

    Raises
    ------
    ValueError
        If it is not a name of a run.
    """
    parts = NAME.fullmatch(run)
    if not parts:
        raise ValueError(f"{run!r} is no run; expected TOKENS-MODEL as bpe-gru, char-transformer-large or char-lstm-512")
    tokens, cell, units, layers, transformer, large = parts.groups()
    found = (
        first_run.DEFAULTS
        | first_run.PRESETS["article"]
        | {
            "text": "shakespeare",
            "cell": cell or transformer,
            "tokens": tokens,
            "vocab_size": VOCABULARY,
            "dtype": dtype,
            "epochs": epochs,
            "patience": patience,
        }
    )
    if units:
        found["hidden_size"] = found["embedding_size"] = int(units)
    if layers:
        found["num_layers"] = int(layers)
    if transformer:
        found |= {"size": "large", "dropout": DROPOUT} if large else {"size": "same size"}
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    """The whole epochs of a run."""
    file = folder / checkpoint.HISTORY
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [record for record in records if "valid_loss" in record]


def done(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether a run has all its epochs, or has waited long enough for a lower loss."""
    losses = [record["valid_loss"] for record in history(folder)]
    waited = len(losses) - 1 - losses.index(min(losses)) if losses else 0
    return len(losses) >= wanted["epochs"] or waited >= wanted["patience"]


def prepare(wanted: dict[str, Any]) -> text.Prepared:
    """The text of a run, as `fastlstm train` prepares it."""
    sizes = wanted["batch_size"], wanted["seq_len"]
    return text.prepare(text.load_corpus(wanted["text"]), wanted["tokens"], "tail", *sizes, vocab_size=wanted["vocab_size"])
