"""Values of variables at which two expressions can differ, and which variables are integers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import sympy

from stepwise.grading.functions import Gcd, Lcm

MAX_POINTS = 260
ON_INTEGERS = (Gcd, Lcm, sympy.binomial, sympy.factorial, sympy.Mod)
"""Functions whose variables are integers."""
_INTEGER_NAME = re.compile(r"[ijkmnpq](?![A-Za-z])")
_REAL_BASE = ((7, 5), (11, 3), (3, 13), (-5, 7), (13, -11), (-17, -3))
_INTEGER_BASE = (7, 11, 4, -5, 12, -3)
_SMALL = tuple(range(-6, 31))
_FAR = (36, 49, 60, 64, 97, 100, 101, 120, 128, 210, 256)
_FARTHER = (1000, 1024, 10_007, 30_030, 10**6, 10**6 + 3, 10**9 + 7, 10**12 + 39, 6_469_693_230, 10**18 + 9)
_LARGEST_SLOW = 1200  # a value in an exponent or a factorial
_LARGEST_DIVISOR = 2000  # of two arguments of a gcd, up to which its first value is searched for
_EDGES = (-1, 0, 1, 2)  # values of a floor's argument next to which it is tried
_STEPS = (sympy.floor, sympy.ceiling)
_TURNING = (*ON_INTEGERS, *_STEPS, sympy.Abs, sympy.sign, sympy.Min, sympy.Max)


def points(*expressions: Any) -> Iterator[dict[Any, Any]]:
    """Values for all variables, the telling ones first: bases, special values, a grid of small ones, far ones.

    Example:
        >>> next(points(sympy.Symbol("n") + 1))
        {n: 7}
    """
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
            near = [*constants, *_common_divisors(expressions, symbol)]
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
            if isinstance(part, ON_INTEGERS) and all(a.is_Integer for a in part.args if a.is_number):
                natural |= part.free_symbols & set(symbols)  # those that a sum binds have no values
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
        elif isinstance(part, sympy.Min | sympy.Max | Gcd | Lcm):
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


def _common_divisors(expressions: tuple[Any, ...], symbol: Any) -> Iterator[Any]:
    """For each prime power that may divide two arguments of a gcd or lcm, the first value at which it does."""
    parts = {part for e in expressions for part in e.atoms(Gcd, Lcm) if part.free_symbols == {symbol}}
    for one, other in (
        pair for part in sorted(parts, key=str)[:6] for pair in itertools.combinations(part.args[:4], 2)
    ):
        if not all(isinstance(arg, sympy.Expr) and arg.is_polynomial(symbol) for arg in (one, other)):
            continue
        shared = sympy.resultant(one, other, symbol)
        if not shared.is_Integer or not 1 < abs(shared) < 10**15:
            continue
        values = [sympy.lambdify(symbol, arg, "math") for arg in (one, other)]
        for prime, power in sympy.factorint(abs(shared)).items():
            for divisor in (prime**k for k in range(1, power + 1) if prime**k <= _LARGEST_DIVISOR):
                yield from (sympy.Integer(n) for n in itertools.islice(
                    (n for n in range(divisor) if not any(value(n) % divisor for value in values)), 1))  # fmt: skip


def _roots_of(turning: list[Any], symbol: Any, base: dict[Any, Any]) -> list[Any]:
    roots = []
    for turn in turning[:24]:
        if symbol in turn.free_symbols:
            roots += _roots(turn.xreplace({s: value for s, value in base.items() if s != symbol}), symbol)
    return roots


def _roots(expression: Any, symbol: Any) -> list[Any]:
    """Where `expression`, of one variable, is zero, to 20 digits: every root of a polynomial, else sign changes."""
    if expression.has(Gcd, Lcm):
        return []
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
