"""Streams, arrays of other libraries, and captures under the real CuPy, on a device whose streams run as late as they may."""

from __future__ import annotations

import sys
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm.runtime.arrays import as_numpy


def ready(seed: int) -> fastlstm.LSTM:
    """Made on the default stream, and ready on all: who makes it sees to that."""
    import cupy

    made = fastlstm.LSTM(6, 5, device="cuda", seed=seed)
    cupy.cuda.Device().synchronize()
    return made


X = np.random.default_rng(0).standard_normal((4, 2, 6)).astype(np.float32)


class Tensor:
    """Of another library, as torch's: it has a device and gradients, and is made on a stream of its own."""

    def __init__(self, array: Any, stream: Any, requires_grad: bool = False) -> None:
        self._array, self._stream, self.requires_grad = array, stream, requires_grad
        self.is_cuda = True
        self.device, self.shape, self.ndim, self.dtype = "cuda:0", array.shape, array.ndim, array.dtype

    def detach(self) -> Tensor:
        return Tensor(self._array, self._stream)

    @property
    def __cuda_array_interface__(self) -> Any:
        if self.requires_grad:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")
        return self._array.__cuda_array_interface__ | {"stream": None}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        import cupy

        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        if stream not in (None, -1):
            made = self._stream.record()
            current = cupy.cuda.get_current_stream()
            assert stream == (current.ptr or 1)
            current.wait_event(made)
        return self._array.__dlpack__(stream=-1)


def made_on_a_side_stream(requires_grad: bool) -> Tensor:
    import cupy

    side = cupy.cuda.Stream(non_blocking=True)
    with side:
        array = cupy.empty(X.shape, np.float32)
        pinned = cupy.cuda.alloc_pinned_memory(X.nbytes)
        host = np.frombuffer(pinned, np.float32, X.size).reshape(X.shape)
        host[...] = X
        array.set(host, stream=side)
        twice = array * 2
    made = Tensor(twice, side, requires_grad)
    made.pinned = pinned
    return made


@pytest.mark.parametrize("requires_grad", [False, True])
def test_arrays_of_another_library_from_another_stream(requires_grad: bool) -> None:
    ours, theirs = fastlstm.LSTM(6, 5, device="cuda", seed=0), fastlstm.LSTM(6, 5, seed=0)
    for _ in range(3):
        assert np.abs(as_numpy(ours(made_on_a_side_stream(requires_grad))[0]) - theirs(2 * X)[0]).max() < 1e-6


def test_a_capture_of_torchs_is_refused() -> None:
    capturing = [True]
    torch = SimpleNamespace(Tensor=Tensor, cuda=SimpleNamespace(is_current_stream_capturing=lambda: capturing[0]))
    sys.modules["torch"] = torch  # type: ignore[assignment]
    layer, tensor = fastlstm.LSTM(6, 5, device="cuda", seed=0), made_on_a_side_stream(False)
    with pytest.raises(BufferError, match="torch's current stream is being captured; expected calls outside of"):
        layer(tensor)
    capturing[0] = False
    assert np.abs(as_numpy(layer(tensor)[0]) - fastlstm.LSTM(6, 5, seed=0)(2 * X)[0]).max() < 1e-6


def test_what_offers_only_cudas_interface() -> None:
    import cupy

    array = cupy.empty(X.shape, np.float32)
    array.set(X)
    other = SimpleNamespace(ndim=3, __cuda_array_interface__=array.__cuda_array_interface__)
    ours, theirs = fastlstm.GRU(6, 5, device="cuda", seed=0), fastlstm.GRU(6, 5, seed=0)
    assert np.abs(as_numpy(ours(other)[0]) - theirs(X)[0]).max() < 1e-6


def test_results_are_arrays_for_others() -> None:
    import cupy

    out = fastlstm.LSTM(6, 5, device="cuda", seed=0)(X)[0]
    again = cupy.from_dlpack(out)
    assert again.data.ptr == out.data.ptr


def test_another_librarys_stream_without_a_warning() -> None:
    import cupy

    layer = ready(0)
    stream = cupy.cuda.Stream(non_blocking=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with layer._engine.device.on(stream.ptr):
            assert cupy.cuda.get_current_stream().ptr == stream.ptr
            out = layer(X)[0]
    assert cupy.cuda.get_current_stream().ptr == 0
    stream.synchronize()
    assert np.abs(as_numpy(out) - fastlstm.LSTM(6, 5, seed=0)(X)[0]).max() < 1e-6


@pytest.mark.parametrize(("form", "repeats"), [("general", 11), ("grid", 3)])
def test_several_streams_at_once_have_memory_of_their_own(form: str, repeats: int) -> None:
    """Products on two streams never work with the same memory, in graphs and alone."""
    import cupy

    from benchmarks.gpu import checks
    from tests.cuda.pretend.machine import machine

    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    assert checks.check_streams(form, [stream.ptr for stream in streams], 12, repeats)["repeats"] == repeats
    assert machine.calls["graph"] > 0
    assert machine.users
    assert all(len(streams) == 1 for streams in machine.users.values()), machine.users


def test_a_program_of_one_stream_goes_on_on_another() -> None:
    import cupy

    from tests.cuda.pretend.machine import machine

    trainers = [
        fastlstm.Trainer(fastlstm.LanguageModel(9, hidden_size=6, seed=0, device=device), progress=False)
        for device in ("cpu", "cuda")
    ]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    cupy.cuda.Device().synchronize()
    ids, targets = np.random.default_rng(0).integers(0, 9, (2, 5, 3))
    for k in range(6):
        with streams[k // 3]:
            ours = trainers[1].step(ids, targets)
        assert ours == pytest.approx(trainers[0].step(ids, targets), rel=1e-5)
    assert all(len(streams) == 1 for streams in machine.users.values()), machine.users


def test_streams_that_come_and_go_leave_no_memory_behind() -> None:
    import cupy

    from tests.cuda.pretend.machine import machine

    layer, totals = ready(0), []
    wanted = as_numpy(layer(X)[0])
    for k in range(60):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            for _ in range(2):
                assert np.array_equal(as_numpy(layer(X)[0]), wanted)
            stream.synchronize()
        if k % 20 == 19:
            totals.append(cupy.get_default_memory_pool().used_bytes())
    assert totals[2] - totals[1] < 32 << 20, totals  # less than one stream's for products
    assert all(len(streams) == 1 for streams in machine.users.values()), machine.users


@pytest.mark.parametrize("handle", [0, 1, 2])
def test_default_streams_of_another_library(handle: int) -> None:
    layer = ready(0)
    with layer._engine.device.on(handle):
        assert layer._engine.device.queue()[0] == handle
        found = as_numpy(layer(X)[0])
    assert np.abs(found - fastlstm.LSTM(6, 5, seed=0)(X)[0]).max() < 1e-6


def test_captures_let_other_threads_allocate() -> None:
    """CuPy's are relaxed."""
    from tests.cuda.pretend.machine import machine

    modes: list[int] = []
    begin = machine.issue

    def issue(handle: int, *rest: Any) -> Any:
        stream = machine.stream(handle)
        if stream.captured is not None:
            modes.append(stream.mode)
        return begin(handle, *rest)

    machine.issue = issue  # type: ignore[method-assign]
    layer = ready(0)
    for _ in range(2):
        layer(X)
    assert set(modes) == {2}


def test_threads_capture_graphs_one_after_another() -> None:
    import cupy

    layers = [ready(k) for k in range(3)]
    wanted = [fastlstm.LSTM(6, 5, seed=k)(X)[0] for k in range(3)]
    found: list[Any] = [None] * 3

    def call(k: int) -> None:
        with cupy.cuda.Stream(non_blocking=True):
            for _ in range(4):
                found[k] = as_numpy(layers[k](X)[0])

    threads = [threading.Thread(target=call, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, want in zip(found, wanted, strict=True):
        assert np.abs(got - want).max() < 1e-6


def test_a_graph_may_be_captured_by_a_thread_that_never_multiplied() -> None:
    """Whose handle of cuBLAS would be made within the capture."""
    layer = fastlstm.LSTM(6, 5, device="cuda", seed=0)
    layer(X)
    found = []
    thread = threading.Thread(target=lambda: found.append(as_numpy(layer(X)[0])))
    thread.start()
    thread.join()
    assert np.abs(found[0] - fastlstm.LSTM(6, 5, seed=0)(X)[0]).max() < 1e-6


def test_a_captured_layer_of_the_callers_is_refused() -> None:
    """Our own captures, copies and events are no part of another's graph."""
    import cupy

    layer = fastlstm.LSTM(6, 5, device="cuda", seed=0)
    x = cupy.zeros(X.shape, np.float32)
    layer(x)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match="the current stream is being captured"):
                layer(x)
        finally:
            stream.end_capture()
