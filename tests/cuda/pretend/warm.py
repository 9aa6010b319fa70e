"""Runs one test, in a process forked from one that has imported this: a CuPy that finds the pretend device."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from typing import Any

from tests.cuda import pretend

error: Exception | None = None
if "pytest" not in sys.modules:  # in the tests' processes alone
    try:
        pretend.install()
        import cupy  # noqa: F401

        import fastlstm  # noqa: F401
    except Exception as found:
        error = found


def run(path: str, name: str, arguments: dict[str, Any], answer: Any) -> None:
    """Call a test; its error is sent as text, or None. What the device has noted is an error too."""
    os.environ |= {"FASTLSTM_QUIET": "1", "FASTLSTM_CUDA_FORM": "general"}  # of which there are fewer kernels to compile
    try:
        if error is not None:
            raise error
        from tests.cuda.pretend.machine import machine

        spec = importlib.util.spec_from_file_location("inside", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        getattr(module, name)(**arguments)
        machine.reach_all()
        if machine.faults:
            raise AssertionError("the pretend device noted faults:\n" + "\n".join(dict.fromkeys(machine.faults)))
    except BaseException:
        answer.send(f"{traceback.format_exc()}\n{pretend.version()}")
    else:
        answer.send(None)
