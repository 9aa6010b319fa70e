"""CUDA's driver: modules, their kernels' needs as their machine code says them, and launches, with what it would refuse."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.cuda.pretend import kernels
from tests.cuda.pretend.machine import INVALID, PROCESSORS, SHARED, SHARED_OF_ALL, Machine
from tests.cuda.pretend.symbols import symbol

NOT_FOUND, TOO_LARGE, NO_CLUSTER = 500, 720, 912
# Attributes of a kernel in .nv.info sections, and of a function in the driver.
_MAX_THREADS, _PARAMETER, _REGISTERS, _CLUSTER = 0x05, 0x17, 0x2F, 0x3D
_DYNAMIC, _STATIC, _REGISTERS_OF, _NON_PORTABLE = 8, 1, 4, 14


@dataclass(eq=False)
class Function:
    """A kernel: bytes of shared memory, registers, and sizes of its parameters."""

    name: str
    origin: kernels.Origin
    static: int = 0
    registers: int = 0
    most_threads: int = 1024
    cluster: int = 0
    dynamic: int = 49152
    non_portable: bool = False
    parameters: dict[int, int] = field(default_factory=dict)

    def resident(self, threads: int, shared: int) -> int:
        """Blocks that a multiprocessor can have at a time."""
        if shared > self.dynamic:
            return 0
        registers = -(-self.registers // 8) * 8 * (-(-threads // 32) * 32)
        return int(min(65536 // registers, SHARED_OF_ALL // (shared + self.static + 1024), 2048 // threads))


def read(image: bytes, origin: kernels.Origin) -> dict[str, Function]:
    """The kernels of a cubin, which is an ELF file, by name."""
    start, entry, count, names_at = struct.unpack_from("<Q10xHHH", image, 40)
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, start + k * entry) for k in range(count)]

    def text(base: int, offset: int) -> str:
        begin = sections[base][4] + offset
        return image[begin : image.index(b"\0", begin)].decode()

    named = [(text(names_at, section[0]), section) for section in sections]
    found = {name[6:]: Function(name[6:], origin) for name, _ in named if name.startswith(".text.")}

    def attributes(section: Any) -> Any:
        at, end = section[4], section[4] + section[5]
        while at + 4 <= end:
            form, attribute, size = struct.unpack_from("<BBH", image, at)
            if form == 4:
                yield attribute, image[at + 4 : at + 4 + size]
            at += 4 + (size if form == 4 else 0)

    (symbols,) = (section for _, section in named if section[1] == 2)
    for name, section in named:
        of = found.get(name.split(".", 3)[-1])
        if name.startswith(".nv.shared.") and of:
            of.static = section[5] - 1024 if section[5] >= 1024 else section[5]  # the first KiB is the system's
        if name.startswith(".nv.info.") and of:
            for attribute, data in attributes(section):
                if attribute == _CLUSTER:
                    of.cluster = struct.unpack_from("<I", data)[0]
                elif attribute == _MAX_THREADS:
                    of.most_threads = struct.unpack_from("<I", data)[0]
                elif attribute == _PARAMETER:
                    number, _, flags = struct.unpack_from("<4xHHI", data)
                    of.parameters[number] = flags >> 18
        if name == ".nv.info":
            for attribute, data in attributes(section):
                if attribute == _REGISTERS:
                    index, registers = struct.unpack_from("<II", data)
                    entry_name = struct.unpack_from("<I", image, symbols[4] + 24 * index)[0]
                    kernel = found.get(text(symbols[6], entry_name))
                    if kernel:
                        kernel.registers = registers
    return found


class Driver:
    """The functions of libcuda that CuPy and the package call."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._modules: dict[int, dict[str, Function]] = {}
        self._functions: dict[int, Function] = {}
        self._text = ctypes.create_string_buffer(b"an error of the pretend driver")

    @symbol("ip")
    def cuGetErrorName(self, error: int, out: int) -> None:
        ctypes.c_size_t.from_address(out).value = ctypes.addressof(self._text)

    @symbol("ip")
    def cuGetErrorString(self, error: int, out: int) -> None:
        ctypes.c_size_t.from_address(out).value = ctypes.addressof(self._text)

    @symbol("u")
    def cuInit(self, flags: int) -> None:
        pass

    @symbol("pp")
    def cuGetExportTable(self, out: int, identity: int) -> int:
        """NVRTC asks for one, and goes on without it; where the function itself is missing it breaks."""
        ctypes.c_size_t.from_address(out).value = 0
        return NOT_FOUND

    @symbol("p")
    def cuDriverGetVersion(self, out: int) -> None:
        ctypes.c_int.from_address(out).value = 13000

    @symbol("p")
    def cuCtxGetCurrent(self, out: int) -> None:
        ctypes.c_size_t.from_address(out).value = 1

    @symbol("p")
    def cuCtxSetCurrent(self, context: int) -> None:
        pass

    @symbol("p")
    def cuCtxGetDevice(self, out: int) -> None:
        ctypes.c_int.from_address(out).value = 0

    @symbol("pp")
    def cuModuleLoadData(self, out: int, image: int) -> int:
        head = ctypes.string_at(image, 64)
        if head[:4] != b"\x7fELF":
            self.machine.fault("a module that is no machine code")
            return INVALID
        start, entry, count = struct.unpack_from("<Q10xHH", head, 40)
        data = ctypes.string_at(image, start + entry * count)
        self._modules[made := self.machine.handle()] = read(data, kernels.origin())
        ctypes.c_size_t.from_address(out).value = made
        return 0

    @symbol("p")
    def cuModuleUnload(self, module: int) -> None:
        pass

    @symbol("ppp")
    def cuModuleGetFunction(self, out: int, module: int, name: int) -> int:
        found = self._modules[module].get(ctypes.string_at(name).decode())
        if found is None:
            return NOT_FOUND
        self._functions[made := self.machine.handle()] = found
        ctypes.c_size_t.from_address(out).value = made
        return 0

    @symbol("pip")
    def cuFuncGetAttribute(self, out: int, attribute: int, function: int) -> None:
        of = self._functions[function]
        values = {_DYNAMIC: of.dynamic, _STATIC: of.static, _REGISTERS_OF: of.registers}
        ctypes.c_int.from_address(out).value = values[attribute]

    @symbol("pii")
    def cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> int:
        of = self._functions[function]
        if attribute == _NON_PORTABLE:
            of.non_portable = bool(value)
        elif attribute == _DYNAMIC and value + of.static <= SHARED:
            of.dynamic = value
        else:
            return INVALID
        return 0

    @symbol("ppip")
    def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, out: int, function: int, threads: int, shared: int) -> None:
        ctypes.c_int.from_address(out).value = self._functions[function].resident(threads, shared)

    @symbol("ppp")
    def cuOccupancyMaxActiveClusters(self, out: int, function: int, launch: int) -> int:
        """Of a CUlaunchConfig with the cluster's dimensions as its one attribute."""
        of = self._functions[function]
        grid, _, _, threads, _, _, shared = struct.unpack_from("<7I", ctypes.string_at(launch, 28))
        attribute, count = struct.unpack_from("<QI", ctypes.string_at(launch + 40, 12))
        kind, size = struct.unpack_from("<I4xI", ctypes.string_at(attribute, 12))
        if (kind, count) != (4, 1) or grid % size or (of.cluster and of.cluster != size):
            return INVALID
        if size > (16 if of.non_portable else 8):
            return NO_CLUSTER
        fits = of.resident(threads, shared)
        ctypes.c_int.from_address(out).value = (5 if size == 16 else 120 // size) if fits else 0
        return 0

    @symbol("puuuuuuuppp")
    def cuLaunchKernel(self, function: int, *arguments: int) -> int:
        *sizes, shared, stream, values, _ = arguments
        return self._launch(function, tuple(sizes[:3]), tuple(sizes[3:]), shared, stream, values, False)

    @symbol("puuuuuuupp")
    def cuLaunchCooperativeKernel(self, function: int, *arguments: int) -> int:
        *sizes, shared, stream, values = arguments
        return self._launch(function, tuple(sizes[:3]), tuple(sizes[3:]), shared, stream, values, True)

    def _launch(
        self,
        function: int,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared: int,
        stream: int,
        values: int,
        together: bool,
    ) -> int:
        of, threads = self._functions[function], int(np.prod(block))
        if self.machine.broken:
            return self.machine.broken
        if shared > of.dynamic or threads > of.most_threads or max(grid[1:]) > 65535 or of.registers * threads > 65536:
            self.machine.fault(f"{of.name} cannot be launched so: grid {grid}, block {block}, {shared} bytes shared, {of}")
            return INVALID
        if of.cluster and (grid[0] % of.cluster or (of.cluster > 8 and not of.non_portable)):
            return NO_CLUSTER
        if together and int(np.prod(grid)) > PROCESSORS * of.resident(threads, shared):
            return TOO_LARGE
        places = (ctypes.c_size_t * len(of.parameters)).from_address(values) if of.parameters else ()
        given = [ctypes.string_at(places[k], of.parameters[k]) for k in range(len(of.parameters))]
        work = kernels.work(self.machine, of.name, of.origin, grid, block, shared, together, given)
        self.machine.calls[of.name] = self.machine.calls.get(of.name, 0) + 1
        self.machine.issue(stream, work)
        return 0
