"""The simulator runs right kernels as the device would, and finds each planted mistake, in whatever order threads run."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda.simulator import simulator, translate
from tests.cuda.simulator.simulator import ORDERS, KernelError, Module, poisoned

SAMPLES = Path(__file__).parent / "samples"
pytestmark = pytest.mark.skipif(translate.compiler() is None, reason="needs g++")
i32 = np.int32


@cache
def module(name: str, *macros: str) -> Module:
    return Module(SAMPLES / f"{name}.cu", tuple(f"-D{macro}" for macro in macros))


def mechanic(name: str, *macros: str) -> simulator.Kernel:
    return module("mechanics", *macros).get_function(name)


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


# --- Right kernels


@pytest.mark.parametrize(("real", "dtype"), [("float", np.float32), ("double", np.float64)])
@pytest.mark.parametrize("n", [1, 255, 257, 1000])
def test_blocks_of_threads(real: str, dtype: Any, n: int) -> None:
    x, out = numbers(n, dtype=dtype), poisoned(n, dtype)
    module("basic", f"REAL={real}").get_function("scale")((-(-n // 256),), (256,), (x, out, dtype(3), i32(n)))
    np.testing.assert_array_equal(out, dtype(3) * x)


def test_sums_over_blocks() -> None:
    x, out = numbers(1000), poisoned(4, np.float32)
    module("basic", "REAL=float").get_function("block_sums")((4,), (256,), (x, out, i32(1000)))
    np.testing.assert_allclose(out, [x[k : k + 256].sum(dtype=np.float64) for k in range(0, 1000, 256)], rtol=0, atol=1e-5)


def test_indices_in_three_dimensions() -> None:
    out = poisoned((12, 30), i32)
    mechanic("indices")((2, 3, 2), (5, 3, 2), (out,))
    np.testing.assert_array_equal(out, 1000 * np.arange(12)[:, None] + np.arange(30))


@pytest.mark.parametrize("width", [32, 16, 4])
@pytest.mark.parametrize("by", [0, 1, 5, 17])
def test_shuffles(width: int, by: int) -> None:
    x, out, lane = np.arange(100, 164, dtype=i32), poisoned((4, 64), i32), np.arange(64)
    mechanic("shuffles")((1,), (64,), (x, out, i32(by), i32(width)))
    first = lane & -width
    up, down, xor = lane - by, lane + by, lane ^ by
    sources = (
        first + by % width,
        np.where(up < first, lane, up),
        np.where(down >= first + width, lane, down),
        np.where(xor >= first + width, lane, xor),
    )
    np.testing.assert_array_equal(out, [x[source] for source in sources])


def test_shuffles_of_eight_bytes() -> None:
    x, out = numbers(32, dtype=np.float64), poisoned(32, np.float64)
    mechanic("wide_shuffle")((1,), (32,), (x, out))
    np.testing.assert_array_equal(out, x[np.arange(32) ^ 1])


def test_votes_and_reductions() -> None:
    x, out = np.random.default_rng(0).integers(-3, 4, 32).astype(i32), poisoned((32, 8), np.uint32)
    mechanic("votes")((1,), (32,), (x, out))
    raw = x.view(np.uint32)
    ballot = sum(1 << n for n in range(32) if x[n] > 0)
    block = int((x > 0).sum()) | bool((x > -3).all()) << 8 | bool((x > 2).any()) << 9
    votes = ballot, (x > 2).any(), (x > -3).all()
    expected = [*votes, int(x.sum()), int(x.min()), int(raw.max()), np.bitwise_xor.reduce(raw), block]
    np.testing.assert_array_equal(out, np.tile([int(e) & 0xFFFFFFFF for e in expected], (32, 1)))


def test_parts_of_warps_meet_apart() -> None:
    x, out = numbers(32), poisoned(32, np.float32)
    mechanic("halves")((1,), (32,), (x, out))
    np.testing.assert_allclose(out[:31], x.sum() + 1, atol=1e-5)
    assert np.isnan(out[31])


def test_shared_memory_of_templates_and_of_the_launch() -> None:
    out = poisoned(32, np.float32)
    mechanic("two_scratches")((1,), (32,), (out,))
    np.testing.assert_array_equal(out, 3)
    x, out = numbers(50), poisoned(50, np.float32)
    mechanic("dynamic_reverse")((1,), (32,), (x, out, i32(50)), shared_mem=200)
    np.testing.assert_array_equal(out, x[::-1])


def test_structures_vectors_and_bytes() -> None:
    kind = np.dtype([("a", "f4"), ("b", "f4"), ("c", "f4"), ("d", "f8", 4)], align=True)
    x, out = np.zeros(3, kind), poisoned(3, kind)
    x["b"], x["d"] = 2, 3
    mechanic("copy_triples")((1,), (32,), (x, out, i32(3)))
    assert out["b"].tolist() == [2] * 3
    assert (out["d"] == 3).all()
    x, out = numbers(64), poisoned(64, np.float32)
    mechanic("vectors")((1,), (16,), (x, out, i32(0)))
    np.testing.assert_array_equal(out.reshape(-1, 4), x.reshape(-1, 4)[:, ::-1])
    mechanic("copy_bytes_of")((1,), (16,), (x, out, i32(64)))
    np.testing.assert_array_equal(out, x)


def test_every_kind_of_argument() -> None:
    kind = np.dtype([("a", "f4"), ("b", "f4"), ("c", "f4"), ("d", "f8", 4)], align=True)
    triple = np.zeros(1, kind)
    triple["a"], triple["d"] = 1, 5
    out = poisoned(5, np.float64)
    mechanic("given")((1,), (1,), (triple[0], True, np.uint8(200), -7, None, out))
    assert out.tolist() == [6, 1, 200, -7, 1]


def test_variables_of_the_module() -> None:
    out = poisoned(4, np.float32)
    mechanic("own_variables")((1,), (4,), (out,))
    assert out.tolist() == [1, 2, 3, 4]


def test_atomics_count_every_thread() -> None:
    x = np.random.default_rng(0).integers(0, 5, 300).astype(i32)
    counts, total = np.zeros(5, np.uint32), np.zeros(1, np.float32)
    sums, largest = np.zeros(1, np.uint64), np.full(1, -1, i32)
    mechanic("histogram")((3,), (128,), (x, counts, sums, largest, total, i32(300)))
    assert counts.tolist() == np.bincount(x, minlength=5).tolist()
    assert (sums[0], largest[0], total[0]) == (x.sum(), x.max(), x.sum())


def test_the_last_block_sees_what_all_have_written() -> None:
    x, out = numbers(7), poisoned(1, np.float32)
    mechanic("last_block_sums")((7,), (32,), (x, poisoned(7, np.float32), np.zeros(1, np.uint32), out))
    np.testing.assert_allclose(out[0], x.sum(), rtol=1e-6)


def test_barriers_of_the_grid() -> None:
    x, out = numbers(192), poisoned(192, np.float32)
    mechanic("grid_exchange")((3,), (64,), (x, poisoned(192, np.float32), out), cooperative=True)
    np.testing.assert_array_equal(out, x[::-1])


def test_clusters_read_each_others_shared_memory() -> None:
    x, out = numbers(8, 32), poisoned(8, np.float32)
    module("planted").get_function("neighbour")((8,), (32,), (x, out))
    np.testing.assert_allclose(out, np.concatenate([np.roll(x[c : c + 4].sum(1), -1) for c in (0, 4)]), atol=1e-5)


def test_an_array_may_be_passed_twice_and_in_part() -> None:
    x = numbers(100)
    whole = x.copy()
    module("basic", "REAL=float").get_function("scale")((1,), (64,), (x[20:70], x[20:70], np.float32(2), i32(50)))
    whole[20:70] *= 2
    np.testing.assert_array_equal(x, whole)


def test_bits() -> None:
    a, b = np.random.default_rng(0).integers(0, 1 << 32, (2, 32), np.uint32)
    out = poisoned((32, 8), np.uint32)
    a[0] = 0
    mechanic("bits_of")((1,), (32,), (a, b, out))
    for x, y, row in zip(a.tolist(), b.tolist(), out.tolist(), strict=True):
        both, text = y << 32 | x, f"{x:032b}"
        assert row == [
            x * y >> 32,
            text.count("1"),
            32 - x.bit_length(),
            int(text[::-1], 2),
            (y & 0xFFFF) << 16 | x & 0xFFFF,
            (both << 7) >> 32 & 0xFFFFFFFF,
            both >> 7 & 0xFFFFFFFF,
            (x & -x).bit_length(),
        ]


# --- Planted mistakes: (sample, macro, kernel, launch, what is reported). Without the macro each must pass.

X = numbers(1024)
PLANTED = [
    (
        "INDEX",
        "last_column",
        (1,),
        (64,),
        lambda: (X.reshape(32, 32), poisoned(32, "f4"), i32(32), i32(32)),
        "memory",
        r"thread \(31, 0, 0\) .* reads 4 bytes x .*\[1024\], outside .*planted.cu:\d+",
    ),
    (
        "OVERRUN",
        "fill",
        (2,),
        (32,),
        lambda: (poisoned(50, "f4"), i32(50)),
        "memory",
        r"thread \(18, 0, 0\) of block \(1, 0, 0\) writes 4 bytes out .*\[50\]",
    ),
    ("NO_BARRIER", "reverse", (4,), (64,), lambda: (X, poisoned(256, "f4")), "race", r"part\[\d+\], which thread .* has read"),
    (
        "ROW_OVERRUN",
        "transpose",
        (1,),
        (32, 32),
        lambda: (X, poisoned(1024, "f4")),
        "memory",
        r"index 33 is outside of 'float \[33\]'",
    ),
    (
        "SHARED_OVERRUN",
        "transpose",
        (1,),
        (32, 32),
        lambda: (X, poisoned(1024, "f4")),
        "memory",
        r"writes 4 bytes tile\[1056\]",
    ),
    (
        "RETURNS",
        "early",
        (1,),
        (64,),
        lambda: (X, poisoned(50, "f4"), i32(50)),
        "divergence",
        "returns while 50 threads of its block wait at __syncthreads",
    ),
    (
        "ELSEWHERE",
        "early",
        (1,),
        (64,),
        lambda: (X, poisoned(50, "f4"), i32(50)),
        "divergence",
        "__syncthreads .* while .* wait at __syncthreads",
    ),
    ("NO_FIRST", "neighbour", (8,), (32,), lambda: (X, poisoned(8, "f4")), "race", "row"),
    (
        "NO_LAST",
        "neighbour",
        (8,),
        (32,),
        lambda: (X, poisoned(8, "f4")),
        "memory",
        r"row of block \(\d, 0, 0\), which has finished",
    ),
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("macro", "name", "grid", "block", "args", "kind", "message"), PLANTED, ids=[p[0] for p in PLANTED])
def test_planted_mistakes_are_found(
    macro: str, name: str, grid: tuple, block: tuple, args: Any, kind: str, message: str, order: str
) -> None:
    module("planted").get_function(name)(grid, block, args(), orders=(order,))
    with pytest.raises(KernelError, match=message if order == "forward" else None) as error:
        module("planted", macro).get_function(name)(grid, block, args(), orders=(order,))
    assert error.value.kind == kind


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("macro", "name", "args", "launch"),
    [
        ("NO_WARP_BARRIER", "through_memory", lambda: (poisoned(32, "f4"), poisoned(32, "f4")), ((1,), (32,))),
        ("SHUFFLE_ONLY", "through_memory", lambda: (poisoned(32, "f4"), poisoned(32, "f4")), ((1,), (32,))),
        ("NO_GRID_BARRIER", "grid_exchange", lambda: (X, poisoned(192, "f4"), poisoned(192, "f4")), ((3,), (64,))),
        ("NO_FENCE", "last_block_sums", lambda: (X, poisoned(7, "f4"), np.zeros(1, "u4"), poisoned(1, "f4")), ((7,), (32,))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_races_are_found_in_every_order(macro: str, name: str, args: Any, launch: Any, order: str) -> None:
    cooperative = name == "grid_exchange"
    mechanic(name)(*launch, args(), cooperative=cooperative, orders=(order,))
    with pytest.raises(KernelError, match="no barrier stands between") as error:
        mechanic(name, macro)(*launch, args(), cooperative=cooperative, orders=(order,))
    assert error.value.kind == "race"


@pytest.mark.parametrize(
    ("kind", "name", "block", "args", "message"),
    [
        ("race", "plain_beside_atomic", 2, lambda: (np.zeros(1, "u4"),), "x"),
        ("divergence", "other_operation", 32, lambda: (poisoned(32, i32),), "__shfl_sync .* while .* __ballot_sync"),
        ("divergence", "lane_not_in_mask", 32, lambda: (poisoned(32, i32),), "its lane is not"),
        ("deadlock", "lanes_at_a_barrier", 32, lambda: (poisoned(32, i32),), "16 threads: __shfl_sync.*16 .*: __syncthreads"),
        ("deadlock", "spins", 4, lambda: (np.zeros(1, i32),), "4 threads: polls memory"),
        ("memory", "through_const", 4, lambda: (np.zeros(4, "f4"),), "pointer to const"),
        ("memory", "add_one", 4, lambda: (None,), "null pointer"),
        ("memory", "add_one", 4, lambda: (np.zeros(0, "f4"),), "null pointer"),
        ("memory", "add_one", 4, lambda: (np.zeros(10, "f4")[4:7],), r"x \(float32\[3\]\)\[3\]"),
        ("memory", "vectors", 15, lambda: (X[:64], poisoned(64, "f4"), i32(1)), "multiple of|aligned"),
        ("memory", "copy_bytes_of", 4, lambda: (X[:9], poisoned(8, "f4"), i32(9)), r"writes 36 bytes out"),
        ("memory", "copy_triples", 4, lambda: (np.zeros(44 * 3, "u1"), np.zeros(48 * 3, "u1"), i32(3)), "x .*outside"),
        ("memory", "rows_of_local", 1, lambda: (np.full(2, 4, i32),), "index 4 is outside of 'int \\[4\\]'"),
        ("memory", "deep", 1, lambda: (np.zeros(1, i32), i32(1000)), "local variables"),
        ("arithmetic", "divides", 1, lambda: (np.array([1, 1, 0], i32),), "by zero"),
        ("arithmetic", "overflows", 1, lambda: (np.full(3, 2**31 - 1, i32),), "overflow"),
        ("arithmetic", "shifts", 1, lambda: (np.full(3, 40, i32),), "shift"),
        ("arithmetic", "asserts", 1, lambda: (np.zeros(1, i32),), r"assert\(x\[0\] == 1\) \(mechanics.cu:\d+\)"),
        ("order", "last_wins", 8, lambda: (np.zeros(1, "u4"),), r"out \(uint32\[1\]\) differs in 1 elements"),
        ("misuse", "grid_exchange", 32, lambda: (X[:32], poisoned(32, "f4"), poisoned(32, "f4")), "not cooperative"),
    ],
)
def test_other_mistakes_are_reported(kind: str, name: str, block: int, args: Any, message: str) -> None:
    with pytest.raises(KernelError, match=message) as error:
        mechanic(name)((1,), (block,), args())
    assert error.value.kind == kind


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_are_not_ordered_by_running_in_turn(order: str) -> None:
    with pytest.raises(KernelError) as error:
        mechanic("blocks_in_turn")((3,), (1,), (np.zeros(4, np.float32),), orders=(order,))
    assert error.value.kind == "race"


def test_shared_memory_beyond_the_launch_is_outside() -> None:
    with pytest.raises(KernelError, match=r"dynamic shared memory\[49\], outside of its 49 elements"):
        mechanic("dynamic_reverse")((1,), (32,), (X, poisoned(50, "f4"), i32(50)), shared_mem=196)


def test_shared_memory_starts_as_nan_in_every_block() -> None:
    out = poisoned(32, np.float32)
    mechanic("unset_shared")((1,), (32,), (out,))
    assert (out[:16] == 1).all()
    assert np.isnan(out[16:]).all()


def test_a_thread_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "MAX_ACCESSES", 100_000)
    with pytest.raises(KernelError, match="still runs after") as error:
        mechanic("never_ends")((1,), (1,), (np.zeros(2, i32),))
    assert error.value.kind == "deadlock"


def test_launches_after_a_failure_are_as_before() -> None:
    for _ in range(2):
        with pytest.raises(KernelError):
            mechanic("add_one")((1,), (5,), (np.zeros(4, np.float32),))
        x = np.zeros(4, np.float32)
        mechanic("add_one")((1,), (4,), (x,))
        assert x.tolist() == [1] * 4


# --- What a call accepts

SCALE = (X[:4], X[4:8].copy(), np.float32(1), i32(4))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, X[:4].astype(np.float64), r"argument 0 \(x\) points to float of 4 bytes, got an array of float64"),
        (0, X[:4].view(i32), "points to float"),
        (0, 1.0, "must be an array or None"),
        (2, 1.0, r"argument 2 \(factor\) is float of 4 bytes, got float64"),
        (2, i32(1), "is float of 4 bytes, got int32"),
        (3, 4, r"argument 3 \(n\) is integer of 4 bytes, got int64"),
        (3, np.float32(4), "is integer"),
        (3, True, "is integer"),
        (3, None, "is a scalar"),
        (3, "4", "CuPy takes no str"),
    ],
)
def test_arguments_are_held_against_the_declaration(position: int, value: Any, message: str) -> None:
    args = [*SCALE[:position], value, *SCALE[position + 1 :]]
    with pytest.raises(TypeError, match=message):
        module("basic", "REAL=float").get_function("scale")((1,), (4,), args)


def test_written_arrays_must_be_writable_and_all_arguments_there() -> None:
    scale = module("basic", "REAL=float").get_function("scale")
    frozen = X[:4].copy()
    frozen.flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        scale((1,), (4,), (X[:4], frozen, np.float32(1), i32(4)))
    scale((1,), (4,), (frozen, X[:4].copy(), np.float32(1), i32(4)))
    with pytest.raises(TypeError, match=r"takes 4 arguments \(x, out, factor, n\), got 3"):
        scale((1,), (4,), SCALE[:3])
    with pytest.raises(KeyError, match="no kernel 'scales'.*'scale'"):
        module("basic", "REAL=float").get_function("scales")


@pytest.mark.parametrize(
    ("name", "grid", "block", "options", "message"),
    [
        ("scale", (1,), (257,), {}, "at most 256 threads"),
        ("scale", (0,), (4,), {}, "grid must be one to three positive integers"),
        ("scale", (1,), (4,), {"shared_mem": 232449}, "shared_mem"),
        ("scale", (3,), (4,), {"cluster": (2, 1, 1)}, "multiple of cluster"),
        ("scale", (32,), (4,), {"cluster": (32, 1, 1)}, "at most 16 blocks"),
        ("neighbour", (4,), (32,), {"cluster": (2, 1, 1)}, r"cluster must be \(4, 1, 1\)"),
    ],
)
def test_launches_that_no_device_takes(name: str, grid: tuple, block: tuple, options: dict[str, Any], message: str) -> None:
    source = module("basic", "REAL=float") if name == "scale" else module("planted")
    args = SCALE if name == "scale" else (X, poisoned(4, np.float32))
    with pytest.raises(ValueError, match=message):
        source.get_function(name)(grid, block, args, **options)


def test_sources_that_do_not_compile_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.cu"
    broken.write_text('extern "C" __global__ void f(float* x) { x[0] = y; }\n')
    with pytest.raises(translate.CompileError, match=r"broken.cu:1.*'y' was not declared|broken.cu:1"):
        Module(broken)
    broken.write_text('extern "C" __global__ void f(float* x) { __shared__ float a = 1.0f; x[0] = a; }\n')
    with pytest.raises(translate.CompileError, match="declaration of shared memory"):
        Module(broken)


def test_a_library_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "once.cu"
    source.write_text('extern "C" __global__ void set(int* x) { x[0] = VALUE; }\n')
    x = np.zeros(1, i32)
    Module(source, ("-DVALUE=3",)).get_function("set")((1,), (1,), (x,))
    run = translate._run

    def only_preprocess(*command: Any, **rest: Any) -> str:
        assert "-E" in command, "compiled again"
        return run(*command, **rest)

    monkeypatch.setattr(translate, "_run", only_preprocess)
    Module(source, ("-DVALUE=3",)).get_function("set")((1,), (1,), (x,))
    assert x[0] == 3
    with pytest.raises(AssertionError, match="compiled again"):
        Module(source, ("-DVALUE=4",))


def test_fibers_without_a_switch_of_our_own() -> None:
    """The portable switch (ucontext), in a process of its own: a process has one runtime."""
    code = """
import numpy as np
from tests.cuda.simulator import translate
translate.RUNTIME_FLAGS += ("-DFASTLSTM_UCONTEXT",)
from tests.cuda import test_simulator as tests
tests.test_sums_over_blocks(), tests.test_barriers_of_the_grid(), tests.test_shared_memory_beyond_the_launch_is_outside()
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
