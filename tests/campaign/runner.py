"""Deals the seeds of all parts to worker processes and keeps account of what became of them.

Knows processes, time and how a trial can end; nothing of what trials do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.campaign import worker

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 10.0  # seconds that a trial may take, if its part says nothing else
START = 300.0  # to import, and to prepare
END = 20.0  # to leave
LONGEST, SHORTEST = 30.0, 2.0  # seconds that a worker stays at a part, where nobody says how long
SPACING = 10**9  # from the seeds of one campaign to those of the next
TEXT = 4000  # characters of a failure that are kept


class Stopped(Exception):
    """The campaign's time was over before a worker answered."""


@dataclass
class Failure:
    """A trial that did not pass."""

    part: str
    kind: str  # crash, hang or failure
    seed: int | None  # None: before or after all trials
    text: str
    before: list[int] = field(default_factory=list)  # seeds that the same process had run

    @property
    def command(self) -> str:
        """What repeats it: the seed, or all seeds of a process that failed at its end."""
        seeds = self.before if self.seed is None else [self.seed]
        return " ".join(["python -m tests.campaign.worker", self.part, *map(str, seeds)])


@dataclass
class Tally:
    """How far a part is."""

    part: str
    target: int
    limit: float
    first: int  # seed
    dealt: int = 0  # seeds
    running: int = 0  # workers
    turns: int = 0  # that are over
    trials: int = 0
    seconds: float = 0.0  # of all workers together
    memory: float = 0.0  # the most that a worker held, MiB
    growth: float = 0.0  # and from its first trial on
    broken: bool = False  # it cannot start
    failures: list[Failure] = field(default_factory=list)

    @property
    def share(self) -> float:
        """How much of it will be done when the turns under way are over."""
        return (self.trials + self.running * self.trials / max(1, self.turns)) / self.target


class Worker:
    """A process for trials of a part, with a folder of its own and a group of its own, all of which ends with it."""

    def __init__(self, part: str, base: Path | None = None, stop: Callable[[], bool] = lambda: False) -> None:
        self.part, self.stop, self.ran = part, stop, list[int]()
        self.folder = tempfile.mkdtemp(prefix="fastlstm-campaign-")
        work = Path(self.folder, "work")
        shutil.copytree(base, work) if base else work.mkdir()
        self.log = open(Path(self.folder, "log"), "a+", errors="replace")  # noqa: SIM115
        self.pipe, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-m", "tests.campaign.worker", part, "--serve", str(work), str(theirs.fileno())]
        # Without coverage, which traces as trials do, and whose lock an interrupt can leave taken.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "COV_"))}
        paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env=kept | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0", "FASTLSTM_QUIET": "1"},
        )
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, request: int | str, limit: float) -> worker.Reply | Failure:
        """Send a request and wait for its reply."""
        seed = request if isinstance(request, int) else None
        self.log.truncate(0)
        with contextlib.suppress(BrokenPipeError):  # of a process that is gone; `reply` says how
            self.pipe.send(request)
        found = self.reply(limit, seed)
        if seed is not None:
            self.ran.append(seed)
        return found

    def reply(self, limit: float, seed: int | None = None) -> worker.Reply | Failure:
        """What the process answers, or how it failed to.

        Raises
        ------
        Stopped
            If the campaign's time is over first.
        """
        end = time.monotonic() + limit
        with contextlib.suppress(EOFError, ConnectionResetError):
            while time.monotonic() < end:
                if self.stop():
                    raise Stopped
                if self.pipe.poll(0.1):
                    reply = worker.Reply(*self.pipe.recv())
                    return self._failure("failure", seed, reply.error) if reply.error else reply
                if self.process.poll() is not None and not self.pipe.poll():
                    break  # its children may hold the pipe open
            else:
                self._traces()
                return self._failure("hang", seed, f"no answer within {limit:g} s\n{self._said()}")
        return self._failure("crash", seed, f"{self._end()}\n{self._said()}")

    def leave(self) -> Failure | None:
        """Let the process end by itself, and see that it does."""
        self.pipe.send(None)
        try:
            code = self.process.wait(END)
        except subprocess.TimeoutExpired:
            self._traces()
            return self._failure("hang", None, f"did not end within {END:g} s\n{self._said()}")
        return self._failure("crash", None, f"{self._end()} at its end\n{self._said()}") if code else None

    def _failure(self, kind: str, seed: int | None, text: str) -> Failure:
        text = text.strip()
        return Failure(
            self.part,
            kind,
            seed,
            text if len(text) <= TEXT else f"{text[: TEXT // 2]}\n...\n{text[-TEXT // 2 :]}",
            list(self.ran),
        )

    def _traces(self) -> None:
        """Have a process that hangs say where: faulthandler does as it aborts."""
        self.process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)

    def _end(self) -> str:
        try:
            code = self.process.wait(END)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def _said(self) -> str:
        """What the process wrote since the request, without faulthandler's list of modules."""
        self.log.seek(0)
        return self.log.read().partition("\nExtension modules:")[0]


class Campaign:
    """Trials of some parts, on some workers at a time.

    Parameters
    ----------
    parts : sequence of str
    minutes : float, optional
        After which it ends, done or not.
    seed : int
        Chooses the seeds.
    trials : int, optional
        Of each part, instead of its own number.
    workers : int
    turn : float, optional
        Seconds for which a worker process stays at a part, after which another, fresh one takes over.
    tell : callable
        Is given each failure when it occurs.
    progress : callable
        Is given a tally whenever trials of it are done.
    """

    def __init__(
        self,
        parts: Sequence[str],
        *,
        minutes: float | None = None,
        seed: int = 0,
        trials: int | None = None,
        workers: int = 1,
        turn: float | None = None,
        tell: Callable[[Failure], None] = lambda failure: None,
        progress: Callable[[Tally, int], None] = lambda tally, trials: None,
    ) -> None:
        modules = [worker.part(name) for name in parts]
        self.tallies = [
            Tally(name, trials or module.TRIALS, getattr(module, "LIMIT", LIMIT), seed * SPACING)
            for name, module in zip(parts, modules, strict=True)
        ]
        self.minutes, self.workers, self.tell, self.progress = minutes, workers, tell, progress
        self._lock, self._halted, self.seconds = threading.Lock(), threading.Event(), 0.0
        # Each part comes to its turn several times, so that a campaign that is cut has done the same share of each.
        share = LONGEST if minutes is None else 60 * minutes * workers / (10 * len(parts))
        self._turn = min(LONGEST, max(SHORTEST, share)) if turn is None else turn

    def run(self) -> None:
        """Do it; an interrupt ends it early, with what is known by then."""
        start = time.monotonic()
        self._until = float("inf") if self.minutes is None else start + 60 * self.minutes
        with tempfile.TemporaryDirectory(prefix="fastlstm-campaign-") as base:
            self._base = Path(base)
            try:
                self._prepare()
                with ThreadPoolExecutor(self.workers) as pool:
                    slots = [pool.submit(self._slot) for _ in range(self.workers)]
                    try:
                        for slot in as_completed(slots):
                            slot.result()
                    finally:
                        self._halted.set()
            finally:
                self.seconds = time.monotonic() - start

    def _over(self) -> bool:
        return self._halted.is_set() or time.monotonic() >= self._until

    def _prepare(self) -> None:
        for tally in self.tallies:
            with Worker(tally.part) as process:
                found = self._started(tally, process) and process.ask(worker.PREPARE, START)
                if isinstance(found, Failure):
                    self._note(tally, found)
                    tally.broken = True
                shutil.copytree(Path(process.folder, "work"), self._base / tally.part)

    def _started(self, tally: Tally, process: Worker) -> worker.Reply | None:
        found = process.reply(START)
        if isinstance(found, Failure):
            self._note(tally, found)
            tally.broken = True
            return None
        return found

    def _note(self, tally: Tally, failure: Failure) -> None:
        with self._lock:
            tally.failures.append(failure)
            self.tell(failure)

    def _next(self) -> Tally | None:
        """The part that is furthest behind."""
        with self._lock:
            open_ = [tally for tally in self.tallies if not tally.broken and tally.trials < tally.target]
            if not open_ or self._over():
                return None
            tally = min(open_, key=lambda tally: (tally.share, tally.running))
            tally.running += 1
            return tally

    def _slot(self) -> None:
        """Turn after turn, each a fresh process."""
        while (tally := self._next()) is not None:
            start = time.monotonic()
            try:
                with Worker(tally.part, self._base / tally.part, self._over) as process:
                    self._work(tally, process)
            except Stopped:
                pass
            finally:
                with self._lock:
                    tally.running, tally.turns = tally.running - 1, tally.turns + 1
                    tally.seconds += time.monotonic() - start

    def _work(self, tally: Tally, process: Worker) -> None:
        """One turn, until its time is over, its part is done or a trial fails."""
        if (begun := self._started(tally, process)) is None:
            return
        end = time.monotonic() + self._turn
        while time.monotonic() < end and not self._over():
            with self._lock:
                if tally.trials >= tally.target:
                    break
                seed = tally.first + tally.dealt
                tally.dealt += 1
            found = process.ask(seed, tally.limit)
            if isinstance(found, Failure):
                self._note(tally, found)
                return
            with self._lock:
                tally.trials += found.trials
                tally.memory, tally.growth = max(tally.memory, found.memory), max(tally.growth, found.memory - begun.memory)
                self.progress(tally, found.trials)
        if (failure := process.leave()) is not None:
            self._note(tally, failure)


def parts() -> list[str]:
    """The names of all parts: the modules of this folder that have trials."""
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return [name for name in names if not name.startswith(("_", "test_")) and hasattr(worker.part(name), "TRIALS")]
