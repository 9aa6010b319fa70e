"""One table of random cases for recurrent layers, drawn from fixed seeds, and how each is run and judged.

Knows the public layers and the reference; nothing of how kernels work. Tests and benchmarks read `CASES`. The layers
take inputs as users give them (any layout and dtype); the reference takes what these hold, time-major, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

import fastlstm
from fastlstm.kernels import reference
from fastlstm.runtime.arrays import as_numpy

KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "rnn-tanh": (fastlstm.RNN, "rnn", {"nonlinearity": "tanh"}),
    "rnn-relu": (fastlstm.RNN, "rnn", {"nonlinearity": "relu"}),
    "lstm": (fastlstm.LSTM, "lstm", {}),
    "lstm-projected": (fastlstm.LSTM, "lstm", {}),
    "gru": (fastlstm.GRU, "gru", {"reset_after": True}),
    "gru-original": (fastlstm.GRU, "gru", {"reset_after": False}),
}
# Of the relative norm, for every output and gradient.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 2e-2, "float16": 1e-2, "tf32": 1e-5}
COARSE = ("bfloat16", "float16")
SIZES = (1, 2, 3, 5, 7, 8, 13, 15, 16, 17, 20, 24, 31, 32, 33, 40, 48, 49, 63, 64, 65, 70)
LAYOUTS = ("plain", "strided", "transposed", "backwards", "readonly", "float16", "integers", "other")
SEQUENCES = ("x", "dout", "resets", "out", "dx")  # what batch_first concerns
STATES = ("none", "both", "h", "c")
COUNT = 60  # cases of each kind


@dataclass(frozen=True)
class Case:
    """One call of one layer; every array in it is drawn from `seed`."""

    kind: str
    seed: int
    steps: int
    batch: int
    inputs: int
    hidden: int
    proj: int = 0
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    lengths: bool = False
    resets: bool = False
    state: str = "none"
    dstate: str = "none"
    dout: bool = True  # False: zeros
    form: str = "time-major"  # or batch-first, unbatched
    layout: str = "plain"
    chunk: int = field(default=0)  # steps that a chunk is to have at most; 0: as many as fit the cache

    @property
    def cell(self) -> str:
        return KINDS[self.kind][1]

    @property
    def width(self) -> int:
        """Of one direction's h."""
        return self.proj or self.hidden

    def layer(self, dtype: str, device: str = "cpu") -> Any:
        make, _, options = KINDS[self.kind]
        options = options | ({"proj_size": self.proj} if self.proj else {})
        return make(
            self.inputs,
            self.hidden,
            self.layers,
            bias=self.bias,
            batch_first=self.form == "batch-first",
            bidirectional=self.bidirectional,
            device=device,
            dtype=dtype,
            seed=self.seed,
            **options,
        )

    def chunk_bytes(self, layer: Any) -> int | None:
        """What `recurrence.CHUNK_BYTES` has to be for chunks of `chunk` steps."""
        recurrence = layer.stack.layers[0][0]
        return self.chunk * self.batch * recurrence.columns * np.dtype(storage(layer)).itemsize if self.chunk else None

    def data(self, dtype: str) -> SimpleNamespace:
        """`given`: the arguments in the user's form; `plain`: the same, time-major and in float64."""
        rng = np.random.default_rng([self.seed, 1])
        count, sides = self.layers * (1 + self.bidirectional), 1 + self.bidirectional
        given, plain = SimpleNamespace(c=None, dc=None), SimpleNamespace()

        def put(name: str, shape: tuple[int, ...], zero: bool = False) -> None:
            array = np.zeros(shape) if zero else rng.standard_normal(shape)
            if name == "x":  # many inputs would saturate few units, of whose 1 - tanh**2 float32 keeps few digits
                array *= min(1.0, (self.hidden / self.inputs) ** 0.5)
            array = lay_out(self._formed(array, name), self.layout, dtype)
            setattr(given, name, array)
            setattr(plain, name, self._time_major(array.astype(dtype).astype(np.float64), name))

        put("x", (self.steps, self.batch, self.inputs))
        put("dout", (self.steps, self.batch, sides * self.width), not self.dout)
        for side, which in (("", self.state), ("d", self.dstate)):
            for part, width in (("h", self.width), ("c", self.hidden))[: 1 + (self.cell == "lstm")]:
                name = side + part
                if which in ("both", part):
                    put(name, (count, self.batch, width))
                else:
                    setattr(given, name, None)
                    setattr(plain, name, np.zeros((count, self.batch, width)))
        lengths = resets = None
        if self.lengths:
            lengths = rng.integers(0, self.steps + 1, self.batch)
            lengths[rng.integers(self.batch)] = 0 if self.batch > 1 or self.seed % 2 else self.steps
            lengths[rng.integers(self.batch)] = self.steps
        if self.resets:
            resets = rng.random((self.steps, self.batch)) < 0.25
        given.lengths = plain.lengths = lengths
        plain.resets = resets
        given.resets = None if resets is None else self._formed(resets, "resets")
        return SimpleNamespace(given=given, plain=plain)

    def _formed(self, array: np.ndarray, name: str) -> np.ndarray:
        """From time-major to the form in which this case's layer takes the array."""
        if self.form == "unbatched":
            return array[:, 0]
        return array.swapaxes(0, 1) if self.form == "batch-first" and name in SEQUENCES else array

    def _time_major(self, array: np.ndarray, name: str) -> np.ndarray:
        """The reverse of `_formed`."""
        if self.form == "unbatched":
            return array[:, None]
        return array.swapaxes(0, 1) if self.form == "batch-first" and name in SEQUENCES else array

    def pair(self, where: SimpleNamespace, side: str = "") -> Any:
        """The state (side "") or its gradient ("d") out of `given` or `plain`, as a layer takes it."""
        h = getattr(where, side + "h")
        if self.cell != "lstm":
            return h
        c = getattr(where, side + "c")
        return None if h is None and c is None else (h, c)

    def results(self, layer: Any) -> tuple[dict[str, np.ndarray], Any]:
        """Out, states, dx, dstates and the parameters' gradients of the layer, time-major; and relu's masks."""
        given = self.data(storage(layer)).given
        how = {"lengths": given.lengths, "resets": given.resets}
        out, state, backprop = layer.forward_train(given.x, self.pair(given), **how)
        masks = relu_masks(layer, backprop) if self.kind == "rnn-relu" else None
        dx, dstate = backprop(given.dout, self.pair(given, "d"))
        found = {"out": out, "dx": dx}
        for side, value in (("", state), ("d", dstate)):
            found |= dict(zip((f"{side}h", f"{side}c"), value if self.cell == "lstm" else (value,), strict=False))
        found = {name: self._time_major(as_numpy(array), name) for name, array in found.items()}
        return found | {name: as_numpy(grad).copy() for name, grad in layer.grads.items()}, masks

    def wanted(self, layer: Any, masks: Any = None) -> dict[str, np.ndarray]:
        """The same by the reference."""
        plain, options = self.data(storage(layer)).plain, KINDS[self.kind][2]
        out, state, saved = reference.stack_forward(
            self.cell,
            plain.x,
            layer_params(layer),
            self.pair(plain),
            num_layers=self.layers,
            bidirectional=self.bidirectional,
            lengths=plain.lengths,
            resets=plain.resets,
            **options,
        )
        dx, dstate, dparams = reference.stack_backward(saved, plain.dout, self.pair(plain, "d"), masks=masks)
        found = {"out": out, "dx": dx} | dparams
        for side, value in (("", state), ("d", dstate)):
            found |= dict(zip((f"{side}h", f"{side}c"), value if self.cell == "lstm" else (value,), strict=False))
        return found


def layer_params(layer: Any) -> dict[str, np.ndarray]:
    """A layer's parameters in host memory."""
    return {name: as_numpy(param) for name, param in layer.params.items()}


def storage(layer: Any) -> str:
    """The dtype of a layer's arrays."""
    return layer.params.flat.dtype.name


def relu_masks(layer: Any, backprop: Any) -> list[np.ndarray]:
    """Where each layer's and direction's h is positive [T, B, H]: near its kink the slope is a matter of rounding."""
    masks = []
    for k, directions in enumerate(layer.stack.layers):
        for d, recurrence in enumerate(directions):
            h = as_numpy(backprop._run.__self__.spaces.of[k][d].arrays["h"])
            masks.append((h[:-1] if recurrence.reverse else h[1:])[..., : layer.hidden_size] > 0)
    return masks


def lay_out(array: np.ndarray, layout: str, dtype: str) -> np.ndarray:
    """The array in a layout or dtype that users have; other dtypes than `dtype` change what it holds."""
    if layout == "strided":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1] + 1), np.nan, dtype)
        wide[..., 1::2] = array
        return wide[..., 1::2]
    if layout == "transposed":
        return np.asfortranarray(array, dtype)
    if layout == "backwards":
        return np.ascontiguousarray(array[::-1, ..., ::-1], dtype)[::-1, ..., ::-1]
    if layout == "readonly":
        array = np.array(array, dtype)
        array.flags.writeable = False
        return array
    if layout == "integers":
        return np.rint(array).astype(np.int8)
    other = "float64" if dtype == "float32" else "float32"
    return array.astype({"float16": "float16", "other": other}.get(layout, dtype))


def error(got: np.ndarray, want: np.ndarray) -> float:
    """The larger of the relative norm of the difference and its largest element relative to the largest wanted."""
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    assert np.isfinite(got).all()
    difference = np.subtract(got, want, dtype=np.float64)
    norm = float(np.linalg.norm(want))
    if norm == 0:
        return 0.0 if not got.any() else np.inf
    return max(float(np.linalg.norm(difference)) / norm, float(np.abs(difference).max() / np.abs(want).max()))


def coarse_error(got: np.ndarray, want: np.ndarray, scale: float) -> float:
    """The relative norm of the difference, with a floor: a hundredth of `scale` in every element.

    Of a handful of elements, in which rounding errors do not average out, it is a tenth, in two where there is one.
    """
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    assert np.isfinite(got).all()
    difference = np.subtract(got, want, dtype=np.float64)
    floor = (0.1 if want.size < 10 else 0.01) * scale * max(2.0, want.size**0.5)
    return float(np.linalg.norm(difference)) / max(float(np.linalg.norm(want)), floor)


def check(case: Case, got: dict[str, np.ndarray], want: dict[str, np.ndarray], dtype: str) -> None:
    """Every result against the reference's."""
    assert set(got) == set(want), f"{case}"
    largest = max(float(np.abs(array).max()) for array in want.values())
    for name, array in want.items():
        assert got[name].dtype == ("float64" if dtype == "float64" else "float32"), f"{name} of {case}"
        # What cancels to almost nothing is judged by what it was made of.
        off = error(got[name], array) if dtype not in COARSE else coarse_error(got[name], array, largest)
        assert off < TOLERANCE[dtype], f"{name} is off by {off:.1e} in {dtype}: {case}"


def draw(kind: str, number: int) -> Case:
    """Case `number` of a kind. What must occur comes round in turn; the rest is left to chance."""
    seed = 1000 * list(KINDS).index(kind) + number
    rng = np.random.default_rng(seed)

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    known = number < len(SIZES)
    hidden = SIZES[number * 5 % len(SIZES)] if known else int(rng.integers(1, 71))
    inputs = SIZES[number * 7 % len(SIZES)] if known else int(rng.integers(1, 71))
    form = ("time-major", "time-major", "batch-first", "time-major", "unbatched")[number % 5]
    steps, batch = int(rng.choice([2, 3, 4, 5, 7, 11, 19])), int(rng.choice([2, 3, 5, 6, 9, 13, 17]))
    if number % 10 == 3:
        steps = 1
    if number % 20 == 7:
        steps, batch = 2, 61  # more rows than a block has
    elif form == "unbatched" or number % 10 == 8:
        batch = 1
    if kind == "lstm-projected":
        hidden = max(2, hidden)
    states = STATES if kind.startswith("lstm") else STATES[:2]
    return Case(
        kind,
        seed,
        steps,
        batch,
        inputs,
        hidden,
        proj=int(rng.integers(1, hidden)) if kind == "lstm-projected" else 0,
        layers=1 + number % 3,
        bidirectional=number % 4 in (1, 2),
        bias=number % 6 != 4,
        form=form,
        lengths=chance(0.4),
        resets=chance(0.4),
        state=str(rng.choice(states)),
        dstate=str(rng.choice(states)),
        dout=number % 12 != 9,
        layout=LAYOUTS[number % len(LAYOUTS)] if chance(0.8) else "plain",
        chunk=(0, 1, 3, 0, 2)[number // 2 % 5],
    )


CASES = {kind: [draw(kind, number) for number in range(COUNT)] for kind in KINDS}
