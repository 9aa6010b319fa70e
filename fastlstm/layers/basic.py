"""The small rest a model needs beside recurrent layers: Embedding, Linear, Dropout.

In the layers' style: a call is inference, `forward_train` also returns the backward pass. Initialised as in torch.nn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..kernels import operations
from ..runtime import check
from ..runtime.arrays import as_numpy, put
from ..runtime.engine import engine
from ..runtime.params import Slots
from ..runtime.program import address, at_once
from ..runtime.workspace import Workspace, as_operands
from ..stack.batch_run import Backprop
from ..stack.products import PackedLinear
from .module import Owner
from .recurrent import fresh_seed, uniform


class _Layer(Owner):
    """Device, dtype, seed and parameters of one of the layers below."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], device: str, dtype: str, seed: int | None) -> None:
        self._engine = engine(device, dtype)
        self.device, self.dtype = device, dtype
        self.seed = fresh_seed() if seed is None else check.integer("seed", seed)
        self.storage = self._engine.storage
        self.slots = Slots(shapes, self.storage, self._engine.buffer)

    def _array(self, name: str, value: Any, shape: tuple[int, ...] | None = None, last: int | None = None) -> Any:
        """An argument of `shape`, or of any whose last axis is `last`."""
        found = check.given(name, value, self._engine.take)
        wanted = shape if shape is not None else found.shape if last is None else (*found.shape[:-1], last)
        return check.array(name, found, self.storage, wanted)

    def _gradient(self, *shape: int) -> Callable[[Any], tuple[Any]]:
        """A function that checks the gradient that a backward pass is given, of `shape`."""
        return lambda dout: (self._array("dout", dout, shape),)


class Linear(_Layer):
    """y = x W' + b with weight [out_features, in_features] and bias [out_features].

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    device : str
        "cpu", "cuda" or "cuda:N".
    dtype : {"float32", "float64", "bfloat16"}
    seed : int, optional
        For initialisation, uniform in +-1/sqrt(in_features).

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> layer = fastlstm.layers.basic.Linear(3, 2, seed=0)
    >>> out, backprop = layer.forward_train(np.ones((7, 4, 3), np.float32))
    >>> dx = backprop(np.ones_like(out))
    >>> out.shape, dx.shape, layer.grads["bias"]
    ((7, 4, 2), (7, 4, 3), array([28., 28.], dtype=float32))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.in_features = check.positive("in_features", in_features)
        self.out_features = check.positive("out_features", out_features)
        shapes: dict[str, tuple[int, ...]] = {"weight": (out_features, in_features)}
        super().__init__(shapes | ({"bias": (out_features,)} if bias else {}), device, dtype, seed)
        uniform(self.params, 1 / math.sqrt(in_features), self.seed)
        self._build()

    BUILT = ("_linear",)

    def _build(self) -> None:
        self._linear = PackedLinear(self._engine, self.slots, "weight", "bias" if "bias" in self.params else None)

    def __call__(self, x: Any) -> Any:
        """x [..., in_features] -> a new array [..., out_features]."""
        return self._apply(self._array("x", x, last=self.in_features))

    def forward_train(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """As a call, and ``backprop(dout) -> dx``, which adds to `grads`."""
        kept, stamp = self._array("x", x, last=self.in_features).copy(), self.params.stamp
        gradient = self._gradient(*kept.shape[:-1], self.out_features)

        def read(dout: Any) -> tuple[Any]:
            check.unedited(stamp, self.params.stamp)
            return gradient(dout)

        return self._apply(kept), Backprop(read, partial(self._backward, kept))

    def _apply(self, x: Any) -> Any:
        rows, linear = x.size // self.in_features, self._linear
        out = self._engine.new((rows, linear.columns))
        ws = Workspace(self._engine)
        with at_once():
            linear.forward(rows, *self._operands(ws, x), address(out), linear.columns)
        return out[:, : self.out_features].copy().reshape(*x.shape[:-1], self.out_features)

    def _operands(self, ws: Workspace, x: Any) -> tuple[int, int]:
        """Address and row of x as products read it, in the workspace if need be."""
        width, rows = self.in_features, x.size // self.in_features
        if isinstance(x, np.ndarray) and self._engine.whole:  # the device cannot read it where it lies
            own = ws.array("own", rows, width)
            put(own, x)
            x = own
        return as_operands(ws, "x", 1, rows, address(x), width, width)

    def _backward(self, x: Any, dout: Any) -> Any:
        rows, ws = x.size // self.in_features, Workspace(self._engine)
        padded = ws.cleared("dout", rows, self._linear.columns)
        put(padded[:, : self.out_features], dout.reshape(rows, self.out_features))
        dx = ws.array("dx", rows, self._engine.padded(self.in_features))
        self._engine.prepare(operations.Product, operations.OuterProduct, operations.AddColumns, operations.OperandRows)
        with self.slots.store.adding, at_once():
            self._linear.backward(ws, rows, address(padded), *self._operands(ws, x), address(dx), dx.shape[1])
        return dx[:, : self.in_features].copy().reshape(x.shape)


class Embedding(_Layer):
    """Rows of a table weight [num_embeddings, embedding_dim] by number.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
    device : str
        "cpu", "cuda" or "cuda:N".
    dtype : {"float32", "float64", "bfloat16"}
    seed : int, optional
        For initialisation, normal with mean 0 and standard deviation 1.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> layer = fastlstm.layers.basic.Embedding(10, 4, seed=0)
    >>> out, backprop = layer.forward_train([[1, 2, 2]])
    >>> backprop(np.ones_like(out))
    >>> out.shape, layer.grads["weight"][:, 0]
    ((1, 3, 4), array([0., 1., 2., 0., 0., 0., 0., 0., 0., 0.], dtype=float32))
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.num_embeddings = check.positive("num_embeddings", num_embeddings)
        self.embedding_dim = check.positive("embedding_dim", embedding_dim)
        super().__init__({"weight": (num_embeddings, embedding_dim)}, device, dtype, seed)
        draw = np.random.Generator(np.random.Philox(key=np.array([self.seed & (2**64 - 1), 0], np.uint64)))
        with self.edit() as params:
            put(params["weight"], draw.standard_normal((num_embeddings, embedding_dim)))

    def __call__(self, ids: Any) -> np.ndarray:
        """Integers of any shape [...] in 0..num_embeddings-1 -> a new array [..., embedding_dim]."""
        found = self._ids(ids)
        out: np.ndarray = self._engine.new((*found.shape, self.embedding_dim))
        width, weight = self.embedding_dim, self.params["weight"]
        with at_once():
            self._engine.run(
                operations.GatherRows(
                    rows=found.size, columns=width, ids=found, source=weight, source_row=width, out=out, out_row=width
                ),
                work=out.size,
            )
        return out

    def forward_train(self, ids: Any) -> tuple[np.ndarray, Backprop]:
        """As a call, and ``backprop(dout) -> None``, which adds to `grads`; ids have no gradient."""
        kept = np.array(self._ids(ids))
        return self(kept), Backprop(self._gradient(*kept.shape, self.embedding_dim), partial(self._backward, kept))

    def _ids(self, ids: Any) -> np.ndarray:
        found = check.given("ids", ids, as_numpy)
        return check.tokens("ids", found, self.num_embeddings, found.shape).reshape(found.shape)

    def _backward(self, ids: np.ndarray, dout: Any) -> None:
        width, grads = self.embedding_dim, self.grads["weight"]
        self._engine.prepare(operations.ScatterRows)
        with self.slots.store.adding, at_once():
            self._engine.run(
                operations.ScatterRows(
                    rows=ids.size, columns=width, ids=ids, source=dout, source_row=width, out=grads, out_row=width
                ),
                work=dout.size,
            )


class Dropout(_Layer):
    """Zeroes each element with probability p in `forward_train` and scales the others by 1 / (1 - p); a call does nothing.

    Parameters
    ----------
    p : float
        In [0, 1]; 1 drops all.
    device : str
        "cpu", "cuda" or "cuda:N".
    dtype : {"float32", "float64", "bfloat16"}
    seed : int, optional
        Key of the masks; `calls`, settable, counts them, so that equal counts draw equal masks.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> layer = fastlstm.layers.basic.Dropout(0.5, seed=0)
    >>> x = np.ones((100, 100), np.float32)
    >>> out, backprop = layer.forward_train(x)
    >>> bool((layer(x) == x).all()), np.unique(out), bool((backprop(x) == out).all())
    (True, array([0., 2.], dtype=float32), True)
    """

    def __init__(self, p: float = 0.5, *, device: str = "cpu", dtype: str = "float32", seed: int | None = None) -> None:
        self.p = check.probability("p", p)
        super().__init__({}, device, dtype, seed)
        self.calls = 0

    def __call__(self, x: Any) -> Any:
        """x as an array of the layer's dtype."""
        return self._array("x", x)

    def forward_train(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """A new array with elements dropped, and ``backprop(dout) -> dx``."""
        out = self(x)
        call, self.calls = self.calls, self.calls + 1
        return self._drop(call, out), Backprop(self._gradient(*out.shape), partial(self._drop, call))

    def _drop(self, call: int, x: Any) -> Any:
        out, p = self._engine.new(x.shape), np.array([self.p])
        put(out, x)
        # Kernels take 64 bits as a signed number.
        seed = (self.seed + 2**63) % 2**64 - 2**63
        if out.size:
            with at_once():
                self._engine.run(
                    operations.Dropout(rows=1, width=out.size, data=out, row=out.size, seed=seed, stream=call, p=p),
                    work=20 * out.size,
                )
        return out
