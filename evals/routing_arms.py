"""The arms of `evals.routing`: each a family of policies at about a dozen operating points, fitted on other problems.

An arm whose operating point is a threshold gets the thresholds that flag given shares of the drafts (of the problems,
for a whole-problem arm) on the calibration problems; one whose point is a price gets prices of a step from a thousandth
of a right answer on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from stepwise.errors import DataError
from stepwise.routing.policies import Always, Never, Random, Threshold
from stepwise.routing.policy import Policy, Signal
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.routing.pomdp.fit import RouterFit, fit_router
from stepwise.routing.pomdp.fit_check import kernel_law
from stepwise.routing.pomdp.fit_data import FitTrace, from_lab_trace
from stepwise.routing.pomdp.policies import BeliefThreshold, Planned, Published
from stepwise.routing.query import (
    Cascade,
    QueryRandom,
    fit_query_classifier,
)
from stepwise.routing.signal_policies import Signalled, TwoStage, Watch, threshold_at
from stepwise.routing.signals import (
    Agreement,
    CumulativeSum,
    FirstTokenEntropy,
    MaxLogit,
    ScoreDrop,
    StepScore,
    StrongRating,
    fit_mixture,
)
from stepwise.types import Problem, Trace

from .query_points import at_share
from .routing_world import World, seed_for

T = TypeVar("T")
Level = Literal["alone", "step", "query", "samples", "bound"]
SHARES = (0.01, 0.02, 0.04, 0.06, 0.08, 0.11, 0.14, 0.18, 0.25, 0.4, 0.6, 0.85)
QUERY_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.94, 0.98)
FEES = (0.001, 0.003, 0.008, 0.02, 0.04, 0.08, 0.13, 0.2, 0.28, 0.38, 0.55, 0.75)  # of a step, in right answers
RANDOM_STRONG = 0.3  # share of steps by the strong model in the traces that p_strong is counted on


@dataclasses.dataclass
class Material:
    """What arms are fitted and calibrated on: problems that are not measured on.

    `scorer` is that of the measured runs, `fitted_with` that of fitting and calibration (keys of `SCORERS`); `points`
    is how many operating points an arm is to have at most.
    """

    world: World
    scorer: str
    fitted_with: str
    fitting: Sequence[Problem]
    calibrating: Sequence[Problem]
    measured: Sequence[Problem]
    points: int = 12
    _kept: dict[str, Any] = dataclasses.field(default_factory=dict)

    def weak_alone(self) -> list[Trace]:
        """The weak model's scored solutions of the calibration problems."""
        return self._once("weak", lambda: self._scored(self.routed(Never(), self.calibrating)))

    def routed(self, policy: Policy, problems: Sequence[Problem]) -> list[Trace]:
        """Traces with a seed that no measured run has."""
        return self.world.traces(policy, problems, seed_for("fitting", self.world.config.seed), scorer=self.fitted_with)

    def fit(self) -> RouterFit:
        """The routing model, fitted on labelled traces: the weak model alone, and with strong steps at random."""
        return self._once("fit", self._fit)

    def fit_traces(self) -> list[FitTrace]:
        """The labelled traces of the fit."""
        return self._once(
            "fit traces",
            lambda: [
                from_lab_trace(trace)
                for policy in (Never(), Random(RANDOM_STRONG))
                for trace in self._scored(self.routed(policy, self.fitting))
                if trace.steps
            ],
        )

    def published_law(self) -> ObservationLaw:
        """The law of (least earlier score, score) smoothed as TRIM's code does, from the same labelled traces."""
        return self._once("published law", self._published_law)

    def signal_values(self, signal: Signal) -> list[float]:
        """The signal at every draft of the weak model on the calibration problems."""

        def watched() -> list[float]:
            watch = Watch(signal)
            self.routed(watch, self.calibrating)
            return [value for values in watch.values.values() for value in values]

        return self._once(repr(signal), watched)

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """At most `points` of the values, evenly taken, the ends included."""
        if len(values) <= self.points:
            return list(values)
        places = np.linspace(0, len(values) - 1, self.points).round().astype(int)
        return [values[i] for i in dict.fromkeys(places.tolist())]

    def _scored(self, traces: Sequence[Trace]) -> list[Trace]:
        from programs.fit_router import scored

        return scored(self.world.scorer_of(self.fitted_with), traces)

    def _fit(self) -> RouterFit:
        models = self.world.config.models
        return fit_router(
            self.fit_traces(),
            weak=models.weak.model,
            strong=models.strong.model,
            scorer=f"{self.world.config.scorer.model} ({self.fitted_with})",
            config=self.world.config.hash,
            labels="lab",
            max_steps=self.world.config.routing.max_steps,
            samples=60,
            seed=self.world.config.seed,
        )

    def _published_law(self) -> ObservationLaw:
        scores, least, states = list[float](), list[float](), list[int]()
        for trace in self.fit_traces():
            if any(step.replaced for step in trace.steps):
                continue
            worst = 1.0
            for step, state in zip(trace.steps, trace.states, strict=True):
                score = step.score or 0.0
                scores.append(score)
                least.append(worst)
                states.append(state)
                worst = min(worst, score)
        return kernel_law(np.asarray(scores), np.asarray(states, dtype=np.int64), np.asarray(least))

    def _once(self, key: str, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found


@dataclasses.dataclass(frozen=True)
class Arm:
    """A family of policies. `needs` says in words what it is fitted on; `truth`: it is shown the checker's verdicts
    instead of scores.
    """

    name: str
    level: Level
    needs: str
    policies: Callable[[Material], Sequence[Policy]]
    truth: bool = False


def _thresholds(policy: Policy, worse: Literal["high", "low"], values: Sequence[float], m: Material) -> list[Policy]:
    points = dict.fromkeys(threshold_at(worse, values, share) for share in m.spread(SHARES))
    return [policy.at(point) for point in points]


def _on(signal: Callable[[Material], Signal], **options: Any) -> Callable[[Material], Sequence[Policy]]:
    """A threshold on a signal."""

    def policies(m: Material) -> Sequence[Policy]:
        one = signal(m)
        return _thresholds(Signalled(one, 0.5, **options), one.worse, m.signal_values(one), m)

    return policies


def _scores(m: Material) -> list[float]:
    return [step.score or 0.0 for trace in m.weak_alone() for step in trace.steps]


def _beliefs(policy: BeliefThreshold, m: Material) -> list[Policy]:
    """Thresholds on a belief. The memoryless one depends on its own threshold (through the prior of the step), so its
    values are those under no escalation.
    """
    never = policy.at(1.0)
    values = [
        never.filter.belief(trace.steps[:i], step)[2] for trace in m.weak_alone() for i, step in enumerate(trace.steps)
    ]
    points = dict.fromkeys(min(1.0, threshold_at("high", values, share)) for share in m.spread(SHARES))
    return [policy.at(point) for point in points]


def _belief(m: Material) -> Sequence[Policy]:
    return _beliefs(BeliefThreshold(m.fit().pomdp(), m.fit().law), m)


def _pair(m: Material, law: ObservationLaw) -> dict[str, Any]:
    return {"model": dataclasses.replace(m.fit().pomdp(), observation=law.rows), "law": law}


def _belief_memoryless(m: Material) -> Sequence[Policy]:
    law = m.fit().pair_law
    if law is None:
        raise DataError("too few labels for a law of pairs; give more fitting problems (--fit)")
    return _beliefs(BeliefThreshold(**_pair(m, law), history="memoryless"), m)


def _belief_published(m: Material) -> Sequence[Policy]:
    return _beliefs(BeliefThreshold(**_pair(m, m.published_law()), history="published"), m)


def _priced(policy: Any, m: Material) -> list[Policy]:
    return [policy.at(fee * policy.model.reward / policy.model.tokens_per_step) for fee in m.spread(FEES)]


def _planned(m: Material) -> Sequence[Policy]:
    return _priced(Planned(m.fit().pomdp(), m.fit().law), m)


def _published(gate: float) -> Callable[[Material], Sequence[Policy]]:
    return lambda m: _priced(Published(**_pair(m, m.published_law()), gate=gate), m)


def _two_stage(m: Material) -> Sequence[Policy]:
    before, after = FirstTokenEntropy(), StepScore()
    seen = m.signal_values(before)
    good, bad = (threshold_at("high", seen, share) for share in (0.7, 0.02))
    return _thresholds(TwoStage(before, good, bad, after, 0.5), "low", _scores(m), m)


def _query(make: Callable[[Material], tuple[Any, Sequence[Trace]]]) -> Callable[[Material], Sequence[Policy]]:
    def policies(m: Material) -> Sequence[Policy]:
        policy, traces = make(m)
        made = [at_share(policy, traces, share, measured_on=m.measured) for share in m.spread(QUERY_SHARES)]
        return list({one.point: one for one in made}.values())

    return policies


def _classifier(m: Material) -> tuple[Any, Sequence[Trace]]:
    weak, strong = (m.routed(policy, m.fitting) for policy in (Never(), Always()))
    return fit_query_classifier(weak, strong, measured_on=m.measured), m.weak_alone()


def _cascade(check: Literal["verification", "least_score"]) -> Callable[[Material], tuple[Any, Sequence[Trace]]]:
    def made(m: Material) -> tuple[Any, Sequence[Trace]]:
        policy = Cascade(check, 0.0)
        # At threshold 0 a solution without an answer is still handed over; its trace then tells the check as -1.
        return policy, m.routed(policy, m.calibrating)

    return made


FIT = "labelled traces of the fitting problems"
CALIBRATION = "operating points on the calibration problems"
ARMS: tuple[Arm, ...] = (
    Arm("never", "alone", "nothing", lambda _: [Never()]),
    Arm("always", "alone", "nothing", lambda _: [Always()]),
    Arm("random", "step", "nothing", lambda m: [Random(p) for p in m.spread(SHARES)]),
    Arm("threshold", "step", CALIBRATION, lambda m: _thresholds(Threshold(), "low", _scores(m), m)),
    Arm("belief", "step", FIT, _belief),
    Arm("belief, memoryless pair", "step", FIT, _belief_memoryless),
    Arm("belief, published", "step", FIT, _belief_published),
    Arm("planned", "step", FIT, _planned),
    Arm("published", "step", FIT, _published(0.4)),
    Arm("published, no gate", "step", FIT, _published(1.01)),
    Arm("score drop", "step", CALIBRATION, _on(lambda _: ScoreDrop())),
    Arm("cumulative sum", "step", FIT, _on(lambda m: CumulativeSum(m.fit().law))),
    Arm("first-token entropy", "step", CALIBRATION, _on(lambda _: FirstTokenEntropy())),
    Arm("max-logit mixture", "step", CALIBRATION, _on(lambda m: fit_mixture(m.signal_values(MaxLogit())))),
    Arm("strong model's rating", "step", CALIBRATION, _on(lambda _: StrongRating())),
    Arm("agreement of 4", "step", CALIBRATION, _on(lambda _: Agreement(3))),
    Arm("entropy, then score", "step", CALIBRATION, _two_stage),
    Arm("resample 3", "samples", CALIBRATION, _on(lambda _: StepScore(), action="resample", tries=3)),
    Arm(
        "resample 3, then escalate",
        "step",
        CALIBRATION,
        _on(lambda _: StepScore(), action="resample", tries=3, last="escalate"),
    ),
    Arm("hand over at a low score", "step", CALIBRATION, _on(lambda _: StepScore(), action="hand_over")),
    Arm("random problems", "query", "nothing", _query(lambda m: (QueryRandom(), m.weak_alone()))),
    Arm("question classifier", "query", FIT, _query(_classifier)),
    Arm("cascade, verification", "query", CALIBRATION, _query(_cascade("verification"))),
    Arm("cascade, least score", "query", CALIBRATION, _query(_cascade("least_score"))),
    Arm("truth at each step", "bound", "nothing", lambda _: [Threshold(0.5)], truth=True),
)
NAMES = tuple(arm.name for arm in ARMS)


def chosen(names: Sequence[str], learned: Sequence[Path] = ()) -> list[Arm]:
    """The arms of these names (none: all), with the two models alone in any case, and one for each directory of learned
    policies. Raises `DataError` for an unknown name and a directory that holds no policies.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise DataError(f"--arms {unknown[0]!r} is none; the arms are {', '.join(map(repr, NAMES))}")
    wanted = [arm for arm in ARMS if not names or arm.level == "alone" or arm.name in names]
    return [*wanted, *map(_learned, learned)]


def _learned(path: Path) -> Arm:
    """The policies trained for each price in a directory; what they were trained on is on their cards."""
    from stepwise.routing.learned import Learned, LearnedCard

    cards = [LearnedCard.read(file) for file in sorted(path.glob("learned-*.json"))]
    if not cards:
        raise DataError(f"--learned {path}: there is no learned policy; train one with stepwise train_router")
    prices = sorted(card.price for card in cards)
    name = f"learned, {cards[0].kind}"
    return Arm(name, "step", FIT, lambda m: [Learned(str(path), price, force=True) for price in m.spread(prices)])
