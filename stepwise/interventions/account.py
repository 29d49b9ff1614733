"""What a collection has made and spent so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepwise.config import Config
from stepwise.grading import Verdict
from stepwise.models.budget import Ledger
from stepwise.types import Usage

STAGES = ("rollouts", "located", "candidates", "guided")
"""The stages in which models write."""


@dataclass(frozen=True)
class Progress:
    """How far a collection is, after a chunk; counts are of all chunks so far, those of earlier starts included.

    `examples` may count twice what two chunks have in common. `generated` has tokens by role ("weak", "critic", and
    "scorer" where it finds the errors). `money` is in the unit of the prices, None where a price is not known. `left`
    has what is left of each cap of `budget` that is set. `seconds` are of this start, which did all but
    `problems_before` problems and wrote all but `generated_before` tokens.
    """

    problems: int = 0
    problems_in_all: int = 0
    rollouts: int = 0
    failures: int = 0
    examples: int = 0
    guided: int = 0
    successes: int = 0
    generated: Mapping[str, int] | None = None
    money: float | None = None
    left: Mapping[str, float] | None = None
    seconds: float = 0.0
    problems_before: int = 0
    generated_before: int = 0


OnChunk = Callable[[Progress], None]


class Account:
    """Adds up the rows of chunks and what they cost, under the caps and prices of a configuration."""

    def __init__(self, config: Config, problems: int) -> None:
        prices = {"weak": config.models.weak.prices, "critic": config.models.critic.prices}
        if config.critic.method == "scorer":
            prices["scorer"] = config.scorer.prices
        self.ledger = Ledger(config.budget, prices)
        self._locates = "scorer" if config.critic.method == "scorer" else "critic"
        self._roles = tuple(prices)
        self._sum = Progress(problems_in_all=problems)
        self._began = time.monotonic()

    def role(self, stage: str) -> str:
        """Whose price and caps the rows of a stage count for."""
        return {"located": self._locates, "candidates": "critic"}.get(stage, "weak")

    def add(self, rows: Mapping[str, Sequence[Any]], problems: int, *, before: bool) -> Progress:
        """Count a chunk of so many problems; `before`: an earlier start made it."""
        for stage in STAGES:
            self.ledger.record(self.role(stage), sum((row.usage for row in rows[stage]), Usage()))
        old = self._sum
        self._sum = replace(
            old,
            problems=old.problems + problems,
            rollouts=old.rollouts + len(rows["rollouts"]),
            failures=old.failures + len(rows["failures"]),
            examples=old.examples + len(rows["examples"]),
            guided=old.guided + len(rows["guided"]),
            successes=old.successes + sum(row.verdict is Verdict.CORRECT for row in rows["guided"]),
            problems_before=old.problems_before + problems * before,
        )
        if before:
            self._sum = replace(self._sum, generated_before=self.ledger.usage().generated_tokens)
        return self.progress()

    def progress(self) -> Progress:
        """How far it is now."""
        return replace(
            self._sum,
            generated={role: self.ledger.usage(role).generated_tokens for role in self._roles},
            money=self.ledger.usage().cost,
            left={name: left for name, left in self.ledger.remaining().items() if left is not None},
            seconds=time.monotonic() - self._began,
        )
