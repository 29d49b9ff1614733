"""Who is asked for guided rollouts, and who is kept, with outcomes that are written down beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from stepwise.grading import Verdict
from stepwise.interventions.filtering import Wanted, chosen, counts_of, guided_by
from stepwise.interventions.rows import Candidate, GuidedRollout, Made
from stepwise.interventions.settings import CollectSettings

MADE = Made("weak", "prompt", "config", 1)


def candidates(*names: str) -> list[Candidate]:
    """ "a0" is candidate 0 of attempt a."""
    return [Candidate(name, "p", name[0], 0, "step", MADE) for name in names]


def run(outcomes: dict[str, str], **settings: Any) -> tuple[list[GuidedRollout], list[list[Wanted]], list[str]]:
    """The rollouts, the batches, and who is kept; rollout i of a candidate ends as digit i says, later ones wrong."""
    batches: list[list[Wanted]] = []

    def sample(wanted: Sequence[Wanted]) -> list[GuidedRollout]:
        batches.append(list(wanted))
        return [
            GuidedRollout(
                f"{one.candidate.id}/g{i}", "p", i, "", "eos", MADE, candidate=one.candidate.id, phase=one.phase,
                verdict=Verdict.CORRECT if outcomes[one.candidate.id][i : i + 1] == "1" else Verdict.WRONG,
            )
            for one in wanted for i in range(one.first, one.first + one.n)
        ]  # fmt: skip

    rows, how = candidates(*outcomes), CollectSettings(**{"fresh": 0, **settings})
    guided = guided_by(rows, sample, how)
    return guided, batches, [row.id for row in chosen(rows, guided, how)]


def asked(guided: Sequence[GuidedRollout], phase: str = "filter") -> dict[str, int]:
    found: dict[str, int] = {}
    for row in guided:
        found[row.candidate] = found.get(row.candidate, 0) + (row.phase == phase)
    return found


def test_each_candidate_gets_what_the_rule_says_and_no_rollout_twice() -> None:
    guided, batches, kept = run({"a0": "", "b0": "1", "c0": "0001"}, compare=0)
    assert asked(guided) == {"a0": 12, "b0": 2, "c0": 4}
    assert [[(one.candidate.id, one.first, one.n) for one in batch] for batch in batches] == [
        [("a0", 0, 2), ("b0", 0, 2), ("c0", 0, 2)], [("a0", 2, 2), ("c0", 2, 2)], [("a0", 4, 4)], [("a0", 8, 4)],
    ]  # fmt: skip
    assert kept == ["b0", "c0"]
    assert len({row.id for row in guided}) == len(guided)


def test_where_the_first_is_kept_its_siblings_are_asked_no_further() -> None:
    guided, _, kept = run({"a0": "", "a1": "001", "b0": ""}, keep="first")
    assert asked(guided) == {"a0": 4, "a1": 4, "b0": 12}
    assert kept == ["a1"]


def test_rivals_are_compared_with_as_many_rollouts_as_said_and_the_better_one_is_kept() -> None:
    outcomes = {"a0": "1" + "0" * 40, "a1": "1" * 40, "b0": "1" * 40, "c0": "", "c1": "1"}
    guided, _, kept = run(outcomes, compare=8)
    assert asked(guided, "compare") == {"a0": 4, "a1": 4, "b0": 0, "c0": 0, "c1": 0}
    assert kept == ["a1", "b0", "c1"]
    assert run(outcomes, compare=0)[2] == ["a1", "b0", "c1"]
    assert run(outcomes, keep="all")[2] == ["a0", "a1", "b0", "c1"]
    assert asked(run(outcomes, keep="all")[0], "compare") == dict.fromkeys(outcomes, 0)


def test_only_those_that_are_kept_are_measured_afresh_and_that_does_not_choose_them() -> None:
    guided, _, kept = run({"a0": "11" + "0" * 40, "a1": "10" + "1" * 40, "b0": ""}, compare=0, fresh=5)
    assert kept == ["a0"]
    assert asked(guided, "fresh") == {"a0": 5, "a1": 0, "b0": 0}
    assert counts_of(guided) == {"a0": (2, 2), "a1": (1, 2), "b0": (0, 12)}
    assert counts_of(guided, fresh=True) == {"a0": (0, 5)}


def test_a_rollout_that_could_not_be_judged_is_in_no_rate() -> None:
    row = GuidedRollout("a0/g0", "p", 0, "", "error", MADE, candidate="a0", error="gone")
    assert counts_of([row]) == {}
    assert chosen(candidates("a0"), [row], CollectSettings()) == []


@pytest.mark.parametrize(
    "settings", [{}, {"keep": "all", "fresh": 4}, {"keep": "first"}, {"enough": None}, {"miss": 0.0}]
)
@pytest.mark.parametrize("digits", ["", "1", "0" * 11 + "1", "1" * 60])
def test_no_attempt_takes_more_than_the_worst_case(settings: dict[str, Any], digits: str) -> None:
    guided, batches, _ = run(dict.fromkeys(("a0", "a1", "a2"), digits), **settings)
    rollouts, requests = CollectSettings(**settings).worst_guiding(3)
    assert len(guided) <= rollouts
    assert sum(map(len, batches)) <= requests
