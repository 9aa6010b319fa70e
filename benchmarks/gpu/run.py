"""Measures a GPU in ten minutes: `python -m benchmarks.gpu.run FOLDER` (`make gpu FOLDER=...`).

benchmarks/gpu/points.py has the measurements in their order: the most important ones of the first minute, times at the
article's shape, CPU time / GPU time, a grid of shapes, then full checks. Each section runs in a process of its own, and so do
each form's first launches. If a point fails or takes too long, its process ends, but only this point is lost. A form that fails
counts as broken in that precision, a form that hangs in all of them. Broken forms are not used any more, and later points name
them under "conditions".

FOLDER gets gpu-MACHINE-DATE.json, which is rewritten after every point, the table at the end of the run as .txt, and the output
of the processes as .log. In the meantime all processors compile the kernels that are not in CuPy's cache
(benchmarks/gpu/cache.py); times are measured after that. Copy the .json into benchmarks/results: the report uses the newest.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import selectors
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import cache, forms
from benchmarks.gpu.points import SECTIONS, Point, points
from benchmarks.gpu.times import SMALL, Sizes

TIMED = ("step", "layers", "ratios", "forms", "waves")
START = 120.0  # seconds until a process must be ready
COMPILING = 150.0  # seconds that times wait for the kernels


class Lost(Exception):
    """A process has ended. `hung` is true if it was killed because it took too long."""

    def __init__(self, text: str, hung: bool) -> None:
        super().__init__(text)
        self.hung = hung


class Worker:
    """A process that measures points and can be killed."""

    def __init__(self, small: bool, log: Any) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu.points", *(["--small"] if small else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self._ready = False

    def ask(self, point: Point, limit: float) -> dict[str, Any]:
        """Return a point's result.

        Raises
        ------
        Lost
            If the process ended, or was killed after `limit` seconds.
        """
        if not self._ready:
            self._line(START)
            self._ready = True
        question = {"section": point.section, "name": point.name, "broken": sorted(forms.broken)}
        with contextlib.suppress(BrokenPipeError):  # the process has ended; reading from it will raise Lost
            print(json.dumps(question), file=self._questions, flush=True)
        found: dict[str, Any] = json.loads(self._line(limit))
        return found

    def _line(self, limit: float) -> str:
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            if not selector.select(limit):
                self.end()
                raise Lost(f"ended after {limit:.0f} s", hung=True)
        line = self._answers.readline()
        if not line:
            raise Lost(f"the process ended with {self._process.wait()}", hung=False)
        return line

    def end(self) -> None:
        """Kill the process, and the processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Results:
    """The results; they are in the folder from the first point on."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._date = folder, datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M%S")
        self._stem = f"gpu-{self._date}"
        self.content: dict[str, Any] = {"date": self._date, "results": {"machine": {"device": {}}}}
        self.lines: list[str] = []
        self.failed: list[str] = []
        self.log = self._path("log").open("w")

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._stem}.{suffix}"

    def put(self, point: Point, result: dict[str, Any]) -> None:
        """Store a point, and print it."""
        if point.name == "versions" and "device" in result:
            self._name(result)
        self.content["results"].setdefault(point.section, {})[point.name] = result
        self.lines.append(line(point.section, point.name, result))
        if "failed" in result:
            self.failed.append(self.lines[-1])
        print(self.lines[-1], flush=True)
        self.save()

    def _name(self, versions: dict[str, Any]) -> None:
        """Rename the files by the machine, as soon as it is known."""
        before = {suffix: self._path(suffix) for suffix in ("log", "json")}
        self.content["results"]["machine"]["device"] = versions
        self._stem = f"gpu-{re.sub('[^a-z0-9]+', '-', versions['device'].lower()).strip('-')}-{self._date}"
        for suffix, path in before.items():
            if path.exists():
                path.rename(self._path(suffix))

    def save(self) -> None:
        """Write the file; it is never half-written."""
        draft = self._path("tmp")
        draft.write_text(json.dumps(self.content, indent=1) + "\n")
        draft.replace(self._path("json"))

    def end(self, skipped: list[Point]) -> str:
        """Write and return the short table."""
        timed = self.content["results"].get("layers", {})
        told = [text for text in self.lines if text.split()[0] in ("step", "ratios") or "WRONG" in text]
        left = [f"not reached: {point.section} {point.name}" for point in skipped]
        broken = [f"broken: {form} form in {dtype}" for form, dtype in sorted(forms.broken)]
        text = "\n".join(
            [
                f"{len(self.lines)} points, {len(self.failed)} failed",
                *told,
                *means(timed),
                *self.failed,
                *broken,
                *left[:5],
                *([f"and {len(left) - 5} more"] if len(left) > 5 else []),
            ]
        )
        self._path("txt").write_text(text + "\n")
        self.log.close()
        return text


def means(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return, for the grid of shapes in each precision, the geometric mean and the smallest of forward+backward's speed-ups."""
    lines = []
    for dtype in ("float32", "bfloat16"):
        ways = [results.get(forms.name(*shape, dtype), {}).get("forward+backward", {}) for shape in forms.GRID]
        found = [way["speedup"] for way in ways if "speedup" in way]
        if found:
            mean = f"geometric mean {statistics.geometric_mean(found):.2f}x, least {min(found):.2f}x of torch.nn"
            lines.append(f"layers {dtype}: {len(found)} of {len(forms.GRID)} shapes, {mean}")
    return lines


def times(found: dict[str, float], of: str = "") -> str:
    """Return milliseconds, and the speed-up if torch was timed."""
    speedup = found.get(f"speedup{of}")
    return f"{found[f'fastlstm{of}']:8.3f} ms" + (f" {speedup:5.2f}x" if speedup else "")


def line(section: str, name: str, result: dict[str, Any]) -> str:
    """Return a point as one line."""
    text = str(result)[:110]
    if "failed" in result:
        text = f"FAILED: {result['failed'].strip().splitlines()[-1][:160]}"
    elif "left out" in result:
        text = f"left out: {result['left out'][:150]}"
    elif section == "layers":
        text = "   ".join(f"{way} {times(found)}" for way, found in result.items() if way != "conditions")
    elif section == "step":
        text = f"{times(result)}   unread {times(result, ' unread')}"
    elif section == "ratios":
        text = f"CPU {result['cpu']:.2f} ms / GPU {result['cuda']:.3f} ms = {result['ratio']:.2f}, article {result['article']}"
    elif section == "forms":
        pairs = {form: (way["forward"]["us per step"], way["backward"]["us per step"]) for form, way in result["forms"].items()}
        lost = max((way.get("lost", 1.0) for way in result["choices"].values()), default=1.0)
        text = "  ".join(f"{form} {forward:.2f}+{backward:.2f} us" for form, (forward, backward) in pairs.items())
        text += f"  WRONG CHOICE {lost:.2f}x" if lost > 1.1 else ""
    elif section == "waves":
        pairs_of = [(kind, result["one by one"][kind] / result["at once"][kind]) for kind in ("inference", "forward+backward")]
        text = "   ".join(f"{kind} at once {result['at once'][kind]:8.3f} ms {gain:5.2f}x" for kind, gain in pairs_of)
        wrong = (pairs_of[0][1] > 1) != result["chosen at once"]["forward"] and not 0.9 < pairs_of[0][1] < 1.1
        text += "  WRONG CHOICE" if wrong else ""
    return f"{section:9} {name:36} {text}"


def conditions() -> dict[str, str]:
    """Return what changes the choice of forms, under "conditions"; empty if nothing does."""
    asked = os.environ.get(forms.VARIABLE)
    kept = [f"without the broken form {form} in {dtype}" for form, dtype in sorted(forms.broken)]
    kept += [f"{forms.VARIABLE}={asked}"] if asked else []
    return {"conditions": ", ".join(kept)} if kept else {}


def measure(listed: list[Point], results: Results, until: float, limit: float | None, small: bool) -> list[Point]:
    """Measure every point in its process; return those for which there was no time left."""
    compiling, spare = cache.Compiling(small, results.log), Worker(small, results.log)
    worker: Worker | None = None
    process, compiled = "", time.monotonic() + COMPILING
    try:
        for number, point in enumerate(listed):
            if point.section in TIMED:
                compiling.wait(min(compiled, until))
            left = until - time.monotonic()
            if left <= 0:
                return listed[number:]
            if (point.form, point.dtype) in forms.broken:
                results.put(point, {"left out": "broken"})
                continue
            if worker is None or process != point.process:
                if worker is not None:
                    worker.end()
                worker, process, spare = spare, point.process, Worker(small, results.log)  # it imports in the meantime
            about, allowed = conditions(), limit if limit and point.form else point.limit
            try:
                result = worker.ask(point, min(allowed, left))
            except Lost as error:
                if error.hung and left < allowed:
                    return listed[number:]
                result, worker = {"failed": str(error)}, None
                if error.hung and point.form:
                    forms.broken.update((point.form, dtype) for dtype in forms.PRECISIONS)
            if "failed" in result and point.form:
                forms.broken.add((point.form, point.dtype))
            if "failed" in result and worker is not None:  # after an error of a GPU a process cannot go on
                worker.end()
                worker = None
            results.put(point, result | about)
            if "failed" in result and point.name == "versions":  # there is no GPU
                return listed[number + 1 :]
    finally:
        for one in (spare, worker, compiling):
            if one is not None:
                one.end()
    return []


def main() -> int:
    """Measure the sections, and write the results into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the results")
    usual = [section for section in SECTIONS if section != "sanitize"]
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=usual)
    parser.add_argument("--sanitize", action="store_true", help="run compute-sanitizer too, at the end")
    parser.add_argument("--minutes", type=float, default=9.5, help="begin no point after so many minutes")
    parser.add_argument("--limit", type=float, help="longest time of a form's points in seconds, instead of 30 and 60")
    parser.add_argument("--small", action="store_true", help="tiny shapes: to see whether everything runs")
    o = parser.parse_args()
    sections = (*o.section, *(("sanitize",) if o.sanitize else ()))
    results = Results(o.folder)
    until = time.monotonic() + 60 * o.minutes
    skipped = measure(points(SMALL if o.small else Sizes(), sections), results, until, o.limit, o.small)
    print(f"\n{results.end(skipped)}")
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
