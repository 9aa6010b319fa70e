"""What the benchmarks share under pytest: --record NAME and the record that they write with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.record import RESULTS, machine, versions


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", metavar="NAME", help="write the measurements to benchmarks/results/NAME.json")


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
