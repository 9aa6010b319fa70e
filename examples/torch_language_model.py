"""Train a word-level language model in plain PyTorch with one more line: the call of `accelerate`.

python examples/torch_language_model.py --help
"""

import argparse
import pydoc_data.topics
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastlstm.adapters.torch import accelerate

UNKNOWN = "<unk>"


class WordModel(nn.Module):
    """An embedding, an LSTM, and scores of the next word, with dropout before and after the LSTM."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.drop = nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(self.drop(self.embedding(words)))
        return self.head(self.drop(out))


def windows(ids: torch.Tensor, steps: int) -> TensorDataset:
    """Return inputs and targets, each [windows, steps]: consecutive parts of the text, with targets one word ahead."""
    count = (len(ids) - 1) // steps
    return TensorDataset(ids[: count * steps].view(count, steps), ids[1 : count * steps + 1].view(count, steps))


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    losses = [nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).item() for x, y in loader]
    return sum(losses) / len(losses)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train, print losses, and return them by update and by epoch, with the seconds of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a text file; the default is a text that every Python contains")
    parser.add_argument("--words", type=int, help="use only so many words of the text")
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--embedding", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--checkpoint", type=Path, help="file that is written after each epoch, and read at the start if it exists"
    )
    parser.add_argument("--plain", action="store_true", help="do not call accelerate")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)

    text = options.text.read_text() if options.text else "\n".join(pydoc_data.topics.topics.values())
    words = re.findall(r"\w+|[^\w\s]", text.lower())[: options.words]
    vocabulary = [UNKNOWN] + [word for word, _ in Counter(words).most_common(options.vocabulary - 1)]
    number = {word: k for k, word in enumerate(vocabulary)}
    ids = torch.tensor([number.get(word, 0) for word in words])
    split = len(ids) * 9 // 10
    train = DataLoader(windows(ids[:split], options.steps), options.batch, shuffle=True)
    valid = DataLoader(windows(ids[split:], options.steps), options.batch)

    model = WordModel(len(vocabulary), options.embedding, options.hidden, options.layers, options.dropout)
    if not options.plain:
        accelerate(model)  # the one line
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(train))
    begin = 0
    if options.checkpoint and options.checkpoint.exists():
        state = torch.load(options.checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        begin = state["epoch"] + 1

    history: dict[str, list[float]] = {"train": [], "valid": [], "seconds": []}
    for epoch in range(begin, options.epochs):
        start = time.perf_counter()
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            history["train"].append(loss.item())
        history["seconds"].append(time.perf_counter() - start)
        history["valid"].append(evaluate(model, valid))
        mean = sum(history["train"][-len(train) :]) / len(train)
        print(f"epoch {epoch + 1}: train {mean:.4f}, valid {history['valid'][-1]:.4f}, {history['seconds'][-1]:.1f} s")
        if options.checkpoint:
            parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch}, options.checkpoint)
    return history


if __name__ == "__main__":
    main()
