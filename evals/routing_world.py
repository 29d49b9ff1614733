"""The models that `evals.routing` routes with: asked once for everything, and scorers that are worse on purpose."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepwise.config import Config
from stepwise.lab.problems import generate, make
from stepwise.models import load_backend
from stepwise.models.cached import Stored, StoredScorer
from stepwise.models.scorers import PerfectScorer, Scored, load_scorer
from stepwise.models.scorers.base import WrappedScorer
from stepwise.models.store import CallCache
from stepwise.routing.policy import Policy
from stepwise.routing.router import StepRouter
from stepwise.seeds import stable_hash
from stepwise.types import Problem, Trace

NOISE, HEAT, BIAS = 2.0, 3.0, 2.0
ELSEWHERE = 100_000  # problems from this number on are for fitting where a split has to serve both ends
Change = Callable[[float, str], float]  # (log-odds of a step, its place) -> log-odds


def _noise(logit: float, place: str) -> float:
    return logit + NOISE * random.Random(place).gauss(0.0, 1.0)


SCORERS: dict[str, tuple[str, Change]] = {
    "plain": ("as it is", lambda logit, _: logit),
    "noisy": (f"log-odds plus normal noise of deviation {NOISE:g}, drawn once for each step as written", _noise),
    "cold": (f"log-odds times {HEAT:g}: too sure", lambda logit, _: HEAT * logit),
    "hot": (f"log-odds divided by {HEAT:g}: not sure enough", lambda logit, _: logit / HEAT),
    "strict": (f"log-odds less {BIAS:g}: too low", lambda logit, _: logit - BIAS),
    "lenient": (f"log-odds plus {BIAS:g}: too high", lambda logit, _: logit + BIAS),
}


class ChangedScorer(WrappedScorer):
    """`scorer` with the log-odds of its scores changed; what it costs and all else is the scorer's own.

    A score nearer to 0 or 1 than 1e-6 counts as that near, so that log-odds are finite.
    """

    def __init__(self, scorer: Any, kind: str) -> None:
        super().__init__(scorer)
        self.kind = kind
        self.name = scorer.name if kind == "plain" else f"{scorer.name}, {kind}"
        self._change = SCORERS[kind][1]

    @property
    def identity(self) -> str:
        """Each kind's own."""
        return self.name

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """The scorer's, changed."""
        result = await self.scorer.ascore(problem, steps, known)
        return result._replace(scores=self._changed(problem, steps, result.scores))

    def _changed(self, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> list[float]:
        if self.kind == "plain":
            return list(scores)
        question = problem if isinstance(problem, str) else problem.question
        changed = []
        for i, score in enumerate(scores):
            kept = min(max(score, 1e-6), 1 - 1e-6)
            place = f"{question}\n{'/'.join(steps[: i + 1])}"
            logit = self._change(math.log(kept / (1 - kept)), place)
            changed.append(1 / (1 + math.exp(-max(-50.0, min(50.0, logit)))))
        return changed


@dataclasses.dataclass(frozen=True)
class World:
    """The loaded models behind one cache of their answers."""

    config: Config
    weak: Any
    strong: Any
    scorer: Any
    cache: CallCache

    @property
    def sizes(self) -> tuple[float, float, float]:
        """Weights of the weak model, the strong one and the scorer."""
        return float(self.weak.parameters), float(self.strong.parameters), float(self.scorer.parameters)

    def scorer_of(self, kind: str) -> Any:
        """The scorer changed as `kind` says: a key of `SCORERS`, or "truth", the lab's checker."""
        return PerfectScorer(truth) if kind == "truth" else ChangedScorer(self.scorer, kind)

    def router(self, policy: Policy, seed: int, *, scorer: str = "plain") -> StepRouter:
        """A router over these models, with the scorer that `scorer_of` gives."""
        config = self.config
        return StepRouter(
            self.weak,
            self.strong,
            self.scorer_of(scorer),
            policy,
            prompt=config.prompt,
            sampling=config.sampling,
            max_steps=config.routing.max_steps,
            seed=seed,
            window=max(config.models.weak.requests, config.models.strong.requests),
        )

    def reset_cache(self) -> None:
        """What is counted as evaluated from now on is counted from cold."""
        for model in (self.weak, self.strong, self.scorer):
            model.reset_cache()

    def traces(
        self, policy: Policy, problems: Sequence[Problem], seed: int, *, scorer: str = "plain", progress: bool = True
    ) -> list[Trace]:
        """Routed from cold."""
        self.reset_cache()
        router = self.router(policy, seed, scorer=scorer)
        return router.solve_all(problems, progress=progress, description=f"{policy.name:<16}")


@contextmanager
def opened(config: Config, path: Path) -> Iterator[World]:
    """The models of `config`, whose answers are kept in the file at `path`."""
    weak, strong = (load_backend(spec, prompt=config.prompt) for spec in (config.models.weak, config.models.strong))
    scorer = load_scorer(config.scorer, prompt=config.prompt)
    with CallCache(path) as cache:
        try:
            yield World(
                config,
                Stored(weak, cache, role="weak"),
                Stored(strong, cache, role="strong"),
                StoredScorer(scorer, cache),
                cache,
            )
        finally:
            for model in (weak, strong, scorer):
                getattr(model, "close", lambda: None)()


def truth(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """The lab's checker on a problem of the lab."""
    _, split, number = problem.id.split("/")
    return make(split, int(number)).check(steps)


def problems_of(split: str, n: int, start: int = 0) -> list[Problem]:
    """`n` problems of a split from number `start` on."""
    return [one.problem for one in generate(split, n, start=start)]


def seed_for(what: str, seed: int) -> int:
    """Seeds of fitting and calibration, which no measured run has."""
    return stable_hash(what, seed) % 2**31
