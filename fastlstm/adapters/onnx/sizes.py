"""How many numbers a node's result has, found before it is worked out: a file of a few bytes can ask for gigabytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .graph import Node

# What is worked out at load, from constants alone, may have so many bytes in all, and so many for each byte of numbers in the
# file. A result's type is not known beforehand: it may have 8 bytes for each number, and NumPy may make it twice on the way.
LEAST, TIMES, WIDEST = 1 << 24, 8, 8


class Room:
    """The bytes that are left of that, for a file with `size` bytes of numbers."""

    def __init__(self, size: int) -> None:
        self.left = LEAST + TIMES * size

    def want(self, node: Node, *arrays: Any) -> None:
        """Refuse a node whose result could have more.

        Raises
        ------
        ValueError
            If it could.
        """
        count = most(node, *arrays)
        if count * WIDEST > self.left:
            raise ValueError(
                f"its result may have {count:,} numbers; expected at most {max(0, self.left) // WIDEST:,}: in all, {LEAST:,} "
                f"bytes and {TIMES} times those of the file's numbers are worked out at load"
            )

    def take(self, *arrays: np.ndarray) -> None:
        """Count results."""
        self.left -= sum(array.nbytes for array in arrays)


def most(node: Node, *arrays: Any) -> int:
    """An upper bound of the numbers in a node's result, and of those that it takes to get there."""
    bound: Callable[..., int] = _BOUNDS.get(node.op, _alike)
    return bound(node, *(None if array is None else np.asarray(array) for array in arrays))


def _volume(shape: Any) -> int:
    """Numbers of a shape; a size of zero counts as one, since it may go while the others stay."""
    return math.prod(max(1, int(size)) for size in shape)


def _alike(node: Node, *arrays: Any) -> int:
    """Of what moves, converts or reduces what it is given."""
    return sum(_volume(array.shape) for array in arrays if array is not None)


def _spread(node: Node, *arrays: Any) -> int:
    """Of what goes by elements, and repeats the smaller input."""
    return _volume(np.broadcast_shapes(*(array.shape for array in arrays if array is not None)))


def _matmul(node: Node, x: Any, y: Any) -> int:
    return _volume(np.broadcast_shapes(x.shape[:-2], y.shape[:-2])) * _volume(x.shape[-2:-1]) * _volume(y.shape[-1:])


def _gemm(node: Node, a: Any, b: Any, c: Any = None) -> int:
    rows, columns = a.shape[::-1] if node.attributes.get("transA") else a.shape, b.shape
    return _volume(rows[:1]) * _volume((columns[::-1] if node.attributes.get("transB") else columns)[-1:])


def _gather(node: Node, x: Any, indices: Any) -> int:
    sizes = list(x.shape)
    del sizes[node.attributes.get("axis", 0)]
    return _volume(indices.shape) * _volume(sizes)


def _scatter(node: Node, x: Any, indices: Any, updates: Any) -> int:
    return _volume(x.shape) + int(indices.ndim) * _volume(indices.shape)


def _range(node: Node, start: Any, limit: Any, step: Any) -> int:
    return math.ceil((float(limit) - float(start)) / float(step))


def _cell(node: Node, x: Any, w: Any, r: Any, *others: Any) -> int:
    """Every step of every row has all gates."""
    return _volume(x.shape[:2]) * _volume(r.shape[:2]) + _alike(node, x, w, r, *others)


_BOUNDS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(
        (
            "Add",
            "And",
            "Clip",
            "Div",
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "Less",
            "LessOrEqual",
            "Max",
            "Min",
            "Mul",
            "Or",
            "Pow",
            "Sub",
            "Sum",
            "Where",
        ),
        _spread,
    ),
    **dict.fromkeys(("RNN", "LSTM", "GRU"), _cell),
    "ConstantOfShape": lambda node, shape: _volume(shape),
    "Expand": lambda node, x, shape: _volume(np.broadcast_shapes(x.shape, tuple(map(int, shape)))),
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Range": _range,
    "ScatterElements": _scatter,
    "Tile": lambda node, x, repeats: _volume(x.shape) * _volume(repeats),
}
