"""One Keras layer as plain data, and where its variables lie in fastlstm's parameters: layouts and gate orders, both ways.

Keras: kernel [I, G*H], recurrent_kernel [H, G*H], GRU's gates in order z, r, h, one bias [G*H] or, for a GRU with
reset_after, two [2, 3*H]. fastlstm, as torch.nn: transposed, r, z, n, always two biases. Imports no Keras and reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...layers.basic import Dropout, Embedding, Linear
from ...layers.recurrent import RNN, Layer
from ...models.language import LanguageModel
from ...models.series import SequenceClassifier, SequenceRegressor
from ...models.series_base import Reader
from ...runtime.arrays import as_numpy
from ...runtime.params import load_into
from ...shape import Shape
from .chain import Activation, Chain, Last

CELLS = {"SimpleRNN": "rnn", "LSTM": "lstm", "GRU": "gru"}
GATES = {"SimpleRNN": 1, "LSTM": 4, "GRU": 3}
DTYPES = {"float32": "float32", "float64": "float64", "bfloat16": "mixed_bfloat16"}  # fastlstm's: Keras's policy


@dataclass(frozen=True)
class Record:
    """A Keras layer.

    kind : its class, without wrappers
    options : of a recurrent layer `bias`, `relu`, `reset_after`, `sequences`; of others `rate`, `activation` and so on
    arrays : its variables in Keras's layouts and order, once for each direction
    """

    kind: str
    name: str
    dtype: str
    options: Mapping[str, Any] = field(default_factory=dict)
    arrays: Sequence[Sequence[np.ndarray]] = ()

    @property
    def recurrent(self) -> bool:
        """Whether it is a SimpleRNN, LSTM or GRU, in one direction or two."""
        return self.kind in CELLS

    @property
    def width(self) -> int:
        """Features that it gives."""
        return len(self.arrays) * self.arrays[0][1].shape[0] if self.recurrent else int(self.arrays[0][0].shape[1])


@dataclass(frozen=True)
class Slot:
    """Where one Keras layer's variables are among the parameters: a name with a gap for each direction."""

    kind: str
    names: tuple[str, ...]
    reset_after: bool = False


def slots(thing: Any) -> list[Slot]:
    """The Keras layers with variables that a fastlstm layer, model or part of a chain comes to, in order."""
    if isinstance(thing, Layer):
        return _stack_slots(thing.shape, "")
    if isinstance(thing, LanguageModel):
        return [Slot("Embedding", ("embedding.{}",)), *_stack_slots(thing.shape, "rnn."), Slot("Dense", ("head.{}",))]
    if isinstance(thing, Reader):
        return [*_stack_slots(thing.shape, "rnn."), Slot("Dense", ("head.{}",))]
    kind = "Dense" if isinstance(thing, Linear) else "Embedding" if isinstance(thing, Embedding) else None
    return [Slot(kind, ("{}",))] if kind else []


def _stack_slots(shape: Shape, prefix: str) -> list[Slot]:
    kind = next(kind for kind, cell in CELLS.items() if cell == shape.cell)
    return [
        Slot(kind, tuple(prefix + "{}" + suffix for suffix in suffixes), kind == "GRU" and shape.reset_after)
        for suffixes in shape.suffixes()
    ]


def fill(thing: Any, records: Sequence[Record]) -> None:
    """Write the variables of records that have some, in order, to the parameters of a layer, model or chain."""
    if isinstance(thing, Chain):
        for part in thing.parts:
            count = len(slots(part))
            fill(part, records[:count])
            records = records[count:]
        return
    if not slots(thing):
        return
    values: dict[str, np.ndarray] = {}
    for slot, record in zip(slots(thing), records, strict=True):
        for name, arrays in zip(slot.names, record.arrays, strict=True):
            values |= {name.format(key): array for key, array in _to_rows(slot, arrays).items()}
    load_into(thing.params, values)


def variables(thing: Any) -> list[list[list[np.ndarray]]]:
    """The variables of each Keras layer that has some, by layer and direction, as `Record.arrays`."""
    values = {name: np.array(as_numpy(view)) for name, view in thing.params.items()}
    if "embedding.weight" in values:
        values.setdefault("head.weight", values["embedding.weight"])  # tied
    return [[_to_columns(slot, values, name) for name in slot.names] for slot in slots(thing)]


def _to_rows(slot: Slot, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    if slot.kind == "Embedding":
        return {"weight": arrays[0]}
    if slot.kind == "Dense":
        return {"weight": arrays[0].T} | ({"bias": arrays[1]} if len(arrays) > 1 else {})
    kernel, recurrent, *biases = arrays
    rows = {"weight_ih": _reorder(slot, kernel).T, "weight_hh": _reorder(slot, recurrent).T}
    if biases:
        bias = _reorder(slot, biases[0])
        rows["bias_ih"], rows["bias_hh"] = bias if slot.reset_after else (bias, np.zeros_like(bias))
    return rows


def _to_columns(slot: Slot, values: Mapping[str, np.ndarray], name: str) -> list[np.ndarray]:
    if slot.kind == "Embedding":
        return [values[name.format("weight")]]
    if slot.kind == "Dense":
        return [values[name.format("weight")].T, *([values[name.format("bias")]] if name.format("bias") in values else [])]
    columns = [_reorder(slot, values[name.format(key)].T) for key in ("weight_ih", "weight_hh")]
    if name.format("bias_ih") in values:
        pair = np.stack([values[name.format("bias_ih")], values[name.format("bias_hh")]])
        # Behind a reset gate that acts after the product, the second bias is multiplied by it: the sum would be another net.
        columns.append(_reorder(slot, pair if slot.reset_after else pair.sum(axis=0)))
    return columns


def _reorder(slot: Slot, array: np.ndarray) -> np.ndarray:
    """Gates of the last axis in the other's order; the same step leads back."""
    if slot.kind != "GRU":
        return array
    first, second, third = np.split(array, 3, axis=-1)
    return np.concatenate([second, first, third], axis=-1)


def describe(thing: Any, sequences: bool = True, name: str = "layer") -> list[Record]:
    """A fastlstm layer, model or chain, in errors called `name`, as Keras layers.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For what Keras cannot hold: a projection, a dtype.
    """
    if isinstance(thing, Chain):
        records: list[Record] = []
        for part, after in zip(thing.parts, [*thing.parts[1:], None], strict=True):
            if isinstance(part, Activation):
                records.append(Record("Activation", "", records[-1].dtype, {"activation": part.name}))
            elif not isinstance(part, Last):
                records += describe(part, not isinstance(after, Last), name)
        return records
    if not isinstance(thing, Layer | LanguageModel | Reader | Linear | Embedding | Dropout):
        raise TypeError(
            f"{name} is {type(thing).__name__}; expected a fastlstm RNN, LSTM, GRU, Linear, Embedding, Dropout, "
            "LanguageModel, SequenceRegressor, SequenceClassifier or Chain"
        )
    if thing.dtype not in DTYPES:
        raise ValueError(f"{name} has dtype {thing.dtype!r}; expected one of {', '.join(map(repr, DTYPES))}")
    if isinstance(thing, Dropout):
        return [_dropout(thing.p, thing.dtype)]
    found = [
        Record(slot.kind, "", thing.dtype, {"reset_after": slot.reset_after}, arrays)
        for slot, arrays in zip(slots(thing), variables(thing), strict=True)
    ]
    if isinstance(thing, Linear | Embedding):
        return found
    if thing.shape.proj_size:
        raise ValueError(f"{name} has proj_size={thing.shape.proj_size}; Keras's LSTM has no projection")
    if isinstance(thing, Layer):
        return _stack(thing, found, sequences)
    if isinstance(thing, LanguageModel):
        return [found[0], *_stack(thing, found[1:-1], True), found[-1]]
    return _reader(thing, _stack(thing, found[:-1], False), found[-1])


def _stack(thing: Any, records: Sequence[Record], sequences: bool) -> list[Record]:
    """Recurrent layers with their options, and what is dropped between them."""
    relu, rate = isinstance(thing, RNN) and thing.nonlinearity == "relu", thing.shape.dropout
    found: list[Record] = []
    for k, record in enumerate(records):
        top = k + 1 == len(records)
        options = {**record.options, "bias": thing.shape.bias, "relu": relu, "sequences": sequences or not top}
        found.append(Record(record.kind, "", record.dtype, options, record.arrays))
        if rate and not top:
            found.append(_dropout(rate, record.dtype))
    return found


def _reader(thing: Reader, stack: list[Record], head: Record) -> list[Record]:
    """A model of series: its normalisation, where it has learned one, stands around the network."""
    state = thing.state_dict() if thing.normalize and thing.fitted else {}
    before, after = [], []
    if state:
        options = {"mean": state["normalization.input_mean"], "std": state["normalization.input_std"]}
        before.append(Record("Normalization", "", thing.dtype, options))
    if isinstance(thing, SequenceClassifier):
        after.append(Record("Activation", "", thing.dtype, {"activation": "softmax"}))
    elif isinstance(thing, SequenceRegressor):
        after.append(Record("Reshape", "", thing.dtype, {"shape": (thing.horizon, thing.output_size)}))
        if state:
            options = {"scale": state["normalization.target_std"], "offset": state["normalization.target_mean"]}
            after.append(Record("Rescaling", "", thing.dtype, options))
    return [*before, *stack, head, *after]


def _dropout(rate: float, dtype: str) -> Record:
    return Record("Dropout", "", dtype, {"rate": rate})
