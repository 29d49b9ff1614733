"""The leak check: labelled cases, and the distinctions that the rule is made of."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from evals import leaks as measured
from stepwise.errors import DataError
from stepwise.interventions.checks.leaks import LeakVerdict, answer_due, check_leak
from stepwise.interventions.checks.numbers import mentions
from stepwise.types import Problem, Step, Trace
from tests.interventions import leak_cases

CLEAN, LEAK, ANSWER_STEP = LeakVerdict.CLEAN, LeakVerdict.LEAK, LeakVerdict.ANSWER_STEP


def test_the_cases_on_disk_are_those_that_the_transformations_make() -> None:
    assert not list(leak_cases.faults())
    assert (leak_cases.FOLDER / "leak_cases.jsonl").read_text(encoding="utf-8") == leak_cases.text()


def test_the_check_beats_the_substring_rule_on_sentences_and_phrases_it_was_not_tuned_on() -> None:
    held_out = [case for case in leak_cases.cases() if case["split"] == "held-out"]
    ours = measured.figures(held_out, measured.ours)
    theirs = measured.figures(held_out, measured.substring)
    assert ours["cases"] >= 200
    assert ours["recall"][0] > 0.95 > 0.7 > theirs["recall"][0]
    assert ours["precision"][0] > 0.97 > 0.85 > theirs["precision"][0]


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("So x = 42.", "42"),
        ("The answer is 42, as hoped.", "42"),
        (r"Hence \boxed{\frac12}.", "0.5"),
        ("The chance is 50 %.", r"\frac{1}{2}"),
        ("This yields $0.50$.", "1/2"),
        ("It comes to 1,234 in all.", "1234"),
        (r"That leaves $2\sqrt{12}$.", r"4\sqrt{3}"),
        ("The length is about 6.93.", r"4\sqrt{3}"),
        ("The ratio is 0.333.", r"\frac{1}{3}"),
        ("So x = 4 and y = 6.", "(4, 6)"),
        ("The day must be Friday.", "Friday"),
        ("Their sum is forty-two.", "42"),
        (r"It is \boxed{forty-two}", "42"),
        (r"It is \boxed{84/2}", "42"),
        (r"It is \boxed{2\sqrt{12}}", r"\sqrt{48}"),
    ],
)
def test_an_assertion_leaks_in_whatever_form(content: str, answer: str) -> None:
    found = check_leak(content, answer)
    assert found.verdict is LEAK
    assert found.reason
    assert found.span is not None
    assert found.matched == content[slice(*found.span)]


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("I divide both sides by 3 and use 3x in step 3.", "3"),
        ("The sum is 420.", "42"),
        ("The root is 4.2.", "42"),
        ("The minimum is 3.", "-3"),
        ("So the result is not 42.", "42"),
        ("There are 3 cases to look at.", "3"),
        ("I look at every even number.", "even"),
        ("The chance is 50 %.", "0.05"),
        ("I raise it to the power x^{12}.", "12"),
        ("So x = 4 and y = 7.", "(4, 6)"),
        (r"It is \boxed{2\sqrt{11}}", r"\sqrt{48}"),
    ],
)
def test_a_number_that_is_not_asserted_is_clean(content: str, answer: str) -> None:
    assert check_leak(content, answer).verdict is CLEAN


def test_a_number_of_the_problem_or_the_prefix_leaks_only_as_a_result() -> None:
    question, prefix = "A hall has 42 seats.", ["Half of them are 21."]
    assert check_leak("The 42 seats are shared out.", "42").verdict is LEAK
    assert check_leak("The 42 seats are shared out.", "42", problem=question).verdict is CLEAN
    assert check_leak("The 21 are taken twice.", "21", problem=question, prefix=prefix).verdict is CLEAN
    assert check_leak("So the answer is 42.", "42", problem=question).verdict is LEAK


def test_the_step_that_states_the_result_is_excluded_and_not_blamed() -> None:
    steps = ("First 5 + 6 = 11.", "Then 11 * 2 = 24.", r"So the answer is \boxed{24}.")
    trace = Trace(Problem("p", "Add 5 and 6, and double it."), tuple(Step(s, "weak") for s in steps), "answer")
    assert [answer_due(trace, i) for i in range(3)] == [False, True, True]
    repaired = check_leak("Then 11 * 2 = 22.", "22", prefix=steps[:1], answer_due=answer_due(trace, 1))
    assert repaired.verdict is ANSWER_STEP
    assert check_leak("Then I double 11.", "22", prefix=steps[:1], answer_due=True).verdict is CLEAN


@pytest.mark.parametrize("answer", ["", "  ", "((", "9^9^9^9^9^9^9"])
def test_an_answer_that_cannot_be_read_is_refused(answer: str) -> None:
    with pytest.raises(DataError, match="answer"):
        check_leak("x = 1", answer)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("from 1,234 to 5.50", [1234, Fraction(11, 2)]),
        (r"\frac{3}{4}, \frac12 and 2/3", [Fraction(3, 4), Fraction(1, 2), Fraction(2, 3)]),
        ("1 1/2 or six and a half", [Fraction(3, 2), Fraction(13, 2)]),
        ("7 - 3 is not -3", [7, 3, -3]),
        ("one hundred and five, two thirds", [105, Fraction(2, 3)]),
        ("minus four; 5 minus four", [-4, 5, 4]),
    ],
)
def test_numbers_are_read_exactly(text: str, values: list[Fraction]) -> None:
    found = mentions(text)
    assert [min(m.values) for m in found] == values
    assert all(text[m.start : m.end].strip() == text[m.start : m.end] for m in found)


def test_the_program_prints_both_rules_side_by_side(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert measured.main(["--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "leaks.json").read_text())
    assert set(found["splits"]) == {"tune", "held-out"}
    answer_steps = found["splits"]["held-out"]["answer_steps"]
    assert answer_steps["excluded"] == answer_steps["cases"] > 0
    assert "substring" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("problem", "verdict"),
    [("There are 3 boxes.", LEAK), ("Take x as 4, or y as 6.", CLEAN), ("Take x as 4.", LEAK)],
)
def test_a_pair_leaks_item_by_item_unless_all_of_it_was_known(problem: str, verdict: LeakVerdict) -> None:
    assert check_leak("So x = 4 and y = 6.", "(4, 6)", problem=problem).verdict is verdict
