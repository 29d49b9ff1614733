"""A router that keeps what its models answer: shared between policies and starts, each counted as if it were alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from stepwise.config import Config
from stepwise.errors import ConfigError
from stepwise.lab.problems import generate
from stepwise.models.base import Completion, Request
from stepwise.models.scorers import Scorer
from stepwise.models.store import CallCache
from stepwise.models.wrapped import Wrapped
from stepwise.routing import Never, Policy, StepRouter, Threshold
from stepwise.routing.compare import Measured, compare
from stepwise.types import Problem, Usage
from tests.routing import world
from tests.routing.test_on_lab import shipped


def spent(measured: Measured) -> dict[str, Usage]:
    totals: dict[str, Usage] = {}
    for view in measured.views:
        for role, usage in view.trace.usage.items():
            totals[role] = totals.get(role, Usage()) + usage
    return totals


def test_a_router_keeps_answers_in_the_file_it_is_given_and_closes_it(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    for hits in (0.0, 1.0):
        made = world.models()
        with StepRouter(made.weak, made.strong, made.scorer, cache=path) as router:
            traces = router.solve_all(world.problems(4), progress=False)
            assert router.cache is not None
            assert router.cache.hit_rate == hits
    assert router.cost(traces).strong_tokens == sum(t.usage.get("strong", Usage()).generated_tokens for t in traces)
    CallCache(path).close()  # nobody holds it any more


@pytest.mark.skipif(not shipped(), reason="the lab's models are not in this checkout")
def test_on_the_engine_a_policy_is_charged_what_it_costs_from_a_cold_start_whoever_was_there_before() -> None:
    problems, policies = [made.problem for made in generate("test", 12)], list[Policy]((Threshold(0.5), Never()))
    with StepRouter.from_config(Config.lab()) as router:
        alone = compare(router, policies, problems, progress=False)
    with CallCache() as cache, StepRouter.from_config(Config.lab(), cache=cache) as router:
        compare(router, [Threshold(0.9)], problems, progress=False)
        shared = compare(router, policies, problems, progress=False)
        assert cache.hit_rate is not None
        assert cache.hit_rate > 0.4
    for one, other in zip(alone, shared, strict=True):
        wanted, told = spent(one), spent(other)
        assert wanted.keys() == told.keys()
        for role, usage in wanted.items():  # sums differ in their last digits with the batch, so a draw may turn
            assert told[role].generated_tokens == pytest.approx(usage.generated_tokens, rel=0.03)
            assert told[role].evaluated_tokens == pytest.approx(usage.evaluated_tokens, rel=0.03)


class Words(Scorer):
    """1.0 for a step with none of `words`."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        self.words = tuple(words)

    def score(self, problem: Problem, steps: Sequence[str]) -> Sequence[float]:
        return [float(not any(word in step for word in self.words)) for step in steps]


def test_a_scorer_that_is_set_in_another_way_never_gets_the_scores_of_another(tmp_path: Path) -> None:
    for cache in (tmp_path / "cache.jsonl", None):
        scores = []
        for scorer in (Words(), Words(["tep", "e"])):
            made = world.models()
            with StepRouter(made.weak, made.strong, scorer, cache=cache) as router:
                (trace,) = router.solve_all(world.problems(1), progress=False)
                scores.append([step.score for kept in trace.steps for step in (kept, *kept.discarded)])
        assert scores[0] != scores[1]


def test_a_policy_set_for_a_scorer_is_refused_for_one_that_is_set_in_another_way(tmp_path: Path) -> None:
    made = world.models()
    cards = [StepRouter(made.weak, made.strong, scorer).card for scorer in (Words(["a"]), Words(["b"]), Words(["a"]))]
    cards[0].check(cards[2])
    with pytest.raises(ConfigError, match=r"for the scorer model .*Words.*\[\"a\"\].*the router has .*\[\"b\"\]"):
        cards[0].check(cards[1])


class Stated(Wrapped):
    """Gives states that nobody asked for, as an answer from the store does that another arm asked for."""

    async def generate(self, request: Request) -> Completion:
        return dataclasses.replace(await super().generate(request), states="AAAA")


def test_states_of_a_stored_answer_are_nothing_to_a_router_without_a_scorer() -> None:
    made = world.models()
    with StepRouter(Stated(made.weak), made.strong, policy=Never()) as router:
        assert [trace.finish for trace in router.solve_all(world.problems(2), progress=False)] == ["answer"] * 2
