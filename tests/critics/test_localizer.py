"""ErrorLocalizer: its four ways to find the first error, replies that name no step, and replies that contradict."""

from __future__ import annotations

import asyncio
from math import ceil, log2
from types import SimpleNamespace
from typing import Any

import pytest

from stepwise import ErrorLocalizer
from stepwise.errors import ConfigError, DataError
from stepwise.models.scorers import BatchScorer, Scored
from stepwise.types import Localization, Problem, Trace, Usage
from tests.critics.critic import UNREADABLE, MeasuredLM, fields, judged, numbers, prompts, verified, wanted
from tests.scripted_lm import ScriptedLM

STEPS = ["There are 0.", "Then there is 1.", "So 2."]  # each says the number that replies quote of it


def test_one_pass_names_the_error_what_it_should_be_and_what_it_cost() -> None:
    lm = ScriptedLM([verified(1)])
    found = ErrorLocalizer(lm)(problem=Problem("p", "How many?", reference="41 - 4 = 37"), steps=STEPS)
    assert (found.first_error, found.critical_error, found.verdicts) == (1, 1, [True, False])
    assert found.localization == Localization(1, (True, False), "1 should be 2")
    assert (found.failure, found.repairs, found.warnings) == (None, [], [])
    assert (found.usage.model, found.usage.calls) == ("scripted", 1)
    assert found.usage.generated_tokens == len(verified(1).split())
    (prompt,) = prompts(lm)
    assert fields(prompt) == ["problem", "reference", "attempt"]
    assert wanted(prompt) == ["checks", "first_error", "critical_error"]
    assert numbers(prompt) == [1, 2, 3]


def test_without_a_reference_neither_prompt_nor_instructions_speak_of_one() -> None:
    for reference in (None, "", "  \n"):
        lm = ScriptedLM([verified(1)])
        ErrorLocalizer(lm)(problem="How many?", steps=STEPS, reference=reference)
        assert "reference" not in str(lm.calls[0])


def test_an_attempt_that_is_right_has_no_first_error_and_no_failure() -> None:
    found = ErrorLocalizer(ScriptedLM([verified(None)]))(problem="?", steps=STEPS)
    assert (found.first_error, found.critical_error, found.failure) == (None, None, None)
    assert found.localization == Localization(None, (True, True, True))


def test_an_error_that_a_later_step_makes_up_for_is_first_and_not_critical() -> None:
    found = ErrorLocalizer(ScriptedLM([verified(0, critical=None)]))(problem="?", steps=STEPS)
    assert (found.first_error, found.critical_error) == (0, None)


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ([2, 1, 2, None, 2], 2),
        ([2, 1, 2, 1], 1),  # of a tie the earlier
        ([None, 2, None, 2], 2),  # "no error" is last of all
        ([None, None, 0], None),
    ],
)
def test_the_majority_of_the_votes_counts(said: list[int | None], first: int | None) -> None:
    lm = MeasuredLM([verified(vote) for vote in said])
    found = ErrorLocalizer(lm, "vote", samples=len(said), temperature=0.6)(problem="?", steps=STEPS)
    assert found.first_error == first == found.localization.first_error
    assert found.votes == {vote: said.count(vote) for vote in set(said)}
    assert found.usage.calls == len(said) == len({kwargs["rollout_id"] for kwargs in lm.settings})
    assert {kwargs["temperature"] for kwargs in lm.settings} == {0.6}


def test_failures_do_not_vote_and_where_all_fail_the_vote_fails() -> None:
    lm = ScriptedLM([verified(1)] * 2 + [UNREADABLE] * 6)
    found = ErrorLocalizer(lm, "vote", samples=5)(problem="?", steps=STEPS)
    assert (found.first_error, found.votes, found.failed_votes) == (1, {1: 2}, 3)
    assert (found.usage.calls, len(found.repairs)) == (8, 3)
    none = ErrorLocalizer(ScriptedLM(lambda _: UNREADABLE), "vote", samples=3)(problem="?", steps=STEPS)
    assert UNREADABLE in none.failure
    assert (none.first_error, none.localization, none.usage.calls) == (None, None, 6)


def test_bisecting_finds_every_first_error_in_log2_calls() -> None:
    class Oracle(ErrorLocalizer):
        """Knows the first error, and counts how often it is asked."""

        async def call(self, predictor: Any, inputs: Any, signature: Any = None, config: Any = None) -> Any:
            self.calls += 1
            shown = len(numbers("\n" + inputs["attempt"]))
            return SimpleNamespace(right=self.first is None or shown <= self.first, reason=f"{shown}")

    async def located(n: int, first: int | None) -> None:
        localizer.first, localizer.calls = first, 0
        found = await localizer.aforward(problem="?", steps=["step"] * n)
        assert found.first_error == first, (n, first)
        assert found.verdicts == ([True] * n if first is None else [True] * first + [False])
        assert localizer.calls <= ceil(log2(n)) + 1, (n, first, localizer.calls)

    async def all_located() -> None:
        for n in (1, 2, 3, 7, 8, 9, 25):
            for first in [None, *range(n)]:
                await located(n, first)

    localizer = Oracle(ScriptedLM([]), method="bisect")
    asyncio.run(all_located())


def test_bisecting_shows_prefixes_and_gives_the_reason_of_the_prefix_that_is_wrong() -> None:
    def script(messages: Any) -> str:
        last = numbers(messages[-1]["content"])[-1]
        return judged(last < 3, f"up to {last}")

    lm = ScriptedLM(script)
    found = ErrorLocalizer(lm, "bisect")(problem="?", steps=[*STEPS, "Done."], reference="37")
    assert (found.first_error, found.critical_error, found.localization.reason) == (2, None, "up to 3")
    assert [numbers(prompt)[-1] for prompt in prompts(lm)] == [4, 2, 3]
    assert fields(prompts(lm)[0]) == ["problem", "reference", "attempt"]
    assert found.usage.calls == 3


def test_where_a_prefix_could_not_be_judged_bisecting_says_which() -> None:
    found = ErrorLocalizer(ScriptedLM([judged(False), UNREADABLE, UNREADABLE]), "bisect")(problem="?", steps=STEPS)
    assert found.failure.startswith("asked about steps 0 to 0: asked twice")
    assert (found.first_error, found.localization, found.usage.calls) == (None, None, 3)


class Scorer(BatchScorer):
    """Scores by a table; "bad" cannot be scored."""

    def __init__(self) -> None:
        super().__init__("table")

    async def ascore(self, problem: Any, steps: Any, known: int = 0) -> Scored:
        return await self._batcher.ask((problem, steps))

    def score_detailed(self, items: Any) -> list[Scored]:
        made = [[{"good": 0.9, "so": 0.5}.get(step, 0.2) for step in steps] for _, steps in items]
        errors = ["too long" if "bad" in steps else "" for _, steps in items]
        return [Scored([] if e else row, Usage("table", 1, 7), e) for row, e in zip(made, errors, strict=True)]


def test_a_scorer_localizes_by_a_threshold_and_no_language_model_is_asked() -> None:
    localizer = ErrorLocalizer(method="scorer", scorer=Scorer(), threshold=0.5)
    found = localizer(problem="?", steps=["good", "so", "x", "good"])
    assert (found.first_error, found.scores, found.verdicts) == (2, [0.9, 0.5, 0.2, 0.9], [True, True, False, True])
    assert found.localization.reason == "the score 0.20 is under 0.50"
    assert found.usage == Usage("table", 1, 7)
    assert localizer(problem="?", steps=["good"]).first_error is None
    failed = localizer(problem="?", steps=["good", "bad"])
    assert (failed.failure, failed.first_error) == ("scorer 'table': too long", None)


@pytest.mark.parametrize(("first", "critical"), [(3, None), (0, 7)])
def test_a_step_that_does_not_exist_is_asked_for_again_and_then_is_a_failure(first: int, critical: int | None) -> None:
    wrong = verified(first, 1, critical=critical)
    lm = ScriptedLM([wrong, verified(2)])
    found = ErrorLocalizer(lm)(problem="?", steps=STEPS)
    assert (found.first_error, len(found.repairs), found.usage.calls) == (2, 1, 2)
    repair = lm.calls[1]
    assert repair[-2] == {"role": "assistant", "content": wrong}
    assert "less than or equal to 3" in repair[-1]["content"]
    twice = ErrorLocalizer(ScriptedLM([wrong, wrong]))(problem="?", steps=STEPS)
    assert (twice.first_error, twice.localization, twice.usage.calls) == (None, None, 2)
    assert repr(wrong)[1:-1] in twice.failure  # the raw text is kept


def test_a_check_of_a_step_too_many_is_asked_for_again() -> None:
    found = ErrorLocalizer(ScriptedLM([verified(None, steps=4), verified(None)]))(problem="?", steps=STEPS)
    assert (found.first_error, len(found.checks), len(found.repairs)) == (None, 3, 1)


@pytest.mark.parametrize(
    ("reply", "verdicts", "warning"),
    [
        (verified(2, 1), [True, False], "the checks say step 1, first_error says step 2, which counts"),
        (verified(None, 1), [True, False], "the checks say step 1, first_error says no error, which counts"),
        (verified(1, None), [True] * 3, "the checks say no error, first_error says step 1, which counts"),
        (verified(2, critical=0), [True, True, False], "critical_error is step 0, but first_error step 2"),
        (verified(None, critical=0), [True] * 3, "critical_error is step 0, but first_error no error"),
        (verified(2).replace("\n2 |", "\n3 |"), [True], "after 1 steps the checks name step 2; from there on they do"),
    ],
)
def test_of_a_reply_that_contradicts_itself_first_error_counts_and_a_warning_says_so(
    reply: str, verdicts: list[bool], warning: str
) -> None:
    found = ErrorLocalizer(ScriptedLM([reply]))(problem="?", steps=STEPS)
    said = reply.split("#first_error: ")[1].splitlines()[0]
    assert ("none" if found.first_error is None else str(found.first_error + 1)) == said
    assert found.verdicts == verdicts
    assert "1 should be 1" not in found.localization.reason
    assert [text[: len(warning)] for text in found.warnings] == [warning]
    assert found.failure is None


def test_a_check_that_quotes_what_the_step_does_not_say_is_told_and_so_are_steps_left_unchecked() -> None:
    reply = verified(None, None, steps=2).replace("2 | 1 | 1", "2 | 7 | 7")
    found = ErrorLocalizer(ScriptedLM([reply]))(problem="?", steps=STEPS)
    assert found.first_error is None
    assert found.warnings == [
        "only 2 of 3 steps were checked; the rest is taken for right unseen",
        "step 1 does not say '7', which its check quotes",
    ]


def test_checks_that_stop_before_the_error_are_no_contradiction() -> None:
    found = ErrorLocalizer(ScriptedLM([verified(2, None, steps=1)]))(problem="?", steps=STEPS)
    assert (found.first_error, found.verdicts, found.warnings) == (2, [True], [])


@pytest.mark.parametrize("method", ["one_pass", "bisect"])
def test_one_step_is_enough(method: Any) -> None:
    reply = verified(0) if method == "one_pass" else judged(False)
    found = ErrorLocalizer(ScriptedLM([reply]), method)(problem="?", steps=["Done."])
    assert (found.first_error, found.usage.calls) == (0, 1)


@pytest.mark.parametrize(
    "steps", [[], "", " \n\n ", ["a", "  "], ["a", 3], None, 5, iter(["a"]), Trace(Problem("p", "?"))]
)
def test_an_attempt_without_steps_or_with_a_blank_one_is_refused_before_anything_is_asked(steps: Any) -> None:
    lm = ScriptedLM([])
    with pytest.raises(DataError, match=r"steps"):
        ErrorLocalizer(lm)(problem="?", steps=steps)
    assert lm.calls == []


@pytest.mark.parametrize("problem", ["", "  ", None, 3, Problem("p", " ")])
def test_a_problem_without_a_question_is_refused(problem: Any) -> None:
    with pytest.raises(DataError, match=r"problem is .*give the (text of a problem|question)"):
        ErrorLocalizer(ScriptedLM([]))(problem=problem, steps=STEPS)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "guess"},
        {"method": "scorer"},
        {"scorer": Scorer()},
        {"samples": 0},
        {"threshold": 1.5},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ErrorLocalizer(ScriptedLM([]), **settings)


@pytest.mark.parametrize("form", ["compact", "chat", "json"])
def test_general_formats_count_steps_from_one_and_what_is_returned_from_nought(form: Any) -> None:
    reply = {
        "compact": "#checks:\n1 | 0 | 0 | right\n2 | 1 | 2 | wrong\n#first_error: 2\n#critical_error: 2",
        "chat": '[[ ## checks ## ]]\n[{"step": 1, "quote": "0", "expected": "0", "verdict": "right"}, {"step": 2, '
        '"quote": "1", "expected": "2", "verdict": "wrong"}]\n\n[[ ## first_error ## ]]\n2\n\n'
        "[[ ## critical_error ## ]]\n2\n\n[[ ## completed ## ]]",
        "json": '{"checks": [{"step": 1, "quote": "0", "expected": "0", "verdict": "right"}, {"step": 2, "quote": "1", '
        '"expected": "2", "verdict": "wrong"}], "first_error": 2, "critical_error": 2}',
    }[form]
    lm = ScriptedLM([reply])
    found = ErrorLocalizer(lm, adapter=form)(problem="?", steps=STEPS)
    assert (found.first_error, found.critical_error, [row.step for row in found.checks]) == (1, 1, [0, 1])
    assert (found.verdicts, found.warnings, found.repairs) == ([True, False], [], [])
    assert "[1] There are 0.\n[2] Then there is 1.\n[3] So 2." in prompts(lm)[0]


def test_a_quote_in_quotation_marks_is_one() -> None:
    reply = verified(1).replace("2 | 1 |", '2 | "Then there is 1 |')
    assert ErrorLocalizer(ScriptedLM([reply]))(problem="?", steps=STEPS).warnings == []


def test_the_labs_own_format_counts_from_nought() -> None:
    lm = ScriptedLM(["#checks:\n0 | 0 | 0 | right\n1 | 1 | 2 | wrong\n#first_error: 1\n#critical_error: 1"])
    found = ErrorLocalizer(lm, bare=True)(problem="?", steps=STEPS)
    assert (found.first_error, found.verdicts, found.warnings) == (1, [True, False], [])
    assert "[0] There are 0.\n[1] Then" in prompts(lm)[0]


def test_a_reply_that_counts_from_nought_where_the_prompt_does_not_is_asked_for_again() -> None:
    nought = "#checks:\n0 | 0 | 0 | right\n1 | 1 | 2 | wrong\n#first_error: 1\n#critical_error: 1"
    found = ErrorLocalizer(ScriptedLM([nought, verified(1)]))(problem="?", steps=STEPS)
    assert (found.first_error, len(found.repairs)) == (1, 1)
