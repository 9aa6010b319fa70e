"""Flip one marked gradient term's sign at a time, in a copy of the code, and expect the tests to turn red.

    python tests/support/mutation.py                  every mark in kernels/
    python tests/support/mutation.py lstm gru.z       the marks of these cells or terms
    python tests/support/mutation.py --list           say what is marked

A mark is a comment `# grad: name` at the end of a statement, in CUDA `// grad: name`. What is flipped there is the statement's
value (for a call such as `store(place, value)`: its last argument); of a sum, in Python, the last summand alone; of `+=` and
`-=`, the operator.
A flip that no test notices has survived. One that fails otherwise than by an assertion proves nothing and is reported
as a crash. Exit status: 0 all turned red, 1 something survived or crashed, 2 nothing to do or tests red without a flip.

It knows nothing of what the code computes, only the marks, and that kernels/ is imported as fastlstm.kernels.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of any other file: tests/kernels/test_kernels.py, or CUDA_TESTS.
TESTS = {
    "reference.py": "tests/kernels/test_reference.py",
    "head.py": "tests/kernels/test_head.py",
    "series.py": "tests/kernels/test_series_kernels.py",
    "cells.cuh": "tests/cuda/test_persistent.py",
}
CUDA = (".cu", ".cuh")
CUDA_TESTS = "tests/cuda/test_engine.py"
MARK = re.compile(r"(#|//)\s*grad:\s*(?P<name>\S.*?)\s*$")


class Unusable(Exception):
    """What was asked for cannot be judged; the message says why."""


@dataclass(frozen=True)
class Mark:
    """One marked term; its group (the cell) says which tests to try first."""

    file: Path
    line: int
    name: str

    @property
    def group(self) -> str:
        return self.name.partition(".")[0] if self.file.name == "reference.py" else self.file.stem

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line} {self.name}"

    def chosen(self, wanted: str) -> bool:
        return f"{self.name}.".startswith(f"{wanted}.") or f"{self.group}.{self.name}.".startswith(f"{wanted}.")


def find_marks(file: Path) -> list[Mark]:
    if file.suffix in CUDA:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [Mark(file, k, found["name"]) for k, line in enumerate(lines, 1) if (found := MARK.search(line))]
    with tokenize.open(file) as source:
        comments = [token for token in tokenize.generate_tokens(source.readline) if token.type == tokenize.COMMENT]
    return [Mark(file, c.start[0], found["name"]) for c in comments if (found := MARK.search(c.string))]


def flip(source: str, line: int) -> str:
    """The source with the sign of the term on this line turned; ValueError where the line holds nothing to turn."""
    around = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    around = [node for node in around if node.lineno <= line <= (node.end_lineno or 0)]
    statement = min(around, key=lambda node: ((node.end_lineno or 0) - node.lineno, -node.col_offset), default=None)
    text = source.encode()  # ast counts columns in bytes
    starts = [0]
    for row in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(row))

    def span(node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def swap_operator(left: ast.expr, right: ast.expr) -> str:
        begin, end = span(left)[1], span(right)[0]
        swapped = text[begin:end].translate(bytes.maketrans(b"+-", b"-+"))
        return (text[:begin] + swapped + text[end:]).decode()

    if isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add | ast.Sub):
        return swap_operator(statement.target, statement.value)
    value = getattr(statement, "value", None)
    if isinstance(statement, ast.Expr) and isinstance(value, ast.Call) and value.args:
        value = value.args[-1]
    elif not isinstance(statement, ast.Assign | ast.AnnAssign | ast.Return):
        value = None
    if value is None or isinstance(value, ast.Tuple | ast.List):
        raise ValueError(f"line {line} holds no value whose sign could turn: {source.splitlines()[line - 1].strip()}")
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add | ast.Sub):
        return swap_operator(value.left, value.right)
    begin, end = span(value)
    term = b"(" + text[begin:end] + b")"
    # x - x - x is -x, also for vector types that know no unary minus.
    return (text[:begin] + b"(" + b" - ".join([term] * 3) + b")" + text[end:]).decode()


def flip_cuda(source: str, line: int) -> str:
    """The same of CUDA, where a marked statement stands on one line; the value that becomes a word is turned before."""
    lines = source.splitlines(keepends=True)
    statement, mark, comment = lines[line - 1].partition("//")
    if " += " in statement or " -= " in statement:
        turned = statement.replace(" += ", " @= ").replace(" -= ", " += ").replace(" @= ", " -= ")
    else:
        turned = re.sub(r"= (word_of\()?([^=]*?)(\))?;(\s*)$", _turned, statement)
    if turned == statement:
        raise ValueError(f"line {line} holds no value whose sign could turn: {statement.strip()}")
    return "".join([*lines[: line - 1], turned + mark + comment, *lines[line:]])


def _turned(found: re.Match[str]) -> str:
    """The assigned value with a minus before it."""
    word, value, close, rest = found.groups()
    return f"= word_of(-({value}));{rest}" if word else f"= -({value}{close or ''});{rest}"


def turned_of(mark: Mark, source: str) -> str:
    """The source with a mark's sign turned."""
    return flip_cuda(source, mark.line) if mark.file.suffix in CUDA else flip(source, mark.line)


class Copy:
    """A copy of the package and its tests, in which files may be changed; found before any installed package."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder, self.kernels = root, folder, folder / "fastlstm" / "kernels"
        self.green: dict[tuple[str, ...], bool] = {}
        for source, target in (("fastlstm", "fastlstm"), ("kernels", "fastlstm/kernels"), ("tests", "tests")):
            skipped = ("__pycache__", *(("kernels",) if source == "fastlstm" else ()))  # where there may be a link to them
            shutil.copytree(root / source, folder / target, ignore=shutil.ignore_patterns(*skipped))
        if (root / "pyproject.toml").exists():
            shutil.copy(root / "pyproject.toml", folder)
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        # No coverage, which would later look for files of this copy. No .pyc: two flips within a second would have the
        # same time stamp, and perhaps the same size. A cache of compiled kernels that goes with the copy.
        self.environment = {name: os.environ[name] for name in os.environ if not name.startswith(("COVERAGE_", "COV_"))}
        self.environment |= {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "FASTLSTM_CACHE": str(folder / "cache"),
        }
        where = self._python("-c", "import fastlstm.kernels as k; print(k.__file__)").stdout.strip()
        if not where.startswith(str(self.kernels)):
            raise Unusable(f"The copy is not what Python imports: fastlstm.kernels came from {where or 'nowhere'}")

    def _python(self, *arguments: str, timeout: float | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            timeout=timeout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pytest(self, *arguments: str, timeout: float | None = None) -> tuple[int, str, str]:
        """Run tests up to the first failure: exit status, the failure in a line, the whole output."""
        report = self.folder / "report.xml"
        report.unlink(missing_ok=True)
        done = self._python(
            "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments, timeout=timeout
        )
        message = ""
        for failure in ElementTree.parse(report).iter("failure") if report.exists() else ():
            message = failure.get("message", "").partition("\n")[0]
            if "ExceptionGroup" in message and "AssertionError" in (failure.text or ""):
                message = f"AssertionError in {message}"  # hypothesis found more than one
        return done.returncode, message, done.stdout

    def any_green(self, *chosen: str) -> bool:
        """Whether these tests exist; Unusable where they fail without a flip."""
        if chosen not in self.green:
            status, _, output = self.pytest(*chosen)
            if status not in (0, 5):  # 5: none was chosen
                raise Unusable(f"{output}\nThese tests must be green before a sign is turned.")
            self.green[chosen] = status == 0
        return self.green[chosen]


def judge(copy: Copy, mark: Mark, tests: str, timeout: float) -> tuple[str, str]:
    """Say "red", "survived" or "crashed" of one flip, and the failure; the group's own tests run first, then all."""
    target = copy.kernels / mark.file.relative_to(copy.root / "kernels")
    original = target.read_text(encoding="utf-8")
    for chosen in ((tests, "-k", mark.group), (tests,)):
        if not copy.any_green(*chosen):
            continue
        target.write_text(turned_of(mark, original), encoding="utf-8")
        try:
            status, failure, output = copy.pytest(*chosen, timeout=timeout)
        except subprocess.TimeoutExpired:
            return "crashed", f"no end after {timeout:.0f} s"
        finally:
            target.write_text(original, encoding="utf-8")
        if status == 1 and failure.startswith(("AssertionError", "assert ")):
            return "red", failure
        if status != 0:
            return "crashed", failure or (output.strip().splitlines() or [f"exit status {status}"])[-1]
    return "survived", ""


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="mutation.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="cells (lstm) or terms (lstm.i); all by default")
    parser.add_argument("--file", action="append", help="only this file of kernels/, by name; may be repeated")
    parser.add_argument("--tests", help="test file to run instead of the file's own")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that one run of the tests may take")
    parser.add_argument("--list", action="store_true", help="print the marks and stop")
    options = parser.parse_args(arguments)
    listed = sorted(file for file in (root / "kernels").rglob("*") if file.suffix in (".py", *CUDA))
    files = [file for file in listed if file.name in (options.file or [file.name])]
    marks = [mark for file in files for mark in find_marks(file)]
    marks = [mark for mark in marks if not options.names or any(map(mark.chosen, options.names))]
    if not marks:
        print("Nothing is marked so.", file=sys.stderr)
        return 2
    if options.list:
        print(*marks, sep="\n")
        return 0
    red = 0
    try:
        for mark in marks:  # all of them first: a mark that cannot be flipped should not be learnt of after an hour
            try:
                turned_of(mark, mark.file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise Unusable(f"{mark}: {error}") from None
        with tempfile.TemporaryDirectory() as folder:
            copy = Copy(root, Path(folder))
            for mark in marks:
                usual = CUDA_TESTS if mark.file.suffix in CUDA else "tests/kernels/test_kernels.py"
                tests = options.tests or TESTS.get(mark.file.name, usual)
                verdict, failure = judge(copy, mark, tests, options.timeout)
                red += verdict == "red"
                print(f"{verdict:8s}  {mark}  {failure}".rstrip(), flush=True)
    except Unusable as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{red} of {len(marks)} flips turned a test red.")
    return 0 if red == len(marks) else 1


if __name__ == "__main__":
    sys.exit(main())
