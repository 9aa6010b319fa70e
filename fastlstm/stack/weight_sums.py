"""The weights' gradients: products of gradients and inputs, summed over parts of a sequence, then added where they belong.

Knows where a recurrence's parameters lie and in which order kernels have its gates; nothing of steps or states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kernels.native import team
from ..kernels.operations import PACK_SCRATCH, AddColumns, OuterProduct, outer_space
from ..runtime.workspace import Workspace

if TYPE_CHECKING:
    from .recurrence import Recurrence


def outer_product(
    ws: Workspace, kind: str, rows: int, a: int, a_row: int, columns: int, b: int, b_row: int, width: int, start: bool
) -> None:
    """ws "d_" + kind [width, columns] += b [rows, :width].T @ a [rows, :columns], "sums_" + kind += the column sums of a.

    Both as products read them; with `start` nothing was there before.
    """
    engine, space = ws.engine, outer_space(width, columns)
    scratch, row = ws.array(f"scratch_{kind}", team.num_threads(), space), engine.stride(columns)
    engine.run(
        OuterProduct(
            depth=rows,
            rows=width,
            columns=columns,
            start=int(start),
            a=b,
            a_row=b_row,
            b=a,
            b_row=a_row,
            c=ws.array(f"d_{kind}", engine.padded(width), row),
            c_row=row,
            sums=ws.array(f"sums_{kind}", columns),
            scratch=scratch,
            space=space,
        ),
        work=rows * columns * width,
        shared_by="outer",
    )


def add_outer(ws: Workspace, kind: str, hidden: int, gates: int, width: int, weight: int, bias: int) -> None:
    """What `outer_product` made, to the gradients of a weight [gates*hidden, width] and, unless 0, of a bias, by address."""
    engine, made, sums = ws.engine, ws.arrays[f"d_{kind}"], ws.arrays[f"sums_{kind}"]
    scratch = ws.array("pack_scratch", team.num_threads(), PACK_SCRATCH)
    engine.run(
        AddColumns(
            hidden=hidden,
            gates=gates,
            unit=engine.lanes,
            columns=sums.size,
            width=width,
            c=made,
            c_row=made.shape[1],
            gradient=weight,
            gradient_row=width,
            sums=sums,
            bias=bias,
            scratch=scratch,
        ),
        work=sums.size * width,
        shared_by="outer",
    )


class WeightSums:
    """Weight gradients of one backward pass: summed over chunks in the kernels' order, then added where they belong."""

    def __init__(self, recurrence: Recurrence, ws: Workspace) -> None:
        self.of, self.ws = recurrence, ws
        self.known: set[str] = set()

    def add(self, kind: str, rows: int, a: int, a_row: int, columns: int, b: int, b_row: int, width: int) -> None:
        """a [rows, :columns].T @ b [rows, :width] and the column sums of a; both as products read them."""
        outer_product(self.ws, kind, rows, a, a_row, columns, b, b_row, width, start=kind not in self.known)
        self.known.add(kind)

    def finish(self) -> None:
        """Add what was summed to the parameters' gradients."""
        of = self.of
        for kind in sorted(self.known):
            gates, hidden, width, weight, row = {
                "ih": (of.gates, of.hidden, of.inputs, "weight_ih", 0),
                "hh": (of.gates - of.original, of.hidden, of.width, "weight_hh", 0),
                "n": (1, of.hidden, of.hidden, "weight_hh", 2 * of.hidden),
                "hr": (1, of.width, of.hidden, "weight_hr", 0),
            }[kind]
            biased = of.biased and kind != "hr"
            bias, at = ("bias_ih", 0) if kind == "ih" else ("bias_hh", row)
            add_outer(
                self.ws,
                kind,
                hidden,
                gates,
                width,
                of._at(weight, row, grad=True),
                of._at(bias, at, grad=True) if biased else 0,
            )
