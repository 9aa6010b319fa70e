"""The epochs of one fit: batches, validation, early stop, best and last checkpoint, history. What `Trainer.fit` runs.

Knows the trainer that it works for and the data; nothing of how a step is made or what a checkpoint holds.
"""

import math
import time
from typing import Any

from ..runtime import check
from . import checkpoint
from .progress import Interrupts, Progress, Status, Step
from .saving import Files
from .state import Callback, Data, Job, TrainingState, check_data, check_same, check_seconds, exp, facts, unpack

UNLIMITED = 10**9
"""Epochs of a fit that only the clock or a callback ends."""

MOST_UNREAD = 32
"""Steps that a device may be behind: a signal, the clock and the progress are looked at in between."""


class Fitting:
    """Checks what a fit is given, finds or makes its `Job`, and runs it for a trainer."""

    def __init__(
        self,
        trainer: Any,
        train: Data | None,
        valid: Data | None,
        epochs: int | None,
        patience: int | None,
        time_limit: float | None,
    ) -> None:
        state: TrainingState = trainer.state
        if train is None:
            if state.data is None:
                raise TypeError("train: expected data such as fastlstm.TokenStream, got None")
            goes_on = True
            train, valid = state.data
        else:
            goes_on = state.resumed
        check_data("train", train)
        if valid is not None:
            check_data("valid", valid)
        epochs = None if epochs is None else check.positive("epochs", epochs)
        patience = None if patience is None else check.positive("patience", patience)
        if patience is not None and valid is None:
            raise ValueError(f"patience is {patience}, but valid is None; expected data to judge by")
        if time_limit is not None:
            check_seconds("time_limit", time_limit, above=True)
        folder = state.checkpoint_dir
        if folder is not None and state.saved is None and (folder / checkpoint.LAST).exists():
            raise FileExistsError(
                f"checkpoint_dir: {folder} holds a run already; go on with it by "
                f"Trainer.resume({str(folder)!r}, train, valid), or name another folder"
            )
        self._trainer = trainer
        self._state: TrainingState = state
        self._train = train
        self._valid = valid
        find = self._old_job if goes_on and (state.unfinished or self._is_done(epochs)) else self._new_job
        self._job = find(epochs, patience)
        self._time_limit = math.inf if time_limit is None else time_limit
        self._interrupts = Interrupts()
        self._report = Progress(trainer.progress)
        self._unread: list[Step] = []
        self._files = Files(state, trainer._diverged)
        if hasattr(state.model, "prepare"):
            state.model.prepare(train)  # such as the mean and spread of the data
        state.job, state.data, state.resumed = self._job, (train, valid), False

    def _is_done(self, epochs: int | None) -> bool:
        """Whether a resumed run has finished this very fit, and no more is asked for."""
        job = self._state.job
        if epochs is not None or job is None or not self._state.resumed:
            return False
        return (job.train, job.valid) == (facts(self._train), facts(self._valid))

    def _old_job(self, epochs: int | None, patience: int | None) -> Job:
        job = self._state.job
        assert job is not None
        check_same("train", job.train, facts(self._train))
        check_same("valid", job.valid, facts(self._valid))
        if epochs is not None:
            job.target = job.first + epochs
        if patience is not None:
            job.patience = patience
        return job

    def _new_job(self, epochs: int | None, patience: int | None) -> Job:
        state = self._state
        job = Job(state.epoch, state.epoch + (epochs or 1), patience, facts(self._train) or {}, facts(self._valid))
        if state.job is not None and state.job.valid != job.valid:
            # Losses on other data are no measure for these.
            state.best_loss = math.inf
        state.batch = 0
        return job

    def run(self) -> None:
        """Train until the job is done, time is up, a callback says so, or a signal comes."""
        state = self._state
        with self._interrupts, self._report:
            try:
                while state.epoch < self._job.target:
                    if not self._train_epoch():
                        self._end_partial()
                        break
                    if self._end_epoch():
                        break
            except _Interrupted:
                raise KeyboardInterrupt(self._put_away()) from None
            finally:
                self._files.save_best()

    def _train_epoch(self) -> bool:
        """Train on what is left of the epoch; False if time or a callback ended it before its last batch."""
        trainer, state, job = self._trainer, self._state, self._job
        carried, batches = self._train.carries_state, len(self._train)
        if state.batch == 0:
            trainer.reset_state()
        trainer._ready()
        trainer._descent.start(job.loss_sum)
        try:
            return self._train_batches(carried, batches)
        finally:
            if self._unread:
                self._read()

    def _train_batches(self, carried: bool, batches: int) -> bool:
        trainer, state, job = self._trainer, self._state, self._job
        for batch in self._train.batches(state.epoch, state.batch):
            inputs, targets, lengths = unpack(batch)
            began = time.perf_counter()
            trainer._apply(inputs, targets, lengths, carried)
            state.batch += 1
            self._unread.append(Step(inputs.shape[0] * inputs.shape[1], targets.size, time.perf_counter() - began))
            if not (state.batch == batches or self._wants_outcome()):
                continue
            loss = self._read()

            stop = False
            for callback in trainer.callbacks:
                if isinstance(callback, Callback) and callback.on_step(trainer, loss):
                    stop = True
            if self._report.due():
                self._report.show(self._status(state.epoch + 1, state.pace.loss))
            self._check_interrupts()
            if state.batch < batches:
                if stop or self._time_is_up():
                    return False
                self._files.save_in_time()
            elif stop:
                job.target = state.epoch + 1
        return True

    def _wants_outcome(self) -> bool:
        """Whether to wait for the steps that were set off, which a device makes on its own."""
        return (
            self._trainer._descent.prompt
            or self._state.pace.elapsed == 0.0  # the first is left out of the pace
            or len(self._unread) >= MOST_UNREAD
            or any(isinstance(one, Callback) and hears_steps(one) for one in self._trainer.callbacks)
            or self._report.due()
            or self._interrupts.pending
            or self._time_is_up()
            or self._files.due()
        )

    def _read(self) -> float:
        """Wait for the steps and count those that were taken; returns the loss of the last."""
        trainer, state, job, unread = self._trainer, self._state, self._job, self._unread
        self._unread, began = [], time.perf_counter()
        outcome = trainer._settle()
        state.batch -= outcome.missed
        taken = unread[: len(unread) - outcome.missed]
        tokens, targets = sum(step.tokens for step in taken), sum(step.targets for step in taken)
        seconds = sum(step.seconds for step in unread) + time.perf_counter() - began
        state.pace.count(len(taken), tokens, seconds, (outcome.total - job.loss_sum) / max(1, targets))
        job.loss_sum = outcome.total
        job.targets += targets
        job.tokens += tokens
        job.seconds += seconds
        if outcome.missed:
            raise trainer._missed(outcome)
        return float(outcome.loss)

    def _end_epoch(self) -> bool:
        """Judge, save and tell; whether the fit ends here, which is asked once, as the clock goes on."""
        trainer, state, job = self._trainer, self._state, self._job
        results = self._validate(math.inf)
        record = self._record(state.epoch + 1, results)
        judged = results.get("loss", record["loss"])
        best = self._is_best(results)
        job.stale = 0 if best else job.stale + 1
        if hasattr(state.schedule, "update"):
            state.schedule.update(judged)
        state.epoch, state.batch = state.epoch + 1, 0
        trainer.reset_state()
        job.loss_sum, job.targets, job.tokens, job.seconds = 0.0, 0, 0, 0.0
        if job.patience is not None and job.stale >= job.patience:
            job.target = state.epoch
        ends = state.epoch >= job.target or self._time_is_up()
        self._files.note(record, best=best, now=ends)
        if ends or self._report.due():
            self._report.show(self._status(state.epoch, record["loss"]))
        for callback in trainer.callbacks:
            tell = callback.on_epoch if isinstance(callback, Callback) else callback
            if tell(trainer, record):
                job.target = state.epoch
                self._files.save()
        self._check_interrupts()
        return ends

    def _end_partial(self) -> None:
        """Judge and save what a fit has reached within an epoch; the job stays, to be continued."""
        state = self._state
        # A long validation would make a mockery of a short time limit.
        results = self._validate(max(1.0, 0.1 * self._time_limit))
        record = {**self._record(round(state.epoch + state.batch / len(self._train), 4), results), "partial": True}
        self._files.note(record, best=self._is_best(results), now=True)
        self._report.show(self._status(state.epoch + 1, state.pace.loss))
        self._check_interrupts()

    def _validate(self, seconds: float) -> dict[str, float]:
        if self._valid is None:
            return {}
        deadline = time.monotonic() + seconds

        def stop() -> bool:
            self._check_interrupts()
            return time.monotonic() >= deadline

        results: dict[str, float] = self._trainer._judge(self._valid, stop)
        if not math.isfinite(results["loss"]):
            raise self._trainer._diverged(f"the validation loss is {results['loss']}", self._state.steps)
        return results

    def _is_best(self, results: dict[str, float]) -> bool:
        if not results or results["loss"] >= self._state.best_loss:
            return False
        self._state.best_loss = results["loss"]
        return True

    def _record(self, epoch: float, results: dict[str, float]) -> dict[str, Any]:
        state, job = self._state, self._job
        loss = job.loss_sum / max(1, job.targets)
        record: dict[str, Any] = {"epoch": epoch, "step": state.steps, "loss": loss}
        if state.is_text:
            record["perplexity"] = exp(loss)
        record |= {f"valid_{name}": value for name, value in results.items()}
        record["lr"] = state.optimizer.lr
        record["seconds"] = round(job.seconds, 6)
        record["tokens_per_second"] = round(job.tokens / job.seconds, 1) if job.seconds else None
        plain: dict[str, Any] = checkpoint.plain(record)
        return plain

    def _time_is_up(self) -> bool:
        return self._state.pace.elapsed >= self._time_limit

    def _check_interrupts(self) -> None:
        if self._interrupts.pending:
            raise _Interrupted

    def _put_away(self) -> str:
        """Save for later; returns what to tell the person."""
        state = self._state
        place = f"epoch {state.epoch + 1}, batch {state.batch} of {len(self._train)}"
        where = f"stopped after step {state.steps} ({place})"
        if state.checkpoint_dir is None:
            return f"{where}; nothing is saved, but fit() without arguments goes on"
        self._files.save()
        folder = str(state.checkpoint_dir)
        return f"{where} and saved; Trainer.resume({folder!r}, train, valid).fit() goes on"

    def _status(self, epoch: int, loss: float) -> Status:
        state, job, pace = self._state, self._job, self._state.pace
        total = (job.target - job.first) * len(self._train)
        done = (state.epoch - job.first) * len(self._train) + state.batch
        to_go = (total - done) * pace.step_seconds if done < total else 0.0
        return Status(
            epoch=epoch,
            epochs=job.target if job.target < UNLIMITED else None,
            step=state.steps,
            loss=loss,
            perplexity=exp(loss) if state.is_text else None,
            rate=pace.rate,
            unit="tokens" if state.is_text else "steps",
            fraction=min(1.0, max(done / total, pace.elapsed / self._time_limit)),
            left=max(0.0, min(to_go, self._time_limit - pace.elapsed)),
        )


class _Interrupted(Exception):
    """A signal came; raised where the trainer stands between two steps."""


def hears_steps(callback: Callback) -> bool:
    """Whether a callback has an `on_step` of its own."""
    return getattr(callback.on_step, "__func__", None) is not Callback.on_step
