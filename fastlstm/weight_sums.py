"""The weights' gradients of one direction of one layer: products of gradients and inputs, summed over parts of a sequence.

Knows where a recurrence's parameters lie and in which order kernels have its gates; nothing of steps or states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .kernels import team
from .workspace import Workspace, outer_space, whole_rows

if TYPE_CHECKING:
    from .recurrence import Recurrence


class WeightSums:
    """Weight gradients of one backward pass: summed over chunks in the kernels' order, then added where they belong."""

    def __init__(self, recurrence: Recurrence, ws: Workspace) -> None:
        self.of, self.ws = recurrence, ws
        self.known: dict[str, tuple[int, int]] = {}

    def add(self, kind: str, rows: int, a: int, a_row: int, columns: int, b: int, b_row: int, width: int) -> None:
        """a [rows, :columns].T @ b [rows, :width] and the column sums of a; both as products read them."""
        engine, ws = self.of.engine, self.ws
        padded = engine.padded(width)
        if kind not in self.known:
            ws.zeros(f"d_{kind}", columns, padded)
            ws.zeros(f"sums_{kind}", columns)
            self.known[kind] = (columns, padded)
        b, b_row = whole_rows(ws, rows, b, b_row, width)
        space = outer_space(columns, padded)
        scratch = ws.array("scratch", team.num_threads(), space)
        engine.run("outer.product", rows, columns, padded, a, a_row, b, b_row, ws.arrays[f"d_{kind}"], padded,
                   ws.arrays[f"sums_{kind}"], scratch, space, work=rows * columns * padded, owner="outer")  # fmt: skip

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
                bias, at = ("bias_ih", 0) if kind == "ih" else ("bias_hh", row)
                self._scatter(hidden, gates, columns, 1, sums, 1, of._at(bias, at, grad=True))

    def _scatter(
        self, hidden: int, gates: int, columns: int, width: int, source: np.ndarray, source_row: int, out: int
    ) -> None:
        engine = self.of.engine
        engine.run("pack.add_rows", hidden, gates, engine.lanes, columns, width, source, source_row, out, width,
                   work=columns * width, owner="scatter")  # fmt: skip
