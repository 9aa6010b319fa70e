"""How threads share the steps of a recurrence: a small model of costs that chooses from the shape.

A step multiplies B rows with a weight of W bytes. Its time is the larger of computing and of bringing the weight to the
registers: a tile takes a few rows, so the weight is read as often as the rows make tiles, from the thread's second-level
cache where it fits there, else from farther away. Three ways to share it:

    alone  one thread does all: no meeting
    rows   each thread takes B / threads rows and reads the whole weight; threads never meet
    units  each thread takes all rows and W / threads of the weight, which then lies in its own cache; they meet every step

The constants were measured with `python -m benchmarks.speed.roofline` and `python -m benchmarks.speed.grid`; they need to be
right to about a factor of two, since a wrong choice near the border costs little.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Multiplications per second and bytes per second of one core, and seconds.
MULTIPLY = {"float32": 80e9, "float64": 40e9, "bfloat16": 350e9}
NEAR, FAR = 70e9, 18e9  # from the second-level cache, and from beyond it
MEETING = 0.5e-6  # a barrier, and what the threads wrote travelling between their caches
TILE_ROWS = {"float32": 6, "float64": 6, "bfloat16": 32}


@dataclass(frozen=True)
class Share:
    """How threads share a recurrence: all of them or one (`parallel`), by units or rows; seconds of a step."""

    parallel: bool
    units: bool
    seconds: float


@cache
def cache_bytes() -> int:
    """Size of a core's second-level cache; 1 MiB where the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0)
    except (OSError, ValueError):
        return 1 << 20


def step_seconds(dtype: str, rows: int, weight_bytes: float, itemsize: int) -> float:
    """Time of one step of `rows` rows with a weight of so many bytes on one core."""
    compute = rows * weight_bytes / itemsize / MULTIPLY[dtype]
    passes = -(-rows // TILE_ROWS[dtype])
    near = weight_bytes < 0.9 * cache_bytes()
    # Beyond the second-level cache a pass finds what the pass before left in it, panel by panel.
    load = passes * weight_bytes / NEAR + (0 if near else weight_bytes / FAR)
    return max(compute, load)


@cache
def choose(dtype: str, batch: int, weight: int, panels: int, threads: int) -> Share:
    """The cheapest way to share a recurrence.

    Parameters
    ----------
    dtype : {"float32", "float64", "bfloat16"}
    batch : int
        Rows B.
    weight : int
        Elements of the recurrent weight.
    panels : int
        Parts into which the hidden units can be split.
    threads : int
    """
    itemsize = {"float32": 4, "float64": 8, "bfloat16": 2}[dtype]
    size = weight * itemsize
    ways = [Share(False, False, step_seconds(dtype, batch, size, itemsize))]
    if threads > 1 and batch > 1:
        ways.append(Share(True, False, step_seconds(dtype, -(-batch // threads), size, itemsize)))
    if threads > 1 and panels > 1:
        part = -(-panels // threads) / panels
        ways.append(Share(True, True, step_seconds(dtype, batch, size * part, itemsize) + MEETING))
    return min(ways, key=lambda way: way.seconds)
