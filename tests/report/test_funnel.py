from __future__ import annotations

import dataclasses
import io

from rich.console import Console

from stepwise.data.examples import Example
from stepwise.report.shell import first_of_each
from stepwise.report.terminal import funnel_table

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


def test_examples_of_different_problems_are_shown() -> None:
    others = [dataclasses.replace(EXAMPLE, id=f"x{i}", parents={"problem": f"p{i // 2}"}) for i in range(8)]
    shown = first_of_each(others, 3, lambda row: row.parents["problem"])
    assert [example.id for example in shown] == ["x0", "x2", "x4"]
