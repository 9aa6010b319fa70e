"""Python enters few files in the calls that users make most often."""

import json

from benchmarks.speed import trace

MOST = {"Trainer.step": 40, "layer(x)": 18, "Stream's step": 1}


def test_calls_enter_few_files():
    found = {name: len(trace.entries(call)) for name, call in trace.calls().items()}
    assert set(found) == set(MOST)
    assert all(1 <= count <= MOST[name] for name, count in found.items()), found


def test_entries_are_counted():
    """The call itself counts, then the files that it enters; calls within a file do not count."""
    found = [function for _, function in trace.entries(lambda: json.loads("[1]"))]
    assert found == ["<lambda>", "loads", "decode"]
