"""Records the three gates of an LSTM over a line of text: `python -m benchmarks.learning.gates`, half a minute.

A small model learns the characters of the text that every Python contains. Then the float64 reference, which returns its gates,
runs with the model's weights over a line that was held out from training, after the characters before it. The gates go to
benchmarks/results/gate-activity.json.
"""

from __future__ import annotations

import argparse
import re
import time
from typing import Any

import numpy as np

import fastlstm
from benchmarks.measure.record import Record
from fastlstm.kernels import reference
from fastlstm.text import load_corpus, prepare

HIDDEN, BATCH, STEPS, EPOCHS, RATE = 32, 32, 64, 8, 3e-3
BEFORE = 200  # characters that the state has seen when the line begins
LINE = re.compile(r"^ {0,3}([A-Z][^\n]{47,63})$", re.MULTILINE)  # one line of prose
GATES = {"input": "i", "forget": "f", "output": "o"}


def line_of(text: str) -> tuple[int, str]:
    """Return the position and the text of the first line of prose with enough text before it."""
    for found in LINE.finditer(text):
        if found.start(1) >= BEFORE:
            return found.start(1), found[1]
    raise ValueError(f"text: expected a line of 48 to 64 characters after the first {BEFORE}, got none")


def gates(model: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return each gate [T, H] and the logits [T, V] of a model of one LSTM layer, over ids [T] from a zero state."""
    values = model.state_dict()
    x = values["embedding.weight"][ids][:, None]
    weights = [values[f"rnn.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    start = np.zeros((1, model.config["hidden_size"]))
    out, _, _, saved = reference.lstm_forward(x, start, start, *weights)
    logits = reference.linear_forward(out[:, 0], values["head.weight"], values["head.bias"])
    return {name: getattr(saved, key)[:, 0] for name, key in GATES.items()} | {"logits": logits}


def measure(text: str, epochs: int = EPOCHS) -> dict[str, Any]:
    """Train on a text, then record the gates over a held-out line of it."""
    prepared = prepare(text, "char", "tail", BATCH, STEPS)
    model = fastlstm.LanguageModel(prepared.tokenizer.vocab_size, "lstm", hidden_size=HIDDEN, num_layers=1, seed=0)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=RATE), clip_norm=1.0, progress=False)
    begin = time.perf_counter()
    trainer.fit(prepared.train, epochs=epochs)
    seconds = time.perf_counter() - begin
    held_out = text[int(len(text) * 0.9) :]
    at, line = line_of(held_out)
    found = gates(model, prepared.tokenizer.encode(held_out[at - BEFORE : at + len(line)]))
    return {
        "line": line,
        "settings": {
            "hidden_size": HIDDEN,
            "num_layers": 1,
            "batch_size": BATCH,
            "seq_len": STEPS,
            "epochs": epochs,
            "lr": RATE,
        },
        "characters": len(text),
        "seconds": round(seconds, 2),
        "valid_loss": round(float(trainer.evaluate(prepared.valid)["loss"]), 4),
        "gates": {name: np.round(found[name][BEFORE:].T, 2).tolist() for name in GATES},
    }


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", metavar="NAME", default="gate-activity", help="write benchmarks/results/NAME.json")
    options = parser.parse_args()
    record = Record(options.record)
    found = measure(load_corpus())
    record.put("lstm", "default text", found)
    print(f"{record.path}: loss {found['valid_loss']} after {found['seconds']} s, over {found['line']!r}")


if __name__ == "__main__":
    main()
