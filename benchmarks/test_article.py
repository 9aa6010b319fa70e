"""The article's model beside PyTorch: whole training steps, layers alone, and inference (2 x 256 units, 64 x 100 tokens)."""

from __future__ import annotations

import numpy as np
import pytest

import fastlstm
from benchmarks.beside import beside
from benchmarks.peers import BATCH, CELLS, HIDDEN, LAYERS, STEPS, article_step, torch_step

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def same_threads():
    torch.set_num_threads(fastlstm.num_threads())


@pytest.mark.parametrize("cell", CELLS)
def test_training_step(cell, benchmark, record):
    ours = article_step(cell)
    result = beside({"fastlstm": ours, "torch": torch_step(cell)}, seconds=0.8)
    record[f"training step {cell}"] = benchmark.extra_info["beside"] = result
    benchmark.pedantic(ours, rounds=3)


@pytest.mark.parametrize("cell", CELLS)
def test_layers(cell, benchmark, record):
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, HIDDEN), np.float32)
    layer = getattr(fastlstm, CELLS[cell])(HIDDEN, HIDDEN, LAYERS, seed=0)
    peer, x_torch = getattr(torch.nn, CELLS[cell])(HIDDEN, HIDDEN, LAYERS), torch.tensor(x)
    dout = np.ones((STEPS, BATCH, HIDDEN), np.float32)

    def ours():
        _, _, backprop = layer.forward_train(x)
        backprop(dout)

    def torchs():
        peer(x_torch)[0].sum().backward()

    def torch_inference():
        with torch.no_grad():
            peer(x_torch)

    record[f"forward+backward {cell}"] = beside({"fastlstm": ours, "torch": torchs}, seconds=0.8)
    record[f"inference {cell}"] = beside({"fastlstm": lambda: layer(x), "torch": torch_inference})
    benchmark.extra_info["beside"] = record[f"inference {cell}"]
    benchmark.pedantic(lambda: layer(x), rounds=3)
