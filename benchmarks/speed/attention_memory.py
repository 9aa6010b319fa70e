"""Measures how the memory of a training step grows with the length of the sequence, for attention and for a recurrent layer.

Run: ``python -m benchmarks.speed.attention_memory [--record NAME]``. One sequence, 256 units, four heads; one layer runs
forward and backward in a process of its own, and its peak memory is compared with that of a short sequence. Attention is
computed in two ways: as in textbooks, with a table of T x T weights for each head, and by PyTorch's fused kernel, which has no
such table.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from benchmarks.measure.record import Record
from benchmarks.speed.start import output

WIDTH, HEADS = 256, 4
LENGTHS = (1024, 2048, 4096, 8192)
SHORT = 16
ATTENTION = """
import resource, torch
torch.manual_seed(0)
x = torch.randn(1, {steps}, {width})
weights = [torch.randn({width}, {width}, requires_grad=True) for _ in range(3)]
q, k, v = ((x @ w).view(1, {steps}, {heads}, -1).transpose(1, 2) for w in weights)
if {fused}:
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
else:
    scores = q @ k.transpose(2, 3) * {width} ** -0.5
    future = torch.ones({steps}, {steps}, dtype=torch.bool).triu(1)
    out = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
out.sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
LSTM = """
import resource, numpy as np, fastlstm
layer = fastlstm.LSTM({width}, {width}, seed=0)
x = np.ones(({steps}, 1, {width}), np.float32)
out, _, backprop = layer.forward_train(x)
backprop(out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
KINDS = {
    "attention, a table of weights": (ATTENTION, False),
    "attention, fused": (ATTENTION, True),
    "LSTM, fastlstm": (LSTM, False),
}


def peak(code: str, fused: bool, steps: int) -> float:
    """Return the peak memory of one process in MiB."""
    return output(code.format(width=WIDTH, heads=HEADS, fused=fused, steps=steps))


def growth(lengths: list[int], mebibytes: list[float]) -> float:
    """Return the power of the length with which memory grows, between the last two lengths: 1 is linear, 2 quadratic."""
    return math.log(mebibytes[-1] / mebibytes[-2]) / math.log(lengths[-1] / lengths[-2])


def measure(code: str, fused: bool, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    """Return, by length, the memory beyond that of a short sequence."""
    peak(code, fused, SHORT)  # compiles kernels
    base = peak(code, fused, SHORT)
    found = [peak(code, fused, steps) - base for steps in lengths]
    return {"tokens": list(lengths), "mebibytes": found, "power": growth(list(lengths), found)}


def main() -> None:
    """Measure, print, and write the record if one was named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", metavar="NAME")
    record = Record(parser.parse_args().record, timed=False)
    for kind, (code, fused) in KINDS.items():
        one = record.content["results"][kind] = measure(code, fused)
        record.save()
        print(f"{kind:30} {', '.join(f'{m:.0f}' for m in one['mebibytes'])} MiB: length to the power {one['power']:.2f}")


if __name__ == "__main__":
    main()
