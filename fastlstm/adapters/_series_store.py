"""What a fitted series estimator is made of, as arrays and JSON and back: for files, and for pickles of networks.

Reading makes nothing but numbers, text and the few kinds of objects named here; it evaluates nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from .. import optim
from ..checkpoint import CheckpointError, plain
from ..series import SequenceClassifier
from ._series_network import StepNetwork
from ._series_panel import Moments
from ._series_windows import Frame

Arrays = dict[str, np.ndarray]
NETWORKS = {"StepNetwork": StepNetwork, "SequenceClassifier": SequenceClassifier}


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
    if isinstance(value, optim.Optimizer):
        return value.state_arrays(), {"kind": "optimizer", "config": plain(value.config), "steps": value.steps}
    if value is None or isinstance(value, bool | int | float | str | np.number):
        return {}, {"kind": "plain", "value": plain(value)}
    raise TypeError(f"value is {value!r} ({type(value).__name__}); a file holds numbers, text, arrays and networks")


def unpacked(arrays: Arrays, record: Mapping[str, Any]) -> Any:
    """The attribute that `packed` gave.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the record does not fit the arrays.
    """
    kind = record["kind"]
    if kind == "array":
        return arrays[""]
    if kind == "text":
        return np.array([str(item) for item in record["values"]], dtype={"U": np.str_, "O": object}[record["dtype"]])
    if kind == "Moments":
        return Moments(**_parted(arrays, record))
    if kind == "Frame":
        return Frame(**_parted(arrays, record))
    if kind in NETWORKS:
        config = {name: value for name, value in record["config"].items() if name != "type"}
        _check_sizes(config, arrays)
        network = NETWORKS[kind](**config)
        network.load_state_dict(arrays)
        network.random_state = record["random_state"]
        return network
    if kind == "optimizer":
        optimizer = optim.from_config(record["config"])
        optimizer.load_state_arrays(arrays)
        optimizer.steps = int(record["steps"])
        return optimizer
    if kind == "plain" and isinstance(record["value"], bool | int | float | str | None):
        return record["value"]
    raise ValueError(f"record has kind {kind!r} and value {record.get('value')!r}; expected one that this version writes")


def pack_all(values: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and a JSON record of attributes by name.

    Raises
    ------
    TypeError
        Naming the attribute that a file cannot hold.
    """
    return _joined(values, {})


def unpack_all(arrays: Arrays, record: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that `pack_all` gave.

    Raises
    ------
    fastlstm.CheckpointError
        If the record and the arrays do not fit each other, or are of no known kind.
    """
    try:
        return _parted(arrays, record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the file's record does not fit its arrays ({type(error).__name__}: {error})") from None


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


def _parted(arrays: Arrays, record: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, part in record["parts"].items():
        prefix = f"{name}/"
        own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        found[name] = unpacked(own, part)
    return found


def _check_sizes(config: Mapping[str, Any], arrays: Arrays) -> None:
    """A network is as large as its arrays: a record alone must not make it claim memory."""
    layers = sum(name.startswith("rnn.weight_hh_l") and not name.endswith("_reverse") for name in arrays)
    found = {
        "input_size": arrays["rnn.weight_ih_l0"].shape[-1], "hidden_size": arrays["rnn.weight_hh_l0"].shape[-1],
        "num_layers": layers,
        "num_classes" if "num_classes" in config else "output_size": arrays["head.weight"].shape[0],
    }  # fmt: skip
    for name, size in found.items():
        if config[name] != size:
            raise ValueError(f"config has {name} {config[name]!r}; the arrays have {size}")
