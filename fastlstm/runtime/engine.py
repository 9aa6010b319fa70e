"""(device, dtype) -> the engine that runs operations there: what layers and models ask of a device.

Upper layers run the same code on every device. What differs between devices: where arrays lie, how rows are padded, and how a
recorded program runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..shape import DTYPES
from . import cpu


class Engine(Protocol):
    """Runs the operations of kernels/operations.py in one dtype on one device.

    Attributes
    ----------
    dtype, storage : str
        The dtype that users name, and that of parameters, states and all arrays that users see.
    itemsize : int
        Bytes of an element of storage.
    narrow : bool
        Whether products read words of 16 bits in place of the elements themselves.
    lanes : int
        Elements of a vector, to which rows are padded.
    whole : bool
        Whether a recurrence takes the whole sequence at once, and not in chunks that stay in cache.
    kind : str
        What packed weights and buffers depend on.
    """

    dtype: str
    storage: str
    itemsize: int
    narrow: bool
    whole: bool

    @property
    def kind(self) -> str:
        """What packed weights and buffers depend on."""

    @property
    def lanes(self) -> int:
        """Elements of a vector."""

    def padded(self, size: int) -> int:
        """Return `size` rounded up to whole vectors."""

    def depth(self, size: int) -> int:
        """Return how many words a product over `size` elements reads of a row."""

    def row(self, size: int) -> int:
        """Return how many elements of storage a row of `size` elements takes in the form that products read."""

    def stride(self, size: int) -> int:
        """Return the distance in elements from one row of `size` elements, whole vectors, to the next."""

    def empty(self, *shape: int) -> np.ndarray:
        """Return an uninitialised array."""

    def zeros(self, *shape: int) -> np.ndarray:
        """Return an array of zeros."""

    def buffer(self, size: int, dtype: str) -> np.ndarray:
        """Return a one-dimensional array of zeros for parameters."""

    @property
    def new(self) -> Callable[[tuple[int, ...]], Any]:
        """Makes an uninitialised array of a shape for a caller."""

    def located(self, array: np.ndarray) -> np.ndarray:
        """Return a NumPy array where this engine's arrays lie."""

    def take(self, value: Any) -> np.ndarray:
        """Return an argument as an array where this engine reads it."""

    def program(self, *alive: Any) -> Any:
        """Return a program to record into."""

    def meeting(self, ws: Any) -> Any:
        """Return the address of what threads or blocks meet at."""

    def overlaps(self, cell: str, backward: bool, hidden: int, batch: int, steps: int) -> bool:
        """Return whether the steps of two layers are better done at once, as a `Wave`."""

    @property
    def queue(self) -> Callable[[], Any]:
        """Gives what new work waits in behind earlier work."""

    def mark(self) -> Any:
        """Return what others can wait for: the end of the work so far, or None where calls return when it is done."""

    def prepare(self, *records: type) -> None:
        """Compile the kernels of operations ahead of use."""

    def run(self, record: Any, *, work: int = ..., shared_by: Any = None, meets: bool = False) -> None:
        """Run an operation, or record it."""


def engine(device: str, dtype: str) -> Engine:
    """Return the engine for a device and dtype.

    Parameters
    ----------
    device : str
        "cpu", "cuda" or "cuda:N".
    dtype : str
        As layers take it.

    Raises
    ------
    ValueError
        For a device or dtype that there is none for.
    kernels.device.cuda.Unavailable
        Where there is no such device.
    """
    if device != "cpu":
        if not isinstance(device, str):
            raise TypeError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:N'")
        from . import cuda  # which most never need

        return cuda.engine(device, dtype)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(map(repr, DTYPES))}")
    return cpu.shared(dtype)


def serving(array: Any) -> Engine:
    """Return the engine that works on an array of float32 or float64, where it lies."""
    if isinstance(array, np.ndarray):
        return engine("cpu", array.dtype.name)
    return engine(f"cuda:{array.device.id}", array.dtype.name)
