"""Which test files are closest to a module: by imports, through other modules too."""

from __future__ import annotations

import ast
from collections import defaultdict, deque
from functools import lru_cache
from pathlib import Path

FOLDERS = ("stepwise", "programs", "tests")
LEFT_OUT = ("tests/evals/", "tests/programs/test_demo.py", "tests/test_cli.py", "tests/test_packaging.py")
FAR = 99


def tests_of(tree: Path, file: str, folders: tuple[str, ...]) -> list[str]:
    """Test files for a module, the closest first: of its name, then by how many imports lie between, then those in
    `folders`; of equals the one that imports least.
    """
    graph = importers(tree)
    steps, waiting = {file: 0}, deque([file])
    while waiting:
        near = waiting.popleft()
        for other in graph[near]:
            if other not in steps:
                steps[other] = steps[near] + 1
                waiting.append(other)
    width = {test: sum(test in others for others in graph.values()) for test in steps}
    ranked = [
        (not name.endswith(f"/test_{Path(file).stem}.py"), steps.get(name, FAR), not name.startswith(folders),
         width.get(name, 0), name)
        for name in modules(tree)
        if Path(name).name.startswith("test_") and not name.startswith(LEFT_OUT)
    ]  # fmt: skip
    return [entry[-1] for entry in sorted(ranked) if entry[1] < FAR]


@lru_cache
def modules(tree: Path) -> tuple[str, ...]:
    """The Python files of a tree, relative to it."""
    return tuple(path.relative_to(tree).as_posix() for top in FOLDERS for path in sorted((tree / top).rglob("*.py")))


@lru_cache
def importers(tree: Path) -> dict[str, set[str]]:
    """For each file those that import it. A name taken from a package counts for the file that defines it there."""
    parsed = {name: ast.parse((tree / name).read_text("utf-8")) for name in modules(tree)}
    defined: dict[tuple[str, str], str] = {}  # (package, name) -> file
    for name, module in parsed.items():
        for node in module.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                defined.setdefault((Path(name).parent.as_posix(), node.name), name)
    found: dict[str, set[str]] = defaultdict(set)
    for name, module in parsed.items():
        package = name.endswith("__init__.py")  # of one what it imports at once counts, not what it only names
        for node in module.body if package else ast.walk(module):
            for wanted in _wanted(node):
                file = _file(wanted, parsed, defined)
                if file and file != name:
                    found[file].add(name)
    return found


def _wanted(node: ast.AST) -> list[str]:
    """Dotted names that a node imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _file(dotted: str, parsed: dict[str, ast.Module], defined: dict[tuple[str, str], str]) -> str:
    """The file that a dotted name stands for, "" for none of the tree's."""
    path = dotted.replace(".", "/")
    parent, _, last = path.rpartition("/")
    for file in (f"{path}.py", f"{path}/__init__.py", f"{parent}.py"):
        if file in parsed:
            return file
    inside = f"{parent}/__init__.py"
    return defined.get((parent, last), inside if inside in parsed else "")
