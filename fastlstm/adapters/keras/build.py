"""From Keras layers as plain data to the fastlstm layer or model that they are together.

Neighbours of one kind and size become one layer of several; with an embedding and a head, a LanguageModel, or a model of
series; whatever fits none of them is a Chain. Imports no Keras and reads no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...layers.basic import Dropout, Embedding, Linear
from ...layers.recurrent import GRU, LSTM, RNN
from ...models.language import LanguageModel
from ...models.series import SequenceClassifier, SequenceRegressor
from ...models.series_base import Reader
from .chain import Activation, Chain, Last
from .records import CELLS, Record, fill

_LAYERS = {"SimpleRNN": RNN, "LSTM": LSTM, "GRU": GRU}
_NORMALISATION = {"mean": "input_mean", "std": "input_std", "offset": "target_mean", "scale": "target_std"}


@dataclass
class _Stack:
    """Recurrent layers that one fastlstm layer can hold, and what is dropped between them."""

    records: list[Record]
    rate: float = 0.0
    kind = "Stack"

    @property
    def options(self) -> dict[str, Any]:
        """Arguments that a layer and a model share."""
        first, options = self.records[0], self.records[0].options
        return {
            "hidden_size": first.arrays[0][1].shape[0],
            "num_layers": len(self.records),
            "dropout": self.rate,
            "dtype": first.dtype,
            **({"reset_after": options["reset_after"]} if first.kind == "GRU" else {}),
        }

    @property
    def plain(self) -> bool:
        """Whether a model can hold it, beside a layer."""
        return bool(self.records[0].options["bias"]) and not self.records[0].options["relu"]

    @property
    def sequences(self) -> bool:
        """Whether the top gives every step, not only the last."""
        return bool(self.records[-1].options["sequences"])

    @property
    def input_size(self) -> int:
        return int(self.records[0].arrays[0][0].shape[0])

    @property
    def bidirectional(self) -> bool:
        return len(self.records[0].arrays) == 2


def build(records: Sequence[Record]) -> Any:
    """A fastlstm layer, model or Chain with the weights of `records`.

    Raises
    ------
    ValueError
        Where layers do not fit one another, or stand where nothing in fastlstm does what they do.
    """
    _check(records)
    items = _grouped(records)
    if len(items) == 1 and isinstance(items[0], _Stack):
        return _layer(items[0])
    model = _language_model(items) or _series_model(items)
    if model is not None:
        return model
    parts = [part for item in items for part in _parts(item)]
    return parts[0] if len(parts) == 1 else Chain(parts)


def _check(records: Sequence[Record]) -> None:
    """Widths fit, sequences come where they are read, one dtype."""
    width, sequence, giver = None, True, ""
    for k, record in enumerate(records):
        if record.dtype != records[0].dtype:
            raise ValueError(
                f"layer {record.name!r} has dtype {record.dtype!r} and layer {records[0].name!r} "
                f"{records[0].dtype!r}; expected one dtype"
            )
        if not record.arrays:
            continue
        if record.kind == "Embedding" and k:
            raise ValueError(f"layer {record.name!r} (Embedding) stands behind others; expected it first")
        reads = record.arrays[0][0].shape[0]
        if width not in (None, reads):
            raise ValueError(f"layer {record.name!r} reads {reads} features, but layer {giver!r} gives {width}")
        if record.recurrent and not sequence:
            raise ValueError(f"layer {record.name!r} ({record.kind}) reads a sequence, but {giver!r} gives its last step only")
        width, giver = record.width, record.name
        sequence = record.options["sequences"] if record.recurrent else sequence


def _grouped(records: Sequence[Record]) -> list[_Stack | Record]:
    """Neighbours that are one fastlstm layer taken together, with the Dropout between them."""
    items: list[_Stack | Record] = []
    for record in records:
        rate, below = 0.0, items[-1] if items else None
        if isinstance(below, Record) and below.kind == "Dropout" and len(items) > 1:
            rate, below = below.options["rate"], items[-2]
        if isinstance(below, _Stack) and _joins(below, record, rate):
            if rate:
                items.pop()
            below.records.append(record)
            below.rate = rate
        else:
            items.append(_Stack([record]) if record.recurrent else record)
    return items


def _joins(stack: _Stack, record: Record, rate: float) -> bool:
    """Whether `record` can be the next layer of `stack`."""
    below = stack.records[-1]
    same = [name for name in ("bias", "relu", "reset_after") if below.options[name] == record.options.get(name)]
    return (
        stack.sequences
        and record.kind == below.kind
        and len(same) == 3
        and record.width == below.width
        and len(record.arrays) == len(below.arrays)
        and (len(stack.records) == 1 or rate == stack.rate)
    )


def _layer(stack: _Stack) -> Any:
    first, options = stack.records[0], dict(stack.options)
    if first.options["relu"]:
        options["nonlinearity"] = "relu"
    layer = _LAYERS[first.kind](
        stack.input_size, bias=first.options["bias"], batch_first=True, bidirectional=stack.bidirectional, **options
    )
    fill(layer, stack.records)
    return layer


def _language_model(items: list[_Stack | Record]) -> LanguageModel | None:
    """Embedding, stack in one direction, Dense as wide as the vocabulary; logits, where Keras has a softmax as well."""
    if items and items[-1].kind == "Activation" and items[-1].options["activation"] == "softmax":
        items = items[:-1]
    match items:
        case [Record(kind="Embedding") as table, _Stack() as stack, Record(kind="Dense") as head] if (
            stack.plain
            and stack.sequences
            and not stack.bidirectional
            and head.width == len(table.arrays[0][0])
            and len(head.arrays[0]) == 2
        ):
            cell = CELLS[stack.records[0].kind]
            model = LanguageModel(head.width, cell, embedding_size=table.width, **stack.options)
            fill(model, [table, *stack.records, head])
            return model
    return None


def _series_model(items: list[_Stack | Record]) -> Reader | None:
    """A stack's last step and a Dense layer: a classifier with a softmax, else a regressor; with what normalises them."""
    first = items[0]
    before = first if isinstance(first, Record) and first.kind == "Normalization" else None
    rest = items[1:] if before else items
    after: dict[str, Record] = {}
    for kind in ("Rescaling", "Reshape", "Activation"):
        if rest and isinstance(last := rest[-1], Record) and last.kind == kind:
            after[kind] = last
            rest = rest[:-1]
    match rest:
        case [_Stack() as stack, Record(kind="Dense") as head] if (
            stack.plain and not stack.sequences and len(head.arrays[0]) == 2
        ):
            cell = CELLS[stack.records[0].kind]
            options = {"bidirectional": stack.bidirectional, "cell": cell, **stack.options}
        case _:
            return None
    model: Reader
    if "Activation" in after:
        if set(after) != {"Activation"} or after["Activation"].options["activation"] != "softmax":
            return None
        model = SequenceClassifier(stack.input_size, head.width, normalize=before is not None, **options)
    else:
        horizon, outputs = after["Reshape"].options["shape"] if "Reshape" in after else (1, head.width)
        if horizon * outputs != head.width:
            raise ValueError(f"layer {after['Reshape'].name!r} makes {horizon} x {outputs} of {head.width} values")
        normalize = before is not None or "Rescaling" in after
        model = SequenceRegressor(stack.input_size, outputs, horizon, normalize=normalize, **options)
    fill(model, [*stack.records, head])
    _normalise(model, before, after.get("Rescaling"))
    return model


def _normalise(model: Reader, *records: Record | None) -> None:
    """What Normalization and Rescaling say, in the model's own words."""
    if not model.normalize:
        return
    state = model.state_dict() | {"normalization.fitted": np.ones(1)}
    for record in filter(None, records):
        for name, value in record.options.items():
            own = "normalization." + _NORMALISATION[name]
            if value.size not in (1, state[own].size):
                raise ValueError(
                    f"layer {record.name!r} ({record.kind}) has {value.size} values of {name}; expected {state[own].size}"
                )
            state[own] = np.broadcast_to(value, state[own].shape)
    model.load_state_dict(state)


def _parts(item: _Stack | Record) -> list[Any]:
    """What stands in a Chain for a stack or layer."""
    if isinstance(item, _Stack):
        return [_layer(item)] + ([] if item.sequences else [Last()])
    if item.kind == "Dropout":
        return [Dropout(item.options["rate"], dtype=item.dtype)]
    if item.kind == "Activation":
        return [Activation(item.options["activation"])]
    if item.kind not in ("Dense", "Embedding"):
        raise ValueError(
            f"layer {item.name!r} ({item.kind}) stands where fastlstm has no such step; it is served around a "
            "recurrent stack with one Dense layer on its last step"
        )
    rows, columns = item.arrays[0][0].shape
    layer: Linear | Embedding
    if item.kind == "Dense":
        layer = Linear(rows, columns, len(item.arrays[0]) == 2, dtype=item.dtype)
    else:
        layer = Embedding(rows, columns, dtype=item.dtype)
    fill(layer, [item])
    return [layer]
