"""One flat buffer for a model's parameters and one for its gradients, with named views; knows nothing of what they mean.

Whoever edits parameters does it through `edit()` (or `bump()`), which counts the version up: packed copies made from an
earlier version are then renewed before use, so that a stale copy is impossible.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from . import check
from .arrays import as_numpy, put
from .locks import Holder

Zeros = Callable[[int, str], Any]  # makes an array of a size and dtype, in host memory or on a device

_serials = itertools.count()


class Store(Holder):
    """The memory itself: parameters and gradients of one dtype, and the version.

    `packing` is held while packed copies of the parameters are made, `adding` while a backward pass adds to the gradients.
    """

    def __init__(self, size: int, dtype: str, zeros: Zeros) -> None:
        super().__init__()
        self.serial = next(_serials)  # unlike an address never another's
        self.params: np.ndarray = zeros(size, dtype)
        self.grads: np.ndarray = zeros(size, dtype)
        self.version = 1
        self.owner: Slots | None = None
        """Whose names cover all of it."""

    @property
    def stamp(self) -> tuple[int, int]:
        """Which memory this is, and its version."""
        return self.serial, self.version

    def make_locks(self) -> None:
        """Two, that may be taken again by the thread that has them."""
        self.packing, self.adding = threading.RLock(), threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("serial", "packing", "adding")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self.serial = next(_serials)
        self.__dict__.update(state)


class _Views(Mapping[str, np.ndarray]):
    """Named views on a contiguous range of a store."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def _buffer(self) -> np.ndarray:
        raise AssertionError("subclasses say which buffer")

    def __getitem__(self, name: str) -> np.ndarray:
        begin, shape = self._slots.places[name]
        view: np.ndarray = self._buffer()[begin : begin + int(np.prod(shape))].reshape(shape)
        return view

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots.places)

    def __len__(self) -> int:
        return len(self._slots.places)

    @property
    def flat(self) -> np.ndarray:
        """All of them as one writable 1-d array (shared memory)."""
        flat: np.ndarray = self._buffer()[self._slots.begin : self._slots.end]
        return flat


class Parameters(_Views):
    """Read-only named views of parameters; `edit()` makes writable ones.

    Examples
    --------
    >>> slots = Slots({"weight": (2, 3), "bias": (2,)})
    >>> with slots.params.edit() as params:
    ...     params["bias"][:] = 1
    >>> slots.params["bias"], slots.params.version
    (array([1., 1.], dtype=float32), 2)
    """

    def _buffer(self) -> np.ndarray:
        return self._slots.store.params

    def __getitem__(self, name: str) -> np.ndarray:
        view = super().__getitem__(name)
        if isinstance(view, np.ndarray):  # arrays on a device have no such lock
            view.flags.writeable = False
        return view

    @property
    def version(self) -> int:
        """Counts every edit of the store that these parameters live in."""
        return self._slots.store.version

    @property
    def stamp(self) -> tuple[int, int]:
        """Equal as long as nobody edits these parameters or moves them."""
        return self._slots.store.stamp

    def bump(self) -> None:
        """Say that `flat` has been written to."""
        self._slots.store.version += 1

    @contextlib.contextmanager
    def edit(self) -> Iterator[dict[str, np.ndarray]]:
        """Views that can be written to inside the block; the version counts up at its end, also after an error."""
        views = {name: _Views.__getitem__(self, name) for name in self}
        try:
            yield views
        finally:
            for view in views.values():
                if isinstance(view, np.ndarray):
                    view.flags.writeable = False  # what is written later would be seen here, and not by the packed weights
            self.bump()


class Gradients(_Views):
    """Writable named views of gradients."""

    def _buffer(self) -> np.ndarray:
        return self._slots.store.grads


class Slots:
    """Where the parameters of one layer or model lie: names and shapes in a store, which several may share.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shape for each name, in the order of the buffer.
    dtype : str
        Of the buffers.
    zeros : callable
        Makes them.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: str = "float32", zeros: Zeros = np.zeros) -> None:
        self.zeros = zeros
        self.shapes = dict(shapes)
        self.size = sum(int(np.prod(shape)) for shape in self.shapes.values())
        self.parts: dict[str, Slots] = {}
        self._place(Store(self.size, dtype, zeros), 0)
        self.store.owner = self
        self.params, self.grads = Parameters(self), Gradients(self)

    def _place(self, store: Store, begin: int) -> None:
        self.store, self.begin, self.end = store, begin, begin + self.size
        self.places: dict[str, tuple[int, tuple[int, ...]]] = {}
        at = begin
        for name, shape in self.shapes.items():
            self.places[name] = (at, shape)
            at += int(np.prod(shape))
        for part in self.parts.values():
            part._place(store, begin)
            begin += part.size

    def _move(self, store: Store, begin: int) -> None:
        store.params[begin : begin + self.size] = self.params.flat
        store.grads[begin : begin + self.size] = self.grads.flat
        self._place(store, begin)

    def copy(self) -> Slots:
        """The same parameters and parts in a buffer of their own; gradients zero."""
        twin = Slots(self.shapes, self.store.params.dtype.name, self.zeros)
        twin.parts = {prefix: part.copy() for prefix, part in self.parts.items()}
        twin._place(twin.store, 0)
        twin.params.flat[:] = self.params.flat
        return twin

    @classmethod
    def joined(cls, parts: Mapping[str, Slots]) -> Slots:
        """One buffer for all parts, which move into it; names become `part.name` (`name` where the part's is empty).

        Raises
        ------
        ValueError
            For several dtypes, and for a part that comes twice or lies in a joined buffer already.
        """
        for name, part in parts.items():
            if part.store.owner is not part:
                raise ValueError(f"part {name!r} lies in a joined buffer already; join that one, or all parts at once")
            if sum(other is part for other in parts.values()) > 1:
                raise ValueError(f"part {name!r} comes twice; expected different ones")
        dtypes = {part.store.params.dtype.name for part in parts.values()}
        if len(dtypes) != 1:
            raise ValueError(f"parts have dtypes {sorted(dtypes)}; one buffer holds one dtype")
        shapes = {
            f"{prefix}.{name}" if prefix else name: shape
            for prefix, part in parts.items()
            for name, shape in part.shapes.items()
        }
        whole = cls(shapes, dtypes.pop(), next(iter(parts.values())).zeros)
        begin = 0
        for part in parts.values():
            part._move(whole.store, begin)
            begin += part.size
        whole.parts = dict(parts)
        return whole


def load_into(params: Parameters, values: Mapping[str, Any], strict: bool = True) -> None:
    """Copy arrays (NumPy, CuPy or torch) into parameters; all are checked before any is written.

    Raises
    ------
    KeyError
        With `strict`, for missing or unexpected names.
    TypeError
        For what is no array of real numbers.
    ValueError
        For a wrong shape.
    """
    missing, unexpected = [n for n in params if n not in values], [n for n in values if n not in params]
    if strict and (missing or unexpected):
        raise KeyError(f"state_dict does not fit: missing {missing}, unexpected {unexpected}")
    arrays = {name: check.real(name, values[name], take=as_numpy) for name in params if name in values}
    for name, array in arrays.items():
        if array.shape != params[name].shape:
            raise ValueError(f"{name} has shape {array.shape}; expected {params[name].shape}")
        if isinstance(params.flat, np.ndarray) and np.may_share_memory(array, params.flat):
            arrays[name] = array.copy()  # as it is now: it may lie where another one is written to before its turn
    with params.edit() as views:
        for name, array in arrays.items():
            put(views[name], array)
