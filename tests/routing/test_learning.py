"""Training: it learns, a killed one goes on to the same policy, and it goes on with models in the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise.errors import ConfigError
from stepwise.routing import Learned
from stepwise.routing.learned import files_of
from stepwise.routing.policy import FOR_GOOD
from stepwise.routing.pomdp.simulator import Drafts
from stepwise.routing.ppo import PpoSettings, _acting, _PpoLearner, train
from tests.routing.learning_world import MODEL, PAIR, WORLD, Optimal, trained

pytest.importorskip("torch", reason='training needs pip install "stepwise[train]"')
SCORED = replace(WORLD, strong_scored=True)  # as the loop does
QUICK = {"learning_rate": 1e-3, "problems": 256, "epochs": 8, "dropout": 0.0, "validate_every": 20, "validation": 1000}


def objectives(act: Any, price: float, n: int = 4000, **more: Any) -> Any:
    """The objective in each of `n` episodes that training has not seen, (n,), which are the same for all."""
    return SCORED.play(act, n, seed=99, **more).objective(price)


def of_policy(policy: Learned, price: float, n: int = 4000) -> Any:
    """The same for a learned policy."""
    return objectives(_acting(policy.card.kind, policy.weights), price, n, runs=policy.card.runs)


def margin_over_thresholds(policy: Learned, price: float) -> float:
    """By how many standard errors it beats the best of 21 thresholds on the score, paired over 10,000 episodes. The
    threshold is chosen on these very episodes, which flatters it.
    """
    n = 10_000
    arms = [objectives(lambda d, t=t: d.scores[:, -1] < t, price, n) for t in np.linspace(0, 1, 21)]
    gain = of_policy(policy, price, n) - max(arms, key=np.mean)
    return float(gain.mean() / (gain.std() / np.sqrt(n)))


def optimum(price: float) -> float:
    """What the exact plan is worth in 4,000 of them; it does not look at the strong model's own scores."""
    return float(objectives(Optimal(SCORED, cost_per_token=price), price).mean())


def test_the_learned_policy_beats_every_threshold_and_comes_near_the_exact_optimum(tmp_path: Path) -> None:
    price = 0.008
    given = {**QUICK, "problems": 128, "learning_rate": 2e-3, "batches": 300, "test": 1000, "price": price}
    policy = trained(tmp_path, SCORED, **given)
    value = float(of_policy(policy, price).mean())
    assert margin_over_thresholds(policy, price) > 3
    assert value > 0.98 * optimum(price)
    figures = policy.card.simulated
    assert figures is not None
    assert abs(figures.objective - value) < 4 * figures.error


@pytest.mark.slow
@pytest.mark.timeout(3600)  # minutes, and more where the machine is busy
def test_the_sequence_policy_learns_too(tmp_path: Path) -> None:
    price = 0.008
    policy = trained(tmp_path, SCORED, kind="seq", **{**QUICK, "price": price, "batches": 200})
    assert margin_over_thresholds(policy, price) > 3
    assert of_policy(policy, price).mean() > 0.98 * optimum(price)


@pytest.mark.slow
def test_where_drafts_have_a_price_it_learns_to_hand_over(tmp_path: Path) -> None:
    price, share = 0.002, 1.0
    wide = trained(tmp_path, **{**QUICK, "price": price, "draft_share": share, "hand_over": True, "batches": 150})
    made = WORLD.play(_acting("agg", wide.weights), 4000, runs=wide.card.runs, seed=99)
    drafts = MODEL.tokens_per_step * np.cumprod([1 - h for h in MODEL.hazard])[:-1].sum()  # one for each step
    narrow = MODEL.solve(price).root_value[1] - price * share * drafts
    assert wide.card.runs == (0, 1, FOR_GOOD)
    assert made.objective(price, share).mean() > narrow + 0.02
    assert (made.decisions.action == 2).sum() > 1000


class Killed(BaseException):
    """Stands for kill -9."""


def test_a_killed_training_goes_on_to_the_same_policy(tmp_path: Path) -> None:
    settings = {
        "kind": "agg",
        "stay": (2,),
        "batches": 9,
        "problems": 8,
        "validate_every": 2,
        "validation": 20,
        "test": 20,
    }
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done == 5:
            raise Killed

    whole = train(WORLD, PpoSettings(**settings), PAIR, tmp_path / "whole")
    with pytest.raises(Killed):
        train(WORLD, PpoSettings(**settings), PAIR, tmp_path / "killed", advance=advance)
    done = -100
    again = train(WORLD, PpoSettings(**settings), PAIR, tmp_path / "killed", advance=advance)
    assert done == -100 + 9  # four of them were on disk
    assert again.card == whole.card
    for ours, theirs in zip(files_of(tmp_path / "whole", 8e-4), files_of(tmp_path / "killed", 8e-4), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
    assert {path.suffix for path in (tmp_path / "killed").iterdir()} == {".json", ".safetensors"}


def test_a_finished_policy_is_taken_as_it_is_and_other_settings_are_refused(tmp_path: Path) -> None:
    first = trained(tmp_path)
    card, weights = first.card, files_of(tmp_path, 8e-4)[0].stat().st_mtime_ns
    assert (trained(tmp_path).card, files_of(tmp_path, 8e-4)[0].stat().st_mtime_ns) == (card, weights)
    with pytest.raises(ConfigError, match="is of a policy with other settings"):
        trained(tmp_path, batches=7)
    learner = _PpoLearner(PpoSettings())
    learner.save(files_of(tmp_path, 0.5)[1].with_suffix(".checkpoint"), {}, mark="0", found="0.0", at="0")
    with pytest.raises(ConfigError, match="checkpoint is of other settings"):
        trained(tmp_path, price=0.5)


def test_a_strong_model_that_is_worse_than_the_weak_one_is_not_paid_for(tmp_path: Path) -> None:
    world = replace(WORLD, model=replace(MODEL, p_weak=0.95, p_strong=(0.6,)))
    settings = PpoSettings(**{**QUICK, "price": 0.005, "batches": 30, "test": 1000})
    policy = train(world, settings, PAIR, tmp_path)

    def never(drafts: Drafts) -> Any:
        return np.zeros(len(drafts.scores))

    made = world.play(_acting("agg", policy.weights), 2000, seed=5)
    assert made.objective(0.005).mean() >= world.play(never, 2000, seed=5).objective(0.005).mean()
