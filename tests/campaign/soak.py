"""Long runs whose memory has to stay flat: training, streams, objects that come and go, other numbers of threads, all shapes.

A trial is one of these, hundreds of steps after as many to warm up. What pages the process holds then is compared; the
allocator's and Python's own caches are emptied before.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm
from fastlstm.text import tokens

NAME, TRIALS = "soak", 20
LIMIT = 300.0
ALLOWED = 6.0  # MiB: 20 kB at each of 300 steps
CELLS = ("lstm", "gru", "rnn")


def trial(rng: random.Random, folder: Path) -> int:
    """One soak."""
    make = rng.choice((training, layers, streams, cycles, team, saving, callers))
    judge(make.__name__, *make(rng, folder))
    return 1


def judge(name: str, act: Callable[[], Any], steps: int) -> None:
    """Memory is as flat as can be said after so many steps."""
    print(f"{name}: {steps} steps", flush=True)
    for _ in range(2):  # what is made on demand and the pools' first fill is no growth
        repeat(act, steps // 2)
    objects, before = len(gc.get_objects()), held()
    repeat(act, steps)
    grown, more = held() - before, len(gc.get_objects()) - objects
    assert grown < ALLOWED, f"{name}: {grown:.1f} MiB more after {steps} steps; {before:.0f} before"
    assert more < steps / 10, f"{name}: {more} more objects after {steps} steps"


def repeat(act: Callable[[], Any], steps: int) -> None:
    """Do it so many times."""
    for _ in range(steps):
        act()


def held() -> float:
    """Memory of this process, MiB, without what the allocator keeps for later."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # of glibc only
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def shapes(rng: random.Random, steps: int, batch: int) -> tuple[int, int]:
    """Another length and batch each time, out of many."""
    return rng.randint(1, steps), rng.randint(1, batch)


def training(rng: random.Random, folder: Path) -> tuple[Callable[[], Any], int]:
    """Steps of a trainer in all shapes, and evaluations."""
    model = fastlstm.LanguageModel(30, rng.choice(CELLS), hidden_size=rng.randint(4, 48), dropout=0.1, seed=0)
    trainer, draws = fastlstm.Trainer(model, progress=False), np.random.default_rng(0)
    text = fastlstm.TokenStream(draws.integers(0, 30, 400), batch_size=3, seq_len=20)

    def act() -> None:
        ids = draws.integers(0, 30, shapes(rng, 40, 12))
        trainer.step(ids, ids)
        if rng.random() < 0.02:
            trainer.evaluate(text)

    return act, 1000


def layers(rng: random.Random, folder: Path) -> tuple[Callable[[], Any], int]:
    """Forward and backward passes in all shapes, of which some are never finished."""
    layer = fastlstm.GRU(8, rng.randint(4, 40), 2, bidirectional=True, dtype=rng.choice(("float32", "bfloat16")), seed=0)
    draws = np.random.default_rng(0)

    def act() -> None:
        steps, batch = shapes(rng, 20, 6)
        x = draws.standard_normal((steps, batch, 8)).astype(np.float32)
        lengths = draws.integers(0, steps + 1, batch) if rng.random() < 0.5 else None
        layer(x, lengths=lengths)
        out, _, backprop = layer.forward_train(x, lengths=lengths)
        if rng.random() < 0.7:
            backprop(out)

    return act, 500


def streams(rng: random.Random, folder: Path) -> tuple[Callable[[], Any], int]:
    """Steps, refreshes after edits, and new streams."""
    layer = fastlstm.LSTM(8, rng.randint(4, 60), 2, seed=0)
    stream, x = fastlstm.Stream(layer), np.ones(8, np.float32)

    def act() -> None:
        for _ in range(10):
            stream(x)
        if rng.random() < 0.3:
            layer.params.bump()
            stream.refresh()
        if rng.random() < 0.1:
            fastlstm.Stream(layer, batch_size=2).reset()

    return act, 2000


def cycles(rng: random.Random, folder: Path) -> tuple[Callable[[], Any], int]:
    """Layers, models and trainers that come and go, some of them in cycles."""
    x, ids = np.ones((6, 4, 8), np.float32), np.ones((6, 4), int)

    def act() -> None:
        layer: Any = fastlstm.LSTM(8, rng.randint(4, 30), 2, seed=0)
        layer.me = layer
        out, _, backprop = layer.forward_train(x)
        backprop(out)
        fastlstm.Stream(layer)(x[0, 0])
        model = fastlstm.LanguageModel(11, rng.choice(CELLS), hidden_size=rng.randint(4, 20), num_layers=1, seed=0)
        fastlstm.Trainer(model, progress=False).step(ids, ids)
        gone.append(weakref.ref(layer))
        if len(gone) == 100:
            gc.collect()
            alive = sum(ref() is not None for ref in gone[:-1])
            gone.clear()
            assert not alive, f"{alive} of 99 layers that nobody has are alive"

    gone: list[weakref.ref[Any]] = []
    return act, 300


def team(rng: random.Random, folder: Path) -> tuple[Callable[[], Any], int]:
    """Another number of threads for each call."""
    layer, x = fastlstm.LSTM(8, 64, seed=0), np.ones((30, 32, 8), np.float32)
    wanted = layer(x)[0]

    def act() -> None:
        fastlstm.set_num_threads(rng.randint(1, 4))
        assert np.array_equal(layer(x)[0], wanted)
        assert threading.active_count() < 10, f"{threading.active_count()} threads"

    return act, 300


def saving(rng: random.Random, folder: Path) -> tuple[Callable[[], Any], int]:
    """Checkpoints that are written and loaded, and what the folder holds."""
    model = fastlstm.LanguageModel(11, rng.choice(CELLS), hidden_size=16, num_layers=1, seed=0)
    trainer = fastlstm.Trainer(model, progress=False, tokenizer=tokens.CharTokenizer("abcdefghij\n"))
    runs = Path(tempfile.mkdtemp(dir=folder))

    def act() -> None:
        trainer.step(np.ones((4, 3), int), np.ones((4, 3), int))
        trainer.save(runs / "run.safetensors")
        fastlstm.load(runs / "run.safetensors").generate("ab", 5, seed=0)
        assert len(list(runs.iterdir())) == 1, f"{sorted(runs.iterdir())}"

    return act, 300


def callers(rng: random.Random, folder: Path) -> tuple[Callable[[], Any], int]:
    """Threads that come, call and end."""
    layer, x = fastlstm.GRU(8, 24, seed=0), np.ones((6, 4, 8), np.float32)
    linear = fastlstm.Linear(8, 5, seed=0)

    def call() -> None:
        out, _, backprop = layer.forward_train(x)
        backprop(out)
        linear(x)

    def act() -> None:
        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return act, 600
