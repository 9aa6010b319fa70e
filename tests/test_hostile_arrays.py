"""Every public function with arrays of odd memory, type and shape: the right result to the bit, or an error with the name.

The functions are found from the package's public names: a new one without a case in tests/support/hostile_cases.py fails here.
"""

from __future__ import annotations

import pytest

from tests.support import hostile
from tests.support.hostile_cases import WITHOUT, public, table

NAMES = sorted(set(public()) - WITHOUT)


def test_every_public_function_has_a_case():
    names = set(public())
    assert names - WITHOUT == set(table("float32")), "a public function has no case in hostile_cases.py, or one has gone"
    assert not WITHOUT - names, "said to take no array, and not public"


@pytest.mark.parametrize("name", NAMES)
def test_hostile_arrays(name):
    for case in table("float32")[name]:
        for slot in case.slots:
            assert hostile.walk(case, slot) > 25


@pytest.mark.parametrize("name", NAMES)
def test_outputs_that_overlap_other_arguments(name):
    for case in table("float32")[name]:
        for written in (one for one, slot in case.slots.items() if slot.written):
            for other in case.slots:
                if other != written:
                    for shift in hostile.shifts(case, written, other):
                        hostile.overlapping(case, written, other, shift)
