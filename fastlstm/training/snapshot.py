"""A training run as arrays and a JSON record, and back. Knows what a checkpoint holds; nothing of files."""

import contextlib
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..files import schema
from ..files.records import MODEL, OPTIMIZER, STATE, check_checkpoint
from ..models import language
from ..optim import optimizers
from ..runtime.arrays import as_numpy
from ..runtime.engine import engine
from . import checkpoint
from .state import Job, TrainingState


def read(
    file: Path, *, model: bool = True, optimizer: bool = True, schedule: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `take` gave, from its file, checked: the ``new_`` functions can make the parts that are to be made.

    Raises
    ------
    FileNotFoundError, fastlstm.CheckpointError
        If there is no checkpoint, or it is not whole or not as it should be.
    """
    arrays, record = checkpoint.read_checkpoint(file)
    with schema.reading(file, checkpoint.CheckpointError):
        check_checkpoint(record, arrays, model=model, optimizer=optimizer, schedule=schedule)
    return arrays, record


def take(run: TrainingState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All that the training is made of. `put_back`, the ``new_`` functions and `Trainer.resume` read the entries."""
    schedule = run.schedule
    arrays = {MODEL + name: array for name, array in run.model.state_dict().items()}
    arrays |= {OPTIMIZER + name: array for name, array in run.optimizer.state_arrays().items()}
    # A copy as the others are: the next step overwrites it, and other threads may take it before this one is written.
    arrays |= {f"{STATE}{number}": np.array(as_numpy(part)) for number, part in enumerate(parts(run.carried))}
    record = {
        "model": run.model.config,
        "random_state": run.model.random_state,
        "tokenizer": None if run.tokenizer is None else run.tokenizer.config,
        "optimizer": getattr(run.optimizer, "config", None),
        "optimizer_steps": run.optimizer.steps,
        "schedule": None if schedule is None else getattr(schedule, "config", None) or {},
        "schedule_state": getattr(schedule, "state", None),
        "state_is_tuple": isinstance(run.carried, tuple),
        "job": None if run.job is None else asdict(run.job),
        "steps": run.steps,
        "epoch": run.epoch,
        "batch": run.batch,
        "best_loss": run.best_loss,
        "base_lr": run.base_lr,
        "clip_norm": run.clip_norm,
        "history": run.history,
    }
    return {name: as_numpy(array) for name, array in arrays.items()}, checkpoint.plain(record)


def put_back(
    run: TrainingState, file: PathLike[str], arrays: dict[str, np.ndarray], record: dict[str, Any], given: Collection[str] = ()
) -> None:
    """Make a run, with a model, optimizer and schedule of the right kinds, what `take` saw; `given`: the caller's own."""
    put_back_model(run.model, file, arrays, record, given="model" in given)
    with _taking("optimizer", file, "optimizer" in given):
        run.optimizer.load_state_arrays(under(OPTIMIZER, arrays))
        run.optimizer.steps = record["optimizer_steps"]
    if record["schedule_state"] is not None:
        with _taking("schedule", file, "schedule" in given):
            run.schedule.state = record["schedule_state"]
    state = list(under(STATE, arrays).values())
    run.carried = tuple(state) if record["state_is_tuple"] else state[0] if state else None
    run.job = None if record["job"] is None else Job(**record["job"])
    run.steps, run.epoch, run.batch = record["steps"], record["epoch"], record["batch"]
    run.best_loss = float("inf") if record["best_loss"] is None else record["best_loss"]
    run.base_lr = record["base_lr"]
    run.history = record["history"]


def put_back_model(
    model: Any, file: PathLike[str], arrays: dict[str, np.ndarray], record: dict[str, Any], *, given: bool = False
) -> None:
    """Give a model the weights and the random state."""
    with _taking("model", file, given):
        model.load_state_dict(under(MODEL, arrays))
        model.random_state = record["random_state"]


@contextlib.contextmanager
def _taking(part: str, file: PathLike[str], given: bool) -> Iterator[None]:
    """Raise what a part says of the saved numbers as an error of the file, or, where the caller has given it, of the part."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        if given:
            raise ValueError(f"{part}: does not fit the checkpoint {file}: {said}") from error
        raise checkpoint.CheckpointError(f"{file}: {part}: {said}") from None


def new_model(record: dict[str, Any], file: PathLike[str], device: str | None = None) -> Any:
    """A model of the kind and sizes recorded; its weights are its own.

    It is made on `device`; by default on the one recorded, or, where this machine has no such, on the CPU, which a line says.
    """
    config = dict(record["model"])
    if device is None and config["device"] != "cpu":
        try:
            engine(config["device"], config["dtype"])
        except ValueError as error:
            print(f"fastlstm: {error}; using the CPU", file=sys.stderr)
            device = "cpu"
    config["device"] = device or config["device"]
    if config["device"] == "cpu":
        config["dtype"] = {"tf32": "float32", "float16": "bfloat16"}.get(config["dtype"], config["dtype"])
    engine(config["device"], config["dtype"])  # what this machine lacks is no fault of the file
    with schema.reading(file, checkpoint.CheckpointError), schema.within("model"):
        return language.from_config(config)


def new_tokenizer(record: dict[str, Any], file: PathLike[str]) -> Any:
    """The tokenizer recorded, or None."""
    if record["tokenizer"] is None:
        return None
    # Only where it is needed: texts bring the modules of the network along.
    from ..text.prepared import tokenizer_from_config

    with schema.reading(file, checkpoint.CheckpointError), schema.within("tokenizer"):
        return tokenizer_from_config(record["tokenizer"])


def new_optimizer(record: dict[str, Any], file: PathLike[str]) -> Any:
    """An optimizer of the kind recorded; its state is its own."""
    if not record["optimizer"]:
        raise ValueError(f"optimizer: {file} was saved with one of your own making; give one like it (optimizer=...)")
    with schema.reading(file, checkpoint.CheckpointError), schema.within("optimizer"):
        return optimizers.from_config(record["optimizer"])


def new_schedule(record: dict[str, Any], file: PathLike[str]) -> Any:
    """A schedule of the kind recorded, or None."""
    if record["schedule"] is None:
        return None
    if not record["schedule"]:
        raise ValueError(f"schedule: {file} was saved with one of your own making; give one like it (schedule=...)")
    with schema.reading(file, checkpoint.CheckpointError), schema.within("schedule"):
        return optimizers.schedule_from_config(record["schedule"])


def parts(state: Any) -> list[np.ndarray]:
    """The arrays of a model's state: none, one, or those of a tuple."""
    if state is None:
        return []
    return list(state) if isinstance(state, tuple) else [state]


def copied(state: Any) -> Any:
    """The state in arrays of its own."""
    if state is None:
        return None
    return tuple(map(copied, state)) if isinstance(state, tuple) else np.array(as_numpy(state))


def under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those arrays whose name begins with a prefix, without it, in the order of the names."""
    return {name.removeprefix(prefix): arrays[name] for name in sorted(arrays) if name.startswith(prefix)}
