"""An ONNX graph as plain data, and what its recurrent nodes have in common; knows neither protobuf nor how nodes are run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# ONNX's numbers of element types, and NumPy's names of those that are served.
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}

# Attributes of an `If`.
BRANCHES = ("then_branch", "else_branch")

# Which of ONNX's gates (LSTM i, o, f, c; GRU z, r, h) is each of fastlstm's (i, f, g, o; r, z, n).
GATES = {"rnn": (0,), "lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}


class OnnxError(ValueError):
    """A model that cannot be loaded or run; the message names the file, if there is one, and the node."""


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes are plain: numbers, text, lists of them, arrays. An input's name is empty where an optional one is absent,
    an output's where it is not wanted. `opset` is the version of the operators that the model is written in.

    Those of an `If` are its branches as graphs, and `captured`: the names by which these read what comes as inputs behind the
    condition.
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
    """A model, or a branch of one. A constant with an input's name is what that input is where nothing else is given.

    `nbytes`: of the numbers in all constants and attributes, those of branches too.
    """

    nodes: list[Node]
    inputs: list[Value]
    outputs: list[Value]
    constants: dict[str, np.ndarray]
    opset: int
    metadata: dict[str, str] = field(default_factory=dict)
    nbytes: int = 0

    def captured(self) -> tuple[str, ...]:
        """What the graph reads and does not make: of a branch, names of the graphs around it."""
        made = {*self.constants, *(value.name for value in self.inputs)}
        made |= {name for node in self.nodes for name in node.outputs}
        read = [*(name for node in self.nodes for name in node.inputs if name), *(value.name for value in self.outputs)]
        return tuple(dict.fromkeys(name for name in read if name not in made))


def reordered(rows: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Rows [G*H, ...] of all gates, the gates in another order."""
    gates = rows.reshape(len(order), -1, *rows.shape[1:])
    found: np.ndarray = gates[list(order)].reshape(rows.shape)
    return found
