"""One direction of one recurrent layer on kernel buffers: packed weights, forward and backward over a sequence in chunks.

A chunk is a few steps whose gates stay in cache between the input product, the recurrence and the products of the
gradients. All buffers are time-major, rows padded to whole vectors; nothing is validated here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .engine import Cpu, address
from .kernels import team
from .params import Slots
from .workspace import OUTER_SCRATCH, Packs, Workspace, whole_rows

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
CHUNK_BYTES = 1 << 21


class Recurrence:
    """One direction of one layer.

    Parameters
    ----------
    engine : Cpu
        Runs the kernels.
    cell : {"rnn", "lstm", "gru"}
    sizes : tuple of int
        Input width I, hidden units H, and R, the width of h (H, or the projection's).
    slots : Slots
        Parameters `weight_ih` + suffix and so on.
    suffix : str
        As `_l0_reverse`.
    reverse, relu, reset_after : bool
    """

    def __init__(
        self, engine: Cpu, cell: str, sizes: tuple[int, int, int], slots: Slots, suffix: str, *,
        reverse: bool = False, relu: bool = False, reset_after: bool = True,
    ) -> None:  # fmt: skip
        self.engine, self.cell, self.slots, self.suffix = engine, cell, slots, suffix
        self.inputs, self.hidden, self.width = sizes
        self.gates = GATES[cell]
        self.reverse, self.relu, self.reset_after = int(reverse), int(relu), reset_after
        self.original = cell == "gru" and not reset_after
        self.projected = self.width != self.hidden or f"weight_hr{suffix}" in slots.places
        self.biased = f"bias_ih{suffix}" in slots.places
        self.packed = Packs(engine, slots, self._pack)

    # Sizes in the current instruction set's padding.
    @property
    def padded(self) -> int:
        """Hidden units, padded."""
        return self.engine.padded(self.hidden)

    @property
    def row(self) -> int:
        """Width of h, padded."""
        return self.engine.padded(self.width)

    @property
    def columns(self) -> int:
        """Width of the interleaved gates."""
        return self.gates * self.padded

    def _at(self, name: str, row: int = 0, *, grad: bool = False) -> int:
        """Address of a parameter's (or its gradient's) row, 0 without that parameter."""
        place = self.slots.places.get(name + self.suffix)
        if place is None:
            return 0
        begin, shape = place
        buffer = self.slots.store.grads if grad else self.slots.store.params
        return address(buffer) + (begin + row * (shape[1] if len(shape) > 1 else 1)) * self.engine.itemsize

    def _pack(self, kind: str) -> None:
        """Make the pack `kind`: x, h, n, p for products with W_ih, W_hh, its rows of n, W_hr; `_back` for their gradients."""
        run, lanes, hidden, inner = self.engine.run, self.engine.lanes, self.hidden, self.gates - self.original
        wide = {1: 4, 2: 2, 3: 3, 4: 4}

        def columns(gates: int, rows: int, depth: int, weight: int) -> None:
            count = gates * self.engine.padded(rows)
            out = self.packed.space(kind, count * depth)
            run("pack.pack_columns", rows, gates, lanes, depth, count, wide[gates], weight, depth, out, work=count * depth)

        def rows(gates: int, count: int, width: int, weight: int) -> None:
            depth, padded = gates * self.engine.padded(count), self.engine.padded(width)
            out = self.packed.space(kind, depth * padded)
            run("pack.pack_rows", count, gates, lanes, depth, width, padded, weight, width, out, work=depth * padded)

        def bias(gates: int, split: int, a: int, b: int) -> None:
            count = gates * self.padded
            out = self.packed.space(kind, count)
            run("pack.pack_bias", hidden, gates, lanes, count, split, a, b, out, work=0)

        if kind == "x":
            columns(self.gates, hidden, self.inputs, self._at("weight_ih"))
        elif kind == "h":
            columns(inner, hidden, self.width, self._at("weight_hh"))
        elif kind == "n":
            columns(1, hidden, hidden, self._at("weight_hh", 2 * hidden))
        elif kind == "p":
            columns(1, self.width, hidden, self._at("weight_hr"))
        elif kind == "x_back":
            rows(self.gates, hidden, self.inputs, self._at("weight_ih"))
        elif kind == "h_back":
            rows(inner, hidden, self.width, self._at("weight_hh"))
        elif kind == "n_back":
            rows(1, hidden, hidden, self._at("weight_hh", 2 * hidden))
        elif kind == "p_back":
            # as the second operand of a product over h's width, which is not padded
            rows(1, self.width, hidden, self._at("weight_hr"))
        elif kind == "bias":
            split = 2 if self.cell == "gru" and self.reset_after else self.gates
            bias(self.gates, split, self._at("bias_ih"), self._at("bias_hh"))
        elif kind == "bias_n":
            bias(1, 0, self._at("bias_hh", 2 * hidden) if self.biased else 0, 0)

    def product_name(self) -> str:
        """The product kernel that reads the gates' panels."""
        return "gemm.product_by_three" if self.cell == "gru" else "gemm.product"

    def table(self, ws: Workspace, name: str, rows: int, source: int, source_row: int) -> np.ndarray:
        """Gate pre-activations of `rows` inputs (all tokens of a vocabulary): [rows, gates]."""
        out = ws.array(name, rows, self.columns)
        self._input_product(rows, source, source_row, address(out))
        return out

    def _input_product(self, rows: int, x: int, x_row: int, out: int) -> None:
        self.engine.run(
            self.product_name(), rows, self.inputs, self.columns, x, x_row, self.packed("x"), self.packed("bias"), 0,
            out, self.columns, work=rows * self.inputs * self.columns,
        )  # fmt: skip

    def _chunks(self, steps: int, batch: int) -> list[tuple[int, int]]:
        """(first step, number of steps) in the order of the recurrence."""
        most = max(1, CHUNK_BYTES // (batch * self.columns * self.engine.itemsize))
        size = -(-steps // -(-steps // most))
        chunks = [(t, min(size, steps - t)) for t in range(0, steps, size)]
        return chunks[::-1] if self.reverse else chunks

    def begin(self, ws: Workspace, steps: int, batch: int, h_0: Any, c_0: Any, save: bool) -> None:
        """Put the initial states [B, R] and [B, H] (None: zeros) where the first step reads them."""
        h = ws.array("h", steps + 1, batch, self.row)
        _fill(h[steps if self.reverse else 0], h_0)
        if self.cell == "lstm":
            c = ws.array("c", steps + 1, batch, self.padded) if save else ws.array("c_state", 1, batch, self.padded)
            _fill(c[steps if self.reverse and save else 0], c_0)

    def end(self, ws: Workspace, steps: int, save: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Views of the final states [B, R] and [B, H]."""
        last = 0 if self.reverse else steps
        h = ws.arrays["h"][last][:, : self.width]
        if self.cell != "lstm":
            return h, None
        return h, (ws.arrays["c"][last] if save else ws.arrays["c_state"][0])[:, : self.hidden]

    def outputs(self, ws: Workspace) -> int:
        """Address of h of step 0, rows of `row` elements."""
        h = ws.arrays["h"]
        return address(h) + (0 if self.reverse else h[0].nbytes)

    def forward(
        self, ws: Workspace, steps: int, batch: int, save: bool, *, x: int = 0, x_row: int = 0, ids: int = 0, table: int = 0,
        lengths: int = 0, clear: int = 0,
    ) -> None:  # fmt: skip
        """From the states that `begin` put, all steps; `save` keeps what `backward` needs.

        x [T, B, x_row] by address, or ids [T, B] int32 into table [V, gates] (see `table`). lengths [B] int64 and
        clear [T, B] uint8 by address, 0 for none.
        """
        run, size, padded, row, columns = self.engine.run, self.engine.itemsize, self.padded, self.row, self.columns
        chunks = self._chunks(steps, batch)
        longest = max(n for _, n in chunks)
        kept = steps if save else longest
        gates = address(ws.array("gates", kept, batch, columns))
        h = address(ws.arrays["h"])
        spare = address(ws.array("spare", batch * (row + padded) + team.num_threads() * 1024))
        relevant = batch * columns * self.width
        if self.cell == "lstm":
            c_all = ws.arrays["c"] if save else ws.array("c", longest + 1, batch, padded)
            m = address(ws.array("m", kept, batch, padded)) if self.projected else 0
        elif self.cell == "gru":
            side = address(ws.array("side", kept, batch, padded)) if save or self.original else 0
        for t, n in chunks:
            at = t if save else 0
            g_t, h_t = gates + at * batch * columns * size, h + t * batch * row * size
            ids_t, clear_t, save_flag = ids and ids + t * batch * 4, clear and clear + t * batch, int(save)
            if not ids:
                self._input_product(n * batch, x + t * batch * x_row * size, x_row, g_t)
            if self.cell == "lstm":
                c = c_all[at:]
                if not save:
                    c[n if self.reverse else 0] = ws.arrays["c_state"][0]
                run("lstm.forward", n, batch, self.hidden, padded, row, self.reverse, t, save_flag,
                    g_t, h_t, c, m and m + at * batch * padded * size, self.packed("h"), self.width,
                    self.packed("p") if self.projected else 0, self._zeros(ws), ids_t, table, lengths, clear_t, spare,
                    work=n * relevant)  # fmt: skip
                if not save:
                    ws.arrays["c_state"][0] = c[0 if self.reverse else n]
            elif self.cell == "rnn":
                run("rnn.forward", n, batch, self.hidden, padded, self.reverse, t, self.relu, g_t, h_t, self.packed("h"),
                    ids_t, table, lengths, clear_t, spare, work=n * relevant)  # fmt: skip
            elif self.original:
                run("gru.original_forward", n, batch, self.hidden, padded, self.reverse, t,
                    g_t, side + at * batch * padded * size, h_t, self.packed("h"), self.packed("n"),
                    ids_t, table, lengths, clear_t, spare, work=n * relevant)  # fmt: skip
            else:
                run("gru.forward", n, batch, self.hidden, padded, self.reverse, t, save_flag,
                    g_t, side and side + at * batch * padded * size, h_t, self.packed("h"), self.packed("bias_n"),
                    ids_t, table, lengths, clear_t, spare, work=n * relevant)  # fmt: skip

    def _zeros(self, ws: Workspace) -> np.ndarray:
        return ws.zeros("zeros", max(self.row, self.padded, self.engine.padded(self.inputs)))

    def begin_backward(self, ws: Workspace, batch: int, dh_n: Any, dc_n: Any) -> None:
        """Put the gradients of the final states (None: zeros)."""
        _fill(ws.array("dh", batch, self.row), dh_n)
        if self.cell == "lstm":
            _fill(ws.array("dc", batch, self.padded), dc_n)

    def end_backward(self, ws: Workspace) -> tuple[np.ndarray, np.ndarray | None]:
        """Views of the gradients of the initial states."""
        dc = ws.arrays["dc"][:, : self.hidden] if self.cell == "lstm" else None
        return ws.arrays["dh"][:, : self.width], dc

    def backward(
        self, ws: Workspace, steps: int, batch: int, dout: int, dout_row: int, *, x: int = 0, x_row: int = 0,
        dx: int = 0, dx_row: int = 0, add_dx: bool = False, lengths: int = 0, clear: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """All steps back; adds to the parameters' gradients. Uses up what `forward` saved.

        dout [T, B, dout_row] by address. x: the inputs again, 0 if they came from a table (the caller then finds the gates'
        gradients [T, B, gates] in the workspace). dx: where the inputs' gradients go (rows padded), 0 for nowhere; with
        add_dx they are added.
        """
        run, size, padded, row, columns = self.engine.run, self.engine.itemsize, self.padded, self.row, self.columns
        arrays, clear_at = ws.arrays, 0 if clear is None else address(clear)
        gates, h = address(arrays["gates"]), address(arrays["h"])
        dh, spare, zeros = arrays["dh"], ws.array("spare", batch * (row + padded) + team.num_threads() * 1024), self._zeros(ws)
        grads = _Sums(self, ws)
        chunks = self._chunks(steps, batch)[::-1]
        inner_row = {"lstm": columns, "rnn": columns, "gru": 2 * padded if self.original else columns}[self.cell]
        inner = gates
        if self.cell == "gru":
            inner, side = address(ws.array("inner", steps, batch, inner_row)), address(arrays["side"])
            inner_n = address(ws.array("inner_n", steps, batch, padded)) if self.original else 0
        if self.projected:
            dp, m = address(ws.array("dp", steps, batch, row)), address(arrays["m"])
        for index, (t, n) in enumerate(chunks):
            g_t, h_t, d_t = gates + t * batch * columns * size, h + t * batch * row * size, dout + t * batch * dout_row * size
            i_t, clear_t, first = inner + t * batch * inner_row * size, clear_at and clear_at + t * batch, int(index == 0)
            side_at = t * batch * padded * size
            work = n * batch * columns * self.width
            if self.cell == "lstm":
                run("lstm.backward", n, batch, padded, row, self.reverse, t, first, g_t, arrays["c"][t:], d_t, dout_row,
                    dh, arrays["dc"], self.packed("h_back"), self.packed("p_back") if self.projected else 0, zeros,
                    dp + t * batch * row * size if self.projected else 0, lengths, clear_t, spare, work=work)  # fmt: skip
            elif self.cell == "rnn":
                run("rnn.backward", n, batch, padded, self.reverse, t, first, self.relu, g_t, h_t, d_t, dout_row,
                    dh, self.packed("h_back"), lengths, clear_t, work=work)  # fmt: skip
            elif self.original:
                run("gru.original_backward", n, batch, padded, self.reverse, t, first, g_t, i_t, inner_n + side_at, h_t,
                    d_t, dout_row, dh, self.packed("h_back"), self.packed("n_back"), zeros, lengths, clear_t, spare,
                    work=work)  # fmt: skip
            else:
                run("gru.backward", n, batch, padded, self.reverse, t, first, g_t, i_t, side + side_at, h_t,
                    d_t, dout_row, dh, self.packed("h_back"), lengths, clear_t, work=work)  # fmt: skip
            rows, before = n * batch, h_t + self.reverse * batch * row * size
            if x:
                x_t = x + t * batch * x_row * size
                grads.add("ih", rows, g_t, columns, x_t, x_row, self.inputs)
                if dx:
                    at = dx + t * batch * dx_row * size
                    run("gemm.product", rows, columns, dx_row, g_t, columns, self.packed("x_back"), at if add_dx else zeros,
                        dx_row if add_dx else 0, at, dx_row, work=rows * columns * dx_row)  # fmt: skip
            if clear is not None:
                before = address(self._cleared(ws, t, n, clear))
            grads.add("hh", rows, i_t, inner_row, before, row, self.width)
            if self.original:
                grads.add("n", rows, inner_n + side_at, padded, side + side_at, padded, self.hidden)
            if self.projected:
                grads.add("hr", rows, dp + t * batch * row * size, row, m + side_at, padded, self.hidden)
        start = steps - 1 if self.reverse else 0
        run("gemm.product", batch, inner_row, row, inner + start * batch * inner_row * size, inner_row, self.packed("h_back"),
            dh, row, dh, row, work=batch * inner_row * row)  # fmt: skip
        if clear is not None:
            dh[clear[start] != 0] = 0
            if self.cell == "lstm":
                arrays["dc"][clear[start] != 0] = 0
        grads.finish()

    def _cleared(self, ws: Workspace, t: int, n: int, clear: np.ndarray) -> np.ndarray:
        """The states that steps t..t+n read, zeros where they were cleared."""
        before = ws.arrays["h"][t + self.reverse : t + self.reverse + n]
        out = ws.array(f"cleared_{n}", *before.shape)
        out[...] = before
        out[clear[t : t + n] != 0] = 0
        return out

    def add_table(self, ws: Workspace, dtable: int, table_rows: int, x: int, x_row: int, dx: int, dx_row: int) -> None:
        """Backward of `table`: adds dtable [V, gates] to the gradients of weight_ih and the biases; dx [V, dx_row]."""
        grads = _Sums(self, ws)
        grads.add("ih", table_rows, dtable, self.columns, x, x_row, self.inputs)
        grads.finish()
        self.engine.run("gemm.product", table_rows, self.columns, dx_row, dtable, self.columns, self.packed("x_back"),
                        self._zeros(ws), 0, dx, dx_row, work=table_rows * self.columns * dx_row)  # fmt: skip


class _Sums:
    """Weight gradients of one backward pass: summed over chunks in the kernels' order, then added where they belong."""

    def __init__(self, recurrence: Recurrence, ws: Workspace) -> None:
        self.of, self.ws = recurrence, ws
        self.known: dict[str, tuple[int, int]] = {}

    def add(self, kind: str, rows: int, a: int, a_row: int, b: int, b_row: int, width: int) -> None:
        """a [rows, a_row].T @ b [rows, :width] and the column sums of a."""
        engine, ws = self.of.engine, self.ws
        padded = engine.padded(width)
        if kind not in self.known:
            ws.zeros(f"d_{kind}", a_row, padded)
            ws.zeros(f"sums_{kind}", a_row)
            self.known[kind] = (a_row, padded)
        b, b_row = whole_rows(ws, rows, b, b_row, width)
        scratch = ws.array("scratch", team.num_threads(), OUTER_SCRATCH)
        engine.run("gemm.outer", rows, a_row, padded, a, a_row, b, b_row, ws.arrays[f"d_{kind}"], padded,
                   ws.arrays[f"sums_{kind}"], scratch, work=rows * a_row * padded)  # fmt: skip

    def finish(self) -> None:
        """Add what was summed to the parameters' gradients."""
        of = self.of
        for kind in self.known:
            gates, hidden, weight, row = {
                "ih": (of.gates, of.hidden, "weight_ih", 0), "hh": (of.gates - of.original, of.hidden, "weight_hh", 0),
                "n": (1, of.hidden, "weight_hh", 2 * of.hidden), "hr": (1, of.width, "weight_hr", 0),
            }[kind]  # fmt: skip
            columns, padded = self.known[kind]
            width = {"ih": of.inputs, "hh": of.width, "n": of.hidden, "hr": of.hidden}[kind]
            self._scatter(hidden, gates, columns, width, self.ws.arrays[f"d_{kind}"], padded, of._at(weight, row, grad=True))
            if of.biased and kind != "hr":
                sums = self.ws.arrays[f"sums_{kind}"]
                if kind == "ih":
                    self._scatter(hidden, gates, columns, 1, sums, 1, of._at("bias_ih", grad=True))
                else:
                    self._scatter(hidden, gates, columns, 1, sums, 1, of._at("bias_hh", row, grad=True))

    def _scatter(
        self, hidden: int, gates: int, columns: int, width: int, source: np.ndarray, source_row: int, out: int
    ) -> None:
        engine = self.of.engine
        engine.run("pack.add_rows", hidden, gates, engine.lanes, columns, width, source, source_row, out, width,
                   work=columns * width)  # fmt: skip


def _fill(slot: np.ndarray, value: Any) -> None:
    """slot[:, :width] = value, zeros beyond it; None is zeros."""
    if value is None:
        slot.fill(0)
    else:
        slot[:, : value.shape[1]] = value
        slot[:, value.shape[1] :] = 0
