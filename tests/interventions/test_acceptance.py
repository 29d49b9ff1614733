"""A step is accepted for more right rollouts than luck gives, at a rate that is counted in the attempts themselves."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest

from stepwise.grading import Verdict
from stepwise.interventions import pipeline
from stepwise.interventions.acceptance import PrefixRates, luck, needed
from stepwise.interventions.filtering import Wanted, chosen, guided_by
from stepwise.interventions.rows import Candidate, FailedAttempt, GuidedRollout, Located, Made, Rollout, by_id
from stepwise.interventions.settings import CollectSettings
from tests.fakes import ScriptedBackend
from tests.interventions.world import CONFIG, SETTINGS, problems, writers

MADE = Made("weak", "prompt", "config", 1)
INVENTED = "I compute it.\n```python\nprint(17 + 5)\n```\n```output\n22\n```\nSo \\boxed{91}."


@pytest.mark.parametrize(
    ("n", "rate", "least"),
    [(32, 0.0007, 1), (8, 0.1, 3), (8, 0.0, 1), (1, 0.1, 1), (4, 0.9, 5), (32, 0.1, 6), (8, 1.0, 9)],
)
def test_the_least_successes_that_luck_seldom_gives(n: int, rate: float, least: int) -> None:
    assert needed(n, rate) == least
    assert least > n or luck(least, n, rate) <= 0.1 < luck(least - 1, n, rate)


def attempts(problem: str, right: int, *errors: int | None) -> tuple[list[Rollout], list[FailedAttempt], list[Located]]:
    """Right attempts at a problem, and wrong ones of four steps with these first errors (None: none was found)."""
    good = [
        Rollout(f"{problem}/r{i}", problem, i, "So.", "answer", MADE, verdict=Verdict.CORRECT) for i in range(right)
    ]
    bad, failures, located = [], [], []
    for i, error in enumerate(errors, right):
        name, steps = f"{problem}/r{i}", ("One.", "Two.", "Three.", f"Four{i}.")
        bad.append(Rollout(name, problem, i, "\n\n".join(steps), "answer", MADE, verdict=Verdict.WRONG))
        failures.append(FailedAttempt(name, problem, steps, "5", Verdict.WRONG))
        located.append(Located(f"{name}/l", problem, name, error, MADE))
    return [*good, *bad], failures, located


def test_the_rate_is_that_of_problems_with_as_many_other_right_attempts_that_came_so_far() -> None:
    rates = PrefixRates()
    for i in range(30):
        rates.add(*attempts(f"never{i}", 0, 0, 1, 2, None))
    rates.add(*attempts("once", 1, 0, 1, 2)).add(*attempts("often", 3, 0))
    # Beside none: 120 wrong ones, and the right one of "once"; beside one: the three wrong ones of "once".
    assert rates.rate(0, 0) == pytest.approx(1.5 / 122)
    assert rates.rate(0, 2) == pytest.approx(1.5 / 62)  # half of the wrong ones had two steps right
    assert rates.rate(1, 0) == pytest.approx(0.5 / 4)
    assert rates.rate(2, 0) == pytest.approx(3.5 / 4)
    rows = [Candidate("a", "never3", "never3/r0", 2, "x", MADE), Candidate("b", "once", "once/r1", 0, "x", MADE)]
    assert [row.rate for row in rates.of(rows)] == [round(1.5 / 62, 6), 0.125]


def test_a_right_attempt_with_an_invented_output_is_no_right_one() -> None:
    rollouts, failures, located = attempts("p", 1, 0)
    invented = dataclasses.replace(rollouts[0], text=INVENTED)
    assert PrefixRates().add([invented, rollouts[1]], failures, located).rate(0, 0) == pytest.approx(0.5 / 3)


def run(outcomes: str, rate: float | None, **settings: Any) -> tuple[int, bool]:
    """How many rollouts a candidate with this rate is asked for that end as the digits say, and whether it is kept."""

    def sample(wanted: Sequence[Wanted]) -> list[GuidedRollout]:
        return [
            GuidedRollout(
                f"a/g{i}", "p", i, "", "eos", MADE, candidate="a", phase=one.phase,
                verdict=Verdict.CORRECT if outcomes[i : i + 1] == "1" else Verdict.WRONG,
            )
            for one in wanted for i in range(one.first, one.first + one.n)
        ]  # fmt: skip

    rows = [Candidate("a", "p", "f", 0, "step", MADE, rate=rate)]
    how = CollectSettings(**{"fresh": 0, "guided": 8, **settings})
    guided = guided_by(rows, sample, how)
    return len(guided), bool(chosen(rows, guided, how))


def test_a_candidate_is_asked_until_it_has_what_luck_does_not_give_or_can_no_longer_have_it() -> None:
    assert run("1", 0.01) == (2, True)
    assert run("11", 0.1) == (8, False)  # two of eight are luck at 10 %
    assert run("1101", 0.1) == (4, True)
    assert run("10000000", 0.1) == (8, False)
    assert run("1" * 8, 0.9) == (0, False)  # not even eight of eight would be a sign
    assert run("1" * 8, 0.5) == (8, True)  # seven are needed
    assert run("0011111", 0.5, batch=2) == (2, False)  # two failures are too many
    assert run("11", 0.1, accept="success") == (2, True)
    assert run("1", 0.1, accept="success") == (2, True)


def test_what_accepts_is_the_filter_and_not_the_comparison() -> None:
    row = Candidate("a", "p", "f", 0, "step", MADE, rate=0.1)
    rows = [
        GuidedRollout(f"a/g{i}", "p", i, "", "eos", MADE, candidate="a", phase=phase, verdict=Verdict.CORRECT)
        for i, phase in enumerate(["filter", "filter", "compare", "compare", "fresh"])
    ]
    assert chosen([row], rows, CollectSettings(guided=8)) == []


def test_the_rule_does_not_accept_luck_more_often_than_it_says() -> None:
    rng = random.Random(5)
    for rate in (0.05, 0.2, 0.4):
        accepted = [
            run("".join(str(int(rng.random() < rate)) for _ in range(16)), rate, guided=16, miss=0.0)[1]
            for _ in range(400)
        ]
        assert sum(accepted) / 400 < 0.14


def test_no_order_of_outcomes_takes_more_rollouts_than_the_worst_case() -> None:
    rng = random.Random(2)
    for rate in (0.01, 0.1, 0.3):
        for share in [0.1, 0.3] * 50:
            outcomes = "".join(str(int(rng.random() < share)) for _ in range(8))
            assert run(outcomes, rate)[0] <= CollectSettings(guided=8).worst_filtering()[0]


def test_rollouts_with_invented_output_do_not_count_and_say_why() -> None:
    (problem,) = problems(1)
    attempt = FailedAttempt("p0/r0", "p0", ("17 + 5 = 23.", "So 92."), "92", Verdict.WRONG)
    row = Candidate("p0/r0/c0", "p0", "p0/r0", 0, "17 + 5 = 22.", MADE)
    settings = SETTINGS.model_copy(update={"guided": 2})
    weak = ScriptedBackend(lambda *_: INVENTED, "weak")
    chunk = pipeline.Chunk(by_id([problem]), writers(weak), CONFIG, settings)
    guided = pipeline.guide([row], by_id([attempt]), chunk)
    assert [(one.verdict, one.error) for one in guided] == [(None, "it has code with an invented output")] * 2
    assert pipeline.select([row], guided, by_id([attempt]), chunk) == []
