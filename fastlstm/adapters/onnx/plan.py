"""A graph made ready to run: nodes in order, constants worked out and weights prepared once, values freed after their last use.

A branch of an `If` is a graph of its own. With a constant condition its nodes take the place of the `If`; else both branches
are plans, and a call runs one of them.
"""

from __future__ import annotations

import heapq
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np

from .graph import BRANCHES, Graph, Node, OnnxError
from .ops import OPERATORS
from .recurrent import CELLS, prepared_weights, recurrent
from .sizes import Room

Function = Callable[..., Any]


@dataclass(frozen=True)
class _Step:
    node: Node
    function: Function
    done: tuple[str, ...]  # values that nothing reads after this step


class Plan:
    """What makes a graph's outputs of values that come with each call.

    Parameters
    ----------
    graph : Graph
    known : mapping of str to array
        Values that are always the same; nobody may write to them any more.
    given : iterable of str
        Names of those that come with each call.
    room : Room
        For what is worked out here.

    Raises
    ------
    OnnxError
        For nodes that are not served or whose options or constants do not fit.
    """

    def __init__(self, graph: Graph, known: Mapping[str, np.ndarray], given: Iterable[str], room: Room) -> None:
        known, self._outputs = dict(known), [value.name for value in graph.outputs]
        for array in known.values():
            array.setflags(write=False)
        todo, left = deque(ordered(graph, {*given, *known})), list[tuple[Node, Function]]()
        while todo:
            node = todo.popleft()
            if node.op == "If" and node.inputs[0] in known:
                branch: Graph = node.attributes[BRANCHES[not _checked(node, _truth, known[node.inputs[0]])]]
                nodes, constants = _inlined(node, branch)
                known |= constants
                todo.extendleft(reversed(nodes))
                continue
            function = _checked(node, _prepared, node, known, room)
            if all(name in known for name in node.inputs if name):
                _checked(node, room.want, node, *(known.get(name) for name in node.inputs))
                found = _results(node, function, known)
                room.take(*found.values())
                for array in found.values():
                    array.setflags(write=False)
                known |= found
            else:
                left.append((node, function))
        self._steps: list[_Step] = []
        wanted = set(self._outputs)
        for node, function in reversed(left):
            if wanted.isdisjoint(node.outputs):
                continue
            read = set(filter(None, node.inputs)) - prepared_weights(node, known)
            last = {name for name in read - wanted if name not in known} | (set(node.outputs) - wanted - {""})
            self._steps.append(_Step(node, function, tuple(last)))
            wanted |= read
        self._steps.reverse()
        self._constants = {name: array for name, array in known.items() if name in wanted}

    def run(self, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs; they may share memory with each other, with what is given and with constants."""
        values = self._constants | given
        for step in self._steps:
            values |= _results(step.node, step.function, values)
            for name in step.done:
                values.pop(name, None)
        return [values[name] for name in self._outputs]


def served(node: Node) -> bool:
    """Whether there is something to run for its operator."""
    return not node.domain and (node.op in CELLS or node.op in OPERATORS or node.op == "If")


def refuse(node: Node) -> None:
    """Refuse a node for whose operator there is nothing."""
    if not served(node):
        raise OnnxError(f"{node}: this operator is not served")


def _prepared(node: Node, known: Mapping[str, np.ndarray], room: Room) -> Function:
    """The function of a node."""
    refuse(node)
    if node.op == "If":
        return _branching(node, known, room)
    if node.op in CELLS:
        return recurrent(node, known)
    build = OPERATORS[node.op]
    try:
        inspect.signature(build).bind(node, **node.attributes)
    except TypeError as error:
        raise ValueError(f"attributes {', '.join(node.attributes)}: {error}; this is not served") from None
    function: Function = build(node, **node.attributes)
    return function


def _results(node: Node, function: Function, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a node by name; what is not among `values` is absent, or was taken in at load."""
    found = _checked(node, function, *(values.get(name) for name in node.inputs))
    arrays = tuple(map(np.asarray, found if isinstance(found, tuple) else (found,)))
    if any(array.dtype.hasobject for array in arrays):
        raise OnnxError(f"{node}: an input is absent; expected all of them")
    if len(arrays) < len(node.outputs):
        raise OnnxError(f"{node}: it gives {len(arrays)} results; the model wants {len(node.outputs)}")
    return {name: array for name, array in zip(node.outputs, arrays, strict=False) if name}


def _checked(node: Node, function: Function, *arguments: Any) -> Any:
    """Call a function; whatever is raised, memory that is not there too, tells the node."""
    try:
        return function(*arguments)
    except OnnxError:
        raise
    except Exception as error:
        raise OnnxError(f"{node}: {error or type(error).__name__}") from error


# Branches


def _truth(condition: Any) -> bool:
    found = np.asarray(condition)
    if found.dtype != bool or found.size != 1:
        raise ValueError(f"its condition has dtype {found.dtype} and shape {list(found.shape)}; expected one bool")
    return bool(found.ravel()[0])


def _branching(node: Node, known: Mapping[str, np.ndarray], room: Room) -> Function:
    """The function of an `If` whose condition comes with each call."""
    captured = node.attributes["captured"]
    always = {name: known[outer] for name, outer in zip(captured, node.inputs[1:], strict=True) if outer in known}
    plans = [Plan(graph, always | graph.constants, captured, room) for graph in (node.attributes[name] for name in BRANCHES)]

    def run(condition: Any, *arrays: Any) -> tuple[np.ndarray, ...]:
        given = {name: array for name, array in zip(captured, arrays, strict=True) if array is not None}
        return tuple(plans[not _truth(condition)].run(given))

    return run


def _inlined(node: Node, branch: Graph) -> tuple[list[Node], dict[str, np.ndarray]]:
    """The nodes and constants of a branch in place of its `If`, under names that the graph around it does not have."""
    captured = node.attributes["captured"]
    label = next(filter(None, node.outputs))
    made = (*branch.constants, *(name for inner in branch.nodes for name in inner.outputs))
    names = {name: f"{name} of {label}" for name in made} | dict(zip(captured, node.inputs[1:], strict=True)) | {"": ""}
    nodes = [
        replace(inner, inputs=tuple(names[name] for name in inner.inputs), outputs=tuple(names[name] for name in inner.outputs))
        for inner in ordered(branch, {*captured, *branch.constants})
    ]
    nodes += [
        Node("Identity", (names[value.name],), (name,), name=f"result of {node.name or label}")
        for value, name in zip(branch.outputs, node.outputs, strict=True)
        if name
    ]
    return nodes, {names[name]: array for name, array in branch.constants.items()}


# Order


def ordered(graph: Graph, given: set[str]) -> list[Node]:
    """The nodes that the outputs need, each after those that it reads; otherwise as they stand in the file."""
    makers = dict[str, int]()
    for k, node in enumerate(graph.nodes):
        for name in filter(None, node.outputs):
            if name in makers or name in given:
                other = graph.nodes[makers[name]] if name in makers else "an input or constant"
                raise OnnxError(f"{node}: its output {name!r} is also {other}")
            makers[name] = k
    reads: dict[int, set[int]] = {}
    todo = [(value.name, "the model") for value in graph.outputs]
    while todo:
        name, reader = todo.pop()
        if name in given:
            continue
        if name not in makers:
            raise OnnxError(f"{reader} reads {name!r}, which nothing makes")
        k = makers[name]
        if k not in reads:
            node = graph.nodes[k]
            reads[k] = {makers[other] for other in node.inputs if other in makers}
            todo += [(other, str(node)) for other in node.inputs if other]
    sorter, ready, order = TopologicalSorter(reads), list[int](), list[Node]()
    try:
        sorter.prepare()
    except CycleError as error:
        raise OnnxError(f"the nodes read each other in a circle: {graph.nodes[error.args[1][0]]}") from None
    while sorter.is_active():
        for k in sorter.get_ready():
            heapq.heappush(ready, k)
        order.append(graph.nodes[k := heapq.heappop(ready)])
        sorter.done(k)
    return order
