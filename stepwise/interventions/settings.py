"""What a collection asks for, beside the configuration's models, prompt, sampling and critic."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stepwise.config import BudgetConfig, Config
from stepwise.interventions.filtering import StopRule


class CollectSettings(BaseModel):
    """How many of what. How many candidates are proposed for an attempt is `critic.candidates` of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    rollouts: int = Field(default=4, ge=1)
    """solutions of each problem that the weak model writes at first"""
    max_tokens: int = Field(default=1024, ge=1)
    """most tokens of one solution, and of one guided continuation"""
    attempts: int | None = Field(default=None, ge=1)
    """most failed attempts of one problem that go on; None for all of them"""
    check_sums: bool = True
    """whether a candidate with an equation that is false is dropped"""
    guided: int = Field(default=32, ge=1)
    """most guided rollouts of one candidate until it is known whether any ends right"""
    batch: int = Field(default=8, ge=1)
    """most guided rollouts of one candidate that are asked for at a time; a candidate begins with 2"""
    enough: int | None = Field(default=1, ge=1)
    """successes after which a candidate is asked no further; None asks for all"""
    floor: float = Field(default=0.1, gt=0, lt=1)
    """rate of success of a candidate that had better not be lost"""
    miss: float = Field(default=0.3, ge=0, lt=1)
    """highest probability of losing such a candidate; it is given up after the least n with (1-floor)^n <= miss
    failures without a success (12 by default); 0 never gives up"""
    average: int | None = Field(default=None, ge=1)
    """most guided rollouts per candidate on average over a chunk, for those with the best prospects; None: no limit"""
    keep: Literal["best", "first", "all"] = "best"
    """of an attempt's candidates with a success the best one, the one that has it first (then the others are asked no
    further), or all of them"""
    compare: int = Field(default=8, ge=0)
    """keep "best": guided rollouts, per attempt with several such candidates, to find out which one is the best"""
    fresh: int = Field(default=0, ge=0)
    """guided rollouts of a candidate that is kept, of which alone its rate is told; 0 tells it of those that chose it,
    which is too high on average"""
    chunk: int = Field(default=8, ge=1)
    """problems that are done together, and done again together after an interruption"""
    concurrency: int = Field(default=1, ge=1)
    """calls of the critic at a time; with more than one, batches and so last digits of logits depend on timing"""

    @property
    def rule(self) -> StopRule:
        """When a candidate has had enough rollouts."""
        return StopRule(self.guided, self.enough, self.floor, self.miss, self.batch)

    @property
    def drop_after(self) -> int | None:
        """Guided rollouts after which a candidate without any success is given up; None never does."""
        return self.rule.drop_after

    def worst_guiding(self, candidates: int) -> tuple[int, int]:
        """The most guided (rollouts, requests) of one attempt with so many candidates."""
        rollouts, batches = self.rule.worst()
        compare = self.compare if self.keep == "best" and candidates > 1 else 0
        kept = candidates if self.keep == "all" else 1
        return (
            candidates * rollouts + compare + kept * self.fresh,
            candidates * batches - (-compare // self.compare_batch) + kept * bool(self.fresh),
        )

    @property
    def compare_batch(self) -> int:
        """Rollouts of one candidate that are asked for at a time when it is compared."""
        return max(1, self.batch // 4)

    def hash_with(self, config: Config) -> str:
        """Twelve hex digits for configuration and settings: what stands in every row. Caps have no part in it."""
        return hashlib.sha256(f"{uncapped(config).hash} {self.model_dump_json()}".encode()).hexdigest()[:12]


def uncapped(config: Config) -> Config:
    """The configuration without its caps: they end a collection, and change nothing in what it has collected, so that
    it goes on in the same directory when they are raised.
    """
    return config.model_copy(update={"budget": BudgetConfig()})
