"""Panels: series of unequal lengths with missing values as one padded array, and those values filled in.

Knows arrays and nothing of networks or estimators; reads tables, 3-D arrays and lists of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Panel:
    """N series of F variables, padded at the end to the longest.

    Attributes
    ----------
    values : ndarray [N, T, F] of float64
        NaN where a value is missing, and in the padding.
    starts, ends : ndarray [N] of int64
        Of each series: its first step with an observed value, and the step after its last one.
    flat : bool
        Series came as rows of numbers, without an axis of variables.
    """

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    flat: bool

    def __len__(self) -> int:
        return len(self.values)

    @property
    def variables(self) -> int:
        """Number of variables F."""
        return int(self.values.shape[2])

    @property
    def longest(self) -> int:
        """Steps of the longest series."""
        return int(self.ends.max())


def is_panel(X: Any) -> bool:
    """Whether X is 3-D or a list of series, rather than a table that scikit-learn itself would read."""
    if isinstance(X, np.ndarray) and X.dtype.kind == "O" and X.ndim == 1:
        X = list(X)
    if isinstance(X, list | tuple):
        shapes = [np.shape(series) if hasattr(series, "ndim") else _nested(series) for series in X]
        arrays = any(getattr(series, "ndim", 0) > 0 for series in X)
        return bool(shapes) and all(shapes) and (arrays or len(set(shapes)) > 1 or len(shapes[0]) > 1)
    return getattr(X, "ndim", 2) == 3


def _nested(series: Any) -> tuple[int, ...]:
    """Lengths along the first elements of nested lists; () for a number."""
    if not isinstance(series, list | tuple):
        return ()
    return (len(series), *(_nested(series[0]) if series else ()))


def panel_of_table(table: np.ndarray) -> Panel:
    """A panel of [N, T], or [N, T, F]: steps at a row's end without any observed value are padding."""
    values = np.asarray(table, np.float64)
    flat = values.ndim == 2
    values = values[:, :, None] if flat else values
    backwards = np.logical_not(np.isnan(values[:, ::-1]).all(axis=2))
    return _panel(values, values.shape[1] - backwards.argmax(axis=1), flat)


def panel_of_series(X: Any, name: str = "X") -> Panel:
    """A panel of a 3-D array, padded at the end with NaN, or of a list of [T] or [T, F] arrays, each as long as it is.

    Raises
    ------
    TypeError, ValueError
        Naming the series that is not real numbers, is empty, infinite or wholly missing, or has another width.
    """
    if not isinstance(X, list | tuple) and np.ndim(X) == 3:
        return panel_of_table(_real(name, np.asarray(X), 3))
    series = [_real(f"{name}[{n}]", np.asarray(one), 0) for n, one in enumerate(X)]
    flat = series[0].ndim == 1
    series = [one[:, None] if one.ndim == 1 else one for one in series]
    widths = {one.shape[1] for one in series}
    if len(widths) > 1:
        raise ValueError(f"{name} has series of {', '.join(map(str, sorted(widths)))} variables; expected all of one width")
    ends = np.array([len(one) for one in series])
    values = np.full((len(series), ends.max(), widths.pop()), np.nan)
    for row, one in zip(values, series, strict=True):
        row[: len(one)] = one
    return _panel(values, ends, flat, name)


def _real(name: str, found: np.ndarray, axes: int) -> np.ndarray:
    """float64 of numbers without infinities; `axes` 0: one or two of them."""
    if found.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {found.dtype}; expected real numbers")
    if found.ndim not in ((1, 2) if axes == 0 else (axes,)) or 0 in found.shape:
        wanted = "[T] or [T, F]" if axes == 0 else "[N, T, F]"
        raise ValueError(f"{name} has shape {list(found.shape)}; expected {wanted} without a zero")
    if np.isinf(found).any():
        raise ValueError(f"{name} contains infinity; expected finite numbers, or NaN where a value is missing")
    return found.astype(np.float64)


def _panel(values: np.ndarray, ends: np.ndarray, flat: bool, name: str = "X") -> Panel:
    observed = ~np.isnan(values).all(axis=2)
    empty = np.flatnonzero(~observed.any(axis=1))
    if len(empty):
        raise ValueError(f"{name} has no observed value in series {empty[0]}; expected at least one in each")
    return Panel(values, observed.argmax(axis=1).astype(np.int64), ends.astype(np.int64), flat)


def filled(panel: Panel, season: int) -> tuple[np.ndarray, np.ndarray]:
    """Values with what is missing filled from the past, and the steps since each was observed.

    A missing value becomes the one a season before, if that is known, else the last known one.

    Returns
    -------
    values : ndarray [N, T, F]
        NaN only where nothing has been observed yet.
    gaps : ndarray [N, T, F]
        0 where the value is observed, else the steps since it last was, or since the beginning.
    """
    values, gaps = panel.values.copy(), np.zeros(panel.values.shape)
    missing = np.isnan(values)
    for t in np.flatnonzero(missing.any(axis=(0, 2))):
        before = values[:, t - 1] if t else np.full(values[:, 0].shape, np.nan)
        source = values[:, t - season] if t >= season else before
        values[:, t] = np.where(missing[:, t], np.where(np.isnan(source), before, source), values[:, t])
        gaps[:, t] = np.where(missing[:, t], (gaps[:, t - 1] if t else 0) + 1, 0)
    return values, gaps


@dataclass(frozen=True)
class Moments:
    """Centre and scale of each variable, [F] each: what one unit of the network's numbers is."""

    center: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Mean and standard deviation over all axes but the last, without NaN; 0 and 1 where nothing is left or varies."""
        rows = values.reshape(math.prod(values.shape[:-1]), values.shape[-1])
        known = ~np.isnan(rows)
        count = np.maximum(1, known.sum(axis=0))
        center = np.where(known, rows, 0).sum(axis=0) / count
        scale = np.sqrt((np.where(known, rows - center, 0) ** 2).sum(axis=0) / count)
        return cls(center, np.where(scale > 1e-12 * np.abs(center), scale, 1.0))


def covariate_array(name: str, covariates: Any, needed: Sequence[int] | np.ndarray, width: int | None) -> np.ndarray:
    """Covariates as one array [N, T, C], NaN beyond what a series needs.

    Parameters
    ----------
    covariates : array [N, T], [N, T, C] or list of [T] or [T, C] arrays
    needed : sequence of int
        Steps that each series must have covariates for.
    width : int, optional
        The number C that is expected.

    Raises
    ------
    TypeError, ValueError
        For other numbers of series, steps or covariates, and for values that are missing.
    """
    listed = isinstance(covariates, list | tuple)
    found = [np.asarray(one) for one in covariates] if listed else np.asarray(covariates)
    if len(found) != len(needed):
        raise ValueError(f"{name} has {len(found)} series; expected {len(needed)}, one for each of X")
    series = [_real(f"{name}[{n}]", one, 0) for n, one in enumerate(found)]
    series = [one[:, None] if one.ndim == 1 else one for one in series]
    width = series[0].shape[1] if width is None else width
    array = np.full((len(series), max(needed), width), np.nan)
    for n, (one, steps) in enumerate(zip(series, needed, strict=True)):
        if one.shape[1] != width or len(one) < steps:
            wanted = f"at least {steps} steps (those of the series and of what is forecast) of {width}"
            raise ValueError(f"{name}[{n}] has shape {list(one.shape)}; expected {wanted}")
        if np.isnan(one[:steps]).any():
            raise ValueError(f"{name}[{n}] contains NaN; expected known values for each step")
        array[n, :steps] = one[:steps]
    return array
