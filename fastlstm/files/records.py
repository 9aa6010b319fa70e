"""What the records of this package's files hold: a table for each, and the arrays that a record implies.

A file is checked once, right after its checksum and before anything is made of it: the record by its table, then the arrays'
names, types and shapes by the record. So nothing is as large as a record says unless the file holds as many numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..shape import DTYPES, Shape
from .schema import (
    LARGEST,
    Check,
    anything,
    choice,
    flag,
    integer,
    like,
    listed,
    mapping,
    nothing,
    number,
    optional,
    refuse,
    table,
    tagged,
)

Shapes = dict[str, tuple[int, ...]]

COUNT, SIZE = integer(0, LARGEST), integer(1, LARGEST)
FROM_ZERO, ABOVE_ZERO = number(0), number(0, above=True)
DEVICE = like("cpu|cuda(:[0-9]{1,3})?")
RANDOM_STATE = table({"seed": integer(), "dropout_calls": COUNT})

# Models, by their `config`

_STACK: dict[str, Check] = {
    "cell": choice("lstm", "gru", "rnn"),
    "hidden_size": SIZE,
    "num_layers": SIZE,
    "dropout": number(0, 1),
    "dtype": choice(*DTYPES, "float16", "tf32"),
    "seed": integer(),
}
_PLACED: dict[str, Check] = {
    **_STACK,
    "proj_size": COUNT,
    "reset_after": flag,
    "device": DEVICE,
}
_READER: dict[str, Check] = {**_PLACED, "input_size": SIZE, "bidirectional": flag, "normalize": flag}
MODELS: dict[str, Mapping[str, Check]] = {
    "LanguageModel": {**_PLACED, "vocab_size": SIZE, "embedding_size": SIZE, "tie_weights": flag},
    "SequenceRegressor": {**_READER, "output_size": SIZE, "horizon": SIZE},
    "SequenceClassifier": {**_READER, "num_classes": SIZE},
}
NETWORKS: dict[str, Mapping[str, Check]] = {
    "StepNetwork": {
        **_STACK,
        "input_size": SIZE,
        "output_size": SIZE,
        "silent": listed(COUNT, 2),
        "levels": optional(listed(number(0, 1, above=True, below=True))),
    },
    "SequenceClassifier": MODELS["SequenceClassifier"],
}

# Optimizers and schedules, by their `config`

_STEPS: dict[str, Check] = {"lr": FROM_ZERO, "weight_decay": FROM_ZERO}
_PART = number(0, 1, below=True)
_ADAM: dict[str, Check] = {**_STEPS, "betas": listed(_PART, 2), "eps": FROM_ZERO}
OPTIMIZERS: dict[str, Mapping[str, Check]] = {
    "SGD": {**_STEPS, "momentum": FROM_ZERO, "nesterov": flag},
    "RMSprop": {**_STEPS, "alpha": _PART, "eps": FROM_ZERO, "momentum": FROM_ZERO},
    "Adam": _ADAM,
    "AdamW": _ADAM,
}
SCHEDULES: dict[str, Mapping[str, Check]] = {
    "Constant": {},
    "CosineWarmup": {"warmup_steps": COUNT, "total_steps": SIZE, "floor": number(0, 1)},
    "StepDecay": {"step_size": SIZE, "gamma": ABOVE_ZERO},
    "Plateau": {
        "factor": number(0, 1, above=True, below=True),
        "patience": COUNT,
        "threshold": _PART,
        "floor": number(0, 1),
    },
}
_PLATEAU_STATE = table({"best": optional(number()), "stale": COUNT, "scale": number(0, 1)})

# Checkpoints of a training

_JOB: dict[str, Check] = {
    "first": COUNT,
    "target": COUNT,
    "patience": optional(SIZE),
    "train": mapping,
    "valid": optional(mapping),
    "loss_sum": number(),
    "targets": COUNT,
    "tokens": COUNT,
    "seconds": FROM_ZERO,
    "stale": COUNT,
}

_CHECKPOINT = table(
    {
        "model": mapping,
        "random_state": anything,
        "tokenizer": optional(mapping),
        "optimizer": anything,
        "optimizer_steps": anything,
        "schedule": anything,
        "schedule_state": anything,
        "state_is_tuple": flag,
        "job": optional(table(_JOB)),
        "steps": COUNT,
        "epoch": COUNT,
        "batch": COUNT,
        "best_loss": optional(number()),
        "base_lr": anything,
        "clip_norm": optional(ABOVE_ZERO),
        "history": listed(mapping),
    }
)
MODEL, OPTIMIZER, STATE = "model.", "optimizer.", "state."


def check_checkpoint(
    record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, model: bool, optimizer: bool, schedule: bool
) -> None:
    """Check what a training's checkpoint holds.

    Parameters
    ----------
    record, arrays
        As `checkpoint.read_checkpoint` gives them.
    model, optimizer, schedule : bool
        Whether these are to be made from the record, rather than of somebody's own making.

    Raises
    ------
    ValueError
        Naming the place and what was expected.
    """
    _CHECKPOINT("record", record)
    for name in arrays:
        if not name.startswith((MODEL, OPTIMIZER, STATE)):
            raise ValueError(f"array {name!r} is unknown; expected names that begin with {MODEL}, {OPTIMIZER} or {STATE}")
    if optimizer and record["optimizer"]:
        _of_this_package("optimizer", record["optimizer"], OPTIMIZERS)
        COUNT("record.optimizer_steps", record["optimizer_steps"])
        FROM_ZERO("record.base_lr", record["base_lr"])
    if schedule and record["schedule"] is None:
        nothing("schedule_state", record["schedule_state"])
    elif schedule and record["schedule"]:
        _of_this_package("schedule", record["schedule"], SCHEDULES)
        plateau = record["schedule"]["type"] == "Plateau"
        (_PLATEAU_STATE if plateau else table({}))("schedule_state", record["schedule_state"])
    if model:
        _check_training(record, arrays, moments=optimizer and bool(record["optimizer"]))


def _of_this_package(place: str, record: Any, tables: Mapping[str, Mapping[str, Check]]) -> None:
    """The record of a part that can be made; a type that is unknown may be of the user's own making."""
    mapping(place, record)
    kind = record.get("type")
    if not isinstance(kind, str) or kind not in tables:
        refuse(
            f"{place}.type",
            kind,
            f"one of {', '.join(map(repr, tables))}; if it is of your own making, give one like it "
            f"({place}=...) to Trainer.resume",
        )
    tagged(tables)(place, record)


def _check_training(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], moments: bool) -> None:
    """A model of this package: its record, its arrays, and those that go with them; `moments`: of an optimizer of it, too."""
    config = record["model"]
    _of_this_package("model", config, MODELS)
    RANDOM_STATE("random_state", record["random_state"])
    check_network("model", config, {name: arrays[name] for name in arrays if name.startswith(MODEL)}, MODEL)
    if moments:
        check_moments(config, {name: arrays[name] for name in arrays if name.startswith(OPTIMIZER)}, OPTIMIZER)
    _check_state(config, record["state_is_tuple"], [arrays[name] for name in sorted(arrays) if name.startswith(STATE)])
    if record["tokenizer"] is not None and config["type"] != "LanguageModel":
        raise ValueError(f"tokenizer is given, and model.type is {config['type']!r}; expected a LanguageModel with it")


def _check_state(config: Mapping[str, Any], paired: bool, state: list[np.ndarray]) -> None:
    """The state that a language model carries from batch to batch, if there is one."""
    carries = config["type"] == "LanguageModel"
    widths = [config["proj_size"] or config["hidden_size"], config["hidden_size"]][: 1 + (config["cell"] == "lstm")]
    if not state and not paired:
        return
    if not carries or paired != (len(widths) == 2) or len(state) != len(widths):
        raise ValueError(
            f"state has {len(state)} arrays and state_is_tuple {paired}, which is no state of a {config['type']} "
            f"of cell {config['cell']!r}"
        )
    batch = state[0].shape[1] if state[0].ndim == 3 else 1
    for k, (array, width) in enumerate(zip(state, widths, strict=True)):
        check_stored(f"{STATE}{k}", array, _storage(config), (config["num_layers"], max(1, batch), width))


def check_network(place: str, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prefix: str = "") -> None:
    """Check that arrays, whose names begin with a prefix, are those of the network that a checked `config` describes."""
    if config["num_layers"] > len(arrays):  # before as many names are made
        refuse(f"{place}.num_layers", config["num_layers"], f"at most {len(arrays)}, the number of the file's arrays of it")
    wanted = {prefix + name: shape for name, shape in network_shapes(config).items()}
    missing, unknown = sorted(wanted.keys() - arrays.keys()), sorted(arrays.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(f"{place} does not fit the arrays: missing {missing[:5]}, unknown {unknown[:5]}")
    for name, shape in wanted.items():
        fixed = name.startswith(prefix + "normalization.")
        check_stored(name, arrays[name], "float64" if fixed else _storage(config), shape, f", by {place}")


def check_moments(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prefix: str = "") -> None:
    """Check the arrays that an optimizer keeps beside a network's flat buffer."""
    shapes = network_shapes(config)
    size = sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("normalization."))
    for name, array in arrays.items():
        if "." in name.removeprefix(prefix):
            raise ValueError(f"array {name!r} is unknown; an optimizer has one of each kind, for all parameters together")
        check_stored(name, array, _storage(config), (size,), ", as many as the parameters")


def check_stored(name: str, array: np.ndarray, dtype: str, shape: tuple[int, ...], why: str = "") -> None:
    """Check the type and shape of one array of a file."""
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"array {name} is {list(array.shape)} of {array.dtype}; expected {list(shape)} of {dtype}{why}")


def _storage(config: Mapping[str, Any]) -> str:
    return "float64" if config["dtype"] == "float64" else "float32"


def network_shapes(config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of the arrays of the network that a checked `config` describes, before it is made."""
    kind, language = config["type"], config["type"] == "LanguageModel"
    shape = Shape(
        config["cell"],
        config["embedding_size" if language else "input_size"],
        config["hidden_size"],
        config["num_layers"],
        bidirectional=config.get("bidirectional", False),
        proj_size=config.get("proj_size", 0),
    )
    outputs = {"LanguageModel": "vocab_size", "SequenceClassifier": "num_classes"}.get(kind, "output_size")
    rows = config[outputs] * config.get("horizon", 1)
    shapes: Shapes = {f"rnn.{name}": sizes for name, sizes in shape.parameters().items()} | {"head.bias": (rows,)}
    if language:
        shapes["embedding.weight"] = (rows, shape.input_size)
    if not config.get("tie_weights"):
        shapes["head.weight"] = (rows, shape.directions * shape.width)
    if config.get("normalize"):
        sizes = {"fitted": 1, "input_mean": shape.input_size, "input_std": shape.input_size}
        if kind == "SequenceRegressor":
            sizes |= {"target_mean": config["output_size"], "target_std": config["output_size"]}
        shapes |= {f"normalization.{name}": (size,) for name, size in sizes.items()}
    return shapes
