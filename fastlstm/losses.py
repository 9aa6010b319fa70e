"""Losses and their gradients: softmax cross-entropy, mean squared and mean absolute error. Know arrays, no models."""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernels.operations import SoftmaxCrossEntropy
from .runtime import check, sums
from .runtime.arrays import as_numpy
from .runtime.engine import engine
from .runtime.program import at_once


def softmax_cross_entropy(logits: Any, targets: Any, *, out: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Mean negative log-likelihood of the targets under softmax(logits), in nats, and its gradient.

    Parameters
    ----------
    logits : ndarray [..., V]
        float32 or float64.
    targets : ndarray of int [...]
        Classes, 0 to V-1; -1 leaves the row out of the mean.
    out : ndarray [..., V], optional
        C-contiguous array of the logits' dtype for the gradient; may be `logits` itself, or overlap either argument.

    Returns
    -------
    loss : float
        Mean over the rows that count; 0 where none does.
    dlogits : ndarray [..., V]
        Its gradient: zero in the rows left out.

    Raises
    ------
    TypeError, ValueError
        For dtypes, shapes or targets that do not fit.

    Examples
    --------
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((1, 2)), np.array([1]))
    >>> round(loss, 6), dlogits
    (0.693147, array([[ 0.5, -0.5]]))
    """
    found, classes = check.floats("logits", logits, as_numpy), check.given("targets", targets, as_numpy)
    if classes.dtype.kind not in "iu":
        raise TypeError(f"targets has dtype {classes.dtype}; expected integers")
    if found.ndim == 0 or found.size == 0 or classes.shape != found.shape[:-1]:
        raise ValueError(f"targets has shape {list(classes.shape)} and logits {list(found.shape)}; expected [...] and [..., V]")
    width = found.shape[-1]
    lowest, highest = int(classes.min()), int(classes.max())
    if lowest < -1 or highest >= width:
        raise ValueError(f"targets has values from {lowest} to {highest}; expected 0 to {width - 1}, or -1 to leave a row out")
    ids = check.plain(classes, "int32")
    gradient = _gradient(found, out)
    if np.may_share_memory(gradient, ids):
        ids = ids.copy()
    if gradient is not found:
        np.copyto(gradient, found)
    rows, count = ids.size, int(np.count_nonzero(ids >= 0))
    per_row = np.empty(rows)
    scale = np.full(1, 1.0 / max(1, count), found.dtype)
    with at_once():
        engine("cpu", found.dtype.name).run(
            SoftmaxCrossEntropy(
                rows=rows,
                classes=width,
                logits=gradient,
                row=width,
                targets=ids,
                scale=scale,
                losses=per_row,
                gradient=1,
                correct=None,
            ),
            work=20 * found.size,
        )
    return float(per_row.sum()) / max(1, count), gradient


def mean_squared_error(prediction: Any, target: Any, *, out: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Mean of (prediction - target)**2 over all elements, and its gradient.

    Parameters
    ----------
    prediction : ndarray
        float32 or float64, of any shape.
    target : ndarray
        Real numbers of the same shape.
    out : ndarray, optional
        C-contiguous array of the prediction's shape and dtype for the gradient; may be `prediction` itself.

    Returns
    -------
    loss : float
    dprediction : ndarray

    Examples
    --------
    >>> mean_squared_error(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
    (2.5, array([1., 2.]))
    """
    error = _error(prediction, target, out)
    loss = sums.squares(error) / error.size
    return loss, np.multiply(error, 2.0 / error.size, out=error)


def mean_absolute_error(prediction: Any, target: Any, *, out: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Mean of abs(prediction - target) over all elements, and its gradient: 0 where they are equal.

    Parameters
    ----------
    prediction, target, out
        As for `mean_squared_error`.

    Returns
    -------
    loss : float
    dprediction : ndarray

    Examples
    --------
    >>> mean_absolute_error(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 5.0, 1.0]))
    (1.5, array([ 0.25,  0.  , -0.25,  0.25]))
    """
    error = _error(prediction, target, out)
    loss = sums.magnitudes(error) / error.size
    np.sign(error, out=error)
    return loss, np.multiply(error, 1.0 / error.size, out=error)


def _error(prediction: Any, target: Any, out: np.ndarray | None) -> np.ndarray:
    """prediction - target, in `out` or an array of its own."""
    found, wanted = check.floats("prediction", prediction, as_numpy), check.real("target", target, take=as_numpy)
    if wanted.shape != found.shape or found.size == 0:
        shapes = f"{list(wanted.shape)} and prediction {list(found.shape)}"
        raise ValueError(f"target has shape {shapes}; expected the same, not empty")
    error: np.ndarray = np.subtract(found, wanted, out=_gradient(found, out), casting="same_kind")
    return error


def _gradient(like: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """Where the gradient goes: `out`, which must fit, or a new array."""
    if out is None:
        return np.empty(like.shape, like.dtype)
    check.target("out", out, like, whole=True)
    return out
