"""Escalated steps of traces of sums: which of them mended something, and which did not."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from stepwise.data.examples import read_examples, unique
from stepwise.errors import BackendError, BudgetExceededError, ConfigError, DataError
from stepwise.interventions.datasets import build
from stepwise.interventions.from_routing import _escalations, _GuidedComparison, _more_often, from_routing, read_traces
from stepwise.io import append_rows
from stepwise.runs.chunks import sealed_rows
from stepwise.types import Problem, Step, Trace, Usage
from tests.fakes import ScriptedBackend
from tests.interventions import world
from tests.interventions.world import CONFIG, SETTINGS

SETTINGS_ = SETTINGS.model_copy(update={"guided": 24, "chunk": 2})


def trace(problem: Problem, place: int, draft: str | None, *, slip: int | None = None, written: str = "") -> Trace:
    """A trace whose step `place` is the strong model's, in place of `draft`."""
    texts = world.solution(problem, (), slip)
    steps = [Step(text, "weak", usage=Usage("weak")) for text in texts]
    thrown = () if draft is None else (Step(draft, "weak", usage=Usage("weak")),)
    steps[place] = Step(written or texts[place], "strong", usage=Usage("strong"), discarded=thrown)
    return Trace(problem, tuple(steps), "answer")


def wrong(problem: Problem, place: int) -> str:
    return world.solution(problem, (), place)[place]


def traces(n: int = 6) -> list[Trace]:
    """Of even problems the draft was wrong, of odd ones it was right in other words."""
    made = []
    for i, problem in enumerate(world.problems(n)):
        right = world.solution(problem, (), None)[1]
        made.append(trace(problem, 1, wrong(problem, 1) if i % 2 == 0 else f"So far, {right}"))
    return made


def weak() -> ScriptedBackend:
    return ScriptedBackend(world.written, "weak")


def run(out: Path, given: list[Trace], backend: Any = None, **more: Any) -> Path:
    return from_routing(given, CONFIG, out, settings=SETTINGS_, writers=world.writers(backend or weak()), **more)


def card(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(
        path.with_suffix(".md").read_text().partition("```json\n")[2].partition("\n```")[0]
    )
    return body


def test_a_step_is_an_intervention_only_where_the_draft_was_the_problem(tmp_path: Path) -> None:
    path = run(tmp_path, traces())
    rows = read_examples(path)
    assert [row.parents["problem"] for row in rows] == ["p0", "p2", "p4"]
    for row, problem in zip(rows, world.problems(6)[::2], strict=True):
        steps = world.solution(problem, (), None)
        assert row.origin == "routing"
        assert (row.prefix, row.intervention) == ((steps[0],), steps[1])
        assert row.models == {"weak": "weak", "strong": "strong"}
        assert row.parents["trace"] == f"{problem.id}/t0"
        assert not row.with_reference
        assert 0 < row.successes < row.guided == 24
    others = read_examples(tmp_path / "distillation.jsonl")
    assert [row.parents["problem"] for row in others] == ["p1", "p3", "p5"]
    assert {(row.origin, row.variant, row.complete) for row in others} == {("strong", "step", False)}
    assert card(path)["what became of what"] == {
        "traces": 6, "traces that ended right": 6, "escalated steps": 6, "intervention": 3, "distillation": 3,
        "steps that leak": 0, "answer steps left out": 0, "steps with a false equation": 0,
    }  # fmt: skip


def test_step_and_draft_are_followed_by_as_many_rollouts(tmp_path: Path) -> None:
    run(tmp_path, traces())
    compared = sealed_rows(tmp_path, "comparisons", _GuidedComparison)
    assert {(row.guided, row.draft_guided) for row in compared} == {(24, 24)}
    for row in compared:
        assert (row.helps >= 0.95) is (row.kind == "intervention")
        assert (row.draft_successes == 0) is (row.problem in ("p0", "p2", "p4"))


def test_what_cannot_be_an_intervention_is_left_out_and_counted(tmp_path: Path) -> None:
    p = world.problems(7)
    step = world.solution(p[4], (), None)[1]
    given = [
        trace(p[0], 1, wrong(p[0], 1), slip=2),  # ended wrong
        trace(p[1], 1, None),  # no draft
        trace(p[2], 1, world.solution(p[2], (), None)[1]),  # the draft itself
        trace(p[3], 3, "So \\boxed{0}."),  # the answer
        trace(p[4], 1, wrong(p[4], 1), written=f"1 + 1 = 3, and {step}"),  # a false equation
        trace(p[5], 1, wrong(p[5], 1), written=f"The answer is {p[5].answer}: {world.solution(p[5], (), None)[1]}"),
        trace(p[6], 1, wrong(p[6], 1)),
    ]
    path = run(tmp_path, given)
    assert [row.parents["problem"] for row in read_examples(path)] == ["p6"]
    assert card(path)["what became of what"] == {
        "traces": 7, "traces that ended right": 6, "escalated steps": 6, "escalated before there was a draft": 1,
        "the same as the draft": 1, "steps that leak": 1, "answer steps left out": 1,
        "steps with a false equation": 1, "intervention": 1,
    }  # fmt: skip


def test_a_draft_that_closed_a_box_counts_as_what_it_answered(tmp_path: Path) -> None:
    problems = world.problems(2)
    early = [f"{wrong(problems[0], 1)} So \\boxed{{1}}.", f"All in all \\boxed{{{problems[1].answer}}}."]
    run(tmp_path, [trace(p, 1, draft) for p, draft in zip(problems, early, strict=True)])
    compared = sealed_rows(tmp_path, "comparisons", _GuidedComparison)
    assert [(row.draft_successes, row.draft_guided, row.kind) for row in compared] == [
        (0, 24, "intervention"),
        (24, 24, "distillation"),
    ]


def test_a_step_that_never_succeeds_is_no_row_and_its_draft_is_not_followed(tmp_path: Path) -> None:
    backend = ScriptedBackend(lambda p, prefix, seed: "\n\n".join(world.solution(p, prefix, 2)), "weak")
    path = run(tmp_path, traces(2), backend)
    assert read_examples(path) == []
    assert read_examples(tmp_path / "distillation.jsonl") == []
    assert card(path)["what became of what"]["no success"] == 2
    assert not [row for row in backend.requests if "So far" in row.prefix[-1].text]


def test_interrupted_and_gone_on_with_it_is_the_same_and_asks_for_nothing_twice(tmp_path: Path) -> None:
    broken = world.breaking("p3")
    with pytest.raises(BackendError, match="told to fail"):
        run(tmp_path / "out", traces(), broken)
    again = weak()
    path = run(tmp_path / "out", traces(), again)
    assert {request.problem.id for request in again.requests} == {"p2", "p3", "p4", "p5"}
    whole = run(tmp_path / "whole", traces())
    for file in whole.parent.rglob("*"):
        if file.is_file() and file.name not in ("run.json", "spent.jsonl"):
            assert (path.parent / file.relative_to(whole.parent)).read_bytes() == file.read_bytes()
    with pytest.raises(DataError, match="other arguments"):
        run(tmp_path / "out", traces(), confident=0.9)


def test_a_cap_ends_it_with_what_is_sealed_as_a_dataset_and_it_goes_on_when_it_is_raised(tmp_path: Path) -> None:
    tokens = sum(row.usage.generated_tokens for row in _guided(run(tmp_path / "whole", traces())))
    capped = CONFIG.model_copy(update={"budget": CONFIG.budget.model_copy(update={"total_tokens": tokens // 2})})
    with pytest.raises(BudgetExceededError, match=r"raise budget\.total_tokens"):
        from_routing(traces(), capped, tmp_path / "out", settings=SETTINGS_, writers=world.writers(weak()))
    sealed = read_examples(tmp_path / "out" / "dataset.jsonl")
    assert 0 < len(sealed) < 3
    assert read_examples(run(tmp_path / "out", traces()))[: len(sealed)] == sealed


def _guided(path: Path) -> list[Any]:
    from stepwise.interventions.rows import GuidedRollout

    return sealed_rows(path.parent, "guided", GuidedRollout)


def test_traces_are_read_from_a_file_the_last_row_of_a_problem_counts(tmp_path: Path) -> None:
    first, second = traces(2)
    failed = dataclasses.replace(first, steps=(), finish="error")
    append_rows(tmp_path / "traces.jsonl", [failed, second, first])
    assert read_traces(tmp_path / "traces.jsonl") == read_traces(tmp_path) == [first, second]
    with pytest.raises(DataError, match="no such file"):
        read_traces(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="has no traces"):
        read_traces(tmp_path / "empty.jsonl")


def test_two_traces_of_a_problem_have_ids_of_their_own_and_two_problems_may_not_share_one(tmp_path: Path) -> None:
    p = world.problems(1)[0]
    given = [trace(p, 1, wrong(p, 1)), trace(p, 2, wrong(p, 2))]
    _, candidates, _ = _escalations([("p0/t0", given[0]), ("p0/t1", given[1])], CONFIG, SETTINGS_)
    assert [row.id for row in candidates] == ["p0/t0/s1/c0", "p0/t1/s2/c0"]
    run(tmp_path / "out", given)
    other = dataclasses.replace(given[1], problem=dataclasses.replace(p, question="Add 1 and 2."))
    with pytest.raises(DataError, match="'p0' stands for different problems"):
        run(tmp_path / "other", [given[0], other])


def test_how_sure_it_must_be_lies_between_a_half_and_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"confident is 1\.0"):
        run(tmp_path, traces(), confident=1.0)


@pytest.mark.parametrize(("successes", "n", "others", "m"), [(3, 8, 0, 8), (5, 8, 5, 8), (0, 0, 0, 0), (2, 16, 9, 24)])
def test_the_probability_that_one_succeeds_more_often_is_that_of_draws(
    successes: int, n: int, others: int, m: int
) -> None:
    rng = random.Random(5)
    draws = 40_000
    above = sum(
        rng.betavariate(1 + successes, 1 + n - successes) > rng.betavariate(1 + others, 1 + m - others)
        for _ in range(draws)
    )
    assert _more_often(successes, n, others, m) == pytest.approx(above / draws, abs=0.01)
    assert _more_often(successes, n, others, m) + _more_often(others, m, successes, n) == pytest.approx(1.0)


def test_counts_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="no counts of successes"):
        _more_often(3, 2, 0, 2)


def test_a_dataset_mixes_both_sources_and_tells_them_apart(tmp_path: Path) -> None:
    routed = read_examples(run(tmp_path / "routed", traces()))
    from stepwise.interventions.collection import collect

    collect(world.problems(6), CONFIG, tmp_path / "col", settings=SETTINGS, writers=world.writers())
    proposed = build("intervention", tmp_path / "col", CONFIG, problems=world.problems(6))
    both = unique([*proposed, *routed])
    assert {row.origin for row in both} == {"intervention", "routing"}
    assert len({(row.question, row.target) for row in both}) == len(both) <= len(proposed) + len(routed)
