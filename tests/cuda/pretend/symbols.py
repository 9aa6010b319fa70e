"""How a method says which C function it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def symbol(types: str) -> Callable[[Any], Any]:
    """Marks a method as the C function of its name, with arguments of `types`, one letter each."""

    def mark(method: Any) -> Any:
        method.types = types
        return method

    return mark
