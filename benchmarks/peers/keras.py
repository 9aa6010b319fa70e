"""Makes layers and training steps by Keras 3 on the backend that KERAS_BACKEND names. Batches come first, as in Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from benchmarks.peers.layers import Shape, Size

ORDER = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2), "rnn": (0,)}  # i,f,g,o is i,f,c,o; r,z,n -> z,r,h


def layer_of(cell: str, hidden: int) -> Any:
    """Return a recurrent layer that returns the output of every step."""
    make = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[cell]
    return make(hidden, return_sequences=True)


def inference(layer: Any, shape: Shape) -> Callable[[], Any]:
    """Return inference with `layer`'s weights on `shape`'s data; out is a view of shape [T, B, H]."""
    layers = [layer_of(shape.cell, shape.hidden_size) for _ in range(shape.num_layers)]
    model = keras.Sequential([keras.Input((shape.steps, shape.inputs[0])), *layers])
    values = layer.state_dict()

    def ordered(name: str) -> np.ndarray:
        gates = np.split(values[name], len(ORDER[shape.cell]))
        return np.concatenate([gates[k] for k in ORDER[shape.cell]]).T

    for k, one in enumerate(layers):
        biases = [ordered(f"bias_ih_l{k}"), ordered(f"bias_hh_l{k}")]
        bias = np.stack(biases) if shape.cell == "gru" else sum(biases)
        one.set_weights([ordered(f"weight_ih_l{k}"), ordered(f"weight_hh_l{k}"), bias])
    x = np.ascontiguousarray(shape.data()[0].swapaxes(0, 1))
    return lambda: np.asarray(model.predict_on_batch(x)).swapaxes(0, 1)


def training_step(cell: str, size: Size) -> Callable[[], float]:
    """Return a training step: embedding, layers, head, cross-entropy, clipping, Adam."""
    keras.utils.set_random_seed(0)
    layers = [layer_of(cell, size.hidden) for _ in range(size.layers)]
    embedding, head = keras.layers.Embedding(size.vocabulary, size.hidden), keras.layers.Dense(size.vocabulary)
    model = keras.Sequential([keras.Input((size.steps,), dtype="int32"), embedding, *layers, head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3, global_clipnorm=1.0), loss)
    ids, targets = (np.ascontiguousarray(part.T, np.int32) for part in size.tokens())
    return lambda: float(np.asarray(model.train_on_batch(ids, targets)))
