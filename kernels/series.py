"""The two ends of a model that reads numbers: inputs brought to the model's units, and squared errors with their gradient.

Knows nothing of layers. Means, standard deviations and targets are float64; so are inputs, or float32 as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .gemm import share
from .vector.simd import Simd, get_f32, get_f64, get_i64, put_f64


def normalise(simd: Simd) -> Any:
    """out[t, i, k] = (x[t, i, k] - mean[k]) / std[k], zeros from row i's length on.

    x [steps, batch, width] is `wide`, float64, or `slim`, float32, where the other is 0; mean, std [width], or 0: x as it is;
    lengths [batch] int64, or 0; out [steps, batch, width]. The mean is subtracted before precision is lost. Threads split the
    steps' rows.
    """
    scalar, put = simd.scalar, simd.put

    def kernel(thread, threads, steps, batch, width, wide, slim, mean, std, lengths, out):
        begin, end = share(steps * batch, thread, threads, 1)
        for i in range(begin, end):
            ended = lengths != 0 and i // batch >= get_i64(lengths, i % batch)
            for n in range(i * width, (i + 1) * width):
                x = 0.0
                if not ended:
                    x = get_f64(wide, n) if wide != 0 else np.float64(get_f32(slim, n))
                    if mean != 0:
                        x -= get_f64(mean, n - i * width)
                if mean != 0 and not ended:
                    put(out, n, scalar(x) / scalar(get_f64(std, n - i * width)))
                else:
                    put(out, n, scalar(x))

    return kernel


def squared_error(simd: Simd) -> Any:
    """losses[i] = sum over k of (out[i, k] - z[i, k])**2, z = (targets - mean) / std; absolute[i] = sum of abs(...) * std.

    With `gradient`, out becomes the gradient of the mean over all rows and columns, then zeros from `width` up to `row`. out
    [rows, row]; targets [rows, width]; mean, std [period], which a row repeats, or 0: targets as they are; losses, absolute
    [rows] float64. Threads split the rows.
    """
    scalar, get, put = simd.scalar, simd.get, simd.put

    def kernel(thread, threads, rows, width, period, out, row, targets, mean, std, losses, absolute, gradient):
        begin, end = share(rows, thread, threads, 1)
        factor = 2.0 / (rows * width)
        for i in range(begin, end):
            squares, distance = 0.0, 0.0
            for k in range(width):
                wanted, unit = get_f64(targets, i * width + k), 1.0
                if mean != 0:
                    unit = get_f64(std, k % period)
                    wanted = (wanted - get_f64(mean, k % period)) / unit
                error = np.float64(get(out, i * row + k)) - np.float64(scalar(wanted))
                squares += error * error
                distance += abs(error) * unit
                if gradient != 0:
                    put(out, i * row + k, scalar(factor * error))  # grad: error
            put_f64(losses, i, squares)
            put_f64(absolute, i, distance)
            if gradient != 0:
                for k in range(width, row):
                    put(out, i * row + k, scalar(0))

    return kernel
