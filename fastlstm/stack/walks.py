"""Recurrences as walks: generators that run what stands before and after a recurrence's steps, and hand the steps over.

So the steps of two layers can be one operation, where the engine has one that runs both at once. A walk gives each chunk of its
steps as an operation's name, arguments and options of `engine.run`; what comes after them in it needs their results.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..runtime.engine import Cpu

Walk = Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]


def alone(engine: Cpu, walk: Walk) -> None:
    """All of a walk, operation by operation."""
    for name, arguments, options in walk:
        engine.run(name, *arguments, **options)


def together(engine: Cpu, first: Walk, second: Walk, between: Any) -> None:
    """Two walks of one chunk each, their steps at once: "lstm.forward" of both as "lstm.wave_forward".

    first: the layer that goes ahead. between: the packed weights by which the other takes what that makes in each step.
    """
    (name, ahead, _), (_, behind, _) = next(first), next(second)
    engine.run(name.replace(".", ".wave_"), *ahead, *behind, between)
    for walk in (first, second):
        alone(engine, walk)
