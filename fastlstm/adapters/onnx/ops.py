"""The operators around recurrent nodes, in NumPy: from a node's attributes a function of its inputs.

An entry of `OPERATORS` is called once, as ``entry(node, **attributes)``; what it returns takes the node's inputs (None where an
optional one is absent) and gives an array, or a tuple of them. Older versions of an operator, which have as an attribute what
is an input today, are served by the same entry.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from .cells import ACTIVATIONS, sigmoid
from .graph import DTYPES, Node

Array = np.ndarray
Function = Callable[..., Any]


def _always(function: Function) -> Callable[[Node], Function]:
    """An operator without attributes."""
    return lambda node: function


def _activation(name: str) -> Callable[..., Function]:
    function, defaults = ACTIVATIONS[name]
    a, b = (*defaults, None, None)[:2]
    return lambda node, alpha=a, beta=b: lambda x: function(x, alpha, beta).astype(x.dtype, copy=False)


def _dtype(number: int) -> str:
    if number not in DTYPES:
        raise ValueError(f"element type {number} is not served; expected one of {', '.join(DTYPES.values())}")
    return DTYPES[number]


def _axes(axes: Any) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.ravel(axes))


# Arithmetic


def _div(x: Array, y: Array) -> Any:
    if x.dtype.kind not in "iu":
        return np.divide(x, y)
    quotient = np.abs(x) // np.abs(y)  # whole numbers are cut towards zero, not rounded down
    return np.where((x < 0) != (y < 0), -quotient, quotient).astype(x.dtype)


def _many(function: Function) -> Callable[[Node], Function]:
    return lambda node: lambda *arrays: reduce(function, arrays)


def _clip(node: Node, min: float | None = None, max: float | None = None) -> Function:
    return lambda x, low=min, high=max: np.clip(
        x, None if low is None else np.asarray(low, x.dtype), None if high is None else np.asarray(high, x.dtype)
    )


def _gemm(node: Node, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0) -> Function:
    def run(a: Array, b: Array, c: Array | None = None) -> Any:
        y = (a.T if transA else a) @ (b.T if transB else b)
        if alpha != 1:
            y *= y.dtype.type(alpha)
        if c is not None:
            y += c if beta == 1 else c * c.dtype.type(beta)
        return y

    return run


def _softmax(log: bool) -> Callable[..., Function]:
    def build(node: Node, axis: int | None = None) -> Function:
        def along(x: Array, axis: int) -> Any:
            shifted = x - x.max(axis=axis, keepdims=True)
            powers = np.exp(shifted)
            total = powers.sum(axis=axis, keepdims=True)
            return shifted - np.log(total) if log else powers / total

        if node.opset >= 13:
            return lambda x: along(x, -1 if axis is None else axis)

        def matrix(x: Array) -> Any:
            first = 1 if axis is None else axis % x.ndim
            return along(_as_matrix(x, first), 1).reshape(x.shape)

        return matrix

    return build


def _reduce(function: Function) -> Callable[..., Function]:
    def build(node: Node, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Function:
        def run(x: Array, over: Any = axes) -> Array:
            everything = over is None or np.size(over) == 0
            if everything and noop_with_empty_axes:
                return x
            found = function(x, axis=None if everything else _axes(over), keepdims=keepdims == 1)
            return np.asarray(found).astype(x.dtype, copy=False)

        return run

    return build


def _argmax(node: Node, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Function:
    def run(x: Array) -> Any:
        found = np.argmax(np.flip(x, axis) if select_last_index else x, axis, keepdims=keepdims == 1)
        return x.shape[axis] - 1 - found if select_last_index else found

    return run


def _top_k(node: Node, axis: int = -1, largest: int = 1, sorted: int = 1, k: int | None = None) -> Function:
    def run(x: Array, count: Any = k) -> tuple[Array, Array]:
        # Of equal values the first index comes first, whatever the order.
        wanted = int(np.ravel(count)[0])
        if not 0 <= wanted <= x.shape[axis]:
            raise ValueError(f"k is {wanted}; expected 0 to {x.shape[axis]}")
        order = np.argsort(x if not largest else -x if x.dtype.kind in "if" else x.max() - x, axis, kind="stable")
        indices = np.take(order, np.arange(wanted), axis)
        return np.take_along_axis(x, indices, axis), indices

    return run


# Shapes


def _reshape(node: Node, shape: Any = None, allowzero: int = 0) -> Function:
    def run(x: Array, wanted: Any = shape) -> Array:
        sizes = [int(n) for n in wanted]
        copied = [k for k, n in enumerate(sizes) if n == 0 and not allowzero]
        if min(sizes, default=0) < -1:
            raise ValueError(f"shape is {sizes}; expected no size below -1")
        if sizes.count(-1) == 1:
            # Sizes that are copied have no part in the one that is found: it is so even where they are zero.
            rest = prod(n for k, n in enumerate(x.shape) if k not in copied)
            others = prod(n for k, n in enumerate(sizes) if k not in copied and n != -1)
            sizes[sizes.index(-1)] = rest // others if others else 0
        for k in copied:
            sizes[k] = x.shape[k]
        return x.reshape(sizes)

    return run


def _as_matrix(x: Array, first: int) -> Array:
    """The first axes as rows, the others as columns."""
    return x.reshape(prod(x.shape[:first]), prod(x.shape[first:]))


def _flatten(node: Node, axis: int = 1) -> Function:
    return lambda x: _as_matrix(x, axis + x.ndim if axis < 0 else axis)


def _squeeze(node: Node, axes: Any = None) -> Function:
    return lambda x, over=axes: np.squeeze(x, None if over is None else _axes(over))


def _unsqueeze(node: Node, axes: Any = None) -> Function:
    return lambda x, over=axes: np.expand_dims(x, _axes(over))


def _transpose(node: Node, perm: Any = None) -> Function:
    return lambda x: np.transpose(x, perm)


def _shape(node: Node, start: int = 0, end: int | None = None) -> Function:
    return lambda x: np.array(np.shape(x)[start:end], np.int64)


def _concat(node: Node, axis: int) -> Function:
    return lambda *arrays: np.concatenate(arrays, axis)


def _split(node: Node, axis: int = 0, split: Any = None, num_outputs: int | None = None) -> Function:
    def run(x: Array, sizes: Any = split) -> tuple[Array, ...]:
        if sizes is None:
            count = len(node.outputs) if num_outputs is None else num_outputs
            if count != len(node.outputs):
                raise ValueError(f"num_outputs is {count}; expected {len(node.outputs)}, as many as there are")
            part = -(-x.shape[axis] // count)  # all alike, the last one may be smaller
            ends = [part * k for k in range(1, count)]
        else:
            ends = np.cumsum(sizes)[:-1].tolist()
            if sum(sizes) != x.shape[axis]:
                raise ValueError(f"split is {list(sizes)}; expected a sum of {x.shape[axis]}")
        return tuple(np.split(x, ends, axis))

    return run


def _slice(node: Node, starts: Any = None, ends: Any = None, axes: Any = None) -> Function:
    def run(x: Array, begin: Any = starts, end: Any = ends, over: Any = axes, steps: Any = None) -> Array:
        over = range(len(begin)) if over is None else _axes(over)
        steps = [1] * len(begin) if steps is None else steps
        cut = [slice(None)] * x.ndim
        for axis, *places in zip(over, begin, end, steps, strict=True):
            cut[axis] = slice(*map(int, places))
        return x[tuple(cut)]

    return run


def _gather(node: Node, axis: int = 0) -> Function:
    return lambda x, indices: np.take(x, indices, axis)


def _scatter(node: Node, axis: int = 0, reduction: str = "none") -> Function:
    if reduction != "none":
        raise ValueError(f"reduction {reduction!r} is not served; expected 'none'")

    def run(x: Array, indices: Array, updates: Array) -> Array:
        # Indices may cover less than the other axes, which put_along_axis does not know.
        places: list[Any] = list(np.indices(indices.shape))
        places[axis] = indices
        found = x.copy()
        found[tuple(places)] = updates
        return found

    return run


def _expand(x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(map(int, shape))))


# Making and converting


def _constant(node: Node, **value: Any) -> Function:
    ((name, given),) = value.items()
    dtypes = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}
    if name != "value" and name not in dtypes:
        raise ValueError(f"attribute {name} is not served; expected value or one of {', '.join(dtypes)}")
    array = np.asarray(given, dtypes.get(name))
    return lambda: array


def _constant_of_shape(node: Node, value: Array | None = None) -> Function:
    one = np.zeros(1, np.float32) if value is None else value
    return lambda shape: np.full(tuple(map(int, shape)), one[0], one.dtype)


def _cast(node: Node, to: int, saturate: int = 1) -> Function:
    dtype = _dtype(to)
    return lambda x: x.astype(dtype)


def _tile(x: Array, repeats: Array) -> Array:
    counts = tuple(map(int, repeats))
    # NumPy does not look whether the sizes of what it makes on the way overflow, and writes beyond it.
    wanted = prod(max(1, size) for size in (*x.shape, *counts)) * x.itemsize
    if wanted > sys.maxsize:
        raise ValueError(f"repeats is {list(counts)} for x {list(x.shape)}; expected a result that has room in memory")
    return np.tile(x, counts)


def _dropout(node: Node, ratio: float = 0.5, seed: int = 0) -> Function:
    def run(x: Array, _: Any = None, training: Any = False) -> tuple[Array, Array]:
        if training is not None and bool(training):
            raise ValueError("training_mode is true; expected a model exported for inference")
        return x, np.ones(x.shape, bool)

    return run


OPERATORS: dict[str, Callable[..., Function]] = {
    "Abs": _always(np.abs),
    "Neg": _always(np.negative),
    "Exp": _always(np.exp),
    "Log": _always(np.log),
    "Sqrt": _always(np.sqrt),
    "Reciprocal": _always(np.reciprocal),
    "Floor": _always(np.floor),
    "Ceil": _always(np.ceil),
    "Relu": _activation("relu"),
    "Tanh": _always(np.tanh),
    "Sigmoid": _always(sigmoid),
    "LeakyRelu": _activation("leakyrelu"),
    "HardSigmoid": _activation("hardsigmoid"),
    "Elu": _activation("elu"),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "Softmax": _softmax(log=False),
    "LogSoftmax": _softmax(log=True),
    "Clip": _clip,
    "Add": _always(np.add),
    "Sub": _always(np.subtract),
    "Mul": _always(np.multiply),
    "Div": _always(_div),
    "Pow": _always(lambda x, y: np.power(x, y).astype(x.dtype, copy=False)),
    "Min": _many(np.minimum),
    "Max": _many(np.maximum),
    "Sum": _many(np.add),
    "And": _always(np.logical_and),
    "Or": _always(np.logical_or),
    "Not": _always(np.logical_not),
    "Equal": _always(np.equal),
    "Less": _always(np.less),
    "LessOrEqual": _always(np.less_equal),
    "Greater": _always(np.greater),
    "GreaterOrEqual": _always(np.greater_equal),
    "Where": _always(np.where),
    "MatMul": _always(np.matmul),
    "Gemm": _gemm,
    "ReduceSum": _reduce(np.sum),
    "ReduceProd": _reduce(np.prod),
    "ReduceMean": _reduce(np.mean),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ArgMax": _argmax,
    "TopK": _top_k,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Shape": _shape,
    "Size": _always(lambda x: np.array(x.size, np.int64)),
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "ScatterElements": _scatter,
    "Expand": _always(_expand),
    "Tile": _always(_tile),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "CastLike": lambda node, saturate=1: lambda x, like: x.astype(like.dtype),
    "Range": _always(lambda start, limit, step: np.arange(start, limit, step, dtype=start.dtype)),
    "Identity": _always(lambda x: x),
    "Dropout": _dropout,
}
