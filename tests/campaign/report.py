"""What is told of a campaign: a summary, a record in JSON, and the table in docs/campaign.md that is made of a record.

Knows tallies and files; nothing of how trials are run.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import fastlstm
from fastlstm.runtime import info
from tests.campaign.runner import ROOT, Campaign, Failure, Tally

DOCUMENT = ROOT / "docs" / "campaign.md"
BEGIN, END = "<!-- begin: results -->", "<!-- end: results -->"
PACKAGES = ("numba", "llvmlite", "numpy", "safetensors", "scikit-learn", "onnx", "keras", "h5py", "tokenizers", "torch")


def told(failure: Failure) -> str:
    """A failure for people: what it said, and what repeats it."""
    where = "before or after its trials" if failure.seed is None else f"seed {failure.seed}"
    text = failure.text.splitlines()
    text = text if len(text) <= 20 else [*text[:8], "...", *text[-11:]]  # crashes say where at first, exceptions what at last
    lines = "\n".join(f"    {line}" for line in text)
    after = f", the {len(failure.before) + 1}th of its process" if failure.before else ""
    return f"{failure.kind} in {failure.part}, {where}{after}\n{lines}\n    again: {failure.command}"


def ended(tally: Tally) -> str:
    """How many of its trials a part has done."""
    share = "" if tally.trials >= tally.target else f" of {tally.target:,}"
    return f"{tally.trials:,}{share}"


def summary(campaign: Campaign) -> str:
    """A line for each part, then each failure."""
    lines = [f"{'part':<10} {'trials':>22} {'failures':>9} {'peak MiB':>9} {'growth MiB':>11} {'processor hours':>16}"]
    lines += [
        f"{tally.part:<10} {ended(tally):>22} {len(tally.failures):>9,} {tally.memory:>9,.0f} {tally.growth:>11,.0f} "
        f"{tally.seconds / 3600:>16.2f}"
        for tally in campaign.tallies
    ]
    lines += ["", *(told(failure) for tally in campaign.tallies for failure in tally.failures)]
    return "\n".join(lines).rstrip()


def version(package: str) -> str | None:
    """An installed package's, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit that was tested, marked where files differ from it; None outside a repository."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def record(campaign: Campaign) -> dict[str, Any]:
    """All of it, as written to a file."""
    versions = {"python": platform.python_version(), "fastlstm": fastlstm.__version__}
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": info.processor(),
        "processors": os.cpu_count(),
        "instruction_set": info.describe()["in_use"],
        "system": platform.platform(),
        "versions": versions | {package: found for package in PACKAGES if (found := version(package))},
        "commit": commit(),
        "minutes": campaign.seconds / 60,
        "workers": campaign.workers,
        "parts": {
            tally.part: {
                "first_seed": tally.first,
                "trials": tally.trials,
                "of": tally.target,
                "worker_seconds": tally.seconds,
                "peak_mib": tally.memory,
                "growth_mib": tally.growth,
                "failures": [vars(failure) | {"command": failure.command} for failure in tally.failures],
            }
            for tally in campaign.tallies
        },
    }


def table(found: dict[str, Any]) -> str:
    """A record in Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        f"{found['date']}, commit {found['commit']}: {found['minutes']:.0f} minutes, {found['workers']} worker processes on "
        f"{found['processors']} processors ({found['processor']}, {found['instruction_set']}). {versions}.",
        "",
        "| part | trials | of | failures | most memory, MiB | grown by, MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {part['trials']:,} | {part['of']:,} | {len(part['failures']):,} | {part['peak_mib']:,.0f} "
        f"| {part['growth_mib']:,.0f} |"
        for name, part in found["parts"].items()
    ]
    return "\n".join(lines)


def write_table(path: Path, document: Path = DOCUMENT) -> None:
    """Put a record's table between the document's markers."""
    text = f"{BEGIN}\n{table(json.loads(path.read_text()))}\n{END}"
    document.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: text, document.read_text(), flags=re.DOTALL))
