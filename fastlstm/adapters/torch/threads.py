"""torch's own threads for the kernels, where torch runs on OpenMP; elsewhere the kernels' own, unless torch may use but one.

Between torch's operations its threads spin for milliseconds, waiting for the next. Threads of the kernels' own would have to
share the processors with them, and would in turn keep torch's from theirs; so the kernels' jobs are run by torch's.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...kernels.native import jit, team
from ...runtime.program import address


class _Outer(threading.local):
    """What runs this Python thread's jobs, and the number of threads that it is held at, around each context in use."""

    def __init__(self) -> None:
        self.settings: list[tuple[Any, int]] = []


class Threads:
    """A context in which this Python thread's kernels run on torch's threads, as many as torch and fastlstm both allow.

    In a forked child, such as a worker of a DataLoader, and without OpenMP they run on fastlstm's own, or on this thread alone
    where torch may use no other.
    """

    def __init__(self) -> None:
        self._parallel, self._barrier = _openmp()
        self._outer = _Outer()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """OpenMP's threads do not exist in a forked child, and calling for them would never end."""
        self._parallel = None

    def _job(self, function: int, argument: int) -> None:
        count = min(team.num_threads(), torch.get_num_threads())
        # Threads meet in kernels, so each must know how many there really are: they count themselves.
        job = np.array([0, self._barrier, function, argument], np.int64)
        self._parallel(jit.compiled("native.team.lend"), address(job), count, 0)

    def __enter__(self) -> None:
        self._outer.settings.append((team.lent.job, team.held.count))
        if self._parallel is not None:
            team.lent.job = self._job
        else:
            team.held.count = 1 if torch.get_num_threads() == 1 else team.num_threads()

    def __exit__(self, *error: object) -> None:
        team.lent.job, team.held.count = self._outer.settings.pop()


def _openmp() -> tuple[Any, int]:
    """(GOMP_parallel, address of GOMP_barrier) of the OpenMP that torch is linked with; (None, 0) where there is none."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel, barrier = library.GOMP_parallel, library.GOMP_barrier
    except (OSError, AttributeError):
        return None, 0
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel, ctypes.cast(barrier, ctypes.c_void_p).value or 0


threads = Threads()
