"""How a persistent recurrence is cut into blocks, and its launch: the host's side of persistent.cuh.

A `Plan` is one instance of kernels/persistent.cu with its grid. Plans are made here, judged in forms.py, and launched by
launches.py with the arguments of the operations; nothing here knows how long anything takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

# Per unit: columns of the weights in forward, words that travel in backward, and floats carried in either.
CELLS = {"lstm": (4, 4, (1, 2)), "gru": (3, 3, (1, 1)), "rnn": (1, 1, (0, 1))}
WORD_BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}
SINCE = {"float32": 75, "float16": 75, "tf32": 80, "bfloat16": 80}  # compute capability, times ten
FLOATS, NARROW = ("-DREAL=float", "-DWORD=float"), ("-DREAL=float", "-DWORD=unsigned short")
MACROS = {"float32": FLOATS, "tf32": (*FLOATS, "-DPRODUCT_TF32"), "bfloat16": (*NARROW, "-DNARROW_BFLOAT16"),
          "float16": (*NARROW, "-DNARROW_FLOAT16")}  # fmt: skip
WARPS = 8
REGISTERS = 128  # of a thread for weights; sums, operands and addresses need some 80 more
COUNTERS = 64  # elements for each group of rows in the array at which blocks meet: two counters, 128 bytes apart
GROUPS = 256  # that it has room for


@dataclass(frozen=True)
class Chip:
    """What plans must know of a device; capability 90 is 9.0, shared_bytes what one block can have."""

    capability: int
    multiprocessors: int
    shared_bytes: int


@dataclass(frozen=True)
class Plan:
    """One instance of persistent.cu and its grid; the tile's numbers are those of persistent.cuh."""

    cell: str
    backward: bool
    dtype: str
    hidden: int
    batch: int
    depth: int
    rows: int
    passes: int
    column_warps: int
    depth_warps: int
    warp_columns: int
    units: int

    @property
    def form(self) -> str:
        """Its name."""
        return "grid"

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.column_warps * self.depth_warps

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks by units and by rows."""
        return -(-self.hidden // self.units), -(-self.batch // (self.rows * self.passes)), 1

    @property
    def blocks(self) -> int:
        """All of them."""
        return self.grid[0] * self.grid[1]

    @property
    def registers(self) -> int:
        """Of a thread for its weights."""
        return -(-self.warp_columns * self.depth * WORD_BYTES[self.dtype] // (128 * self.depth_warps))

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block: the operand's tile, sums and states."""
        word = WORD_BYTES[self.dtype]
        sums = self.depth_warps * self.rows * (self.column_warps * self.warp_columns + 4)
        states = CELLS[self.cell][2][self.backward] * self.passes * self.rows * self.units
        return self.rows * (self.depth * word + 16) + 4 * (sums + states)

    @property
    def macros(self) -> tuple[str, ...]:
        """What the instance is compiled with."""
        tile = {name: getattr(self, name) for name in TILE}
        return (
            *MACROS[self.dtype], f"-DCELL_{self.cell.upper()}", *(("-DBACKWARD",) if self.backward else ()),
            *(f"-D{name.upper()}={value}" for name, value in tile.items()),
        )  # fmt: skip

    @property
    def kernel(self) -> str:
        """Its name."""
        return "recur_backward" if self.backward else "recur_forward"

    def launch(self, device: Any, arguments: tuple[int, ...], counters: int) -> None:
        """On the device's current stream, all blocks at a time; `counters` as COUNTERS says."""
        device.launch("persistent", self.kernel, self.macros, self.grid, (self.threads, 1, 1),
                      (*arguments, self.passes, counters), shared=self.shared, cooperative=True)  # fmt: skip


TILE = ("depth", "rows", "column_warps", "depth_warps", "warp_columns", "units")


def plans(cell: str, backward: bool, dtype: str, hidden: int, batch: int, chip: Chip) -> Iterator[Plan]:
    """Every way in which the device's blocks, one on a multiprocessor, can hold the weights and take all rows."""
    if chip.capability < SINCE.get(dtype, 1000) or not batch:
        return
    columns_of_unit = 1 if backward else CELLS[cell][0]
    needed = hidden * (CELLS[cell][1] if backward else 1)
    by_tensor_cores = dtype != "float32"
    for depth_warps, warp_columns, rows in product((1, 2, 4, 8), (4, 8, 16, 32), (1, 2, 4, 8, 16, 32)):
        if rows % (8 if by_tensor_cores else 32 // warp_columns) or (by_tensor_cores and warp_columns < 16):
            continue
        column_warps = WARPS // depth_warps
        units = column_warps * warp_columns // columns_of_unit
        groups = chip.multiprocessors // -(-hidden // units)
        if not groups:
            continue
        tiles = -(-batch // rows)
        plan = Plan(cell, backward, dtype, hidden, batch, depth=-(-needed // (32 * depth_warps)) * 32 * depth_warps, rows=rows,
                    passes=-(-tiles // min(tiles, groups)), column_warps=column_warps, depth_warps=depth_warps,
                    warp_columns=warp_columns, units=units)  # fmt: skip
        if plan.registers <= REGISTERS and plan.shared <= chip.shared_bytes and plan.grid[1] <= GROUPS:
            yield plan
