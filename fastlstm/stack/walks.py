"""Recurrences as walks: generators that run what stands before and after a recurrence's steps, and hand the steps over.

So the steps of two layers can be one operation, where the engine has one that runs both at once. A walk gives each chunk of its
steps as an operation's name, arguments and options of `engine.run`; what comes after them in it needs their results.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..kernels.operations import Wave
from ..runtime.engine import Engine

Walk = Iterator[tuple[Any, dict[str, Any]]]


def alone(engine: Engine, walk: Walk) -> None:
    """All of a walk, operation by operation."""
    for record, options in walk:
        engine.run(record, **options)


def together(engine: Engine, first: Walk, second: Walk, between: Any) -> None:
    """Two walks of one chunk each, their steps at once, as a `Wave`.

    first: the layer that goes ahead. between: the packed weights by which the other takes what that makes in each step.
    """
    (ahead, _), (behind, _) = next(first), next(second)
    engine.run(Wave(first=ahead, second=behind, between=between))
    for walk in (first, second):
        alone(engine, walk)
