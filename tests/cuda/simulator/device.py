"""A device without a GPU: what kernels.cuda.Device does, by the simulator and NumPy. Arrays are not NumPy's, as CuPy's are not.

    layer = fastlstm.LSTM(3, 5, device="cuda")      # inside `simulated()`

Every address that a kernel or a product gets must lie in memory that the device gave; kernels see no further than its end.
A captured graph holds addresses, and is launched only by being called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from fastlstm.kernels.device import cuda, launches
from fastlstm.kernels.device.persistent import Chip
from fastlstm.runtime import cuda as engines
from tests.cuda.simulator.simulator import Module

TYPES = {"float": np.float32, "double": np.float64, "unsigned short": np.uint16}


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """As cupy.ndarray: operations stay on the device, and NumPy gets nothing without `get`."""

    fetched = 0  # how often

    def __init__(self, host: np.ndarray, memory: np.ndarray) -> None:
        self._host, self._memory = host, memory  # the view, and the allocation that it keeps alive

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    strides = property(lambda self: self._host.strides)
    device = SimpleNamespace(id=0)
    data = property(lambda self: self)
    ptr = property(lambda self: self._host.ctypes.data)
    __cuda_array_interface__ = property(lambda self: {"data": (self.ptr, False), "shape": self.shape, "version": 3})

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(one, np.ndarray) and one.ndim for one in inputs):
            raise TypeError(f"Unsupported type {np.ndarray}")
        if "out" in options:
            options["out"] = tuple(_host(one) for one in options["out"])
        return _device(getattr(ufunc, method)(*(_host(one) for one in inputs), **options))

    def __array_function__(self, function: Any, _: Any, arguments: Any, options: Any) -> Any:
        return _device(function(*(_host(one) for one in arguments), **{k: _host(v) for k, v in options.items()}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self._host, name)
        if not callable(found):
            return _device(found)
        return lambda *arguments, **options: self._like(found(*map(_host, arguments), **options))

    def _like(self, result: Any) -> Any:
        if isinstance(result, np.ndarray) and np.shares_memory(result, self._memory):
            return Array(result, self._memory)
        return _device(result)

    def __getitem__(self, key: Any) -> Any:
        return self._like(self._host[_host(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("a NumPy array cannot be assigned to one on the device")
        self._host[_host(key)] = _host(value)

    def __len__(self) -> int:
        return len(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __bool__(self) -> bool:
        return bool(self._host)

    def __repr__(self) -> str:
        return f"on the device: {self._host!r}"

    def __dlpack__(self, **options: Any) -> Any:
        return self._host.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._host.__dlpack_device__()

    def get(self) -> np.ndarray:
        Array.fetched += 1
        return self._host.copy()

    def set(self, array: np.ndarray) -> None:
        assert (array.shape, array.dtype) == (self.shape, self.dtype)
        assert array.flags.c_contiguous
        self._host[...] = array


def _host(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_host, value))
    return value._host if isinstance(value, Array) else value


_memory: list[np.ndarray] = []


def _device(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        return value
    memory = allocation(value.nbytes)
    made = Array(memory[: value.nbytes].view(value.dtype).reshape(value.shape), memory)
    made._host[...] = value
    return made


def allocation(size: int) -> np.ndarray:
    """New memory, of 0xff bytes: what is not written is not a number."""
    memory = np.full(max(16, size + 16), 0xFF, np.uint8)
    memory = memory[-memory.ctypes.data % 16 :][: max(1, size)]
    _memory.append(memory)
    return memory


@cache
def module(file: str, macros: tuple[str, ...], orders: Sequence[str]) -> Module:
    """A kernels' file, built."""
    return Module(cuda.FOLDER / f"{file}.cu", macros, orders=orders)


class SimulatedDevice:
    """The interface of kernels.cuda.Device."""

    def __init__(self, orders: tuple[str, ...] = ("random",), chip: Chip | None = None) -> None:
        self.index, self.name, self.orders, self.chip = 0, "simulated", orders, chip
        self.launched: list[str] = []  # kernels, in graphs and alone
        self.runs, self.alone = 0, 0  # of graphs; of kernels and products outside of them
        self.room = 1 << 40  # bytes that can still be given
        self._captured: list[Callable[[], None]] | None = None
        self.graphs = 0
        self.stream = 0
        self.marks, self.waited = 0, list[tuple[int, int, int]]()  # (who, for whom, for which mark)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > self.room:
            raise cuda.OutOfMemory(f"{size} bytes")
        self.room -= size
        memory = allocation(size)
        return Array(memory[:size].view(dtype).reshape(shape), memory)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        made = self.empty(shape, dtype)
        made._host[...] = 0
        return made

    def upload(self, array: np.ndarray) -> Array:
        target = self.empty(array.shape, array.dtype)
        target.set(np.ascontiguousarray(array))
        return target

    def owns(self, value: Any) -> bool:
        return isinstance(value, Array)

    def view(self, value: Any) -> Array:
        if isinstance(value, Array):
            return value
        host = np.from_dlpack(value)
        memory = host.reshape(-1).view(np.uint8)
        assert np.shares_memory(host, memory) or host.size == 0, "a copy was made"
        _memory.append(memory)
        return Array(host, memory)

    @contextlib.contextmanager
    def on(self, stream: int) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def address(self, array: Array) -> int:
        return array.ptr

    def copy(self, *pairs: tuple[Any, Any]) -> None:
        assert self._captured is None, "a copy while a graph is captured would not be part of it"
        for target, value in pairs:
            if isinstance(target, np.ndarray):
                target[...] = value.get().reshape(target.shape)
            elif isinstance(value, np.ndarray):
                target.set(np.ascontiguousarray(value).reshape(target.shape))
            else:
                target[...] = value.reshape(target.shape)

    def _from(self, address: int, dtype: Any) -> np.ndarray:
        """What lies from an address to the end of its allocation."""
        for memory in reversed(_memory):
            offset = address - memory.ctypes.data
            if 0 <= offset < memory.size:
                size = np.dtype(dtype).itemsize
                assert offset % size == 0, "misaligned"
                return memory[offset : offset + (memory.size - offset) // size * size].view(dtype)
        raise AssertionError(f"address {address:#x} is nowhere on the device")

    def _do(self, work: Callable[[], None]) -> None:
        if self._captured is None:
            self.alone += 1
            work()
        else:
            self._captured.append(work)

    def launch(
        self, file: str, kernel: str, macros: tuple[str, ...], grid: Any, block: Any, arguments: Any, **how: Any
    ) -> None:
        self._do(lambda: self._launch(file, kernel, macros, grid, block, arguments, **how))

    def _launch(
        self,
        file: str,
        kernel: str,
        macros: tuple[str, ...],
        grid: Any,
        block: Any,
        arguments: Any,
        *,
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        self.launched.append(kernel)
        function = module(file, macros, self.orders).get_function(kernel)
        types = {
            "f4": np.float32,
            "f8": np.float64,
            "u1": np.uint8,
            "u2": np.uint16,
            "u4": np.uint32,
            "i4": np.int32,
            "i8": np.int64,
        }
        values: list[Any] = []
        names = [name for name, _ in function.parameters]
        assert len(arguments) == len(names), f"{kernel} takes {names}, got {arguments}"
        for argument, (_, parameter) in zip(arguments, function.parameters, strict=True):
            assert type(argument) is int, f"{kernel}: {argument!r} is no int"
            if parameter.kind == b"p":
                kind = types[f"{parameter.element_kind.decode()}{parameter.element_size}"]
                values.append(self._from(argument, kind) if argument else None)
            else:
                values.append(argument)
        function(grid, block, tuple(values), shared_mem=shared, cooperative=cooperative)

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
        self._do(lambda: self._multiply(kind, turned, sizes, a, b, c, add))

    def _multiply(self, kind: str, turned: Any, sizes: Any, a: Any, b: Any, c: Any, add: bool) -> None:
        rows, columns, depth = sizes
        word = {"bfloat16": np.uint16, "float16": np.float16, "float64": np.float64}.get(kind, np.float32)
        result = np.float64 if kind == "float64" else np.float32

        def matrix(place: tuple[int, int], shape: tuple[int, int], dtype: Any) -> np.ndarray:
            start, row = self._from(place[0], dtype), place[1]
            assert row >= shape[1], "rows overlap"
            assert (shape[0] - 1) * row + shape[1] <= start.size, "a matrix that ends beyond its memory"
            return np.lib.stride_tricks.as_strided(start, shape, (row * start.itemsize, start.itemsize))

        def values(m: np.ndarray) -> np.ndarray:
            if kind == "bfloat16":
                return (m.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            return m.astype(np.float64)

        left = values(matrix(a, (depth, rows) if turned[0] else (rows, depth), word))
        right = values(matrix(b, (columns, depth) if turned[1] else (depth, columns), word))
        target = matrix(c, (rows, columns), result)
        product = (left.T if turned[0] else left) @ (right.T if turned[1] else right)
        target[...] = product + target if add else product

    def holds(self, plan: Any) -> bool:
        return plan.form != "grid" or plan.blocks <= self.chip.multiprocessors

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        self._captured, self.graphs = [], self.graphs + 1
        try:
            work()
        finally:
            captured, self._captured = self._captured, None

        def launch() -> None:
            self.runs += 1
            for one in captured:
                one()

        return launch

    def reserve(self) -> int:
        return self.stream

    def queue(self) -> int:
        return self.stream

    def mark(self) -> tuple[int, int]:
        self.marks += 1
        return self.stream, self.marks

    def wait(self, mark: tuple[int, int]) -> None:
        self.waited.append((self.stream, *mark))

    def synchronize(self) -> None:
        pass


@contextlib.contextmanager
def simulated(orders: tuple[str, ...] = ("random",), chip: Chip | None = None) -> Iterator[SimulatedDevice]:
    """Within the block device "cuda" is a simulated one; persistent forms are chosen for its chip."""
    device = SimulatedDevice(orders, chip)
    before = len(_memory)
    with mock.patch.object(cuda, "device", return_value=device), mock.patch.dict(engines.engines, clear=True):
        yield device
    del _memory[before:]


def operations(dtype: str, orders: tuple[str, ...] = ("random",)) -> tuple[SimulatedDevice, launches.Launches]:
    """A device and the operations on it, for tests below the layers."""
    device = SimulatedDevice(orders)
    return device, launches.Launches(device, dtype)
