"""The estimate of what routing saved, against what the strong model alone really takes."""

from __future__ import annotations

import dataclasses

import pytest

from stepwise.errors import DataError
from stepwise.routing import Always, Never, Random, Threshold
from stepwise.routing.metrics import cost_of, savings
from stepwise.types import Step, Trace
from tests.routing import world


@pytest.mark.parametrize("policy", [Random(0.1), Threshold(0.5), Random(0.9)])
def test_the_estimate_is_near_what_the_strong_model_alone_takes(policy: Random | Threshold) -> None:
    found = savings(world.solve(policy, 40))
    alone = cost_of(world.solve(Always(), 40))
    assert found.strong_only_tokens == pytest.approx(alone.strong_tokens, rel=0.1)
    assert found.tokens_saved == pytest.approx(1 - found.strong_tokens / alone.strong_tokens, abs=0.1)
    assert found.own_steps > 0
    assert "estimated" in found.in_words()[0]


def test_the_strong_model_alone_saves_nothing_and_the_weak_one_everything() -> None:
    assert savings(world.solve(Always(), 10)).tokens_saved == 0
    alone = savings(world.solve(Never(), 10))
    assert (alone.tokens_saved, alone.own_steps) == (1.0, 0)
    assert "wrote none" in alone.in_words()[0]


def unpriced(trace: Trace) -> Trace:
    """The trace without what the scripted models say that they cost, which is nothing."""

    def bare(step: Step) -> Step:
        usage = dataclasses.replace(step.usage, cost=None)
        return dataclasses.replace(step, usage=usage, discarded=tuple(map(bare, step.discarded)))

    return dataclasses.replace(trace, steps=tuple(map(bare, trace.steps)))


def test_money_counts_all_models_and_is_unknown_where_a_price_is() -> None:
    traces = [unpriced(trace) for trace in world.solve(Threshold(0.5), 10)]
    free = {"weak": (0.0, 0.0), "scorer": (0.0, 0.0)}
    found = savings(traces, {**free, "strong": (0.0, 1_000_000.0)})
    assert found.money == pytest.approx(found.strong_tokens)
    assert found.strong_only_money == pytest.approx(found.strong_only_tokens)
    assert found.money_saved == pytest.approx(found.strong_only_tokens - found.strong_tokens)
    assert len(found.in_words()) == 2
    reading = savings(traces, {**free, "strong": (1_000_000.0, 0.0)})
    questions = sum(trace.steps[0].usage.prompt_tokens for trace in traces)
    assert reading.strong_only_money == pytest.approx(questions)
    assert savings(traces, {"strong": None}).money_saved is None
    with pytest.raises(DataError, match="no traces"):
        savings([])
