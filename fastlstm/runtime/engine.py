"""(device, dtype) -> the kernels that serve it: how a layer or model runs an operation, and what this machine offers.

Knows the kernels' names and how arguments reach them; nothing of layers, models or training.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ..kernels.native import jit, team
from ..shape import DTYPES
from .arrays import as_numpy
from .program import CALL_WORK, Program, address, number, recording

STORAGE = ("float32", "float64")  # of arrays
WORDS = 16  # bfloat16 operands come in rows of whole 64 bytes, as tile registers read them


class _Arguments:
    """A block of int64 that holds the arguments of one call."""

    def __init__(self) -> None:
        self.block = np.zeros(64, np.int64)
        self.at = address(self.block)


# Blocks that no call uses. Not one for each thread: a finalizer or a signal's handler may call within a call of its thread.
_blocks: list[_Arguments] = []
_prepared: set[tuple[str, tuple[str, ...]]] = set()
_barrier = team.Barrier()  # of all calls that are no part of a program: the team takes one job at a time


class Cpu:
    """Runs kernels of one dtype on the processor.

    `run(name, *arguments)` takes ints and arrays; an array stands for its address (None: 0). Shapes and types are the
    caller's affair: kernels check nothing. While a program is recorded (program.py) the call is noted there instead.
    """

    whole = False  # sequences are cut into chunks that stay in cache

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.narrow = dtype == "bfloat16"
        self.storage = "float32" if self.narrow else dtype  # of parameters, states and all arrays that users see
        self.itemsize = np.dtype(self.storage).itemsize

    def __reduce__(self) -> Any:
        return engine, ("cpu", self.dtype)  # copies of layers share it

    @property
    def kind(self) -> str:
        """What packed weights and buffers depend on: instruction set and, with bfloat16, the way of its products."""
        return f"{jit.isa()} {jit.bfloat16_product()}" if self.narrow else jit.isa()

    @property
    def lanes(self) -> int:
        """Elements in a vector of the instruction set in use."""
        return jit.WIDTHS[jit.isa()] // self.itemsize

    def padded(self, size: int) -> int:
        """`size` rounded up to whole vectors."""
        lanes = self.lanes
        return (size + lanes - 1) // lanes * lanes

    def depth(self, size: int) -> int:
        """Steps that a product over `size` elements takes."""
        return (size + 2 * WORDS - 1) // (2 * WORDS) * WORDS if self.narrow else size

    def row(self, size: int) -> int:
        """Elements of storage that a row of `size` elements takes in the form that products read (kernels/vector/narrow.py)."""
        if not self.narrow:
            return self.padded(size)
        words = self.depth(size)
        # Rows a power of two apart would all fall into the same few sets of the first-level cache.
        return words + WORDS if words % 256 == 0 else words

    def stride(self, size: int) -> int:
        """Elements of storage from one row of `size` elements, whole vectors, to the next."""
        # Rows a page apart fall into the same few sets of the caches, and push each other out.
        return size + 64 // self.itemsize if size * self.itemsize % 4096 == 0 else size

    def empty(self, *shape: int) -> np.ndarray:
        """Uninitialised array, its first element on a cache line."""
        return _aligned(np.empty, shape, self.storage)

    def zeros(self, *shape: int) -> np.ndarray:
        """Array of zeros, its first element on a cache line."""
        return _aligned(np.zeros, shape, self.storage)

    def buffer(self, size: int, dtype: str) -> np.ndarray:
        """One-dimensional array of zeros for parameters."""
        return np.zeros(size, dtype)

    def new(self, *shape: int) -> np.ndarray:
        """Uninitialised array for a caller."""
        return np.empty(shape, self.storage)

    def located(self, array: np.ndarray) -> np.ndarray:
        """An array of NumPy's where this engine's arrays lie."""
        return array

    def take(self, value: Any) -> np.ndarray:
        """An argument as an array where this engine reads it."""
        return as_numpy(value)

    def program(self, *alive: Any) -> Program:
        """A program to record into."""
        return Program(*alive)

    def meeting(self, ws: Any) -> int:
        """Address of the barrier for kernels whose threads meet, valid for calls from here; any workspace's."""
        barrier: team.Barrier = _barrier if recording.program is None else recording.program.barrier
        return barrier.address

    def overlaps(self, cell: str, backward: bool, hidden: int, batch: int, steps: int) -> bool:
        """Whether two layers' steps are better done at once, by the operations that `walks.together` names; there are none."""
        return False

    def queue(self) -> Any:
        """What work that is asked for now waits in, behind what was asked for before; a call here returns when it is done."""
        return 0

    def mark(self) -> Any:
        """Where in its queue the work asked for so far ends; None, since nothing has to wait for it."""
        return None

    def function(self, name: str, arguments: tuple[Any, ...]) -> int:
        """Address of the kernel `name`; a TypeError if it takes another number of arguments."""
        function = jit.compiled(name, self.dtype)
        if len(arguments) != jit.counts[function]:
            raise TypeError(f"kernel {name} takes {jit.counts[function]} arguments; got {len(arguments)}")
        return function

    def prepare(self, *names: str) -> None:
        """Compile kernels before a lock is taken, which a finalizer may want while another thread compiles."""
        key = (self.kind, names)
        if key not in _prepared:
            for name in names:
                jit.compiled(name, self.dtype)
            for name in (
                "native.pieces.program",
                "native.team.run",
                "native.team.work",
                "native.team.stop",
                "native.team.solo",
            ):
                jit.compiled(name)
            _prepared.add(key)

    def run(self, name: str, *arguments: Any, work: int = 1 << 20, owner: Any = None, meets: bool = False) -> None:
        """Run kernel `name`, or record it; on all threads if `work` (multiplications) is worth it.

        owner: see `program.Program`. meets: threads wait for each other within the kernel.
        """
        function = self.function(name, arguments)
        if recording.program is not None:
            recording.program.add(function, arguments, work, owner, meets)
            return
        try:
            own = _blocks.pop()
        except IndexError:
            own = _Arguments()
        block = own.block
        for k, argument in enumerate(arguments):
            block[k] = argument if argument.__class__ is int else number(argument)
        team.call(function, own.at, work >= CALL_WORK)
        _blocks.append(own)


def _aligned(make: Callable[..., np.ndarray], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = make(size + 64, np.uint8)
    skip = -address(raw) % 64
    return raw[skip : skip + size].view(dtype).reshape(shape)


_engines: dict[str, Cpu] = {}


def engine(device: str, dtype: str) -> Cpu:
    """The engine for a device and dtype: `Cpu`, or what offers the same on a device (`cuda.Cuda`).

    Raises
    ------
    ValueError
        For a device or dtype that there is none for.
    kernels.cuda.Unavailable
        Where there is no such device.
    """
    if device != "cpu":
        if not isinstance(device, str):
            raise TypeError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:N'")
        from . import cuda

        return cast(Cpu, cuda.engine(device, dtype))
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(map(repr, DTYPES))}")
    if dtype not in _engines:
        _engines[dtype] = Cpu(dtype)
    return _engines[dtype]


def serving(array: Any) -> Cpu:
    """The engine that works on an array of float32 or float64, where it lies."""
    if isinstance(array, np.ndarray):
        return engine("cpu", array.dtype.name)
    return engine(f"cuda:{array.device.id}", array.dtype.name)


KERNELS = (
    "gemm.product",
    "gemm.product_by_three",
    "outer.product",
    "pack.pack_columns",
    "pack.pack_rows",
    "pack.pack_bias",
    "pack.add_rows",
    "pack.add_columns",
    "sequence.emit_rows",
    "sequence.absorb_rows",
    "sequence.operand_rows",
    "sequence.fill_zeros",
    "sequence.clear_rows",
    "lstm.forward",
    "lstm.backward",
    "rnn.forward",
    "rnn.backward",
    "gru.forward",
    "gru.backward",
    "gru.original_forward",
    "gru.original_backward",
    "head.gather_rows",
    "head.scatter_rows",
    "head.scatter_operands",
    "head.softmax_cross_entropy",
    "series.normalise",
    "series.squared_error",
    "update.adam",
    "update.rmsprop",
    "update.sgd",
    "update.scale",
    "update.clip_value",
    "update.square_sums",
    "update.absolute_sums",
    "update.judge",
    "random.dropout",
)


def warmup(progress: Callable[[str], None] = lambda line: None, dtypes: tuple[str, ...] = DTYPES) -> None:
    """Compile every kernel for this processor ahead of use, for images and read-only systems."""
    for dtype in dtypes:
        for name in KERNELS:
            progress(f"{name} {dtype}")
            jit.compiled(name, dtype)


def describe() -> dict[str, Any]:
    """What this machine offers and which kernels serve it."""
    from . import cuda

    return {
        "processor": processor(),
        "llvm_processor": jit.host()[0],
        "instruction_sets": jit.supported(),
        "in_use": jit.isa(),
        "vector_bits": jit.WIDTHS[jit.isa()] * 8,
        "bfloat16_products": list(jit.bfloat16_products(jit.isa())),
        "bfloat16_in_use": jit.bfloat16_product(),
        "tiles": jit.tiles(),
        "threads": team.num_threads(),
        "dtypes": list(DTYPES),
        "compiled_kernels": jit.cache_described(),
        "cuda": cuda.describe(),
    }


def processor() -> str:
    """The processor's name as its maker gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
