"""Compile, store and find kernels; choose the instruction set. Knows nothing of what a kernel computes.

A kernel is a Python function of a record of int64 (addresses and sizes; operations.py) made by a factory for one element type
and vector width. It becomes a C function `job(arguments, thread, threads)` and is stored as a plain object file whose name
holds everything the machine code depends on: its sources, the processor, the compiler's version, the factory and its
parameters. Numba's own `cache=True` misses edits of helpers and mixes up functions made by factories; and it
unpickles. Here a file is either the right one or not found, is written atomically, and loads without Numba.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import os
import platform
import re
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from ...files.folders import Folder, UnsafeError, temporary_folder, user_cache_folder

PRODUCTS = ("amx", "dot", "convert")  # of bfloat16: in tile registers, by a dot instruction, converted to float32
WIDTHS = {"avx512": 64, "avx2": 32, "portable": 16}
REGISTERS = {"avx512": 32, "avx2": 16, "portable": 16}
# Names in the folder of kernels: of versions, and in those; ".part" is of releases up to 0.1.
_VERSION, _FILE = re.compile("[0-9a-f]{16}"), re.compile(r"\.?fastlstm\..*\.(o|part|tmp)")
_lock = threading.RLock()
_addresses: dict[tuple[str, str, str], int] = {}
_isa: str | None = None
_product: str | None = None


@cache
def host() -> tuple[str, str]:
    """The processor's LLVM name and its features."""
    features = llvm.get_host_cpu_features()
    return llvm.get_host_cpu_name(), features.flatten()


def isa_of(width: int) -> str:
    """The instruction set whose vectors have `width` bytes."""
    return next(name for name, size in WIDTHS.items() if size == width)


@cache
def supported() -> list[str]:
    """Instruction sets that this processor and the chosen LLVM features run, best first."""
    features = llvm.get_host_cpu_features()
    has = [
        name
        for name, needs in (("avx512", ("avx512f", "avx512dq", "avx512vl")), ("avx2", ("avx2", "fma")))
        if all(features.get(need, False) for need in needs)
    ]
    return [*has, "portable"]


def isa() -> str:
    """The instruction set in use: `FASTLSTM_ISA` or the best that the processor has."""
    if _isa is not None:
        return _isa
    return default_isa()


@cache
def default_isa() -> str:
    """Return the instruction set where no block of `use_isa` names one."""
    wanted = os.environ.get("FASTLSTM_ISA", supported()[0])
    if wanted not in supported():
        raise ValueError(f"FASTLSTM_ISA is {wanted!r}; this machine runs {', '.join(supported())}")
    return wanted


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Within the block, kernels are those for `name`; packed weights made before do not fit them."""
    global _isa
    if name not in supported():
        raise ValueError(f"isa is {name!r}; this machine runs {', '.join(supported())}")
    before, _isa = _isa, name
    try:
        yield
    finally:
        _isa = before


@cache
def tiles_granted() -> bool:
    """Whether the system lets this process use AMX tiles; asked for once, as Linux wants it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def _has_tiles() -> bool:
    features = llvm.get_host_cpu_features()
    return bool(features.get("amx-bf16", False) and features.get("amx-tile", False))


def tiles() -> str:
    """Whether there are AMX tile registers, and whether the system grants them."""
    if not _has_tiles():
        return "not in this processor"
    return "granted" if tiles_granted() else "refused by the system"


@cache
def bfloat16_products(isa_name: str) -> tuple[str, ...]:
    """How products of bfloat16 can be made beside an instruction set here, best first."""
    if isa_name != "avx512":
        return ("convert",)
    features = llvm.get_host_cpu_features()
    has = {"amx": _has_tiles() and tiles_granted(), "dot": features.get("avx512bf16", False), "convert": True}
    return tuple(name for name in PRODUCTS if has[name])


def bfloat16_product() -> str:
    """The one in use: `FASTLSTM_BFLOAT16` or the best."""
    offered = bfloat16_products(isa())
    wanted = _product or os.environ.get("FASTLSTM_BFLOAT16") or offered[0]
    if wanted not in PRODUCTS:
        raise ValueError(f"FASTLSTM_BFLOAT16 is {wanted!r}; expected one of {', '.join(PRODUCTS)}")
    return wanted if wanted in offered else offered[0]


@contextlib.contextmanager
def use_bfloat16_product(name: str) -> Iterator[None]:
    """Within the block, products of bfloat16 are made so; packed weights made before do not fit."""
    global _product
    if name not in bfloat16_products(isa()):
        raise ValueError(f"name is {name!r}; with {isa()} this machine has {', '.join(bfloat16_products(isa()))}")
    before, _product = _product, name
    try:
        yield
    finally:
        _product = before


@cache
def _sources() -> str:
    """Hash of every source file that machine code can depend on: the operations, and what they are written and made with."""
    kernels = Path(__file__).parent.parent
    # All folders but those known to be no part of it, so that one added later is never forgotten.
    files = [f for f in sorted(kernels.rglob("*.py")) if f.parent.name != "device" and f.name != "reference.py"]
    named = (str(f.relative_to(kernels)).encode() + b"\0" + f.read_bytes() for f in files)
    return hashlib.sha256(b"".join(named)).hexdigest()[:16]


@cache
def _cache() -> tuple[Folder | None, str]:
    """The folder of compiled kernels, if there is one that is safe, and where they are in words.

    One that cannot be written to still serves: an image may bring its kernels along.
    """
    own = os.environ.get("FASTLSTM_CACHE")
    folder, errors = None, []
    for place in [lambda: Path(own)] if own else [user_cache_folder, temporary_folder]:
        try:
            folder = Folder(place() / "kernels" / _sources())
            break
        except OSError as error:
            errors.append(error)
    where = f"kept in memory only: {'; '.join(map(str, errors))}" if folder is None else str(folder.path)
    unsafe = "; ".join(str(error) for error in errors if isinstance(error, UnsafeError))
    if unsafe:
        instead = "in memory only, so every process compiles them" if folder is None else f"in {where}"
        text = f"compiled kernels are kept {instead}, for other users could change them: {unsafe}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    if folder is not None:
        _tidy(folder.path)
    return folder, where


def cache_folder() -> Path | None:
    """Folder of compiled kernels (`FASTLSTM_CACHE`, else the user's cache), or None where no folder serves."""
    folder, _ = _cache()
    return None if folder is None else folder.path


def cache_described() -> str:
    """Where compiled kernels are kept, and if in memory alone, why."""
    return _cache()[1]


def _tidy(current: Path, keep: int = 4) -> None:
    """Remove the kernels of all but the newest few versions of the sources from beside a version's folder, as far as can be.

    Nothing else is: people may keep files where these folders lie, or in them.
    """
    with contextlib.suppress(OSError):
        others = [p for p in current.parent.iterdir() if _VERSION.fullmatch(p.name) and p != current and _is_own_folder(p)]
        for folder in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True)[keep - 1 :]:
            with contextlib.suppress(OSError):
                for file in folder.iterdir():
                    if _FILE.fullmatch(file.name):
                        file.unlink(missing_ok=True)
                folder.rmdir()


def _is_own_folder(path: Path) -> bool:
    about = path.lstat()
    return stat.S_ISDIR(about.st_mode) and (not hasattr(os, "getuid") or about.st_uid == os.getuid())


@cache
def _surroundings() -> tuple[str, ...]:
    """What machine code depends on beside the sources and its symbol."""
    # Versions from the packages' metadata: importing Numba would cost more than loading the kernels.
    versions = metadata.version("numba"), metadata.version("llvmlite")
    return (*host(), *versions, sys.byteorder, platform.machine())


def _file(symbol: str) -> str:
    return f"{symbol}-{hashlib.sha256(repr((symbol, *_surroundings())).encode()).hexdigest()[:16]}.o"


def target_machine() -> Any:
    """An LLVM target machine for this processor."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = host()
    return llvm.Target.from_default_triple().create_target_machine(name, features, 3, "default", "jitdefault", jit=True)


@cache
def _engine() -> Any:
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())


def _link(symbol: str, code: bytes) -> int:
    """Load object code and return the address of `symbol`."""
    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address: int = engine.get_function_address(symbol)
    if not address:
        raise RuntimeError(f"compiled kernel holds no {symbol}")
    llvm.add_symbol(symbol, address)  # files loaded later may call it
    return address


def _read(symbol: str) -> tuple[bytes, list[str]] | None:
    """Stored object code and the names of the parts that it calls, if the file is there and whole."""
    folder, _ = _cache()
    if folder is None:
        return None
    try:
        digest, _, rest = folder.read(_file(symbol)).partition(b"\n")
    except UnsafeError as error:
        warnings.warn(f"a kernel is compiled anew, for its file is not safe: {error}", RuntimeWarning, stacklevel=2)
        return None
    except OSError:  # nothing there, or not any more: another process may tidy up
        return None
    if digest != hashlib.sha256(symbol.encode() + rest).hexdigest().encode():
        return None
    head, _, code = rest.partition(b"\n")
    return code, head.decode().split()


def _write(symbol: str, code: bytes, needs: list[str]) -> None:
    folder, _ = _cache()
    if folder is None:
        return
    rest = " ".join(needs).encode() + b"\n" + code
    digest = hashlib.sha256(symbol.encode() + rest).hexdigest().encode()
    with contextlib.suppress(OSError):  # a full or vanished cache costs time, not correctness
        folder.write(_file(symbol), digest + b"\n" + rest)


_announced = False


def _announce() -> None:
    global _announced
    if not _announced and not os.environ.get("FASTLSTM_QUIET"):
        print("fastlstm: compiling kernels for this processor (once; seconds)", file=sys.stderr, flush=True)
    _announced = True


def plain(result: str) -> Callable[[Any], Any]:
    """Mark a factory: its function is exported as it is, not wrapped as a job; it takes int64, or the fields of a record."""

    def mark(factory: Any) -> Any:
        factory.plain = result
        return factory

    return mark


def symbol_of(name: str, key: str, isa_name: str) -> str:
    """Symbol under which the kernel `module.factory` is exported; key as `Simd.key`."""
    return f"fastlstm.{name}.{key}.{isa_name}"


def name_in(symbol: str) -> str:
    """The kernel's name in such a symbol."""
    return ".".join(symbol.split(".")[1:-2])


def compiled(name: str, dtype: str = "float32") -> int:
    """Address of a kernel's C function for the instruction set in use; compiled or loaded on first use.

    That is `void job(int64 *arguments, int64 thread, int64 threads)`, or for a factory marked `plain` the function itself.
    Parts that it calls by name are loaded before it.

    Parameters
    ----------
    name : str
        `module.factory`: the factory called with a `Simd` returns the kernel, a function `(thread, threads, record)`.
    dtype : str
        Element type handed to the factory by way of `simd`: "float32", "float64", or "bfloat16", of whose products the kind
        in use is taken unless it is named too, as in `Simd.key`.
    """
    if dtype == "bfloat16":
        dtype = f"bfloat16-{bfloat16_product()}"
    key = (name, dtype, isa())
    address = _addresses.get(key)
    if address is not None:
        return address
    with _lock:
        if key not in _addresses:
            symbol = symbol_of(*key)
            stored = _read(symbol)
            if stored is None:
                _announce()
                stored = importlib.import_module(".compile", __package__).emit(*key)
                _write(symbol, *stored)
            code, needs = stored
            for need in needs:
                compiled(need, dtype)
            address = _link(symbol, code)
            _addresses[key] = address
        return _addresses[key]


if hasattr(os, "register_at_fork"):
    # A fork waits for what is being compiled: neither LLVM nor the lock would ever be free in the child.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
