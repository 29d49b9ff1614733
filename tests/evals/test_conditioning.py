"""The critic's benchmark on a few problems: every arm is there, and what is told is consistent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwise.data.localization import Outcome, absent_number
from stepwise.data.processbench import ProcessBenchRow
from stepwise.types import Localization, Problem, Step, Trace

pytest.importorskip("dspy")

from evals.conditioning import main


def test_it_measures_every_arm_on_held_out_problems_and_goes_on_where_it_was(tmp_path: Path, capsys) -> None:
    arguments = ["--problems", "6", "--samples", "2", "--out", str(tmp_path / "out")]
    main(arguments)
    found = json.loads((tmp_path / "out" / "conditioning.json").read_text())
    located = found["localization"]
    critic = located["lab-critic, full"]
    assert critic["wrong"] + critic["right"] == 6
    assert critic["calls"] == 6
    assert critic["acc_err"] > located["random"]["acc_err"]
    table = found["conditioning"]
    assert 0 < table["hard"] <= 6
    assert {row["of"] for row in table["rows"].values()} == {table["hard"]}
    rows = {name.strip(): row["accuracy"] for name, row in table["rows"].items()}
    assert rows["+ prefix, original wrong step"] <= rows["+ prefix, intervention"]
    assert rows["+ correct prefix"] < rows["+ prefix, true step"]
    before = (tmp_path / "out" / "parts.jsonl").read_text()
    capsys.readouterr()
    main([*arguments])
    assert (tmp_path / "out" / "parts.jsonl").read_text() == before
    assert "should be at least 3" in " ".join(capsys.readouterr().out.split())


def attempt(question: str, reference: str | None, *steps: str) -> ProcessBenchRow:
    problem = Problem("p", question, reference=reference)
    return ProcessBenchRow(problem, Trace(problem, tuple(Step(step, "x") for step in steps)), Localization(None))


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (("Step 1: 12 and 3 are 15.", "Step 2: Half is 7.50."), None),
        (("12 + 3 = 16", "half is 8"), 0),
        (("twelve and three", "They are 1,500.", "7"), 2),
        (("**Step 4.** The half of 15 is 7.5", "Step 5"), None),
        (("They are -15 or 15.0 or 015.",), None),
        (("All is 15.", "So 3 12s are 36."), 1),
        (("1,50 is no thousand",), 0),
        (("Of 40 in all, 15 count.",), None),
    ],
)
def test_the_first_number_that_is_in_neither_question_nor_reference_is_named(steps, said):
    row = attempt("Of 40: what is half of 12 and 3?", "12 + 3 = 15, 15 / 2 = 7.5. #### 7.5 (4, 5; 1500)", *steps)
    assert absent_number(row) == Outcome(said)


def test_without_a_reference_no_number_is_absent():
    assert absent_number(attempt("1 + 1?", None, "3")).error == "the problem has no reference"
