"""Schedules: factors on the base learning rate, by the number of steps done or by what validation says.

Know numbers only; no optimizer and no model. A schedule is called with the number of steps done, 0 before the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..runtime.check import integer, positive


def real(name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> float:
    """`value` as a finite float from low to high; `above`, `below`: the bounds themselves are out.

    Raises
    ------
    ValueError
        For anything else.
    """
    bounds = f"{'>' if above else '>='} {low:g}" + ("" if high == math.inf else f" and {'<' if below else '<='} {high:g}")
    try:
        number = float("nan") if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    except OverflowError:  # an int that Python may even refuse to print
        raise ValueError(f"{name} is too large for a float; expected a number {bounds}") from None
    inside = (low < number if above else low <= number) and (number < high if below else number <= high)
    if not inside or not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}; expected a number {bounds}")
    return number


class Schedule:
    """What all schedules share: nothing to remember, nothing to hear."""

    _options: tuple[str, ...] = ()

    def __call__(self, step: int) -> float:
        """The factor for the step after `step` steps."""
        raise NotImplementedError

    def update(self, metric: float) -> None:
        """Hear the loss of a validation; only `Plateau` reacts."""

    @property
    def state(self) -> dict[str, Any]:
        """What the schedule has learnt so far, as JSON can hold it; may be set, to go on from there."""
        return {}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"state is {dict(state)}; {type(self).__name__} has none")

    @property
    def config(self) -> dict[str, Any]:
        """The type and the arguments that it was made with, for `from_config`."""
        return {"type": type(self).__name__, **{name: getattr(self, name) for name in self._options}}

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._options)
        return f"{type(self).__name__}({options})"


class Constant(Schedule):
    """The base learning rate throughout.

    Examples
    --------
    >>> Constant()(1000)
    1.0
    """

    def __call__(self, step: int) -> float:
        """Always 1."""
        return 1.0


class CosineWarmup(Schedule):
    """A straight rise to 1 over the first steps, then half a cosine down to the floor (Loshchilov & Hutter, ICLR 2017).

    Parameters
    ----------
    warmup_steps : int
        Steps of the rise; the first has the factor 1 / warmup_steps. 0 for none.
    total_steps : int
        Steps until the floor is reached, the rise included; the floor holds from there on.
    floor : float
        Last factor, 0 to 1.

    Examples
    --------
    >>> schedule = CosineWarmup(2, 10, floor=0.1)
    >>> [round(schedule(step), 3) for step in (0, 1, 2, 6, 10, 99)]
    [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]
    """

    _options = ("warmup_steps", "total_steps", "floor")

    def __init__(self, warmup_steps: int, total_steps: int, floor: float = 0.0) -> None:
        self.warmup_steps, self.total_steps = integer("warmup_steps", warmup_steps), positive("total_steps", total_steps)
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise ValueError(f"warmup_steps is {warmup_steps}; expected 0 to total_steps ({total_steps})")
        self.floor = real("floor", floor, 0.0, 1.0)

    def __call__(self, step: int) -> float:
        """The factor for the step after `step` steps."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


class StepDecay(Schedule):
    """Times gamma after every `step_size` steps.

    Examples
    --------
    >>> schedule = StepDecay(100, 0.5)
    >>> schedule(99), schedule(100), schedule(250)
    (1.0, 0.5, 0.25)
    """

    _options = ("step_size", "gamma")

    def __init__(self, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = positive("step_size", step_size)
        self.gamma = real("gamma", gamma, 0.0, above=True)

    def __call__(self, step: int) -> float:
        """The factor for the step after `step` steps."""
        return float(self.gamma ** (step // self.step_size))


class Plateau(Schedule):
    """Times `factor` whenever the metric has not become better for more than `patience` updates in a row.

    Parameters
    ----------
    factor : float
        Between 0 and 1.
    patience : int
        Updates without a better metric that are borne.
    threshold : float
        A metric is better only if it is below (1 - threshold) times the best so far (for a best below zero: below it by
        that part of its magnitude).
    floor : float
        The product of all factors never falls below it.

    Examples
    --------
    >>> schedule = Plateau(factor=0.5, patience=1)
    >>> for loss in (2.0, 1.0, 1.0, 1.0):
    ...     schedule.update(loss)
    >>> schedule(0)
    0.5
    """

    _options = ("factor", "patience", "threshold", "floor")

    def __init__(self, factor: float = 0.5, patience: int = 2, threshold: float = 1e-4, floor: float = 0.0) -> None:
        self.factor = real("factor", factor, 0.0, 1.0, above=True, below=True)
        self.patience = integer("patience", patience)
        if self.patience < 0:
            raise ValueError(f"patience is {patience}; expected at least 0")
        self.threshold = real("threshold", threshold, 0.0, 1.0, below=True)
        self.floor = real("floor", floor, 0.0, 1.0)
        self._best: float | None = None
        self._stale = 0
        self._scale = 1.0

    def __call__(self, step: int) -> float:
        """The factor as it stands; steps do not matter."""
        return self._scale

    def update(self, metric: float) -> None:
        """Hear the loss of a validation; one that is not a number is not better."""
        best = math.inf if self._best is None else self._best - self.threshold * abs(self._best)
        if math.isfinite(metric) and metric < best:
            self._best, self._stale = float(metric), 0
        else:
            self._stale += 1
        if self._stale > self.patience:
            self._scale, self._stale = max(self.floor, self._scale * self.factor), 0

    @property
    def state(self) -> dict[str, Any]:
        """The best metric so far, updates since then, and the factor as it stands."""
        return {"best": self._best, "stale": self._stale, "scale": self._scale}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"best", "stale", "scale"}:
            raise ValueError(f"state has {sorted(state)}; expected ['best', 'scale', 'stale']")
        self._best, self._stale, self._scale = state["best"], state["stale"], state["scale"]


_TYPES = {kind.__name__: kind for kind in (Constant, CosineWarmup, StepDecay, Plateau)}


def from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a `config` describes; its state is not part of it.

    Examples
    --------
    >>> from_config({"type": "StepDecay", "step_size": 100, "gamma": 0.5})
    StepDecay(step_size=100, gamma=0.5)
    """
    options = dict(config)
    kind = options.pop("type", None)
    if kind not in _TYPES:
        raise ValueError(f"type is {kind!r}; expected one of {', '.join(_TYPES)}")
    return _TYPES[kind](**options)
