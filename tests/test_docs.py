"""What the documents say is true: their Python runs, the commands they show exist, docstring examples hold."""

import doctest
import importlib
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

# Keras on torch hands NumPy arrays of an old form.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


# What the page or module of an adapter needs beside this project; where it is missing its examples are skipped, visibly.
FRAMEWORKS = {"torch": "torch", "onnx": "onnx", "sklearn": "sklearn", "backtest": "sklearn", "keras": "keras"}


def blocks(path, language):
    """The fenced blocks of one language, each with the number of its first line."""
    text = path.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start()) + 2, match[1])
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    ]


def commands(program):
    """Every line of a bash block that calls ``program``: its words after the name, marked with where it stands."""
    found = []
    for path in DOCUMENTS:
        for first, block in blocks(path, "bash"):
            for number, line in enumerate(block.splitlines(), start=first):
                words = shlex.split(line, comments=True)
                if words and Path(words[0]).name == program:
                    found.append(pytest.param(words[1:], id=f"{path.name}:{number}"))
    return found


def all_modules():
    """The names of all modules; the kernels' folder is elsewhere and has to be looked at for itself."""
    names = {"fastlstm", "fastlstm.kernels"}
    for package in (fastlstm, fastlstm.adapters, fastlstm.kernels):
        names |= {found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")}
    return sorted(names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run_in_order(path, tmp_path, monkeypatch):
    if path.stem in FRAMEWORKS:
        pytest.importorskip(FRAMEWORKS[path.stem])
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for first, block in blocks(path, "python"):
        # The newlines make a traceback's line numbers those of the document.
        exec(compile("\n" * (first - 1) + block, str(path), "exec"), namespace)


def test_the_readme_has_python():
    assert blocks(ROOT / "README.md", "python")


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
