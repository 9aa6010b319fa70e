"""Checks of what a trainer is made of: parts of this package or of somebody's own making, asked for what is used of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..runtime import check
from .state import Callback


def check_part(name: str, value: Any, members: Sequence[str], wanted: str) -> None:
    """Raise TypeError for a class in place of an instance, and for an object that lacks members."""
    if isinstance(value, type):
        raise TypeError(f"{name}: expected {wanted}, got the class {value.__name__}; make one of it: {value.__name__}(...)")
    missing = [member for member in members if not hasattr(value, member)]
    if missing:
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}, which has no {', '.join(missing)}")


def check_parts(model: Any, optimizer: Any, schedule: Any, tokenizer: Any) -> None:
    """Raise TypeError for a part that cannot serve, ValueError for a tokenizer that does not fit the model."""
    check_part("model", model, ("train_batch", "eval_batch", "config"), "a model such as fastlstm.LanguageModel")
    check_part("optimizer", optimizer, ("step", "lr"), "an optimizer such as fastlstm.Adam(lr=1e-3)")
    if schedule is not None:
        check_part("schedule", schedule, ("__call__",), "a schedule such as fastlstm.Plateau(), or a function of the step")
    if tokenizer is not None:
        check_part("tokenizer", tokenizer, ("encode", "config"), "a tokenizer such as fastlstm.text.prepare makes")
        check_vocabulary(model, tokenizer)


def check_saved(model: Any, optimizer: Any) -> None:
    """Raise TypeError for a part that no checkpoint can hold."""
    members = "state_dict", "load_state_dict", "random_state"
    check_part("model", model, members, "a model that can be saved, such as fastlstm.LanguageModel")
    members = "state_arrays", "load_state_arrays", "steps"
    check_part("optimizer", optimizer, members, "an optimizer that can be saved, such as fastlstm.Adam(lr=1e-3)")


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raise ValueError if a language model lacks tokens that a tokenizer has."""
    known, needed = (getattr(part, "vocab_size", None) for part in (model, tokenizer))
    # Another package's tokenizer may have something else by this name, such as a method.
    if isinstance(known, int) and isinstance(needed, int) and needed > known:
        raise ValueError(f"tokenizer has {needed} tokens, the model {known}; expected no more than that")


def check_callbacks(value: Any) -> list[Any]:
    """The callbacks as a list; each is a `Callback` or something to call."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"callbacks: expected a sequence of fastlstm.Callback or functions, got {type(value).__name__}")
    found = list(value)
    for k, one in enumerate(found):
        if isinstance(one, type) or not (isinstance(one, Callback) or callable(one)):
            shown = f"the class {one.__name__}" if isinstance(one, type) else type(one).__name__
            raise TypeError(f"callbacks[{k}]: expected a fastlstm.Callback or a function, got {shown}")
    return found


def check_clip_norm(value: Any) -> None:
    """Raise TypeError or ValueError unless it is None or a number above 0."""
    if value is not None and not check.number("clip_norm", value) > 0:
        raise ValueError(f"clip_norm: expected a positive number or None, got {value!r}")
