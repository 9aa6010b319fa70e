"""What can happen to a file, drawn from a generator: bytes that change, JSON that says something else, arrays of another shape.

Knows bytes, JSON, safetensors and protobuf messages; nothing of what reads them.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fastlstm.training.checkpoint import _DTYPES, _crc32, _record_crc32

NUMBERS = [0, 1, -1, 2, 3, 10**5, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**9, 10**30, -(2**63), 1e308, -1e308, 0.5, 1e-320]
SPECIAL = [float("nan"), float("inf"), -float("inf"), None, True, False, [], {}, [[]], [1, 2], {"a": 1}, "", "x", "a" * 5000]
WORDS = [
    "\ud800",
    "\x00",
    "../../etc/passwd",
    "/dev/zero",
    "LanguageModel",
    "SequenceRegressor",
    "SequenceClassifier",
    "StepNetwork",
    "lstm",
    "gru",
    "rnn",
    "cpu",
    "cuda",
    "cuda:7",
    "float64",
    "bfloat16",
    "float16",
    "tf32",
    "Adam",
    "SGD",
    "RMSprop",
    "Plateau",
    "StepDecay",
    "array",
    "plain",
    "text",
    "Frame",
    "CharTokenizer",
    "WordTokenizer",
    "BPETokenizer",
    "ByteLevel",
    "__class__",
    "relu",
    "GRU",
    "LSTM",
    "Dense",
    "Embedding",
    "Sequential",
]
VALUES = NUMBERS + SPECIAL + WORDS


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some flipped, set, cut off, taken out, put in or copied from elsewhere."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 10])):
        if not found:
            break
        at, end = rng.randrange(len(found)), rng.randint(1, 64)
        match rng.randrange(9):
            case 0 | 1 | 2:
                found[at] ^= 1 << rng.randrange(8)
            case 3:
                found[at] = rng.choice([0, 255, 127, 128])
            case 4:
                del found[at:]
            case 5:
                del found[at : at + end]
            case 6:
                found[at:at] = rng.randbytes(end)
            case 7:
                number = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(found), rng.randrange(2**24)])
                found[at : at + 8] = struct.pack(rng.choice("<>") + "Q", number)
            case 8:
                source = rng.randrange(len(found))
                found[at : at + end] = found[source : source + end]
    return bytes(found)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Containers and keys of all values inside one; of a long list some."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(min(len(value), 6))
    for key in keys:
        yield value, key
        yield from _places(value[key])


def damaged_json(rng: random.Random, value: Any) -> Any:
    """A copy in which some values are gone, others, or stand elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        if not places:
            return value
        where, key = rng.choice(places)
        old = where[key]
        match rng.randrange(8):
            case 0:
                del where[key]
            case 1 if isinstance(where, dict):
                name = rng.choice(["x", "type", "kind", "config", "seed", "device", "__init__"])
                where[name] = copy.deepcopy(rng.choice(VALUES))
            case 2 | 3 if type(old) in (int, float):
                where[key] = rng.choice([old + 1, old - 1, -old, old * 2, old * 1000, old + 10**6, float(old), str(old)])
            case 2 | 3 if isinstance(old, str):
                where[key] = rng.choice([old[:-1], old + old, old.upper(), old + "\0", list(old), old[::-1]])
            case 2 | 3 if isinstance(old, list):
                where[key] = rng.choice([old[:-1], old + old, old[::-1], dict(enumerate(old))])
            case 4:
                other, name = rng.choice(places)
                where[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else None)
            case _:
                where[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def deep_json(rng: random.Random) -> str:
    """Text that nests deeper than anything that is written."""
    count = rng.choice([65, 100, 900, 1500, 10**5])
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
    return opened * count + rng.choice(["", "1" + closed * count])


def damaged_arrays(rng: random.Random, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of which some are gone, of another type, shape or name, or hold what is no number."""
    found = dict(arrays)
    for _ in range(rng.choice([1, 1, 2])):
        if not found:
            break
        name = rng.choice(sorted(found))
        array = found[name]
        match rng.randrange(8):
            case 0:
                del found[name]
            case 1:
                found[name] = array.astype(rng.choice(list(_DTYPES)))
            case 2:
                found[name] = array.reshape(-1)[: max(0, array.size - 1)]
            case 3:
                found[name] = array.reshape(array.shape[::-1])
            case 4:
                found[name] = array.copy()
                if array.size and array.dtype.kind == "f":
                    found[name].reshape(-1)[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, 1e30, -1e38, 0])
            case 5:
                found[name] = np.zeros(rng.choice([(0, *array.shape), (0,), (), (1, *array.shape), (10**9, 0)]), array.dtype)
            case 6:
                names = ["model.x", "state.0", "state.1", "state.7", "optimizer.m", "optimizer.z", f"{name}.", ""]
                found[rng.choice(names)] = array
            case 7:
                found[name] = found[rng.choice(sorted(found))]
    return found


def safetensors(arrays: Mapping[str, np.ndarray], text: str) -> bytes:
    """A safetensors file with a checkpoint's text, as `checkpoint.write_tensors` writes it, without the disk."""
    header: dict[str, Any] = {"__metadata__": {"fastlstm": text}}
    parts, end = [], 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        array = np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape)
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.str], "shape": array.shape, "data_offsets": [start, end]}
        parts.append(array.tobytes())
    line = json.dumps(header).encode()
    line += b" " * (-len(line) % 8)
    return struct.pack("<Q", len(line)) + line + b"".join(parts)


def checkpoint_bytes(arrays: Mapping[str, np.ndarray], record: Any) -> bytes:
    """A checkpoint with these, its checksums made anew."""
    dense = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    known = json.loads(json.dumps(record))
    header = {
        "format": 1,
        "version": "0",
        "crc32": _crc32(dense),
        "record_crc32": _record_crc32(known),
        "record": known,
    }
    return safetensors(dense, json.dumps(header))


def damaged_message(rng: random.Random, message: Any) -> None:
    """Change some fields of a protobuf message in place."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = [(part, field, value) for part in _messages(message) for field, value in part.ListFields()]
        if not places:
            return
        part, field, value = rng.choice(places)
        if field.is_repeated:
            _damage_repeated(rng, field, value)
        elif field.type == field.TYPE_MESSAGE or rng.random() < 0.15:
            part.ClearField(field.name)
        else:
            _set_scalar(rng, part, field)


def _messages(message: Any) -> Iterator[Any]:
    """A message and all inside; of many like ones some."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in list(value)[:12] if field.is_repeated else [value]:
                yield from _messages(inner)


def _scalar(rng: random.Random, field: Any) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        text = rng.choice(["", "x", "zzz", "LSTM", "GRU", "Reshape", "Tile", "Gather", "reverse", "h_0", "out", "a" * 2000])
        return text.encode() if field.type == field.TYPE_BYTES else text
    if field.enum_type is not None:
        return rng.choice([value.number for value in field.enum_type.values])
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), 0.5])
    wide = [-1, 2**40, 2**62] if field.cpp_type == field.CPPTYPE_INT64 else []
    return rng.choice([0, 1, 2, 3, 4, 5, 7, 12, 23, 99, 999, 10**5, 10**9, 2**31 - 1, *wide])


def _set_scalar(rng: random.Random, part: Any, field: Any) -> None:
    old = getattr(part, field.name)
    if isinstance(old, bytes) and old and rng.random() < 0.7:
        setattr(part, field.name, damaged_bytes(rng, old))
    else:
        setattr(part, field.name, _scalar(rng, field))


def _damage_repeated(rng: random.Random, field: Any, values: Any) -> None:
    at = rng.randrange(len(values))
    kind = rng.randrange(3)
    if kind == 0:
        del values[at]
    elif field.type == field.TYPE_MESSAGE:
        values.add().CopyFrom(values[at])
    elif kind == 1:
        values.append(_scalar(rng, field))
    else:
        values[at] = _scalar(rng, field)
