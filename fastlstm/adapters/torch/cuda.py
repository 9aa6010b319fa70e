"""Modules on a CUDA device: the kernels on torch's memory, handed over by DLPack, in the order of torch's current stream.

A core is used on one stream only, so that its buffers need no other order than that stream's. What it holds of the weights is
copied anew at every call: to compare on a device takes as long. Needs CuPy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...kernels.device.cuda import Unavailable
from ...runtime import cuda
from ...shape import Shape
from .core import Core

SWITCH = "FASTLSTM_TORCH_CUDA"


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot serve a tensor that is not on the CPU; None where they can."""
    if device.type != "cuda":
        return f"tensors are on the device {device.type}, and the kernels run on the CPU"
    if os.environ.get(SWITCH) != "1":
        return f"tensors are on the device cuda, where {SWITCH}=1 has the kernels serve them, which have not been run on a GPU"
    if dtype not in (torch.float32, torch.float64):
        return f"tensors on the device cuda are {str(dtype).removeprefix('torch.')}, and float32 and float64 are served there"
    return _missing(device.index)


def elsewhere() -> str | None:
    """Why a call on a device is one for torch's own operations at this moment."""
    if torch.is_autocast_enabled("cuda"):
        return "autocast chooses dtypes by torch's own operations"
    return "a graph of torch's is being captured" if _capturing() else None


@cache
def _missing(index: int) -> str | None:
    """What there is no device for."""
    try:
        cuda.engine(f"cuda:{index}", "float32")
    except Unavailable as error:
        return str(error)
    return None


def _capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


def current(x: Tensor) -> tuple[int, int] | None:
    """Where work on a tensor is to be done: (index of its device, handle of torch's current stream there), None on the CPU."""
    return None if x.is_cpu else (x.device.index, torch.cuda.current_stream(x.device).cuda_stream)


class CudaCore(Core):
    """A core on the device and stream that `place` names, as of `current`."""

    def __init__(self, shape: Shape, dtype: str, place: tuple[int, int], *, single: bool = False) -> None:
        index, self._stream = self._place = place
        name = f"cuda:{index}"
        self._device: Any = cuda.engine(name, dtype).device
        with self.where:
            super().__init__(shape, dtype, name, single=single)

    def another(self) -> Core:
        """As of `Core`."""
        return CudaCore(self.shape, self.dtype, self._place, single=self.single)

    @property
    def where(self) -> Any:
        """Context in which work goes to the stream."""
        return self._device.on(self._stream)

    def place(self, tensor: Tensor | None) -> Any:
        """The same memory as an array of the device's."""
        return None if tensor is None else self._device.view(tensor.detach())

    def hold(self, weights: Sequence[Tensor], known: int = 0) -> int:
        """As of `Core`; whether weights differ is not asked."""
        if known != self.slots.params.version:
            for own, given in zip(self.weights, weights, strict=True):
                own.copy_(given.detach())
            self.slots.params.bump()
        return int(self.slots.params.version)
