"""A program's calls in pieces that threads claim: who comes late, or never because another program has its processor, is not
waited for. Knows nothing of what calls compute, nor how threads come to a job (team.py).
"""

from __future__ import annotations

from typing import Any

SHARED, WAITS, MEETS = 1, 2, 4  # how a call of a program is made
EPOCH, ARRIVED, GROUPS = 0, 1, 8  # a program's state: the number of its run, who takes part, then of each group of calls:
CHOICE, CHOSEN, FINISHED, CLAIMS = range(4)  # who says whether its threads meet, what he said, how many pieces are done, taken


def state_size(calls: int, threads: int) -> int:
    """Int64 of state that a program of so many calls wants for up to `threads` threads, zeros at first."""
    return GROUPS + (calls + 1) * (CLAIMS + threads)


def program(simd: Any) -> Any:
    """A sequence of jobs as one job: its calls in groups, a group in as many pieces as threads, of which one may take several.

    calls [count, 3]: function, arguments, and how: SHARED among all threads or for one alone, whether it WAITS for all before
    it, which begins a group, and whether threads MEET within it: then each needs a piece at the same time, or one does all.
    First values are put where they belong: patches [patch_count, 3]: place in numbers, index of the value, offset. Zero, no
    place at all, stays zero. state: see above, for up to `most` threads; marks of earlier runs stand lower than this one's.
    patience: pauses for which threads that are to meet wait for each other to arrive.
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

    def kernel(thread, threads, calls, count, numbers, patches, patch_count, values, barrier, state, most, patience):
        if threads == 1:
            put(numbers, patches, patch_count, values)
            for k in range(0, 3 * count, 3):
                call(load(calls, k), load(calls, k + 1), 0, 1)
            return
        epoch = load(state, EPOCH)
        note(state, ARRIVED, epoch, 1)
        if patch_count > 0:
            if claim(state, GROUPS + CHOICE, epoch):
                put(numbers, patches, patch_count, values)
                note(state, GROUPS + FINISHED, epoch, 1)
            spins = 0
            while load(state, GROUPS + FINISHED) <= epoch << 8:
                spins = wait(barrier, spins)
        begin, at = 0, GROUPS
        while begin < count:
            how, end = load(calls, 3 * begin + 2), begin + 1
            while end < count and load(calls, 3 * end + 2) & WAITS == 0:
                how |= load(calls, 3 * end + 2)
                end += 1
            at += CLAIMS + most
            pieces = threads if how & SHARED != 0 else 1
            if how & MEETS != 0 and not meet(state, at, epoch, threads, barrier, patience):
                pieces = 1
            for k in range(thread, thread + pieces):
                piece = k % pieces
                if claim(state, at + CLAIMS + piece, epoch):
                    for index in range(3 * begin, 3 * end, 3):
                        call(load(calls, index), load(calls, index + 1), piece, pieces)
                    note(state, at + FINISHED, epoch, 1)
            spins = 0
            while load(state, at + FINISHED) < (epoch << 8) + pieces:
                spins = wait(barrier, spins)
            begin = end

    return kernel
