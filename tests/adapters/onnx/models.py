"""Small ONNX models for the tests, made by hand."""

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from fastlstm.adapters import onnx as adapter

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}

onnxruntime.set_default_logger_severity(4)


def model(nodes, inputs, outputs, constants=None, opset=17, functions=()):
    """A model; inputs and outputs are dicts of name to (dtype, shape), constants of name to array."""
    inputs, outputs = (
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in values.items()
        ]
        for values in (inputs, outputs)
    )
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(function.domain, 1) for function in functions)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def recurrent(
    op,
    seed,
    *,
    direction="forward",
    lengths=None,
    states=False,
    bias=True,
    peepholes=False,
    steps=6,
    batch=3,
    hidden=4,
    dtype="float32",
    scale=1.0,
    weights_given=False,
    opset=17,
    **attributes,
):
    """A model of one recurrent node with free sizes of time and batch, and its inputs; layout 0."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (rng.normal(size=shape) * scale).astype(dtype)

    directions, gates, lstm, features = 1 + (direction == "bidirectional"), GATES[op], op == "LSTM", 3
    weights = {"W": draw(directions, gates * hidden, features), "R": draw(directions, gates * hidden, hidden)}
    if bias:
        weights["B"] = draw(directions, 2 * gates * hidden)
    if peepholes:
        weights["P"] = draw(directions, 3 * hidden)
    given = {"X": draw(steps, batch, features)}
    if lengths is not None:
        given["sequence_lens"] = np.array(lengths, np.int32)
    if states:
        given |= {name: draw(directions, batch, hidden) for name in ("initial_h", "initial_c")[: 1 + lstm]}
    if weights_given:
        given, weights = given | weights, {}
    order = ("X", "W", "R", "B", "sequence_lens", "initial_h", *(("initial_c", "P") if lstm else ()))
    names = [name if name in given or name in weights else "" for name in order]
    outputs = ["Y", "Y_h", "Y_c"][: 2 + lstm]
    node = helper.make_node(op, names, outputs, name="cell", hidden_size=hidden, direction=direction, **attributes)
    inputs = {name: (array.dtype, [None] * array.ndim) for name, array in given.items()}
    return model([node], inputs, dict.fromkeys(outputs, (dtype, None)), weights, opset), given


def by_runtime(made, inputs):
    """Outputs of onnxruntime by name."""
    session = onnxruntime.InferenceSession(made if isinstance(made, str) else made.SerializeToString())
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, inputs), strict=True))


def assert_close(got, wanted, atol=1e-5):
    """Outputs by name: the same names, shapes and dtypes, and nearly the same numbers."""
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (got[name].shape, got[name].dtype) == (array.shape, array.dtype), name
        np.testing.assert_allclose(got[name], array, rtol=1e-6, atol=atol, err_msg=name)


def assert_as_runtime(made, inputs, atol=1e-5):
    """What is loaded gives what onnxruntime gives."""
    assert_close(adapter.load(made)(inputs), by_runtime(made, inputs), atol)
