r"""Whether two sympy expressions have the same value everywhere, decided by exact values at chosen points.

Numbers are compared to 300 digits more than those in them, so `\sqrt{10^{40}+1}` is not `10^{20}`. Polynomials are
expanded. Anything else is evaluated where it can differ: at small and at far values, next to every number that occurs
in it, and on both sides of where a floor, ceiling, remainder, minimum, maximum, absolute value or root turns. A
variable named i, j, k, m, n, p or q, and one under gcd, lcm, binomial, factorial or mod, is an integer (the latter not
negative); every other one is real, so `\lfloor x\rfloor` is not x, and `\lfloor n\rfloor` is n.
"""

from __future__ import annotations

import math
import time
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from stepwise.grading.points import ON_INTEGERS, points

SECONDS = 5.0
"""Processor time for which points are tried; what is not decided by then is not decided at all."""
_DIGITS_OF_CONSTANTS = 300  # more than the rationals in them have
_DIGITS_OF_POINTS = 60
_GOOD_BITS = 50  # bits: a difference with fewer good ones is 0
_NEEDED = 3  # points at which both sides are real, for real values alone to count


def agree(left: Any, right: Any) -> bool | None:
    """Whether two expressions are equal; None where it cannot be told (undefined, unknown functions, out of time).

    >>> x = sympy.Symbol("x")
    >>> agree((x + 1) ** 2, x**2 + 2 * x + 1), agree(x**2, x**3)
    (True, False)
    """
    left, right = _plain(left), _plain(right)
    if left == right:
        return True
    difference = left - right
    if not difference.free_symbols:
        return _equal_values(left, right, _DIGITS_OF_CONSTANTS)
    if _is_small_polynomial(difference):
        return bool(sympy.expand(difference) == 0)
    deadline = time.process_time() + SECONDS
    real: list[bool | None] = []
    every: list[bool | None] = []
    for point in points(left, right):
        if time.process_time() > deadline:
            return None
        one, other = _value(left, point), _value(right, point)
        if one is None or other is None:
            continue
        same = _equal_values(one, other)
        every.append(same)
        if one.is_real and other.is_real:
            if same is False:
                return False
            real.append(same)
    judged = real if len(real) >= _NEEDED else every
    if False in judged:
        return False
    return True if len(judged) >= _NEEDED and None not in judged else None


def proportional(left: Any, right: Any) -> int | None:
    """1 or -1 where `left / right` is one positive or negative number everywhere, 0 where not, None where unknown.

    >>> x = sympy.Symbol("x")
    >>> proportional(2 * x + 2, x + 1), proportional(1 - x, x - 1), proportional(x, x + 1)
    (1, -1, 0)
    """
    left, right = _plain(left), _plain(right)
    if left == right:
        return 1
    deadline = time.process_time() + SECONDS
    first: tuple[Any, Any] | None = None
    judged = 0
    for point in points(left, right):
        if time.process_time() > deadline:
            return None
        one, other = _value(left, point), _value(right, point)
        if one is None or other is None:
            continue
        zero = _is_zero(one), _is_zero(other)
        if zero[0] != zero[1]:
            return 0
        if zero[0]:
            continue
        first = first or (one, other)
        if not _is_zero(one * first[1] - other * first[0]):
            return 0
        judged += 1
    if first is None or judged < (_NEEDED if left.free_symbols | right.free_symbols else 1):
        return None
    return 1 if sympy.re(first[0] / first[1]).evalf() > 0 else -1


def _is_zero(value: Any, digits: int = _DIGITS_OF_POINTS) -> bool | None:
    """Whether a number is 0, to `digits` more than twice those in it; None where it cannot be evaluated."""
    if value.is_Rational:
        return bool(value == 0)
    bits = sum(atom.p.bit_length() + atom.q.bit_length() for atom in value.atoms(sympy.Rational))
    longest = digits + int(2 * bits * math.log10(2))
    number = value.evalf(20, maxn=longest)
    if not number.is_number or number.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return None
    for part in number.as_real_imag():
        if not (part.is_Float or part.is_Rational):
            return None
        # sympy reaches the 20 digits asked for unless the parts cancel as far as it looks; near there it errs.
        smallest = sympy.Float(10) ** -(longest * 3 // 4)
        if part != 0 and (part.is_Rational or (part._prec > _GOOD_BITS and abs(part) > smallest)):
            return False
    return True


def _equal_values(one: Any, other: Any, digits: int = _DIGITS_OF_POINTS) -> bool | None:
    if not one.is_finite or not other.is_finite:
        return bool(one == other) if one.is_number and other.is_number else None
    return _is_zero(one - other, digits)


def _plain(expression: Any) -> Any:
    """Evaluated; unknown functions of given arguments are symbols of their own, odd roots of real numbers real."""
    expression = expression.doit()
    expression = expression.replace(
        lambda part: isinstance(part, AppliedUndef), lambda part: sympy.Symbol(f"<{part}>", real=True)
    )
    return expression.replace(
        _is_odd_root, lambda part: sympy.sign(part.base) ** part.exp.p * abs(part.base) ** part.exp
    )


def _is_odd_root(part: Any) -> bool:
    """Whether it is a power such as `x**(1/3)` of what may be negative: -8 has the real cube root -2."""
    rational = isinstance(part, sympy.Pow) and part.exp.is_Rational and part.exp.q % 2 == 1 and part.exp.q > 1
    return bool(rational and part.base.is_real and not part.base.is_nonnegative)


def _is_small_polynomial(expression: Any) -> bool:
    """A polynomial with rational coefficients that can be expanded in no time."""
    powers = [power.exp for power in expression.atoms(sympy.Pow)]
    return bool(
        all(exponent.is_Integer and abs(exponent) <= 40 for exponent in powers)
        and math.prod(int(abs(exponent)) + 1 for exponent in powers if exponent.is_Integer) <= 10_000
        and not expression.atoms(sympy.NumberSymbol, sympy.I.func)
        and expression.is_polynomial(*expression.free_symbols)
    )


def _value(expression: Any, point: dict[Any, Any]) -> Any:
    """The exact value at a point, None where it is no finite number."""
    try:
        value = expression.xreplace(point)
        value = value if value.is_Rational else value.doit()
    except (ValueError, ArithmeticError, TypeError):  # sympy: a power it cannot factor, an undefined comparison
        return None
    finite = value.is_number and not value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)
    return value if finite and not value.has(*ON_INTEGERS) else None
