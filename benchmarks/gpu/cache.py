"""Compiles every kernel that `benchmarks.gpu.run` launches into CuPy's cache, on all processors: `make gpu-cache CACHE=...`.

A machine without a GPU can do this for a machine with one, if NVRTC and the chip are the same. It uses the tests' pretend H200.
On the other machine CUPY_CACHE_DIR then names the folder.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from itertools import product
from typing import Any

from benchmarks.gpu.times import SMALL, Sizes
from fastlstm.kernels.device import cuda
from fastlstm.kernels.device import forms as device_forms
from fastlstm.kernels.device.layout import DTYPES
from fastlstm.kernels.device.persistent import Chip
from tests.support import cases

Kernels = dict[tuple[str, tuple[str, ...]], None]  # file and macros, in the order in which they are needed


def _add(found: Kernels, chip: Chip, cell: str, dtype: str, hidden: int, rows: int, waves: bool) -> None:
    for backward in (False, True):
        shape = (cell, backward, dtype, hidden, rows, chip)
        for one in (*device_forms.estimates(*shape), *([device_forms.wave(*shape)] if waves else [])):
            if one is not None and one.plan is not None:
                found[one.plan.file, one.plan.macros] = None


def wanted(sizes: Sizes, chip: Chip) -> list[tuple[str, tuple[str, ...]]]:
    """Return (file, macros) of all kernels: first the general ones, then those of the shapes in order, then of the checks'
    cases.
    """
    dtypes = sizes.precisions if sizes == SMALL else (*sizes.precisions, "float64")
    used = {DTYPES[dtype][0] for dtype in dtypes}
    found: Kernels = {(path.stem, macros): None for path, macros in cuda.variants() if macros in used}
    for cell, dtype in product(sizes.cells, sizes.precisions):
        _add(found, chip, cell, dtype, sizes.hidden, sizes.rows, True)
    for dtype in sizes.precisions:
        _add(found, chip, "lstm", dtype, min(sizes.hidden, 64), sizes.rows, False)  # a block alone
    for cell, hidden, rows, _, dtype in sizes.shapes().values():
        _add(found, chip, cell, dtype, hidden, rows, True)
    for kind, dtype in product(cases.KINDS, sizes.precisions):
        for case in cases.CASES[kind][: min(6, sizes.cases)]:
            hidden = max(case.hidden, 12) if dtype in cases.COARSE else case.hidden
            _add(found, chip, case.cell, dtype, hidden, case.batch, case.layers > 1)
    return list(found)


def compile_part(sizes: Sizes, part: int, parts: int) -> int:
    """Compile every `parts`-th kernel, beginning with number `part`; return how many these are."""
    device = cuda.device(0)
    chosen = wanted(sizes, device.chip)[part::parts]
    for file, macros in chosen:
        device._module(file, macros).compile()
    return len(chosen)


class Compiling:
    """Compiles all parts in the background, each in a process of its own."""

    def __init__(self, small: bool, log: Any = None) -> None:
        count = len(os.sched_getaffinity(0))
        command = [sys.executable, "-m", "benchmarks.gpu.cache", *(["--small"] if small else []), "--part"]
        self._processes = [subprocess.Popen([*command, str(k), str(count)], stdout=log, stderr=log) for k in range(count)]

    def wait(self, until: float = math.inf) -> bool:
        """Wait until everything is compiled, or until that time of the monotonic clock; return whether it is."""
        for process in self._processes:
            try:
                process.wait(None if until == math.inf else max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
        return all(process.returncode == 0 for process in self._processes)

    def end(self) -> None:
        """Stop. Kernels that are not compiled yet will be compiled at their first launch."""
        for process in self._processes:
            process.kill()
            process.wait()


def main() -> int:
    """Compile all kernels or a part of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the kernels of tiny shapes")
    parser.add_argument("--part", type=int, nargs=2, metavar=("NUMBER", "OF"), help="only this part, in this process")
    o = parser.parse_args()
    if o.part:
        print(f"{compile_part(SMALL if o.small else Sizes(), *o.part)} kernels compiled")
        return 0
    return 0 if Compiling(o.small).wait() else 1


if __name__ == "__main__":
    sys.exit(main())
