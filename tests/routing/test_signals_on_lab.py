"""Signals on the shipped lab models. Thresholds were set on 60 problems of the split "val" to flag a tenth of the steps
(entropy, drop); agreement flags whatever is not unanimous.
"""

from __future__ import annotations

from itertools import chain

import pytest

from stepwise.config import Config
from stepwise.lab.problems import generate
from stepwise.routing import Agreement, Always, FirstTokenEntropy, Never, ScoreDrop, Signalled, StepRouter
from stepwise.routing.compare import Measured, compare
from tests.routing.test_on_lab import shipped

pytestmark = pytest.mark.skipif(not shipped(), reason="the lab's models are not in this checkout")
POLICIES = [
    Never(),
    Always(),
    Signalled(FirstTokenEntropy(), 0.73),
    Signalled(ScoreDrop(), 0.04),
    Signalled(Agreement(2), 1.0),
]


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    problems = [made.problem for made in generate("test", 12)]
    with StepRouter.from_config(Config.lab()) as router:
        return {arm.family: arm for arm in compare(router, POLICIES, problems, progress=False)}


def accuracy(arm: Measured) -> float:
    assert arm.accuracy is not None
    return arm.accuracy


def test_entropy_of_the_first_token_saves_the_drafts_and_pays_a_token_for_each_glimpse(
    measured: dict[str, Measured],
) -> None:
    arm, never = measured["first_token_entropy"], measured["never"]
    steps = list(chain.from_iterable(view.trace.steps for view in arm.views))
    escalated = [step for step in steps if step.author == "strong"]
    assert escalated
    assert arm.cost.discarded_tokens == 0
    assert all(len(step.evidence) == 1 and not step.discarded for step in steps)
    spent = [view.trace.usage["weak"].generated_tokens for view in arm.views]
    kept = sum(step.usage.generated_tokens for step in steps if step.author == "weak")
    assert sum(spent) == kept + len(steps)
    assert accuracy(arm) > accuracy(never)


def test_the_score_drop_recovers_most_of_the_gap_for_a_fraction_of_the_strong_tokens(
    measured: dict[str, Measured],
) -> None:
    arm, never, always = (measured[name] for name in ("score_drop", "never", "always"))
    assert accuracy(arm) >= accuracy(never) + 0.5 * (accuracy(always) - accuracy(never))
    assert 0 < arm.cost.strong_tokens < 0.3 * always.cost.strong_tokens


def test_agreement_pays_for_its_samples_and_misses_what_the_weak_model_gets_wrong_with_certainty(
    measured: dict[str, Measured],
) -> None:
    arm, drop = measured["agreement"], measured["score_drop"]
    for view in arm.views:
        assert all(len(step.evidence) == 2 for step in view.trace.steps)
        assert view.trace.usage["weak"].calls == 3 * len(view.trace.steps)
    assert accuracy(arm) < accuracy(drop)
    assert arm.cost.all_tokens > 2 * drop.cost.all_tokens
