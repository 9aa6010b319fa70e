"""Products, weights and rows as launches on a CUDA device; launches.py adds recurrences, heads and updates to them.

Vectors are one element wide, so nothing is padded; gates of a unit stand side by side; with 16-bit words a row of `row`
elements of storage holds twice as many words (common.cuh). Places are addresses on the device, 0 for none. `device` is what
cuda.py has, or whatever else launches kernels and multiplies matrices; that and the numbers are all that is known here.
"""

from __future__ import annotations

from typing import Any

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

    def _multiply(self, rows: int, columns: int, depth: int, a: int, a_row: int, b: int, c: int, c_row: int, add: bool) -> None:
        """C[rows, columns] (+)= A[rows, depth] @ B[columns, depth].T; A and B words, B without gaps."""
        if rows and columns:
            self.device.multiply(self.kind, (False, True), (rows, columns, depth), (a, a_row), (b, depth), (c, c_row), add)

    # Products.

    def product(
        self,
        steps: int,
        batch: int,
        depth: int,
        columns: int,
        units: int,
        a: int,
        a_row: int,
        b: int,
        c_in: int,
        c_in_row: int,
        c: int,
        c_row: int,
    ) -> None:
        """C[steps * batch, columns] = C_in + A @ B, B packed."""
        rows = steps * batch
        if (c_in, c_in_row) != (c, c_row):
            self._each("sequence", "spread_rows", rows * columns, rows, columns, c_in, c_in_row, c, c_row)
        self._multiply(rows, columns, depth * self.pair, a, a_row * self.pair, b, c, c_row, True)

    def outer(
        self,
        depth: int,
        rows: int,
        columns: int,
        start: int,
        a: int,
        a_row: int,
        b: int,
        b_row: int,
        c: int,
        c_row: int,
        sums: int,
        scratch: int,
        space: int,
    ) -> None:
        """C[rows, columns] += A[depth, rows].T @ B[depth, columns], sums += the column sums of B; at the start they are set."""
        if not depth or not columns:
            return
        a_row, b_row = a_row * self.pair, b_row * self.pair
        if rows:
            self.device.multiply(
                self.kind, (True, False), (rows, columns, depth), (a, a_row), (b, b_row), (c, c_row), not start
            )
        length = -(-depth // min(PARTS, -(-depth // 32)))
        parts = -(-depth // length)
        self.device.launch(
            "sequence",
            "column_sums",
            self.macros,
            (-(-columns // 32), parts, 1),
            (32, 8, 1),
            (depth, columns, length, b, b_row, scratch),
        )
        self._each("sequence", "add_parts", columns, parts, columns, start, scratch, sums)

    # Weights and their gradients.

    def pack_columns(
        self,
        hidden: int,
        gates: int,
        unit: int,
        width: int,
        depth: int,
        columns: int,
        vectors: int,
        w: int,
        w_row: int,
        packed: int,
        scratch: int,
    ) -> None:
        """The weight of a product x W'."""
        depth *= self.pair
        self._each("pack", "pack_columns", columns * depth, hidden, gates, width, depth, w, w_row, packed)

    def pack_rows(
        self,
        hidden: int,
        gates: int,
        unit: int,
        width: int,
        depth: int,
        columns: int,
        w: int,
        w_row: int,
        packed: int,
        scratch: int,
    ) -> None:
        """The weight of a product dy W."""
        depth *= self.pair
        self._each("pack", "pack_rows", columns * depth, hidden, gates, width, depth, w, w_row, packed)

    def pack_bias(self, hidden: int, gates: int, unit: int, columns: int, split: int, a: int, b: int, out: int) -> None:
        """The sum of two biases in the gates' order."""
        self._each("pack", "pack_bias", columns, hidden, gates, split, a, b, out)

    def add_rows(
        self, hidden: int, gates: int, unit: int, columns: int, width: int, c: int, c_row: int, out: int, out_row: int
    ) -> None:
        """A gradient in the gates' order to where it belongs."""
        self._each("pack", "add_rows", columns * width, hidden, gates, width, c, c_row, out, out_row)

    def add_columns(
        self,
        hidden: int,
        gates: int,
        unit: int,
        columns: int,
        width: int,
        c: int,
        c_row: int,
        out: int,
        out_row: int,
        sums: int,
        bias: int,
        scratch: int,
    ) -> None:
        """Gradients in the gates' order, a column for each, to where they belong."""
        self._each("pack", "add_columns", columns * (width + 1), hidden, gates, width, c, c_row, out, out_row, sums, bias)

    # Rows.

    def emit_rows(self, steps: int, batch: int, width: int, h: int, h_row: int, out: int, out_row: int, lengths: int) -> None:
        """Rows to a caller's array, zeros beyond lengths."""
        rows = steps * batch
        self._each("sequence", "emit_rows", rows * width, rows, batch, width, h, h_row, out, out_row, lengths)

    def absorb_rows(self, steps: int, batch: int, width: int, source: int, source_row: int, out: int, out_row: int) -> None:
        """Rows of a caller's array, or zeros."""
        rows = steps * batch
        self._each("sequence", "absorb_rows", rows * out_row, rows, width, source, source_row, out, out_row)

    def operand_rows(
        self, steps: int, batch: int, width: int, source: int, source_row: int, out: int, out_row: int, scratch: int
    ) -> None:
        """Rows as words."""
        rows, out_row = steps * batch, out_row * self.pair
        self._each("sequence", "operand_rows", rows * out_row, rows, width, source, source_row, out, out_row)

    def fill_zeros(self, count: int, out: int) -> None:
        """Zeros."""
        self._each("sequence", "fill_zeros", count, count, out)

    def clear_rows(self, steps: int, batch: int, row: int, clear: int, source: int, out: int) -> None:
        """Rows with zeros where they are marked."""
        self._each("sequence", "clear_rows", steps * batch * row, steps * batch, row, clear, source, out)
