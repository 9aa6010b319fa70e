"""A loaded model: what it takes and gives, and the plan that makes one of the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...runtime import check
from ...runtime.arrays import as_numpy
from .graph import Graph, OnnxError, Value
from .plan import Plan, refuse
from .sizes import Room

OLDEST = 7  # version of the operators from which shapes broadcast as NumPy's


class Model:
    """A loaded model: ``outputs = model(inputs)``, both dictionaries of name to array.

    It may be called from several threads at once.

    Attributes
    ----------
    inputs : dict of str to str
        What it takes: dtype and shape by name, as text; sizes given by name are free.
    outputs : dict of str to str
        What it gives, alike.
    metadata : dict of str to str
        The text pairs of the file.
    """

    def __init__(self, graph: Graph, file: str = "") -> None:
        self._file = file
        self._inputs = {value.name: value for value in graph.inputs}
        self._outputs = {value.name: value for value in graph.outputs}
        self.inputs = {name: _described(value) for name, value in self._inputs.items()}
        self.outputs = {name: _described(value) for name, value in self._outputs.items()}
        self.metadata = dict(graph.metadata)
        if graph.opset < OLDEST:
            raise OnnxError(f"the model is of opset {graph.opset}; expected {OLDEST} or later")
        for node in graph.nodes:
            refuse(node)
        self._defaults = {name: array for name, array in graph.constants.items() if name in self._inputs}
        for array in self._defaults.values():
            array.setflags(write=False)
        known = {name: array for name, array in graph.constants.items() if name not in self._inputs}
        self._plan = Plan(graph, known, self._inputs, Room(graph.nbytes))

    def __repr__(self) -> str:
        return f"Model(inputs={self.inputs}, outputs={self.outputs})"

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run the model.

        Parameters
        ----------
        inputs : mapping of str to array
            NumPy arrays, or what converts to them; an input that has a default in the file may be missing.

        Returns
        -------
        dict of str to array
            All outputs; they belong to the caller.

        Raises
        ------
        ValueError, TypeError
            If an input is missing, unknown, or does not fit.
        OnnxError
            A ValueError, by the names of file and node, if what reaches a node does not fit it or the memory.
        """
        unknown = [name for name in inputs if name not in self._inputs]
        missing = [name for name in self._inputs if name not in inputs and name not in self._defaults]
        if unknown or missing:
            raise ValueError(f"inputs do not fit: missing {missing}, unknown {unknown}; expected {', '.join(self._inputs)}")
        given = self._defaults | {name: _fitting(self._inputs[name], value) for name, value in inputs.items()}
        try:
            found = self._plan.run(given)
        except OnnxError as error:
            raise OnnxError(f"{self._file}{error}") from error.__cause__
        kept, outputs = [*given.values()], {}
        for name, array in zip(self._outputs, found, strict=True):
            outputs[name] = _own(array, kept)
            kept.append(outputs[name])
        return outputs


def _described(value: Value) -> str:
    return value.dtype + ("" if value.shape is None else f"[{', '.join('?' if n is None else str(n) for n in value.shape)}]")


def _fitting(value: Value, given: Any) -> np.ndarray:
    """An input in its dtype, where that loses no more than precision."""
    found: np.ndarray = check.given(f"input {value.name!r}", given, as_numpy)
    if found.dtype.kind not in "fiub" or not np.can_cast(found.dtype, value.dtype, "same_kind"):
        raise TypeError(f"input {value.name!r} has dtype {found.dtype}; expected {value.dtype}")
    shape = value.shape
    if shape is not None and (
        found.ndim != len(shape) or any(isinstance(w, int) and w != n for w, n in zip(shape, found.shape, strict=True))
    ):
        raise ValueError(f"input {value.name!r} has shape {list(found.shape)}; expected {_described(value)}")
    if np.dtype(value.dtype).kind in "iu" and found.size and not np.can_cast(found.dtype, value.dtype):
        bounds, low, high = np.iinfo(value.dtype), found.min(), found.max()
        if low < bounds.min or high > bounds.max:
            raise ValueError(
                f"input {value.name!r} has values from {low} to {high}; expected {bounds.min} to {bounds.max}, of {value.dtype}"
            )
    return found.astype(value.dtype, copy=False)


def _own(array: np.ndarray, kept: list[np.ndarray]) -> np.ndarray:
    """A contiguous array that does not share memory with one of `kept`; constants of the plan are read-only."""
    shared = any(np.may_share_memory(array, other) for other in kept)
    return np.array(array, order="C", copy=True if shared or not array.flags.writeable else None)
