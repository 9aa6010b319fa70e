"""The files of a fit in its run's folder, and when each is written: best and last checkpoint, history.

Knows file names and when to write; what a checkpoint holds is in snapshot.py.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..files.records import MODEL
from . import arguments, checkpoint, snapshot
from .state import TrainingState

# Writing to a disk for certain takes tens of milliseconds; epochs of small data follow on each other faster.
_SECONDS_APART = 1.0


Diverged = Callable[[str, int], Exception]  # makes the error of a run that diverged, at an update


def take(state: TrainingState, diverged: Diverged) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what a checkpoint of the run holds, which must be finite."""
    arguments.check_saved(state.model, state.optimizer)
    arrays, record = snapshot.take(state)
    if not all(np.isfinite(array).all() for name, array in arrays.items() if name.startswith(MODEL)):
        # The updates were finite, their sum is not: a checkpoint of this would replace the last good one.
        raise diverged("a weight is not finite", state.steps)
    return arrays, record


def write(state: TrainingState, path: Path, diverged: Diverged) -> Path:
    """Write a checkpoint of the run."""
    checkpoint.write_checkpoint(path, *take(state, diverged))
    if state.checkpoint_dir is not None and path.parent == state.checkpoint_dir:
        state.saved = path
    return path


class Files:
    """The files of a run's folder; without a folder nothing is written."""

    def __init__(self, state: TrainingState, diverged: Diverged) -> None:
        self._state, self._diverged = state, diverged
        self._folder = state.checkpoint_dir
        self._began = time.monotonic()
        self._saved = -math.inf
        self._best: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._history_written = False

    def note(self, record: dict[str, Any], *, best: bool, now: bool) -> None:
        """
        Add a record to the history, and save, if not at once then soon.

        Parameters
        ----------
        record : dict
            Of an epoch or part of one.
        best : bool
            Whether the model, as it is now, is the best so far.
        now : bool
            Save without waiting: nothing comes after this that would.
        """
        self._state.history.append(record)
        if self._folder is None:
            return
        if best:
            self._best = take(self._state, self._diverged)
        path = self._folder / checkpoint.HISTORY
        if self._history_written:
            checkpoint.append_line(path, record)
        else:
            # The checkpoint's own history counts: the file may hold lines that a crash undid.
            checkpoint.write_lines(path, self._state.history)
            self._history_written = True
        # After the history: a run whose last checkpoint is there is resumed no more, and writes no more.
        if now or time.monotonic() - self._saved >= _SECONDS_APART:
            self.save()

    def due(self) -> bool:
        """Whether the last time is long ago."""
        return self._folder is not None and time.monotonic() - max(self._began, self._saved) >= self._state.checkpoint_every

    def save_in_time(self) -> None:
        """Save within an epoch, if the last time is long ago."""
        if self.due():
            self.save()

    def save(self) -> None:
        """Save now: the best first, so that no last checkpoint ever names a best that is not there."""
        if self._folder is not None:
            self.save_best()
            write(self._state, self._folder / checkpoint.LAST, self._diverged)
            self._saved = time.monotonic()

    def save_best(self) -> None:
        """Save what waits to be saved as the best."""
        if self._folder is not None and self._best is not None:
            checkpoint.write_checkpoint(self._folder / checkpoint.BEST, *self._best)
            self._best = None
