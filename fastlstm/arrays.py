"""Arrays in host memory and on devices: one to the other. Knows NumPy; others by what they offer."""

from __future__ import annotations

from typing import Any

import numpy as np


def on_device(value: Any) -> bool:
    """Whether a value is an array as CuPy has them: not in host memory, to which `get` copies it."""
    return hasattr(value, "get") and hasattr(value, "device")


def as_numpy(value: Any) -> np.ndarray:
    """A NumPy array of what a NumPy, CuPy or torch array holds."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return np.asarray(value.numpy())
    return value.get() if on_device(value) else np.asarray(value)


def put(target: Any, value: Any) -> None:
    """Values into an array of their shape; either may be NumPy's or on a device."""
    if isinstance(target, np.ndarray):
        target[...] = as_numpy(value)
    elif isinstance(value, np.ndarray):
        target.set(np.ascontiguousarray(value, target.dtype).reshape(target.shape))
    else:
        target[...] = value
