"""RNN, LSTM and GRU nodes of ONNX: run by fastlstm's layers where their options allow it, else by the cells in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...layers.recurrent import GRU, LSTM, RNN
from ...runtime import check
from .cells import ACTIVATIONS, Direction
from .graph import GATES, Node, reordered

CELLS = {"RNN": "rnn", "LSTM": "lstm", "GRU": "gru"}

_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_WEIGHTS = ("W", "R", "B", "P")
_USUAL = {"rnn": ("tanh",), "lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh")}
_BACKWARD = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}

# x [T, B, I], lengths, h_0 and c_0 [D, B, H] or None -> out [T, B, D*H], h_n, c_n [D, B, H]
Layer = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray | None]]


def recurrent(node: Node, known: Mapping[str, np.ndarray]) -> Callable[..., tuple[np.ndarray, ...]]:
    """The function of a recurrent node's inputs.

    Weights among `known` are prepared here, once; a node whose weights come with every call prepares them then.

    Raises
    ------
    ValueError
        For options that are not served, or weights that do not fit.
    """
    options, weights, layer = Options.of(node), _weights(node), None
    if prepared_weights(node, known):
        layer = options.layer({name: known[place] for name, place in weights.items()})

    def run(*inputs: Any) -> tuple[np.ndarray, ...]:
        given = dict(zip(_INPUTS, inputs, strict=False))
        ready = layer or options.layer({name: given[name] for name in weights})
        return options.run(ready, given["X"], *(given.get(name) for name in _INPUTS[4:7]))

    return run


def _weights(node: Node) -> dict[str, str]:
    """Which value is W, R, B and P."""
    return {name: place for name, place in zip(_INPUTS, node.inputs, strict=False) if place and name in _WEIGHTS}


def prepared_weights(node: Node, known: Mapping[str, np.ndarray]) -> set[str]:
    """The values that `recurrent` of this node has taken in and does not read again."""
    places = set(_weights(node).values()) if node.op in CELLS else set()
    return places if places <= set(known) else set()


@dataclass(frozen=True)
class Options:
    """The attributes of a recurrent node; activations are (name, alpha, beta), f, g, h for each direction."""

    cell: str
    hidden_size: int | None
    direction: str
    batch_first: bool
    activations: tuple[tuple[tuple[str, float, float], ...], ...]
    clip: float | None
    input_forget: bool
    linear_before_reset: bool

    @classmethod
    def of(cls, node: Node) -> Options:
        """The options of `node`; one that is unknown is refused by its name."""
        cell, given = CELLS[node.op], dict(node.attributes)
        direction = check.choice("direction", given.pop("direction", "forward"), tuple(_BACKWARD))
        usual = _USUAL[cell] * len(_BACKWARD[direction])
        names = given.pop("activations", usual)
        if len(names) != len(usual):
            raise ValueError(f"activations has {len(names)} names; expected {len(usual)}")
        activations = _activations(cell, names, given.pop("activation_alpha", ()), given.pop("activation_beta", ()))
        found = cls(
            cell,
            given.pop("hidden_size", None),
            direction,
            bool(given.pop("layout", 0)),
            activations,
            given.pop("clip", None),
            bool(given.pop("input_forget", 0)),
            bool(given.pop("linear_before_reset", 0)),
        )
        if given:
            raise ValueError(f"attributes {', '.join(given)} are not served")
        return found

    def layer(self, weights: Mapping[str, Any]) -> Layer:
        """The layer with `weights` (W, R, and B and P where there are any), ready to run."""
        gates, directions = len(GATES[self.cell]), len(_BACKWARD[self.direction])
        dtype = "float64" if weights["W"].dtype == np.float64 else "float32"
        hidden = self.hidden_size or np.shape(weights["R"])[-1]
        w = check.array("W", weights["W"], dtype, (directions, gates * hidden, "I"))
        r = check.array("R", weights["R"], dtype, (directions, gates * hidden, hidden))
        b = weights.get("B")
        if b is not None:
            b = check.array("B", b, dtype, (directions, 2 * gates * hidden))
        p = check.array("P", weights.get("P", np.zeros((directions, 3 * hidden))), dtype, (directions, 3 * hidden))
        fused = None if p.any() else self._fused(w, r, b, dtype)
        return fused or self._plain(w, r, np.zeros((directions, 2 * gates * hidden), dtype) if b is None else b, p)

    def _fused(self, w: np.ndarray, r: np.ndarray, b: np.ndarray | None, dtype: str) -> Layer | None:
        """A layer of fastlstm with these weights, or None where the options are others than it has."""
        names = {tuple(name for name, *_ in activations) for activations in self.activations}
        relu = self.cell == "rnn" and names == {("relu",)}
        if self.clip is not None or self.input_forget or not (relu or names == {_USUAL[self.cell]}):
            return None
        options: dict[str, Any] = {"bias": b is not None, "bidirectional": len(w) == 2, "dtype": dtype, "seed": 0}
        kind = {"rnn": RNN, "lstm": LSTM, "gru": GRU}[self.cell]
        if self.cell == "rnn":
            options["nonlinearity"] = "relu" if relu else "tanh"
        elif self.cell == "gru":
            options["reset_after"] = self.linear_before_reset
        layer = kind(w.shape[2], r.shape[2], **options)
        order = GATES[self.cell]
        with layer.edit() as params:
            for d, suffix in enumerate(("_l0", "_l0_reverse")[: len(w)]):
                params["weight_ih" + suffix][...] = reordered(w[d], order)
                params["weight_hh" + suffix][...] = reordered(r[d], order)
                if b is not None:
                    for name, bias in zip(("bias_ih", "bias_hh"), np.split(b[d], 2), strict=True):
                        params[name + suffix][...] = reordered(bias, order)
        return partial(_run_fused, layer, self.direction == "reverse")

    def _plain(self, w: np.ndarray, r: np.ndarray, b: np.ndarray, p: np.ndarray) -> Layer:
        """The same in NumPy, with all options."""
        clip = np.inf if self.clip is None else self.clip
        directions = []
        for d, activations in enumerate(self.activations):
            functions = tuple(_function(*wanted) for wanted in activations)
            directions.append(
                Direction(self.cell, w[d], r[d], b[d], p[d], functions, clip, self.input_forget, self.linear_before_reset)
            )
        return partial(_run_plain, directions, _BACKWARD[self.direction])

    def run(self, layer: Layer, x: Any, lengths: Any, h_0: Any, c_0: Any) -> tuple[np.ndarray, ...]:
        """Y, Y_h and Y_c of the node, in its layout and the dtype of x."""
        x = np.asarray(x)
        if x.ndim != 3:
            raise ValueError(f"X has shape {list(x.shape)}; expected 3 axes")
        dtype = x.dtype
        if self.batch_first:
            x, h_0, c_0 = (None if array is None else np.asarray(array).swapaxes(0, 1) for array in (x, h_0, c_0))
        steps, batch = x.shape[:2]
        if lengths is not None:
            lengths = check.lengths(lengths, batch, steps)
        out, *states = layer(x, lengths, h_0, c_0)
        directions = len(_BACKWARD[self.direction])
        y = out.reshape(steps, batch, directions, out.shape[2] // directions)
        found = [y.swapaxes(0, 1) if self.batch_first else y.swapaxes(1, 2)]
        found += [state.swapaxes(0, 1) if self.batch_first else state for state in states if state is not None]
        return tuple(array.astype(dtype, copy=False) for array in found)


def _activations(cell: str, names: Any, alphas: Any, betas: Any) -> tuple[tuple[tuple[str, float, float], ...], ...]:
    """(name, alpha, beta) of every function, by direction; functions without parameters use up no alpha or beta."""
    left: tuple[list[float], list[float]] = (list(alphas), list(betas))
    found: list[tuple[str, float, float]] = []
    for name in names:
        known = check.choice("activations", name.lower(), tuple(ACTIVATIONS))
        values = [0.0, 0.0]
        for k, default in enumerate(ACTIVATIONS[known][1]):
            value = left[k].pop(0) if left[k] else default
            if value is None:
                raise ValueError(f"activations has {name}, but too few activation_alpha and activation_beta; expected both")
            values[k] = value
        found.append((known, values[0], values[1]))
    width = len(_USUAL[cell])
    return tuple(tuple(found[k : k + width]) for k in range(0, len(found), width))


def _function(name: str, alpha: float, beta: float) -> Callable[[np.ndarray], np.ndarray]:
    function = ACTIVATIONS[name][0]
    return lambda x: function(x, alpha, beta)


def _flipped(x: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """x [T, B, N] with time reversed, in each row up to its own length."""
    if lengths is None:
        return x[::-1]
    steps = np.arange(len(x))[:, None]
    return np.take_along_axis(x, np.where(steps < lengths, lengths - 1 - steps, steps)[:, :, None], axis=0)


def _run_fused(
    layer: RNN | LSTM | GRU, reverse: bool, x: np.ndarray, lengths: np.ndarray | None, h_0: Any, c_0: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    lstm, (steps, batch) = isinstance(layer, LSTM), x.shape[:2]
    if not steps * batch:  # layers want both
        shape = (layer.shape.directions, batch, layer.hidden_size)
        x = check.array("X", x, layer.dtype, ("T", "B", layer.input_size))
        h, c = _initial(shape, layer.dtype, h_0, c_0)
        return np.zeros((steps, batch, shape[0] * shape[2]), layer.dtype), h, c if lstm else None
    out, state = layer(_flipped(x, lengths) if reverse else x, (h_0, c_0) if lstm else h_0, lengths=lengths)
    h_n, c_n = state if lstm else (state, None)
    return _flipped(out, lengths) if reverse else out, h_n, c_n


def _initial(shape: tuple[int, ...], dtype: str, h_0: Any, c_0: Any) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of the initial states; None is zeros."""
    h, c = (
        np.zeros(shape, dtype) if part is None else check.array(name, part, dtype, shape)
        for name, part in (("initial_h", h_0), ("initial_c", c_0))
    )
    return h, c


def _run_plain(
    directions: list[Direction], backward: tuple[bool, ...], x: np.ndarray, lengths: np.ndarray | None, h_0: Any, c_0: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    cell, dtype, shape = directions[0].cell, directions[0].w.dtype.name, (len(directions), x.shape[1], directions[0].r.shape[1])
    x = check.array("X", x, dtype, ("T", "B", directions[0].w.shape[1]))
    if lengths is not None:
        # Beyond a length stands anything; skipped is its result, but not-a-number would still warn.
        x = np.where(np.arange(len(x))[:, None, None] < lengths[:, None], x, 0).astype(dtype, copy=False)
    h, c = _initial(shape, dtype, h_0, c_0)
    outs, ends = [], []
    for d, back, h_d, c_d in zip(directions, backward, h, c, strict=True):
        out, *end = d.run(_flipped(x, lengths) if back else x, h_d, c_d, lengths)
        outs.append(_flipped(out, lengths) if back else out)
        ends.append(end)
    h_n, c_n = (np.stack(parts) for parts in zip(*ends, strict=True))
    return np.concatenate(outs, axis=2), h_n, c_n if cell == "lstm" else None
