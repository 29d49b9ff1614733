"""Sums of four numbers: a weak model that slips in the second or third sum, and a critic that knows how to add."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Callable
from typing import Any

from stepwise.config import Config
from stepwise.critics import ErrorLocalizer, InterventionProposer
from stepwise.interventions.pipeline import Chunk
from stepwise.interventions.rows import by_id
from stepwise.interventions.settings import CollectSettings, Writers
from stepwise.types import Problem
from tests.critics.critic import proposed, verified, wanted
from tests.fakes import ScriptedBackend
from tests.scripted_lm import Messages, ScriptedLM

SUM = re.compile(r"(\d+) \+ (\d+) = (\d+)")
CONFIG = Config.load(None, ["critic.candidates=2"])
SETTINGS = CollectSettings(rollouts=3, guided=8, batch=4, chunk=2, max_tokens=100, accept="success", fresh=0)


def problems(n: int, reference: bool = True) -> list[Problem]:
    """Problem i: four numbers to add."""
    made = []
    for i in range(n):
        numbers = [17 + 3 * i, 5 + i, 28 + i, 41 + 2 * i]
        name, given = f"p{i}", f"Their sum is {sum(numbers)}." if reference else None
        made.append(
            Problem(
                id=name,
                question=f"Add {', '.join(map(str, numbers))}.",
                answer=str(sum(numbers)),
                reference=given,
                source="sums",
            )
        )
    return made


def solution(problem: Problem, prefix: tuple[str, ...], slip: int | None) -> list[str]:
    """The steps after `prefix`; the sum at step `slip` is one too large."""
    numbers = [int(n) for n in re.findall(r"\d+", problem.question)]
    total = int(SUM.findall(prefix[-1])[-1][2]) if prefix else numbers[0]
    steps = []
    for i in range(len(prefix), 3):
        after = total + numbers[i + 1] + (i == slip)
        steps.append(f"{total} + {numbers[i + 1]} = {after}.")
        total = after
    return [*steps, f"So \\boxed{{{total}}}."]


def written(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
    """What the weak model writes: it slips in four of five solutions, and in two of five once it was helped."""
    rng = random.Random(f"{problem.id}|{len(prefix)}|{seed}")
    slips = rng.random() < (0.4 if prefix else 0.8)
    return "\n\n".join(solution(problem, prefix, rng.choice((1, 2)) if slips else None))


def critic(seconds: float = 0.0, max_tokens: int = 64) -> ScriptedLM:
    """Checks sums, and writes the right one in place of the first that is wrong."""

    def reply(messages: Messages) -> str:
        time.sleep(seconds)
        request = messages[-1]["content"]
        sums = [(int(a), int(b), int(c)) for a, b, c in SUM.findall(request)]
        first = next((i for i, (a, b, c) in enumerate(sums) if a + b != c), None)
        if "location" not in wanted(request):
            return verified(first, steps=4)
        a, b, _ = sums[first or 0]
        return proposed(first or 0, f"{a} + {b} = {a + b}.")

    lm = ScriptedLM(reply, "critic")
    lm.kwargs["max_tokens"] = max_tokens
    return lm


def writers(weak: Any = None, seconds: float = 0.0, max_tokens: int = 64, **more: Any) -> Writers:
    """The world's models; every call of the critic takes `seconds`, and may write `max_tokens`."""
    lm = critic(seconds, max_tokens)
    return Writers(
        CONFIG,
        weak=weak or ScriptedBackend(written, "weak"),
        localizer=ErrorLocalizer(lm),
        proposer=InterventionProposer(lm, solve_first=False, revisions=0),
        **more,
    )


def chunk(given: list[Problem], weak: Any = None, settings: CollectSettings = SETTINGS) -> Chunk:
    """These problems, and the world's models."""
    return Chunk(by_id(given), writers(weak), CONFIG, settings)


def counted(heard: Callable[[int], None]) -> Writers:
    """The world's models; `heard` is told the number of each call of the critic, and of each solution."""
    calls = itertools.count(1)

    def solving(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
        heard(next(calls))
        return written(problem, prefix, seed)

    models = writers(ScriptedBackend(solving, "weak"))
    lm = models.localizer.get_lm()
    honest = lm._replies

    def replies(messages: Any) -> str:
        heard(next(calls))
        return honest(messages)

    lm._replies = replies
    return models


def breaking(name: str) -> ScriptedBackend:
    """The weak model, which is gone from the problem with that id on."""

    def solving(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
        weak.broken |= problem.id == name
        return written(problem, prefix, seed)

    weak = ScriptedBackend(solving, "weak")
    return weak
