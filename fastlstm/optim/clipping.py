"""Norms of gradients, and clipping by norm and by value. Knows arrays by name and nothing of optimizers or models."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..kernels.operations import ClipValue, Scale
from ..runtime import check, sums
from ..runtime.engine import serving
from ..runtime.params import Gradients
from ..runtime.program import at_once
from .schedules import real


def grad_norm(grads: Mapping[str, np.ndarray]) -> float:
    """The Euclidean norm of all gradients together, summed in float64; infinite or NaN if one of them is.

    Parameters
    ----------
    grads : Gradients or mapping of str to ndarray
        float32 or float64 arrays.
    """
    if isinstance(grads, Gradients):
        return math.sqrt(sums.squares(grads.flat))
    return math.sqrt(sum(sums.squares(check.floats(label("grads", name), array)) for name, array in grads.items()))


def clip_grad_norm(grads: Mapping[str, np.ndarray], max_norm: float) -> float:
    """Scale all gradients in place so that their norm together is at most `max_norm`.

    Where an optimizer step follows, ``optimizer.step(..., scale=min(1.0, max_norm / norm))`` with `grad_norm` saves a pass.

    Parameters
    ----------
    grads : Gradients or mapping of str to ndarray
        Writable C-contiguous float32 or float64 arrays that share no memory.
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
    arrays = _arrays(grads)
    norm = math.sqrt(sum(sums.squares(array) for array in arrays))
    factor = clip_scale(norm, limit)
    if math.isfinite(norm) and factor < 1.0:
        for array in arrays:
            _in_place(Scale, array, factor)
    return norm


def clip_scale(norm: float, max_norm: float) -> float:
    """The factor that brings gradients of a norm down to `max_norm`, at most 1: as torch.nn.utils.clip_grad_norm_ has it."""
    return min(1.0, max_norm / (norm + 1e-6))


def clip_grad_value(grads: Mapping[str, np.ndarray], max_value: float) -> None:
    """Bring every element of the gradients into -max_value..max_value, in place; NaN stays.

    Parameters
    ----------
    grads : Gradients or mapping of str to ndarray
        Writable C-contiguous float32 or float64 arrays that share no memory.
    max_value : float
        Above 0.
    """
    limit = real("max_value", max_value, 0.0, above=True)
    for array in _arrays(grads):
        _in_place(ClipValue, array, limit)


def _in_place(operation: type[Scale | ClipValue], array: np.ndarray, number: float) -> None:
    hyper = np.full(1, number, array.dtype)
    with at_once():
        serving(array).run(operation(size=array.size, values=array, hyper=hyper), work=array.size)


def _arrays(grads: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Gradients that are to be changed in place."""
    if isinstance(grads, Gradients):
        return [grads.flat]
    named = {label("grads", name): array for name, array in grads.items()}
    for name, array in named.items():
        check.buffer(name, array)
    check.apart(named, {})
    return list(named.values())


def label(mapping: str, name: str) -> str:
    """How an array of a mapping is named in an error."""
    return f"{mapping}[{name!r}]" if name else mapping  # without a name: a model's flat buffer


def described(array: np.ndarray) -> str:
    """Dtype and shape, for an error."""
    return f"{array.dtype} {list(array.shape)}"
