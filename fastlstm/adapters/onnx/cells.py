"""Recurrent cells with all of ONNX's options, step by step in plain NumPy, for what the fused kernels do not serve.

Shapes: T steps, B rows, I inputs, H hidden units, G gates in ONNX's order (LSTM i, o, f, c; GRU z, r, h).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Activation = Callable[[Array], Array]


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    power = np.exp(-np.abs(x))
    found: Array = np.where(x >= 0, 1, power) / (1 + power)
    return found


# By name in small letters: the function of (x, alpha, beta), and what those two parameters are if they are not given, as far as
# it has them; None where ONNX does not say.
ACTIVATIONS: dict[str, tuple[Callable[[Array, float, float], Array], tuple[float | None, ...]]] = {
    "relu": (lambda x, a, b: np.maximum(x, 0), ()),
    "tanh": (lambda x, a, b: np.tanh(x), ()),
    "sigmoid": (lambda x, a, b: sigmoid(x), ()),
    "affine": (lambda x, a, b: a * x + b, (None, None)),
    "leakyrelu": (lambda x, a, b: np.where(x >= 0, x, a * x), (0.01,)),
    "thresholdedrelu": (lambda x, a, b: np.where(x >= a, x, 0), (1.0,)),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), (None, None)),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), (0.2, 0.5)),
    "elu": (lambda x, a, b: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))), (1.0,)),
    "softsign": (lambda x, a, b: x / (1 + np.abs(x)), ()),
    "softplus": (lambda x, a, b: np.logaddexp(x, 0), ()),
}


@dataclass(frozen=True)
class Direction:
    """One direction of a recurrent node: w [G*H, I], r [G*H, H], bias [2*G*H] of both, peephole [3*H] (LSTM: i, o, f)."""

    cell: str
    w: Array
    r: Array
    bias: Array
    peephole: Array
    activations: tuple[Activation, ...]
    clip: float
    input_forget: bool
    linear_before_reset: bool

    def run(self, x: Array, h: Array, c: Array, lengths: Array | None) -> tuple[Array, Array, Array]:
        """x [T, B, I] from the states h, c [B, H] -> out [T, B, H], h_n, c_n; steps beyond a length are skipped."""
        gates, out = x @ self.w.T + self.bias[: len(self.w)], np.zeros((*x.shape[:2], h.shape[1]), h.dtype)
        for t, a in enumerate(gates):
            new_h, new_c = getattr(self, f"_{self.cell}")(a, h, c)
            valid = np.ones((len(h), 1), bool) if lengths is None else (t < lengths)[:, None]
            out[t] = np.where(valid, new_h, 0)
            h, c = np.where(valid, new_h, h), np.where(valid, new_c, c)
        return out, h, c

    @property
    def r_bias(self) -> Array:
        """[G*H], what is added to products with h."""
        return self.bias[len(self.w) :]

    def _act(self, number: int, a: Array) -> Array:
        """Activation f, g or h (0, 1, 2) of `a`, which is clipped first."""
        return self.activations[number](np.clip(a, -self.clip, self.clip))

    def _rnn(self, a: Array, h: Array, c: Array) -> tuple[Array, Array]:
        return self._act(0, a + h @ self.r.T + self.r_bias), c

    def _lstm(self, a: Array, h: Array, c: Array) -> tuple[Array, Array]:
        a_i, a_o, a_f, a_c = np.split(a + h @ self.r.T + self.r_bias, 4, axis=1)
        p_i, p_o, p_f = np.split(self.peephole, 3)
        i = self._act(0, a_i + p_i * c)
        f = 1 - i if self.input_forget else self._act(0, a_f + p_f * c)
        new_c = f * c + i * self._act(1, a_c)
        o = self._act(0, a_o + p_o * new_c)
        # onnxruntime, which others follow, clips what enters the gates, not the cell state.
        return o * self.activations[2](new_c), new_c

    def _gru(self, a: Array, h: Array, c: Array) -> tuple[Array, Array]:
        (a_z, a_r, a_h), (r_z, r_r, r_h) = np.split(a, 3, axis=1), np.split(self.r, 3)
        b_z, b_r, b_h = np.split(self.r_bias, 3)
        z, r = self._act(0, a_z + h @ r_z.T + b_z), self._act(0, a_r + h @ r_r.T + b_r)
        n = self._act(1, a_h + (r * (h @ r_h.T + b_h) if self.linear_before_reset else (r * h) @ r_h.T + b_h))
        return (1 - z) * n + z * h, c
