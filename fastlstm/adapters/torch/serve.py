"""One call of a torch module: whether the kernels can serve it, its arguments in their layout, and results in torch's.

Nothing is refused here. What does not fit goes to the forward pass of torch.nn's own class, which serves it or says in its own
words what is wrong; where it serves what the kernels cannot, a warning says so once.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...shape import Shape
from . import cuda as cuda
from .autograd import call
from .core import Core
from .dtypes import ALIKE, Service, converted, preference, service

PLAIN = (Tensor, nn.Parameter)
LSTM_CELL, GRU_CELL = nn.LSTMCell, nn.GRUCell  # torch's own, whatever these names come to mean later
OF_CELLS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
NAMES = {"LSTM": "LSTMCell", "GRU": "GRUCell", "RNN_TANH": "RNNCell", "RNN_RELU": "RNNCell"}
STRIDED = torch.strided
ELSEWHERE: tuple[tuple[Callable[[], Any], str], ...] = (
    (torch._C._are_functorch_transforms_active, "torch.func transforms torch's own operations"),
    (lambda: torch.autograd.forward_ad._current_level >= 0, "the kernels have no forward-mode derivatives"),
    (torch._C._len_torch_dispatch_stack, "a dispatch mode watches torch's own operations"),
    (torch._C._get_tracing_state, "torch.jit traces torch's own operations"),
)

Usual = Callable[..., Any]  # the forward pass of torch.nn's own class, bound to the module

MIXED = "tensors have several dtypes"

_cores: weakref.WeakKeyDictionary[nn.Module, dict[Any, Core]] = weakref.WeakKeyDictionary()
_said: set[str] = set()


def obstacle(tensors: Sequence[Any]) -> str | None:
    """Why the kernels cannot serve these tensors; None where they can."""
    for one in tensors:
        if type(one) not in PLAIN or not one.is_cpu or one.dtype not in ALIKE or one.layout is not STRIDED:
            return _obstacle(one, tensors)
    return None


def _obstacle(one: Any, tensors: Sequence[Any]) -> str | None:
    """`obstacle` where one of the tensors is not as most are."""
    for tensor in tensors:
        if type(tensor) not in PLAIN:
            return f"{type(tensor).__name__} is not a plain tensor"
    if not one.is_cpu:
        return _obstacle_elsewhere(one, tensors)
    if one.dtype not in ALIKE:
        return f"tensors are {_name(one.dtype)}, and the kernels serve {', '.join(map(_name, ALIKE))}"
    return f"tensors have the layout {str(one.layout).removeprefix('torch.')}"


def _obstacle_elsewhere(one: Tensor, tensors: Sequence[Any]) -> str | None:
    """`obstacle` where one of the tensors is not on the CPU."""
    for tensor in tensors:
        if (tensor.device, tensor.dtype, tensor.layout) != (one.device, one.dtype, torch.strided):
            return "tensors are on several devices, of several dtypes or not strided"
    return cuda.obstacle(one.device, one.dtype)


def _elsewhere(x: Tensor) -> str | None:
    """Why a call is one for torch's own operations at this moment, though tensors as these can be served."""
    for holds, why in ELSEWHERE:
        if holds():
            return why
    return None if x.is_cpu else cuda.elsewhere()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _by_torch(module: nn.Module, usual: Usual, input: Any, hx: Any, reason: str) -> Any:
    """Torch's own result and, unless it is an error, a warning: once for each class and reason."""
    result = usual(input, hx)
    say(f"{type(module).__name__} falls back to torch: {reason}")
    return result


def say(text: str) -> None:
    """A warning, once."""
    if text not in _said:
        _said.add(text)
        warnings.warn(text, stacklevel=_depth_of_the_caller())


def _depth_of_the_caller() -> int:
    """How far up, from the function that asks, the first code is that is neither torch's nor this adapter's."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame, depth = frame.f_back, depth + 1
    return depth


def _core(module: nn.Module, sizes: tuple[Any, ...], dtype: str, x: Tensor, single: bool = False) -> Core:
    """The kernels' side of a module. It is not kept in the module, whose copies and pickles so are torch's own.

    sizes: the fields of a `Shape` up to `proj_size`, its cell as torch's `mode`. dtype: of the kernels. x: says where.
    single: whether it is a cell.
    """
    place = cuda.current(x)
    cores, key = _cores.get(module), (sizes, dtype, place)
    core = None if cores is None else cores.get(key)
    if core is None:
        mode = sizes[0]
        shape = replace(Shape("rnn" if mode.startswith("RNN") else mode.lower(), *sizes[1:]), relu=mode == "RNN_RELU")
        # Without a lock, which a forked child might find taken: of two threads that come at once the first one's is kept.
        made = Core(shape, dtype, single=single) if place is None else cuda.CudaCore(shape, dtype, place, single=single)
        core = _cores.setdefault(module, {}).setdefault(key, made)
    return core


def _parts(hx: Any, lstm: bool) -> tuple[Any, ...]:
    """The tensors of a state argument."""
    return () if hx is None else tuple(hx) if lstm and isinstance(hx, tuple | list) else (hx,)


def _fits(
    core: Core, x: Tensor, states: Sequence[Tensor], wanted: Sequence[tuple[int, ...]], weights: Sequence[Tensor]
) -> bool:
    """Whether shapes are as the module's sizes say."""
    return (
        x.numel() > 0
        and x.shape[-1] == core.shape.input_size
        and len(states) in (0, len(wanted))
        and [state.shape for state in states] == [*wanted[: len(states)]]
        and [weight.shape for weight in weights] == core.shapes
    )


def _packs(batch_sizes: Any, data: Tensor) -> bool:
    """Whether these are the sizes of a packed batch's steps; users may make a PackedSequence of anything."""
    if batch_sizes.dtype is not torch.int64 or batch_sizes.dim() != 1 or data.dim() == 0:
        return False
    sizes = batch_sizes.numpy()
    return len(sizes) > 0 and sizes[-1] > 0 and sizes.sum() == len(data) and bool((sizes[1:] <= sizes[:-1]).all())


def serve_layer(module: Any, usual: Usual, input: Any, hx: Any) -> Any:
    """A call of an RNN, LSTM or GRU."""
    packed, lstm, own = isinstance(input, PackedSequence), module.mode == "LSTM", module._parameters
    # Parametrized ones are attributes of another kind.
    weights: Any = [own[name] if name in own else getattr(module, name, None) for name in module._flat_weights_names]
    data, states = input.data if packed else input, _parts(hx, lstm)
    batch_sizes: Any = input.batch_sizes if packed else None
    reason = obstacle((data, *states, *weights)) or _elsewhere(data)
    if reason is None and packed and not data.is_cpu:
        reason = "the kernels on the device cuda do not take packed batches"
    if reason is not None:
        return _by_torch(module, usual, input, hx, reason)
    name = module.mode.partition("_")[0]
    how = service(name, module.proj_size > 0, batch_sizes, data, states, weights)
    if how is None:
        return _by_torch(module, usual, input, hx, MIXED)
    drops = module.training and module.dropout > 0 and module.num_layers > 1
    sizes = (
        module.mode,
        module.input_size,
        module.hidden_size,
        module.num_layers,
        module.bias,
        module.dropout if drops else 0.0,
        module.bidirectional,
        module.proj_size,
    )
    core = _core(module, sizes, how.kernels, data)
    shape = core.shape
    batched = packed or data.dim() == 3
    x = data
    if packed:
        if not _packs(batch_sizes, data):
            return usual(input, hx)
        batch = int(batch_sizes[0])
    else:
        x = data.transpose(0, 1) if batched and module.batch_first else data if batched else data.unsqueeze(-2)
        batch = x.shape[1] if x.dim() == 3 else 0
    middle = (batch,) if batched else ()
    wanted = [(shape.num_layers * shape.directions, *middle, size) for size in (shape.width, shape.hidden_size)][: 1 + lstm]
    if x.dim() != (2 if packed else 3) or not _fits(core, x, states, wanted, weights):
        return usual(input, hx)  # an empty batch, or an error in torch's own words
    if how.half and not drops:  # torch would drop others, and not all calls of a layer are left to it
        even = not module.proj_size and not (packed and batch * len(batch_sizes) > len(data))
        reason = preference(name, how, batch, shape.hidden_size, even)
        if reason is not None:
            return _by_torch(module, usual, input, hx, reason)
    if packed:
        states = tuple(_permuted(state, input.sorted_indices) for state in states)
    elif not batched:
        states = tuple(state.unsqueeze(1) for state in states)
    # The seed comes from torch's generator, so that torch.manual_seed decides it.
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_()) if drops else 0
    out: Any
    out, *end = _converting(how, core, batch_sizes, seed, drops, x, states, weights)
    if packed:
        end = [_permuted(state, input.unsorted_indices) for state in end]
        out = PackedSequence(out, batch_sizes, input.sorted_indices, input.unsorted_indices)
    elif not batched:
        out, end = out.squeeze(1), [state.squeeze(1) for state in end]
    elif module.batch_first:
        out = out.transpose(0, 1)
    return out, tuple(end) if lstm else end[0]


def _converting(
    how: Service,
    core: Core,
    batch_sizes: Tensor | None,
    seed: int,
    drops: bool,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> list[Tensor]:
    """`call` with everything in the kernels' dtype, and its results in torch's."""
    if how.half:
        x, *states = [converted(tensor, how.dtype) for tensor in (x, *states)]
        weights = [converted(weight, how.dtype) for weight in weights]
    h_0, c_0 = (*states, None, None)[:2]
    results = call(core, batch_sizes, seed, drops, x, h_0, c_0, weights)
    if not how.half:
        return [*results]
    return [converted(result, dtype) for result, dtype in zip(results, how.results, strict=False)]


def _permuted(state: Tensor, order: Tensor | None) -> Tensor:
    """A state [layers*directions, B, width] with its batch in another order."""
    return state if order is None else state.index_select(1, order)


def serve_cell(module: Any, usual: Usual, input: Any, hx: Any) -> Any:
    """A call of an RNNCell, LSTMCell or GRUCell: one step of a layer."""
    lstm, own, hidden = isinstance(module, LSTM_CELL), module._parameters, module.hidden_size
    states = _parts(hx, lstm)
    weights = [own[name] if name in own else getattr(module, name) for name in OF_CELLS[: 4 if module.bias else 2]]
    reason = obstacle((input, *states, *weights)) or _elsewhere(input)
    if reason is not None:
        return _by_torch(module, usual, input, hx, reason)
    if lstm:
        mode = "LSTM"
    elif isinstance(module, GRU_CELL):
        mode = "GRU"
    elif module.nonlinearity in MODES:
        mode = MODES[module.nonlinearity]
    else:
        return usual(input, hx)
    name = NAMES[mode]
    how = service(name, False, None, input, states, weights)
    if how is None:
        return _by_torch(module, usual, input, hx, MIXED)
    if not hidden or not module.input_size:
        return usual(input, hx)  # all results are known without a product
    core = _core(module, (mode, module.input_size, hidden, 1, module.bias), how.kernels, input, single=True)
    wanted = [(*input.shape[:-1], hidden)] * (1 + lstm)
    if input.dim() not in (1, 2) or not _fits(core, input, states, wanted, weights):
        return usual(input, hx)
    if how.half:
        reason = preference(name, how, len(input) if input.dim() == 2 else 1, hidden, True)
        if reason is not None:
            return _by_torch(module, usual, input, hx, reason)
    results = _converting(how, core, None, 0, False, input, states, weights)
    return tuple(results) if lstm else results[0]
