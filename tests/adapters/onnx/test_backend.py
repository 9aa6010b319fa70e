"""ONNX's own tests of its operators, run through `load`: all of the recurrent ones, and those of every operator served."""

import functools
import re
import warnings

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx

from fastlstm.adapters import onnx as adapter
from fastlstm.adapters.onnx.graph import DTYPES
from fastlstm.adapters.onnx.ops import OPERATORS

RECURRENT = [
    "test_gru_batchwise",
    "test_gru_bidirectional",
    "test_gru_defaults",
    "test_gru_reverse",
    "test_gru_seq_length",
    "test_gru_with_initial_bias",
    "test_lstm_batchwise",
    "test_lstm_bidirectional",
    "test_lstm_defaults",
    "test_lstm_reverse",
    "test_lstm_with_initial_bias",
    "test_lstm_with_peepholes",
    "test_rnn_seq_length",
    "test_simple_rnn_batchwise",
    "test_simple_rnn_bidirectional",
    "test_simple_rnn_defaults",
    "test_simple_rnn_reverse",
    "test_simple_rnn_with_initial_bias",
]

# Of an operator that is served, the tests with this in their name are refused with that in the message.
REFUSED = {
    "Dropout": ("training", "training_mode is true"),
    "ScatterElements": ("duplicate_indices|reduction", "reduction '.*' is not served"),
    "ReduceMax": ("empty_set", "zero-size array"),
    "ReduceMin": ("empty_set", "zero-size array"),
    "Not": ("not", "opset 1; expected 7 or later"),
}


@functools.cache
def cases():
    """Every node test of onnx by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some make infinities on purpose
        return {case.name: case for case in collect_testcases(None)}


def numbers(value):
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def served_types(model):
    return all(
        value.type.WhichOneof("value") == "tensor_type" and value.type.tensor_type.elem_type in DTYPES
        for value in (*model.graph.input, *model.graph.output)
    )


def check(case):
    run = adapter.load(case.model)
    assert case.data_sets
    for inputs, outputs in case.data_sets:
        got = run({value.name: numbers(array) for value, array in zip(case.model.graph.input, inputs, strict=True)})
        for value, wanted in zip(case.model.graph.output, map(numbers, outputs), strict=True):
            found = got[value.name]
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            np.testing.assert_allclose(found, wanted, rtol=case.rtol, atol=case.atol, err_msg=case.name)


def test_these_are_all_the_recurrent_tests():
    found = {name for name, case in cases().items() if {n.op_type for n in case.model.graph.node} & {"RNN", "LSTM", "GRU"}}
    assert set(RECURRENT) <= found
    if onnx.__version__.startswith("1.23."):
        assert set(RECURRENT) == found


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent(name):
    if name not in cases():
        pytest.skip(f"onnx {onnx.__version__} has no {name}")
    check(cases()[name])


@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_operator(op):
    own = [case for case in cases().values() if {node.op_type for node in case.model.graph.node} == {op}]
    assert own, f"onnx has no test of {op}"
    names, message = REFUSED.get(op, ("^$", ""))
    for case in filter(lambda case: served_types(case.model), own):
        if re.search(names, case.name):
            with pytest.raises(ValueError, match=message):
                check(case)
        else:
            check(case)
