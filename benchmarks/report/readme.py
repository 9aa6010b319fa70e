"""`python -m benchmarks.report.readme` rewrites the results in the README, between its markers, from
benchmarks/results/*.json."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.report import claims, tables

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- begin: results -->", "<!-- end: results -->"
SECTIONS = {
    "article-speed": [claims.markdown, tables.speed],
    "bfloat16-speed": [tables.bfloat16],
    "grid": [tables.grid],
    "latency": [tables.latency],
    "roofline": [tables.roofline],
    "article-learning": [tables.learning],
}


def results() -> str:
    """What stands between the markers."""
    made = [line for name, makers in SECTIONS.items() if tables.exists(f"{name}.json") for make in makers for line in make()]
    return "\n".join(made).strip()


def main() -> None:
    """Rewrite them."""
    text = results()
    pattern = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
    README.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", README.read_text()))


if __name__ == "__main__":
    main()
