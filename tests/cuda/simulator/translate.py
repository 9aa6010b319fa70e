"""From CUDA C to a shared library: preprocess, replace what C++ has no word for, compile with g++'s instrumentation, link.

Knows the language, not how kernels run. `__global__` functions are entered into a table at the end of the text, and

    __shared__ float tile[32][33];          becomes a reference to the block's copy of `tile`,
    extern __shared__ unsigned char raw[];  a pointer to the block's dynamic shared memory.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.cuda.simulator import cache as files

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "kernels"
RUNTIME = ("fibers.cpp", "schedule.cpp", "barriers.cpp", "memory.cpp", "order.cpp", "instrumentation.cpp", "operations.cpp")
CXX = "g++"
FLAGS = ("-std=c++17", "-gdwarf-4", "-fPIC", "-fno-exceptions", "-fno-strict-aliasing")
RUNTIME_FLAGS = (*FLAGS, "-O2")
KERNEL_FLAGS = (
    *FLAGS,
    "-O1",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-w",
    "-Werror=return-type",
    "-fsanitize=thread",
    "--param=tsan-distinguish-volatile=1",  # a call before every access that other threads may see
    "-fsanitize=bounds,shift-exponent,integer-divide-by-zero,signed-integer-overflow,alignment",
)


class CompileError(RuntimeError):
    """The C++ compiler, or the translation before it, refused a source; the text is what it said."""


def _run(*command: str | Path, text: str | None = None) -> str:
    done = subprocess.run([str(c) for c in command], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{' '.join(str(c) for c in command)}\n{done.stderr}")
    return done.stdout


@cache
def compiler() -> str | None:
    """The first line of `g++ --version`, or None where there is none, or only clang by that name."""
    version = _run(CXX, "--version").splitlines()[0] if shutil.which(CXX) else "clang"
    return None if "clang" in version else version


@cache
def runtime() -> Path:
    """The simulator's own library, compiled once and loaded by every module."""
    parts = [path.read_bytes() for path in sorted(HERE.glob("*.[ch]pp"))]

    def make(path: Path) -> None:
        sources = [HERE / name for name in RUNTIME]
        _run(CXX, *RUNTIME_FLAGS, "-shared", *sources, "-o", path, "-ldl")

    return files.kept(f"runtime-{files.key(compiler() or '', ' '.join(RUNTIME_FLAGS), *parts)}.so", make)


def preprocess(sources: list[Path], options: tuple[str, ...]) -> str:
    """The sources one after another, macros expanded; line markers name the files."""
    text = "".join(f'#include "{source.resolve()}"\n' for source in sources)
    defines = [o for o in options if o[:2] in ("-D", "-I", "-U")]
    given = ("-DFASTLSTM_HOST", "-include", HERE / "host.hpp", "-I", KERNELS, *defines)
    return _run(CXX, "-E", "-x", "c++", *FLAGS, *given, "-", text=text)


def _balanced(text: str, start: int) -> int:
    """Index behind the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i + 1
    raise CompileError(f"unbalanced brackets: {text[start : start + 80]}")


def _without_attributes(text: str) -> tuple[str, str]:
    """`text` without its alignment attributes, and these."""
    attributes = ""
    while found := re.search(r"\b(__attribute__|alignas)\s*\(", text):
        end = _balanced(text, found.end() - 1)
        attributes += text[found.start() : end]
        text = text[: found.start()] + " " + text[end:]
    return text, attributes


def _split(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]


def replace_shared(text: str) -> str:
    """Every `__shared__` declaration as one that asks the simulator for the memory. Lines stay where they are."""
    count = 0

    def declared(found: re.Match[str]) -> str:
        nonlocal count
        body, _ = _without_attributes(found["body"])
        first = re.match(r"(?P<type>.*?)(?P<name>\w+)\s*(?P<rest>(\[|,).*)?$", body.strip(), re.DOTALL)
        if not first or "=" in body:
            raise CompileError(f"cannot read the declaration of shared memory: __shared__{found['body']};")
        kind = first["type"].strip()
        lines = "\n" * found[0].count("\n")
        if found["extern"]:
            return f"{kind}* const {first['name']} = simulator::dynamic<{kind}>();" + lines
        result = ""
        for item in _split(first["name"] + (first["rest"] or "")):
            name, dims = re.match(r"\s*(\w+)\s*(.*)$", item, re.DOTALL).groups()  # type: ignore[union-attr]
            result += f'auto& {name} = simulator::shared<{count}, {kind} {" ".join(dims.split())}>("{name}"); '
            count += 1
        return result + lines

    return re.sub(r"\b(?P<extern>extern\s+)?(static\s+)?__shared__\b(?P<body>[^;]*);", declared, text)


def _head(text: str, start: int) -> tuple[str, dict[str, str], int, int]:
    """The declaration from behind `__global__` to its parameters: without limits, the limits, and where the brackets stand."""
    limits = {"__launch_bounds__": "", "__cluster_dims__": ""}
    head = ""
    while True:
        bracket = text.index("(", start)
        end = _balanced(text, bracket)
        head += text[start:bracket]
        word = re.search(r"(\w+)\s*$", head)
        if word is None:
            raise CompileError(f"cannot read the kernel's head: __global__{head}")
        if word[1] in limits:
            limits[word[1]] = text[bracket + 1 : end - 1]
            head = head[: word.start()]
        elif word[1] in ("__attribute__", "alignas"):
            head += text[bracket:end]
        else:
            return " ".join(head.split()), limits, bracket, end
        start = end


def replace_kernels(text: str) -> tuple[str, dict[str, list[str]]]:
    """The text with plain functions for kernels and a table of them at its end; parameter names of each kernel."""
    names: dict[str, list[str]] = {}
    pieces, table, behind = [], "", 0
    for found in re.finditer(r"\b__global__\b", text):
        head, limits, bracket, end = _head(text, found.end())
        name = head.split()[-1]
        lines = "\n" * text.count("\n", found.start(), bracket)
        pieces += [text[behind : found.start()], f"__attribute__((noinline)){lines} {head}"]
        behind = bracket
        if name in names:  # declared before
            continue
        parameters = [p for p in _split(text[bracket + 1 : end - 1]) if p.strip() not in ("", "void")]
        words = [re.search(r"(\w+)\s*(\[\s*\])?\s*$", p) for p in parameters]
        names[name] = [word[1] if word else "?" for word in words]
        bound = next(_split(limits["__launch_bounds__"])) or "1024"
        dims = [*(d for d in _split(limits["__cluster_dims__"]) if d.strip()), "1", "1", "1"][:3]
        table += f'simulator::table_entry<{name}>("{name}", {bound}, {{{", ".join(dims)}}}),\n'
    start = '\nextern "C" __attribute__((visibility("default"))) const simulator::Kernel fastlstm_kernels[] = {\n'
    return "".join(pieces) + text[behind:] + start + table + "{}};\n", names


def build(sources: list[Path], options: tuple[str, ...]) -> tuple[Path, dict[str, list[str]]]:
    """Library of the kernels in `sources`, from the cache where it was made before, and the names of their parameters."""
    text, names = replace_kernels(replace_shared(preprocess(sources, options)))
    library = runtime()

    def make(path: Path) -> None:
        unit = path.with_suffix(".ii")
        unit.write_text(text)
        _run(CXX, *KERNEL_FLAGS, "-fpreprocessed", "-c", unit, "-o", path.with_suffix(".o"))
        _run(CXX, "-shared", path.with_suffix(".o"), library, "-o", path)

    return files.kept(f"{files.key(text, library.name, ' '.join(KERNEL_FLAGS))}.so", make), names
