"""What a launch computes: the package's kernels by the simulator, and CuPy's own, which copy, fill and add up, as plain C++.

CuPy is asked for the source of each module that it loads. PRETEND_PLANT="hang:Cluster,illegal:Grid,wrong:Alone" has the
recurrences that are compiled with -DEXCHANGE=Cluster never end, and so on; waves stay as they are. PRETEND_BUILD=1 has the
simulator's code made when CuPy's is.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.cuda.simulator import cache as files
from tests.cuda.simulator import translate

Origin = tuple[str, tuple[str, ...]]  # a module's source and options

TYPES = {"f4": np.float32, "f8": np.float64, "u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "i4": np.int32, "i8": np.int64}
ORDERS = ("random",)  # of threads
_now = threading.local()

HEAD = """
#include <pthread.h>
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>
#define __device__
#define __host__
#define __forceinline__ inline
#define __global__ static
#define __shared__ static
#define __popc __builtin_popcount
#define __popcll __builtin_popcountll
struct Place { unsigned x; };
static thread_local Place threadIdx;
static Place blockIdx, blockDim, gridDim;
static pthread_barrier_t all;
static void __syncthreads() { pthread_barrier_wait(&all); }
using std::max; using std::min;
#include <cupy/carray.cuh>
"""
TAIL = """
template <class... A, size_t... K> static void call(void (*f)(A...), void** p, std::index_sequence<K...>) {
  f(*(A*)p[K]...);
}
template <class... A> static void call(void (*f)(A...), void** p) { call(f, p, std::index_sequence_for<A...>()); }
extern "C" void run(unsigned blocks, unsigned threads, void** p) {
  gridDim.x = blocks; blockDim.x = threads;
  pthread_barrier_init(&all, nullptr, threads);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    std::vector<std::thread> running;
    for (unsigned k = 0; k < threads; ++k) {
      auto work = [=] { threadIdx.x = k; call(NAME, p); };
      if (TOGETHER) running.emplace_back(work); else work();
    }
    for (auto& one : running) one.join();
  }
}
"""


def watch() -> None:
    """Know the source of each module that CuPy is about to load."""
    from cupy.cuda import compiler

    compile_module = compiler._compile_module_with_cache

    def watched(source: str, options: Sequence[str] = (), **how: Any) -> Any:
        _now.origin = (source, tuple(options))
        try:
            if os.environ.get("PRETEND_BUILD") and (file := _file(source)):
                _simulated(file, tuple(options))
            return compile_module(source, options, **how)
        finally:
            _now.origin = None

    compiler._compile_module_with_cache = watched


def origin() -> Origin:
    """Of the module that is being loaded.

    Raises
    ------
    LookupError
        Where CuPy loads it by another way than the one that is watched.
    """
    found: Origin | None = getattr(_now, "origin", None)
    if found is None:
        raise LookupError("CuPy loads a module whose source is not known")
    return found


@cache
def _files() -> list[str]:
    """The kernels' files, as launches name them."""
    from fastlstm.kernels.device import cuda

    return [str(path.relative_to(cuda.FOLDER).with_suffix("")) for path in cuda.FOLDER.rglob("*.cu")]


def _file(text: str) -> str | None:
    """Which of the package's files has this text, with what it includes."""
    from fastlstm.kernels.device import cuda

    return next((name for name in _files() if cuda.source(name) == text), None)


def work(
    machine: Any,
    name: str,
    of: Origin,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared: int,
    together: bool,
    given: list[bytes],
) -> Any:
    """What a launch is to do; `given` are the bytes of its arguments."""
    file = _file(of[0])
    planted = _planted(of[1]) if name.startswith("recur") else None

    def run(_: int) -> None:
        if planted == "illegal":
            raise IndexError(f"{name} reaches for memory that is not there, as planted")
        if planted == "hang":
            machine.fault(f"{name} hangs, as planted")
            time.sleep(1e6)
        if file is None:
            _by_threads(machine, name, of[0], grid, block, given)
        else:
            _by_simulator(
                machine,
                file,
                name,
                options=of[1],
                grid=grid,
                block=block,
                shared=shared,
                together=together,
                given=given,
                wrong=planted == "wrong",
            )

    return run


@cache
def _planted(options: tuple[str, ...]) -> str | None:
    plants = dict(one.split(":")[::-1] for one in os.environ.get("PRETEND_PLANT", "").split(",") if one)
    exchange = next((option[11:] for option in options if option.startswith("-DEXCHANGE=")), None)
    return plants.get(exchange)


def _simulated(file: str, options: tuple[str, ...]) -> Any:
    from tests.cuda.simulator import device

    return device.module(file, tuple(option for option in options if option.startswith("-D")), ORDERS)


def _by_simulator(
    machine: Any,
    file: str,
    name: str,
    *,
    options: tuple[str, ...],
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared: int,
    together: bool,
    given: list[bytes],
    wrong: bool,
) -> None:
    function = _simulated(file, options).get_function(name)
    if len(given) != len(function.parameters):
        raise TypeError(f"{name} takes {len(function.parameters)} arguments, got {len(given)}")
    values: list[Any] = []
    for data, (_, parameter) in zip(given, function.parameters, strict=True):
        number = int.from_bytes(data, "little", signed=True)
        if parameter.kind != b"p" or not number:
            values.append(None if parameter.kind == b"p" else number)
            continue
        found, kind = machine.memory.behind(number), TYPES[f"{parameter.element_kind.decode()}{parameter.element_size}"]
        if found is None or number % parameter.element_size:
            raise IndexError(f"{name}: {number:#x} is nowhere on the device, or no place for {kind.__name__}")
        values.append(found[: found.size // parameter.element_size * parameter.element_size].view(kind))
        if wrong and parameter.writable and kind is np.float32:
            values[-1][:8] += 0.5
    function(grid, block, tuple(values), shared_mem=shared, cooperative=together)


def _by_threads(
    machine: Any, name: str, source: str, grid: tuple[int, ...], block: tuple[int, ...], given: list[bytes]
) -> None:
    """A kernel of CuPy's own; where its threads meet, each is one of the host's."""
    head = re.search(rf"\b{name}\(([^{{]*)\)\s*{{", source)
    if head is None:
        raise NotImplementedError(f"the parameters of CuPy's {name}")
    for data, declared in zip(given, re.split(r",\s*(?![^<]*>)", head[1]), strict=True):
        place, size = (int.from_bytes(data[k : k + 8], "little") for k in (0, 8))
        if "CArray" in declared and size and machine.memory.behind(place) is None:
            raise IndexError(f"{name}: {place:#x} is nowhere on the device")
    buffers = [ctypes.create_string_buffer(data, len(data)) for data in given]
    places = (ctypes.c_void_p * len(buffers))(*(ctypes.addressof(buffer) for buffer in buffers))
    _loop(name, source)(grid[0], block[0], places)


@cache
def _loop(name: str, source: str) -> Any:
    import cupy

    include = Path(cupy.__file__).parent / "_core" / "include"
    body = re.sub(r"#include <cupy/[^>]*>", "", source).replace('extern "C"', "")
    text = HEAD + body + TAIL.replace("NAME", name).replace("TOGETHER", str(int("__syncthreads" in source)))

    def make(path: Path) -> None:
        unit = path.with_suffix(".cpp")
        unit.write_text(text)
        command = [translate.CXX, "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-pthread", f"-I{include}", str(unit)]
        done = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotImplementedError(f"{name} of CuPy's is no plain C++: {done.stderr[:1000]}")

    return ctypes.CDLL(str(files.kept(f"cupy-{files.key(text)}.so", make))).run
