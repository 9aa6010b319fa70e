"""The threads that run kernels. Each sits in one compiled loop outside the GIL, spins for a while, then sleeps.

A job is the address of a compiled function `job(arguments, thread, threads)`. The caller is thread 0; a job's threads
never wait for each other, so nothing can deadlock. A caller that finds the team busy runs its job alone, in its own
thread; after a fork the team starts anew. Every thread of the team answers every job, so that none can mistake the next
job for this one.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from typing import Any

import numpy as np

from . import jit

GENERATION, FUNCTION, ARGUMENT, THREADS, DONE, STOP, SLEEPING = range(0, 56, 8)  # a cache line of int64 each
SPINS = 20_000  # pauses of 10-40 ns: under a millisecond of waiting, then a thread sleeps
LATE = -1


@jit.plain("int64", 4)
def work(simd: Any) -> Any:
    """Take jobs until none has come for `spins` rounds; returns the last generation seen, -1 to stop."""
    from .atomics import add, call, load, pause

    def kernel(control, thread, seen, spins):
        idle = 0
        while idle < spins:
            if load(control, GENERATION) != seen:
                call(load(control, FUNCTION), load(control, ARGUMENT), thread, load(control, THREADS))
                seen, idle = seen + 1, 0
                add(control, DONE, 1)
            elif load(control, STOP) != 0:
                return -1
            else:
                idle += 1
                pause()
        return seen

    return kernel


@jit.plain("int64", 4)
def run(simd: Any) -> Any:
    """Publish a job, do thread 0's share, wait for the others a while.

    Returns 0 when all are done, LATE when some are not yet; where some sleep, only publishes and returns their mask.
    """
    from .atomics import add, call, load, pause, store

    def kernel(control, function, argument, threads):
        store(control, FUNCTION, function)
        store(control, ARGUMENT, argument)
        store(control, THREADS, threads)
        store(control, DONE, 0)
        add(control, GENERATION, 1)
        asleep = load(control, SLEEPING)
        if asleep != 0:
            return asleep
        call(function, argument, 0, threads)
        for _ in range(SPINS):
            if load(control, DONE) == threads - 1:
                return 0
            pause()
        return LATE

    return kernel


@jit.plain("int64", 4)
def finish(simd: Any) -> Any:
    """The rest of `run` once the sleepers have been called; function 0: only waits."""
    from .atomics import call, load, pause

    def kernel(control, function, argument, threads):
        if function != 0:
            call(function, argument, 0, threads)
        for _ in range(SPINS):
            if load(control, DONE) == threads - 1:
                return 0
            pause()
        return LATE

    return kernel


@jit.plain("int64", 4)
def nap(simd: Any) -> Any:
    """Mark a thread asleep (bit=1) or awake (bit=0); returns the generation as it stands afterwards."""
    from .atomics import keep_bits, load, set_bits

    def kernel(control, thread, bit, unused):
        if bit != 0:
            set_bits(control, SLEEPING, 1 << thread)
        else:
            keep_bits(control, SLEEPING, ~(1 << thread))
        return load(control, GENERATION)

    return kernel


@jit.plain("int64", 1)
def solo(simd: Any) -> Any:
    """Run job[0] with job[1] on the calling thread: one argument, since each costs Python time."""
    from .atomics import call, load

    def kernel(job):
        call(load(job, 0), load(job, 1), 0, 1)
        return 0

    return kernel


def program(simd: Any) -> Any:
    """A sequence of jobs as one job: threads meet between them instead of being called anew.

    calls [count, 3]: function, arguments, and how: 1 for all threads, else the first alone; 2 to wait for all before it.
    First values are put where they belong: patches [patch_count, 3]: place in numbers, index of the value, offset. Zero, no
    place at all, stays zero.
    """
    from .atomics import call, load, store, sync

    def kernel(thread, threads, calls, count, numbers, patches, patch_count, values, barrier):
        if patch_count > 0:
            if thread == 0:
                for k in range(0, 3 * patch_count, 3):
                    value = load(values, load(patches, k + 1))
                    store(numbers, load(patches, k), value + load(patches, k + 2) if value != 0 else 0)
            sync(barrier, threads)
        for k in range(0, 3 * count, 3):
            how = load(calls, k + 2)
            if how & 2 != 0:
                sync(barrier, threads)
            if how & 1 != 0:
                call(load(calls, k), load(calls, k + 1), thread, threads)
            elif thread == 0:
                call(load(calls, k), load(calls, k + 1), 0, 1)

    return kernel


def _yield_address() -> int:
    """Address of the system's function by which a thread lets others run; 0 where there is none."""
    try:
        library: Any = ctypes.WinDLL("kernel32") if os.name == "nt" else ctypes.CDLL(None)  # type: ignore[attr-defined]
        function = library.SwitchToThread if os.name == "nt" else library.sched_yield
    except (AttributeError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Barrier:
    """Memory of a barrier (`atomics.sync`) for the threads of one job at a time."""

    def __init__(self) -> None:
        self._memory = np.zeros(16, np.int64)
        # A cache line of its own, of which the first words count and the third says how to wait.
        skip = -self._memory.ctypes.data % 64 // 8
        self._memory[skip + 2] = _yield_address()
        self.address = int(self._memory.ctypes.data) + 8 * skip


def _native(name: str) -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)(jit.compiled(name))


class Team:
    """`size` threads, the caller among them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = np.zeros(64, np.int64)
        self.control = self.memory.ctypes.data
        self.busy = threading.Lock()
        self._run, self._finish, self._work, self._nap = (_native("team." + part) for part in ("run", "finish", "work", "nap"))
        self._calls = [threading.Event() for _ in range(size)]
        self._members = [
            threading.Thread(target=self._member, args=(k,), name=f"fastlstm-{k}", daemon=True) for k in range(1, size)
        ]
        for member in self._members:
            member.start()

    def _member(self, thread: int) -> None:
        seen = 0
        while True:
            seen = self._work(self.control, thread, seen, SPINS)
            if seen < 0:
                return
            self._calls[thread].clear()
            if self._nap(self.control, thread, 1, 0) == seen and not self.memory[STOP]:
                self._calls[thread].wait()
            self._nap(self.control, thread, 0, 0)

    def job(self, function: int, argument: int) -> None:
        """Run `function` on all threads; returns when all are done."""
        left = self._run(self.control, function, argument, self.size)
        if left > 0:
            for thread in range(1, self.size):
                if left >> thread & 1:
                    self._calls[thread].set()
            left = self._finish(self.control, function, argument, self.size)
        while left:
            # Another program holds a thread's processor: going idle lets the system move the thread to this one.
            time.sleep(50e-6)
            left = self._finish(self.control, 0, 0, self.size)

    def stop(self) -> None:
        """End the threads, once no job runs."""
        with self.busy:
            self.memory[STOP] = 1
            for call in self._calls:
                call.set()
            for member in self._members:
                member.join()


_team: Team | None = None
_size: int | None = None
_alone: Any = None
_change = threading.Lock()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads() -> int:
    """Threads that kernels are split over: `set_num_threads`, else FASTLSTM_NUM_THREADS, else one per usable processor."""
    global _size
    if _size is None:
        wanted = os.environ.get("FASTLSTM_NUM_THREADS", "")
        if wanted and not (wanted.isascii() and wanted.isdigit() and 1 <= int(wanted) <= 62):
            raise ValueError(f"FASTLSTM_NUM_THREADS is {wanted!r}; expected an integer from 1 to 62")
        _size = int(wanted) if wanted else min(62, _processors())
    return _size


def set_num_threads(count: int) -> None:
    """Split kernels over `count` threads (1 to 62) from now on, whichever thread calls."""
    global _size
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 62:
        raise ValueError(f"count is {count!r}; expected an integer from 1 to 62")
    _size = count


def _current() -> Team:
    global _team
    with _change:
        if _team is None or _team.size != num_threads():
            if _team is not None:
                _team.stop()
            _team = Team(num_threads())
        return _team


def call(function: int, argument: int, parallel: bool) -> None:
    """Run the job at `function`; on the whole team if `parallel` and the team is free."""
    global _alone
    if parallel and num_threads() > 1:
        team = _team if _team is not None and _team.size == _size else _current()
        if team.busy.acquire(blocking=False):
            try:
                if not team.memory[STOP]:
                    team.job(function, argument)
                    return
            finally:
                team.busy.release()
    if _alone is None:
        _alone = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    _alone(function)(argument, 0, 1)


def alone(function: int, argument: int) -> tuple[Any, int, np.ndarray]:
    """(run, job, memory): `run(job)` runs the job at `function` on the calling thread, at the least cost of a call."""
    memory = np.array([function, argument], np.int64)
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(jit.compiled("team.solo")), int(memory.ctypes.data), memory


def _forget() -> None:
    """In a forked child the team's threads do not exist."""
    global _team, _change
    _team, _change = None, threading.Lock()


def _stop() -> None:
    if _team is not None:
        _team.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_stop)
