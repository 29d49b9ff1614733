"""How much of a run is the router's own work: processor seconds outside the calls of the models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepwise.models.scorers import Item, score_items
from stepwise.routing.compare import label_of
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

    def score_detailed(self, items: Sequence[Item]) -> Any:
        """Scores and cost of each item, as the scorer tells them."""
        return self._time(lambda asked: score_items(self._model, asked), items)

    def _time(self, work: Callable[[Any], Any], argument: Any) -> Any:
        began = time.process_time()
        try:
            return work(argument)
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
        models = [Timed(one.model) for one in (world.weak, world.strong)] + [Timed(world.scorer.scorer)]
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
