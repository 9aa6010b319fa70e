"""Measures each form of a recurrence on a GPU: its error against the general form, its time, and the floor's share of that
time.

For a shape, every form that can run it (kernels/device/forms.py) runs the steps of the recurrence, forward and backward,
without the products before and after them. The result has the measured time, what a step has to do, and the floor
(benchmarks/gpu/floors.py). `benchmarks.gpu.run` calls it; the tests run it on the simulated device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest import mock

import numpy as np

import fastlstm
from benchmarks.gpu import floors
from fastlstm.kernels.device import forms
from fastlstm.kernels.device.persistent import CELLS, COUNTERS, GROUPS, Plan
from fastlstm.kernels.operations import (
    GruBackward,
    GruForward,
    LstmBackward,
    LstmForward,
    PackColumns,
    PackRows,
    RnnBackward,
    RnnForward,
)
from fastlstm.runtime import cuda as runtime_cuda
from fastlstm.runtime.arrays import as_numpy

# Shapes (cell, H, B, T): those of published figures in every precision, and a grid in two precisions.
SHAPES = [("lstm", 256, 64, 100), ("gru", 256, 64, 100), ("rnn", 256, 64, 100), ("lstm", 512, 64, 100), ("lstm", 768, 16, 1024)]
GRID = list(product(("lstm", "gru"), (64, 128, 256, 512, 1024), (1, 16, 64, 128), (100,)))
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
BOUNDS = {"float32": 1e-5, "tf32": 5e-3, "bfloat16": 2e-2, "float16": 2e-2}
VARIABLE = "FASTLSTM_CUDA_FORM"
broken: set[tuple[str, str]] = set()  # (form, dtype) that failed and must not be launched any more


def name(cell: str, hidden: int, rows: int, steps: int, dtype: str) -> str:
    """Return the name of a point in results."""
    return f"{cell} H={hidden} B={rows} T={steps} {dtype}"


def points() -> dict[str, tuple[str, int, int, int, str]]:
    """Return (cell, H, B, T, dtype) of all points by name."""
    shapes = [
        (*shape, dtype)
        for shape in dict.fromkeys((*SHAPES, *GRID))
        for dtype in (PRECISIONS if shape in SHAPES else ("float32", "bfloat16"))
    ]
    return {name(*shape): shape for shape in shapes}


@contextmanager
def forced(form: str) -> Iterator[None]:
    """Use this form within the block, wherever it is possible."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = form
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def sound(plan: Plan) -> bool:
    """Return whether a plan's form is not broken; for two layers at once, nor the wave form."""
    return not broken & {(form, plan.dtype) for form in (plan.form, "wave" if plan.layers > 1 else plan.form)}


@contextmanager
def without_broken(device: Any) -> Iterator[None]:
    """Within the block do not choose broken forms, as if the device had no room for them."""
    holds = device.holds
    with mock.patch.object(device, "holds", lambda plan: sound(plan) and holds(plan)):
        yield


class Steps:
    """The steps of a recurrence on their own arrays, forward and backward, run as a layer runs them."""

    def __init__(self, cell: str, hidden: int, rows: int, steps: int, dtype: str) -> None:
        self.engine = engine = runtime_cuda.engine("cuda", dtype)
        self.cell, self.shape, gates = cell, (steps, rows, hidden), CELLS[cell][0]
        draw = np.random.default_rng(0)

        def drawn(*shape: int, scale: float = 1.0) -> Any:
            return engine.located((scale * draw.standard_normal(shape)).astype(np.float32))

        columns = gates * hidden
        self.depth, self.columns_depth = engine.depth(hidden), engine.depth(columns)
        self.op_row, self.kept_row = engine.row(hidden), engine.row(columns)
        self.start = drawn(steps, rows, columns)  # gates before the recurrence's part
        self.gates = engine.empty(steps, rows, columns)
        self.kept = engine.zeros(steps, rows, self.kept_row) if engine.narrow else self.gates
        self.h, self.c = engine.zeros(steps + 1, rows, hidden), engine.zeros(steps + 1, rows, hidden)
        self.op = engine.zeros(steps + 1, rows, self.op_row) if engine.narrow else self.h
        self.side, self.inner = engine.zeros(steps, rows, self.op_row), engine.zeros(steps, rows, self.kept_row)
        self.bias, self.dout = drawn(hidden), drawn(steps, rows, hidden)
        self.dh, self.dc = engine.zeros(rows, hidden), engine.zeros(rows, hidden)
        self.spare, self.counters = engine.empty(rows * (self.op_row + columns)), engine.zeros(COUNTERS * GROUPS)
        weight = drawn(columns, hidden, scale=hidden**-0.5)
        self.ahead = engine.zeros(columns * self.depth)
        self.back = engine.zeros(hidden * self.columns_depth)
        pack = {"hidden": hidden, "gates": gates, "unit": 1, "width": hidden, "w": weight, "w_row": hidden, "scratch": 0}
        engine.run(PackColumns(**pack, depth=self.depth, columns=columns, vectors=4, packed=self.ahead))
        engine.run(PackRows(**pack, depth=self.columns_depth, columns=hidden, packed=self.back))

    def reset(self) -> None:
        """Set the gates to their first values."""
        self.engine.device.copy((self.gates, self.start))

    def forward(self) -> None:
        """Run all steps forward; the gates are overwritten."""
        steps, _, hidden = self.shape
        common = {
            **self._common(),
            "depth": self.depth,
            "op_row": self.op_row,
            "gates": self.gates,
            "h": self.h,
            "op": self.op,
            "weight": self.ahead,
            "ids": 0,
            "table": 0,
            "spare": self.spare,
        }
        kept = {"kept": self.kept, "kept_row": self.kept_row}
        if self.cell == "lstm":
            projection = {"m": 0, "m_row": 0, "m_depth": 0, "projection": 0, "zeros": 0}
            self.engine.run(LstmForward(width=hidden, c=self.c, c_slots=steps + 1, **projection, **kept, **common))
        elif self.cell == "gru":
            self.engine.run(GruForward(side=self.side, side_row=self.op_row, bias=self.bias, **kept, **common))
        else:
            self.engine.run(RnnForward(relu=0, **common))

    def _common(self) -> dict[str, Any]:
        """Return the arguments that forward and backward share."""
        steps, rows, hidden = self.shape
        unused = dict.fromkeys(("reverse", "time", "units", "lengths", "clear", "starts"), 0)
        return {"steps": steps, "batch": rows, "hidden": hidden, "barrier": self.counters, **unused}

    def backward(self) -> None:
        """Run all steps backward; the arrays that forward saved are overwritten."""
        hidden = self.shape[2]
        common = {
            **self._common(),
            "depth": self.columns_depth,
            "start": 1,
            "kept": self.kept,
            "kept_row": self.kept_row,
            "dout": self.dout,
            "dout_row": hidden,
            "dh": self.dh,
            "weight": self.back,
        }
        if self.cell == "lstm":
            projection = {"projection": 0, "zeros": 0, "dp": 0, "dp_row": 0, "dp_depth": 0}
            self.engine.run(LstmBackward(width=hidden, c=self.c, dc=self.dc, spare=0, **projection, **common))
        elif self.cell == "gru":
            self.engine.run(GruBackward(inner=self.inner, side=self.side, side_row=self.op_row, h=self.h, **common))
        else:
            self.engine.run(RnnBackward(relu=0, h=self.h, **common))

    def results(self) -> list[np.ndarray]:
        """Run both; return h of all steps, the gradients of the gates, and that of the first state."""
        self.reset()
        for array in (self.dh, self.dc):
            self.engine.device.copy((array, np.zeros(array.shape, np.float32)))
        self.forward()
        h = as_numpy(self.h).copy()
        self.backward()
        kept = as_numpy(self.kept)
        if self.engine.narrow:
            kept = kept.view(np.uint16)
            if self.engine.dtype == "bfloat16":
                kept = (kept.astype(np.uint32) << 16).view(np.float32)
            else:
                kept = kept.view(np.float16)
        return [np.array(array, np.float64) for array in (h, kept, as_numpy(self.dh))]


def off(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """Return the largest relative norm of a difference; not a number if one is not finite."""
    pairs = zip(got, want, strict=True)
    return float(np.max([np.linalg.norm(g - w) / max(float(np.linalg.norm(w)), 1e-30) for g, w in pairs]))


def measure(
    cell: str, hidden: int, rows: int, steps: int, dtype: str, clock: Callable[[Callable[[int], Any]], float]
) -> dict[str, Any]:
    """Measure every form that can run the shape in both directions.

    Returns for each form the error against the general form in float32, and the microseconds of a step; also the form that is
    chosen, and if it was timed, what the choice costs.

    Parameters
    ----------
    cell, hidden, rows, steps, dtype
        The shape.
    clock : callable
        Returns the milliseconds of a call.
    """
    if broken & {("general", dtype), ("general", "float32")}:
        return {"left out": "the general form, which the others are held against, is broken"}
    device = runtime_cuda.engine("cuda", dtype).device
    chip = device.chip

    def serves(plan: Plan | None) -> bool:
        return plan is None or (sound(plan) and device.holds(plan))

    with forced("general"):
        want = Steps(cell, hidden, rows, steps, "float32").results()
    found: dict[str, Any] = {}
    for form in forms.FORMS:
        ways = [forms.choice(cell, backward, dtype, hidden, rows, steps, chip, form) for backward in (False, True)]
        if any(way.form != form or not serves(way.plan) for way in ways):
            continue  # another form would run instead
        with forced(form):
            work = Steps(cell, hidden, rows, steps, dtype)
            error = off(work.results(), want)
            times = {}
            for way, run in (("forward", work.forward), ("backward", work.backward)):
                work.reset()
                graph = work.engine.device.graph(run)
                times[way] = clock(lambda _, graph=graph: graph()) * 1e3 / steps
        # Rounding errors grow over a sequence; the error of the general form shows how much.
        if not error <= max(BOUNDS[dtype], 2 * found["general"]["error"] if found else 0.0):
            raise AssertionError(f"{form} form of {cell} in {dtype}, H={hidden}, B={rows}: off by {error:.1e}")
        found[form] = {"error": error}
        for (way, time), estimate in zip(times.items(), ways, strict=True):
            least = floors.numbers(estimate, cell, way == "backward", dtype, hidden, rows, steps, floors.gpu(device.name, chip))
            found[form][way] = least | {"us per step": time, "share": least["floor"] / time}
    choices: dict[str, Any] = {}
    for way, backward in (("forward", False), ("backward", True)):
        times = {form: one[way]["us per step"] for form, one in found.items()}
        listed = sorted(forms.estimates(cell, backward, dtype, hidden, rows, chip), key=lambda one: one.seconds(steps))
        chosen = next(one.form for one in listed if serves(one.plan))
        choices[way] = {"chosen": chosen}
        if chosen in times:
            fastest = min(times, key=lambda form: times[form])
            choices[way] |= {"fastest": fastest, "lost": times[chosen] / times[fastest]}
    return {"forms": found, "choices": choices}


def tried(form: str, cell: str, hidden: int, rows: int, steps: int, dtype: str) -> dict[str, Any]:
    """Run a few steps in a form for the first time, and compare them with the general form in float32."""
    if form == "wave":
        return waves(cell, hidden, rows, steps, dtype, lambda run: float(run(0) is None))
    with forced("general"):
        want = Steps(cell, hidden, rows, steps, "float32").results()
    served = []
    launch = Plan.launch

    def noted(plan: Plan, *arguments: Any) -> None:
        served.append(plan.form)
        launch(plan, *arguments)

    with forced(form), mock.patch.object(Plan, "launch", noted):
        error = off(Steps(cell, hidden, rows, steps, dtype).results(), want)
    if served != [form, form] and form != "general":
        return {"left out": f"{form} form does not serve the shape both ways"}
    if not error <= BOUNDS[dtype]:
        raise AssertionError(f"{form} form of {cell} in {dtype}, H={hidden}, B={rows}: off by {error:.1e}")
    return {"error": error}


def waves(
    cell: str, hidden: int, rows: int, steps: int, dtype: str, clock: Callable[[Callable[[int], Any]], float]
) -> dict[str, Any]:
    """Measure two layers one by one and at once: milliseconds of inference and of forward with backward, and the expected ones.

    Parameters
    ----------
    cell, hidden, rows, steps, dtype
        The shape.
    clock : callable
        Returns the milliseconds of a call.
    """
    engine = runtime_cuda.engine("cuda", dtype)
    shapes = [(cell, backward, dtype, hidden, rows) for backward in (False, True)]
    together = [forms.wave(*shape, engine.device.chip) for shape in shapes]
    if not all(together):
        return {"left out": "two layers have no room at once"}
    if not all(sound(one.plan) for one in together):
        return {"left out": f"broken: {', '.join(map(' '.join, sorted(broken)))}"}
    with forced("wave"):
        if any(forms.overlap(*shape, steps, engine.device) is None for shape in shapes):
            return {"left out": "the device cannot hold all blocks of two layers at once"}
    chosen = [forms.overlap(*shape, steps, engine.device) is not None for shape in shapes]
    draw = np.random.default_rng(0)
    x, dout = (engine.located(draw.standard_normal((steps, rows, hidden)).astype(np.float32)) for _ in range(2))
    found: dict[str, Any] = {"chosen at once": dict(zip(("forward", "backward"), chosen, strict=True))}
    results = []
    for way in ("one by one", "at once"):
        with forced("wave") if way == "at once" else mock.patch.object(forms, "overlap", return_value=None):
            layer = getattr(fastlstm, cell.upper())(hidden, hidden, 2, dtype=dtype, device="cuda", seed=0)

            def both(_: int, layer: Any = layer) -> list[Any]:
                out, _, backprop = layer.forward_train(x)
                return [out, backprop(dout)[0]]

            results.append([np.array(as_numpy(one), np.float64) for one in both(0)])
            found[way] = {"inference": clock(lambda _, layer=layer: layer(x)), "forward+backward": clock(both)}
    found["error"] = error = off(results[1], results[0])
    if not error <= BOUNDS[dtype]:
        raise AssertionError(f"two layers of {cell} at once in {dtype}, H={hidden}, B={rows}: off by {error:.1e}")
    one_by_one = [forms.one_by_one(*shape, steps, engine.device.chip) * 1e3 for shape in shapes]
    at_once = [one.seconds(steps) * 1e3 for one in together]
    for way, (forward, backward) in (("one by one", one_by_one), ("at once", at_once)):
        found[way]["expected of the steps"] = {"inference": forward, "forward+backward": forward + backward}
    return found
