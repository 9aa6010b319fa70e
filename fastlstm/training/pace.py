"""How fast a fit goes: steps that were set off, and the rate of those that are done. Knows numbers of them alone."""

import math
import time
from dataclasses import dataclass


@dataclass
class Step:
    """One that was set off, and how long that took."""

    tokens: int
    """Time steps times rows."""
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
