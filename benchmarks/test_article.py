"""The article's model beside PyTorch: whole training steps, layers alone, and inference (2 x 256 units, 64 x 100 tokens)."""

from __future__ import annotations

import numpy as np
import pytest

import fastlstm
from benchmarks.beside import beside

torch = pytest.importorskip("torch")

STEPS, BATCH, HIDDEN, LAYERS, VOCABULARY = 100, 64, 256, 2, 65
CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


@pytest.fixture(autouse=True)
def same_threads():
    torch.set_num_threads(fastlstm.num_threads())


def torch_step(kind, ids, targets):
    """A whole training step by torch.nn: embedding, layers, head, cross-entropy, clipping, Adam."""
    embedding, layers = torch.nn.Embedding(VOCABULARY, HIDDEN), getattr(torch.nn, kind)(HIDDEN, HIDDEN, LAYERS)
    head = torch.nn.Linear(HIDDEN, VOCABULARY)
    params = [*embedding.parameters(), *layers.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(params, lr=1e-3)
    ids, targets = torch.tensor(ids), torch.tensor(targets)

    def step():
        optimizer.zero_grad()
        logits = head(layers(embedding(ids))[0])
        loss = torch.nn.functional.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        return loss.item()

    return step


@pytest.mark.parametrize("cell", CELLS)
def test_training_step(cell, benchmark, record):
    draw = np.random.default_rng(0)
    ids, targets = draw.integers(0, VOCABULARY, (2, STEPS, BATCH))
    model = fastlstm.LanguageModel(VOCABULARY, cell, hidden_size=HIDDEN, num_layers=LAYERS, seed=0)
    trainer = fastlstm.Trainer(model, progress=False)
    ours = lambda: trainer.step(ids, targets)  # noqa: E731
    result = beside({"fastlstm": ours, "torch": torch_step(CELLS[cell], ids, targets)}, seconds=0.8)
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
