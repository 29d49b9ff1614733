"""The demo from its command line, on scripted models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from programs import demo
from stepwise.io import read_rows
from stepwise.report import TraceView
from stepwise.report.shell import LAB_NOTICE
from stepwise.routing import Never, StepRouter, Threshold
from stepwise.routing.compare import compare
from tests.routing.lab_world import LabWorld


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> LabWorld:
    made = LabWorld(12)
    made.install(monkeypatch)
    return made


def test_the_demo_prints_a_table_and_writes_page_traces_and_figures(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--problems", "12", "--out", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Never (weak alone)" in out
    assert "of the gap between them for" in out
    assert " ".join(LAB_NOTICE.split()) in out
    assert "the weak model alone gets it wrong" in out
    assert "Money at example prices" in out
    assert (tmp_path / "report.html").as_uri() in out.replace(" ", "")
    page = (tmp_path / "report.html").read_text()
    assert LAB_NOTICE in page
    assert "Threshold 0.50" in page
    views = read_rows(tmp_path / "traces.jsonl", TraceView)
    assert len(views) == 12 * (len(demo.POLICIES) + 2 * len(demo.LATER) + len(demo.PROBED))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [row["policy"] for row in metrics["policies"]][:2] == ["Never (weak alone)", "Always (strong alone)"]
    assert metrics["policies"][1]["accuracy"] == 1.0
    assert metrics["in_words"]
    assert metrics["figures"]["threshold"]["strong_tokens"]["area"]["value"] > 0.5


def test_the_demo_starts_anew_each_time(world: LabWorld, tmp_path: Path) -> None:
    for _ in range(2):
        assert demo.main(["--problems", "2", "--out", str(tmp_path), "--show", "0"]) == 0
    assert len(read_rows(tmp_path / "traces.jsonl")) == 2 * (
        len(demo.POLICIES) + 2 * len(demo.LATER) + len(demo.PROBED)
    )


def test_money_is_counted_at_configured_prices(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = [f"--set=models.{role}.price_{way}={price}" for role, price in (("weak", 0), ("strong", 1000000))
              for way in ("in", "out")]  # fmt: skip
    assert demo.main(["--problems", "3", "--out", str(tmp_path), "--show", "0", *prices]) == 0
    out = " ".join(capsys.readouterr().out.split())
    views = [view for view in read_rows(tmp_path / "traces.jsonl", TraceView) if view.policy == "Always (strong alone)"]
    used = [view.trace.usage["strong"] for view in views]
    spent = sum(usage.prompt_tokens + usage.generated_tokens for usage in used)
    assert "Money at configured prices" in out
    assert f"weak 0 and 0; strong 1e+06 and 1e+06: Always (strong alone) {spent:.4f}" in out


def test_ctrl_c_leaves_a_page_of_the_policies_that_are_done(
    world: LabWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = world.strong._script

    def interrupted(*at: object) -> object:
        if len(world.weak.batches) > 25:
            raise KeyboardInterrupt
        return step(*at)  # type: ignore[arg-type]

    monkeypatch.setattr(world.strong, "_script", interrupted)
    assert demo.main(["--problems", "12", "--out", str(tmp_path)]) == 130
    rows = json.loads((tmp_path / "metrics.json").read_text())["policies"]
    assert 2 <= len(rows) < len(demo.POLICIES)
    assert "Always (strong alone)" in (tmp_path / "report.html").read_text()


def test_a_dry_run_asks_no_model(world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--problems", "5", "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    assert "Dry run" in capsys.readouterr().out
    assert world.weak.requests == world.strong.requests == []
    assert not (tmp_path / "new").exists()


def test_highlighted_solutions_are_repaired_ones_with_the_fewest_strong_steps_first() -> None:
    world = LabWorld(12)
    router = StepRouter(world.weak, world.strong, world.scorer, Never())
    found = compare(router, [Never(), Threshold(0.5), Threshold(0.7)], world.problems, progress=False)
    shown = demo._repaired(found)
    assert shown
    wrong = {view.trace.problem.id for view, right in zip(found[0].views, found[0].correct, strict=True) if not right}
    assert {view.trace.problem.id for view in shown} <= wrong
    assert all(view.verdict == "CORRECT" and view.escalated for view in shown)
    counts = [sum(step.author == "strong" for step in view.trace.steps) for view in shown]
    assert counts == sorted(counts)
