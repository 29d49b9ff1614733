"""Finding the first error of an attempt."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Literal, Self, get_args

import dspy

from stepwise.config import Config
from stepwise.critics import signatures
from stepwise.critics.formats import Format
from stepwise.critics.inputs import Steps, as_steps, question_and_reference
from stepwise.critics.module import CriticModule, critic_lm
from stepwise.critics.reference import NO_REFERENCE
from stepwise.critics.results import caught, failed
from stepwise.data.localization import first_absent, first_below
from stepwise.errors import ConfigError
from stepwise.models.scorers import load_scorer
from stepwise.types import Localization, Problem

_QUOTES = "\"'`“”„«»"
Method = Literal["one_pass", "vote", "bisect", "scorer", "reference"]


class ErrorLocalizer(CriticModule):
    """Finds the first error of an attempt.

        ErrorLocalizer("llamacpp/lab-critic")(problem="2 + 2 + 1?", steps=["2 + 2 = 5.", "5 + 1 = 6."]).first_error

    Methods: "one_pass" checks all steps in one call (InT's verification log); "vote" takes the majority of `samples`
    passes at `temperature` (ProcessBench's voting; ties go to the earlier step, failures do not vote); "bisect" asks
    whether a prefix is right, at most 1 + log2(steps) times, rounded up; "scorer" takes the first step that a process
    reward model scores below `threshold`, and asks no language model; "reference" takes the first step with a number
    that neither problem nor reference has, and asks no model at all.

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
        bare: bool | None = None,
        max_chars: int = 40_000,
        callbacks: Sequence[Any] = (),
    ) -> None:
        if method not in get_args(Method):
            raise ConfigError(f"method {method!r} is not one of {', '.join(get_args(Method))}")
        if method == "scorer" and scorer is None:
            raise ConfigError('method "scorer" needs a scorer; give one, for example scorer="llamacpp/lab-scorer"')
        if method != "scorer" and scorer is not None:
            raise ConfigError(
                f'a scorer is given, but method {method!r} asks none; set method="scorer" or leave it out'
            )
        if not isinstance(samples, int) or samples < 1 or not 0 <= threshold <= 1:
            raise ConfigError(
                f"samples is {samples}, threshold {threshold}; give a whole number >= 1 and a threshold in [0, 1]"
            )
        predictors = {"bisect": {"judge_prefix": signatures.JudgePrefix}, "scorer": {}, "reference": {}}
        loaded = None if scorer is None else load_scorer(scorer)
        super().__init__(
            predictors.get(method, {"verify": signatures.VerifyAttempt}), lm, adapter, ("method", "scorer"),
            bare=bare, method=method, samples=samples, temperature=temperature,
            scorer=None if loaded is None else loaded.name, threshold=threshold, max_chars=max_chars,
            callbacks=callbacks,
        )  # fmt: skip
        self.scorer, self._scorer_spec = loaded, scorer

    def __getstate__(self) -> dict[str, Any]:
        """What pickle writes: how a scorer is loaded, not the scorer. Raises ConfigError for one that was handed in
        loaded, on a model of this process.
        """
        state: dict[str, Any] = super().__getstate__()
        if getattr(self._scorer_spec, "engines", ()):
            raise ConfigError(
                "scorer: one that is loaded cannot be saved with the program; give its name or ScorerConfig"
            )
        return {key: value for key, value in state.items() if key != "scorer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The localizer with its scorer loaded."""
        super().__setstate__(state)
        self.scorer = None if self._scorer_spec is None else load_scorer(self._scorer_spec)

    @classmethod
    def from_config(cls, config: Config | str | Path) -> Self:
        """The localizer that [critic], models.critic and [scorer] describe."""
        config = Config.of(config, "config")
        settings = config.critic
        scoring = settings.method == "scorer"
        scorer: Any = config.scorer if scoring else None
        if scoring and config.scorer.kind == "probe":  # it needs the weak model
            scorer = load_scorer(config.scorer, prompt=config.prompt, weak=config.models.weak)
        return cls(
            None if scoring or settings.method == "reference" else critic_lm(config),
            settings.method,
            samples=settings.samples,
            temperature=settings.temperature or None,
            scorer=scorer,
            threshold=settings.threshold,
            adapter=settings.format,
            bare=config.critic_is_bare,
        )

    async def run(self, problem: Problem | str, steps: Steps, reference: str | None = None) -> dspy.Prediction:
        """Localize in one attempt. `steps` may be texts, a Trace or a whole solution; see the class for the result.

        Raises DataError for an empty attempt or question, and what the language model's client raises.
        """
        if self.setting("method") == "scorer":
            texts = as_steps(steps)  # a scorer reads all of them
            return await self._score(question_and_reference(problem, reference)[0], texts)
        if self.setting("method") == "reference":
            return _compared(as_steps(steps), *question_and_reference(problem, reference))
        given, texts = self.prepared(problem, steps, reference)
        if self.setting("method") == "bisect":
            return await self._bisect(given, texts)
        if self.setting("method") == "one_pass":
            return await self._verify(given, texts, self.sampling())
        configs = [self.sampling(number, 1.0) for number in range(self.setting("samples"))]
        votes = await asyncio.gather(*(caught(self._verify(given, texts, config)) for config in configs))
        valid = [vote for vote in votes if isinstance(vote, dspy.Prediction)]
        if not valid:
            return failed(str(votes[0]))
        counts = Counter(vote.first_error for vote in valid)
        winner = min(counts, key=lambda first: (-counts[first], math.inf if first is None else first))
        chosen = next(vote for vote in valid if vote.first_error == winner)
        chosen.votes, chosen.failed_votes = dict(counts), len(votes) - len(valid)
        return chosen

    async def _verify(self, given: dict[str, Any], texts: list[str], config: dict[str, Any]) -> dspy.Prediction:
        """One pass over all steps, and what its verification log says."""
        signature, last = signatures.fitting(self.verify.signature, given), len(texts) - 1
        signature = signatures.at_most_rows(signature, "checks", last + 1, self.first_number)
        signature = signatures.bounded(signature, self.first_number, first_error=last, critical_error=last)
        inputs = {**given, "attempt": signatures.numbered(texts)}
        return _checked(await self.call(self.verify, inputs, signature, config), texts)

    async def _bisect(self, given: dict[str, Any], texts: list[str]) -> dspy.Prediction:
        """A search for the shortest prefix that is not right; the whole attempt is asked about first."""
        signature = signatures.fitting(self.judge_prefix.signature, given)
        low, high, middle, reason = 0, len(texts) + 1, len(texts), ""  # `low` steps are right, `high` are not
        while high - low > 1:
            inputs = {**given, "attempt": signatures.numbered(texts[:middle])}
            reply = await caught(self.call(self.judge_prefix, inputs, signature, self.sampling()))
            if isinstance(reply, Exception):
                return failed(f"asked about steps 0 to {middle - 1}: {reply}")
            if reply.right:
                low = middle
            else:
                high, reason = middle, reply.reason
            middle = (low + high) // 2
        first = None if high > len(texts) else high - 1
        return _located(first, None, [True] * low + [False] * (first is not None), [], reason)

    async def _score(self, question: str, texts: list[str]) -> dspy.Prediction:
        scored = await self.scorer.ascore(question, texts)
        if scored.error:
            return failed(f"scorer {self.scorer.name!r}: {scored.error}", scored.failed, usage=scored.usage)
        threshold = self.setting("threshold")
        first = first_below(scored.scores, threshold)
        reason = "" if first is None else f"the score {scored.scores[first]:.2f} is under {threshold:.2f}"
        verdicts = [score >= threshold for score in scored.scores]
        return _located(first, None, verdicts, [], reason, scores=scored.scores, usage=scored.usage)


def _compared(texts: list[str], question: str, reference: str | None) -> dspy.Prediction:
    """The first error by the numbers of a reference solution."""
    if reference is None:
        return failed(NO_REFERENCE)
    first = first_absent(texts, question, reference)
    verdicts = [True] * (len(texts) if first is None else first) + [False] * (first is not None)
    return _located(first, None, verdicts, [], "" if first is None else "a number in it is not in the reference")


def _checked(reply: dspy.Prediction, texts: list[str]) -> dspy.Prediction:
    """What a verification log says of the steps `texts`, with a warning for each contradiction in it."""
    checks, first, critical, warnings = list(reply.checks), reply.first_error, reply.critical_error, []
    rows = [row for row, _ in takewhile(lambda pair: pair[0].step == pair[1], zip(checks, count(), strict=False))]
    if len(rows) < len(checks):
        step = checks[len(rows)].step
        warnings.append(f"after {len(rows)} steps the checks name step {step}; from there on they do not count")
    verdicts = [row.verdict == "right" for row in rows[: len(texts)]]
    checked = next((i for i, right in enumerate(verdicts) if not right), None)
    if checked != first and (checked is not None or first < len(verdicts)):
        warnings.append(f"the checks say {_named(checked)}, first_error says {_named(first)}, which counts")
    if first is None and checked is None and len(verdicts) < len(texts):
        warnings.append(f"only {len(verdicts)} of {len(texts)} steps were checked; the rest is taken for right unseen")
    unsaid = [row for row in rows[: len(texts)] if _bare(row.quote).strip(_QUOTES) not in _bare(texts[row.step])]
    warnings += [f"step {row.step} does not say {row.quote!r}, which its check quotes" for row in unsaid]
    if critical is not None and (first is None or critical < first):
        warnings.append(f"critical_error is {_named(critical)}, but first_error {_named(first)}; it is left out")
        critical = None
    wrong = (row for row in rows if row.step == first and row.verdict == "wrong")
    reason = next((f"{row.quote} should be {row.expected}" for row in wrong), "")
    return _located(first, critical, verdicts, checks, reason, warnings=warnings)


def _bare(text: str) -> str:
    return "".join(text.split())


def _located(
    first: int | None, critical: int | None, verdicts: list[bool], checks: list[Any], reason: str, **more: Any
) -> dspy.Prediction:
    located = Localization(first, tuple(verdicts), reason)
    return dspy.Prediction(
        first_error=first, critical_error=critical, verdicts=verdicts, checks=checks, localization=located,
        failure=None, **more,
    )  # fmt: skip


def _named(index: int | None) -> str:
    return "no error" if index is None else f"step {index}"
