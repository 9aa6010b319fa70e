"""A pretend H200 under the real CuPy: `install()` before CuPy is imported, or `site/` on PYTHONPATH for whole programs.

hooks.py puts functions of Python in the place of CUDA's libraries. machine.py is the runtime (memory, streams, events, graphs;
their order: order.py), driver.py the driver (modules, launches and what it refuses), blas.py cuBLAS. Kernels are compiled by
NVRTC as on a real machine, then executed: the package's by the simulator of tests/cuda, CuPy's own as plain C++ (kernels.py).

Streams run as late as they may: what is not ordered by an event, a synchronisation or the default stream's rules reads what
was there before. What CUDA forbids while a stream is captured, memory that nobody allocated, and calls that are not pretended
are noted in `machine.faults`. It cannot tell: the real driver's further limits, times, memory ordering, cuBLAS's own kernels.
"""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec

from tests.cuda import compile as nvrtc
from tests.cuda.simulator import translate

TRIED = "14.2.0"  # of CuPy, whose inner functions are hooked


def missing() -> str | None:
    """What the pretend device lacks here; None where it can be."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "the pretend device needs Linux on x86-64"
    if translate.compiler() is None or not shutil.which("nm"):
        return "the pretend device needs g++ and nm"
    if find_spec("cupy") is None:
        return "the pretend device needs CuPy: pip install cupy-cuda13x"
    return f"the pretend device needs NVRTC's wheels: pip install {nvrtc.missing()}" if nvrtc.missing() else None


def version() -> str:
    """CuPy's, and whether the pretend device was tried with it."""
    found = next(
        (metadata.version(name) for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy") if find_spec("cupy") and _installed(name)),
        "of unknown version",
    )
    return f"CuPy {found}" + ("" if found == TRIED else f", where the pretend device was tried with {TRIED}")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def install() -> None:
    """Let CuPy, which this process has not imported yet, find the pretend device.

    Raises
    ------
    hooks.Changed
        If CuPy is not built as it was when this was written.
    """
    from tests.cuda.pretend import hooks

    hooks.install(version())
