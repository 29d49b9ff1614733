r"""Amounts in several units that are one value: "2 hours 30 minutes", `5\text{ ft }3\text{ in}`, "1 lb 4 oz".

Two of them are equal where their values are, and here alone units are converted: 2 hours 30 minutes are 150 minutes.
A bare number says no unit, so whether it is the same value cannot be told. With a comma between them ("3 km, 200 m")
they may be several answers, and so may be metric ones with "and": such a list equals other amounts in several units,
and cannot be told from a single one that is their sum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from stepwise.grading.exact import TooBig, evaluate
from stepwise.grading.units import spelled

# How many of the smallest unit each one is, the largest first. The first scale that fits says what m, ' and " mean.
_SCALES: tuple[dict[str, int], ...] = (
    {"week": 604800, "day": 86400, "h": 3600, "min": 60, "s": 1},
    {"decade": 120, "year": 12, "yr": 12, "month": 1},
    {"mi": 63360, "yd": 36, "ft": 12, "in": 1},
    {"lb": 16, "oz": 1},
    {"km": 10**6, "m": 1000, "cm": 10, "mm": 1},
    {"kg": 10**6, "g": 1000, "mg": 1},
    {"l": 1000, "ml": 1},
    {"gal": 16, "quart": 4, "pint": 2, "cup": 1},
    {"dollar": 100, "cent": 1},
    {"euro": 100, "cent": 1},
    {"pound sterling": 100, "penny": 1},
    {"degree": 3600, "minute of arc": 60, "second of arc": 1},
)
_NAMES = {
    "week": "wk", "h": "hr hour", "min": "m minute", "s": "sec second", "yr": "y", "mi": "mile",
    "yd": "yard", "ft": "foot feet '", "in": "inch \" ''", "lb": "pound", "oz": "ounce", "km": "kilometer kilometre",
    "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre", "kg": "kilogram kilo",
    "g": "gram gramme", "mg": "milligram", "l": "L liter litre", "ml": "mL milliliter millilitre", "gal": "gallon",
    "quart": "qt", "pint": "pt", "dollar": "buck", "pound sterling": "pound £", "penny": "pence pennies p",
    "degree": "° deg",
    "minute of arc": "min minute '", "second of arc": "sec second \" ''", "cent": "¢", "euro": "€",
}  # fmt: skip
_LONG = {scale_unit: {scale_unit, *_NAMES.get(scale_unit, "").split()} for scale in _SCALES for scale_unit in scale}
_FORMS = [
    {
        form: unit
        for unit in scale
        for name in _LONG[unit]
        for form in ((name, f"{name}s", f"{name}es") if len(name) > 1 else (name,))  # 3 ms are no minutes
    }
    for scale in _SCALES
]
_ANY_FORM = "|".join(re.escape(form) for form in sorted({f for forms in _FORMS for f in forms}, key=len, reverse=True))
_PART = re.compile(
    r"\s*(?P<amount>(?:[^,;=<>+*^]|,(?=\d{3}))+?)[\s-]*(?<![A-Za-z])"
    rf"(?P<unit>{_ANY_FORM})(?![A-Za-z])\.?\s*(?P<between>,?\s*and\b|,|&|$|(?=[\d\\a-z]))"
)
_METRIC = ("km", "kg", "l")


@dataclass(frozen=True)
class Compound:
    """An amount in several units of one scale: `scale` names the units in terms of the smallest, `total` counts it.

    `listed`: whether it may be several answers as well.

    >>> amount = read_compound("2 hours 30 minutes")
    >>> amount.total, amount.single(Fraction(150), "min")
    (Fraction(9000, 1), Fraction(9000, 1))
    """

    scale: dict[str, int]
    total: Fraction
    listed: bool

    def single(self, value: Fraction, unit: str) -> Fraction | None:
        """An amount in one unit, counted in the smallest of this scale; None where the unit is of another.

        >>> read_compound("5 ft 3 in").single(Fraction(2), "kg") is None
        True
        """
        return value * self.scale[unit] if unit in self.scale else None

    def units_of(self, value: Fraction) -> list[str]:
        """The units in which `value` would be this amount.

        >>> read_compound("5 ft 3 in").units_of(Fraction(63))
        ['in']
        """
        return [unit for unit, factor in self.scale.items() if value * factor == self.total]


def read_compound(text: str) -> Compound | None:
    r"""The amount in two units or more that a cleaned text says; None for any other text.

    Each unit must be smaller than the one before it, and only the last amount may be a fraction.

    >>> read_compound(r"5\text{ ft }3\text{ in}").total, read_compound("5 apples 3 pears")
    (Fraction(63, 1), None)
    """
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).replace("^{\\prime}", "'").replace("^\\prime", "'")
    plain = re.sub(r"(?<![A-Za-z\\])[A-Z][a-z]{2,}", lambda word: word[0].lower(), plain).strip()
    parts: list[tuple[Fraction, str]] = []
    between: list[str] = []
    at = 0
    while at < len(plain):
        part = _PART.match(plain, at)
        amount = _amount(part["amount"]) if part else None
        if part is None or amount is None or part.end() == at:
            return None
        parts.append((amount, part["unit"]))
        between.append(part["between"].strip())
        at = part.end()
    if len(parts) < 2 or between[-1]:
        return None
    for scale, forms in zip(_SCALES, _FORMS, strict=True):
        units = [forms.get(unit) for _, unit in parts]
        factors = [scale[unit] for unit in units if unit]
        falls = len(factors) == len(parts) and all(a > b for a, b in pairwise(factors))
        if not falls or any(amount.denominator != 1 for amount, _ in parts[:-1]):
            continue
        joined = " ".join(between)
        listed = "and" not in joined and "," in joined
        listed = listed or ("and" in joined and any(unit in scale for unit in _METRIC))
        return Compound(
            scale, sum((a * f for (a, _), f in zip(parts, factors, strict=True)), start=Fraction(0)), listed
        )
    return None


def _amount(text: str) -> Fraction | None:
    try:
        value = evaluate(re.sub(r"(?<=\d),(?=\d{3})", "", text).strip())
    except TooBig:
        return None
    value = spelled(text) if value is None else value
    return value if value is not None and value >= 0 else None
