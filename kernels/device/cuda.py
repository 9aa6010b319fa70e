"""A CUDA device through CuPy: memory, compiled kernels, products by cuBLAS, and sequences of launches captured as one graph.

CuPy is imported when a device is asked for. All work goes to the caller's current stream, all memory comes from CuPy's pool.
Kernels are compiled by NVRTC at their first use and kept by CuPy's cache on disk; sources include no headers but their own
.cuh files, which are put in their place, so that the cache knows of their changes. Knows the kernels' files and nothing of what
they compute.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import clusters, cublas
from .layout import DTYPES
from .persistent import STATIC, Chip, Plan

FOLDER = Path(__file__).parent.parent  # of the operations' *.cu, which include device/*.cuh
FILES = ("gru", "head", "lstm", "pack", "random", "rnn", "sequence", "series", "update")
INCLUDE = re.compile(r'^#include "([\w/]+\.cuh)"\n', re.MULTILINE)
MOST_SENT = 1 << 26  # bytes on their way to the device
WORKSPACES = 16  # of cuBLAS: streams come and go

# Attributes of a device, by the CUDA runtime's numbers.
_PROCESSORS, _COOPERATIVE, _SHARED = 16, 95, 97
_PER_THREAD = 2  # cudaStreamPerThread
_ANYWHERE = 4  # cudaMemcpyDefault
_PLAIN_SHARED = (48 << 10) - STATIC  # bytes beside those that it declares that every kernel may have


def source(file: str) -> str:
    """A kernels' file with what it includes, each once."""
    seen: set[Path] = set()

    def text(path: Path) -> str:
        if path in seen:
            return ""
        seen.add(path)
        return INCLUDE.sub(lambda found: text(path.parent / found[1]), path.read_text())

    return text(FOLDER / f"{file}.cu")


def variants() -> list[tuple[Path, tuple[str, ...]]]:
    """Every file with every set of macros that it is compiled with."""
    macros = dict.fromkeys(macros for macros, *_ in DTYPES.values())
    return [(FOLDER / f"{file}.cu", wanted) for file in FILES for wanted in macros]


class Unavailable(ValueError):
    """There is no such CUDA device to work on; the text says what is missing."""


@cache
def cupy() -> Any:
    """The package, once it can reach a device.

    Raises
    ------
    Unavailable
        In one sentence: no CuPy, no driver, or no device.
    """
    try:
        import cupy as found
    except ImportError as error:
        raise Unavailable(f"CuPy is missing, pip install 'fastlstm[cuda12]' or [cuda13] brings it ({error})") from None
    try:
        devices = found.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise Unavailable(f"CuPy found no NVIDIA driver and GPU ({error})") from None
    if devices == 0:
        raise Unavailable("the driver shows no GPU")
    return found


def count() -> int:
    """How many devices there are."""
    return int(cupy().cuda.runtime.getDeviceCount())


@cache
def device(index: int) -> Device:
    """The device number `index`.

    Raises
    ------
    Unavailable
        Where there is no such device.
    """
    if not 0 <= index < count():
        raise Unavailable(f"this machine has cuda:0 to cuda:{count() - 1}")
    return Device(index)


class OutOfMemory(MemoryError):
    """The device has not the memory that was asked for; nothing was changed."""


class _Foreign:
    """Another library's stream, by its handle."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle  # the protocol's version, and the handle


class Device:
    """One device; `index` as the driver counts."""

    def __init__(self, index: int) -> None:
        self.index, self.cupy = index, cupy()
        self._modules: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._functions: dict[tuple[str, str, tuple[str, ...]], Any] = {}
        self._shared: dict[tuple[str, str, tuple[str, ...]], int] = {}  # bytes that a kernel may have beyond what all may
        self._held: dict[Plan, bool] = {}
        self._capturing, self._sending = threading.Lock(), threading.Lock()
        self._sent: deque[tuple[Any, Any]] = deque()  # events, and the pinned memory that is read until then
        self._current, self._threads = self.cupy.cuda.Device(index), threading.local()
        self._workspaces: dict[tuple[int, int], tuple[int, Any]] = {}  # of cuBLAS, by queue, with a number of its own
        self._serial = itertools.count()
        self._captured: Any = None  # the one of the stream that a graph is being captured for
        self._copy_bytes = self.cupy.cuda.runtime.memcpyAsync
        with self.current():
            self._capture = self.cupy.cuda.Stream(non_blocking=True)
            self.name = self.cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()

    def current(self) -> Any:
        """Context in which this device is the current one."""
        return self._current

    @contextlib.contextmanager
    def on(self, stream: int) -> Iterator[None]:
        """Context in which work goes to another library's stream, by its handle."""
        streams = self.cupy.cuda
        if hasattr(streams.Stream, "from_external"):
            foreign = streams.Stream.from_external(_Foreign(stream))
        else:  # before CuPy 14
            foreign = streams.ExternalStream(stream, self.index)
        with self.current(), foreign:
            yield

    # Memory.

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Uninitialised array."""
        return self._made(self.cupy.ndarray, shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Array of zeros."""
        return self._made(self.cupy.zeros, shape, dtype)

    def _made(self, make: Callable[..., Any], shape: tuple[int, ...], dtype: Any) -> Any:
        with self.current():
            try:
                return make(shape, dtype)
            except self.cupy.cuda.memory.OutOfMemoryError as error:
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                what = f"{size} bytes for an array {list(shape)} of {np.dtype(dtype)} on cuda:{self.index}"
                raise OutOfMemory(f"{what}: {error}") from None

    def upload(self, array: np.ndarray) -> Any:
        """A copy on the device."""
        target = self.empty(array.shape, array.dtype)
        target.set(np.ascontiguousarray(array))
        return target

    def owns(self, value: Any) -> bool:
        """Whether a value is an array on a device."""
        return isinstance(value, self.cupy.ndarray)

    def view(self, value: Any) -> Any:
        """A foreign array on a device, by DLPack or __cuda_array_interface__, without a copy."""
        with self.current():
            # DLPack first: there the current stream waits for the one that made the array, of which torch's other way says
            # nothing.
            if hasattr(value, "__dlpack__"):
                return self.cupy.from_dlpack(value)
            return self.cupy.asarray(value)

    def address(self, array: Any) -> int:
        """Where an array begins."""
        return int(array.data.ptr)

    def copy(self, *pairs: tuple[Any, Any]) -> None:
        """To each target a value of its size and type, in either memory, in the order of the current stream; targets are
        contiguous.
        """
        with self._current:
            stream = self.cupy.cuda.get_current_stream().ptr
            for target, value in pairs:
                if isinstance(target, np.ndarray):
                    target[...] = value.get().reshape(target.shape)
                elif isinstance(value, np.ndarray):
                    self._send(target, value)
                elif value.flags.c_contiguous:  # past CuPy's kernel for copies, which takes the host five times as long
                    self._copy_bytes(target.data.ptr, value.data.ptr, target.nbytes, _ANYWHERE, stream)
                else:
                    target[...] = value.reshape(target.shape)

    def _send(self, target: Any, value: np.ndarray) -> None:
        """An array of the same type to the device, without waiting for it: from a pinned copy, kept until it has been read."""
        if target.nbytes == 0:
            return
        stream, event = self.cupy.cuda.get_current_stream(), self.cupy.cuda.Event(disable_timing=True)
        block = self.cupy.cuda.alloc_pinned_memory(target.nbytes)
        np.frombuffer(block, target.dtype, target.size).reshape(target.shape)[...] = value.reshape(target.shape)
        with self._sending:
            try:
                target.data.copy_from_host_async(ctypes.c_void_p(block.ptr), target.nbytes, stream)
                event.record(stream)
                self._sent.append((event, block))
            except BaseException:  # an interrupt: the block must not go before it has been read
                stream.synchronize()
                raise
            while self._sent and (self._sent[0][0].done or sum(kept.size() for _, kept in self._sent) > MOST_SENT):
                self._sent.popleft()[0].synchronize()

    # Work.

    @cached_property
    def chip(self) -> Chip:
        """What persistent plans depend on."""
        runtime = self.cupy.cuda.runtime
        multiprocessors, shared_bytes = (runtime.deviceGetAttribute(code, self.index) for code in (_PROCESSORS, _SHARED))
        return Chip(int(self.cupy.cuda.Device(self.index).compute_capability), multiprocessors, shared_bytes)

    def holds(self, plan: Plan) -> bool:
        """Whether all blocks that wait for each other can be resident at a time: with fewer they would wait for ever.

        To be asked before the first launch of a plan, since large clusters must be allowed.
        """
        if plan not in self._held:
            with self.current():
                together = self.cupy.cuda.runtime.deviceGetAttribute(_COOPERATIVE, self.index)
                driver = self.cupy.cuda.driver
                pointer = self._function(plan.file, plan.kernel, plan.macros, plan.shared).kernel.ptr
                if plan.form == "cluster":
                    if plan.grid[0] > clusters.PORTABLE:
                        driver.funcSetAttribute(pointer, clusters.ALLOWED, 1)
                    launch = clusters.launch(plan.grid, plan.threads, plan.shared, plan.grid[0])
                    self._held[plan] = clusters.resident(pointer, launch) > 0
                else:
                    each = driver.occupancyMaxActiveBlocksPerMultiprocessor(pointer, plan.threads, plan.shared)
                    room = each * self.chip.multiprocessors if together else 0
                    self._held[plan] = room >= plan.blocks if plan.form == "grid" else each > 0
        return self._held[plan]

    def launch(
        self,
        file: str,
        kernel: str,
        macros: tuple[str, ...],
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: tuple[int, ...],
        *,
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Launch a kernel; whole numbers and addresses are passed as 64 bits.

        shared: bytes of its dynamic shared memory. cooperative: all blocks run at a time, or the launch fails; `holds` first.
        """
        with self.current():
            function = self._function(file, kernel, macros, shared).kernel
            # Not RawModule's own way to cooperative launches, for which it wants CUDA's headers and its device library.
            function(grid, block, arguments, shared_mem=shared, enable_cooperative_groups=cooperative)

    def _function(self, file: str, kernel: str, macros: tuple[str, ...], shared: int) -> Any:
        key = (file, kernel, macros)
        if key not in self._functions:
            self._functions[key] = self._module(file, macros).get_function(kernel)
        if shared > max(_PLAIN_SHARED, self._shared.get(key, 0)):
            self._functions[key].max_dynamic_shared_size_bytes = self._shared[key] = shared
        return self._functions[key]

    def _module(self, file: str, macros: tuple[str, ...]) -> Any:
        if (file, macros) not in self._modules:
            if not self._modules and not os.environ.get("FASTLSTM_QUIET"):
                print(f"fastlstm: kernels for {self.name}; the first use ever compiles them (seconds)", file=sys.stderr)
            options = ("-std=c++17", *macros)
            self._modules[file, macros] = self.cupy.RawModule(code=source(file), options=options, backend="nvrtc")
        return self._modules[file, macros]

    def multiply(
        self,
        kind: str,
        turned: tuple[bool, bool],
        sizes: tuple[int, int, int],
        a: tuple[int, int],
        b: tuple[int, int],
        c: tuple[int, int],
        add: bool,
    ) -> None:
        """C[rows, columns] = A @ B, or C plus it; sizes: rows, columns, depth; a, b, c: address and length of a row.

        A is [rows, depth], or, turned, lies as [depth, rows]; B is [depth, columns], or, turned, lies as [columns, depth].
        """
        with self.current():
            stream = self.cupy.cuda.get_current_stream().ptr
            space = self._captured if stream == self._capture.ptr else self._workspace()[1]
            handle = self.cupy.cuda.device.get_cublas_handle()
            cublas.begin(handle, stream, space.data.ptr, space.nbytes)
            cublas.multiply(handle, kind, turned, sizes, a, b, c, add)

    def reserve(self) -> int:
        """Make what products on the current stream need, and tell a number that stands for the memory that they work with.

        Raises
        ------
        RuntimeError
            While somebody captures the current stream.
        """
        if self.cupy.cuda.runtime.streamIsCapturing(self.queue()[0]):
            raise RuntimeError(
                "the current stream is being captured; expected calls outside of captures: a call waits for other streams and "
                "copies what it is given, and becomes a graph by itself"
            )
        if not hasattr(self._threads, "ready"):  # this thread's handle must not be made within a capture
            with self._current:
                self.cupy.cuda.device.get_cublas_handle()
            self._threads.ready = True
        return self._workspace()[0]

    def _workspace(self) -> tuple[int, Any]:
        """The current stream's: products repeat bit by bit only if no other stream's have it at the time."""
        queue = self.queue()
        found = self._workspaces.get(queue)
        if found is None:
            size = cublas.WORKSPACE if self.chip.capability >= 90 else cublas.WORKSPACE_BEFORE_HOPPER
            space = self.empty((size,), np.uint8)
            for old in list(self._workspaces)[: 1 - WORKSPACES]:  # graphs that have it are not launched any more
                self._workspaces.pop(old, None)
            found = self._workspaces[queue] = next(self._serial), space
        return found

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` launches, captured, as a function that launches all of it; while `reserve` tells the number that it tells
        now, since products have the memory that it stands for.
        """
        _, space = self._workspace()
        with self.current(), self._capturing, self._capture:
            self._captured = space
            self._capture.begin_capture()
            try:
                work()
            finally:
                graph = self._capture.end_capture()

        def launch() -> None:
            with self._current:
                graph.launch(self.cupy.cuda.get_current_stream())

        return launch

    def queue(self) -> tuple[int, int]:
        """What tells the current stream from others: its handle and, of the one that each thread has, which all call alike, the
        thread.
        """
        handle = self.cupy.cuda.get_current_stream(self.index).ptr
        return handle, threading.get_ident() if handle == _PER_THREAD else 0

    def mark(self) -> tuple[tuple[int, int], Any]:
        """Where in the current stream its work so far ends: the stream as `queue` tells it, and an event."""
        with self.current():
            event = self.cupy.cuda.Event(disable_timing=True)
            event.record(self.cupy.cuda.get_current_stream())
        return self.queue(), event

    def wait(self, mark: tuple[tuple[int, int], Any]) -> None:
        """Let what the current stream is given from now on wait for a mark."""
        with self.current():
            self.cupy.cuda.get_current_stream().wait_event(mark[1])

    def synchronize(self) -> None:
        """Wait for the current stream."""
        with self.current():
            self.cupy.cuda.get_current_stream().synchronize()
