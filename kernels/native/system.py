"""What threads want of the operating system: how many processors there are, and how compiled code lets others run or sleeps."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np


def _library() -> Any:
    return ctypes.WinDLL("kernel32") if os.name == "nt" else ctypes.CDLL(None)  # type: ignore[attr-defined]


def _place(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def yield_address() -> int:
    """Address of the system's function by which a thread lets others run; 0 where there is none."""
    try:
        return _place(_library().SwitchToThread if os.name == "nt" else _library().sched_yield)
    except (AttributeError, OSError):
        return 0


class Semaphores:
    """Semaphores of the system's own, for compiled code: `wait(handle, -1, 0)` sleeps until another's `wake(handle, 1, 0)`.

    `wait` and `wake` are addresses; functions that take fewer arguments leave the last unread. A signal may end the sleep too.

    Raises
    ------
    RuntimeError
        Where the system has none.
    """

    def __init__(self, count: int) -> None:
        self._memory = np.zeros(16 * count, np.int64)
        try:
            library = _library()
            if os.name == "nt":
                self.wait, self.wake = _place(library.WaitForSingleObject), _place(library.ReleaseSemaphore)
                library.CreateSemaphoreW.restype = ctypes.c_void_p
                self.handles = [library.CreateSemaphoreW(None, 0, 2**31 - 1, None) for _ in range(count)]
            elif sys.platform == "darwin":
                self.wait, self.wake = _place(library.dispatch_semaphore_wait), _place(library.dispatch_semaphore_signal)
                library.dispatch_semaphore_create.restype = ctypes.c_void_p
                self.handles = [library.dispatch_semaphore_create(ctypes.c_ssize_t(0)) for _ in range(count)]
            else:
                self.wait, self.wake = _place(library.sem_wait), _place(library.sem_post)
                self.handles = [int(self._memory.ctypes.data) + 128 * k for k in range(count)]  # a sem_t has at most 32 bytes
                if any(library.sem_init(ctypes.c_void_p(handle), 0, 0) for handle in self.handles):
                    raise OSError("sem_init failed")
            if not all(self.handles):
                raise OSError("no handle")
        except (AttributeError, OSError) as error:
            raise RuntimeError(f"this system gives no semaphores: {error}") from error


def processors() -> int:
    """Processors that this process may use, or as many as its control groups grant time for, rounded up."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, math.ceil(min(usable, granted()))))


def granted(root: Path = Path("/")) -> float:
    """Processors' worth of time that the control groups of Linux, versions 1 and 2, grant this process, or infinity."""
    limits = [math.inf]
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            # Whatever stands above limits as well; seen from a container, the group's own path may not exist.
            group = PurePosixPath(path)
            limits += [_limit(base / level.relative_to("/")) for level in (group, *group.parents)]
    return min(limits)


def _limit(folder: Path) -> float:
    try:
        both = folder / "cpu.max"
        if both.exists():
            quota, period = both.read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{part}_us").read_text().strip() for part in ("quota", "period"))
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
