"""ONNX: run recurrent models of other projects with fastlstm's kernels, and write fastlstm's own for other runtimes.

`load` reads models made of RNN, LSTM and GRU nodes and the operators around them; `export` writes layers and models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

try:
    import onnx
    from onnx import checker, external_data_helper, helper, numpy_helper
except ImportError as error:
    raise ImportError('fastlstm.adapters.onnx needs the package onnx: pip install "fastlstm[onnx]"') from error

from .. import __version__
from ..files import replacing
from ._onnx_build import graph_of
from ._onnx_graph import DTYPES, NUMBERS, Graph, Node, Value
from ._onnx_run import Model

__all__ = ["Model", "export", "load"]

_STANDARD = ("", "ai.onnx")
_LARGEST = 2**31 - 1  # bytes of one protobuf message


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
    ValueError
        If it is no ONNX model, or has operators or options that are not served; the message names node and operator.

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
    return Model(_read(_proto(source)))


def export(
    model: Any, path: str | os.PathLike[str], *, lengths: bool = False, dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write a layer or model as an ONNX file, whole or not at all; sizes of batch and time stay free.

    Parameters
    ----------
    model : RNN, LSTM, GRU, LanguageModel, SequenceRegressor or SequenceClassifier
        Inputs and outputs are named as its own: for layers x, h_0, c_0 and out, h_n, c_n; for a LanguageModel ids and logits
        instead of x and out; the others give "prediction", or "logits" and "probabilities". Initial states that are not given
        are zero.
    path : path
        The file; its folder is made if it is missing.
    lengths : bool
        The file has an input "lengths" too, int32 [batch]: valid steps of each sequence.
    dtype : {"float32", "float64"}
        Of weights, inputs and outputs, whatever the model's own. Few runtimes have recurrent operators in float64.
    metadata : mapping of str to str, optional
        Text pairs for the file, beside a model's config under "model".

    Raises
    ------
    TypeError
        If there is no ONNX for the kind of `model`.
    ValueError
        If ONNX cannot hold it: its LSTM has no projection, a file ends at 2 GiB.
    """
    proto = _written(graph_of(model, lengths, dtype, dict(metadata or {})))
    checker.check_model(proto, full_check=True)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def _proto(source: Any) -> onnx.ModelProto:
    """The message itself, its functions written out."""
    if not isinstance(source, str | os.PathLike | bytes | bytearray | onnx.ModelProto):
        raise TypeError(f"source is {type(source).__name__}; expected a path, bytes or an onnx.ModelProto")
    named = str(source) if isinstance(source, str | os.PathLike) else "source"
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
        raise ValueError(f"{named} is not an ONNX model: {error}") from None
    if not proto.graph.output:
        raise ValueError(f"{named} is not an ONNX model: it has no outputs")
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    return proto


def _read(proto: onnx.ModelProto) -> Graph:
    """The graph of a message, its nodes checked against ONNX's definitions."""
    opset = {entry.domain: entry.version for entry in proto.opset_import}
    version = next((opset[name] for name in _STANDARD if name in opset), 1)
    context = checker.C.CheckerContext()
    context.ir_version, context.opset_imports = proto.ir_version, opset
    nodes = []
    for found in proto.graph.node:
        domain = "" if found.domain in _STANDARD else found.domain
        node = Node(found.op_type, tuple(found.input), tuple(found.output), {}, found.name, domain, version)
        if not domain:
            try:
                checker.check_node(found, context)
            except checker.ValidationError as error:
                raise ValueError(f"{node} is not valid ONNX: {str(error).splitlines()[0]}") from None
        node.attributes.update({attribute.name: _plain(node, attribute) for attribute in found.attribute})
        nodes.append(node)
    if proto.graph.sparse_initializer:
        raise ValueError("the model has sparse initializers, which are not served")
    constants = {tensor.name: _array(tensor) for tensor in proto.graph.initializer}
    metadata = {pair.key: pair.value for pair in proto.metadata_props}
    # Files of the oldest kinds list their constants among the inputs, which did not mean that they may be given.
    infos = [info for info in proto.graph.input if proto.ir_version >= 4 or info.name not in constants]
    inputs, outputs = [_value(info) for info in infos], [_value(info) for info in proto.graph.output]
    return Graph(nodes, inputs, outputs, constants, version, metadata)


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    if external_data_helper.uses_external_data(tensor):
        raise ValueError(f"tensor {tensor.name!r} lies in another file; expected a path as source, which tells where")
    array: np.ndarray = numpy_helper.to_array(tensor)
    return array


def _plain(node: Node, attribute: onnx.AttributeProto) -> Any:
    """An attribute's value without protobuf."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _array(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float):
        return value
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [text.decode("utf-8", "replace") for text in value]
    raise ValueError(f"{node}: attribute {attribute.name} is not served")


def _value(info: onnx.ValueInfoProto) -> Value:
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ValueError(f"{info.name!r} is of {kind or 'no type'}; expected a tensor")
    tensor = info.type.tensor_type
    if tensor.elem_type not in DTYPES:
        raise ValueError(f"{info.name!r} has element type {tensor.elem_type}; expected one of {', '.join(DTYPES.values())}")
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim)
    return Value(info.name, DTYPES[tensor.elem_type], shape)


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
        helper.make_graph(nodes, "fastlstm", inputs, outputs, constants), producer_name="fastlstm",
        producer_version=__version__, opset_imports=[helper.make_opsetid("", graph.opset)],
    )  # fmt: skip
    # As old a format as the operators allow, for runtimes that are older than the package that writes.
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)
    helper.set_model_props(proto, graph.metadata)
    return proto
