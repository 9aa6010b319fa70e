"""Forecast the next day of hourly series with histories of unequal length, in plain PyTorch with one more line: `accelerate`.

python examples/torch_forecaster.py --help
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset

from fastlstm.adapters.torch import accelerate

HORIZON = 24


class Histories(Dataset):
    """Parts of an artificial hourly load (days, weeks, a slow drift, noise): some days of history, and the next day."""

    def __init__(self, count: int, longest: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        hours = torch.arange(20_000)
        day, week = 2 * math.pi * hours / 24, 2 * math.pi * hours / 168
        noise = torch.randn(len(hours), generator=generator)
        self.load = day.sin() + 0.4 * (2 * day).cos() + 0.6 * week.sin() + 0.2 * (hours / 900).sin() + 0.1 * noise
        self.lengths = torch.randint(24, longest + 1, (count,), generator=generator)
        self.ends = torch.randint(longest, len(hours) - HORIZON, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        end = int(self.ends[k])
        return self.load[end - int(self.lengths[k]) : end, None], self.load[end : end + HORIZON]


def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[nn.utils.rnn.PackedSequence, torch.Tensor]:
    histories, days = zip(*samples, strict=True)
    return pack_sequence(histories, enforce_sorted=False), torch.stack(days)


class Forecaster(nn.Module):
    """A GRU over the history, and a head that forecasts the whole next day from the last state."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.gru = nn.GRU(1, hidden, layers)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, HORIZON))

    def forward(self, history: nn.utils.rnn.PackedSequence) -> torch.Tensor:
        _, state = self.gru(history)
        return self.head(state[-1])


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    losses = [nn.functional.l1_loss(model(x), y).item() for x, y in loader]
    return sum(losses) / len(losses)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train, print losses, and return them by update and by epoch, with the seconds of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=4000, help="number to train on")
    parser.add_argument("--longest", type=int, default=24 * 7, help="hours of the longest history")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--checkpoint", type=Path, help="file that the best weights are written to")
    parser.add_argument("--plain", action="store_true", help="do not call accelerate")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)

    train = DataLoader(Histories(options.histories, options.longest, 1), options.batch, shuffle=True, collate_fn=collate)
    valid = DataLoader(Histories(500, options.longest, 2), options.batch, collate_fn=collate)
    model = Forecaster(options.hidden, options.layers)
    if not options.plain:
        accelerate(model)  # the one line
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=options.epochs * len(train))

    history: dict[str, list[float]] = {"train": [], "valid": [], "seconds": []}
    for epoch in range(options.epochs):
        start = time.perf_counter()
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss = nn.functional.huber_loss(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            history["train"].append(loss.item())
        history["seconds"].append(time.perf_counter() - start)
        history["valid"].append(evaluate(model, valid))
        mean = sum(history["train"][-len(train) :]) / len(train)
        print(f"epoch {epoch + 1}: train {mean:.4f}, mean error {history['valid'][-1]:.4f}, {history['seconds'][-1]:.1f} s")
        if options.checkpoint and history["valid"][-1] == min(history["valid"]):
            torch.save(model.state_dict(), options.checkpoint)
    return history


if __name__ == "__main__":
    main()
