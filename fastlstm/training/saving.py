"""The files of a fit in its run's folder, and when each is written: best and last checkpoint, history.

Knows the trainer that it serves and file names; nothing of what a checkpoint holds.
"""

import math
import time
from typing import TYPE_CHECKING, Any

from . import checkpoint

if TYPE_CHECKING:
    from .trainer import Trainer

# Writing to a disk for certain takes tens of milliseconds; epochs of small data follow on each other faster.
_SECONDS_APART = 1.0


class Keeper:
    """Saves for a trainer; does nothing for one without a folder."""

    def __init__(self, trainer: "Trainer") -> None:
        self._trainer = trainer
        self._folder = trainer.checkpoint_dir
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
        self._trainer.history.append(record)
        if self._folder is None:
            return
        if best:
            self._best = self._trainer._take()
        path = self._folder / checkpoint.HISTORY
        if self._history_written:
            checkpoint.append_line(path, record)
        else:
            # The checkpoint's own history counts: the file may hold lines that a crash undid.
            checkpoint.write_lines(path, self._trainer.history)
            self._history_written = True
        # After the history: a run whose last checkpoint is there is resumed no more, and writes no more.
        if now or time.monotonic() - self._saved >= _SECONDS_APART:
            self.save()

    def due(self) -> bool:
        """Whether the last time is long ago."""
        return self._folder is not None and time.monotonic() - max(self._began, self._saved) >= self._trainer.checkpoint_every

    def save_in_time(self) -> None:
        """Save within an epoch, if the last time is long ago."""
        if self.due():
            self.save()

    def save(self) -> None:
        """Save now: the best first, so that no last checkpoint ever names a best that is not there."""
        if self._folder is not None:
            self.save_best()
            self._trainer._write(self._folder / checkpoint.LAST)
            self._saved = time.monotonic()

    def save_best(self) -> None:
        """Save what waits to be saved as the best."""
        if self._folder is not None and self._best is not None:
            checkpoint.write_checkpoint(self._folder / checkpoint.BEST, *self._best)
            self._best = None
