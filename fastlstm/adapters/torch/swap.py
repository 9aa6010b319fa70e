"""What `accelerate` reports, and how it measures a gain: layers beside their twins, on copies, in the shapes that they see."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Twin = Callable[[type[nn.Module]], type[nn.Module]]

BATCH, STEPS = 32, 100  # of a layer that no example says the shape of
ROUNDS, SECONDS = 5, 0.02  # a round times a block of each; about how long a block takes


@dataclass
class Report:
    """What `accelerate` did, or with `dry_run` would do. The module itself is named "".

    Attributes
    ----------
    swapped : list of str
        Names of layers that the kernels serve.
    kept : dict of str to str
        Why the other recurrent layers stay torch's.
    gains : dict of str to dict
        With a dry run: "shape", a text; "training" and "inference", how many times as fast as torch.
    dry_run : bool
    """

    swapped: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    gains: dict[str, dict[str, Any]] = field(default_factory=dict)
    dry_run: bool = False

    def __str__(self) -> str:
        lines = []
        for name in self.swapped:
            line = f"{name or '(the module itself)'}: {'would be swapped' if self.dry_run else 'swapped'}"
            if name in self.gains:
                gain = self.gains[name]
                line += f"; {gain['shape']}: training {gain['training']:.2f} times as fast, inference {gain['inference']:.2f}"
            lines.append(line)
        lines += [f"{name or '(the module itself)'}: kept, {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines) if lines else "no recurrent layer found"


def measure(module: nn.Module, names: Sequence[str], twin: Twin, example: Sequence[Any] | None) -> dict[str, dict[str, Any]]:
    """The gain of each named layer; random numbers, parameters, gradients and buffers of `module` stay as they are."""
    with torch.random.fork_rng(devices=[]):
        inputs = _seen(module, names, example)
        return {name: _gain(module.get_submodule(name), twin, inputs[name]) if name in inputs else _unseen() for name in names}


def _unseen() -> dict[str, Any]:
    return {"shape": "not called by the example", "training": float("nan"), "inference": float("nan")}


def _seen(module: nn.Module, names: Sequence[str], example: Sequence[Any] | None) -> dict[str, Any]:
    """The first input of each layer when a copy of the module is called with the example; without one, an invented input."""
    if example is None:
        return {name: _invented(module.get_submodule(name)) for name in names}
    other = copy.deepcopy(module).eval()
    seen: dict[str, Any] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, arguments: Any, keywords: Any) -> None:
            seen.setdefault(name, arguments[0] if arguments else keywords["input"])

        return hook

    for name in names:
        other.get_submodule(name).register_forward_pre_hook(note(name), with_kwargs=True)
    with torch.no_grad():
        other(*example)
    return seen


def _invented(layer: Any) -> Tensor:
    shape = (BATCH, layer.input_size)
    if isinstance(layer, nn.RNNBase):
        shape = (BATCH, STEPS, layer.input_size) if layer.batch_first else (STEPS, *shape)  # type: ignore[assignment]
    return torch.randn(shape, dtype=next(layer.parameters()).dtype)


def _gain(layer: nn.Module, twin: Twin, given: Any) -> dict[str, Any]:
    theirs = copy.deepcopy(layer)
    theirs._forward_hooks.clear()
    theirs._forward_pre_hooks.clear()
    ours = copy.deepcopy(theirs)
    ours.__class__ = twin(type(layer))
    tensor = given.data if isinstance(given, PackedSequence) else given
    packed = " packed" if isinstance(given, PackedSequence) else ""
    found: dict[str, Any] = {"shape": f"input {list(tensor.shape)}{packed}"}
    for kind in ("training", "inference"):
        one, other = _call(ours, given, kind), _call(theirs, given, kind)
        one(), other()
        counts = [max(1, round(SECONDS / _seconds(each, 1))) for each in (one, other)]
        rounds = [(_seconds(one, counts[0]), _seconds(other, counts[1])) for _ in range(ROUNDS)]
        found[kind] = statistics.median(b / a for a, b in rounds)
    return found


def _call(layer: nn.Module, given: Any, kind: str) -> Callable[[], None]:
    """A training step without optimizer, or a forward pass."""

    def training() -> None:
        layer.zero_grad()
        out = layer.train()(given)
        out = out[0] if isinstance(out, tuple) else out
        (out.data if isinstance(out, PackedSequence) else out).sum().backward()

    def inference() -> None:
        with torch.no_grad():
            layer.eval()(given)

    return training if kind == "training" else inference


def _seconds(function: Callable[[], None], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - begin) / count
