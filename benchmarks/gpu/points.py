"""Measures the points of `benchmarks.gpu.run`, in processes that may hang or crash: `python -m benchmarks.gpu.points
[--small]`.

It reads the names of points as lines of JSON, and answers with a line of JSON for each. The sections in their order are below.
If a point fails, the others go on.

start       versions; one product of large matrices in tf32 against float64 first       a few steps in each persistent form; any
of them may hang again       a layer that is called until it is a graph, against the reference; training steps, against the
general form step        the article's training step against the same by torch.nn: layers, head, clipping and Adam layers
forward+backward and inference of one layer against torch.nn (cuDNN), by CUDA events ratios      the article's CPU time / GPU
time: training steps on both devices of this machine forms       the steps of a recurrence in every form that can run a shape
(benchmarks/gpu/forms.py), and the cost of a wrong choice waves       two layers at once against one by one check       every
form, then layers of every cell and precision, against the float64 reference; a layer on three streams at once same        two
training runs from the same state must have the same bits train       a few steps of a language model against the CPU's sanitize
compute-sanitizer's memcheck and racecheck over small cases, with --sanitize

torch is left out if it is not installed or finds no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu import forms
from benchmarks.gpu.checks import BOUNDS, check, check_all, check_form, check_streams
from benchmarks.gpu.times import ARTICLE, SMALL, Sizes, batch, language_model, layers, milliseconds, ratio, step, torch_here
from fastlstm.kernels.device import clusters, cuda
from fastlstm.kernels.device.forms import FORMS
from fastlstm.kernels.device.persistent import plans
from fastlstm.runtime import cuda as runtime_cuda
from fastlstm.runtime.arrays import as_numpy
from tests.support import cases

SECTIONS = ("start", "first", "again", "step", "layers", "ratios", "forms", "waves", "check", "same", "train", "sanitize")


@dataclass(frozen=True)
class Point:
    """A measurement. If it fails, its `form` counts as broken. It may take at most `limit` seconds."""

    section: str
    name: str
    measure: Callable[[], dict[str, Any]]
    form: str | None = None
    dtype: str = ""
    limit: float = 60.0

    @property
    def process(self) -> str:
        """The name of the process that measures the point. The first launches of each form have their own process."""
        if self.section == "first":
            return f"first {self.form}"
        return "shapes" if self.section in ("layers", "forms", "waves") else self.section


# Start.


def versions() -> dict[str, Any]:
    """Return versions, and a description of the machine."""
    from cupy.cuda import nvrtc

    cupy, place = cuda.cupy(), cuda.device(0)
    runtime = cupy.cuda.runtime

    found = {
        "device": place.name,
        "cupy": cupy.__version__,
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "nvrtc": nvrtc.getVersion(),
        "chip": str(place.chip),
        "memory": runtime.memGetInfo()[1],
        "processors": os.cpu_count(),
        "numpy": np.__version__,
        "sanitizer": shutil.which("compute-sanitizer") or "not installed",
    }
    torch = torch_here()
    return found | ({"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()} if torch else {})


def product(size: int) -> dict[str, Any]:
    """Compare some rows of a product in tf32 with float64; the error shows whether cuBLAS rounds or truncates."""
    engine: Any = runtime_cuda.engine("cuda", "tf32")
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((size, size)).astype(np.float32) for _ in range(2))
    on_device = [engine.located(one) for one in (a, b)]
    c = engine.empty(size, size)
    place = engine.device
    place.multiply("tf32", (False, False), (size,) * 3, *[(place.address(one), size) for one in (*on_device, c)], False)
    got, want = as_numpy(c[:64]), a[:64].astype(np.float64) @ b
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    if not 1e-8 < error < 1e-3:
        raise AssertionError(f"a product in tf32 is off by {error:.1e}; expected 1e-8 to 1e-3")
    return {"error": error}


def resident(blocks: int) -> dict[str, Any]:
    """Return how many clusters of so many blocks the device has room for, by an LSTM's plan with such clusters."""
    place = cuda.device(0)
    for plan in plans("lstm", False, "bfloat16", 64 * blocks, 16, place.chip):
        if plan.form == "cluster" and plan.grid[0] == blocks and place.holds(plan):
            pointer = place._function(plan.file, plan.kernel, plan.macros, plan.shared).kernel.ptr
            return {"resident": clusters.resident(pointer, clusters.launch(plan.grid, plan.threads, plan.shared, blocks))}
    return {"left out": f"no plan with clusters of {blocks} blocks has room"}


def thrice(sizes: Sizes, dtype: str) -> dict[str, Any]:
    """Call a layer three times, the last times as a graph, and compare it with the reference."""
    case = cases.Case("lstm", 7, 3, sizes.rows, 5, min(sizes.hidden, 64), state="both", dstate="both")
    layer = case.layer(dtype, "cuda")
    first = None
    for _ in range(3):
        layer.zero_grads()
        got, masks = case.results(layer)
        first = first or got
        if any(not np.array_equal(got[name], first[name]) for name in got):
            raise AssertionError("the same call has other bits the second or third time")
    want = case.wanted(layer, masks)
    error = max(cases.coarse_error(got[name], want[name], 1.0) for name in want)
    if not error < BOUNDS[dtype]:
        raise AssertionError(f"off by {error:.1e}")
    return {"error": error}


def learns(sizes: Sizes, dtype: str) -> dict[str, Any]:
    """Make three updates in the chosen forms and in the general form, and compare their losses."""
    losses = {}
    for form in ("chosen", "general"):
        _, trainer = language_model(sizes, "lstm", dtype, "cuda")
        with forms.forced("general") if form == "general" else nullcontext():
            losses[form] = [trainer.step(*batch(sizes)) for _ in range(3)]
    off = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    if not (off < (1e-3 if dtype == "float32" else 0.03) and abs(losses["general"][0] - np.log(65)) < 0.2):
        raise AssertionError(f"losses {losses}")
    return losses


# Checks in full.


def on_streams(form: str, repeats: int) -> dict[str, Any]:
    """Call `check_streams` with three streams that do not wait for each other."""
    streams = [cuda.cupy().cuda.Stream(non_blocking=True) for _ in range(3)]
    return check_streams(form, [stream.ptr for stream in streams], repeats=repeats, **({"units": 12} if repeats < 10 else {}))


def same(sizes: Sizes, cell: str, dtype: str) -> dict[str, Any]:
    """Check that two training runs from the same state have the same bits."""
    ends = []
    for _ in range(2):
        model, trainer = language_model(sizes, cell, dtype, "cuda", dropout=0.1)
        losses = [trainer.step(*batch(sizes)) for _ in range(4)]
        ends.append((losses, as_numpy(model.params.flat).tobytes()))
    if ends[0] != ends[1]:
        raise AssertionError(f"{cell} in {dtype}: two runs differ, losses {ends[0][0]} and {ends[1][0]}")
    return {"losses": ends[0][0]}


def train(sizes: Sizes, cell: str, dtype: str) -> dict[str, Any]:
    """Compare the losses of a few updates on the device with the CPU's in float32."""
    losses = {}
    for device in ("cuda", "cpu"):
        _, trainer = language_model(sizes, cell, dtype if device == "cuda" else "float32", device)
        losses[device] = [trainer.step(*batch(sizes)) for _ in range(5)]
    off = max(abs(a - b) for a, b in zip(losses["cuda"], losses["cpu"], strict=True))
    if not off < (1e-3 if dtype == "float32" else 0.03):
        raise AssertionError(f"{cell} in {dtype}: losses {losses}")
    return losses


def sanitize(tool: str) -> dict[str, Any]:
    """Run small cases of every kind under compute-sanitizer."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"left out": "compute-sanitizer is not installed"}
    broken = [" ".join(one) for one in sorted(forms.broken)]
    command = [
        program,
        f"--tool={tool}",
        "--error-exitcode=9",
        sys.executable,
        "-m",
        "benchmarks.gpu.points",
        "--only-cases",
        "2",
        "--broken",
        *broken,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    text = done.stdout + done.stderr
    if "not supported" in text:
        return {"left out": text[-300:]}
    if done.returncode:
        raise AssertionError(text[-3000:])
    missed = [one for one in text.splitlines() if one.startswith("left out")]
    return {"summary": text.strip().splitlines()[-1]} | ({"missed": missed} if missed else {})


def points(sizes: Sizes, sections: tuple[str, ...] = SECTIONS) -> list[Point]:
    """Return all points, the most important first."""
    found = [Point("start", "versions", versions), Point("start", "product tf32", lambda: product(sizes.square))]
    found += [Point("start", f"clusters of {blocks}", lambda b=blocks: resident(b)) for blocks in (8, 16)]
    for form in FORMS[1:]:
        shape = ("lstm", min(sizes.hidden, 64) if form == "block" else sizes.hidden, sizes.rows, sizes.first)
        for dtype in sizes.precisions:
            found.append(
                Point(
                    "first", f"{form} form {dtype}", lambda f=form, s=shape, d=dtype: forms.tried(f, *s, d), form, dtype, 30.0
                )
            )
    for dtype in sizes.coarse:
        found.append(Point("again", f"layer {dtype}", lambda d=dtype: thrice(sizes, d)))
        found.append(Point("again", f"training {dtype}", lambda d=dtype: learns(sizes, d)))
    for cell in sizes.cells:
        for dtype in sizes.precisions:
            found.append(Point("step", f"{cell} {dtype}", lambda c=cell, d=dtype: step(sizes, c, d)))
    shapes, budget = sizes.shapes(), sizes.budget
    article = [name for name, shape in shapes.items() if shape[:4] in forms.SHAPES or sizes == SMALL]
    found += [_layer(name, shapes[name], budget) for name in article]
    for cell in ARTICLE if sizes != SMALL else ("lstm",):
        found.append(Point("ratios", cell, lambda c=cell: ratio(sizes, c), limit=120.0))
    for name, (*shape, dtype) in shapes.items():
        timed = (*shape, dtype, lambda run: milliseconds(run, budget / 6))
        found.append(Point("forms", name, lambda t=timed: forms.measure(*t)))
        found.append(Point("waves", name, lambda t=timed: forms.waves(*t)))
        found += [_layer(name, shapes[name], budget)] if name not in article else []
    for form in FORMS:
        for dtype in sizes.precisions:
            found.append(
                Point(
                    "check", f"{form} form {dtype}", lambda f=form, d=dtype: check_form(f, d, min(6, sizes.cases)), form, dtype
                )
            )
    for form in ("general", "grid"):
        found.append(
            Point("check", f"{form} form on three streams", lambda f=form: on_streams(f, sizes.repeats), form, "float32")
        )
    for kind in cases.KINDS:
        for dtype in BOUNDS if sizes != SMALL else ():
            found.append(Point("check", f"{kind} {dtype}", lambda k=kind, d=dtype: check(k, d, cases.CASES[k][: sizes.cases])))
    for cell in sizes.cells:
        for dtype in sizes.coarse:
            found.append(Point("same", f"{cell} {dtype}", lambda c=cell, d=dtype: same(sizes, c, d)))
            found.append(Point("train", f"{cell} {dtype}", lambda c=cell, d=dtype: train(sizes, c, d)))
    found += [Point("sanitize", tool, lambda t=tool: sanitize(t), limit=900.0) for tool in ("memcheck", "racecheck")]
    return [point for point in found if point.section in sections]


def _layer(name: str, shape: tuple[str, int, int, int, str], budget: float) -> Point:
    return Point("layers", name, lambda: layers(*shape, budget))


def serve(sizes: Sizes) -> None:
    """Answer questions for points, each a line of JSON, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output goes to standard error
    known = {(point.section, point.name): point for point in points(sizes)}
    print("ready", file=answers, flush=True)
    for question in sys.stdin:
        asked = json.loads(question)
        forms.broken.clear()
        forms.broken.update(map(tuple, asked["broken"]))
        try:
            with forms.without_broken(cuda.device(0)):
                result = known[asked["section"], asked["name"]].measure()
                cuda.cupy().cuda.Device().synchronize()
        except Exception:
            result = {"failed": traceback.format_exc()[-2000:]}
        print(json.dumps(result), file=answers, flush=True)


def main() -> int:
    """Answer questions, or check small cases for compute-sanitizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes: to see whether everything runs")
    parser.add_argument("--only-cases", type=int, metavar="N", help="only check N small cases of each kind")
    parser.add_argument("--broken", nargs="*", default=[], metavar="'FORM DTYPE'", help="forms that must not be used")
    o = parser.parse_args()
    if o.only_cases:
        forms.broken.update(tuple(one.split()) for one in o.broken)
        with forms.without_broken(cuda.device(0)):
            print(*check_all(o.only_cases), sep="\n")
    else:
        serve(SMALL if o.small else Sizes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
