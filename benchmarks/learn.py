"""The article's learning runs into one result file: `python -m benchmarks.learn NAME RUN [RUN ...]`.

A run is a folder of ``fastlstm train shakespeare --preset article --cell CELL --out RUN``, finished or not. Kept are the
settings, loss and time of every epoch, and a sample for the article's prompt from the best checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import fastlstm
from benchmarks.record import RESULTS, machine, versions

PROMPT = "To be or not to be"


def summary(run: Path, remark: str) -> dict[str, Any]:
    """What a run's folder says."""
    settings = json.loads((run / "settings.json").read_text())
    epochs = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    epochs = [epoch for epoch in epochs if "valid_loss" in epoch]
    losses = [epoch["valid_loss"] for epoch in epochs]
    best = min(losses)
    return {
        "settings": settings,
        "remark": remark,
        "epochs": len(epochs),
        "hours": sum(epoch["seconds"] for epoch in epochs) / 3600,
        "best_loss": best,
        "best_epoch": losses.index(best) + 1,
        "best_loss_12_epochs": min(losses[:12]),
        "best_perplexity": math.exp(best),
        "best_bits_per_character": best / math.log(2),
        "train_loss": [round(epoch["loss"], 4) for epoch in epochs],
        "valid_loss": [round(loss, 4) for loss in losses],
        "seconds": [round(epoch["seconds"], 1) for epoch in epochs],
        "sample": PROMPT + fastlstm.load(run).generate(PROMPT, 400, temperature=0.8, seed=0).removeprefix(PROMPT),
    }


def main() -> None:
    """Read the runs and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the file under benchmarks/results")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--remark", default="", help="how the runs were made: threads, what else ran")
    options = parser.parse_args()
    results = {}
    for run in options.runs:
        one = summary(run, options.remark)
        results[one["settings"]["cell"]] = one
        print(f"{run}: {one['epochs']} epochs, best {one['best_loss']:.4f} in epoch {one['best_epoch']}")
    content = {"machine": machine(), "versions": versions(), "results": results}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
