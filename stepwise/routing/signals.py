"""Signals: one number for the step to decide on, from scores, log-probabilities, samples or a rating.

What differs from the papers:
1. `StepScore` is TRIM-Thr's and RSD's signal (arXiv 2601.10245, 2501.19324); RSD also has a random acceptance.
2. `FirstTokenEntropy` (GlimpRouter, arXiv 2601.05110) knows the `top` likeliest tokens alone and takes the rest as one
   more outcome, so it is a lower bound. The glimpse is paid for and written again when the step is drafted.
3. `MaxLogitMixture` (STEER, arXiv 2511.06190) takes the log-probability of the likeliest token, not its logit, which
   servers do not tell; it judges the draft itself; its mixture is fitted on drafts of other problems.
4. `StrongRating` (SpecReason, arXiv 2504.07891) reads the digit that the strong model writes, asked for in a chat of
   its own; SpecReason reads the likeliest digit after the reasoning so far.
5. `Agreement` compares results or texts; SpecGuard (arXiv 2604.15244) weighs consistency with attention and
   log-probabilities, Lookahead Reasoning (arXiv 2506.19830) asks a model whether two steps mean the same.
6. `ScoreDrop` and `CumulativeSum` (E. S. Page, Continuous inspection schemes, Biometrika 1954) are this project's
   baselines: scores repeat one another within a trace, so the change says more than the level after an error.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from stepwise.errors import ConfigError, DataError
from stepwise.plugins import check_plugin, import_path, is_import_path, load_plugin, make_plugin, options_of
from stepwise.records import record
from stepwise.routing.policy import Evidence, Look, Signal, View, Worse
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.routing.token_signals import LeastLogprob, MeanLogprob, TokenEntropy

_FLOOR = 1e-12  # likelihood where a law has none
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@record(allow_inf_nan=False)
class StepScore(Signal):
    """The scorer's probability that the draft is correct; an empty draft counts as 0.

    >>> StepScore().value(View(Problem("p", "?"), (), Step("So 3.", "weak", 0.3)))
    0.3
    """

    name: ClassVar[str] = "score"

    def value(self, view: View) -> float | None:
        """In [0, 1]."""
        return view.scores[-1] or 0.0


@record(allow_inf_nan=False)
class ScoreDrop(Signal):
    """How far the draft's score lies below that of the step before it; the first step is compared with 1.

    >>> ScoreDrop().value(View(Problem("p", "?"), (), Step("So 3.", "weak", 0.3)))
    0.7
    """

    name: ClassVar[str] = "score_drop"
    worse: ClassVar[Worse] = "high"

    def value(self, view: View) -> float | None:
        """In [-1, 1]."""
        before, score = (1.0, *view.scores)[-2:]
        return None if before is None else before - (score or 0.0)


@record(allow_inf_nan=False)
class CumulativeSum(Signal):
    """Page's statistic: log P(score | wrong just now) - log P(score | right), summed over the steps, never below 0.

    It starts again from 0 after a step by the strong model, which is what an alarm leads to.

    Args:
        law: of the scores, fitted on other problems (`RouterFit.law`); one of pairs counts as its `score_only`.

    >>> law = ObservationLaw((0.0, 0.5, 1.0), ((0.2, 0.8), (0.5, 0.5), (0.8, 0.2)))
    >>> round(CumulativeSum(law).value(View(Problem("p", "?"), (), Step("So 3.", "weak", 0.3))), 3)
    1.386
    """

    law: ObservationLaw
    name: ClassVar[str] = "cumulative_sum"
    worse: ClassVar[Worse] = "high"

    def value(self, view: View) -> float | None:
        """At least 0, in nats."""
        law, total = self.law.score_only(), 0.0
        for step in (*view.steps, *((view.draft,) if view.draft else ())):
            right, _, wrong = law.likelihoods(step.score or 0.0)
            total = max(0.0, total + math.log(max(wrong, _FLOOR) / max(right, _FLOOR)))
            if step.author == "strong":
                total = 0.0
        return total


@record(allow_inf_nan=False)
class FirstTokenEntropy(Signal):
    """Entropy of the weak model's first token of the step, before it writes the step, from its `top` likeliest.

    >>> round(FirstTokenEntropy().value(View(Problem("p", "?"), first_token=(math.log(0.5), math.log(0.5)))), 3)
    0.693
    """

    top: int = Field(default=20, ge=2, le=20)
    name: ClassVar[str] = "first_token_entropy"
    when: ClassVar[Literal["before", "after"]] = "before"
    worse: ClassVar[Worse] = "high"

    @property
    def needs(self) -> tuple[Look, ...]:
        """A glimpse."""
        return (Look("first_token", self.top),)

    def value(self, view: View) -> float | None:
        """In nats, at least 0, of the untempered distribution."""
        if not view.first_token:
            return None
        shares = [math.exp(logprob) for logprob in view.first_token]
        rest = max(0.0, 1.0 - sum(shares))
        return max(0.0, -sum(p * math.log(p) for p in (*shares, rest) if p > 0))


@record(allow_inf_nan=False)
class MaxLogit(Signal):
    """How certain the weak model was: mean log-probability of the likeliest token over the tokens of the draft.

    >>> MaxLogit().value(View(Problem("p", "?"), logprobs=((-0.1, -3.0), (-0.3, -2.0))))
    -0.2
    """

    name: ClassVar[str] = "max_logit"
    evidence: ClassVar[Evidence] = "logprobs"

    def value(self, view: View) -> float | None:
        """At most 0."""
        rows = [row[0] for row in view.logprobs if row]
        return sum(rows) / len(rows) if rows else None


@record(allow_inf_nan=False)
class MaxLogitMixture(Signal):
    """Chance that the draft comes from the less certain of two kinds of step, by its `MaxLogit`.

    The `MaxLogit` of all drafts is taken as a mixture of two normal distributions, the less certain first;
    `fit_mixture` fits one. A value beyond the two means counts as the nearer mean, so that the chance falls with it
    everywhere.

    Raises `DataError` where the means do not grow, the weights do not add up to 1 or a deviation is not positive.

    >>> round(MaxLogitMixture((0.5, 0.5), (-1.0, 0.0), (0.5, 0.5)).chance(-0.5), 3)
    0.5
    """

    weights: tuple[float, float]
    means: tuple[float, float]
    deviations: tuple[float, float]
    name: ClassVar[str] = "max_logit_mixture"
    worse: ClassVar[Worse] = "high"
    evidence: ClassVar[Evidence] = "logprobs"

    def __post_init__(self) -> None:
        if (
            not self.means[0] < self.means[1]
            or min(self.deviations) <= 0
            or min(self.weights) <= 0
            or abs(sum(self.weights) - 1) > 1e-6
        ):
            raise DataError(
                f"the mixture has means {self.means}, deviations {self.deviations} and weights {self.weights}; the "
                "first mean must be the lower, deviations be positive and weights add up to 1: use fit_mixture"
            )

    def value(self, view: View) -> float | None:
        """In [0, 1]."""
        mean = MaxLogit().value(view)
        return None if mean is None else self.chance(mean)

    def chance(self, mean: float) -> float:
        """P(less certain kind | `MaxLogit`)."""
        x = min(max(mean, self.means[0]), self.means[1])
        logs = [
            math.log(weight / deviation) - 0.5 * ((x - center) / deviation) ** 2
            for weight, center, deviation in zip(self.weights, self.means, self.deviations, strict=True)
        ]
        return 1.0 / (1.0 + math.exp(min(logs[1] - logs[0], 700.0)))


def fit_mixture(values: Iterable[float], *, rounds: int = 500) -> MaxLogitMixture:
    """The mixture of two normal distributions that is likeliest for these values of `MaxLogit`, by EM.

    It starts from the two halves of the sorted values. A deviation stays above 1 % of that of all values, since a
    component on one value alone would be infinitely likely. Raises `DataError` for fewer than 20 values or none that
    differ.

    >>> [round(mean, 3) for mean in fit_mixture([-1.0, -0.9, -1.1, -0.1, 0.0, -0.2] * 5).means]
    [-1.0, -0.1]
    """
    x = np.sort(np.asarray(list(values), dtype=np.float64))
    if len(x) < 20 or not np.isfinite(x).all() or x[0] == x[-1]:
        raise DataError(
            f"{len(x)} values are too few for a mixture, or all the same; give 20 or more of drafts that differ"
        )
    halves = np.array_split(x, 2)
    weights, floor = np.array([0.5, 0.5]), 0.01 * x.std()
    means = np.array([half.mean() for half in halves])
    deviations = np.maximum([half.std() for half in halves], floor)
    before = -np.inf
    for _ in range(rounds):
        logs = np.log(weights / deviations) - 0.5 * ((x[:, None] - means) / deviations) ** 2
        top = logs.max(axis=1, keepdims=True)
        sums = np.exp(logs - top).sum(axis=1, keepdims=True)
        likelihood = float((top + np.log(sums)).mean())
        shares = np.exp(logs - top) / sums
        mass = shares.sum(axis=0) + 1e-9
        weights, means = mass / mass.sum(), (shares * x[:, None]).sum(axis=0) / mass
        deviations = np.maximum(np.sqrt((shares * (x[:, None] - means) ** 2).sum(axis=0) / mass), floor)
        if likelihood - before < 1e-9:
            break
        before = likelihood
    first, second = np.argsort(means)
    return MaxLogitMixture(*((float(pair[first]), float(pair[second])) for pair in (weights, means, deviations)))


@record(allow_inf_nan=False)
class StrongRating(Signal):
    """The strong model's rating of the draft, one digit; SpecReason's example accepts from 7 on.

    >>> StrongRating().value(View(Problem("p", "?"), rating=7))
    7.0
    """

    name: ClassVar[str] = "rating"
    evidence: ClassVar[Evidence] = "rating"

    def value(self, view: View) -> float | None:
        """0 to 9."""
        return None if view.rating is None else float(view.rating)


@record(allow_inf_nan=False)
class Agreement(Signal):
    """Share of `k` other samples of the step that say the same as the draft.

    Args:
        k: how many more the weak model draws.
        by: "result" compares the last number of a step, or its text where it has none; "text" the words.

    >>> others = (Step("Thus 3.", "weak"), Step("Thus 4.", "weak"))
    >>> Agreement(2).value(View(Problem("p", "?"), (), Step("So 3.", "weak"), resamples=others))
    0.5
    """

    k: int = Field(default=3, ge=1, le=64)
    by: Literal["result", "text"] = "result"
    name: ClassVar[str] = "agreement"

    @property
    def needs(self) -> tuple[Look, ...]:
        """The samples."""
        return (Look("resamples", self.k),)

    def value(self, view: View) -> float | None:
        """In [0, 1]."""
        if view.draft is None or not view.resamples:
            return None
        gist = self._gist(view.draft.text)
        return sum(self._gist(sample.text) == gist for sample in view.resamples) / len(view.resamples)

    def _gist(self, text: str) -> str:
        numbers = _NUMBER.findall(text) if self.by == "result" else []
        if not numbers:
            return " ".join(text.lower().split())
        number = str(numbers[-1]).replace(",", "")
        return number.rstrip("0").rstrip(".") if "." in number else number


SIGNALS: dict[str, type[Signal]] = {
    cls.name: cls
    for cls in (
        StepScore, ScoreDrop, CumulativeSum, FirstTokenEntropy, MaxLogit, MaxLogitMixture, StrongRating, Agreement,
        LeastLogprob, MeanLogprob, TokenEntropy,
    )
}  # fmt: skip
"""those of this package, by name"""


def as_signal(given: Any, allowed: Collection[str] | None = None) -> Signal:
    """A signal as it is, or from its name (or "my_package.my_file:MySignal"), or from a dictionary of that under
    "name" and its fields. `allowed` is as for `load_plugin`.

    Raises `ConfigError` for what is none of these, for a class that is no complete `Signal`, and for wrong fields.

    >>> as_signal({"name": "agreement", "k": 5})
    Agreement(k=5, by='result')
    """
    if isinstance(given, str | Mapping):
        options = {"name": given} if isinstance(given, str) else dict(given)
        name = str(options.pop("name", ""))
        if is_import_path(name):
            cls = load_plugin(name, Signal, field="signal", allowed=allowed)
        elif name in SIGNALS:
            cls = SIGNALS[name]
        else:
            near = difflib.get_close_matches(name, SIGNALS, n=1, cutoff=0.0)[0]
            raise ConfigError(f"signal is {name!r}; did you mean {near!r}? Known signals: {', '.join(SIGNALS)}")
        given = make_plugin(cls, options, field=f"signal {name!r}")
    given = make_plugin(given, {}, field="signal")
    check_plugin(given, Signal, field="signal")
    return given  # type: ignore[no-any-return]


def signal_to_dict(signal: Signal) -> dict[str, Any]:
    """Its name, or the import path of a user's, and its fields, plain JSON; the inverse of `as_signal`.

    >>> signal_to_dict(Agreement(5))
    {'name': 'agreement', 'k': 5, 'by': 'result'}
    """
    options = TypeAdapter(dict[str, Any]).dump_python(options_of(signal), mode="json")
    return {"name": signal.name if SIGNALS.get(signal.name) is type(signal) else import_path(signal), **options}


def looks_for(signals: Sequence[Signal]) -> dict[str, str]:
    """What these signals look for, each with the name of the first signal that wants it.

    >>> looks_for([StepScore()])
    {'scores': 'score', 'draft': 'score'}
    """
    wanted_by: dict[str, str] = {}
    for signal in signals:
        for look in (*signal.needs, *([Look("draft")] if signal.when == "after" else [])):
            wanted_by.setdefault(look.what, signal.name)
    return wanted_by
