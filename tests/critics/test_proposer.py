"""InterventionProposer: what it asks in which order, the self-check, candidates, and where it may put a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stepwise import InterventionProposer
from stepwise.critics.formats.compact_format import write_fields
from stepwise.critics.signatures import SolveByReference
from stepwise.errors import ConfigError, DataError
from stepwise.types import Intervention, Problem
from tests.critics.critic import UNREADABLE, MeasuredLM, asked, fields, numbers, prompts, proposed, reviewed, wanted
from tests.scripted_lm import ScriptedLM

STEPS = ["There are 41.", "41 - 4 = 39.", "So 39."]
PROBLEM = Problem("p", "How many are left?", "37", "41 - 4 = 37")
STAGES = {"solution": "solve", "location": "propose", "contains_answer": "review"}


def by_stage(said: list[str], **replies: Any) -> Callable[[Any], Any]:
    """A script with a list of replies for each stage: solve, propose, review, revise; `said` keeps the stages."""
    left = {stage: iter(list(given)) for stage, given in replies.items()}  # asked from several threads

    def script(messages: Any) -> Any:
        prompt = asked(messages)
        stage = "revise" if "draft" in fields(prompt) else STAGES[wanted(prompt)[0]]
        said.append(stage)
        return next(left[stage])

    return script


def solved(text: str) -> str:
    return write_fields(SolveByReference, {"solution": text})


def test_a_proposal_is_one_call_with_the_attempt_the_error_and_the_reference() -> None:
    lm = ScriptedLM([proposed(1, "I take 4 away.")])
    made = InterventionProposer(lm, solve_first=False, revisions=0)(problem=PROBLEM, steps=STEPS, first_error=1)
    assert made.intervention == Intervention(1, "I take 4 away.")
    assert (made.candidates, made.reviews, made.failure, made.warnings) == ([made.intervention], [None], None, [])
    (prompt,) = prompts(lm)
    assert fields(prompt) == ["problem", "reference", "attempt", "first_error"]
    assert "\n#first_error: 2\n" in prompt
    assert numbers(prompt) == [1, 2, 3]


def test_without_a_reference_no_stage_speaks_of_one() -> None:
    said: list[str] = []
    script = by_stage(
        said,
        solve=[solved("So.")],
        propose=[proposed(1, "x")],
        review=[reviewed(late=True), reviewed()],
        revise=[proposed(0, "y")],
    )
    lm = ScriptedLM(script)
    InterventionProposer(lm, solve_first=True, revisions=1)(
        problem="How many?", steps=STEPS, first_error=1, answer="37"
    )
    assert said == ["solve", "propose", "review", "revise", "review"]
    assert all("reference" not in str(messages) for messages in lm.calls)


def test_the_model_solves_first_and_sees_its_own_solution_when_it_proposes() -> None:
    said: list[str] = []
    lm = ScriptedLM(by_stage(said, solve=[solved("I count 41.\n\nI take 4.")], propose=[proposed(1, "x")]))
    InterventionProposer(lm, solve_first=True)(problem=PROBLEM, steps=STEPS, first_error=1)
    assert said == ["solve", "propose"]
    assert fields(prompts(lm)[0]) == ["problem", "reference"]
    assert "#worked: I count 41.\n\nI take 4.\n" in prompts(lm)[1]


def test_a_solution_that_cannot_be_read_is_left_out_with_a_warning() -> None:
    lm = ScriptedLM(by_stage([], solve=[UNREADABLE, UNREADABLE], propose=[proposed(1, "x")]))
    made = InterventionProposer(lm, solve_first=True)(problem=PROBLEM, steps=STEPS, first_error=1)
    assert made.intervention == Intervention(1, "x")
    assert made.warnings[0].startswith("the solution written first is not used")
    assert "#worked: (none)" in prompts(lm)[-1]


@pytest.mark.parametrize("fault", ["answer", "insight", "late"])
def test_a_yes_in_the_self_check_has_the_step_rewritten_by_the_advice(fault: str) -> None:
    said: list[str] = []
    first = reviewed(**{fault: True}, advice="Be vague.")  # type: ignore[arg-type]
    script = by_stage(said, propose=[proposed(1, "It is 37.")], review=[first, reviewed()], revise=[proposed(0, "Hm.")])
    lm = ScriptedLM(script)
    made = InterventionProposer(lm, revisions=1)(problem=PROBLEM, steps=STEPS, first_error=1)
    assert said == ["propose", "review", "revise", "review"]
    assert made.intervention == Intervention(0, "Hm.")
    assert made.reviews[0].contains_answer is False
    review, revise, again = prompts(lm)[1:]
    assert "\n#answer: 37\n" in review
    assert "\n#content: It is 37.\n" in review
    assert "\n#draft: It is 37.\n#advice: Be vague.\n" in revise
    assert "\n#location: 1\n#content: Hm.\n" in again


def test_a_step_that_passes_is_not_rewritten_and_one_that_never_does_is_kept_with_its_review() -> None:
    said: list[str] = []
    lm = ScriptedLM(by_stage(said, propose=[proposed(1, "x")], review=[reviewed()]))
    InterventionProposer(lm, solve_first=False, revisions=3)(problem=PROBLEM, steps=STEPS, first_error=1)
    assert said == ["propose", "review"]
    said.clear()
    never = {"review": [reviewed(insight=True)] * 3, "revise": [proposed(1, "y"), proposed(1, "z")]}
    lm = ScriptedLM(by_stage(said, propose=[proposed(1, "x")], **never))
    made = InterventionProposer(lm, solve_first=False, revisions=2)(problem=PROBLEM, steps=STEPS, first_error=1)
    assert said == ["propose", "review", "revise", "review", "revise", "review"]
    assert (made.intervention.content, made.reviews[0].misses_insight) == ("z", True)


@pytest.mark.parametrize("stage", ["review", "revise"])
def test_a_self_check_that_cannot_be_read_leaves_the_step_as_it_was_and_says_so(stage: str) -> None:
    replies = {"review": [reviewed(late=True)], "revise": []} | {stage: [UNREADABLE] * 2}
    lm = ScriptedLM(by_stage([], propose=[proposed(1, "x")], **replies))
    made = InterventionProposer(lm, revisions=1)(problem=PROBLEM, steps=STEPS, first_error=1)
    assert (made.intervention, made.failure) == (Intervention(1, "x"), None)
    assert (made.reviews == [None]) == (stage == "review")
    assert made.warnings[0].startswith(f"candidate 0 was not {stage}")


def test_without_an_answer_there_is_no_self_check_and_a_warning_says_so() -> None:
    lm = ScriptedLM([proposed(1, "x")])
    made = InterventionProposer(lm, revisions=1)(problem="How many?", steps=STEPS, first_error=1)
    assert (made.reviews, made.warnings) == ([None], ["no answer is given, so no self-check was made"])


def test_k_candidates_are_k_calls_of_each_stage_that_no_cache_can_merge() -> None:
    said: list[str] = []
    contents = iter("abc")
    script = by_stage(
        said,
        solve=(solved("So.") for _ in range(3)),
        propose=(proposed(1, next(contents)) for _ in range(3)),
        review=(reviewed() for _ in range(3)),
    )
    lm = MeasuredLM(script)
    made = InterventionProposer(lm, solve_first=True, revisions=1, candidates=3)(
        problem=PROBLEM, steps=STEPS, first_error=1
    )
    assert sorted(step.content for step in made.candidates) == ["a", "b", "c"]
    assert made.intervention == made.candidates[0]
    assert {stage: said.count(stage) for stage in said} == {"solve": 3, "propose": 3, "review": 3}
    assert made.usage.calls == 9
    assert sorted(kwargs["rollout_id"] for kwargs in lm.settings) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert {kwargs["temperature"] for kwargs in lm.settings} == {0.7}


def test_candidates_that_failed_are_counted_and_the_others_stay() -> None:
    lm = ScriptedLM([proposed(1, "x")] + [UNREADABLE] * 10)
    proposer = InterventionProposer(lm, solve_first=False, revisions=0, candidates=3)
    made = proposer(problem=PROBLEM, steps=STEPS, first_error=1)
    assert (made.candidates, made.failed_candidates, made.failure) == ([Intervention(1, "x")], 2, None)
    none = proposer(problem=PROBLEM, steps=STEPS, first_error=1)
    assert (none.intervention, none.candidates) == (None, [])
    assert UNREADABLE in none.failure


def test_a_location_after_the_error_is_asked_for_again_in_a_proposal_and_in_a_revision() -> None:
    proposer = InterventionProposer(ScriptedLM([proposed(2, "x"), proposed(1, "x")]), solve_first=False, revisions=0)
    made = proposer(problem=PROBLEM, steps=STEPS, first_error=1)
    assert (made.intervention.location, len(made.repairs)) == (1, 1)
    stuck = InterventionProposer(ScriptedLM([proposed(2, "x")] * 2), solve_first=False, revisions=0)
    made = stuck(problem=PROBLEM, steps=STEPS, first_error=1)
    assert (made.intervention, made.usage.calls) == (None, 2)
    assert "less than or equal to 2" in made.failure
    lm = ScriptedLM(
        by_stage(
            [], propose=[proposed(0, "x")], review=[reviewed(late=True)], revise=[proposed(2, "y"), proposed(2, "y")]
        )
    )
    made = InterventionProposer(lm, revisions=1)(problem=PROBLEM, steps=STEPS, first_error=1)
    assert made.intervention == Intervention(0, "x")


def test_an_empty_step_is_no_proposal() -> None:
    made = InterventionProposer(ScriptedLM([proposed(1, "  ")] * 2), solve_first=False, revisions=0)(
        problem=PROBLEM, steps=STEPS, first_error=1
    )
    assert made.intervention is None
    assert "at least 1 character" in made.failure


@pytest.mark.parametrize("first", [-1, 3, None, True, 1.0])
def test_a_first_error_that_is_no_step_is_refused(first: Any) -> None:
    lm = ScriptedLM([])
    with pytest.raises(DataError, match=r"first_error is .*, but the attempt has steps 0 to 2"):
        InterventionProposer(lm, solve_first=True, revisions=1)(problem=PROBLEM, steps=STEPS, first_error=first)
    assert lm.calls == []


def test_the_answer_alone_may_be_the_reference() -> None:
    lm = ScriptedLM([proposed(1, "x")])
    made = InterventionProposer(lm, solve_first=False, revisions=0)(
        problem="How many?", steps=STEPS, first_error=1, reference="37"
    )
    assert made.failure is None
    assert "\n#reference: 37\n" in prompts(lm)[0]


@pytest.mark.parametrize("settings", [{"candidates": 0}, {"revisions": -1}], ids=str)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="give candidates >= 1, revisions >= 0"):
        InterventionProposer(ScriptedLM([]), **settings)  # type: ignore[arg-type]
