"""Every check of shapes, types and ranges, and its error text: the argument's name, what came, what was expected."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from .arrays import as_numpy, on_device
from .stack import Shape


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
    return float(value)


def probability(name: str, value: Any) -> float:
    """`value` as a float in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}; expected a number p with 0 <= p < 1")
    return float(value)


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


def array(name: str, value: Any, dtype: str, shape: tuple[int | str, ...]) -> np.ndarray:
    """`value` as a C-contiguous array of `dtype` (converted if need be) whose shape fits; one on a device stays there.

    Sizes given as text are free and named so in the message.
    """
    found = value if on_device(value) else as_numpy(value)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name} has dtype {found.dtype}; expected {dtype}")
    if not _fits(found.shape, shape):
        raise ValueError(f"{name} has shape {list(found.shape)}; expected [{', '.join(map(str, shape))}]")
    if isinstance(found, np.ndarray):
        return np.ascontiguousarray(found, dtype)
    there: np.ndarray = found if found.dtype == dtype and found.flags.c_contiguous else found.astype(dtype, order="C")
    return there


def numbers(name: str, value: Any, dtype: str, shape: tuple[int | str, ...]) -> np.ndarray:
    """As `array`, but real numbers of any dtype stay as they are; `dtype` is what the message expects of others."""
    found = as_numpy(value)
    return array(name, found, found.dtype.name if found.dtype.kind in "fiu" else dtype, shape)


def not_empty(name: str, found: np.ndarray) -> np.ndarray:
    """`found`, which must hold something."""
    if found.size == 0:
        raise ValueError(f"{name} has shape {list(found.shape)}; expected no size to be zero")
    return found


def lengths(value: Any, batch: int, steps: int) -> np.ndarray:
    """Lengths [B] as int64 in 0..steps."""
    found = as_numpy(value)
    if found.dtype.kind not in "iu" or found.shape != (batch,):
        raise ValueError(f"lengths has shape {list(found.shape)} and dtype {found.dtype}; expected integers [{batch}]")
    if found.size and (found.min() < 0 or found.max() > steps):
        raise ValueError(f"lengths has values from {found.min()} to {found.max()}; expected 0 to {steps}")
    return np.array(found, np.int64)  # a copy: a backward pass may come after the caller has changed his


def resets(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Marks as bool of x's first two axes."""
    found = as_numpy(value)
    if found.dtype != np.bool_ or found.shape != shape:
        raise ValueError(f"resets has shape {list(found.shape)} and dtype {found.dtype}; expected bool {list(shape)}")
    return found


def tokens(name: str, value: Any, vocab_size: int, shape: tuple[int | str, ...] = ("T", "B")) -> np.ndarray:
    """Token ids as contiguous int32 in 0..vocab_size-1."""
    found = as_numpy(value)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {found.dtype}; expected integers")
    if not _fits(found.shape, shape):
        raise ValueError(f"{name} has shape {list(found.shape)}; expected [{', '.join(map(str, shape))}]")
    if found.size and (int(found.min()) < 0 or int(found.max()) >= vocab_size):
        raise ValueError(f"{name} has values from {found.min()} to {found.max()}; expected 0 to {vocab_size - 1}")
    return np.ascontiguousarray(found, np.int32)


def unused(used: bool) -> None:
    """A backward pass is made once."""
    if used:
        raise RuntimeError("backprop was called before or closed: its saved activations are used up")


def unedited(before: tuple[object, int], now: tuple[object, int]) -> None:
    """The parameters' `stamp` of a forward pass, which its backward pass must find again."""
    if before != now:
        raise RuntimeError(
            "the parameters were edited between forward_train and its backprop (by an optimizer, edit, load_state_dict or "
            "flatten): the gradients would mix old activations with new weights; call forward_train again"
        )


def target(name: str, value: Any, like: Any) -> None:
    """`value`, which something shaped as `like` is to be written to; either may be on a device."""
    if not isinstance(value, np.ndarray | type(like)):
        raise TypeError(f"{name} is {type(value).__name__}; expected an array {list(like.shape)} of {like.dtype}")
    if value.shape != like.shape or value.dtype != like.dtype:
        wanted = f"{list(like.shape)} {like.dtype}"
        raise ValueError(f"{name} has shape {list(value.shape)} and dtype {value.dtype}; expected {wanted}")
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        raise ValueError(f"{name} is read-only; expected an array to write to")


def projection(proj_size: Any, hidden_size: int, cell: str) -> int:
    """proj_size, 0 for none."""
    size = integer("proj_size", proj_size)
    if not 0 <= size < hidden_size:
        raise ValueError(f"proj_size is {size}; expected 0 (none) or a positive integer below hidden_size ({hidden_size})")
    if size and cell != "lstm":
        raise ValueError(f"proj_size is {size}; expected 0: only an LSTM projects")
    return size


def states(
    name: str, state: Any, shape: Shape, batch: int | None, engine: Any
) -> tuple[np.ndarray | None, np.ndarray | None]:
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
        found = array(f"{name} ({label})", engine.take(part), engine.storage, wanted)
        arrays.append(found[:, None] if batch is None else found)
    return arrays[0], arrays[1] if len(arrays) > 1 else None
