"""Times the product with packed weights against the BLAS of NumPy and PyTorch: 64 x 256 x 1024 on one thread."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.measure.contest import OURS
from benchmarks.peers import layers
from fastlstm.kernels.native import team
from fastlstm.kernels.operations import PackColumns, Product
from fastlstm.runtime import engine
from fastlstm.runtime.workspace import PACK_SCRATCH

ROWS, DEPTH, COLUMNS = 64, 256, 1024
CASE = f"product {ROWS}x{DEPTH}x{COLUMNS}, one thread"


@pytest.fixture
def one_thread():
    pytest.importorskip("threadpoolctl")
    before = team.num_threads()
    team.set_num_threads(1)
    layers.same_threads()
    yield
    team.set_num_threads(before)
    layers.same_threads()


def data():
    """Return a [ROWS, DEPTH] and w [COLUMNS, DEPTH]."""
    draw = np.random.default_rng(0)
    return draw.standard_normal((ROWS, DEPTH), np.float32), draw.standard_normal((COLUMNS, DEPTH), np.float32)


def ours():
    a, w = data()
    cpu = engine.engine("cpu", "float32")
    packed, out, bias = cpu.empty(COLUMNS * DEPTH), cpu.empty(ROWS, COLUMNS), cpu.zeros(COLUMNS)
    scratch = cpu.empty(PACK_SCRATCH)
    cpu.run(
        PackColumns(
            hidden=COLUMNS,
            gates=1,
            unit=cpu.lanes,
            width=DEPTH,
            depth=DEPTH,
            columns=COLUMNS,
            vectors=4,
            w=w,
            w_row=DEPTH,
            packed=packed,
            scratch=scratch,
        )
    )

    def product():
        cpu.run(
            Product(
                steps=1,
                batch=ROWS,
                depth=DEPTH,
                columns=COLUMNS,
                units=0,
                a=a,
                a_row=DEPTH,
                weight=packed,
                c_in=bias,
                c_in_row=0,
                c=out,
                c_row=COLUMNS,
            )
        )
        return out

    return product


def numpys():
    a, w = data()
    b, out = np.ascontiguousarray(w.T), np.empty((ROWS, COLUMNS), np.float32)
    return lambda: np.matmul(a, b, out=out)


def torchs():
    import torch

    a, w = (torch.tensor(part) for part in data())
    b = w.T.contiguous()
    return lambda: a @ b


MAKERS = {("", OURS): ours, ("", "numpy"): numpys, ("", "torch"): torchs}


@pytest.mark.parametrize("who", [who for _, who in MAKERS])
def test_product(who, contest, one_thread):
    entry = contest(CASE, "", who, MAKERS)
    entry["gflops"] = 2e-9 * ROWS * DEPTH * COLUMNS / entry["seconds"]
