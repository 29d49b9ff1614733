"""The one prompt that routing, collection, SFT and RL share."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from stepwise.records import Section
from stepwise.steps import Splitter

STEPS = (
    "Solve the problem step by step. Write each step as a short paragraph with one calculation, and leave a blank line "
    "between steps. Use plain text, no code. End with the final answer in \\boxed{}."
)
"""The system text for a model that was not trained on steps, which are told apart by blank lines."""


class SolvePrompt(Section):
    """How a problem becomes a chat: system text and the arguments of the model's chat template.

    `template_args` goes to the template as it is; thinking is off by default, since a solution is continued step by
    step. `splitter` says where a step ends, for who writes and who reads (`stepwise.steps`).

    Example:
        >>> SolvePrompt(system="Be brief.").messages("1 + 1?")[1]
        {'role': 'user', 'content': '1 + 1?'}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str = ""
    user: str = "{question}"
    template_args: dict[str, Any] = Field(default={"enable_thinking": False})
    splitter: Splitter = "paragraphs"

    @field_validator("user")
    @classmethod
    def _asks_the_question(cls, user: str) -> str:
        if "{question}" not in user:
            raise ValueError(f"user={user!r} has no {{question}}, so the model would never see the problem; add it")
        return user

    def __hash__(self) -> int:
        return hash((self.system, self.user))  # without template_args, which is a dict

    def messages(self, question: str) -> list[dict[str, str]]:
        """Chat messages up to, and without, the assistant's."""
        user = {"role": "user", "content": self.user.replace("{question}", question)}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]

    @property
    def hash(self) -> str:
        """Twelve hex digits that stand in every dataset row and adapter card; equal prompts have equal hashes."""
        row = self.model_dump(mode="json")
        if self.splitter == "paragraphs":  # so that hashes of before there was another one stand
            del row["splitter"]
        text = json.dumps(row, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
