"""What a person sees of a training run, and the signals that stop one. Knows streams, time and text; nothing of models.

On a terminal: one bar on stderr, by tqdm. Elsewhere: a line on stderr now and then. Everything is plain ASCII.
"""

import contextlib
import math
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

_LINE_SECONDS = 10.0
_FIRST_LINE_SECONDS = 2.0
_BAR_SECONDS = 0.2
# What makes terminals do other things than show a letter; line ends and tabs are left alone.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Status:
    """Where a fit stands: what a line of progress is made of."""

    epoch: int
    """Epochs begun, the current one counted."""
    epochs: int | None
    """Epochs to do; None if only the clock ends the fit."""
    step: int
    """Optimisation steps done since the model was made."""
    loss: float
    perplexity: float | None
    """None where perplexity means nothing."""
    rate: float
    """Inputs per second: tokens of a text, time steps of a series."""
    unit: str
    fraction: float
    """Part of the fit that is done, 0 to 1."""
    left: float
    """Seconds to go."""

    def line(self, *, narrow: bool = False) -> str:
        """All but the fraction; narrow: what fits into 80 columns beside a bar."""
        of = "" if self.epochs is None else f"/{self.epochs}"
        parts = [f"epoch {self.epoch}{of}", f"step {self.step}", f"loss {self.loss:.4f}"]
        if self.perplexity is not None:
            parts.append(f"{'ppl' if narrow else 'perplexity'} {number(self.perplexity)}")
        if self.rate:
            parts.append(f"{short(self.rate)} {self.unit}/s")
        parts.append(f"left {clock(self.left)}")
        if narrow:
            del parts[1]
        return "  ".join(parts)


class Progress:
    """Shows `Status` lines: a bar on a terminal, a line every ten seconds elsewhere, nothing if not ``shown``."""

    def __init__(self, shown: bool) -> None:
        self._bar: Any = None
        # A program without a console has no stderr.
        self._shown = shown and sys.stderr is not None
        self._due = 0.0 if self._shown else float("inf")

    def __enter__(self) -> Self:
        """Take the terminal's last line, if stderr is one."""
        if self._shown and sys.stderr.isatty():
            # Only now: a library that shows nothing should not pay for the import.
            from tqdm import tqdm

            self._bar = tqdm(
                total=1.0,
                bar_format="{percentage:3.0f}%|{bar:9}| {desc}",
                ascii=True,
                dynamic_ncols=True,
                file=sys.stderr,
                mininterval=0.0,
                leave=True,
            )
        elif self._shown:
            self._due = time.monotonic() + _FIRST_LINE_SECONDS
        return self

    def __exit__(self, *raised: object) -> None:
        """Leave the last state standing on its own line."""
        if self._bar is not None:
            self._bar.close()

    def due(self) -> bool:
        """Whether it is time to `show`: cheap enough to ask after every step."""
        return time.monotonic() >= self._due

    def show(self, status: Status) -> None:
        """Show the status now."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.n = status.fraction
            self._bar.set_description_str(status.line(narrow=True), refresh=True)
            self._due = time.monotonic() + _BAR_SECONDS
        else:
            self._line(status.line())
            self._due = time.monotonic() + _LINE_SECONDS

    def _line(self, text: str) -> None:
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            # Whoever read stderr is gone; the training is worth more than its progress.
            self._shown, self._due = False, float("inf")


class Interrupts:
    """
    Notes SIGINT and SIGTERM instead of raising at once, so that a step is finished and saved before the process stops.

    A second signal raises KeyboardInterrupt on the spot, and a first one that is still pending at the end does so there.
    Outside the main thread, and for signals that the process was started to ignore, nothing is changed.
    """

    pending = False

    def __enter__(self) -> Self:
        """Install the handlers."""
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None is a handler that was not installed from Python and could not be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.pending and kind is None:
            raise KeyboardInterrupt("stopped by a signal, after the last step was saved")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            raise KeyboardInterrupt("stopped by a second signal, before the step was finished")
        self.pending = True


def write(text: str) -> None:
    """Print to stdout, past a bar that may stand on the terminal, and go on without a reader if there is none."""
    tqdm = sys.modules.get("tqdm")
    try:
        if tqdm is None:
            print(text, flush=True)
        else:
            tqdm.tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
    except BrokenPipeError:
        mute()


def mute() -> None:
    """Send stdout nowhere from now on, because nobody reads it."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        # The file itself, not the name sys.stdout: what is buffered is written at exit, and must not fail then.
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def printable(text: str) -> str:
    r"""
    Text that a terminal shows and does not obey.

    >>> printable("two\n lines, \x1b[2J")
    'two\n lines, ?[2J'
    """
    return _CONTROL.sub("?", text)


def clock(seconds: float) -> str:
    """
    Seconds as a person reads them.

    >>> clock(65), clock(3 * 3600 + 62), clock(49 * 3600)
    ('1:05', '3:01:02', '49:00:00')
    """
    whole = max(0, round(seconds)) if seconds < 1e9 else None
    if whole is None:
        return "?"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """
    A perplexity: two places after the point while they mean something.

    >>> number(4.5), number(12345.6)
    ('4.50', '12346')
    """
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def short(value: float) -> str:
    """
    A positive number in three digits or so.

    >>> short(4.5678), short(45678.0), short(1234567.0)
    ('4.57', '45.7k', '1.23M')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


@dataclass
class Step:
    """An update that was started, and how long that took."""

    tokens: int
    """Time steps times rows of the batch."""
    targets: int
    seconds: float


class Pace:
    """The speed of a fit in this process, its first step left out: that one may compile."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._steps = 0
        self._tokens = 0
        self._seconds = 0.0
        self.loss = 0.0
        """Mean loss of about the last twenty steps."""

    def count(self, steps: int, tokens: int, seconds: float, loss: float) -> None:
        """Note some steps and their mean loss."""
        if self._since is None:
            self._since = time.monotonic()
            self.loss = loss
            return
        self._steps += steps
        self._tokens += tokens
        self._seconds += seconds
        self.loss += (loss - self.loss) * min(1.0, steps / min(self._steps + 1, 20))

    @property
    def elapsed(self) -> float:
        """Seconds since the end of the first step."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    @property
    def rate(self) -> float:
        """Tokens per second within steps; 0 before the second step."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def step_seconds(self) -> float:
        """Seconds from step to step, all that is between them counted."""
        return self.elapsed / self._steps if self._steps else math.inf
