"""Times layers of many shapes against the peers: `python -m benchmarks.speed.grid [--section main ...] --record grid`.

Sections:

main
    One layer, I=H, T=100, of many hidden sizes and batches: forward+backward against torch, inference against torch and
    onnxruntime.
odd
    Hidden sizes that are not a multiple of 16: their time per operation over that of the next multiple.
article
    The limits of the sizes that the article recommends: 1 and 3 layers, H 128 and 512, T 50 and 200, B 32 and 128, against
    torch.
threads
    The article's layers, forward+backward, on one and on all threads.
ceiling
    Operations per second of forward+backward at H=256, B=64, those of a matrix product of 4096^3, and those of a small product
    with packed weights, in the same run.
avx2
    The article's training step without AVX-512, in a process of its own, against torch limited to AVX2 by the variables of
    torch and oneDNN.
bfloat16
    The article's training step in bfloat16 against torch in float32 and under bfloat16 autocast. It has a file of its own,
    since few processors have fast products for bfloat16: `--section bfloat16 --record bfloat16-speed`.

All is in float32 unless stated, and every peer has as many threads as fastlstm. Layers have the peers' weights, and their
outputs (with torch also dx) are compared before they are timed; whole training steps have weights of their own. The file is
rewritten after every point; with --resume a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import fastlstm
from benchmarks.measure.alternate import compare
from benchmarks.measure.record import Record
from benchmarks.peers import layers
from benchmarks.peers.layers import CELLS, Shape
from benchmarks.speed.roofline import blas_threads, matrix_products, operations, packed_product
from fastlstm.runtime import info

HIDDENS, BATCHES = (16, 32, 64, 128, 256, 512), (1, 8, 32, 64)
ODD = (50, 100, 200, 300)
LONG = 3e11  # operations from which fewer blocks are timed
AVX2 = {"FASTLSTM_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
AVX2_STEP = """
import json, sys
from benchmarks.peers import layers
from benchmarks.speed import grid
from fastlstm.runtime import info
cell, blocks, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
result = grid.step_beside_torch(cell, layers.available("torch"), blocks, seconds)
print(json.dumps({"in_use": info.describe()["in_use"], "training step": result}))
"""
Point = tuple[str, Callable[[], dict[str, Any]]]


class Grid:
    """The sections, a method each. A section yields points: a name, and a function that measures the point.

    Parameters
    ----------
    cells, hiddens, batches : sequences
        Cells, hidden sizes and batches, for the sections that have no fixed ones.
    blocks : int
    seconds : float
        See `alternate.compare`.
    """

    def __init__(self, cells: list[str], hiddens: list[int], batches: list[int], blocks: int = 5, seconds: float = 0.1) -> None:
        self.cells, self.hiddens, self.batches = cells, hiddens, batches
        self.blocks, self.seconds = blocks, seconds
        self.peers = layers.available("torch", "onnxruntime")

    def time(self, functions: dict[str, Callable[[], Any]], work: float = 0) -> dict[str, dict[str, float]]:
        """Compare functions, in fewer blocks if they take long."""
        return compare(functions, blocks=min(3, self.blocks) if work > LONG else self.blocks, seconds=self.seconds)

    def layers(self, shape: Shape, others: list[str]) -> dict[str, Any]:
        """Time a shape against the peers, forward+backward and inference, if all results agree."""
        found: dict[str, Any] = vars(shape) | {"input_size": shape.inputs[0]}
        for way, make in (("forward+backward", layers.training), ("inference", layers.inference)):
            functions = make(shape, others)
            layers.agree({name: function() for name, function in functions.items()})
            found[way] = self.time(functions, operations(shape, way))
        return found

    def main(self) -> Iterator[Point]:
        for cell in self.cells:
            for hidden in self.hiddens:
                for batch in self.batches:
                    shape = Shape(cell, hidden, batch)
                    yield str(shape), lambda shape=shape: self.layers(shape, self.peers)

    def article(self) -> Iterator[Point]:
        torch = [peer for peer in self.peers if peer == "torch"]
        for cell in self.cells:
            for count in (1, 3):
                for hidden in (128, 512):
                    for steps in (50, 200):
                        for batch in (32, 128):
                            shape = Shape(cell, hidden, batch, steps, count)
                            yield str(shape), lambda shape=shape: self.layers(shape, torch)

    def odd(self) -> Iterator[Point]:
        for cell in self.cells:
            for hidden in ODD:
                for batch in (8, 64):
                    shape, even = (Shape(cell, size, batch) for size in (hidden, -(-hidden // 16) * 16))
                    yield str(shape), lambda shape=shape, even=even: self.ratio(shape, even)

    def ratio(self, shape: Shape, even: Shape) -> dict[str, Any]:
        """Return how many times as long an operation of `shape` takes as an operation of `even`."""
        found: dict[str, Any] = vars(shape) | {"even": even.hidden_size, "per operation": {}, "seconds": {}}
        for way, make in (("forward+backward", layers.training), ("inference", layers.inference)):
            times = self.time({str(s): make(s, [])["fastlstm"] for s in (shape, even)})
            found["seconds"][way] = [one["seconds"] for one in times.values()]
            longer = operations(even, way) / operations(shape, way) / times[str(even)]["speedup"]
            found["per operation"][way] = longer
        return found

    def threads(self) -> Iterator[Point]:
        for cell in self.cells:
            shape = layers.ARTICLE.shape(cell)
            yield str(shape), lambda shape=shape: self.scaling(shape)

    def scaling(self, shape: Shape) -> dict[str, Any]:
        """Time forward+backward on all threads against one thread."""
        threads, function = fastlstm.num_threads(), layers.training(shape, [])["fastlstm"]

        def on(count: int) -> Callable[[], Any]:
            def run() -> None:
                fastlstm.set_num_threads(count)
                function()

            return run

        try:
            all_of_them, one = self.time({"all": on(threads), "one": on(1)}).values()
        finally:
            fastlstm.set_num_threads(threads)
        return {
            "threads": threads,
            "seconds": all_of_them["seconds"],
            "seconds, 1 thread": one["seconds"],
            "speedup": one["speedup"],
        }

    def ceiling(self) -> Iterator[Point]:
        for cell in self.cells:
            shape = Shape(cell, 256, 64)
            yield str(shape), lambda shape=shape: self.share(shape)

    def share(self, shape: Shape, size: int = 4096) -> dict[str, Any]:
        """Return operations per second of forward+backward and of matrix products, and the share of the fastest product."""
        functions = {f"{name} {size}^3": f for name, f in matrix_products(size, "torch" in self.peers).items()}
        work = dict.fromkeys(functions, 2 * size**3) | {"fastlstm": operations(shape, "forward+backward")}
        bars, packed = list(functions), "packed product in cache"
        functions[packed], work[packed] = packed_product()
        with blas_threads():
            times = self.time({"fastlstm": layers.training(shape, [])["fastlstm"]} | functions)
        shares = [times[name]["speedup"] * work["fastlstm"] / work[name] for name in bars]
        return {"gflops": {name: work[name] / one["seconds"] / 1e9 for name, one in times.items()}, "share": min(shares)}

    def avx2(self) -> Iterator[Point]:
        if "avx2" not in info.describe()["instruction_sets"]:
            print("left out: avx2 (this processor does not have it)")
            return
        for cell in self.cells:
            yield cell, lambda cell=cell: self.restricted(cell)

    def restricted(self, cell: str) -> dict[str, Any]:
        """Time the training step in a process without AVX-512."""
        command = [sys.executable, "-c", AVX2_STEP, cell, str(self.blocks), str(self.seconds)]
        done = subprocess.run(command, env=os.environ | AVX2, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def bfloat16(self) -> Iterator[Point]:
        if not layers.has_dtype("bfloat16"):
            return
        for cell in self.cells:
            yield cell, lambda cell=cell: self.half(cell)

    def half(self, cell: str) -> dict[str, Any]:
        """Time the training step in bfloat16 against float32 and against torch in float32 and under autocast."""
        functions = {"fastlstm bfloat16": layers.article_step(cell, "bfloat16"), "fastlstm": layers.article_step(cell)}
        if "torch" in self.peers:
            functions |= {"torch": layers.torch_step(cell), "torch autocast": layers.torch_step(cell, autocast=True)}
        return {"training step": self.time(functions)}


def step_beside_torch(cell: str, others: list[str], blocks: int, seconds: float) -> dict[str, dict[str, float]]:
    """Time the article's training step against torch's."""
    functions = {"fastlstm": layers.article_step(cell)}
    if "torch" in others:
        functions["torch"] = layers.torch_step(cell)
    return compare(functions, blocks=blocks, seconds=seconds)


def mean(ratios: list[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def comparisons(points: dict[str, dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return each point's speed-up, by cell, way and peer."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, point in points.items():
        for way, times in ((way, times) for way, times in point.items() if compares(times)):
            for peer in list(times)[1:]:
                found.setdefault((name.split()[0], way, peer), {})[name] = times[peer]["speedup"]
    return found


def compares(value: Any) -> bool:
    """Return whether a point's entry is a result of `alternate.compare`."""
    return isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())


def numbers(point: dict[str, Any]) -> str:
    """Return, as text, the numbers of a point that are not comparisons."""
    found = {key: value for key, value in point.items() if isinstance(value, float)}
    for key, value in point.items():
        if isinstance(value, dict) and not compares(value):
            found |= {f"{key}, {name}": number for name, number in value.items() if isinstance(number, float)}
    return ", ".join(f"{name} {value:.3g}" for name, value in found.items())


def report(section: str, points: dict[str, dict[str, Any]]) -> list[str]:
    """Return a section as lines: milliseconds, fastlstm's first, and how many times as long the peers take."""
    lines = [f"\n{section}"]
    for cell in dict.fromkeys(name.split()[0] for name in points):
        own = {name: point for name, point in points.items() if name.split()[0] == cell}
        heads = list(dict.fromkeys((way, who) for p in own.values() for way in p if compares(p[way]) for who in p[way]))
        if heads:
            lines += ["", *(" " * 28 + "".join(f"{head[k]:>20}" for head in heads) for k in (0, 1))]
        for name, point in own.items():
            row = ""
            for way, who in heads:
                one = point.get(way, {}).get(who)
                ratio = f"{one['speedup']:8.2f}x" if one and who != next(iter(point[way])) else " " * 9
                row += f"{one['seconds'] * 1e3:11.3f}{ratio}" if one else " " * 20
            lines.append(f"{name:28}{row}  {numbers(point)}".rstrip())
    lines.append("")
    for (cell, way, peer), ratios in comparisons(points).items():
        least = min(ratios, key=ratios.__getitem__)
        means = f"geometric mean {mean([*ratios.values()]):.2f}, least {ratios[least]:.2f} ({least})"
        lines.append(f"{cell} {way} over {peer}: {means}")
    longer = [(ratio, way, name) for name, one in points.items() for way, ratio in one.get("per operation", {}).items()]
    if longer:
        lines.append("longest per operation: {:.2f} in {} of {}".format(*max(longer)))
    return lines


def main() -> None:
    """Measure and print the sections, and write the record if one was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("main", "odd", "article", "threads", "ceiling", "avx2", "bfloat16")
    parser.add_argument("--section", nargs="+", choices=sections, default=["main"])
    parser.add_argument("--record", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--resume", action="store_true", help="skip the points that the file holds")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--hidden-size", nargs="+", type=int, default=HIDDENS, help="of section main")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES, help="of section main")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="about how long a block of calls lasts")
    o = parser.parse_args()
    record, grid = Record(o.record, o.resume), Grid(o.cells, o.hidden_size, o.batch, o.blocks, o.seconds)
    for section in o.section:
        for name, measure in getattr(grid, section)():
            if not record.done(section, name):
                print(f"{section}: {name}", flush=True)
                record.put(section, name, measure())
    for section in o.section:
        print(*report(section, record.section(section)), sep="\n")


if __name__ == "__main__":
    main()
