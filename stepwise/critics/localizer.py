"""Finding the first error of an attempt."""

from __future__ import annotations

import math
from collections import Counter
from itertools import count, takewhile
from typing import Any, Literal, Self, get_args

import dspy

from stepwise.config import Config
from stepwise.critics import signatures
from stepwise.critics.asking import Answer, Ask, Asking, Plan, critic_lm, failed
from stepwise.critics.formats import Format
from stepwise.critics.inputs import Steps, as_steps, at_most_rows, bounded, fitted, fitting, question_and_reference
from stepwise.critics.parameters import Predictor
from stepwise.data.localization import first_below
from stepwise.errors import ConfigError
from stepwise.models.scorers.base import score_items
from stepwise.types import Localization, Problem

Method = Literal["one_pass", "vote", "bisect", "scorer"]


class ErrorLocalizer(Asking):
    """Finds the first error of an attempt.

    Methods: "one_pass" checks all steps in one call (InT's verification log); "vote" takes the majority of `samples`
    passes at `temperature` (ProcessBench's voting; ties go to the earlier step, failures do not vote); "bisect" asks
    whether a prefix is right, at most 1 + log2(steps) times, rounded up; "scorer" takes the first step that a process
    reward model scores below `threshold`, and asks no language model.

    The prediction has `first_error` (0-based, None where every step is right), `critical_error` (the first error that
    no later step makes up for; None for methods that cannot tell), `verdicts` (one per step checked, from step 0 on),
    `checks`, `localization`, and `failure`: where it is not None there is no result, and `first_error` means nothing.
    Where a reply contradicts itself, `first_error` is what it says last, in the field of that name, and `warnings` say
    so. "vote" adds `votes` (first error -> passes) and `failed_votes`, "scorer" adds `scores`.
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
        if not isinstance(samples, int) or samples < 1 or not 0 <= threshold <= 1:
            raise ConfigError(
                f"samples is {samples}, threshold {threshold}; give a whole number >= 1 and a threshold in [0, 1]"
            )
        from stepwise.models.scorers import load_scorer

        self.scorer = None if scorer is None else load_scorer(scorer)
        super().__init__(
            lm, adapter, bare=bare, fixed=("method", "scorer"), method=method, samples=samples,
            temperature=temperature, scorer=getattr(self.scorer, "name", None), threshold=threshold,
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
            self.judge_prefix = Predictor(signatures.JudgePrefix)
        elif self.setting("method") != "scorer":
            self.verify = Predictor(signatures.VerifyAttempt)

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
        found.warnings = [*warnings, *found.warnings]
        return found

    def _by_scorer(self, question: str, texts: list[str]) -> dspy.Prediction:
        assert self.scorer is not None
        (scored,) = score_items(self.scorer, [(question, texts)])
        if scored.error:
            return failed(f"scorer {self.scorer.name!r}: {scored.error}", usage=scored.usage)
        threshold = self.setting("threshold")
        first = first_below(scored.scores, threshold)
        reason = "" if first is None else f"the score {scored.scores[first]:.2f} is under {threshold:.2f}"
        verdicts = [score >= threshold for score in scored.scores]
        return _located(first, None, verdicts, [], reason, scores=scored.scores, usage=scored.usage)

    def _passes(self, given: dict[str, Any], texts: list[str]) -> Plan:
        """Plans one pass, or `samples` of them; rollout ids keep DSPy's cache from making one sample of many."""
        signature = fitting(self.verify.signature, given)
        last = len(texts) - 1
        signature = bounded(at_most_rows(signature, "checks", last + 1), first_error=last, critical_error=last)
        voting = self.setting("method") == "vote"
        inputs = {**given, "attempt": signatures.numbered(texts)}
        rounds = range(self.setting("samples") if voting else 1)
        configs = [self._config(number) if voting else self._config(None) for number in rounds]
        answers = yield [Ask(self.verify, inputs, signature, config) for config in configs]
        votes = [_checked(answer, texts) for answer in answers]
        valid = [vote for vote in votes if vote.failure is None]
        if not valid or not voting:
            return votes[0]
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
        low, high, middle, reason = 0, len(texts) + 1, len(texts), ""  # `low` steps are right, `high` are not
        while high - low > 1:
            inputs = {**given, "attempt": signatures.numbered(texts[:middle])}
            (answer,) = yield [Ask(self.judge_prefix, inputs, signature, self._config(None))]
            if answer.prediction is None:
                return failed(f"asked about steps 0 to {middle - 1}: {answer.failure}")
            if answer.prediction.right:
                low = middle
            else:
                high, reason = middle, answer.prediction.reason
            middle = (low + high) // 2
        first = None if high > len(texts) else high - 1
        return _located(first, None, [True] * low + [False] * (first is not None), [], reason)


def _checked(answer: Answer, texts: list[str]) -> dspy.Prediction:
    if answer.prediction is None:
        return failed(answer.failure or "")
    made, warnings = answer.prediction, []
    rows = [row for row, _ in takewhile(lambda pair: pair[0].step == pair[1], zip(made.checks, count(), strict=False))]
    if len(rows) < len(made.checks):
        step = made.checks[len(rows)].step
        warnings.append(f"after {len(rows)} steps the checks name step {step}; from there on they do not count")
    verdicts, first = [row.verdict == "right" for row in rows[: len(texts)]], made.first_error
    checked = next((i for i, right in enumerate(verdicts) if not right), None)
    if checked != first and (checked is not None or first < len(verdicts)):
        warnings.append(f"the checks say {_named(checked)}, first_error says {_named(first)}, which counts")
    if first is None and checked is None and len(verdicts) < len(texts):
        warnings.append(f"only {len(verdicts)} of {len(texts)} steps were checked; the rest is taken for right unseen")
    unsaid = [row for row in rows[: len(texts)] if not _within(row.quote, texts[row.step])]
    warnings += [f"step {row.step} does not say {row.quote!r}, which its check quotes" for row in unsaid]
    critical = made.critical_error
    if critical is not None and (first is None or critical < first):
        warnings.append(f"critical_error is {_named(critical)}, but first_error {_named(first)}; it is left out")
        critical = None
    wrong = (row for row in rows if row.step == first and row.verdict == "wrong")
    reason = next((f"{row.quote} should be {row.expected}" for row in wrong), "")
    return _located(first, critical, verdicts, list(made.checks), reason, warnings=warnings)


def _within(quote: str, text: str) -> bool:
    return "".join(quote.split()) in "".join(text.split())


def _located(
    first: int | None, critical: int | None, verdicts: list[bool], checks: list[Any], reason: str, **more: Any
) -> dspy.Prediction:
    found = Localization(first, tuple(verdicts), reason)
    return dspy.Prediction(
        first_error=first, critical_error=critical, verdicts=verdicts, checks=checks, localization=found,
        failure=None, **{"warnings": [], **more},
    )  # fmt: skip


def _named(index: int | None) -> str:
    return "no error" if index is None else f"step {index}"
