"""A folder of results that the report reads in tests."""

import json

import pytest

from benchmarks.report import tables
from tests.benchmarks.report.stored import ABOUT


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Return a function that fills a folder with results, which the report then reads."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def fill(found):
        for name, content in found.items():
            about = {} if name.startswith("gpu-") else ABOUT  # files of `make gpu` name the machine among their results
            (tmp_path / f"{name}.json").write_text(json.dumps(about | {"results": content}))

    return fill
