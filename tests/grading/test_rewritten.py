"""The grader on answers written by hand: other forms of a gold answer, and answers that only look like it.

rewritten.tsv and perturbed.tsv have the columns note, gold and prediction; no quoting, a tab between columns.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwise.grading import Verdict, grade, grade_many

FOLDER = Path(__file__).parent


def cases(name: str) -> list[tuple[str, str, str]]:
    header, *lines = (FOLDER / name).read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert header.split("\t") == ["note", "gold", "prediction"]
    rows = [tuple(line.split("\t")) for line in lines]
    assert all(len(row) == 3 for row in rows)
    assert len(rows) == len(set(rows)) >= 300
    return rows


def listed(rows: list[tuple[Verdict, tuple[str, str, str]]]) -> str:
    return "\n".join(f"{verdict}: {note}: {prediction!r} for {gold!r}" for verdict, (note, gold, prediction) in rows)


def judged(name: str) -> list[tuple[Verdict, tuple[str, str, str]]]:
    rows = cases(name)
    verdicts = grade_many([(prediction, gold) for _, gold, prediction in rows], timeout=120)
    return list(zip(verdicts, rows, strict=True))


def test_at_least_97_percent_of_the_rewritten_gold_answers_are_correct():
    rows = judged("rewritten.tsv")
    missed = [row for row in rows if row[0] is not Verdict.CORRECT]
    print(f"{len(missed)} of {len(rows)} rewritten answers missed\n{listed(missed)}")
    assert len(missed) <= 0.03 * len(rows), listed(missed)


def test_no_perturbed_gold_answer_is_correct():
    accepted = [row for row in judged("perturbed.tsv") if row[0] is Verdict.CORRECT]
    assert not accepted, listed(accepted)


@pytest.mark.parametrize(
    ("prediction", "gold", "verdict"),
    [
        ("1 1/2", "11/2", Verdict.WRONG),
        ("11/2", "1 1/2", Verdict.WRONG),
        ("1 1/2", "3/2", Verdict.CORRECT),
        ("1 234 567", "1,234,567", Verdict.CORRECT),
        (r"\sin 30^\circ", r"\sin 30", Verdict.WRONG),
        (r"\cos(60^\circ)", r"\frac12", Verdict.CORRECT),
        (r"\sin 30^\circ", r"\frac12", Verdict.CORRECT),
        ("x²³", "x^{23}", Verdict.CORRECT),
        ("x²³", "x^6", Verdict.WRONG),
        (r"0.1\overline{6}", r"\frac16", Verdict.CORRECT),
        (r"-2.\overline{45}", r"-\frac{27}{11}", Verdict.CORRECT),
        (r"0.9\overline{9}", "1", Verdict.CORRECT),
        ("12_{five}", "12_5", Verdict.CORRECT),
        ("12_{five}", "12_6", Verdict.WRONG),
        ("12_{foo}", "12", Verdict.UNPARSEABLE_PREDICTION),
        (r"x<2 \text{ or } x>3", r"x<2, x>3", Verdict.WRONG),
    ],
)
def test_a_space_an_angle_a_period_or_an_index_is_part_of_the_answer(prediction, gold, verdict):
    assert grade(prediction, gold) is verdict
