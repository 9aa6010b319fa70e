"""Settings that every test shares. Kernels keep their usual compile cache, so that a second run is fast."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: the first example of a shape may compile. In CI the examples are the same in every run.
settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, database=None)
os.environ.setdefault("KERAS_BACKEND", "torch")  # which the tests have anyway
settings.load_profile("ci" if os.environ.get("CI") else "default")
# PyTorch's threads sleep while they wait: spinning, they take the processors from the other worker of pytest-xdist.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True, scope="session")
def interrupts_arrive():
    """A shell starts what runs in its background with interrupts ignored; the tests of them need the usual handler."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# What `pytest -m quick` runs: of each wing a file that is fast, in about half a minute once the kernels are compiled.
QUICK = (
    "test_house.py",
    "test_data.py",
    "test_losses.py",
    "kernels/test_operations.py",
    "kernels/test_series_kernels.py",
    "runtime/test_program.py",
    "runtime/test_params.py",
    "layers/test_cells.py",
    "models/test_stream.py",
    "optim/test_schedules.py",
    "training/test_update.py",
    "text/test_tokens.py",
    "files/test_files.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick tests."""
    here = Path(__file__).parent
    quick = {here / name for name in QUICK}
    for item in items:
        if item.path in quick:
            item.add_marker(pytest.mark.quick)
