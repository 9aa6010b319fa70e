"""Compares the speed of two commits in some minutes: `python -m benchmarks.speed.compare [BEFORE [AFTER]] [--cases WORD ...]`.

Both commits are checked out and installed in a temporary folder, each with its own kernel cache. Each runs in its own process,
which waits while the other one measures. Blocks of calls alternate in the order A B, B A, so that a drift of the machine's
clock affects both; a case's ratio is the median over pairs of blocks. The benchmarks are those of this checkout in both, so
that only fastlstm and its kernels differ.

BEFORE is HEAD~1 by default, AFTER is HEAD; "." is the working tree with its changes. If the median of a case grew by more than
a tenth, the case is marked, and the command exits with 1. If the quartiles lie on both sides of that limit, the case is
measured for longer; if they still do, it is marked as uncertain. With --save the results go to pytest-benchmark's storage,
.benchmarks, where `pytest-benchmark compare --group-by=name` finds them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure.alternate import REST

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 0.1  # a time that grew by more than this is a regression
CELLS = ("lstm", "gru", "rnn")


def cases() -> dict[str, Callable[[], Callable[[], Any]]]:
    """Return the cases by name, each with a function that makes the function to time.

    The cases are the article's model, small layers and single steps.
    """
    import numpy as np

    import fastlstm
    from benchmarks.peers import layers
    from benchmarks.peers.layers import ARTICLE, Shape

    def step(shape: Shape) -> Callable[[], Any]:
        stream, x = fastlstm.Stream(shape.layer()), np.ones(shape.inputs[0], np.float32)
        return lambda: stream(x)

    def call(shape: Shape) -> Callable[[], Any]:
        layer, x = shape.layer(), np.ones((1, 1, shape.inputs[0]), np.float32)
        return lambda: layer(x)

    found: dict[str, Callable[[], Callable[[], Any]]] = {}
    for cell in CELLS:
        found[f"training step {cell}"] = partial(layers.article_step, cell)
        for shape in (ARTICLE.shape(cell), Shape(cell, 64, 8), Shape(cell, 256, 1)):
            found[f"forward+backward {shape}"] = partial(layers.alone, layers.training, shape, "fastlstm")
            found[f"inference {shape}"] = partial(layers.alone, layers.inference, shape, "fastlstm")
        small = Shape(cell, 64, 1, 1, 1, 32)
        found[f"one step {small}"] = partial(step, small)
        found[f"a layer called for one step {small}"] = partial(call, small)
    return found


def serve() -> None:
    """Serve as the process of one commit: for each line ``[case, calls]`` write a line with the seconds or the error.

    With zero calls the case is made, and its second call is timed. A new case replaces the one before.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # other output must not be mixed with answers
    known, name, function = cases(), "", None
    print(json.dumps({"cases": list(known)}), file=answers, flush=True)
    for line in sys.stdin:
        case, calls = json.loads(line)
        try:
            if case != name or function is None:
                function, name = known[case](), case
                function()
            elif calls:
                function()  # wakes the threads
            begin = time.perf_counter()
            for _ in range(max(1, calls)):
                function()
            answer: dict[str, Any] = {"seconds": (time.perf_counter() - begin) / max(1, calls)}
        except Exception as error:  # an older commit may not have what a case needs
            function, answer = None, {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Side:
    """One of the two commits, installed, with its process.

    Parameters
    ----------
    revision : str
        A revision as git understands it, or "." for the working tree.
    folder : Path
        An empty folder for the installation, the checkout and the kernel cache.
    """

    def __init__(self, revision: str, folder: Path) -> None:
        self.revision, self.tree, site = revision, ROOT, folder / "site"
        if revision != ".":
            self.tree = folder / "tree"
            git("worktree", "add", "--quiet", "--detach", str(self.tree), revision)
        try:
            self.commit = git("rev-parse", "HEAD", cwd=self.tree)
            self.about = git("log", "-1", "--format=%h %s", cwd=self.tree) + (" + changes" if revision == "." else "")
            source = self.tree if revision != "." else copied(folder / "copy")
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*install, "--no-build-isolation", "--target", str(site), str(source)], check=True)
        except BaseException:
            self.remove()
            raise
        variables = {
            "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))),
            "FASTLSTM_CACHE": str(folder / "cache"),
            "FASTLSTM_QUIET": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.speed.compare", "--serve"],
            cwd=folder,
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.cases: list[str] = self.read()["cases"]

    def read(self) -> dict[str, Any]:
        """Return the next answer of the process."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"the process of {self.about} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def time(self, case: str, calls: int) -> float:
        """Return the seconds per call; raise RuntimeError if this commit cannot run the case."""
        print(json.dumps([case, calls]), file=self.process.stdin, flush=True)
        answer = self.read()
        if "error" in answer:
            raise RuntimeError(f"{self.about}: {answer['error']}")
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process and remove the worktree."""
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()
        self.remove()

    def remove(self) -> None:
        """Remove the worktree."""
        if self.tree != ROOT:
            git("worktree", "remove", "--force", str(self.tree))


def git(*arguments: str, cwd: Path = ROOT) -> str:
    """Return what git prints."""
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def copied(folder: Path) -> Path:
    """Copy the working tree without built or ignored files, so that the installation leaves nothing behind in it."""
    for name in git("ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@contextlib.contextmanager
def both(before: str, after: str) -> Iterator[tuple[Side, Side]]:
    """Return the two sides, ready to measure, in a temporary folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="compare-") as name, contextlib.ExitStack() as stack:
        sides = []
        for revision, part in ((before, "before"), (after, "after")):
            (Path(name) / part).mkdir()
            sides.append(Side(revision, Path(name) / part))
            stack.callback(sides[-1].close)
        yield sides[0], sides[1]


def pairs(before: Side, after: Side, case: str, blocks: int, seconds: float) -> list[tuple[float, float]]:
    """Return the seconds per call of both sides in each pair of blocks."""
    found, calls = [], 1
    for side in (before, after):
        calls = max(calls, round(seconds / side.time(case, 0)))
    for k in range(blocks):
        times = {}
        for side in (before, after) if k % 2 == 0 else (after, before):
            time.sleep(REST)
            times[side.revision, side is after] = side.time(case, calls)
        found.append((times[before.revision, False], times[after.revision, True]))
    return found


def judged(found: list[tuple[float, float]]) -> dict[str, Any]:
    """Return the medians, the ratio with its quartiles, and the verdict."""
    ratios = sorted(b / a for a, b in found)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    ratio = statistics.median(ratios)
    word = "REGRESSION" if ratio > 1 + LIMIT else "faster" if ratio < 1 / (1 + LIMIT) else ""
    if low < 1 + LIMIT < high or low < 1 / (1 + LIMIT) < high:
        word = f"{word}, uncertain".removeprefix(", ")
    a, b = (statistics.median(times) for times in zip(*found, strict=True))
    return {"before": a, "after": b, "ratio": ratio, "quartiles": [low, high], "word": word, "blocks": found}


def store(folder: Path, side: Side, which: int, results: dict[str, Any]) -> Path:
    """Store one side's blocks as pytest-benchmark stores a run, under the next free number."""
    from pytest_benchmark.stats import Stats
    from pytest_benchmark.utils import get_commit_info, get_machine_id

    benchmarks = []
    for case, one in results.items():
        if "blocks" in one:
            stats = Stats()
            for pair in one["blocks"]:
                stats.update(pair[which])
            fixed: dict[str, Any] = {"group": None, "params": None, "param": None, "extra_info": {}, "options": {}}
            benchmarks.append(fixed | {"name": case, "fullname": case, "stats": stats.as_dict() | {"iterations": 1}})
    about = {"machine_info": {"node": platform.node(), "machine": platform.machine()}, "version": version("pytest-benchmark")}
    now = datetime.now(UTC).isoformat()
    content = about | {"commit_info": get_commit_info() | {"id": side.commit}, "datetime": now, "benchmarks": benchmarks}
    place = folder / get_machine_id()
    place.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.name[:4]) for path in place.glob("[0-9][0-9][0-9][0-9]_*.json")), default=0)
    path = place / f"{number:04}_{('before', 'after')[which]}-{side.commit[:8]}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def line(case: str, one: dict[str, Any]) -> str:
    """Return a case as one line."""
    if "failed" in one:
        return f"{case:44} not comparable: {one['failed']}"
    low, high = one["quartiles"]
    times = f"{one['before'] * 1e3:11.4f}{one['after'] * 1e3:11.4f}"
    return f"{case:44}{times}{one['ratio']:8.3f}  {low:.3f}-{high:.3f}  {one['word']}".rstrip()


def main() -> int:
    """Measure and print; return 1 if a case became slower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", default="HEAD~1")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--cases", nargs="+", metavar="WORD", help="only cases that contain one of these")
    parser.add_argument("--blocks", type=int, default=10, help="pairs of blocks of each case")
    parser.add_argument("--seconds", type=float, default=0.2, help="about how long a block lasts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument("--save", action="store_true", help="keep both sides in pytest-benchmark's storage")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.serve:
        serve()
        return 0
    results: dict[str, Any] = {}
    with both(o.before, o.after) as (before, after):
        print(f"before: {before.about}\nafter:  {after.about}\n")
        print(f"{'':44}{'before, ms':>11}{'after, ms':>11}{'ratio':>8}  quartiles", flush=True)
        for case in before.cases:
            if o.cases and not any(word in case for word in o.cases):
                continue
            try:
                found = pairs(before, after, case, o.blocks, o.seconds)
                if "uncertain" in judged(found)["word"]:
                    found += pairs(before, after, case, 2 * o.blocks, o.seconds)
                results[case] = judged(found)
            except RuntimeError as error:
                results[case] = {"failed": str(error)}
            print(line(case, results[case]), flush=True)
        content = {"before": before.about, "after": after.about, "results": results}
        if o.save:
            print(*(store(ROOT / ".benchmarks", side, k, results) for k, side in enumerate((before, after))), sep="\n")
    if o.json:
        o.json.write_text(json.dumps(content, indent=1) + "\n")
    slower = [case for case, one in results.items() if "REGRESSION" in one.get("word", "")]
    failed = [case for case, one in results.items() if "failed" in one]
    print(f"\n{len(results)} cases, {len(slower)} slower by more than {LIMIT:.0%}, {len(failed)} not comparable")
    print(*(line(case, results[case]) for case in slower), sep="\n")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
