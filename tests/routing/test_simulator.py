"""Simulated episodes: they are those of the routing POMDP, whatever is done in them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from stepwise.errors import DataError
from stepwise.routing.policy import FOR_GOOD
from stepwise.routing.pomdp.simulator import Drafts, RouterSimulator
from tests.routing.learning_world import LAW, MODEL, WORLD, Optimal
from tests.routing.pomdp_world import SMALL, transitions


def never(drafts: Drafts) -> Any:
    return np.zeros(len(drafts.scores))


def by_chance(drafts: Drafts) -> Any:
    """As good as random: the third digit of the score."""
    return (drafts.scores[:, -1] * 1000 % 10 < 4).astype(int)


def test_states_scores_and_lengths_follow_the_models_laws() -> None:
    seen = list[Drafts]()

    def act(drafts: Drafts) -> Any:
        seen.append(drafts)
        return by_chance(drafts)

    made = replace(WORLD, strong_scored=True).play(act, 20_000, seed=1)
    states = np.concatenate([drafts.state for drafts in seen])
    scores = np.concatenate([drafts.scores[:, -1] for drafts in seen])
    for state in range(3):
        shares = np.histogram(scores[states == state], bins=LAW.edges)[0] / (states == state).sum()
        assert shares == pytest.approx(LAW.rows[state], abs=0.012)
    matrices = transitions(MODEL)
    for now, after in pairwise(seen):
        for action in (0, 1):
            for state in range(3):
                going_on = ~now.last
                chosen = (by_chance(now)[going_on] == action) & (now.state[going_on] == state)
                if chosen.sum() > 1500:
                    shares = np.bincount(after.state[chosen], minlength=3) / chosen.sum()
                    assert shares == pytest.approx(matrices[action][state], abs=0.045)
    reached = np.array([(made.steps >= k).mean() for k in range(1, 9)])
    hazard = [(made.steps == k).sum() / (made.steps >= k).sum() for k in range(1, 9)]
    assert reached[0] == 1
    assert hazard == pytest.approx(MODEL.hazard[1:], abs=0.03)


def test_the_exact_plan_earns_its_root_value_in_it() -> None:
    price = 0.008
    made = WORLD.play(Optimal(WORLD, cost_per_token=price), 8000, seed=2)
    value = made.objective(price)
    assert value.mean() == pytest.approx(sum(Optimal(WORLD, cost_per_token=price).plan.root_value) / 2, abs=0.015)


def test_the_strong_model_stays_for_as_many_steps_as_it_is_told_and_nothing_is_drafted_meanwhile() -> None:
    model = replace(MODEL, hazard=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0), p_strong=(1.0,), p_weak=0.0)
    world = replace(WORLD, model=model, token_spread=0.0)
    asked = list[int]()

    def act(drafts: Drafts) -> Any:
        asked.append(drafts.step)
        return [1] * len(drafts.scores)

    thrice = world.play(act, 3, runs=(0, 3))
    assert asked == [0, 3]
    assert (thrice.steps.tolist(), thrice.strong_steps.tolist()) == ([6, 6, 6], [6, 6, 6])
    assert thrice.right.all()
    assert thrice.decisions.strong_tokens.tolist() == [60.0] * 6
    assert thrice.decisions.draft_tokens.tolist() == [20.0] * 3 + [0.0] * 3
    assert thrice.draft_tokens.tolist() == [40.0] * 3
    for_good = world.play(lambda drafts: [1] * len(drafts.scores), 2, runs=(0, FOR_GOOD))
    assert for_good.decisions.strong_tokens.tolist() == [120.0, 120.0]
    assert for_good.objective(0.001, 0.5) == pytest.approx([1 - 0.12 - 0.01] * 2)


def test_costs_are_counted_for_the_decision_that_caused_them_and_add_up() -> None:
    world = replace(WORLD, token_spread=0.5)
    made = world.play(lambda drafts: by_chance(drafts) * (1 + drafts.step % 2), 500, runs=(0, 1, 3), seed=3)
    each = np.bincount(made.decisions.episode, made.decisions.strong_tokens, minlength=500)
    assert each == pytest.approx(made.strong_tokens)
    drafts = np.bincount(made.decisions.episode, made.decisions.draft_tokens, minlength=500)
    first = made.decisions.tokens[made.decisions.step == 0, 0]
    assert drafts + first == pytest.approx(made.draft_tokens)
    assert (made.decisions.strong_tokens[made.decisions.action == 0] == 0).all()


def test_what_is_seen_of_a_rewritten_step_is_the_strong_models_own_score_or_none() -> None:
    def act(drafts: Drafts) -> Any:
        assert not np.isnan(drafts.scores[:, -1]).any()
        assert np.isnan(drafts.scores[:, :-1]).all()
        return np.ones(len(drafts.scores))

    WORLD.play(act, 20)
    sure = replace(WORLD, strong_scored=True, model=replace(MODEL, p_strong=(1.0,)))
    made = sure.play(lambda drafts: np.ones(len(drafts.scores)), 4000)
    own = made.decisions.scores[made.decisions.step == 2, 0]
    assert np.histogram(own, bins=LAW.edges)[0] / len(own) == pytest.approx(LAW.rows[0], abs=0.03)


def test_one_seed_gives_all_policies_the_same_problems_and_first_drafts() -> None:
    world = replace(WORLD, token_spread=0.5)
    one, other = world.play(never, 50, seed=7), world.play(by_chance, 50, seed=7)
    assert (one.steps == other.steps).all()
    assert (one.decisions.scores[:50, 0] == other.decisions.scores[:50, 0]).all()
    assert (one.objective(0.0) != world.play(never, 50, seed=8).objective(0.0)).any()


def test_token_counts_are_those_given() -> None:
    made = replace(WORLD, tokens=(7, 30)).play(never, 4000)
    assert set(made.decisions.tokens[:, 0]) == {7.0, 30.0}
    spread = replace(WORLD, token_spread=0.5).play(never, 4000).decisions.tokens[:4000, 0]
    assert (spread.mean(), spread.std()) == (pytest.approx(20, rel=0.05), pytest.approx(10, rel=0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RouterSimulator(SMALL, LAW), "p_strong has 2 entries"),
        (lambda: replace(WORLD, tokens=(5, 0)), "tokens has 0"),
        (lambda: replace(WORLD, token_spread=-1.0), "token_spread is -1"),
        (lambda: WORLD.play(never, 0), "n is 0"),
        (lambda: WORLD.play(never, 1, runs=(0, -1)), "runs is"),
    ],
)
def test_what_cannot_be_simulated_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()
