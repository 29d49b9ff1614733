"""Replies in the compact format, a scripted language model that is measured, and what tests read in its prompts."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stepwise.critics import signatures
from stepwise.critics.formats.compact_format import write_fields
from stepwise.critics.signatures import StepCheck
from tests.scripted_lm import Messages, ScriptedLM

UNREADABLE = "I would rather talk about the weather."


class MeasuredLM(ScriptedLM):
    """A ScriptedLM that takes `seconds` for a call, and counts: `most` calls were ever at work together.

    `settings` holds the keywords of each call.
    """

    def __init__(self, script: Any, seconds: float = 0.0) -> None:
        super().__init__(script)
        self.seconds = seconds
        self.settings: list[dict[str, Any]] = []
        self.most = self._working = 0
        self._lock = threading.Lock()

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        with self._at_work(kwargs):
            time.sleep(self.seconds)
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        with self._at_work(kwargs):
            await asyncio.sleep(self.seconds)
            return await super().acall(prompt, messages=messages, **kwargs)

    @contextmanager
    def _at_work(self, kwargs: dict[str, Any]) -> Iterator[None]:
        with self._lock:
            self.settings.append(kwargs)
            self._working += 1
            self.most = max(self.most, self._working)
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1


def prompts(lm: ScriptedLM) -> list[str]:
    """The request of each call: its first message of a user."""
    return [asked(messages) for messages in lm.calls]


def asked(messages: Messages) -> str:
    """The request of a call, which a repair leaves first."""
    return next(message["content"] for message in messages if message["role"] == "user")


def verified(
    first: int | None,
    wrong: int | str | None = "same",
    *,
    steps: int = 3,
    critical: int | str | None = "same",
    base: int = 1,
) -> str:
    """A reply to VerifyAttempt: checks up to `wrong` (by default `first`), `first` as the first error. Its numbers
    begin at `base`, as those of the prompt do (lab-critic's: 0); the arguments count from 0.
    """
    wrong = first if wrong == "same" else wrong
    rows = [
        StepCheck(step=i, quote=str(i), expected=str(i + (i == wrong)), verdict="wrong" if i == wrong else "right")
        for i in range(steps if wrong is None else wrong + 1)
    ]
    values = {"checks": rows, "first_error": first, "critical_error": first if critical == "same" else critical}
    return write_fields(signatures.VerifyAttempt, _from(base, values))


def judged(right: bool, reason: str = "because") -> str:
    """A reply to JudgeStep and JudgePrefix."""
    return write_fields(signatures.JudgeStep, {"reason": reason, "right": right})


def proposed(location: int, content: str, *, base: int = 1) -> str:
    """A reply to ProposeIntervention; its number begins at `base`."""
    return write_fields(signatures.ProposeIntervention, _from(base, {"location": location, "content": content}))


def _from(base: int, values: dict[str, Any]) -> dict[str, Any]:
    """What a reply says, moved by hand: what is tested moves it back."""
    moved = {name: value + base if type(value) is int else value for name, value in values.items()}
    if "checks" in values:
        moved["checks"] = [row.model_copy(update={"step": row.step + base}) for row in values["checks"]]
    return moved


def reviewed(*, answer: bool = False, insight: bool = False, late: bool = False, advice: str = "none") -> str:
    """A reply to ReviewIntervention."""
    values = {"contains_answer": answer, "misses_insight": insight, "too_late": late, "advice": advice}
    return write_fields(signatures.ReviewIntervention, values)


def numbers(prompt: str) -> list[int]:
    """The numbers of the steps in a prompt, in order: what a line, or the field of the attempt, begins with."""
    return [int(number) for number in re.findall(r"^(?:#attempt: )?\[(\d+)\] ", prompt, re.MULTILINE)]


def fields(prompt: str) -> list[str]:
    """What a reader takes for fields: the marked words at the beginnings of lines."""
    return re.findall(r"^#(\w+):", prompt, re.MULTILINE)


def wanted(prompt: str) -> list[str]:
    """The fields a prompt asks for."""
    return re.findall(r"#(\w+)", prompt.splitlines()[-1])
