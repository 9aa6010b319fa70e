"""Every check of shapes, types and ranges, and its error text: the argument's name, what came, what was expected."""

from __future__ import annotations

import contextlib
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np

from ..shape import STORAGE, Shape
from .arrays import as_numpy, host_address, on_device

_FLOATS = tuple(map(np.dtype, STORAGE))
_NATIVE = {dtype.name: dtype for dtype in (*_FLOATS, np.dtype("int32"))}


def positive(name: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name} is {number}; expected at least 1")
    return number


def integer(name: str, value: Any) -> int:
    """`value` as an int; booleans are not numbers here."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; expected an integer")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected an integer") from None


def number(name: str, value: Any) -> float:
    """`value` as a float; booleans and text are no numbers here, NaN and infinity are."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected a number")
    try:
        return float(value)
    except OverflowError:  # an int that Python may even refuse to print
        raise ValueError(f"{name} is too large for a float; expected a number below 1.8e308") from None


def probability(name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; expected a number p with 0 <= p <= 1")
    return float(value)


_recorded = ContextVar("recorded", default=False)


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """In the block, arguments come from a record: who loads a file is not warned of what its writer chose."""
    before = _recorded.set(True)
    try:
        yield
    finally:
        _recorded.reset(before)


def dropout(value: Any, num_layers: int) -> float:
    """The dropout between `num_layers` layers as a float in [0, 1]; where there is nothing between them, a warning."""
    found = probability("dropout", value)
    if found and num_layers == 1 and not _recorded.get():
        caller, inside = sys._getframe(1), "fastlstm."
        level = 2
        while caller.f_back is not None and caller.f_globals.get("__name__", "").startswith(inside):
            caller, level = caller.f_back, level + 1
        warnings.warn(
            f"dropout is {found} and num_layers 1: dropout acts between layers only, so it does nothing here", stacklevel=level
        )
    return found


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value`, one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
    return str(value)


def _fits(found: tuple[int, ...], shape: tuple[int | str, ...]) -> bool:
    """Whether sizes are those of `shape`, where text is any."""
    if len(found) != len(shape):
        return False
    for size, wanted in zip(found, shape, strict=True):  # noqa: SIM110, a loop takes half the time of `all`
        if size != wanted and not isinstance(wanted, str):
            return False
    return True


def located(value: Any) -> Any:
    """`value` as an array where it lies."""
    return value if on_device(value) else as_numpy(value)


def given(name: str, value: Any, take: Callable[[Any], Any] = located) -> Any:
    """`value` as an array of NumPy's base class, or on a device; nothing of it is masked. `take` says where it is wanted."""
    if value.__class__ is np.ndarray:
        return value
    if value is None:
        raise TypeError(f"{name} is None; expected an array")
    try:
        return take(value)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name} is of type {type(value).__name__} and no array of numbers can be made of it: {error}") from error


def real(name: str, value: Any, expected: str = "real numbers", take: Callable[[Any], Any] = located) -> Any:
    """`value` as `given`, of real numbers of any type; booleans are no numbers here."""
    found = given(name, value, take)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name} has dtype {found.dtype}; expected {expected}")
    return found


def plain(found: Any, dtype: str) -> Any:
    """What `given` found as kernels read it: of `dtype` in this machine's byte order, C-contiguous and aligned."""
    if isinstance(found, np.ndarray):
        ready = np.asarray(found, dtype, order="C")
        return ready if ready.flags.aligned else ready.copy()
    return found if found.dtype == dtype and found.flags.c_contiguous else found.astype(dtype, order="C")


def array(name: str, value: Any, dtype: str, shape: tuple[int | str, ...], take: Callable[[Any], Any] = located) -> np.ndarray:
    """`value` as kernels read it (converted if need be), whose shape fits.

    Sizes given as text are free and named so in the message.
    """
    if value.__class__ is np.ndarray and value.dtype is _NATIVE.get(dtype):
        flags = value.flags
        usual, found = flags.c_contiguous and flags.aligned, value
    else:
        usual, found = False, real(name, value, dtype, take)
    if not _fits(found.shape, shape):
        raise ValueError(f"{name} has shape {list(found.shape)}; expected [{', '.join(map(str, shape))}]")
    ready: np.ndarray = found if usual else plain(found, dtype)
    return ready


def numbers(name: str, value: Any, dtype: str, shape: tuple[int | str, ...]) -> np.ndarray:
    """As `array`, but real numbers of any dtype stay as they are; `dtype` is what the message expects of others."""
    found = real(name, value, dtype, as_numpy)
    return array(name, found, found.dtype.name, shape)


def floats(name: str, value: Any, take: Callable[[Any], Any] = located) -> Any:
    """`value` as kernels read it, in its own precision, which must be one that they have."""
    if value.__class__ is np.ndarray and value.dtype in _FLOATS:
        flags = value.flags
        if flags.c_contiguous and flags.aligned:
            return value
    found = given(name, value, take)
    if found.dtype.name not in STORAGE:
        raise TypeError(f"{name} has dtype {found.dtype}; expected {' or '.join(STORAGE)}")
    return plain(found, found.dtype.name)


def not_empty(name: str, found: np.ndarray) -> np.ndarray:
    """`found`, which must hold something."""
    if found.size == 0:
        raise ValueError(f"{name} has shape {list(found.shape)}; expected no size to be zero")
    return found


def lengths(value: Any, batch: int, steps: int) -> np.ndarray:
    """Lengths [B] as int64 in 0..steps."""
    found = given("lengths", value, as_numpy)
    if found.dtype.kind not in "iu" or found.shape != (batch,):
        raise ValueError(f"lengths has shape {list(found.shape)} and dtype {found.dtype}; expected integers [{batch}]")
    if found.size and (found.min() < 0 or found.max() > steps):
        raise ValueError(f"lengths has values from {found.min()} to {found.max()}; expected 0 to {steps}")
    return np.array(found, np.int64)  # a copy: a backward pass may come after the caller has changed his


def resets(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Marks as bool of x's first two axes."""
    found: np.ndarray = given("resets", value, as_numpy)
    if found.dtype != np.bool_ or found.shape != shape:
        raise ValueError(f"resets has shape {list(found.shape)} and dtype {found.dtype}; expected bool {list(shape)}")
    return found


def tokens(name: str, value: Any, vocab_size: int, shape: tuple[int | str, ...] = ("T", "B")) -> np.ndarray:
    """Token ids as kernels read them, int32, in 0..vocab_size-1."""
    found = given(name, value, as_numpy)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {found.dtype}; expected integers")
    if not _fits(found.shape, shape):
        raise ValueError(f"{name} has shape {list(found.shape)}; expected [{', '.join(map(str, shape))}]")
    # As found.min() and found.max(), which NumPy has in Python.
    if found.size and (np.minimum.reduce(found, axis=None) < 0 or np.maximum.reduce(found, axis=None) >= vocab_size):
        raise ValueError(f"{name} has values from {found.min()} to {found.max()}; expected 0 to {vocab_size - 1}")
    ids: np.ndarray = plain(found, "int32")
    return ids


def unused(used: bool) -> None:
    """Refuse a second backward pass of one forward pass: the first has overwritten the activations that it needs."""
    if used:
        raise RuntimeError("backprop was called before or closed: its saved activations are used up")


def unedited(before: tuple[object, int], now: tuple[object, int]) -> None:
    """The parameters' `stamp` of a forward pass, which its backward pass must find again."""
    if before != now:
        raise RuntimeError(
            "the parameters were edited between forward_train and its backprop (by an optimizer, edit, load_state_dict or "
            "flatten): the gradients would mix old activations with new weights; call forward_train again"
        )


def target(name: str, value: Any, like: Any, *, whole: bool = False) -> None:
    """`value` must be an array of the shape and dtype of `like`, as results are written to it; both may be on a device.

    `whole` is for kernels, which write to one piece of memory: strided arrays are refused. NumPy writes to those too.
    """
    if value.__class__ is np.ndarray and value.dtype is like.dtype and value.shape == like.shape and value.flags.carray:
        return
    if not isinstance(value, np.ndarray | type(like)):
        raise TypeError(f"{name} is {type(value).__name__}; expected an array {list(like.shape)} of {like.dtype}")
    if value.shape != like.shape or value.dtype != like.dtype:
        wanted = f"{list(like.shape)} {like.dtype}"
        raise ValueError(f"{name} has shape {list(value.shape)} and dtype {value.dtype}; expected {wanted}")
    _written(name, value, whole)


def buffer(name: str, value: Any, *, whole: bool = True) -> None:
    """`value` must be an array of float32 or float64 that can be changed in place; `whole` as in `target`."""
    if value.__class__ is np.ndarray and value.dtype in _FLOATS and value.flags.carray:
        return
    if not isinstance(value, np.ndarray) and not on_device(value):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected a NumPy array")
    if value.dtype.name not in STORAGE or not value.dtype.isnative:
        raise ValueError(f"{name} has dtype {value.dtype}; expected {' or '.join(STORAGE)}")
    _written(name, value, whole)


def _written(name: str, value: Any, whole: bool) -> None:
    """Refuse an array that cannot be written to; `whole` as in `target`."""
    if not isinstance(value, np.ndarray):
        if whole and not value.flags.c_contiguous:
            raise ValueError(f"{name} is strided; expected a writable C-contiguous array")
        return
    if not value.flags.writeable:
        raise ValueError(f"{name} is read-only; expected a writable array")
    if np.ma.is_masked(value):
        raise ValueError(f"{name} is a masked array with masked elements; expected one without")
    if whole and not (value.flags.c_contiguous and value.flags.aligned):
        raise ValueError(f"{name} is strided or not aligned; expected a writable C-contiguous array")
    if not whole and _folded(value):
        raise ValueError(f"{name} has elements that share memory; expected an array whose elements lie apart")


def _folded(value: np.ndarray) -> bool:
    """Whether elements may share memory: some axis does not step over all that lies within it."""
    end = value.itemsize
    for step, size in sorted((abs(step), size) for step, size in zip(value.strides, value.shape, strict=True) if size > 1):
        if step < end:
            return value.size > 0
        end += step * (size - 1)
    return False


def apart(changed: Mapping[str, Any], read: Mapping[str, Any]) -> None:
    """Arrays by their names in errors, C-contiguous: what is changed shares memory with nothing else."""
    spans = [
        (host_address(one), one.nbytes, name, written)
        for written, arrays in ((True, changed), (False, read))
        for name, one in arrays.items()
        if isinstance(one, np.ndarray) and one.nbytes
    ]
    end = end_of_changed = 0
    last = last_changed = ""
    for begin, size, name, written in sorted(spans):
        if begin < (end if written else end_of_changed):
            raise ValueError(f"{name} overlaps {last if written else last_changed}; expected arrays that lie apart")
        if begin + size > end:
            end, last = begin + size, name
        if written and begin + size > end_of_changed:
            end_of_changed, last_changed = begin + size, name


def projection(proj_size: Any, hidden_size: int, cell: str) -> int:
    """proj_size, 0 for none."""
    size = integer("proj_size", proj_size)
    if not 0 <= size < hidden_size:
        raise ValueError(f"proj_size is {size}; expected 0 (none) or a positive integer below hidden_size ({hidden_size})")
    if size and cell != "lstm":
        raise ValueError(f"proj_size is {size}; expected 0: only an LSTM projects")
    return size


def states(name: str, state: Any, shape: Shape, batch: int | None, engine: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(h, c) of a state argument, each [layers*directions, B, width] or None; batch None: given without that axis."""
    if state is None:
        return None, None
    parts: tuple[Any, ...] = (state,)
    if shape.cell == "lstm":
        if not isinstance(state, tuple | list) or len(state) != 2:
            raise TypeError(f"{name} is {type(state).__name__}; expected a pair (h, c)")
        parts = tuple(state)
    elif isinstance(state, tuple | list):
        raise TypeError(f"{name} is {type(state).__name__}; expected one array h")
    count = shape.num_layers * shape.directions
    arrays: list[np.ndarray | None] = []
    for part, label, width in zip(parts, ("h", "c"), (shape.width, shape.hidden_size), strict=False):
        if part is None:
            arrays.append(None)
            continue
        wanted = (count, width) if batch is None else (count, batch, width)
        found = array(f"{name} ({label})", part, engine.storage, wanted, engine.take)
        arrays.append(found[:, None] if batch is None else found)
    return arrays[0], arrays[1] if len(arrays) > 1 else None
