r"""Equality of two algebraic answers, decided in a worker process: math-verify parses, many digits decide.

math-verify's comparison is not used where a value can be computed, since it calls `1/2^99` and `1/2^98` equal and
simplifies for a long time. Instead both sides are evaluated to 30 digits, at several fixed points where there are
variables: expressions must agree at each point (at those where both are real, if that is often enough), equations and
inequalities must be multiples of each other. Decimals are exact fractions, so a rounded decimal does not equal what
it was rounded from. The parser is the one that math-verify uses, called so that capitals stay capitals.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from stepwise.grading.text import Role, Unreadable

DIGITS = 30
_TOLERANCE = 1e-20
_ZERO = 1e-80
_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\d.])")
_NOT_MATH = re.compile(r"(?<![\d_^{])\d+\s+\d|(?<![\w^{.])\d+\s*_|(?<![A-Za-z\\{])[A-Za-z]{5,}|\\text")
_TRIGONOMETRIC = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\^\s*(?:\d|\{\d\})\s*)?)([({]?)\s*(\d+(?:\.\d+)?)\s*°"
)
_POINTS = ((7, 5), (11, 3), (3, 13), (-5, 7), (13, -11), (-17, -3))
_STEP = (3, 17)


def equal(prediction: str, gold: str) -> bool:
    """Whether two LaTeX texts mean the same. Raises Unreadable for the one that cannot be parsed, gold first."""
    right = _parse(gold, "gold")
    left = _parse(prediction, "prediction")
    return bool(left == right) or _same(left, right)


def _parse(latex: str, role: Role) -> Any:
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    # The parser reads letter by letter and drops what it does not know, which would make a formula of any text.
    if _NOT_MATH.search(latex):
        raise Unreadable(role, "it is neither a number nor a formula")
    latex = _TRIGONOMETRIC.sub(r"\1\2{\\frac{\3\\pi}{180}}", latex)
    text = _DECIMAL.sub(lambda match: "{" + _fraction(match[1], match[2]) + "}", latex.replace("°", ""))
    try:
        found = latex2sympy(text, is_real=True, conversion_config=ConversionConfig(lowercase_symbols=False))
    except Exception as error:  # the parser raises plain Exception for a syntax error
        raise Unreadable(role, f"it is not LaTeX that math-verify reads: {str(error)[:80]}") from None
    imaginary = {symbol: sympy.I for symbol in getattr(found, "free_symbols", ()) if symbol.name == "i"}
    found = found.xreplace(imaginary) if imaginary else found
    return found.doit() if isinstance(found, sympy.Expr) and found.has(*_operations()) else found


def _operations() -> tuple[Any, ...]:
    """What is carried out before numbers are compared: evaluating it numerically is slow or inexact."""
    import sympy

    return (sympy.Integral, sympy.Sum, sympy.Product, sympy.Derivative, sympy.Limit)


def _fraction(whole: str, decimals: str) -> str:
    value = Fraction(f"{whole or 0}.{decimals}")
    return str(value.numerator) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _same(left: Any, right: Any) -> bool:
    import sympy
    from math_verify import verify
    from sympy.core.relational import Relational

    parts = [expression.args if isinstance(expression, sympy.And) else (expression,) for expression in (left, right)]
    related = [all(isinstance(part, Relational) for part in side) for side in parts]
    if related[0] != related[1]:
        return False
    if all(related):
        return len(parts[0]) == len(parts[1]) and _match(list(parts[0]), list(parts[1]))
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        agreed = _agree(left, right)
        if agreed is not None:
            return agreed
    return bool(verify(right, left, strict=True, timeout_seconds=None))


def _match(left: list[Any], right: list[Any]) -> bool:
    for part in left:
        found = next((other for other in right if _same_relation(part, other)), None)
        if found is None:
            return False
        right.remove(found)
    return True


def _same_relation(left: Any, right: Any) -> bool:
    """Both as `difference REL 0`; equal when the differences have a constant ratio, positive for inequalities."""
    import sympy

    kinds, differences = [], []
    for relation in (left, right):
        turned = isinstance(relation, (sympy.Lt, sympy.Le))
        kind = {sympy.Lt: sympy.Gt, sympy.Le: sympy.Ge}.get(type(relation), type(relation))
        kinds.append(kind)
        differences.append(relation.rhs - relation.lhs if turned else relation.lhs - relation.rhs)
    if kinds[0] is not kinds[1]:
        return False
    ratios = []
    for point in _points(*differences):
        one, other = (_value(difference, point) for difference in differences)
        if one is None or other is None or abs(one) < _ZERO or abs(other) < _ZERO:
            return bool(differences[0] == differences[1])
        ratios.append(one / other)
    constant = all(_close(ratio, ratios[0]) for ratio in ratios)
    return constant and (kinds[0] in (sympy.Eq, sympy.Ne) or bool(sympy.re(ratios[0]) > 0))


def _agree(left: Any, right: Any) -> bool | None:
    """Whether two expressions have the same values; None where they cannot be evaluated."""
    pairs = []
    for point in _points(left, right):
        one, other = _value(left, point), _value(right, point)
        if one is None or other is None:
            return None
        pairs.append((one, other))
    real = [(one, other) for one, other in pairs if one.is_real and other.is_real]
    return all(_close(one, other) for one, other in (real if len(real) >= 3 else pairs))


def _points(*expressions: Any) -> list[dict[Any, Any]]:
    """Fixed values for all variables: one empty point where there are none, six otherwise, of mixed signs."""
    import sympy

    symbols = sorted(set().union(*(expression.free_symbols for expression in expressions)), key=str)
    if not symbols:
        return [{}]
    points = []
    for k, (top, bottom) in enumerate(_POINTS):
        step = sympy.Rational(*_STEP) * (1 if k % 2 else -1)
        values = [sympy.Rational(top, bottom) + j * step for j in range(len(symbols))]
        points.append(dict(zip(symbols, [abs(value) if k < 3 else value for value in values], strict=True)))
    return points


def _value(expression: Any, point: dict[Any, Any]) -> Any:
    """A finite number with DIGITS digits, None where there is none."""
    value = expression.evalf(DIGITS, subs=point) if point else expression.evalf(DIGITS)
    return value if value.is_number and value.is_finite and value.is_comparable is not None else None


def _close(one: Any, other: Any) -> bool:
    size = max(abs(one), abs(other))
    return bool(size < _ZERO or abs(one - other) <= _TOLERANCE * size)
