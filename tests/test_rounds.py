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
from collections.abc import Sequence
from pathlib import Path

import pytest

import stepwise as sw
from stepwise.config import ScorerConfig
from stepwise.data.step_labels import LabelledSolution
from stepwise.errors import BudgetExceededError, ConfigError, DataError, NothingToLearnError
from stepwise.io import append_rows, read_rows, write_rows
from stepwise.lab.problems import generate
from stepwise.models.caps import spent_in
from stepwise.models.store import Answer, CallCache
from stepwise.rounds import LoopPoint, LoopResult, LoopRound, LoopSettings
from stepwise.rounds.caps import left_for
from stepwise.rounds.detector import detection
from stepwise.rounds.scoring import auroc_of, fit_scorer, kind_of
from stepwise.routing import Always, Escalate, Exploring, Keep, Never, Threshold, View
from stepwise.routing.compare import PolicyRow
from stepwise.stats import Interval
from stepwise.types import Problem, Step, Trace, Usage

SETTINGS = LoopSettings(
    rounds=1, samples=1, explore=0.2, settings=(0.5, 0.9), refit="probe", label_attempts=4,
    collect={"rollouts": 2, "guided": 4, "fresh": 0, "compare": 0, "accept": "success"},  # type: ignore[arg-type]
)  # fmt: skip


def lab(split: str, n: int) -> list[Problem]:
    return [made.problem for made in generate(split, n)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoopResult]:
    pytest.importorskip("peft")
    out = tmp_path_factory.mktemp("loop") / "out"
    return out, run(out)


def test_nothing_is_bought_where_training_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as an environment without it
    with pytest.raises(sw.MissingDependencyError, match=r"peft; pip install \"stepwise\[train\]"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def counts(point: LoopPoint) -> tuple[object, ...]:
    """All but the seconds that it took."""
    return point.round, point.part, point.policy, point.right, point.strong, point.tokens


def run(out: Path) -> LoopResult:
    # Without temperature no group of rollouts has any spread, so that reinforcement has nothing to learn.
    chosen = ["sft.epochs=1", "rl.temperature=1e-6", "rl.problems=4", "rl.look=4", "rl.group=2", "rl.steps=1"]
    config = sw.Config.load(None, chosen)
    return sw.loop(lab("train", 16), config, out, validation=lab("val", 6), test=lab("test", 6), settings=SETTINGS)


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
    assert {trace.problem.id for trace in traces} == {problem.id for problem in lab("train", 16)}
    assert any("explored; score" in (step.decision or "") for trace in traces for step in trace.steps)
    strong, weak = result.point(0, "Always (strong alone)"), result.point(0, "Never (weak alone)")
    assert (len(strong.right), sum(weak.strong)) == (6, 0)
    assert min(strong.strong) > 0


@pytest.mark.slow
def test_the_scorer_of_each_round_is_fitted_to_what_the_weak_model_of_that_round_writes(
    made: tuple[Path, LoopResult],
) -> None:
    out, result = made
    scorers = [done.scorer for done in result.rounds]
    for number, scorer in enumerate(scorers):
        assert scorer is not None
        assert (scorer.kind, scorer.spec["kind"], scorer.note) == ("probe", "probe", "")
        assert scorer.labels == len(read_rows(out / f"round-{number}" / "labels-train" / "labels.jsonl"))
        assert scorer.first_errors > 0
        assert scorer.auroc is not None
        assert scorer.configured is not None
    assert scorers[0] != scorers[1]
    routed = [step for trace in read_rows(out / "round-1" / "traces.jsonl", Trace) for step in trace.steps]
    assert all(step.score is not None for step in routed if step.author == "weak")


@pytest.mark.slow
def test_reinforcement_that_has_nothing_to_learn_keeps_the_adapter_of_before_and_says_so(
    made: tuple[Path, LoopResult],
) -> None:
    out, result = made
    second = result.rounds[1]
    assert Path(str(second.adapter)) == out / "round-1" / "sft" / "adapter"
    assert any("reinforcement was left out: nothing can be learned" in note for note in second.notes)


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


def spend(out: Path) -> int:
    """Tokens that all stages of a loop have generated, as their files have it."""
    total = sum(u.generated_tokens for path in out.glob("round-*/*/spent.jsonl") for _, u in spent_in(path.parent))
    for path in out.glob("round-*/*answers.jsonl"):
        with CallCache(path) as cache:
            total += sum(usage.generated_tokens for usage in cache.spent().values())
    return total


@pytest.mark.slow
@pytest.mark.parametrize("cap", [4000, 6000])
def test_caps_hold_over_all_stages_together_and_a_higher_one_goes_on(tmp_path: Path, cap: int) -> None:
    pytest.importorskip("peft")

    def capped(cap: int | None) -> LoopResult:
        config = sw.Config.load(None, ["sft.epochs=1"] + ([f"budget.total_tokens={cap}"] if cap else []))
        short = SETTINGS.collect.model_copy(update={"max_tokens": 160})  # what is asked for is reserved at its most
        settings = SETTINGS.model_copy(update={"refit": "none", "reinforce": False, "collect": short})
        return sw.loop(
            lab("train", 8), config, tmp_path, validation=lab("val", 4), test=lab("test", 4), settings=settings
        )

    with pytest.raises(BudgetExceededError, match=r"budget\.total_tokens"):
        capped(cap)
    assert 0 < spend(tmp_path) <= cap
    assert len(capped(None).rounds) == 2
    assert spend(tmp_path) > cap


def test_what_is_left_for_a_stage_is_what_all_others_have_left(tmp_path: Path) -> None:
    config = sw.Config.load(None, ["budget.calls=20", "budget.strong_tokens=100", "budget.problem.calls=3"])
    for number, stage in ((1, "collect"), (1, "rl"), (2, "collect")):
        folder = tmp_path / f"round-{number}" / stage
        folder.mkdir(parents=True)
        append_rows(folder / "spent.jsonl", [{"role": "weak", "usage": {"calls": 2, "generated_tokens": 50}}])
    answers = tmp_path / "round-2" / "answers.jsonl"
    with CallCache(answers) as cache:
        cache.add([Answer("k", "strong", "p", Usage("m", 1, 5, 5, 40), {})])
    left = left_for(config, tmp_path)
    assert (left.strong_tokens, left.total_tokens, left.calls, left.money) == (60, None, 13, None)
    assert left.problem == config.budget.problem
    assert left_for(config, tmp_path, tmp_path / "round-1" / "collect").calls == 15
    own = left_for(config, tmp_path, answers)
    assert (own.calls, own.strong_tokens) == (14, 100)
    assert left_for(sw.Config.load(None, ["budget.calls=5"]), tmp_path).calls == 0


def labelled() -> list[LabelledSolution]:
    """References of the lab, half of them with a wrong last number in the second step."""
    found = []
    for n, problem in enumerate(lab("train", 12)):
        steps = sw.split_steps(problem.reference or "")
        if n % 2:
            steps[1] = steps[1].rstrip(".") + "9."
        found.append(LabelledSolution.of_first_error(problem.question, steps, 1 if n % 2 else None))
    return found


def test_label_tokens_get_a_new_calibration_which_the_scorer_then_reads_with(tmp_path: Path) -> None:
    config, solutions = sw.Config.lab(), labelled()
    fitted = fit_scorer("calibration", solutions, config, tmp_path)
    plain, new = (sw.load_scorer(spec, prompt=config.prompt) for spec in (config.scorer, fitted))
    pairs = [(s.question, s.steps) for s in solutions]
    before, after = ([x for row in scorer.score_batch(pairs) for x in row] for scorer in (plain, new))
    plain.close()
    new.close()
    assert before != after
    order = sorted(range(len(before)), key=before.__getitem__)
    assert [after[i] for i in order] == sorted(after)  # monotone, so that its AUROC stays
    assert auroc_of(solutions, config) == auroc_of(solutions, config.model_copy(update={"scorer": fitted}))
    with pytest.raises(NothingToLearnError, match="no right or no wrong step"):
        fit_scorer("calibration", solutions[::2], config, tmp_path / "right")


def test_what_is_made_anew_follows_from_the_scorer() -> None:
    assert [kind_of("auto", ScorerConfig(**spec)) for spec in (
        {}, {"kind": "probe", "model": "probe/x"}, {"kind": "constant"},
    )] == ["calibration", "probe", "none"]  # fmt: skip
    assert kind_of("scorer", ScorerConfig(kind="constant")) == "scorer"
    with pytest.raises(ConfigError, match='refit = "calibration" is for label tokens'):
        kind_of("calibration", ScorerConfig(kind="constant"))
    with pytest.raises(NothingToLearnError, match="labels are of 3 problems"):
        fit_scorer("probe", labelled()[:3], sw.Config.lab(), Path("unused"))


def test_a_scorer_as_a_detector_counts_drafts_up_to_the_first_error_that_stayed() -> None:
    def first_error(problem: Problem, steps: Sequence[str]) -> int | None:
        return next((i for i, step in enumerate(steps) if "wrong" in step), None)

    caught = Step("Right.", "strong", discarded=(Step("wrong", "weak", score=0.1),))
    needless = Step("Right.", "strong", discarded=(Step("Fine.", "weak", score=0.2),))
    kept, missed = Step("Fine.", "weak", score=0.9), Step("wrong", "weak", score=0.8)
    problem = Problem("p", "?")
    found = detection([Trace(problem, (caught, needless, kept, missed, missed))], first_error)
    assert (found.drafts, found.wrong, found.escalated, found.caught, found.missed) == (4, 2, 2, 1, 1)
    assert (found.precision, found.recall) == (0.5, 0.5)
    assert found.ece is not None
    assert 0.3 < found.ece < 0.5
    assert detection([], first_error).precision is None


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
    assert str(result).splitlines() == [
        "round 0: weak alone 0.0%, routed at 0.5 50.0% for 20.0 strong tokens a problem",
        "round 1: weak alone 25.0%, routed at 0.5 75.0% for 10.0 strong tokens a problem",
        "round 2 (rolled back): weak alone 25.0%, routed at 0.5 75.0% for 10.0 strong tokens a problem",
    ]
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
        "12",
        "--n",
        "5",
        "--rounds",
        "1",
        "--samples",
        "1",
    ]
    command += ["--refit", "probe", "--rollouts", "2", "--guided", "4", "--accept", "success", "--set", "sft.epochs=1"]
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
