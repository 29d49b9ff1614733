"""Every stage alone, on sums of which the truth is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stepwise.config import Config
from stepwise.data.examples import unique
from stepwise.errors import BackendError, DataError
from stepwise.grading import Verdict
from stepwise.interventions import pipeline
from stepwise.interventions.checks.candidates import survivors
from stepwise.interventions.checks.leaks import LeakVerdict
from stepwise.interventions.pipeline import run_stages
from stepwise.interventions.rows import Candidate, FailedAttempt, GuidedRollout, Located, Made, Rollout, by_id
from stepwise.interventions.settings import hash_of
from stepwise.records import from_json, to_json
from stepwise.types import Failure
from tests.fakes import Line, ScriptedBackend
from tests.interventions import world
from tests.interventions.world import CONFIG, SETTINGS, SUM

MADE = Made("weak", "prompt", "config", 1)


def rows(n: int = 6, **changes: Any) -> dict[str, Any]:
    return run_stages(world.chunk(world.problems(n)).but(**changes))


def test_every_row_leads_back_to_its_problem_and_to_the_random_numbers_behind_it() -> None:
    found, problems = rows(), by_id(world.problems(6))
    ids = {name: by_id(made) for name, made in found.items()}
    assert found["examples"]
    for example in found["examples"]:
        candidate = ids["candidates"][example.parents["candidate"]]
        failure = ids["failures"][candidate.failure]
        rollout = ids["rollouts"][failure.id]
        assert example.parents == {"problem": rollout.problem, "failure": failure.id, "candidate": candidate.id}
        assert example.prefix == rollout.steps[: candidate.location]
        again = world.written(problems[rollout.problem], (), rollout.made.seed + rollout.made.draw)
        assert rollout.text == again
        for guided in (row for row in found["guided"] if row.candidate == candidate.id):
            before = tuple(step.text for step in candidate.splice(failure, problems[rollout.problem]).steps)
            assert guided.text == world.written(problems[rollout.problem], before, guided.made.seed + guided.made.draw)
        assert example.config_hash == rollout.made.config_hash == hash_of(CONFIG, SETTINGS)


def test_an_example_ends_in_a_right_sum_in_place_of_the_first_wrong_one() -> None:
    for example in rows()["examples"]:
        sums = [tuple(map(int, found)) for found in SUM.findall(example.target)]
        assert all(a + b == c for a, b, c in sums)
        assert example.answer not in example.intervention
        assert 0 < example.successes <= example.guided


def test_the_step_that_states_the_sum_is_left_out_and_counted() -> None:
    found = rows()
    due = [row for row in found["candidates"] if row.location == 2]
    assert due
    assert {row.leak for row in due} == {LeakVerdict.ANSWER_STEP}
    assert not {row.candidate for row in found["guided"]} & {row.id for row in due}


def test_equal_candidates_and_equal_targets_count_once() -> None:
    found = rows()
    clean = [row for row in found["candidates"] if row.leak is LeakVerdict.CLEAN]
    kept = survivors(found["candidates"])
    assert len(clean) == 2 * len(kept) > 0  # the scripted critic says the same twice
    targets = [(row.question, row.target) for row in found["examples"]]
    assert len(targets) == len(set(targets))
    assert unique([*found["examples"], *found["examples"]]) == found["examples"]


def test_failures_are_wrong_or_without_an_answer_and_the_same_text_is_kept_once() -> None:
    def made(number: int, text: str, verdict: Verdict | None) -> Rollout:
        return Rollout(f"p/r{number}", "p", number, text, "eos", MADE, verdict=verdict)

    given = [
        made(0, "a", Verdict.WRONG), made(1, "b", Verdict.CORRECT), made(2, "a", Verdict.WRONG),
        made(3, "c", Verdict.NO_ANSWER), made(4, "d", Verdict.TIMEOUT), made(5, "", Verdict.NO_ANSWER),
        made(6, "e", None),
    ]  # fmt: skip
    assert [(row.id, row.copies) for row in pipeline.keep_failures(given)] == [("p/r0", 2), ("p/r3", 1)]
    assert [row.id for row in pipeline.keep_failures(given, max_per_problem=1)] == ["p/r0"]


def test_a_text_without_a_box_has_no_answer_and_one_that_failed_no_verdict() -> None:
    problem = world.problems(1)[0]
    given = [
        Rollout("p0/r0", "p0", 0, f"It is {problem.answer}.", "eos", MADE),
        Rollout("p0/r1", "p0", 1, f"It is \\boxed{{{problem.answer}}}.", "answer", MADE),
        Rollout("p0/r2", "p0", 2, "", "error", MADE, error="gone"),
    ]
    graded = pipeline.grade_rollouts(given, {"p0": problem})
    assert [row.verdict for row in graded] == [Verdict.NO_ANSWER, Verdict.CORRECT, None]


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"enough": None, "miss": 0.0}, (8, 8, 8)),
        ({"enough": 1, "miss": 0.0}, (2, 8, 8)),
        ({"enough": 1, "floor": 0.5, "miss": 0.1}, (2, 4, 4)),
        ({"enough": None, "floor": 0.5, "miss": 0.1}, (8, 4, 4)),
        ({"enough": 1, "floor": 0.5, "miss": 0.2}, (2, 3, 3)),
        ({"enough": 2, "guided": 6}, (6, 6, 6)),
    ],
)
def test_guided_rollouts_stop_when_there_are_enough_or_there_is_no_hope(
    changes: dict[str, Any], asked: tuple[int, ...]
) -> None:
    problems = by_id(world.problems(3))
    failures = by_id(FailedAttempt(f"{p}/r0", p, ("1 + 1 = 3.",), None, Verdict.WRONG) for p in problems)
    candidates = [
        Candidate(f"{f.id}/c0", f.problem, f.id, 0, "I add again.", MADE, leak=LeakVerdict.CLEAN)
        for f in failures.values()
    ]
    calls: list[str] = []

    def script(problem: Any, prefix: tuple[str, ...], seed: int) -> str:
        calls.append(problem.id)
        right = problem.id == "p0" and calls.count("p0") == 1
        return f"\\boxed{{{problem.answer if right else 0}}}"

    guided = pipeline.guide(
        candidates, failures, world.chunk(world.problems(3), ScriptedBackend(script)).but(**changes)
    )
    assert tuple(sum(row.problem == p for row in guided) for p in problems) == asked
    assert [row.id for row in guided if row.problem == "p0"][:2] == ["p0/r0/c0/g0", "p0/r0/c0/g1"]
    seen = {(row.made.seed, row.made.draw) for row in guided}
    assert len(seen) == len(guided)


def test_of_several_candidates_the_one_with_the_larger_share_of_successes_is_kept() -> None:
    problem = world.problems(1)[0]
    failure = FailedAttempt("p0/r0", "p0", ("a", "b"), None, Verdict.WRONG)
    candidates = [
        Candidate(f"p0/r0/c{k}", "p0", "p0/r0", 1, f"step {k}", MADE, leak=LeakVerdict.CLEAN) for k in range(3)
    ]
    wins = {"p0/r0/c0": 1, "p0/r0/c1": 3, "p0/r0/c2": 0}
    guided = [
        GuidedRollout(f"{name}/g{i}", "p0", i, "", "eos", MADE, candidate=name,
                      verdict=Verdict.CORRECT if i < won else Verdict.WRONG)
        for name, won in wins.items() for i in range(4)
    ]  # fmt: skip

    def kept(keep: str) -> list[tuple[str, int, int]]:
        made = pipeline.select(candidates, guided, {"p0/r0": failure}, world.chunk([problem]).but(keep=keep))
        return [(row.intervention, row.successes, row.guided) for row in made]

    assert kept("best") == [("step 1", 3, 4)]
    assert kept("all") == [("step 0", 1, 4), ("step 1", 3, 4)]
    # Fresh rollouts tell the rate of the one that is kept, and do not choose it.
    guided += [
        GuidedRollout(f"p0/r0/c1/g{i}", "p0", i, "", "eos", MADE, candidate="p0/r0/c1", verdict=Verdict.WRONG,
                      phase="fresh")
        for i in range(4, 9)
    ]  # fmt: skip
    assert kept("best") == [("step 1", 0, 5)]


def test_without_a_reference_the_critic_is_asked_without_one_and_the_rows_say_so() -> None:
    found = run_stages(world.chunk(world.problems(4, reference=False)))
    assert found["examples"]
    assert not any(row.with_reference for name in ("located", "candidates", "examples") for row in found[name])


def test_a_backend_that_fails_for_most_rollouts_counts_as_gone_and_one_failure_is_a_row() -> None:
    problems = world.problems(4)
    one = ScriptedBackend(
        lambda p, prefix, seed: Line(error="too long") if p.id == "p0" else world.written(p, prefix, seed)
    )
    made = pipeline.sample_rollouts(world.chunk(problems), one)
    assert [row.error for row in made if row.problem == "p0"] == ["too long"] * 3
    gone = ScriptedBackend(lambda p, prefix, seed: Line(error="connection refused"))
    with pytest.raises(BackendError, match="12 of 12 rollouts, first: connection refused"):
        pipeline.sample_rollouts(world.chunk(problems), gone)


def test_a_row_without_its_parent_is_refused() -> None:
    found = rows(2)
    with pytest.raises(DataError, match="its parent 'p0' is not among the rows"):
        pipeline.grade_rollouts(found["rollouts"], {})
    other = dataclasses.replace(found["failures"][0], id="other")
    with pytest.raises(DataError, match="is for the attempt"):
        found["candidates"][0].splice(other, world.problems(1)[0])


def test_of_several_candidates_the_first_is_greedy_unless_a_temperature_is_asked_for() -> None:
    def temperatures(*overrides: str) -> list[float | None]:
        chunk, asked = world.chunk(world.problems(1)), list[float | None]()
        lm = chunk.writers.proposer.get_lm()
        copy = lm.copy
        lm.copy = lambda **kwargs: asked.append(kwargs.get("temperature")) or copy(**kwargs)
        failure = FailedAttempt("p0/r0", "p0", ("1 + 1 = 3.",), None, Verdict.WRONG)
        located = Located("p0/r0/l", "p0", "p0/r0", 0, MADE)
        chunk = dataclasses.replace(chunk, config=Config.load(None, overrides))
        pipeline.propose_candidates([located], {"p0/r0": failure}, chunk)
        return asked

    assert temperatures("critic.candidates=3") == [0.0, None, None]
    assert temperatures("critic.candidates=3", "critic.temperature=0.5") == [None, None, None]
    assert temperatures("critic.candidates=1") == [None]


def test_a_row_without_a_failure_is_written_as_before_there_were_any_and_one_with_it_comes_back() -> None:
    row = Located("p0/r0/l", "p0", "p0/r0", 0, MADE)
    assert "cause" not in to_json(row)
    assert from_json(Located, to_json(row)) == row
    failed = dataclasses.replace(row, failed="flagged", cause=Failure("refused", "flagged"))
    assert from_json(Located, to_json(failed)) == failed
