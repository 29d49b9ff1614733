"""Policies on a signal: a threshold on one, or an expensive one where a cheap one before the draft is undecided.

1. TRIM-Thr, RSD, SpecReason, GlimpRouter and STEER are `Signalled` with their signal (see `signals`) and "escalate":
   one loop, so that they differ in what they look at and in nothing else.
2. "resample" has the weak model draft a flagged step again and costs no strong token; none of the papers has it.
3. `TwoStage` is none of the papers': their signals are used one at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from stepwise.errors import DataError, PluginError
from stepwise.records import record
from stepwise.routing.policy import Action, Escalate, HandOver, Keep, Look, Policy, Resample, Signal, View
from stepwise.routing.signals import as_signal, looks_for, signal_to_dict

AnySignal = Annotated[Any, BeforeValidator(as_signal), PlainSerializer(signal_to_dict)]


@record(allow_inf_nan=False)
class Signalled(Policy):
    """Acts on a step iff its signal is worse than `threshold`, strictly. A signal that is missing keeps the step.

    A signal that acts before the draft saves the draft of every step that it flags.

    Args:
        signal: a `Signal`, or its fields as JSON holds them.
        threshold: in the unit of the signal; the operating point.
        action: what a flagged step gets: the strong model for `steps` steps ("escalate"), or for good ("hand_over"),
            or up to `tries` more drafts by the weak model, until one is not flagged ("resample").
        last: what becomes of a step that is still flagged after `tries`: the last draft is kept, or it is escalated.

    Raises `DataError` for "resample" with a signal that acts before there is a draft.

    Example:
        >>> Signalled("score_drop", 0.4, "resample", tries=1).family
        'score_drop, resample 1'
    """

    signal: AnySignal
    threshold: float
    action: Literal["escalate", "hand_over", "resample"] = "escalate"
    steps: int = Field(default=1, ge=1)
    tries: int = Field(default=2, ge=1, le=15)
    last: Literal["keep", "escalate"] = "keep"

    name: ClassVar[str] = "signal"
    dial: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        if self.action == "resample" and self.signal.when == "before":
            raise DataError(
                f"signal {self.signal.name!r} acts before there is a draft, so there is none to draw again; "
                'take action="escalate", or a signal on the draft'
            )

    @property
    def looks(self) -> Mapping[str, str]:
        """See `Policy`."""
        return looks_for([self.signal])

    @property
    def calls_per_step(self) -> Mapping[str, int]:
        """See `Policy`."""
        return _calls(self.looks, self.signal.needs, 1 + (self.tries if self.action == "resample" else 0))

    @property
    def family(self) -> str:
        """What a comparison calls it at any threshold."""
        action = {"escalate": "", "hand_over": ", hand over", "resample": f", resample {self.tries}"}[self.action]
        return f"{self.signal.title}{action}{' then escalate' if action and self.last == 'escalate' else ''}"

    def decide(self, view: View) -> Action | Look:
        """Look for what the signal needs, then act."""
        if look := _missing(self.signal, view):
            return look
        flagged, reason = _compared(self.signal, view, self.threshold)
        if not flagged:
            return Keep(reason)
        if self.action == "resample":
            if view.attempt < self.tries:
                return Resample(reason)
            spent = f"{reason} after {self.tries} more drafts"
            return Escalate(reason=spent) if self.last == "escalate" else Keep(spent)
        return Escalate(self.steps, reason) if self.action == "escalate" else HandOver(reason)


@record(allow_inf_nan=False)
class TwoStage(Policy):
    """A signal before the draft decides where it is sure; elsewhere the draft is written and a second signal decides.

    Worse than `bad` escalates at once, without a draft; no worse than `good` keeps the draft unseen, without the cost
    of the second signal; between the two `after` is compared with `threshold`. So a scorer is paid for only where the
    first signal is undecided. Where the first is missing, the second decides.

    Args:
        before: a signal that acts before the draft.
        good: in its unit.
        bad: in its unit, at least as bad as `good`.
        after: a signal on the draft.
        threshold: in the unit of `after`; the operating point.

    Raises `DataError` for signals in the wrong place and for `good` worse than `bad`.

    Example:
        >>> TwoStage("first_token_entropy", good=0.1, bad=1.5, after="score", threshold=0.5).family
        'first_token_entropy, then score'
    """

    before: AnySignal
    good: float
    bad: float
    after: AnySignal
    threshold: float

    name: ClassVar[str] = "two_stage"
    dial: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        if self.before.when != "before" or self.after.when != "after":
            raise DataError(
                f"two_stage: before={self.before.name!r} must act before the draft and after={self.after.name!r} on it"
            )
        if _worse(self.before, self.good, self.bad):
            raise DataError(f"two_stage: good={self.good} is worse than bad={self.bad} for {self.before.name!r}; swap")

    @property
    def looks(self) -> Mapping[str, str]:
        """See `Policy`."""
        return looks_for([self.before, self.after])

    @property
    def calls_per_step(self) -> Mapping[str, int]:
        """See `Policy`."""
        return _calls(self.looks, (*self.before.needs, *self.after.needs), 1)

    @property
    def family(self) -> str:
        """What a comparison calls it at any threshold."""
        return f"{self.before.title}, then {self.after.title}"

    def decide(self, view: View) -> Action | Look:
        """Ask the first signal until it is sure or there is a draft, then the second."""
        if view.draft is None:
            if look := _missing(self.before, view):
                return look
            worse, reason = _compared(self.before, view, self.bad)
            if worse:
                return Escalate(reason=reason)
            value = _value(self.before, view)
            if value is not None and not _worse(self.before, value, self.good):
                return Keep(f"{self.before.name} {value:.3g} is no worse than {self.good:.3g}")
        if look := _missing(self.after, view):
            return look
        flagged, reason = _compared(self.after, view, self.threshold)
        return Escalate(reason=reason) if flagged else Keep(reason)


def _missing(signal: Signal, view: View) -> Look | None:
    """What `signal` still has to look for, None when it has all."""
    if signal.when == "after" and view.draft is None:
        return Look("draft")
    return next((look for look in signal.needs if look.what not in view.looked), None)


def _compared(signal: Signal, view: View, threshold: float) -> tuple[bool, str]:
    """Whether the signal is worse than `threshold`, and that in words."""
    value = _value(signal, view)
    if value is None:
        return False, f"{signal.name} is missing"
    flagged = _worse(signal, value, threshold)
    sign = {("high", True): ">", ("high", False): "<=", ("low", True): "<", ("low", False): ">="}[signal.worse, flagged]
    digits = 3 if f"{value:.3g}" != f"{threshold:.3g}" else 8
    return flagged, f"{signal.name} {value:.{digits}g} {sign} {threshold:.{digits}g}"


def _value(signal: Signal, view: View) -> float | None:
    """Its number; raises `PluginError`, naming class and remedy, for what is none."""
    value = signal.value(view)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise PluginError(
            f"{type(signal).__name__}.value() returned {value!r}, which is no number; return a float, or None where "
            "there is none"
        )
    return number


def _worse(signal: Signal, value: float, threshold: float) -> bool:
    return value > threshold if signal.worse == "high" else value < threshold


def _calls(looks: Mapping[str, str], needs: Sequence[Look], drafts: int) -> dict[str, int]:
    """The most calls that one step takes of each role; samples count as calls."""
    more = sum(look.n for look in needs if look.what == "resamples") + ("first_token" in looks)
    return {"weak": drafts + more, "strong": 1 + drafts * ("rating" in looks), "scorer": drafts}


@dataclasses.dataclass(frozen=True)
class Watch(Policy):
    """The weak model alone, with the signal noted at every step in `values`, by problem; for calibration.

    It is the one policy that writes something down, which no decision depends on; it is not meant for JSON.

    Example:
        watch = Watch(ScoreDrop())
        router.with_policy(watch).solve_all(problems)
        watch.values  # by problem id
    """

    signal: Signal
    values: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    name: ClassVar[str] = "watch"

    @property
    def looks(self) -> Mapping[str, str]:
        """See `Policy`."""
        return looks_for([self.signal])

    @property
    def calls_per_step(self) -> Mapping[str, int]:
        """See `Policy`."""
        return _calls(self.looks, self.signal.needs, 1)

    def decide(self, view: View) -> Action | Look:
        """Keep, and note the value where there is one."""
        if look := _missing(self.signal, view):
            return look
        value = _value(self.signal, view)
        if value is not None:
            self.values.setdefault(view.problem.id, []).append(value)
        return Keep("watching")


def threshold_at(worse: Literal["high", "low"], values: Iterable[float], share: float) -> float:
    """The threshold that flags about `share` of `values`, of which the high or the low ones are the worse.

    `Watch` notes the values of a signal; take other problems than those to measure on. At most that share: among equal
    values all are flagged or none. Raises `DataError` for no values and a share outside [0, 1].

    Example:
        >>> threshold_at("low", [0.1, 0.4, 0.6, 0.9], share=0.5)  # 0.1 and 0.4 are below
        0.6
    """
    worst_first = sorted(values, reverse=worse == "high")
    if not worst_first or not 0 <= share <= 1:
        raise DataError(f"threshold_at: share is {share} of {len(worst_first)} values; give a share in [0, 1] and some")
    flagged = int(share * len(worst_first) + 1e-9)
    if flagged < len(worst_first):
        return worst_first[flagged]
    return math.nextafter(worst_first[-1], -math.inf if worse == "high" else math.inf)
