"""Kills of training runs: at whatever moment, each file loads whole; the resumed run ends as one never disturbed, to the bit.

A run saves after every step. It is forked from a process that has its kernels already; it is ended by a signal at a random
moment, or by itself at the nth call of a system function; then it is resumed, until it ends. Some runs are the command's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm
from fastlstm import optim
from fastlstm.command import cli
from fastlstm.training import checkpoint

NAME = "kills"
TRIALS = 1000
LIMIT = 120.0  # seconds for a trial: several runs, and a disk that may be slow

KINDS = ("text", "numbers", "classes", "command", "command apart")
EPOCHS, MOST_KILLS, HANGS = 2, 6, 60.0
CALLS = {"fsync": 80, "replace": 50, "open": 120, "unlink": 60}  # and about how many a run makes
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DIED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, cli.INTERRUPTED}
TEXT = "to be, or not to be: that is the question.\n" * 60


def prepare(folder: Path) -> None:
    """Runs that nobody disturbs: what they end with, and how long they take. The API's leave their kernels in this process."""
    (folder / "text.txt").write_text(TEXT)
    known = {}
    for kind in KINDS:
        if not kind.startswith("command"):
            _train(kind, folder / f"warm {kind}")
        began = time.monotonic()
        status, said = _run(kind, folder, folder / kind)
        assert status == 0, f"{kind}: status {status}: {said}"
        known[kind] = [_digest(folder / kind), time.monotonic() - began]
    (folder / "known.json").write_text(json.dumps(known))


def trial(rng: random.Random, folder: Path) -> int:
    """One run, killed and resumed until it ends; returns the kills."""
    kind = rng.choice(KINDS[:4]) if rng.random() < 0.96 else KINDS[4]
    wanted, seconds = json.loads((folder / "known.json").read_text())[kind]
    kills: list[str] = []
    with tempfile.TemporaryDirectory(dir=_fast(folder)) as place:
        run = Path(place) / "run"
        while True:
            death, told = _death(rng, kind, seconds) if len(kills) < MOST_KILLS else (None, "none")
            status, said = _run(kind, folder, run, death)
            if status:
                kills.append(told)
                # An interrupt that comes while Python itself starts is a failure to it.
                died = status in DIED or (kind == "command apart" and "<frozen site>" in said and "KeyboardInterrupt" in said)
                assert death, f"{kind} after {kills}: status {status} undisturbed: {said[-2000:]}"
                assert died, f"{kind} after {kills}: status {status}: {said[-2000:]}"
                _check(run, f"{kind} after {kills}")
            elif kills:
                break
            else:  # the signal came too late
                shutil.rmtree(run)
        left = [path.name for path in run.iterdir() if path.suffix == ".tmp"]
        assert not left, f"{kind} after {kills}: {left} are left"
        assert _digest(run) == wanted, f"{kind} after {kills}: the run ended with other bits"
    return len(kills)


def _fast(folder: Path) -> Path:
    """A folder in memory if there is one: a killed process loses nothing that it has written anywhere."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else folder


def _death(rng: random.Random, kind: str, seconds: float) -> tuple[Callable[[int], None], str]:
    """How a run is to end: a function called with its process's number in this process, or with 0 in its own."""
    if kind != "command apart" and rng.random() < 0.4:
        name, after = rng.choice(list(CALLS)), rng.random() < 0.5
        nth = rng.randint(1, CALLS[name] if kind != "command" else 8)
        return (lambda pid: None if pid else _die_at(name, nth, after)), f"{'after' if after else 'before'} {name} {nth}"
    number, delay = rng.choice(SIGNALS), rng.uniform(0, 0.9 * seconds)

    def send(pid: int) -> None:
        if pid:
            time.sleep(delay)
            os.kill(pid, number)  # the dead are not waited for yet, so the number is still theirs

    return send, f"{number.name} at {delay:.3f} s"


def _die_at(name: str, nth: int, after: bool) -> None:
    """Have this process kill itself just before or after its nth call of a function of `os`."""
    real, count = getattr(os, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if count == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, name, counted)


def _run(kind: str, folder: Path, run: Path, death: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Begin or resume a run in a process of its own; its status and what it said."""
    with tempfile.TemporaryFile("w+") as output:
        pid = os.fork()
        if pid == 0:
            _child(kind, folder, run, death, output.fileno())
        if death is not None:
            death(pid)
        end = time.monotonic() + HANGS
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise AssertionError(f"{kind}: a run hangs")
            time.sleep(0.002)
        output.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), output.read()


def _child(kind: str, folder: Path, run: Path, death: Callable[[int], None] | None, output: int) -> None:
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if death is not None:
            death(0)
        if kind == "command":
            status = cli.main(_words(folder, run))
        elif kind == "command apart":
            os.execv(sys.executable, [sys.executable, "-m", "fastlstm", *_words(folder, run)])
        else:
            _train(kind, run)
            status = 0
    except KeyboardInterrupt:
        status = cli.INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _words(folder: Path, run: Path) -> list[str]:
    """The command's words for a run."""
    if (run / checkpoint.LAST).exists():
        return ["train", "--resume", str(run), "--quiet"]
    shape = "--hidden-size 8 --num-layers 1 --batch-size 4 --seq-len 20 --cell gru --dropout 0.2 --schedule plateau"
    return ["train", str(folder / "text.txt"), "--out", str(run), "--quiet", "--epochs", str(EPOCHS), *shape.split()]


def _train(kind: str, run: Path) -> None:
    """Begin or resume a run of the API."""
    train, valid = _data(kind)
    if (run / checkpoint.LAST).exists():
        trainer = fastlstm.Trainer.resume(run, train, valid, progress=False, checkpoint_every=0.0)
        if trainer.epoch < EPOCHS:
            trainer.fit(train, valid)
        return
    model: Any
    optimizer: Any
    schedule: Any
    if kind == "text":
        model = fastlstm.LanguageModel(9, hidden_size=12, num_layers=2, dropout=0.2, seed=1)
        optimizer, schedule = optim.AdamW(lr=3e-3), optim.CosineWarmup(20, 500)
    elif kind == "numbers":
        model = fastlstm.SequenceRegressor(3, 3, cell="gru", hidden_size=9, dropout=0.1, num_layers=2, seed=1)
        optimizer, schedule = optim.RMSprop(lr=1e-3), optim.Plateau(patience=1)
    else:
        model = fastlstm.SequenceClassifier(3, 2, cell="rnn", hidden_size=9, bidirectional=True, seed=1)
        optimizer, schedule = optim.SGD(lr=1e-2, momentum=0.9), None
    trainer = fastlstm.Trainer(model, optimizer, 0.5, schedule, run, progress=False, checkpoint_every=0.0)
    trainer.fit(train, valid, epochs=EPOCHS)


def _data(kind: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    if kind == "text":
        ids = rng.integers(0, 9, 1000)
        return fastlstm.TokenStream(ids[:800], 4, 10), fastlstm.TokenStream(ids[800:], 2, 10)
    x = rng.standard_normal((72, 9, 3)).astype(np.float32)
    y = x.sum(1) ** 2
    if kind == "numbers":
        lengths = rng.integers(0, 10, 72)
        return fastlstm.Batches(x, y, batch_size=4, lengths=lengths), fastlstm.Batches(x[:40], y[:40])
    classes = (y[:, 0] > 3).astype(int)
    return fastlstm.Batches(x, classes, batch_size=4, seed=3), fastlstm.Batches(x[:40], classes[:40])


def _check(run: Path, when: str) -> None:
    """Whatever files a killed run has are whole, and none is missing that another names."""
    for name in (checkpoint.LAST, checkpoint.BEST):
        if (run / name).exists():
            _, record = checkpoint.read_checkpoint(run / name)
            best = name == checkpoint.BEST or record["best_loss"] is None or (run / checkpoint.BEST).exists()
            assert best, f"{when}: the best checkpoint is lost"
    if (run / checkpoint.SETTINGS).exists():
        checkpoint.read_json(run / checkpoint.SETTINGS)
    if (run / checkpoint.HISTORY).exists():
        # A line is added as it is; only the last may be cut.
        *lines, _ = (run / checkpoint.HISTORY).read_text().split("\n")
        for line in lines:
            json.loads(line)


def _digest(run: Path) -> list[str]:
    """All that a run has ended with, but times."""
    found = []
    for name in (checkpoint.LAST, checkpoint.BEST):
        arrays, record = checkpoint.read_checkpoint(run / name)
        found.append(hashlib.sha256(repr(_without_times(record)).encode()).hexdigest())
        found += [f"{key} {hashlib.sha256(array.tobytes()).hexdigest()}" for key, array in sorted(arrays.items())]
    history = [json.loads(line) for line in (run / checkpoint.HISTORY).read_text().splitlines()]
    return [*found, repr(_without_times(history))]


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in ("seconds", "tokens_per_second")}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
