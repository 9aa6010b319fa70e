"""The source distribution and the wheel are complete, and the wheel works in a new environment elsewhere."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", "build", "dist", "runs", ".[!c]*", "*venv*")


def run(*command, cwd, check=True, **variables):
    """Run a command whose environment variables do not lead to this checkout or to its coverage measurement."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE", "COV_"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Build the source distribution from a clean copy of the tree, and the wheel from it; return their folder."""
    source = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(ROOT, source, ignore=LEFT_BEHIND)
    out = source.parent / "dist"
    # Without --wheel or --sdist, build makes the wheel from the unpacked sdist.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=source.parent)
    return out


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """Return the Python of a new environment that has the wheel, and the dependencies of this environment."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home / "venv", symlinks=True)
    python = home / "venv" / "bin" / "python"
    (site,) = (home / "venv").glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    # A line in a .pth file only appends to the path: that folder's own .pth files (an editable fastlstm) stay unread.
    names = [requirement.split(">")[0] for requirement in PROJECT["dependencies"]] + ["llvmlite"]
    folders = {str(Path(importlib.util.find_spec(name).origin).parent.parent) for name in names}
    (site / "dependencies.pth").write_text("".join(f"{folder}\n" for folder in sorted(folders)))
    return python


def modules(folder):
    """Return the paths of the folder's code, relative to the folder."""
    files = (path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cu", ".cuh"))
    return {str(path.relative_to(ROOT / folder)) for path in files if (ROOT / folder / "kernels") not in path.parents}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    expected = {f"fastlstm/{name}" for name in modules("fastlstm")} | {"fastlstm/py.typed"}
    expected |= {f"fastlstm/kernels/{name}" for name in modules("kernels")}
    assert package == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)


def test_wheel_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = archive.read(name).decode()
    assert "License-Expression: BSD-3-Clause" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "Provides-Extra: bpe" in metadata


def test_sdist_holds_what_building_and_testing_need(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {f"{folder}/{name}" for folder in ("fastlstm", "kernels") for name in modules(folder)}
    expected |= {f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py")}
    expected |= {"fastlstm/py.typed", "pyproject.toml", "setup.py", "Makefile", ".ci/run", "LICENSE", "README.md"}
    expected |= {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "MANIFEST.in"}
    assert expected <= names, f"missing: {sorted(expected - names)}"


def test_version_is_the_same_everywhere(wheel):
    import fastlstm

    assert wheel.name.split("-")[1] == fastlstm.__version__
    assert f"## {fastlstm.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_in_a_fresh_environment_is_the_one_imported(fresh, tmp_path):
    code = "import fastlstm, fastlstm.kernels; print(fastlstm.__file__); print(fastlstm.kernels.__file__)"
    for path in run(fresh, "-c", code, cwd=tmp_path).stdout.split():
        assert Path(path).is_relative_to(fresh.parent.parent), path


def test_wheel_in_a_fresh_environment_trains_and_generates(fresh, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 400)
    command = fresh.parent / "fastlstm"
    small = ["--hidden-size", "16", "--num-layers", "1", "--minutes", "0.05"]
    empty = {"FASTLSTM_CACHE": str(tmp_path / "cache")}  # as on a new machine, where nothing is compiled yet
    trained = run(command, "train", text, *small, "--out", tmp_path / "run", cwd=tmp_path, **empty)
    assert "fastlstm generate" in trained.stdout.splitlines()[-1], "the last line says how to go on"
    written = run(command, "generate", tmp_path / "run", "--prompt", "to be", "--length", "40", cwd=tmp_path, **empty)
    assert "to be" in written.stdout
    assert len(written.stdout.strip()) >= 40


def test_kernels_is_no_top_level_package(fresh, tmp_path):
    elsewhere = run(fresh, "-c", "import kernels", cwd=tmp_path, check=False)
    assert "ModuleNotFoundError: No module named 'kernels'" in elsewhere.stderr


def test_importing_kernels_from_the_root_says_what_to_do():
    inside = run(sys.executable, "-c", "import kernels", cwd=ROOT, check=False)
    assert "ImportError" in inside.stderr
    assert "import fastlstm.kernels" in inside.stderr
