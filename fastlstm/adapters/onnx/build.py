"""Layers and models as ONNX graphs, in plain data; knows neither protobuf nor files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...layers.recurrent import GRU, LSTM, RNN
from ...models.language import LanguageModel
from ...models.series import SequenceClassifier, SequenceRegressor
from ...runtime import check
from ...shape import STORAGE, Shape
from .graph import GATES, Graph, Node, Value, reordered

OPSET = 17

STATES = ("optional", "required", "zeros")
LAYERS = (RNN, LSTM, GRU)
READERS = (SequenceRegressor, SequenceClassifier)


def graph_of(model: Any, lengths: bool, dtype: str, metadata: dict[str, str], states: str) -> Graph:
    """The graph of a layer or model; see `fastlstm.adapters.onnx.export`."""
    build = Builder(check.choice("dtype", dtype, STORAGE), check.choice("states", states, STATES))
    if not isinstance(model, (*LAYERS, LanguageModel, *READERS)):
        raise TypeError(
            f"model is {type(model).__name__}; expected an RNN, LSTM or GRU layer, a LanguageModel, a SequenceRegressor or a "
            "SequenceClassifier"
        )
    if model.shape.proj_size:
        raise ValueError(f"proj_size is {model.shape.proj_size}; expected 0: ONNX's LSTM has no projection")
    if isinstance(model, LAYERS):
        _layer(build, model, lengths)
    elif isinstance(model, LanguageModel):
        if lengths:
            raise ValueError("lengths is True; expected False: a LanguageModel reads streams of tokens without lengths")
        _language_model(build, model)
    else:
        _reader(build, model, lengths)
    config = {} if isinstance(model, LAYERS) else {"model": json.dumps(model.config)}
    return Graph(build.nodes, build.inputs, build.outputs, build.constants, OPSET, config | metadata)


class Builder:
    """Collects nodes, constants, inputs and outputs; `states` is what is asked of the initial ones."""

    def __init__(self, dtype: str, states: str) -> None:
        self.dtype, self.states = dtype, states
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []

    def input(self, name: str, *shape: int | str, dtype: str | None = None) -> str:
        """An input of the graph."""
        self.inputs.append(Value(name, dtype or self.dtype, shape))
        return name

    def output(self, name: str, *shape: int | str) -> str:
        """An output of the graph."""
        self.outputs.append(Value(name, self.dtype, shape))
        return name

    def constant(self, name: str, value: Any, dtype: str | None = None) -> str:
        """A constant, in the graph's dtype if no other is given."""
        self.constants[name] = np.array(value, dtype or self.dtype)
        return name

    def sizes(self, *values: int) -> str:
        """A constant of shapes, axes or places, named by what it holds."""
        return self.constant("sizes_" + "_".join(map(str, values)).replace("-", "m"), values, "int64")

    def add(self, op: str, *inputs: str, to: str | tuple[str, ...], **attributes: Any) -> str:
        """A node; the name of its first output."""
        outputs = (to,) if isinstance(to, str) else to
        while not inputs[-1]:  # absent ones at the end need no place
            inputs = inputs[:-1]
        self.nodes.append(Node(op, inputs, outputs, attributes, f"{op}_{len(self.nodes)}", opset=OPSET))
        return outputs[0]


def _layer(build: Builder, layer: RNN | LSTM | GRU, lengths: bool) -> None:
    """x, h_0, c_0 -> out, h_n, c_n."""
    shape, axes = layer.shape, ("batch", "time") if layer.batch_first else ("time", "batch")
    x = build.input("x", *axes, shape.input_size)
    wanted = build.output("out", *axes, shape.directions * shape.width)
    states = _initial(build, shape, x, batch_axis=0 if layer.batch_first else 1)
    if layer.batch_first:
        x = build.add("Transpose", x, to="x_by_time", perm=(1, 0, 2))
    last = _stack(build, shape, layer.params, "", x, states, lengths=lengths, to="out_by_time" if layer.batch_first else wanted)
    if layer.batch_first:
        build.add("Transpose", "out_by_time", to=wanted, perm=(1, 0, 2))
    _final(build, shape, last)


def _language_model(build: Builder, model: LanguageModel) -> None:
    """ids, h_0, c_0 -> logits, h_n, c_n."""
    shape = model.shape
    ids = build.input("ids", "time", "batch", dtype="int64")
    logits = build.output("logits", "time", "batch", model.vocab_size)
    states = _initial(build, shape, ids, batch_axis=1)
    build.constant("embedding.weight", model.params["embedding.weight"])
    x = build.add("Gather", "embedding.weight", ids, to="x")
    last = _stack(build, shape, model.params, "rnn.", x, states, lengths=False, to="out")
    weight = "embedding.weight" if model.tie_weights else build.constant("head.weight", model.params["head.weight"])
    columns = build.add("Transpose", weight, to="head.columns", perm=(1, 0))
    product = build.add("MatMul", "out", columns, to="head.product")
    build.add("Add", product, build.constant("head.bias", model.params["head.bias"]), to=logits)
    _final(build, shape, last)


def _reader(build: Builder, model: SequenceRegressor | SequenceClassifier, lengths: bool) -> None:
    """x -> prediction, or logits and probabilities."""
    shape, moments = model.shape, {name.rpartition(".")[2]: array for name, array in model.state_dict().items()}
    x = build.input("x", "time", "batch", shape.input_size)
    if model.normalize:
        x = _subtract(build, x, moments["input_mean"])
        x = build.add("Div", x, build.constant("input_std", moments["input_std"]), to="x_normal")
    last = _stack(build, shape, model.params, "rnn.", x, {}, lengths=lengths, to="out", wants_out=False)["h"][-1]
    rows = build.add("Transpose", last, to="last_by_row", perm=(1, 0, 2))
    features = build.add("Reshape", rows, build.sizes(0, model.features), to="features")
    head = [build.constant(f"head.{name}", model.params[f"head.{name}"]) for name in ("weight", "bias")]
    if isinstance(model, SequenceClassifier):
        logits = build.output("logits", "batch", model.num_classes)
        build.add("Gemm", features, *head, to=logits, transB=1)
        build.add("Softmax", logits, to=build.output("probabilities", "batch", model.num_classes), axis=-1)
        return
    prediction = build.output("prediction", "batch", model.horizon, model.output_size)
    flat = build.add("Gemm", features, *head, to="head.out", transB=1)
    steps = build.sizes(0, model.horizon, model.output_size)
    if not model.normalize:
        build.add("Reshape", flat, steps, to=prediction)
        return
    out = build.add("Reshape", flat, steps, to="prediction_normal")
    scaled = build.add("Mul", out, build.constant("target_std", moments["target_std"]), to="prediction_scaled")
    build.add("Add", scaled, build.constant("target_mean", moments["target_mean"]), to=prediction)


def _subtract(build: Builder, x: str, mean: np.ndarray) -> str:
    """x - mean, where the mean has more digits than the graph's dtype: subtracted in two parts, what it leaves is exact."""
    whole = mean.astype(build.dtype)
    centred = build.add("Sub", x, build.constant("input_mean", whole), to="x_centred")
    rest = mean - whole
    if not rest.any():
        return centred
    return build.add("Sub", centred, build.constant("input_mean_rest", rest), to="x_centred_well")


def _states(shape: Shape) -> tuple[str, ...]:
    return ("h", "c") if shape.cell == "lstm" else ("h",)


def _initial(build: Builder, shape: Shape, x: str, batch_axis: int) -> dict[str, list[str]]:
    """The initial states [D, B, H] of every layer, from inputs [layers*D, B, H], if there are such inputs."""
    count, states = shape.num_layers * shape.directions, dict[str, list[str]]()
    if build.states == "zeros":
        return states
    if build.states == "optional":
        batch = build.add("Shape", x, to="batch_size", start=batch_axis, end=batch_axis + 1)
        whole = build.add("Concat", build.sizes(count), batch, build.sizes(shape.hidden_size), to="state_shape", axis=0)
    for part in _states(shape):
        given = build.input(f"{part}_0", count, "batch", shape.hidden_size)
        if build.states == "optional":
            # What an input has as a default is constant and knows no batch: one row, which is spread over the batch.
            build.constant(given, np.zeros((count, 1, shape.hidden_size)))
            given = build.add("Expand", given, whole, to=f"{part}_0_spread")
        states[part] = [f"{part}_0_l{k}" for k in range(shape.num_layers)] if shape.num_layers > 1 else [given]
        if shape.num_layers > 1:
            build.add("Split", given, to=tuple(states[part]), axis=0)
    return states


def _final(build: Builder, shape: Shape, last: Mapping[str, list[str]]) -> None:
    """The final states of all layers as outputs [layers*D, B, H]."""
    for part in _states(shape):
        name = build.output(f"{part}_n", shape.num_layers * shape.directions, "batch", shape.hidden_size)
        build.add("Concat", *last[part], to=name, axis=0)


def _stack(
    build: Builder,
    shape: Shape,
    params: Mapping[str, np.ndarray],
    prefix: str,
    x: str,
    states: Mapping[str, list[str]],
    *,
    lengths: bool,
    to: str,
    wants_out: bool = True,
) -> dict[str, list[str]]:
    """All layers on x [T, B, I]: out [T, B, D*H] under the name `to`, if wanted; final states [D, B, H] by part and layer."""
    directions, options = shape.directions, _options(shape)
    valid = build.input("lengths", "batch", dtype="int32") if lengths else ""
    last: dict[str, list[str]] = {part: [] for part in _states(shape)}
    for k, suffixes in enumerate(shape.suffixes()):
        weights = _weights(build, shape.cell, params, prefix, k, suffixes)
        first = [states[part][k] if part in states else "" for part in last]
        needed, ends = wants_out or k + 1 < shape.num_layers, [f"{part}_n_l{k}" for part in last]
        outputs = (f"steps_l{k}" if needed else "", *ends)
        steps = build.add(shape.cell.upper(), x, *weights, valid, *first, to=outputs, **options)
        for part, end in zip(last, ends, strict=True):
            last[part].append(end)
        if needed:
            out = to if k + 1 == shape.num_layers else f"out_l{k}"
            if directions == 1:
                x = build.add("Squeeze", steps, build.sizes(1), to=out)
            else:
                rows = build.add("Transpose", steps, to=f"steps_by_row_l{k}", perm=(0, 2, 1, 3))
                x = build.add("Reshape", rows, build.sizes(0, 0, directions * shape.hidden_size), to=out)
    return last


def _options(shape: Shape) -> dict[str, Any]:
    """Attributes of the recurrent nodes."""
    options: dict[str, Any] = {"hidden_size": shape.hidden_size}
    if shape.bidirectional:
        options["direction"] = "bidirectional"
    if shape.cell == "gru":
        options["linear_before_reset"] = int(shape.reset_after)
    if shape.relu:
        options["activations"] = ["Relu"] * shape.directions
    return options


def _weights(
    build: Builder, cell: str, params: Mapping[str, np.ndarray], prefix: str, layer: int, suffixes: list[str]
) -> tuple[str, str, str]:
    """W [D, G*H, I], R [D, G*H, H] and, if there are biases, B [D, 2*G*H] of one layer, gates in ONNX's order."""
    order = tuple(np.argsort(GATES[cell]).tolist())

    def gathered(name: str) -> np.ndarray:
        return np.stack([reordered(params[prefix + name + suffix], order) for suffix in suffixes])

    w, r = (build.constant(f"{prefix}{to}_l{layer}", gathered(name)) for to, name in (("W", "weight_ih"), ("R", "weight_hh")))
    if f"{prefix}bias_ih{suffixes[0]}" not in params:
        return w, r, ""
    biases = np.concatenate([gathered("bias_ih"), gathered("bias_hh")], axis=1)
    return w, r, build.constant(f"{prefix}B_l{layer}", biases)
