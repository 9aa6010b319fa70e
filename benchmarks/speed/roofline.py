"""Measures how near layers come to the machine's limit: `python -m benchmarks.speed.roofline [--cell lstm --hidden-size 256
...]`.

The least work of layers with G gates (LSTM 4, GRU 3, RNN 1), input size I and hidden size H on a batch of B x T is below. A
multiply-add is two operations; activations are not counted.

====================  ========================================  ==============
product               shape                                     operations
====================  ========================================  ==============
inputs, forward       x [TB, I] @ weight_ih.T [I, GH]           2 TB GH I
recurrent, forward    h [B, H] @ weight_hh.T [H, GH], T times   2 TB GH H
dx                    dgates [TB, GH] @ weight_ih [GH, I]       2 TB GH I
dh                    dgates [B, GH] @ weight_hh, T times       2 TB GH H
dW_ih and dW_hh       dgates.T [GH, TB] @ x and @ h             2 TB GH (I+H)
====================  ========================================  ==============

So inference takes 2 TB GH (I+H) operations, and forward with backward three times as many. In the least traffic every array
crosses the memory bus once. In elements that is:

- inference: weights and biases P = GH (I+H+2); x TB I; out TB H; the first and the last state 2 BH (LSTM 4 BH);
- forward and backward: the above; the saved arrays, S TB H, written and read (of an LSTM the gates and c, S=5; of a GRU the
  gates and the candidate's recurrent product, S=4; of an RNN nothing but out, S=0); x and out read again; dout TB H read; dx TB
  I written; the weights read again; gradients read and written, 2 P; the states' gradients, as many as the states.

floor = max(operations / peak, bytes / memory bandwidth). The peak is the fastest matrix product of the same run: the BLAS of
NumPy and torch, and fastlstm's product with packed weights in cache. The bandwidth is that of a copy of half a gigabyte. Arrays
that stay in a cache between uses may be faster than the second term; so a cache's bandwidth is measured and drawn too. Small
batches read the weights from a cache at every step, which is not counted; so their share cannot come near one. In bfloat16 all
arrays count two bytes per element, although parameters and states take four, so the floor is still a floor.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm
from benchmarks.measure.alternate import REST, compare
from benchmarks.measure.record import Record
from benchmarks.peers import layers
from benchmarks.peers.layers import CELLS, GATES, Shape
from fastlstm.runtime import engine
from fastlstm.runtime.params import Slots
from fastlstm.stack.products import PackedLinear

SAVED = {"lstm": 5, "gru": 4, "rnn": 0}
WAYS = ("inference", "forward+backward")
DEFAULT = [Shape(cell, hidden, batch) for cell in CELLS for hidden in (32, 128, 256, 512) for batch in (1, 8, 64)]


def operations(shape: Shape, way: str) -> int:
    """Return the operations of the products; a multiply-add is two."""
    gates = GATES[shape.cell] * shape.hidden_size
    forward = sum(2 * shape.steps * shape.batch * gates * (width + shape.hidden_size) for width in shape.inputs)
    return forward if way == "inference" else 3 * forward


def traffic(shape: Shape, way: str, itemsize: int = 4) -> int:
    """Return the bytes that have to cross the memory bus."""
    hidden, rows = shape.hidden_size, shape.steps * shape.batch
    total = 0
    for width in shape.inputs:
        weights = GATES[shape.cell] * hidden * (width + hidden + 2)
        states = 2 * shape.batch * hidden * (2 if shape.cell == "lstm" else 1)
        total += weights + rows * (width + hidden) + states
        if way != "inference":
            saved, again, gradients = 2 * SAVED[shape.cell] * hidden, width + hidden, width + hidden
            total += rows * (saved + again + gradients) + 3 * weights + states
    return total * itemsize


def blas_threads() -> Any:
    """Return a context in which NumPy's BLAS has as many threads as fastlstm, if threadpoolctl is installed."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return threadpool_limits(fastlstm.num_threads())


def matrix_products(size: int, with_torch: bool, dtype: str = "float32") -> dict[str, Callable[[], Any]]:
    """Return products of square matrices of `size` by NumPy and torch; in bfloat16 by torch alone."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    out = np.empty_like(a)
    functions: dict[str, Callable[[], Any]] = {}
    if dtype == "float32":
        functions["numpy"] = lambda: np.matmul(a, b, out=out)
    if with_torch:
        import torch

        a_torch, b_torch = (torch.tensor(part, dtype=getattr(torch, dtype)) for part in (a, b))
        out_torch = torch.empty_like(a_torch)
        functions["torch"] = lambda: torch.mm(a_torch, b_torch, out=out_torch)
    return functions


def packed_product(rows: int = 64, depth: int = 256, columns: int = 1024) -> tuple[Callable[[], Any], int]:
    """Return fastlstm's float32 product with packed weights, with `rows` for each thread, and its operations."""
    rows *= fastlstm.num_threads()
    cpu, slots = engine.engine("cpu", "float32"), Slots({"weight": (columns, depth)}, "float32")
    slots.params.flat[:] = np.random.default_rng(0).standard_normal(columns * depth, np.float32)
    slots.params.bump()
    linear, a, out = PackedLinear(cpu, slots, "weight", None), cpu.empty(rows, depth), cpu.empty(rows, columns)
    a[...] = np.random.default_rng(1).standard_normal(a.shape, np.float32)

    def product() -> None:
        linear.forward(rows, engine.address(a), depth, engine.address(out), columns)

    product()
    np.testing.assert_allclose(out, a @ slots.params["weight"].T, rtol=1e-4, atol=1e-4)
    return product, 2 * rows * depth * columns


def bandwidth(size: int, calls: int, threads: int) -> float:
    """Return the bytes per second that copies of `size` bytes in each thread read and write: the best of five rounds."""
    pairs = [(np.zeros(size, np.uint8), np.ones(size, np.uint8)) for _ in range(threads)]

    def copies(pair: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(calls):
            np.copyto(*pair)

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            time.sleep(REST)
            begin = time.perf_counter()
            list(pool.map(copies, pairs))
            best = max(best, 2 * size * calls * threads / (time.perf_counter() - begin))
    return best


def ceilings(dtype: str = "float32", size: int = 2048) -> dict[str, Any]:
    """Measure the machine's limits: operations per second of products, bytes per second of copies."""
    threads = fastlstm.num_threads()
    functions = {
        f"{name} {dtype} {size}^3": f for name, f in matrix_products(size, bool(layers.available("torch")), dtype).items()
    }
    work = dict.fromkeys(functions, 2 * size**3)
    if dtype == "float32":
        functions["fastlstm packed product in cache"], work["fastlstm packed product in cache"] = packed_product()
    with blas_threads():
        times = compare(functions, blocks=5, seconds=0.1)
    products = {name: work[name] / one["seconds"] for name, one in times.items()}
    return {
        "products": products,
        "peak": max(products.values()),
        "memory": bandwidth((1 << 29) // threads, 1, threads),
        # Such short copies in several threads would wait for the interpreter's lock. Each core has its own cache.
        "cache": threads * bandwidth(1 << 18, 400, 1),
    }


def measure(shape: Shape, dtype: str, limits: dict[str, Any], blocks: int, seconds: float) -> dict[str, Any]:
    """Return the work, floor and measured time of a shape, for inference and for forward with backward."""
    found: dict[str, Any] = vars(shape) | {"input_size": shape.inputs[0], "dtype": dtype}
    for way in WAYS:
        functions = (layers.inference if way == "inference" else layers.training)(shape, [], dtype)
        taken = compare(functions, blocks=blocks, seconds=seconds)["fastlstm"]["seconds"]
        work, size = operations(shape, way), traffic(shape, way, 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
        compute, memory = work / limits["peak"], size / limits["memory"]
        found[way] = {
            "operations": work,
            "bytes": size,
            "intensity": work / size,
            "bound": "compute" if compute > memory else "memory",
            "floor": max(compute, memory),
            "seconds": taken,
            "share": max(compute, memory) / taken,
        }
    return found


def lines(points: Iterable[dict[str, Any]]) -> list[str]:
    """Return points as lines of a table."""
    heads = zip(("GFLOP", "MB", "FLOP/B", "bound", "floor", "taken", "GFLOP/s", "share"), (8, 8, 7, 8, 9, 9, 8, 6), strict=True)
    table = [" ".join([" " * 45, *(f"{head:>{width}}" for head, width in heads)])]
    for point in points:
        name = Shape(*(point[k] for k in ("cell", "hidden_size", "batch", "steps", "num_layers", "input_size")))
        for way in WAYS:
            one = point[way]
            table.append(
                f"{name!s:28} {way:16} {one['operations'] / 1e9:8.3f} {one['bytes'] / 1e6:8.2f} {one['intensity']:7.1f} "
                f"{one['bound']:>8} {one['floor'] * 1e3:6.3g} ms {one['seconds'] * 1e3:6.3g} ms "
                f"{one['operations'] / one['seconds'] / 1e9:8.1f} {one['share']:6.0%}"
            )
    return table


def main() -> None:
    """Measure and print; write the record and draw the picture if they were named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, help="with it one shape is measured, without it several of each cell")
    parser.add_argument("--input-size", type=int, default=0, help="default: the hidden size")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--num-layers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--record", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--picture", metavar="FILE", type=Path)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="about how long a block of calls lasts")
    o = parser.parse_args()
    if not layers.has_dtype(o.dtype):
        return
    shapes = [Shape(o.cell, o.hidden_size, o.batch, o.steps, o.num_layers, o.input_size)] if o.cell else DEFAULT
    record = Record(o.record)
    record.content |= {"results": {}, "disturbed": {}}  # points belong to the ceilings of their own run
    limits = ceilings(o.dtype)
    record.put("ceilings", "measured", limits)
    for name, rate in limits["products"].items():
        print(f"{name:40} {rate / 1e9:8.1f} GFLOP/s")
    for name in ("memory", "cache"):
        print(f"{name + ', copy':40} {limits[name] / 1e9:8.1f} GB/s")
    for shape in shapes:
        record.put("points", str(shape), measure(shape, o.dtype, limits, o.blocks, o.seconds))
    print("", *lines(record.section("points").values()), sep="\n")
    if o.picture:
        from benchmarks.report.pictures import draw_roofline

        draw_roofline(record.content, o.picture)


if __name__ == "__main__":
    main()
