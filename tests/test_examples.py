"""The worked examples: at most ten lines of a user's own, which run."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import stepwise as sw
from examples.own_policy import Early
from examples.own_scorer import Sums
from examples.own_signal import Length
from programs import route
from stepwise.models.scorers import load_scorer
from stepwise.routing import Never, Signalled
from stepwise.routing.calibration import calibrate
from tests.routing.lab_world import LabWorld

FILES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_has_at_most_ten_lines_of_the_users_own(file: Path) -> None:
    tree = ast.parse(file.read_text())
    lines = {
        node.lineno
        for part in tree.body
        if isinstance(part, ast.ClassDef | ast.FunctionDef)
        for node in ast.walk(part)
        if isinstance(node, ast.stmt)
    }
    assert 1 <= len(lines) <= 10
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("name", ["own_policy", "own_signal", "own_scorer"])
def test_the_command_of_an_example_runs(name: str, monkeypatch: Any, tmp_path: Path) -> None:
    LabWorld(6, split="test").install(monkeypatch)
    if name == "own_scorer":
        monkeypatch.setattr("stepwise.routing.loaded.load_scorer", load_scorer)  # that of the example, not the world's
    (file,) = (file for file in FILES if file.stem == name)
    shown = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")[2]
    program, command, *arguments = shlex.split(re.sub(r"\\?\n", " ", shown))
    assert (program, command) == ("stepwise", "route")
    assert route.main(["--out", str(tmp_path / "out"), "--n", "6", *arguments]) == 0


def test_policy_signal_and_scorer_are_compared_and_calibrated_at_equal_cost() -> None:
    world = LabWorld(24, "train")
    with sw.StepRouter(world.weak, world.strong, "examples.own_scorer:Sums") as router:
        assert isinstance(router.models.scorer, Sums)
        arms = sw.compare(router, [Never(), Early(0.5), Signalled(Length(), 10.0)], world.problems, progress=False)
        made = calibrate(
            Early(), world.problems[:12], budget=30, router=router, measure_on=world.problems[12:], bounds=(0, 1.01),
            samples=20, progress=False,
        )  # fmt: skip
    assert [arm.label for arm in arms] == ["Never (weak alone)", "Early 0.50", "Length 10.00"]
    assert all(arm.cost.strong_tokens > 0 for arm in arms[1:])
    assert made.policy.name == "Early"
