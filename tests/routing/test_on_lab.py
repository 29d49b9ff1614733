"""The shipped lab models, routed: what the demo shows must hold on a small sample too."""

from __future__ import annotations

import pytest

from stepwise import lab
from stepwise.config import Config
from stepwise.errors import DataError
from stepwise.lab.problems import generate
from stepwise.routing import Always, Never, StepRouter, Threshold
from stepwise.routing.compare import Measured, compare


def shipped() -> bool:
    try:
        return all(lab.model_path(name).exists() for name in lab.MODELS)
    except DataError:
        return False


pytestmark = pytest.mark.skipif(not shipped(), reason="the lab's models are not in this checkout")


def test_thirty_lab_problems_are_repaired_where_the_scorer_points_and_hardly_a_token_is_evaluated_twice() -> None:
    problems = [made.problem for made in generate("test", 30)]
    ratios: list[float] = []
    with StepRouter.from_config(Config.lab()) as router:

        def told(_: Measured) -> None:
            for model in router.models:
                counters = model.engine.counters  # type: ignore[union-attr]
                ratios.append(counters.evaluated_tokens / max(counters.distinct_tokens, 1))

        routed, never, always = compare(
            router, [Threshold(0.5), Never(), Always()], problems, progress=False, on_measured=told
        )
    assert max(ratios[:3]) <= 1.05
    assert never.accuracy is not None
    assert routed.accuracy is not None
    assert always.accuracy is not None
    assert 0.2 <= never.accuracy <= 0.65
    assert always.accuracy >= 0.85
    assert routed.accuracy >= never.accuracy + 0.15
    assert 0 < routed.cost.strong_tokens < 0.6 * always.cost.strong_tokens
