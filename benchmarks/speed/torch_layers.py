"""Times the PyTorch adapter's layers: `python -m benchmarks.speed.torch_layers --record torch-layers`.

They are compared with those of torch.nn and with fastlstm's native layers. A training step is forward, a loss, backward, and
setting the gradients to zero. `share` is the part of the native layer's advantage over torch that is left if the layer is
called through torch: (torch's time / the adapter's time) / (torch's time / the native layer's time). Packed batches have
lengths from 1 to T, all equally likely, in random order. Layers in bfloat16, and in float32 under autocast to bfloat16, are
compared with torch only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch._dynamo  # every optimizer of torch imports it, which changes how modules are called
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from benchmarks.measure.alternate import compare
from benchmarks.measure.record import Record
from fastlstm.adapters import torch as adapter

CELLS = ("lstm", "gru", "rnn")
SHAPES = [(64, 8), (64, 64), (128, 8), (128, 32), (256, 8), (256, 64), (512, 16)]  # H (and I), B
HALF = [(64, 8), (256, 64)]  # in half precision
STEPS = 100


def layers(cell: str, hidden: int) -> tuple[Any, Any, Any]:
    """Return the adapter's, torch's and the native layer with the same weights."""
    theirs = getattr(nn, cell.upper())(hidden, hidden)
    through = getattr(adapter, cell.upper())(hidden, hidden)
    native = getattr(fastlstm, cell.upper())(hidden, hidden)
    through.load_state_dict(theirs.state_dict())
    native.load_state_dict(theirs.state_dict())
    return through, theirs, native


def training(layer: nn.Module, given: Any, dout: torch.Tensor) -> Callable[[], None]:
    """Return a training step by torch's graph.

    The weights change in each step, as an optimizer would change them, but by very little. They are changed through NumPy,
    since the time of an optimizer is not part of a layer's.
    """
    parameters = list(layer.parameters())
    weights = [weight.numpy() if weight.dtype is torch.float32 else weight for weight in map(torch.Tensor.detach, parameters)]

    def step() -> None:
        out = layer(given)[0]
        (out if isinstance(out, torch.Tensor) else out.data).backward(dout)
        for weight in weights:
            weight *= np.float32(0.9999999)
        for parameter in parameters:
            parameter.grad = None

    return step


def native_training(layer: Any, x: np.ndarray, dout: np.ndarray) -> Callable[[], None]:
    """Return the same training step by the native layer."""

    def step() -> None:
        layer.zero_grads()
        _, _, backprop = layer.forward_train(x)
        backprop(dout)
        layer.params.flat[:] *= np.float32(0.9999999)
        layer.params.bump()

    return step


def inference(layer: nn.Module, given: Any) -> Callable[[], None]:
    """Return a forward pass that saves nothing for a backward pass."""

    def run() -> None:
        with torch.no_grad():
            layer(given)

    return run


def whole(cell: str, hidden: int, batch: int, seconds: float) -> dict[str, Any]:
    """Return the milliseconds of each layer, and the shares, for sequences of one length."""
    through, theirs, native = layers(cell, hidden)
    x, dout = torch.randn(STEPS, batch, hidden), torch.randn(STEPS, batch, hidden)
    point: dict[str, Any] = {}
    for kind, functions in {
        "training": {
            "through": training(through, x, dout),
            "native": native_training(native, x.numpy(), dout.numpy()),
            "torch": training(theirs, x, dout),
        },
        "inference": {"through": inference(through, x), "native": lambda: native(x.numpy()), "torch": inference(theirs, x)},
    }.items():
        found = compare(functions, seconds=seconds)
        point[kind] = {name: round(1e3 * value["seconds"], 4) for name, value in found.items()}
        point[kind] |= {"times as fast": round(found["torch"]["speedup"], 3), "share": round(found["native"]["speedup"], 3)}
    return point


def packed(cell: str, hidden: int, batch: int, seconds: float) -> dict[str, Any]:
    """Return the milliseconds of each layer for sequences of unequal lengths."""
    through, theirs, _ = layers(cell, hidden)
    lengths = torch.from_numpy(np.random.default_rng(0).integers(1, STEPS + 1, batch))
    given = pack_padded_sequence(torch.randn(STEPS, batch, hidden), lengths, enforce_sorted=False)
    dout = torch.randn(len(given.data), hidden)
    return {"rows": len(given.data)} | both(through, theirs, given, dout, seconds)


class Autocast(nn.Module):
    """A layer under autocast to bfloat16."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, given: torch.Tensor) -> Any:
        """Call the layer."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layer(given)


def bfloat16(cell: str, hidden: int, batch: int, seconds: float) -> dict[str, Any]:
    """Return the milliseconds of each layer in bfloat16."""
    through, theirs, _ = layers(cell, hidden)
    x = torch.randn(STEPS, batch, hidden, dtype=torch.bfloat16)
    return both(through.bfloat16(), theirs.bfloat16(), x, torch.randn_like(x), seconds)


def autocast(cell: str, hidden: int, batch: int, seconds: float) -> dict[str, Any]:
    """Return the milliseconds of each layer under autocast to bfloat16."""
    through, theirs, _ = layers(cell, hidden)
    x, through, theirs = torch.randn(STEPS, batch, hidden), Autocast(through), Autocast(theirs)
    return both(through, theirs, x, torch.randn_like(theirs(x)[0]), seconds)


def both(through: nn.Module, theirs: nn.Module, given: Any, dout: torch.Tensor, seconds: float) -> dict[str, Any]:
    """Return the milliseconds of both layers, and how many times as fast the adapter's is."""
    point: dict[str, Any] = {}
    for kind, make in {
        "training": lambda layer: training(layer, given, dout),
        "inference": lambda layer: inference(layer, given),
    }.items():
        found = compare({"through": make(through), "torch": make(theirs)}, seconds=seconds)
        point[kind] = {name: round(1e3 * value["seconds"], 4) for name, value in found.items()}
        point[kind]["times as fast"] = round(found["torch"]["speedup"], 3)
    return point


SECTIONS = {"whole": (whole, SHAPES), "packed": (packed, SHAPES), "bfloat16": (bfloat16, HALF), "autocast": (autocast, HALF)}


def main() -> None:
    """Measure, print, and write the record if one was named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", help="name of the file under benchmarks/results")
    parser.add_argument("--resume", action="store_true", help="skip points that the file holds")
    parser.add_argument("--cell", choices=CELLS, help="only this one")
    parser.add_argument("--hidden", type=int, help="only this size")
    parser.add_argument("--section", choices=SECTIONS, help="only this one")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a block")
    options = parser.parse_args()
    record = Record(options.record, options.resume)
    torch.manual_seed(0)
    for section, (function, shapes) in SECTIONS.items():
        for cell in CELLS:
            for hidden, batch in shapes:
                point = f"{cell} {hidden}->{hidden} B={batch} T={STEPS}"
                wanted = zip((options.cell, options.section, options.hidden), (cell, section, hidden), strict=True)
                if all(one in (None, other) for one, other in wanted) and not record.done(section, point):
                    record.mark()
                    record.put(section, point, found := function(cell, hidden, batch, options.seconds))
                    print(section, point, found, flush=True)


if __name__ == "__main__":
    main()
