"""Copying with a delay: at every step the token of k steps ago is asked for, so that the last k tokens all have to be held.

Tokens are drawn from eight symbols, in sequences of 100; before the first k there is nothing to repeat, and a ninth token says
so. A model learns the delays one after the other, from the shortest on, up to so many steps each or until its loss is low; the
models have 128 units in one layer, the Transformer 64 in two; Adam at 0.002, 64 new sequences a step. What
benchmarks/learning/recall.py asks is easier: one thing, however long ago.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastlstm
from benchmarks.learning.recall import reached

SYMBOLS, STEPS, BATCH, UNITS, RATE = 8, 100, 64, 128, 2e-3
DELAYS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)
LEARNT = 0.02
Step = Callable[[np.ndarray, np.ndarray], float]  # ids and targets [T, B] -> loss
Answers = Callable[[np.ndarray], np.ndarray]  # ids [T, B] -> tokens [T, B]


def sequences(draw: np.random.Generator, delay: int, count: int = BATCH) -> tuple[np.ndarray, np.ndarray]:
    """Ids and targets [STEPS, count]."""
    ids = draw.integers(0, SYMBOLS, (STEPS, count))
    targets = np.full_like(ids, SYMBOLS)
    targets[delay:] = ids[:-delay]
    return ids, targets


def recurrent(cell: str, seed: int) -> tuple[Step, Answers]:
    """A language model of fastlstm."""
    model = fastlstm.LanguageModel(SYMBOLS + 1, cell, hidden_size=UNITS, num_layers=1, seed=seed)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=RATE), progress=False)

    def step(ids: np.ndarray, targets: np.ndarray) -> float:
        trainer.reset_state()
        return trainer.step(ids, targets)

    return step, lambda ids: np.asarray(model(ids)[0].argmax(axis=2))


def transformer(seed: int) -> tuple[Step, Answers]:
    """A decoder of PyTorch."""
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
    """Share of new tokens repeated rightly, after each delay was learnt; the delays after one that failed wholly are not tried:
    what they build on is not there.
    """
    step, answers = transformer(seed) if kind == "transformer" else recurrent(kind, seed)
    draw, found = np.random.default_rng(seed), []
    for delay in delays:
        losses: list[float] = []
        while len(losses) < steps and not (len(losses) >= 10 and np.mean(losses[-10:]) < LEARNT):
            losses.append(step(*sequences(draw, delay)))
        ids, targets = sequences(draw, delay, 4 * BATCH)
        found.append(float((answers(ids) == targets)[delay:].mean()))
        if found[-1] < 2 / SYMBOLS:
            break
    return found


def measure(kind: str, steps: int = 500, seeds: int = 3, delays: tuple[int, ...] = DELAYS) -> dict[str, Any]:
    """The medians of the seeds, as far as all got, and the longest delay up to which nine of ten tokens are right."""
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
