"""A small scripted world: solutions of five steps in which a weak model slips and a strong one repairs."""

from __future__ import annotations

import random

from stepwise.routing import Models, Policy, RouteSettings, Threshold, route_all
from stepwise.types import Problem, Trace
from tests.fakes import ScriptedBackend, ScriptedScorer

LENGTH = 5


def problems(n: int) -> list[Problem]:
    return [Problem(f"p{i}", f"Question number {i}?", "7") for i in range(n)]


def weak_step(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
    """Slips in a third of its steps; a slip anywhere makes the answer wrong."""
    rng = random.Random(f"{seed} {problem.id} {prefix}")
    spoiled = any("slip" in text for text in prefix)
    if len(prefix) == LENGTH - 1:
        return f"So it is \\boxed{{{'8' if spoiled else '7'}}} then."
    word = "slip" if rng.random() < 1 / 3 else "sound"
    return f"{word} step {len(prefix)} by weak, draw {rng.random():.3f}"


def strong_step(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
    rng = random.Random(f"{seed} strong {problem.id} {prefix}")
    if len(prefix) == LENGTH - 1:
        return f"So it is \\boxed{{{'8' if any('slip' in text for text in prefix) else '7'}}} indeed."
    return f"sound step {len(prefix)} by strong, draw {rng.random():.3f}"


def noisy_scores(problem: Problem, steps: tuple[str, ...]) -> list[float]:
    """Below 0.5 mostly where a step slips."""
    return [random.Random(text).random() * (0.6 if "slip" in text else 1.0) for text in steps]


def models() -> Models:
    return Models(
        ScriptedBackend(weak_step, "w"), ScriptedBackend(strong_step, "s", 4000), ScriptedScorer(noisy_scores)
    )


def solve(policy: Policy | None = None, n: int = 20, *, made: Models | None = None, seed: int = 0) -> list[Trace]:
    return route_all(problems(n), made or models(), policy or Threshold(0.5), RouteSettings(seed=seed))


def right(trace: Trace) -> bool:
    return trace.answer == trace.problem.answer
