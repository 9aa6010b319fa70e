"""Compiles CUDA C to machine code by NVRTC, which needs no GPU and no driver, and reads what ptxas says of each kernel.

    usage = compile_cubin(KERNELS / "lstm.cu", ("-DREAL=float",), 90)
    usage["lstm_forward"].registers, .spilled, .shared
    usage, code = compiled(...)                                    # the machine code too, as machine_code.py reads it
    python -m tests.cuda.compile                                   # a table of the package's kernels

Needs the wheels nvidia-cuda-nvrtc and cuda-bindings; CUDA's headers are found where nvidia-cuda-runtime is installed. Results
are kept by the hash of the sources, what they include, the options and the compiler.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.cuda.simulator import cache as files

KERNELS = Path(__file__).parent.parent.parent / "kernels"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a multiprocessor: registers per thread, and bytes."""

    registers: int
    spilled: int  # stores and loads
    stack: int
    shared: int
    constant: int


class CompileError(RuntimeError):
    """NVRTC refused a source; the text is its log."""


def _wheels(pattern: str) -> list[Path]:
    """What the pattern finds in the folders that NVIDIA's wheels share."""
    spec = find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    return [path for root in roots for path in sorted(root.glob(pattern))]


def missing() -> str | None:
    """Which wheel is not installed, or None."""
    if not _wheels("*/lib/libnvrtc.so*"):
        return "nvidia-cuda-nvrtc"
    return None if find_spec("cuda") and find_spec("cuda.bindings") else "cuda-bindings"


@cache
def include_folders() -> tuple[Path, ...]:
    """The folders of CUDA's headers in the wheels, of whichever CUDA they are; none where they are not installed."""
    found = [path.parent for path in _wheels("*/include/cuda_fp16.h")]
    folders = [folder for include in found for folder in (include, include / "cccl", include.parent / "cccl")]
    return tuple(folder for folder in folders if folder.is_dir())


def _included(path: Path, seen: dict[Path, bytes]) -> None:
    """Adds `path` and what it includes from its own folder or from kernels/ to `seen`."""
    if path in seen:
        return
    seen[path] = path.read_bytes()
    for name in re.findall(rb'^\s*#\s*include\s*"([^"]+)"', seen[path], re.MULTILINE):
        for folder in (path.parent, KERNELS):
            if (folder / name.decode()).is_file():
                _included((folder / name.decode()).resolve(), seen)
                break


def version() -> str:
    """Of the compiler."""
    from cuda.bindings import nvrtc

    return "{}.{}".format(*_checked(nvrtc.nvrtcVersion(), None))


def compile_cubin(source: Path, options: Sequence[str], architecture: int) -> dict[str, Usage]:
    """Compiles one file for one architecture (90 means sm_90); the usage of each of its kernels. CompileError."""
    return compiled(source, options, architecture)[0]


def compiled(source: Path, options: Sequence[str], architecture: int) -> tuple[dict[str, Usage], bytes]:
    """The same with the machine code, a cubin."""
    parts: dict[Path, bytes] = {}
    _included(source.resolve(), parts)
    flags = [f"--gpu-architecture=sm_{architecture}", "--std=c++17", "--ptxas-options=-v", f"-I{KERNELS}", *options]
    identity = files.key(version(), source.name, *flags, Path(__file__).read_bytes(), *(parts[path] for path in sorted(parts)))

    def make(path: Path) -> None:
        usage, code = _compile(source, flags)
        written = {"usage": {name: asdict(one) for name, one in usage.items()}, "code": base64.b64encode(code).decode()}
        path.write_text(json.dumps(written))

    report = json.loads(files.kept(f"{source.stem}-sm_{architecture}-{identity}.json", make).read_text())
    return {name: Usage(**usage) for name, usage in report["usage"].items()}, base64.b64decode(report["code"])


def _checked(result: tuple[Any, ...], log: str | None) -> tuple[Any, ...]:
    status, *values = result
    if int(status):
        raise CompileError(f"{status.name}\n{log or ''}".rstrip())
    return tuple(values)


def _compile(source: Path, flags: list[str]) -> tuple[dict[str, Usage], bytes]:
    from cuda.bindings import nvrtc

    (program,) = _checked(nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], []), None)
    folders = (source.resolve().parent, *include_folders())
    encoded = [option.encode() for option in (*flags, *(f"-I{folder}" for folder in folders))]
    status = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
    (size,) = _checked(nvrtc.nvrtcGetProgramLogSize(program), None)
    log = b" " * size
    _checked(nvrtc.nvrtcGetProgramLog(program, log), None)
    text = log.decode(errors="replace").strip("\0 \n")
    _checked(status, text)
    (size,) = _checked(nvrtc.nvrtcGetCUBINSize(program), text)
    if not size:
        raise CompileError(f"no machine code for {source.name}\n{text}")
    code = b" " * size
    _checked(nvrtc.nvrtcGetCUBIN(program, code), text)
    nvrtc.nvrtcDestroyProgram(program)
    return read_log(text), code


def read_log(log: str) -> dict[str, Usage]:
    """The usage of each kernel from what `ptxas -v` writes."""
    usage: dict[str, Usage] = {}
    for entry in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'(\w+)'", entry)

        def number(pattern: str, text: str = entry) -> int:
            found = re.search(pattern, text)
            return int(found[1]) if found else 0

        if name is None or not number(r"Used (\d+) registers"):
            raise CompileError(f"cannot read the report of ptxas:\n{log}")
        usage[name[1]] = Usage(
            registers=number(r"Used (\d+) registers"),
            spilled=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
            stack=number(r"(\d+) bytes stack frame"),
            shared=number(r"(\d+) bytes smem"),
            constant=number(r"(\d+) bytes cmem\[0\]"),
        )
    return usage


def report() -> None:
    """Prints the registers of each of the package's kernels by architecture, and what it spills, if anything."""
    from fastlstm.kernels.device import cuda

    print(f"{'registers of':60}", *(f"sm_{a:<4}" for a in ARCHITECTURES))
    for source, options in cuda.variants():
        usage = {a: compile_cubin(source, options, a) for a in ARCHITECTURES}
        macros = " ".join(option.removeprefix("-D") for option in options)
        for name in sorted(usage[ARCHITECTURES[0]]):
            used = [usage[a][name] for a in ARCHITECTURES]
            cells = (f"{u.registers}{f'+{u.spilled}B' if u.spilled else '':<5}" for u in used)
            print(f"{f'{name} ({macros})':60}", *(f"{cell:7}" for cell in cells))


if __name__ == "__main__":
    report()
