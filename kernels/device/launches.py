"""Every operation that the Numba kernels do, by the same name and with the same arguments, as launches on a CUDA device.

The recurrences here are the general form: a product for each step and a pointwise kernel, any size on any card. Where
forms.py finds one that keeps the weights on the chip, that is launched in its place. Sizes, rows and places: layout.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..operations import (
    OPERATIONS,
    AbsoluteSums,
    Adam,
    ClearRows,
    ClipValue,
    Dropout,
    GatherRows,
    GruBackward,
    GruForward,
    GruOriginalBackward,
    GruOriginalForward,
    Judge,
    LstmBackward,
    LstmForward,
    Normalise,
    Rmsprop,
    RnnBackward,
    RnnForward,
    Scale,
    ScatterOperands,
    ScatterRows,
    Sgd,
    SoftmaxCrossEntropy,
    SquaredError,
    SquareSums,
    Wave,
)
from . import forms
from .layout import THREADS, Layout
from .records import Persistent, PersistentBackward, PersistentForward

Starts = Any  # of a ragged batch's steps (sequence.py), as a tuple, since they say what is launched; 0 for whole sequences


def rows_of(t: int, batch: int, reverse: int, starts: Starts) -> tuple[int, int, int, int]:
    """Step t's first row, the rows of states before and after it, and how many it has."""
    if starts:
        return starts[t + 1] - starts[1], starts[t], starts[t + 1], starts[t + 2] - starts[t + 1]
    return t * batch, (t + reverse) * batch, (t + 1 - reverse) * batch, batch


def back(steps: int, batch: int, reverse: int, start: int, starts: Starts) -> Iterator[tuple[int, ...]]:
    """Steps in the order of backward: t, its first row, how many it has, rows of states before and after it, and of the step
    that comes after it in the recurrence the first row and how many reach t. `start`: no step comes after the chunk.
    """
    for s in range(steps):
        t = s if reverse else steps - 1 - s
        own, before, after, count = rows_of(t, batch, reverse, starts)
        if starts:
            behind, linked = starts[t + 2] - starts[1], starts[t + 3] - starts[t + 2]
        else:
            behind, linked = (t - 1 if reverse else t + 1) * batch, batch if s > 0 or not start else 0
        yield t, own, count, before, after, behind, linked


class Launches(Layout):
    """The operations in one dtype on one device, as records of operations.py whose addresses are on the device."""

    def run(self, record: Any) -> None:
        """Launch an operation on the current stream."""
        getattr(self, OPERATIONS[type(record)].device)(record)

    # Recurrences.

    def _persist(self, a: Any) -> bool:
        """Launch the form that keeps the weights on the chip (persistent.py), and say whether one serves the shape."""
        if not (a.steps and a.batch):
            return False
        cell, given = self._persistent(a)
        backward = isinstance(given, PersistentBackward)
        plan = forms.choose(cell, backward, self.kind, a.hidden, a.batch, a.steps, self.device)
        if plan is None:
            return False
        plan.launch(self.device, given, a.barrier)
        return True

    def _persistent(self, a: Any) -> tuple[str, Persistent]:
        """Return the cell of an operation, and what a persistent kernel is given to do it."""
        cell, given = PERSISTENT[type(a)]
        return cell, given(self, a)

    def wave(self, a: Wave) -> None:
        """Two layers' steps at once (wave.cuh). Whoever calls it has asked `forms.overlap`."""
        (cell, first), (_, second) = self._persistent(a.first), self._persistent(a.second)
        if not (first.steps and first.batch):
            return
        backward = isinstance(first, PersistentBackward)
        found = forms.wave(cell, backward, self.kind, first.hidden, first.batch, self.device.chip)
        if found is None or found.plan is None:
            raise ValueError(f"two layers of {cell} with {first.hidden} units in {self.kind} cannot run at once on this device")
        if isinstance(second, PersistentForward):
            second = second._replace(gates_row=0)  # its gates are one row of biases
        found.plan.launch(self.device, (*first, *second, a.between), a.first.barrier)

    def _persistent_lstm_forward(self, a: LstmForward) -> PersistentForward:
        return PersistentForward(
            steps=a.steps,
            batch=a.batch,
            hidden=a.hidden,
            reverse=a.reverse,
            time=a.time,
            relu=0,
            gates=a.gates,
            gates_row=4 * a.hidden,
            kept=a.kept,
            kept_row=a.kept_row * self.pair,
            side=0,
            side_row=0,
            h=a.h,
            op=a.op,
            op_row=a.op_row * self.pair,
            c=a.c,
            c_slots=a.c_slots,
            bias=0,
            ids=a.ids,
            table=a.table,
            lengths=a.lengths,
            clear=a.clear,
            weights=a.weight,
            weights_row=a.depth * self.pair,
        )

    def _persistent_lstm_backward(self, a: LstmBackward) -> PersistentBackward:
        return PersistentBackward(
            steps=a.steps,
            batch=a.batch,
            hidden=a.hidden,
            reverse=a.reverse,
            time=a.time,
            start=a.start,
            relu=0,
            kept=a.kept,
            inner=0,
            kept_row=a.kept_row * self.pair,
            side=0,
            side_row=0,
            h=0,
            c=a.c,
            dout=a.dout,
            dout_row=a.dout_row,
            dh=a.dh,
            dc=a.dc,
            lengths=a.lengths,
            clear=a.clear,
            weights=a.weight,
            weights_row=a.depth * self.pair,
        )

    def _persistent_gru_forward(self, a: GruForward) -> PersistentForward:
        return PersistentForward(
            steps=a.steps,
            batch=a.batch,
            hidden=a.hidden,
            reverse=a.reverse,
            time=a.time,
            relu=0,
            gates=a.gates,
            gates_row=3 * a.hidden,
            kept=a.kept,
            kept_row=a.kept_row * self.pair,
            side=a.side,
            side_row=a.side_row * self.pair,
            h=a.h,
            op=a.op,
            op_row=a.op_row * self.pair,
            c=0,
            c_slots=1,
            bias=a.bias,
            ids=a.ids,
            table=a.table,
            lengths=a.lengths,
            clear=a.clear,
            weights=a.weight,
            weights_row=a.depth * self.pair,
        )

    def _persistent_gru_backward(self, a: GruBackward) -> PersistentBackward:
        return PersistentBackward(
            steps=a.steps,
            batch=a.batch,
            hidden=a.hidden,
            reverse=a.reverse,
            time=a.time,
            start=a.start,
            relu=0,
            kept=a.kept,
            inner=a.inner,
            kept_row=a.kept_row * self.pair,
            side=a.side,
            side_row=a.side_row * self.pair,
            h=a.h,
            c=0,
            dout=a.dout,
            dout_row=a.dout_row,
            dh=a.dh,
            dc=0,
            lengths=a.lengths,
            clear=a.clear,
            weights=a.weight,
            weights_row=a.depth * self.pair,
        )

    def _persistent_rnn_forward(self, a: RnnForward) -> PersistentForward:
        return PersistentForward(
            steps=a.steps,
            batch=a.batch,
            hidden=a.hidden,
            reverse=a.reverse,
            time=a.time,
            relu=a.relu,
            gates=a.gates,
            gates_row=a.hidden,
            kept=0,
            kept_row=0,
            side=0,
            side_row=0,
            h=a.h,
            op=a.op,
            op_row=a.op_row * self.pair,
            c=0,
            c_slots=1,
            bias=0,
            ids=a.ids,
            table=a.table,
            lengths=a.lengths,
            clear=a.clear,
            weights=a.weight,
            weights_row=a.depth * self.pair,
        )

    def _persistent_rnn_backward(self, a: RnnBackward) -> PersistentBackward:
        return PersistentBackward(
            steps=a.steps,
            batch=a.batch,
            hidden=a.hidden,
            reverse=a.reverse,
            time=a.time,
            start=a.start,
            relu=a.relu,
            kept=a.kept,
            inner=0,
            kept_row=a.kept_row * self.pair,
            side=0,
            side_row=0,
            h=a.h,
            c=0,
            dout=a.dout,
            dout_row=a.dout_row,
            dh=a.dh,
            dc=0,
            lengths=a.lengths,
            clear=a.clear,
            weights=a.weight,
            weights_row=a.depth * self.pair,
        )

    def _forward(self, a: Any, columns: int) -> Iterator[tuple[int, int, int, int, int, int, int, int, tuple[int, int, int]]]:
        """Return the steps in order, each with its gates out of the table, if they come from one.

        For each step: t, its first row and how many it has, row of h before and after it, its gates, its marks, h as its
        product reads it (a copy without marked rows), and to carry on words that are not the values themselves: source,
        target, row.
        """
        size, pair = self.size, self.pair
        for s in range(a.steps):
            t = a.steps - 1 - s if a.reverse else s
            own, before, after, count = rows_of(t, a.batch, a.reverse, a.starts)
            g_t, clear_t = a.gates + own * columns * size, a.clear and a.clear + own
            source, target = a.op + before * a.op_row * size, a.op + after * a.op_row * size
            words = (source, target, a.op_row * pair) if pair > 1 else (0, 0, a.op_row)
            if a.ids:
                ids = a.ids + own * 4
                self._each("head", "gather_rows", count * columns, count, columns, ids, a.table, columns, g_t, columns)
            if a.clear:
                self.clear_rows(ClearRows(1, count, a.op_row, clear_t, source, a.spare))
                source = a.spare
            yield t, own, count, before, after, g_t, clear_t, source, words

    def lstm_forward(self, a: LstmForward) -> None:
        """All steps; see lstm.py."""
        size, pair, columns = self.size, self.pair, 4 * a.hidden
        if not (a.projection or a.starts) and self._persist(a):
            return
        for t, own, count, before, after, g_t, clear_t, source, words in self._forward(a, columns):
            h_prev, h_next = a.h + before * a.width * size, a.h + after * a.width * size
            slots = (
                (before, after) if a.starts else ((a.time + t + k) % a.c_slots * a.batch for k in (a.reverse, 1 - a.reverse))
            )
            c_prev, c_next = (a.c + slot * a.hidden * size for slot in slots)
            m_t = a.m + own * a.m_row * size if a.projection else 0
            self._multiply(count, columns, a.depth * pair, (source, a.op_row * pair), a.weight, (g_t, columns), True)
            self._each(
                "lstm",
                "lstm_forward",
                count * a.hidden,
                count,
                a.hidden,
                a.time + t,
                g_t,
                c_prev,
                c_next,
                a.kept and a.kept + own * a.kept_row * size,
                a.kept_row * pair,
                h_prev,
                h_next,
                *words,
                m_t,
                a.m_row * pair,
                a.lengths,
                clear_t,
            )
            if a.projection:
                self._multiply(count, a.width, a.m_depth * pair, (m_t, a.m_row * pair), a.projection, (h_next, a.width), False)
                if a.lengths or pair > 1:
                    self._each(
                        "sequence",
                        "carry_rows",
                        count * a.width,
                        count,
                        a.width,
                        a.time + t,
                        h_prev,
                        h_next,
                        *words[1:],
                        a.lengths,
                    )

    def lstm_backward(self, a: LstmBackward) -> None:
        """All steps, last to first; see lstm.py."""
        size, pair = self.size, self.pair
        if not (a.projection or a.starts) and self._persist(a):
            return
        for t, own, count, before, after, behind, linked in back(a.steps, a.batch, a.reverse, a.start, a.starts):
            kept_t, d_t, p_t = a.kept + own * a.kept_row * size, a.dout + own * a.dout_row * size, a.dp + own * a.dp_row * size
            c_prev, c_next = a.c + before * a.hidden * size, a.c + after * a.hidden * size
            clear_t, clear_after = a.clear and a.clear + own, a.clear + behind if a.clear and linked else 0
            self._multiply(
                linked,
                a.width,
                a.depth * pair,
                (a.kept + behind * a.kept_row * size, a.kept_row * pair),
                a.weight,
                (a.dh, a.width),
                True,
            )
            if a.projection:
                self._each(
                    "lstm",
                    "lstm_incoming",
                    count * a.width,
                    count,
                    a.width,
                    a.time + t,
                    p_t,
                    a.dp_row * pair,
                    d_t,
                    a.dout_row,
                    a.dh,
                    a.lengths,
                    clear_after,
                )
                self._multiply(
                    count, a.hidden, a.dp_depth * pair, (p_t, a.dp_row * pair), a.projection, (a.spare, a.hidden), False
                )
            self._each(
                "lstm",
                "lstm_backward",
                count * a.hidden,
                count,
                a.hidden,
                a.time + t,
                kept_t,
                a.kept_row * pair,
                c_prev,
                c_next,
                d_t,
                a.dout_row,
                a.dh,
                a.dc,
                a.spare if a.projection else 0,
                a.lengths,
                clear_t,
                clear_after,
            )

    def gru_forward(self, a: GruForward) -> None:
        """All steps with reset_after; see gru.py."""
        size, pair, columns = self.size, self.pair, 3 * a.hidden
        if not a.starts and self._persist(a):
            return
        sums = a.spare + a.batch * a.op_row * size
        for t, own, count, before, after, g_t, clear_t, source, words in self._forward(a, columns):
            self._multiply(count, columns, a.depth * pair, (source, a.op_row * pair), a.weight, (sums, columns), False)
            self._each(
                "gru",
                "gru_forward",
                count * a.hidden,
                count,
                a.hidden,
                a.time + t,
                g_t,
                sums,
                a.bias,
                a.kept and a.kept + own * a.kept_row * size,
                a.kept_row * pair,
                a.side and a.side + own * a.side_row * size,
                a.side_row * pair,
                a.h + before * a.hidden * size,
                a.h + after * a.hidden * size,
                *words,
                a.lengths,
                clear_t,
            )

    def gru_backward(self, a: GruBackward) -> None:
        """All steps with reset_after, last to first; see gru.py."""
        size, pair = self.size, self.pair
        if not a.starts and self._persist(a):
            return
        for t, own, count, before, _, behind, linked in back(a.steps, a.batch, a.reverse, a.start, a.starts):
            self._multiply(
                linked,
                a.hidden,
                a.depth * pair,
                (a.inner + behind * a.kept_row * size, a.kept_row * pair),
                a.weight,
                (a.dh, a.hidden),
                True,
            )
            self._each(
                "gru",
                "gru_backward",
                count * a.hidden,
                count,
                a.hidden,
                a.time + t,
                a.kept + own * a.kept_row * size,
                a.inner + own * a.kept_row * size,
                a.kept_row * pair,
                a.side + own * a.side_row * size,
                a.side_row * pair,
                a.h + before * a.hidden * size,
                a.dout + own * a.dout_row * size,
                a.dout_row,
                a.dh,
                a.lengths,
                a.clear and a.clear + own,
                a.clear + behind if a.clear and linked else 0,
            )

    def gru_original_forward(self, a: GruOriginalForward) -> None:
        """All steps of the original form; see gru.py."""
        size, pair, columns = self.size, self.pair, 3 * a.hidden
        sums = a.spare + a.batch * a.op_row * size
        for t, own, count, before, after, g_t, clear_t, source, words in self._forward(a, columns):
            kept_t, side_t = a.kept and a.kept + own * a.kept_row * size, a.side + own * a.side_row * size
            h_prev, h_next = a.h + before * a.hidden * size, a.h + after * a.hidden * size
            self._multiply(
                count, 2 * a.hidden, a.depth * pair, (source, a.op_row * pair), a.weight, (sums, 2 * a.hidden), False
            )
            self._each(
                "gru",
                "gru_original_reset",
                count * a.hidden,
                count,
                a.hidden,
                g_t,
                sums,
                kept_t,
                a.kept_row * pair,
                side_t,
                a.side_row * pair,
                h_prev,
                clear_t,
            )
            self._multiply(count, a.hidden, a.depth * pair, (side_t, a.side_row * pair), a.weight_n, (sums, a.hidden), False)
            self._each(
                "gru",
                "gru_original_forward",
                count * a.hidden,
                count,
                a.hidden,
                a.time + t,
                g_t,
                sums,
                kept_t,
                a.kept_row * pair,
                h_prev,
                h_next,
                *words,
                a.lengths,
                clear_t,
            )

    def gru_original_backward(self, a: GruOriginalBackward) -> None:
        """All steps of the original form, last to first; see gru.py."""
        size, pair = self.size, self.pair
        for t, own, count, before, _, behind, linked in back(a.steps, a.batch, a.reverse, a.start, a.starts):
            kept_t, inner_t = a.kept + own * a.kept_row * size, a.inner + own * a.inner_row * size
            n_t, h_prev = a.inner_n + own * a.side_row * size, a.h + before * a.hidden * size
            clear_t = a.clear and a.clear + own
            self._multiply(
                linked,
                a.hidden,
                a.depth * pair,
                (a.inner + behind * a.inner_row * size, a.inner_row * pair),
                a.weight,
                (a.dh, a.hidden),
                True,
            )
            self._each(
                "gru",
                "gru_original_incoming",
                count * a.hidden,
                count,
                a.hidden,
                a.time + t,
                kept_t,
                a.kept_row * pair,
                n_t,
                a.side_row * pair,
                h_prev,
                a.dout + own * a.dout_row * size,
                a.dout_row,
                a.dh,
                a.lengths,
                clear_t,
                a.clear + behind if a.clear and linked else 0,
            )
            self._multiply(
                count, a.hidden, a.side_depth * pair, (n_t, a.side_row * pair), a.weight_n, (a.spare, a.hidden), False
            )
            self._each(
                "gru",
                "gru_original_backward",
                count * a.hidden,
                count,
                a.hidden,
                a.time + t,
                kept_t,
                a.kept_row * pair,
                inner_t,
                a.inner_row * pair,
                h_prev,
                a.spare,
                a.dh,
                a.lengths,
                clear_t,
            )

    def rnn_forward(self, a: RnnForward) -> None:
        """All steps; see rnn.py."""
        size, pair = self.size, self.pair
        if not a.starts and self._persist(a):
            return
        for t, _, count, before, after, g_t, _, source, words in self._forward(a, a.hidden):
            self._multiply(count, a.hidden, a.depth * pair, (source, a.op_row * pair), a.weight, (g_t, a.hidden), True)
            self._each(
                "rnn",
                "rnn_forward",
                count * a.hidden,
                count,
                a.hidden,
                a.time + t,
                a.relu,
                g_t,
                a.h + before * a.hidden * size,
                a.h + after * a.hidden * size,
                *words,
                a.lengths,
            )

    def rnn_backward(self, a: RnnBackward) -> None:
        """All steps, last to first; see rnn.py."""
        size, pair = self.size, self.pair
        if not a.starts and self._persist(a):
            return
        for t, own, count, _, after, behind, linked in back(a.steps, a.batch, a.reverse, a.start, a.starts):
            self._multiply(
                linked,
                a.hidden,
                a.depth * pair,
                (a.kept + behind * a.kept_row * size, a.kept_row * pair),
                a.weight,
                (a.dh, a.hidden),
                True,
            )
            self._each(
                "rnn",
                "rnn_backward",
                count * a.hidden,
                count,
                a.hidden,
                a.time + t,
                a.relu,
                a.kept + own * a.kept_row * size,
                a.kept_row * pair,
                a.h + after * a.hidden * size,
                a.dout + own * a.dout_row * size,
                a.dout_row,
                a.dh,
                a.lengths,
                a.clear + behind if a.clear and linked else 0,
            )

    # Heads and dropout.

    def gather_rows(self, a: GatherRows) -> None:
        """Rows by number."""
        self._each(
            "head", "gather_rows", a.rows * a.columns, a.rows, a.columns, a.ids, a.source, a.source_row, a.out, a.out_row
        )

    def scatter_rows(self, a: ScatterRows) -> None:
        """Rows added where their numbers say."""
        self._scatter("scatter_rows", a.rows, a.columns, a.ids, a.source, a.source_row, a.out, a.out_row)

    def scatter_operands(self, a: ScatterOperands) -> None:
        """The same of words."""
        self._scatter("scatter_operands", a.rows, a.columns, a.ids, a.source, a.source_row * self.pair, a.out, a.out_row)

    def _scatter(self, kernel: str, rows: int, columns: int, *arguments: int) -> None:
        if rows and columns:
            self.device.launch(
                "head", kernel, self.macros, (rows, -(-columns // 128), 1), (128, 1, 1), (rows, columns, *arguments)
            )

    def softmax_cross_entropy(self, a: SoftmaxCrossEntropy) -> None:
        """Losses, and the logits' gradient in their place."""
        if a.rows:
            self.device.launch("head", "softmax_cross_entropy", self.macros, (a.rows, 1, 1), (128, 1, 1), tuple(a))

    def normalise(self, a: Normalise) -> None:
        """Inputs in the model's units."""
        self._each("series", "normalise", a.steps * a.batch * a.width, *a)

    def squared_error(self, a: SquaredError) -> None:
        """Losses, and the outputs' gradient in their place."""
        self._each("series", "squared_error", a.rows * 32, *a)

    # Optimizers and sums.

    def sgd(self, a: Sgd) -> None:
        """A step of an optimizer."""
        self._each("update", "sgd", a.size, *a)

    def rmsprop(self, a: Rmsprop) -> None:
        """A step of an optimizer."""
        self._each("update", "rmsprop", a.size, *a)

    def adam(self, a: Adam) -> None:
        """A step of an optimizer."""
        self._each("update", "adam", a.size, *a)

    def scale(self, a: Scale) -> None:
        """All values times a number."""
        self._each("update", "scale", a.size, *a)

    def clip_value(self, a: ClipValue) -> None:
        """All values into an interval."""
        self._each("update", "clip_value", a.size, *a)

    def square_sums(self, a: SquareSums) -> None:
        """Sums of squares, a block for each chunk."""
        self._sums("square_sums", a)

    def absolute_sums(self, a: AbsoluteSums) -> None:
        """Sums of magnitudes, a block for each chunk."""
        self._sums("absolute_sums", a)

    def _sums(self, kernel: str, a: SquareSums | AbsoluteSums) -> None:
        if a.size:
            self.device.launch("update", kernel, self.macros, (-(-a.size // a.chunk), 1, 1), (THREADS, 1, 1), tuple(a))

    def judge(self, a: Judge) -> None:
        """Whether, and how far, an optimizer goes."""
        self.device.launch("update", "judge", self.macros, (1, 1, 1), (THREADS, 1, 1), tuple(a))

    def dropout(self, a: Dropout) -> None:
        """Elements dropped; seed and stream by address."""
        self._each("random", "dropout", -(-a.rows * a.width // 4), a.rows, a.width, a.data, a.row, a.seed, a.stream, a.p)


PERSISTENT: dict[type, tuple[str, Any]] = {
    LstmForward: ("lstm", Launches._persistent_lstm_forward),
    LstmBackward: ("lstm", Launches._persistent_lstm_backward),
    GruForward: ("gru", Launches._persistent_gru_forward),
    GruBackward: ("gru", Launches._persistent_gru_backward),
    RnnForward: ("rnn", Launches._persistent_rnn_forward),
    RnnBackward: ("rnn", Launches._persistent_rnn_backward),
}
