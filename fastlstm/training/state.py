"""What a training run is: one dataclass, which the trainer, a fit, its files and checkpoints work on; and what a fit is told.

A new part of a run is a field of `TrainingState`. Where it must outlive the process, `snapshot.take`, `snapshot.put_back` and
`files/records.py` have a line for it (CONTRIBUTING.md).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..runtime import check
from . import checkpoint
from .progress import Pace


class Data(Protocol):
    """What training and evaluation read: see `fastlstm.TokenStream` and `fastlstm.Batches`."""

    @property
    def carries_state(self) -> bool:
        """Whether each batch goes on where the one before it ended; the first of an epoch starts from zero."""
        ...

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        """(inputs, targets) or (inputs, targets, lengths), from batch number ``start`` of an epoch."""
        ...

    def describe(self) -> dict[str, Any]:
        """Facts that JSON can hold; two sets with the same facts are taken for the same data."""
        ...


class Callback:
    """What a trainer tells while it fits; either method may return True to end the fit."""

    def on_step(self, trainer: Any, loss: float) -> bool | None:
        """After each optimisation step, with the batch's mean loss."""
        return None

    def on_epoch(self, trainer: Any, record: dict[str, Any]) -> bool | None:
        """After each epoch, validated and saved, with its record."""
        return None


@dataclass
class Job:
    """One call of `Trainer.fit`: what must outlive the process. Every field goes into the checkpoint."""

    first: int
    """Epochs done before this fit."""
    target: int
    """Epochs done when it is finished."""
    patience: int | None
    train: dict[str, Any]
    """What the data said of themselves, in JSON's types."""
    valid: dict[str, Any] | None
    loss_sum: float = 0.0
    """Over the targets of the current epoch."""
    targets: int = 0
    tokens: int = 0
    """Time steps times rows of the current epoch."""
    seconds: float = 0.0
    """Spent in the steps of the current epoch."""
    stale: int = 0
    """Epochs in a row without a lower validation loss."""


@dataclass
class TrainingState:
    """All that a training run is, between two updates."""

    model: Any
    optimizer: Any
    schedule: Any
    """Gives the factor on the learning rate, from the number of updates; or None."""
    clip_norm: float | None
    """The norm that gradients are scaled down to; None for never."""
    tokenizer: Any
    """Kept in checkpoints, for generating text; or None."""
    checkpoint_dir: Path | None
    """The run's folder; None saves nothing."""
    checkpoint_every: float
    """Seconds between two checkpoints within an epoch."""
    base_lr: float
    """The optimizer's learning rate, which the schedule multiplies."""
    steps: int = 0
    """Updates done."""
    epoch: int = 0
    """Epochs done."""
    batch: int = 0
    """Batches done of the next epoch."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A record of each epoch."""
    best_loss: float = math.inf
    """The lowest validation loss."""
    carried: Any = None
    """The model's state at the end of the last batch, which the next batch goes on from; None is zeros."""
    job: Job | None = None
    """The fit under way, or the last one."""
    data: tuple[Data, Data | None] | None = None
    """What that fit reads: training and validation data."""
    resumed: bool = False
    """Whether the next fit is the first after `Trainer.resume`, which goes on whatever it is called with."""
    saved: Path | None = None
    """The newest checkpoint in `checkpoint_dir` that is this run's own."""
    pace: Pace = field(default_factory=Pace)
    """How fast the fit goes."""

    @property
    def is_text(self) -> bool:
        """Whether the model is a language model."""
        return bool(self.model.config["type"] == "LanguageModel")

    @property
    def unfinished(self) -> bool:
        """Whether a fit has epochs left."""
        return self.job is not None and self.epoch < self.job.target


def unpack(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(inputs, targets, lengths or None) of what data yield."""
    return (batch[0], batch[1], batch[2]) if len(batch) == 3 else (batch[0], batch[1], None)


def facts(data: Data | None) -> dict[str, Any] | None:
    """What data say of themselves, as a checkpoint gives it back."""
    described: dict[str, Any] | None = None if data is None else checkpoint.plain(data.describe())
    return described


def check_data(name: str, data: object) -> None:
    """Raise TypeError or ValueError if ``data`` cannot be fitted or judged."""
    missing = [member for member in ("batches", "carries_state", "describe", "__len__") if not hasattr(data, member)]
    if missing:
        raise TypeError(
            f"{name}: expected data such as fastlstm.TokenStream or fastlstm.Batches, got {type(data).__name__}, "
            f"which has no {', '.join(missing)}"
        )
    if len(data) < 1:  # type: ignore[arg-type]
        raise ValueError(f"{name}: there are no batches in it")


def check_same(name: str, before: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
    """Raise ValueError if data are not those that a fit began with; the message says in what they differ."""
    if before == now:
        return
    if before is None or now is None:
        had, given = ("no", "some") if before is None else ("some", "none")
        raise ValueError(f"{name}: the fit to go on with had {had} such data, now there are {given}")
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    differences = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)
    raise ValueError(f"{name}: these are not the data of the fit to go on with: {differences}")


def check_seconds(name: str, value: Any, *, above: bool) -> float:
    """A number of seconds from 0, or above it; infinity is one."""
    seconds = check.number(name, value)
    if math.isnan(seconds) or seconds < 0 or (above and seconds == 0):
        raise ValueError(f"{name}: expected {'a positive number' if above else 'a number from 0'} of seconds, got {value}")
    return seconds


def exp(loss: float) -> float:
    """The perplexity of a loss in nats; infinite where it has no float."""
    return math.exp(loss) if loss < 700.0 else math.inf
