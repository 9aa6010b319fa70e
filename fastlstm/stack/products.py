"""Products with packed weights, and the gradients of weights: what heads, `Linear` and recurrences are made of."""

from __future__ import annotations

from typing import NamedTuple

from ..kernels.native import team
from ..kernels.operations import PACK_SCRATCH, AddColumns, OuterProduct, Product, outer_space
from ..runtime.engine import Engine
from ..runtime.params import Slots
from ..runtime.program import Place, address, product_work
from ..runtime.workspace import Packs, Workspace, as_operands


class Matrix(NamedTuple):
    """Rows as products read them: the place of the first, the distance from one to the next, and columns that count."""

    at: Place
    row: int
    columns: int


def outer_product(ws: Workspace, kind: str, rows: int, gradient: Matrix, x: Matrix, start: bool) -> None:
    """Sum the gradient of a weight over `rows` rows, and that of its bias, in arrays of the workspace.

    "d_" + kind [x.columns, gradient.columns] += x.T @ gradient, "sums_" + kind += the column sums of the gradient; with `start`
    they are written, not added to.
    """
    engine, space, columns = ws.engine, outer_space(x.columns, gradient.columns), gradient.columns
    scratch, row = ws.array(f"scratch_{kind}", team.num_threads(), space), engine.stride(columns)
    engine.run(
        OuterProduct(
            depth=rows,
            rows=x.columns,
            columns=columns,
            start=int(start),
            a=x.at,
            a_row=x.row,
            b=gradient.at,
            b_row=gradient.row,
            c=ws.array(f"d_{kind}", engine.padded(x.columns), row),
            c_row=row,
            sums=ws.array(f"sums_{kind}", columns),
            scratch=scratch,
            space=space,
        ),
        work=rows * columns * x.columns,
        shared_by="outer",
    )


def add_outer(ws: Workspace, kind: str, units: tuple[int, int], width: int, weight: int, bias: int) -> None:
    """Add what `outer_product` made to the gradients of a weight and a bias.

    Parameters
    ----------
    ws : Workspace
    kind : str
        As of `outer_product`.
    units : tuple of int
        Hidden units, and the gates of each.
    width : int
        Columns of the weight.
    weight, bias : int
        Addresses of the gradients [gates * units, width] and [gates * units]; a bias of 0 is none.
    """
    engine, made, sums = ws.engine, ws.arrays[f"d_{kind}"], ws.arrays[f"sums_{kind}"]
    engine.run(
        AddColumns(
            hidden=units[0],
            gates=units[1],
            unit=engine.lanes,
            columns=sums.size,
            width=width,
            c=made,
            c_row=made.shape[1],
            gradient=weight,
            gradient_row=width,
            sums=sums,
            bias=bias,
            scratch=ws.array("pack_scratch", team.num_threads(), PACK_SCRATCH),
        ),
        work=sums.size * width,
        shared_by="outer",
    )


class PackedLinear:
    """y = x W' + b with W [outputs, inputs], b [outputs] named parameters of `slots`.

    Parameters
    ----------
    engine : Engine
    slots : Slots
    weight : str
        Name of W in the slots.
    bias : str or None
    """

    def __init__(self, engine: Engine, slots: Slots, weight: str, bias: str | None) -> None:
        self.engine, self.slots, self.weight, self.bias = engine, slots, weight, bias
        self.outputs, self.inputs = slots.shapes[weight]
        self.packed = Packs(engine, slots, self._pack)

    @property
    def columns(self) -> int:
        """Outputs, padded."""
        return self.engine.padded(self.outputs)

    def _at(self, name: str | None, grad: bool = False) -> int:
        if name is None:
            return 0
        buffer = self.slots.store.grads if grad else self.slots.store.params
        return address(buffer) + self.slots.places[name][0] * self.engine.itemsize

    def _pack(self, kind: str) -> None:
        """Make the pack "x" or "back" (W for the product and for its gradient) or "bias"."""
        if kind == "bias":
            self.packed.bias(kind, self.outputs, 1, 1, self._at(self.bias), 0)
        elif kind == "x":
            self.packed.columns(kind, self.outputs, 1, self.inputs, 4, self._at(self.weight))
        else:
            self.packed.rows(kind, self.outputs, 1, self.inputs, self._at(self.weight))

    def forward(self, rows: int, x: Place, x_row: int, out: Place, out_row: int) -> None:
        """out [rows, out_row] = x [rows, x_row] W' + b; x as products read it, out_row at least `columns`."""
        self.engine.run(
            Product(
                steps=1,
                batch=rows,
                depth=self.engine.depth(self.inputs),
                columns=self.columns,
                units=0,
                a=x,
                a_row=x_row,
                weight=self.packed("x"),
                c_in=self.packed("bias"),
                c_in_row=0,
                c=out,
                c_row=out_row,
            ),
            work=product_work(rows, self.inputs * self.columns),
            shared_by=(rows, "rows"),
        )

    def backward(self, ws: Workspace, rows: int, dout: Place, x: Place, x_row: int, dx: Place, dx_row: int) -> None:
        """Adds to the gradients of W and b; dx [rows, dx_row] = dout W, or nothing where dx is 0.

        dout [rows, columns], its padding zero; x as products read it; dx_row: inputs padded.
        """
        engine, columns, padded = self.engine, self.columns, self.engine.padded(self.inputs)
        d, d_row = as_operands(ws, "linear_dout", 1, rows, dout, columns, columns)
        if dx:
            engine.run(
                Product(
                    steps=1,
                    batch=rows,
                    depth=engine.depth(self.outputs),
                    columns=padded,
                    units=0,
                    a=d,
                    a_row=d_row,
                    weight=self.packed("back"),
                    c_in=ws.cleared("linear_zeros", padded),
                    c_in_row=0,
                    c=dx,
                    c_row=dx_row,
                ),
                work=rows * columns * padded,
                shared_by=(rows, "rows"),
            )
        if rows:
            outer_product(ws, "linear", rows, Matrix(d, d_row, columns), Matrix(x, x_row, self.inputs), start=True)
            add_outer(ws, "linear", (self.outputs, 1), self.inputs, self._at(self.weight, True), self._at(self.bias, True))
