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

_SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12} | {
    f"{word}th": value for word, value in _SMALL.items() if value > 3
}
_WORD = "|".join([*_SMALL, *_TENS, *_SCALES])
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
        if match["half"]:
            value = Fraction(1, 2)
        elif match["single"]:
            value = Fraction(1, _PARTS[match["lone"].lower()])
        else:
            value = Fraction(_count(match["whole"].lower()))
            if match["rest"]:
                value += Fraction(1, _PARTS[match["rest"].lower()])
            elif match["part"]:
                value /= _PARTS[match["part"].lower()]
        start, sign = match.start(), -1 if match["sign"] else 1
        if (
            match["sign"]
            and match["sign"].lower() == "minus"
            and re.search(r"\d\s*\Z", text[max(0, start - 8) : start])
        ):
            start, sign = match.start("whole"), 1
        yield Mention(start, match.end(), frozenset({sign * value}))


def _count(words: str) -> int:
    total = current = 0
    for word in re.split(r"[-\s]+", words):
        if word in _SCALES:
            current = max(current, 1) * _SCALES[word]
            if word != "hundred":
                total, current = total + current, 0
        elif word != "and":
            current += _SMALL.get(word, 0) + _TENS.get(word, 0)
    return total + current


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
    r"""The size of a `monomial` whose only letters are `\pi`, else None."""
    square, letters = form
    if any(letter != "\\pi" for letter in letters) or abs(square.numerator) > 10**15:
        return None
    return math.copysign(math.sqrt(abs(square)), square) * math.pi ** len(letters)
