r"""Verdicts end to end, with real worker processes: the ways in which graders are known to hang or to be wrong."""

from __future__ import annotations

import importlib.metadata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.errors import DataError
from stepwise.grading import GRADER_VERSION, Verdict, check_gold, grade, grade_many
from stepwise.grading import grader as grader_module
from stepwise.types import Problem

SLOW_INTEGRAL = r"\int_0^1 \frac{\sin(x^x)}{\ln(1+x^3)} dx"  # sympy looks for a closed form for minutes


@pytest.mark.parametrize(
    ("prediction", "gold", "verdict"),
    [
        # What made other graders hang.
        ("9^9^9^9", "5", Verdict.UNPARSEABLE_PREDICTION),
        (r"\boxed{\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}}", "5", Verdict.UNPARSEABLE_PREDICTION),
        ("5", "9^9^9^9", Verdict.UNPARSEABLE_GOLD),
        # What other graders wrongly call equal.
        ("10%", "10", Verdict.WRONG),
        ("10", "10%", Verdict.CORRECT),
        ("10%", "0.1", Verdict.CORRECT),
        ("1/2^99", "1/2^98", Verdict.WRONG),
        (r"\frac{\pi}{2^{99}}", r"\frac{\pi}{2^{98}}", Verdict.WRONG),
        ("3x+4y+14=0", "3x-y+13=0", Verdict.WRONG),
        ("$3x+4y+14=0$", "$3x-y+13=0$", Verdict.WRONG),
        ("(1,2)", r"\{1,2\}", Verdict.WRONG),
        ("3R^2", "3r^2", Verdict.WRONG),
        # What other graders wrongly call different, or cannot read.
        (r"\boxed{A}", "A", Verdict.CORRECT),
        (r"\boxed{\text{(A)}}", "A", Verdict.CORRECT),
        ("12:00", "12:00", Verdict.CORRECT),
        (r"\boxed{12:00}", "12:01", Verdict.WRONG),
        # A rounded decimal is not the number it was rounded from.
        ("2√3", "3.4641", Verdict.WRONG),
        (r"2\sqrt{3}", "3.46410161513775", Verdict.WRONG),
        (r"\pi", "3.14", Verdict.WRONG),
        ("2√3", r"\sqrt{12}", Verdict.CORRECT),
    ],
)
def test_known_failures_of_graders_do_not_happen_here(prediction, gold, verdict):
    assert grade(prediction, gold) is verdict


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2x+2", "2(x+1)"),
        (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
        (r"\sin^2 x + \cos^2 x", "1"),
        (r"\cot x", r"\frac{\cos x}{\sin x}"),
        ("(1+i)^2", "2i"),
        ("6 - 5i", "-5i+6"),
        ("0.1x", r"\frac{x}{10}"),
        (r"\sqrt{3+2\sqrt2}-1-\sqrt2", "0"),
        (r"\ln(x^2)", r"2\ln |x|"),
        ("x = 5", "5 = x"),
        ("y = 2x + 3", "2x - y + 3 = 0"),
        ("6x+8y=2", "3x+4y-1=0"),
        ("2x+y>4", "4x+2y>8"),
        ("2x+y>4", "4 < y+2x"),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3, 0.5\pi)"),
        (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1-\sqrt{5}, \frac{2+\sqrt{20}}{2}\}"),
        (r"[\frac{\pi^2}{8}, \pi]", r"[0.125\pi^2, \pi]"),
        (r"\begin{pmatrix} \sqrt{4} \\ x \end{pmatrix}", r"\begin{pmatrix} 2 \\ x \end{pmatrix}"),
        (r"\binom{10}{3}", "120"),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
        (r"6\sqrt{2} \text{ cm}", r"\sqrt{72}"),
        (r"\log_2 8", "3"),
    ],
)
def test_algebra_finds_different_forms_equal_in_both_directions(one, other):
    assert grade(one, other) is Verdict.CORRECT
    assert grade(other, one) is Verdict.CORRECT


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sqrt{x^2}", "x"),
        ("x", "y"),
        ("p-q", "q-p"),
        ("x=5", "y=5"),
        ("x=5", "x=6"),
        ("x+1", "x+1.0000001"),
        ("2x+y>4", "2x+y<4"),
        ("2x+y>4", r"2x+y\ge 4"),
        ("x+y=1", "1"),
        (r"\infty", r"-\infty"),
        (r"90^\circ", r"\frac{\pi}{2}"),
        (r"\frac{\pi}{10^{15}}", "0"),
        (r"10^{15}\pi", r"10^{15}\pi+1"),
        (r"(\sqrt{2}, 1)", r"(1, \sqrt{2})"),
        (r"6\sqrt{2} \text{ cm}", r"6\sqrt{2} \text{ m}"),
        (r"\frac{1}{0}", "5"),
    ],
)
def test_algebra_finds_different_values_different_in_both_directions(one, other):
    assert grade(one, other) is Verdict.WRONG
    assert grade(other, one) is Verdict.WRONG


@pytest.mark.parametrize(
    ("prediction", "gold", "verdict"),
    [
        (None, "5", Verdict.NO_ANSWER),
        ("", "5", Verdict.NO_ANSWER),
        ("  \n", "5", Verdict.NO_ANSWER),
        (r"I run out of \boxed{", "5", Verdict.NO_ANSWER),
        (r"\boxed{}", "5", Verdict.NO_ANSWER),
        (r"<think>\boxed{5}</think> done", "5", Verdict.NO_ANSWER),
        ("5", "", Verdict.UNPARSEABLE_GOLD),
        ("5", None, Verdict.UNPARSEABLE_GOLD),
        ("", "", Verdict.UNPARSEABLE_GOLD),
        ("I think that it may be 5", "5", Verdict.UNPARSEABLE_PREDICTION),
        ("x^2 + * y", "5", Verdict.UNPARSEABLE_PREDICTION),
        (r"5 \text{ apples and } 6", "5", Verdict.UNPARSEABLE_PREDICTION),
        ("5 5", "10", Verdict.UNPARSEABLE_PREDICTION),
        ("5", "x^2 + * y", Verdict.UNPARSEABLE_GOLD),
        (r"One \boxed{4}, better \boxed{5}", r"\boxed{5}", Verdict.CORRECT),
        (r"One \boxed{5}, better \boxed{4}", "5", Verdict.WRONG),
    ],
)
def test_what_is_not_a_judgement_has_a_verdict_of_its_own(prediction, gold, verdict):
    assert grade(prediction, gold) is verdict


def test_only_correct_and_wrong_carry_a_reward():
    assert {verdict for verdict in Verdict if verdict.carries_reward} == {Verdict.CORRECT, Verdict.WRONG}
    assert {str(verdict) for verdict in Verdict} == set(Verdict.__members__)


def test_a_computation_that_takes_too_long_is_killed():
    assert grade(SLOW_INTEGRAL, r"\sqrt{2}", timeout=1) is Verdict.TIMEOUT
    assert grade("2x+2", "2(x+1)") is Verdict.CORRECT


def test_many_answers_are_graded_in_order_with_failures_between_them(capsys):
    pairs = [("1/2", "0.5"), (SLOW_INTEGRAL, r"\sqrt{3}"), ("x+x", "2x"), (None, "1"), ("2", "1"), ("9^9^9^9", "1")]
    quick = [pair for pair in pairs if pair[0] is not SLOW_INTEGRAL]
    verdicts = grade_many([*pairs, *quick], timeout=2, progress=True)
    expected = [
        Verdict.CORRECT,
        Verdict.TIMEOUT,
        Verdict.CORRECT,
        Verdict.NO_ANSWER,
        Verdict.WRONG,
        Verdict.UNPARSEABLE_PREDICTION,
    ]
    assert verdicts == [*expected, *(verdict for verdict in expected if verdict is not Verdict.TIMEOUT)]
    assert "grading" in capsys.readouterr().err
    assert grade_many([]) == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_must_be_positive(timeout):
    with pytest.raises(DataError, match="timeout="):
        grade("1", "1", timeout=timeout)


def test_the_version_names_the_packages_that_decide():
    for package in ("math-verify", "sympy"):
        assert f"{package}-{importlib.metadata.version(package)}" in GRADER_VERSION


def test_a_verdict_is_remembered_under_gold_prediction_and_version_and_a_timeout_is_not(monkeypatch):
    class NoPool:
        def ask(self, *_):
            raise AssertionError("the worker was asked again")

    pair = (r"\sqrt{8} + k", r"k + 2\sqrt{2}")
    assert grade(*pair) is Verdict.CORRECT
    assert grade(SLOW_INTEGRAL, "k", timeout=0.5) is Verdict.TIMEOUT
    monkeypatch.setattr(grader_module, "shared_pool", NoPool)
    assert grade(*pair) is Verdict.CORRECT
    with pytest.raises(AssertionError):
        grade(SLOW_INTEGRAL, "k", timeout=0.5)
    with pytest.raises(AssertionError):
        grade(*reversed(pair))
    monkeypatch.setattr(grader_module, "GRADER_VERSION", "another")
    with pytest.raises(AssertionError):
        grade(*pair)


@pytest.mark.parametrize(
    "answer", ["5", r"\frac{1}{2}", r"\text{(B)}", "12:00", r"6r^2-4r-24", r"\text{Evelyn}", "x=5"]
)
def test_a_gold_answer_that_can_be_read_passes_the_check(answer):
    check_gold(Problem("p", "q", answer))


@pytest.mark.parametrize("answer", [None, "", "9^9^9^9", r"\frac{1}{", "x^2 + * y", r"\sqrt{x} \bad{"])
def test_a_gold_answer_that_cannot_be_read_is_an_error_naming_the_problem(answer):
    with pytest.raises(DataError, match=r"problem 'algebra-7'.*UNPARSEABLE_GOLD"):
        check_gold(Problem("algebra-7", "q", answer))


PIECES = r"1 2 x \frac { } ( ) + - ^ \sqrt , = \int \sum_ ! \pi \begin{pmatrix} \\ sin"
GARBAGE = st.lists(st.sampled_from(PIECES.split()), max_size=9).map(" ".join)


@settings(max_examples=60)
@given(GARBAGE, GARBAGE)
def test_garbage_has_a_verdict_and_never_raises(prediction, gold):
    assert grade(prediction, gold, timeout=5) in Verdict


def test_what_is_not_a_text_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"prediction is 24 \(int\); give it as text"):
        grade(24, "24")  # type: ignore[arg-type]
