"""A process that runs trials of one part: for the runner, or by hand to repeat some.

    python -m tests.campaign.worker PART SEED ...

Knows a part's `prepare` and `trial`; nothing of turns, of other parts or of what failures are.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import random
import resource
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PREPARE = "prepare"  # a request of the runner; others are seeds


class Reply(NamedTuple):
    """What became of a request."""

    trials: int
    error: str  # a traceback, or empty
    memory: float  # the most that this process has held so far, MiB


def part(name: str) -> ModuleType:
    """The module of a part: a name in this folder, or one with dots from anywhere."""
    return importlib.import_module(name if "." in name else f"tests.campaign.{name}")


def memory() -> float:
    """The most memory that this process has held, MiB: `ru_maxrss` would begin at what its parent held."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def prepare(module: ModuleType, folder: Path) -> int:
    """Make what the part's trials need."""
    if hasattr(module, "prepare"):
        module.prepare(folder)
    return 0


def trial(module: ModuleType, folder: Path, seed: int) -> int:
    """Run the trials of a seed; returns how many they were."""
    count = module.trial(random.Random(f"{module.NAME} {seed}"), folder)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"trial returned {count!r}; expected how many trials it did")
    return count


def attempt(act: Callable[[], int]) -> Reply:
    """Do it; whatever it raises is a failure, an exit as well."""
    try:
        return Reply(act(), "", memory())
    except BaseException:
        return Reply(0, traceback.format_exc(limit=-8), memory())


def serve(module: ModuleType, folder: Path, pipe: Connection) -> None:
    """Answer the runner's requests until it sends None."""
    pipe.send((0, "", memory()))
    for request in iter(pipe.recv, None):
        act = partial(prepare, module, folder) if request == PREPARE else partial(trial, module, folder, request)
        pipe.send(tuple(attempt(act)))


def repeat(module: ModuleType, seeds: Sequence[int]) -> int:
    """Run seeds one after the other; returns how many of them failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(module, Path(folder))
        for seed in seeds:
            reply = attempt(partial(trial, module, Path(folder), seed))
            failed += bool(reply.error)
            print(f"{module.NAME} {seed}: {reply.error or f'{reply.trials} trials passed'}", flush=True)
    return failed


def main() -> int:
    """Run the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.worker", description="Run seeds of a part again.")
    parser.add_argument("part")
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED")
    parser.add_argument("--serve", nargs=2, metavar=("FOLDER", "PIPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module = part(options.part)
    if not options.serve:
        return min(repeat(module, options.seeds), 1)
    folder, pipe = options.serve
    with Connection(int(pipe)) as connection:
        serve(module, Path(folder), connection)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
