r"""Exact rational arithmetic on the part of LaTeX that answers are mostly made of.

Integers, decimals, `\frac`, mixed numbers, `+ - * / ^ !`, `\mod`, brackets. Everything stays a `Fraction`, so `1/2^99`
and `1/2^98` differ and 0.1 is one tenth. Sizes are capped before they are computed.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

MAX_EXPONENT = 10_000
MAX_BITS = 100_000
MAX_FACTORIAL = 5_000
_TOKEN = re.compile(r"\s*(\d+\.\d*|\.\d+|\d+|\\frac|\\cdot|\\times|\\div|\\mod|!!?|[-+*/^(){}])")
_SIGNS = {"*": "*", "\\cdot": "*", "\\times": "*", "/": "/", "\\div": "/", "\\mod": "mod"}
_CLOSING = {"(": ")", "{": "}"}
_BY_HAND = re.compile(r"(-?)\s*(\d+)\s+(\d+)/(\d+)")
_SCIENTIFIC = re.compile(r"(-?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d{1,9})")


class TooBig(Exception):
    """A power, factorial or product is over the caps above.

    >>> try:
    ...     evaluate("9^9^9")
    ... except TooBig as error:
    ...     print(error)
    an exponent over 10000
    """


class _NotRational(Exception):
    """The text is not arithmetic on rational numbers; algebra may still make sense of it."""


def evaluate(text: str) -> Fraction | None:
    """The exact value of `text`, None where it is not plain arithmetic; raises TooBig over the caps.

    >>> evaluate("1/3 + 0.5"), evaluate("2^10"), evaluate("2x")
    (Fraction(5, 6), Fraction(1024, 1), None)
    """
    text = text.strip()
    if mixed := _BY_HAND.fullmatch(text):
        sign, whole, top, bottom = mixed.groups()
        if int(top) < int(bottom):
            return (Fraction(int(whole)) + Fraction(int(top), int(bottom))) * (-1 if sign else 1)
    if scientific := _SCIENTIFIC.fullmatch(text):
        return _checked(Fraction(scientific[1]) * _power(Fraction(10), Fraction(int(scientific[2]))))
    tokens, at = [], 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return None
        tokens.append(token[1])
        at = token.end()
    parser = _Parser(tokens)
    try:
        value = parser.sum()
    except _NotRational:
        return None
    return value if parser.peek() == "" else None


def is_rounded(value: Fraction, text: str) -> bool:
    """Whether a decimal is what a value can be rounded to: within one in its last place, or one in a hundred.

    >>> is_rounded(Fraction(3, 7), "0.43"), is_rounded(Fraction(3, 7), "4")
    (True, False)
    """
    rounded = evaluate(text)
    last = Fraction(1, 10 ** len(text.strip().partition(".")[2]))
    return rounded is None or abs(value - rounded) <= max(last, abs(rounded) / 100)


def _checked(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooBig(f"a number of more than {MAX_BITS} bits")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or (base == 0 and exponent < 0):
        raise _NotRational
    if abs(exponent) > MAX_EXPONENT:
        raise TooBig(f"an exponent over {MAX_EXPONENT}")
    if max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent) > 2 * MAX_BITS:
        raise TooBig(f"a power of more than {MAX_BITS} bits")
    return _checked(base ** int(exponent))


class _Parser:
    """Recursive descent; its depth is bounded by the caps on nesting and powers in `text.py`."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if token == "" or (expected and token != expected):
            raise _NotRational
        self.at += 1
        return token

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = _checked(value + self.product() if self.take() == "+" else value - self.product())
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while token := self.peek():
            if token in _SIGNS:
                self.take()
                other = self.signed()
                if _SIGNS[token] == "mod":
                    value -= other * math.floor(self.divide(value, other))
                else:
                    value = self.divide(value, other) if _SIGNS[token] == "/" else value * other
            elif token in ("(", "\\frac"):
                value *= self.power()
            else:
                break
            _checked(value)
        return value

    @staticmethod
    def divide(top: Fraction, bottom: Fraction) -> Fraction:
        if bottom == 0:
            raise _NotRational
        return top / bottom

    def signed(self) -> Fraction:
        sign = 1
        while self.peek() in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        return sign * self.power()

    def power(self) -> Fraction:
        base = self.factorial()
        if self.peek() != "^":
            return base
        self.take()
        return _power(base, self.signed())

    def factorial(self) -> Fraction:
        value = self.primary()
        while self.peek() in ("!", "!!"):
            step = len(self.take())
            if value.denominator != 1 or value < 0:
                raise _NotRational
            if value > MAX_FACTORIAL:
                raise TooBig(f"a factorial over {MAX_FACTORIAL}!")
            value = Fraction(math.prod(range(int(value), 0, -step)))  # `7!!` is 7 * 5 * 3 * 1
        return value

    def primary(self) -> Fraction:
        following = self.take()
        if following in _CLOSING:
            value = self.sum()
            self.take(_CLOSING[following])
            return value
        if following == "\\frac":
            return self.divide(self.primary(), self.primary())
        if following[0].isdigit() or following[0] == ".":
            return self.mixed(following)
        raise _NotRational

    def mixed(self, token: str) -> Fraction:
        r"""A literal and the proper fraction behind it: `1\frac{4}{5}` is 9/5, while `2\frac{7}{2}` is a product."""
        ahead = self.tokens[self.at : self.at + 7]
        if token.isdigit() and [*ahead[:2], *ahead[3:5], *ahead[6:]] == ["\\frac", "{", "}", "{", "}"]:
            top, bottom = ahead[2], ahead[5]
            if top.isdigit() and bottom.isdigit() and int(top) < int(bottom):
                self.at += 7
                return Fraction(int(token)) + Fraction(int(top), int(bottom))
        return Fraction(token)
