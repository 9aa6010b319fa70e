"""The kernels, by way of the layers, against the float64 reference; and the products and packings against NumPy.

`tests/support/mutation.py` runs this file for every gradient term of the cells' kernels; a test's name begins with its cell's.
"""

import numpy as np
import pytest

from fastlstm.kernels.native import jit, team
from fastlstm.kernels.operations import (
    PACK_SCRATCH,
    AbsorbRows,
    AddColumns,
    EmitRows,
    OuterProduct,
    PackBias,
    PackColumns,
    PackRows,
    Product,
    ProductByThree,
    outer_space,
)
from fastlstm.runtime import program
from fastlstm.runtime.engine import engine
from fastlstm.stack import recurrence, sharing
from tests.support import cases

PART = 10  # cases in one test
every_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


@pytest.mark.parametrize("kind", cases.KINDS)
def test_every_term_of(kind, monkeypatch):
    """One case with everything in it, small enough to be the first that a flipped sign meets."""
    for bidirectional in (True, False):
        case = cases.Case(
            kind,
            5,
            steps=6,
            batch=5,
            inputs=4,
            hidden=9,
            proj=3 * (kind == "lstm-projected"),
            layers=2,
            bidirectional=bidirectional,
            lengths=True,
            resets=True,
            state="both",
            dstate="both",
            chunk=4,
        )
        layer = case.layer("float64")
        monkeypatch.setattr(recurrence, "CHUNK_BYTES", case.chunk_bytes(layer))
        got, masks = case.results(layer)
        cases.check(case, got, case.wanted(layer, masks), "float64")


@every_dtype
@pytest.mark.parametrize("part", range(cases.COUNT // PART))
@pytest.mark.parametrize("kind", cases.KINDS)
def test_against_the_reference(kind, part, dtype, monkeypatch):
    for case in cases.CASES[kind][part * PART : (part + 1) * PART]:
        layer = case.layer(dtype)
        with monkeypatch.context() as patch:
            if case.chunk:
                patch.setattr(recurrence, "CHUNK_BYTES", case.chunk_bytes(layer))
            got, masks = case.results(layer)
            cases.check(case, got, case.wanted(layer, masks), dtype)
            given = case.data(dtype).given
            out, state = layer(given.x, case.pair(given), lengths=given.lengths, resets=given.resets)
        # Inference saves nothing and is the same computation.
        state = dict(zip(("h", "c"), state if case.cell == "lstm" else (state,), strict=False))
        for name, array in {"out": out, **state}.items():
            assert np.array_equal(case._time_major(array, name), got[name]), f"{name} of {case}"


@pytest.mark.parametrize("product", jit.PRODUCTS)
@pytest.mark.parametrize("part", range(cases.COUNT // PART))
@pytest.mark.parametrize("kind", cases.KINDS)
def test_bfloat16_against_the_reference(kind, part, product):
    """In each way that this processor has to multiply; parameters and all arrays are float32."""
    if product not in jit.bfloat16_products(jit.isa()):
        pytest.skip(f"no bfloat16 products by {product!r} beside {jit.isa()} here")
    with jit.use_bfloat16_product(product):
        for case in cases.CASES[kind][part * PART : (part + 1) * PART][:: 1 if product == jit.bfloat16_product() else 3]:
            layer = case.layer("bfloat16")
            got, masks = case.results(layer)
            cases.check(case, got, case.wanted(layer, masks), "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", cases.KINDS)
def test_every_way_to_share_a_recurrence_over_threads(kind, dtype, monkeypatch):
    """By rows, by units, alone: the same bits, and so the reference's values. Programs small enough for one thread, too."""
    before = team.num_threads()
    try:
        for case in [case for case in cases.CASES[kind] if case.batch > 2][:6]:
            results = []
            for threads, *how in ((1, False, False), (2, True, False), (2, True, True), (3, True, True), (2, False, False)):
                team.set_num_threads(threads)
                way = sharing.Share(*how, 0.0)
                monkeypatch.setattr(sharing, "choose", lambda *shape, way=way: way)
                monkeypatch.setattr(program, "PARALLEL_WORK", 0)
                monkeypatch.setattr(program, "SHARED_WORK", 1)
                got, masks = case.results(case.layer(dtype))
                results.append(got)
            cases.check(case, got, case.wanted(case.layer(dtype), masks), dtype)
            for got in results[1:]:
                for name, array in results[0].items():
                    assert np.array_equal(got[name], array), f"{name} of {case}"
    finally:
        team.set_num_threads(before)


def test_the_cases_hold_what_they_promise():
    """Every hostile input that kernels are to be tried with occurs for every kind; 300 cases and more in all."""
    assert sum(map(len, cases.CASES.values())) >= 300
    for kind, table in cases.CASES.items():
        states = set(cases.STATES if kind.startswith("lstm") else ("none", "both"))
        either = dict.fromkeys(("bidirectional", "bias", "lengths", "resets", "dout"), (False, True))
        for field, values in {
            **either,
            "layers": {1, 2, 3},
            "chunk": {0, 1, 2, 3},
            "form": {"time-major", "batch-first", "unbatched"},
            "layout": cases.LAYOUTS,
            "state": states,
            "dstate": states,
        }.items():
            assert {getattr(case, field) for case in table} == set(values), f"{field} of {kind}"
        assert {3, 16, 17, 31, 33, 64} <= {case.hidden for case in table} & {case.inputs for case in table}, kind
        assert min(case.width for case in table) == min(case.inputs for case in table) == 1, kind
        assert any(case.steps == 1 for case in table)
        assert any(case.batch == 1 for case in table)
        assert any(case.steps % case.chunk for case in table if case.chunk)
        assert any(case.lengths and case.resets and case.bidirectional for case in table)
        lengths = [n for case in table if case.lengths for n in case.data("float64").plain.lengths == 0]
        assert any(lengths)


# Products and packings by themselves, where layers would hide which of them is wrong.
def run(dtype, record):
    engine("cpu", dtype).run(record)


def filled(dtype, *shape, seed=0):
    """Random numbers where kernels may read them: with room behind, NaN, which must not be needed."""
    cpu = engine("cpu", dtype)
    array = cpu.empty(*shape)
    array[...] = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return array


def interleaved(matrix, gates, lanes):
    """Rows [gates*hidden] of a weight matrix in the order of the gates' columns, as pack.py describes it."""
    split = matrix.reshape(gates, -1, *matrix.shape[1:])
    blocks = [split[:, j : j + lanes].reshape(-1, *matrix.shape[1:]) for j in range(0, split.shape[1], lanes)]
    rows = np.concatenate(blocks)
    return np.pad(rows, [(0, -len(rows) % lanes), *[(0, 0)] * (matrix.ndim - 1)])


@every_dtype
@pytest.mark.parametrize(("gates", "vectors", "product"), [(4, 4, Product), (3, 3, ProductByThree), (1, 4, Product)])
@pytest.mark.parametrize("units", [0, 1])
@pytest.mark.parametrize("rows", [1, 5, 12, 49, 130])
def test_products_of_packed_columns(rows, units, gates, vectors, product, dtype):
    cpu = engine("cpu", dtype)
    for hidden, depth in ((1, 1), (17, 3), (70, 65), (cpu.lanes * 7, 2)):
        weight, x = filled(dtype, gates * hidden, depth), filled(dtype, rows, depth + 2)
        columns, bias = cpu.padded(gates * hidden), filled(dtype, gates * hidden)
        packed, start, out = cpu.empty(columns * depth), cpu.empty(columns), cpu.empty(rows, columns)
        scratch = cpu.empty(team.num_threads(), PACK_SCRATCH)
        run(
            dtype,
            PackColumns(
                hidden=hidden,
                gates=gates,
                unit=cpu.lanes,
                width=depth,
                depth=depth,
                columns=columns,
                vectors=vectors,
                w=weight,
                w_row=depth,
                packed=packed,
                scratch=scratch,
            ),
        )
        run(
            dtype,
            PackBias(
                hidden=hidden, gates=gates, unit=cpu.lanes, columns=columns, split=gates, first=bias, second=bias, packed=start
            ),
        )
        run(
            dtype,
            product(
                steps=1,
                batch=rows,
                depth=depth,
                columns=columns,
                units=units,
                a=x,
                a_row=depth + 2,
                weight=packed,
                c_in=start,
                c_in_row=0,
                c=out,
                c_row=columns,
            ),
        )
        change = x[:, :depth].astype(float) @ interleaved(weight, gates, cpu.lanes).T
        want = 2.0 * interleaved(bias, gates, cpu.lanes) + change
        assert cases.error(out, want) < cases.TOLERANCE[dtype] / 10
        start = filled(dtype, rows, columns)
        want = start + change
        steps, batch = (5, rows // 5) if rows % 5 == 0 else (1, rows)
        run(
            dtype,
            product(
                steps=steps,
                batch=batch,
                depth=depth,
                columns=columns,
                units=units,
                a=x,
                a_row=depth + 2,
                weight=packed,
                c_in=start,
                c_in_row=columns,
                c=start,
                c_row=columns,
            ),
        )
        assert cases.error(start, want) < cases.TOLERANCE[dtype] / 10


@every_dtype
@pytest.mark.parametrize("gates", [1, 2, 3, 4])
def test_products_of_packed_rows(gates, dtype):
    cpu = engine("cpu", dtype)
    for hidden, width, rows in ((1, 1, 1), (17, 70, 6), (64, 33, 100)):
        depth, columns = gates * hidden, cpu.padded(width)
        weight, a = filled(dtype, gates * hidden, width), filled(dtype, rows, depth)
        packed, zeros, out = cpu.empty(depth * columns), cpu.zeros(columns), cpu.empty(rows, columns)
        scratch = cpu.empty(team.num_threads(), PACK_SCRATCH)
        run(
            dtype,
            PackRows(
                hidden=hidden,
                gates=gates,
                unit=cpu.lanes,
                width=width,
                depth=depth,
                columns=columns,
                w=weight,
                w_row=width,
                packed=packed,
                scratch=scratch,
            ),
        )
        run(
            dtype,
            Product(
                steps=1,
                batch=rows,
                depth=depth,
                columns=columns,
                units=0,
                a=a,
                a_row=depth,
                weight=packed,
                c_in=zeros,
                c_in_row=0,
                c=out,
                c_row=columns,
            ),
        )
        want = a.astype(float) @ interleaved(weight, gates, cpu.lanes)[:depth]
        assert cases.error(out[:, :width], want) < cases.TOLERANCE[dtype] / 10
        assert not out[:, width:].any()


@every_dtype
@pytest.mark.parametrize("depth", [1, 7, 256, 300])
def test_outer_products_and_their_way_back_to_the_parameters(depth, dtype):
    cpu = engine("cpu", dtype)
    for hidden, gates, width in ((5, 4, 3), (20, 3, 70), (64, 1, 64)):
        columns, x = cpu.padded(gates * hidden), filled(dtype, depth, width)
        gradient = filled(dtype, gates * hidden, depth)
        b = np.ascontiguousarray(interleaved(gradient, gates, cpu.lanes).T)
        space = outer_space(width, columns)
        c, sums = filled(dtype, cpu.padded(width), columns), filled(dtype, columns)
        scratch, turned = cpu.empty(team.num_threads(), space), cpu.empty(team.num_threads(), PACK_SCRATCH)
        for start in (1, 0):  # it overwrites, then adds
            run(
                dtype,
                OuterProduct(
                    depth=depth,
                    rows=width,
                    columns=columns,
                    start=start,
                    a=x,
                    a_row=width,
                    b=b,
                    b_row=columns,
                    c=c,
                    c_row=columns,
                    sums=sums,
                    scratch=scratch,
                    space=space,
                ),
            )
        weight, bias = filled(dtype, gates * hidden, width), filled(dtype, gates * hidden)
        want = weight + 2.0 * gradient.astype(float) @ x[:, :width]
        want_bias = bias + 2.0 * gradient.astype(float).sum(axis=1)
        run(
            dtype,
            AddColumns(
                hidden=hidden,
                gates=gates,
                unit=cpu.lanes,
                columns=columns,
                width=width,
                c=c,
                c_row=columns,
                gradient=weight,
                gradient_row=width,
                sums=sums,
                bias=bias,
                scratch=turned,
            ),
        )
        assert cases.error(weight, want) < cases.TOLERANCE[dtype]
        assert cases.error(bias, want_bias) < cases.TOLERANCE[dtype]


@every_dtype
def test_rows_are_emitted_and_absorbed(dtype):
    cpu = engine("cpu", dtype)
    for width in (1, 7, 16, 33):
        steps, batch, padded = 5, 3, cpu.padded(width)
        h, out = filled(dtype, steps, batch, padded), np.full((steps, batch, 2 * width + 3), np.nan, dtype)
        lengths = np.array([5, 0, 2])
        run(
            dtype,
            EmitRows(
                steps=steps,
                batch=batch,
                width=width,
                h=h,
                h_row=padded,
                out=out[:, :, width:],
                out_row=out.shape[2],
                lengths=lengths,
            ),
        )
        ended = (np.arange(steps)[:, None] >= lengths)[..., None]
        assert np.array_equal(out[:, :, width : 2 * width], np.where(ended, 0, h[:, :, :width]))
        assert np.isnan(out[:, :, :width]).all()
        assert np.isnan(out[:, :, 2 * width :]).all()
        back = filled(dtype, steps, batch, padded)
        run(
            dtype,
            AbsorbRows(
                steps=steps,
                batch=batch,
                width=width,
                source=out[:, :, width:],
                source_row=out.shape[2],
                out=back,
                out_row=padded,
            ),
        )
        assert np.array_equal(back[:, :, :width], out[:, :, width : 2 * width])
        assert not back[:, :, width:].any()


def test_unknown_kernels_are_an_error():
    with pytest.raises((ImportError, AttributeError)):
        jit.compiled("lstm.sideways")
