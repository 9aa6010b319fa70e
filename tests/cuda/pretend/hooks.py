"""Functions of Python in the place of those of CUDA's libraries.

libcuda and libcublas are small libraries of jumps through tables, loaded under the names that CuPy asks for. CUDA's runtime is
a part of CuPy's own file: there each function's first bytes become a jump, where `nm` says that it stands.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cuda.simulator import cache as files
from tests.cuda.simulator import translate

TYPES = {"p": ctypes.c_size_t, "i": ctypes.c_int, "u": ctypes.c_uint}  # addresses and sizes, numbers
BLAS = "cupy_backends.cuda.libs.cublas"
UNKNOWN = 999  # cudaErrorUnknown


class Changed(RuntimeError):
    """CuPy is built otherwise than the pretend device knows; the text says what is not there."""


def functions(of: Any) -> dict[str, tuple[str, Any]]:
    """Marked methods of an object by name, with their types."""
    found = {name: getattr(of, name) for name in dir(type(of)) if hasattr(getattr(type(of), name), "types")}
    return {name: (method.types, method) for name, method in found.items()}


def _callback(name: str, types: str, function: Callable[..., int | None], machine: Any) -> int:
    """The address of a C function that calls one of Python's; what it raises is a fault, never silent."""

    def guarded(*arguments: int) -> int:
        try:
            return function(*arguments) or 0
        except Exception:
            machine.fault(f"{name}: {traceback.format_exc()[-1500:]}")
            return UNKNOWN

    made = ctypes.CFUNCTYPE(ctypes.c_ssize_t, *(TYPES[letter] for letter in types))(guarded)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))  # CuPy calls it while Python ends, too
    return int(ctypes.cast(made, ctypes.c_void_p).value or 0)


def _absent(name: str, machine: Any) -> int:
    def tell() -> int:
        machine.fault(f"{name} is called, which the pretend device has not")
        return UNKNOWN

    return _callback(name, "", tell, machine)


def _library(soname: str, names: list[str]) -> Path:
    """A library with these functions, each a jump through the table `places`."""
    lines = [".text"]
    for k, name in enumerate(names):
        lines += [f".globl {name}", f".type {name},@function", f"{name}: jmp *own+{8 * k}(%rip)"]
    lines += [".data", ".globl places", "own:", f"places: .zero {8 * len(names) + 8}"]
    text = "\n".join(lines) + '\n.section .note.GNU-stack,"",@progbits\n'

    def make(path: Path) -> None:
        source = path.with_suffix(".s")
        source.write_text(text)
        script = path.with_suffix(".map")
        script.write_text(f"{soname} {{ *; }};\n")  # CUDA's libraries call the version of their symbols as themselves
        command = [translate.CXX, "-shared", "-nostdlib", f"-Wl,-soname,{soname}", f"-Wl,--version-script={script}", source]
        subprocess.run([*command, "-o", path], check=True, capture_output=True)

    return files.kept(f"pretend-{files.key(soname, text, 'versions')}.so", make)


def _load(soname: str, names: list[str], known: dict[str, tuple[str, Any]], machine: Any) -> None:
    names = sorted({*names, *known})
    library = ctypes.CDLL(str(_library(soname, names)), mode=ctypes.RTLD_GLOBAL)
    table = (ctypes.c_size_t * len(names)).in_dll(library, "places")
    for k, name in enumerate(names):
        table[k] = _callback(name, *known[name], machine) if name in known else _absent(name, machine)


def _symbols(path: str, *options: str) -> list[list[str]]:
    done = subprocess.run(["nm", *options, path], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def _file(module: str) -> str:
    """Where an extension module stands, without importing it."""
    folder, _, name = module.rpartition(".")
    root = importlib.util.find_spec(folder.partition(".")[0])
    assert root is not None
    assert root.submodule_search_locations
    place = Path(root.submodule_search_locations[0], *folder.split(".")[1:])
    found = [*place.glob(f"{name}.*.so")]
    if len(found) != 1:
        raise Changed(f"there is no one file of {module} in {place}")
    return str(found[0])


def _hook_runtime(path: str, known: dict[str, tuple[str, Any]], machine: Any) -> None:
    """Jumps in the place of the runtime's functions, in the loaded file of CuPy that they are a part of."""
    found = {s[2]: int(s[0], 16) for s in _symbols(path) if len(s) == 3 and s[1] in "tT" and s[2].startswith("cuda")}
    if gone := sorted(known.keys() - found.keys()):
        raise Changed(f"{Path(path).name} has no function {', '.join(gone[:5])}: CUDA's runtime is no longer a part of it")
    with open("/proc/self/maps", encoding="ascii") as maps:
        lines = [line.split() for line in maps if line.rstrip().endswith(path)]
    base = min(int(line[0].split("-")[0], 16) - int(line[2], 16) for line in lines)
    libc = ctypes.CDLL(None, use_errno=True)
    for name, offset in found.items():
        target = _callback(name, *known[name], machine) if name in known else _absent(name, machine)
        jump = b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0"  # mov rax, target; jmp rax
        place = base + offset
        if libc.mprotect(ctypes.c_void_p(place & ~4095), 8192, 7):
            raise Changed(f"{name} cannot be replaced: {os.strerror(ctypes.get_errno())}")
        ctypes.memmove(place, jump, len(jump))


def install(version: str) -> None:
    """As `pretend.install`."""
    if any(name.startswith("cupy") for name in sys.modules):
        raise RuntimeError("CuPy has been imported already")
    from tests.cuda.pretend.blas import Blas
    from tests.cuda.pretend.driver import Driver
    from tests.cuda.pretend.machine import machine

    os.environ["CUPY_ACCELERATORS"] = ""  # those have a runtime of their own
    try:
        driver, blas = Driver(machine), Blas(machine)
        _load("libcuda.so.1", [], functions(driver), machine)
        undefined = _symbols(_file(BLAS), "-D", "--undefined-only")
        wanted = [s[1].partition("@")[0] for s in undefined if s[1].startswith("cublas")]
        for soname in ("libcublasLt.so.13", "libcublasLt.so.12"):
            _load(soname, ["cublasLtCreate"], {}, machine)
        _load(_needed("libcublas.so"), wanted, functions(blas), machine)
        import cupy_backends.cuda.api.runtime as runtime

        _hook_runtime(runtime.__file__, functions(machine), machine)
        import cupy

        if cupy.cuda.runtime.getDeviceCount() != 1 or machine.faults:
            raise Changed(f"CuPy does not see the pretend device: {machine.faults[:1]}")
    except Changed as error:
        raise Changed(f"{version}: {error}") from None
    from tests.cuda.pretend import kernels

    kernels.watch()


def _needed(start: str) -> str:
    """The full name of a library that CuPy's module for cuBLAS asks for."""
    path = _file(BLAS)
    done = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    found = [word.strip("[]") for word in done.stdout.split() if word.startswith(f"[{start}")]
    if not found:
        raise Changed(f"{Path(path).name} asks for no {start}")
    return found[0]
