"""Layers under the real CuPy on the pretend device, against the reference: all cells, precisions and forms, called until they
run as graphs.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

import fastlstm
from fastlstm.runtime.arrays import as_numpy
from tests.support import cases

BOUNDS = {"float32": 1e-5, "float64": 1e-12, "tf32": 5e-3, "bfloat16": 2e-2, "float16": 2e-2}
SMALL = {"inputs": 9, "proj": 5, "batch": 5, "steps": 4}


def check(case: cases.Case, dtype: str) -> None:
    """Forward and backward three times, each with the reference's results and the first one's bits; then inference."""
    layer, first = case.layer(dtype, "cuda"), None
    for _ in range(3):
        layer.zero_grads()
        got, masks = case.results(layer)
        if first is None:
            first, want = got, case.wanted(layer, masks)
        assert got.keys() == first.keys()
        assert all(np.array_equal(got[name], first[name]) for name in got)
    scale = max(float(np.abs(array).max()) for array in want.values())
    for name, array in want.items():
        exact = dtype in ("float32", "float64")
        off = cases.error(got[name], array) if exact else cases.coarse_error(got[name], array, scale)
        assert off < BOUNDS[dtype], f"{name} is off by {off:.1e} in {dtype}: {case}"
    given = case.data(cases.storage(layer)).given
    out, _ = layer(given.x, case.pair(given), lengths=given.lengths, resets=given.resets)
    assert np.array_equal(case._time_major(as_numpy(out), "out"), got["out"]), "inference differs from training"


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_step_by_step(kind: str, dtype: str) -> None:
    numbers = (1, 3, 5) if dtype in ("float32", "bfloat16") else (2,)
    for number in numbers:
        case = cases.CASES[kind][number]
        small = {name: min(getattr(case, name), most) for name, most in SMALL.items()}
        check(dataclasses.replace(case, chunk=0, hidden=min(max(case.hidden, 12), 17), **small), dtype)


@pytest.mark.parametrize(
    ("form", "kind", "dtype"),
    [
        ("grid", "lstm", "float32"),
        ("grid", "gru", "tf32"),
        ("cluster", "lstm", "bfloat16"),
        ("cluster", "rnn-tanh", "float32"),
        ("block", "gru", "float32"),
        ("wave", "lstm", "float32"),
    ],
)
def test_in_one_launch(form: str, kind: str, dtype: str) -> None:
    from tests.cuda.pretend.machine import machine

    os.environ["FASTLSTM_CUDA_FORM"] = form
    check(cases.Case(kind, 7, 3, 8, 5, 32, layers=2, state="both", dstate="both", resets=form != "wave"), dtype)
    kernel = "wave" if form == "wave" else "recur"
    assert {f"{kernel}_forward", f"{kernel}_backward"} <= machine.calls.keys()
    assert machine.calls["graph"] > 0


def test_what_a_layer_launches_when_called_again() -> None:
    """The third call is one graph, and copies."""
    from tests.cuda.pretend.machine import machine

    layer = fastlstm.LSTM(8, 8, device="cuda", seed=0)
    x = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)
    for _ in range(2):
        layer(x)
    before = dict(machine.calls)
    layer(x)
    new = {name: count - before.get(name, 0) for name, count in machine.calls.items()}
    assert {name: count for name, count in new.items() if count and not name.startswith("cupy_")} == {"graph": 1}
