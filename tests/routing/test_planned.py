"""Policies on the belief: what they decide, and what they do end to end with a model fitted to labelled traces."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise.errors import ConfigError, DataError
from stepwise.routing import (
    Always,
    BeliefThreshold,
    Escalate,
    Keep,
    Never,
    ObservationLaw,
    Planned,
    Published,
    RoutingPomdp,
    StepRouter,
    Threshold,
    View,
    policy_from_dict,
    policy_to_dict,
)
from stepwise.routing.compare import Measured, compare
from stepwise.routing.pomdp.policies import _ends
from stepwise.types import Problem, Step, Usage
from tests.fakes import ScriptedScorer
from tests.routing.lab_world import LabWorld
from tests.routing.pomdp_world import SMALL, critical_tokens

LAW = ObservationLaw((0.0, 0.2, 0.5, 0.8, 1.0), SMALL.observation)
MODEL = replace(SMALL, p_strong=(0.95,))
PAIR = ObservationLaw((0.0, 0.5, 1.0), SMALL.observation, pair=True)
POLICIES: list[Any] = [
    BeliefThreshold(MODEL, LAW, 0.4),
    BeliefThreshold(MODEL, LAW, history="memoryless"),
    Planned(MODEL, LAW, 0.3),
    Planned(MODEL, LAW, 0.3, history="memoryless"),
    Planned(MODEL, LAW, history="published"),
    Published(MODEL, LAW, 0.2, gate=0.5),
    Published(MODEL, PAIR),
]


def view(*scores: float | None, tokens: int = 20, text: str = "a draft", finish: str = "step") -> View:
    """The last score is the draft's, the ones before it of kept steps."""
    steps = tuple(Step(f"step {i}", "weak", score) for i, score in enumerate(scores[:-1]))
    draft = Step(text, "weak", scores[-1], Usage(generated_tokens=tokens))
    return View(Problem("p", "How many?"), steps, draft, finish)


def escalates(policy: Any, seen: View) -> bool:
    return isinstance(policy.decide(seen), Escalate)


# What they decide


def test_the_threshold_on_the_belief_is_strict_and_looks_at_wrong_just_now() -> None:
    seen = view(0.9, 0.3)
    now = float(BeliefThreshold(MODEL, LAW).filter.beliefs([0.9, 0.3])[-1, 2])
    assert 0.1 < now < 0.9
    assert escalates(BeliefThreshold(MODEL, LAW, now - 1e-9), seen)
    assert not escalates(BeliefThreshold(MODEL, LAW, now), seen)
    assert BeliefThreshold(MODEL, LAW, now).decide(seen).reason == f"P(wrong just now) {now:.6f} <= {now:.6f}"
    assert BeliefThreshold(MODEL, LAW, 0.0).decide(seen).reason == f"P(wrong just now) {now:.2f} > 0.00"
    # once an error is likely to stand already, the same score no longer calls for the strong model
    policy = BeliefThreshold(MODEL, LAW, now - 0.05)
    assert not escalates(policy, view(0.1, 0.1, 0.1, 0.3))
    assert escalates(replace(policy, history="published"), view(0.1, 0.1, 0.1, 0.1))


@pytest.mark.parametrize("history", ["filter", "memoryless", "published"])
def test_the_plan_decides_at_the_belief_the_step_and_the_tokens_of_the_draft(history: Any) -> None:
    policy, rng = Planned(MODEL, LAW, 0.5, history=history), random.Random(0)
    seen_actions = set()
    for _ in range(200):
        scores = [rng.random() for _ in range(rng.randint(1, 9))]
        belief = tuple(policy.filter.beliefs(scores)[-1].tolist())
        for last in (False, True):
            critical = critical_tokens(policy.plan, len(scores) - 1, belief, last=last)
            for tokens in (int(critical), int(critical) + 1):
                action = escalates(policy, view(*scores, tokens=tokens, finish="answer" if last else "step"))
                seen_actions.add((action, last))
                assert action == (tokens < critical), (scores, last, tokens, critical)
    assert len(seen_actions) == 4


def test_a_draft_that_ends_the_solution_has_a_decision_of_its_own() -> None:
    # A right last step is worth more than a right step with others to come, so more may be paid for it: up to 54 tokens
    # rather than up to 50.
    policy, scores, tokens = Planned(MODEL, LAW, 0.5), (0.9, 0.4), 52
    assert not escalates(policy, view(*scores, tokens=tokens))
    assert escalates(policy, view(*scores, tokens=tokens, finish="answer"))
    assert [_ends(view(0.5, text=text, finish=finish)) for text, finish in ENDINGS] == [False, True, True, True, False]
    reason = policy.decide(view(*scores, finish="eos")).reason
    assert reason.endswith("at the last step")
    published = Published(MODEL, LAW, 0.5, gate=2.0)
    for finish in ("step", "answer"):
        values = published.plan.action_values(1, tuple(published.filter.beliefs(scores)[-1].tolist()), tokens)
        assert escalates(published, view(*scores, tokens=tokens, finish=finish)) == (values[1] > values[0])


ENDINGS = [
    ("3 + 4 = 7", "step"),
    ("So \\boxed{7}.", "answer"),
    ("So \\boxed{7}.", "step"),
    ("I stop.", "eos"),
    ("\\boxed{", "length"),
]


def test_the_published_rule_keeps_what_its_gate_bars_and_steps_that_the_plan_does_not_have() -> None:
    sure, doubtful, open_gate = view(0.9), view(0.1), 2.0
    assert Published(MODEL, LAW, 0.0, open_gate).decide(sure).reason.startswith("worth")
    assert escalates(Published(MODEL, LAW, 0.0, open_gate), sure)
    gated = Published(MODEL, LAW, 0.0).decide(sure)
    assert (gated, gated.reason) == (Keep(), "wrong just now is 0.62 behind, gate 0.40")  # belief .75, .125, .125
    assert escalates(Published(MODEL, LAW, 0.0), doubtful)
    assert not escalates(Published(MODEL, LAW, 0.0), view(*[0.1] * (len(MODEL.hazard))))
    plan = Published(MODEL, LAW, 0.3).plan
    assert plan.root_value == MODEL.solve(0.3, published_hazard=True).root_value != MODEL.solve(0.3).root_value


def test_scores_that_are_missing_leave_the_prior_and_an_empty_draft_counts_as_zero() -> None:
    prior = BeliefThreshold(MODEL, LAW, 0.149)
    assert prior.decide(view(None)).reason == "P(wrong just now) 0.150000 > 0.149000"
    for policy in POLICIES:
        empty = view(None, text="")
        assert policy.decide(empty).reason == policy.decide(view(0.0)).reason


# As values


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_policies_on_the_belief_survive_a_dictionary_as_json(policy: Any) -> None:
    again: Any = policy_from_dict(json.loads(json.dumps(policy_to_dict(policy))))
    assert again == policy
    assert hash(again) == hash(policy)
    assert again.decide(view(0.9, 0.3)).reason == policy.decide(view(0.9, 0.3)).reason
    assert copy.deepcopy(policy) == policy
    with pytest.raises(AttributeError):
        policy.law = LAW


def test_a_plan_saved_by_an_earlier_version_is_read_unless_it_used_an_option_that_is_gone() -> None:
    state = {**policy_to_dict(POLICIES[2]), "stay": [], "hand_over": False, "draft_share": 0.4, "strong_law": None}
    assert policy_from_dict(state) == POLICIES[2]
    for key, value in (("stay", [2, 3]), ("hand_over", True), ("strong_law", {"edges": [0, 1]})):
        with pytest.raises(
            ConfigError, match=rf"routing\.{key} .*version before 0\.1\.0.*set the policy again without it"
        ):
            policy_from_dict({**state, key: value})


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_at_moves_the_operating_point_and_nothing_else(policy: Any) -> None:
    moved = policy.at(0.15)
    assert (moved.point, type(moved)) == (0.15, type(policy))
    assert moved.at(policy.point) == policy


def test_they_print_their_settings_and_not_their_tables() -> None:
    assert repr(POLICIES[0]) == ("BeliefThreshold(history='filter', tau=0.4, p_weak=0.85, p_strong=0.95, law=<4 bins>)")
    assert repr(POLICIES[6]) == (
        "Published(cost_per_token=0.25, gate=0.4, p_weak=0.85, p_strong=0.95, "
        "law=<2 x 2 bins of (least earlier, current) score>)"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BeliefThreshold(MODEL, LAW, tau=1.2), "tau"),
        (lambda: BeliefThreshold(MODEL, LAW, tau=float("nan")), "tau"),
        (lambda: Planned(MODEL, LAW, cost_per_token=-1), "cost_per_token"),
        (lambda: Published(MODEL, LAW, cost_per_token=float("inf")), "cost_per_token"),
        (lambda: Published(MODEL, LAW, gate=-0.1), "gate"),
        (lambda: Planned(SMALL, LAW), r"p_strong has 2 entries.*one strong model"),
        (lambda: Planned(MODEL, replace(LAW, rows=LAW.rows[::-1])), r"model\.observation is not law\.rows"),
        (lambda: Published(MODEL, PAIR.score_only()), r"model\.observation is not law\.rows"),
        (lambda: BeliefThreshold(MODEL, LAW, history="none"), "history"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_make_no_policy_are_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_a_saved_state_that_is_damaged_is_a_short_error_that_names_the_field() -> None:
    state = policy_to_dict(POLICIES[2])
    with pytest.raises(ConfigError, match=r"model.*p_weak has 2") as caught:
        policy_from_dict({**state, "model": {**state["model"], "p_weak": 2}})
    assert len(str(caught.value)) < 300
    with pytest.raises(ConfigError, match="needs model"):
        policy_from_dict({"policy": "planned"})
    with pytest.raises(ConfigError, match=r"'planed'; did you mean 'planned'\?.*threshold.*belief"):
        policy_from_dict({"policy": "planed"})


# End to end: a noisy scorer that sees an error, and sees it fade, as real ones do


class NoisyWorld(LabWorld):
    def __init__(self, n: int, split: str) -> None:
        super().__init__(n, split)
        self.scorer = ScriptedScorer(self._noisy, name="noisy")

    def _noisy(self, problem: Problem, steps: tuple[str, ...]) -> list[float]:
        scores, ok = [], True
        for text, right in zip(steps, self.made[problem.id].check(steps), strict=True):
            before, ok = ok, ok and right
            mean = 0.8 if ok else 0.45 if not before else 0.3
            scores.append(min(1.0, max(0.0, random.Random(problem.id + text).gauss(mean, 0.25))))
        return scores

    def router(self, policy: Any) -> StepRouter:
        return StepRouter(self.weak, self.strong, self.scorer, policy)


@cache
def fitted() -> tuple[RoutingPomdp, ObservationLaw]:
    """Counts over labelled traces of problems that are not tested on, one added to each bin."""
    world, bins = NoisyWorld(120, "train"), 10
    seen, right, wrong = np.ones((3, bins)), 0, 0
    lengths, tokens = list[int](), list[int]()
    for trace in world.router(Threshold(0.0)).solve_all(world.problems, progress=False):
        checked = world.made[trace.problem.id].check([step.text for step in trace.steps])
        first = checked.index(False) if False in checked else len(checked)
        right, wrong = right + first, wrong + (first < len(checked))
        lengths.append(len(checked))
        for i, step in enumerate(trace.steps):
            assert step.score is not None
            seen[0 if i < first else 2 if i == first else 1, min(int(step.score * bins), bins - 1)] += 1
            tokens.append(step.usage.generated_tokens)
    ending = np.bincount(lengths)
    hazard = [float(count / ending[k:].sum()) for k, count in enumerate(ending)]
    rows = (seen / seen.sum(1, keepdims=True)).tolist()
    law = ObservationLaw(tuple(i / bins for i in range(bins + 1)), (rows[0], rows[1], rows[2]))
    model = RoutingPomdp(right / (right + wrong), (0.99,), tuple(hazard), law.rows, float(np.mean(tokens)))
    return model, law


@cache
def measured() -> dict[str, list[Measured]]:
    model, law = fitted()
    world = NoisyWorld(40, "test")
    arms: dict[str, list[Any]] = {
        "ends": [Never(), Always()],
        "belief": [BeliefThreshold(model, law, x) for x in (0.8, 0.4, 0.1)],
        "planned": [Planned(model, law, x) for x in (200.0, 2.0, 1.0, 0.5)],
        "published": [Published(model, law, x) for x in (2.0, 0.5)],
    }
    every = [arm for family in arms.values() for arm in family]
    found = iter(compare(world.router(Never()), every, world.problems, progress=False))
    return {family: [next(found) for _ in arms[family]] for family in arms}


def test_a_lower_price_or_threshold_on_the_belief_buys_more_strong_tokens_and_more_right_answers() -> None:
    for family in ("belief", "planned", "published"):
        points = [arm.point for arm in measured()[family]]
        assert [point.cost for point in points] == sorted(point.cost for point in points), family
        assert [point.accuracy for point in points] == sorted(point.accuracy for point in points), family


def test_a_plan_recovers_far_more_than_the_share_of_the_gap_that_it_pays_for_and_a_dear_one_does_not_pay() -> None:
    never, always = (arm.point for arm in measured()["ends"])
    dear, *paid = (arm.point for arm in measured()["planned"])
    assert dear == never
    for point in paid:
        gap = (point.accuracy - never.accuracy) / (always.accuracy - never.accuracy)
        assert gap > 1.6 * point.cost / always.cost > 0.3


def test_every_decision_of_a_trace_is_the_plans_at_the_belief_over_the_whole_trace() -> None:
    model, law = fitted()
    world, policy = NoisyWorld(20, "test"), Planned(model, law, 1.0)
    escalated = 0
    for trace in world.router(policy).solve_all(world.problems, progress=False):
        drafts = [step.discarded[-1] if step.discarded else step for step in trace.steps]
        writers = [int(step.author == "strong") for step in trace.steps]
        escalated += sum(writers)
        beliefs = policy.filter.beliefs([draft.score for draft in drafts], writers)
        for t, draft in enumerate(drafts):
            last = draft is drafts[-1] and trace.finish == "answer" and "boxed" in draft.text
            keep, strong = policy.plan.action_values(t, beliefs[t].tolist(), draft.usage.generated_tokens, last=last)
            assert writers[t] == (strong > keep)
    assert escalated > 10


@pytest.mark.parametrize("kind", [BeliefThreshold, Planned, Published])
def test_a_router_with_a_policy_on_the_belief_is_saved_and_loaded(kind: Any, tmp_path: Path) -> None:
    model, law = fitted()
    saved, loaded = NoisyWorld(6, "test").router(kind(model, law).at(0.3)), NoisyWorld(6, "test").router(Never())
    saved.save(tmp_path / "router.json")
    loaded.load(tmp_path / "router.json")
    assert loaded.policy == saved.policy
    assert repr(saved.policy) in repr(loaded)
    problems = NoisyWorld(6, "test").problems
    assert loaded.solve_all(problems, progress=False) == saved.solve_all(problems, progress=False)
