"""CUDA's runtime on the host: memory, streams that run as late as they may, events, and graphs.

A stream is a line of work; a mark is a stream and how much of it. Work is done when somebody waits for it, after all that it is
ordered behind and nothing else.
"""

from __future__ import annotations

import bisect
import ctypes
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .hooks import symbol

PROCESSORS, SHARED, SHARED_OF_ALL = 132, 232448, 233472
ATTRIBUTES = {1: 1024, 8: 49152, 10: 32, 16: PROCESSORS, 75: 9, 76: 0, 95: 1, 97: SHARED}
LEGACY, PER_THREAD = (0, 1), 2
MEMORY = 139 << 30  # bytes that the device says to have

INVALID, NO_MEMORY, NOT_READY, ILLEGAL_ADDRESS, NOT_IN_CAPTURE, INVALIDATED = 1, 2, 600, 700, 900, 901

Work = Callable[[int], None]  # does something, on behalf of a stream by its handle
Mark = tuple["Stream", int]


@dataclass(eq=False)
class Stream:
    """`done` of `issued` pieces of work are done; `line` holds the others, with what each waits for."""

    handle: int
    blocking: bool = True
    issued: int = 0
    done: int = 0
    line: deque[tuple[Work, list[Mark]]] = field(default_factory=deque)
    times: dict[int, float] = field(default_factory=dict)  # when marks of events were passed
    captured: list[Work] | None = None
    mode: int = 2
    thread: int = 0  # that captures


@dataclass(eq=False)
class Event:
    """Where it was recorded, if it was; `inside` of a capture it can only be waited for within that."""

    mark: Mark | None = None
    inside: Stream | None = None


def _put(place: int, value: int, kind: Any = ctypes.c_size_t) -> None:
    kind.from_address(place).value = value


class Memory:
    """Allocations by address, filled with 0xff bytes: what is not written is not a number."""

    def __init__(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self._begins: list[int] = []
        self._owners: dict[int, np.ndarray] = {}

    def new(self, size: int) -> int:
        """Where `size` bytes begin."""
        owner = np.full(size + 512, 0xFF, np.uint8)
        begin = -owner.ctypes.data % 512
        block = owner[begin : begin + size]
        address = int(owner.ctypes.data + begin)
        self.blocks[address], self._owners[address] = block, owner
        bisect.insort(self._begins, address)
        return address

    def free(self, address: int) -> bool:
        """Whether there was such a block."""
        block = self.blocks.pop(address, None)
        if block is None:
            return False
        block[:] = 0xFF
        del self._owners[address]
        self._begins.remove(address)
        return True

    def behind(self, address: int) -> np.ndarray | None:
        """The bytes from an address to the end of its block; None where it is in none."""
        k = bisect.bisect_right(self._begins, address) - 1
        if k < 0:
            return None
        block, offset = self.blocks[self._begins[k]], address - self._begins[k]
        return block[offset:] if offset < max(1, block.size) else None

    @property
    def total(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in self.blocks.values())


class Machine:
    """The runtime of the one device that there is."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.calls: dict[str, int] = {}
        self.room = MEMORY
        self.users: dict[int, set[int]] = {}  # streams on which products worked with a memory, by its address
        self.broken = 0  # the error that all calls get once a kernel has failed
        self.memory, self.pinned = Memory(), Memory()
        self.streams: dict[int, Stream] = {0: Stream(0), PER_THREAD: Stream(PER_THREAD)}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, list[Work]] = {}
        self._next = 0x1000
        self._lock = threading.RLock()
        self._errors = ctypes.create_string_buffer(b"an error of the pretend device")
        self._device = 0

    def fault(self, text: str) -> int:
        """Note what a real device would not do, or do wrong in silence; returns the error of what a capture forbids."""
        self.faults.append(text)
        print(f"pretend device: {text}", file=sys.stderr, flush=True)
        return NOT_IN_CAPTURE

    def handle(self) -> int:
        """A new one."""
        self._next += 16
        return self._next

    def stream(self, handle: int) -> Stream:
        """By its handle."""
        return self.streams[0 if handle in LEGACY else handle]

    # Order.

    def issue(self, handle: int, work: Work, waits: list[Mark] | None = None) -> Mark:
        """Put work at the end of a stream's line, or into the graph that is captured from it."""
        with self._lock:
            stream = self.stream(handle)
            if stream.captured is not None:
                if waits:
                    self.fault("a captured stream waits for an event that is not of the capture")
                stream.captured.append(work)
                return stream, stream.issued
            waits = [*(waits or ()), *self._neighbours(stream)]
            stream.line.append((work, waits))
            stream.issued += 1
            return stream, stream.issued

    def _neighbours(self, stream: Stream) -> list[Mark]:
        """What work on a stream is ordered behind without being told: the default stream's, and of that all blocking ones'."""
        if not stream.blocking:
            return []
        if stream.handle in LEGACY:
            others = [s for s in self.streams.values() if s.blocking and s is not stream]
            if any(s.captured is not None for s in others):
                self.fault("work on the default stream while a blocking stream is captured")
        else:
            others = [self.streams[0]]
        return [(s, s.issued) for s in others if s.issued > s.done]

    def reach(self, mark: Mark) -> int:
        """Do all work up to a mark, and what it waits for; the error that came of it."""
        stream, count = mark
        with self._lock:
            while stream.done < count and not self.broken:
                work, waits = stream.line[0]
                for other in waits:
                    self.reach(other)
                if self.broken:
                    break
                stream.line.popleft()
                try:
                    work(stream.handle)
                except Exception as error:
                    self.broken = ILLEGAL_ADDRESS
                    self.fault(f"{type(error).__name__}: {error}")
                stream.done += 1
                stream.times[stream.done] = time.perf_counter()
                stream.times.pop(stream.done - 4096, None)
            return self.broken

    def reach_all(self) -> int:
        """Do everything."""
        for stream in [*self.streams.values()]:
            self.reach((stream, stream.issued))
        return self.broken

    def capturing(self) -> bool:
        """Whether any stream is captured."""
        return any(stream.captured is not None for stream in self.streams.values())

    def _unsafe(self, what: str) -> bool:
        """Whether a call is made that some capture forbids; relaxed ones forbid none."""
        if any(s.captured is not None and s.mode != 2 for s in self.streams.values()):
            self.fault(f"{what} while a stream is captured")
            return True
        return False

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

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        """Bytes on the device.

        Raises
        ------
        IndexError
            Where they are not all of one allocation.
        """
        found = self.memory.behind(address)
        if found is None or found.size < size:
            raise IndexError(f"{size} bytes at {address:#x} are not on the device")
        return found[:size]

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
if room := os.environ.get("PRETEND_ROOM"):
    machine.room = int(room)
