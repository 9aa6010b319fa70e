"""What CONTRIBUTING.md says about adding things is true: its recipes are followed, or what they ask for is there already."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastlstm.kernels import operations
from fastlstm.kernels.device.launches import Launches
from fastlstm.stack import cells
from tests.support import cases

ROOT = Path(__file__).parents[1]
ADAPTERS = sorted(path.parent.name for path in ROOT.glob("fastlstm/adapters/*/__init__.py"))

RECORD = '''

class Flip(NamedTuple):
    """values = factor - values."""

    size: Size
    values: Reals  # [size] changed
    factor: Size


OPERATIONS[Flip] = Operation("flip.flip", "flip")
'''

KERNEL = """
from .gemm import share
from .operations import Flip


def flip(simd):
    get, put, scalar = simd.get, simd.put, simd.scalar

    def kernel(thread, threads, a: Flip):
        begin, end = share(a.size, thread, threads, 1)
        for i in range(begin, end):
            put(a.values, i, scalar(a.factor) - get(a.values, i))

    return kernel
"""

USE = """
import numpy as np
from fastlstm.kernels.operations import Flip
from fastlstm.runtime.engine import engine
from fastlstm.runtime.program import at_once

for dtype in ("float32", "float64"):
    values = np.arange(1001, dtype=dtype)
    with at_once():
        engine("cpu", dtype).run(Flip(size=1001, values=values, factor=3), work=1001)
    assert (values == 3 - np.arange(1001)).all()
print("flipped")
"""


def test_an_operation_is_a_record_a_line_and_a_kernel(tmp_path):
    """Follow the recipe in a copy of the package: nothing else has to be edited for the CPU."""
    shutil.copytree(ROOT / "fastlstm", tmp_path / "fastlstm", ignore=shutil.ignore_patterns("kernels", "__pycache__"))
    kernels = tmp_path / "fastlstm" / "kernels"
    shutil.copytree(ROOT / "kernels", kernels, ignore=shutil.ignore_patterns("__pycache__"))
    with open(kernels / "operations.py", "a") as file:
        file.write(RECORD)
    (kernels / "flip.py").write_text(KERNEL)
    own = {"PYTHONPATH": str(tmp_path), "FASTLSTM_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "flipped\n", done.stderr


def test_every_operation_has_its_launch():
    for record, operation in operations.OPERATIONS.items():
        assert callable(getattr(Launches, operation.device, None)), record.__name__


def test_every_cell_is_where_the_recipe_says():
    kinds = {kind.split("-")[0] for kind in cases.KINDS}
    for kind in kinds:
        assert (ROOT / f"kernels/cells/{kind}.py").is_file()
        assert (ROOT / f"kernels/{kind}.cu").is_file()
        assert any(name.lower().startswith(kind) for name in vars(cells)), kind


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_has_an_extra_tests_and_a_page(name):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert name in extras or name == "c"  # whose result a C compiler takes
    assert list((ROOT / "tests/adapters" / name).glob("test_*.py"))
    assert (ROOT / f"docs/{name}.md").is_file()


@pytest.mark.parametrize("name", sorted(set(ADAPTERS) - {"c"}))
def test_no_adapter_imports_its_framework_with_the_package(name):
    code = f"import sys, fastlstm, fastlstm.adapters; print({name!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*/*.py")), ids=lambda path: path.stem)
def test_every_benchmark_that_is_a_command_is_named_in_the_documents(path):
    if '__name__ == "__main__"' not in path.read_text():
        return
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile", *(ROOT / "benchmarks").rglob("*.py")]
    command = f"-m benchmarks.{path.parent.name}.{path.stem}"
    assert any(command in text.read_text() for text in texts), command


def test_files_that_python_names_exist():
    """A docstring or comment that sends a reader to a file names one that is there."""
    existing = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    wrong = []
    for wing in ("fastlstm", "kernels", "benchmarks", "examples"):
        for path in sorted((ROOT / wing).rglob("*.py")):
            text = path.read_text()
            strings = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
            prose = [one for one in strings if isinstance(one, str) and " " in one] + re.findall(r"#.*", text)
            named = {name for one in prose for name in re.findall(r"\b(\w+\.py)\b", one)}
            wrong += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(named - existing)]
    assert not wrong
