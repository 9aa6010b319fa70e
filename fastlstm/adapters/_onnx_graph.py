"""An ONNX graph as plain data, and what its recurrent nodes have in common; knows neither protobuf nor how nodes are run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# ONNX's numbers of element types, and NumPy's names of those that are served.
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}

# Which of ONNX's gates (LSTM i, o, f, c; GRU z, r, h) is each of fastlstm's (i, f, g, o; r, z, n).
GATES = {"rnn": (0,), "lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes are plain: numbers, text, lists of them, arrays. An input's name is empty where an optional one is absent,
    an output's where it is not wanted. `opset` is the version of the operators that the model is written in.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    opset: int = 0

    def __str__(self) -> str:
        operator = f"{self.domain}.{self.op}" if self.domain else self.op
        return f"node {self.name or ', '.join(self.outputs)!r} ({operator})"


@dataclass(frozen=True)
class Value:
    """An input or output of a graph; shape None: unknown, a size by name or None: free."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None = None


@dataclass
class Graph:
    """A model. A constant with an input's name is what that input is where nothing else is given."""

    nodes: list[Node]
    inputs: list[Value]
    outputs: list[Value]
    constants: dict[str, np.ndarray]
    opset: int
    metadata: dict[str, str] = field(default_factory=dict)


def reordered(rows: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Rows [G*H, ...] of all gates, the gates in another order."""
    gates = rows.reshape(len(order), -1, *rows.shape[1:])
    found: np.ndarray = gates[list(order)].reshape(rows.shape)
    return found
