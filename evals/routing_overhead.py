"""How much of a run is the router's own work: processor seconds outside the calls of the models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepwise.models.scorers import Item, Scored, score_items
from stepwise.models.scorers.base import WrappedScorer
from stepwise.routing.deciding import label_of
from stepwise.routing.policy import Policy
from stepwise.types import Problem

from .routing_world import World


class Timed:
    """A model whose calls are timed, in processor seconds of the whole process. All else is the model's own."""

    def __init__(self, model: Any) -> None:
        self._model, self.seconds = model, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def continue_solutions(self, requests: Sequence[Any]) -> Any:
        """The model's own."""
        return self._time(self._model.continue_solutions, requests)

    def _time(self, work: Callable[[Any], Any], argument: Any) -> Any:
        began = time.process_time()
        try:
            return work(argument)
        finally:
            self.seconds += time.process_time() - began


class TimedScorer(WrappedScorer):
    """The same for a scorer, which is asked batch by batch."""

    engines = ()
    seconds = 0.0

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """In a batch with all that wait."""
        return await self._batcher.ask((problem, steps))

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """Scores and cost of each item, as the scorer tells them."""
        began = time.process_time()
        try:
            return score_items(self.scorer, items)
        finally:
            self.seconds += time.process_time() - began


def overhead(world: World, policies: Sequence[Policy], problems: Sequence[Problem]) -> list[Mapping[str, Any]]:
    """For each policy the seconds of decoding (weak and strong), of scoring, and of everything else.

    The models are asked without the cache. A plan is solved before the clock starts.
    """
    found: list[Mapping[str, Any]] = []
    for policy in policies:
        router = world.router(policy, 0)
        router.solve_all(problems[:1], progress=False)
        getattr(policy, "plan", None)  # a gate may have kept the first problem from it
        models: list[Any] = [Timed(world.weak.model), Timed(world.strong.model), TimedScorer(world.scorer.scorer)]
        for model in models:
            model.reset_cache()
        router.models = router.models._replace(weak=models[0], strong=models[1], scorer=models[2])
        began = time.process_time()
        router.solve_all(problems, progress=False)
        total = time.process_time() - began
        weak, strong, scoring = (model.seconds for model in models)
        rest = total - weak - strong - scoring
        found.append(
            {
                "policy": label_of(policy),
                "problems": len(problems),
                "decoding": weak + strong,
                "scoring": scoring,
                "router": rest,
                "share_of_decoding": rest / (weak + strong),
            }
        )
    return found
