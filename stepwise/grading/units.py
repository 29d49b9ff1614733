r"""The unit at the end (or the currency sign at the start) of an answer.

An omitted unit is accepted, two different known units are not, and nothing is converted: "5 cm" equals "5" and not
"5 m"; "10%" equals "10" and not "0.1"; "90°" equals "90"; a base, as in `52_8`, counts as a unit. Unknown words behind
a number are dropped ("5 apples" equals "5").
"""

from __future__ import annotations

import re

from stepwise.grading.exact import TooBig, evaluate

_NAMES = {
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "mg": "milligram milligrams",
    "g": "gram grams",
    "kg": "kilogram kilograms",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "ton": "tons",
    "ml": "mL milliliter milliliters",
    "l": "L liter liters litre litres",
    "s": "sec second seconds",
    "min": "minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years",
    "cent": "cents ¢",
    "dollar": "dollars usd USD $",
    "euro": "euros EUR €",
    "pound sterling": "£ GBP",
    "percent": "% percents",
    "degree": "° degrees deg",
    "radian": "radians rad",
    "mph": "",
    "am": "AM",
    "pm": "PM",
    "unit": "units",
}
_KNOWN = {name: unit for unit, names in _NAMES.items() for name in (unit, *names.split())}
_ANY = {"unit"}  # "5 units" says nothing that another unit could contradict
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cubed": "^3"}
_CURRENCY = re.compile(r"(-?)\s*([$€£])\s*(?=[-\d.\\])")
_SIGN = re.compile(r"\s*([%°$€£¢])$")
_TEXT = re.compile(r"\s*\\text\s*\{\s*([^{}\d]*?)\s*\}\s*(?:\^\s*\{?\s*([23])\s*\}?)?$")
_WORDS = re.compile(r"(\s*)([A-Za-z][A-Za-z. /-]*?)\s*(?:\^\s*\{?\s*([23])\s*\}?)?$")
_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])[^°]*°$")  # belongs to the function, not to the answer
_BASE_NAMES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_BASE = re.compile(rf"(-?\d+)_(?:\{{\s*)?(?:\\text\s*\{{\s*)?(\d+|{'|'.join(_BASE_NAMES)})\s*\}}*$")


def split_unit(text: str) -> tuple[str, str]:
    """`text` without its unit, and the unit's one name: "" where there is none or it is unknown."""
    text = text.strip()
    if base := _BASE.fullmatch(text):
        return base[1], f"base {_BASE_NAMES.index(base[2]) + 2 if base[2] in _BASE_NAMES else base[2]}"
    if currency := _CURRENCY.match(text):
        rest, unit = split_unit(currency[1] + text[currency.end() :])
        return rest, unit if unit == "cent" else _KNOWN[currency[2]]
    if _ANGLE.search(text):
        return text, ""
    if (sign := _SIGN.search(text)) and sign.start() > 0:
        return text[: sign.start()], _KNOWN[sign[1]]
    if (words := _TEXT.search(text)) and words.start() > 0:
        return text[: words.start()], _canonical(words[1], words[2])
    if (bare := _WORDS.search(text)) and bare.start() > 0 and "\\" not in text[bare.start() :]:
        rest, name = text[: bare.start()], bare[2]
        known = _canonical(name, bare[3])
        if _is_number(rest) and (bare[1] or len(name) > 1) and (known or len(name.split()[0]) > 2):
            return rest, known
        if known and len(name) > 1 and rest[-1] in ")}":
            return rest, known
    return text, ""


def compatible(one: str, other: str) -> bool:
    """False where both units are known and differ."""
    return not one or not other or one == other or one in _ANY or other in _ANY


def _canonical(name: str, power: str | None) -> str:
    words = name.replace(".", "").split()
    suffix = f"^{power}" if power else ""
    kept = []
    for word in words:
        if word.lower() in _POWERS:
            suffix = _POWERS[word.lower()]
        else:
            kept.append(word)
    unit = _KNOWN.get(" ".join(kept)) or _KNOWN.get(" ".join(kept).lower(), "")
    return unit + suffix if unit and unit not in _ANY else unit


def _is_number(text: str) -> bool:
    try:
        return evaluate(text.replace(",", "")) is not None
    except TooBig:
        return True
