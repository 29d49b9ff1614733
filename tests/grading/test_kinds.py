r"""Every kind of answer on cases written by hand: those that must be CORRECT, and near misses that must not be.

kinds.tsv and swept.tsv (a second set of the same kinds) have the columns kind, gold, prediction and right (CORRECT or
NOT); no quoting, a tab between columns.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from stepwise.grading import Verdict, check_gold, grade_many
from stepwise.types import Problem

FOLDER = Path(__file__).parent


def rows_of(name: str) -> list[tuple[str, ...]]:
    lines = (FOLDER / name).read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [tuple(line.split("\t")) for line in lines[1:]]


ROWS = rows_of("kinds.tsv")
SWEPT = rows_of("swept.tsv")


def faults_of(rows: list[tuple[str, ...]]) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    verdicts = grade_many([(f"\\boxed{{{prediction}}}", gold) for _, gold, prediction, _ in rows], timeout=60)
    judged = list(zip(rows, verdicts, strict=True))
    broken = (Verdict.ERROR, Verdict.TIMEOUT, Verdict.UNPARSEABLE_GOLD)
    return {
        "accepted": [(row, str(v)) for row, v in judged if v is Verdict.CORRECT and row[3] == "NOT"],
        "missed": [(row, str(v)) for row, v in judged if v is not Verdict.CORRECT and row[3] == "CORRECT"],
        "broken": [(row, str(v)) for row, v in judged if v in broken],
    }


def test_every_kind_has_cases_that_are_right_and_near_misses():
    counts = Counter((kind, right) for kind, _, _, right in ROWS)
    assert len(ROWS) == len(set(ROWS)) >= 800
    assert {right for _, right in counts} == {"CORRECT", "NOT"}
    assert len({kind for kind, _ in counts}) >= 14
    assert min(counts.values()) >= 5


def test_every_case_of_every_kind_is_judged_as_it_should_be():
    assert faults_of(ROWS) == {"accepted": [], "missed": [], "broken": []}


def test_a_tenth_of_the_second_set_is_judged_as_it_should_be():
    assert len(SWEPT) == len(set(SWEPT)) >= 1800
    assert faults_of(SWEPT[::10]) == {"accepted": [], "missed": [], "broken": []}


@pytest.mark.slow
def test_all_of_the_second_set_is_judged_as_it_should_be():
    assert faults_of(SWEPT) == {"accepted": [], "missed": [], "broken": []}


@pytest.mark.slow
def test_every_gold_answer_equals_itself_without_the_shortcut_of_equal_texts():
    for gold in {gold for _, gold, _, _ in (*ROWS, *SWEPT)}:
        check_gold(Problem(id=gold, question="?", answer=gold))
