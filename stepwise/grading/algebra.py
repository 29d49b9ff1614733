r"""Equality of two algebraic answers, decided in a worker process: math-verify's parser reads, exact values decide.

math-verify's own comparison is not used: it calls `1/2^99` and `1/2^98` equal and simplifies for a long time. Numbers
and functions are compared by `agreement.py`; equations and inequalities are equal where they are multiples of each
other. Decimals are exact fractions, so a rounded decimal does not equal what it was rounded from. The parser is called
so that capitals stay capitals, and what it would drop or misread (primes, gcd, fractional parts) is rewritten or
refused first.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from sympy.core.relational import Relational

from stepwise.grading.agreement import agree, proportional
from stepwise.grading.functions import Gcd, Lcm
from stepwise.grading.text import Role, Unreadable, closing, split

_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\d.])")
_NOT_MATH = re.compile(
    r"(?<![\d_^{])\d+\s+\d|(?<![\w^{.])\d+\s*_|(?<![A-Za-z\\{])[A-Za-z]{5,}|\\text|\\\{|\\[lcdv]?dots|\\(?:max|min)\s*_|!\s*!|[)\]}]\s*'"
)
_TRIGONOMETRIC = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\^\s*(?:\d|\{\d\})\s*)?)([({]?)\s*(\d+(?:\.\d+)?)\s*°"
)
_PRIME = re.compile(r"([A-Za-z])('+)(?!\s*\()")
_COMMA = re.compile(",")
_OVER_SETS = re.compile(r"\\(?:max|min|gcd|lcm)\s*(?=\\\{)")
_FUNCTIONS = {"gcd": Gcd, "lcm": Lcm, "max": sympy.Max, "min": sympy.Min}
_CALL = re.compile(r"\\(gcd|lcm|max|min)\s*(?=\()")
_REWRITES = ((r"\\bmod(?![A-Za-z])", r"\\mod "), (r"\\lg(?![A-Za-z])", r"\\log_{10}"),
             (r"(?:\{|^)\s*([^{}]*?)\s*\\choose(?![A-Za-z])\s*([^{}]*?)\s*(?:\}|$)", r"\\binom{\1}{\2}"),
             (r"(?:\{\s*\}\s*)?_\s*\{?(\d+)\}?\s*C\s*_\s*\{?(\d+)\}?", r"\\binom{\1}{\2}"),
             (r"(?<![A-Za-z\\])C\s*_\s*\{?(\d+)\}?\s*\^\s*\{?(\d+)\}?", r"\\binom{\1}{\2}"),
             (r"(?<![A-Za-z\\])C\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)", r"\\binom{\1}{\2}"))  # fmt: skip


def equal(prediction: str, gold: str) -> bool:
    r"""Whether two LaTeX texts mean the same.

    Raises Unreadable for the one that cannot be parsed, gold first, and for the prediction where it cannot be told.

    Example:
        >>> equal(r"\lfloor (n+1)/2\rfloor", r"\lceil n/2\rceil"), equal(r"\lfloor x\rfloor", "x")
        (True, False)
    """
    right = _parse(gold, "gold")
    left = _parse(prediction, "prediction")
    same = True if left == right else _same(left, right)
    if same is None:
        raise Unreadable("prediction", "whether it equals the gold answer cannot be told")
    return same


def _parse(latex: str, role: Role) -> Any:
    """What a text says, as sympy; calls of gcd, lcm, max and min are read one by one, the innermost first."""
    latex = _sets_as_arguments(latex)
    calls: dict[Any, Any] = {}
    while (found := list(_CALL.finditer(latex))) and (end := closing(latex, found[-1].end())) > 0:
        name = f"W_{{{900 + len(calls)}}}"
        arguments = split(latex[found[-1].end() + 1 : end], _COMMA)
        calls[name] = _FUNCTIONS[found[-1][1]](*(_expression(argument, role) for argument in arguments))
        before = latex[: found[-1].start()].rstrip()
        latex = before + (f"{{{name}}}" if before[-1:] in ("^", "_") else f" {name} ") + latex[end + 1 :]
    whole = _expression(latex, role)
    for name, value in reversed(calls.items()):
        whole = whole.xreplace({symbol: value for symbol in whole.free_symbols if str(symbol) == name})
    return whole.doit() if isinstance(whole, sympy.Expr) else whole


def _expression(latex: str, role: Role) -> Any:
    # The parser reads letter by letter and drops what it does not know, which would make a formula of any text.
    if _NOT_MATH.search(latex):
        raise Unreadable(role, "it is neither a number nor a formula")
    latex = _PRIME.sub(lambda match: f"{match[1]}_{{prime{len(match[2])}}}", latex)
    latex = _TRIGONOMETRIC.sub(r"\1\2{\\frac{\3\\pi}{180}}", latex)
    for pattern, replacement in _REWRITES:
        latex = re.sub(pattern, replacement, latex)
    text = _DECIMAL.sub(lambda match: "{" + _fraction(match[1], match[2]) + "}", latex.replace("°", ""))
    try:
        found = latex2sympy(text, is_real=True, conversion_config=ConversionConfig(lowercase_symbols=False))
    except Exception as error:  # the parser raises plain Exception for a syntax error
        raise Unreadable(role, f"it is not LaTeX that math-verify reads: {str(error)[:80]}") from None
    if not isinstance(found, sympy.Basic):
        return found
    if isinstance(found, sympy.FiniteSet) and len(found) == 1:  # `{5}` in plain braces; sets in `\\{ \\}` were refused
        found = found.args[0]
    imaginary = {symbol: sympy.I for symbol in found.free_symbols if symbol.name == "i"}
    return found.xreplace(imaginary) if imaginary else found


def _sets_as_arguments(latex: str) -> str:
    r"""`\max\{a,b\}` as `\max(a,b)`: braces that are no set."""
    while (match := _OVER_SETS.search(latex)) and (end := closing(latex, match.end() + 1)) > 0:
        inner = latex[match.end() + 2 : end].removesuffix("\\")
        latex = latex[: match.end()] + "(" + inner + ")" + latex[end + 1 :]
    return latex


def _fraction(whole: str, decimals: str) -> str:
    value = Fraction(f"{whole or 0}.{decimals}")
    return str(value.numerator) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _same(left: Any, right: Any) -> bool | None:
    parts = [expression.args if isinstance(expression, sympy.And) else (expression,) for expression in (left, right)]
    related = [all(isinstance(part, Relational) for part in side) for side in parts]
    if related[0] != related[1]:
        return False
    if all(related):
        return len(parts[0]) == len(parts[1]) and _match(list(parts[0]), list(parts[1]))
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        return agree(left, right)
    return None


def _match(left: list[Any], right: list[Any]) -> bool:
    for part in left:
        found = next((other for other in right if _same_relation(part, other)), None)
        if found is None:
            return False
        right.remove(found)
    return True


def _same_relation(left: Any, right: Any) -> bool:
    """Both as `difference REL 0`; equal when the differences have a constant ratio, positive for inequalities."""
    kinds, differences = [], []
    for relation in (left, right):
        turned = isinstance(relation, sympy.Lt | sympy.Le)
        kind = {sympy.Lt: sympy.Gt, sympy.Le: sympy.Ge}.get(type(relation), type(relation))
        kinds.append(kind)
        differences.append(relation.rhs - relation.lhs if turned else relation.lhs - relation.rhs)
    ratio = proportional(*differences) if kinds[0] is kinds[1] else 0
    return ratio == 1 or (ratio == -1 and kinds[0] in (sympy.Eq, sympy.Ne))
