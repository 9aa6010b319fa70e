"""Arrays in host memory and on devices: one to the other, and where they lie. Knows NumPy; others by what they offer."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_integer_at = ctypes.c_ssize_t.from_address
_HEAD = object.__basicsize__


def on_device(value: Any) -> bool:
    """Whether a value is an array as CuPy has them: not in host memory, to which `get` copies it."""
    kind = type(value)  # a table of pandas has its columns as attributes, whatever their names
    return kind is not np.ndarray and hasattr(kind, "get") and hasattr(kind, "device")


def as_numpy(value: Any) -> np.ndarray:
    """A NumPy array of what a NumPy, CuPy or torch array holds."""
    if type(value) is np.ndarray:
        return value
    if hasattr(type(value), "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return np.asarray(value.numpy())
    parts = value if isinstance(value, list | tuple) else (value,)
    # A list may be long, and is of few types.
    if any(issubclass(kind, np.ma.MaskedArray) for kind in set(map(type, parts))) and any(map(np.ma.is_masked, parts)):
        raise ValueError("a masked array has masked elements; expected numbers everywhere: fill the gaps, or cut them off")
    return value.get() if on_device(value) else np.asarray(value)


def put(target: Any, value: Any) -> None:
    """Values into an array of their shape; either may be NumPy's or on a device."""
    if isinstance(target, np.ndarray):
        target[...] = as_numpy(value)
    elif isinstance(value, np.ndarray):
        target.set(np.ascontiguousarray(value, target.dtype).reshape(target.shape))
    else:
        target[...] = value


def _told(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _read(array: np.ndarray) -> int:
    return _integer_at(id(array) + _HEAD).value


# Where an array of NumPy's begins. A call of a small layer asks for up to seven, which NumPy takes longer to tell (1.2 us each)
# than the kernels to run; its C interface (PyArrayObject_fields) has the address first behind the object's head (0.2 us).
_probe = np.zeros((3, 2))
host_address = _read if all(_read(one) == _told(one) for one in (_probe, _probe[1:, 1], _probe.view(np.memmap))) else _told


def numbers(values: Mapping[str, Any], names: Iterable[str]) -> list[int]:
    """Return the values of names as a kernel's arguments: an array's address, a number as it is, 0 for None."""
    if host_address is not _read:
        return [_number(values[name]) for name in names]
    return [
        _integer_at(id(value) + _HEAD).value if (value := values[name]).__class__ is np.ndarray else _number(value)
        for name in names
    ]


def _number(value: Any) -> int:
    if value is None:
        return 0
    return host_address(value) if isinstance(value, np.ndarray) else int(value)
