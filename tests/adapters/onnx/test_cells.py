"""Loaded RNN, LSTM and GRU nodes with all of ONNX's options, against onnxruntime."""

import itertools
import re

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import helper

from fastlstm.adapters import onnx as adapter
from fastlstm.adapters.onnx import recurrent as _onnx_recurrent
from tests.adapters.onnx.models import GATES, assert_as_runtime, assert_close, by_runtime, recurrent

DIRECTIONS = ("forward", "reverse", "bidirectional")
FUNCTIONS = {"RNN": 1, "LSTM": 3, "GRU": 2}


def never(*_):
    raise AssertionError("the other way of running a node was taken")


@pytest.fixture
def kernels_only(monkeypatch):
    monkeypatch.setattr(_onnx_recurrent, "_run_plain", never)


@pytest.fixture
def numpy_only(monkeypatch):
    monkeypatch.setattr(_onnx_recurrent, "_run_fused", never)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("op", "attributes"),
    [("RNN", {}), ("RNN", {"activations": ["Relu"]}), ("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1})],
)
def test_what_the_kernels_serve(kernels_only, op, attributes, direction):
    if "activations" in attributes:
        attributes = {"activations": attributes["activations"] * (1 + (direction == "bidirectional"))}
    for lengths, states, bias in itertools.product((None, [6, 2, 1]), (False, True), (False, True)):
        options = {"direction": direction, "lengths": lengths, "states": states, "bias": bias}
        assert_as_runtime(*recurrent(op, 1, **options, **attributes))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("RNN", {"clip": 0.5}),
        ("LSTM", {"clip": 0.5}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"peepholes": True}),
        ("LSTM", {"peepholes": True, "input_forget": 1, "clip": 0.5}),
        ("GRU", {"clip": 0.5}),
        ("GRU", {"clip": 0.5, "linear_before_reset": 1}),
    ],
)
def test_what_they_do_not(numpy_only, op, options, direction):
    for lengths, states, bias in itertools.product((None, [6, 2, 1]), (False, True), (False, True)):
        assert_as_runtime(*recurrent(op, 2, direction=direction, lengths=lengths, states=states, bias=bias, **options))


@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize(
    ("name", "alpha", "beta"),
    [
        ("Relu", None, None),
        ("Tanh", None, None),
        ("Sigmoid", None, None),
        ("Affine", 0.3, 0.7),
        ("LeakyRelu", None, None),
        ("LeakyRelu", 0.3, None),
        ("ThresholdedRelu", 0.3, None),
        ("ScaledTanh", 0.3, 0.7),
        ("HardSigmoid", None, None),
        ("HardSigmoid", 0.3, 0.7),
        ("Elu", None, None),
        ("Elu", 0.3, None),
        ("Softsign", None, None),
        ("Softplus", None, None),
    ],
)
def test_activations(op, name, alpha, beta):
    count = FUNCTIONS[op]
    options = {"activations": [name] * count}
    options |= {} if alpha is None else {"activation_alpha": [alpha] * count}
    options |= {} if beta is None else {"activation_beta": [beta] * count}
    assert_as_runtime(*recurrent(op, 3, scale=0.3, **options))


def test_activations_take_their_parameters_in_turn():
    # Tanh and Sigmoid, which have none, use none up; each direction has functions of its own.
    made, inputs = recurrent(
        "LSTM",
        4,
        direction="bidirectional",
        scale=0.4,
        states=True,
        activations=["HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "Affine", "Elu"],
        activation_alpha=[0.3, 0.05, 0.9, 0.4],
        activation_beta=[0.6, 0.1],
    )
    assert_as_runtime(made, inputs)


@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("clip", [{}, {"clip": 1.0}])
def test_layout_one_is_the_other_turned(op, direction, clip):
    """onnxruntime does not serve it."""
    options = {"direction": direction, "lengths": [6, 2, 1], "states": True, **clip}
    made, inputs = recurrent(op, 5, **options)
    turned = {name: array if name == "sequence_lens" else array.swapaxes(0, 1) for name, array in inputs.items()}
    got, wanted = adapter.load(recurrent(op, 5, layout=1, **options)[0])(turned), adapter.load(made)(inputs)
    np.testing.assert_array_equal(got.pop("Y"), wanted.pop("Y").transpose(2, 0, 1, 3))
    assert_close(got, {name: array.swapaxes(0, 1) for name, array in wanted.items() if name != "Y"}, atol=0)


@pytest.mark.parametrize(
    ("op", "options"), [("RNN", {}), ("LSTM", {}), ("GRU", {}), ("LSTM", {"peepholes": True}), ("GRU", {"clip": 1.0})]
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_length_of_zero_keeps_the_initial_state(op, options, direction):
    made, inputs = recurrent(op, 6, direction=direction, lengths=[0, 3, 6], states=True, **options)
    inputs["X"][:, 0] = np.nan
    got = adapter.load(made)(inputs)
    assert (got["Y"][:, :, 0] == 0).all()
    for name in ("h", "c")[: 1 + (op == "LSTM")]:
        np.testing.assert_array_equal(got[f"Y_{name}"][:, 0], inputs[f"initial_{name}"][:, 0])
    others = {name: array[1:] if name == "sequence_lens" else array[:, 1:] for name, array in inputs.items()}
    rest = {name: array[:, :, 1:] if name == "Y" else array[:, 1:] for name, array in got.items()}
    assert_close(rest, by_runtime(made, others))


@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("clip", [{}, {"clip": 1.0}])
def test_other_dtypes(op, dtype, clip):
    made, inputs = recurrent(op, 7, direction="bidirectional", states=True, dtype=dtype, **clip)
    got = adapter.load(made)(inputs)
    single, _ = recurrent(op, 7, direction="bidirectional", states=True, **clip)
    wanted = adapter.load(single)({name: array.astype("float32") for name, array in inputs.items()})
    assert_close(got, {name: array.astype(dtype) for name, array in wanted.items()}, atol=1e-5 if dtype == "float64" else 0.01)
    if dtype == "float64":
        assert max(abs(got[name] - array).max() for name, array in wanted.items()) > 0


@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("options", [{}, {"clip": 1.0}])
def test_batch_and_time_are_free(op, options):
    made, _ = recurrent(op, 8, **options)
    run = adapter.load(made)
    for steps, batch in ((1, 1), (9, 2), (2, 17)):
        inputs = {"X": np.random.default_rng(steps).normal(size=(steps, batch, 3)).astype("float32")}
        assert_close(run(inputs), by_runtime(made, inputs))


@pytest.mark.parametrize(("op", "options"), [("RNN", {}), ("LSTM", {"peepholes": True}), ("LSTM", {}), ("GRU", {})])
def test_weights_are_prepared_once_or_come_with_every_call(monkeypatch, op, options):
    prepared, layer = [], _onnx_recurrent.Options.layer
    monkeypatch.setattr(_onnx_recurrent.Options, "layer", lambda *given: prepared.append(1) or layer(*given))
    made, inputs = recurrent(op, 9, states=True, **options)
    run = adapter.load(made)
    wanted = run(inputs)
    run(inputs)
    assert len(prepared) == 1
    assert not run._plan._constants, "weights that were prepared are kept a second time"

    made, inputs = recurrent(op, 9, states=True, weights_given=True, **options)
    run = adapter.load(made)
    assert_close(run(inputs), wanted, atol=0)
    inputs["R"] = inputs["R"] / 2
    assert_close(run(inputs), by_runtime(made, inputs))
    assert len(prepared) == 3


@pytest.mark.parametrize(
    ("op", "options", "message"),
    [
        ("RNN", {"direction": "sideways"}, "direction is 'sideways'; expected one of 'forward', 'reverse', 'bidirectional'"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh"]}, "activations has 2 names; expected 3"),
        ("GRU", {"activations": ["Sigmoid", "Gelu"]}, "activations is 'gelu'; expected one of 'relu', 'tanh'"),
        ("RNN", {"activations": ["Affine"]}, "activations has Affine, but too few activation_alpha and activation_beta"),
        ("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [1.0]}, "activations has ScaledTanh"),
    ],
)
def test_refused_by_name(op, options, message):
    made, _ = recurrent(op, 10, **options)
    with pytest.raises(ValueError, match=rf"^node 'cell' \({op}\): .*{re.escape(message)}"):
        adapter.load(made)


@pytest.mark.parametrize(("tensor", "message"), [(0, "W has shape [1, 4, 3]; expected [1, 16, I]"), (2, "B has shape [1, 8]")])
def test_weights_that_do_not_fit(tensor, message):
    made, _ = recurrent("LSTM", 10)
    made.graph.initializer[tensor].CopyFrom(recurrent("RNN", 10)[0].graph.initializer[tensor])
    with pytest.raises(ValueError, match=rf"^node 'cell' \(LSTM\): {re.escape(message)}"):
        adapter.load(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.ones((6, 3, 5), "float32")}, "x has shape [6, 3, 5]; expected [T, B, 3]"),
        ({"initial_h": np.ones((1, 2, 4), "float32")}, "(h) has shape [1, 2, 4]; expected [1, 3, 4]"),
        ({"sequence_lens": np.array([1, 2, 7], np.int32)}, "lengths has values from 1 to 7; expected 0 to 6"),
        ({"sequence_lens": np.array([1, 2], np.int32)}, "lengths has shape [2]"),
    ],
)
def test_errors_of_a_call_tell_the_node(change, message):
    made, inputs = recurrent("LSTM", 11, lengths=[1, 2, 3], states=True)
    with pytest.raises(ValueError, match=rf"^node 'cell' \(LSTM\): .*{re.escape(message)}"):
        adapter.load(made)(inputs | change)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("options", [{}, {"direction": "reverse"}, {"direction": "bidirectional", "clip": 2.0}], ids=str)
@pytest.mark.parametrize("layout", [0, 1])
def test_no_steps_and_no_rows(op, options, layout):
    """No outputs, and of no steps the initial states, as after a length of 0; onnxruntime leaves them unset, or breaks off."""
    made, inputs = recurrent(op, 5, states=True, lengths=[0] * 3, **options)
    made.graph.node[0].attribute.append(helper.make_attribute("layout", layout))
    run, directions = adapter.load(made), inputs["initial_h"].shape[0]

    def laid(array):
        return array.swapaxes(0, 1) if layout else array

    for steps, batch in ((0, 3), (4, 0), (0, 0)):
        given = {"X": laid(inputs["X"][:1].repeat(steps, 0)[:, :batch]), "sequence_lens": np.zeros(batch, np.int32)}
        given |= {name: laid(inputs[name][:, :batch]) for name in ("initial_h", "initial_c") if name in inputs}
        found = run(given)
        assert found["Y"].shape == ((batch, steps, directions, 4) if layout else (steps, directions, batch, 4))
        for name in ("Y_h", "Y_c")[: 1 + (op == "LSTM")]:
            assert np.array_equal(found[name], given[f"initial_{name[2]}"])
    with pytest.raises(adapter.OnnxError, match=r"X has shape .*; expected"):
        run(given | {"X": np.zeros((0, 0, 7), np.float32)})
    with pytest.raises(adapter.OnnxError, match=r"initial_h|state \(h\)"):
        run(given | {"initial_h": np.zeros((1, 5, 9), np.float32)})
    bare, _ = recurrent(op, 5, **options)
    assert not adapter.load(bare)({"X": np.zeros((0, 3, 3), np.float32)})["Y_h"].any()
