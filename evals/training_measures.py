"""What a trained model is measured on: pass@k by stratum and family, and its entropy; all on held-out problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.config import Config
from stepwise.errors import BackendError
from stepwise.grading import Verdict, grade_many
from stepwise.lab.problems import LabProblem
from stepwise.models.base import Completion, Request
from stepwise.stats import Interval, percentile
from stepwise.training.evaluation import with_adapter
from stepwise.types import Problem

if TYPE_CHECKING:
    from stepwise.models.llamacpp import LlamaCppBackend

SAMPLES = 16
TEMPERATURE = 0.7
TRAINING_SAMPLES = 4
STRATA = ("no trap", "one trap", "two traps", "failed by base")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Measured:
    """One model on the held-out problems: of `SAMPLES` solutions of each, how many are right, in the problems' order.

    `entropy` is the mean surprise in nats a token of its own solutions at temperature 1, an unbiased estimate of its
    next-token entropy along them. `on_training` is pass@1 on the problems that its data were made from.
    """

    arm: str
    seed: int
    right: tuple[int, ...]
    entropy: float
    tokens: int
    cost: dict[str, int]
    no_spread: tuple[float, float] | None = None
    entropy_after_sft: float | None = None
    on_training: float | None = None


def measure(cfg: Config, problems: Sequence[LabProblem], adapter: Path | None, seed: int) -> dict[str, Any]:
    """`right`, `entropy` and `tokens` (generated) of models.weak with `adapter`. Raises BackendError where it fails."""
    plain = [made.problem for made in problems]
    with _loaded(cfg, adapter) as backend:
        drawn = _drawn(backend, [_request(p, seed, SAMPLES, TEMPERATURE) for p in plain])
        entropy = _surprise(backend, plain, seed)
    tokens = sum(made.usage.generated_tokens for made in drawn)
    return {"right": _right(plain, drawn), "entropy": entropy, "tokens": tokens}


def solved(cfg: Config, problems: Sequence[LabProblem], adapter: Path | None, seed: int) -> float:
    """pass@1 of models.weak with `adapter`, over `TRAINING_SAMPLES` samples of each problem."""
    plain = [made.problem for made in problems]
    with _loaded(cfg, adapter) as backend:
        drawn = _drawn(backend, [_request(p, seed, TRAINING_SAMPLES, TEMPERATURE) for p in plain])
    return sum(_right(plain, drawn)) / (len(plain) * TRAINING_SAMPLES)


def surprise_of(cfg: Config, problems: Sequence[LabProblem], adapter: Path, seed: int) -> float:
    """The entropy of `measure` alone, for the model between two phases."""
    with _loaded(cfg, adapter) as backend:
        return _surprise(backend, [made.problem for made in problems], seed)


def _loaded(cfg: Config, adapter: Path | None) -> LlamaCppBackend:
    from stepwise.models.llamacpp import LlamaCppBackend
    from stepwise.models.shared import load_engine

    return LlamaCppBackend(load_engine(with_adapter(cfg.models.weak, adapter)), cfg.prompt)


def _surprise(backend: LlamaCppBackend, problems: Sequence[Problem], seed: int) -> float:
    once = _drawn(backend, [_request(problem, seed + 1, 1, 1.0) for problem in problems])
    surprise = [-value for made in once for value in made.logprobs or ()]
    return sum(surprise) / max(1, len(surprise))


def _right(problems: Sequence[Problem], drawn: Sequence[Completion]) -> list[int]:
    verdicts = grade_many([(made.text, problems[made.request].answer) for made in drawn])
    right = [0] * len(problems)
    for made, verdict in zip(drawn, verdicts, strict=True):
        right[made.request] += verdict is Verdict.CORRECT
    return right


def _request(problem: Problem, seed: int, n: int, temperature: float) -> Request:
    return Request(problem, (), "solution", max_tokens=300, n=n, temperature=temperature, seed=1_000_003 * (seed + 1))


def _drawn(backend: LlamaCppBackend, requests: Sequence[Request]) -> list[Completion]:
    made = backend.continue_solutions(requests)
    failed = next((one for one in made if one.finish == "error"), None)
    if failed is not None:
        raise BackendError(f"{backend.name} failed on a held-out problem: {failed.error}")
    return made


def pass_at(k: int, right: int, n: int = SAMPLES) -> float:
    """Unbiased estimate of the chance that k samples hold a right one, where `right` of n are (2107.03374, eq. 1)."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def strata(problems: Sequence[LabProblem], base: Sequence[int]) -> dict[str, np.ndarray]:
    """Masks (problems,) by name; `base` are the base model's right samples, drawn under another seed than an arm's."""
    traps = np.array([len(made.traps) for made in problems])
    return {
        "no trap": traps == 0,
        "one trap": traps == 1,
        "two traps": traps > 1,
        "failed by base": np.array(base) == 0,
    }


def interval(
    rows: Sequence[Measured], against: Sequence[Measured], mask: np.ndarray, k: int = 1, draws: int = 2000
) -> Interval:
    """Mean difference in pass@k of two arms over the masked problems, with a 95 % interval.

    Problems and seeds are drawn again together (paired); with one seed the interval says nothing about other seeds.
    """
    ours, theirs = scores(rows, k)[:, mask], scores(against, k)[:, mask]
    rng = np.random.default_rng(0)
    found = [float(ours.mean() - theirs.mean())]
    for _ in range(draws):
        seeds, places = rng.integers(len(ours), size=len(ours)), rng.integers(ours.shape[1], size=ours.shape[1])
        other = seeds if len(theirs) == len(ours) else rng.integers(len(theirs), size=len(theirs))
        found.append(ours[np.ix_(seeds, places)].mean() - theirs[np.ix_(other, places)].mean())
    return percentile(found)


def scores(rows: Sequence[Measured], k: int) -> np.ndarray:
    """pass@k (seeds, problems)."""
    return np.array([[pass_at(k, right) for right in row.right] for row in rows])
