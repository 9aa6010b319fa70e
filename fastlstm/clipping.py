"""Norms of gradients, and clipping by norm and by value. Knows arrays by name and nothing of optimizers or models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import sums
from .arrays import on_device
from .engine import STORAGE, serving
from .params import Gradients
from .program import at_once
from .schedules import real


def grad_norm(grads: Mapping[str, np.ndarray]) -> float:
    """The Euclidean norm of all gradients together, summed in float64; infinite or NaN if one of them is.

    Parameters
    ----------
    grads : Gradients or mapping of str to ndarray
        C-contiguous float32 or float64 arrays.
    """
    return math.sqrt(sum(sums.squares(array) for array in _arrays(grads)))


def clip_grad_norm(grads: Mapping[str, np.ndarray], max_norm: float) -> float:
    """Scale all gradients in place so that their norm together is at most `max_norm`.

    Where an optimizer step follows, ``optimizer.step(..., scale=min(1.0, max_norm / norm))`` with `grad_norm` saves a pass.

    Parameters
    ----------
    grads : Gradients or mapping of str to ndarray
        Writable C-contiguous float32 or float64 arrays.
    max_norm : float
        Above 0.

    Returns
    -------
    float
        The norm before. If it is not finite the gradients stay as they are, and the step is better left out.

    Examples
    --------
    >>> grads = {"w": np.array([3.0, 4.0])}
    >>> clip_grad_norm(grads, 1.0), grads["w"].round(3)
    (5.0, array([0.6, 0.8]))
    """
    limit = real("max_norm", max_norm, 0.0, above=True)
    arrays = list(_arrays(grads, writable=True))
    norm = math.sqrt(sum(sums.squares(array) for array in arrays))
    factor = clip_scale(norm, limit)
    if math.isfinite(norm) and factor < 1.0:
        for array in arrays:
            _in_place("update.scale", array, factor)
    return norm


def clip_scale(norm: float, max_norm: float) -> float:
    """The factor that brings gradients of a norm down to `max_norm`, at most 1: as torch.nn.utils.clip_grad_norm_ has it."""
    return min(1.0, max_norm / (norm + 1e-6))


def clip_grad_value(grads: Mapping[str, np.ndarray], max_value: float) -> None:
    """Bring every element of the gradients into -max_value..max_value, in place; NaN stays.

    Parameters
    ----------
    grads : Gradients or mapping of str to ndarray
        Writable C-contiguous float32 or float64 arrays.
    max_value : float
        Above 0.
    """
    limit = real("max_value", max_value, 0.0, above=True)
    for array in list(_arrays(grads, writable=True)):
        _in_place("update.clip_value", array, limit)


def _in_place(kernel: str, array: np.ndarray, number: float) -> None:
    hyper = np.full(1, number, array.dtype)
    with at_once():
        serving(array).run(kernel, array.size, array, hyper, work=array.size)


def _arrays(grads: Mapping[str, np.ndarray], writable: bool = False) -> Iterator[np.ndarray]:
    if isinstance(grads, Gradients):
        yield grads.flat
        return
    for name, array in grads.items():
        yield checked_array(label("grads", name), array, writable)


def label(mapping: str, name: str) -> str:
    """How an array of a mapping is named in an error."""
    return f"{mapping}[{name!r}]" if name else mapping  # without a name: a model's flat buffer


def described(array: np.ndarray) -> str:
    """Dtype and shape, for an error."""
    return f"{array.dtype} {list(array.shape)}"


def checked_array(name: str, array: Any, writable: bool = False) -> np.ndarray:
    """The array, which must be what kernels take: float32 or float64, C-contiguous and if need be writable, or on a device."""
    if not isinstance(array, np.ndarray) and not on_device(array):
        raise TypeError(f"{name} is of type {type(array).__name__}; expected a NumPy array")
    if array.dtype.name not in STORAGE or not array.dtype.isnative:
        raise ValueError(f"{name} has dtype {array.dtype}; expected {' or '.join(STORAGE)}")
    locked = isinstance(array, np.ndarray) and writable and not array.flags.writeable
    if not array.flags.c_contiguous or locked:
        raise ValueError(f"{name} is strided or read-only; expected a {'writable ' if writable else ''}C-contiguous array")
    found: np.ndarray = array
    return found
