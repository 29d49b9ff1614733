"""How much of routing is the router's own work: processor seconds outside of the models' calls, in the lab."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import PositiveInt

from stepwise.lab.problems import generate
from stepwise.models.scorers import Item, Scored, score_items
from stepwise.models.scorers.base import WrappedScorer
from stepwise.routing import Never, StepRouter
from stepwise.routing.deciding import label_of
from stepwise.routing.entries import FittingData, entries_of
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Problem


class _Options(Options):
    problems: PositiveInt = 64
    """measured"""
    fit: PositiveInt = 200
    """problems that policies are fitted on, and as many that they are set on"""
    entries: tuple[str, ...] = ("threshold", "planned", "published", "belief, memoryless pair")
    """of the board, each at its middle setting"""


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> None:
    """The models are asked without a cache. A plan is solved before the clock starts."""
    args, rows = run.args, []
    parts = (("val", args.fit), ("train", args.fit), ("test", args.problems))
    set_on, fit_on, measured = ([lab.problem for lab in generate(split, n)] for split, n in parts)
    with StepRouter.from_config(run.config, policy=Never()) as plain:
        data = FittingData(plain, set_on, fit_on, measured, points=3)
        for entry in entries_of(args.entries)[2:]:
            policies = entry.policies(data)
            router = plain.with_policy(policies[len(policies) // 2])
            router.solve_all(measured[:1], progress=False)
            getattr(router.policy, "plan", None)  # a gate may have kept the first problem from it
            weak, strong, scorer = router.models
            assert scorer is not None
            models: tuple[Any, ...] = (_Timed(weak), _Timed(strong), _TimedScorer(scorer))
            for model in models:
                model.reset_cache()
            router.models = router.models._replace(weak=models[0], strong=models[1], scorer=models[2])
            began = time.process_time()
            router.solve_all(measured, progress=False)
            own = time.process_time() - began - sum(model.seconds for model in models)
            decoding = models[0].seconds + models[1].seconds
            run.metrics(policy=label_of(router.policy), decoding=decoding, router=own, share=own / decoding)
            seconds = [f"{x:.2f}" for x in (decoding, models[2].seconds, own)]
            rows.append((label_of(router.policy), *seconds, f"{own / decoding:.1%}"))
    title = f"{len(measured)} problems: processor seconds"
    run.table(title, ("policy", "decoding", "scoring", "the router", "of decoding"), rows)


class _Timed:
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


class _TimedScorer(WrappedScorer):
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


if __name__ == "__main__":
    raise SystemExit(main())
