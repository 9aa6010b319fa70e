"""Hostile arrays in random places of random public functions: the bits of plain ones, or an error with the argument's name.

The functions and their uses are those of tests/support/hostile_cases.py, with other numbers in every trial and, often,
several hostile arguments at once; and outputs that lie in the memory of other arguments.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from tests.support import hostile
from tests.support.hostile_cases import table

NAME, TRIALS = "arrays", 10_000
LIMIT = 120.0  # the first of a dtype makes every layer and model, and may have to compile
DTYPES = ("float32", "float32", "float64", "bfloat16")
AT_ONCE = 20


def trial(rng: random.Random, folder: Path) -> int:
    """Some calls, each of another function."""
    uses = table(rng.choice(DTYPES))
    for _ in range(AT_ONCE):
        name = rng.choice(list(uses))
        case = rng.choice(uses[name])
        written = [slot for slot in case.slots if case.slots[slot].written]
        try:
            if written and len(case.slots) > 1 and rng.random() < 0.3:
                overlap(rng, case, rng.choice(written))
            else:
                call(rng, case)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
    return AT_ONCE


def call(rng: random.Random, case: hostile.Case) -> None:
    """One call with one hostile argument or some."""
    given, plain = {}, {}
    for name, slot in case.slots.items():
        numbers = np.array(rng.sample(slot.plain.ravel().tolist(), slot.plain.size), slot.plain.dtype)
        given[name] = plain[name] = numbers.reshape(slot.plain.shape)
    names = rng.sample(list(case.slots), min(len(case.slots), rng.choice((1, 1, 1, 2, 3))))
    chosen = {name: rng.choice(hostile.labels(case.slots[name])) for name in names}
    for name, label in chosen.items():
        given[name], plain[name] = hostile.made(case.slots[name], label, plain[name])
    twin = {name: given[name].copy() if name not in chosen else plain[name] for name in case.slots}
    numbers = all(array is not None for array in plain.values())
    copies = {name: None if array is None else array.copy() for name, array in twin.items()}
    must = all(hostile.has_to_work(case.slots[name], label) for name, label in chosen.items())
    hostile.judge(case, str(chosen), given, copies if numbers else None, names, must)


def overlap(rng: random.Random, case: hostile.Case, written: str) -> None:
    """One call whose output begins at a random place of another argument."""
    other = rng.choice([name for name in case.slots if name != written])
    hostile.overlapping(case, written, other, rng.choice(hostile.shifts(case, written, other)))
