"""The library in many hands: pairs of operations beside each other, and Python code that runs in the midst of a call.

What is right: no crash, no hang; the bits that one thread gets, where the operations may be used together; a RuntimeError at
most where one writes what the other uses; and afterwards the same bits as before.

    python -m tests.campaign --parts crowd --minutes 60 --turn 3600 --workers 1       64 threads for an hour: crowd.py
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm
from tests.campaign.operations import OPERATIONS, Operation, arrays_of
from tests.campaign.scene import Scene

NAME, TRIALS = "threads", 10_000
LIMIT = 120.0  # the first of a kind may have to compile
INTERVALS = (5e-3, 1e-4, 1e-6)  # seconds between switches of Python's threads


def trial(rng: random.Random, folder: Path) -> int:
    """One pair, mix or other arrangement."""
    act = rng.choices((pair, within, mix, once, sums, serving, forks), (60, 20, 6, 4, 3, 4, 3))[0]
    count, interval = fastlstm.num_threads(), sys.getswitchinterval()
    try:
        fastlstm.set_num_threads(rng.choice((1, 2, 3)))
        sys.setswitchinterval(rng.choice(INTERVALS))
        act(rng, folder)
    finally:
        sys.setswitchinterval(interval)
        fastlstm.set_num_threads(count)
    return 1


class Call:
    """An operation on a scene, and what it gives when it is alone."""

    def __init__(self, operation: Operation, scene: Scene) -> None:
        self.operation, self.scene = operation, scene
        twin = Scene(scene.seed, scene.path.parent / "twin")
        twin.path.parent.mkdir(exist_ok=True)
        self.wanted = arrays_of(found) if (found := operation.act(twin)) is not None else None
        for name in vars(twin):  # what it uses is made here; threads first meet in its use
            getattr(scene, name)
        self.exact = True

    def __repr__(self) -> str:
        return f"{self.operation.name} on {self.scene.seed}"

    def meet(self, others: Sequence[Call]) -> None:
        """From now on these run beside it."""
        beside = [other for other in others if other is not self and other.scene is self.scene]
        self.exact = not any(other.operation.disturbs(self.operation) for other in beside)

    def __call__(self) -> None:
        """Do it, and look at what it gives."""
        try:
            found = self.operation.act(self.scene)
        except RuntimeError as error:
            if self.exact or "changed size" in str(error):
                raise
            return
        if self.exact and self.wanted is not None:
            self.compare(arrays_of(found))

    def compare(self, found: Sequence[np.ndarray]) -> None:
        """The same bits."""
        assert self.wanted is not None
        assert len(found) == len(self.wanted), f"{self} gave {len(found)} arrays, alone {len(self.wanted)}"
        for k, (got, want) in enumerate(zip(found, self.wanted, strict=True)):
            assert np.array_equal(got, want), f"array {k} of {self} has {np.sum(got != want)} of {got.size} other bits"


@contextmanager
def intact(calls: Sequence[Call]) -> Iterator[None]:
    """After the block, what each call gives on its restored scene is what it gave at first."""
    print(*(f"{call}," for call in calls), flush=True)  # for who reads of a crash
    scenes = {id(call.scene): call.scene for call in calls}
    for call in calls:
        call.meet(calls)
    for scene in scenes.values():
        scene.keep()
    yield
    for call in calls:
        call.scene.restore()
        if call.wanted is not None:
            call.compare(arrays_of(call.operation.act(call.scene)))


def at_once(functions: Sequence[Callable[[], Any]]) -> list[BaseException]:
    """Run functions in threads that start together; what they raised."""
    start, errors = threading.Barrier(len(functions)), list[BaseException]()

    def run(function: Callable[[], Any]) -> None:
        try:
            start.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def together(calls: Sequence[Call], seconds: float) -> None:
    """Each call again and again in a thread of its own."""
    failed = threading.Event()

    def repeat(call: Call) -> None:
        end, done = time.monotonic() + seconds, 0
        try:
            while done < 3 or (time.monotonic() < end and not failed.is_set()):
                call()
                done += 1
        except BaseException:
            failed.set()
            raise

    with intact(calls):
        raise_first(at_once([lambda call=call: repeat(call) for call in calls]))  # type: ignore[misc]


def raise_first(errors: Sequence[BaseException]) -> None:
    """What one of the threads raised."""
    for error in errors:
        raise error


def draw(rng: random.Random, folder: Path, count: int, scenes: int) -> list[Call]:
    """Operations on some of a number of scenes."""
    made = [Scene(rng.randrange(2**31), folder) for _ in range(scenes)]
    return [Call(rng.choice(OPERATIONS), rng.choice(made)) for _ in range(count)]


def pair(rng: random.Random, folder: Path) -> None:
    """Two operations on the same objects or on others."""
    scenes = [Scene(rng.randrange(2**31), folder) for _ in range(rng.choice((1, 1, 2)))]
    together([Call(rng.choice(OPERATIONS), scene) for scene in (scenes[0], scenes[-1])], 0.01)


def mix(rng: random.Random, folder: Path) -> None:
    """Several threads."""
    together(draw(rng, folder, rng.randint(3, 8), rng.randint(1, 3)), 0.05)


def once(rng: random.Random, folder: Path) -> None:
    """A backward pass that several threads ask for is made by one of them."""
    seed, callers = rng.randrange(2**31), rng.randint(2, 4)
    names = ("layer", "cell_layer", "linear", "embedding", "model", "regressor")
    name = rng.choice(names)
    gradients = []
    for count in (1, callers):
        scene = Scene(seed, folder)
        owner = getattr(scene, name)
        given = scene.ids if name in ("embedding", "model") else scene.x[0] if name == "cell_layer" else scene.x
        out, *_, backprop = owner.forward_train(given)
        print(f"once: {name} of {seed}, {count} threads", flush=True)
        errors = at_once([lambda out=out, backprop=backprop: backprop(out)] * count)  # type: ignore[misc]
        others = [error for error in errors if not (isinstance(error, RuntimeError) and "used up" in str(error))]
        raise_first(others)
        assert len(errors) == count - 1, f"backprop of {name} succeeded in {count - len(errors)} of {count} threads"
        gradients.append(owner.grads.flat.copy())
    assert np.array_equal(*gradients), f"gradients of {name} differ where {callers} threads asked for them"


def sums(rng: random.Random, folder: Path) -> None:
    """Gradients of passes at once all count."""
    seed, callers, passes = rng.randrange(2**31), rng.randint(2, 3), rng.randint(1, 3)
    print(f"sums: layer of {seed}", flush=True)
    train = next(operation for operation in OPERATIONS if operation.name == "layer_train").act
    one, many = Scene(seed, folder), Scene(seed, folder)
    assert np.array_equal(one.layer(one.x)[0], many.layer(many.x)[0])
    for _ in range(callers * passes):
        train(one)
    raise_first(at_once([lambda: [train(many) for _ in range(passes)]] * callers))
    assert np.array_equal(one.layer.grads.flat, many.layer.grads.flat), f"gradients of {callers} x {passes} passes at once"


def serving(rng: random.Random, folder: Path) -> None:
    """A stream steps while another thread edits and refreshes: each step is made with one state of the weights."""
    scene = Scene(rng.randrange(2**31), folder)
    stream, layer = scene.stream, scene.forward_layer
    print(f"serving: {scene.seed}", flush=True)
    own = layer.state_dict()
    versions = [own, {name: 0.5 * array for name, array in own.items()}]

    def step() -> np.ndarray:
        stream.reset()
        return stream(scene.row).copy()

    wanted, stop = [], threading.Event()
    for version in (*versions[::-1], own):
        layer.load_state_dict(version)
        stream.refresh()
        wanted.append(step())

    def serve() -> None:
        end, done = time.monotonic() + 0.03, 0
        try:
            while done < 20 or time.monotonic() < end:
                y, done = step(), done + 1
                assert any(np.array_equal(y, one) for one in wanted), "a step with weights of two versions"
        finally:
            stop.set()

    def train() -> None:
        while not stop.is_set():
            for version in versions:
                layer.load_state_dict(version)
                stream.refresh()

    raise_first(at_once([serve, train]))
    layer.load_state_dict(own)
    stream.refresh()
    assert np.array_equal(step(), wanted[-1]), "a step after the last refresh"


def forks(rng: random.Random, folder: Path) -> None:
    """Children that are forked in the midst of others' calls compute what their parent does."""
    *busy, call = draw(rng, folder, 3, 3)
    call.scene = Scene(call.scene.seed, folder)  # whose objects nobody else writes
    call = Call(call.operation, call.scene)
    stop = threading.Event()

    def work(call: Call) -> None:
        while not stop.is_set():
            call()

    def fork() -> None:
        try:
            for _ in range(3):
                time.sleep(rng.uniform(0, 0.005))
                child = os.fork()
                if child == 0:
                    try:
                        signal.alarm(20)
                        call()
                        os._exit(0)
                    finally:
                        os._exit(1)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                assert code == 0, f"a forked child that did {call} ended with {code}"
        finally:
            stop.set()

    with intact([*busy, call]):
        raise_first(at_once([*(lambda call=call: work(call) for call in busy), fork]))  # type: ignore[misc]


# Python code within a call


class Raised(BaseException):
    """By a handler of a signal. No Exception: `np.array_equal` would take that for arrays that differ."""


@contextmanager
def by_signals(rng: random.Random, act: Callable[[], None]) -> Iterator[None]:
    """A timer's handler acts."""
    before = signal.signal(signal.SIGALRM, lambda *_: act())
    interval = rng.choice((2e-4, 1e-3))
    try:
        signal.setitimer(signal.ITIMER_REAL, interval, interval)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Session:
    """A cycle, that the collector finds some time."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.me, self.act = self, act

    def __del__(self) -> None:
        self.act()


@contextmanager
def by_finalizers(rng: random.Random, act: Callable[[], None]) -> Iterator[None]:
    """Objects that are collected in the midst of calls act."""
    before = gc.get_threshold()
    gc.set_threshold(rng.choice((7, 50)), 2, 2)
    gc.callbacks.append(renew := lambda phase, info: phase == "stop" and Session(act) and None)
    Session(act)
    try:
        yield
    finally:
        gc.callbacks.remove(renew)
        gc.set_threshold(*before)


@contextmanager
def by_collections(rng: random.Random, act: Callable[[], None]) -> Iterator[None]:
    """The collector's callbacks act."""
    before = gc.get_threshold()
    gc.set_threshold(rng.choice((20, 100)), 2, 2)
    gc.callbacks.append(call := lambda phase, info: act())
    try:
        yield
    finally:
        gc.callbacks.remove(call)
        gc.set_threshold(*before)


@contextmanager
def by_profiling(rng: random.Random, act: Callable[[], None]) -> Iterator[None]:
    """A profiler or a tracer acts at some of its events."""
    every, seen = rng.choice((11, 97, 301)), 0

    def note(*_: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen % every == 0:
            act()
        return note

    use = rng.choice((sys.setprofile, sys.settrace))
    before = sys.gettrace() if use is sys.settrace else sys.getprofile()
    use(note)
    try:
        yield
    finally:
        use(before)


@contextmanager
def by_raising(rng: random.Random, act: Callable[[], None]) -> Iterator[None]:
    """A handler raises wherever the call is, after it has acted."""

    def handler(*_: Any) -> None:
        act()
        raise Raised

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def within(rng: random.Random, folder: Path) -> None:
    """An operation, in the midst of which another is called."""
    scenes = [Scene(rng.randrange(2**31), folder) for _ in range(rng.choice((1, 1, 2)))]
    outer, inner = (Call(rng.choice(OPERATIONS), scene) for scene in (scenes[0], scenes[-1]))
    way = rng.choice((by_signals, by_finalizers, by_collections, by_profiling, by_raising))
    errors, inside = list[BaseException](), False

    def act() -> None:
        nonlocal inside
        if inside:
            return
        inside = True
        try:
            inner()
        except BaseException as error:  # finalizers and some callbacks may raise nothing
            errors.append(error)
        finally:
            inside = False

    print(way.__name__, end=": ", flush=True)
    with intact([outer, inner]):
        end = time.monotonic() + 0.02
        with way(rng, act):
            while time.monotonic() < end and not errors:
                try:
                    if way is by_raising:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
                    outer()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Raised:
                    pass
        gc.collect()
        raise_first(errors)
