"""The house is in order: imports go one way, folders stay small, and no function takes a long row of arguments by position."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("fastlstm", "kernels", "benchmarks", "tests")
FILES_OF_A_FOLDER = 20
ARGUMENTS_BY_POSITION = 8
# Constructors whose signatures are promised to users; all else takes the rest by keyword.
PROMISED = {
    "fastlstm/models/language.py": {"LanguageModel"},
    "fastlstm/models/series.py": {"SequenceRegressor", "SequenceClassifier"},
}

# Who may import whom: a wing only what stands to the right of its colon, or below. Kernels are imported as fastlstm.kernels.
WINGS = {
    "command": "adapters training models layers text optim files runtime kernels",
    "adapters": "training models layers stack text optim files runtime kernels",
    "training": "models layers text optim files runtime kernels",
    "models": "layers stack files runtime kernels",
    "layers": "stack files runtime kernels",
    "stack": "runtime kernels",
    "optim": "runtime kernels",
    "text": "files runtime",
    "runtime": "files kernels",
    "kernels": "files",
    "files": "",
    "facts": "",
}
# Single files beside the wings, by the wing whose imports they share; facts, which import nothing, are free to all.
BESIDE = {"losses": "optim", "data": "text", "generate": "training", "cuda": "models", "shape": "facts", "version": "facts"}


def sources() -> list[Path]:
    """Every Python file of the project."""
    return [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py")) if not inside_link(path)]


def inside_link(path: Path) -> bool:
    """Whether it lies in fastlstm/kernels, which may be a link to kernels/."""
    return (ROOT / "fastlstm" / "kernels") in path.parents


def name_of(path: Path) -> str:
    """The module's name."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "fastlstm")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, name: str, modules: set[str]) -> Iterator[str]:
    """The project's modules that a file imports, anywhere in it: at the top, within functions, for types alone."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                found = f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in modules else origin
                if found in modules:
                    yield found


def graph() -> dict[str, set[str]]:
    """Module -> modules of the project that it imports."""
    named = {name_of(path): path for path in sources()}
    return {name: set(imports(path, name, set(named))) - {name} for name, path in named.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by way of others too."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(edges[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(edges[name])
        return seen

    reached = {name: reach(name) for name in edges}
    groups = {frozenset({name, *(other for other in reached[name] if name in reached[other])}) for name in edges}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def wing_of(module: str) -> str | None:
    """The wing of a module of the package; None for its front door, `fastlstm` itself."""
    _, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return BESIDE.get(first, first) if rest and first != "__main__" else None


def test_no_module_imports_itself_by_way_of_others():
    assert circles(graph()) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_imports_go_one_way_between_wings():
    wrong = []
    for name, found in graph().items():
        if not name.startswith("fastlstm") or (wing := wing_of(name)) is None:
            continue
        allowed = {wing, "facts", *WINGS[wing].split()}
        wrong += [f"{name} imports {other}" for other in sorted(found) if other == "fastlstm" or wing_of(other) not in allowed]
    assert not wrong


def test_operations_need_neither_numba_nor_cupy():
    code = "import sys, fastlstm.kernels.operations; sys.exit(bool({'numba', 'cupy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("part", PARTS)
def test_folders_stay_small(part):
    folders = {path.parent for path in (ROOT / part).rglob("*.py") if not inside_link(path)}
    counts = {str(folder.relative_to(ROOT)): sum(1 for path in folder.iterdir() if path.is_file()) for folder in folders}
    assert not {name: count for name, count in counts.items() if count > FILES_OF_A_FOLDER}


def test_no_function_takes_many_arguments_by_position():
    long = []
    for path in sources():
        name, tree = str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))
        classes = [one for one in ast.walk(tree) if isinstance(one, ast.ClassDef) and one.name in PROMISED.get(name, ())]
        promised = {id(one) for kind in classes for one in kind.body if getattr(one, "name", "") == "__init__"}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and id(node) not in promised:
                count = len(node.args.posonlyargs) + len(node.args.args)
                first = node.args.args[0].arg if node.args.args else ""
                if count - (first in ("self", "cls")) > ARGUMENTS_BY_POSITION:
                    long.append(f"{name}:{node.lineno} {getattr(node, 'name', 'lambda')} takes {count}")
    assert not long
