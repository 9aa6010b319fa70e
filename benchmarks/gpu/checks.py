"""Compares a GPU's results with the float64 reference, on the tests' random cases. `benchmarks.gpu.run` calls it.

The cases are layers of every kind and precision, and every form of a recurrence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np

import fastlstm
from benchmarks.gpu import forms
from fastlstm.kernels.device.forms import FORMS
from fastlstm.kernels.device.persistent import Plan
from fastlstm.runtime.arrays import as_numpy
from tests.support import cases

BOUNDS = forms.BOUNDS | {"float64": 1e-12}


def check(kind: str, dtype: str, some: Sequence[cases.Case]) -> dict[str, Any]:
    """Check some cases of a kind; return the largest error and its bound."""
    worst, where = 0.0, ""
    for drawn in some:
        case = dataclasses.replace(drawn, chunk=0, hidden=max(drawn.hidden, 12) if dtype in cases.COARSE else drawn.hidden)
        layer = case.layer(dtype, "cuda")
        got, masks = case.results(layer)
        want = case.wanted(layer, masks)
        scale = max(float(np.abs(array).max()) for array in want.values())
        for name, array in want.items():
            exact = dtype in ("float32", "float64")
            off = cases.error(got[name], array) if exact else cases.coarse_error(got[name], array, scale)
            if not off <= worst:
                worst, where = off, f"{name} of {case}"
    if not worst < BOUNDS[dtype]:
        raise AssertionError(f"{kind} in {dtype} is off by {worst:.1e}, allowed {BOUNDS[dtype]:.0e}: {where}")
    return {"error": worst, "allowed": BOUNDS[dtype], "cases": len(some)}


def cases_for(form: str, kind: str, count: int) -> list[cases.Case]:
    """Return the first cases of a kind; for the wave form at least two, of those in which two layers can run at once."""
    if form != "wave":
        return cases.CASES[kind][:count]
    stacks = [case for case in cases.CASES[kind] if case.layers > 1 and not (case.bidirectional or case.proj)]
    return stacks[: max(count, 2)]


def check_form(form: str, dtype: str, count: int = 6) -> dict[str, Any]:
    """Check every kind in one form. Kinds that the form cannot run are listed as left out."""
    launch, served, errors, missed = Plan.launch, set(), {}, []

    def noted(plan: Plan, *arguments: Any) -> None:
        served.add("wave" if plan.layers > 1 else plan.form)
        launch(plan, *arguments)

    with forms.forced(form), mock.patch.object(Plan, "launch", noted):
        for kind in ("lstm", "gru", "rnn-tanh", "rnn-relu"):
            served.clear()
            error = check(kind, dtype, cases_for(form, kind, count))["error"]
            if form in (served or {"general"}):
                errors[kind] = error
            else:
                missed.append(kind)
    return {"errors": errors} | ({"left out": f"{form} form served no case of {', '.join(missed)}"} if missed else {})


def check_streams(form: str, streams: Sequence[int], units: int = 512, repeats: int = 200) -> dict[str, Any]:
    """Check that calls of one layer on several streams at once give the same bits as calls on one stream.

    Streams are given by their handles. Every tenth time the weights count as changed: the first stream packs them and the
    others wait.
    """
    layer = fastlstm.LSTM(units, units, 2, device="cuda", seed=0)
    device, draw = layer._engine.device, np.random.default_rng(0)
    inputs = [layer._engine.located(draw.standard_normal((20, 4, units)).astype(np.float32)) for _ in streams]
    with forms.forced(form):
        wanted = [as_numpy(layer(x)[0]) for x in inputs]
        for repeat in range(repeats):
            if repeat % 10 == 0:
                layer.params.bump()
            found = []
            for stream, x in zip(streams, inputs, strict=True):
                with device.on(stream):
                    found.append(layer(x)[0])
            for stream, want, got in zip(streams, wanted, found, strict=True):
                with device.on(stream):
                    if not np.array_equal(as_numpy(got), want):
                        raise AssertionError(f"{form} form, repeat {repeat}: other bits than alone")
    return {"streams": len(streams), "repeats": repeats}


def check_all(count: int) -> list[str]:
    """Check small cases of every kind, then in every form that is not broken; return what was left out."""
    missed = []
    for kind in cases.KINDS:
        for dtype in ("float32", "bfloat16"):
            check(kind, dtype, cases.CASES[kind][:count])
    for form in FORMS[1:]:
        for dtype in ("float32", "bfloat16"):
            left = "broken" if (form, dtype) in forms.broken else check_form(form, dtype, count).get("left out")
            if left:
                missed.append(f"left out: {form} form {dtype}: {left}")
    return missed
