"""Writes docs/results.md and the README's numbers from benchmarks/results/*.json: `python -m benchmarks.report.readme`.

All six numbers of the README come from article-speed.json, so they are of one machine.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.report import claims, tables

ROOT = Path(__file__).parents[2]
README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"
BEGIN, END = "<!-- begin: numbers -->", "<!-- end: numbers -->"
STEP = "one step lstm 32->64 B=1 T=1"
INTRODUCTION = """# Results

`python -m benchmarks.report.readme` makes this page from the files in [benchmarks/results](../benchmarks/results), which name
their machines. `make report` makes a page with more: curves, samples, memory spans and every number behind the pictures.

![speed-ups over PyTorch, one step from Python, and memory](summary.png)
"""
ARTICLE = """The article is [a community article on LSTMs, published in October 2025](../benchmarks/article.py). It trains two
layers of 256 units on about 1 MB of Shakespeare for 50 epochs, on a CPU that it does not name and on an RTX 3090.
`fastlstm train --preset article` has its set-up, with Adam and by characters."""
# Heading, what stands below it, and the result file and makers of its tables.
SECTIONS = [
    ("The article's figures", ARTICLE, "article-speed", [claims.markdown]),
    ("Speed", "", "article-speed", [tables.speed]),
    ("bfloat16", "", "bfloat16-speed", [tables.bfloat16]),
    ("Many shapes", "", "grid", [tables.grid]),
    ("Latency", "", "latency", [tables.latency]),
    ("Roofline", "", "roofline", [tables.roofline]),
    ("Learning", "", "article-learning", [tables.learning]),
]


def page() -> str:
    """Return docs/results.md."""
    parts = [INTRODUCTION]
    for title, words, name, makers in SECTIONS:
        if tables.exists(f"{name}.json"):
            made = "\n".join(line for make in makers for line in make()).strip()
            parts.append("\n".join([f"## {title}", "", *([words, ""] if words else []), made, ""]))
    return "\n".join(parts)


def numbers() -> str:
    """Return the README's table: six measured numbers of one machine."""
    content = tables.read("article-speed")
    results = content["results"]

    def times(case: str) -> list[str]:
        one = results[case]
        both = [f"{one[who]['seconds'] * 1e3:.3g} ms" for who in ("fastlstm", "torch")]
        return [*both, f"{one['torch']['speedup']:.2f} times as fast"]

    step, size = results["latency"][STEP], "peak memory of training, lstm"
    micro = [f"{step[who]['p50']:.3g} µs" for who in ("fastlstm", "torch")]
    ours, theirs = results[f"{size}, MiB"], results[f"{size}, torch, MiB"]
    rows = [
        ["training step, LSTM", *times("training step lstm")],
        ["training step, GRU", *times("training step gru")],
        ["forward and backward, LSTM layers alone", *times("forward+backward lstm")],
        ["inference, LSTM layers alone", *times("inference lstm")],
        [
            "one step called from Python, LSTM 32 -> 64",
            *micro,
            f"{step['torch']['p50'] / step['fastlstm']['p50']:.3g} times as fast",
        ],
        ["peak memory of training, LSTM", f"{ours:.0f} MiB", f"{theirs:.0f} MiB", f"{ours / theirs:.0%} of the memory"],
    ]
    model = "Two layers of 256 units, batches of 64 x 100 characters, float32, on one machine:"
    return "\n".join([model, *tables.table(["", "fastlstm", "PyTorch", ""], rows), "", tables.where(content) + "."])


def with_numbers(readme: str) -> str:
    """Return the README with new numbers between its markers."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{numbers()}\n{END}", readme, flags=re.DOTALL)


def main() -> None:
    """Write both."""
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(with_numbers(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
