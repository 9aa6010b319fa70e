"""What the kernels keep for one torch module, and a batch of sequences through them on torch's own memory.

Inputs, states, outputs and their gradients are read and written where torch has them. Of the weights there is one copy, which
the packed ones are made of: at every call it is compared with the module's, so that no way of changing a parameter goes
unseen, be it an optimizer's, through `.data`, or another process's. Knows nothing of modules and of autograd.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
import torch.utils.dlpack
from torch import Tensor

from ...kernels.operations import Dropout, EmitRows, FillZeros
from ...runtime.engine import Engine, engine
from ...runtime.locks import Holder
from ...runtime.params import Slots
from ...runtime.program import Later, Result, address, at_once
from ...runtime.workspace import Workspace, as_operands
from ...shape import Shape
from ...stack import ragged
from ...stack.batch_run import BatchRun
from ...stack.stack import Call, Pool, Spaces, Stack
from .threads import threads

Results = tuple[Tensor, ...]  # out, h_n and, of an LSTM, c_n; of a cell without out

_memcmp, _memmove = ctypes.CDLL(None).memcmp, ctypes.CDLL(None).memmove
_memcmp.argtypes, _memcmp.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_int
_memmove.argtypes, _memmove.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], None


class Core(Holder):
    """Weights, packed weights and buffers for modules of one shape and dtype; used by one thread at a time, under `lock`.

    `where` is the context in which its kernels run. `single`: for a cell, whose tensors have no axis of steps.
    """

    where: Any = threads

    def __init__(self, shape: Shape, dtype: str, device: str = "cpu", *, single: bool = False) -> None:
        self.engine, self.shape, self.single = engine(device, dtype), shape, single
        self.dtype = dtype
        self.user = 0  # the thread that is in the middle of a call; 0: none
        self.spare: Core | None = None
        self.slots = Slots(shape.parameters(), self.engine.storage, self.engine.buffer)
        self.stack = Stack(self.engine, shape, self.slots)
        self.pool = _Pool(self.stack)
        super().__init__()
        flat = torch.utils.dlpack.from_dlpack(self.slots.store.params)
        self.weights = [
            flat[begin : begin + torch.Size(sizes).numel()].view(sizes) for begin, sizes in self.slots.places.values()
        ]
        self.names = [f"d_{name}" for name in self.slots.places]
        self.shapes = [own.shape for own in self.weights]
        self._sizes = [(own.data_ptr(), own.nbytes) for own in self.weights]

    def make_locks(self) -> None:
        """One for every call: another thread's may have been held at a fork."""
        self.lock = threading.RLock()

    def mine(self) -> Core:
        """The core for a call: another one like it where a finalizer or handler calls in the middle of this thread's call."""
        if not self.busy:
            return self
        if self.spare is None:
            self.spare = self.another()
        return self.spare.mine()

    @property
    def busy(self) -> bool:
        """Whether this thread is in the middle of a call."""
        return self.user == threading.get_ident()

    def another(self) -> Core:
        """A core like this one."""
        return Core(self.shape, self.dtype, single=self.single)

    def place(self, tensor: Tensor | None) -> Any:
        """A tensor as programs are given it: by address, 0 without a tensor."""
        return 0 if tensor is None else tensor.data_ptr()

    def hold(self, weights: Sequence[Tensor], known: int = 0) -> int:
        """Take over weights that differ from those that are held; returns their version, and does nothing if it is `known`."""
        if known == self.slots.params.version:
            return known
        changed = False
        for (own, size), given in zip(self._sizes, weights, strict=True):
            given = plain(given)
            # By the C library: torch's own threads would be called for a comparison, and nothing is gained by more than one.
            # After an optimizer's step all differ: the rest is taken over unseen.
            if changed or _memcmp(own, given.data_ptr(), size):
                _memmove(own, given.data_ptr(), size)
                changed = True
        if changed:
            self.slots.params.bump()
        return int(self.slots.params.version)

    def empty_states(self, like: Tensor, batch: int) -> tuple[Tensor, Tensor | None]:
        """New (h, c), each [layers*directions, B, width], of a cell as its input; c of an LSTM only."""
        shape = self.shape
        axes = like.shape[:-1] if self.single else (shape.num_layers * shape.directions, batch)
        h = like.new_empty(*axes, shape.width)
        return h, like.new_empty(*axes, shape.hidden_size) if shape.cell == "lstm" else None

    @contextlib.contextmanager
    def recording_gradients(self) -> Iterator[None]:
        """Within this a backward pass is recorded, which adds to the weights' gradients: these go to places called `names`."""
        run, store = self.engine.run, self.slots.store
        run(FillZeros(size=store.grads.size, out=store.grads), work=store.grads.size // 8)
        yield
        for name, (begin, sizes) in zip(self.names, self.slots.places.values(), strict=True):
            rows, width = (1, *sizes)[-2:]
            at = address(store.grads) + begin * self.engine.itemsize
            # They have no data in common, so that threads need not meet between them.
            run(
                EmitRows(steps=1, batch=rows, width=width, h=at, h_row=width, out=Result(name), out_row=width, lengths=0),
                work=rows * width,
                shared_by="gradients",
            )

    def mask(self, rows: int, layer: int, seed: int, like: Tensor) -> Tensor:
        """[rows, directions*R]: what dropout multiplies a layer's outputs with, 0 or 1 / (1 - p)."""
        width = self.shape.directions * self.shape.width
        mask = torch.ones(rows, width, dtype=like.dtype, device=like.device)
        values = self.stack.dropout_values(seed, 0)
        with self.where, at_once():
            self.engine.run(
                Dropout(
                    rows=rows,
                    width=width,
                    data=self.place(mask),
                    row=width,
                    seed=values["seed"],
                    stream=values["dropout"] + layer,
                    p=self.stack._probability,
                ),
                work=20 * rows * width,
            )
        return mask


class _Workspace(Workspace):
    """One whose buffers may be others' too.

    What a backward pass is the first to ask for matters to nobody after it, and a core makes one pass at a time: such buffers
    are shared by all calls. They are as large as the weights, where what waits for the backward pass is as large as the batch.
    """

    def __init__(self, engine: Engine, number: int, shared: WeakValueDictionary[Any, Any]) -> None:
        super().__init__(engine)
        self.number, self.shared, self.shares = number, shared, False
        self.alone = 0  # bytes of those that are not shared

    def _made(self, name: str, shape: tuple[int, ...], make: Callable[..., Any]) -> Any:
        return super()._made(name, shape, partial(self._shared if self.shares else self._own, name, make))

    def _own(self, name: str, make: Callable[..., Any], *shape: int) -> Any:
        array = make(*shape)
        self.alone += array.nbytes
        return array

    def _shared(self, name: str, make: Callable[..., Any], *shape: int) -> Any:
        key = self.number, self.engine.kind, name, shape
        array = self.shared.get(key)
        if array is None:
            array = self.shared[key] = make(*shape)
        return array


class _Spaces(Spaces):
    """Those of a stack whose backward passes share buffers."""

    def __init__(self, stack: Stack, shared: WeakValueDictionary[Any, Any]) -> None:
        super().__init__(stack)
        self.every = [_Workspace(stack.engine, k, shared) for k in range(1 + stack.shape.num_layers * stack.shape.directions)]
        self.own, each = self.every[0], iter(self.every[1:])
        self.of = [[next(each) for _ in directions] for directions in stack.layers]

    @contextlib.contextmanager
    def sharing(self) -> Iterator[None]:
        """Within this, a backward pass is recorded."""
        for ws in self.every:
            ws.shares = True
        try:
            yield
        finally:
            for ws in self.every:
                ws.shares = False


class _Pool(Pool):
    """A pool of those."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._shared: WeakValueDictionary[Any, Any] = WeakValueDictionary()

    def new(self) -> Spaces:
        """Spaces of nothing yet."""
        return _Spaces(self.stack, self._shared)

    def size(self, spaces: Spaces) -> int:
        """Bytes of the buffers that are its alone."""
        return sum(ws.alone for ws in cast(_Spaces, spaces).every)


class Run(BatchRun):
    """A batch of sequences: the forward pass, made at once, and its backward pass.

    Parameters
    ----------
    core : Core
    x : Tensor [T, B, I], or [rows, I] of a packed batch; of a cell [B, I] or [I]
        Contiguous, as the states are.
    h_0, c_0 : Tensor or None
        [layers*directions, B, R] and [layers*directions, B, H], of a cell as x; None: zeros.
    weights : sequence of Tensor
        In the order of `Shape.parameters`.
    seed : int
        Of the dropout, where there is one.
    save : bool
        Whether there may be a backward pass; with dropout, whether it drops.
    batch_sizes : Tensor [T], optional
        Of a packed batch. What is recorded for one serves all that have as many sequences and about as many rows.
    """

    def __init__(
        self,
        core: Core,
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        weights: Sequence[Tensor],
        seed: int,
        save: bool,
        batch_sizes: Tensor | None = None,
    ) -> None:
        self.core = core = core.mine()
        values: dict[str, Any] = core.stack.dropout_values(seed, 0)
        if batch_sizes is None:
            steps, batch = (1, x.shape[:-1].numel()) if core.single else x.shape[:2]
            call = Call(steps, batch, save)
        else:
            sizes = batch_sizes.numpy()
            found, batch = ragged.places(sizes, core.shape.bidirectional, save), int(sizes[0])
            steps = ragged.room(found.rows, batch)
            call = Call(steps, batch, save, ragged=ragged.later(steps * batch))
            values |= found.values
        out = None if core.single else x.new_empty(*x.shape[:-1], core.shape.directions * core.shape.width)
        h_n, c_n = core.empty_states(x, batch)
        place = core.place
        with core.lock, core.where:
            core.user = threading.get_ident()
            try:
                super().__init__(core.slots, core.pool, call, (steps, batch, batch_sizes is None, save))
                self.values = values
                self._version = core.hold(weights)
                self.run(
                    "forward",
                    self._forward,
                    x=place(x),
                    h_0=place(h_0),
                    c_0=place(c_0),
                    out=place(out),
                    h_n=place(h_n),
                    c_n=place(c_n),
                )
            finally:
                core.user = 0
        self.outputs: Results = tuple(part for part in (out, h_n, c_n) if part is not None)

    def _forward(self) -> None:
        """Record all layers, the outputs and the final state."""
        stack, shape, call, width = self.core.stack, self.core.shape, self.call, self.core.shape.input_size
        x, x_row = as_operands(self.own, "x", *call.grid, Later("x"), width, width)
        stack.forward(self.spaces, call, (Later("h_0"), Later("c_0")), x=x, x_row=x_row)
        if not self.core.single:
            stack.emit(self.spaces, call, shape.num_layers - 1, Result("out"), shape.directions * shape.width)
        stack.final_state(self.spaces, call, Result("h_n"), Result("c_n"))

    def backward(
        self, x: Tensor, weights: Sequence[Tensor], gradients: Sequence[Tensor | None], wants_x: bool, wants_state: bool
    ) -> Sequence[Tensor | None]:
        """Gradients of x, h_0, c_0 and the weights, by contiguous ones of `outputs` or None; x, weights as in forward."""
        core, call = self.core, self.call
        # A cell's h is its output, and final state to nobody.
        dout, dh_n, dc_n = (gradients[0], None, *gradients[1:], None)[:3] if core.single else (*gradients, None)[:3]
        dx = torch.empty_like(x) if wants_x else None
        dh_0, dc_0 = core.empty_states(x, call.batch) if wants_state else (None, None)
        dweights = [torch.empty_like(own) for own in core.weights]
        if dout is None:
            dout = x.new_zeros(*x.shape[:-1], core.shape.directions * core.shape.width)
        place = core.place
        with core.lock, core.where:
            core.user = threading.get_ident()
            try:
                core.hold(weights, self._version)
                self.run(
                    ("backward", wants_x, wants_state),
                    partial(self._backward, wants_x, wants_state),
                    x=place(x),
                    dout=place(dout),
                    dh_n=place(dh_n),
                    dc_n=place(dc_n),
                    dx=place(dx),
                    dh_0=place(dh_0),
                    dc_0=place(dc_0),
                    **dict(zip(core.names, map(place, dweights), strict=True)),
                )
            finally:
                core.user = 0
        self.close()
        return dx, dh_0, dc_0, *dweights

    def _backward(self, wants_x: bool, wants_state: bool) -> None:
        """Record all layers back and the gradients of the initial state."""
        core, call, spaces = self.core, self.call, cast(_Spaces, self.spaces)
        stack, shape, width = core.stack, core.shape, core.shape.input_size
        kept = spaces.own.arrays.get("x")  # in the form that products read, where that is not x itself
        x, x_row = (Later("x"), width) if kept is None else (address(kept), kept.shape[2])
        dx_row, dx, dh_n = core.engine.padded(width), cast(int, Result("dx")), 0 if core.single else Later("dh_n")
        with spaces.sharing(), core.recording_gradients():
            if dx_row != width:
                dx = address(spaces.own.array("dx", call.steps, call.batch, dx_row))
            stack.backward(
                spaces,
                call,
                Later("dout"),
                shape.directions * shape.width,
                (dh_n, Later("dc_n")),
                x=x,
                x_row=x_row,
                dx=dx if wants_x else 0,
                dx_row=dx_row if wants_x else 0,
            )
            if wants_x and dx_row != width:
                core.engine.run(
                    EmitRows(
                        steps=call.grid[0],
                        batch=call.grid[1],
                        width=width,
                        h=dx,
                        h_row=dx_row,
                        out=Result("dx"),
                        out_row=width,
                        lengths=0,
                    ),
                    work=call.rows * width,
                    shared_by=call.shared_by,
                )
            if wants_state:
                stack.initial_gradients(spaces, call, Result("dh_0"), Result("dc_0"))

    def __del__(self) -> None:
        self.close()  # a graph that was dropped without its backward pass


def plain(tensor: Tensor) -> Tensor:
    """The tensor with its elements as they are in memory: in order, no sign still to be turned."""
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.detach().contiguous().resolve_neg()
