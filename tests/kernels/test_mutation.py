"""The mutation script itself: what it flips, and that it tells red from survived, crashed and not green to begin with.

All marks are flipped by `python tests/support/mutation.py`, which takes too long for every run of the suite; here one of the
reference's is, and those of a toy package.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mutation():
    spec = importlib.util.spec_from_file_location("mutation", ROOT / "tests" / "support" / "mutation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutation"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutation"]


@pytest.mark.parametrize(
    ("line", "flipped"),
    [
        ("y = a * b", "y = ((a * b) - (a * b) - (a * b))"),
        ("y = a + b * c", "y = a - b * c"),
        ("y = a - b - c", "y = a - b + c"),
        ("y[0] += a", "y[0] -= a"),
        ("y -= a * b", "y += a * b"),
        ("y: float = -a", "y: float = ((-a) - (-a) - (-a))"),
        ("store(y, 0, a + b)", "store(y, 0, a - b)"),
        ("store(y, 0, a)", "store(y, 0, ((a) - (a) - (a)))"),
        ("return f(a)", "return ((f(a)) - (f(a)) - (f(a)))"),
    ],
)
def test_what_is_flipped(mutation, line, flipped):
    source = "def f(y, a, b, c):\n    'é'; {}  # grad: term\n    return y\n"
    assert mutation.flip(source.format(line), 2) == source.format(flipped)


@pytest.mark.parametrize(
    ("line", "flipped"),
    [
        ("if (!ended) total += dout[k];", "if (!ended) total -= dout[k];"),
        ("k[0] = i[0] = word_of(d * (1 - r));", "k[0] = i[0] = word_of(-(d * (1 - r)));"),
        ("REAL d_n = total * f(z);", "REAL d_n = -(total * f(z));"),
        ("dc[n] = d_c * f;", "dc[n] = -(d_c * f);"),
    ],
)
def test_what_is_flipped_in_cuda(mutation, line, flipped):
    source = "void f() {{\n    {}  // grad: term\n}}\n"
    assert mutation.flip_cuda(source.format(line), 2) == source.format(flipped)
    with pytest.raises(ValueError, match="line 1 holds no value"):
        mutation.flip_cuda(source.format(line), 1)


def test_a_statement_over_several_lines_is_found_from_its_last(mutation):
    assert mutation.flip("y = (a\n     + b)  # grad: y\n", 2) == "y = (a\n     - b)  # grad: y\n"


@pytest.mark.parametrize("line", ["y, z = a, b", "y *= a", "pass", "del y"])
def test_what_has_no_sign(mutation, line):
    with pytest.raises(ValueError, match="line 1 holds no value"):
        mutation.flip(f"{line}  # grad: y\n", 1)


TOY = """
def slope(x):
    return 2.0 * x  # grad: seen
def unseen(x):
    y = 3.0 * x  # grad: unseen
    return y
def word(x):
    y = "a" * 2  # grad: word
    return y
"""
TOY_TESTS = """
from fastlstm.kernels import toy
def test_toy():
    assert toy.slope(1.0) == 2.0
    assert toy.word(1.0) == "aa"
    toy.unseen(1.0)
"""


@pytest.fixture
def toy(tmp_path):
    """A root like ours, with one kernel file."""
    for name, text in {
        "fastlstm/__init__.py": "",
        "kernels/__init__.py": "",
        "kernels/toy.py": TOY,
        "tests/kernels/test_kernels.py": TOY_TESTS,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_verdicts(mutation, toy, capsys):
    assert mutation.main([], root=toy) == 1
    assert (toy / "kernels/toy.py").read_text() == TOY
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("red       toy.py:3 seen  assert -2.0 == 2.0")
    assert lines[1] == "survived  toy.py:5 unseen"
    assert lines[2].startswith("crashed   toy.py:8 word  TypeError")
    assert lines[3] == "1 of 3 flips turned a test red."


def test_nothing_to_judge(mutation, toy, capsys):
    assert mutation.main(["lstm"], root=toy) == 2
    assert "Nothing is marked so" in capsys.readouterr().err
    assert mutation.main(["--list"], root=toy) == 0
    assert capsys.readouterr().out.split("\n")[:2] == ["toy.py:3 seen", "toy.py:5 unseen"]
    (toy / "tests/kernels/test_kernels.py").write_text(TOY_TESTS.replace("2.0", "4.0"))
    assert mutation.main(["toy"], root=toy) == 2
    assert "must be green before" in capsys.readouterr().err
    (toy / "kernels/toy.py").write_text("x, y = 1, 2  # grad: pair\n")
    assert mutation.main([], root=toy) == 2
    assert "toy.py:1 pair: line 1 holds no value" in capsys.readouterr().err


def test_one_of_the_references_terms(mutation, capsys):
    assert mutation.main(["embedding", "--file", "reference.py"]) == 0
    assert "1 of 1 flips" in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_every_mark_is_found_of(cell):
    """`python tests/support/mutation.py` flips them, which takes minutes; here only that none is lost on the way."""
    path = ROOT / "kernels" / "cells" / f"{cell}.py"
    command = [sys.executable, ROOT / "tests" / "support" / "mutation.py", "--list", "--file", path.name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    marked = [f"{path.name}:{n}" for n, line in enumerate(lines, 1) if "# grad:" in line]
    assert [line.split()[0] for line in done.stdout.splitlines()] == marked
    assert len(marked) >= {"lstm": 7, "gru": 6, "rnn": 2}[cell]
