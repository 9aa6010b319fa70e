"""The trainer: one optimisation step, fits of many, evaluation, and checkpoints from which training goes on exactly.

Knows the protocols of models, optimizers and tokenizers, and files through ``checkpoint``; nothing of cells, kernels or
texts. What happens over the epochs of a fit is in ``fitting``.
"""

import math
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..files import schema
from ..optim import optimizers
from ..runtime import check
from . import arguments, checkpoint, saving, snapshot, update
from .fit import Fitting
from .progress import Pace
from .state import Callback, Data, TrainingState, check_data, check_same, check_seconds, exp, facts, unpack
from .update import DivergedError


class _OfState:
    """An attribute of a trainer that is a field of its state."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, trainer: Any, owner: type) -> Any:
        return self if trainer is None else getattr(trainer.state, self._name)

    def __set__(self, trainer: Any, value: Any) -> None:
        setattr(trainer.state, self._name, value)


class Trainer:
    """
    Trains a model, step by step or by epochs, so that a stopped run goes on as if it had never stopped.

    One thread at a time uses it. Others may call the model meanwhile, or train other models.

    Parameters
    ----------
    model : LanguageModel, SequenceRegressor or SequenceClassifier
        Changed in place.
    optimizer : optimizer, optional
        As in `fastlstm.optim`; None is ``Adam(lr=1e-3)``.
    clip_norm : float or None
        The gradient of a step is scaled down to this norm where it is larger; None never scales.
    schedule : schedule, optional
        Called with the number of steps done, gives the factor on the optimizer's learning rate as it is now.
    checkpoint_dir : path, optional
        Folder of the run, for ``last.safetensors``, ``best.safetensors`` (the lowest validation loss) and
        ``history.jsonl``. None saves nothing.
    progress : bool
        Show the loss, speed and time left on stderr: a bar on a terminal, else a line every ten seconds.
    callbacks : sequence of Callback or callable
        A callable is called with (trainer, record) after each epoch; True ends the fit.
    seed : int, optional
        Seed of the model's dropout from now on; None leaves the model's own.
    tokenizer : tokenizer, optional
        Kept in the checkpoints, so that `fastlstm.load` can generate text.
    checkpoint_every : float
        Seconds between two checkpoints within an epoch.

    Attributes
    ----------
    steps : int
        Optimisation steps done.
    epoch, batch : int
        Epochs done, and batches done of the next one.
    history : list of dict
        A record of each epoch.
    best_loss : float
        The lowest validation loss; infinity before the first.

    Examples
    --------
    >>> import fastlstm
    >>> model = fastlstm.LanguageModel(4, hidden_size=8, num_layers=1, seed=0)
    >>> data = fastlstm.TokenStream([0, 1, 2, 3] * 50, batch_size=4, seq_len=10)
    >>> trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=0.1), progress=False)
    >>> history = trainer.fit(data, epochs=10)
    >>> history[-1]["loss"] < history[0]["loss"]
    True
    """

    model = _OfState()
    optimizer = _OfState()
    schedule = _OfState()
    clip_norm = _OfState()
    tokenizer = _OfState()
    checkpoint_dir = _OfState()
    checkpoint_every = _OfState()
    steps = _OfState()
    epoch = _OfState()
    batch = _OfState()
    history = _OfState()
    best_loss = _OfState()
    pace = _OfState()

    def __init__(
        self,
        model: Any,
        optimizer: Any = None,
        clip_norm: float | None = 1.0,
        schedule: Any = None,
        checkpoint_dir: str | PathLike[str] | None = None,
        progress: bool = True,
        callbacks: Sequence[Callback | Callable[["Trainer", dict[str, Any]], bool | None]] = (),
        seed: int | None = None,
        *,
        tokenizer: Any = None,
        checkpoint_every: float = 60.0,
    ) -> None:
        optimizer = optimizers.Adam(lr=1e-3) if optimizer is None else optimizer
        arguments.check_parts(model, optimizer, schedule, tokenizer)
        arguments.check_clip_norm(clip_norm)
        if checkpoint_dir is not None:  # now, not at the first save after an epoch
            arguments.check_saved(model, optimizer)
        self.state = TrainingState(
            model,
            optimizer,
            schedule,
            clip_norm,
            tokenizer,
            None if checkpoint_dir is None else Path(checkpoint_dir),
            check_seconds("checkpoint_every", checkpoint_every, above=False),
            base_lr=optimizer.lr,
        )
        self.progress = progress
        self.callbacks = arguments.check_callbacks(callbacks)
        if seed is not None:
            model.random_state = {**model.random_state, "seed": check.integer("seed", seed)}
        self._is_text = self.state.is_text
        self._parts: tuple[Any, ...] = ()
        self._descent: update.Descent | update.DescentByParts

    # One step

    def step(self, inputs: np.ndarray, targets: np.ndarray, *, lengths: np.ndarray | None = None) -> float:
        """
        Take one optimisation step on one batch.

        For a language model the state at the end of the batch is kept, and the next call goes on from it, until
        `reset_state` or a batch of another width.

        Parameters
        ----------
        inputs : ndarray
            Time-major: ids [T, B] for text, else numbers [T, B, I].
        targets : ndarray
            Ids [T, B] for text, else as the model has them.
        lengths : ndarray of int, [B], optional
            Valid steps of each sequence.

        Returns
        -------
        float
            The mean loss per target, before the step.

        Raises
        ------
        DivergedError
            If the loss or the gradient is not finite; the weights are then as they were, and the state is zero.
        """
        if self.state.carried is not None:
            rows = check.given("inputs", inputs).shape[1:2]
            if any(part.shape[1:2] != rows for part in snapshot.parts(self.state.carried)):
                self.state.carried = None
        self._apply(inputs, targets, lengths, self._is_text)
        outcome = self._settle()
        if outcome.missed:
            raise self._missed(outcome)
        return outcome.loss

    def reset_state(self) -> None:
        """Start the next batch from the zero state."""
        self.state.carried = None

    def _apply(self, inputs: np.ndarray, targets: np.ndarray, lengths: np.ndarray | None, carried: bool) -> None:
        """Start an update; `settle` says what has come of it."""
        self._ready()
        run, updates = self.state, self._descent
        if run.schedule is not None:
            run.optimizer.lr = run.base_lr * run.schedule(run.steps)
        before = updates.count
        try:
            updates.step(inputs, targets, run.carried if carried else None, lengths)
        finally:  # an interrupt comes when the update is done
            if updates.count > before:
                run.steps += updates.count - before
                run.carried = updates.state if carried else None

    def _ready(self) -> None:
        """See that updates are those of the model, the optimizer and the clipping as they are now."""
        run = self.state
        wanted = update.kind(run.model, run.optimizer), run.model, run.optimizer, run.clip_norm
        if wanted != self._parts:
            total = self._descent.read().total if self._parts else 0.0
            self._parts, self._descent = wanted, wanted[0](*wanted[1:])
            self._descent.start(total)

    def _settle(self) -> update.Outcome:
        """Return what has come of the updates so far; those that were missed no longer count."""
        outcome = self._descent.read()
        self.state.steps -= outcome.missed
        return outcome

    def _missed(self, outcome: update.Outcome) -> DivergedError:
        """Return the error of an update that was not taken."""
        wrong = not math.isfinite(outcome.loss)
        return self._diverged(f"the loss is {outcome.loss}" if wrong else f"the norm of the gradient is {outcome.norm}")

    def _diverged(self, what: str, step: int | None = None) -> DivergedError:
        """Return the error of a run that diverged, at an update; the carried state is zero from here on."""
        # The model has written over the state that it was given.
        self.reset_state()
        clipping = "clip the gradient (clip_norm=1.0)" if self.state.clip_norm is None else "a smaller clip_norm"
        rate = f"a learning rate below {self.state.optimizer.lr:g}"
        remedy = f"try {rate} or {clipping}, and look for extreme values in the data"
        return DivergedError(what, self.state.steps + 1 if step is None else step, remedy, self.state.saved)

    # Epochs

    def fit(
        self,
        train: Data | None = None,
        valid: Data | None = None,
        epochs: int | None = None,
        *,
        patience: int | None = None,
        time_limit: float | None = None,
    ) -> list[dict[str, Any]]:
        """
        Train for some epochs more, or finish an interrupted fit.

        The first fit after `Trainer.resume` goes on where the saved one stopped, towards the same number of epochs: where that
        one was finished, nothing is left to do, unless `epochs` says how many more. A fit without arguments goes on likewise
        after one that was interrupted or that ran out of time.

        Parameters
        ----------
        train : data
            What to learn: a `TokenStream`, `Batches`, or anything with their four members.
        valid : data, optional
            What to judge by after each epoch.
        epochs : int, optional
            Epochs of this fit, by default 1; of one that goes on, the epochs done before the stop are counted, and by
            default those that it began with.
        patience : int, optional
            End the fit after so many epochs in a row without a lower validation loss.
        time_limit : float, optional
            End the fit after so many seconds, counted from the end of the first step, which may have to compile.

        Returns
        -------
        list of dict
            The history of the trainer: for each epoch its number, the step, loss, perplexity (text), ``valid_...`` of
            each result of `evaluate`, the learning rate, seconds and tokens per second. A fit that time or a callback
            ended within an epoch adds a record with ``"partial": True``.

        Raises
        ------
        KeyboardInterrupt
            After SIGINT or SIGTERM, once the step is done and saved.
        DivergedError
            If a loss, gradient or weight is not finite; the last checkpoint stays as it is.
        FileExistsError
            If `checkpoint_dir` holds a run that this trainer did not begin.
        OSError
            If a file in `checkpoint_dir` cannot be written, or that folder is gone; names it. The checkpoint before is intact.
        ValueError
            If a resumed fit gets other data than it began with.
        """
        fitting = Fitting(self, train, valid, epochs, patience, time_limit)
        self.state.pace = Pace()
        fitting.run()
        return self.state.history

    # Evaluation

    def evaluate(self, data: Data) -> dict[str, float]:
        """
        Judge the model on data, without learning.

        Returns
        -------
        dict
            ``loss``, the mean per target, and ``count``, the targets; of a language model also ``perplexity`` and
            ``bits_per_token`` (and ``bits_per_character`` where the data know their characters per token); of a
            classifier ``accuracy``; of a regressor ``mean_absolute_error``.
        """
        check_data("data", data)
        return self._judge(data, lambda: False)

    def _judge(self, data: Data, stop: Callable[[], bool]) -> dict[str, float]:
        """Return what `evaluate` returns, of the batches until `stop` says so."""
        # A model may hand out a state that its next forward pass overwrites.
        self.state.carried = snapshot.copied(self.state.carried)
        sums: dict[str, float] = {}
        state = None
        for inputs, targets, lengths in map(unpack, data.batches(0)):
            part, state = self.state.model.eval_batch(inputs, targets, state, lengths=lengths)
            if not data.carries_state:
                state = None
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
            if stop():
                break
        count = max(1, sums["count"])
        loss = sums["loss"] / count
        results = {"loss": loss, "count": int(sums["count"])}
        if self._is_text:
            results |= {"perplexity": exp(loss), "bits_per_token": loss / math.log(2)}
            characters = getattr(data, "characters_per_token", None)
            if characters:
                results["bits_per_character"] = results["bits_per_token"] / characters
        if "correct" in sums:
            results["accuracy"] = sums["correct"] / count
        if "absolute" in sums:
            results["mean_absolute_error"] = sums["absolute"] / count
        return results

    # Saving and resuming

    def save(self, path: str | PathLike[str]) -> Path:
        """
        Save all that training is made of: weights, optimizer, schedule, place in the data, carried and random state.

        Parameters
        ----------
        path : path
            A file that ends in ``.safetensors``, or a folder, where it is saved as ``last.safetensors``. What is there
            is replaced in one go.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        OSError
            If it cannot be written; what was there before is intact.
        """
        return saving.write(self.state, checkpoint.checkpoint_file(path), self._diverged)

    @classmethod
    def resume(
        cls,
        path: str | PathLike[str],
        train: Data,
        valid: Data | None = None,
        *,
        model: Any = None,
        optimizer: Any = None,
        schedule: Any = None,
        progress: bool = True,
        callbacks: Sequence[Callback | Callable[["Trainer", dict[str, Any]], bool | None]] = (),
        checkpoint_every: float = 60.0,
    ) -> Self:
        """
        Make the trainer anew from a checkpoint; its `fit` then goes on, bit for bit as if it had never stopped.

        If the saved fit was finished, ``fit()`` has nothing more to do and returns its history; ``fit(epochs=2)`` trains for
        two epochs more.

        Parameters
        ----------
        path : path
            A run's folder (its last checkpoint), or a checkpoint file.
        train, valid : data
            The data of the interrupted fit, made in the same way.
        model, optimizer, schedule : optional
            Only for those of your own that the checkpoint cannot make; their saved numbers are put into them.
        progress, callbacks, checkpoint_every
            As for `Trainer`.

        Raises
        ------
        FileNotFoundError, fastlstm.CheckpointError
            If there is no checkpoint, or no whole one.
        ValueError
            If the data differ from those of the interrupted fit, or a part that is given does not fit the checkpoint; says in
            what.
        """
        file = checkpoint.find_checkpoint(path, best=False)
        arrays, record = snapshot.read(file, model=model is None, optimizer=optimizer is None, schedule=schedule is None)
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        given = [name for name, part in parts.items() if part is not None]
        tokenizer = snapshot.new_tokenizer(record, file)
        model = snapshot.new_model(record, file) if model is None else model
        with schema.reading(file, checkpoint.CheckpointError):
            arguments.check_vocabulary(model, tokenizer)
        trainer = cls(
            model,
            snapshot.new_optimizer(record, file) if optimizer is None else optimizer,
            record["clip_norm"],
            snapshot.new_schedule(record, file) if schedule is None else schedule,
            file.parent,
            progress,
            callbacks,
            tokenizer=tokenizer,
            checkpoint_every=checkpoint_every,
        )
        snapshot.put_back(trainer.state, file, arrays, record, given)
        trainer.state.saved = file
        trainer.state.data = train, valid
        trainer.state.resumed = True
        if trainer.state.job is not None and trainer.state.unfinished:
            check_same("train", trainer.state.job.train, facts(train))
            check_same("valid", trainer.state.job.valid, facts(valid))
            with schema.reading(file, checkpoint.CheckpointError):
                schema.integer(0, len(train))("record.batch", trainer.state.batch)
        return trainer

    @property
    def fit_began(self) -> int:
        """Epochs that were done before the fit that is unfinished, or else that are done now."""
        return self.state.job.first if self.state.job is not None and self.state.unfinished else self.state.epoch
