"""The CPU's twins of kernels/device/ptx.cuh: fragments as the PTX ISA lays them out, and the mistakes that asynchrony makes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda.simulator import translate
from tests.cuda.simulator.simulator import ORDERS, KernelError, Module, poisoned

SOURCE = Path(__file__).parent / "samples" / "ptx.cu"
pytestmark = pytest.mark.skipif(translate.compiler() is None, reason="needs g++")
i32 = np.int32


@cache
def module(*macros: str) -> Module:
    return Module(SOURCE, tuple(f"-D{macro}" for macro in macros))


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """float32 with the last `bits` cut off, ties away from zero: exact in what the tensor cores read."""
    return (x.view(np.uint32) + np.uint32(1 << bits - 1) & np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)).view(np.float32)


def bfloat16(x: np.ndarray) -> np.ndarray:
    return (rounded(x, 16).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_products_of_16_bits(kind: str) -> None:
    a, b, c, d = numbers(16, 16), numbers(8, 16).copy(), numbers(16, 8), poisoned((16, 8), np.float32)
    b += 1
    a, b = (rounded(x, 16) if kind == "bfloat16" else x.astype(np.float16).astype(np.float32) for x in (a, b))
    words = [bfloat16(x) if kind == "bfloat16" else x.astype(np.float16).view(np.uint16) for x in (a, b)]
    module().get_function("product_16")((1,), (32,), (*words, c, d, i32(kind == "bfloat16")))
    np.testing.assert_allclose(d, a.astype(np.float64) @ b.T.astype(np.float64) + c, rtol=0, atol=3e-6)


def test_products_of_tf32() -> None:
    a, b, c, d = numbers(16, 8), numbers(8, 8) + 1, numbers(16, 8), poisoned((16, 8), np.float32)
    module().get_function("product_tf32")((1,), (32,), (a, b, c, d))
    wanted = rounded(a, 13).astype(np.float64) @ rounded(b, 13).T.astype(np.float64) + c
    np.testing.assert_allclose(d, wanted, rtol=0, atol=3e-6)


def staged(*macros: str, orders: tuple[str, ...] = ORDERS) -> np.ndarray:
    a, b, d = numbers(16, 16), numbers(16, 8) + 1, poisoned((16, 8), np.float32)
    module(*macros).get_function("product_staged")((1,), (32,), (bfloat16(a), bfloat16(b), d), orders=orders)
    return d - rounded(a, 16).astype(np.float64) @ rounded(b, 16).astype(np.float64)


def ring(*macros: str, orders: tuple[str, ...] = ORDERS, steps: int = 9) -> np.ndarray:
    x, out = numbers(2, 4, 32), poisoned((2, 4, 32), np.float32)
    module(*macros).get_function("ring")((8,), (32,), (x, out, i32(steps)), orders=orders)
    return out - np.roll(x + steps, steps, 1)


def neighbours(*macros: str, orders: tuple[str, ...] = ORDERS, cooperative: bool = True) -> np.ndarray:
    x, between, out = numbers(4, 64), poisoned((2, 4, 64), np.float32), poisoned((4, 64), np.float32)
    args = (x, between, out, np.zeros(1, np.uint32), i32(5))
    module(*macros).get_function("neighbours")((4,), (64,), args, cooperative=cooperative, orders=orders)
    return out - np.roll(x + 5, -5, 0)


def test_copies_and_matrices_through_shared_memory() -> None:
    assert np.abs(staged()).max() < 3e-6


def test_values_sent_round_a_cluster() -> None:
    assert np.abs(ring()).max() < 3e-6


@pytest.mark.parametrize("macros", [(), ("FENCES",)], ids=str)
def test_blocks_that_meet_at_a_counter(macros: tuple[str, ...]) -> None:
    assert np.abs(neighbours(*macros)).max() < 3e-6


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("run", "macro", "kind", "message"),
    [
        (staged, "WAITS_FOR_ONE", "misuse", "returns without waiting for its cp.async"),
        (staged, "NO_WARP_BARRIER", "race", r"sa\[|sb\["),
        (ring, "NO_FIRST", "misuse", "st.async on an mbarrier that was not initialised|finished"),
        (ring, "NO_EMPTY", "race", r"slot\[.*st.async of thread"),
        (ring, "NO_FULL", "race", r"slot\["),
        (ring, "EARLY_RETURN", "divergence|misuse|memory", "cluster_sync|finished|st.async"),
        (neighbours, "NO_FENCE", "race", "staged"),
        (neighbours, "NO_GRID_BARRIER", "race", "staged"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isupper() else "",
)
def test_planted_mistakes_are_found(run: Any, macro: str, kind: str, message: str, order: str) -> None:
    run(orders=(order,))
    with pytest.raises(KernelError, match=message) as error:
        run(macro, orders=(order,))
    assert error.value.kind in kind.split("|")


def test_blocks_that_wait_for_others_that_do_not_run() -> None:
    with pytest.raises(KernelError, match="63 threads: __syncthreads .*1 threads: polls memory") as error:
        neighbours(cooperative=False)
    assert error.value.kind == "deadlock"
