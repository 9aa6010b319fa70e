"""The kernels as a node of torch's graph: first derivatives by the kernels, higher ones by torch's own operations.

A backward pass uses up what the forward pass saved; one that comes again (`retain_graph`) makes the forward pass again first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._compile
from torch import Tensor

from .core import Core, Results, Run, plain

Weights = Sequence[Tensor]


def dynamo_may_watch() -> bool:
    """Whether torch.compile may be tracing what runs: then the kernels' calls must be made by what `apart` returns."""
    return torch.compiler.is_compiling() or torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` where torch.compile does not look: graphs break at it, for what it does is none of torch's operations.

    As torch.compiler.disable, which would import the compiler at once, for a second.
    """
    hidden: Callable[..., Any] = torch._compile._disable_dynamo(function)
    return hidden


def call(
    core: Core,
    batch_sizes: Tensor | None,
    seed: int,
    drops: bool,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Weights,
) -> Results:
    """(out, h_n) or (out, h_n, c_n) of x [T, B, I], or [rows, I] with `batch_sizes`; a node of the graph where it is needed.

    Of a cell's x [B, I] or [I]: (h, ) or (h, c).
    """
    tensors = (x, *(state for state in (h_0, c_0) if state is not None), *weights)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        results: Results = Recurrent.apply(core, batch_sizes, seed, x, h_0, c_0, *weights)  # type: ignore[no-untyped-call]
        return results
    run = _run(core, batch_sizes, seed, x, h_0, c_0, weights, save=drops)
    run.close()
    return run.outputs


def _run(
    core: Core,
    batch_sizes: Tensor | None,
    seed: int,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Weights,
    save: bool,
) -> Run:
    x, h_0, c_0 = plain(x), h_0 if h_0 is None else plain(h_0), c_0 if c_0 is None else plain(c_0)
    return Run(core, x, h_0, c_0, weights, seed, save, batch_sizes)


class Recurrent(torch.autograd.Function):
    """All layers of a recurrent network over a batch of sequences."""

    @staticmethod
    def forward(
        ctx: Any,
        core: Core,
        batch_sizes: Tensor | None,
        seed: int,
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        *weights: Tensor,
    ) -> Any:
        """See `call`."""
        ctx.core, ctx.batch_sizes, ctx.seed = core, batch_sizes, seed
        ctx.save_for_backward(x, h_0, c_0, *weights)
        ctx.set_materialize_grads(False)
        run = _run(core, batch_sizes, seed, x, h_0, c_0, weights, save=True)
        # Were the outputs still found from here, they and the graph that hangs on them would hold each other.
        outputs, run.outputs = run.outputs, ()
        ctx.runs = [run]  # of two threads that come at once, one takes it
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """Gradients of x, h_0, c_0 and the weights, None where none are wanted."""
        return (_backward_apart if dynamo_may_watch() else Recurrent._backward)(ctx, *gradients)

    @staticmethod
    def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        core, batch_sizes, seed = ctx.core, ctx.batch_sizes, ctx.seed
        x, h_0, c_0, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        # They are to be differentiated themselves, or are many at once, without memory of their own.
        if torch.is_grad_enabled() or any(part is not None and _batched(part) for part in gradients):
            return None, None, None, *_differentiable(core, batch_sizes, seed, (x, h_0, c_0, *weights), gradients, wanted)
        try:
            # Of a core that this thread is in the middle of using, where a finalizer or handler calls, no run can go on.
            run = None if core.busy else ctx.runs.pop()
        except IndexError:  # used up by an earlier pass
            run = None
        if run is None:
            run = _run(core, batch_sizes, seed, x, h_0, c_0, weights, save=True)
        gradients = tuple([None if part is None or part._is_zerotensor() else plain(part) for part in gradients])
        found = run.backward(plain(x), weights, gradients, wanted[0], wanted[1] or wanted[2])
        return None, None, None, *(part if want else None for part, want in zip(found, wanted, strict=True))


def _batched(tensor: Tensor) -> bool:
    """Whether this is one of many gradients that torch has taken together, as for `is_grads_batched`."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor) or torch._C._functorch.is_batchedtensor(tensor)


_backward_apart = apart(Recurrent._backward)


def _differentiable(
    core: Core,
    batch_sizes: Tensor | None,
    seed: int,
    inputs: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of `inputs` (x, h_0, c_0, weights) as torch finds them, with a graph of their own where one is wanted."""
    create, place = torch.is_grad_enabled(), inputs[0].device.type  # type: ignore[union-attr]
    # As in the forward pass; and cuDNN has no second derivatives.
    with torch.enable_grad(), torch.autocast(place, enabled=False), torch.backends.cudnn.flags(enabled=False):
        # Where differentiation is to end: at the inputs, not at what they were made of.
        ends = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        x, h_0, c_0, *weights = ends
        outputs = by_torch(core, batch_sizes, seed, x, h_0, c_0, weights)  # type: ignore[arg-type]
    sources = [end for end, want in zip(ends, wanted, strict=True) if want and end is not None]
    pairs = [(out, gradient) for out, gradient in zip(outputs, gradients, strict=True) if gradient is not None]
    results, incoming = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(results, sources, incoming, create_graph=create, allow_unused=True))
    return [next(found) if want else None for want in wanted]


def by_torch(
    core: Core, batch_sizes: Tensor | None, seed: int, x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Weights
) -> Results:
    """What the kernels compute, with the same elements dropped, by torch's own operations."""
    shape, directions = core.shape, core.shape.directions
    if core.single:
        axes, x = x.shape[:-1], x.reshape(1, -1, shape.input_size)
        h_0, c_0 = (part if part is None else part.reshape(1, -1, shape.hidden_size) for part in (h_0, c_0))
    batch = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    if h_0 is None:
        h_0 = x.new_zeros(shape.num_layers * directions, batch, shape.width)
    if c_0 is None:
        c_0 = x.new_zeros(shape.num_layers * directions, batch, shape.hidden_size)
    function = {"lstm": torch.lstm, "gru": torch.gru, "rnn": torch.rnn_relu if shape.relu else torch.rnn_tanh}[shape.cell]
    each = len(weights) // shape.num_layers
    ends = []
    for layer in range(shape.num_layers):
        if layer > 0 and shape.dropout > 0:
            mask = core.mask(x.shape[:-1].numel(), layer - 1, seed, x)
            x = x * mask.view(x.shape)
        part = slice(layer * directions, (layer + 1) * directions)
        state = (h_0[part], c_0[part]) if shape.cell == "lstm" else h_0[part]
        parameters = list(weights[layer * each : (layer + 1) * each])
        options = (parameters, shape.bias, 1, 0.0, False, shape.bidirectional)
        if batch_sizes is None:
            x, *end = function(x, state, *options, False)  # type: ignore[operator]
        else:
            x, *end = function(x, batch_sizes, state, *options)  # type: ignore[operator]
        ends.append(end)
    states = (torch.cat(parts) for parts in zip(*ends, strict=True))
    return tuple(state.reshape(*axes, shape.hidden_size) for state in states) if core.single else (x, *states)
