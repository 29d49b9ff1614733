from __future__ import annotations

import dataclasses
import io

from rich.console import Console

from stepwise.data.examples import Example
from stepwise.grading import Verdict
from stepwise.interventions.checks.leaks import LeakVerdict
from stepwise.interventions.collection import _fate
from stepwise.interventions.rows import Candidate, FailedAttempt, Made
from stepwise.report.shell import first_of_each
from stepwise.report.terminal import funnel_table, side_by_side

FAILURE = FailedAttempt("p0/r3", "p0", ("1 + 2 = 3.", "3 * \x1b[31m[bold]2 = 5.", "So 5."), "5", Verdict.WRONG)
EXAMPLE = Example(
    "p0/r3/c0", "Q", "6", ("1 + 2 = 3.",), "3 * 2 = 6.", "intervention", {"problem": "p0", "failure": "p0/r3"},
    {}, "h", "c", 1, 3, 8,
)  # fmt: skip


def drawn(table: object, width: int = 80) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue()


def test_the_funnel_has_the_share_of_each_stage_in_the_one_before() -> None:
    lines = drawn(
        funnel_table({"rollouts": 1600, "failed attempts": 400, "guided rollouts": 0, "new stage": 7})
    ).splitlines()
    assert any(line.split() == ["rollouts", "1,600"] for line in lines)
    assert any(line.split() == ["failed", "attempts", "400", "25%", "of", "rollouts"] for line in lines)
    assert any(line.split() == ["new", "stage", "7"] for line in lines)


def test_a_candidate_is_counted_at_the_first_check_that_it_failed() -> None:
    made = Made("critic", "", "", 0)
    row = Candidate("c", "p", "p/r0", 1, "So 10 / 2 = 30.", made, leak=LeakVerdict.CLEAN)
    both = dataclasses.replace(row, form="it is an instruction", unsound="10 / 2 = 30")
    leaks = dataclasses.replace(both, leak=LeakVerdict.LEAK)
    failed = dataclasses.replace(row, failed="no reply", leak=None)
    assert [_fate(each, ["c"]) for each in (failed, leaks, both, row)] == [
        "proposals that failed", "candidates that leak", "candidates in no solver's form", "candidates guided",
    ]  # fmt: skip
    assert _fate(dataclasses.replace(both, form=""), []) == "candidates with a false equation"
    assert _fate(row, []) == "candidates proposed twice, or not guided"


def test_the_wrong_step_stands_beside_the_intervention_and_drives_no_terminal() -> None:
    text = drawn(side_by_side([EXAMPLE], {"p0/r3": FAILURE}))
    (line,) = [line for line in text.splitlines() if "p0/r3" in line]
    assert line.split()[:2] == ["p0/r3", "1"]
    assert "3 * 2 = 6." in line
    assert "3 of 8" in line
    assert "\\x1b[31m[bold]" in text
    assert "\x1b" not in text


def test_examples_of_different_problems_are_shown() -> None:
    others = [dataclasses.replace(EXAMPLE, id=f"x{i}", parents={"problem": f"p{i // 2}"}) for i in range(8)]
    shown = first_of_each(others, 3, lambda row: row.parents["problem"])
    assert [example.id for example in shown] == ["x0", "x2", "x4"]


def test_a_long_step_is_cut_and_stays_on_one_line() -> None:
    long = dataclasses.replace(EXAMPLE, intervention="a\n\n b" + "x" * 300)
    text = drawn(side_by_side([long], {"p0/r3": FAILURE}), width=400)
    assert [line for line in text.splitlines() if "a b" + "x" * 156 + "…" in line]
