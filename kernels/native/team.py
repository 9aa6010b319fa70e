"""The threads that run kernels. Each sits in one compiled loop outside the GIL, spins for a while, then sleeps.

A job is the address of a compiled function `job(arguments, thread, threads)`; the caller is thread 0. To hand it out, to wake
who sleeps, to do the caller's share and to wait for the others is one native call: no signal's handler and no exception of
Python comes in between. A thread joins a job by counting itself into the word that says which job it is, so that none can
mistake the next job for this one; the caller closes the job and waits for those who have joined. A job that can do without some
of the threads (replay.py) is not held up by those who come late.

A team takes one job at a time. Where all threads have to join it, they may wait for each other in it (`atomics.sync`). A
caller who finds the team busy, or larger than he has memory for, runs his job alone in his own thread; nobody waits for
another's job but who changes the number of threads, and that job waits for nobody. After a fork the team starts anew.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import jit, system

MOST = 62  # threads, each a bit of an int64
# What a team shares: each of the first a cache line of int64, then what seldom changes.
JOB, DONE, SLEEPING, BUSY, STOP, REST = range(0, 48, 8)
FUNCTION, ARGUMENT, SIZE, WAIT, WAKE, HANDLES = range(REST, REST + 6)
CLOSED, COUNT = 128, 127  # the job's word: its number times 256, whether it is closed, how many have joined
SPINS = 20_000  # pauses of 10-40 ns: under a millisecond of waiting, then a thread sleeps


@jit.plain("int64")
def work(simd: Any) -> Any:
    """A thread's life: answer every job, asleep when none has come for a while, until the team is stopped."""
    from ..vector.atomics import add, call, exchange, keep_bits, load, pause, set_bits

    def kernel(control, thread):
        seen, idle, size = 0, 0, load(control, SIZE)
        while True:
            job = load(control, JOB)
            if job >> 8 != seen:
                if job & CLOSED != 0:
                    seen = job >> 8
                elif exchange(control, JOB, job, job + 1):
                    call(load(control, FUNCTION), load(control, ARGUMENT), thread, size)
                    seen, idle = job >> 8, 0
                    # A caller who sleeps has closed the job: the count is final.
                    if add(control, DONE, 1) + 1 == load(control, JOB) & COUNT and load(control, SLEEPING) & 1 != 0:
                        call(load(control, WAKE), load(control, HANDLES), 1, 0)
            elif load(control, STOP) != 0:
                return 0
            elif idle < SPINS:
                idle += 1
                pause()
            else:
                # Who hands out a job looks at the bits afterwards: either he sees this one or the job is seen here.
                set_bits(control, SLEEPING, 1 << thread)
                if load(control, JOB) >> 8 == seen and load(control, STOP) == 0:
                    call(load(control, WAIT), load(control, HANDLES + thread), -1, 0)
                keep_bits(control, SLEEPING, ~(1 << thread))
                idle = 0

    return kernel


@jit.plain("int64")
def run(simd: Any) -> Any:
    """Run a job to its end, on the team, or alone if that is busy or has more than `most` threads; returns on how many.

    whole: all threads have to join it.
    """
    from ..vector.atomics import call, keep_bits, load, pause, set_bits, store

    def kernel(control, function, argument, most, whole):
        size = load(control, SIZE)
        if size > most or set_bits(control, BUSY, 1) != 0:
            call(function, argument, 0, 1)
            return 1
        store(control, FUNCTION, function)
        store(control, ARGUMENT, argument)
        store(control, DONE, 0)
        store(control, JOB, ((load(control, JOB) >> 8) + 1) << 8)
        asleep = load(control, SLEEPING)
        for thread in range(1, size):
            if asleep >> thread & 1 != 0:
                call(load(control, WAKE), load(control, HANDLES + thread), 1, 0)
        call(function, argument, 0, size)
        joined, spins = size - 1, 0
        if whole == 0:
            joined = set_bits(control, JOB, CLOSED) & COUNT
        while load(control, DONE) != joined:
            if spins < SPINS:
                spins += 1
                pause()
            else:
                # Another program holds a thread's processor: going idle lets the system move the thread to this one.
                set_bits(control, SLEEPING, 1)
                if load(control, DONE) != joined:
                    call(load(control, WAIT), load(control, HANDLES), -1, 0)
                keep_bits(control, SLEEPING, ~1)
        set_bits(control, JOB, CLOSED)
        store(control, BUSY, 0)
        return size

    return kernel


@jit.plain("int64")
def stop(simd: Any) -> Any:
    """End the team's threads, unless a job runs, and leave it busy for good; returns whether that is done."""
    from ..vector.atomics import call, load, set_bits, store

    def kernel(control):
        if load(control, STOP) == 0:
            if set_bits(control, BUSY, 1) != 0:
                return 0
            store(control, STOP, 1)
            for thread in range(1, load(control, SIZE)):
                call(load(control, WAKE), load(control, HANDLES + thread), 1, 0)
        return 1

    return kernel


@jit.plain("int64")
def solo(simd: Any) -> Any:
    """Run job[0] with job[1] on the calling thread: one argument, since each costs Python time."""
    from ..vector.atomics import call, load

    def kernel(job):
        call(load(job, 0), load(job, 1), 0, 1)
        return 0

    return kernel


@jit.plain("int64")
def lend(simd: Any) -> Any:
    """One thread's part of a job that threads of another runtime run, all at once; they number themselves as they come.

    job: how many have come (0 at first), the function by which they wait for each other, the job's function, its arguments.
    """
    from ..vector.atomics import add, call, load

    def kernel(job):
        thread = add(job, 0, 1)
        call(load(job, 1), 0, 0, 0)
        call(load(job, 2), load(job, 3), thread, load(job, 0))
        return 0

    return kernel


class Barrier:
    """Memory of a barrier (`atomics.sync`) for the threads of one job at a time."""

    def __init__(self) -> None:
        self._memory = np.zeros(16, np.int64)
        # A cache line of its own, of which the first words count and the third says how to wait.
        skip = -self._memory.ctypes.data % 64 // 8
        self._memory[skip + 2] = system.yield_address()
        self.address = int(self._memory.ctypes.data) + 8 * skip


def _native(name: str, count: int) -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * count)(jit.compiled(f"native.team.{name}"))


class Team:
    """`size` threads, the caller among them.

    Raises
    ------
    RuntimeError
        If not all can be started.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._semaphores = sleep = system.Semaphores(size)
        self.memory = np.zeros(HANDLES + size, np.int64)
        self.memory[[SIZE, WAIT, WAKE]] = size, sleep.wait, sleep.wake
        self.memory[HANDLES:] = sleep.handles
        self._control = int(self.memory.ctypes.data)
        self._run, self._stop, self._work = _native("run", 5), _native("stop", 1), _native("work", 2)
        self._members = [
            threading.Thread(target=self._member, args=(k,), name=f"fastlstm-{k}", daemon=True) for k in range(1, size)
        ]
        try:
            for member in self._members:
                member.start()
        except BaseException:
            self.stop()
            raise

    def _member(self, thread: int) -> None:
        self._work(self._control, thread)

    def run(self, function: int, argument: int, most: int = MOST, whole: bool = True) -> int:
        """Run a job on all threads, or on this one alone if others use the team or it has more than `most`; on how many.

        Without `whole` it is one whose threads need not all come.
        """
        threads: int = self._run(self._control, function, argument, most, whole)
        return threads

    def stop(self) -> None:
        """End the threads, once no job runs; later ones run alone."""
        while not self._stop(self._control):
            time.sleep(50e-6)
        for member in self._members:
            if member.is_alive():
                member.join()


class _Lent(threading.local):
    """What runs the jobs of this Python thread instead of the team: `job(function, argument)`, by `lend`."""

    job: Callable[[int, int], None] | None = None


class _Held(threading.local):
    count = 0  # what `steady` holds the number of threads at; 0: nothing


lent = _Lent()
held = _Held()
_team: Team | None = None
_size: int | None = None
_alone: Any = None
_change = threading.Lock()
_failed = 0, 0.0  # the last size of which no team could be started, and when
RETRY = 1.0  # seconds until that is tried again


class steady:
    """Within the block `num_threads()` stays what it is for this Python thread, and no job of it runs on more.

    For memory of which each thread has a part: whoever sets another number meanwhile cannot make it too small.
    """

    def __enter__(self) -> int:
        self._before = held.count
        held.count = count = num_threads()
        return count

    def __exit__(self, *error: object) -> None:
        held.count = self._before


def num_threads() -> int:
    """Threads that kernels are split over: what `set_num_threads` set, else FASTLSTM_NUM_THREADS.

    Without either, one per processor that affinity and control groups leave the process, but no more than OMP_NUM_THREADS:
    pools of worker processes, such as joblib's, set that to each worker's share.
    """
    return held.count or _chosen()


def _chosen() -> int:
    global _size
    if _size is None:
        wanted = os.environ.get("FASTLSTM_NUM_THREADS", "")
        if wanted and not (wanted.isascii() and wanted.isdigit() and 1 <= int(wanted) <= MOST):
            raise ValueError(f"FASTLSTM_NUM_THREADS is {wanted!r}; expected an integer from 1 to {MOST}")
        share = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # of a list, the outermost level's
        most = int(share) if share.isascii() and share.isdigit() and int(share) else MOST
        _size = int(wanted) if wanted else min(MOST, system.processors(), most)
    return _size


def set_num_threads(count: int) -> None:
    """Split kernels over `count` threads (1 to 62) from now on, whichever thread calls."""
    global _size
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise ValueError(f"count is {count!r}; expected an integer from 1 to {MOST}")
    _size = count


def _renewed() -> Team | None:
    """The team of the wanted size, started if need be; None while another call starts it, and for a while where that failed.

    A call that waited for another could wait for ever: it may be a finalizer's, within the one that starts the team.
    """
    global _team, _failed
    if not _change.acquire(blocking=False):
        return None
    try:
        size = _chosen()
        if _team is None or _team.size != size:
            if _failed[0] == size and time.monotonic() < _failed[1] + RETRY:
                return None
            if _team is not None:
                _team.stop()
            try:
                _team = Team(size)
            except RuntimeError:
                _team, _failed = None, (size, time.monotonic())
        return _team
    finally:
        _change.release()


def call(function: int, argument: int, parallel: bool, most: int = MOST, whole: bool = True) -> None:
    """Run the job at `function`; if `parallel` on the team, should that be free and have at most `most` threads.

    whole: see `Team.run`.
    """
    global _alone
    if parallel and num_threads() > 1:
        if lent.job is not None:
            with steady() as count:
                if count <= most:
                    lent.job(function, argument)
                    return
        else:
            team = _team
            if team is None or team.size != _size:
                team = _renewed()
            if team is not None:
                team.run(function, argument, min(most, held.count or MOST), whole)
                return
    if _alone is None:
        _alone = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    _alone(function)(argument, 0, 1)


def alone(function: int, argument: int) -> tuple[Any, int, np.ndarray]:
    """(run, job, memory): `run(job)` runs the job at `function` on the calling thread, at the least cost of a call."""
    memory = np.array([function, argument], np.int64)
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(jit.compiled("native.team.solo")), int(memory.ctypes.data), memory


def _forget() -> None:
    """In a forked child the team's threads do not exist."""
    global _team, _change, _failed
    _team, _change, _failed = None, threading.Lock(), (0, 0.0)


def _stop() -> None:
    if _team is not None:
        _team.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_stop)
