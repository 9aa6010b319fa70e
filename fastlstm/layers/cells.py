"""RNNCell, LSTMCell, GRUCell: one step of one layer, as in torch.nn; for loops of the user's own.

A cell is a layer of one step under torch's names for a cell's parameters. It knows nothing of kernels.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ..runtime import check
from ..shape import Shape
from ..stack.batch_run import Backprop
from .module import Owner
from .recurrent import Layer, LayerRun, State, _shape


class _CellShape(Shape):
    """A stack of one layer whose parameters' names carry no number."""

    def suffixes(self) -> list[list[str]]:
        """No suffix."""
        return [[""]]


class Cell(Owner):
    """What the three cells share. Calling one runs inference; `forward_train` also returns the backward pass."""

    def __init__(self, shape: Shape, device: str, dtype: str, seed: int | None) -> None:
        self._layer = Layer(_CellShape(**asdict(shape)), False, device, dtype, seed)
        self.slots = self._layer.slots
        self.shape, self.seed = self._layer.shape, self._layer.seed
        self.device, self.dtype = device, dtype

    input_size = property(lambda self: self.shape.input_size)
    hidden_size = property(lambda self: self.shape.hidden_size)
    bias = property(lambda self: self.shape.bias)

    def __repr__(self) -> str:
        s = self.shape
        extra = "".join(
            f", {name}={value!r}"
            for name, value, usual in (
                ("bias", s.bias, True),
                ("nonlinearity", "relu" if s.relu else "tanh", "tanh"),
                ("reset_after", s.reset_after, True),
                ("dtype", self.dtype, "float32"),
            )
            if value != usual
        )
        return f"{type(self).__name__}({s.input_size}, {s.hidden_size}{extra})"

    def __call__(self, x: Any, state: State = None) -> State:
        """One step of inference.

        Parameters
        ----------
        x : array [B, I] or unbatched [I]
        state : array [B, H] or unbatched [H], optional
            h; for an LSTMCell a pair (h, c). None: zeros.

        Returns
        -------
        state
            The state after the step: new arrays, as `state`.
        """
        x, state, batched = self._lift(x, state)
        _, state = self._layer(x, state)
        return self._lower(state, batched)

    def forward_train(self, x: Any, state: State = None) -> tuple[State, Backprop]:
        """As a call, and returns the backward pass as a second value.

        Returns
        -------
        state
            As of a call.
        backprop : callable
            ``dx, dstate_0 = backprop(dstate)`` adds to `grads`; once only. None is zeros, for either part of a pair too.
        """
        x, state, batched = self._lift(x, state)
        run = LayerRun(self._layer, x, state, None, None, save=True)

        def gradients(dstate: State) -> tuple[Any, Any, Any]:
            return run.checked_gradients(None, self._lift_state("dstate", dstate, x.shape[1] if batched else None))

        def backward(*found: Any) -> tuple[np.ndarray, State]:
            dx, dstate_0 = run.backward(*found)
            return dx[0] if batched else dx[0, 0], self._lower(dstate_0, batched)

        return self._lower(run.outputs[1], batched), Backprop(gradients, backward, run.close)

    def compiled(self) -> tuple[np.ndarray, ...]:
        """The cell for `lstm_step`, `gru_step` or `rnn_step`; see `LSTM.compiled`."""
        return self._layer.compiled()

    def _lift(self, x: Any, state: State) -> tuple[np.ndarray, State, bool]:
        """(x [1, B, I], state [1, B, H], whether there was a batch) of checked arguments."""
        engine = self._layer._engine
        x = check.given("x", x, engine.take)
        batched = x.ndim != 1
        x = check.array("x", x, engine.storage, ("B", self.input_size) if batched else (self.input_size,))
        x = check.not_empty("x", x if batched else x[None])
        return x[None], self._lift_state("state", state, len(x) if batched else None), batched

    def _lift_state(self, name: str, state: State, batch: int | None) -> State:
        if state is None:
            return None
        wanted = (self.hidden_size,) if batch is None else (batch, self.hidden_size)

        def lift(label: str, part: Any) -> np.ndarray | None:
            if part is None:
                return None
            engine = self._layer._engine
            return check.array(label, part, engine.storage, wanted, engine.take).reshape(1, batch or 1, self.hidden_size)

        if self.shape.cell != "lstm":
            if isinstance(state, tuple | list):
                raise TypeError(f"{name} is {type(state).__name__}; expected one array h")
            return lift(name, state)
        if not isinstance(state, tuple | list) or len(state) != 2:
            raise TypeError(f"{name} is {type(state).__name__}; expected a pair (h, c)")
        return lift(f"{name} (h)", state[0]), lift(f"{name} (c)", state[1])

    def _lower(self, state: State, batched: bool) -> State:
        """[1, B, H] as the caller has it."""
        index = 0 if batched else (0, 0)
        return tuple(part[index] for part in state) if isinstance(state, tuple) else state[index]


class RNNCell(Cell):
    """One step of a vanilla RNN (Elman 1990): h = act(x W_ih' + b_ih + h_prev W_hh' + b_hh).

    Parameters
    ----------
    input_size, hidden_size : int
    bias : bool
    nonlinearity : {"tanh", "relu"}
    device : {"cpu"}
    dtype : {"float32", "float64", "bfloat16"}
    seed : int, optional
        For initialisation, uniform in +-1/sqrt(hidden_size).

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> cell = fastlstm.RNNCell(3, 5, seed=0)
    >>> h = cell(np.ones((2, 3), np.float32))
    >>> cell(np.ones((2, 3), np.float32), h).shape
    (2, 5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.nonlinearity = check.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        shape = _shape("rnn", input_size, hidden_size, 1, bias, 0.0, False, relu=nonlinearity == "relu")
        super().__init__(shape, device, dtype, seed)


class LSTMCell(Cell):
    """One step of an LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000), gates in order i, f, g, o; state (h, c).

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype, seed
        As of `RNNCell`.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> cell = fastlstm.LSTMCell(3, 5, seed=0)
    >>> (h, c), backprop = cell.forward_train(np.ones((2, 3), np.float32))
    >>> dx, (dh_0, dc_0) = backprop((np.ones_like(h), None))
    >>> dx.shape, dc_0.shape, cell.grads["weight_hh"].shape
    ((2, 3), (2, 5), (20, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        super().__init__(_shape("lstm", input_size, hidden_size, 1, bias, 0.0, False), device, dtype, seed)


class GRUCell(Cell):
    """One step of a GRU (Cho et al. 2014), gates in order r, z, n.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype, seed
        As of `RNNCell`.
    reset_after : bool
        True: the reset gate acts on the product (torch, cuDNN). False: on h before it, as first published.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> cell = fastlstm.GRUCell(3, 5, reset_after=False, seed=0)
    >>> cell(np.ones(3, np.float32), np.zeros(5, np.float32)).shape
    (5,)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.reset_after = bool(reset_after)
        shape = _shape("gru", input_size, hidden_size, 1, bias, 0.0, False, reset_after=self.reset_after)
        super().__init__(shape, device, dtype, seed)
