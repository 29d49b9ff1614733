"""Finding the first error of an attempt."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Literal, Self, get_args

import dspy

from stepwise import signatures
from stepwise.adapters import Format
from stepwise.asking import (
    Answer,
    Ask,
    Asking,
    Plan,
    Steps,
    as_steps,
    bounded,
    critic_lm,
    failed,
    fitted,
    fitting,
    question_and_reference,
)
from stepwise.config import Config
from stepwise.errors import ConfigError
from stepwise.localization import first_below
from stepwise.types import Localization, Problem

Method = Literal["one_pass", "vote", "bisect", "scorer"]


class ErrorLocalizer(Asking):
    """Finds the first error of an attempt.

    Methods: "one_pass" checks all steps in one call (InT's verification log); "vote" takes the majority of `samples`
    passes at `temperature` (ProcessBench's voting; ties go to the earlier step, failures do not vote); "bisect" asks
    whether a prefix is right, about log2 of the number of steps times; "scorer" takes the first step that a process
    reward model scores below `threshold`, and asks no language model.

    The prediction has `first_error` (0-based, None where every step is right), `critical_error` (the first error that
    no later step makes up for; None for methods that cannot tell), `verdicts` (one per step checked), `checks`,
    `localization`, and `failure`: where it is not None there is no result, and `first_error` means nothing.
    """

    def __init__(
        self,
        lm: Any = None,
        method: Method = "one_pass",
        *,
        samples: int = 5,
        temperature: float | None = None,
        scorer: Any = None,
        threshold: float = 0.5,
        adapter: Format | Any | None = None,
        bare: bool = False,
        max_chars: int = 40_000,
    ) -> None:
        if method not in get_args(Method):
            raise ConfigError(f"method {method!r} is not one of {', '.join(get_args(Method))}")
        if (method == "scorer") != (scorer is not None):
            raise ConfigError(
                f'method {method!r} with scorer={scorer!r}: give a scorer with method="scorer", and only then'
            )
        if samples < 1 or not 0 <= threshold <= 1:
            raise ConfigError(
                f"samples is {samples}, threshold {threshold}; give samples >= 1 and a threshold in [0, 1]"
            )
        from stepwise.scorers import load_scorer

        self.scorer = None if scorer is None else load_scorer(scorer)
        super().__init__(
            lm, adapter, bare=bare, method=method, samples=samples, temperature=temperature, threshold=threshold,
            max_chars=max_chars,
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """The localizer that [critic], models.critic and [scorer] describe."""
        how = config.critic
        scoring = how.method == "scorer"
        return cls(
            None if scoring else critic_lm(config),
            how.method,
            samples=how.samples,
            temperature=how.temperature or None,
            scorer=config.scorer if scoring else None,
            threshold=how.threshold,
            adapter=how.format,
            bare=config.critic_is_bare,
        )

    def _make_predictors(self) -> None:
        if self.setting("method") == "bisect":
            self.judge_prefix = dspy.Predict(signatures.JudgePrefix)
        elif self.setting("method") != "scorer":
            self.verify = dspy.Predict(signatures.VerifyAttempt)

    def forward(self, problem: Problem | str, steps: Steps, reference: str | None = None) -> dspy.Prediction:
        """Localize in one attempt. `steps` may be texts, a Trace or a whole solution; see the class for the result.

        Raises DataError for an empty attempt or question, and what the language model's client raises.
        """
        return self.run(self.plan(problem=problem, steps=steps, reference=reference))

    async def aforward(self, problem: Problem | str, steps: Steps, reference: str | None = None) -> dspy.Prediction:
        """`forward` for asyncio."""
        return await self.arun(self.plan(problem=problem, steps=steps, reference=reference))

    def plan(self, **inputs: Any) -> Plan:
        """See `Asking.plan`."""
        texts = as_steps(inputs["steps"])
        question, reference = question_and_reference(inputs["problem"], inputs["reference"])
        if self.setting("method") == "scorer":
            yield []
            return self._by_scorer(question, texts)
        question, reference, texts, warnings = fitted(question, reference, texts, self.setting("max_chars"))
        given = {"problem": question, **({} if reference is None else {"reference": reference})}
        if self.setting("method") == "bisect":
            found = yield from self._bisect(given, texts)
        else:
            found = yield from self._passes(given, texts)
        found.warnings = warnings
        return found

    def _by_scorer(self, question: str, texts: list[str]) -> dspy.Prediction:
        scores = self.scorer.score(question, texts)  # type: ignore[union-attr]
        first = first_below(scores, self.setting("threshold"))
        verdicts = [score >= self.setting("threshold") for score in scores]
        return _located(first, None, verdicts, [], f"scores {', '.join(f'{s:.2f}' for s in scores)}", scores=scores)

    def _passes(self, given: dict[str, Any], texts: list[str]) -> Plan:
        """Plans one pass, or `samples` of them; rollout ids keep DSPy's cache from making one sample of many."""
        signature = fitting(self.verify.signature, given)
        last = len(texts) - 1
        signature = bounded(signature, first_error=last, critical_error=last)
        voting = self.setting("method") == "vote"
        inputs = {**given, "attempt": signatures.numbered(texts)}
        rounds = range(self.setting("samples") if voting else 1)
        configs = [self._config(number) if voting else self._config(None) for number in rounds]
        answers = yield [Ask(self.verify, inputs, signature, config) for config in configs]
        votes = [_checked(answer, texts) for answer in answers]
        valid = [vote for vote in votes if vote.failure is None]
        if not valid:
            return votes[0]
        if not voting:
            return valid[0]
        counts = Counter(vote.first_error for vote in valid)
        winner = min(counts, key=lambda first: (-counts[first], math.inf if first is None else first))
        chosen = next(vote for vote in valid if vote.first_error == winner)
        chosen.votes = dict(counts)
        chosen.failed_votes = len(votes) - len(valid)
        return chosen

    def _config(self, number: int | None) -> dict[str, Any]:
        temperature = self.setting("temperature")
        if number is None:
            return {} if temperature is None else {"temperature": temperature}
        return {"temperature": 1.0 if temperature is None else temperature, "rollout_id": number + 1}

    def _bisect(self, given: dict[str, Any], texts: list[str]) -> Plan:
        """Plans a search for the shortest prefix that is not right; the whole attempt is asked about first."""
        signature = fitting(self.judge_prefix.signature, given)
        low, high = 0, len(texts)  # prefixes of `low` steps are right; that of `high` is not, once it was asked about
        reason, middle = "", len(texts)
        while low < high:
            inputs = {**given, "attempt": signatures.numbered(texts[:middle])}
            (answer,) = yield [Ask(self.judge_prefix, inputs, signature, self._config(None))]
            if answer.prediction is None:
                return failed(answer.failure or "")
            if answer.prediction.right:
                low = middle
            else:
                high, reason = middle, answer.prediction.reason
                if high == low + 1:
                    break
            middle = (low + high) // 2 if high - low > 1 else high
        first = None if low == len(texts) else high - 1
        return _located(first, None, [i != first for i in range(len(texts) if first is None else high)], [], reason)


def _checked(answer: Answer, texts: list[str]) -> dspy.Prediction:
    if answer.prediction is None:
        return failed(answer.failure or "")
    made = answer.prediction
    rows = [row for i, row in enumerate(made.checks) if row.step == i and i < len(texts)]
    verdicts = [row.verdict == "right" for row in rows]
    first = made.first_error
    reason = next((f"{row.quote} should be {row.expected}" for row in rows if row.step == first), "")
    return _located(first, made.critical_error, verdicts, list(made.checks), reason)


def _located(
    first: int | None, critical: int | None, verdicts: list[bool], checks: list[Any], reason: str, **more: Any
) -> dspy.Prediction:
    found = Localization(first, tuple(verdicts), reason)
    return dspy.Prediction(
        first_error=first, critical_error=critical, verdicts=verdicts, checks=checks, localization=found,
        failure=None, warnings=[], **more,
    )  # fmt: skip
