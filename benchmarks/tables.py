"""The README's tables from benchmarks/results/*.json: `python -m benchmarks.tables` rewrites the part between its markers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- begin: results -->", "<!-- end: results -->"
ARTICLE = {"rnn": (6, 125.3), "lstm": (18, 45.7), "gru": (14, 48.2)}
NAMES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


def read(name: str) -> dict[str, Any]:
    """A result file."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def where(content: dict[str, Any]) -> str:
    """One line on the machine and versions."""
    m, v = content["machine"], content["versions"]
    versions = ", ".join(f"{name} {v[name]}" for name in ("python", "numba", "numpy", "torch") if name in v)
    return f"{m['processor']} ({m['llvm_processor']}), {m['threads']} threads, {m['in_use']}; {versions}"


def learning() -> list[str]:
    """The article's 50 epochs beside ours."""
    content = read("article-learning")
    lines = [
        "**Learning.** Characters of Shakespeare, 90/10 split, Adam 0.001. The article does not say what its tokens are, so",
        "its perplexities (125.3, 45.7, 48.2) are not comparable with these per character.",
        "",
        "| cell | article's hours | hours here | epochs | best validation loss | in epoch | perplexity | bits per character |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell, one in content["results"].items():
        hours, _ = ARTICLE[cell]
        lines.append(
            f"| {NAMES[cell]} | {hours} | {one['hours']:.2f} | {one['epochs']} | {one['best_loss']:.3f} | {one['best_epoch']} "
            f"| {one['best_perplexity']:.2f} | {one['best_bits_per_character']:.2f} |"
        )
    remarks = sorted({one["remark"] for one in content["results"].values() if one["remark"]})
    lines += ["", f"{where(content)}. {' '.join(remarks)}", ""]
    for cell, one in content["results"].items():
        lines += [f"{NAMES[cell]}, 400 characters at temperature 0.8:", "", "```text", one["sample"].rstrip(), "```", ""]
    return lines


def speed() -> list[str]:
    """The article's model beside PyTorch in one process."""
    content = read("article-speed")
    lines = [
        "**Speed** beside PyTorch in the same process, the article's model (2 layers of 256, batches of 64 x 100), float32:",
        "",
        "| | fastlstm, ms | torch, ms | times as fast |",
        "|---|---|---|---|",
    ]
    for case, one in content["results"].items():
        if isinstance(one, dict) and "torch" in one:
            ours, peer = one["fastlstm"]["seconds"], one["torch"]["seconds"]
            lines.append(f"| {case} | {ours * 1e3:.3g} | {peer * 1e3:.3g} | {one['torch']['speedup']:.2f} |")
    numbers = [f"| {name} | {value:.3g} |" for name, value in content["results"].items() if not isinstance(value, dict)]
    if numbers:
        lines += ["", "| start and memory | |", "|---|---|", *numbers]
    return [*lines, "", where(content) + ".", ""]


def main() -> None:
    """Rewrite the README between the markers."""
    readme = ROOT / "README.md"
    text = "\n".join([*speed(), *learning()]).strip()
    pattern = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme.read_text()))


if __name__ == "__main__":
    main()
