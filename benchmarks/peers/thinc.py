"""Makes layers by thinc on NumPy. Its only recurrent layer is an LSTM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from thinc.api import LSTM, NumpyOps
from thinc.types import Padded

from benchmarks.peers.layers import Shape

ORDER = (1, 0, 3, 2)  # i,f,g,o -> f,i,o,c


def built(layer: Any, shape: Shape) -> tuple[Any, Callable[[np.ndarray], Any]]:
    """Return thinc's layer with `layer`'s weights, and a function that makes a batch from an array [T, B, I]."""
    if shape.cell != "lstm":
        raise NotImplementedError(f"thinc has no {shape.cell.upper()}")
    model = LSTM(shape.hidden_size, shape.inputs[0], depth=shape.num_layers)
    model.ops = NumpyOps()
    model.initialize()
    values = layer.state_dict()

    def flat(name: str) -> np.ndarray:
        gates = np.split(values[name], 4)
        return np.concatenate([gates[k].ravel() for k in ORDER])

    names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    parts = [flat(f"{name}_l{k}") for k in range(shape.num_layers) for name in names]
    model.set_param("LSTM", np.concatenate(parts).astype(np.float32))
    sizes, lengths = np.full(shape.steps, shape.batch, np.int32), np.full(shape.batch, shape.steps, np.int32)
    return model, lambda data: Padded(data, sizes, lengths, np.arange(shape.batch, dtype=np.int32))


def inference(layer: Any, shape: Shape) -> Callable[[], Any]:
    """Return inference with `layer`'s weights on `shape`'s data."""
    model, padded = built(layer, shape)
    x = padded(shape.data()[0])
    return lambda: model.predict(x).data


def training(layer: Any, shape: Shape) -> Callable[[], Any]:
    """Return forward and backward of a layer; it returns (out, dx)."""
    model, padded = built(layer, shape)
    x, dout = (padded(part) for part in shape.data())

    def step() -> Any:
        out, backprop = model.begin_update(x)
        dx = backprop(dout)
        return out.data, dx.data

    return step
