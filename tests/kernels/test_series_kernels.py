"""The kernels at the two ends of a model that reads numbers, against NumPy in float64."""

import numpy as np
import pytest

from fastlstm.kernels.operations import Normalise, SquaredError
from fastlstm.runtime.engine import engine

DRAW = np.random.default_rng(0)
EXACT = {"float32": 1e-6, "float64": 1e-15}


@pytest.mark.parametrize("given", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 3, 17])
def test_normalise(width, dtype, given):
    x = DRAW.normal(1000, 3, (5, 4, width)).astype(given)
    mean, std, lengths = DRAW.normal(1000, 1, width), DRAW.uniform(1, 3, width), np.array([5, 0, 2, 4])
    wide, slim = (x, None) if given == "float64" else (None, x)
    for spread in (True, False):
        for ends in (None, lengths):
            out = np.full(x.shape, np.nan, dtype)
            arguments = (mean, std) if spread else (None, None)
            engine("cpu", dtype).run(
                Normalise(
                    steps=5,
                    batch=4,
                    width=width,
                    wide=wide,
                    slim=slim,
                    mean=arguments[0],
                    std=arguments[1],
                    lengths=ends,
                    out=out,
                )
            )
            want = (x.astype(np.float64) - mean) / std if spread else x.astype(np.float64)
            if ends is not None:
                want[np.arange(5)[:, None] >= ends] = 0
            np.testing.assert_allclose(out, want, rtol=EXACT[dtype], atol=EXACT[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("width", "period"), [(1, 1), (6, 3), (33, 11)])
def test_squared_error(width, period, dtype):
    rows, row = 5, width + 3
    targets, mean, std = DRAW.normal(2, 1, (rows, width)), DRAW.normal(0, 1, period), DRAW.uniform(1, 3, period)
    for spread in (True, False):
        out = DRAW.standard_normal((rows, row)).astype(dtype)
        unit = np.tile(std, width // period) if spread else np.ones(width)
        wanted = (targets - np.tile(mean, width // period)) / unit if spread else targets
        error = out[:, :width].astype(np.float64) - wanted
        losses, absolute, kept = np.empty(rows), np.empty(rows), out.copy()
        arguments = (mean, std) if spread else (None, None)
        for gradient in (0, 1):
            engine("cpu", dtype).run(
                SquaredError(
                    rows=rows,
                    width=width,
                    period=period,
                    out=out,
                    row=row,
                    targets=targets,
                    mean=arguments[0],
                    std=arguments[1],
                    losses=losses,
                    absolute=absolute,
                    gradient=gradient,
                )
            )
            np.testing.assert_allclose(losses, (error**2).sum(axis=1), rtol=10 * EXACT[dtype])
            np.testing.assert_allclose(absolute, np.abs(error * unit).sum(axis=1), rtol=10 * EXACT[dtype])
            if not gradient:
                assert np.array_equal(out, kept)
        np.testing.assert_allclose(out[:, :width], 2 * error / error.size, rtol=10 * EXACT[dtype], atol=EXACT[dtype])
        assert not out[:, width:].any()
