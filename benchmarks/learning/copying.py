"""Copying with a delay: at every step the model must give the token of k steps before, so it must remember the last k tokens.

Tokens are drawn from eight symbols, in sequences of 100. In the first k steps there is nothing to repeat, and the target is a
ninth token. A model learns one delay after the other, beginning with the shortest; each is trained until the loss is low, or
for a fixed number of updates. The models have 128 units in one layer, the Transformer 64 in two layers; Adam at 0.002, 64 new
sequences for each update. The task of benchmarks/learning/recall.py is easier: there a model must remember only one symbol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastlstm
from benchmarks.learning.recall import reached

SYMBOLS, STEPS, BATCH, UNITS, RATE = 8, 100, 64, 128, 2e-3
DELAYS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)
LEARNED = 0.02  # mean loss of ten updates at which a delay is learned
Step = Callable[[np.ndarray, np.ndarray], float]  # ids and targets [T, B] -> loss
Answers = Callable[[np.ndarray], np.ndarray]  # ids [T, B] -> tokens [T, B]


def sequences(draw: np.random.Generator, delay: int, count: int = BATCH) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and targets [STEPS, count]."""
    ids = draw.integers(0, SYMBOLS, (STEPS, count))
    targets = np.full_like(ids, SYMBOLS)
    targets[delay:] = ids[:-delay]
    return ids, targets


def recurrent(cell: str, seed: int) -> tuple[Step, Answers]:
    """Return the update and the answers of a language model of fastlstm."""
    model = fastlstm.LanguageModel(SYMBOLS + 1, cell, hidden_size=UNITS, num_layers=1, seed=seed)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=RATE), progress=False)

    def step(ids: np.ndarray, targets: np.ndarray) -> float:
        trainer.reset_state()
        return trainer.step(ids, targets)

    return step, lambda ids: np.asarray(model(ids)[0].argmax(axis=2))


def transformer(seed: int) -> tuple[Step, Answers]:
    """Return the update and the answers of a decoder of PyTorch."""
    import torch

    from benchmarks.peers.transformer import Decoder

    torch.manual_seed(seed)
    model = Decoder(SYMBOLS + 1, STEPS, width=UNITS // 2, layers=2, heads=2, inner=2 * UNITS)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def step(ids: np.ndarray, targets: np.ndarray) -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(ids)).flatten(0, 1), torch.tensor(targets).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    def answers(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = model(torch.tensor(ids)).argmax(2).numpy()
        return found

    return step, answers


def accuracies(kind: str, seed: int, steps: int, delays: tuple[int, ...] = DELAYS) -> list[float]:
    """Return the share of new tokens that a model repeats correctly, after it has learned each delay.

    If a model fails completely at a delay, longer delays are not tried, since it could not build on shorter ones.
    """
    step, answers = transformer(seed) if kind == "transformer" else recurrent(kind, seed)
    draw, found = np.random.default_rng(seed), []
    for delay in delays:
        losses: list[float] = []
        while len(losses) < steps and not (len(losses) >= 10 and np.mean(losses[-10:]) < LEARNED):
            losses.append(step(*sequences(draw, delay)))
        ids, targets = sequences(draw, delay, 4 * BATCH)
        found.append(float((answers(ids) == targets)[delay:].mean()))
        if found[-1] < 2 / SYMBOLS:
            break
    return found


def measure(kind: str, steps: int = 500, seeds: int = 3, delays: tuple[int, ...] = DELAYS) -> dict[str, Any]:
    """Return medians over seeds for the delays that all seeds tried, and the longest delay up to which 90 % of tokens are
    right.
    """
    own = [accuracies(kind, seed, steps, delays) for seed in range(seeds)]
    tried = delays[: min(map(len, own))]
    values = [float(np.median([one[k] for one in own])) for k in range(len(tried))]
    span, most = reached(tried, values, "tried")
    return {
        "tokens": list(tried),
        "values": values,
        "span": span,
        "criterion": f"the longest delay up to which nine of ten tokens are repeated (guessing: one in {SYMBOLS}); {most}"
        f"median of {seeds} seeds, {steps} steps for each delay",
        "seeds": own,
    }
