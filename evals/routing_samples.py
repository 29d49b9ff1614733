"""Spending the same tokens on the weak model alone: majority of k solutions, and the best of k by the scorer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from stepwise.config import Config
from stepwise.models.base import Completion, Request
from stepwise.models.scorers import Scored, score_items
from stepwise.runs.progress import progress
from stepwise.seeds import stable_hash
from stepwise.steps import extract_answer, split_steps
from stepwise.types import Problem, Usage

from .routing_rows import Row
from .routing_world import World

MAJORITY, BEST = "majority of k", "best of k by least score"
COUNTS = (1, 2, 4, 8, 16, 32)
MAX_TOKENS = 512


def sampled(world: World, problems: Sequence[Problem], seed: int, scorer: str, most: int = COUNTS[-1]) -> list[Row]:
    """A row for each arm and each k up to `most`; larger k hold the samples of the smaller.

    Costs are those of the first k samples of each problem: the question is read once, and the best of k also pays for
    the scorer. Ties go to the earlier sample.
    """
    world.reset_cache()
    chosen = world.scorer_of(scorer)
    counts = [k for k in COUNTS if k <= most]
    right: dict[tuple[str, int], list[bool]] = {(arm, k): [] for arm in (MAJORITY, BEST) for k in counts}
    spent: dict[int, list[float]] = {k: [] for k in counts}
    ran: dict[int, list[float]] = {k: [] for k in counts}
    judged: dict[int, list[float]] = {k: [] for k in counts}
    with progress(f"{counts[-1]} samples", len(problems)) as advance:
        for low in range(0, len(problems), 16):
            part = problems[low : low + 16]
            drawn = samples_of(world.weak, world.config, part, seed, counts[-1])
            for problem, samples in zip(part, drawn, strict=True):
                scored = _scored(chosen, problem, samples)
                answers = [extract_answer(one.text) for one in samples]
                for k in counts:
                    written = sum(one.usage.generated_tokens for one in samples[:k])
                    read = sum(one.usage.evaluated_tokens for one in samples[:k])
                    spent[k].append(float(written))
                    ran[k].append(float(written + read))
                    judged[k].append(float(sum(one.usage.evaluated_tokens for one in scored[:k])))
                    right[MAJORITY, k].append(majority(answers[:k]) == problem.answer)
                    right[BEST, k].append(answers[best(scored[:k])] == problem.answer)
                advance(1)
    free = (0.0,) * len(problems)
    return [
        Row(
            arm,
            "samples",
            float(k),
            seed,
            tuple(values),
            free,
            tuple(spent[k]),
            tuple(ran[k]),
            free,
            tuple(judged[k]) if arm == BEST else free,
            strong_share=0.0,
            calls=k * len(problems),
        )
        for (arm, k), values in right.items()
    ]


def majority(answers: Sequence[str | None]) -> str | None:
    """The commonest answer, the earliest of equals; None where there is none."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=lambda answer: counts[answer]) if counts else None


def best(scored: Sequence[Scored]) -> int:
    """Index of the solution whose least step score is highest; one that could not be scored counts as 0."""
    worth = [min(one.scores, default=0.0) if not one.error else 0.0 for one in scored]
    return worth.index(max(worth))


def samples_of(weak: Any, config: Config, problems: Sequence[Problem], seed: int, n: int) -> list[list[Completion]]:
    """`n` solutions of each problem by the weak model; fewer are the first of more."""
    sampling = config.sampling
    requests = [
        Request(
            problem,
            stop="solution",
            max_tokens=MAX_TOKENS,
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=stable_hash(seed, problem.id, "samples"),
        )
        for problem in problems
    ]
    made = weak.continue_solutions(requests)
    return [[one for one in made if one.request == place] for place in range(len(problems))]


def _scored(scorer: object, problem: Problem, samples: Sequence[Completion]) -> list[Scored]:
    """Without a step there is nothing to score."""
    steps = [split_steps(one.text) for one in samples]
    asked = [(problem, each) for each in steps if each]
    found = iter(score_items(scorer, asked) if asked else [])  # type: ignore[arg-type]
    return [next(found) if each else Scored([], Usage(), "no step") for each in steps]
