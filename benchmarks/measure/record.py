"""Where measurements are kept: benchmarks/results/NAME.json with the machine and the versions that they belong to."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import fastlstm
from benchmarks.measure import distance
from fastlstm.runtime import info

RESULTS = Path(__file__).parent.parent / "results"
DISTURBED = 0.1  # of a processor, taken by others
PEERS = ("jax", "keras", "thinc")  # whose versions belong to records of the suite too


def versions(*more: str) -> dict[str, str]:
    """Versions of what takes part, `more` packages among it."""
    found = {"python": platform.python_version(), "fastlstm": fastlstm.__version__}
    for package in ("numba", "llvmlite", "numpy", "torch", "onnxruntime", *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The machine that a result belongs to."""
    found = info.describe()
    return {key: found[key] for key in ("processor", "llvm_processor", "in_use", "threads")} | {"system": platform.system()}


def elsewhere() -> float:
    """Seconds of processor time that all but this process and its children have taken since the start; 0 where unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except OSError:
        return 0.0
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


class Record:
    """Measurements by section and point; the file is rewritten after each, so that a run may be cut.

    A point during which others took more than a tenth of a processor is said to be disturbed, here and in the file; which has
    also how far apart two threads were, in nanoseconds, before the point or after it, whichever is more.

    Parameters
    ----------
    name : str, optional
        Of the file under benchmarks/results; None keeps the measurements in memory.
    resume : bool
        Points that the file holds already count as done.
    more : sequence of str
        Packages whose versions belong to the measurements too.
    timed : bool
        Whether times are measured, which must not stand in one table with those of another machine or other versions. What
        is not timed may, if `signed`.

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
        """An entry with this machine and its versions where those are not the file's."""
        return entry | self._here

    def mark(self) -> None:
        """From now on, others' use of the processors counts against the next point."""
        self._distance = distance.nanoseconds() if self._timed else None
        self._since = time.perf_counter(), elsewhere()

    def share(self) -> float:
        """Others' use of the processors since the mark; 1 is one processor."""
        return (elsewhere() - self._since[1]) / (time.perf_counter() - self._since[0])

    def circumstances(self, name: str) -> float:
        """Keep under a point's name what was the matter since the mark; returns the others' share."""
        share, before = self.share(), self._distance
        for key in ("disturbed", "apart"):
            self.content.setdefault(key, {}).pop(name, None)
        if share > DISTURBED:
            self.content["disturbed"][name] = round(share, 2)
        if before is not None:
            self.content["apart"][name] = round(max(before, distance.nanoseconds() or 0))
        return share

    def section(self, name: str) -> dict[str, Any]:
        """The points of a section."""
        section: dict[str, Any] = self.content["results"].setdefault(name, {})
        return section

    def done(self, section: str, point: str) -> bool:
        """Whether a point need not be measured again."""
        return self.resume and point in self.section(section)

    def put(self, section: str, point: str, value: Any) -> None:
        """Keep a point, in the file too if there is one."""
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
