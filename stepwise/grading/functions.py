"""Functions that sympy would take apart too early."""

from __future__ import annotations

import math
from typing import Any

import sympy


class Gcd(sympy.Function):  # type: ignore[misc]
    """The greatest common divisor, left as it is until its arguments are integers (sympy's own takes symbols apart).

    >>> Gcd(12, 18), Gcd(sympy.Symbol("n"), 4)
    (6, Gcd(n, 4))
    """

    is_integer = True

    @classmethod
    def eval(cls, *args: Any) -> Any:
        """The value for integers, None (sympy: leave it) for anything else."""
        return sympy.Integer(math.gcd(*map(int, args))) if all(arg.is_Integer for arg in args) else None


class Lcm(sympy.Function):  # type: ignore[misc]
    """The least common multiple, likewise.

    >>> Lcm(4, 6)
    12
    """

    is_integer = True

    @classmethod
    def eval(cls, *args: Any) -> Any:
        """The value for integers, None (sympy: leave it) for anything else."""
        return sympy.Integer(math.lcm(*map(int, args))) if all(arg.is_Integer for arg in args) else None
