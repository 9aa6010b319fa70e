"""RNN, LSTM, GRU: the public layers. They own parameters, check arguments once and hand kernels what they need.

No autograd: `forward_train` hands back its own backward. Argument names, order, shapes, defaults and initialisation are
those of torch.nn.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..kernels.operations import EmitRows
from ..runtime import check
from ..runtime.arrays import put
from ..runtime.engine import engine
from ..runtime.params import Parameters, Slots
from ..runtime.program import Later, Place, Result, address
from ..runtime.workspace import as_operands
from ..shape import Shape
from ..stack.batch_run import Backprop, BatchRun
from ..stack.stack import Call, Pool, Stack
from .module import Owner

State = Any  # h_0, or (h_0, c_0) for an LSTM


def fresh_seed() -> int:
    """A seed from the operating system, where the user gave none."""
    return int(np.random.SeedSequence().generate_state(2, np.uint64)[0] >> 1)


def uniform(params: Parameters, bound: float, seed: int, stream: int = 0) -> None:
    """Fill parameters from U(-bound, bound), drawn in their order from Philox counters."""
    draw = np.random.Generator(np.random.Philox(key=np.array([seed & (2**64 - 1), stream], np.uint64)))
    put(params.flat, draw.uniform(-bound, bound, params.flat.size))
    params.bump()


class Layer(Owner):
    """What RNN, LSTM and GRU share. Calling it runs inference; `forward_train` also returns the backward pass.

    Any number of threads may call one layer at once, forward and backward; its gradients are added one pass after the other.
    """

    def __init__(self, shape: Shape, batch_first: bool, device: str, dtype: str, seed: int | None) -> None:
        self._engine = engine(device, dtype)
        self.device, self.dtype, self.batch_first = device, dtype, bool(batch_first)
        self.shape = shape
        self.seed = fresh_seed() if seed is None else check.integer("seed", seed)
        self.slots = Slots(shape.parameters(), self._engine.storage, self._engine.buffer)
        uniform(self.params, 1 / math.sqrt(shape.hidden_size), self.seed)
        self.dropout_calls = 0  # counts forward_train calls: part of the random state
        self._build()

    BUILT = ("stack", "_pool")

    def _build(self) -> None:
        self.stack = Stack(self._engine, self.shape, self.slots)
        self._pool = Pool(self.stack)

    input_size = property(lambda self: self.shape.input_size)
    hidden_size = property(lambda self: self.shape.hidden_size)
    num_layers = property(lambda self: self.shape.num_layers)
    bias = property(lambda self: self.shape.bias)
    dropout = property(lambda self: self.shape.dropout)
    bidirectional = property(lambda self: self.shape.bidirectional)
    proj_size = property(lambda self: self.shape.proj_size)

    def __repr__(self) -> str:
        s = self.shape
        extra = "".join(
            f", {name}={value!r}"
            for name, value, usual in (
                ("num_layers", s.num_layers, 1),
                ("nonlinearity", "relu" if s.relu else "tanh", "tanh"),
                ("bias", s.bias, True),
                ("batch_first", self.batch_first, False),
                ("dropout", s.dropout, 0.0),
                ("bidirectional", s.bidirectional, False),
                ("proj_size", s.proj_size, 0),
                ("reset_after", s.reset_after, True),
                ("dtype", self.dtype, "float32"),
            )
            if value != usual
        )
        return f"{type(self).__name__}({s.input_size}, {s.hidden_size}{extra})"

    def __call__(self, x: Any, state: State = None, *, lengths: Any = None, resets: Any = None) -> tuple[np.ndarray, State]:
        """Inference: no dropout, nothing saved.

        Parameters
        ----------
        x : array [T, B, I], [B, T, I] if batch_first, or unbatched [T, I]
        state : array or (array, array), optional
            h_0 [layers*directions, B, R], for an LSTM (h_0, c_0 [layers*directions, B, H]); unbatched without B. None: zeros.
        lengths : integers [B], optional
            Valid steps of each sequence; outputs after them are zero and the final state is that of the last valid step.
        resets : bool, x's first two axes, optional
            The state is zeroed before the marked steps.

        Returns
        -------
        out : array [T, B, directions*R], laid out like x
        state : as `state`, after the last step
        """
        run = LayerRun(self, x, state, lengths, resets, save=False)
        run.close()
        return run.outputs

    def forward_train(
        self, x: Any, state: State = None, *, lengths: Any = None, resets: Any = None
    ) -> tuple[np.ndarray, State, Backprop]:
        """As a call, with dropout, and returns the backward pass as a third value.

        Returns
        -------
        out, state
            As of a call.
        backprop : callable
            ``dx, dstate_0 = backprop(dout, dstate_n=None)`` adds to `grads`; once only. None is zeros, for either part of a
            pair too. ``backprop.close()`` instead frees what was saved.
        """
        run = LayerRun(self, x, state, lengths, resets, save=True)
        return *run.outputs, Backprop(run.checked_gradients, run.backward, run.close)

    def compiled(self) -> tuple[Any, ...]:
        """The layer for `lstm_step`, `gru_step` or `rnn_step` in a user's own @njit code: a tuple of plain arrays.

        A snapshot of the parameters as they are now. One direction only.
        """
        from .compiled import snapshot

        return snapshot(self)


class LayerRun(BatchRun):
    """One call of a layer: checked arguments, the forward pass, and its results in the caller's layout."""

    def __init__(self, layer: Layer, x: Any, state: State, lengths: Any, resets: Any, save: bool) -> None:
        self.layer, shape, engine = layer, layer.shape, layer._engine
        found = check.given("x", x, engine.take)
        self.batched = found.ndim != 2
        axes: tuple[int | str, ...] = ("B", "T") if layer.batch_first else ("T", "B")
        wanted = (*axes, shape.input_size) if self.batched else ("T", shape.input_size)
        x = check.not_empty("x", check.array("x", found, engine.storage, wanted))
        if resets is not None:
            resets = check.resets(resets, x.shape[:-1])
        if not self.batched:
            x, resets = x[:, None], None if resets is None else resets[:, None]
        elif layer.batch_first:
            x, resets = x.swapaxes(0, 1).copy(), None if resets is None else resets.T
        steps, batch = x.shape[:2]
        if lengths is not None:
            lengths = check.lengths(lengths, batch, steps)
        h_0, c_0 = self._states("state", state, batch)
        clear_0, clear_1 = _clears(resets, lengths, shape.directions)
        layer.dropout_calls = calls = layer.dropout_calls + save
        call = Call(
            steps,
            batch,
            save,
            0 if lengths is None else Later("lengths"),
            (0 if clear_0 is None else Later("clear_0"), 0 if clear_1 is None else Later("clear_1")),
        )
        super().__init__(layer.slots, layer._pool, call, (steps, batch, save))
        self.options = (lengths is None, resets is None)
        self.values = {"lengths": lengths, "clear_0": clear_0, "clear_1": clear_1}
        if shape.dropout:
            self.values |= layer.stack.dropout_values(layer.seed, calls)
        out = engine.new((steps, batch, shape.directions * shape.width))
        h_n, c_n = self._new_states()
        self.run(("forward", self.options), self._forward, x=x, h_0=h_0, c_0=c_0, out=out, h_n=h_n, c_n=c_n)
        self.outputs = self._layout(out), self._public(h_n, c_n)

    def _forward(self) -> None:
        """Record all layers, the outputs and the final state."""
        stack, shape, spaces, call = self.layer.stack, self.layer.shape, self.spaces, self.call
        x, x_row = self._inputs(Later("x"))
        stack.forward(spaces, call, (Later("h_0"), Later("c_0")), x=x, x_row=x_row)
        stack.emit(spaces, call, shape.num_layers - 1, Result("out"), shape.directions * shape.width)
        stack.final_state(spaces, call, Result("h_n"), Result("c_n"))

    def _inputs(self, x: Place) -> tuple[int, int]:
        """Record a copy of the inputs where one is needed; return address and row of the inputs as products read them.

        A backward pass needs a copy, since the caller may change the array before.
        """
        call, own, engine, width = self.call, self.own, self.layer._engine, self.layer.shape.input_size
        if call.save and (call.lengths or not engine.narrow):
            # Rows beyond a length may hold not-a-number, which stays what it is when it meets zero in a product.
            row = engine.padded(width)
            kept = own.cleared("values", call.steps, call.batch, row)
            engine.run(
                EmitRows(
                    steps=call.steps,
                    batch=call.batch,
                    width=width,
                    h=x,
                    h_row=width,
                    out=kept,
                    out_row=row,
                    lengths=call.lengths,
                ),
                work=call.steps * call.batch * row,
                shared_by=(call.batch, "rows"),
            )
            return as_operands(own, "x", call.steps, call.batch, address(kept), row, width)
        return as_operands(own, "x", call.steps, call.batch, x, width, width)

    def _new_states(self) -> tuple[np.ndarray, np.ndarray | None]:
        """New arrays (h, c), each [layers*directions, B, width]."""
        shape, new = self.layer.shape, self.layer._engine.new
        count = shape.num_layers * shape.directions
        h = new((count, self.call.batch, shape.width))
        return h, new((count, self.call.batch, shape.hidden_size)) if shape.cell == "lstm" else None

    def _states(self, name: str, state: State, batch: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(h, c) of a state argument, each [layers*directions, B, width] or None."""
        return check.states(name, state, self.layer.shape, batch if self.batched else None, self.layer._engine)

    def _public(self, h: np.ndarray, c: np.ndarray | None) -> State:
        """A pair of arrays in the user's form of a state."""
        if not self.batched:
            h, c = h[:, 0], None if c is None else c[:, 0]
        return h if c is None else (h, c)

    def _layout(self, array: np.ndarray) -> np.ndarray:
        """Time-major [T, B, N] in the user's layout."""
        if not self.batched:
            return array[:, 0]
        return array.swapaxes(0, 1).copy() if self.layer.batch_first else array

    def checked_gradients(self, dout: Any, dstate_n: State = None) -> tuple[Any, Any, Any]:
        """Check the gradients that a user gives: (dout [T, B, N] or None, dh_n, dc_n)."""
        self.check_unedited()
        layer, shape, call, engine = self.layer, self.layer.shape, self.call, self.layer._engine
        axes = ((call.batch, call.steps) if layer.batch_first else (call.steps, call.batch)) if self.batched else (call.steps,)
        if dout is not None:
            dout = check.array("dout", dout, engine.storage, (*axes, shape.directions * shape.width), engine.take)
            if self.batched and layer.batch_first:
                dout = dout.swapaxes(0, 1).copy()
        return dout, *self._states("dstate_n", dstate_n, call.batch)

    def backward(self, dout: Any, dh_n: Any, dc_n: Any) -> tuple[np.ndarray, State]:
        """Add to the layer's gradients; return those of x and of the initial state."""
        layer, shape, call, engine = self.layer, self.layer.shape, self.call, self.layer._engine
        row, width = engine.padded(shape.input_size), shape.directions * shape.width
        dx = engine.new((call.steps, call.batch, row))
        dh_0, dc_0 = self._new_states()

        def record() -> None:
            dstate = (Later("dh_n"), Later("dc_n"))
            x = self.own.arrays["x" if engine.narrow else "values"]
            layer.stack.backward(
                self.spaces, call, Later("dout"), width, dstate, x=address(x), x_row=x.shape[2], dx=Result("dx"), dx_row=row
            )
            layer.stack.initial_gradients(self.spaces, call, Result("dh_0"), Result("dc_0"))

        if dout is None:
            dout = self.own.cleared("no_dout", call.steps, call.batch, width)
        with layer.slots.store.adding:
            self.run(("backward", self.options), record, dout=dout, dh_n=dh_n, dc_n=dc_n, dx=dx, dh_0=dh_0, dc_0=dc_0)
        self.close()
        if row != shape.input_size:
            dx = dx[:, :, : shape.input_size].copy()
        return self._layout(dx), self._public(dh_0, dc_0)


def _clears(
    resets: np.ndarray | None, lengths: np.ndarray | None, directions: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """For each direction, [T, B] uint8: the state counts as zero before this step. Marks beyond a length do not count."""
    if resets is None:
        return None, None
    marks = np.ascontiguousarray(resets, np.uint8)
    if lengths is not None:
        marks = marks * (np.arange(len(marks))[:, None] < lengths).astype(np.uint8)
    if directions == 1:
        return marks, None
    back = np.zeros_like(marks)
    back[:-1] = marks[1:]
    return marks, back


def _shape(
    cell: str, input_size: Any, hidden_size: Any, num_layers: Any, bias: Any, dropout: Any, bidirectional: Any, **options: Any
) -> Shape:
    hidden = check.positive("hidden_size", hidden_size)
    proj_size = check.projection(options.pop("proj_size", 0), hidden, cell)
    return Shape(
        cell,
        check.positive("input_size", input_size),
        hidden,
        check.positive("num_layers", num_layers),
        bool(bias),
        check.dropout(dropout, num_layers),
        bool(bidirectional),
        proj_size=proj_size,
        **options,
    )


class RNN(Layer):
    """Vanilla RNN (Elman 1990): h = act(x W_ih' + b_ih + h_prev W_hh' + b_hh).

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
    nonlinearity : {"tanh", "relu"}
    bias, batch_first, bidirectional : bool
    dropout : float
        Probability of zeroing each output between layers in `forward_train`, in [0, 1]. Of one layer it does nothing, and a
        warning says so.
    device : str
        "cpu", "cuda" or "cuda:N". On a device results are CuPy arrays; arguments may lie in either memory.
    dtype : {"float32", "float64", "bfloat16"}
        With "bfloat16", products are made of values rounded so; parameters, sums, states and gradients are float32. On CUDA
        also "float16" and "tf32", likewise.
    seed : int, optional
        For initialisation (uniform in +-1/sqrt(hidden_size)) and dropout.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> layer = fastlstm.RNN(3, 5, seed=0)
    >>> out, h_n = layer(np.ones((7, 2, 3), np.float32))
    >>> out.shape, h_n.shape
    ((7, 2, 5), (1, 2, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.nonlinearity = check.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        shape = _shape("rnn", input_size, hidden_size, num_layers, bias, dropout, bidirectional, relu=nonlinearity == "relu")
        super().__init__(shape, batch_first, device, dtype, seed)


class LSTM(Layer):
    """LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000), gates in order i, f, g, o; projection: Sak et al. 2014.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype, seed
        As of `RNN`.
    proj_size : int
        Width of h where it is not hidden_size; 0 for none.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> layer = fastlstm.LSTM(3, 5, num_layers=2, seed=0)
    >>> out, (h_n, c_n), backprop = layer.forward_train(np.ones((7, 2, 3), np.float32))
    >>> dx, (dh_0, dc_0) = backprop(np.ones_like(out))
    >>> dx.shape, dc_0.shape, layer.grads["weight_ih_l0"].shape
    ((7, 2, 3), (2, 2, 5), (20, 3))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        shape = _shape("lstm", input_size, hidden_size, num_layers, bias, dropout, bidirectional, proj_size=proj_size)
        super().__init__(shape, batch_first, device, dtype, seed)


class GRU(Layer):
    """GRU (Cho et al. 2014), gates in order r, z, n.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype, seed
        As of `RNN`.
    reset_after : bool
        True: the reset gate acts on the product (torch, cuDNN). False: on h before it, as first published.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reset_after: bool = True,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.reset_after = bool(reset_after)
        shape = _shape("gru", input_size, hidden_size, num_layers, bias, dropout, bidirectional, reset_after=self.reset_after)
        super().__init__(shape, batch_first, device, dtype, seed)
