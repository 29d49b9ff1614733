r"""Whether two sympy expressions have the same value everywhere, decided by exact values at chosen points.

Numbers are compared to 300 digits more than those in them, so `\sqrt{10^{40}+1}` is not `10^{20}`. Polynomials are
expanded. Anything else is evaluated where it can differ: at small and at far values, next to every number that occurs
in it, and on both sides of where a floor, ceiling, remainder, minimum, maximum, absolute value or root turns. A
variable named i, j, k, m, n, p or q, and one under gcd, lcm, binomial, factorial or mod, is an integer (the latter not
negative); every other one is real, so `\lfloor x\rfloor` is not x, and `\lfloor n\rfloor` is n.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from stepwise.grading.functions import Gcd, Lcm

SECONDS = 5.0
"""Processor time for which points are tried; what is not decided by then is not decided at all."""
MAX_POINTS = 260
_DIGITS_OF_CONSTANTS = 300  # more than the rationals in them have
_DIGITS_OF_POINTS = 60
_GOOD_BITS = 50  # bits: a difference with fewer good ones is 0
_NEEDED = 3  # points at which both sides are real, for real values alone to count
_INTEGER_NAME = re.compile(r"[ijkmnpq](?![A-Za-z])")
_REAL_BASE = ((7, 5), (11, 3), (3, 13), (-5, 7), (13, -11), (-17, -3))
_INTEGER_BASE = (7, 11, 4, -5, 12, -3)
_SMALL = tuple(range(-6, 31))
_FAR = (36, 49, 60, 64, 97, 100, 101, 120, 128, 210, 256)
_FARTHER = (1000, 1024, 10_007, 30_030, 10**6, 10**6 + 3, 10**9 + 7, 10**12 + 39, 6_469_693_230, 10**18 + 9)
_LARGEST_SLOW = 1200  # a value in an exponent or a factorial
_EDGES = (-1, 0, 1, 2)  # values of a floor's argument next to which it is tried


_ON_INTEGERS = (Gcd, Lcm, sympy.binomial, sympy.factorial, sympy.Mod)
_STEPS = (sympy.floor, sympy.ceiling)
_TURNING = (*_ON_INTEGERS, *_STEPS, sympy.Abs, sympy.sign, sympy.Min, sympy.Max)


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
    for point in _points(left, right):
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
    for point in _points(left, right):
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
    """Evaluated, with every unknown function of given arguments as a symbol of its own."""
    expression = expression.doit()
    return expression.replace(lambda part: isinstance(part, AppliedUndef), lambda part: sympy.Symbol(f"<{part}>"))


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
    return value if finite and not value.has(*_ON_INTEGERS) else None


def _points(*expressions: Any) -> Iterator[dict[Any, Any]]:
    """Values for all variables, the telling ones first: bases, special values, a grid of small ones, far ones."""
    symbols = sorted(set().union(*(expression.free_symbols for expression in expressions)), key=str)
    if not symbols:
        yield {}
        return
    integers, natural = _integers(expressions, symbols)
    bases = [_base(symbols, integers, natural, k) for k in range(len(_REAL_BASE))]
    turning = [turn for expression in expressions for turn in _turns(expression)]
    stepping = bool(turning) or any(expression.has(*_TURNING) for expression in expressions)
    slow = any(_is_slow(expression) for expression in expressions)
    constants = _constants(expressions) if stepping else []

    def allowed(point: dict[Any, Any]) -> bool:
        positive = all(point[symbol] >= 0 for symbol in natural)
        return positive and not (slow and any(abs(value) > _LARGEST_SLOW for value in point.values()))

    def everything() -> Iterator[dict[Any, Any]]:
        yield from bases
        for symbol in symbols:
            near = [*constants]
            for base in bases[:3] if len(symbols) > 1 else bases[:1]:
                near += _roots_of(turning, symbol, base)
            for value in _around(near, symbol in integers):
                yield {**bases[0], symbol: value}
                if len(symbols) > 1:
                    yield {**bases[1], symbol: value}
                    yield {other: value if other in integers or symbol not in integers else value + sympy.Rational(1, 3)
                           for other in symbols}  # fmt: skip
        if stepping or integers:
            yield from _grid(symbols, integers)
        for value in (*_FAR, *_FARTHER):
            for sign in (1, -1):
                third = {symbol: 0 if symbol in integers else sympy.Rational(1, 3) for symbol in symbols}
                yield {
                    symbol: sympy.Integer(sign * value * (k + 1)) + third[symbol] for k, symbol in enumerate(symbols)
                }

    yield from itertools.islice(filter(allowed, everything()), MAX_POINTS)


def _integers(expressions: tuple[Any, ...], symbols: list[Any]) -> tuple[set[Any], set[Any]]:
    """The variables that are integers, and those of them that are not negative."""
    natural = set()
    for expression in expressions:
        for part in sympy.preorder_traversal(expression):
            if isinstance(part, _ON_INTEGERS) and all(a.is_Integer for a in part.args if a.is_number):
                natural |= part.free_symbols
    return natural | {symbol for symbol in symbols if _INTEGER_NAME.match(symbol.name)}, natural


def _base(symbols: list[Any], integers: set[Any], natural: set[Any], k: int) -> dict[Any, Any]:
    """The k-th fixed point, of mixed signs from the fourth on."""
    point = {}
    for j, symbol in enumerate(symbols):
        step = j * (1 if k % 2 else -1)
        value = sympy.Rational(*_REAL_BASE[k]) + step * sympy.Rational(3, 17)
        if symbol in integers:
            value = sympy.Integer(_INTEGER_BASE[k] + 3 * step)
        point[symbol] = abs(value) if k < 3 or symbol in natural else value
    return point


def _turns(expression: Any) -> Iterator[Any]:
    """Expressions next to whose zeros `expression` is not smooth."""
    for part in sympy.preorder_traversal(expression):
        if not part.free_symbols:
            continue
        if isinstance(part, sympy.Abs | sympy.sign):
            yield part.args[0]
        elif isinstance(part, sympy.Min | sympy.Max):
            yield from (one - other for one, other in itertools.combinations(part.args[:6], 2))
        elif isinstance(part, (*_STEPS, sympy.Mod)):
            argument = part.args[0] if isinstance(part, _STEPS) else part.args[0] / part.args[1]
            yield from (argument - edge for edge in _EDGES)
        elif isinstance(part, sympy.Pow) and not part.exp.is_Integer and not part.base.is_Symbol:
            yield part.base


def _is_slow(expression: Any) -> bool:
    """Whether a large value of a variable would make a number too large to compute."""
    return any(
        (isinstance(part, sympy.Pow | sympy.exp) and part.exp.free_symbols)
        or isinstance(part, sympy.factorial | sympy.binomial | sympy.Sum | sympy.Product | sympy.gamma)
        for part in sympy.preorder_traversal(expression)
    )


def _constants(expressions: tuple[Any, ...]) -> list[Any]:
    """The integers in the expressions and, where they are not too large, their prime factors."""
    numbers = {abs(int(atom)) for e in expressions for a in e.atoms(sympy.Rational) for atom in (a.p, a.q)}
    large = sorted(number for number in numbers if number > 1)[:12]
    factors = {p for number in large if number < 10**15 for p in sympy.primefactors(number)}
    return [sympy.Integer(number) for number in sorted({*large, *factors})]


def _roots_of(turning: list[Any], symbol: Any, base: dict[Any, Any]) -> list[Any]:
    roots = []
    for turn in turning[:24]:
        if symbol in turn.free_symbols:
            roots += _roots(turn.xreplace({s: value for s, value in base.items() if s != symbol}), symbol)
    return roots


def _roots(expression: Any, symbol: Any) -> list[Any]:
    """Where `expression`, of one variable, is zero, to 20 digits: every root of a polynomial, else sign changes."""
    top = sympy.numer(sympy.together(expression))
    if top.is_polynomial(symbol):
        try:
            return [sympy.Rational(str(root.evalf(20))) for root in sympy.Poly(top, symbol).sqf_part().nroots(n=20)
                    if root.is_real]  # fmt: skip
        except (sympy.PolynomialError, sympy.polys.polyerrors.DomainError, sympy.core.evalf.PrecisionExhausted):
            return []
        except sympy.polys.polyerrors.BasePolynomialError:
            return []
    return _sign_changes(sympy.lambdify(symbol, expression, "mpmath"))


def _sign_changes(function: Any) -> list[Any]:
    import mpmath  # type: ignore[import-untyped]

    def sign(at: Any) -> int | None:
        try:
            value = function(at)
            return None if mpmath.im(value) else int(mpmath.sign(mpmath.re(value)))
        except (ArithmeticError, ValueError, TypeError):
            return None

    scale = [mpmath.mpf(2) ** (k / mpmath.mpf(2)) for k in range(-8, 121)]
    grid = [*(-at for at in reversed(scale)), mpmath.mpf(0), *scale]
    roots = []
    for low, high in itertools.pairwise(grid):
        signs = sign(low), sign(high)
        if signs[1] == 0:
            roots.append(sympy.Rational(str(high)))
        elif signs[0] is not None and signs[1] is not None and signs[0] == -signs[1]:
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if sign(middle) == signs[0] else (low, middle)
            roots.append(sympy.Rational(str(low)))
    return roots


def _around(values: list[Any], integer: bool) -> list[Any]:
    """Each value with its neighbours, no value twice, in order."""
    near: dict[Any, None] = {}
    for value in values:
        whole = sympy.floor(value)
        steps = [
            value - sympy.Rational(1, 7),
            value,
            value + sympy.Rational(1, 7),
            whole - 1,
            whole,
            whole + 1,
            2 * whole,
        ]
        if integer:
            steps = [whole - 1, whole, whole + 1, whole + 2, 2 * whole]
        near.update(dict.fromkeys(steps))
    return list(near)


def _grid(symbols: list[Any], integers: set[Any]) -> Iterator[dict[Any, Any]]:
    """Small values: a line for one variable, up to 100 points for more; reals between the integers as well."""
    width = len(_SMALL) if len(symbols) == 1 else {2: 10, 3: 5}.get(len(symbols), 3)
    start = 0 if len(symbols) == 1 else 4
    shift = [sympy.Rational(0) if symbol in integers else sympy.Rational(1, 2) for symbol in symbols]
    values = [sympy.Integer(value) for value in _SMALL[start : start + width]]
    for row in itertools.islice(itertools.product(values, repeat=len(symbols)), 110):
        yield dict(zip(symbols, row, strict=True))
        if any(shift):
            yield {symbol: value + half for symbol, value, half in zip(symbols, row, shift, strict=True)}
