"""Trains the article's models: `python -m benchmarks.learning.learn train FOLDER RUN ...`, then `time` and `collect`.

A run's name says what differs from the article's LSTM by characters: TOKENS-MODEL, such as char-lstm, bpe-gru, word-transformer
or char-transformer-large; char-lstm-512 has more units and char-lstm-3-layers more layers. Everything else is as in the
article.

train FOLDER RUN ...
    Trains each run in FOLDER/RUN. A run that was stopped goes on where it was; a finished run is not touched.
time FOLDER RUN ...
    Times an update of each run. Use an idle machine: the runs themselves may share theirs with other work for hours, so their
    own times mean little.
collect FOLDER NAME RUN ...
    Writes the results of the runs into benchmarks/results/NAME.json, see benchmarks/learning/collect.py.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import fastlstm
from benchmarks.learning.runs import STEP, done, prepare, settings
from benchmarks.measure.record import machine
from fastlstm.command import cli
from fastlstm.training import checkpoint

TIMED = 15  # updates; the first three do not count


def train(folder: Path, wanted: dict[str, Any]) -> None:
    """Begin a run, or continue it."""
    if done(folder, wanted):
        return
    if wanted["cell"] == "transformer":
        from benchmarks.learning.learn_transformer import Learner

        Learner(wanted).fit(folder, lambda: done(folder, wanted))
        return
    given = {key: wanted[key] for key in ("epochs", "patience")}
    if (folder / checkpoint.LAST).exists():
        command = ["--resume", str(folder)]
    else:
        command = [wanted["text"], "--preset", "article", "--out", str(folder)]
        keys = ("cell", "tokens", "vocab_size", "hidden_size", "embedding_size", "num_layers", "dtype")
        given |= {key: wanted[key] for key in keys}
    command += [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    if code := cli.main(["train", *command, "--quiet"]):
        raise SystemExit(code)


def step(wanted: dict[str, Any]) -> Callable[[], float]:
    """Return a training step of a run, on the run's text."""
    if wanted["cell"] == "transformer":
        from benchmarks.learning.learn_transformer import training_step

        return training_step(wanted)
    prepared = prepare(wanted)
    keys = ("cell", "embedding_size", "hidden_size", "num_layers", "dtype", "seed")
    model = fastlstm.LanguageModel(prepared.tokenizer.vocab_size, **{key: wanted[key] for key in keys})
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=wanted["lr"]), wanted["clip_norm"], progress=False)
    batches = cycle(prepared.train)
    return lambda: trainer.step(*next(batches))


def timed(folder: Path) -> float:
    """Time a training step of the run in a folder; store the seconds there with the machine, and return them."""
    one, seconds = step(checkpoint.read_json(folder / checkpoint.SETTINGS)), []
    for _ in range(TIMED):
        began = time.perf_counter()
        one()
        seconds.append(time.perf_counter() - began)
    found = statistics.median(seconds[3:])
    checkpoint.write_json(folder / STEP, {"seconds": found, "machine": machine()})
    return found


def main() -> None:
    """Train, time or collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    added = {name: commands.add_parser(name) for name in ("train", "time", "collect")}
    for command in added.values():
        command.add_argument("folder", type=Path)
    added["collect"].add_argument("name", help="name of the file in benchmarks/results")
    added["collect"].add_argument("--remark", default="", help="how the runs were made: threads, other work on the machine")
    for command in added.values():
        command.add_argument("runs", nargs="+", metavar="RUN")
    added["train"].add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    added["train"].add_argument("--epochs", type=int, default=50)
    added["train"].add_argument(
        "--patience", type=int, default=4, help="stop after so many epochs without a lower held-out loss"
    )
    options = parser.parse_args()
    folders = [options.folder / run for run in options.runs]
    if options.command == "train":
        for folder in folders:
            train(folder, settings(folder.name, options.dtype, options.epochs, options.patience))
    elif options.command == "time":
        for folder in folders:
            print(f"{folder.name}: {timed(folder) * 1e3:.4g} ms", flush=True)
    else:
        from benchmarks.learning import collect

        collect.write(options.name, folders, options.remark)


if __name__ == "__main__":
    main()
