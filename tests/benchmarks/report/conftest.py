"""The folder of results that the report reads in tests."""

import json

import pytest

from benchmarks.report import tables
from tests.benchmarks.report.stored import ABOUT


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Fills a folder of results, which the report then reads."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def fill(found):
        for name, content in found.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(ABOUT | {"results": content}))

    return fill
