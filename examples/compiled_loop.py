"""Use a network inside your own compiled loop: an LSTM steers a simulated pendulum, step by step.

The input of each step depends on the output of the step before, so a layer cannot run over a whole sequence. And a step takes
less time than a call from Python. A loop in @njit code has neither problem.

python examples/compiled_loop.py --help
"""

import argparse
import math
import time
from collections.abc import Sequence

import numba
import numpy as np

import fastlstm


@numba.njit
def turn(seen, push):
    """Simulate a hundredth of a second of a pendulum; `seen` [angle, speed] is overwritten."""
    seen[1] += 0.01 * (-9.8 * math.sin(seen[0]) - 0.1 * seen[1] + push)
    seen[0] += 0.01 * seen[1]


@numba.njit
def dot(a, b):
    """Return the sum of products. (NumPy's dot would need SciPy here.)"""
    total = 0.0
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@numba.njit(nogil=True)
def steer(cell, weights, steps):
    """Return the angle after each step; weights [H] turn the network's h into a push."""
    seen, h, c = np.array([1.0, 0.0]), np.zeros(len(weights)), np.zeros(len(weights))
    angles = np.empty(steps)
    for t in range(steps):
        fastlstm.lstm_step(cell, seen, h, c)
        turn(seen, dot(weights, h))
        angles[t] = seen[0]
    return angles


def steer_in_python(layer, weights, steps):
    """Do the same, but call the layer for every step."""
    seen, state = np.array([1.0, 0.0]), None
    angles = np.empty(steps)
    for t in range(steps):
        out, state = layer(seen[None], state)
        turn(seen, dot(weights, out[0]))
        angles[t] = seen[0]
    return angles


def timed(run):
    """Return the result and the seconds of a call."""
    began = time.perf_counter()
    return run(), time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> float:
    """Run both, print their speed, and return the largest difference of their angles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--hidden", type=int, default=64)
    options = parser.parse_args(arguments)

    layer = fastlstm.LSTM(2, options.hidden, dtype="float64", seed=0)
    weights = np.random.default_rng(0).normal(0, 1, options.hidden)
    cell = layer.compiled()  # a copy of the weights, packed, with scratch; make one for each thread
    steer(cell, weights, 1)  # compiles
    angles, seconds = timed(lambda: steer(cell, weights, options.steps))
    few = min(options.steps, 2000)
    others, others_seconds = timed(lambda: steer_in_python(layer, weights, few))
    print(f"compiled loop    {1e6 * seconds / options.steps:7.2f} us a step")
    print(f"loop in Python   {1e6 * others_seconds / few:7.2f} us a step")
    return float(np.abs(angles[:few] - others).max())


if __name__ == "__main__":
    main()
