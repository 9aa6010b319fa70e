"""CUDA's runtime on the host: memory, streams, events and graphs, in the order that order.py keeps."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.cuda.pretend.order import LEGACY, MEMORY, NOT_IN_CAPTURE, PER_THREAD, Device, Mark, Stream, Work
from tests.cuda.pretend.symbols import symbol

PROCESSORS, SHARED, SHARED_OF_ALL = 132, 232448, 233472
ATTRIBUTES = {1: 1024, 8: 49152, 10: 32, 16: PROCESSORS, 75: 9, 76: 0, 95: 1, 97: SHARED}

INVALID, NO_MEMORY, NOT_READY, INVALIDATED = 1, 2, 600, 901


@dataclass(eq=False)
class Event:
    """Where it was recorded, if it was; `inside` of a capture it can only be waited for within that."""

    mark: Mark | None = None
    inside: Stream | None = None


def _put(place: int, value: int, kind: Any = ctypes.c_size_t) -> None:
    kind.from_address(place).value = value


class Machine(Device):
    """The runtime of the one device that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, list[Work]] = {}
        self._errors = ctypes.create_string_buffer(b"an error of the pretend device")

    # Devices and errors.

    @symbol("i")
    def cudaGetErrorName(self, error: int) -> int:
        return ctypes.addressof(self._errors)

    @symbol("i")
    def cudaGetErrorString(self, error: int) -> int:
        self._errors = ctypes.create_string_buffer(f"error {error} of the pretend device".encode())
        return ctypes.addressof(self._errors)

    @symbol("")
    def cudaGetLastError(self) -> int:
        return self.broken

    @symbol("")
    def cudaPeekAtLastError(self) -> int:
        return self.broken

    @symbol("p")
    def cudaDriverGetVersion(self, out: int) -> None:
        _put(out, 13000, ctypes.c_int)

    @symbol("p")
    def cudaRuntimeGetVersion(self, out: int) -> None:
        _put(out, 13000, ctypes.c_int)

    @symbol("p")
    def cudaGetDevice(self, out: int) -> None:
        _put(out, 0, ctypes.c_int)

    @symbol("i")
    def cudaSetDevice(self, device: int) -> int:
        return 101 if device else 0

    @symbol("p")
    def cudaGetDeviceCount(self, out: int) -> None:
        _put(out, 1, ctypes.c_int)

    @symbol("")
    def cudaDeviceSynchronize(self) -> int:
        if self.capturing():
            return self.fault("cudaDeviceSynchronize while a stream is captured")
        return self.reach_all()

    @symbol("pii")
    def cudaDeviceGetAttribute(self, out: int, attribute: int, device: int) -> None:
        _put(out, ATTRIBUTES.get(attribute, 0), ctypes.c_int)

    @symbol("pi")
    def cudaGetDeviceProperties(self, out: int, device: int) -> None:
        ctypes.memset(out, 0, 1000)
        ctypes.memmove(out, b"NVIDIA H200 (pretend)", 21)
        _put(out + 288, MEMORY)
        _put(out + 308, 32, ctypes.c_int)  # threads of a warp

    @symbol("pi")
    def cudaDeviceGetLimit(self, out: int, limit: int) -> None:
        _put(out, 0)

    @symbol("pii")
    def cudaDeviceCanAccessPeer(self, out: int, a: int, b: int) -> None:
        _put(out, 0, ctypes.c_int)

    # Memory.

    @symbol("pp")
    def cudaMalloc(self, out: int, size: int) -> int:
        if self.broken or self._unsafe("cudaMalloc"):
            return self.broken or NOT_IN_CAPTURE
        if self.memory.total + size > self.room:
            return NO_MEMORY
        _put(out, self.memory.new(size))
        return 0

    @symbol("p")
    def cudaFree(self, address: int) -> int:
        if not address:
            return 0
        if self._unsafe("cudaFree"):
            return NOT_IN_CAPTURE
        self.reach_all()
        if not self.memory.free(address):
            self.fault("cudaFree of what was not allocated")
            return INVALID
        return 0

    @symbol("ppu")
    def cudaHostAlloc(self, out: int, size: int, flags: int) -> int:
        if self._unsafe("cudaHostAlloc"):
            return NOT_IN_CAPTURE
        _put(out, self.pinned.new(size))
        return 0

    @symbol("p")
    def cudaFreeHost(self, address: int) -> int:
        self.reach_all()
        return 0 if self.pinned.free(address) else INVALID

    @symbol("pp")
    def cudaMemGetInfo(self, free: int, total: int) -> None:
        _put(total, MEMORY)
        _put(free, MEMORY - self.memory.total)

    @symbol("pp")
    def cudaPointerGetAttributes(self, out: int, address: int) -> None:
        on_device, pinned = (m.behind(address) is not None for m in (self.memory, self.pinned))
        ctypes.memset(out, 0, 32)
        _put(out, 2 if on_device else 1 if pinned else 0, ctypes.c_int)
        _put(out + 8, address if on_device else 0)
        _put(out + 16, address if pinned else 0)

    def _ends(self, target: int, source: int, size: int, kind: int) -> tuple[Callable[[], Any], Callable[[Any], None], bool]:
        """How a copy reads and writes, and whether what it writes to is memory that a caller sees without waiting."""

        def host(address: int) -> Any:
            return (ctypes.c_char * size).from_address(address)

        from_device, to_device = self.memory.behind(source) is not None, self.memory.behind(target) is not None
        if kind in (1, 2, 3) and (from_device, to_device) != (kind != 1, kind != 2):
            raise IndexError(f"a copy of kind {kind} from {source:#x} to {target:#x}, which are not such memory")
        if from_device:
            read = lambda: self.bytes_at(source, size).copy()  # noqa: E731
        elif self.pinned.behind(source) is not None:
            read = lambda: np.frombuffer(host(source), np.uint8).copy()  # noqa: E731
        else:
            kept = np.frombuffer(host(source), np.uint8).copy()
            read = lambda: kept  # noqa: E731

        def write(values: Any) -> None:
            if to_device:
                self.bytes_at(target, size)[:] = values
            else:
                ctypes.memmove(target, values.ctypes.data, size)

        return read, write, not to_device and self.pinned.behind(target) is None

    @symbol("pppip")
    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> int:
        if self.broken:
            return self.broken
        if not size:
            return 0
        read, write, at_once = self._ends(target, source, size, kind)
        mark = self.issue(stream, lambda _: write(read()))
        return self.reach(mark) if at_once and self.stream(stream).captured is None else 0

    @symbol("pppi")
    def cudaMemcpy(self, target: int, source: int, size: int, kind: int) -> int:
        self.cudaMemcpyAsync(target, source, size, kind, 0)
        return self.reach((self.streams[0], self.streams[0].issued))

    @symbol("pipp")
    def cudaMemsetAsync(self, target: int, value: int, size: int, stream: int) -> int:
        if size:
            self.issue(stream, lambda _: self.bytes_at(target, size).fill(value))
        return self.broken

    @symbol("pip")
    def cudaMemset(self, target: int, value: int, size: int) -> int:
        return self.cudaMemsetAsync(target, value, size, 0)

    # Streams and events.

    @symbol("pui")
    def cudaStreamCreateWithPriority(self, out: int, flags: int, priority: int) -> None:
        made = Stream(self.handle(), blocking=not flags & 1)
        self.streams[made.handle] = made
        _put(out, made.handle)

    @symbol("pu")
    def cudaStreamCreateWithFlags(self, out: int, flags: int) -> None:
        self.cudaStreamCreateWithPriority(out, flags, 0)

    @symbol("p")
    def cudaStreamCreate(self, out: int) -> None:
        self.cudaStreamCreateWithPriority(out, 0, 0)

    @symbol("pp")
    def cudaStreamGetFlags(self, stream: int, out: int) -> None:
        _put(out, int(not self.stream(stream).blocking), ctypes.c_uint)

    @symbol("p")
    def cudaStreamDestroy(self, stream: int) -> int:
        self.reach((self.stream(stream), self.stream(stream).issued))
        del self.streams[stream]
        return self.broken

    def _waited(self, what: str, stream: Stream) -> int:
        if stream.captured is not None:
            stream.captured = None
            return self.fault(f"{what} while the stream is captured")
        return 0

    @symbol("p")
    def cudaStreamSynchronize(self, handle: int) -> int:
        stream = self.stream(handle)
        return self._waited("cudaStreamSynchronize", stream) or self.reach((stream, stream.issued))

    @symbol("p")
    def cudaStreamQuery(self, handle: int) -> int:
        stream = self.stream(handle)
        return self._waited("cudaStreamQuery", stream) or self._polled((stream, stream.issued))

    def _polled(self, mark: Mark) -> int:
        """Whether a mark is reached; asking moves the stream on by one piece of work."""
        stream, count = mark
        self.reach((stream, min(count, stream.done + 1)))
        return self.broken or (0 if stream.done >= count else NOT_READY)

    @symbol("ppu")
    def cudaStreamWaitEvent(self, handle: int, event: int, flags: int) -> None:
        found, stream = self.events[event], self.stream(handle)
        if found.inside is not None:
            if found.inside is not stream:
                self.fault("a stream waits for an event of another's capture")
        elif found.mark is not None:
            self.issue(handle, lambda _: None, [found.mark])

    @symbol("pi")
    def cudaStreamBeginCapture(self, handle: int, mode: int) -> int:
        stream = self.stream(handle)
        if handle in (*LEGACY, PER_THREAD) or stream.captured is not None:
            return self.fault("a capture of the default stream, or of one that is captured")
        stream.captured, stream.mode, stream.thread = [], mode, threading.get_ident()
        return 0

    @symbol("pp")
    def cudaStreamEndCapture(self, handle: int, out: int) -> int:
        stream = self.stream(handle)
        if stream.captured is None:
            return INVALIDATED
        made, stream.captured = stream.captured, None
        self.graphs[graph := self.handle()] = made
        _put(out, graph)
        return 0

    @symbol("pp")
    def cudaStreamIsCapturing(self, handle: int, out: int) -> None:
        _put(out, int(self.stream(handle).captured is not None), ctypes.c_int)

    @symbol("ppp")
    def cudaGraphInstantiate(self, out: int, graph: int, flags: int) -> None:
        self.graphs[made := self.handle()] = self.graphs[graph]
        _put(out, made)

    @symbol("p")
    def cudaGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    @symbol("p")
    def cudaGraphExecDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    @symbol("pp")
    def cudaGraphUpload(self, graph: int, stream: int) -> None:
        pass

    @symbol("pp")
    def cudaGraphLaunch(self, graph: int, handle: int) -> int:
        nodes = self.graphs[graph]
        self.calls["graph"] = self.calls.get("graph", 0) + 1

        def run(stream: int) -> None:
            for node in nodes:
                node(stream)

        self.issue(handle, run)
        return self.broken

    @symbol("pu")
    def cudaEventCreateWithFlags(self, out: int, flags: int) -> None:
        self.events[made := self.handle()] = Event()
        _put(out, made)

    @symbol("p")
    def cudaEventCreate(self, out: int) -> None:
        self.cudaEventCreateWithFlags(out, 0)

    @symbol("p")
    def cudaEventDestroy(self, event: int) -> None:
        del self.events[event]

    @symbol("pp")
    def cudaEventRecord(self, event: int, handle: int) -> int:
        stream = self.stream(handle)
        inside = stream if stream.captured is not None else None
        self.events[event].mark, self.events[event].inside = self.issue(handle, lambda _: None), inside
        return self.broken

    @symbol("p")
    def cudaEventQuery(self, event: int) -> int:
        found = self.events[event]
        if found.inside is not None:
            return self.fault("cudaEventQuery of an event of a capture")
        return 0 if found.mark is None else self._polled(found.mark)

    @symbol("p")
    def cudaEventSynchronize(self, event: int) -> int:
        found = self.events[event]
        if found.inside is not None:
            return self.fault("cudaEventSynchronize of an event of a capture")
        return 0 if found.mark is None else self.reach(found.mark)

    @symbol("ppp")
    def cudaEventElapsedTime(self, out: int, start: int, stop: int) -> int:
        marks = [self.events[one].mark for one in (start, stop)]
        if any(mark is None or mark[0].done < mark[1] for mark in marks):
            return NOT_READY
        first, last = (mark[0].times[mark[1]] for mark in marks if mark)
        _put_float(out, (last - first) * 1e3)
        return 0


def _put_float(place: int, value: float) -> None:
    ctypes.c_float.from_address(place).value = value


machine = Machine()
