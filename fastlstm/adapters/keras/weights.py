"""Files of weights: where each layer's variables lie, and what weights say by themselves without a configuration.

Imports no Keras; reads through files.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .config import PLACES, Fields, Read, check_shapes, layers
from .files import Variables
from .records import GATES, Record, describe


def reader(config: dict[str, Any], stored: Variables) -> Read:
    """Arrays of a model's layers by name: in the file they lie by class and count."""
    seen: Counter[str] = Counter()
    places = {}
    for layer in layers(config):
        fields = Fields(layer)
        places[fields.name] = _numbered(PLACES.get(fields.kind, fields.kind), seen)
    return lambda name, inner: stored(_path(places[name], inner))


def _path(place: str, inner: str) -> str:
    return "/".join(filter(None, ("layers", place, inner)))


def _numbered(place: str, seen: Counter[str]) -> str:
    """The next name of a class in a file of weights: lstm, lstm_1, lstm_2."""
    count, seen[place] = seen[place], seen[place] + 1
    return f"{place}_{count}" if count else place


def records_of(into: Any) -> list[Record]:
    """The Keras layers with variables that `into`, a layer, model or chain, is to get from a file.

    Raises
    ------
    TypeError, ValueError
        If it is none, or one that no file of Keras can fill.
    """
    found = [record for record in describe(into, name="into") if record.arrays]
    if getattr(into, "tie_weights", False):
        raise ValueError("into has tie_weights; a file of Keras holds the embedding and the head apart")
    return found


def found_in(path: str, stored: Variables, own: Sequence[Record] | None) -> list[Record]:
    """What a file of weights holds: the layers `own`, or, where that is None, what can be recognised by itself."""
    groups = [name for name in stored.groups("layers") if _weighs(stored, name)]
    if not groups:
        raise ValueError(f"{path} has no layers with weights; expected what save_weights of a Sequential or Functional writes")
    return _recognised(path, stored, groups) if own is None else _expected(path, stored, groups, own)


def _expected(path: str, stored: Variables, groups: Sequence[str], own: Sequence[Record]) -> list[Record]:
    seen: Counter[str] = Counter()
    places = [_numbered(PLACES["Bidirectional" if len(r.arrays) == 2 else r.kind], seen) for r in own]
    if sorted(groups) != sorted(places):
        raise ValueError(f"{path} has weights of {', '.join(groups)}; into needs {', '.join(sorted(places))}")
    found = []
    for record, place in zip(own, places, strict=True):
        arrays = [
            check_shapes(f"{path}, {place},", stored(_path(place, inner)), *(array.shape for array in wanted))
            for inner, wanted in zip(_inside(record.recurrent, len(record.arrays)), record.arrays, strict=True)
        ]
        found.append(Record(record.kind, place, record.dtype, record.options, arrays))
    return found


def _inside(recurrent: bool, directions: int) -> tuple[str, ...]:
    """Where variables are inside a layer, by direction."""
    if directions == 2:
        return ("forward_layer/cell", "backward_layer/cell")
    return ("cell",) if recurrent else ("",)


def _weighs(stored: Variables, place: str) -> bool:
    """Whether there are variables of a layer there."""
    return any(stored(_path(place, inner)) for inner in ("", "cell", "forward_layer/cell", "layer"))


def _recognised(path: str, stored: Variables, groups: Sequence[str]) -> list[Record]:
    """Recurrent layers of one class, in their order, known by the shapes of their weights."""
    if len({re.sub(r"_\d+$", "", name) for name in groups}) > 1:
        raise ValueError(f"{path} has weights of {', '.join(groups)}, and no word of their order; pass into= what they are of")
    found = []
    for name in sorted(groups, key=lambda name: (len(name), name)):
        directions = 2 if name.startswith("bidirectional") else 1
        arrays = [stored(_path(name, inner)) for inner in _inside(True, directions)]
        if not all(len(own) == 3 and own[0].ndim == own[1].ndim == 2 for own in arrays):
            raise ValueError(f"{path} has {name} without biases, or no recurrent layer; pass into= what its weights are of")
        units, columns = arrays[0][1].shape
        kind = next((kind for kind, gates in GATES.items() if columns == gates * units), None)
        if kind in (None, "SimpleRNN"):
            raise ValueError(f"{path} does not say which activation {name} has; pass into= what its weights are of")
        reset_after = kind == "GRU" and arrays[0][2].ndim == 2
        for own in arrays:
            check_shapes(
                f"{path}, {name},",
                own,
                (arrays[0][0].shape[0], columns),
                (units, columns),
                (2, columns) if reset_after else (columns,),
            )
        options = {"bias": True, "relu": False, "reset_after": reset_after, "sequences": True}
        found.append(Record(str(kind), name, "float64" if arrays[0][0].dtype == np.float64 else "float32", options, arrays))
    return found
