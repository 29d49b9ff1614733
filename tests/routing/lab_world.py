"""The lab's problems with scripted models: a weak one that slips, a strong one that does not, a scorer that mostly sees
it.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from stepwise.lab.problems import LabProblem, generate
from stepwise.types import Problem
from tests.fakes import ScriptedBackend, ScriptedScorer


class LabWorld:
    """Scripted backends and a scorer for the first `n` problems of a split."""

    def __init__(self, n: int, split: str = "test", slip: float = 0.25) -> None:
        self.made: dict[str, LabProblem] = {made.problem.id: made for made in generate(split, n)}
        self.slip = slip
        self.weak = ScriptedBackend(lambda *at: self._step(*at, slips=True), "scripted-weak", 100)
        self.strong = ScriptedBackend(lambda *at: self._step(*at, slips=False), "scripted-strong", 900)
        self.scorer = ScriptedScorer(self._scores, name="scripted-scorer")

    @property
    def problems(self) -> list[Problem]:
        return [made.problem for made in self.made.values()]

    def _step(self, problem: Problem, prefix: tuple[str, ...], seed: int, slips: bool) -> str:
        text = self.made[problem.id].true_step(prefix)
        rng = random.Random(f"{seed} {prefix}")
        if text is None:
            return "So the answer is \\boxed{0}."
        if slips and "boxed" not in text and rng.random() < self.slip:
            head, number = (
                text.rstrip(".").rsplit(" ", 1) if text.rstrip(".").rsplit(" ", 1)[-1].isdigit() else (text, "")
            )
            return f"{head} {int(number) + 1}." if number else f"{text} 999."
        return text

    def _scores(self, problem: Problem, steps: tuple[str, ...]) -> list[float]:
        return [
            min(1.0, max(0.0, (0.85 if right else 0.25) + random.Random(text).uniform(-0.4, 0.15)))
            for text, right in zip(steps, self.made[problem.id].check(steps), strict=True)
        ]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make every router load these models instead of those of its configuration."""
        from stepwise.routing import loaded

        models: dict[str, Any] = {"llamacpp/lab-weak": self.weak, "llamacpp/lab-strong": self.strong}
        monkeypatch.setattr(loaded, "load_backend", lambda spec, **_: models[spec.model])
        monkeypatch.setattr(loaded, "load_scorer", lambda spec, **_: self.scorer)
        monkeypatch.setenv("COLUMNS", "200")
