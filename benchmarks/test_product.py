"""The packed product beside the BLAS of NumPy and PyTorch: 64 x 256 x 1024 on one thread, weights packed beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.beside import beside
from fastlstm import engine
from fastlstm.kernels import team
from fastlstm.workspace import PACK_SCRATCH

ROWS, DEPTH, COLUMNS = 64, 256, 1024


@pytest.fixture
def one_thread():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = team.num_threads()
    team.set_num_threads(1)
    with threadpoolctl.threadpool_limits(1):
        yield
    team.set_num_threads(before)


def test_product(benchmark, record, one_thread):
    draw = np.random.default_rng(0)
    a = draw.standard_normal((ROWS, DEPTH), np.float32)
    w = draw.standard_normal((COLUMNS, DEPTH), np.float32)
    cpu = engine.engine("cpu", "float32")
    packed, out, bias = cpu.empty(COLUMNS * DEPTH), cpu.empty(ROWS, COLUMNS), cpu.zeros(COLUMNS)
    scratch = cpu.empty(PACK_SCRATCH)
    cpu.run("pack.pack_columns", COLUMNS, 1, cpu.lanes, DEPTH, DEPTH, COLUMNS, 4, w, DEPTH, packed, scratch)

    def ours():
        cpu.run("gemm.product", 1, ROWS, DEPTH, COLUMNS, 0, a, DEPTH, packed, bias, 0, out, COLUMNS)

    ours()
    b = np.ascontiguousarray(w.T)
    np.testing.assert_allclose(out, a @ b, rtol=1e-4, atol=1e-4)
    functions = {"fastlstm": ours, "numpy": lambda: np.matmul(a, b, out=out)}
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(1)
        a_torch, b_torch = torch.tensor(a), torch.tensor(b)
        functions["torch"] = lambda: a_torch @ b_torch
    result = beside(functions, seconds=0.1, blocks=15)
    for one in result.values():
        one["gflops"] = 2e-9 * ROWS * DEPTH * COLUMNS / one["seconds"]
    record["product 64x256x1024, one thread"] = benchmark.extra_info["beside"] = result
    benchmark(ours)
