"""Settings that every test shares. Kernels keep their usual compile cache, so that a second run is fast."""

import os
import signal

import pytest
from hypothesis import settings

# No deadline: the first example of a shape may compile. In CI the examples are the same in every run.
settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, database=None)
os.environ.setdefault("KERAS_BACKEND", "torch")  # which the tests have anyway
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True, scope="session")
def interrupts_arrive():
    """A shell starts what runs in its background with interrupts ignored; the tests of them need the usual handler."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
