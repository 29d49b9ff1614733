"""What stands on the board: families of policies, each at a few operating points that are set on other problems.

An entry whose operating point is a threshold gets the thresholds that flag given shares of the weak model's drafts (of
the problems, where whole ones are handed over); one whose point is a price gets prices of a step, from a thousandth of
a right answer on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from stepwise.errors import ConfigError, DataError
from stepwise.plugins import check_choice, is_import_path, load_plugin
from stepwise.routing.dials import check_bounds, dial_of
from stepwise.routing.policies import Always, Never, Random, Threshold
from stepwise.routing.policy import Policy, Signal
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.routing.pomdp.fit import RouterFit, fit_router
from stepwise.routing.pomdp.fit_check import kernel_law
from stepwise.routing.pomdp.fit_data import FitTrace, from_lab_trace, scored
from stepwise.routing.pomdp.policies import BeliefThreshold, Planned, Published
from stepwise.routing.query import Cascade, QueryRandom, at_share, fit_query_classifier
from stepwise.routing.signal_policies import Signalled, Watch, threshold_at
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
from stepwise.routing.token_signals import TokenEntropy
from stepwise.seeds import stable_hash
from stepwise.types import Problem, Trace

T = TypeVar("T")
Level = Literal["alone", "step", "query", "samples", "bound", "trained"]
SHARES = (0.01, 0.02, 0.04, 0.06, 0.08, 0.11, 0.14, 0.18, 0.25, 0.4, 0.6, 0.85)
"""Of the weak model's drafts, those that the thresholds of an entry flag."""
_PROBLEM_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.94, 0.98)
FEES = (0.001, 0.003, 0.008, 0.02, 0.04, 0.08, 0.13, 0.2, 0.28, 0.38, 0.55, 0.75)
"""Prices of a step by the strong model, in right answers."""
_RANDOM_STRONG = 0.3  # share of steps by the strong model in the traces that p_strong is counted on


@dataclasses.dataclass
class FittingData:
    """What entries are fitted and set on: problems other than those that are measured.

    `router` has the models, `set_on` the problems for operating points, `fit_on` those that classifiers and laws are
    fitted on (with the lab's labels), `points` the most settings of an entry, `known_fit` a fit that is there already.

    Example:
        data = FittingData(router, set_on=val, fit_on=train, measured=test)
        data.thresholds(Threshold(), "low", data.scores())
    """

    router: Any
    set_on: Sequence[Problem]
    fit_on: Sequence[Problem]
    measured: Sequence[Problem]
    points: int = 12
    known_fit: RouterFit | None = None
    _kept: dict[str, Any] = dataclasses.field(default_factory=dict)

    def routed(self, policy: Policy, problems: Sequence[Problem]) -> list[Trace]:
        """Traces with a seed that no measured run has."""
        router = self.router.with_policy(policy)
        seed = stable_hash("fitting", router.settings.seed) % 2**31
        router.settings = dataclasses.replace(router.settings, seed=seed)
        for model in router.models:
            getattr(model, "reset_cache", lambda: None)()
        traces: list[Trace] = router.solve_all(problems, description=f"setting {policy.name:<16}")
        return traces

    def weak_alone(self) -> list[Trace]:
        """The weak model's solutions of the problems that points are set on."""
        return self._once("weak", lambda: self.routed(Never(), self.set_on))

    def scores(self) -> list[float]:
        """The scorer's, of every step of these."""
        return [step.score or 0.0 for trace in self._scored_alone() for step in trace.steps]

    def signal_values(self, signal: Signal) -> list[float]:
        """The signal at every draft of the weak model on the problems that points are set on."""

        def watched() -> list[float]:
            watch = Watch(signal)
            self.routed(watch, self.set_on)
            return [value for values in watch.values.values() for value in values]

        return self._once(repr(signal), watched)

    def thresholds(self, policy: Any, worse: Literal["high", "low"], values: Sequence[float]) -> list[Any]:
        """The policy at the thresholds that flag shares of `values` from 1 to 85 %, whose higher or lower ones are the
        worse. Raises `DataError` for no values.
        """
        if not values:
            raise DataError(f"{policy.name}: no draft of {len(self.set_on)} problems has what it is set by")
        points = dict.fromkeys(threshold_at(worse, values, share) for share in self.spread(SHARES))
        return [policy.at(point) for point in points]

    def fit(self) -> RouterFit:
        """The routing model, fitted on labelled traces: the weak model alone, and with strong steps at random."""
        return self.known_fit or self._once("fit", self._fit)

    def pair_law(self) -> ObservationLaw:
        """The law of (least earlier score, score) of the fit. Raises `DataError` where it had too few labels."""
        law = self.fit().pair_law
        if law is None:
            raise DataError("too few labels for a law of pairs; give more problems to fit on (--fit-n)")
        return law

    def published_law(self) -> ObservationLaw:
        """That law smoothed as TRIM's code does, from labelled traces."""
        return self._once("published law", self._published_law)

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """At most `points` of the values, evenly taken, the ends included."""
        if len(values) <= self.points:
            return list(values)
        places = np.linspace(0, len(values) - 1, self.points).round().astype(int)
        return [values[i] for i in dict.fromkeys(places.tolist())]

    def _scored_alone(self) -> list[Trace]:
        return self._once("scored", lambda: scored(self.router.models.scorer, self.weak_alone()))

    def _fit_traces(self) -> list[FitTrace]:
        def made() -> list[FitTrace]:
            policies = (Never(), Random(_RANDOM_STRONG))
            traces = [trace for policy in policies for trace in self.routed(policy, self.fit_on) if trace.steps]
            return [from_lab_trace(trace) for trace in scored(self.router.models.scorer, traces)]

        return self._once("fit traces", made)

    def _fit(self) -> RouterFit:
        names, settings = self.router.card, self.router.settings
        return fit_router(
            self._fit_traces(),
            weak=names.weak,
            strong=names.strong,
            scorer=names.scorer or "",
            config=settings.run,
            labels="lab",
            max_steps=settings.max_steps,
            samples=60,
            seed=settings.seed,
        )

    def _published_law(self) -> ObservationLaw:
        scores, least, states = list[float](), list[float](), list[int]()
        for trace in self._fit_traces():
            if any(step.replaced for step in trace.steps):
                continue
            worst = 1.0
            for step, state in zip(trace.steps, trace.states, strict=True):
                scores.append(step.score or 0.0)
                least.append(worst)
                states.append(state)
                worst = min(worst, scores[-1])
        return kernel_law(np.asarray(scores), np.asarray(states, dtype=np.int64), np.asarray(least))

    def _once(self, key: str, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found


@dataclasses.dataclass(frozen=True)
class Entry:
    """A family of policies: `policies` makes its settings from `FittingData`.

    `scorer` is "each" where it is measured once with each scorer, "none" without one, "truth" with the lab's checker in
    its place. `needs` is "labels" where it needs the law of a fit, "problems" where it needs problems to fit on.

    Example:
        half = Entry("half at random", lambda data: [Random(0.5)], scorer="none")
    """

    name: str
    policies: Callable[[FittingData], Sequence[Policy]]
    level: Level = "step"
    scorer: Literal["each", "none", "truth"] = "each"
    needs: Literal["", "labels", "problems"] = ""


def _signalled(
    name: str, signal: Callable[[FittingData], Signal], scorer: Literal["each", "none"] = "none", level: Level = "step",
    needs: Literal["", "labels"] = "", **options: Any,
) -> Entry:  # fmt: skip
    """A threshold on a signal."""

    def policies(data: FittingData) -> Sequence[Policy]:
        one = signal(data)
        return data.thresholds(Signalled(one, 0.5, **options), one.worse, data.signal_values(one))

    return Entry(name, policies, level, scorer, needs)


def _belief(name: str, options: Callable[[FittingData], Mapping[str, Any]]) -> Entry:
    """Thresholds on a belief; the memoryless one depends on its own threshold (through the prior of the step), so its
    values are those under no escalation.
    """

    def policies(data: FittingData) -> Sequence[Policy]:
        policy = BeliefThreshold(**options(data))
        belief, traces = policy.at(1.0).filter.belief, data._scored_alone()
        values = [belief(trace.steps[:i], step)[2] for trace in traces for i, step in enumerate(trace.steps)]
        points = dict.fromkeys(min(1.0, threshold_at("high", values, share)) for share in data.spread(SHARES))
        return [policy.at(point) for point in points]

    return Entry(name, policies, needs="labels")


def _filtered(data: FittingData) -> Mapping[str, Any]:
    return {"model": data.fit().pomdp(), "law": data.fit().law}


def _pair(data: FittingData, law: ObservationLaw) -> dict[str, Any]:
    return {"model": dataclasses.replace(data.fit().pomdp(), observation=law.rows), "law": law}


def _priced(name: str, policy: Callable[[FittingData], Any]) -> Entry:
    def policies(data: FittingData) -> Sequence[Policy]:
        one = policy(data)
        return [one.at(fee * one.model.reward / one.model.tokens_per_step) for fee in data.spread(FEES)]

    return Entry(name, policies, needs="labels")


def _query(
    name: str, make: Callable[[FittingData], tuple[Any, Sequence[Trace]]], scorer: Literal["each", "none"] = "none",
    needs: Literal["", "problems"] = "",
) -> Entry:  # fmt: skip
    def policies(data: FittingData) -> Sequence[Policy]:
        policy, traces = make(data)
        made = [at_share(policy, traces, share, measured_on=data.measured) for share in data.spread(_PROBLEM_SHARES)]
        return list({one.point: one for one in made}.values())

    return Entry(name, policies, "query", scorer, needs)


def _classifier(data: FittingData) -> tuple[Any, Sequence[Trace]]:
    weak, strong = (data.routed(policy, data.fit_on) for policy in (Never(), Always()))
    return fit_query_classifier(weak, strong, measured_on=data.measured), data.weak_alone()


def _cascade(check: Literal["verification", "least_score"]) -> Callable[[FittingData], tuple[Any, Sequence[Trace]]]:
    # At threshold 0 a solution without an answer is still handed over; its trace then tells the check as -1.
    return lambda data: (Cascade(check, 0.0), data.routed(Cascade(check, 0.0), data.set_on))


ENTRIES: tuple[Entry, ...] = (
    Entry("never", lambda _: [Never()], "alone", "none"),
    Entry("always", lambda _: [Always()], "alone", "none"),
    Entry("random", lambda data: [Random(p) for p in data.spread(SHARES)], scorer="none"),
    Entry("threshold", lambda data: data.thresholds(Threshold(), "low", data.scores())),
    _belief("belief", _filtered),
    _belief("belief, memoryless pair", lambda data: {**_pair(data, data.pair_law()), "history": "memoryless"}),
    _belief("belief, published", lambda data: {**_pair(data, data.published_law()), "history": "published"}),
    _priced("planned", lambda data: Planned(**_filtered(data))),
    _priced("published", lambda data: Published(**_pair(data, data.published_law()), gate=0.4)),
    _priced("published, no gate", lambda data: Published(**_pair(data, data.published_law()), gate=1.01)),
    _signalled("score drop", lambda _: ScoreDrop(), "each"),
    _signalled("cumulative sum", lambda data: CumulativeSum(data.fit().law), "each", needs="labels"),
    _signalled("entropy", lambda _: TokenEntropy()),
    _signalled("first-token entropy", lambda _: FirstTokenEntropy()),
    _signalled("max-logit mixture", lambda data: fit_mixture(data.signal_values(MaxLogit()))),
    _signalled("strong model's rating", lambda _: StrongRating()),
    _signalled("agreement of 4", lambda _: Agreement(3)),
    _signalled("resample 3", lambda _: StepScore(), "each", "samples", action="resample", tries=3),
    _signalled("resample 3, then escalate", lambda _: StepScore(), "each", action="resample", tries=3, last="escalate"),
    _signalled("hand over at a low score", lambda _: StepScore(), "each", action="hand_over"),
    _query("random problems", lambda data: (QueryRandom(), data.weak_alone())),
    _query("question classifier", _classifier, needs="problems"),
    _query("cascade, verification", _cascade("verification")),
    _query("cascade, least score", _cascade("least_score"), "each"),
    Entry("truth at each step", lambda _: [Threshold(0.5)], "bound", "truth"),
)
"""All that come with the library."""
USUAL = (
    "random", "threshold", "belief", "belief, published", "planned", "published", "score drop", "cumulative sum",
    "entropy", "resample 3, then escalate", "hand over at a low score", "question classifier", "cascade, least score",
    "truth at each step",
)  # fmt: skip
"""Those that are measured where none are named; the two models alone always are."""


def entries_of(names: Sequence[str]) -> list[Entry]:
    """The entries of these names and import paths, none meaning the usual ones, the two models alone among them.

    An import path leads to an `Entry`, or to a policy, which is measured at its settings: thresholds that flag shares
    of the drafts where it looks at scores, else over the range of its operating point. Raises `ConfigError` for what is
    neither.

    >>> [entry.name for entry in entries_of(["planned"])]
    ['never', 'always', 'planned']
    """
    known = {entry.name: entry for entry in ENTRIES}
    wanted = dict.fromkeys(["never", "always", *(names or USUAL)])
    return [_own(name) if is_import_path(name) else known[_known(name, known)] for name in wanted]


def _known(name: str, known: Collection[str]) -> str:
    check_choice("--entries", name, known)
    return name


def _own(path: str) -> Entry:
    value = load_plugin(path, object, field="--entries")
    if isinstance(value, Entry):
        return value
    if not isinstance(value, Policy) and not (isinstance(value, type) and issubclass(value, Policy)):
        raise ConfigError(f"--entries is {path!r}, which is no policy; give a Policy, or an Entry of routing.entries")
    policy: Policy = load_plugin(path, Policy, field="--entries") if isinstance(value, Policy) else value()

    def policies(data: FittingData) -> Sequence[Policy]:
        if policy.needs_scores and policy.dial:
            return data.thresholds(policy, "low", data.scores())
        if policy.point is not None:
            check_bounds(policy, None)
        dial = dial_of(policy, None, lambda _: None)  # type: ignore[arg-type,return-value]
        return list({made.point: made for made in map(dial, np.linspace(0, 1, data.points).tolist())}.values())

    return Entry(policy.name, policies, scorer="each" if policy.needs_scores else "none")
