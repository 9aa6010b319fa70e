"""Runs CUDA kernels on the CPU, one fiber for each thread, and reports what the device would do wrong in silence.

    from tests.cuda.simulator import Module, poisoned

    module = Module(KERNELS / "lstm.cu", ("-DREAL=float",))        # as RawModule; several files: a list
    forward = module.get_function("lstm_forward")                  # as RawKernel
    out = poisoned((T, B, H), np.float32)                          # NaN where nothing is written
    forward((blocks,), (256,), (gates, out, np.int32(T), None), shared_mem=4096)
    forward(..., cooperative=True)                                 # grid_sync() works; all blocks run side by side
    forward(..., cluster=(8, 1, 1))                                # cluster_sync(), cluster_map(); or __cluster_dims__

Arguments are NumPy arrays (or views; what is outside of the view is out of bounds), None for a null pointer, and scalars
with CuPy's types: int is long long, float is double, bool is bool, NumPy scalars are what they are. They are held against
the kernel's declaration: TypeError. bfloat16 arrays are ml_dtypes' or uint16. The call returns when the kernel has run, and
raises KernelError, whose `kind` is

    memory       an access outside of every array and shared variable, in a row of an array but beyond it, to the shared memory
                 of a block that has finished, misaligned, or a write through a pointer to const
    race         an access that nothing orders after another thread's, where one of the two writes: a barrier is missing
                 (of the warp, block, cluster or grid, an mbarrier, or a fence between atomics), in whatever order it ran
    divergence   a barrier or warp function that not all threads reach
    deadlock     nothing moves any more, or a thread never ends
    arithmetic   integer division by zero, signed overflow, a failed assert
    misuse       cp.async that nobody waited for, grid_sync() in a plain launch, an mbarrier not initialised, ...
    order        results differ between the orders in which threads ran

Every launch runs once in each of the module's `orders` (forward, reverse, and random with its `seed`), from the same
arrays, and the results must agree bit for bit; `orders=("forward",)`, at the module or a call, is for what would be slow.
Shared memory holds NaN (0xff bytes) when a block starts.

Sources see FASTLSTM_HOST defined and, before them, host.hpp, which has CUDA's words and the functions of
kernels/device/ptx.cuh. Not modelled: caches, the fast forms' lower accuracy, `__device__` variables' bounds, several launches
at a time.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.cuda.simulator import translate

KINDS = ("fine", "memory", "race", "divergence", "deadlock", "arithmetic", "misuse")
ORDERS = ("forward", "reverse", "random")
MAX_ACCESSES = 1 << 31  # of one launch; takes some ten seconds
MAX_SHARED = 232448  # bytes that a block can have on Hopper
MAX_THREADS = 1 << 27  # of one launch, as memory's cells have it
_LOCK = threading.Lock()  # the library runs one launch at a time


class KernelError(RuntimeError):
    """What a kernel did wrong; `kind` is one of those named above."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class _Parameter(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char),
        ("element_kind", ctypes.c_char),
        ("writable", ctypes.c_bool),
        ("size", ctypes.c_uint32),
        ("element_size", ctypes.c_uint32),
    ]


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("invoke", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(_Parameter)),
        ("count", ctypes.c_uint32),
        ("max_threads", ctypes.c_uint32),
        ("cluster", ctypes.c_uint32 * 3),
    ]


class _Array(ctypes.Structure):
    _fields_ = [
        ("begin", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("element", ctypes.c_uint32),
        ("granule", ctypes.c_uint32),
        ("writable", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("cells", ctypes.c_void_p),
    ]


class _Request(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.POINTER(_Kernel)),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("cooperative", ctypes.c_uint32),
        ("order", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("shared_bytes", ctypes.c_uint64),
        ("max_accesses", ctypes.c_uint64),
        ("arrays", ctypes.POINTER(_Array)),
        ("array_count", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("pcs", ctypes.c_uint64 * 2),
        ("message", ctypes.c_char * 1024),
    ]


def poisoned(shape: Any, dtype: Any) -> np.ndarray:
    """Array of 0xff bytes: NaN in every floating type, -1 or the largest number in integers."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.full(size, 0xFF, np.uint8).view(dtype).reshape(shape)


@cache
def _runtime() -> ctypes.CDLL:
    library = ctypes.CDLL(str(translate.runtime()), mode=ctypes.RTLD_GLOBAL)
    library.fastlstm_launch.argtypes = [ctypes.POINTER(_Request)]
    library.fastlstm_launch.restype = ctypes.c_uint32
    return library


class Module:
    """Kernels of one or several `.cu` files, compiled with the macros in `options`."""

    def __init__(
        self,
        sources: Path | str | Sequence[Path | str],
        options: Sequence[str] = ("-DREAL=float",),
        *,
        orders: Sequence[str] = ORDERS,
        seed: int = 0,
    ) -> None:
        listed = [sources] if isinstance(sources, (str, Path)) else sources
        if unknown := set(orders) - set(ORDERS) or not orders:
            raise ValueError(f"orders must be some of {ORDERS}, got {unknown or orders}")
        self.path, names = translate.build([Path(s) for s in listed], tuple(options))
        self.orders, self.seed = tuple(orders), seed
        _runtime()
        self._library = ctypes.CDLL(str(self.path))
        table = (_Kernel * (len(names) + 1)).in_dll(self._library, "fastlstm_kernels")
        self.kernels = {k.name.decode(): Kernel(self, k, names[k.name.decode()]) for k in table if k.name}

    def get_function(self, name: str) -> Kernel:
        """The kernel `name`; KeyError, with the names that there are, where there is none."""
        if name not in self.kernels:
            raise KeyError(f"no kernel {name!r}; there are {sorted(self.kernels)}")
        return self.kernels[name]

    def line_of(self, address: int) -> str:
        """FILE:LINE of an offset in the library, outside of the simulator's own headers."""
        command = ["addr2line", "-i", "-e", str(self.path), hex(address - 1)]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return f"address {address:#x}"
        lines = [line.split(" ")[0] for line in found.stdout.splitlines()]
        own = [line for line in lines if not line.startswith(os.fspath(translate.HERE) + os.sep) or ".cu:" in line]
        return _short((own or lines or ["?"])[0])


class Kernel:
    """One kernel, called as CuPy's RawKernel is."""

    def __init__(self, module: Module, described: _Kernel, names: list[str]) -> None:
        self._module, self._described = module, described
        self.name = described.name.decode()
        self.parameters = [(name, described.parameters[i]) for i, name in enumerate(names)]

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        cluster: Sequence[int] | None = None,
        cooperative: bool = False,
        orders: Sequence[str] | None = None,
    ) -> None:
        request = _Request(kernel=ctypes.pointer(self._described), cooperative=cooperative, shared_bytes=shared_mem)
        request.seed, request.max_accesses = self._module.seed + 1, MAX_ACCESSES
        self._check_launch(request, grid, block, shared_mem, cluster)
        arrays, values = self._bind(args)
        request.arguments = (ctypes.c_void_p * (len(values) + 1))(*(ctypes.addressof(v) for v in values))
        regions = _regions(arrays)
        request.arrays, request.array_count = (_Array * (len(regions) + 1))(*regions), len(regions)
        first, *others = self._module.orders if orders is None else orders
        written = [(name, _raw(a)) for name, a, writable in arrays if writable and others]
        before = [a.copy() for _, a in written]
        self._launch(request, first)
        expected = [a.copy() for _, a in written]
        for order in others:
            for (_, a), old in zip(written, before, strict=True):
                a[...] = old
            self._launch(request, order)
            for (name, a), wanted in zip(written, expected, strict=True):
                self._compare(name, a, wanted, f"{first} and {order}")

    def _check_launch(self, request: _Request, grid: Any, block: Any, shared_mem: int, cluster: Any) -> None:
        own = tuple(self._described.cluster)
        if cluster is None:
            cluster = own
        sizes = {"grid": grid, "block": block, "cluster": cluster}
        for name, size in sizes.items():
            if not 1 <= len(size) <= 3 or any(int(n) != n or n < 1 for n in size):
                raise ValueError(f"{self.name}: {name} must be one to three positive integers, got {size}")
            getattr(request, name)[:] = [*(int(n) for n in size), 1, 1][:3]
        if own != (1, 1, 1) and tuple(request.cluster) != own:
            raise ValueError(f"{self.name}: cluster must be {own}, as __cluster_dims__ says, got {tuple(cluster)}")
        threads = int(np.prod(request.block))
        if threads * int(np.prod([int(n) for n in request.grid])) >= MAX_THREADS:
            raise ValueError(f"{self.name}: more than the simulator's {MAX_THREADS} threads: {tuple(grid)} x {tuple(block)}")
        if threads > self._described.max_threads or request.block[2] > 64:
            raise ValueError(f"{self.name}: block must have at most {self._described.max_threads} threads, got {tuple(block)}")
        if any(g % c for g, c in zip(request.grid, request.cluster, strict=True)):
            raise ValueError(f"{self.name}: grid must be a multiple of cluster {tuple(cluster)}, got {tuple(grid)}")
        if np.prod(request.cluster) > 16:
            raise ValueError(f"{self.name}: a cluster has at most 16 blocks, got {tuple(cluster)}")
        if not 0 <= shared_mem <= MAX_SHARED:
            raise ValueError(f"{self.name}: shared_mem must be in 0..{MAX_SHARED}, got {shared_mem}")

    def _bind(self, args: Sequence[Any]) -> tuple[list[tuple[str, np.ndarray, bool]], list[Any]]:
        """Arrays with their parameters' names and whether they may be written, and every value as ctypes hold it."""
        if len(args) != len(self.parameters):
            names = ", ".join(name for name, _ in self.parameters)
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments ({names}), got {len(args)}")
        arrays, values = [], []
        for n, (value, (name, parameter)) in enumerate(zip(args, self.parameters, strict=True)):
            where = f"{self.name}: argument {n} ({name})"
            if parameter.kind == b"p":
                values.append(_pointer(where, value, parameter))
                if value is not None and value.size:
                    arrays.append((f"{name} ({value.dtype}{list(value.shape)})", value, parameter.writable))
            else:
                values.append(_scalar(where, value, parameter))
        return arrays, values

    def _launch(self, request: _Request, order: str) -> None:
        request.order = ORDERS.index(order)
        with _LOCK:
            kind = _runtime().fastlstm_launch(ctypes.byref(request))
        if not kind:
            return
        places = [self._module.line_of(pc) for pc in request.pcs if pc]
        at = f", at {places[0]}" + (f" (the other at {places[1]})" if len(places) > 1 else "") if places else ""
        message = re.sub(r"/[^\s():]*/", "", request.message.decode(errors="replace"))
        raise KernelError(KINDS[kind], f"{self.name} (threads run {order}): {message}{at}")

    def _compare(self, name: str, got: np.ndarray, expected: np.ndarray, orders: str) -> None:
        size = got.dtype.itemsize
        a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(-1, size) for x in (got, expected))
        if different := np.flatnonzero((a != b).any(axis=1)).tolist():
            index = tuple(int(i) for i in np.unravel_index(different[0], got.shape))
            raise KernelError(
                "order",
                f"{self.name}: {name} differs in {len(different)} elements between threads run {orders}, first at {index}: "
                f"bytes {b[different[0]].tobytes().hex()} and {a[different[0]].tobytes().hex()}",
            )


def _raw(array: np.ndarray) -> np.ndarray:
    """The same elements as bare bytes: copies of them keep NaNs and padding as they are."""
    return array.view(np.dtype((np.void, array.dtype.itemsize)))


def _short(place: str) -> str:
    return place.rsplit("/", 1)[-1]


_ELEMENTS = {"f": "f", "h": "h", "i": "iu", "u": "iu", "b": "b", "n": "n"}


def _kind_of(dtype: np.dtype) -> str:
    """A parameter's kind letter for a NumPy type; bfloat16 is one of ml_dtypes or, by its bits, uint16."""
    if dtype.name == "bfloat16":
        return "n"
    if dtype == np.float16:
        return "h"
    return dtype.kind


def _pointer(where: str, value: Any, parameter: _Parameter) -> Any:
    if value is None:
        return ctypes.c_void_p(0)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{where} must be an array or None, got {type(value).__name__}")
    kind = parameter.element_kind.decode()
    raw = kind in "vs" or (kind in "iu" and parameter.element_size == 1)  # void*, structures, bytes: anything
    allowed = _ELEMENTS.get(kind, "") + ("u" if kind in "hn" else "")
    if not raw and (_kind_of(value.dtype) not in allowed or value.dtype.itemsize != parameter.element_size):
        wanted = {"f": "float", "h": "half", "n": "bfloat16", "b": "bool"}.get(kind, "integer")
        raise TypeError(f"{where} points to {wanted} of {parameter.element_size} bytes, got an array of {value.dtype}")
    if parameter.writable and not value.flags.writeable:
        raise TypeError(f"{where} is written to, got a read-only array")
    return ctypes.c_void_p(value.ctypes.data if value.size else 0)


def _scalar(where: str, value: Any, parameter: _Parameter) -> Any:
    exact = {bool: np.bool_, int: np.int64, float: np.float64}
    if value is None or isinstance(value, np.ndarray):
        raise TypeError(f"{where} is a scalar, got {'None' if value is None else 'an array'}")
    if type(value) in exact:
        value = exact[type(value)](value)
    if not isinstance(value, np.generic):
        raise TypeError(f"{where}: CuPy takes no {type(value).__name__}")
    kind = parameter.kind.decode()
    given = _kind_of(value.dtype)
    fits = kind == "s" or given in _ELEMENTS[kind]
    if not fits or value.dtype.itemsize != parameter.size:
        wanted = {"f": "float", "h": "half", "n": "bfloat16", "b": "bool", "s": "structure"}.get(kind, "integer")
        raise TypeError(f"{where} is {wanted} of {parameter.size} bytes, got {value.dtype} of {value.dtype.itemsize}")
    if kind == "u" and given == "i" and value < 0:
        raise TypeError(f"{where} is unsigned, got {value}")
    return ctypes.create_string_buffer(value.tobytes(), parameter.size)


def _regions(arrays: list[tuple[str, np.ndarray, bool]]) -> list[_Array]:
    """The memory of the arrays, by address; arrays that overlap become one region."""
    regions: list[_Array] = []
    names: list[str] = []
    bounds = [(*np.lib.array_utils.byte_bounds(a), name, a, writable) for name, a, writable in arrays]
    for begin, end, name, array, writable in sorted(bounds, key=lambda b: b[:2]):
        item = array.dtype.itemsize
        if regions and begin < regions[-1].end:
            last = regions[-1]
            last.end, last.writable = max(last.end, end), last.writable or writable
            last.granule = min(last.granule, item)
            names[-1] += f" = {name}"
        else:
            regions.append(_Array(begin=begin, end=end, element=item, granule=min(item, 4), writable=writable))
            names.append(name)
    for region, name in zip(regions, names, strict=True):
        region.name = name.encode()
    return regions
