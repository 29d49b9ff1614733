"""What a collection asks for, beside the configuration's models, prompt, sampling and critic."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stepwise.config import Config


class CollectSettings(BaseModel):
    """How many of what. How many candidates are proposed for an attempt is `critic.candidates` of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    rollouts: int = Field(default=4, ge=1)
    """solutions of each problem that the weak model writes at first"""
    max_tokens: int = Field(default=1024, ge=1)
    """most tokens of one solution, and of one guided continuation"""
    attempts: int | None = Field(default=None, ge=1)
    """most failed attempts of one problem that go on; None for all of them"""
    guided: int = Field(default=32, ge=1)
    """most guided rollouts of one candidate"""
    batch: int = Field(default=8, ge=1)
    """guided rollouts of one candidate that are asked for at a time"""
    enough: int | None = Field(default=1, ge=1)
    """successes after which a candidate is asked no further; None asks for all, as comparing candidates needs"""
    drop_after: int | None = Field(default=None, ge=1)
    """guided rollouts after which a candidate without any success is given up; None never does"""
    keep: Literal["best", "all"] = "best"
    """of the candidates with a success, the one with the largest share for each attempt, or all of them"""
    chunk: int = Field(default=8, ge=1)
    """problems that are done together, and done again together after an interruption"""
    concurrency: int = Field(default=1, ge=1)
    """calls of the critic at a time; with more than one, batches and so last digits of logits depend on timing"""

    def hash_with(self, config: Config) -> str:
        """Twelve hex digits for configuration and settings: what stands in every row."""
        return hashlib.sha256(f"{config.hash} {self.model_dump_json()}".encode()).hexdigest()[:12]
