"""Exact arithmetic on rational numbers written in LaTeX."""

from __future__ import annotations

from fractions import Fraction

import pytest

from stepwise.grading.exact import TooBig, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-2^2", -4),
        ("2^3^2", 512),
        ("2(3+4)", 14),
        (r"(2)\frac{1}{2}", 1),
        (r"2\frac{7}{2}", 7),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        ("1/2/3", Fraction(1, 6)),
        ("3--2", 5),
        ("5!/3!", 20),
        ("0^0", 1),
        ("2^{-3}", Fraction(1, 8)),
    ],
)
def test_arithmetic_is_exact(text, value):
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "1/0", "4^{1/2}", "0^{-1}", "(1", "1)", "1 2", "(-1)!", r"\frac{1}", "2^", "1.2.3"]
)
def test_what_is_not_rational_arithmetic_has_no_value(text):
    assert evaluate(text) is None


def test_a_huge_value_is_refused_and_a_large_one_is_not():
    assert evaluate("7^{2006}") == 7**2006
    with pytest.raises(TooBig):
        evaluate("9^{9999}*9^{9999}*9^{9999}*9^{9999}")
    with pytest.raises(TooBig):
        evaluate("5001!")
