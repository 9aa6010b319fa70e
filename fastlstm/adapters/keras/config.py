"""Keras's configuration of a layer or a chain of layers as records, with every option served or refused by name.

What changes an output is refused; what acts in Keras's training only is noted. Imports no Keras: configurations are
dictionaries of plain values, of which nothing is called or looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from .chain import ACTIVATIONS
from .records import CELLS, DTYPES, GATES, Record

Read = Callable[[str, str], list[np.ndarray]]
"""Arrays by name of a layer and path inside it, in the order in which Keras saves them."""

MODELS = ("Sequential", "Functional", "Model")
PLACES = {  # the name of a class in a file of weights
    "InputLayer": "input_layer",
    "SimpleRNN": "simple_rnn",
    "LSTM": "lstm",
    "GRU": "gru",
    "Bidirectional": "bidirectional",
    "TimeDistributed": "time_distributed",
    "Dense": "dense",
    "Embedding": "embedding",
    "Dropout": "dropout",
    "Activation": "activation",
    "Softmax": "softmax",
    "Normalization": "normalization",
    "Rescaling": "rescaling",
    "Reshape": "reshape",
    "SpatialDropout1D": "spatial_dropout1d",
    "GaussianNoise": "gaussian_noise",
    "GaussianDropout": "gaussian_dropout",
}
_IDLE = ("SpatialDropout1D", "GaussianNoise", "GaussianDropout")  # act in training only
_TRAINING = (
    "dropout",
    "recurrent_dropout",
    "kernel_regularizer",
    "recurrent_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "embeddings_regularizer",
    "kernel_constraint",
    "recurrent_constraint",
    "bias_constraint",
    "embeddings_constraint",
)


class Fields:
    """One layer's configuration, with errors that name the layer and the option."""

    def __init__(self, layer: Any) -> None:
        if not isinstance(layer, dict) or not isinstance(layer.get("config"), dict):
            raise ValueError(f"a layer's configuration is {type(layer).__name__}; expected class_name and config")
        self.layer, self.config = layer, layer["config"]
        self.kind, self.name = str(layer.get("class_name")), str(self.config.get("name"))
        module = str(layer.get("module") or "keras")
        if module.split(".")[0] != "keras" or str(layer.get("registered_name") or self.kind) != self.kind:
            self.kind = str(layer.get("registered_name") or f"{module}.{self.kind}")

    def refuse(self, text: str) -> NoReturn:
        """Raise an error about this layer."""
        raise ValueError(f"layer {self.name!r} ({self.kind}) {text}")

    def get(self, option: str, default: Any = None) -> Any:
        """The value of an option."""
        return self.config.get(option, default)

    def size(self, option: str) -> int:
        """A positive integer."""
        value = self.get(option)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(f"has {option}={value!r}; expected a positive integer")
        return value

    def only(self, option: str, *allowed: Any, hint: str = "") -> Any:
        """The value, which must be one of those that fastlstm serves; the first is the default."""
        value = self.get(option, allowed[0])
        if not any(value == one and type(value) is type(one) for one in allowed):
            self.refuse(f"has {option}={_shown(value)}; fastlstm serves {' and '.join(map(repr, allowed))}{hint}")
        return value

    def dtype(self) -> str:
        """fastlstm's name of the dtype policy."""
        policy = self.get("dtype", "float32")
        if isinstance(policy, dict):
            inner = policy.get("config")
            policy = inner.get("name") if policy.get("class_name") == "DTypePolicy" and isinstance(inner, dict) else policy
        for own, name in DTYPES.items():
            if policy == name:
                return own
        self.refuse(f"has dtype={_shown(policy)}; fastlstm serves {', '.join(map(repr, DTYPES.values()))}")

    def arrays(self, read: Read, inner: str, *shapes: tuple[int | None, ...]) -> list[np.ndarray]:
        """The layer's variables, whose shapes must be these; None is any size."""
        return check_shapes(f"layer {self.name!r} ({self.kind})", read(self.name, inner), *shapes)


def check_shapes(whose: str, found: list[np.ndarray], *shapes: tuple[int | None, ...]) -> list[np.ndarray]:
    """`found`, whose shapes must be `shapes`; None is any size."""
    fits = len(found) == len(shapes) and all(
        array.ndim == len(shape) and array.size and all(w in (None, n) for w, n in zip(shape, array.shape, strict=True))
        for array, shape in zip(found, shapes, strict=True)
    )
    if not fits:
        wanted = [["any" if n is None else n for n in shape] for shape in shapes]
        raise ValueError(f"{whose} has variables of shapes {[list(a.shape) for a in found]}; expected {wanted}")
    return found


def records(config: dict[str, Any], read: Read, notes: list[str]) -> list[Record]:
    """A layer's or a model's configuration as records; `notes` gets what acts in training only.

    Raises
    ------
    ValueError
        For anything that fastlstm does not do, by name, and for a configuration that is none.
    """
    whole = Fields(config)
    found: list[Record] = []
    for layer in layers(config) if whole.kind in MODELS else [config]:
        fields = Fields(layer)
        notes += _training(fields, fields.name)
        found += _record(fields, read, notes)
    if not found:
        whole.refuse("has no layers")
    return found


def _training(f: Fields, name: str) -> list[str]:
    """What of a layer acts in training only and has no place in fastlstm."""
    idle = [f"layer {name!r} ({f.kind})"] if f.kind in _IDLE else []
    return idle + [f"{option} of layer {name!r}" for option in _TRAINING if f.get(option) not in (None, 0)]


def layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The configurations of a Sequential's or Functional's layers, which must be a chain."""
    whole = Fields(config)
    found = whole.get("layers")
    if whole.kind not in MODELS:
        whole.refuse("is no Sequential or Functional model; what another does cannot be seen: convert its layers")
    if not isinstance(found, list) or not all(isinstance(layer, dict) for layer in found):
        whole.refuse("has no list of layers")
    if whole.kind != "Sequential":
        _chain(whole, found)
    return found


def _chain(whole: Fields, found: Sequence[dict[str, Any]]) -> None:
    """Check that each layer of a Functional model reads the one before it and nothing else."""
    before = ""
    for layer in found:
        fields = Fields(layer)
        nodes = layer.get("inbound_nodes")
        if fields.kind == "InputLayer":
            if before or nodes:
                fields.refuse("is a second input; expected a chain of layers")
        else:
            if not isinstance(nodes, list) or len(nodes) != 1 or not isinstance(nodes[0], dict):
                fields.refuse("is not called exactly once; expected a chain of layers")
            arguments, options = nodes[0].get("args"), nodes[0].get("kwargs")
            if not isinstance(arguments, list) or not arguments or not isinstance(options, dict):
                fields.refuse("is called in a way that cannot be read")
            if _tensor(arguments[0]) != [before, 0, 0]:
                fields.refuse(f"does not read {before!r}; expected a chain of layers")
            for value in [*arguments[1:], *options.values()]:
                if value not in (None, False):
                    fields.refuse(f"is called with {_shown(value)} beside its input; expected the input alone")
        before = fields.name
    ends = [_flat(whole.get(side)) for side in ("input_layers", "output_layers")]
    if not found or ends != [[Fields(found[0]).name, 0, 0], [before, 0, 0]]:
        whole.refuse("has other inputs and outputs than its first and last layer's; expected a chain of layers")


def _tensor(value: Any) -> Any:
    """[layer, node, index] that a tensor in a call comes from."""
    inner = value.get("config") if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__" else None
    return inner.get("keras_history") if isinstance(inner, dict) else None


def _flat(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _record(f: Fields, read: Read, notes: list[str]) -> list[Record]:
    """The records of one layer."""
    if f.kind == "InputLayer":
        f.only("sparse", False)
        f.only("ragged", False)
        return []
    if f.kind in CELLS:
        options, units = _recurrent(f, backward=False)
        return [Record(f.kind, f.name, f.dtype(), options, [_cell(f, f.kind, read, "cell", options, units)])]
    if f.kind == "Bidirectional":
        return [_bidirectional(f, read, notes)]
    if f.kind == "TimeDistributed":
        inner = Fields(f.get("layer"))
        if inner.kind != "Dense":
            f.refuse(f"wraps {inner.kind}; fastlstm serves it around Dense only")
        notes += _training(inner, f.name)
        return _dense(f, inner, read, "layer")
    if f.kind == "Dense":
        return _dense(f, f, read, "")
    if f.kind == "Embedding":
        f.only("mask_zero", False, hint=": pass lengths to the layer instead")
        sizes = f.size("input_dim"), f.size("output_dim")
        return [Record(f.kind, f.name, f.dtype(), {}, [f.arrays(read, "", sizes)])]
    if f.kind in _PLAIN:
        return [Record(kind, f.name, f.dtype(), options) for kind, options in _PLAIN[f.kind](f, read)]
    if f.kind in _IDLE:
        return []
    f.refuse(f"is not served; expected a chain of {', '.join(PLACES)}")


def _recurrent(f: Fields, backward: bool) -> tuple[dict[str, Any], int]:
    """Options and units of a recurrent layer."""
    f.only("go_backwards", backward, hint=" here: turn the inputs round in time")
    f.only("stateful", False, hint=": pass the state from call to call")
    activation = f.only("activation", "tanh", *(["relu"] if f.kind == "SimpleRNN" else []))
    if f.kind != "SimpleRNN":
        f.only("recurrent_activation", "sigmoid")
    bias, sequences = f.only("use_bias", True, False), f.only("return_sequences", False, True)
    reset_after = f.kind == "GRU" and f.only("reset_after", True, False)
    return {"bias": bias, "relu": activation == "relu", "reset_after": reset_after, "sequences": sequences}, f.size("units")


def _cell(f: Fields, kind: str, read: Read, inner: str, options: dict[str, Any], units: int) -> list[np.ndarray]:
    """kernel, recurrent_kernel and bias."""
    gates = GATES[kind] * units
    bias = [(2, gates) if options["reset_after"] else (gates,)] if options["bias"] else []
    return f.arrays(read, inner, (None, gates), (units, gates), *bias)


def _bidirectional(f: Fields, read: Read, notes: list[str]) -> Record:
    f.only("merge_mode", "concat")
    forward = Fields(f.get("layer"))
    backward = Fields(f.get("backward_layer") or {**forward.layer, "config": {**forward.config, "go_backwards": True}})
    if forward.kind not in CELLS or backward.kind != forward.kind:
        f.refuse(f"wraps {forward.kind} and {backward.kind}; fastlstm serves one of {', '.join(CELLS)}")
    ways = [_recurrent(one, one is backward) for one in (forward, backward)]
    dtypes = {one.dtype() for one in (f, forward, backward)}
    if ways[0] != ways[1] or len(dtypes) != 1:
        f.refuse("has two directions of different options; fastlstm serves equal ones")
    notes += _training(forward, f.name)
    options, units = ways[0]
    arrays = [_cell(f, forward.kind, read, f"{way}_layer/cell", options, units) for way in ("forward", "backward")]
    if arrays[0][0].shape != arrays[1][0].shape:
        f.refuse(f"has kernels of shapes {arrays[0][0].shape} and {arrays[1][0].shape}; expected equal ones")
    return Record(forward.kind, f.name, dtypes.pop(), options, arrays)


def _dense(f: Fields, inner: Fields, read: Read, path: str) -> list[Record]:
    """A Dense layer, and its activation as a layer of its own."""
    units, bias = inner.size("units"), inner.only("use_bias", True, False)
    arrays = f.arrays(read, path, (None, units), *([(units,)] if bias else []))
    found = [Record("Dense", f.name, inner.dtype(), {}, [arrays])]
    activation = inner.only("activation", "linear", *ACTIVATIONS)
    if activation != "linear":
        found.append(Record("Activation", f.name, inner.dtype(), {"activation": activation}))
    return found


Plain = list[tuple[str, dict[str, Any]]]


def _activation(f: Fields, read: Read) -> Plain:
    activation = f.only("activation", "linear", *ACTIVATIONS)
    return [] if activation == "linear" else [("Activation", {"activation": activation})]


def _softmax(f: Fields, read: Read) -> Plain:
    f.only("axis", -1)
    return [("Activation", {"activation": "softmax"})]


def _dropout(f: Fields, read: Read) -> Plain:
    f.only("noise_shape", None)
    rate = f.get("rate", 0.5)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        f.refuse(f"has rate={_shown(rate)}; expected 0 to 1")
    return [("Dropout", {"rate": float(rate)})] if rate else []


def _normalization(f: Fields, read: Read) -> Plain:
    f.only("invert", False)
    if f.get("axis", -1) not in (-1, 2, [-1], [2]):
        f.refuse(f"has axis={_shown(f.get('axis'))}; fastlstm serves -1, the features")
    if f.get("mean") is None:
        mean, variance, _ = f.arrays(read, "", (None,), (None,), ())
    else:
        mean, variance = _numbers(f, "mean"), _numbers(f, "variance")
    # Keras divides by this; its epsilon is 1e-7 unless set otherwise, for a whole process.
    return [("Normalization", {"mean": np.float64(mean), "std": np.maximum(np.sqrt(np.float64(variance)), 1e-7)})]


def _rescaling(f: Fields, read: Read) -> Plain:
    scale, offset = _numbers(f, "scale"), _numbers(f, "offset")
    if not (scale > 0).all():
        f.refuse("has scale that is not positive; fastlstm serves it as standard deviations")
    return [("Rescaling", {"scale": scale, "offset": offset})]


def _reshape(f: Fields, read: Read) -> Plain:
    shape = f.get("target_shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
        f.refuse(f"has target_shape={_shown(shape)}; fastlstm serves (horizon, outputs)")
    return [("Reshape", {"shape": tuple(shape)})]


def _numbers(f: Fields, option: str) -> np.ndarray:
    """A number or a flat list of numbers, float64."""
    value = f.get(option, 0.0)
    if isinstance(value, dict):  # an array, as Keras writes it
        inner = value.get("config")
        value = inner.get("value") if value.get("class_name") == "__numpy__" and isinstance(inner, dict) else value
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in listed):
        f.refuse(f"has {option}={_shown(value)}; expected numbers")
    return np.array(listed, np.float64)


_PLAIN: dict[str, Callable[[Fields, Read], Plain]] = {
    "Activation": _activation,
    "Softmax": _softmax,
    "Dropout": _dropout,
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
}


def _shown(value: Any) -> str:
    """A value in a message, cut short."""
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
