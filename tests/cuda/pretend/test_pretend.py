"""The pretend device itself: what it must notice, and that it says so where CuPy is not as it knows it."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import numpy as np
import pytest

from tests.cuda import pretend


def noted(text: str) -> None:
    """The device has noted this one fault; it is forgiven."""
    from tests.cuda.pretend.machine import machine

    assert len(machine.faults) == 1, machine.faults
    assert re.search(text, machine.faults[0]), machine.faults
    machine.faults.clear()


def late() -> tuple[Any, Any]:
    """A stream on which an array of sevens is written, which nothing has waited for."""
    import cupy

    array, stream = cupy.zeros(4, np.float32), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        array[...] = 7
    return array, stream


def test_streams_that_do_not_wait_for_each_other_see_it() -> None:
    import cupy

    array, stream = late()
    with cupy.cuda.Stream(non_blocking=True):
        assert (array.get() == 0).all()
    with cupy.cuda.Stream(non_blocking=True) as other:
        other.wait_event(stream.record())
        assert (array.get() == 7).all()


def test_the_default_stream_waits_for_blocking_ones_only() -> None:
    import cupy

    for non_blocking, seen in ((True, 0), (False, 7)):
        array, stream = cupy.zeros(4, np.float32), cupy.cuda.Stream(non_blocking=non_blocking)
        cupy.cuda.Device().synchronize()
        with stream:
            array[...] = 7
        assert (array.get() == seen).all()


def test_memory_that_is_not_written_is_no_number() -> None:
    import cupy

    assert np.isnan(cupy.empty(5, np.float32).get()).all()


def during_a_capture(call: Any) -> None:
    """Make a call while a stream is captured; its error is to be noted by the device."""
    import cupy

    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            call(stream)
        finally:
            with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):  # which may have ended it
                stream.end_capture()


CALLS: dict[str, Any] = {
    "synchronize": lambda cupy, stream: stream.synchronize(),
    "event": lambda cupy, stream: stream.record().synchronize(),
    "device": lambda cupy, stream: cupy.cuda.Device().synchronize(),
}


@pytest.mark.parametrize("what", CALLS)
def test_what_a_capture_forbids(what: str) -> None:
    import cupy

    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="900"):
        during_a_capture(lambda stream: CALLS[what](cupy, stream))
    noted("captured|a capture")


def test_what_a_capture_forbids_without_an_error() -> None:
    import cupy

    for call, text in (
        (lambda stream: stream.done, "cudaStreamQuery"),
        (lambda stream: cupy.cuda.device.get_cublas_handle(), "a handle of cuBLAS is made"),
    ):
        during_a_capture(call)
        noted(text)


def test_cupys_own_products_are_refused_in_a_capture() -> None:
    """Which is why the package calls cuBLAS by itself."""
    import cupy

    cupy.cuda.device.get_cublas_handle()
    ones = cupy.ones((4, 4), np.float32)
    with pytest.raises(NotImplementedError, match="during stream capture is currently unsupported"):
        during_a_capture(lambda stream: cupy.dot(ones, ones))


def test_kernels_that_reach_beyond_memory_break_the_device() -> None:
    import cupy

    from fastlstm.kernels.device import cuda

    device = cuda.device(0)
    place = cupy.empty(8, np.float32)
    device.launch("sequence", "fill_zeros", ("-DREAL=float", "-DWORD=float"), (4, 1, 1), (256, 1, 1), (1000, place.data.ptr))
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="700"):
        place.get()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="700"):
        cupy.cuda.Device().synchronize()
    noted("KernelError: memory: fill_zeros")
    from tests.cuda.pretend.machine import machine

    machine.broken = 0


@pytest.mark.parametrize(("block", "shared"), [((2048, 1, 1), 0), ((32, 1, 1), 100_000)])
def test_what_the_driver_refuses(block: tuple[int, ...], shared: int) -> None:
    import cupy

    from fastlstm.kernels.device import cuda

    place = cupy.empty(8, np.float32)
    kernel = cuda.device(0)._function("sequence", "fill_zeros", ("-DREAL=float", "-DWORD=float"), 0).kernel
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        kernel((1, 1, 1), block, (8, place.data.ptr), shared_mem=shared)
    noted("fill_zeros cannot be launched so")


def test_a_cupy_that_is_built_otherwise_is_named() -> None:
    import cupy_backends.cuda.api.runtime as runtime

    from tests.cuda.pretend import hooks
    from tests.cuda.pretend.machine import machine

    known = {"cudaFresh": ("p", lambda place: None)}
    with pytest.raises(hooks.Changed, match="has no function cudaFresh: CUDA's runtime is no longer a part of it"):
        hooks._hook_runtime(runtime.__file__, known, machine)
    assert pretend.version().startswith("CuPy ")


@pytest.mark.here
@pytest.mark.parametrize(
    ("version", "text"),
    [("14.2.0", "CuPy 14.2.0"), ("99.0", "CuPy 99.0, where the pretend device was tried with 14.2.0")],
)
def test_another_version_is_told(version: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretend, "find_spec", lambda name: object())
    monkeypatch.setattr(pretend.metadata, "version", lambda name: version)
    assert pretend.version() == text


@pytest.mark.here
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretend.translate, "compiler", lambda: None)
    assert pretend.missing() == "the pretend device needs g++ and nm"
    monkeypatch.setattr(pretend.translate, "compiler", lambda: "g++")
    monkeypatch.setattr(pretend, "find_spec", lambda name: None)
    assert "pip install cupy-cuda13x" in str(pretend.missing())
    monkeypatch.setattr(pretend.platform, "machine", lambda: "aarch64")
    assert "x86-64" in str(pretend.missing())
