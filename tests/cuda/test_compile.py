"""Every kernel compiles to machine code for every architecture that is served, keeps its registers and spills nothing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cuda import compile as nvrtc
from tests.cuda.compile import ARCHITECTURES, CompileError, Usage, compile_cubin, read_log

SAMPLES = Path(__file__).parent / "samples"
pytestmark = pytest.mark.skipif(nvrtc.missing() is not None, reason=f"needs NVRTC's wheels: pip install {nvrtc.missing()}")


def variants() -> list[tuple[Path, tuple[str, ...]]]:
    """Every file with every set of macros: the package's, and the samples of these tests."""
    samples = [(SAMPLES / "basic.cu", ("-DREAL=double",)), (SAMPLES / "planted.cu", ()), (SAMPLES / "ptx.cu", ())]
    if find_spec("fastlstm.kernels.cuda") is None:
        return samples
    from fastlstm.kernels.device import cuda

    return samples + cuda.variants()


def _name(value: object) -> str:
    return value.name if isinstance(value, Path) else "-".join(value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("source", "options"), variants(), ids=_name)
def test_kernels_compile_without_spills(
    source: Path, options: tuple[str, ...], architecture: int, record_property: pytest.RecordProperty
) -> None:
    usage = compile_cubin(source, options, architecture)
    assert usage
    for name, used in usage.items():
        record_property(name, f"{used.registers} registers, {used.spilled} bytes spilled, {used.shared} bytes shared")
        assert used.spilled == 0, f"{name} spills {used.spilled} bytes"
        assert used.stack == 0, f"{name} keeps {used.stack} bytes of local arrays in memory"
        assert 0 < used.registers <= 255


def test_what_does_not_compile_is_refused_with_the_compilers_words(tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text('extern "C" __global__ void f(float* x) { x[0] = y; }\n')
    with pytest.raises(CompileError, match=r'broken.cu\(1\): error: identifier "y" is undefined'):
        compile_cubin(source, (), 90)


def test_spills_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "spills.cu"
    source.write_text(
        'extern "C" __global__ void __launch_bounds__(1024, 2) f(float* x) {\n    float v[64];\n'
        "    for (int i = 0; i < 64; ++i) v[i] = x[i * 1024 + threadIdx.x];\n    __syncthreads();\n"
        "    for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = v[63 - i] * v[i];\n}\n"
    )
    used = compile_cubin(source, (), 90)["f"]
    assert used.registers <= 32
    assert used.spilled > 0


def test_a_report_is_made_once_for_each_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, source = tmp_path / "size.cuh", tmp_path / "once.cu"
    header.write_text("#define SIZE 4\n")
    source.write_text(
        '#include "size.cuh"\nextern "C" __global__ void f(float* x) { __shared__ float s[SIZE]; s[0] = x[0];\n'
        "__syncthreads(); x[1] = s[threadIdx.x]; }\n"
    )
    monkeypatch.setenv("FASTLSTM_CACHE", str(tmp_path / "cache"))
    first = compile_cubin(source, (), 90)
    monkeypatch.setattr(nvrtc, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compile_cubin(source, (), 90) == first
    monkeypatch.undo()
    monkeypatch.setenv("FASTLSTM_CACHE", str(tmp_path / "cache"))
    header.write_text("#define SIZE 400\n")
    assert compile_cubin(source, (), 90)["f"].shared == first["f"].shared + 4 * 396


def test_reports_of_ptxas_are_read() -> None:
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 372 bytes cmem[0]
"""
    assert read_log(log) == {"one": Usage(40, 28, 8, 1024, 0), "two": Usage(10, 0, 0, 0, 372)}
    with pytest.raises(CompileError, match="cannot read the report"):
        read_log("ptxas info    : Compiling entry function 'one' for 'sm_90'\n")
