"""The calibrate program: from a budget to a policy in a file that route takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from programs import calibrate, route
from stepwise.io import append_rows, read_rows
from stepwise.routing.calibration_result import Calibrated
from stepwise.types import Trace
from tests.routing.lab_world import LabWorld


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LabWorld:
    made = LabWorld(40)
    made.install(monkeypatch)
    append_rows(tmp_path / "first.jsonl", made.problems[:20])
    append_rows(tmp_path / "others.jsonl", made.problems[20:])
    return made


def start(tmp_path: Path, *arguments: str, others: str = "others.jsonl") -> int:
    files = ["--problems", str(tmp_path / "first.jsonl"), "--measure-on", str(tmp_path / others)]
    return calibrate.main(["--out", str(tmp_path / "out"), "--rounds", "3", *files, *arguments])


def test_a_policy_is_set_for_a_budget_and_routes(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, "--budget", "0.5", "--share") == 0
    out = capsys.readouterr().out
    made = Calibrated.load(tmp_path / "out" / "calibrated.json")
    assert made.reached
    assert f"{made.policy.point:.4g} *" in out
    assert "On 20 other problems" in out
    assert "answers found in the cache: weak" in out
    asked = len(world.weak.requests)
    assert start(tmp_path, "--budget", "0.5", "--share") == 0  # as after a kill: nothing is asked for twice
    assert len(world.weak.requests) == asked
    assert Calibrated.load(tmp_path / "out" / "calibrated.json") == made
    options = ["--problems", str(tmp_path / "others.jsonl"), "--policy", str(tmp_path / "out" / "calibrated.json")]
    assert route.main(["--out", str(tmp_path / "routed"), *options]) == 0
    strong = sum(
        step.usage.generated_tokens
        for trace in read_rows(tmp_path / "routed" / "traces.jsonl", Trace)
        for step in trace.steps
        if step.author == "strong"
    )
    assert strong == pytest.approx(20 * (made.achieved.cost.value or 0.0))


def test_bad_input_is_one_line_that_says_why(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, "--budget", "5", others="first.jsonl") == 2
    assert "fitted on 20 of" in capsys.readouterr().err
    assert start(tmp_path, "--budget", "5", "--overwrite", "--set", "routing.policy=never") == 2
    assert "no operating point" in capsys.readouterr().err
    assert calibrate.main(["--budget", "5", "--problems", "x.jsonl", "--out", str(tmp_path / "new")]) == 2
    assert "go together" in capsys.readouterr().err
