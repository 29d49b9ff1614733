r"""Where numbers stand in a text, and their exact values: digits, fractions, `\frac12`, 1,234, 50 %, "forty-two"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from stepwise.grading.answers import read
from stepwise.grading.text import Unreadable, clean
from stepwise.grading.units import spelled

_ONES_TEXT = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_ONES = _ONES_TEXT.split()
_WORD = "|".join([*_ONES, "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million"])
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12} | {
    f"{word}th": value for value, word in enumerate(_ONES) if value > 3
}
_PART = "|".join(sorted(_PARTS, key=len, reverse=True))
_SPELLED = re.compile(
    rf"\b(?:(?P<sign>negative|minus)\s+)?(?:(?P<whole>(?:{_WORD})(?:(?:-|\s+(?:and\s+)?)(?:{_WORD}))*)"
    rf"(?:(?P<mixed>\s+and\s+a(?:n|\s+)?\s*)(?P<rest>half|third|quarter)|[-\s]+(?P<part>{_PART})s?)?"
    rf"|(?P<single>an?|one)\s+(?P<lone>{_PART})|(?P<half>half))\b",
    re.IGNORECASE,
)
_INTEGER = r"\d{1,3}(?:(?:,|\{,\}|\\,|\\!)\d{3})+(?!\d)|\d+"
_FRACTION = r"\\[dtc]?frac\s*(?:\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d\s*\d|\d\s*\{\s*\d+\s*\})"
_WRITTEN = re.compile(
    rf"(?P<sign>[-−–]\s?)?(?P<number>\d+\s*{_FRACTION}|{_FRACTION}|\d+ \d+/\d+(?![\d/])|\d*[½⅓⅔¼¾⅕⅛]"
    rf"|(?:{_INTEGER})(?:\.\d+)?(?:/\d+(?![\d/.]))?|\.\d+)(?P<percent>\s*(?:\\?%|per\s?cent\b))?"
)
_AFTER_VALUE = re.compile(r"[\w)\]}!%°]\s*\Z")


@dataclass(frozen=True)
class Mention:
    """One number in a text, from `start` to `end` (characters). A percentage has two values: 50 % is 50 and 1/2.

    `decimals`: how many digits stand behind the point, where they are written.

    >>> [(mention.start, sorted(mention.values)) for mention in mentions("half of 12 is 6")]
    [(0, [Fraction(1, 2)]), (8, [Fraction(12, 1)]), (14, [Fraction(6, 1)])]
    """

    start: int
    end: int
    values: frozenset[Fraction]
    decimals: int = 0


def mentions(text: str) -> list[Mention]:
    """The numbers of `text` in order; numbers over the grader's caps are left out.

    >>> [sorted(mention.values) for mention in mentions("1,234 and one half")]
    [[Fraction(1234, 1)], [Fraction(1, 2)]]
    """
    return sorted([*_written(text), *_spelled(text)], key=lambda m: (m.start, m.end))


def _written(text: str) -> Iterator[Mention]:
    for match in _WRITTEN.finditer(text):
        start, plain = match.start(), match["number"]
        before = text[max(0, start - 8) : start]
        if before[-1:].isdigit() or (before[-1:] == "." and before[-2:-1].isdigit()):
            continue
        # A sign between two values is a subtraction, but "is -3" has a negative number.
        binary = bool(_AFTER_VALUE.search(before)) and (
            before[-1:] != " " or match["sign"] != (match["sign"] or "")[:1]
        )
        if match["sign"] and (binary or (match["sign"][-1:] == " " and _AFTER_VALUE.search(before))):
            start, sign = match.start("number"), 1
        else:
            sign = -1 if match["sign"] else 1
        value = _value(plain)
        if value is None:
            continue
        values = {sign * value} | ({sign * value / 100} if match["percent"] else set())
        yield Mention(start, match.end(), frozenset(values), len(plain.partition(".")[2]) if "/" not in plain else 0)


@lru_cache(maxsize=4096)
def _value(plain: str) -> Fraction | None:
    """The number as the grader reads it, None where it is over the grader's caps."""
    try:
        return read(clean(plain, "prediction"), "prediction").value
    except Unreadable:
        return None


def _spelled(text: str) -> Iterator[Mention]:
    for match in _SPELLED.finditer(text):
        part = (match["lone"] or match["half"] or match["rest"] or match["part"] or "").lower()
        share = Fraction(1, _PARTS[part]) if part else Fraction(1)
        value: Fraction | None = Fraction(1)
        if match["whole"]:  # as the grader reads it; "a hundred" is found without its article
            value = spelled(match["whole"])
            value = spelled(f"one {match['whole']}") if value is None else value
        if value is None:
            continue
        value = value + share if match["rest"] else value * share
        start, sign = match.start(), -1 if match["sign"] else 1
        if sign < 0 and match["sign"].lower() == "minus" and re.search(r"\d\s*\Z", text[max(0, start - 8) : start]):
            start, sign = match.start("whole"), 1
        yield Mention(start, match.end(), frozenset({sign * value}))


def monomial(text: str) -> tuple[Fraction, tuple[str, ...]] | None:
    r"""`c \sqrt{n} x y / d` as (its square with its sign, its letters in order), None for anything else.

    `text` is an answer cleaned by the grader. So `2\sqrt{12}` and `4\sqrt{3}` are one value, as `14\pi` and
    `\pi \cdot 14` are.

    >>> monomial("2\\sqrt{3}") == monomial("\\sqrt{12}") != monomial("2")
    True
    """
    square, letters, inverse, at = Fraction(1), [], False, 0
    text = re.sub(r"\\frac\s*\{(-?[^{}]*(?:\{\d+\})?)\}\s*\{(\d+)\}", r"\1/\2", text.replace(" ", ""))
    if text[:1] == "-":
        text, square = text[1:], Fraction(-1)
    while at < len(text):
        match = _FACTOR.match(text, at)
        if match is None or match.end() == at:
            return None
        at = match.end()
        if match["times"]:
            inverse = match["times"] == "/"
        elif match["root"] or match["number"]:
            value = Fraction(match["root"]) if match["root"] else Fraction(match["number"]) ** 2
            if inverse and value == 0:
                return None
            square = square / value if inverse else square * value
            inverse = False
        elif inverse:
            return None
        else:
            letters.append(match["letter"])
    return square, tuple(sorted(letters))


_FACTOR = re.compile(
    r"(?P<times>\\cdot|\\times|[*/])|\\sqrt\{(?P<root>\d{1,9})\}|(?P<number>\d{1,9}(?:\.\d{1,9})?)"
    r"|(?P<letter>\\[a-z]+|[A-Za-z])"
)


def about(form: tuple[Fraction, tuple[str, ...]]) -> float | None:
    r"""The size of a `monomial` whose only letters are `\pi`, else None.

    >>> round(about((Fraction(4), ("\\pi",))), 2)  # 2 pi
    6.28
    """
    square, letters = form
    if any(letter != "\\pi" for letter in letters) or abs(square.numerator) > 10**15:
        return None
    return math.copysign(math.sqrt(abs(square)), square) * math.pi ** len(letters)
