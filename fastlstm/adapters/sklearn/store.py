"""What a fitted series estimator is made of, as arrays and JSON and back: for files, and for pickles of networks.

Reading makes nothing but numbers, text and the few kinds of objects named here; it evaluates nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ...files import schema
from ...files.records import COUNT, NETWORKS, OPTIMIZERS, RANDOM_STATE, check_network
from ...models.series import SequenceClassifier
from ...optim import optimizers
from ...runtime import check
from ...training.checkpoint import plain
from .network import StepNetwork
from .panel import Moments
from .windows import Frame

Arrays = dict[str, np.ndarray]
_MADE = {"StepNetwork": StepNetwork, "SequenceClassifier": SequenceClassifier}

# Records of attributes, by what they are made of. A window of more steps would take a machine's memory at the first prediction.
STEPS = schema.integer(1, 10**6)


def _kind(kind: str, **fields: schema.Check) -> schema.Check:
    return schema.table({"kind": schema.choice(kind), **fields})


def plain_of(inner: schema.Check) -> schema.Check:
    """The record of a number, flag or text."""
    return _kind("plain", value=inner)


ARRAY, TEXTS = _kind("array"), _kind("text", dtype=schema.choice("U", "O"), values=schema.listed(schema.text))
MOMENTS = _kind("Moments", parts=schema.table({"center": ARRAY, "scale": ARRAY}))
FRAME = _kind(
    "Frame",
    parts=schema.table(
        {
            "window": plain_of(STEPS),
            "horizon": plain_of(STEPS),
            "naive": plain_of(schema.flag),
            "inputs": MOMENTS,
            "targets": MOMENTS,
            "covariates": MOMENTS,
        }
    ),
)
OPTIMIZER = _kind("optimizer", config=schema.tagged(OPTIMIZERS), steps=COUNT)
STEP_NETWORK, CLASSIFIER = (
    _kind(kind, config=schema.tagged({kind: NETWORKS[kind]}), random_state=RANDOM_STATE) for kind in _MADE
)


def array_or_texts(place: str, value: Any) -> None:
    """The record of an array of numbers or of text."""
    schema.mapping(place, value)
    (TEXTS if value.get("kind") == "text" else ARRAY)(place, value)


def packed(value: Any) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and a JSON record of one attribute.

    Raises
    ------
    TypeError
        For what is none of the kinds that a file can hold.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return {"": value}, {"kind": "array"}
    if isinstance(value, np.ndarray) and all(isinstance(item, str) for item in value.ravel()):
        return {}, {"kind": "text", "dtype": value.dtype.kind, "values": value.tolist()}
    if isinstance(value, Moments | Frame):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return _joined(parts, {"kind": type(value).__name__})
    if isinstance(value, StepNetwork | SequenceClassifier):
        record = {"kind": type(value).__name__, "config": value.config, "random_state": value.random_state}
        return value.state_dict(), record
    if isinstance(value, optimizers.Optimizer):
        return value.state_arrays(), {"kind": "optimizer", "config": plain(value.config), "steps": value.steps}
    if value is None or isinstance(value, bool | int | float | str | np.number):
        return {}, {"kind": "plain", "value": plain(value)}
    raise TypeError(f"value is {value!r} ({type(value).__name__}); a file holds numbers, text, arrays and networks")


def unpacked(arrays: Arrays, record: Mapping[str, Any], place: str = "record") -> Any:
    """The attribute that `packed` gave, of a record that has been checked.

    Raises
    ------
    ValueError
        If the record does not fit the arrays.
    """
    kind = record["kind"]
    if kind in _MADE:
        check_network(f"{place}.config", record["config"], arrays)
        with check.recorded():
            network = _MADE[kind](**{name: value for name, value in record["config"].items() if name != "type"})
        network.load_state_dict(arrays)
        network.random_state = record["random_state"]
        return network
    if kind == "optimizer":
        optimizer = optimizers.from_config(record["config"])
        optimizer.load_state_arrays(arrays)
        optimizer.steps = record["steps"]
        return optimizer
    if kind in ("Moments", "Frame"):
        return {"Moments": Moments, "Frame": Frame}[kind](**unpack_all(arrays, record, place))
    wanted = {""} if kind == "array" else set()
    if set(arrays) != wanted:
        raise ValueError(f"{place} has {len(arrays)} arrays; expected {len(wanted)} for a value of kind {kind!r}")
    if kind == "array":
        return arrays[""]
    if kind == "text":
        return np.array(record["values"], dtype={"U": np.str_, "O": object}[record["dtype"]])
    return record["value"]


def pack_all(values: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and a JSON record of attributes by name.

    Raises
    ------
    TypeError
        Naming the attribute that a file cannot hold.
    """
    return _joined(values, {})


def unpack_all(arrays: Arrays, record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The attributes that `pack_all` gave, of a record that has been checked.

    Raises
    ------
    ValueError
        If the record does not fit the arrays.
    """
    own: dict[str, Arrays] = {name: {} for name in record["parts"]}
    for key, array in arrays.items():
        name, _, inner = key.partition("/")
        if name not in own:
            raise ValueError(f"array {key!r} is unknown; expected those of {', '.join(own)}")
        own[name][inner] = array
    return {name: unpacked(own[name], part, f"{place}.{name}") for name, part in record["parts"].items()}


def _joined(values: Mapping[str, Any], record: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Several values as one; the names of their arrays begin with the value's."""
    arrays: Arrays = {}
    parts: dict[str, Any] = {}
    for name, value in values.items():
        try:
            found, parts[name] = packed(value)
        except TypeError as error:
            raise TypeError(f"{name} cannot be saved: {error}") from None
        arrays |= {f"{name}/{key}": array for key, array in found.items()}
    return arrays, {**record, "parts": parts}
