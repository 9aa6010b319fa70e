"""Running a graph: nodes in order, weights prepared and constants worked out once, values freed when they have been used."""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np

from ..arrays import as_numpy
from ._onnx_graph import Graph, Node, Value
from ._onnx_ops import OPERATORS
from ._onnx_recurrent import CELLS, prepared_weights, recurrent

OLDEST = 7  # version of the operators from which shapes broadcast as NumPy's


@dataclass(frozen=True)
class _Step:
    node: Node
    function: Callable[..., Any]
    done: tuple[str, ...]  # values that nothing reads after this step


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

    def __init__(self, graph: Graph) -> None:
        self._inputs = {value.name: value for value in graph.inputs}
        self._outputs = {value.name: value for value in graph.outputs}
        self.inputs = {name: _described(value) for name, value in self._inputs.items()}
        self.outputs = {name: _described(value) for name, value in self._outputs.items()}
        self.metadata = dict(graph.metadata)
        if graph.opset < OLDEST:
            raise ValueError(f"the model is of opset {graph.opset}; expected {OLDEST} or later")
        for node in graph.nodes:
            if node.domain or (node.op not in CELLS and node.op not in OPERATORS):
                raise ValueError(f"{node}: this operator is not served")
        self._defaults = {name: array for name, array in graph.constants.items() if name in self._inputs}
        known = {name: array for name, array in graph.constants.items() if name not in self._inputs}
        left: list[tuple[Node, Callable[..., Any]]] = []
        for node in _sorted(graph):
            function = _checked(node, _prepared, node, known)
            if all(name in known for name in node.inputs if name):
                known |= _results(node, function, known)
            else:
                left.append((node, function))
        self._steps: list[_Step] = []
        wanted = set(self._outputs)
        for node, function in reversed(left):
            read = set(filter(None, node.inputs)) - prepared_weights(node, known)
            self._steps.append(_Step(node, function, tuple(read - wanted - set(known) | (set(node.outputs) - wanted - {""}))))
            wanted |= read
        self._steps.reverse()
        self._constants = {name: array for name, array in known.items() if name in wanted}

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
            If an input is missing, unknown, or does not fit; or by a node's name, if what reaches it does not.
        """
        unknown = [name for name in inputs if name not in self._inputs]
        missing = [name for name in self._inputs if name not in inputs and name not in self._defaults]
        if unknown or missing:
            raise ValueError(f"inputs do not fit: missing {missing}, unknown {unknown}; expected {', '.join(self._inputs)}")
        given = self._defaults | {name: _fitting(self._inputs[name], value) for name, value in inputs.items()}
        values = self._constants | given
        for step in self._steps:
            values |= _results(step.node, step.function, values)
            for name in step.done:
                values.pop(name, None)
        kept, outputs = [*self._constants.values(), *given.values()], {}
        for name in self._outputs:
            outputs[name] = _own(values[name], kept)
            kept.append(outputs[name])
        return outputs


def _prepared(node: Node, known: Mapping[str, np.ndarray]) -> Callable[..., Any]:
    """The function of a node."""
    if node.op in CELLS:
        return recurrent(node, known)
    build = OPERATORS[node.op]
    try:
        inspect.signature(build).bind(node, **node.attributes)
    except TypeError as error:
        raise ValueError(f"attributes {', '.join(node.attributes)}: {error}; this is not served") from None
    function: Callable[..., Any] = build(node, **node.attributes)
    return function


def _results(node: Node, function: Callable[..., Any], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a node by name; what is not among `values` is absent, or was taken in at load."""
    found = _checked(node, function, *(values.get(name) for name in node.inputs))
    arrays = found if isinstance(found, tuple) else (found,)
    return {name: np.asarray(array) for name, array in zip(node.outputs, arrays, strict=False) if name}


def _checked(node: Node, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; an error tells the node."""
    try:
        return function(*arguments)
    except (ValueError, TypeError, IndexError) as error:
        raise type(error)(f"{node}: {error}") from error


def _sorted(graph: Graph) -> list[Node]:
    """The nodes that the outputs need, each after those that it reads; otherwise as they stand in the file."""
    given, makers = {*graph.constants, *(value.name for value in graph.inputs)}, dict[str, int]()
    for k, node in enumerate(graph.nodes):
        for name in filter(None, node.outputs):
            if name in makers or name in given:
                other = graph.nodes[makers[name]] if name in makers else "an input or constant"
                raise ValueError(f"{node}: its output {name!r} is also {other}")
            makers[name] = k
    reads: dict[int, set[int]] = {}
    todo = [(value.name, "the model") for value in graph.outputs]
    while todo:
        name, reader = todo.pop()
        if name in given:
            continue
        if name not in makers:
            raise ValueError(f"{reader} reads {name!r}, which nothing makes")
        k = makers[name]
        if k not in reads:
            node = graph.nodes[k]
            reads[k] = {makers[other] for other in node.inputs if other in makers}
            todo += [(other, str(node)) for other in node.inputs if other]
    sorter, ready, order = TopologicalSorter(reads), list[int](), list[Node]()
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(f"the nodes read each other in a circle: {graph.nodes[error.args[1][0]]}") from None
    while sorter.is_active():
        for k in sorter.get_ready():
            heapq.heappush(ready, k)
        order.append(graph.nodes[k := heapq.heappop(ready)])
        sorter.done(k)
    return order


def _described(value: Value) -> str:
    return value.dtype + ("" if value.shape is None else f"[{', '.join('?' if n is None else str(n) for n in value.shape)}]")


def _fitting(value: Value, given: Any) -> np.ndarray:
    """An input in its dtype, where that loses no more than precision."""
    found = as_numpy(given)
    if found.dtype.kind not in "fiub" or not np.can_cast(found.dtype, value.dtype, "same_kind"):
        raise TypeError(f"input {value.name!r} has dtype {found.dtype}; expected {value.dtype}")
    shape = value.shape
    if shape is not None and (
        found.ndim != len(shape) or any(isinstance(w, int) and w != n for w, n in zip(shape, found.shape, strict=True))
    ):
        raise ValueError(f"input {value.name!r} has shape {list(found.shape)}; expected {_described(value)}")
    return found.astype(value.dtype, copy=False)


def _own(array: np.ndarray, kept: list[np.ndarray]) -> np.ndarray:
    """A contiguous array that does not share memory with one of `kept`."""
    shared = any(np.may_share_memory(array, other) for other in kept)
    return np.array(array, order="C", copy=True if shared or not array.flags.writeable else None)
