r"""Every kind of answer on cases written by hand: those that must be CORRECT, and near misses that must not be.

kinds.tsv has the columns kind, gold, prediction and right (CORRECT or NOT); no quoting, a tab between columns.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from stepwise.grading import Verdict, grade_many

ROWS = [
    tuple(line.split("\t"))
    for line in (Path(__file__).parent / "kinds.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
]


def test_every_kind_has_cases_that_are_right_and_near_misses():
    counts = Counter((kind, right) for kind, _, _, right in ROWS)
    assert len(ROWS) == len(set(ROWS)) >= 800
    assert {right for _, right in counts} == {"CORRECT", "NOT"}
    assert len({kind for kind, _ in counts}) >= 14
    assert min(counts.values()) >= 5


def test_every_case_of_every_kind_is_judged_as_it_should_be():
    verdicts = grade_many([(f"\\boxed{{{prediction}}}", gold) for _, gold, prediction, _ in ROWS], timeout=60)
    accepted = [
        row for row, verdict in zip(ROWS, verdicts, strict=True) if verdict is Verdict.CORRECT and row[3] == "NOT"
    ]
    missed = [(row, str(verdict)) for row, verdict in zip(ROWS, verdicts, strict=True)
              if verdict is not Verdict.CORRECT and row[3] == "CORRECT"]  # fmt: skip
    broken = [(row, str(verdict)) for row, verdict in zip(ROWS, verdicts, strict=True)
              if verdict in (Verdict.ERROR, Verdict.TIMEOUT, Verdict.UNPARSEABLE_GOLD)]  # fmt: skip
    assert not accepted
    assert not missed
    assert not broken
