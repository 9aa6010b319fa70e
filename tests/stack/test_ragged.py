"""Ragged batches: the rows of sequences of unequal lengths without padding, against the same sequences padded."""

import shutil

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels.native import team
from fastlstm.runtime.arrays import as_numpy
from fastlstm.runtime.program import Later, Result, address
from fastlstm.runtime.workspace import as_operands
from fastlstm.stack import ragged, sharing
from fastlstm.stack.ragged import Ragged
from fastlstm.stack.stack import Call, Spaces
from tests.support.cases import KINDS, TOLERANCE, storage

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which builds CUDA kernels for the CPU")
LENGTHS = ([6, 5, 5, 2, 1], [9, 1, 1, 1, 1], [3, 3, 3, 3, 3], [4, 3, 2, 1, 1])


def rows_of(padded, lengths):
    """[rows, N] of [T, B, N]."""
    return np.concatenate([padded[t, : sum(n > t for n in lengths)] for t in range(max(lengths))])


def padded_of(rows, lengths):
    """The reverse, zeros beyond the lengths."""
    out, at = np.zeros((max(lengths), len(lengths), rows.shape[1]), rows.dtype), 0
    for t in range(max(lengths)):
        count = sum(n > t for n in lengths)
        out[t, :count], at = rows[at : at + count], at + count
    return out


def a_layer(kind, dtype, device="cpu", **options):
    make, _, more = KINDS[kind]
    more = more | ({"proj_size": 3} if kind == "lstm-projected" else {})
    return make(4, 9, dtype=dtype, device=device, seed=0, **{"num_layers": 2, "bidirectional": True, **more, **options})


def a_batch(layer, lengths, seed=0):
    """x, dout [T, B, .], and h_0, c_0, dh_n, dc_n."""
    shape, draw = layer.shape, np.random.default_rng(seed)
    count, batch = shape.num_layers * shape.directions, len(lengths)
    sizes = [
        (max(lengths), batch, shape.input_size),
        (max(lengths), batch, shape.directions * shape.width),
        *((count, batch, width) for width in (shape.width, shape.hidden_size) * 2),
    ]
    arrays = [draw.standard_normal(size).astype(storage(layer)) for size in sizes]
    return dict(zip(("x", "dout", "h_0", "c_0", "dh_n", "dc_n"), arrays, strict=True))


def padded(layer, lengths, batch):
    """Outputs, final states, dx and gradients of the initial states and of the parameters, by the layer itself."""
    lstm = layer.shape.cell == "lstm"
    state, dstate = ((batch[h], batch[c]) if lstm else batch[h] for h, c in (("h_0", "c_0"), ("dh_n", "dc_n")))
    layer.zero_grads()
    out, state, backprop = layer.forward_train(batch["x"], state, lengths=lengths)
    dx, dstate = backprop(batch["dout"], dstate)
    states = [*state, *dstate] if lstm else [state, dstate]
    return [as_numpy(part).copy() for part in (out, dx, *states, layer.grads.flat)]


def unpadded(layer, lengths, batch, spaces=None):
    """The same by the layer's stack on the rows alone; with `spaces` by programs recorded there, whatever the lengths."""
    shape, engine, lstm = layer.shape, layer._engine, layer.shape.cell == "lstm"
    sizes = np.array([sum(n > t for n in lengths) for t in range(max(lengths))])
    found = ragged.places(sizes, shape.bidirectional, True)
    steps, row = 12, engine.padded(shape.input_size)
    width = shape.directions * shape.width
    given = {name: engine.located(part) for name, part in batch.items()}
    given |= {name: engine.located(rows_of(batch[name], lengths)) for name in ("x", "dout")}
    results = {"out": engine.new((found.rows, width)), "dx": engine.new((found.rows, row))}
    count = shape.num_layers * shape.directions
    for name in ("h", "c"):
        size = (count, len(lengths), shape.width if name == "h" else shape.hidden_size)
        results |= {f"{name}_n": engine.new(tuple(size)), f"d{name}_0": engine.new(tuple(size))}
    if spaces is not None:
        call = Call(steps, len(lengths), True, ragged=ragged.later(steps * len(lengths)))
        at = {name: Later(name) for name in given} | {name: Result(name) for name in results}
    else:
        spaces, at = Spaces(layer.stack), {name: address(part) for name, part in (given | results).items()}
        if layer.device != "cpu":
            found = Ragged(
                found.rows,
                found.steps,
                tuple(found.starts.tolist()),
                *(engine.located(part) for part in (found.before, found.last, found.turned)),
            )
        call = Call(steps, len(lengths), True, ragged=found)
    layer.zero_grads()

    def forward():
        source = as_operands(spaces.own, "x", *call.grid, at["x"], shape.input_size, shape.input_size)
        layer.stack.forward(spaces, call, (at["h_0"], at["c_0"]), x=source[0], x_row=source[1])
        layer.stack.emit(spaces, call, shape.num_layers - 1, at["out"], width)
        layer.stack.final_state(spaces, call, at["h_n"], at["c_n"])

    def backward():
        kept = spaces.own.arrays.get("x")  # in the form that products read, where that is not x itself
        x, x_row = (at["x"], shape.input_size) if kept is None else (address(kept), kept.shape[2])
        dstate = at["dh_n"], at["dc_n"]
        layer.stack.backward(spaces, call, at["dout"], width, dstate, x=x, x_row=x_row, dx=at["dx"], dx_row=row)
        layer.stack.initial_gradients(spaces, call, at["dh_0"], at["dc_0"])

    for make in (forward, backward):
        if call.ragged is found:
            make()
        else:
            spaces.program(make.__name__, make).run(**given, **results, **found.values)
    results = {name: as_numpy(part).copy() for name, part in results.items()}
    names = ("h_n", "c_n", "dh_0", "dc_0") if lstm else ("h_n", "dh_0")
    rows = [padded_of(results["out"], lengths), padded_of(results["dx"][:, : shape.input_size], lengths)]
    return [*rows, *(results[name] for name in names), as_numpy(layer.grads.flat).copy()]


def assert_same(got, want, dtype):
    for k, (one, other) in enumerate(zip(got, want, strict=True)):
        off = np.linalg.norm(one.astype(np.float64) - other) / max(np.linalg.norm(other), 1e-30)
        assert off < TOLERANCE[dtype], f"result {k}: {off}"


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_rows_alone_are_as_rows_among_padding(kind, dtype):
    for seed, lengths in enumerate(LENGTHS):
        layer = a_layer(kind, dtype, bidirectional=seed % 2 == 0)
        batch = a_batch(layer, lengths, seed)
        got, want = unpadded(layer, lengths, batch), padded(layer, lengths, batch)
        assert_same(got, want, dtype)
        if dtype != "bfloat16":
            for one, other in zip(got[0:1] + got[2:3], want[0:1] + want[2:3], strict=True):
                assert np.array_equal(one, other), "a row's bits depend on what is around it"


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_program_serves_all_lengths(kind):
    layer = a_layer(kind, "float32")
    spaces = Spaces(layer.stack)
    for seed, lengths in enumerate(LENGTHS * 2):
        batch = a_batch(layer, lengths, seed)
        assert_same(unpadded(layer, lengths, batch, spaces), padded(layer, lengths, batch), "float32")
    assert len(spaces._programs) == 2


@pytest.mark.parametrize("kind", list(KINDS))
def test_threads_share_ragged_batches(kind, monkeypatch):
    """Alone, by rows and by units: the same bits."""
    before = team.num_threads()
    layer = a_layer(kind, "float32", num_layers=1)
    batch, results = a_batch(layer, LENGTHS[0]), []
    monkeypatch.setattr("fastlstm.runtime.cpu.CALL_WORK", 0)
    try:
        for threads, units in ((1, False), (2, False), (3, False), (2, True), (3, True)):
            fastlstm.set_num_threads(threads)
            monkeypatch.setattr(sharing, "choose", lambda *_, units=units: sharing.Share(True, units, 0.0))
            results.append(unpadded(layer, LENGTHS[0], batch))
    finally:
        fastlstm.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert np.array_equal(one, two)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_ragged_batches_on_a_device(kind, dtype):
    from tests.cuda.simulator.device import simulated

    with simulated():
        layer = a_layer(kind, dtype, "cuda")
        for lengths in LENGTHS[:2]:
            batch = a_batch(layer, lengths)
            assert_same(unpadded(layer, lengths, batch), padded(layer, lengths, batch), dtype)


def test_places():
    found = ragged.places(np.array([3, 2, 2, 1]), True, True)
    assert (found.rows, found.steps) == (8, 4)
    assert found.starts.tolist() == [0, 3, 6, 8, 10, 11, 11]
    assert found.before.tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert found.last.tolist() == [10, 9, 5]
    assert found.turned.tolist() == [7, 6, 2, 5, 4, 3, 1, 0]
    assert ragged.places(np.array([3, 1]), False, False).before is None


def test_room_is_the_same_for_about_as_many_rows():
    assert [ragged.room(rows, 4) for rows in (1, 4, 5, 60, 397, 400, 401)] == [1, 1, 2, 15, 104, 104, 104]
    assert all(rows <= 7 * ragged.room(rows, 7) <= 1.25 * rows + 7 for rows in range(1, 5000))
