"""The table of operations: each has a kernel that takes its record and reads every field of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

import pytest

from fastlstm.kernels import operations
from fastlstm.kernels.operations import OPERATIONS
from fastlstm.kernels.vector.simd import Simd

TYPES = {"Size", "Flag", "Reals", "Words", "Doubles", "Floats", "Int64s", "Int32s", "Bytes", "Team"}
KERNELS = {record: operation.kernel for record, operation in OPERATIONS.items() if operation.kernel}


def records():
    """Every record of the file, by name."""
    return {name: value for name, value in vars(operations).items() if isinstance(value, type) and hasattr(value, "_fields")}


def function_of(name, simd):
    """What a kernel's factory returns."""
    module, _, factory = name.rpartition(".")
    return getattr(importlib.import_module(f"fastlstm.kernels.{module}"), factory)(simd)


def test_every_record_is_an_operation():
    assert set(records().values()) == set(OPERATIONS)


def test_fields_have_types_that_say_what_they_are():
    for record in OPERATIONS:
        if record is not operations.Wave:
            declared = next(base for base in record.__mro__ if base.__annotations__)
            found = {getattr(kind, "__forward_arg__", kind) for kind in declared.__annotations__.values()}
            assert found <= TYPES, record.__name__


@pytest.mark.parametrize("record", list(KERNELS), ids=lambda record: record.__name__)
def test_the_kernel_takes_the_record(record):
    """And reads each of its fields, and none that it has not."""
    function = function_of(KERNELS[record], Simd("float32", 32))
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    assert [one.name for one in parameters] == ["thread", "threads", "a"]
    taken = parameters[-1].annotation
    assert taken._fields == record._fields
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    read = {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "a"
    }
    if issubclass(record, operations.Product):  # whose fields go on as those of panels
        assert read <= set(record._fields)
        return
    assert read == set(record._fields)


def test_no_caller_names_a_kernel():
    """Callers give records: the names of kernels are known to the table alone."""
    root = Path(__file__).parents[2] / "fastlstm"
    names = set(KERNELS.values())
    for path in root.rglob("*.py"):
        if root / "kernels" not in path.parents:
            texts = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
            assert not texts & names, path
