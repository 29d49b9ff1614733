"""Policies measured side by side on scripted lab problems."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwise.config import Config
from stepwise.errors import DataError
from stepwise.io import write_rows
from stepwise.routing import Always, Never, Random, StepRouter, Threshold
from stepwise.routing.against import against, against_in_words
from stepwise.routing.compare import Comparison, Measured, compare, in_words, judge, verdict_of
from stepwise.routing.deciding import label_of
from stepwise.routing.metrics import OperatingPoint, accuracy_at, cpt, pgr
from stepwise.routing.planning import plan_routing
from stepwise.routing.policy import NAMES
from stepwise.types import Problem, Step, Trace, Usage
from tests.routing.lab_world import LabWorld

POLICIES = (Never(), Always(), Random(0.3), Threshold(0.3), Threshold(0.6))


@pytest.fixture(scope="module")
def measured() -> list[Measured]:
    world = LabWorld(40)
    router = StepRouter(world.weak, world.strong, world.scorer, Never())
    return compare(router, POLICIES, world.problems, progress=False)


def test_rows_agree_with_the_traces_they_count(measured: list[Measured]) -> None:
    for m in measured:
        row = m.row
        assert row.n == len(m.views) == 40
        assert row.accuracy == sum(v.trace.answer == v.trace.problem.answer for v in m.views) / 40
        assert row.accuracy_low is not None
        assert row.accuracy_high is not None
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
        assert row.parameter_tokens == pytest.approx(sum(v.parameter_tokens or 0 for v in m.views))
        assert row.seconds is not None
    never, always = measured[0].row, measured[1].row
    assert (never.strong_tokens, never.strong_share, never.anchor) == (0, 0.0, "weak")
    assert (always.strong_share, always.anchor) == (1.0, "strong")
    assert always.generated_tokens == always.strong_tokens
    assert (always.accuracy, measured[0].point.cost) == (1.0, 0.0)


def test_routing_beats_the_weak_model_for_fewer_strong_tokens_than_the_strong_one(measured: list[Measured]) -> None:
    never, always, _, _, high = (m.point for m in measured)
    assert never.accuracy < high.accuracy <= always.accuracy
    assert 0 < high.cost < always.cost


def test_the_words_say_what_the_figures_say(measured: list[Measured]) -> None:
    never, always, *routed = measured
    lines = in_words(measured)
    for family in ("random", "threshold"):
        arms = [m for m in routed if m.family == family]
        gaps = {m.label: pgr(m.point, never.point, always.point) or 0.0 for m in arms}
        shares = {m.label: m.point.cost / always.point.cost for m in arms}
        best = max(gaps, key=lambda label: gaps[label] - shares[label])
        said = (
            f"{best} recovers {gaps[best]:.0%} of the gap between them for {shares[best]:.0%} of the strong model's own"
        )
        assert f"{said} tokens." in lines
    least = cpt([m.point for m in routed if m.family == "threshold"], never.point, always.point, 0.5)
    assert least is not None
    assert any(
        "by threshold (CPT, call-performance threshold): " + f"{least / always.point.cost:.0%} /" in line
        for line in lines
    )
    assert in_words(routed) == []
    assert in_words([never, always])[0].startswith("The weak model alone solves")


def test_no_gap_is_said_and_not_divided_by() -> None:
    world = LabWorld(5, slip=0.0)
    same = compare(
        StepRouter(world.weak, world.strong, world.scorer, Never()), POLICIES, world.problems, progress=False
    )
    assert "no gap" in in_words(same)[-1]


def test_problems_without_gold_answers_have_costs_but_no_accuracy() -> None:
    world = LabWorld(3)
    blind = [Problem(id=p.id, question=p.question) for p in world.problems]
    router = StepRouter(world.weak, world.strong, world.scorer, Never())
    found = judge(router, router.solve_all(blind, progress=False))
    assert (found.row.accuracy, found.row.accuracy_low) == (None, None)
    assert found.row.generated_tokens > 0
    with pytest.raises(DataError, match="no gold answer"):
        _ = found.point


def test_labels_name_policy_and_setting() -> None:
    assert [label_of(p) for p in (Never(), Always(), Random(0.25), Threshold(0.5))] == [
        "Never (weak alone)",
        "Always (strong alone)",
        "Random 0.25",
        "Threshold 0.50",
    ]


def test_the_plan_bounds_what_a_run_spends(measured: list[Measured]) -> None:
    problems = [view.trace.problem for view in measured[0].views]
    planned = {part.role: part for part in plan_routing(Config(), POLICIES, problems)}
    spent: dict[str, Usage] = {}
    for m in measured:
        for view in m.views:
            for step in view.trace.steps:
                for part in (step, *step.discarded):
                    spent[part.author] = spent.get(part.author, Usage()) + part.usage
    assert set(planned) == {"weak", "strong", "scorer"}
    for role, usage in spent.items():
        assert usage.calls <= planned[role].calls  # type: ignore[index]
        assert usage.generated_tokens <= planned[role].generated_tokens  # type: ignore[index]
    only = {part.role: part for part in plan_routing(Config(), [Always()], problems)}
    assert only["weak"].calls == 0
    assert "scorer" not in only


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (r"So \boxed{5}.", "CORRECT"),
        ("2 + 3 = 5\n\nThe answer is 5.", "CORRECT"),
        ("2 + 3 = 5\n\n#### 6", "WRONG"),
        ("I add.\n\nI do not know.", "NO_ANSWER"),
    ],
)
def test_an_answer_outside_a_box_is_graded_too(text: str, verdict: str) -> None:
    steps = tuple(Step(step, "weak") for step in text.split("\n\n"))
    assert verdict_of(Trace(Problem("p", "2 + 3 = ?", "5"), steps, "eos")) == verdict


def test_a_comparison_is_read_as_a_table(measured: list[Measured]) -> None:
    head, *lines = str(measured).splitlines()
    assert "strong tokens per problem" in head
    assert [line.split("  ")[0] for line in lines] == [m.label for m in measured]
    assert f"{measured[1].point.cost:.1f}" in lines[1]


def test_a_difference_of_two_policies_has_a_paired_interval(measured: Comparison) -> None:
    whole = measured.difference("always", "never")
    assert whole.low is not None
    assert whole.high is not None
    assert measured[1].accuracy is not None
    assert measured[0].accuracy is not None
    assert whole.value == measured[1].accuracy - measured[0].accuracy
    assert 0 < whole.low <= whole.value <= whole.high
    same = measured.difference("Threshold 0.30", "Threshold 0.30")
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_policies_are_compared_at_equal_cost_on_the_lines_through_their_settings(measured: Comparison) -> None:
    cost = measured[1].point.cost / 2
    routed, random = ([m.point for m in measured if m.family in (*NAMES, name)] for name in ("threshold", "random"))
    ours, theirs = accuracy_at(routed, cost), accuracy_at(random, cost)
    assert ours is not None
    assert theirs is not None
    assert measured.difference("threshold", "random", at_cost=cost).value == pytest.approx(ours - theirs)
    with pytest.raises(DataError, match="no 'treshold' was measured; there are Never"):
        measured.difference("treshold", "random")
    with pytest.raises(DataError, match=r"at_cost is 1e\+09 .* was measured from .*measure .never. and .always."):
        measured.difference("threshold", "random", at_cost=1e9)
    with pytest.raises(DataError, match=r"several settings .* or give at_cost"):
        measured.difference("threshold", "random")


def test_of_two_equal_runs_it_is_said_that_nothing_differs(measured: list[Measured], tmp_path: Path) -> None:
    world = LabWorld(40)
    router = StepRouter(world.weak, world.strong, world.scorer, Threshold(0.3))
    write_rows(tmp_path / "traces.jsonl", [view.trace for view in measured[3].views])
    traces = router.solve_all(world.problems, progress=False)
    words = against_in_words(against(router, traces, tmp_path))
    assert words == (
        f"Against {tmp_path}, on the 40 problems of both: nothing differs, neither which are right nor the strong "
        "tokens."
    )
    write_rows(tmp_path / "traces.jsonl", [view.trace for view in measured[1].views])
    assert "points (95 %: " in against_in_words(against(router, traces, tmp_path))


def test_accuracy_at_a_cost_is_not_known_below_the_cheapest_and_stays_above_the_dearest() -> None:
    points = [OperatingPoint(2, 0.2), OperatingPoint(4, 0.6), OperatingPoint(3, 0.1)]
    assert [accuracy_at(points, cost) for cost in (1, 2, 3, 9)] == [None, 0.2, pytest.approx(0.4), 0.6]
