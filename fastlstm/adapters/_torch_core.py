"""What the kernels keep for one torch module, and a batch of sequences through them on torch's own memory.

Inputs, states, outputs and their gradients are read and written where torch has them. Of the weights there is one copy, which
the packed ones are made of: at every call it is compared with the module's, so that no way of changing a parameter goes
unseen, be it an optimizer's, through `.data`, or another process's. Knows nothing of modules and of autograd.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.dlpack
from torch import Tensor

from fastlstm import ragged
from fastlstm.engine import engine
from fastlstm.locks import Holder
from fastlstm.params import Slots
from fastlstm.program import Later, Result, address
from fastlstm.stack import Call, Pool, Shape, Spaces, Stack
from fastlstm.workspace import as_operands

from ._torch_threads import threads

Results = tuple[Tensor, ...]  # out, h_n and, of an LSTM, c_n

_memcmp, _memmove = ctypes.CDLL(None).memcmp, ctypes.CDLL(None).memmove
_memcmp.argtypes, _memcmp.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_int
_memmove.argtypes, _memmove.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], None


class Core(Holder):
    """Weights, packed weights and buffers for modules of one shape and dtype; used by one thread at a time, under `lock`.

    `where` is the context in which its kernels run.
    """

    where: Any = threads

    def __init__(self, shape: Shape, dtype: str, device: str = "cpu") -> None:
        self.engine, self.shape = engine(device, dtype), shape
        self.slots = Slots(shape.parameters(), self.engine.storage, self.engine.buffer)
        self.stack = Stack(self.engine, shape, self.slots)
        self.pool = _Pool(self.stack)
        super().__init__()
        self.weights, self._grads = self._views(self.slots.store.params), self._views(self.slots.store.grads)
        self.shapes = [own.shape for own in self.weights]
        self._sizes = [(own.data_ptr(), own.nbytes) for own in self.weights]

    def make_locks(self) -> None:
        """One for every call: another thread's may have been held at a fork."""
        self.lock = threading.RLock()

    def _views(self, buffer: Any) -> list[Tensor]:
        flat = torch.utils.dlpack.from_dlpack(buffer)
        return [flat[begin : begin + torch.Size(shape).numel()].view(shape) for begin, shape in self.slots.places.values()]

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

    def clear_gradients(self) -> None:
        """Before a backward pass, which adds to them."""
        self.slots.grads.flat.fill(0)

    def gradients(self) -> list[Tensor]:
        """After a backward pass: the weights' gradients, in new memory."""
        return [grad.clone() for grad in self._grads]

    def empty_states(self, like: Tensor, batch: int) -> tuple[Tensor, Tensor | None]:
        """New (h, c), each [layers*directions, B, width]; c of an LSTM only."""
        shape = self.shape
        count = shape.num_layers * shape.directions
        h = like.new_empty(count, batch, shape.width)
        return h, like.new_empty(count, batch, shape.hidden_size) if shape.cell == "lstm" else None

    def mask(self, rows: int, layer: int, seed: int, like: Tensor) -> Tensor:
        """[rows, directions*R]: what dropout multiplies a layer's outputs with, 0 or 1 / (1 - p)."""
        width = self.shape.directions * self.shape.width
        mask = torch.ones(rows, width, dtype=like.dtype, device=like.device)
        values = self.stack.dropout_values(seed, 0)
        with self.where:
            self.engine.run("random.dropout", rows, width, self.place(mask), width, values["seed"], values["dropout"] + layer,
                            self.stack._probability, work=20 * rows * width)  # fmt: skip
        return mask


class _Pool(Pool):
    """A pool that takes buffers back from finalizers too."""

    def offer(self, key: tuple[Any, ...], spaces: Spaces) -> None:
        """As `give`, unless that would mean to wait: whoever holds the lock may be the one who was interrupted."""
        if self.lock.acquire(blocking=False):
            try:
                self.free.append((key, spaces))
                del self.free[: -self.KEPT]
            finally:
                self.lock.release()


class Run:
    """A batch of sequences: the forward pass, made at once, and its backward pass.

    Parameters
    ----------
    core : Core
    x : Tensor [T, B, I], or [rows, I] of a packed batch
        Contiguous, as the states are.
    h_0, c_0 : Tensor or None
        [layers*directions, B, R] and [layers*directions, B, H]; None: zeros.
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
        self, core: Core, x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Sequence[Tensor], seed: int, save: bool,
        batch_sizes: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.spaces: Spaces | None = None
        self.core = core
        self.values: dict[str, Any] = core.stack.dropout_values(seed, 0)
        if batch_sizes is None:
            steps, batch = x.shape[:2]
            self.call = Call(steps, batch, save)
        else:
            sizes = batch_sizes.numpy()
            found, batch = ragged.places(sizes, core.shape.bidirectional, save), int(sizes[0])
            steps = ragged.room(found.rows, batch)
            self.call = Call(steps, batch, save, ragged=ragged.later(steps * batch))
            self.values |= found.values
        out = x.new_empty(*x.shape[:-1], core.shape.directions * core.shape.width)
        h_n, c_n = core.empty_states(x, batch)
        self._key = (steps, batch, batch_sizes is None, save)
        place = core.place
        with core.lock, core.where:
            self.spaces = spaces = core.pool.take(self._key)
            self._version = core.hold(weights)
            spaces.program("forward", self._forward).run(
                x=place(x), h_0=place(h_0), c_0=place(c_0), out=place(out), h_n=place(h_n), c_n=place(c_n), **self.values
            )
        self.outputs: Results = (out, h_n) if c_n is None else (out, h_n, c_n)

    def _forward(self) -> None:
        """Record all layers, the outputs and the final state."""
        assert self.spaces is not None
        stack, shape, call, width = self.core.stack, self.core.shape, self.call, self.core.shape.input_size
        x, x_row = as_operands(self.spaces.own, "x", *call.grid, Later("x"), width, width)
        stack.forward(self.spaces, call, (Later("h_0"), Later("c_0")), x=x, x_row=x_row)
        stack.emit(self.spaces, call, shape.num_layers - 1, Result("out"), shape.directions * shape.width)
        stack.final_state(self.spaces, call, Result("h_n"), Result("c_n"))

    def backward(
        self, x: Tensor, weights: Sequence[Tensor], dout: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None,
        wants_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor | None, list[Tensor]]:  # fmt: skip
        """(dx, dh_0, dc_0, gradients of the weights) of contiguous gradients, None for zeros; x and weights as in forward."""
        assert self.spaces is not None
        core, call, width = self.core, self.call, self.core.shape.input_size
        dh_0, dc_0 = core.empty_states(x, call.batch)
        row = core.engine.padded(width)
        dx = x.new_empty(*x.shape[:-1], row) if wants_dx else None
        if dout is None:
            dout = x.new_zeros(*x.shape[:-1], core.shape.directions * core.shape.width)
        place = core.place
        with core.lock, core.where:
            core.hold(weights, self._version)
            core.clear_gradients()
            self.spaces.program(("backward", wants_dx), lambda: self._backward(wants_dx, row)).run(
                x=place(x), dout=place(dout), dh_n=place(dh_n), dc_n=place(dc_n), dx=place(dx), dh_0=place(dh_0),
                dc_0=place(dc_0), **self.values,
            )  # fmt: skip
            gradients = core.gradients()
        self.close()
        return None if dx is None else dx[..., :width], dh_0, dc_0, gradients

    def _backward(self, wants_dx: bool, dx_row: int) -> None:
        """Record all layers back and the gradients of the initial state."""
        assert self.spaces is not None
        stack, shape, call = self.core.stack, self.core.shape, self.call
        kept = self.spaces.own.arrays.get("x")  # in the form that products read, where that is not x itself
        x, x_row = (Later("x"), shape.input_size) if kept is None else (address(kept), kept.shape[2])
        stack.backward(self.spaces, call, Later("dout"), shape.directions * shape.width, (Later("dh_n"), Later("dc_n")), x=x,
                       x_row=x_row, dx=Result("dx") if wants_dx else 0, dx_row=dx_row if wants_dx else 0)  # fmt: skip
        stack.initial_gradients(self.spaces, call, Result("dh_0"), Result("dc_0"))

    def close(self) -> None:
        """Give the buffers back."""
        spaces, self.spaces = self.spaces, None
        if spaces is not None:
            self.core.pool.give(self._key, spaces)

    def __del__(self) -> None:
        # A graph that was dropped without its backward pass. This may come in the midst of anything.
        if self.spaces is not None:
            self.core.pool.offer(self._key, self.spaces)


def plain(tensor: Tensor) -> Tensor:
    """The tensor with its elements as they are in memory: in order, no sign still to be turned."""
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.detach().contiguous().resolve_neg()
