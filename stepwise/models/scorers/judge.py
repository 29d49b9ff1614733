"""A language model behind an API that is asked about each step: no process reward model, but any model behind any door.

On the engine here P(yes) is read from the logits of the answer's first token (`layouts.Question`); this is for where
there are none. It is a judge, not a measurement: its numbers are what it writes, coarse and seldom calibrated, and each
step costs a call that reads the whole prefix. No prompt holds an example of a number: small models copy it. Compare it
with `ConstantScorer` before trusting it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from stepwise.config import Ask, LoadConfig, ModelConfig, ScorerConfig
from stepwise.errors import StepwiseError, redact
from stepwise.models.api import Api
from stepwise.models.failures import failure_of
from stepwise.models.http import CallFailed
from stepwise.models.scorers.base import Scored
from stepwise.models.scorers.layouts import QUESTION, question_about
from stepwise.models.scorers.prefix import PrefixScorer, Task
from stepwise.types import Failure, Usage

Message = dict[str, str]
Complete = Callable[..., tuple[str, Usage]]
"""Answers a chat: the text, and what it cost. It may raise any `StepwiseError`, which becomes the item's error."""

_FORMS = {
    "probability": "Answer with the probability that it is correct: one decimal number between 0 and 1.",
    "verdict": 'Answer with one word: "yes" if it is correct, "no" if it is not.',
}
_NUMBER = re.compile(r'\{?\s*(?:"?(?:p|probability)"?\s*[:=]\s*)?([0-9]*\.?[0-9]+)\s*(%?)\s*\}?\.?', re.IGNORECASE)
_WORD = re.compile(r"\W*(yes|no)\W*", re.IGNORECASE)


def parse(text: str, ask: Ask) -> float | None:
    """The score in an answer, None where it is not what was asked for. What a model thinks aloud does not count.

    >>> parse("Yes.", "verdict"), parse("80%", "probability"), parse("perhaps", "verdict")
    (1.0, 0.8, None)
    """
    answer = text.rpartition("</think>")[2].strip()
    if ask == "verdict":
        word = _WORD.fullmatch(answer)
        return None if word is None else float(word[1].lower() == "yes")
    number = _NUMBER.fullmatch(answer)
    if number is None:
        return None
    value = float(number[1]) / (100 if number[2] else 1)
    return value if 0 <= value <= 1 else None


class JudgeScorer(PrefixScorer):
    """Scores what a language model answers when it is asked about each step, given the problem and the steps before.

    `ask` is "probability" (a number from 0 to 1) or "verdict" (yes or no: 1.0 or 0.0); `template` is the question, see
    `layouts.question_about`. An answer that cannot be read is asked for once more, counted as a retry; if that fails
    too, the item's error holds the raw text. `requests` calls of `complete` are in flight at once.

    Example:
        >>> JudgeScorer(lambda chat: ("0.25", Usage()), "scripted").score("1 + 1?", ["It is 3."])
        [0.25]
    """

    def __init__(
        self,
        complete: Complete,
        name: str,
        *,
        ask: Ask = "probability",
        template: str = QUESTION,
        requests: int = 8,
        memory: int = 10_000,
        remote: bool = False,
    ):
        super().__init__(f"judge {name}", memory=memory, requests=requests)
        self.complete, self.ask, self.template, self.remote = complete, ask, template, remote
        self._asked_for = f"ask {ask} {template!r}"

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`; every step of every task is a call of its own."""
        jobs = [(task.question, task.steps[: n + 1]) for task in tasks for n in range(task.first, len(task.steps))]
        replies = iter(self.map(lambda job: self._judge(*job), jobs))
        results = []
        for task in tasks:
            answers = list(islice(replies, len(task.steps) - task.first))
            result = Scored([score for score, *_ in answers], sum((usage for _, usage, _ in answers), Usage()))
            for n, (*_, failure) in reversed([*enumerate(answers, start=task.first)]):  # the first one counts
                if failure is not None:
                    result = result._replace(error=f"step {n}: {failure.reason}", failure=failure)
            results.append(result)
        return results

    def _judge(self, question: str, steps: Sequence[str]) -> tuple[float, Usage, Failure | None]:
        chat = question_about(self.template, question, steps, _FORMS[self.ask])
        spent, text = Usage(), ""
        for attempt in range(2):
            try:
                text, usage = self.complete(chat)
            except StepwiseError as error:
                usage = error.usage if isinstance(error, CallFailed) else Usage()
                return math.nan, spent + self._named(usage, attempt), failure_of(error)
            spent += self._named(usage, attempt)
            score = parse(text, self.ask)
            if score is not None:
                return score, spent, None
            again = f"That is not the form asked for. {_FORMS[self.ask]} Write nothing else."
            chat = [*chat, {"role": "assistant", "content": text}, {"role": "user", "content": again}]
        fault = f"the judge was asked twice and answered {redact(text[:200])!r}; {_FORMS[self.ask]}"
        return math.nan, spent, Failure("refused", fault)

    def _named(self, usage: Usage, retries: int) -> Usage:
        calls = max(usage.calls, 1)
        return dataclasses.replace(usage, model=self.name, calls=calls, retries=usage.retries + retries)


def api_completion(config: ScorerConfig, *, attempts: int = 5, backoff: float = 0.5) -> Complete:
    """Completion by a model behind an API, through LiteLLM, greedy where it is not called with other settings; errors
    that may pass are tried again and counted.

    The completion raises `BackendError` where the API refuses or stays away.

    Example:
        complete = api_completion(sw.ScorerConfig(kind="judge", model="openai/NAME"))
        text, usage = complete([{"role": "user", "content": "Is 1 + 1 = 3? Answer Yes or No."}])
    """
    fields = {name: getattr(config, name) for name in LoadConfig.model_fields}
    api = Api(ModelConfig(**fields), config.model, attempts=attempts, backoff=backoff)

    def complete(chat: list[Message], **settings: Any) -> tuple[str, Usage]:
        reply = api.ask(chat, **{"temperature": 0.0, **settings})
        return reply.choices[0].text, reply.usages[0]

    return complete
