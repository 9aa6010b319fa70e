"""Stores measurements in benchmarks/results/NAME.json, with the machine and the versions that they belong to."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import fastlstm
from benchmarks.measure import distance
from fastlstm.runtime import info

RESULTS = Path(__file__).parent.parent / "results"
GPU_FILE = re.compile(r"gpu-.+-(\d{4}-\d\d-\d\d-\d{6})")
DISTURBED = 0.1  # share of a processor that other processes take
PEERS = ("jax", "keras", "thinc")  # packages whose versions the suite's records have too


def gpu_files(folder: Path) -> list[Path]:
    """Return the files gpu-MACHINE-DATE.json in a folder, which `make gpu` writes, the newest first."""
    dated = {path: found[1] for path in folder.glob("gpu-*.json") if (found := GPU_FILE.fullmatch(path.stem))}
    return sorted(dated, key=lambda path: dated[path], reverse=True)


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that take part, with `more` packages."""
    found = {"python": platform.python_version(), "fastlstm": fastlstm.__version__}
    for package in ("numba", "llvmlite", "numpy", "torch", "onnxruntime", *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the machine that results of this process belong to."""
    found = info.describe()
    return {key: found[key] for key in ("processor", "llvm_processor", "in_use", "threads")} | {"system": platform.system()}


def elsewhere() -> float:
    """Return the processor seconds of all other processes since the machine started, but for children; 0 if unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except OSError:
        return 0.0
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


class Record:
    """Measurements by section and point. The file is rewritten after each point, so a run may be stopped at any time.

    If other processes took more than a tenth of a processor during a point, the point is reported as disturbed, and the file
    says so. The file also has the distance of two threads in nanoseconds, before or after the point, whichever is more.

    Parameters
    ----------
    name : str, optional
        Name of the file in benchmarks/results; None keeps the measurements in memory.
    resume : bool
        Whether points that are in the file count as done.
    more : sequence of str
        Further packages whose versions are stored.
    timed : bool
        Whether times are measured. Times of two machines or versions must not be in one file; other measurements may, if they
        are `signed`.

    Raises
    ------
    SystemExit
        If the file's times are of another machine or other versions.
    """

    def __init__(self, name: str | None = None, resume: bool = False, more: Sequence[str] = (), *, timed: bool = True) -> None:
        self.path = RESULTS / f"{name}.json" if name else None
        self.resume = resume
        here = {"machine": machine(), "versions": versions(*more)}
        self.content: dict[str, Any] = here | {"results": {}}
        if self.path and self.path.exists():
            self.content = json.loads(self.path.read_text())
        self._timed = timed
        self._here = {} if all(self.content[key] == value for key, value in here.items()) else here
        if self._here and timed:
            raise SystemExit(f"{self.path} is of another machine or other versions: remove it, or give another name")
        self.mark()

    def signed(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return an entry, with this machine and its versions if they are not the file's."""
        return entry | self._here

    def mark(self) -> None:
        """Begin to count how much other processes use the processors, for the next point."""
        self._distance = distance.nanoseconds() if self._timed else None
        self._since = time.perf_counter(), elsewhere()

    def share(self) -> float:
        """Return how much other processes used the processors since the mark; 1 is one processor."""
        return (elsewhere() - self._since[1]) / (time.perf_counter() - self._since[0])

    def circumstances(self, name: str) -> float:
        """Store for a point how disturbed it was and how far apart threads were; return the share of other processes."""
        share, before = self.share(), self._distance
        for key in ("disturbed", "apart"):
            self.content.setdefault(key, {}).pop(name, None)
        if share > DISTURBED:
            self.content["disturbed"][name] = round(share, 2)
        if before is not None:
            self.content["apart"][name] = round(max(before, distance.nanoseconds() or 0))
        return share

    def section(self, name: str) -> dict[str, Any]:
        """Return the points of a section."""
        section: dict[str, Any] = self.content["results"].setdefault(name, {})
        return section

    def done(self, section: str, point: str) -> bool:
        """Return whether a point need not be measured again."""
        return self.resume and point in self.section(section)

    def put(self, section: str, point: str, value: Any) -> None:
        """Store a point, and write the file if there is one."""
        self.section(section)[point] = value
        share = self.circumstances(f"{section}: {point}")
        if share > DISTURBED:
            print(f"disturbed: others took {share:.0%} of a processor during {section}: {point}", flush=True)
        self.mark()
        self.save()

    def save(self) -> None:
        """Write the file, if there is one."""
        if self.path:
            self.path.parent.mkdir(exist_ok=True)
            draft = self.path.with_suffix(".tmp")
            draft.write_text(json.dumps(self.content, indent=1) + "\n")
            os.replace(draft, self.path)
