"""Counts how often Python enters files in an update, a call of a layer and a step of a stream: `python -m
benchmarks.speed.trace`.

An entry is a call from a function in one file to a function in another. A reader of the code has to follow each of them, and
each takes Python's time. The first calls of a shape are not counted: they record programs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import fastlstm

FIRST = 3  # calls that are not counted: they record programs and compile kernels


def entries(call: Callable[[], Any]) -> list[tuple[str, str]]:
    """Return the (file, function) pairs that a call enters, in order; the call's own file does not count."""
    for _ in range(FIRST):
        call()
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        caller = frame.f_back
        if event == "call" and caller is not None and frame.f_code.co_filename not in (caller.f_code.co_filename, __file__):
            found.append((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def calls() -> dict[str, Callable[[], Any]]:
    """Return the calls to trace, by name: an update of a language model, a call of a small layer, a stream's step."""
    ids = np.random.default_rng(0).integers(0, 12, (20, 4))
    trainer = fastlstm.Trainer(fastlstm.LanguageModel(12, hidden_size=16, seed=0), progress=False)
    layer, x = fastlstm.LSTM(8, 16, seed=0), np.ones((5, 2, 8), np.float32)
    stream, row = fastlstm.Stream(layer), np.ones(8, np.float32)
    return {
        "Trainer.step": lambda: trainer.step(ids, ids),
        "layer(x)": lambda: layer(x),
        "Stream's step": lambda: stream(row),
    }


def short(file: str) -> str:
    """Return a file's path, beginning at its package."""
    parts = Path(file).parts
    for package in ("fastlstm", "kernels"):
        if package in parts:
            return "/".join(parts[len(parts) - 1 - parts[::-1].index(package) :])
    return parts[-1]


def main() -> None:
    """Print how often each file is entered, with the sums."""
    for name, call in calls().items():
        found = entries(call)
        print(f"{name}: {len(found)} entries into files")
        for (file, function), count in Counter((short(file), function) for file, function in found).items():
            print(f"  {count:3d}  {file}  {function}")


if __name__ == "__main__":
    main()
