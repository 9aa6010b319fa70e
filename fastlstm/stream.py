"""Stream: one step at a time, with the state inside; for serving and for generation.

A snapshot: the weights are copied and packed once, so training may go on beside it. No array is allocated per step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import check
from .engine import address
from .layers import Layer, State
from .linear import PackedLinear
from .models import LanguageModel
from .stack import Call, Spaces, Stack
from .workspace import Workspace


class Stream:
    """Runs a layer or model step by step.

    Parameters
    ----------
    source : RNN, LSTM, GRU (one direction) or LanguageModel
    batch_size : int
        Sequences that advance together.

    Examples
    --------
    >>> import numpy as np, fastlstm
    >>> layer = fastlstm.LSTM(3, 5, seed=0)
    >>> step = fastlstm.Stream(layer)
    >>> x = np.ones((4, 1, 3), np.float32)
    >>> outs = [step(x[t, 0]).copy() for t in range(4)]
    >>> bool((np.array(outs) == layer(x)[0][:, 0]).all())
    True
    """

    def __init__(self, source: Layer | LanguageModel, batch_size: int = 1) -> None:
        if not isinstance(source, Layer | LanguageModel):
            raise TypeError(f"source is {type(source).__name__}; expected an RNN, LSTM or GRU layer or a LanguageModel")
        if source.shape.bidirectional:
            raise ValueError("source is bidirectional: its reverse direction starts at the end, so it cannot run step by step")
        self.source, self.batch_size = source, check.positive("batch_size", batch_size)
        self.dtype, shape = source.dtype, source.shape
        self._engine = source._engine
        self._slots = source.slots.copy()
        self._stack = Stack(self._engine, shape, self._slots.parts.get("rnn", self._slots))
        self._spaces, self._own = Spaces(self._stack), Workspace(self._engine)
        self._call = Call(1, self.batch_size, save=False)
        batch, width = self.batch_size, shape.width
        self._h = np.zeros((shape.num_layers, batch, width), self.dtype)
        self._c = np.zeros((shape.num_layers, batch, shape.hidden_size), self.dtype) if shape.cell == "lstm" else None
        self._head: PackedLinear | None = None
        if isinstance(source, LanguageModel):
            self._head = PackedLinear(self._engine, self._slots, source.head.weight, source.head.bias)
            self._ids = np.zeros(batch, np.int32)
            self._y = np.zeros((batch, self._head.columns), self.dtype)
        else:
            self._x = np.zeros((batch, shape.input_size), self.dtype)
            self._y = np.zeros((batch, width), self.dtype)
        self.refresh()

    def refresh(self) -> None:
        """Take the source's weights anew; the state stays."""
        self._slots.params.flat[:] = self.source.params.flat
        self._slots.params.bump()
        if isinstance(self.source, LanguageModel):
            embedding, width = address(self._slots.params["embedding.weight"]), self.source.embedding_size
            first = self._stack.layers[0][0]
            self._table = first.table(self._own, "table", self.source.vocab_size, embedding, width)

    def reset(self) -> None:
        """Set the state to zero."""
        self._h.fill(0)
        if self._c is not None:
            self._c.fill(0)

    @property
    def state(self) -> State:
        """Copies of h [layers, B, R], for an LSTM (h, c [layers, B, H]); settable."""
        return self._h.copy() if self._c is None else (self._h.copy(), self._c.copy())

    @state.setter
    def state(self, value: State) -> None:
        h, c = check.states("state", value, self.source.shape, self.batch_size, self.dtype)
        for own, new in ((self._h, h), (self._c, c)):
            if own is not None:
                own[...] = 0 if new is None else new

    def __call__(self, x: Any, out: np.ndarray | None = None, resets: Any = None) -> np.ndarray:
        """One step.

        Parameters
        ----------
        x : array [I] or [B, I]; for a LanguageModel an id or ids [B]
        out : array, optional
            Where the result goes, shaped as it.
        resets : bool [B], optional
            The state of the marked sequences is zeroed first.

        Returns
        -------
        y : array [R] or [B, R]; for a LanguageModel logits [V] or [B, V]
            Without `out`, valid until the next call.
        """
        if resets is not None:
            marks = check.resets(resets, (self.batch_size,))
            self._h[:, marks] = 0
            if self._c is not None:
                self._c[:, marks] = 0
        stack, spaces, call, top = self._stack, self._spaces, self._call, self._stack.layers[-1][0]
        state = (self._h, self._c)
        if not isinstance(self.source, LanguageModel):
            single = np.ndim(x) == 1 and self.batch_size == 1
            self._x[...] = check.array("x", x, self.dtype, (self.source.shape.input_size,) if single else self._x.shape)
            stack.forward(spaces, call, state, x=address(self._x), x_row=self._x.shape[1])
        else:
            single = np.ndim(x) == 0
            ids = np.asarray(x)
            self._ids[...] = check.tokens("x", ids[None] if single else ids, self.source.vocab_size, (self.batch_size,))
            stack.forward(spaces, call, state, ids=address(self._ids), table=address(self._table))
        stack.final_state(spaces, call, state)
        if self._head is None:
            y = self._h[-1]
            self._y[...] = y
            result = self._y
        else:
            self._head.forward(self.batch_size, top.outputs(spaces.of[-1][0]), top.row, address(self._y), self._head.columns)
            result = self._y[:, : self._head.outputs]
        result = result[0] if single else result
        if out is None:
            return result
        if out.shape != result.shape or out.dtype != result.dtype:
            raise ValueError(
                f"out has shape {list(out.shape)} and dtype {out.dtype}; expected {list(result.shape)} {result.dtype}"
            )
        out[...] = result
        return out
