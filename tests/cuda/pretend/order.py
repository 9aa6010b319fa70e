"""What a device does and when: memory, and streams whose work is done as late as it may be.

A stream is a line of work; a mark is a stream and how much of it. Work is done when somebody waits for it, after all that it is
ordered behind and nothing else.
"""

from __future__ import annotations

import bisect
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

LEGACY, PER_THREAD = (0, 1), 2
MEMORY = 139 << 30  # bytes that the device says to have
ILLEGAL_ADDRESS, NOT_IN_CAPTURE = 700, 900

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


class Device:
    """Memory, streams, and what was noted."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.calls: dict[str, int] = {}
        self.room = MEMORY
        self.users: dict[int, set[int]] = {}  # streams on which products worked with a memory, by its address
        self.broken = 0  # the error that all calls get once a kernel has failed
        self.memory, self.pinned = Memory(), Memory()
        self.streams: dict[int, Stream] = {0: Stream(0), PER_THREAD: Stream(PER_THREAD)}
        self._next = 0x1000
        self._lock = threading.RLock()

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
