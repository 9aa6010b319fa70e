"""Programs: recorded kernel calls, what is given later, and how the cost model shares recurrences over threads."""

import ctypes

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels.native import team
from fastlstm.kernels.operations import AbsorbRows, Product, Wave
from fastlstm.runtime import arrays, engine, program
from fastlstm.runtime.program import Later, Program
from fastlstm.stack import sharing

CPU = engine.engine("cpu", "float32")


@pytest.fixture(autouse=True)
def threads():
    before = team.num_threads()
    yield
    team.set_num_threads(before)


def test_a_program_makes_its_calls_in_order_and_takes_later_places():
    a, b = CPU.zeros(2, 8), CPU.zeros(2, 8)
    recorded = Program()

    def calls():
        CPU.run(AbsorbRows(steps=1, batch=2, width=8, source=Later("source"), source_row=8, out=a, out_row=8))
        CPU.run(AbsorbRows(steps=1, batch=1, width=8, source=a[1:], source_row=8, out=b, out_row=8))
        CPU.run(AbsorbRows(steps=1, batch=1, width=8, source=Later("source") + 32, source_row=8, out=b[1:], out_row=8))

    recorded.record(calls)
    assert not a.any(), "recording runs nothing"
    for seed in (1, 2):
        source = np.random.default_rng(seed).standard_normal((2, 8), np.float32)
        recorded.run(source=source, unused=source)
        assert np.array_equal(a, source)
        assert np.array_equal(b, source[[1, 1]])
    with pytest.raises(KeyError, match="source"):
        recorded.run()


def test_threads_meet_between_calls_that_share_data_in_different_ways(monkeypatch):
    """A chain of products, each split another way than the one before: a missing barrier would show in the bits."""
    monkeypatch.setattr(program, "SHARED_WORK", 1)
    monkeypatch.setattr(program, "PARALLEL_WORK", 0)
    rng = np.random.default_rng(0)
    n, rounds = 64, 40
    w = CPU.empty(n * n)
    w[...] = rng.standard_normal(n * n) / 8
    zeros, steps = CPU.zeros(n), [CPU.empty(n, n) for _ in range(rounds + 1)]
    steps[0][...] = rng.standard_normal((n, n))
    results = []

    def calls():
        for k in range(rounds):
            CPU.run(
                Product(
                    steps=1,
                    batch=n,
                    depth=n,
                    columns=n,
                    units=k % 2,
                    a=steps[k],
                    a_row=n,
                    weight=w,
                    c_in=zeros,
                    c_in_row=0,
                    c=steps[k + 1],
                    c_row=n,
                )
            )

    for count in (1, 2, 3):
        team.set_num_threads(count)
        recorded = Program()
        recorded.record(calls)
        for _ in range(20):
            for step in steps[1:]:
                step.fill(np.nan)
            recorded.run()
            results.append(steps[-1].copy())
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("batch", [1, 24], ids=["by units", "by rows"])
def test_a_thread_that_does_not_come_is_not_waited_for(batch, monkeypatch):
    """One of two threads makes the whole program; the other, which comes when all is over, changes nothing."""
    team.set_num_threads(2)
    layer = fastlstm.LSTM(192, 192, seed=0)
    assert layer.stack.layers[0][0].share(batch).units == (batch == 1)
    x = np.random.default_rng(0).standard_normal((9, batch, 192), np.float32)
    want = layer(x)[0].tobytes()
    called = []

    def alone(function, argument, parallel, most, whole):
        job = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(function)
        called.append((parallel, whole))
        job(argument, 0, 2)
        job(argument, 1, 2)

    monkeypatch.setattr(team, "call", alone)
    assert layer(x)[0].tobytes() == want
    assert called == [(True, False)]


def test_parameters_that_move_or_change_are_seen_by_old_programs():
    layer, other = fastlstm.GRU(6, 9, seed=0), fastlstm.Linear(9, 3, seed=1)
    x = np.ones((4, 2, 6), np.float32)
    before, _ = layer(x)
    with layer.edit() as params:
        params["weight_hh_l0"][...] *= 2
    changed, _ = layer(x)
    assert not np.array_equal(before, changed)
    joined = fastlstm.flatten(layer, other)
    with joined.params.edit() as params:
        params["0.weight_hh_l0"][...] /= 2
    again, _, backprop = layer.forward_train(x)
    assert np.array_equal(again, before)
    backprop(np.ones_like(again))
    assert joined.grads["0.weight_ih_l0"].any()


def test_costs_choose_what_the_shapes_call_for(monkeypatch):
    monkeypatch.setattr(sharing, "cache_bytes", lambda: 2 << 20)
    sharing.choose.cache_clear()

    def way(batch, hidden, threads=2, dtype="float32"):
        share = sharing.choose(dtype, batch, 4 * hidden * hidden, hidden // 16, threads)
        return "alone" if not share.parallel else "units" if share.units else "rows"

    assert way(1, 16) == "alone"
    assert way(64, 256) == "rows"
    assert way(1, 512) == way(1, 1024) == "units"
    assert way(64, 2048) == "units"
    assert way(64, 256, threads=1) == way(1, 2048, threads=1) == "alone"
    assert sharing.choose("float32", 1, 10**6, 1, 2).parallel is False
    monkeypatch.setattr(sharing, "cache_bytes", lambda: 1 << 20)
    sharing.choose.cache_clear()
    assert way(64, 256) == "units", "half of the weight fits into a smaller cache, all of it does not"
    sharing.choose.cache_clear()


def test_the_size_of_the_second_level_cache_is_known():
    assert sharing.cache_bytes() >= 1 << 18


def test_a_stream_made_for_few_threads_serves_beside_more():
    """Its scratch is for those that there were: with more it runs alone, to the same bits."""
    team.set_num_threads(2)
    layer, x = fastlstm.LSTM(256, 256, 2, seed=0), np.ones((6, 1, 256), np.float32)
    stream = fastlstm.Stream(layer)
    assert stream._weights.steps[0].__self__.parallel
    team.set_num_threads(8)
    assert np.array_equal(np.array([stream(x[t]).copy() for t in range(6)]), layer(x)[0])


def test_what_is_no_operation_is_an_error_at_once():
    with pytest.raises(TypeError, match=r"missing 2 required positional arguments: 'out' and 'out_row'"):
        CPU.run(AbsorbRows(steps=1, batch=1, width=16, source=CPU.zeros(16), source_row=16))
    with pytest.raises(TypeError, match="tuple is no operation; expected a record of kernels/operations.py"):
        Program().record(lambda: CPU.run((16, CPU.zeros(16), 0)))
    with pytest.raises(TypeError, match="Wave has no kernel for the processor"):
        CPU.run(Wave(first=None, second=None, between=0))
    assert program.recording.program is None, "the failed recording is over"


def test_addresses_are_what_numpy_says(tmp_path):
    """However an array came about; it is read from the array's object, by a layout that is checked at import."""
    whole = np.zeros((3, 4), np.float32)
    fixed = whole.copy()
    fixed.flags.writeable = False
    mapped = np.memmap(tmp_path / "mapped", np.int64, "w+", shape=(5,))
    for one in (whole, whole[1:, 2], whole.T, whole[:0], fixed, mapped, np.array(1.0), np.array([1, "a"], object)):
        assert arrays.host_address(one) == one.__array_interface__["data"][0]
    assert arrays.host_address is arrays._read  # on every NumPy known so far; else calls are slower, not wrong


def test_weights_are_packed_anew_when_they_change_and_not_otherwise():
    packed = []
    layer = fastlstm.LSTM(3, 4, seed=0)
    x = np.ones((2, 1, 3), np.float32)
    before = layer(x)[0]
    ((_, spaces),) = layer._pool.free
    (program,) = spaces._programs.values()
    make, program._packs = program._packs, lambda *what: packed.append(1) or make(*what)
    layer(x)
    assert packed == []
    with layer.params.edit() as params:
        params["bias_ih_l0"] += 1
    after = layer(x)[0]
    layer(x)
    assert packed == [1]
    assert not np.array_equal(before, after)
