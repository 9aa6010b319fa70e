"""lstm_step, gru_step, rnn_step: one step of a layer, called from the user's own @njit code or from Python.

A snapshot of a layer is two plain arrays: `memory` holds the packed weights and the scratch, `plan` the kernel calls that
make a step, as `Recurrence.forward` makes them. So a step has the layer's bits, and what Numba compiles here is only the
way there. Only this module and `overlaps` import Numba, and both are entered only by those who use them.

Examples
--------
>>> import numpy as np, numba, fastlstm
>>> layer = fastlstm.LSTM(3, 5, seed=0)
>>> @numba.njit(nogil=True)
... def run(cell, x, h, c):
...     for t in range(len(x)):
...         fastlstm.lstm_step(cell, x[t], h, c)
>>> x, h, c = np.ones((4, 3), np.float32), np.zeros(5, np.float32), np.zeros(5, np.float32)
>>> run(layer.compiled(), x, h, c)
>>> bool((h == layer(x)[0][-1]).all())
True
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import overload, typeof_impl

from ..kernels.operations import OperandRows
from ..kernels.vector.atomics import call
from ..runtime import check
from ..runtime.cpu import Cpu
from ..runtime.overlaps import apart, places
from ..runtime.program import address, at_once, number
from ..runtime.workspace import PACKING, Workspace, as_operands
from ..shape import STORAGE
from ..stack.recurrence import Recurrence

RNN, LSTM, GRU = range(3)
KINDS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
ROWS = 24  # rows of a batch that a snapshot has room for; more go in turns

# The plan: a head, then for each layer a record, then for each of its kernel calls another, with its arguments behind it.
# Places in `memory` are indices.
BASE, SIZE, WORDS, KIND, LAYERS, HEAD = range(6)
X, INPUTS, H, WIDTH, H_ROW, C, HIDDEN, C_ROW, CALLS, RECORD = range(10)
FUNCTION, BATCH, COUNT, CALL = range(4)  # a kernel; which of its arguments is the number of rows; how many arguments follow


class _Recorder(Cpu):
    """Takes every array from one block of memory, packs weights, and notes all other kernel calls instead of making them.

    Without memory it only counts how much is needed.
    """

    def __init__(self, dtype: str, memory: np.ndarray | None = None) -> None:
        super().__init__(dtype)
        self.memory, self.used = memory, 0
        self.calls: list[Any] = []

    def empty(self, *shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        begin = self.used
        self.used += -(-size // 16) * 16  # whole cache lines
        return super().zeros(*shape) if self.memory is None else self.memory[begin : begin + size].reshape(shape)

    zeros = empty  # the memory is zeros at first

    def run(self, record: Any, *, work: int = 1 << 20, shared_by: Any = None, meets: bool = False) -> None:
        if not isinstance(record, PACKING):
            self.calls.append(record)
        elif self.memory is not None:
            super().run(record, work=work)

    def place(self, array: np.ndarray) -> int:
        """Index of an array's first element in the memory."""
        return 0 if self.memory is None else (address(array) - address(self.memory)) // self.itemsize


def snapshot(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """(plan, memory) for the steps below: the layer's parameters as they are now.

    Scratch is part of it, so it serves one thread at a time; and it holds addresses, so neither a copy of its arrays nor
    another process can use it (a step says so): make one snapshot for each thread.

    Raises
    ------
    ValueError
        For a bidirectional layer: the reverse direction starts at the end.
    """
    if layer.bidirectional:
        raise ValueError("layer is bidirectional: its reverse direction starts at the end, so it cannot run step by step")
    with at_once():
        count = _Recorder(layer.dtype)
        _plan(layer, count)
        memory = Cpu(layer.dtype).zeros(count.used)
        return _plan(layer, _Recorder(layer.dtype, memory)), memory


def _plan(layer: Any, engine: _Recorder) -> np.ndarray:
    shape = layer.shape
    base, size = (0, 0) if engine.memory is None else (address(engine.memory), engine.memory.size)
    words = [base, size, 0, KINDS[shape.cell], shape.num_layers]
    for (known,) in layer.stack.layers:
        part = Recurrence(
            engine,
            known.cell,
            (known.inputs, known.hidden, known.width),
            layer.slots,
            known.suffix,
            relu=bool(known.relu),
            reset_after=known.reset_after,
        )
        ws = Workspace(engine)
        x = ws.array("x", ROWS, part.inputs)
        part.begin(ws, 1, ROWS, 0, 0, save=False)
        engine.calls.clear()
        h = ws.arrays["h"]
        if engine.narrow:
            engine.run(
                OperandRows(
                    steps=1,
                    batch=ROWS,
                    width=part.width,
                    source=h,
                    source_row=part.h_row,
                    out=ws.arrays["op"],
                    out_row=part.op_row,
                    scratch=ws.arrays["tails"],
                )
            )
        x_at, x_row = as_operands(ws, "x_op", 1, ROWS, address(x), part.inputs, part.inputs)
        part.forward(ws, 1, ROWS, False, x=x_at, x_row=x_row)
        words += [engine.place(x), part.inputs, engine.place(h), part.width, part.h_row]
        words += [engine.place(ws.arrays.get("c", h)), part.hidden, part.padded, len(engine.calls)]
        for record in engine.calls:
            words += [engine.function(type(record)), record._fields.index("batch"), len(record), *map(number, record)]
    words[WORDS] = len(words)
    return np.array(words, np.int64)


# What follows is only ever compiled: coverage cannot see it run.


def _row(x: Any, state: Any, layer: Any, row: Any) -> Any:  # pragma: no cover
    """The view [R] of one layer and row of a state; the dimensions, known when this is compiled, say how it is laid out."""
    if state.ndim == 1:
        return state
    if state.ndim == 3:
        return state[layer, row]
    if x.ndim == 2:
        return state[row]
    return state[layer]


def _copy(source: Any, begin: Any, target: Any, at: Any, count: Any) -> None:  # pragma: no cover
    for k in range(count):
        target[at + k] = source[begin + k]


def _check(plan: Any, x: Any, state: Any, width: Any) -> None:  # pragma: no cover
    for axis in range(state.ndim):
        if state.strides[axis] == 0 and state.shape[axis] > 1:
            raise ValueError("h or c: has elements that share memory; expected an array whose elements lie apart")
    if state.ndim < x.ndim or state.ndim > x.ndim + 1:
        raise ValueError("h or c: expected [H] or [layers, H] for x [I], [B, H] or [layers, B, H] for x [B, I]")
    if x.ndim == 2 and state.shape[state.ndim - 2] != x.shape[0]:
        raise ValueError("h or c: expected the batch size of x, [B, ...] or [layers, B, ...]")
    if state.shape[state.ndim - 1] != width:
        raise ValueError("h or c: expected the layer's width as last size, that of h or hidden_size")
    if state.ndim == x.ndim:
        if plan[LAYERS] != 1:
            raise ValueError("h or c: expected [layers, H] or [layers, B, H], as the layer has more than one")
    elif state.shape[0] != plan[LAYERS]:
        raise ValueError("h or c: expected one for each layer, [layers, H] or [layers, B, H]")


def _check_cell(plan: Any, memory: Any, kind: Any) -> None:  # pragma: no cover
    # The plan is read where it begins, by address: each of these says that it and the memory are whole.
    if plan.size < HEAD or plan.strides[0] != 8 or plan[WORDS] != plan.size:
        raise ValueError("cell: expected what layer.compiled() returned, whole; its plan is another array or a part of one")
    if plan[BASE] != memory.ctypes.data:
        raise ValueError("cell: expected what layer.compiled() returned, in the same process; copies cannot be used")
    if plan[SIZE] != memory.size or memory.strides[0] != memory.itemsize:
        raise ValueError("cell: expected what layer.compiled() returned, whole; its memory is a part of it or another view")
    if plan[KIND] != kind:
        raise ValueError("cell: is of another kind; lstm_step takes an LSTM's, gru_step a GRU's, rnn_step an RNN's")


def _check_x(x: Any, state: Any) -> None:  # pragma: no cover
    """More rows than a snapshot has room for go in turns: a later one's x must not lie where an earlier one's state goes."""
    if x.ndim == 1 or x.shape[0] <= ROWS or apart(x, state):
        return
    between, (sizes, strides) = x.ctypes.data - state.ctypes.data, places(state)
    for layer in range(sizes[0]):
        if between == layer * strides[0] and x.strides[0] == strides[1]:
            return  # the same rows
    raise ValueError("x: overlaps h or c, which are overwritten; expected an array of its own")


def typed(cell: Any, x: Any, h: Any, c: Any) -> None:
    """Refused, when this is compiled, unless these are the arrays that a step takes: states are written back."""


def _typed(cell: Any, x: Any, h: Any, c: Any) -> Any:
    pair = tuple(cell) if isinstance(cell, types.BaseTuple) else ()
    dtypes = [getattr(part, "dtype", None) for part in pair]
    if len(pair) != 2 or dtypes[0] != types.int64 or not isinstance(dtypes[1], types.Float) or {p.ndim for p in pair} != {1}:
        raise TypingError(f"cell is {cell}; expected what layer.compiled() returned")
    if not isinstance(x, types.Array) or not isinstance(x.dtype, types.Float | types.Integer) or x.ndim not in (1, 2):
        raise TypingError(f"x is {x}; expected an array [I] or [B, I] of numbers")
    for state in (h,) if isinstance(c, types.NoneType) else (h, c):
        if not isinstance(state, types.Array) or not isinstance(state.dtype, types.Float) or not state.mutable:
            raise TypingError(f"h or c is {state}; expected an array of float32 or float64, as the new state is written to it")

    def accepted(cell: Any, x: Any, h: Any, c: Any) -> None:  # pragma: no cover
        pass

    return accepted


overload(typed)(_typed)
row_of, copy, check_state = (njit(nogil=True)(part) for part in (_row, _copy, _check))
check_cell, check_x = (njit(nogil=True)(part) for part in (_check_cell, _check_x))


def _advance(cell: Any, x: Any, h: Any, c: Any, kind: Any) -> Any:  # pragma: no cover
    typed(cell, x, h, c)
    plan, memory = cell
    check_cell(plan, memory, kind)
    if x.shape[x.ndim - 1] != plan[HEAD + INPUTS]:
        raise ValueError("x: expected [input_size] or [B, input_size]")
    check_state(plan, x, h, plan[HEAD + WIDTH])
    check_x(x, h)
    if c is not None:
        check_state(plan, x, c, plan[HEAD + HIDDEN])
        check_x(x, c)
        if not apart(h, c):
            raise ValueError("h or c: they overlap; expected an array of its own for each, as both are overwritten")
    batch = x.shape[0] if x.ndim == 2 else 1
    arguments = plan.ctypes.data
    for first in range(0, batch, ROWS):
        rows = min(ROWS, batch - first)
        at = HEAD
        for layer in range(plan[LAYERS]):
            width, hidden, h_row, c_row = plan[at + WIDTH], plan[at + HIDDEN], plan[at + H_ROW], plan[at + C_ROW]
            inputs, h_at, c_at = plan[at + INPUTS], plan[at + H], plan[at + C]
            for r in range(rows):
                x_at = plan[at + X] + r * inputs
                if layer > 0:
                    copy(row_of(x, h, layer - 1, first + r), 0, memory, x_at, inputs)
                elif x.ndim == 2:
                    copy(x[first + r], 0, memory, x_at, inputs)
                else:
                    copy(x, 0, memory, x_at, inputs)
                copy(row_of(x, h, layer, first + r), 0, memory, h_at + r * h_row, width)
                if c is not None:
                    copy(row_of(x, c, layer, first + r), 0, memory, c_at + r * c_row, hidden)
            job = at + RECORD
            for _ in range(plan[at + CALLS]):
                plan[job + CALL + plan[job + BATCH]] = rows
                call(plan[job + FUNCTION], arguments + 8 * (job + CALL), 0, 1)
                job += CALL + plan[job + COUNT]
            # The new states follow the old ones.
            for r in range(rows):
                copy(memory, h_at + (rows + r) * h_row, row_of(x, h, layer, first + r), 0, width)
                if c is not None:
                    copy(memory, c_at + (rows + r) * c_row, row_of(x, c, layer, first + r), 0, hidden)
            at = job
    if h.ndim == x.ndim:
        return h
    return h[plan[LAYERS] - 1]


advance = njit(nogil=True)(_advance)


def _usual(cell: Any, x: Any, h: Any, c: Any) -> bool:
    """Whether these are arrays that `advance` can take as they are; it checks the rest itself."""
    if type(cell) is not tuple or len(cell) != 2:
        return False
    plan, memory = cell
    if not type(plan) is type(memory) is type(x) is type(h) is type(c) is np.ndarray:
        return False
    if not memory.dtype == x.dtype == h.dtype == c.dtype:
        return False
    flags = x.flags
    return flags.c_contiguous and flags.aligned and h.flags.carray and c.flags.carray


def _step(cell: Any, x: Any, h: Any, c: Any, kind: int) -> Any:
    """A step that Python asks for, at once where it can be. What compiled code refuses is told by name on the other way."""
    if _usual(cell, x, h, c if kind == LSTM else h):
        try:
            return advance(cell, x, h, c, kind)
        except (ValueError, TypingError):  # before anything was changed
            pass
    return _checked(cell, x, h, c, kind)


def _checked(cell: Any, x: Any, h: Any, c: Any, kind: int) -> Any:
    """As `_step`: arguments are checked by name, and what no step was compiled for is copied."""
    if not isinstance(cell, tuple) or len(cell) != 2 or not all(type(part) is np.ndarray and part.ndim == 1 for part in cell):
        raise TypeError(f"cell is of type {type(cell).__name__}; expected what layer.compiled() returned")
    plan, memory = cell
    if plan.dtype != np.int64 or memory.dtype.name not in STORAGE:
        raise TypeError(f"cell is of arrays of {plan.dtype} and {memory.dtype}; expected what layer.compiled() returned")
    check_cell(plan, memory, kind)
    layers, inputs = int(plan[LAYERS]), int(plan[HEAD + INPUTS])
    widths = {"h": int(plan[HEAD + WIDTH]), "c": int(plan[HEAD + HIDDEN])}
    found = check.given("x", x)
    x = check.array("x", found, memory.dtype.name, ("B", inputs) if found.ndim == 2 else (inputs,))
    states = {"h": h} if kind != LSTM else {"h": h, "c": c}
    for name, state in states.items():
        check.buffer(name, state, whole=False)
        wanted = [layers, *x.shape[:-1], widths[name]]
        if list(state.shape) not in (wanted, wanted[layers == 1 :]):
            or_so = f" or {wanted[1:]}" if layers == 1 else ""
            raise ValueError(f"{name} has shape {list(state.shape)}; expected {wanted}{or_so}")
        if np.may_share_memory(x, state):
            x = x.copy()
    if len(states) == 2 and np.shares_memory(h, c):
        raise ValueError("c overlaps h; expected an array of its own for each, as both are overwritten")
    ready = [check.plain(np.asarray(state), memory.dtype.name) for state in states.values()]
    advance(cell, x, ready[0], ready[1] if len(ready) == 2 else None, kind)
    for state, new in zip(states.values(), ready, strict=True):
        if not np.may_share_memory(state, new):
            state[...] = new
    return h if h.ndim == x.ndim else h[-1]


class Step:
    """A step that Python calls as it was written; compiled code takes it, as a global or an argument, for `compiled`."""

    __name__: str
    __call__: Callable[..., Any]  # of each step's own class: no call goes through another one

    def __init__(self, python: Callable[..., Any], compiled: Any) -> None:
        update_wrapper(self, python)
        self.compiled = compiled

    def __reduce__(self) -> str:
        """Pickled by its name, as functions are."""
        return self.__name__


typeof_impl.register(Step)(lambda step, context: types.Dispatcher(step.compiled))


def _for(compiled: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Makes the `Step` of a function of Python's and of the one to compile for compiled code."""
    return lambda python: type("Step", (Step,), {"__call__": staticmethod(python)})(python, njit(nogil=True)(compiled))


def _lstm(cell: Any, x: Any, h: Any, c: Any) -> Any:  # pragma: no cover
    if c is None:
        raise TypeError("c is None; expected an array of float32 or float64, as the new state is written to it")
    return advance(cell, x, h, c, LSTM)


def _gru(cell: Any, x: Any, h: Any) -> Any:  # pragma: no cover
    return advance(cell, x, h, None, GRU)


def _rnn(cell: Any, x: Any, h: Any) -> Any:  # pragma: no cover
    return advance(cell, x, h, None, RNN)


@_for(_lstm)
def lstm_step(cell: Any, x: Any, h: Any, c: Any) -> Any:
    """One step of an LSTM: h and c are overwritten, nothing is allocated, the GIL is released.

    Parameters
    ----------
    cell : tuple
        `layer.compiled()` of an LSTM.
    x : array [I] or [B, I]
        Of any layout; numbers are converted to the layer's dtype.
    h : array [R] or [layers, R]; for x [B, I] with B before R
        R is proj_size or hidden_size. The axis of layers may be left out where there is one.
    c : array, as h with hidden_size in place of R
        Apart from h in memory.

    Returns
    -------
    h : array [R] or [B, R]
        The last layer's: a view of the argument h.

    Raises
    ------
    TypeError, ValueError
        For what is no such array, sizes that do not fit, another kind of cell or part of one, and h and c that overlap.
        Compiled code gets a numba.TypingError for types that do not fit, when it is compiled.
    """
    return _step(cell, x, h, c, LSTM)


@_for(_gru)
def gru_step(cell: Any, x: Any, h: Any) -> Any:
    """One step of a GRU in either form; see `lstm_step`."""
    return _step(cell, x, h, None, GRU)


@_for(_rnn)
def rnn_step(cell: Any, x: Any, h: Any) -> Any:
    """One step of a vanilla RNN; see `lstm_step`."""
    return _step(cell, x, h, None, RNN)
