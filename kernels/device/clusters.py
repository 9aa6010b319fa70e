"""How many clusters of a kernel a CUDA device can have at a time: a question to the driver that CuPy has no function for.

Clusters of more than eight blocks are not portable: a kernel must be allowed to have them, and a device may have no place for
one, since all blocks of a cluster stand in one group of multiprocessors.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

PORTABLE = 8  # blocks of a cluster that every device with clusters can have
ALLOWED = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
_NO_ROOM = 912  # CUDA_ERROR_INVALID_CLUSTER_SIZE


class Attribute(ctypes.Structure):
    """CUlaunchAttribute with a cluster's dimensions as its value."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("blocks", ctypes.c_uint * 3), ("rest", ctypes.c_char * 52))


class Launch(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    )


def launch(grid: tuple[int, int, int], threads: int, shared: int, blocks: int) -> Launch:
    """A launch of clusters of `blocks` blocks side by side."""
    attribute = Attribute(_DIMENSION, b"", (ctypes.c_uint * 3)(blocks, 1, 1), b"")
    return Launch((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(threads, 1, 1), shared, None, ctypes.pointer(attribute), 1)


@cache
def driver() -> Any:
    """The driver's library, which CuPy has loaded before."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def resident(function: int, of: Launch) -> int:
    """Clusters of a launch of `function`, by its driver's address, that the current device can have at a time.

    A device that cannot have one at all has the driver refuse the cluster's size, which is 0 here.

    Raises
    ------
    RuntimeError
        Where the driver cannot say; its error is named by its number.
    """
    count = ctypes.c_int()
    status = driver().cuOccupancyMaxActiveClusters(ctypes.byref(count), ctypes.c_void_p(function), ctypes.byref(of))
    if status == _NO_ROOM:
        return 0
    if status:
        raise RuntimeError(f"cuOccupancyMaxActiveClusters failed with CUDA error {status}")
    return count.value
