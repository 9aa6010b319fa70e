"""The engine for the processor: it runs the operations of kernels/operations.py by compiled kernels on the team of threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np

from ..kernels.native import jit, team
from ..kernels.operations import OPERATIONS
from .arrays import as_numpy
from .program import CALL_WORK, Program, address, number, recording

MOST_FIELDS = max(len(record._fields) for record in OPERATIONS)  # type: ignore[attr-defined]
WORDS = 16  # bfloat16 operands come in rows of whole 64 bytes, as tile registers read them


class _Arguments:
    """A block of int64 that holds the arguments of one call."""

    def __init__(self) -> None:
        self.block = np.zeros(MOST_FIELDS, np.int64)
        self.at = address(self.block)


# Blocks that no call uses. Not one for each thread: a finalizer or a signal's handler may call within a call of its thread.
_blocks: list[_Arguments] = []
_prepared: set[tuple[str, tuple[type, ...]]] = set()
_barrier = team.Barrier()  # of all calls that are no part of a program: the team takes one job at a time


class Cpu:
    """Runs kernels of one dtype on the processor.

    `run(record)` takes a record of kernels/operations.py, whose fields are numbers and arrays; an array stands for its address
    (None: 0). Shapes and types are the caller's affair: kernels check nothing. While a program is recorded (program.py) the
    call is noted there instead.
    """

    whole = False  # sequences are cut into chunks that stay in cache
    queue: ClassVar[Any] = int  # gives 0: there is one queue, since a call here returns when its work is done

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.narrow = dtype == "bfloat16"
        self.storage = "float32" if self.narrow else dtype  # of parameters, states and all arrays that users see
        self.itemsize = np.dtype(self.storage).itemsize
        self.new = partial(np.empty, dtype=self.storage)  # an uninitialised array of a shape for a caller

    def __reduce__(self) -> Any:
        return shared, (self.dtype,)  # copies of layers share it

    @property
    def kind(self) -> str:
        """What packed weights and buffers depend on: instruction set and, with bfloat16, the way of its products."""
        isa = jit._isa or jit.default_isa()  # as jit.isa(), which every call of a layer would call
        return f"{isa} {jit.bfloat16_product()}" if self.narrow else isa

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
        """Whether the steps of two layers are better done at once, as a `Wave`; never on the processor."""
        return False

    def mark(self) -> Any:
        """Where in its queue the work asked for so far ends; None, since nothing has to wait for it."""
        return None

    def function(self, record: type) -> int:
        """Return the address of the compiled kernel for an operation."""
        try:
            name = OPERATIONS[record].kernel
        except KeyError:
            raise TypeError(f"{record.__name__} is no operation; expected a record of kernels/operations.py") from None
        if name is None:
            raise TypeError(f"{record.__name__} has no kernel for the processor")
        return jit.compiled(name, self.dtype)

    def prepare(self, *records: type) -> None:
        """Compile the kernels of operations before a lock is taken: a finalizer may want it while another thread compiles."""
        key = (self.kind, records)
        if key not in _prepared:
            for record in records:
                self.function(record)
            for name in ("replay.program", "team.run", "team.work", "team.stop", "team.solo"):
                jit.compiled(f"native.{name}")
            _prepared.add(key)

    def run(self, record: Any, *, work: int = 1 << 20, shared_by: Any = None, meets: bool = False) -> None:
        """Run an operation, or record it; on all threads if `work` (multiplications) is worth it.

        shared_by: see `program.Program`. meets: threads wait for each other within the kernel.
        """
        function = self.function(record.__class__)
        if recording.program is not None:
            recording.program.add(function, record, work, shared_by, meets)
            return
        try:
            own = _blocks.pop()
        except IndexError:
            own = _Arguments()
        block = own.block
        for k, argument in enumerate(record):
            block[k] = argument if argument.__class__ is int else number(argument)
        team.call(function, own.at, work >= CALL_WORK)
        _blocks.append(own)


def _aligned(make: Callable[..., np.ndarray], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = make(size + 64, np.uint8)
    skip = -address(raw) % 64
    return raw[skip : skip + size].view(dtype).reshape(shape)


@cache
def shared(dtype: str) -> Cpu:
    """Return the engine that all layers of a dtype share."""
    return Cpu(dtype)
