"""Disks that fail: nothing that was there is lost, no part of a file is left, and the error names the file and what is wrong.

Calls of the system fail by hooks in Python, by a library preloaded into a process of its own (faults.c, where there is a
compiler), by a limit on the size of files, and because of what is in the way.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastlstm.files.folders import Folder
from fastlstm.training import checkpoint
from tests.campaign import kills

NAME = "disk"
TRIALS = 2000
LIMIT = 60.0

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
KINDS = ("none", "write", "fsync", "rename", "open", "close")  # as in faults.c
HERE = Path(__file__).parent
NEW = {"weight": np.arange(5000, dtype=np.float32)}
_servers: dict[Path, subprocess.Popen[str]] = {}


class Task(NamedTuple):
    """A way to write a file of a folder: its name, what writes it, and what tells whether it holds what it should."""

    file: str
    write: Callable[[Path], object]
    text: Callable[[Path], str]


def _numbers(path: Path) -> str:
    arrays, record = checkpoint.read_checkpoint(path)
    return f"{record} {arrays['weight'].tobytes().hex()}"


def _stored(path: Path) -> str:
    with contextlib.closing(Folder(path.parent)) as folder:
        return folder.read(path.name).hex()


def _store(path: Path) -> None:
    with contextlib.closing(Folder(path.parent)) as folder:
        folder.write(path.name, b"new" * 5000)


TASKS = (
    Task(checkpoint.LAST, lambda path: checkpoint.write_checkpoint(path, NEW, {"new": 1}), _numbers),
    Task(checkpoint.SETTINGS, lambda path: checkpoint.write_json(path, ["new"] * 5000), Path.read_text),
    Task(checkpoint.HISTORY, lambda path: checkpoint.write_lines(path, [{"new": 1}] * 5000), Path.read_text),
    Task("kernel.o", _store, _stored),
)


def prepare(folder: Path) -> None:
    """Old and new contents of every file; the run that nobody disturbs; a process with the preloaded library."""
    for age in ("old", "new"):
        (folder / age).mkdir()
        for task in TASKS:
            task.write(folder / age / task.file)
    checkpoint.write_checkpoint(folder / "old" / checkpoint.LAST, {"weight": np.ones(7)}, {"old": 1})
    checkpoint.write_json(folder / "old" / checkpoint.SETTINGS, ["old"])
    checkpoint.write_lines(folder / "old" / checkpoint.HISTORY, [{"old": 1}])
    (folder / "old" / "kernel.o").write_bytes(b"old")
    kills._train("numbers", folder / "run")
    if library := preloaded(folder):
        _servers[folder] = _server(folder, library)


def trial(rng: random.Random, folder: Path) -> int:
    """One fault while a file is written, or while a model is trained."""
    ways = ["hooks", "limit", "in the way", "another user", *["preloaded"] * 4 * (folder in _servers)]
    way = rng.choice(ways)
    if way != "preloaded":
        with tempfile.TemporaryDirectory(dir=kills._fast(folder)) as place:
            {"hooks": _by_hooks, "limit": _by_limit, "in the way": _in_the_way, "another user": _as_another}[way](
                rng, folder, Path(place)
            )
        return 1
    server = _servers[folder]
    assert server.stdin
    assert server.stdout
    print(rng.random(), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    if answer != "null\n":
        raise AssertionError(json.loads(answer) if answer else f"the process with the preloaded library ended: {server.wait()}")
    return 1


# How calls fail.


def _by_hooks(rng: random.Random, folder: Path, place: Path) -> None:
    """A function of `os` raises at its nth call."""
    name, nth, number = rng.choice(("fsync", "replace", "open")), rng.randint(1, 4), rng.choice(ERRORS)
    forever, count, real = rng.random() < 0.5, 0, getattr(os, name)

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        if name != "open" or arguments[1] & (os.O_WRONLY | os.O_RDWR):
            count += 1
            if count == nth or (forever and count > nth):
                raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    @contextlib.contextmanager
    def fault() -> Iterator[None]:
        setattr(os, name, failing)
        try:
            yield
        finally:
            setattr(os, name, real)

    _write(rng, folder, place, fault, {number}, nth == 1)


def _by_limit(rng: random.Random, folder: Path, place: Path) -> None:
    """No file may be larger than some bytes."""

    @contextlib.contextmanager
    def fault() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randint(0, 20_000), before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    _write(rng, folder, place, fault, {errno.EFBIG}, False)


def _in_the_way(rng: random.Random, folder: Path, place: Path) -> None:
    """A file where the folder should be, or a folder where the file should be."""
    task = rng.choice(TASKS)
    path = place / "run" / task.file
    if rng.random() < 0.5:
        path.parent.write_text("in the way")
        wanted = {errno.EEXIST, errno.ENOTDIR}
    else:
        path.mkdir(parents=True)
        wanted = {errno.EISDIR}
    _refused(task, path, wanted)
    assert list(place.rglob("*")) == [path.parent, *([path] if path.parent.is_dir() else [])]


def _as_another(rng: random.Random, folder: Path, place: Path) -> None:
    """A user who may read a folder, but not write to it. As root, in a process that is another user."""
    task = rng.choice(TASKS[:3])
    shutil.copytree(folder / "old", place / "run")
    for path in (place, place / "run"):
        path.chmod(0o555)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.chdir(place)  # which the other user may not reach by its path
                os.setgroups([])
                os.setgid(12345)
                os.setuid(12345)
            _refused(task, Path("run", task.file), {errno.EACCES})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for path in (place, place / "run"):
        path.chmod(0o755)
    assert status == 0, f"{task.file} in a folder of another: see above"
    _assert_same(folder, place / "run", None, "as another user")


def _refused(task: Task, path: Path, wanted: set[int]) -> None:
    try:
        task.write(path)
    except OSError as error:
        _assert_told(error, path, wanted)
    else:
        raise AssertionError(f"{path} was written")


def _by_library(rng: random.Random, folder: Path, place: Path) -> None:
    """A call of the C library fails, in the process that has ours preloaded."""
    library = ctypes.CDLL(None)
    kind, nth, forever = rng.randrange(1, len(KINDS)), rng.randint(1, 4), rng.random() < 0.5
    short = KINDS[kind] == "write" and rng.random() < 0.2
    number = 0 if short else rng.choice(ERRORS)

    @contextlib.contextmanager
    def fault() -> Iterator[None]:
        library.fault_arm(kind, nth, number, forever)
        try:
            yield
        finally:
            library.fault_disarm()

    if not short and rng.random() < 0.1:
        _train(folder, place, fault, number)
    else:
        _write(rng, folder, place, fault, {number} - {0}, nth == 1 and not short)


# What must hold.


def _write(rng: random.Random, folder: Path, place: Path, fault: Callable[[], Any], numbers: set[int], surely: bool) -> None:
    """One file is written while calls fail: it holds what it held, or what was written, and so do the others.

    Of each kind the first call concerns the file itself, so its failure is surely an error.
    """
    task, run = rng.choice(TASKS), place / "run"
    shutil.copytree(folder / "old", run)
    failed: OSError | None = None
    try:
        with fault():
            task.write(run / task.file)
    except OSError as error:
        failed = error
    assert failed or not surely, f"{task.file}: no error"
    if failed is not None:
        _assert_told(failed, run / task.file, numbers)
    _assert_same(folder, run, task if failed is None else None, f"{task.file}, {failed}")
    task.write(run / task.file)
    _assert_same(folder, run, task, f"{task.file}, again")


def _train(folder: Path, place: Path, fault: Callable[[], Any], number: int) -> None:
    """A run whose disk fails ends with the documented error; resumed, with the bits of one never disturbed."""
    run, failed = place / "run", None
    try:
        with fault():
            kills._train("numbers", run)
    except OSError as error:
        failed = error
    if failed is not None:
        _assert_told(failed, run / Path(failed.filename).name, {number})
        kills._train("numbers", run)
    left = [path.name for path in run.iterdir() if path.suffix == ".tmp"]
    assert not left, left
    assert kills._digest(run) == kills._digest(folder / "run")


def _assert_told(error: OSError, path: Path, numbers: set[int]) -> None:
    assert error.errno in numbers, f"{error!r} for {numbers}"
    assert Path(error.filename or "") in (path, path.parent), f"{error!r} names not {path}"


def _assert_same(folder: Path, run: Path, written: Task | None, when: str) -> None:
    assert sorted(os.listdir(run)) == sorted(task.file for task in TASKS), f"{when}: {os.listdir(run)}"
    for task in TASKS:
        age = "new" if task is written else "old"
        assert task.text(run / task.file) == task.text(folder / age / task.file), f"{when}: {task.file} is not the {age} one"


# The process with the preloaded library.


def preloaded(folder: Path) -> Path | None:
    """The library, compiled into a folder; None where there is no compiler for it."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", HERE / "faults.c", "-o", library, "-ldl"], check=True)
    return library


def _server(folder: Path, library: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.campaign.disk", str(folder)]
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    atexit.register(server.kill)
    return server


def serve(folder: Path) -> None:
    """Answer each seed with null or what failed."""
    kills._train("numbers", folder / "warm")
    for line in sys.stdin:
        answer = None
        try:
            with tempfile.TemporaryDirectory(dir=kills._fast(folder)) as place:
                _by_library(random.Random(line), folder, Path(place))
        except BaseException:
            answer = traceback.format_exc()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
