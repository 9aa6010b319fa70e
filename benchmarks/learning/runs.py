"""Reads the name of a learning run and the files in its folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastlstm import text
from fastlstm.command import train
from fastlstm.training import checkpoint

NAME = re.compile(r"(char|bpe|word)-(?:(rnn|lstm|gru)(?:-(\d+)|-(\d+)-layers)?|(transformer)(-large)?)")
VOCABULARY = 1024  # of byte pairs
DROPOUT = 0.2  # of the large Transformer: without it, it would learn the text by heart
STEP = "step.json"  # the time of an update, in a run's folder


def settings(run: str, dtype: str = "float32", epochs: int = 50, patience: int = 4) -> dict[str, Any]:
    """Return the settings that a run's name stands for.

    Raises
    ------
    ValueError
        If `run` is not the name of a run.
    """
    parts = NAME.fullmatch(run)
    if not parts:
        raise ValueError(f"{run!r} is no run; expected TOKENS-MODEL as bpe-gru, char-transformer-large or char-lstm-512")
    tokens, cell, units, layers, transformer, large = parts.groups()
    found = (
        train.DEFAULTS
        | train.PRESETS["article"]
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
    """Return the records of a run's whole epochs."""
    file = folder / checkpoint.HISTORY
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [record for record in records if "valid_loss" in record]


def done(folder: Path, wanted: dict[str, Any]) -> bool:
    """Return whether a run has all its epochs, or its loss has not fallen for `patience` epochs."""
    losses = [record["valid_loss"] for record in history(folder)]
    waited = len(losses) - 1 - losses.index(min(losses)) if losses else 0
    return len(losses) >= wanted["epochs"] or waited >= wanted["patience"]


def prepare(wanted: dict[str, Any]) -> text.Prepared:
    """Return the text of a run, prepared as `fastlstm train` does."""
    sizes = wanted["batch_size"], wanted["seq_len"]
    return text.prepare(text.load_corpus(wanted["text"]), wanted["tokens"], "tail", *sizes, vocab_size=wanted["vocab_size"])
