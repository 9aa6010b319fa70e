"""A recorded program as one job: threads claim parts of its calls, so that no thread waits for one that comes late or never.

A thread may never come because another program has its processor. Knows nothing of what calls compute, nor how threads come to
a job (team.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

# How a call of a program is made: by all threads or by one; after all calls before it; threads meet within it.
SHARED, WAITS, MEETS = 1, 2, 4
# A program's state: the number of its run, how many threads take part, then for each group of calls:
EPOCH, ARRIVED, GROUPS = 0, 1, 8
# who decides whether its threads meet, what was decided, how many parts are done, and which parts are taken.
CHOICE, CHOSEN, FINISHED, CLAIMS = range(4)


class Run(NamedTuple):
    """One run of a program; arrays of int64 by address.

    First values are put where they belong; zero, no place at all, stays zero. Marks that earlier runs left in `state` are lower
    than this run's.
    """

    calls: int  # [length, 3]: function, arguments, and how: SHARED, WAITS, MEETS
    length: int
    numbers: int  # the arguments of all calls
    patches: int  # [patch_count, 3]: index in numbers, index of the value, offset
    patch_count: int
    values: int
    barrier: int
    state: int  # [state_size(length, most)]
    most: int  # threads that there may be
    patience: int  # pauses for which threads that are to meet wait for each other to arrive


def state_size(calls: int, threads: int) -> int:
    """Return how many int64 of state a program of so many calls needs for up to `threads` threads; zeros at first."""
    return GROUPS + (calls + 1) * (CLAIMS + threads)


def program(simd: Any) -> Any:
    """A program's calls in groups: a group has as many parts as there are threads, and one thread may take several.

    A call that WAITS begins a group. Where threads meet within a group, each needs a part at the same time, or one does all.
    """
    from ..vector.atomics import call, exchange, load, pause, store, wait
    from ..vector.parts import device

    @device
    def claim(state, index, epoch):
        """Whether the caller is the first in this run to ask for it."""
        known = load(state, index)
        return known != epoch and exchange(state, index, known, epoch)

    @device
    def note(state, index, epoch, much):
        """Add to a count of this run."""
        while True:
            known = load(state, index)
            if exchange(state, index, known, max(known, epoch << 8) + much):
                break

    @device
    def put(numbers, patches, patch_count, values):
        for k in range(0, 3 * patch_count, 3):
            value = load(values, load(patches, k + 1))
            store(numbers, load(patches, k), value + load(patches, k + 2) if value != 0 else 0)

    @device
    def meet(state, at, epoch, threads, barrier, patience):
        """Whether all threads have arrived to make a group of calls together; the first to come here waits a little."""
        if claim(state, at + CHOICE, epoch):
            spins = 0
            while load(state, ARRIVED) < (epoch << 8) + threads and spins < patience:
                spins += 1
                pause()
            store(state, at + CHOSEN, (epoch << 8) + (1 if load(state, ARRIVED) >= (epoch << 8) + threads else 2))
        spins = 0
        while load(state, at + CHOSEN) <= epoch << 8:
            spins = wait(barrier, spins)
        return load(state, at + CHOSEN) == (epoch << 8) + 1

    def kernel(thread, threads, a: Run):
        if threads == 1:
            put(a.numbers, a.patches, a.patch_count, a.values)
            for k in range(0, 3 * a.length, 3):
                call(load(a.calls, k), load(a.calls, k + 1), 0, 1)
            return
        epoch = load(a.state, EPOCH)
        note(a.state, ARRIVED, epoch, 1)
        if a.patch_count > 0:
            if claim(a.state, GROUPS + CHOICE, epoch):
                put(a.numbers, a.patches, a.patch_count, a.values)
                note(a.state, GROUPS + FINISHED, epoch, 1)
            spins = 0
            while load(a.state, GROUPS + FINISHED) <= epoch << 8:
                spins = wait(a.barrier, spins)
        begin, at = 0, GROUPS
        while begin < a.length:
            how, end = load(a.calls, 3 * begin + 2), begin + 1
            while end < a.length and load(a.calls, 3 * end + 2) & WAITS == 0:
                how |= load(a.calls, 3 * end + 2)
                end += 1
            at += CLAIMS + a.most
            pieces = threads if how & SHARED != 0 else 1
            if how & MEETS != 0 and not meet(a.state, at, epoch, threads, a.barrier, a.patience):
                pieces = 1
            for k in range(thread, thread + pieces):
                piece = k % pieces
                if claim(a.state, at + CLAIMS + piece, epoch):
                    for index in range(3 * begin, 3 * end, 3):
                        call(load(a.calls, index), load(a.calls, index + 1), piece, pieces)
                    note(a.state, at + FINISHED, epoch, 1)
            spins = 0
            while load(a.state, at + FINISHED) < (epoch << 8) + pieces:
                spins = wait(a.barrier, spins)
            begin = end

    return kernel
