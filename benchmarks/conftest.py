"""What the benchmarks share: the machine's description and the record that they write with --record."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import fastlstm
from fastlstm import engine

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", metavar="NAME", help="write the measurements to benchmarks/results/NAME.json")


def versions() -> dict[str, str]:
    """Versions of what takes part."""
    found = {"python": platform.python_version(), "fastlstm": fastlstm.__version__}
    for package in ("numba", "llvmlite", "numpy", "torch", "onnxruntime"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The machine that a result belongs to."""
    found = engine.describe()
    return {key: found[key] for key in ("processor", "llvm_processor", "in_use", "threads")} | {"system": platform.system()}


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Any:
    """record[case] = measurements; written at the end if asked for."""
    results: dict[str, Any] = {}
    yield results
    name = request.config.getoption("--record")
    if name and results:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        content = {"machine": machine(), "versions": versions(), "results": known.get("results", {}) | results}
        path.write_text(json.dumps(content, indent=1) + "\n")
