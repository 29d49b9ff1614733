"""The loop: rounds go on where they were, and what each measured is counted from its own traces."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stepwise as sw
from stepwise.errors import ConfigError, DataError
from stepwise.io import read_rows, write_rows
from stepwise.lab.problems import generate
from stepwise.rounds import LoopPoint, LoopResult, LoopRound, LoopSettings
from stepwise.routing import Always, Escalate, Exploring, Keep, Never, Threshold, View
from stepwise.routing.compare import PolicyRow
from stepwise.stats import Interval
from stepwise.types import Problem, Step, Trace

SETTINGS = LoopSettings(
    rounds=1, samples=1, explore=0.2, settings=(0.5, 0.9), reinforce=False,
    collect={"rollouts": 2, "guided": 4, "fresh": 0, "compare": 0, "accept": "success"},  # type: ignore[arg-type]
)  # fmt: skip


def lab(split: str, n: int) -> list[Problem]:
    return [made.problem for made in generate(split, n)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoopResult]:
    pytest.importorskip("peft")
    out = tmp_path_factory.mktemp("loop") / "out"
    return out, run(out)


def counts(point: LoopPoint) -> tuple[object, ...]:
    """All but the seconds that it took."""
    return point.round, point.part, point.policy, point.right, point.strong, point.tokens


def run(out: Path) -> LoopResult:
    config = sw.Config.load(None, ["sft.epochs=1"])
    return sw.loop(lab("train", 8), config, out, validation=lab("val", 6), test=lab("test", 6), settings=SETTINGS)


@pytest.mark.slow
def test_a_round_learns_from_what_it_bought_and_is_measured_on_problems_that_it_has_not_seen(
    made: tuple[Path, LoopResult],
) -> None:
    out, result = made
    first, second = result.rounds
    assert (first.adapter, first.rows, first.change) == (None, {}, None)
    assert second.rows
    assert Path(str(second.adapter)).is_relative_to(out)
    assert second.spent["weak"].generated_tokens > 0
    traces = read_rows(out / "round-1" / "traces.jsonl", Trace)
    assert {trace.problem.id for trace in traces} == {problem.id for problem in lab("train", 8)}
    assert any("explored; score" in (step.decision or "") for trace in traces for step in trace.steps)
    strong, weak = result.point(0, "Always (strong alone)"), result.point(0, "Never (weak alone)")
    assert (len(strong.right), sum(weak.strong)) == (6, 0)
    assert min(strong.strong) > 0


@pytest.mark.slow
def test_what_is_finished_is_not_done_again_and_what_is_not_ends_the_same(made: tuple[Path, LoopResult]) -> None:
    out, result = made
    points = out / "points.jsonl"
    rows = read_rows(points)
    write_rows(points, rows[:-1])
    (out / "rounds.jsonl").write_text("".join((out / "rounds.jsonl").read_text().splitlines(keepends=True)[:1]))
    sft = out / "round-1" / "sft" / "adapter" / "adapter_model.safetensors"
    before = sft.stat().st_mtime_ns
    again = run(out)
    assert sft.stat().st_mtime_ns == before
    assert [counts(point) for point in again.points] == [counts(point) for point in result.points]
    assert again.rounds == result.rounds


def test_the_same_share_of_kept_steps_is_explored_whatever_the_policy() -> None:
    views = [View(Problem(str(n), "?"), (), Step("So 3.", "weak", 0.9)) for n in range(400)]

    async def actions(share: float) -> list[object]:
        return [await Exploring(Threshold(0.5), share).decide(view) for view in views]

    some, none = asyncio.run(actions(0.25)), asyncio.run(actions(0.0))
    explored = [action for action in some if isinstance(action, Escalate)]
    assert 70 < len(explored) < 130
    assert explored[0].reason == "explored; score 0.90 >= 0.50"
    assert all(isinstance(action, Keep) for action in none)
    with pytest.raises(ConfigError, match="share is 1"):
        Exploring(Never(), 1)


def point(number: int, policy: str, setting: float | None, right: list[int], strong: list[int]) -> LoopPoint:
    row = PolicyRow(policy, "threshold", setting, sum(right) / 4, 0.0, 1.0, None, sum(strong), 90, None, 9, None, n=4)
    return LoopPoint(number, "test", row, 1, tuple(right), tuple(strong), tuple(strong))


def test_tokens_at_the_target_are_those_of_the_cheapest_mix_that_holds_it() -> None:
    done = LoopRound(0, None, {}, {}, None, False, 0, 0.5, True)
    later = LoopRound(1, "a", {}, {}, Interval(0.0, -0.1, 0.1), False, 1, 0.5, True)
    undone = LoopRound(2, "a", {}, {}, Interval(-0.3, -0.4, -0.1), True, 1, 0.5, True)
    points = (
        point(0, "Never (weak alone)", None, [0, 0, 0, 0], [0] * 4),
        point(0, "Always (strong alone)", None, [1, 1, 1, 1], [100] * 4),
        point(0, "Threshold 0.50", 0.5, [1, 1, 0, 0], [20] * 4),
        point(1, "Never (weak alone)", None, [1, 0, 0, 0], [0] * 4),
        point(1, "Threshold 0.50", 0.5, [1, 1, 1, 0], [10] * 4),
    )
    result = LoopResult(0.5, (done, later, undone), points)
    assert result.tokens_at_target(0, 0.5) == pytest.approx(20)
    assert result.tokens_at_target(1, 0.5) == pytest.approx(5)  # half way from its own weak model, which has a quarter
    assert result.tokens_at_target(2, 0.5) == result.tokens_at_target(1, 0.5)  # it was rolled back
    assert result.tokens_at_target(1, 0.25) == 0
    with pytest.raises(DataError, match="no 'Random' in round 1"):
        result.point(1, "Random")


def test_problems_in_two_parts_and_a_policy_without_a_setting_are_refused(tmp_path: Path) -> None:
    config, own, others = sw.Config.lab(), lab("train", 3), lab("test", 3)
    with pytest.raises(DataError, match="the loop's weak model was fitted on 3 of these problems"):
        sw.loop(own, config, tmp_path / "a", validation=own, test=others)
    with pytest.raises(DataError, match="the loop's setting was fitted on 3"):
        sw.loop(own, config, tmp_path / "b", validation=others, test=others)
    never = sw.Config.load(None, ["routing.policy=always"])
    with pytest.raises(ConfigError, match="'always' has no operating point"):
        sw.loop(own, never, tmp_path / "c", validation=lab("val", 3), test=others)
    with pytest.raises(DataError, match="has no answer"):
        sw.loop(own, config, tmp_path / "d", validation=[Problem("x", "1 + 1?")], test=others)
    assert not list(tmp_path.iterdir())
    assert Always().point is None
    assert json.dumps(LoopSettings().model_dump(mode="json"))


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_points(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    command = [
        sys.executable,
        "-m",
        "stepwise.cli",
        "loop",
        "--lab",
        "6",
        "--n",
        "5",
        "--rounds",
        "1",
        "--samples",
        "1",
    ]
    command += ["--rollouts", "2", "--guided", "4", "--accept", "success", "--set", "sft.epochs=1"]
    command += ["--set", "rl.steps=2", "--set", "rl.problems=4", "--set", "rl.look=6", "--out"]

    def started(out: str, seconds: float | None) -> int | None:
        """The exit code, None where it was killed after so many seconds."""
        child = subprocess.Popen([*command, str(tmp_path / out)], stdout=None, stderr=None, start_new_session=True)
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # its workers, too
            child.wait()
            return None

    began = time.monotonic()
    assert started("whole", None) == 0
    whole, rng, kills = time.monotonic() - began, random.Random(3), 0
    while (code := started("killed", rng.uniform(0.3, 0.8) * whole if kills < 8 else None)) is None:
        kills += 1
    assert (code, kills > 0) == (0, True)
    points = [sorted(map(counts, read_rows(tmp_path / out / "points.jsonl", LoopPoint))) for out in ("whole", "killed")]
    assert points[0] == points[1]
