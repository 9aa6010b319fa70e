"""How a persistent recurrence is cut into blocks, and its launch: the host's side of persistent.cuh and wave.cuh.

A `Plan` is one instance of persistent.cu, or of wave.cu where two layers share it, with its grid. Plans are made
here, judged in forms.py, and launched by launches.py with the arguments of the operations; nothing here knows how long
anything takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from .clusters import PORTABLE

# Per unit: columns of the weights in forward, words that travel in backward, and floats carried in either.
CELLS = {"lstm": (4, 4, (1, 2)), "gru": (3, 3, (1, 1)), "rnn": (1, 1, (0, 1))}
WORD_BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}
SINCE = {"float32": 75, "float16": 75, "tf32": 80, "bfloat16": 80}  # compute capability, times ten
FLOATS, NARROW = ("-DREAL=float", "-DWORD=float"), ("-DREAL=float", "-DWORD=unsigned short")
MACROS = {
    "float32": FLOATS,
    "tf32": (*FLOATS, "-DPRODUCT_TF32"),
    "bfloat16": (*NARROW, "-DNARROW_BFLOAT16"),
    "float16": (*NARROW, "-DNARROW_FLOAT16"),
}
WARPS = 8
REGISTERS = 128  # of a thread for weights; sums, operands and addresses need some 80 more
BESIDE = 112  # where shared memory holds the rest, which is read by way of others
SPLIT_REGISTERS, SPLIT_BESIDE = (96, 128), 96  # the same where float32 is split: before compute capability 9.0 and since
COUNTERS = 64  # elements for each group of rows in the array at which blocks meet: two counters, 128 bytes apart
EXCHANGES = {"grid": "Grid", "cluster": "Cluster", "block": "Alone"}  # by form
CLUSTERS = (2, 4, 8, 16)  # blocks of one
LARGE = (90, 100)  # compute capabilities that can have the last; the others eight at most
MOST = 65535  # blocks of a grid in its second direction
GROUPS = 256  # that it has room for
STATIC = 64  # bytes of shared memory, at most, that a kernel declares beside a plan's: the number of a block's part in a wave


@dataclass(frozen=True)
class Chip:
    """What plans must know of a device; capability 90 is 9.0, shared_bytes what one block can have, its STATIC among it."""

    capability: int
    multiprocessors: int
    shared_bytes: int


@dataclass(frozen=True)
class Plan:
    """One instance of persistent.cu or wave.cu and its grid; the tile's numbers are those of persistent.cuh.

    form: "grid", "cluster" or "block", how the blocks of the same rows exchange operands (exchange.cuh). split: float32 by
    three products of tensor cores. layers: 1, or 2 that run at once, each with blocks of its own.
    """

    form: str
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
    held: int
    split: bool = False
    layers: int = 1

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.column_warps * self.depth_warps

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks by units, and by layers and rows."""
        return -(-self.hidden // self.units), self.layers * self.groups, 1

    @property
    def groups(self) -> int:
        """Of rows, whose blocks need nothing of each other."""
        return -(-self.batch // (self.rows * self.passes))

    @property
    def counters(self) -> int:
        """Groups of counters that a launch uses: wave.cuh has one for each group of rows and one for all beside the layers'."""
        return self.grid[1] if self.layers == 1 else 3 * self.groups + 1

    @property
    def blocks(self) -> int:
        """All of them."""
        return self.grid[0] * self.grid[1]

    @property
    def words(self) -> int:
        """That a unit sends in a step."""
        return CELLS[self.cell][1] if self.backward else 1

    @property
    def registers(self) -> int:
        """Of a thread for weights, those between two layers too."""
        return self.layers * self.warp_columns * self.held * WORD_BYTES[self.dtype] // 128

    @property
    def shared_weights(self) -> int:
        """Bytes of shared memory of a block for the weights that registers do not hold."""
        rest = self.depth // self.depth_warps - self.held
        return self.layers * self.threads * self.warp_columns * rest * WORD_BYTES[self.dtype] // 32

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block: the operands' tiles, weights, sums and states."""
        word, tile = WORD_BYTES[self.dtype], self.rows * (self.depth * WORD_BYTES[self.dtype] + 16)
        tiles = tile if self.form == "grid" else 2 * tile
        if self.form == "cluster":
            tiles += self.rows * self.units * self.words * word + 16  # two mbarriers
        tiles += (self.layers - 1) * tile
        sums = self.layers * self.depth_warps * self.rows * (self.column_warps * self.warp_columns + 4)
        states = CELLS[self.cell][2][self.backward] * self.passes * self.rows * self.units
        return tiles + self.shared_weights + 4 * (sums + states)

    @property
    def macros(self) -> tuple[str, ...]:
        """What the instance is compiled with."""
        tile = {name: getattr(self, name) for name in TILE}
        cluster = (f"-DCLUSTER_BLOCKS={self.grid[0]}",) if self.form == "cluster" else ()
        product = ("-DPRODUCT_SPLIT",) if self.split else ()
        return (
            *MACROS[self.dtype],
            *product,
            f"-DEXCHANGE={EXCHANGES[self.form]}",
            *cluster,
            f"-DCELL_{self.cell.upper()}",
            *(("-DBACKWARD",) if self.backward else ()),
            *(f"-D{name.upper()}={value}" for name, value in tile.items()),
        )

    @property
    def kernel(self) -> str:
        """Its name."""
        return f"{'recur' if self.layers == 1 else 'wave'}_{'backward' if self.backward else 'forward'}"

    @property
    def file(self) -> str:
        """Where it stands."""
        return "device/persistent" if self.layers == 1 else "device/wave"

    def launch(self, device: Any, arguments: tuple[int, ...], counters: int) -> None:
        """On the device's current stream; `counters` as COUNTERS says."""
        device.launch(
            self.file,
            self.kernel,
            self.macros,
            self.grid,
            (self.threads, 1, 1),
            (*arguments, self.passes, counters),
            shared=self.shared,
            cooperative=self.form == "grid",
        )


TILE = ("depth", "rows", "column_warps", "depth_warps", "warp_columns", "units", "held")


def _held(warp_columns: int, own: int, dtype: str, split: bool, layers: int, chip: Chip) -> int:
    """Words of a warp's part of the depth, `own`, that registers can hold, in whole reads of persistent.cuh; 0 for none."""
    whole, registers, beside = 32, REGISTERS, BESIDE
    if split:
        registers, beside = min(REGISTERS, SPLIT_REGISTERS[chip.capability >= 90]), min(BESIDE, SPLIT_BESIDE)
    elif dtype == "float32":
        whole *= next(wide for wide in (4, 2, 1) if own // 32 % wide == 0)
    each = layers * warp_columns * WORD_BYTES[dtype]
    return own if own * each <= 128 * registers else 128 * beside // each // whole * whole


def plans(cell: str, backward: bool, dtype: str, hidden: int, batch: int, chip: Chip, layers: int = 1) -> Iterator[Plan]:
    """Every way in which blocks, one on a multiprocessor, can hold a layer's weights: all of the device, a cluster, or one."""
    if chip.capability < SINCE.get(dtype, 1000) or not batch:
        return
    columns_of_unit, words = (1, CELLS[cell][1]) if backward else (CELLS[cell][0], 1)
    whole = 16 // math.gcd(16, words * WORD_BYTES.get(dtype, 4))  # units that make whole pieces of 16 bytes
    splits = (False, True) if dtype == "float32" and chip.capability >= SINCE["tf32"] else (False,)
    for split, depth_warps, warp_columns, rows in product(splits, (1, 2, 4, 8), (4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32)):
        by_tensor_cores = split or dtype != "float32"
        if by_tensor_cores and (warp_columns < 16 or rows % 8 or (split and warp_columns > 32)):
            continue
        if not by_tensor_cores and (warp_columns > 32 or rows % (32 // warp_columns)):
            continue
        column_warps, tiles = WARPS // depth_warps, -(-batch // rows)
        columns = column_warps * warp_columns
        depth = -(-hidden * words // (32 * depth_warps)) * 32 * depth_warps
        held = _held(warp_columns, depth // depth_warps, dtype, split, layers, chip)
        if not held:
            continue
        tile = {
            "depth": depth,
            "rows": rows,
            "column_warps": column_warps,
            "depth_warps": depth_warps,
            "warp_columns": warp_columns,
            "held": held,
        }
        for form in EXCHANGES:
            units, passes = columns // columns_of_unit, 1
            if form == "cluster":
                blocks = next((n for n in CLUSTERS if n * (units - units % whole) >= hidden), None)
                if blocks is None:
                    continue
                units = -(-hidden // (blocks * whole)) * whole
            groups = -(-hidden // units)
            if form == "grid":
                passes = -(-tiles // max(1, min(tiles, chip.multiprocessors // (layers * groups))))
            cut = {"passes": passes, "units": units, "layers": layers, **tile}
            plan = Plan(form, cell, backward, dtype, hidden, batch, split=split, **cut)
            if plan.shared + STATIC <= chip.shared_bytes and _possible(plan, chip):
                yield plan


def _possible(plan: Plan, chip: Chip) -> bool:
    """Whether the device has such blocks: for a grid all at a time, for a cluster its own."""
    groups, batches, _ = plan.grid
    if (plan.form == "grid" or plan.layers > 1) and plan.counters > GROUPS:
        return False
    if plan.form == "grid":
        return plan.blocks <= chip.multiprocessors
    if batches > MOST or plan.form == "block":
        return batches <= MOST and groups == 1
    return groups in CLUSTERS and chip.capability >= 90 and (groups <= PORTABLE or chip.capability in LARGE)
