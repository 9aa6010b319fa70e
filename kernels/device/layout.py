"""Products, weights and rows as launches on a CUDA device; launches.py adds recurrences, heads and updates to them.

Vectors are one element wide, so nothing is padded; gates of a unit stand side by side; with 16-bit words a row of `row`
elements of storage holds twice as many words (common.cuh). Places are addresses on the device, 0 for none. `device` is what
cuda.py has, or whatever else launches kernels and multiplies matrices; that and the numbers are all that is known here.
"""

from __future__ import annotations

from typing import Any

from ..operations import (
    AbsorbRows,
    AddColumns,
    AddRows,
    ClearRows,
    EmitRows,
    FillZeros,
    OperandRows,
    OuterProduct,
    PackBias,
    PackColumns,
    PackRows,
    Product,
)

THREADS = 256
PARTS = 64  # into which the rows of column sums are split

# dtype: macros, bytes of an element of storage, words in it, and how products are computed.
DTYPES: dict[str, tuple[tuple[str, ...], int, int, str]] = {
    "float32": (("-DREAL=float", "-DWORD=float"), 4, 1, "float32"),
    "tf32": (("-DREAL=float", "-DWORD=float"), 4, 1, "tf32"),
    "float64": (("-DREAL=double", "-DWORD=double"), 8, 1, "float64"),
    "bfloat16": (("-DREAL=float", "-DWORD=unsigned short", "-DNARROW_BFLOAT16"), 4, 2, "bfloat16"),
    "float16": (("-DREAL=float", "-DWORD=unsigned short", "-DNARROW_FLOAT16"), 4, 2, "float16"),
}


class Layout:
    """What all operations in one dtype on one device share, and those that bring data into the layout of the others."""

    def __init__(self, device: Any, dtype: str) -> None:
        self.device, self.dtype = device, dtype
        self.macros, self.size, self.pair, self.kind = DTYPES[dtype]

    def _each(self, file: str, kernel: str, count: int, *arguments: int) -> None:
        """One thread for each of `count` elements."""
        if count:
            self.device.launch(file, kernel, self.macros, (-(-count // THREADS), 1, 1), (THREADS, 1, 1), arguments)

    def _multiply(self, rows: int, columns: int, depth: int, a: tuple[int, int], b: int, c: tuple[int, int], add: bool) -> None:
        """C[rows, columns] (+)= A[rows, depth] @ B[columns, depth].T; A and B words, B without gaps; a, c: place and row."""
        if rows and columns:
            self.device.multiply(self.kind, (False, True), (rows, columns, depth), a, (b, depth), c, add)

    # Products.

    def product(self, a: Product) -> None:
        """C[steps * batch, columns] = C_in + A @ B, B packed."""
        rows = a.steps * a.batch
        if (a.c_in, a.c_in_row) != (a.c, a.c_row):
            self._each("sequence", "spread_rows", rows * a.columns, rows, a.columns, a.c_in, a.c_in_row, a.c, a.c_row)
        self._multiply(rows, a.columns, a.depth * self.pair, (a.a, a.a_row * self.pair), a.weight, (a.c, a.c_row), True)

    def outer_product(self, a: OuterProduct) -> None:
        """C[rows, columns] += A[depth, rows].T @ B[depth, columns], sums += the column sums of B; at the start they are set."""
        if not a.depth or not a.columns:
            return
        a_row, b_row = a.a_row * self.pair, a.b_row * self.pair
        if a.rows:
            self.device.multiply(
                self.kind, (True, False), (a.rows, a.columns, a.depth), (a.a, a_row), (a.b, b_row), (a.c, a.c_row), not a.start
            )
        length = -(-a.depth // min(PARTS, -(-a.depth // 32)))
        parts = -(-a.depth // length)
        self.device.launch(
            "sequence",
            "column_sums",
            self.macros,
            (-(-a.columns // 32), parts, 1),
            (32, 8, 1),
            (a.depth, a.columns, length, a.b, b_row, a.scratch),
        )
        self._each("sequence", "add_parts", a.columns, parts, a.columns, a.start, a.scratch, a.sums)

    # Weights and their gradients.

    def pack_columns(self, a: PackColumns) -> None:
        """The weight of a product x W'."""
        depth = a.depth * self.pair
        self._each("pack", "pack_columns", a.columns * depth, a.hidden, a.gates, a.width, depth, a.w, a.w_row, a.packed)

    def pack_rows(self, a: PackRows) -> None:
        """The weight of a product dy W."""
        depth = a.depth * self.pair
        self._each("pack", "pack_rows", a.columns * depth, a.hidden, a.gates, a.width, depth, a.w, a.w_row, a.packed)

    def pack_bias(self, a: PackBias) -> None:
        """The sum of two biases in the gates' order."""
        self._each("pack", "pack_bias", a.columns, a.hidden, a.gates, a.split, a.first, a.second, a.packed)

    def add_rows(self, a: AddRows) -> None:
        """A gradient in the gates' order to where it belongs."""
        self._each(
            "pack", "add_rows", a.columns * a.width, a.hidden, a.gates, a.width, a.c, a.c_row, a.gradient, a.gradient_row
        )

    def add_columns(self, a: AddColumns) -> None:
        """Gradients in the gates' order, a column for each, to where they belong."""
        self._each(
            "pack",
            "add_columns",
            a.columns * (a.width + 1),
            a.hidden,
            a.gates,
            a.width,
            a.c,
            a.c_row,
            a.gradient,
            a.gradient_row,
            a.sums,
            a.bias,
        )

    # Rows.

    def emit_rows(self, a: EmitRows) -> None:
        """Rows to a caller's array, zeros beyond lengths."""
        rows = a.steps * a.batch
        self._each("sequence", "emit_rows", rows * a.width, rows, a.batch, a.width, a.h, a.h_row, a.out, a.out_row, a.lengths)

    def absorb_rows(self, a: AbsorbRows) -> None:
        """Rows of a caller's array, or zeros."""
        rows = a.steps * a.batch
        self._each("sequence", "absorb_rows", rows * a.out_row, rows, a.width, a.source, a.source_row, a.out, a.out_row)

    def operand_rows(self, a: OperandRows) -> None:
        """Rows as words."""
        rows, out_row = a.steps * a.batch, a.out_row * self.pair
        self._each("sequence", "operand_rows", rows * out_row, rows, a.width, a.source, a.source_row, a.out, out_row)

    def fill_zeros(self, a: FillZeros) -> None:
        """Zeros."""
        self._each("sequence", "fill_zeros", a.size, a.size, a.out)

    def clear_rows(self, a: ClearRows) -> None:
        """Rows with zeros where they are marked."""
        self._each("sequence", "clear_rows", a.steps * a.batch * a.row, a.steps * a.batch, a.row, a.clear, a.source, a.out)
