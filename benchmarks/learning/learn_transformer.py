"""Trains the Transformers with the same text, split, tokens, batches, optimizer and rate as the recurrent models.

A run's folder has the same files as one of `fastlstm train`: settings.json, history.jsonl, and the last and the best
parameters. A run that was stopped goes on after its last whole epoch.

Three things differ from the recurrent models:

- No state is carried from window to window. So in each epoch the text begins at another of its first tokens; otherwise a token
  would always be at the same place of a window.
- The rate rises over the first hundred updates.
- The held-out text is read twice. In the batches of the recurrent models a token's context is the tokens before it in its
  window, 50 on average. In windows that overlap by half, every token has 51 or more, except in the first window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastlstm
from benchmarks.learning.runs import prepare
from benchmarks.peers import transformer
from benchmarks.peers.transformer import Decoder
from fastlstm import text
from fastlstm.data import TokenStream
from fastlstm.files.writing import replacing
from fastlstm.training import checkpoint

LAST, BEST = "last.pt", "best.pt"
WARM_UP = 100


def decoder(settings: dict[str, Any], vocabulary: int) -> Decoder:
    """Return the model of a run: the large one, or one with as many parameters as the LSTM of the article's size."""
    window, dropout = settings["seq_len"], settings["dropout"]
    if settings["size"] == "large":
        return transformer.large(vocabulary, window, dropout)
    lstm = fastlstm.LanguageModel(vocabulary, "lstm", hidden_size=settings["hidden_size"], num_layers=settings["num_layers"])
    return transformer.same_size(sum(value.size for value in lstm.params.values()), vocabulary, window, dropout)


def training_ids(settings: dict[str, Any], tokenizer: text.Tokenizer) -> np.ndarray:
    """Return the tokens of the training part."""
    corpus = text.load_corpus(settings["text"])
    train, _ = text.split_ids(np.arange(len(corpus)), "tail")
    return tokenizer.encode(corpus[: len(train)])


def windows(ids: np.ndarray, settings: dict[str, Any], epoch: int) -> TokenStream:
    """Return an epoch's batches; each epoch begins at another token of the training text."""
    skipped = int(np.random.default_rng((settings["seed"], epoch)).integers(settings["seq_len"]))
    return TokenStream(ids[skipped:], settings["batch_size"], settings["seq_len"])


def overlapping(valid: TokenStream, window: int, context: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield ids and targets [up to window, B], and how many first steps are only context: every target counts once."""
    batches = list(valid)
    ids, targets = (np.concatenate([batch[k] for batch in batches]) for k in (0, 1))
    yield ids[:window], targets[:window], 0
    for begin in range(window, len(ids), window - context):
        end = min(begin + window - context, len(ids))
        yield ids[begin - context : end], targets[begin - context : end], context


def evaluate(model: Decoder, valid: TokenStream, context: int = 0) -> float:
    """Return the mean loss of the held-out text, in windows that overlap by `context` tokens."""
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, targets, known in overlapping(valid, model.window, context):
            logits = model(torch.tensor(ids).long())[known:].flatten(0, 1)
            answer = torch.tensor(targets[known:]).long().flatten()
            total += float(torch.nn.functional.cross_entropy(logits.float(), answer, reduction="sum"))
            count += answer.numel()
    return total / count


class Learner:
    """A model in training.

    Parameters
    ----------
    settings : dict
        Settings of a run, from `benchmarks.learning.runs`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.prepared = prepare(settings)
        self.ids = training_ids(settings, self.prepared.tokenizer)
        torch.manual_seed(settings["seed"])
        self.model = decoder(settings, self.prepared.tokenizer.vocab_size)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings["lr"])
        self.history: list[dict[str, Any]] = []

    def fit(self, folder: Path, done: Callable[[], bool]) -> None:
        """Train further epochs after those in the folder, until the run is done."""
        if (folder / LAST).exists():
            self._load(folder / LAST)
        checkpoint.write_json(folder / checkpoint.SETTINGS, self.settings | {"parameters": transformer.parameters(self.model)})
        while not done():
            began = time.perf_counter()
            loss = self._epoch(len(self.history))
            seconds = time.perf_counter() - began
            valid = evaluate(self.model, self.prepared.valid)
            with_context = evaluate(self.model, self.prepared.valid, self.settings["seq_len"] // 2)
            self.history.append(
                {
                    "epoch": len(self.history) + 1,
                    "loss": loss,
                    "valid_loss": valid,
                    "valid_loss_with_context": with_context,
                    "seconds": seconds,
                }
            )
            print(f"{folder.name}: epoch {len(self.history)}, loss {loss:.4f}, held-out {valid:.4f}", flush=True)
            self._save(folder)

    def _epoch(self, epoch: int) -> float:
        """Train one epoch, and return its mean loss."""
        self.model.train()
        stream = windows(self.ids, self.settings, epoch)
        losses = [self.step(*batch) for batch in stream]
        if not math.isfinite(sum(losses)):
            raise ArithmeticError(f"the loss of epoch {epoch + 1} is not finite")
        return sum(losses) / len(losses)

    def step(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """Make one update by Adam, and return the loss before it."""
        self._set_rate()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings["dtype"] == "bfloat16"):
            logits = self.model(torch.tensor(ids).long())
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), torch.tensor(targets).long().flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip_norm"])
        self.optimizer.step()
        return loss.item()

    def _set_rate(self) -> None:
        """Set the learning rate, which rises over the first updates."""
        states = self.optimizer.state.values()
        step = 1 + int(next(iter(states))["step"]) if states else 1
        self.optimizer.param_groups[0]["lr"] = self.settings["lr"] * min(1.0, step / WARM_UP)

    def _load(self, path: Path) -> None:
        """Load the state in which a run was saved."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.history = state["history"]

    def _save(self, folder: Path) -> None:
        """Save the parameters and everything that the next epoch depends on."""
        losses = [record["valid_loss"] for record in self.history]
        if losses[-1] == min(losses):
            with replacing(folder / BEST) as path:
                torch.save(self.model.state_dict(), path)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "history": self.history,
        }
        with replacing(folder / LAST) as path:
            torch.save(state, path)
        checkpoint.write_lines(folder / checkpoint.HISTORY, self.history)


def training_step(settings: dict[str, Any]) -> Callable[[], float]:
    """Return a training step of a run, on the run's text."""
    learner = Learner(settings)
    batches = cycle(windows(learner.ids, settings, 0))
    return lambda: learner.step(*next(batches))


def best(folder: Path) -> tuple[Decoder, text.Prepared]:
    """Return the model with the lowest held-out loss of a run, and the run's text."""
    settings = checkpoint.read_json(folder / checkpoint.SETTINGS)
    prepared = prepare(settings)
    model = decoder(settings, prepared.tokenizer.vocab_size)
    model.load_state_dict(torch.load(folder / BEST, weights_only=True))
    return model.eval(), prepared
