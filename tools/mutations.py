"""Small faults for `tools/mutants.py`: where a statement of a function can be changed, and how.

A site is one simple statement, or the condition of a compound one, as `ast.unparse` writes it: so the same line is
found again after it was moved, reformatted or joined.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COMPARE: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_SIMPLE = (ast.Return, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Continue, ast.Break)
_TEXTS = (ast.JoinedStr, ast.Lambda)  # what is for people, and what is hard to find again


@dataclass(frozen=True)
class Site:
    """A statement, or a condition, of the function `function` ("Class.method") in `file`.

    `place` is its range in the source: first line (from 0), column in bytes, last line, column.
    """

    file: str
    function: str
    kind: str
    text: str
    place: tuple[int, int, int, int]


def sites(file: str, source: str) -> Iterator[Site]:
    """Every site in a module, top to bottom."""
    yield from _inside(file, ast.parse(source), "", in_function=False)


def sites_of(tree: Path, folder: str = "stepwise") -> list[Site]:
    """Every site of the Python files in a folder."""
    files = sorted((tree / folder).rglob("*.py"))
    return [site for path in files for site in sites(path.relative_to(tree).as_posix(), path.read_text("utf-8"))]


def _inside(file: str, node: ast.AST, name: str, in_function: bool) -> Iterator[Site]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}" if name else child.name
            yield from _inside(file, child, inner, in_function or not isinstance(child, ast.ClassDef))
            continue
        part = _part(child) if in_function and isinstance(child, ast.stmt) else None
        if part is not None:
            kind = type(child).__name__
            place = (part.lineno - 1, part.col_offset, (part.end_lineno or 0) - 1, part.end_col_offset or 0)
            yield Site(file, name, kind, ast.unparse(part), place)
        yield from _inside(file, child, name, in_function)


def _part(statement: ast.stmt) -> Any:
    """What of a statement is a site; None for those that are not changed."""
    if isinstance(statement, ast.If | ast.While):
        return statement.test
    if isinstance(statement, ast.For | ast.AsyncFor):
        return statement.iter
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return statement if isinstance(statement, _SIMPLE) and not is_text else None


def changes(site: Site) -> list[tuple[str, str]]:
    """The faults of a site: (kind of fault, its text afterwards)."""
    tree = ast.parse(site.text) if site.kind not in ("Continue", "Break") else ast.parse("pass")
    found = []
    for number, node in enumerate(_nodes(tree)):
        for name in _faults(node):
            other = copy.deepcopy(tree)
            _apply(name, list(_nodes(other))[number])
            found.append((name, ast.unparse(other)))
    if site.kind in ("If", "While"):
        found.append(("condition", f"not ({site.text})"))
    if site.kind == "Continue":
        found.append(("loop", "break"))
    if site.kind == "Expr":
        found.append(("left out", "pass"))
    return [(name, text) for name, text in found if text != site.text]


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may be changed; those of texts and of annotations are passed over."""
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, _TEXTS) and field != "annotation":
                yield child
                yield from _nodes(child)


def _faults(node: ast.AST) -> list[str]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in _COMPARE:
            return ["comparison"]
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _ARITHMETIC and not _of_text(node):
            return ["arithmetic"]
        case ast.BoolOp():
            return ["and or"]
        case ast.UnaryOp(op=ast.Not()):
            return ["not"]
        case ast.Constant(value=bool()):
            return ["truth"]
        case ast.Constant(value=int() | float()):
            return ["number"]
        case ast.Call(func=ast.Name(id=name)) if name in _CALLED:
            return ["call"]
        case ast.IfExp():
            return ["choice"]
    return []


def _of_text(node: ast.AST) -> bool:
    """Whether a sum has a part that is a text or a sequence for certain."""
    kinds = (ast.JoinedStr, ast.List, ast.Tuple)
    return any(
        isinstance(n, kinds) or (isinstance(n, ast.Constant) and isinstance(n.value, str)) for n in ast.walk(node)
    )


def _apply(name: str, node: Any) -> None:
    """Change `node` in place."""
    if name == "comparison":
        node.ops = [_COMPARE[type(node.ops[0])]()]
    elif name == "arithmetic":
        node.op = _ARITHMETIC[type(node.op)]()
    elif name == "and or":
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif name == "not":
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
    elif name == "truth":
        node.value = not node.value
    elif name == "number":
        node.value = node.value + 1
    elif name == "call":
        node.func.id = _CALLED[node.func.id]
    elif name == "choice":
        node.body, node.orelse = node.orelse, node.body


def changed(source: str, site: Site, text: str) -> str:
    """The module's source with `text` in place of the site. Raises `SyntaxError` where that is no Python."""
    first, start, last, end = site.place
    lines = source.encode().splitlines(keepends=True)
    replaced = lines[first][:start] + text.encode() + lines[last][end:]
    made = b"".join([*lines[:first], replaced, *lines[last + 1 :]]).decode()
    ast.parse(made)
    return made
