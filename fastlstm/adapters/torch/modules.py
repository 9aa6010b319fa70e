"""Drop-ins for torch.nn's recurrent layers: `RNN`, `LSTM`, `GRU` and their cells; `accelerate` and `restore` for whole models.

Each class is torch.nn's class of the same name with another forward pass: constructor, parameters, state_dict, moves, copies
and errors are torch's own. What the kernels cannot serve goes to torch's forward pass, and a warning says so once.

Examples
--------
>>> import torch
>>> from fastlstm.adapters.torch import LSTM
>>> layer = LSTM(3, 5, num_layers=2)
>>> out, (h_n, c_n) = layer(torch.ones(7, 2, 3))
>>> out.sum().backward()
>>> out.shape, layer.weight_ih_l0.grad.shape
(torch.Size([7, 2, 5]), torch.Size([20, 3]))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

try:
    import torch
except ImportError as error:
    raise ImportError('fastlstm.adapters.torch needs PyTorch; install it with: pip install "fastlstm[torch]"') from error
from torch import nn

from .autograd import apart, dynamo_may_watch
from .serve import obstacle, serve_cell, serve_layer
from .swap import Report, measure
from .twins import TWINS, originals, reason_against, telling, twin

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Report", "accelerate", "restore"]


def _layer(module: nn.Module, usual: Any, input: Any, hx: Any) -> Any:
    if torch.compiler.is_compiling() and torch.compiler.is_exporting():
        return usual(input, hx)
    return (_layer_apart if dynamo_may_watch() else serve_layer)(module, usual, input, hx)


def _cell(module: nn.Module, usual: Any, input: Any, hx: Any) -> Any:
    if torch.compiler.is_compiling() and torch.compiler.is_exporting():
        return usual(input, hx)
    return (_cell_apart if dynamo_may_watch() else serve_cell)(module, usual, input, hx)


_layer_apart, _cell_apart = apart(serve_layer), apart(serve_cell)


class RNN(nn.RNN):
    """torch.nn.RNN by fastlstm's kernels; arguments, parameters, inputs and outputs are those of torch.nn.RNN."""

    __setattr__ = telling(nn.RNN)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """(output, h_n) of input [T, B, I], [B, T, I], [T, I] or a PackedSequence, as torch.nn.RNN."""
        return _layer(self, super().forward, input, hx)


class LSTM(nn.LSTM):
    """torch.nn.LSTM by fastlstm's kernels; arguments, parameters, inputs and outputs are those of torch.nn.LSTM."""

    __setattr__ = telling(nn.LSTM)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """(output, (h_n, c_n)) of input [T, B, I], [B, T, I], [T, I] or a PackedSequence, as torch.nn.LSTM."""
        return _layer(self, super().forward, input, hx)


class GRU(nn.GRU):
    """torch.nn.GRU by fastlstm's kernels; arguments, parameters, inputs and outputs are those of torch.nn.GRU."""

    __setattr__ = telling(nn.GRU)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """(output, h_n) of input [T, B, I], [B, T, I], [T, I] or a PackedSequence, as torch.nn.GRU."""
        return _layer(self, super().forward, input, hx)


class RNNCell(nn.RNNCell):
    """torch.nn.RNNCell by fastlstm's kernels."""

    __setattr__ = telling(nn.RNNCell)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The state after one step of input [B, I] or [I], as torch.nn.RNNCell."""
        return _cell(self, super().forward, input, hx)


class LSTMCell(nn.LSTMCell):
    """torch.nn.LSTMCell by fastlstm's kernels."""

    __setattr__ = telling(nn.LSTMCell)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The pair (h, c) after one step of input [B, I] or [I], as torch.nn.LSTMCell."""
        return _cell(self, super().forward, input, hx)


class GRUCell(nn.GRUCell):
    """torch.nn.GRUCell by fastlstm's kernels."""

    __setattr__ = telling(nn.GRUCell)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The state after one step of input [B, I] or [I], as torch.nn.GRUCell."""
        return _cell(self, super().forward, input, hx)


TWINS.update(
    {
        nn.RNN: RNN,
        nn.LSTM: LSTM,
        nn.GRU: GRU,
        nn.RNNCell: RNNCell,
        nn.LSTMCell: LSTMCell,
        nn.GRUCell: GRUCell,
    }
)

RECURRENT: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCell, nn.LSTMCell, nn.GRUCell)


def accelerate(module: nn.Module, dry_run: bool = False, *, example: Sequence[Any] | None = None) -> Report:
    """Let fastlstm's kernels serve every recurrent layer inside a module, and the module itself if it is one.

    A layer stays the object that it was, with its parameters, hooks and training state; only its class changes. So optimizers
    that hold its parameters, and names in the state_dict, are not affected. A layer of a class derived from torch.nn's gets one
    that is derived from both, unless its own class has a forward pass, or parameters, of its own.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place.
    dry_run : bool
        Change nothing, and measure what would be gained.
    example : sequence, optional
        With `dry_run`: the arguments of a typical call of `module`. They say which shapes each layer sees; a copy of the
        module is called with them. None: 32 sequences of 100 steps, and 32 rows for a cell.

    Returns
    -------
    Report
        Names of the layers that were swapped (or would be), names and reasons of the others, and with `dry_run` the gains.

    Raises
    ------
    TypeError
        If `module` is not a module, or an `example` comes without `dry_run`.

    Examples
    --------
    >>> import torch
    >>> from fastlstm.adapters.torch import accelerate
    >>> model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(8, 16), "head": torch.nn.Linear(16, 2)})
    >>> accelerate(model).swapped
    ['encoder']
    >>> model
    ModuleDict(
      (encoder): GRU(8, 16)
      (head): Linear(in_features=16, out_features=2, bias=True)
    )
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is {type(module).__name__}; expected a torch.nn.Module")
    if example is not None and not dry_run:
        raise TypeError("example is given without dry_run=True; expected an example only where something is measured")
    report = Report(dry_run=dry_run)
    for name, layer in module.named_modules():
        if not isinstance(layer, RECURRENT):
            continue
        reason = reason_against(layer) or obstacle([*layer.parameters()])
        if reason is not None:
            report.kept[name] = reason
            continue
        report.swapped.append(name)
        if not dry_run:
            layer.__class__ = twin(type(layer))
    if dry_run:
        report.gains = measure(module, report.swapped, twin, example)
    return report


def restore(module: nn.Module) -> list[str]:
    """Make every layer of this adapter inside a module torch.nn's own again, weights as they are: `accelerate` undone.

    Returns
    -------
    list of str
        Names of the layers that were changed.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is {type(module).__name__}; expected a torch.nn.Module")
    back = originals()
    names = []
    for name, layer in module.named_modules():
        if type(layer) in back:
            layer.__class__ = back[type(layer)]
            names.append(name)
    return names
