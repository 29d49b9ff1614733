"""The small faults that `mutants.py` seeds: which there are in a module's functions, and what each writes where."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import Any

COMPARE: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


def faults(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Each fault of one node: (kind, the node that takes its place)."""
    other: Any = copy.deepcopy(node)
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARE:
            other.ops = [COMPARE[type(op)]()]
            yield "comparison", other
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in ARITHMETIC and not of_text(node):
            other.op = ARITHMETIC[type(op)]()
            yield "arithmetic", other
        case ast.BoolOp():
            other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "and or", other
        case ast.UnaryOp(op=ast.Not()):
            yield "not", other.operand
        case ast.Constant(value=bool()):
            yield "truth", ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield "number", ast.Constant(node.value + 1)
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield "default", ast.Return(ast.Constant(None))
        case ast.Expr(value=value) if not isinstance(value, ast.Constant | ast.Yield | ast.YieldFrom):
            yield "dropped", ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Continue():
            yield "dropped", ast.Pass()


def of_text(node: ast.AST) -> bool:
    """Whether a sum has a part that is a text or a sequence for certain."""
    parts = list(ast.walk(node))
    texts = [part for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return bool(texts) or any(isinstance(part, ast.JoinedStr | ast.List | ast.Tuple) for part in parts)


def mutants_of(file: str, source: str) -> dict[tuple[Any, ...], tuple[int, int, str]]:
    """The faults of a module's functions: what identifies each -> (first byte, last byte, text that goes there)."""
    result: dict[tuple[Any, ...], tuple[int, int, str]] = {}
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def walk(node: ast.AST, name: str, inside: bool) -> None:
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                    continue
                if field in ("annotation", "returns", "decorator_list", "args") and isinstance(node, ast.FunctionDef):
                    continue
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    inner = f"{name}.{child.name}" if name else child.name
                    walk(child, inner, inside or not isinstance(child, ast.ClassDef))
                    continue
                for kind, changed in faults(child) if inside else ():
                    text = ast.unparse(ast.fix_missing_locations(changed))
                    after = f"({text})" if isinstance(changed, ast.expr) else text
                    place: Any = child
                    first = starts[place.lineno - 1] + place.col_offset
                    last = starts[place.end_lineno - 1] + place.end_col_offset
                    before = ast.unparse(child)
                    same = sum(key[:-1] == (file, name, kind, before, text) for key in result)
                    result[file, name, kind, before, text, same] = (first, last, after)
                walk(child, name, inside)

    walk(ast.parse(source), "", False)
    return result
