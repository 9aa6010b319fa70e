"""Measures the distribution of the time of one step from Python: `python -m benchmarks.speed.latency --record latency`.

A `fastlstm.Stream` keeps its state; ONNX Runtime and torch get theirs back at every call. Every call is timed by itself, and
nothing is subtracted; the time of the timer itself is recorded too. Blocks of calls alternate between the contenders, each
after a rest, in which their threads go to sleep, and a few calls that wake them. The first call after the rest is stored
separately. ONNX Runtime uses the quicker of two ways: `run`, or an I/O binding that swaps its state buffers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import fastlstm
from benchmarks.measure.alternate import REST
from benchmarks.measure.record import Record
from benchmarks.peers import layers
from benchmarks.peers.layers import Shape

CASES = [
    Shape("lstm", 64, 1, 1, 1, 32),
    Shape("lstm", 128, 1, 1, 2, 64),
    Shape("lstm", 128, 4, 1, 2, 64),
    Shape("lstm", 128, 16, 1, 2, 64),
    Shape("lstm", 256, 1, 1, 2, 256),
    Shape("gru", 64, 1, 1, 1, 32),
]
WAKING = 5  # calls after a rest that do not count, with the first
QUANTILES = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)
# A step, and a function that makes its argument from x [B, I].
Contender = tuple[Callable[[Any], Any], Callable[[np.ndarray], Any]]


def stream(layer: Any, shape: Shape) -> Contender:
    """Return fastlstm's step."""
    return fastlstm.Stream(layer, batch_size=shape.batch), lambda x: x[0].copy() if len(x) == 1 else x.copy()


def torch_layer(layer: Any, shape: Shape) -> Contender:
    """Return torch.nn's step."""
    import torch

    peer, state = layers.torch_layer(layer, shape), None

    def step(x: Any) -> Any:
        nonlocal state
        with torch.no_grad():
            y, state = peer(x, state)
        return y

    return step, lambda x: torch.tensor(x[None])


def run(session: Any, shape: Shape) -> Contender:
    """Return ONNX Runtime's step by `run`: the states that it returns are passed to the next call."""
    states = [one.name for one in session.get_inputs()][1:]
    feed = {name: np.zeros((1, shape.batch, shape.hidden_size), np.float32) for name in states}
    wanted = ["y", *(f"{name}_n" for name in states)]

    def step(x: np.ndarray) -> np.ndarray:
        feed["x"] = x
        y, *new = session.run(wanted, feed)
        feed.update(zip(states, new, strict=True))
        return y

    return step, lambda x: x[None].copy()


def io_binding(session: Any, shape: Shape) -> Contender:
    """Return ONNX Runtime's step on buffers that are bound beforehand; the states alternate between two sets of buffers."""
    states = [one.name for one in session.get_inputs()][1:]
    batch, hidden = shape.batch, shape.hidden_size
    own, y = np.zeros((1, batch, shape.inputs[0]), np.float32), np.zeros((1, 1, batch, hidden), np.float32)
    here, there = ({name: np.zeros((1, batch, hidden), np.float32) for name in states} for _ in range(2))

    def bound(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> Any:
        binding = session.io_binding()
        for name, array in {"x": own, **old}.items():
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for name, array in {"y": y, **{f"{name}_n": array for name, array in new.items()}}.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        return binding

    turn, other, start = bound(here, there), bound(there, here), session.run_with_iobinding

    def step(x: np.ndarray) -> np.ndarray:
        nonlocal turn, other
        own[...] = x
        start(turn)
        turn, other = other, turn
        return y

    step.buffers = here, there  # keeps them alive: ONNX Runtime has only their addresses
    return step, lambda x: x[None].copy()


def quicker(session: Any, shape: Shape, calls: int = 1000) -> partial[Contender]:
    """Return the one of ONNX Runtime's two ways that has the lower median."""
    medians = {make: np.median(timed(*make(session, shape), inputs(shape), calls)) for make in (run, io_binding)}
    return partial(min(medians, key=medians.__getitem__), session, shape)


def inputs(shape: Shape, count: int = 64) -> np.ndarray:
    """Return x of `count` steps, [count, B, I]."""
    return np.random.default_rng(1).standard_normal((count, shape.batch, shape.inputs[0]), np.float32)


def timed(step: Callable[[Any], Any], convert: Callable[[np.ndarray], Any], xs: np.ndarray, calls: int) -> np.ndarray:
    """Return the nanoseconds of each call."""
    clock, taken, given = time.perf_counter_ns, np.empty(calls, np.int64), [convert(x) for x in xs]
    for k in range(calls):
        x = given[k % len(given)]
        begin = clock()
        step(x)
        taken[k] = clock() - begin
    return taken


def timer(calls: int) -> dict[str, float]:
    """Return the time between two readings of the clock."""
    clock, taken = time.perf_counter_ns, np.empty(calls, np.int64)
    for k in range(calls):
        begin = clock()
        taken[k] = clock() - begin
    return summary(taken)


def summary(nanoseconds: np.ndarray) -> dict[str, Any]:
    """Return quantiles in microseconds."""
    taken = nanoseconds / 1e3
    found = {f"p{q:g}": float(np.percentile(taken, q)) for q in (50, 99, 99.9)}
    return found | {"mean": float(taken.mean()), "max": float(taken.max()), "calls": len(taken)}


def contenders(shape: Shape, others: list[str], dtypes: list[str]) -> dict[str, partial[Contender]]:
    """Return functions that make the contenders, all with the same weights. Their outputs are compared first."""
    makers = {f"fastlstm {dtype}": partial(stream, shape.layer(dtype), shape) for dtype in dtypes}
    layer = shape.layer()
    if "onnxruntime" in others:
        model = layers.onnx_model(layer, stateful=True)
        for threads in sorted({1, fastlstm.num_threads()}):
            makers[f"onnxruntime, {threads} thread{'s' * (threads > 1)}"] = quicker(layers.onnx_session(model, threads), shape)
    if "torch" in others:
        makers["torch"] = partial(torch_layer, layer, shape)
    outs = {}
    for name, make in makers.items():
        step, convert = make()
        outs[name] = np.concatenate([np.asarray(step(convert(x))).flatten() for x in inputs(shape)])
    bfloat16 = outs.pop("fastlstm bfloat16", None)
    layers.agree(outs)
    if bfloat16 is not None:
        layers.agree({"float32": outs["fastlstm float32"], "bfloat16": bfloat16}, tolerance=0.05)
    return makers


def measure(shape: Shape, others: list[str], dtypes: list[str], calls: int, blocks: int) -> dict[str, Any]:
    """Return each contender's distribution. torch gets a fifth of the calls, since its steps are long."""
    makers, xs = contenders(shape, others, dtypes), inputs(shape)
    steps = {name: make() for name, make in makers.items()}
    taken: dict[str, list[np.ndarray]] = {name: [] for name in steps}
    for _ in range(blocks):
        for name, (step, convert) in steps.items():
            time.sleep(REST)
            taken[name].append(timed(step, convert, xs, WAKING + calls // blocks // (5 if name == "torch" else 1)))
    found = {}
    for name, parts in taken.items():
        counted = np.concatenate([part[WAKING:] for part in parts])
        found[name] = summary(counted) | {
            "after a rest": float(np.median([part[0] for part in parts]) / 1e3),
            "call": makers[name].func.__name__,
            "quantiles": list(QUANTILES),
            "microseconds": [round(float(value) / 1e3, 3) for value in np.percentile(counted, QUANTILES)],
        }
    return found


def lines(case: str, found: dict[str, Any]) -> list[str]:
    """Return a case as lines of text."""
    ours = next(iter(found.values()))["p50"]
    table = [f"\n{case:32}{'p50':>9}{'p99':>9}{'p99.9':>9}{'max':>10}{'rested':>9}  p50 over ours   (microseconds)"]
    for name, one in found.items():
        values = f"{one['p50']:9.2f}{one['p99']:9.2f}{one['p99.9']:9.2f}{one['max']:10.1f}{one['after a rest']:9.1f}"
        table.append(f"  {name:30}{values}  {one['p50'] / ours:8.2f}x   {one['call']}")
    return table


def main() -> None:
    """Measure, print, and write the record if one was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--resume", action="store_true", help="skip the cases that the file holds")
    parser.add_argument("--calls", type=int, default=20_000, help="of each contender; of torch a fifth")
    parser.add_argument("--blocks", type=int, default=20)
    o = parser.parse_args()
    others = layers.available("onnxruntime", "torch")
    dtypes = ["float32", *(["bfloat16"] if layers.has_dtype("bfloat16") else [])]
    record = Record(o.record, o.resume)
    empty = timer(o.calls)
    record.put("timer", "empty", empty)
    print("timer alone:", ", ".join(f"{name} {empty[name]:.3f}" for name in ("p50", "p99", "p99.9")), "microseconds")
    for shape in CASES:
        if not record.done("steps", str(shape)):
            record.put("steps", str(shape), measure(shape, others, dtypes, o.calls, o.blocks))
        print(*lines(str(shape), record.section("steps")[str(shape)]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
