"""Optimisation steps: a batch's gradients, whether they are finite, clipping, and the optimizer's step. What a trainer does.

For models and optimizers of this package a step is one program, on a device one graph, whose outcome is read when somebody asks
for it. Those of others are asked part by part. Knows nothing of epochs, schedules or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels.operations import FillZeros, Judge, SquareSums
from ..models.language import LanguageModel
from ..models.series_base import Reader
from ..optim import optimizers
from ..optim.clipping import clip_scale
from ..runtime import sums
from ..runtime.arrays import as_numpy, put
from ..runtime.engine import serving
from ..runtime.program import Later

OURS = (
    LanguageModel.train_batch,
    Reader.train_batch,
    optimizers.Optimizer.step,
)


class DivergedError(ArithmeticError):
    """A loss, a gradient or a weight is no longer a finite number; no checkpoint was made of it."""

    def __init__(self, what: str, step: int, remedy: str, saved: Path | None) -> None:
        self.step = step
        """Number of the step, the first being 1."""
        self.checkpoint = saved
        """The last good checkpoint, if there is one."""
        kept = f"; the last good checkpoint is {saved}" if saved else ""
        super().__init__(f"{what} in step {step}: {remedy}{kept}")


@dataclass
class Outcome:
    """What has come of the steps so far."""

    total: float = 0.0
    """Sum of the loss over the targets of all steps taken, and of what it was set to."""
    loss: float = 0.0
    """Mean loss per target of the last step."""
    norm: float = 0.0
    """Norm of its gradient, before clipping."""
    missed: int = 0
    """Steps that were not taken, since the loss or norm of the first of them is not finite: it is the one that stands here."""


class Descent:
    """Steps of a model and an optimizer of this package.

    Parameters
    ----------
    model : LanguageModel, SequenceRegressor or SequenceClassifier
    optimizer : optimizers.Optimizer
    clip_norm : float or None
        The gradient is scaled down to this norm where it is larger.

    Attributes
    ----------
    count : int
        Steps taken, as far as is known: those that are found to be missed no longer count.
    state
        After the batch of the last step.
    prompt : bool
        Whether `read` costs nothing, since a step is done when `step` returns.
    """

    def __init__(self, model: Any, optimizer: optimizers.Optimizer, clip_norm: float | None) -> None:
        self.model, self.optimizer = model, optimizer
        self.clip_norm = math.inf if clip_norm is None else float(clip_norm)
        self.state: Any = None
        self.prompt = not model._engine.whole
        size, self._dtype = model.grads.flat.size, model.params.flat.dtype.name
        self._squares = model._engine.buffer(sums.chunks(size), "float64")
        self._journal = model._engine.buffer(5, "float64")  # as update.judge has it
        self.count = 0

    def step(self, inputs: Any, targets: Any, state: Any, lengths: Any) -> None:
        """Take a step, as far as loss and gradient are finite."""
        batch, optimizer, params = (
            self.model.training(inputs, targets, state, lengths=lengths),
            self.optimizer,
            self.model.params,
        )
        beside = optimizer.beside(params)
        # The program holds the arrays, so that no others have their numbers.
        key = ("step", optimizer.form, *map(id, (self._journal, *beside)))
        limits = np.array([self.clip_norm, batch.count], np.float64)
        try:
            optimizer.steps += 1
            self.count += 1
            self.state = batch.carried
            hyper = optimizer.hypers(self._dtype)
            batch.run(key, lambda: self._record(batch, beside), packing=True, hyper=hyper, limits=limits)
        except BaseException:
            self._recount()
            raise
        finally:
            params.bump()
        batch.close()

    def _recount(self) -> None:
        """After an error: the last step was taken, or does not count; what cannot be taken is left for `read`."""
        *_, taken, failed = as_numpy(self._journal).tolist()
        if not failed:
            self.optimizer.steps += int(taken) - self.count
            self.count = int(taken)

    def _record(self, batch: Any, beside: list[Any]) -> None:
        params, grads = self.model.params, self.model.grads
        flat, run = grads.flat, serving(grads.flat).run
        run(FillZeros(size=flat.size, out=flat), work=flat.size // 8)
        batch.gradients()
        run(SquareSums(size=flat.size, chunk=sums.CHUNK, values=flat, sums=self._squares), work=flat.size)
        run(
            Judge(
                rows=batch.losses.size,
                losses=batch.losses,
                chunks=self._squares.size,
                squares=self._squares,
                limits=Later("limits"),
                journal=self._journal,
                hyper=Later("hyper"),
            ),
            work=0,
        )
        self.optimizer.record(params, grads, beside, Later("hyper"))

    def read(self) -> Outcome:
        """What has come of the steps; waits for them. Those that were missed no longer count, and the next is tried again."""
        total, loss, norm, taken, failed = as_numpy(self._journal).tolist()
        missed = self.count - int(taken) if failed else 0
        if failed:
            self.optimizer.steps -= missed
            self.model.dropout_calls -= missed - 1  # as if the first had been found at once
            self.count = int(taken)
            put(self._journal[4:], np.zeros(1))
        return Outcome(total, loss, norm, missed)

    def start(self, total: float) -> None:
        """Let the sum of losses go on from here."""
        put(self._journal[:1], np.array([total]))


class DescentByParts:
    """The interface of `Descent` for any model that has `train_batch` and any optimizer that has `step`."""

    prompt = True

    def __init__(self, model: Any, optimizer: Any, clip_norm: float | None) -> None:
        self.model, self.optimizer = model, optimizer
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.count, self.state = 0, None
        self._total, self._last = 0.0, (0.0, 0.0, 0)

    def step(self, inputs: Any, targets: Any, state: Any, lengths: Any) -> None:
        """As of `Descent`."""
        model = self.model
        loss, self.state = model.train_batch(inputs, targets, state, lengths=lengths)
        norm = optimizers.grad_norm(model.grads)
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.count += 1
        if finite:
            self.optimizer.step(model.params, model.grads, scale=clip_scale(norm, self.clip_norm))
            self._total += loss * np.size(targets)
        self._last = float(loss), norm, int(not finite)

    def read(self) -> Outcome:
        """As of `Descent`."""
        loss, norm, missed = self._last
        self.count, self._last = self.count - missed, (loss, norm, 0)
        return Outcome(self._total, loss, norm, missed)

    def start(self, total: float) -> None:
        """As of `Descent`."""
        self._total = total


def kind(model: Any, optimizer: Any) -> type[Descent] | type[DescentByParts]:
    """How the two take steps: by one program, unless somebody has put a part of their own in."""
    ours = getattr(model.train_batch, "__func__", None) in OURS and getattr(optimizer.step, "__func__", None) in OURS
    return Descent if ours else DescentByParts
