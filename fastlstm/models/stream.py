"""Stream: one step at a time, with the state inside; for serving and for generation.

The weights are copied and packed once, so training may go on beside it. No array is allocated per step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..kernels.operations import EmitRows, OperandRows
from ..layers.recurrent import Layer, State
from ..runtime import check
from ..runtime.arrays import as_numpy, put
from ..runtime.program import address, at_once
from ..runtime.workspace import Workspace, as_operands
from ..stack.products import PackedLinear
from ..stack.stack import Stack
from .language import LanguageModel
from .series_base import Reader, normalise, restore


class Stream:
    """Runs a layer or model step by step, with the weights and the normalisation that it has now, or at `refresh`.

    A stream has one state, so one thread at a time steps it, resets it or asks for its state. `refresh` may be called by any
    thread at any time: a step is made with the weights from before or after it, never with some of both.

    Not-a-number in x stays in the state, as in the equations; `reset`, `resets` and setting the state clear it.

    Parameters
    ----------
    source : RNN, LSTM, GRU, LanguageModel, SequenceRegressor or SequenceClassifier
        Of one direction. A regressor gives after each step the forecast that it makes of the steps so far, a classifier
        their logits; both normalise as the model does.
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
    >>> model = fastlstm.SequenceRegressor(3, 2, horizon=4, seed=0)
    >>> step = fastlstm.Stream(model)
    >>> forecasts = [step(x[t, 0]).copy() for t in range(4)]
    >>> forecasts[2].shape, bool((forecasts[2] == model(x[:3, 0])).all())
    ((4, 2), True)
    """

    def __init__(self, source: Layer | LanguageModel | Reader, batch_size: int = 1) -> None:
        if not isinstance(source, Layer | LanguageModel | Reader):
            raise TypeError(
                f"source is {type(source).__name__}; expected an RNN, LSTM or GRU layer, a LanguageModel, a SequenceRegressor "
                "or a SequenceClassifier"
            )
        if source.shape.bidirectional:
            raise ValueError("source is bidirectional: its reverse direction starts at the end, so it cannot run step by step")
        self.source, self.batch_size = source, check.positive("batch_size", batch_size)
        self.dtype, shape = source.dtype, source.shape
        self._engine = engine = source._engine
        # A step forward reads the states' first slot and writes the second, a step in reverse the other way: one after the
        # other they need no copies, and walk the weights from alternate ends.
        self._layers = [recurrence for (recurrence,) in source.stack.layers]
        self._spaces, self._turn = [Workspace(engine) for _ in self._layers], 0
        batch = self.batch_size
        # The kernels write to _out; _y is what of it the caller gets.
        if isinstance(source, Layer):
            self._y = self._out = engine.zeros(batch, shape.width)
        else:
            self._out = engine.zeros(batch, source.head.columns)
            self._y = self._out[:, : source.head.outputs]
        ids = isinstance(source, LanguageModel)
        self._x = engine.buffer(batch, "int32") if ids else engine.zeros(batch, shape.input_size)
        buffers = source.buffers if isinstance(source, Reader) else {}
        self._raw: Any = None  # normalised, where _y is in the data's units
        if isinstance(source, Reader):
            self._y = source.shaped(self._y)
            if "target_mean" in buffers:
                self._raw, self._y, self._wide = self._y, np.zeros(self._y.shape, engine.storage), np.zeros(self._y.shape)
        with at_once():
            for ws, recurrence in zip(self._spaces, self._layers, strict=True):
                recurrence.begin(ws, 1, batch, 0, 0, save=False)
        # By shapes of what steps usually get, where that goes and the result comes: tried first, as a step takes microseconds.
        self._dtype, self._usual = self._x.dtype, dict[tuple[int, ...], tuple[Any, np.ndarray]]()
        if not (ids or "input_mean" in buffers or engine.whole):
            self._usual[self._x.shape] = self._x, self._y
            if batch == 1:
                self._usual[self._x.shape[1:]] = self._x[0], self._y[0]
        self.refresh()

    def refresh(self) -> None:
        """Take the source's weights and normalisation anew; the state stays.

        While it works, old and new weights both take memory. What is edited meanwhile is taken in part: each element is the old
        or the new one.
        """
        self._weights = _Weights(self)

    def _rows(self) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """(h, c) of each layer as the next step reads them, with their padding: views."""
        layers = zip(self._spaces, self._layers, strict=True)
        return [(ws.arrays["h"][self._turn], ws.arrays["c"][self._turn] if r.cell == "lstm" else None) for ws, r in layers]

    def _states(self) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """(h [B, R], c [B, H]) of each layer: views."""
        layers = zip(self._rows(), self._layers, strict=True)
        return [(h[:, : r.width], None if c is None else c[:, : r.hidden]) for (h, c), r in layers]

    def reset(self) -> None:
        """Set the state to zero."""
        self.state = None

    @property
    def state(self) -> State:
        """Copies of h [layers, B, R], for an LSTM (h, c [layers, B, H]); settable."""
        states = self._states()
        h = np.stack([h for h, _ in states])
        cells = [c for _, c in states if c is not None]
        return (h, np.stack(cells)) if cells else h

    @state.setter
    def state(self, value: State) -> None:
        h, c = check.states("state", value, self.source.shape, self.batch_size, self._engine)
        self._zero(slice(None))
        for k, own in enumerate(self._states()):
            for part, new in zip(own, (h, c), strict=True):
                if part is not None and new is not None:
                    put(part, new[k])
        self._follow()

    def _follow(self) -> None:
        """After h was written to: what products read of it."""
        if self._engine.narrow:
            with at_once():
                for ws, r in zip(self._spaces, self._layers, strict=True):
                    self._engine.run(
                        OperandRows(
                            steps=1,
                            batch=self.batch_size,
                            width=r.width,
                            source=ws.arrays["h"][self._turn],
                            source_row=r.h_row,
                            out=ws.arrays["op"][self._turn],
                            out_row=r.op_row,
                            scratch=ws.arrays["tails"],
                        ),
                        work=0,
                    )

    def __call__(self, x: Any, out: np.ndarray | None = None, resets: Any = None) -> np.ndarray:
        """One step.

        Parameters
        ----------
        x : array [I] or [B, I]; for a LanguageModel an id or ids [B]
        out : array, optional
            Where the result goes, shaped as it and of its dtype.
        resets : bool [B], optional
            The state of the marked sequences is zeroed first.

        Returns
        -------
        y : array [R] or [B, R]; of a LanguageModel logits [V] or [B, V], of a regressor a forecast [horizon, O] or
            [B, horizon, O], of a classifier logits [C] or [B, C]
            Without `out`, valid until the next call.

        Raises
        ------
        TypeError, ValueError
            For arguments that do not fit; the state is then as it was.
        """
        weights = self._weights
        if x.__class__ is np.ndarray and x.dtype is self._dtype and (usual := self._usual.get(x.shape)):
            target, result = usual
            target[...] = x
        else:
            result = self._take(x, weights.buffers)
        if out is not None:
            check.target("out", out, result)
        if resets is not None:
            self._clear(resets)
        turn = self._turn
        weights.steps[turn]()
        self._turn = 1 - turn
        if self._raw is not None:
            restore(weights.buffers, as_numpy(self._raw), self._wide, self._y)
        if out is None:
            return result
        if result.__class__ is np.ndarray:
            out[...] = result
        else:
            put(out, result)
        return out

    def _take(self, x: Any, buffers: dict[str, np.ndarray]) -> np.ndarray:
        """Check x and copy it to where steps read it; where the result comes, with the batch's axis if x has it."""
        if isinstance(self.source, LanguageModel):
            if x.__class__ is int and 0 <= x < self.source.vocab_size and self.batch_size == 1:
                self._x[0] = x  # what a loop that draws tokens gives: in a microsecond, not in six
                single = True
            else:
                ids = check.given("x", x, as_numpy)
                single = ids.ndim == 0
                put(self._x, check.tokens("x", ids[None] if single else ids, self.source.vocab_size, (self.batch_size,)))
        else:
            found, shape = check.given("x", x, self._engine.take), self._x.shape
            single = found.ndim == 1 and self.batch_size == 1
            found = check.numbers("x", found, self._engine.storage, shape[1:] if single else shape)
            if "input_mean" in buffers:
                normal = np.empty(shape, self._engine.storage)
                normalise(buffers, as_numpy(found), normal)
                found = normal
            put(self._x[0] if found.ndim == 1 else self._x, found)
        return self._y[0] if single else self._y

    def _clear(self, resets: Any) -> None:
        """Zero the states of the marked sequences."""
        self._zero(self._engine.located(check.resets(resets, (self.batch_size,))))
        self._follow()

    def _zero(self, marks: Any) -> None:
        """Zero rows of the states with their padding: not-a-number would stay there, and narrow products read some of it."""
        for rows in self._rows():
            for part in rows:
                if part is not None:
                    part[marks] = 0


class _Weights:
    """A copy of the source's weights, packed, and the steps with them: all that `refresh` replaces, at one stroke.

    Attributes
    ----------
    buffers : dict of str to ndarray
        The normalisation; empty where there is none.
    steps : list of callable
        The step that reads the states' first slot and writes the second, and the one that goes back.
    """

    def __init__(self, stream: Stream) -> None:
        engine, source = stream._engine, stream.source
        self.buffers = source.buffers if isinstance(source, Reader) else {}
        slots, own = source.slots.copy(), Workspace(engine)
        layers = [r for (r,) in Stack(engine, source.shape, slots.parts.get("rnn", slots)).layers]
        head = None if isinstance(source, Layer) else PackedLinear(engine, slots, source.head.weight, source.head.bias)
        table = 0
        if isinstance(source, LanguageModel):
            width, tokens, embedding = source.embedding_size, source.vocab_size, address(slots.params["embedding.weight"])
            with at_once():
                rows, row = as_operands(own, "embedding", 1, tokens, embedding, width, width)
                table = address(layers[0].table(own, "table", tokens, rows, row))

        def record(turn: int) -> None:
            batch, x, x_row, ids, at = stream.batch_size, 0, 0, 0, table
            if table:
                ids = address(stream._x)
            else:
                x, x_row = as_operands(own, "x", 1, batch, address(stream._x), *[source.shape.input_size] * 2)
            for ws, recurrence in zip(stream._spaces, layers, strict=True):
                way = recurrence.reversed() if turn else recurrence
                way.forward(ws, 1, batch, False, x=x, x_row=x_row, ids=ids, table=at)
                (h, x), x_row, ids, at = way.outputs(ws), way.op_row, 0, 0
            if head is None:
                width = source.shape.width
                engine.run(
                    EmitRows(
                        steps=1, batch=batch, width=width, h=h, h_row=way.h_row, out=stream._out, out_row=width, lengths=0
                    ),
                    work=0,
                )
            else:
                head.forward(batch, x, x_row, address(stream._out), head.columns)

        self.steps: list[Callable[[], None]] = []
        for turn in (0, 1):
            program = engine.program(slots.store, own, stream._x, stream._out, *stream._spaces)
            program.record(partial(record, turn))
            self.steps.append(program.runner())
