"""Recall by distance: small models must name a symbol that they saw among noise k tokens before.

Each sequence has `LONGEST` + 1 tokens. One of eight symbols is k tokens before the last token, which asks for it; all other
tokens are noise, drawn from eight others. The models have 64 units in one layer, the Transformer in two layers. They learn
distances that are drawn evenly from 1 to a limit. The limit begins at 5 and grows by half whenever the mean loss of fifty
updates is low. All models get the same number of updates; Adam at 0.002, 64 new sequences for each update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastlstm

SYMBOLS, NOISE = 8, 8
VOCABULARY = SYMBOLS + NOISE + 1
LONGEST, BATCH, UNITS, RATE = 100, 64, 64, 2e-3
DISTANCES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
ENOUGH = 0.9
FIRST, LEARNED, PATIENT = 5, 0.1, 50  # the first limit; it grows if the mean loss of so many updates is below LEARNED
Answers = Callable[[np.ndarray], np.ndarray]  # ids [T, B] -> symbols [B]


def sequences(draw: np.random.Generator, distances: np.ndarray, longest: int = LONGEST) -> tuple[np.ndarray, np.ndarray]:
    """Return ids [longest + 1, B], and the symbols [B] to recall."""
    count = len(distances)
    ids = draw.integers(SYMBOLS, SYMBOLS + NOISE, (longest + 1, count))
    symbols = draw.integers(0, SYMBOLS, count)
    ids[longest - distances, np.arange(count)] = symbols
    ids[longest] = VOCABULARY - 1
    return ids, symbols


def one_hot(ids: np.ndarray) -> np.ndarray:
    """Return ids as one-hot vectors, float32 [T, B, VOCABULARY]."""
    return np.eye(VOCABULARY, dtype=np.float32)[ids]


class Lessons:
    """Batches (ids, symbols) whose distances grow as the model learns. Pass the loss of each batch to `add_loss`.

    Parameters
    ----------
    seed : int
    steps : int
        The largest number of batches. There are fewer if the longest distance is learned before.
    longest : int
        The longest distance.
    """

    def __init__(self, seed: int, steps: int, longest: int = LONGEST) -> None:
        self.draw, self.steps, self.longest = np.random.default_rng(seed), steps, longest
        self.reach, self.losses, self.taken = min(FIRST, longest), [], 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while self.taken < self.steps:
            self.taken += 1
            yield sequences(self.draw, self.draw.integers(1, self.reach + 1, BATCH), self.longest)
            if len(self.losses) >= PATIENT and np.mean(self.losses[-PATIENT:]) < LEARNED:
                if self.reach == self.longest:
                    return
                self.reach, self.losses = min(self.reach * 3 // 2, self.longest), []

    def add_loss(self, loss: float) -> None:
        """Add the loss of the last batch."""
        self.losses.append(loss)


def recurrent(cell: str, seed: int, lessons: Lessons) -> Answers:
    """Train a classifier of fastlstm, and return its answers."""
    model = fastlstm.SequenceClassifier(VOCABULARY, SYMBOLS, cell, UNITS, normalize=False, seed=seed)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=RATE), progress=False)
    for ids, symbols in lessons:
        lessons.add_loss(trainer.step(one_hot(ids), symbols))
    return lambda ids: np.asarray(model.predict(one_hot(ids)))


def transformer(seed: int, lessons: Lessons) -> Answers:
    """Train a decoder of PyTorch, and return its answers."""
    import torch

    from benchmarks.peers.transformer import Decoder

    torch.manual_seed(seed)
    model = Decoder(VOCABULARY, lessons.longest + 1, width=UNITS, layers=2, heads=2, inner=4 * UNITS)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for ids, symbols in lessons:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(ids))[-1, :, :SYMBOLS], torch.tensor(symbols))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        lessons.add_loss(loss.item())
    model.eval()

    def answers(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor(ids))[-1, :, :SYMBOLS].argmax(-1).numpy()

    return answers


def accuracy(kind: str, seed: int, steps: int, longest: int = LONGEST, count: int = 512) -> tuple[list[float], int]:
    """Return the share of `count` new sequences that a model answers correctly by distance, and the number of its updates."""
    lessons = Lessons(seed, steps, longest)
    answers = transformer(seed, lessons) if kind == "transformer" else recurrent(kind, seed, lessons)
    test = np.random.default_rng(10_000 + seed)
    found = []
    for distance in (d for d in DISTANCES if d <= longest):
        ids, symbols = sequences(test, np.full(count, distance), longest)
        found.append(float((answers(ids) == symbols).mean()))
    return found, lessons.taken


def reached(tokens: tuple[int, ...], values: list[float], how: str) -> tuple[int, str]:
    """Return up to how many tokens the values are high enough, 0 if none is; and a remark if all of them are."""
    below = [k for k, value in enumerate(values) if value < ENOUGH]
    enough = below[0] if below else len(values)
    return tokens[enough - 1] if enough else 0, "" if below else f"the longest {how}, so at least that; "


def measure(kind: str, steps: int = 3000, seeds: int = 3) -> dict[str, Any]:
    """Return the medians over seeds, and the longest distance up to which all of them are high enough."""
    own, taken = zip(*(accuracy(kind, seed, steps) for seed in range(seeds)), strict=True)
    values = np.median(own, axis=0).tolist()
    span, most = reached(DISTANCES, values, "tested")
    return {
        "tokens": list(DISTANCES),
        "values": values,
        "span": span,
        "criterion": f"the longest of the distances up to which nine of ten symbols are recalled (guessing: one in {SYMBOLS}); "
        f"{most}median of {seeds} seeds, at most {steps} steps",
        "seeds": own,
        "steps": taken,
    }
