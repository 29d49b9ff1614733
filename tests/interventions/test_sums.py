r"""Which equations of a step are called false, and which are left alone."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest

from stepwise.interventions.checks.candidates import check_sums, survivors
from stepwise.interventions.checks.leaks import LeakVerdict
from stepwise.interventions.checks.sums import false_equations
from stepwise.interventions.rows import Candidate, Made

TRUE = (
    "So 3 + 4 = 7.",
    r"\(18 - 6 = 12\) flamingos are left",
    r"$\frac{1}{3}\times 18 = 6$",
    r"\[ \dfrac12 \cdot 10 = 5 \]",
    "2 boys/girl * 6 girls = <<2*6=12>>12 boys in the park.",
    "12 boys + 6 girls = 18 kids",
    "80,000*1.5=$120,000",
    r"1{,}000 \div 8 = 125",
    "20% of 50 = 10",
    "3/4 * 100 = 75%",
    "50% + 25% = 75%",
    "1/3 = 33%",
    "$1.5 million / 3 = $500,000",
    "2 x 3 = 6 and 2^3 = 8 and 5! = 120",
    "3 1/2 + 1 = 4.5",
    r"2\frac{1}{2} + 1 = 3.5",
    "16 - 3 - 4 = 9",
    "2(3) + 1 = 7",
    "-3 + 5 = 2",
    "7.5 / 1/2 = 15",
    "- 3 + 5 = 8",  # an item of a list
    "2. 3 + 5 = 8",
    "$350 000 x 5/100 = $17500",
)
ROUNDED = (
    "10/3 = 3.33",
    "20/3 = 6.66",
    "20/3 = 6.67",
    "3.33 * 3 = 10",
    r"10/3 \approx 4",
    "10/3 ≈ 3",
    "That is about 10/3 = 3.",
    "2250 / 360 = 6 full rotations",
    "410 / 333 = 1 with a remainder of 77",
)
NOT_JUDGED = (
    "x + 3 = 5",
    "3x = 12 and 2ab = 5",
    "f(2) = 5 + 1",
    "f(2) = 5",
    r"\sqrt{16} + 1 = 5",
    r"10 + 1 = 3 \pmod{8}",
    "1 + 2 + ... + 10 = 55",
    "5 more than 3 * 2 = 11",
    "half of 12 boys + 6 girls = 12",
    "cost - 3 + 5 = 9",
    "cost * the 3 + 4 = 9",
    "1 dozen = 12 eggs",
    "1/2 hour = 30 minutes",
    "2 hours + 30 minutes = 150 minutes",
    "1 hour and 20 minutes + 50 minutes = 130 minutes",
    "3 miles less than Reggie = 20 - 3 = 17 miles",
    "3 + 4 = 8 is wrong",
    "101_2 + 1 = 110_2",
    "3,5 * 2 = 7",
    "3 + 4 <= 8, 3 + 4 != 8, 3 + 4 => 8",
    "3 + 4 = ?",
    "1/0 = 5",
    "279/99999 = 0.\\overline{00279}",
    "75 - 4(5-a)^2 = 63",
    "The ratio is 2:3 + 1 = 7",
    "2^99999999 = 1",
)
FALSE = (
    ("So Max owns 10 / 2 = 30.", "10 / 2 = 30", 5, 30),
    ("3 + 4 = 8", "3 + 4 = 8", 7, 8),
    ("Then 2 + 3 + 4 = 7, so it is 7.", "2 + 3 + 4 = 7", 9, 7),
    ("x = 10/2 = 30", "10/2 = 30", 5, 30),
    ("2*3 = 6 + 4 = 11", "6 + 4 = 11", 10, 11),
    (r"\frac{1}{2} \times 18 = 8", r"\frac{1}{2} * 18 = 8", 9, 8),
    ("20% of 50 = 12", "20% * 50 = 12", 10, 12),
    ("10/3 = 3.43", "10/3 = 3.43", Fraction(10, 3), Fraction("3.43")),
    ("7/2 = 3", "7/2 = 3", Fraction(7, 2), 3),
    ("1,000 + 5 = 1,006 dollars", "1000 + 5 = 1006 dollars", 1005, 1006),
    ("12 boys + 6 girls = 19 kids", "12 boys + 6 girls = 19 kids", 18, 19),
    ("so there are a total of 3 + 4 = 8 cats", "3 + 4 = 8 cats", 7, 8),
    ("a remark (3 + 4 = 8) in brackets", "3 + 4 = 8", 7, 8),
    ("5 = 2 + 4", "5 = 2 + 4", 5, 6),
    (r"We get\[3 \cdot 4 = 13\]", "3 * 4 = 13", 12, 13),
    ("$2^3 + 1 = 10$", "2^3 + 1 = 10", 9, 10),
)


@pytest.mark.parametrize("text", [*TRUE, *ROUNDED, *NOT_JUDGED])
def test_what_is_true_rounded_or_no_sum_of_numbers_is_left_alone(text: str) -> None:
    assert false_equations(text) == []


@pytest.mark.parametrize(("text", "equation", "left", "right"), FALSE)
def test_a_false_equation_is_found_with_its_two_values(
    text: str, equation: str, left: Fraction | int, right: Fraction | int
) -> None:
    found = false_equations(text)
    assert [(one.text.strip(" $."), one.left, one.right) for one in found] == [(equation, left, right)]


@pytest.mark.parametrize(
    "text", [text for text in TRUE if text.count("=") == 1 and "%" not in text and "350 000" not in text]
)
def test_the_same_equation_with_another_result_is_false(text: str) -> None:
    head, _, result = text.partition("=")
    digit = next(i for i, letter in enumerate(result) if letter.isdigit())
    other = result[:digit] + str((int(result[digit]) + 2) % 10 or 3) + result[digit + 1 :]
    assert len(false_equations(f"{head}={other}")) == 1


def test_every_false_equation_of_a_text_is_found() -> None:
    text = "First 3 + 4 = 8.\n\nThen 8 * 2 = 16, and 16 - 1 = 14.\nSo 14 / 2 = 7."
    assert [one.text.rstrip(".") for one in false_equations(text)] == ["3 + 4 = 8", "16 - 1 = 14"]


@pytest.mark.parametrize(
    "text",
    ["(" * 5000 + "1 = 2", "1+" * 5000 + "1 = 2", "1 = " * 3000, "\n" * 20_000 + "1 + 1 = 3", "1" * 9000 + "+1 = 2"],
)
def test_a_text_without_end_is_answered_at_once_and_without_an_error(text: str) -> None:
    assert len(false_equations(text)) <= 1


def test_a_candidate_with_a_false_equation_goes_no_further_and_says_why() -> None:
    made = Made("critic", "prompt", "config", 1)
    rows = [
        Candidate(f"p/r0/c{k}", "p", "p/r0", 1, text, made, leak=LeakVerdict.CLEAN)
        for k, text in enumerate(("Max owns 10 / 2 = 5.", "Max owns 10 / 2 = 30.", "Max owns 5."))
    ]
    rows.append(Candidate("p/r0/c3", "p", "p/r0", 1, "", made, failed="no reply"))
    checked = check_sums(rows)
    assert [row.unsound for row in checked] == ["", "10 / 2 = 30", "", ""]
    assert [row.id for row in survivors(checked)] == ["p/r0/c0", "p/r0/c2"]
    assert [dataclasses.replace(row, unsound="") for row in checked] == rows
