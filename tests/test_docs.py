"""The documents are right: their Python runs, the commands and files that they name exist, examples in docstrings hold."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import fastlstm
import fastlstm.adapters
import fastlstm.kernels
from fastlstm.command import cli

# Keras on torch gives NumPy arrays of an old kind.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


# The framework that the page or module of an adapter needs. If it is not installed, the examples are reported as skipped.
FRAMEWORKS = {"torch": "torch", "onnx": "onnx", "sklearn": "sklearn", "backtest": "sklearn", "keras": "keras"}


def blocks(path, language):
    """Return the fenced blocks of one language, each with the number of its first line."""
    text = path.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start()) + 2, match[1])
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    ]


def commands(program):
    """Return the arguments of every line in a bash block that calls ``program``, with file and line as its name."""
    found = []
    for path in DOCUMENTS:
        for first, block in blocks(path, "bash"):
            for number, line in enumerate(block.splitlines(), start=first):
                words = shlex.split(line, comments=True)
                if words and Path(words[0]).name == program:
                    found.append(pytest.param(words[1:], id=f"{path.name}:{number}"))
    return found


def all_modules():
    """Return the names of all modules. The folder of the kernels is elsewhere, so it is walked separately."""
    names = {"fastlstm", "fastlstm.kernels"}
    for package in (fastlstm, fastlstm.adapters, fastlstm.kernels):
        names |= {found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")}
    return sorted(names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run_in_order(path, tmp_path, monkeypatch):
    if path.stem in FRAMEWORKS:
        pytest.importorskip(FRAMEWORKS[path.stem])
    monkeypatch.chdir(tmp_path)
    namespace, left_out = {"__name__": "__main__"}, []
    for first, block in blocks(path, "python"):
        if "import torch\n" in block and importlib.util.find_spec("torch") is None:
            left_out.append(first)
            continue
        # The newlines make a traceback's line numbers those of the document.
        exec(compile("\n" * (first - 1) + block, str(path), "exec"), namespace)
    if left_out:
        pytest.skip(f"torch is not installed: blocks at lines {left_out} were left out, all others ran")


def test_the_readme_has_python():
    assert len(blocks(ROOT / "README.md", "python")) >= 2


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "SECURITY.md"], ids=lambda path: path.name)
def test_links_lead_to_files(path):
    words = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#\s]+)", words)
    assert not [link for link in links if "://" not in link and not (path.parent / link).exists()]


@pytest.mark.parametrize("name", all_modules())
def test_docstring_examples(name, tmp_path, monkeypatch):
    package, _, module_name = name.rpartition(".")
    adapter = module_name.lstrip("_").partition("_")[0]  # _torch_swap is a part of torch
    if package == "fastlstm.adapters" and adapter in FRAMEWORKS:
        pytest.importorskip(FRAMEWORKS[adapter])
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say what it is for"
    outcome = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert outcome.failed == 0, f"{outcome.failed} of {outcome.attempted} examples in {name} failed; see above"


@pytest.mark.parametrize("words", commands("fastlstm"))
def test_shown_commands_are_good_use(words):
    cli._parser().parse_args(words)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("words", commands("make"))
def test_shown_make_targets_exist(words):
    done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


def test_every_path_that_the_map_names_is_there():
    """CONTRIBUTING.md names files and folders; a path with a star stands for at least one."""
    named = set(re.findall(r"`([\w./*-]+/[\w./*-]*)`", (ROOT / "CONTRIBUTING.md").read_text()))
    assert len(named) > 50
    assert not [path for path in sorted(named) if not list(ROOT.glob(path.rstrip("/")))]
