"""Arrays that a user may give and no kernel expects: what odd memory, types and shapes there are, and how a call is judged.

A call with one must do as the call with the plain array of the same numbers does, to the bit, or raise an error that names
the argument. Knows nothing of what is called: `hostile_cases` does.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Slot:
    """An argument that takes an array.

    Parameters
    ----------
    plain : ndarray
        What it usually gets: native, aligned, C-contiguous.
    named : str, optional
        How errors name it where they do not say its key.
    optional : bool
        Whether None is an argument like any other.
    written : bool
        Whether the call writes to it: then it cannot be converted.
    exact : bool
        Whether its dtype decides about the call's precision.
    lists : bool
        Whether lists are taken for arrays.
    """

    plain: np.ndarray
    named: str = ""
    optional: bool = False
    written: bool = False
    exact: bool = False
    lists: bool = True


@dataclass(frozen=True)
class Case:
    """One use of a public function: ``call(arrays)`` gives its results, of which those of equal arguments have equal bits."""

    call: Callable[[Arrays], Any]
    slots: dict[str, Slot]

    def named(self, name: str) -> str:
        return self.slots[name].named or name


class Foreign:
    """An array of another library, as far as NumPy knows."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._array if dtype is None else self._array.astype(dtype)


class Subclass(np.ndarray):
    """One of ndarray that says nothing of its own."""


class Refuses:
    """What says that it is an array and gives none."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise ValueError("not now")


def _unaligned(a: np.ndarray) -> np.ndarray:
    view = np.ndarray(a.shape, a.dtype, bytearray(a.nbytes + 1), 1)
    view[...] = a
    return view


def _strided(a: np.ndarray) -> np.ndarray:
    wide = np.zeros([2 * size for size in a.shape], a.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def _backwards(a: np.ndarray) -> np.ndarray:
    turned = tuple(slice(None, None, -1) for _ in a.shape)
    return a[turned].copy()[turned]


def _field(a: np.ndarray) -> np.ndarray:
    records = np.zeros(a.shape, [("before", np.uint8), ("value", a.dtype)])
    records["value"] = a
    return records["value"]


def _read_only(a: np.ndarray) -> np.ndarray:
    fixed = a.copy()
    fixed.flags.writeable = False
    return fixed


def _tensor(a: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(a.copy())


# The same numbers in other memory; in all of these they can be read, and most can be written to.
MEMORY: dict[str, Callable[[np.ndarray], Any]] = {
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "unaligned": _unaligned,
    "strided": _strided,
    "backwards": _backwards,
    "Fortran order": lambda a: np.array(a, order="F"),
    "big-endian in Fortran order": lambda a: np.array(a, a.dtype.newbyteorder(">"), order="F"),
    "field of records": _field,
    "read-only": _read_only,
    "memory map": lambda a: a.copy().view(np.memmap),
    "subclass": lambda a: a.copy().view(Subclass),
    "masked array without a mask": lambda a: np.ma.masked_array(a.copy()),
    "list": lambda a: a.tolist(),
    "list of arrays": lambda a: list(a.copy()) if a.ndim else a.tolist(),
    "foreign": lambda a: Foreign(a.copy()),
}
# Of other numbers, which the plain array is then made of.
NUMBERS: dict[str, Callable[[np.ndarray], Any]] = {
    "float16": lambda a: a.astype(np.float16),
    "float32": lambda a: a.astype(np.float32),
    "float64": lambda a: a.astype(np.float64),
    "long double": lambda a: a.astype(np.longdouble),
    "int8": lambda a: a.astype(np.int8),
    "int64": lambda a: a.astype(np.int64),
    "uint16, big-endian": lambda a: np.abs(a).astype(">u2"),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape) if a.ndim else a,
    "matrix": lambda a: a.reshape(-1, a.shape[-1]).copy().view(np.matrix),
    "without a dimension": lambda a: a.reshape(-1)[:1].copy().reshape(()),
    "empty": lambda a: a[:0].copy() if a.ndim else np.zeros(0, a.dtype),
    "one axis more": lambda a: a[None].copy(),
    "cut": lambda a: a[..., :-1].copy() if a.ndim else a,
    "long": lambda a: np.concatenate([a, a], axis=-1) if a.ndim else np.stack([a, a]),
}
# None of these are numbers; a call of a function that wants them must not succeed.
OTHERS: dict[str, Callable[[np.ndarray], Any]] = {
    "masked": lambda a: np.ma.masked_array(a.copy(), mask=np.arange(a.size).reshape(a.shape) == 0),
    "list of masked": lambda a: [np.ma.masked_array(one, mask=True) for one in a] if a.ndim else np.ma.masked,
    "object": lambda a: a.astype(object),
    "complex": lambda a: a.astype(np.complex64),
    "text": lambda a: a.astype(str),
    "times": lambda a: a.astype("M8[s]"),
    "records": lambda a: np.zeros(a.shape, [("value", a.dtype)]),
    "ragged": lambda a: [[0, 0], [0]],
    "nothing in a list": lambda a: [None] * 3,
    "str": lambda a: "text",
    "dict": lambda a: {"a": 1},
    "refuses": lambda a: Refuses(),
}
if importlib.util.find_spec("torch"):
    MEMORY["tensor"] = _tensor


def labels(slot: Slot) -> list[str]:
    """Kinds of hostile arguments for a slot."""
    found = [*MEMORY, *NUMBERS, *OTHERS, "truth values"]
    return found + ["None"] * (not slot.optional) + ["elements that share memory"] * (slot.written and slot.plain.ndim > 0)


def made(slot: Slot, label: str, plain: np.ndarray) -> tuple[Any, np.ndarray | None]:
    """A hostile argument in place of `plain`, and the plain array of its numbers or None for none."""
    if label == "None":
        return None, None
    if label == "elements that share memory":
        return np.lib.stride_tricks.as_strided(plain.copy(), strides=(0,) * plain.ndim), None
    if label == "truth values":
        return plain.astype(bool), plain if plain.dtype == bool else None
    one = (MEMORY | NUMBERS | OTHERS)[label](plain)
    return one, None if label in OTHERS else _twin(slot, one)


def has_to_work(slot: Slot, label: str) -> bool:
    """Whether such an argument must be converted: what is only read can be read wherever it lies."""
    return label in MEMORY and not slot.written and (slot.lists or not label.startswith("list"))


def _twin(slot: Slot, one: Any) -> np.ndarray:
    """The plain array of the same numbers."""
    found = np.array(np.asarray(one), order="C")
    return found.astype(found.dtype.newbyteorder("=") if slot.exact or slot.written else slot.plain.dtype)


def flat(results: Any) -> list[np.ndarray]:
    """All arrays and numbers of a call's results, in this machine's byte order."""
    if isinstance(results, dict):
        return [one for key in sorted(results) for one in flat(results[key])]
    if isinstance(results, tuple | list):
        return [one for part in results for one in flat(part)]
    found = np.array(0 if results is None else results)
    return [found.astype(found.dtype.newbyteorder("="))]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Whether results are the same to the bit."""
    return len(a) == len(b) and all(
        x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)
    )


def outcome(case: Case, arrays: Arrays) -> list[np.ndarray] | Exception:
    """What a call gives, or the error that it raises; any but these two is a failure."""
    try:
        return flat(case.call(arrays))
    except (TypeError, ValueError) as error:
        return error


def judge(case: Case, label: str, given: Arrays, plain: Arrays | None, names: list[str], must: bool = False) -> None:
    """See that a call with arrays in `given`, hostile ones under `names`, is right or refused by name.

    must: it has to succeed where the plain call does.
    """
    memory = {n: a.tobytes() for n, a in given.items() if _kept(case, n, a, names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers too large for a dtype
        wanted = None if plain is None else outcome(case, plain)
        got = outcome(case, given)
    if isinstance(got, Exception):
        known = isinstance(wanted, Exception) and str(got) == str(wanted)
        text = str(got)
        assert known or any(re.search(rf"(?<!\w){re.escape(case.named(n))}(?!\w)", text) for n in names), f"{label}: {got!r}"
        assert not must or isinstance(wanted, Exception), f"{label} is refused: {got!r}"
        return
    assert wanted is not None, f"{label} is accepted"
    assert not isinstance(wanted, Exception), f"{label} is accepted, where a plain array gives {wanted!r}"
    assert same(got, wanted), f"{label}: {got} where a plain array gives {wanted}"
    for name, before in memory.items():
        assert given[name].tobytes() == before, f"{label}: {name} was written to"


def _kept(case: Case, name: str, value: Any, names: list[str]) -> bool:
    """Whether a call must leave an argument as it is: all but what is written to, and what lies in its memory."""
    written = case.slots[name].written or any(case.slots[n].written for n in names)
    return not written and type(value) is np.ndarray and not value.dtype.hasobject


def fresh(case: Case, **others: Any) -> Arrays:
    """Plain arguments, copies of their own, with others in place of some."""
    return {name: slot.plain.copy() for name, slot in case.slots.items()} | others


def walk(case: Case, name: str) -> int:
    """Give one slot every kind of hostile argument; returns how many."""
    slot = case.slots[name]
    for label in labels(slot):
        given, plain = made(slot, label, slot.plain)
        twin = None if plain is None else fresh(case, **{name: plain.copy()})
        judge(case, f"{name}: {label}", fresh(case, **{name: given}), twin, [name], has_to_work(slot, label))
    return len(labels(slot))


def overlapping(case: Case, written: str, other: str, shift: int) -> None:
    """Let what is written to begin `shift` bytes behind another argument, in one memory."""
    a, b = case.slots[written].plain, case.slots[other].plain
    memory = np.zeros(2 * (a.nbytes + b.nbytes) + 64, np.uint8)
    start = a.nbytes + 16 - a.nbytes % 16
    views = [memory[at : at + one.nbytes].view(one.dtype).reshape(one.shape) for one, at in ((a, start + shift), (b, start))]
    views[0][...], views[1][...] = a, b
    label = f"{written} {shift} bytes behind {other}"
    plain = {written: views[0].copy(), other: views[1].copy()}
    judge(case, label, fresh(case, **{written: views[0], other: views[1]}), fresh(case, **plain), [written, other])


def shifts(case: Case, written: str, other: str) -> list[int]:
    """Some that make the two overlap, by whole elements."""
    a, b = case.slots[written].plain, case.slots[other].plain
    size = max(a.itemsize, b.itemsize)
    return sorted({0, size, -size, b.nbytes // 2 // size * size, -(a.nbytes // 2 // size * size)})
