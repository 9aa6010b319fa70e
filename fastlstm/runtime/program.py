"""A recorded sequence of kernel calls that runs again as one: one call from Python, one meeting of the threads.

While a program is being recorded, `Cpu.run` notes calls instead of making them. What a call is given by address must live
as long as the program; what differs from run to run (a caller's array, a counter) is recorded as a `Later`. Knows nothing
of what kernels compute.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias, cast

import numpy as np

from ..kernels.native import jit, replay, team
from .arrays import host_address, numbers

# Multiplications of a call below which other threads cannot help; and of a program, and of a call by itself, below which they
# are not called: one that sleeps takes longer to come than a small program takes alone.
SHARED_WORK = 30_000
PARALLEL_WORK = 2_000_000
CALL_WORK = 400_000
# Pauses for which a thread waits for one that sleeps, where both must be there: some, and longer for what takes long, as the
# other one's help is half of it. A pause is 10-40 ns; so many multiplications take sixteen times as long.
LEAST_PATIENCE, MOST_PATIENCE, WORK_PER_PAUSE = 1_000, 20_000, 40_000


def product_work(rows: int, weight: int) -> int:
    """Multiplications of `rows` rows with a weight; a few rows take as long as it takes to bring the weight."""
    return max(rows, 5) * weight


def address(array: Any) -> int:
    """Where an array's first element lies, of NumPy's or on a device."""
    return host_address(array) if isinstance(array, np.ndarray) else int(array.data.ptr)


class Later:
    """A number that is given when a program runs: the address of a caller's array, or a counter; plus an offset.

    Where the address that is given is 0, for no array, the sum is 0 too.
    """

    def __init__(self, name: str, offset: int = 0) -> None:
        self.name, self.offset = name, offset

    def __add__(self, other: int) -> Later:
        """Return a place `other` further on."""
        return type(self)(self.name, self.offset + int(other))

    __radd__ = __add__


class Count(int, Later):  # type: ignore[misc]  # sums of a count and a number are plain numbers
    """A number of rows or steps that is given when a program runs; while it is recorded, the largest that may be given."""

    def __new__(cls, name: str, most: int) -> Count:
        """Make a number of at most `most`."""
        return super().__new__(cls, most)

    def __init__(self, name: str, most: int) -> None:
        Later.__init__(self, name)


class Result(Later):
    """The address of an array that the program writes to and does not read."""


Place: TypeAlias = Any  # an address; in a recorded program also a `Later`


class _Recording(threading.local):
    program: Any = None  # a `Calls`


recording = _Recording()


class at_once(team.steady):
    """Within the block kernels run when they are asked for, on a number of threads that stays, whatever this thread records.

    Python runs finalizers and handlers of signals in the middle of other code. If they use the library while a program is
    recorded, their kernels do not belong into that program.
    """

    def __enter__(self) -> int:
        self._program, recording.program = recording.program, None
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        recording.program = self._program


def number(argument: Any) -> int:
    """A kernel's argument as an int: an array stands for its address, None for 0."""
    if argument is None:
        return 0
    return host_address(argument) if isinstance(argument, np.ndarray) else int(argument)


class Packed(Protocol):
    """Packed weights, as `workspace.Packs` has them: what programs ask of them."""

    @property
    def engine(self) -> Any:
        """The engine that packs."""

    @property
    def slots(self) -> Any:
        """The parameters that they are made of."""

    @property
    def make(self) -> Callable[[str], None]:
        """Packs one kind."""

    def prepare(self) -> None:
        """Compile what packs."""

    def stale(self, kind: str) -> bool:
        """Return whether parameters have changed since the pack was made."""

    def note(self, kind: str, stamp: tuple[int, int], mark: Any) -> None:
        """Keep which parameters the pack was made of."""

    def mark(self, kind: str) -> Any:
        """Return where the work ends that made the pack."""


class Calls:
    """What programs of every device have in common: they are recorded, and renew the packed weights that they read."""

    def __init__(self) -> None:
        self.needs: set[tuple[Packed, str]] = set()  # packed weights that the calls read
        self.threads = 1  # for which there is scratch
        self._calls: list[Any] = []
        self._packs_itself = False
        self._sources: list[Any] = []  # parameters that packed weights are made of
        self._stamps: list[tuple[int, int]] = []  # of these, when all packed weights were last seen to be fresh
        self._packing: dict[int, Any] = {}  # programs that renew them, by serial of the parameters' memory

    def record(self, make: Callable[[], None], packing: bool = False) -> None:
        """Take the calls that `make` makes in this thread by `run` of an engine; the number of threads stays meanwhile.

        packing: the weights that it reads are packed as a part of it, whenever it runs: for what changes them each time.
        """
        before = recording.program, team.held.count
        self.threads = team.num_threads()
        try:  # no context manager: an interrupt as one is entered or left would have all later calls recorded
            recording.program, team.held.count = self, self.threads
            make()
            if packing:
                body, self._calls = self._calls, []
                for packs, kind in self.needs:
                    packs.make(kind)
                self._calls += body
                self._packs_itself = True
        finally:
            recording.program, team.held.count = before
        self._sources = list({packs.slots for packs, _ in self.needs})
        self._close()

    def _close(self) -> None:
        """All is recorded."""

    def _empty(self) -> Any:
        """Another program of this kind."""
        raise AssertionError("subclasses make one")

    def _renew(self) -> None:
        """Make stale packed weights anew: by a program that makes all, since after a training step all are stale."""
        if self._packs_itself:
            return
        stamps = [(slots.store.serial, slots.store.version) for slots in self._sources]
        if stamps == self._stamps:
            return
        next(iter(self.needs))[0].prepare()
        for store in {packs.slots.store for packs, kind in self.needs if packs.stale(kind)}:
            with store.packing:
                needs = [(packs, kind) for packs, kind in self.needs if packs.slots.store is store]
                if any(packs.stale(kind) for packs, kind in needs):  # else another thread was faster
                    stamp = store.stamp
                    # Out of the table while it runs: a finalizer may come here again in this thread.
                    program = self._packing.pop(store.serial, None) or self._packs(needs)
                    program.run()
                    self._packing[store.serial] = program
                    mark = needs[0][0].engine.mark()
                    for packs, kind in needs:
                        packs.note(kind, stamp, mark)
        self._stamps = stamps

    def _packs(self, needs: list[tuple[Packed, str]]) -> Any:
        """A program that makes these packed weights."""

        def make() -> None:
            for packs, kind in needs:
                packs.make(kind)

        program = self._empty()
        program.record(make)
        return program


class Program(Calls):
    """Kernel calls in order, made by all threads together.

    A call waits for all calls before it, unless it and the last one give the same `shared_by`: that says that threads share the
    data in the same way in both, so that each thread reads only what it wrote itself.

    Parameters
    ----------
    *alive
        What must live as long as the program, beside the arrays that calls are given.
    """

    def __init__(self, *alive: Any) -> None:
        super().__init__()
        self.barrier = team.Barrier()
        self._calls: list[tuple[int, int, int, Any, bool]] = []  # function, place of its arguments, work, shared_by, meets
        self._numbers: list[int] = []
        self._later: list[tuple[int, Later]] = []
        self._alive: list[Any] = [*alive]
        self._names: dict[str, int] = {}

    def add(self, function: int, arguments: tuple[Any, ...], work: int, shared_by: Any, meets: bool) -> None:
        """Append a call."""
        self._calls.append((function, len(self._numbers), work, shared_by, meets))
        for argument in arguments:
            if isinstance(argument, Later):
                self._later.append((len(self._numbers), argument))
                self._names.setdefault(argument.name, len(self._names))
            elif isinstance(argument, np.ndarray):
                self._alive.append(argument)
            self._numbers.append(0 if isinstance(argument, Later) else number(argument))

    def _empty(self) -> Program:
        return Program()

    def _close(self) -> None:
        """Lay the calls out as `replay.program` reads them."""
        shared = [work >= SHARED_WORK for _, _, work, _, _ in self._calls]
        total = sum(work for (_, _, work, _, _), many in zip(self._calls, shared, strict=True) if many)
        self.parallel = total >= PARALLEL_WORK and self.threads > 1
        rows, before, last = [], False, None
        self._arguments = np.array([*self._numbers, 0], np.int64)
        base = address(self._arguments)
        for (function, place, _, own, meets), many in zip(self._calls, shared, strict=True):
            many = many and self.parallel
            waits = (many or before) and not (many and before and own is not None and own == last)
            how = replay.SHARED * many + replay.WAITS * waits + replay.MEETS * (many and meets)
            rows.append([function, base + 8 * place, how])
            before, last = many, own
        self._table = np.array(rows, np.int64).reshape(-1, 3)
        later = [[place, self._names[value.name], value.offset] for place, value in self._later]
        self._patches = np.array(later, np.int64).reshape(-1, 3)
        self.values = np.zeros(max(1, len(self._names)), np.int64)
        self._put = struct.Struct(f"{len(self._names)}q").pack_into
        self._state = np.zeros(replay.state_size(len(rows), self.threads), np.int64)
        self._epochs = [1]  # the number of the next run; taken out while the program runs
        patience = min(MOST_PATIENCE, max(LEAST_PATIENCE, total // WORK_PER_PAUSE))
        run = replay.Run(
            calls=address(self._table),
            length=len(rows),
            numbers=address(self._arguments),
            patches=address(self._patches),
            patch_count=len(later),
            values=address(self.values),
            barrier=self.barrier.address,
            state=address(self._state),
            most=self.threads,
            patience=patience,
        )
        self._job = np.array(run, np.int64)
        self._at = address(self._job)
        self._function = jit.compiled("native.replay.program")
        self._alone = team.alone(self._function, self._at)

    def run(self, **values: Any) -> None:
        """Make the calls, with a value for each name that was recorded as `Later`; others are ignored."""
        self._renew()
        self._put(self.values.data, 0, *numbers(values, self._names))
        self._call()

    def _call(self) -> None:
        run, job, _ = self._alone
        if not self.parallel:
            run(job)
            return
        try:
            epoch = self._epochs.pop()
        except IndexError:  # another thread runs it, or the frame that a handler interrupts: threads would mix up their runs
            run(job)
            return
        try:
            self._state[replay.EPOCH] = epoch
            team.call(self._function, self._at, True, self.threads, False)
        finally:
            self._epochs.append(epoch + 1)

    def runner(self) -> Callable[[], None]:
        """`run` for a program without a `Later` and without weights that change, as one call that costs Python little."""
        if self.parallel:
            return self._call
        run, job, _ = self._alone
        call: Any = partial(run, job)
        call.program = self  # which must live as long as anyone may call
        return cast("Callable[[], None]", call)
