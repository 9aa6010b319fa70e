"""The two ends of a model that reads numbers: inputs brought to the model's units, and squared errors with their gradient.

Knows nothing of layers. Means, standard deviations and targets are float64; so are inputs, or float32 as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .gemm import share
from .operations import Normalise, SquaredError
from .vector.simd import Simd, get_f32, get_f64, get_i64, put_f64


def normalise(simd: Simd) -> Any:
    """out[t, i, k] = (x[t, i, k] - mean[k]) / std[k], zeros from row i's length on.

    x [steps, batch, width] is `wide`, float64, or `slim`, float32, where the other is 0; mean, std [width], or 0: x as it is;
    lengths [batch] int64, or 0; out [steps, batch, width]. The mean is subtracted before precision is lost. Threads split the
    steps' rows.
    """
    scalar, put = simd.scalar, simd.put

    def kernel(thread, threads, a: Normalise):
        begin, end = share(a.steps * a.batch, thread, threads, 1)
        for i in range(begin, end):
            ended = a.lengths != 0 and i // a.batch >= get_i64(a.lengths, i % a.batch)
            for n in range(i * a.width, (i + 1) * a.width):
                x = 0.0
                if not ended:
                    x = get_f64(a.wide, n) if a.wide != 0 else np.float64(get_f32(a.slim, n))
                    if a.mean != 0:
                        x -= get_f64(a.mean, n - i * a.width)
                if a.mean != 0 and not ended:
                    put(a.out, n, scalar(x) / scalar(get_f64(a.std, n - i * a.width)))
                else:
                    put(a.out, n, scalar(x))

    return kernel


def squared_error(simd: Simd) -> Any:
    """losses[i] = sum over k of (out[i, k] - z[i, k])**2, z = (targets - mean) / std; absolute[i] = sum of abs(...) * std.

    With `gradient`, out becomes the gradient of the mean over all rows and columns, then zeros from `width` up to `row`. out
    [rows, row]; targets [rows, width]; mean, std [period], which a row repeats, or 0: targets as they are; losses, absolute
    [rows] float64. Threads split the rows.
    """
    scalar, get, put = simd.scalar, simd.get, simd.put

    def kernel(thread, threads, a: SquaredError):
        begin, end = share(a.rows, thread, threads, 1)
        factor = 2.0 / (a.rows * a.width)
        for i in range(begin, end):
            squares, distance = 0.0, 0.0
            for k in range(a.width):
                wanted, unit = get_f64(a.targets, i * a.width + k), 1.0
                if a.mean != 0:
                    unit = get_f64(a.std, k % a.period)
                    wanted = (wanted - get_f64(a.mean, k % a.period)) / unit
                error = np.float64(get(a.out, i * a.row + k)) - np.float64(scalar(wanted))
                squares += error * error
                distance += abs(error) * unit
                if a.gradient != 0:
                    put(a.out, i * a.row + k, scalar(factor * error))  # grad: error
            put_f64(a.losses, i, squares)
            put_f64(a.absolute, i, distance)
            if a.gradient != 0:
                for k in range(a.width, a.row):
                    put(a.out, i * a.row + k, scalar(0))

    return kernel
