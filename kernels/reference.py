"""The equations of every cell, head, loss and optimizer in plain NumPy float64: the specification, and the oracle.

It may not know how anything is computed fast: it imports NumPy alone, and no kernel imports it. Inputs of any real
dtype are converted to float64; nothing that is passed in is written to.

Shapes: T steps, B rows, I inputs, H hidden units, R the width of h (``proj_size`` or H), G gates (1, LSTM 4, GRU 3).

=================  ==========  ================================================================================
x                  [T, B, I]   input, time-major
out                [T, B, R]   h after every step; 0 where the step is skipped
h_0, h_n           [B, R]      state before the first and after the last step; c_0, c_n likewise are [B, H]
w_ih, b_ih         [G*H, I]    input weights and bias [G*H]; gate order LSTM i, f, g, o and GRU r, z, n
w_hh, b_hh         [G*H, R]    recurrent weights and bias [G*H]; biases may be None
w_hr               [R, H]      projection (LSTM), or None
lengths            [B]         step t of row b is skipped where t >= lengths[b]: its state is carried unchanged,
                               which also makes the reverse direction start at each sequence's own end
resets             [T, B]      a border between steps t-1 and t where marked: the state is zeroed when it is crossed,
                               in either direction; marks on skipped steps count for nothing
=================  ==========  ================================================================================

A forward returns what its backward needs as ``saved``. A backward (through time: Werbos, Proc. IEEE 78, 1990) returns
one gradient per array that the forward was given, none for a bias of None, under the argument's name; ``dh_n`` and
``dc_n`` of None are zeros. No gradient crosses a reset.
A trailing ``# grad:`` marks a gradient term, whose sign ``tests/support/mutation.py`` flips to prove that a test notices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace as Saved
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Grads = dict[str, Array]


def _float64(*arrays: Array | None) -> list[Any]:
    return [None if array is None else np.array(array, dtype=np.float64) for array in arrays]


def _or_zeros(array: Array | None, shape: tuple[int, ...]) -> Array:
    return np.zeros(shape) if array is None else np.array(array, dtype=np.float64)


def sigmoid(a: Array) -> Array:
    """Logistic function 1 / (1 + exp(-a)), accurate in both tails."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1.0, e) / (1.0 + e)


def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Affine map: x [..., I], weight [O, I], bias [O] or None -> out [..., O]."""
    x, weight = _float64(x, weight)
    out = x @ weight.T
    return out if bias is None else out + bias


def linear_backward(x: Array, weight: Array, dout: Array) -> tuple[Array, Array, Array]:
    """Gradients of `linear_forward`: dout [..., O] -> dx [..., I], dweight [O, I], dbias [O]."""
    x, weight, dout = _float64(x, weight, dout)
    dx = dout @ weight  # grad: linear.x
    dweight = dout.reshape(-1, weight.shape[0]).T @ x.reshape(-1, weight.shape[1])  # grad: linear.weight
    dbias = dout.reshape(-1, weight.shape[0]).sum(axis=0)  # grad: linear.bias
    return dx, dweight, dbias


def _begin(
    x: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    lengths: Array | None,
    resets: Array | None,
    reverse: bool,
) -> Saved:
    """Order of the steps, which of them count, before which the state is kept; and the input's part of the gates."""
    x, w_ih, w_hh, b_ih, b_hh = _float64(x, w_ih, w_hh, b_ih, b_hh)
    steps, batch = x.shape[:2]
    valid = np.ones((steps, batch), bool) if lengths is None else np.arange(steps)[:, None] < np.asarray(lengths)
    border = np.zeros((steps, batch), bool) if resets is None else np.asarray(resets, bool) & valid
    if reverse:  # the border before step t is crossed on entering step t - 1
        border = np.concatenate([border, np.zeros((1, batch), bool)])[1:]
    x = np.where(valid[..., None], x, 0.0)  # whatever stands in a skipped step, NaN included, must not matter
    return Saved(
        order=range(steps)[::-1] if reverse else range(steps),
        valid=valid[..., None],
        keep=~border[..., None],
        x=x,
        w_ih=w_ih,
        w_hh=w_hh,
        b_ih=b_ih,
        b_hh=b_hh,
        a_ih=linear_forward(x, w_ih, b_ih),
    )


def _affine_grads(s: Saved, da_ih: Array, da_hh: Array) -> Grads:
    """Gradients of x and of the weights and biases, from those of the input's and the state's part of the gates."""
    dx, dw_ih, db_ih = linear_backward(s.x, s.w_ih, da_ih)
    _, dw_hh, db_hh = linear_backward(s.h_prev, s.w_hh, da_hh)
    biases = {"b_ih": (s.b_ih, db_ih), "b_hh": (s.b_hh, db_hh)}
    return {"x": dx, "w_ih": dw_ih, "w_hh": dw_hh} | {k: d for k, (b, d) in biases.items() if b is not None}


def rnn_forward(
    x: Array,
    h_0: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    *,
    nonlinearity: str = "tanh",
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array, Saved]:
    """Run a simple recurrent layer: h = act(w_ih x + b_ih + w_hh h + b_hh), act is "tanh" or "relu".

    Returns out, h_n, saved. Shapes are at the top of this file. Raises ValueError for another `nonlinearity`.
    Source: Elman, Finding structure in time, Cognitive Science 14 (1990); relu: Le, Jaitly & Hinton (2015).
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity is {nonlinearity!r}, expected 'tanh' or 'relu'")
    s, (h,) = _begin(x, w_ih, w_hh, b_ih, b_hh, lengths, resets, reverse), _float64(h_0)
    out, h_prev = np.zeros_like(s.a_ih), np.zeros_like(s.a_ih)
    for t in s.order:
        h_prev[t] = np.where(s.keep[t], h, 0.0)
        a = s.a_ih[t] + linear_forward(h_prev[t], s.w_hh, s.b_hh)
        new = np.tanh(a) if nonlinearity == "tanh" else np.maximum(a, 0.0)
        out[t], h = np.where(s.valid[t], new, 0.0), np.where(s.valid[t], new, h)
    return out, h, Saved(**vars(s), h_prev=h_prev, out=out.copy(), nonlinearity=nonlinearity)


def rnn_backward(saved: Saved, dout: Array, dh_n: Array | None = None, *, mask: Array | None = None) -> Grads:
    """Gradients of `rnn_forward` for dout [T, B, H] and dh_n [B, H]: x, h_0, w_ih, w_hh, b_ih, b_hh.

    `mask`, bool [T, B, H], replaces relu's derivative: a kernel's own signs, which may differ next to the kink.
    """
    s, (dout,) = saved, _float64(dout)
    if mask is not None and s.nonlinearity != "relu":
        raise ValueError("mask given for a tanh layer, expected None: it stands for relu's derivative")
    dh, da = _or_zeros(dh_n, s.h_prev.shape[1:]), np.zeros_like(dout)
    for t in reversed(s.order):
        dnew = np.where(s.valid[t], dh, 0.0)  # grad: rnn.h
        dnew += np.where(s.valid[t], dout[t], 0.0)  # grad: rnn.out
        if s.nonlinearity == "tanh":
            da[t] = dnew * (1.0 - s.out[t] ** 2)  # grad: rnn.tanh
        else:
            da[t] = dnew * (s.out[t] > 0 if mask is None else mask[t])  # grad: rnn.relu
        dh = np.where(s.valid[t], 0.0, dh)  # grad: rnn.h_skipped
        dh += np.where(s.keep[t], da[t] @ s.w_hh, 0.0)  # grad: rnn.h_prev
    return {"h_0": dh} | _affine_grads(s, da, da)


def lstm_forward(
    x: Array,
    h_0: Array,
    c_0: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    w_hr: Array | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array, Array, Saved]:
    """Run a long short-term memory layer, with a projection of its output where `w_hr` is given.

    i, f, o = sigmoid(w_ih x + b_ih + w_hh h + b_hh), g = tanh(the same), each with its own rows;
    c = f c + i g;  m = o tanh(c);  h = m, or w_hr m.

    Returns out, h_n, c_n, saved. Shapes are at the top of this file.
    Source: Hochreiter & Schmidhuber, Neural Computation 9 (1997); forget gate: Gers, Schmidhuber & Cummins, Neural
    Computation 12 (2000); projection: Sak, Senior & Beaufays, Interspeech (2014).
    """
    s, (h, c, w_hr) = _begin(x, w_ih, w_hh, b_ih, b_hh, lengths, resets, reverse), _float64(h_0, c_0, w_hr)
    out, h_prev = (np.zeros(s.x.shape[:2] + h.shape[1:]) for _ in range(2))
    i, f, g, o, tanh_c, m, c_prev = (np.zeros(s.x.shape[:2] + c.shape[1:]) for _ in range(7))
    for t in s.order:
        h_prev[t], c_prev[t] = np.where(s.keep[t], h, 0.0), np.where(s.keep[t], c, 0.0)
        a_i, a_f, a_g, a_o = np.split(s.a_ih[t] + linear_forward(h_prev[t], s.w_hh, s.b_hh), 4, axis=1)
        i[t], f[t], g[t], o[t] = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        new_c = f[t] * c_prev[t] + i[t] * g[t]
        tanh_c[t] = np.tanh(new_c)
        m[t] = o[t] * tanh_c[t]
        new = m[t] if w_hr is None else m[t] @ w_hr.T
        out[t] = np.where(s.valid[t], new, 0.0)
        h, c = np.where(s.valid[t], new, h), np.where(s.valid[t], new_c, c)
    return out, h, c, Saved(**vars(s), w_hr=w_hr, h_prev=h_prev, c_prev=c_prev, i=i, f=f, g=g, o=o, tanh_c=tanh_c, m=m)


def lstm_backward(saved: Saved, dout: Array, dh_n: Array | None = None, dc_n: Array | None = None) -> Grads:
    """Gradients of `lstm_forward` for dout [T, B, R], dh_n [B, R], dc_n [B, H]: also c_0 and w_hr."""
    s, (dout,) = saved, _float64(dout)
    dh, dc = _or_zeros(dh_n, s.h_prev.shape[1:]), _or_zeros(dc_n, s.c_prev.shape[1:])
    da, dnew = np.zeros_like(s.a_ih), np.zeros_like(dout)
    for t in reversed(s.order):
        valid, keep, i, f, g, o, tanh_c = (v[t] for v in (s.valid, s.keep, s.i, s.f, s.g, s.o, s.tanh_c))
        dnew[t] = np.where(valid, dh, 0.0)  # grad: lstm.h
        dnew[t] += np.where(valid, dout[t], 0.0)  # grad: lstm.out
        dm = dnew[t]
        if s.w_hr is not None:
            dm = dnew[t] @ s.w_hr  # grad: lstm.projection
        dnew_c = np.where(valid, dc, 0.0)  # grad: lstm.c
        dnew_c += dm * o * (1.0 - tanh_c**2)  # grad: lstm.tanh_c
        da_i = dnew_c * g * i * (1.0 - i)  # grad: lstm.i
        da_f = dnew_c * s.c_prev[t] * f * (1.0 - f)  # grad: lstm.f
        da_g = dnew_c * i * (1.0 - g**2)  # grad: lstm.g
        da_o = dm * tanh_c * o * (1.0 - o)  # grad: lstm.o
        da[t] = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
        dh = np.where(valid, 0.0, dh)  # grad: lstm.h_skipped
        dh += np.where(keep, da[t] @ s.w_hh, 0.0)  # grad: lstm.h_prev
        dc = np.where(valid, 0.0, dc)  # grad: lstm.c_skipped
        dc += np.where(keep, dnew_c * f, 0.0)  # grad: lstm.c_prev
    grads = {"h_0": dh, "c_0": dc} | _affine_grads(s, da, da)
    if s.w_hr is not None:
        grads["w_hr"] = np.einsum("tbr,tbh->rh", dnew, s.m)  # grad: lstm.w_hr
    return grads


def gru_forward(
    x: Array,
    h_0: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    *,
    reset_after: bool = True,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array, Saved]:
    """Run a gated recurrent unit layer; the reset gate acts after the recurrent product, or on the state before it.

    r, z = sigmoid(w_ih x + b_ih + w_hh h + b_hh), each with its own rows;  h = (1 - z) n + z h  with
    n = tanh(w_in x + b_in + r (w_hn h + b_hn)) if `reset_after`, else tanh(w_in x + b_in + w_hn (r h) + b_hn).

    Returns out, h_n, saved. Shapes are at the top of this file.
    Source: Cho et al., EMNLP (2014), the original; reset after the product: cuDNN, as in PyTorch.
    """
    s, (h,) = _begin(x, w_ih, w_hh, b_ih, b_hh, lengths, resets, reverse), _float64(h_0)
    out, h_prev, r, z, n, q = (np.zeros(s.x.shape[:2] + h.shape[1:]) for _ in range(6))
    w_r, w_z, w_n = np.split(s.w_hh, 3)
    b_r, b_z, b_n = (None,) * 3 if s.b_hh is None else np.split(s.b_hh, 3)
    for t in s.order:
        h_prev[t] = np.where(s.keep[t], h, 0.0)
        a_r, a_z, a_n = np.split(s.a_ih[t], 3, axis=1)
        r[t] = sigmoid(a_r + linear_forward(h_prev[t], w_r, b_r))
        z[t] = sigmoid(a_z + linear_forward(h_prev[t], w_z, b_z))
        if reset_after:
            q[t] = linear_forward(h_prev[t], w_n, b_n)
            n[t] = np.tanh(a_n + r[t] * q[t])
        else:
            n[t] = np.tanh(a_n + linear_forward(r[t] * h_prev[t], w_n, b_n))
        new = (1.0 - z[t]) * n[t] + z[t] * h_prev[t]
        out[t], h = np.where(s.valid[t], new, 0.0), np.where(s.valid[t], new, h)
    return out, h, Saved(**vars(s), h_prev=h_prev, r=r, z=z, n=n, q=q, reset_after=reset_after)


def gru_backward(saved: Saved, dout: Array, dh_n: Array | None = None) -> Grads:
    """Gradients of `gru_forward` for dout [T, B, H] and dh_n [B, H]: x, h_0, w_ih, w_hh, b_ih, b_hh."""
    s, (dout,) = saved, _float64(dout)
    dh, da_ih, da_hh = _or_zeros(dh_n, s.h_prev.shape[1:]), np.zeros_like(s.a_ih), np.zeros_like(s.a_ih)
    w_r, w_z, w_n = np.split(s.w_hh, 3)
    for t in reversed(s.order):
        valid, keep, r, z, n, h_prev = (v[t] for v in (s.valid, s.keep, s.r, s.z, s.n, s.h_prev))
        dnew = np.where(valid, dh, 0.0)  # grad: gru.h
        dnew += np.where(valid, dout[t], 0.0)  # grad: gru.out
        dh_prev = dnew * z  # grad: gru.zh
        da_z = dnew * (h_prev - n) * z * (1.0 - z)  # grad: gru.z
        da_n = dnew * (1.0 - z) * (1.0 - n**2)  # grad: gru.n
        if s.reset_after:
            dr = da_n * s.q[t]  # grad: gru.after.r
            da_hn = da_n * r  # grad: gru.after.hn
            dh_prev += da_hn @ w_n  # grad: gru.after.h_n
        else:
            drh = da_n @ w_n  # grad: gru.before.rh
            dr = drh * h_prev  # grad: gru.before.r
            da_hn = da_n
            dh_prev += drh * r  # grad: gru.before.h_r
        da_r = dr * r * (1.0 - r)  # grad: gru.r
        dh_prev += da_r @ w_r  # grad: gru.h_r
        dh_prev += da_z @ w_z  # grad: gru.h_z
        da_ih[t] = np.concatenate([da_r, da_z, da_n], axis=1)
        da_hh[t] = np.concatenate([da_r, da_z, da_hn], axis=1)
        dh = np.where(valid, 0.0, dh)  # grad: gru.h_skipped
        dh += np.where(keep, dh_prev, 0.0)  # grad: gru.h_prev
    grads = {"h_0": dh} | _affine_grads(s, da_ih, da_hh)
    if not s.reset_after:  # the rows of n saw r h, not h
        rows = slice(2 * dh.shape[1], None)
        grads["w_hh"][rows] = np.einsum("tbn,tbh->nh", da_hh[..., rows], s.r * s.h_prev)  # grad: gru.before.w_hn
    return grads


_CELLS: dict[str, tuple[Any, Any]] = {
    "rnn": (rnn_forward, rnn_backward),
    "lstm": (lstm_forward, lstm_backward),
    "gru": (gru_forward, gru_backward),
}
_PARAMETERS = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr"}


def stack_forward(
    cell: str,
    x: Array,
    params: Mapping[str, Array],
    state: Any = None,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    nonlinearity: str = "tanh",
    reset_after: bool = True,
    lengths: Array | None = None,
    resets: Array | None = None,
    dropout_masks: Sequence[Array] | None = None,
) -> tuple[Array, Any, Saved]:
    """Run `num_layers` layers of a `cell` ("rnn", "lstm", "gru"), in one direction or both (Schuster & Paliwal 1997).

    Parameters
    ----------
    x : [T, B, I]; params : arrays named as in torch.nn (``weight_ih_l0``, ``bias_hh_l1_reverse``, ``weight_hr_l0``).
    state : h_0 [num_layers*D, B, R] with D directions, for the LSTM (h_0, c_0); None is zeros.
    dropout_masks : num_layers - 1 arrays [T, B, D*R], already scaled, each multiplied on one layer's output.

    Returns
    -------
    out [T, B, D*R] (both directions side by side), the final state (as `state`), saved.
    """
    lstm, directions = cell == "lstm", 1 + bidirectional
    keys = [f"l{layer}{suffix}" for layer in range(num_layers) for suffix in ("", "_reverse")[:directions]]
    if state is None:
        w_hh = np.asarray(params["weight_hh_l0"])
        state = [np.zeros((len(keys), np.shape(x)[1], n)) for n in (w_hh.shape[1], w_hh.shape[0] // 4)[: 1 + lstm]]
    elif not lstm:
        state = [state]
    options: dict[str, Any] = {"lengths": lengths, "resets": resets}
    options |= {} if lstm else {"nonlinearity": nonlinearity} if cell == "rnn" else {"reset_after": reset_after}
    out, finals, cells = np.array(x, dtype=np.float64), [], []
    for layer in range(num_layers):
        if layer and dropout_masks is not None:
            out = out * dropout_masks[layer - 1]
        sides = []
        for k in range(layer * directions, (layer + 1) * directions):
            weights = {n: params.get(f"{name}_{keys[k]}") for n, name in _PARAMETERS.items() if lstm or n != "w_hr"}
            states = [part[k] for part in state]
            side, *final, saved = _CELLS[cell][0](out, *states, **weights, **options, reverse=bool(k % directions))
            sides.append(side)
            finals.append(final)
            cells.append(saved)
        out = np.concatenate(sides, axis=2)
    state_n = tuple(np.stack(parts) for parts in zip(*finals, strict=True))
    return (
        out,
        state_n if lstm else state_n[0],
        Saved(cell=cell, keys=keys, directions=directions, cells=cells, dropout_masks=dropout_masks),
    )


def stack_backward(
    saved: Saved, dout: Array, dstate_n: Any = None, *, masks: Sequence[Array] | None = None
) -> tuple[Array, Any, Grads]:
    """Gradients of `stack_forward` for dout [T, B, D*R] and dstate_n (as the state): dx, dstate_0, dparams.

    `masks`: relu's derivative per layer and direction (num_layers*D arrays), as in `rnn_backward`.
    """
    s, lstm, (dx,) = saved, saved.cell == "lstm", _float64(dout)
    dfinals = [] if dstate_n is None else dstate_n if lstm else [dstate_n]
    dparams: Grads = {}
    dstates: list[list[Array]] = [[]] * len(s.keys)
    for layer in reversed(range(len(s.keys) // s.directions)):
        below = []
        for k, dside in enumerate(np.split(dx, s.directions, axis=2), layer * s.directions):
            dfinal = [None if part is None else part[k] for part in dfinals]
            grads = _CELLS[s.cell][1](s.cells[k], dside, *dfinal, **({} if masks is None else {"mask": masks[k]}))
            below.append(grads.pop("x"))
            dstates[k] = [grads.pop(name) for name in ("h_0", "c_0")[: 1 + lstm]]
            dparams |= {f"{_PARAMETERS[name]}_{s.keys[k]}": grad for name, grad in grads.items()}
        dx = np.sum(below, axis=0)  # grad: stack.x
        if layer and s.dropout_masks is not None:
            dx = dx * s.dropout_masks[layer - 1]  # grad: stack.dropout
    dstate_0 = tuple(np.stack(parts) for parts in zip(*dstates, strict=True))
    return dx, dstate_0 if lstm else dstate_0[0], dparams


def embedding_forward(weight: Array, ids: Array) -> Array:
    """Rows of a table: weight [V, E], ids [...] of integers -> out [..., E]."""
    return np.array(weight, dtype=np.float64)[ids]


def embedding_backward(ids: Array, dout: Array, num_embeddings: int) -> Array:
    """Gradient of `embedding_forward`: ids [...], dout [..., E] -> dweight [num_embeddings, E]."""
    dweight = np.zeros((num_embeddings, np.shape(dout)[-1]))
    for token, drow in zip(np.ravel(ids), np.reshape(dout, (-1, dweight.shape[1])), strict=True):
        dweight[token] += drow  # grad: embedding
    return dweight


def softmax_cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """Mean negative log-likelihood in nats: logits [N, V], targets [N] of integers -> loss, dlogits [N, V]."""
    (logits,), rows = _float64(logits), np.arange(len(targets))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    dlogits = np.exp(log_p) / len(rows)  # grad: losses.cross_entropy.p
    dlogits[rows, targets] -= 1.0 / len(rows)  # grad: losses.cross_entropy.target
    return float(-log_p[rows, targets].mean()), dlogits


def mean_squared_error(pred: Array, target: Array) -> tuple[float, Array]:
    """Mean of (pred - target)**2 over all elements, any equal shapes -> loss, dpred."""
    error = np.subtract(pred, target, dtype=np.float64)
    dpred = 2.0 * error / error.size  # grad: losses.mean_squared_error
    return float((error**2).mean()), dpred


def mean_absolute_error(pred: Array, target: Array) -> tuple[float, Array]:
    """Mean of abs(pred - target) over all elements, any equal shapes -> loss, dpred (0 where they are equal)."""
    error = np.subtract(pred, target, dtype=np.float64)
    dpred = np.sign(error) / error.size  # grad: losses.mean_absolute_error
    return float(np.abs(error).mean()), dpred


def sgd(
    param: Array,
    grad: Array,
    buf: Array,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> tuple[Array, Array]:
    """One step of stochastic gradient descent -> param, buf (zeros at first). Source: Sutskever et al., ICML (2013)."""
    param, grad, buf = _float64(param, grad, buf)
    grad += weight_decay * param
    buf = momentum * buf + grad
    return param - lr * (grad + momentum * buf if nesterov else buf), buf


def rmsprop(
    param: Array,
    grad: Array,
    square: Array,
    buf: Array,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> tuple[Array, Array, Array]:
    """One step -> param, square, buf (both zeros at first). Source: Tieleman & Hinton, Coursera lecture 6.5 (2012)."""
    param, grad, square, buf = _float64(param, grad, square, buf)
    grad += weight_decay * param
    square = alpha * square + (1.0 - alpha) * grad**2
    buf = momentum * buf + grad / (np.sqrt(square) + eps)
    return param - lr * buf, square, buf


def adam(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    step: int,
    *,
    lr: float = 1e-3,
    eps: float = 1e-8,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> tuple[Array, Array, Array]:
    """One step, the `step`-th from 1 -> param, m, v (both zeros at first). Source: Kingma & Ba, ICLR (2015)."""
    param, grad, m, v = _float64(param, grad, m, v)
    grad += weight_decay * param
    m = betas[0] * m + (1.0 - betas[0]) * grad
    v = betas[1] * v + (1.0 - betas[1]) * grad**2
    m_hat, v_hat = m / (1.0 - betas[0] ** step), v / (1.0 - betas[1] ** step)
    return param - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


def adamw(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    step: int,
    *,
    lr: float = 1e-3,
    eps: float = 1e-8,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 1e-2,
) -> tuple[Array, Array, Array]:
    """As `adam`, with decoupled weight decay. Source: Loshchilov & Hutter, ICLR (2019)."""
    decayed = np.multiply(param, 1.0 - lr * weight_decay, dtype=np.float64)
    return adam(decayed, grad, m, v, step, lr=lr, eps=eps, betas=betas)
