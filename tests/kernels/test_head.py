"""The kernels at the two ends of a model, against the float64 reference: rows by token, softmax cross-entropy, dropout.

Bits are compared over threads and instruction sets. Dropout is compared with the Philox of this file.
"""

import numpy as np
import pytest

from fastlstm.kernels import reference
from fastlstm.kernels.native import jit, team
from fastlstm.kernels.operations import Dropout, GatherRows, ScatterRows, SoftmaxCrossEntropy
from fastlstm.runtime.engine import engine

DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
GUARD = 17.25  # stands wherever nothing may be written


@pytest.fixture(autouse=True)
def threads():
    before = team.num_threads()
    team.set_num_threads(1)
    yield
    team.set_num_threads(before)


def everywhere(compute):
    """What `compute` returns, the same bits with one thread and with two, and on every instruction set."""
    wanted = None
    for count in (1, 2):
        team.set_num_threads(count)
        for isa in jit.supported():
            with jit.use_isa(isa):
                got = compute()
            if wanted is None:
                wanted = got
            for a, b in zip(got, wanted, strict=True):
                assert a.tobytes() == b.tobytes(), f"{count} threads, {isa}"
    return wanted


def guarded(values, columns, row):
    """Rows of `row` elements that begin with `columns` of values; beyond the last row's `row` elements stands a guard."""
    rows = len(values)
    flat = np.full(rows * row + 40, GUARD, values.dtype)
    flat[: rows * row].reshape(rows, row)[:, :columns] = values
    return flat


def close(got, wanted, dtype):
    assert got.shape == wanted.shape
    assert np.linalg.norm(got - wanted) <= TOLERANCE[dtype] * max(np.linalg.norm(wanted), 1e-300)


# Rows by token


@DTYPES
@pytest.mark.parametrize(
    ("columns", "source_row", "out_row"), [(1, 1, 1), (5, 5, 8), (16, 16, 16), (33, 40, 48), (100, 100, 100)]
)
def test_gather(dtype, columns, source_row, out_row):
    rng = np.random.default_rng(columns)
    table = rng.standard_normal((9, columns)).astype(dtype)
    ids = rng.integers(0, 9, 23).astype(np.int32)
    source = guarded(table, columns, source_row)

    def compute():
        out = np.full(23 * out_row + 40, GUARD, dtype)
        engine("cpu", dtype).run(
            GatherRows(rows=23, columns=columns, ids=ids, source=source, source_row=source_row, out=out, out_row=out_row)
        )
        return (out,)

    out = everywhere(compute)[0]
    rows = out[: 23 * out_row].reshape(23, out_row)
    assert np.array_equal(rows[:, :columns], reference.embedding_forward(table, ids))
    assert not rows[:, columns:].any()
    assert (out[23 * out_row :] == GUARD).all()


@DTYPES
@pytest.mark.parametrize(
    ("rows", "columns", "row"), [(0, 3, 3), (1, 1, 1), (50, 5, 8), (200, 32, 32), (70, 65, 80), (9, 130, 130)]
)
def test_scatter(dtype, rows, columns, row):
    rng = np.random.default_rng(rows)
    values = rng.standard_normal((rows, columns)).astype(dtype)
    ids = rng.integers(0, 7, rows).astype(np.int32)
    start = rng.standard_normal((7, columns)).astype(dtype)
    source = guarded(values, columns, row)

    def compute():
        out = guarded(start, columns, row)
        engine("cpu", dtype).run(
            ScatterRows(rows=rows, columns=columns, ids=ids, source=source, source_row=row, out=out, out_row=row)
        )
        return (out,)

    out = everywhere(compute)[0]
    inside = out[: 7 * row].reshape(7, row)
    close(inside[:, :columns], start + reference.embedding_backward(ids, values, 7), dtype)
    # Exactly so: one chain of additions per element, rows ascending.
    chain = start.copy()
    for i in range(rows):
        chain[ids[i]] += values[i]
    assert np.array_equal(inside[:, :columns], chain)
    assert (inside[:, columns:] == GUARD).all()
    assert (out[7 * row :] == GUARD).all()


# Softmax cross-entropy


def cross_entropy(logits, classes, row, targets, scale, gradient=1, hits=True):
    """losses [N], the buffer that held the logits and now their gradient, correct [N]."""
    dtype, rows = logits.dtype.name, len(logits)
    buffer, losses = guarded(logits, classes, row), np.full(rows, GUARD)
    correct = np.full(rows, 9, np.uint8)
    engine("cpu", dtype).run(
        SoftmaxCrossEntropy(
            rows=rows,
            classes=classes,
            logits=buffer,
            row=row,
            targets=targets.astype(np.int32),
            scale=np.full(1, scale, dtype),
            losses=losses,
            gradient=gradient,
            correct=correct if hits else None,
        )
    )
    return losses, buffer, correct


@DTYPES
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize(
    ("rows", "classes", "row"),
    [(1, 1, 1), (1, 1, 16), (3, 2, 2), (5, 7, 8), (9, 16, 16), (40, 17, 32), (31, 65, 65), (31, 65, 80), (7, 300, 304)],
)
def test_cross_entropy(dtype, spread, rows, classes, row):
    rng = np.random.default_rng(classes)
    logits = (spread * rng.standard_normal((rows, classes)) - 5).astype(dtype)
    targets = rng.integers(0, classes, rows)

    losses, buffer, correct = everywhere(lambda: cross_entropy(logits, classes, row, targets, 1 / rows))
    wanted, dwanted = reference.softmax_cross_entropy(logits, targets)
    inside = buffer[: rows * row].reshape(rows, row)
    assert abs(losses.mean() - wanted) <= TOLERANCE[dtype] * abs(wanted) + 1e-15
    if classes > 1:
        close(inside[:, :classes], dwanted, dtype)
    assert not inside[:, classes:].any()
    assert (buffer[rows * row :] == GUARD).all()
    assert np.array_equal(correct, logits.argmax(axis=1) == targets)

    only, untouched, _ = cross_entropy(logits, classes, row, targets, 1 / rows, gradient=0, hits=False)
    assert np.array_equal(only, losses)
    assert np.array_equal(untouched, guarded(logits, classes, row))


@DTYPES
def test_cross_entropy_of_each_row_alone(dtype):
    """Loss and gradient of a row do not depend on the rows around it."""
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((6, 37)).astype(dtype), rng.integers(0, 37, 6)
    losses, buffer, _ = cross_entropy(logits, 37, 48, targets, 0.125)
    for i in range(6):
        alone, gradient, _ = cross_entropy(logits[i : i + 1], 37, 48, targets[i : i + 1], 0.125)
        assert alone[0] == losses[i]
        assert np.array_equal(gradient[:48], buffer[i * 48 : i * 48 + 48])


@DTYPES
def test_rows_left_out(dtype):
    logits, targets = np.random.default_rng(0).standard_normal((4, 20)).astype(dtype), np.array([3, -1, 0, -1])
    losses, buffer, correct = cross_entropy(logits, 20, 32, targets, 0.5)
    rows = buffer[: 4 * 32].reshape(4, 32)
    assert not losses[[1, 3]].any()
    assert not rows[[1, 3]].any()
    assert not correct[[1, 3]].any()
    close(rows[[0, 2], :20], reference.softmax_cross_entropy(logits[[0, 2]], targets[[0, 2]])[1], dtype)


@DTYPES
def test_hostile_logits(dtype):
    """Huge differences neither overflow nor turn into NaN; what is not a number shows, wherever it stands."""
    logits = np.zeros((8, 40), dtype)
    logits[0, 3], logits[1, 3] = 1e30, 1e30
    logits[2] = -np.inf
    logits[2, 5] = 0
    logits[3, 6] = -np.inf
    logits[4, 0], logits[5, 39], logits[6, 20] = np.nan, np.nan, np.inf
    losses, buffer, _ = cross_entropy(logits, 40, 48, np.array([3, 4, 5, 6, 1, 1, 1, 1]), 1.0)
    rows = buffer[: 8 * 48].reshape(8, 48)
    assert losses[0] == 0
    assert losses[1] == pytest.approx(1e30)
    assert losses[2] == pytest.approx(0)
    assert losses[3] == np.inf
    assert np.isnan(losses[4:7]).all()
    assert losses[7] == pytest.approx(np.log(40), rel=1e-15 if dtype == "float64" else 1e-7)
    assert np.isfinite(rows[[0, 1, 2, 3, 7]]).all()


def test_ties_count_once():
    logits = np.zeros((3, 33), np.float32)
    _, _, correct = cross_entropy(logits, 33, 33, np.array([0, 1, 32]), 1.0, gradient=0)
    assert correct.tolist() == [1, 0, 0]


def test_logarithm_is_exact_to_the_last_places():
    """The loss of class 0 where the others have the same logit is log(1 + n exp(x)), over many magnitudes."""
    others = np.linspace(-40, 20, 601)
    logits = np.zeros((601, 5))
    logits[:, 1:] = others[:, None]
    losses, _, _ = cross_entropy(logits, 5, 8, np.zeros(601, int), 1.0, gradient=0)
    assert np.allclose(losses, np.log1p(4 * np.exp(others)), rtol=2e-14, atol=3e-16)


# Dropout


def philox(counters, key):
    """Philox4x32-10: counters [N, 4] and a key of two, all uint32 -> words [N, 4]. Source: Salmon et al., SC (2011)."""
    c, k = counters.astype(np.uint64), [int(part) for part in key]
    low = np.uint64(2**32 - 1)
    for _ in range(10):
        first, second = c[:, 0] * np.uint64(0xD2511F53), c[:, 2] * np.uint64(0xCD9E8D57)
        c = np.stack(
            [
                (second >> np.uint64(32)) ^ c[:, 1] ^ np.uint64(k[0]),
                second & low,
                (first >> np.uint64(32)) ^ c[:, 3] ^ np.uint64(k[1]),
                first & low,
            ],
            axis=1,
        )
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c.astype(np.uint32)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers_of_philox(counter, key, words):
    assert philox(np.array([counter], np.uint32), key).tolist() == [words]


def kept(count, seed, stream, p):
    """Which of the elements 0..count stay."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    counters = np.stack(
        [blocks % 2**32, blocks >> np.uint64(32), np.full_like(blocks, stream % 2**32), np.full_like(blocks, stream >> 32)],
        axis=1,
    )
    return philox(counters, (seed % 2**32, seed >> 32)).ravel()[:count] >= p * 2**32


@DTYPES
@pytest.mark.parametrize(
    ("rows", "width", "row"), [(1, 1, 1), (1, 1000, 1000), (5, 13, 16), (100, 1, 3), (3, 64, 64), (9, 33, 40), (4, 96, 112)]
)
@pytest.mark.parametrize(("seed", "stream", "p"), [(0, 0, 0.5), (2**63 - 1, 7 + (3 << 32), 0.1)])
def test_dropout(dtype, rows, width, row, seed, stream, p):
    x = np.random.default_rng(width).standard_normal((rows, width)).astype(dtype)

    def compute():
        data = guarded(x, width, row)
        engine("cpu", dtype).run(Dropout(rows=rows, width=width, data=data, row=row, seed=seed, stream=stream, p=np.array([p])))
        return (data,)

    data = everywhere(compute)[0]
    inside = data[: rows * row].reshape(rows, row)
    wanted = np.where(kept(rows * width, seed, stream, p).reshape(rows, width), x * x.dtype.type(1 / (1 - p)), 0)
    assert np.array_equal(inside[:, :width], wanted)
    assert (inside[:, width:] == GUARD).all()
    assert (data[rows * row :] == GUARD).all()


def test_a_negative_seed_stands_for_its_64_bits():
    data = np.ones(100, np.float32)
    engine("cpu", "float32").run(Dropout(rows=1, width=100, data=data, row=100, seed=-3, stream=1, p=np.array([0.5])))
    assert np.array_equal(data != 0, kept(100, 2**64 - 3, 1, 0.5))


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_how_much_is_dropped(p):
    data = np.ones(200_000, np.float32)
    engine("cpu", "float32").run(Dropout(rows=1, width=data.size, data=data, row=data.size, seed=11, stream=5, p=np.array([p])))
    dropped = np.mean(data == 0)
    assert abs(dropped - p) <= 5 * np.sqrt(p * (1 - p) / data.size)
    assert dropped == p or p not in (0.0, 1.0)
    others = np.ones(200_000, np.float32)
    engine("cpu", "float32").run(
        Dropout(rows=1, width=data.size, data=others, row=data.size, seed=11, stream=6, p=np.array([p]))
    )
    # Another stream drops independently of the first.
    assert abs(np.mean((data == 0) & (others == 0)) - p * p) <= 5 * np.sqrt(p / data.size)
