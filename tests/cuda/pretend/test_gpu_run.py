"""`make gpu` rehearsed on the pretend device: all of it with tiny shapes, and planted faults that cost themselves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import pretend

ROOT = Path(__file__).parents[3]
PLANT = "hang:Cluster,illegal:Grid,wrong:Alone"


@pytest.mark.here
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.run", str(tmp_path), "--small"]
    done = subprocess.run(
        command,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "versions" in done.stdout
    assert "FAILED: fastlstm.kernels.device.cuda.Unavailable: CuPy" in done.stdout
    assert "1 points, 1 failed" in done.stdout
    assert "not reached: start product tf32" in done.stdout


@pytest.mark.here
@pytest.mark.skipif(pretend.missing() is not None, reason=str(pretend.missing()))
def test_all_of_it_and_what_it_says_of_planted_faults(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent / "site"), str(ROOT)])
    here = os.environ | {"PYTHONPATH": path, "FASTLSTM_QUIET": "1", "CUPY_CACHE_DIR": str(tmp_path / "cupy")}
    here.pop("FASTLSTM_CUDA_FORM", None)

    def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            env=here | more,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    done = run("benchmarks.gpu.cache", "--small", PRETEND_BUILD="1")
    assert done.returncode == 0, done.stderr
    kernels = len(list((tmp_path / "cupy").iterdir()))
    done = run("benchmarks.gpu.run", str(tmp_path / "results"), "--small", "--limit", "20", PRETEND_PLANT=PLANT)
    log, results, table = sorted((tmp_path / "results").iterdir(), key=lambda one: ("log", "json", "txt").index(one.suffix[1:]))
    assert done.returncode == 1, done.stdout + log.read_text()
    assert results.name.startswith("gpu-nvidia-h200-pretend-20")
    found = json.loads(results.read_text())["results"]
    failed = {
        (section, name): one["failed"] for section, points in found.items() for name, one in points.items() if "failed" in one
    }
    assert set(failed) == {("first", f"{form} form float32") for form in ("grid", "cluster", "block")}, failed
    assert "700" in failed["first", "grid form float32"]
    assert failed["first", "cluster form float32"] == "ended after 20 s"
    assert "block form of lstm in float32, H=32, B=8: off by" in failed["first", "block form float32"]
    for section in ("start", "again", "step", "layers", "ratios", "forms", "check", "same", "train"):
        assert found[section], section
    assert "general" in next(iter(found["forms"].values()))["forms"]
    assert found["ratios"]["lstm"]["ratio"] > 0
    last = table.read_text()
    assert last in done.stdout
    for text in ("ended after 20 s", "off by", "broken: cluster form in tf32", "broken: grid form in float32"):
        assert text in last
    assert "without the broken form block in float32" in found["step"]["lstm float32"]["conditions"]
    only_cupys = {one.name for one in (tmp_path / "cupy").iterdir()}
    assert len(only_cupys) - kernels < 12, "all kernels of the package were compiled beforehand"
