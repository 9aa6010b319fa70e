"""Every operation that the Numba kernels do, by the same name and with the same arguments, as launches on a CUDA device.

The recurrences here are the general form: a product for each step and a pointwise kernel, any size on any card. Where
forms.py finds one that keeps the weights on the chip, that is launched in its place. Sizes, rows and places: layout.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import forms
from .layout import THREADS, Layout
from .steps import Starts, back, rows_of

GATES_ROW = 7  # among the arguments of a persistent kernel, forward: elements from one row of gates to the next


class Launches(Layout):
    """The operations in one dtype on one device; `run(name, *arguments)`, name as "lstm.forward"."""

    def run(self, name: str, *arguments: Any) -> None:
        """Launch an operation on the current stream."""
        operation: Any = OPERATIONS[name]
        operation(self, *arguments)

    # Recurrences.

    def _persist(self, cell: str, backward: bool, steps: int, batch: int, hidden: int, counters: int, *arguments: int) -> bool:
        """Whether a form that keeps the weights on the chip (persistent.py) serves the shape; then it has been launched."""
        if not (steps and batch):
            return False
        plan = forms.choose(cell, backward, self.kind, hidden, batch, steps, self.device)
        if plan is None:
            return False
        plan.launch(self.device, arguments, counters)
        return True

    def _forward(
        self,
        steps: int,
        batch: int,
        columns: int,
        reverse: int,
        op_row: int,
        gates: int,
        op: int,
        ids: int,
        table: int,
        clear: int,
        starts: Starts,
        spare: int,
    ) -> Iterator[tuple[int, int, int, int, int, int, int, int, tuple[int, int, int]]]:
        """Steps in order, each with its gates out of the table, if they come from one.

        Of each: t, its first row and how many it has, row of h before and after it, its gates, its marks, h as its product
        reads it (a copy without marked rows), and to carry on words that are not the values themselves: source, target, row.
        """
        size, pair = self.size, self.pair
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            own, before, after, count = rows_of(t, batch, reverse, starts)
            g_t, clear_t = gates + own * columns * size, clear and clear + own
            source, target = op + before * op_row * size, op + after * op_row * size
            words = (source, target, op_row * pair) if pair > 1 else (0, 0, op_row)
            if ids:
                self._each("head", "gather_rows", count * columns, count, columns, ids + own * 4, table, columns, g_t, columns)
            if clear:
                self.clear_rows(1, count, op_row, clear_t, source, spare)
                source = spare
            yield t, own, count, before, after, g_t, clear_t, source, words

    def lstm_forward(
        self,
        steps: int,
        batch: int,
        padded: int,
        width: int,
        depth: int,
        op_row: int,
        reverse: int,
        time: int,
        units: int,
        barrier: int,
        gates: int,
        kept: int,
        kept_row: int,
        h: int,
        op: int,
        c: int,
        c_slots: int,
        m: int,
        m_row: int,
        m_depth: int,
        weights: int,
        projection: int,
        zeros: int,
        ids: int,
        table: int,
        lengths: int,
        clear: int,
        starts: Starts,
        spare: int,
    ) -> None:
        """All steps; see lstm.py."""
        size, pair, columns = self.size, self.pair, 4 * padded
        if not (projection or starts) and self._persist(
            "lstm",
            False,
            steps,
            batch,
            padded,
            barrier,
            steps,
            batch,
            padded,
            reverse,
            time,
            0,
            gates,
            columns,
            kept,
            kept_row * pair,
            0,
            0,
            h,
            op,
            op_row * pair,
            c,
            c_slots,
            0,
            ids,
            table,
            lengths,
            clear,
            weights,
            depth * pair,
        ):
            return
        for t, own, count, before, after, g_t, clear_t, source, words in self._forward(
            steps, batch, columns, reverse, op_row, gates, op, ids, table, clear, starts, spare
        ):
            h_prev, h_next = h + before * width * size, h + after * width * size
            slots = (before, after) if starts else ((time + t + k) % c_slots * batch for k in (reverse, 1 - reverse))
            c_prev, c_next = (c + slot * padded * size for slot in slots)
            m_t = m + own * m_row * size if projection else 0
            self._multiply(count, columns, depth * pair, source, op_row * pair, weights, g_t, columns, True)
            self._each(
                "lstm",
                "lstm_forward",
                count * padded,
                count,
                padded,
                time + t,
                g_t,
                c_prev,
                c_next,
                kept and kept + own * kept_row * size,
                kept_row * pair,
                h_prev,
                h_next,
                *words,
                m_t,
                m_row * pair,
                lengths,
                clear_t,
            )
            if projection:
                self._multiply(count, width, m_depth * pair, m_t, m_row * pair, projection, h_next, width, False)
                if lengths or pair > 1:
                    self._each(
                        "sequence", "carry_rows", count * width, count, width, time + t, h_prev, h_next, *words[1:], lengths
                    )

    def lstm_backward(
        self,
        steps: int,
        batch: int,
        padded: int,
        width: int,
        depth: int,
        reverse: int,
        time: int,
        start: int,
        units: int,
        barrier: int,
        kept: int,
        kept_row: int,
        c: int,
        dout: int,
        dout_row: int,
        dh: int,
        dc: int,
        weights: int,
        projection: int,
        zeros: int,
        dp: int,
        dp_row: int,
        dp_depth: int,
        lengths: int,
        clear: int,
        starts: Starts,
        spare: int,
    ) -> None:
        """All steps, last to first; see lstm.py."""
        size, pair = self.size, self.pair
        if not (projection or starts) and self._persist(
            "lstm",
            True,
            steps,
            batch,
            padded,
            barrier,
            steps,
            batch,
            padded,
            reverse,
            time,
            start,
            0,
            kept,
            0,
            kept_row * pair,
            0,
            0,
            0,
            c,
            dout,
            dout_row,
            dh,
            dc,
            lengths,
            clear,
            weights,
            depth * pair,
        ):
            return
        for t, own, count, before, after, behind, linked in back(steps, batch, reverse, start, starts):
            kept_t, d_t, p_t = kept + own * kept_row * size, dout + own * dout_row * size, dp + own * dp_row * size
            c_prev, c_next = c + before * padded * size, c + after * padded * size
            clear_t, clear_after = clear and clear + own, clear + behind if clear and linked else 0
            self._multiply(
                linked, width, depth * pair, kept + behind * kept_row * size, kept_row * pair, weights, dh, width, True
            )
            if projection:
                self._each(
                    "lstm",
                    "lstm_incoming",
                    count * width,
                    count,
                    width,
                    time + t,
                    p_t,
                    dp_row * pair,
                    d_t,
                    dout_row,
                    dh,
                    lengths,
                    clear_after,
                )
                self._multiply(count, padded, dp_depth * pair, p_t, dp_row * pair, projection, spare, padded, False)
            self._each(
                "lstm",
                "lstm_backward",
                count * padded,
                count,
                padded,
                time + t,
                kept_t,
                kept_row * pair,
                c_prev,
                c_next,
                d_t,
                dout_row,
                dh,
                dc,
                spare if projection else 0,
                lengths,
                clear_t,
                clear_after,
            )

    def gru_forward(
        self,
        steps: int,
        batch: int,
        padded: int,
        depth: int,
        op_row: int,
        reverse: int,
        time: int,
        units: int,
        barrier: int,
        gates: int,
        kept: int,
        kept_row: int,
        side: int,
        side_row: int,
        h: int,
        op: int,
        weights: int,
        bias: int,
        ids: int,
        table: int,
        lengths: int,
        clear: int,
        starts: Starts,
        spare: int,
    ) -> None:
        """All steps with reset_after; see gru.py."""
        size, pair, columns = self.size, self.pair, 3 * padded
        if not starts and self._persist(
            "gru",
            False,
            steps,
            batch,
            padded,
            barrier,
            steps,
            batch,
            padded,
            reverse,
            time,
            0,
            gates,
            columns,
            kept,
            kept_row * pair,
            side,
            side_row * pair,
            h,
            op,
            op_row * pair,
            0,
            1,
            bias,
            ids,
            table,
            lengths,
            clear,
            weights,
            depth * pair,
        ):
            return
        sums = spare + batch * op_row * size
        for t, own, count, before, after, g_t, clear_t, source, words in self._forward(
            steps, batch, columns, reverse, op_row, gates, op, ids, table, clear, starts, spare
        ):
            self._multiply(count, columns, depth * pair, source, op_row * pair, weights, sums, columns, False)
            self._each(
                "gru",
                "gru_forward",
                count * padded,
                count,
                padded,
                time + t,
                g_t,
                sums,
                bias,
                kept and kept + own * kept_row * size,
                kept_row * pair,
                side and side + own * side_row * size,
                side_row * pair,
                h + before * padded * size,
                h + after * padded * size,
                *words,
                lengths,
                clear_t,
            )

    def gru_backward(
        self,
        steps: int,
        batch: int,
        padded: int,
        depth: int,
        reverse: int,
        time: int,
        start: int,
        units: int,
        barrier: int,
        kept: int,
        inner: int,
        kept_row: int,
        side: int,
        side_row: int,
        h: int,
        dout: int,
        dout_row: int,
        dh: int,
        weights: int,
        lengths: int,
        clear: int,
        starts: Starts,
    ) -> None:
        """All steps with reset_after, last to first; see gru.py."""
        size, pair = self.size, self.pair
        if not starts and self._persist(
            "gru",
            True,
            steps,
            batch,
            padded,
            barrier,
            steps,
            batch,
            padded,
            reverse,
            time,
            start,
            0,
            kept,
            inner,
            kept_row * pair,
            side,
            side_row * pair,
            h,
            0,
            dout,
            dout_row,
            dh,
            0,
            lengths,
            clear,
            weights,
            depth * pair,
        ):
            return
        for t, own, count, before, _, behind, linked in back(steps, batch, reverse, start, starts):
            self._multiply(
                linked, padded, depth * pair, inner + behind * kept_row * size, kept_row * pair, weights, dh, padded, True
            )
            self._each(
                "gru",
                "gru_backward",
                count * padded,
                count,
                padded,
                time + t,
                kept + own * kept_row * size,
                inner + own * kept_row * size,
                kept_row * pair,
                side + own * side_row * size,
                side_row * pair,
                h + before * padded * size,
                dout + own * dout_row * size,
                dout_row,
                dh,
                lengths,
                clear and clear + own,
                clear + behind if clear and linked else 0,
            )

    def gru_original_forward(
        self,
        steps: int,
        batch: int,
        padded: int,
        depth: int,
        op_row: int,
        reverse: int,
        time: int,
        units: int,
        barrier: int,
        gates: int,
        kept: int,
        kept_row: int,
        side: int,
        side_row: int,
        h: int,
        op: int,
        weights: int,
        weights_n: int,
        ids: int,
        table: int,
        lengths: int,
        clear: int,
        starts: Starts,
        spare: int,
    ) -> None:
        """All steps of the original form; see gru.py."""
        size, pair, columns = self.size, self.pair, 3 * padded
        sums = spare + batch * op_row * size
        for t, own, count, before, after, g_t, clear_t, source, words in self._forward(
            steps, batch, columns, reverse, op_row, gates, op, ids, table, clear, starts, spare
        ):
            kept_t, side_t = kept and kept + own * kept_row * size, side + own * side_row * size
            h_prev, h_next = h + before * padded * size, h + after * padded * size
            self._multiply(count, 2 * padded, depth * pair, source, op_row * pair, weights, sums, 2 * padded, False)
            self._each(
                "gru",
                "gru_original_reset",
                count * padded,
                count,
                padded,
                g_t,
                sums,
                kept_t,
                kept_row * pair,
                side_t,
                side_row * pair,
                h_prev,
                clear_t,
            )
            self._multiply(count, padded, depth * pair, side_t, side_row * pair, weights_n, sums, padded, False)
            self._each(
                "gru",
                "gru_original_forward",
                count * padded,
                count,
                padded,
                time + t,
                g_t,
                sums,
                kept_t,
                kept_row * pair,
                h_prev,
                h_next,
                *words,
                lengths,
                clear_t,
            )

    def gru_original_backward(
        self,
        steps: int,
        batch: int,
        padded: int,
        depth: int,
        side_depth: int,
        reverse: int,
        time: int,
        start: int,
        units: int,
        barrier: int,
        kept: int,
        kept_row: int,
        inner: int,
        inner_row: int,
        inner_n: int,
        side_row: int,
        h: int,
        dout: int,
        dout_row: int,
        dh: int,
        weights: int,
        weights_n: int,
        zeros: int,
        lengths: int,
        clear: int,
        starts: Starts,
        spare: int,
    ) -> None:
        """All steps of the original form, last to first; see gru.py."""
        size, pair = self.size, self.pair
        for t, own, count, before, _, behind, linked in back(steps, batch, reverse, start, starts):
            kept_t, inner_t = kept + own * kept_row * size, inner + own * inner_row * size
            n_t, h_prev = inner_n + own * side_row * size, h + before * padded * size
            clear_t = clear and clear + own
            self._multiply(
                linked, padded, depth * pair, inner + behind * inner_row * size, inner_row * pair, weights, dh, padded, True
            )
            self._each(
                "gru",
                "gru_original_incoming",
                count * padded,
                count,
                padded,
                time + t,
                kept_t,
                kept_row * pair,
                n_t,
                side_row * pair,
                h_prev,
                dout + own * dout_row * size,
                dout_row,
                dh,
                lengths,
                clear_t,
                clear + behind if clear and linked else 0,
            )
            self._multiply(count, padded, side_depth * pair, n_t, side_row * pair, weights_n, spare, padded, False)
            self._each(
                "gru",
                "gru_original_backward",
                count * padded,
                count,
                padded,
                time + t,
                kept_t,
                kept_row * pair,
                inner_t,
                inner_row * pair,
                h_prev,
                spare,
                dh,
                lengths,
                clear_t,
            )

    def rnn_forward(
        self,
        steps: int,
        batch: int,
        padded: int,
        depth: int,
        op_row: int,
        reverse: int,
        time: int,
        units: int,
        barrier: int,
        relu: int,
        gates: int,
        h: int,
        op: int,
        weights: int,
        ids: int,
        table: int,
        lengths: int,
        clear: int,
        starts: Starts,
        spare: int,
    ) -> None:
        """All steps; see rnn.py."""
        size, pair = self.size, self.pair
        if not starts and self._persist(
            "rnn",
            False,
            steps,
            batch,
            padded,
            barrier,
            steps,
            batch,
            padded,
            reverse,
            time,
            relu,
            gates,
            padded,
            0,
            0,
            0,
            0,
            h,
            op,
            op_row * pair,
            0,
            1,
            0,
            ids,
            table,
            lengths,
            clear,
            weights,
            depth * pair,
        ):
            return
        for t, _, count, before, after, g_t, _, source, words in self._forward(
            steps, batch, padded, reverse, op_row, gates, op, ids, table, clear, starts, spare
        ):
            self._multiply(count, padded, depth * pair, source, op_row * pair, weights, g_t, padded, True)
            self._each(
                "rnn",
                "rnn_forward",
                count * padded,
                count,
                padded,
                time + t,
                relu,
                g_t,
                h + before * padded * size,
                h + after * padded * size,
                *words,
                lengths,
            )

    def rnn_backward(
        self,
        steps: int,
        batch: int,
        padded: int,
        depth: int,
        reverse: int,
        time: int,
        start: int,
        units: int,
        barrier: int,
        relu: int,
        kept: int,
        kept_row: int,
        h: int,
        dout: int,
        dout_row: int,
        dh: int,
        weights: int,
        lengths: int,
        clear: int,
        starts: Starts,
    ) -> None:
        """All steps, last to first; see rnn.py."""
        size, pair = self.size, self.pair
        if not starts and self._persist(
            "rnn",
            True,
            steps,
            batch,
            padded,
            barrier,
            steps,
            batch,
            padded,
            reverse,
            time,
            start,
            relu,
            kept,
            0,
            kept_row * pair,
            0,
            0,
            h,
            0,
            dout,
            dout_row,
            dh,
            0,
            lengths,
            clear,
            weights,
            depth * pair,
        ):
            return
        for t, own, count, _, after, behind, linked in back(steps, batch, reverse, start, starts):
            self._multiply(
                linked, padded, depth * pair, kept + behind * kept_row * size, kept_row * pair, weights, dh, padded, True
            )
            self._each(
                "rnn",
                "rnn_backward",
                count * padded,
                count,
                padded,
                time + t,
                relu,
                kept + own * kept_row * size,
                kept_row * pair,
                h + after * padded * size,
                dout + own * dout_row * size,
                dout_row,
                dh,
                lengths,
                clear + behind if clear and linked else 0,
            )

    # Heads and dropout.

    def gather_rows(self, rows: int, columns: int, ids: int, source: int, source_row: int, out: int, out_row: int) -> None:
        """Rows by number."""
        self._each("head", "gather_rows", rows * columns, rows, columns, ids, source, source_row, out, out_row)

    def scatter_rows(self, rows: int, columns: int, ids: int, source: int, source_row: int, out: int, out_row: int) -> None:
        """Rows added where their numbers say."""
        self._scatter("scatter_rows", rows, columns, ids, source, source_row, out, out_row)

    def scatter_operands(self, rows: int, columns: int, ids: int, source: int, source_row: int, out: int, out_row: int) -> None:
        """The same of words."""
        self._scatter("scatter_operands", rows, columns, ids, source, source_row * self.pair, out, out_row)

    def _scatter(self, kernel: str, rows: int, columns: int, *arguments: int) -> None:
        if rows and columns:
            self.device.launch(
                "head", kernel, self.macros, (rows, -(-columns // 128), 1), (128, 1, 1), (rows, columns, *arguments)
            )

    def softmax_cross_entropy(self, rows: int, *arguments: int) -> None:
        """Losses, and the logits' gradient in their place."""
        if rows:
            self.device.launch("head", "softmax_cross_entropy", self.macros, (rows, 1, 1), (128, 1, 1), (rows, *arguments))

    def normalise(self, steps: int, batch: int, width: int, *arguments: int) -> None:
        """Inputs in the model's units."""
        self._each("series", "normalise", steps * batch * width, steps, batch, width, *arguments)

    def squared_error(self, rows: int, *arguments: int) -> None:
        """Losses, and the outputs' gradient in their place."""
        self._each("series", "squared_error", rows * 32, rows, *arguments)

    def judge(self, *arguments: int) -> None:
        """Whether, and how far, an optimizer goes."""
        self.device.launch("update", "judge", self.macros, (1, 1, 1), (THREADS, 1, 1), arguments)

    def dropout(self, rows: int, width: int, data: int, row: int, seed: int, stream: int, p: int) -> None:
        """Elements dropped; seed and stream by address."""
        self._each("random", "dropout", -(-rows * width // 4), rows, width, data, row, seed, stream, p)


class Given(Launches):
    """What persistent kernels would be given, kept in their stead."""

    def _persist(self, cell: str, backward: bool, steps: int, batch: int, hidden: int, counters: int, *arguments: int) -> bool:
        """Keep it."""
        self.shape, self.counters, self.arguments = (cell, backward, steps, batch, hidden), counters, arguments
        return True


def _wave(name: str) -> Any:
    """Two layers' operations `name` at once (wave.cuh): arguments of both, whoever goes ahead first, and the weights between.

    Forward the gates of the second are a row of biases. Whoever calls it has asked `forms.overlap`.
    """

    def operation(self: Launches, *arguments: int) -> None:
        half, (first, second) = len(arguments) // 2, (Given(self.device, self.dtype) for _ in range(2))
        first.run(name, *arguments[:half])
        second.run(name, *arguments[half:-1])
        cell, backward, steps, batch, hidden = first.shape
        if not (steps and batch):
            return
        found = forms.wave(cell, backward, self.kind, hidden, batch, self.device.chip)
        if found is None or found.plan is None:
            raise ValueError(f"two layers of {cell} with {hidden} units in {self.kind} cannot run at once on this device")
        behind = list(second.arguments)
        if not backward:
            behind[GATES_ROW] = 0
        found.plan.launch(self.device, (*first.arguments, *behind, arguments[-1]), first.counters)

    return operation


def _update(kernel: str) -> Any:
    """A step of an optimizer, or else a change of all values: `kernel` for each of `count` elements."""

    def operation(self: Launches, count: int, *arguments: int) -> None:
        self._each("update", kernel, count, count, *arguments)

    return operation


def _sums(kernel: str) -> Any:
    """Sums by chunk of `chunk` elements, a block for each."""

    def operation(self: Launches, count: int, chunk: int, values: int, sums: int) -> None:
        if count:
            self.device.launch(
                "update", kernel, self.macros, (-(-count // chunk), 1, 1), (THREADS, 1, 1), (count, chunk, values, sums)
            )

    return operation


OPERATIONS = {
    "gemm.product": Launches.product,
    "gemm.product_by_three": Launches.product,
    "outer.product": Launches.outer,
    "pack.pack_columns": Launches.pack_columns,
    "pack.pack_rows": Launches.pack_rows,
    "pack.pack_bias": Launches.pack_bias,
    "pack.add_rows": Launches.add_rows,
    "pack.add_columns": Launches.add_columns,
    "sequence.emit_rows": Launches.emit_rows,
    "sequence.absorb_rows": Launches.absorb_rows,
    "sequence.operand_rows": Launches.operand_rows,
    "sequence.fill_zeros": Launches.fill_zeros,
    "sequence.clear_rows": Launches.clear_rows,
    "lstm.forward": Launches.lstm_forward,
    "lstm.backward": Launches.lstm_backward,
    "gru.forward": Launches.gru_forward,
    "gru.backward": Launches.gru_backward,
    "gru.original_forward": Launches.gru_original_forward,
    "gru.original_backward": Launches.gru_original_backward,
    "rnn.forward": Launches.rnn_forward,
    "rnn.backward": Launches.rnn_backward,
    **{f"{cell}.wave_{way}": _wave(f"{cell}.{way}") for cell in ("lstm", "gru", "rnn") for way in ("forward", "backward")},
    "head.gather_rows": Launches.gather_rows,
    "head.scatter_rows": Launches.scatter_rows,
    "head.scatter_operands": Launches.scatter_operands,
    "head.softmax_cross_entropy": Launches.softmax_cross_entropy,
    **{f"update.{kernel}": _update(kernel) for kernel in ("sgd", "rmsprop", "adam", "scale", "clip_value")},
    **{f"update.{kernel}": _sums(kernel) for kernel in ("square_sums", "absolute_sums")},
    "series.normalise": Launches.normalise,
    "series.squared_error": Launches.squared_error,
    "update.judge": Launches.judge,
    "random.dropout": Launches.dropout,
}
