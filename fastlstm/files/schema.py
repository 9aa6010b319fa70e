"""What a file may hold: tables of fields with their checks, JSON of bounded depth and size, and the error of all files.

A check is called with the place of a value, such as ``model.hidden_size``, and the value; it raises ValueError where the value
is not what belongs there. Knows JSON and text; nothing of what the fields mean.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

Check = Callable[[str, Any], None]

DEPTH = 64
"""Levels of brackets that a JSON text may have; what this package writes has less than ten."""

LARGEST = 2**53
"""Whole numbers up to here are the same as floats; no count in a file is larger."""

# Strings; the last one may lack its end. Possessive, so that no text takes more than one pass.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[][{}]")
# A guess of the memory that a parsed text takes: bytes for each comma, and for each list or object. It may be _CLAIM bytes for
# each character of the text, and _FREE bytes (32 MiB) more.
_ITEM, _CONTAINER, _CLAIM, _FREE = 48, 120, 7, 1 << 25


class FileError(ValueError):
    """A file is damaged, of another program, or does not hold what it should; names the file, the place and what was wanted."""


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], error: type[FileError] = FileError) -> Iterator[None]:
    """Raise every error of the block about a value or its type as the error of a file, with its name in front."""
    try:
        yield
    except FileError:
        raise
    except (TypeError, ValueError) as found:
        raise error(f"{os.fspath(path)}: {found}") from None


@contextlib.contextmanager
def within(place: str) -> Iterator[None]:
    """Raise every error of the block about a value or its type as a ValueError with the place in the file in front."""
    try:
        yield
    except FileError:
        raise
    except (TypeError, ValueError) as found:
        raise ValueError(f"{place}: {found}") from None


def parse(text: str | bytes) -> Any:
    """A JSON text as values; what would nest too deep or take far more memory than the text is refused before it is built.

    Raises
    ------
    ValueError
        If it is not JSON, or NaN or an infinity is among its numbers.
    """
    text = text.decode() if isinstance(text, bytes) else text
    bare = _STRING.sub("", text)
    claim = _ITEM * bare.count(",") + _CONTAINER * (bare.count("[") + bare.count("{"))
    if claim > _CLAIM * len(text) + _FREE:
        raise ValueError(f"the JSON text of {len(text)} characters would take about {claim} bytes of memory")
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEPTH:
            raise ValueError(f"the JSON text nests deeper than {DEPTH} levels")
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def refuse(place: str, value: Any, wanted: str) -> NoReturn:
    """Raise the error about one value."""
    text = repr(value)
    raise ValueError(f"{place} is {text if len(text) <= 80 else text[:77] + '...'}; expected {wanted}")


# Checks of single values


def integer(least: int | None = None, most: int | None = None) -> Check:
    """A whole number from `least` to `most`."""
    bounds = "" if least is None else f" from {least}" + ("" if most is None else f" to {most}")

    def check(place: str, value: Any) -> None:
        if type(value) is not int or (least is not None and value < least) or (most is not None and value > most):
            refuse(place, value, f"a whole number{bounds}")

    return check


def number(least: float = -math.inf, most: float = math.inf, *, above: bool = False, below: bool = False) -> Check:
    """A finite number from `least` to `most`; `above`, `below`: the bounds themselves are out."""
    bounds = "" if least == -math.inf else f" {'above' if above else 'from'} {least:g}"
    bounds += "" if most == math.inf else f" {'below' if below else 'to'} {most:g}"

    def check(place: str, value: Any) -> None:
        fits = type(value) in (int, float) and abs(value) <= 1e308
        fits = fits and (least < value if above else least <= value) and (value < most if below else value <= most)
        if not fits:
            refuse(place, value, f"a finite number{bounds}")

    return check


def flag(place: str, value: Any) -> None:
    """True or false."""
    if type(value) is not bool:
        refuse(place, value, "true or false")


def text(place: str, value: Any) -> None:
    """Text."""
    if not isinstance(value, str):
        refuse(place, value, "text")


def like(pattern: str) -> Check:
    """Text that matches a regular expression as a whole."""

    def check(place: str, value: Any) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            refuse(place, value, f"text like {pattern}")

    return check


def choice(*allowed: Any) -> Check:
    """One of these texts."""

    def check(place: str, value: Any) -> None:
        if not isinstance(value, str) or value not in allowed:
            refuse(place, value, f"one of {', '.join(map(repr, allowed))}")

    return check


def anything(place: str, value: Any) -> None:
    """Whatever JSON holds."""


def nothing(place: str, value: Any) -> None:
    """Null."""
    if value is not None:
        refuse(place, value, "null")


# Checks of values with values inside


def optional(inner: Check) -> Check:
    """Null, or what `inner` takes."""

    def check(place: str, value: Any) -> None:
        if value is not None:
            inner(place, value)

    return check


def listed(inner: Check, count: int | None = None) -> Check:
    """A list, of `count` items where that is given."""

    def check(place: str, value: Any) -> None:
        if not isinstance(value, list) or count not in (None, len(value)):
            refuse(place, value, "a list" if count is None else f"a list of {count}")
        for k, item in enumerate(value):
            inner(f"{place}[{k}]", item)

    return check


def mapping(place: str, value: Any) -> None:
    """An object with any fields."""
    if not isinstance(value, dict):
        refuse(place, value, "an object")


def table(fields: Mapping[str, Check], *maybe: str) -> Check:
    """An object with these fields and no others; those of `maybe` may be missing."""

    def check(place: str, value: Any) -> None:
        mapping(place, value)
        missing = [key for key in fields if key not in value and key not in maybe]
        unknown = [key for key in value if key not in fields]
        if missing or unknown:
            told = [f"lacks {', '.join(missing)}"] if missing else []
            told += [f"has the unknown {', '.join(map(repr, unknown))[:80]}"] if unknown else []
            raise ValueError(f"{place} {' and '.join(told)}; expected {', '.join(fields)}")
        for key, inner in fields.items():
            if key in value:
                inner(f"{place}.{key}", value[key])

    return check


def tagged(tables: Mapping[str, Mapping[str, Check]], tag: str = "type", maybe: tuple[str, ...] = ()) -> Check:
    """An object whose field `tag` names the table that it must be; fields of `maybe` may be missing."""
    checks = {name: table({tag: anything, **fields}, *maybe) for name, fields in tables.items()}

    def check(place: str, value: Any) -> None:
        mapping(place, value)
        choice(*checks)(f"{place}.{tag}", value.get(tag))
        checks[value[tag]](place, value)

    return check
