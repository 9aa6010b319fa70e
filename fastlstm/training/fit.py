"""The epochs of one fit: batches, validation, early stop, best and last checkpoint, history. What `Trainer.fit` runs.

Knows the trainer that it works for and the data; nothing of how a step is made or what a checkpoint holds.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..runtime import check
from . import checkpoint
from .pace import Step
from .progress import Interrupts, Progress, Status
from .saving import Keeper

if TYPE_CHECKING:
    from .trainer import Trainer

UNLIMITED = 10**9
"""Epochs of a fit that only the clock or a callback ends."""

MOST_UNREAD = 32
"""Steps that a device may be behind: a signal, the clock and the progress are looked at in between."""


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

    def on_step(self, trainer: "Trainer", loss: float) -> bool | None:
        """After each optimisation step, with the batch's mean loss."""
        return None

    def on_epoch(self, trainer: "Trainer", record: dict[str, Any]) -> bool | None:
        """After each epoch, validated and saved, with its record."""
        return None


@dataclass
class Job:
    """One call of `Trainer.fit`, as far as it must outlive the process: every field goes into the checkpoint."""

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


class Fitting:
    """Checks what a fit is given, finds or makes its `Job`, and runs it for a trainer."""

    def __init__(
        self,
        trainer: "Trainer",
        train: Data | None,
        valid: Data | None,
        epochs: int | None,
        patience: int | None,
        time_limit: float | None,
    ) -> None:
        if train is None:
            if trainer._data is None:
                raise TypeError("train: expected data such as fastlstm.TokenStream, got None")
            goes_on = True
            train, valid = trainer._data
        else:
            goes_on = trainer._resumed
        check_data("train", train)
        if valid is not None:
            check_data("valid", valid)
        epochs = None if epochs is None else check.positive("epochs", epochs)
        patience = None if patience is None else check.positive("patience", patience)
        if patience is not None and valid is None:
            raise ValueError(f"patience is {patience}, but valid is None; expected data to judge by")
        if time_limit is not None:
            check_seconds("time_limit", time_limit, above=True)
        folder = trainer.checkpoint_dir
        if folder is not None and trainer._saved is None and (folder / checkpoint.LAST).exists():
            raise FileExistsError(
                f"checkpoint_dir: {folder} holds a run already; go on with it by "
                f"Trainer.resume({str(folder)!r}, train, valid), or name another folder"
            )
        self._trainer = trainer
        self._train = train
        self._valid = valid
        find = self._old_job if goes_on and (trainer._unfinished or self._is_done(epochs)) else self._new_job
        self._job = find(epochs, patience)
        self._time_limit = math.inf if time_limit is None else time_limit
        self._interrupts = Interrupts()
        self._report = Progress(trainer.progress)
        self._unread: list[Step] = []
        self._keeper = Keeper(trainer)
        if hasattr(trainer.model, "prepare"):
            trainer.model.prepare(train)  # such as the mean and spread of the data
        trainer._job, trainer._data, trainer._resumed = self._job, (train, valid), False

    def _is_done(self, epochs: int | None) -> bool:
        """Whether a resumed run has finished this very fit, and no more is asked for."""
        job = self._trainer._job
        if epochs is not None or job is None or not self._trainer._resumed:
            return False
        return (job.train, job.valid) == (facts(self._train), facts(self._valid))

    def _old_job(self, epochs: int | None, patience: int | None) -> Job:
        job = self._trainer._job
        assert job is not None
        check_same("train", job.train, facts(self._train))
        check_same("valid", job.valid, facts(self._valid))
        if epochs is not None:
            job.target = job.first + epochs
        if patience is not None:
            job.patience = patience
        return job

    def _new_job(self, epochs: int | None, patience: int | None) -> Job:
        trainer = self._trainer
        job = Job(trainer.epoch, trainer.epoch + (epochs or 1), patience, facts(self._train) or {}, facts(self._valid))
        if trainer._job is not None and trainer._job.valid != job.valid:
            # Losses on other data are no measure for these.
            trainer.best_loss = math.inf
        trainer.batch = 0
        return job

    def run(self) -> None:
        """Train until the job is done, time is up, a callback says so, or a signal comes."""
        trainer = self._trainer
        with self._interrupts, self._report:
            try:
                while trainer.epoch < self._job.target:
                    if not self._train_epoch():
                        self._end_partial()
                        break
                    if self._end_epoch():
                        break
            except _Interrupted:
                raise KeyboardInterrupt(self._put_away()) from None
            finally:
                self._keeper.save_best()

    def _train_epoch(self) -> bool:
        """Train on what is left of the epoch; False if time or a callback ended it before its last batch."""
        trainer, job = self._trainer, self._job
        carried, batches = self._train.carries_state, len(self._train)
        if trainer.batch == 0:
            trainer.reset_state()
        trainer._ready()
        trainer._descent.start(job.loss_sum)
        try:
            return self._train_batches(carried, batches)
        finally:
            if self._unread:
                self._read()

    def _train_batches(self, carried: bool, batches: int) -> bool:
        trainer, job = self._trainer, self._job
        for batch in self._train.batches(trainer.epoch, trainer.batch):
            inputs, targets, lengths = unpack(batch)
            began = time.perf_counter()
            trainer._apply(inputs, targets, lengths, carried)
            trainer.batch += 1
            self._unread.append(Step(inputs.shape[0] * inputs.shape[1], targets.size, time.perf_counter() - began))
            if not (trainer.batch == batches or self._wants_outcome()):
                continue
            loss = self._read()

            stop = False
            for callback in trainer.callbacks:
                if isinstance(callback, Callback) and callback.on_step(trainer, loss):
                    stop = True
            if self._report.due():
                self._report.show(self._status(trainer.epoch + 1, trainer.pace.loss))
            self._check_interrupts()
            if trainer.batch < batches:
                if stop or self._time_is_up():
                    return False
                self._keeper.save_in_time()
            elif stop:
                job.target = trainer.epoch + 1
        return True

    def _wants_outcome(self) -> bool:
        """Whether to wait for the steps that were set off, which a device makes on its own."""
        return (
            self._trainer._descent.prompt
            or self._trainer.pace.elapsed == 0.0  # the first is left out of the pace
            or len(self._unread) >= MOST_UNREAD
            or any(isinstance(one, Callback) and hears_steps(one) for one in self._trainer.callbacks)
            or self._report.due()
            or self._interrupts.pending
            or self._time_is_up()
            or self._keeper.due()
        )

    def _read(self) -> float:
        """Wait for the steps and count those that were taken; returns the loss of the last."""
        trainer, job, unread = self._trainer, self._job, self._unread
        self._unread, began = [], time.perf_counter()
        outcome = trainer._settle()
        trainer.batch -= outcome.missed
        taken = unread[: len(unread) - outcome.missed]
        tokens, targets = sum(step.tokens for step in taken), sum(step.targets for step in taken)
        seconds = sum(step.seconds for step in unread) + time.perf_counter() - began
        trainer.pace.count(len(taken), tokens, seconds, (outcome.total - job.loss_sum) / max(1, targets))
        job.loss_sum = outcome.total
        job.targets += targets
        job.tokens += tokens
        job.seconds += seconds
        if outcome.missed:
            raise trainer._missed(outcome)
        return outcome.loss

    def _end_epoch(self) -> bool:
        """Judge, save and tell; whether the fit ends here, which is asked once, as the clock goes on."""
        trainer, job = self._trainer, self._job
        results = self._validate(math.inf)
        record = self._record(trainer.epoch + 1, results)
        judged = results.get("loss", record["loss"])
        best = self._is_best(results)
        job.stale = 0 if best else job.stale + 1
        if hasattr(trainer.schedule, "update"):
            trainer.schedule.update(judged)
        trainer.epoch, trainer.batch = trainer.epoch + 1, 0
        trainer.reset_state()
        job.loss_sum, job.targets, job.tokens, job.seconds = 0.0, 0, 0, 0.0
        if job.patience is not None and job.stale >= job.patience:
            job.target = trainer.epoch
        ends = trainer.epoch >= job.target or self._time_is_up()
        self._keeper.note(record, best=best, now=ends)
        if ends or self._report.due():
            self._report.show(self._status(trainer.epoch, record["loss"]))
        for callback in trainer.callbacks:
            tell = callback.on_epoch if isinstance(callback, Callback) else callback
            if tell(trainer, record):
                job.target = trainer.epoch
                self._keeper.save()
        self._check_interrupts()
        return ends

    def _end_partial(self) -> None:
        """Judge and save what a fit has reached within an epoch; the job stays, to be continued."""
        trainer = self._trainer
        # A long validation would make a mockery of a short time limit.
        results = self._validate(max(1.0, 0.1 * self._time_limit))
        record = {**self._record(round(trainer.epoch + trainer.batch / len(self._train), 4), results), "partial": True}
        self._keeper.note(record, best=self._is_best(results), now=True)
        self._report.show(self._status(trainer.epoch + 1, trainer.pace.loss))
        self._check_interrupts()

    def _validate(self, seconds: float) -> dict[str, float]:
        if self._valid is None:
            return {}
        deadline = time.monotonic() + seconds

        def stop() -> bool:
            self._check_interrupts()
            return time.monotonic() >= deadline

        results = self._trainer._judge(self._valid, stop)
        if not math.isfinite(results["loss"]):
            raise self._trainer._diverged(f"the validation loss is {results['loss']}", self._trainer.steps)
        return results

    def _is_best(self, results: dict[str, float]) -> bool:
        if not results or results["loss"] >= self._trainer.best_loss:
            return False
        self._trainer.best_loss = results["loss"]
        return True

    def _record(self, epoch: float, results: dict[str, float]) -> dict[str, Any]:
        trainer, job = self._trainer, self._job
        loss = job.loss_sum / max(1, job.targets)
        record: dict[str, Any] = {"epoch": epoch, "step": trainer.steps, "loss": loss}
        if trainer._is_text:
            record["perplexity"] = exp(loss)
        record |= {f"valid_{name}": value for name, value in results.items()}
        record["lr"] = trainer.optimizer.lr
        record["seconds"] = round(job.seconds, 6)
        record["tokens_per_second"] = round(job.tokens / job.seconds, 1) if job.seconds else None
        plain: dict[str, Any] = checkpoint.plain(record)
        return plain

    def _time_is_up(self) -> bool:
        return self._trainer.pace.elapsed >= self._time_limit

    def _check_interrupts(self) -> None:
        if self._interrupts.pending:
            raise _Interrupted

    def _put_away(self) -> str:
        """Save for later; returns what to tell the person."""
        trainer = self._trainer
        place = f"epoch {trainer.epoch + 1}, batch {trainer.batch} of {len(self._train)}"
        where = f"stopped after step {trainer.steps} ({place})"
        if trainer.checkpoint_dir is None:
            return f"{where}; nothing is saved, but fit() without arguments goes on"
        self._keeper.save()
        folder = str(trainer.checkpoint_dir)
        return f"{where} and saved; Trainer.resume({folder!r}, train, valid).fit() goes on"

    def _status(self, epoch: int, loss: float) -> Status:
        trainer, job, pace = self._trainer, self._job, self._trainer.pace
        total = (job.target - job.first) * len(self._train)
        done = (trainer.epoch - job.first) * len(self._train) + trainer.batch
        to_go = (total - done) * pace.step_seconds if done < total else 0.0
        return Status(
            epoch=epoch,
            epochs=job.target if job.target < UNLIMITED else None,
            step=trainer.steps,
            loss=loss,
            perplexity=exp(loss) if trainer._is_text else None,
            rate=pace.rate,
            unit="tokens" if trainer._is_text else "steps",
            fraction=min(1.0, max(done / total, pace.elapsed / self._time_limit)),
            left=max(0.0, min(to_go, self._time_limit - pace.elapsed)),
        )


class _Interrupted(Exception):
    """A signal came; raised where the trainer stands between two steps."""


def hears_steps(callback: Callback) -> bool:
    """Whether a callback has an `on_step` of its own."""
    return getattr(callback.on_step, "__func__", None) is not Callback.on_step


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
