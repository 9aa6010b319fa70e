"""ONNX: run recurrent models of other projects with fastlstm's kernels, and write fastlstm's own for other runtimes.

`load` reads models made of RNN, LSTM and GRU nodes and the operators around them; `export` writes layers and models.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

try:
    import onnx
    from onnx import checker, external_data_helper, helper, numpy_helper
except ImportError as error:
    raise ImportError('fastlstm.adapters.onnx needs the package onnx: pip install "fastlstm[onnx]"') from error

from ...files.writing import replacing
from ...version import __version__
from .build import graph_of
from .graph import BRANCHES, DTYPES, NUMBERS, Graph, Node, OnnxError, Value
from .plan import served
from .run import Model

__all__ = ["Model", "OnnxError", "export", "load"]

_STANDARD = ("", "ai.onnx")
_LARGEST = 2**31 - 1  # bytes of one protobuf message
_MOST_NODES = 100_000  # that functions may make
_PLAIN = {getattr(onnx.AttributeProto, name) for name in ("INT", "FLOAT", "STRING", "INTS", "FLOATS", "STRINGS")}


def load(source: Any) -> Model:
    """Load a model.

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto
        Weights in files beside the model are read where a path is given.

    Returns
    -------
    Model
        Called as ``outputs = model({"x": array})``, with names as in the file.

    Raises
    ------
    OnnxError
        A ValueError: if it is no ONNX model, has operators or options that are not served, or asks for more memory than its
        size is worth; the message names the file, the node and its operator.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> from fastlstm.adapters import onnx
    >>> layer = fastlstm.GRU(3, 5, seed=0)
    >>> onnx.export(layer, "gru.onnx")
    >>> run = onnx.load("gru.onnx")
    >>> run.inputs
    {'x': 'float32[time, batch, 3]', 'h_0': 'float32[1, batch, 5]'}
    >>> x = np.ones((7, 2, 3), np.float32)
    >>> bool((run({"x": x})["out"] == layer(x)[0]).all())
    True
    """
    if not isinstance(source, str | os.PathLike | bytes | bytearray | onnx.ModelProto):
        raise TypeError(f"source is {type(source).__name__}; expected a path, bytes or an onnx.ModelProto")
    file = f"{os.fspath(source)}: " if isinstance(source, str | os.PathLike) else ""
    proto = _proto(source)
    try:
        return Model(_read(_written_out(proto)), file)
    except OnnxError as error:
        raise OnnxError(f"{file}{error}") from error.__cause__
    except (RecursionError, MemoryError) as error:
        raise OnnxError(f"{file}it is nested too deeply or too large: {error or type(error).__name__}") from error


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    lengths: bool = False,
    dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
    states: str = "optional",
) -> None:
    """Write a layer or model as an ONNX file, whole or not at all; sizes of batch and time stay free.

    Parameters
    ----------
    model : RNN, LSTM, GRU, LanguageModel, SequenceRegressor or SequenceClassifier
        Inputs and outputs are named as its own: for layers x, h_0, c_0 and out, h_n, c_n; for a LanguageModel ids and logits
        instead of x and out; the others give "prediction", or "logits" and "probabilities".
    path : path
        The file; its folder is made if it is missing.
    lengths : bool
        The file has an input "lengths" too, int32 [batch]: valid steps of each sequence.
    dtype : {"float32", "float64"}
        Of weights, inputs and outputs, whatever the model's own. Few runtimes have recurrent operators in float64.
    metadata : mapping of str to str, optional
        Text pairs for the file, beside a model's config under "model".
    states : {"optional", "required", "zeros"}
        Whether initial states may be given, and are zero where they are not; must be given; or are no inputs, but zero. At each
        load onnxruntime warns of those that may be given.

    Raises
    ------
    TypeError
        If there is no ONNX for the kind of `model`.
    ValueError
        If ONNX cannot hold it: its LSTM has no projection, a file ends at 2 GiB.
    """
    proto = _written(graph_of(model, lengths, dtype, dict(metadata or {}), states))
    checker.check_model(proto, full_check=True)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def _proto(source: Any) -> onnx.ModelProto:
    """The message itself, its functions written out."""
    named = os.fspath(source) if isinstance(source, str | os.PathLike) else "source"
    try:
        if isinstance(source, onnx.ModelProto):
            proto = source
        elif isinstance(source, bytes | bytearray):
            proto = onnx.load_from_string(bytes(source))
        else:
            proto = onnx.load(os.fspath(source))
    except OSError:
        raise
    except Exception as error:  # of protobuf, which is not a dependency of ours, or of onnx for files beside the model
        raise OnnxError(f"{named} is not an ONNX model: {error}") from None
    if not proto.graph.output:
        raise OnnxError(f"{named} is not an ONNX model: it has no outputs")
    return proto


def _written_out(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The message with what its functions do in place of their calls."""
    if not proto.functions:
        return proto
    from onnx import inliner

    bodies = {(f.domain, f.name, f.overload): f.node for f in proto.functions}
    counts: dict[tuple[str, str, str], int] = {}

    def count(nodes: Any) -> int:
        """Nodes when all is written out: a few functions that call each other can make billions."""
        total = 0
        for node in nodes:
            called = node.domain, node.op_type, node.overload
            if called in bodies and called not in counts:
                counts[called] = _MOST_NODES + 1  # of a function that calls itself
                counts[called] = count(bodies[called])
            total += counts.get(called, 1)
            for attribute in node.attribute:
                total += sum(count(graph.node) for graph in (attribute.g, *attribute.graphs))
        return total

    if (total := count(proto.graph.node)) > _MOST_NODES:
        raise OnnxError(f"its functions make {total:,} nodes; expected at most {_MOST_NODES:,}, and none that calls itself")
    try:
        return inliner.inline_local_functions(proto)
    except Exception as error:
        raise OnnxError(f"its functions are not valid ONNX: {error}") from None


def _read(proto: onnx.ModelProto) -> Graph:
    """The graph of a message, its nodes checked against ONNX's definitions."""
    opset = {_text(entry.domain): entry.version for entry in proto.opset_import}
    version = next((opset[name] for name in _STANDARD if name in opset), 1)
    context = checker.C.CheckerContext()
    try:
        context.ir_version, context.opset_imports = proto.ir_version, opset
    except TypeError:
        raise OnnxError(f"it is of version {proto.ir_version} with the operators {opset}, which are no versions") from None
    graph = _graph(proto.graph, version, context)
    # Files of the oldest kinds list their constants among the inputs, which did not mean that they may be given.
    infos = [info for info in proto.graph.input if proto.ir_version >= 4 or _text(info.name) not in graph.constants]
    graph.inputs, graph.outputs = [_value(info) for info in infos], [_value(info) for info in proto.graph.output]
    graph.metadata = {_text(pair.key): _text(pair.value) for pair in proto.metadata_props}
    return graph


def _graph(found: onnx.GraphProto, opset: int, context: Any) -> Graph:
    """A graph, the types of its inputs and outputs left out."""
    nodes = [_node(node, opset, context) for node in found.node]
    if found.sparse_initializer:
        raise OnnxError("the model has sparse initializers, which are not served")
    constants = {_text(tensor.name): _array(tensor) for tensor in found.initializer}
    inputs, outputs = ([Value(_text(info.name), "") for info in infos] for infos in (found.input, found.output))
    for kind, listed in (("input", found.input), ("output", found.output), ("initializer", found.initializer)):
        counts = Counter(_text(one.name) for one in listed)
        if len(counts) < len(listed) or "" in counts:
            raise OnnxError(f"{kind} {counts.most_common(1)[0][0]!r} comes twice or has no name")
    held = [*constants.values(), *(value for node in nodes for value in node.attributes.values())]
    size = sum(value.nbytes for value in held if isinstance(value, np.ndarray | Graph))
    return Graph(nodes, inputs, outputs, constants, opset, nbytes=size)


def _node(found: onnx.NodeProto, opset: int, context: Any) -> Node:
    """A node; of one that is not served the name alone."""
    domain = "" if found.domain in _STANDARD else _text(found.domain)
    inputs, outputs = (tuple(map(_text, names)) for names in (found.input, found.output))
    node = Node(_text(found.op_type), inputs, outputs, {}, _text(found.name), domain, opset)
    if not served(node):
        return node
    if node.op == "If":
        return _if(node, found, context)
    try:
        checker.check_node(found, context)
    except Exception as error:
        raise OnnxError(f"{node} is not valid ONNX: {next(iter(str(error).splitlines()), '')}") from None
    node.attributes.update({_text(attribute.name): _plain(node, attribute) for attribute in found.attribute})
    return node


def _if(node: Node, found: onnx.NodeProto, context: Any) -> Node:
    """An `If`. Nodes in its branches read values of the graphs around it, where onnx's checker does not look."""
    graphs = {one.name: one.g for one in found.attribute if one.type == onnx.AttributeProto.GRAPH}
    branches = {name: _graph(graph, node.opset, context) for name, graph in graphs.items()}
    if (
        len(found.attribute) != len(BRANCHES)
        or {*branches} != {*BRANCHES}
        or len(node.inputs) != 1
        or not node.inputs[0]
        or any(branch.inputs or len(branch.outputs) != len(node.outputs) for branch in branches.values())
    ):
        raise OnnxError(
            f"{node} is not valid ONNX: expected a condition, and as {' and '.join(BRANCHES)} graphs without inputs and with "
            "as many outputs as it has"
        )
    captured = tuple(dict.fromkeys(name for branch in branches.values() for name in branch.captured()))
    return replace(node, inputs=(*node.inputs, *captured), attributes=branches | {"captured": captured})


def _text(value: str | bytes) -> str:
    """A field of text, which comes as bytes where it is not UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    name = _text(tensor.name)
    if tensor.data_type not in DTYPES:
        expected = ", ".join(DTYPES.values())
        raise OnnxError(f"tensor {name!r} has element type {tensor.data_type}; expected one of {expected}")
    if external_data_helper.uses_external_data(tensor):
        raise OnnxError(f"tensor {name!r} lies in another file; expected a path as source, which tells where")
    if min(tensor.dims, default=0) < 0:
        raise OnnxError(f"tensor {name!r} has the shape {[*tensor.dims]}; expected no size below 0")
    try:
        array: np.ndarray = numpy_helper.to_array(tensor)
    except Exception as error:
        raise OnnxError(f"tensor {name!r} cannot be read: {error}") from error
    return array


def _plain(node: Node, attribute: onnx.AttributeProto) -> Any:
    """An attribute's value without protobuf."""
    if attribute.type == onnx.AttributeProto.TENSOR:
        try:
            return _array(attribute.t)
        except OnnxError as error:
            raise OnnxError(f"{node}: attribute {attribute.name}: {error}") from error.__cause__
    if attribute.type not in _PLAIN:
        raise OnnxError(f"{node}: attribute {attribute.name} is not served")
    value = helper.get_attribute_value(attribute)
    if isinstance(value, int | float):
        return value
    if isinstance(value, str | bytes):
        return _text(value)
    return [_text(item) if isinstance(item, str | bytes) else item for item in value]


def _value(info: onnx.ValueInfoProto) -> Value:
    name, kind = _text(info.name), info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise OnnxError(f"{name!r} is of {kind or 'no type'}; expected a tensor")
    tensor = info.type.tensor_type
    if tensor.elem_type not in DTYPES:
        raise OnnxError(f"{name!r} has element type {tensor.elem_type}; expected one of {', '.join(DTYPES.values())}")
    shape = None
    if tensor.HasField("shape"):
        # Some write a size below zero for one that is free.
        shape = tuple(
            size.dim_param or None if not size.HasField("dim_value") else size.dim_value if size.dim_value >= 0 else None
            for size in tensor.shape.dim
        )
    return Value(name, DTYPES[tensor.elem_type], shape)


def _written(graph: Graph) -> onnx.ModelProto:
    """The message of a graph."""
    size = sum(array.nbytes for array in graph.constants.values())
    if size > _LARGEST - 2**20:
        raise ValueError(f"the model has {size:,} bytes of weights; expected less than 2 GiB, where an ONNX file ends")
    nodes = [helper.make_node(n.op, n.inputs, n.outputs, name=n.name, **n.attributes) for n in graph.nodes]
    inputs, outputs = (
        [helper.make_tensor_value_info(value.name, NUMBERS[value.dtype], value.shape) for value in values]
        for values in (graph.inputs, graph.outputs)
    )
    constants = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in graph.constants.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "fastlstm", inputs, outputs, constants),
        producer_name="fastlstm",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", graph.opset)],
    )
    # As old a format as the operators allow, for runtimes that are older than the package that writes.
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)
    helper.set_model_props(proto, graph.metadata)
    return proto
