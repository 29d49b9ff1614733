r"""Is the arithmetic that a step states true?

A critic that is told where an attempt goes wrong may write the right result behind a false equation ("So Max owns
10 / 2 = 30."). Guided success does not see it, since whoever continues follows the number that is stated.

Every equation between numbers is evaluated exactly: `a op b = c`, chains such as `a + b + c = d = e`, decimals,
fractions, percentages, powers, `\times`, `\cdot`, `\div`, `\frac`, thousands separators; words behind a number are
taken for its unit. An equation is false only where no fair reading of it is true:
1. A result with decimals may be rounded or cut in its last digit, and so may an operand with two or more decimals.
   A whole result may be rounded only where the sentence says so ("about", "round").
2. A percentage is 50 or 1/2, whichever makes it true, and 1.5 million is 1.5 or 1,500,000.
3. `2 * 3 = 6 + 4 = 10` is two sums written in one.
4. Different units of one kind ("1/2 hour + 5 minutes = 35 minutes") are not converted: not judged.
Not judged either: letters, functions, approximation signs, modular arithmetic, numbers that stand alone on both sides
("1 dozen = 12"), an expression that words go on with ("5 more than 2 * 3 = 11"), what a sentence itself calls false.

Pure: no model, no process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from stepwise.interventions.checks.expressions import UNITS, Side, equations

_ROUNDED = re.compile(
    r"\b(?:about|approx\w*|around|roughly|round\w*|nearly|almost|nearest|estimat\w*|whole|full|remainder|quotient)\b|[≈~]|\\approx"
)
_DENIED = re.compile(
    r"\b(?:contradict\w*|impossible|absurd|false|incorrect\w*|wrong\w*|mistake\w*|error|not|cannot|doesn't|isn't"
    r"|instead|mod|modulo|base)\b|\\p?mod|\\bmod|\\neq|≠|\\equiv|≡"
)
_SENTENCE = re.compile(r"(?<![\d.])[.;?](?=\s)|(?<=\d)\.(?=\s+[A-Z])|\n|\\\\")
_TIDIED = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"(?m)^[ \t]*(?:[-*•]|\d+[.)])[ \t]+", ""),  # the mark of an item in a list
        (r"<<[^<>]*>>", ""),  # the calculator's notes of GSM8K
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|hspace\{[^{}]*\})(?![A-Za-z])", ""),
        (r"\\[\[\]]|\$\$", "\n"),
        (r"\\(?:text|textbf|mathrm|mathbf|textit|operatorname|mbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\boxed\s*\{([^{}]*)\}", r" \1 "),
        (r"(?<=\d)(?:,|\{,\}|\\,|\\!|,\\!)(?=\d{3}(?!\d))", ""),
        (r"\\(?:[(),!;:]|quad\b|qquad\b)|\\ |\\(?=%)", " "),
        (r"\\\$|[$€£]", " $ "),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])|[×·⋅∙]|(?<=\d)\*\*(?=\d)(?!\d+\*\*)", " * "),
        (r"\*\*|__", " "),  # bold
        (r"\\div(?![A-Za-z])|÷", " / "),
        (r"[−–]", "-"),
        (r"²", "^2"),
        (r"³", "^3"),
        (r"½", "(1/2)"),
        (r"¼", "(1/4)"),
        (r"¾", "(3/4)"),
        (r"(?<=[\d)])(\s*)[xX]\1(?=[\d($])", " * "),
        (r"(?<=[\d)%]) (?:multiplied by|times) (?=[\d($])", " * "),
        (r"(?<=[\d)%]) divided by (?=[\d($])", " / "),
        (r"(?<=[\d)%]) plus (?=[\d($])", " + "),
        (r"(?<=[\d)%]) minus (?=[\d($])", " - "),
        (r"(?<=%) of (?=[\d($ ])|(?<=/\d) of (?=[\d($ ])", " * "),
        (r"(?<=/ )(\d+/\d+)(?![\d/])", r"(\1)"),
        (r"(?<![\d/.])(\d{1,6}) (\d{1,3}/\d{1,3})(?![\d/.])", r"(\1+\2)"),
    )
)


@dataclass(frozen=True)
class FalseEquation:
    """One equation that does not hold: as it stands in the text, tidied, and the exact values of its two sides.

    Example:
        >>> FalseEquation("2 + 2 = 5", Fraction(4), Fraction(5)).right
        Fraction(5, 1)
    """

    text: str
    left: Fraction
    right: Fraction


def false_equations(text: str) -> list[FalseEquation]:
    """The equations of `text` that are false, in order; [] where all that can be judged hold.

    >>> [equation.text for equation in false_equations("So 3 + 4 = 7. Then Max owns 10 / 2 = 30.")]
    ['10 / 2 = 30']
    """
    false = []
    for sentence in _SENTENCE.split(_tidied(text)):
        if "=" not in sentence or _DENIED.search(sentence):
            continue
        rounded = bool(_ROUNDED.search(sentence))
        for shown, left, right, run_on in equations(sentence):
            values = _judge(left, right, run_on=run_on, rounded=rounded)
            if values is not None:
                false.append(FalseEquation(shown, *values))
    return false


def _judge(left: Side, right: Side, *, run_on: bool, rounded: bool) -> tuple[Fraction, Fraction] | None:
    """The values of the two sides where no reading of them makes them equal, else None."""
    kinds = [UNITS[unit] for unit in left.units | right.units if unit in UNITS]
    if len(kinds) > len(set(kinds)):
        return None
    readings = list(product((True, False), repeat=2))
    first: tuple[Fraction, Fraction] | None = None
    for (left_percent, left_scaled), (right_percent, right_scaled) in product(readings, repeat=2):
        a, b = left.value(left_percent, left_scaled), right.value(right_percent, right_scaled)
        if a is None or b is None:
            return None
        first = first or (a, b)
        slack = _slack(left, a, left_percent, left_scaled)
        slack += _unit(right, right_percent, right_scaled, rounded) or _slack(right, b, right_percent, right_scaled)
        if a == b or abs(a - b) < slack:
            return None
    if run_on and len(right.numbers) > 1 and _running(left, right):
        return None
    return first


def _running(left: Side, right: Side) -> bool:
    """Whether the right side begins with the result of the left one, as in `2 * 3 = 6 + 4 = 10`."""
    begun = Side((right.numbers[0],))
    return _judge(left, begun, run_on=False, rounded=False) is None


def _unit(side: Side, percent: bool, scaled: bool, rounded: bool) -> Fraction:
    """One unit of the last digit of a result that is written as one number and may be rounded there, else 0."""
    if len(side.pieces) > 1:
        return Fraction(0)
    number = side.numbers[0]
    if not (number.decimals or rounded or number.percent or (scaled and number.scale > 1)):
        return Fraction(0)
    size = Fraction(1, 10**number.decimals)
    return size * (number.scale if scaled else 1) / (100 if percent and number.percent else 1)


def _slack(side: Side, value: Fraction, percent: bool, scaled: bool) -> Fraction:
    """How far rounded operands (two or more decimals) can carry the value, in all."""
    total = Fraction(0)
    for at, number in enumerate(side.numbers):
        if number.decimals >= 2:
            moved = side.value(percent, scaled, at)
            total += 0 if moved is None else abs(moved - value)
    return total


def _tidied(text: str) -> str:
    """`text` with one way to write each operation, and without what says nothing."""
    for pattern, put in _TIDIED:
        text = pattern.sub(put, text)
    return text
