"""Synthetic results for tests of the report, and checks that every page must pass."""

import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from benchmarks.learning import gates
from benchmarks.report.page import html

ABOUT = {
    "machine": {"processor": "A <fast> one", "llvm_processor": "znver9", "in_use": "avx2", "threads": 3, "system": "Linux"},
    "versions": {"python": "3.11", "numba": "0.68", "numpy": "2.4", "torch": "2.13", "onnxruntime": "1.3"},
}
CELLS = ("lstm", "gru", "rnn")
VOID = {"meta", "link", "br", "rect", "path", "use", "image"}
# Rows that the tables must have.
TABLES = [
    "RNN: CPU time",
    "LSTM: CPU time",
    "LSTM: GPU time",
    "GRU: CPU time",
    "GRU: GPU time",
    "Transformer: GPU time",
    *(f"{name}: perplexity" for name in ("RNN", "LSTM", "GRU", "Transformer")),
    *(f"{name}: generates coherent text over" for name in ("RNN", "LSTM", "GRU", "Transformer")),
    "LSTM: CPU time / GPU time",
    "GRU: CPU time / GPU time",
    "CPU: LSTM time / RNN time",
    "CPU: GRU time / LSTM time",
    "GPU: GRU time / LSTM time",
    "GPU: LSTM time / Transformer time",
    "parameters: LSTM / RNN",
    "parameters: GRU / LSTM",
    "perplexity: RNN > GRU > LSTM > Transformer",
    "memory: tokens remembered, RNN",
    "memory: tokens remembered, LSTM and GRU",
    "gradients survive through the cell state",
]


def times(**seconds):
    ours = next(iter(seconds.values()))
    return {name: {"seconds": value, "speedup": value / ours} for name, value in seconds.items()}


def run(cell, tokens, loss, epochs=50):
    losses = [loss + 1 / (k + 1) for k in range(epochs)]
    return {
        "settings": {"cell": cell, "tokens": tokens, "dtype": "float32", "hidden_size": 256, "num_layers": 2},
        "remark": "Quiet.",
        "epochs": epochs,
        "hours": 0.5,
        "best_loss": losses[-1],
        "best_epoch": epochs,
        "best_perplexity": float(np.exp(losses[-1])),
        "best_bits_per_character": 2.2,
        "train_loss": losses,
        "valid_loss": losses,
        "seconds": [3.0] * epochs,
        "sample": "To be <or> not",
    }


def synthetic():
    """Return small results of every kind that the report knows."""
    point = {"num_layers": 1, "steps": 100}
    main = {
        f"{cell} {h}->{h} B={b} T=100": point
        | {
            "cell": cell,
            "hidden_size": h,
            "batch": b,
            "input_size": h,
            "forward+backward": times(fastlstm=1.0, torch=1.25 + h),
            "inference": times(fastlstm=1.0, torch=0.43, onnxruntime=2.37),
        }
        for cell in CELLS
        for h in (16, 32)
        for b in (1, 8)
    }
    way = {"operations": 1e6, "bytes": 1e5, "intensity": 10.0, "bound": "compute", "floor": 1e-3, "seconds": 2e-3, "share": 0.5}
    steps = {
        "p50": 1.5,
        "p99": 2.5,
        "p99.9": 9.25,
        "max": 30.0,
        "quantiles": [0, 50, 90, 99, 99.9],
        "microseconds": [1.0, 1.5, 2.0, 2.5, 9.25],
    }
    speeds = {"rnn": 1.0, "lstm": 3.0, "gru": 2.34}
    spans = {"lstm": 40, "gru": 45, "rnn": 7}
    curve = {
        cell: {"tokens": [0, 10, 50], "values": [1.0, 0.5, 1e-2 if cell == "lstm" else 1e-9], "span": span, "criterion": "half"}
        for cell, span in spans.items()
    }
    loss = {"rnn": 4.8, "gru": 3.85, "lstm": 3.8, "transformer": 3.3}
    return {
        "article-speed": {f"training step {cell}": times(fastlstm=t, torch=2 * t) for cell, t in speeds.items()},
        "grid": {"main": main, "threads": {f"{cell} 256->256 B=64": {"threads": 3, "speedup": 2.5} for cell in CELLS}},
        "latency": {"steps": {"lstm 32->64 B=1 T=1": {"fastlstm float32": steps, "torch": steps}}},
        "roofline": {
            "ceilings": {"measured": {"peak": 3e11, "memory": 4e10, "cache": 1e11}},
            "points": {
                f"{c} 32->32 B=8 T=100": point
                | {"cell": c, "hidden_size": 32, "batch": 8, "inference": way, "forward+backward": way}
                for c in CELLS
            },
        },
        "article-learning": {cell: run(cell, "char", 1.5) for cell in CELLS},
        "words-learning": {cell: run(cell, "word", value) for cell, value in loss.items()},
        "memory-span": dict.fromkeys(("recall", "copy", "gradient", "context", "context by word"), curve),
        "generation": {
            name: {
                "span": 45,
                "criterion": "share of real words",
                "position": [1, 2, 3],
                "real words": [1.0, 0.9, 0.8],
                "longest match": 21,
                "median match": 12.5,
            }
            for name in ("lstm", "gru", "held-out text")
        },
        "attention-memory": {
            kind: {"tokens": [100, 200], "mebibytes": [1.0, 4.0], "power": power}
            for kind, power in (("attention, a table of weights", 2.0), ("attention, fused", 1.0), ("LSTM, fastlstm", 1.0))
        },
        "repeat": {"CPU: LSTM time / RNN time": {"fastlstm": {"values": [3.0, 3.27], "off": 0.09}}},
        "gate-activity": {
            "lstm": {
                "a text": {
                    "line": 'A "quoted" <line>',
                    "settings": {"num_layers": 1, "hidden_size": 2, "epochs": 1},
                    "seconds": 1.0,
                    "valid_loss": 2.0,
                    "gates": {gate: np.linspace(0, 1, 34).reshape(2, 17).tolist() for gate in gates.GATES},
                }
            }
        },
        "gpu-some-gpu-2026-12-01-000000": {
            "machine": {"device": {"device": "Some GPU"}},
            "step": {
                f"{cell} float32": {"fastlstm": 1e3 * t / 9, "torch": 1e3 * t / 4, "speedup": 2.25}
                for cell, t in speeds.items()
            }
            | {"gru bfloat16": {"failed": "Traceback\nOutOfMemory: <none> left"}},
            "layers": {
                "lstm H=256 B=64 T=100 float32": {
                    "inference": {"fastlstm": 1.0, "torch": 1.5, "speedup": 1.5},
                    "conditions": "without the broken form grid",
                }
            },
            "check": {"lstm float32": {"error": 1e-7}, "wave form float32": {"errors": {}, "left out": "no room"}},
        },
        "torch-layers": {
            "whole": {
                "lstm 64->64 B=8 T=100": {
                    way: {"through": 1.0, "native": 0.9, "torch": 2.0, "times as fast": 2.0, "share": 0.9}
                    for way in ("training", "inference")
                }
            }
        },
    }


class Reader(HTMLParser):
    """Checks that tags match; collects ids, links and the cells of tables."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.references, self.rows = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.references += [given[name] for name in ("href", "src", "xlink:href", "srcset") if name in given]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def made():
    """Return the page, after checks that hold for every page: it is complete, well-formed, and loads nothing else."""
    pytest.importorskip("matplotlib")
    page = html()
    reader = Reader(page)
    assert [name for name, count in Counter(reader.ids).items() if count > 1] == []
    assert all(reference.startswith(("#", "data:")) for reference in reader.references)
    assert {reference[1:] for reference in reader.references if reference.startswith("#")} <= set(reader.ids)
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {f"#{name}" for name in reader.ids}
    assert not re.search(r"@import|<script|<iframe", page)
    rows = {row[0]: row for row in reader.rows if len(row) == 5}
    for claim in TABLES:
        _, article, *_, verdict = rows[claim]
        assert article
        found = re.fullmatch(r"(✓ holds|✗ does not hold|± depends on the measure|– not measur(ed|able) here)(.+)", verdict)
        assert found, verdict
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert all("<table" in one and "<figcaption>" in one for one in figures)
    drawings = page.count('<svg role="img" aria-label="')
    assert drawings == page.count("<svg") - page.count('aria-hidden="true"') >= len(figures)
    return page, reader
