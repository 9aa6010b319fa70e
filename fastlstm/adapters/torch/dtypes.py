"""Which kernels serve tensors of which dtypes, and of which dtypes torch's own results would be.

Half precisions are served by kernels whose states, sums and gates are float32: bfloat16 by those that multiply in bfloat16,
float16 by those of float32. What they read and write is converted by torch, in its graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...kernels.native import jit


class Service(NamedTuple):
    """How a call is served."""

    kernels: str  # their dtype
    dtype: torch.dtype  # of what they read and write
    results: tuple[torch.dtype, ...]  # of out and the final states; of a cell's state
    half: bool  # whether torch's tensors and the kernels' may differ in dtype


def _alike(dtype: torch.dtype, kernels: str, inner: torch.dtype, half: bool) -> Service:
    return Service(kernels, inner, (dtype, dtype, dtype), half)


ALIKE = {
    torch.float32: _alike(torch.float32, "float32", torch.float32, False),
    torch.float64: _alike(torch.float64, "float64", torch.float64, False),
    torch.bfloat16: _alike(torch.bfloat16, "bfloat16", torch.float32, True),
    torch.float16: _alike(torch.float16, "float32", torch.float32, True),
}
"""For tensors that all have one dtype."""

# Torch's own, whatever these names come to mean later.
CLASSES = {each.__name__: each for each in (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)}
FEW = 2048  # elements of a step's state


def service(
    name: str, projected: bool, batch_sizes: Tensor | None, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> Service | None:
    """For tensors of the dtypes in `ALIKE`; None where torch has an error for them, or rules of its own.

    name: of torch.nn's class. batch_sizes: of a packed batch.
    """
    dtypes = {tensor.dtype for tensor in (x, *states, *weights)}
    autocast = torch.is_autocast_enabled("cpu") and x.is_cpu
    if len(dtypes) == 1 and (not autocast or torch.float64 in dtypes):
        return ALIKE[dtypes.pop()]
    of_weights = {weight.dtype for weight in weights}
    if not autocast or torch.float64 in dtypes or len(of_weights) > 1:
        return None
    chosen = torch.get_autocast_dtype("cpu")
    sizes = () if batch_sizes is None else (1,) if batch_sizes[:1].equal(batch_sizes[-1:]) else (2, 1)
    setting = chosen, torch.is_grad_enabled(), torch._C._get_mkldnn_enabled()
    given = x.dtype, tuple(state.dtype for state in states), of_weights.pop()
    try:
        results = _under_autocast(name, projected, sizes, *given, setting)
    except (RuntimeError, ValueError):  # the layer itself will raise it
        return None
    return Service(ALIKE[chosen].kernels, torch.float32, results, True)


@cache
def _under_autocast(
    name: str,
    projected: bool,
    sizes: tuple[int, ...],
    of_x: torch.dtype,
    of_states: tuple[torch.dtype, ...],
    of_weights: torch.dtype,
    setting: tuple[Any, ...],
) -> tuple[torch.dtype, ...]:
    """Torch's rules, which differ by layer and by the library that it has for one: a layer of two units shows them.

    sizes: of a packed batch's steps, for which it matters whether they are equal. setting: all else that matters.
    """
    options: Any = {"proj_size": 1} if projected else {}
    # By way of no memory: nothing is drawn from torch's generator. Without gradients: a checkpoint that is being recorded must
    # not see what it will not see again.
    layer = CLASSES[name](2, 2, dtype=of_weights, device="meta", **options).to_empty(device="cpu").requires_grad_(False)
    middle = () if name.endswith("Cell") else (1,)
    rows = sizes[0] if sizes else 1
    x: Any = torch.zeros(*middle, 1, 2, dtype=of_x, device="cpu")
    if sizes:
        x = PackedSequence(torch.zeros(sum(sizes), 2, dtype=of_x, device="cpu"), torch.tensor(sizes, device="cpu"))
    widths = (1 if projected else 2, 2)
    states = [
        torch.zeros(*middle, rows, width, dtype=dtype, device="cpu") for width, dtype in zip(widths, of_states, strict=False)
    ]
    state: Any = None if not states else tuple(states) if name.startswith("LSTM") else states[0]
    return tuple(tensor.dtype for tensor in _flat(layer.forward(x, state)))  # by no hook that is registered for all modules


def preference(name: str, how: Service, batch: int, hidden: int, even: bool) -> str | None:
    """Why a call in a half precision is left to torch, whose own operations were measured to be the faster ones; else None.

    even: whether all sequences are of one length, and not projected: such LSTMs are oneDNN's.
    """
    few, narrow = batch * hidden <= FEW, how.kernels == "bfloat16"
    if name.endswith("Cell") and (narrow or few):
        return "a step in half precision takes less time than converting for the kernels"
    if name == "LSTM" and narrow and even and not few and not torch.is_grad_enabled() and _has_onednn():
        return "its inference in bfloat16 is as fast or faster at this size"
    return None


def _has_onednn() -> bool:
    """Whether torch's oneDNN multiplies as the kernels do and as it was measured."""
    return torch._C._get_mkldnn_enabled() and jit.bfloat16_product() == "dot"


def _flat(results: Any) -> list[Tensor]:
    """The tensors of a layer's or cell's results in order."""
    if isinstance(results, PackedSequence):
        return [results.data]
    return [results] if isinstance(results, Tensor) else [tensor for part in results for tensor in _flat(part)]


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor itself, or its values as another dtype, in order."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype, memory_format=torch.contiguous_format)
