"""Makes layers and training steps by JAX: the equations in a scan, compiled by XLA. JAX itself has recurrent layers for cuDNN
only.

The products with the inputs of all steps are computed once, before the scan, as in every fast implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.layers import GATES, Shape, Size

Weights = dict[str, Any]


def scan(cell: str, layer: int, weights: Weights, x: Any) -> Any:
    """Return out [T, B, H] of one layer for x [T, B, I]."""
    ih, hh, bias_ih, bias_hh = (weights[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    given = x @ ih.T + bias_ih
    h_0 = jnp.zeros((x.shape[1], hh.shape[1]), x.dtype)

    def rnn(h: Any, given: Any) -> tuple[Any, Any]:
        h = jnp.tanh(given + h @ hh.T + bias_hh)
        return h, h

    def lstm(state: tuple[Any, Any], given: Any) -> tuple[Any, Any]:
        h, c = state
        i, f, g, o = jnp.split(given + h @ hh.T + bias_hh, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def gru(h: Any, given: Any) -> tuple[Any, Any]:
        r, z, n = jnp.split(given, 3, axis=-1)
        r_h, z_h, n_h = jnp.split(h @ hh.T + bias_hh, 3, axis=-1)
        n = jnp.tanh(n + jax.nn.sigmoid(r + r_h) * n_h)
        z = jax.nn.sigmoid(z + z_h)
        h = (1 - z) * n + z * h
        return h, h

    step, state = {"rnn": (rnn, h_0), "lstm": (lstm, (h_0, h_0)), "gru": (gru, h_0)}[cell]
    return jax.lax.scan(step, state, given)[1]


def forward(cell: str, layers: int, weights: Weights, x: Any) -> Any:
    """Return out of a stack of layers."""
    for layer in range(layers):
        x = scan(cell, layer, weights, x)
    return x


def weights_of(layer: Any) -> Weights:
    """Return the weights of a layer of fastlstm as JAX's arrays."""
    return {name: jnp.asarray(value) for name, value in layer.state_dict().items()}


def inference(layer: Any, shape: Shape) -> Callable[[], Any]:
    """Return inference with `layer`'s weights on `shape`'s data."""
    weights, x = weights_of(layer), jnp.asarray(shape.data()[0])
    compiled = jax.jit(partial(forward, shape.cell, shape.num_layers))
    return lambda: compiled(weights, x).block_until_ready()


def training(layer: Any, shape: Shape) -> Callable[[], Any]:
    """Return forward and backward of a layer; it returns (out, dx)."""
    weights, (x, dout) = weights_of(layer), (jnp.asarray(part) for part in shape.data())

    @jax.jit
    def run(weights: Weights, x: Any) -> Any:
        out, back = jax.vjp(partial(forward, shape.cell, shape.num_layers), weights, x)
        return out, back(dout)

    def step() -> Any:
        out, (_, dx) = jax.block_until_ready(run(weights, x))
        return out, dx

    return step


def training_step(cell: str, size: Size) -> Callable[[], float]:
    """Return a training step: embedding, layers, head, cross-entropy, clipping, Adam."""
    draw = np.random.default_rng(0)
    rows, bound = GATES[cell] * size.hidden, size.hidden**-0.5
    shapes = {"embedding": (size.vocabulary, size.hidden), "head": (size.hidden, size.vocabulary), "bias": (size.vocabulary,)}
    for k in range(size.layers):
        shapes |= {f"weight_ih_l{k}": (rows, size.hidden), f"weight_hh_l{k}": (rows, size.hidden)}
        shapes |= {f"bias_ih_l{k}": (rows,), f"bias_hh_l{k}": (rows,)}
    params = {name: jnp.asarray(draw.uniform(-bound, bound, shape), jnp.float32) for name, shape in shapes.items()}
    ids, targets = (jnp.asarray(part, jnp.int32) for part in size.tokens())

    def loss_of(params: Weights) -> Any:
        logits = forward(cell, size.layers, params, params["embedding"][ids]) @ params["head"] + params["bias"]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
        return -chosen.mean()

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(params: Weights, m: Weights, v: Weights, count: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params)
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in grads.values()))
        grads = {name: g * jnp.minimum(1.0, 1.0 / (norm + 1e-6)) for name, g in grads.items()}
        m = {name: 0.9 * m[name] + 0.1 * g for name, g in grads.items()}
        v = {name: 0.999 * v[name] + 0.001 * g * g for name, g in grads.items()}
        rate = 1e-3 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        params = {name: p - rate * m[name] / (jnp.sqrt(v[name]) + 1e-8) for name, p in params.items()}
        return params, m, v, loss

    state = params, *({name: jnp.zeros_like(value) for name, value in params.items()} for _ in range(2))
    count = 0

    def step() -> float:
        nonlocal state, count
        count += 1
        *state, loss = update(*state, float(count))
        return float(loss)

    return step
