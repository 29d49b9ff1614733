"""TRIM-POMDP (arXiv 2601.10245) at work: after each draft, the belief, what each action is worth at it, the decision.

What was seen of a solution gives the belief b over right, wrong earlier, wrong just now (`filter`). Keeping the draft
is worth F_n(b[0]) and having the strong model write the step F_n(q (b[0] + b[2])) less its price, F_n being the value
of going on after step n (`solve`). `BeliefThreshold`, `Planned` and `Published` make three policies of that.

What differs from the paper:
1. `Planned` looks the filtered belief up in the exact plan, for the draft's own number of tokens. `Published` has the
   published belief, closeness gate and hazard, and looks up exactly too: the published code snaps the belief to
   multiples of 0.025 and the number of tokens to the nearest of 18 bins.
2. `Planned` decides on a draft that ends the solution as on the last step; the published table has no such entry, nor
   has `Published`.
3. `BeliefThreshold` needs no plan; it is the baseline that a plan has to beat.
4. With `signal` all three go by what comes with the draft (`token_signals`) in place of a score, and need no scorer.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
from pydantic import Field

from stepwise.errors import DataError
from stepwise.records import record
from stepwise.routing.evidence import answered
from stepwise.routing.policy import Action, Escalate, Keep, Policy, View, When
from stepwise.routing.pomdp.filter import Belief, History, ObservationLaw, StepFilter
from stepwise.routing.pomdp.solve import Plan, RoutingPomdp
from stepwise.routing.token_signals import AsScore
from stepwise.types import Step

_SAME = 1e-9  # how far two tables of one law may be apart by rounding


@record(repr=False)
class _OnBelief(Policy):
    """Asked after each draft; decides on the belief that the scores so far give under a fitted model."""

    model: RoutingPomdp
    law: ObservationLaw

    signal: AsScore = Field(default=None, kw_only=True)

    when: ClassVar[When] = "after"

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """Unless a signal stands in."""
        return self.signal is None

    @property
    def looks(self) -> Mapping[str, str]:
        """See `Policy`."""
        return {} if self.signal is None else {self.signal.evidence: self.signal.name}

    @property
    def family(self) -> str:
        """What a comparison calls it at any operating point."""
        return self.name if self.signal is None else f"{self.name} on {self.signal.title}"

    def _seen(self, view: View) -> tuple[Sequence[Step], Step | None]:
        """The steps and the draft with their scores, or with the signal in place of these."""
        if self.signal is None or view.draft is None:
            return view.steps, view.draft
        *steps, draft = self.signal.scored(view.problem, (*view.steps, view.draft))
        return steps, draft

    def __post_init__(self) -> None:
        if len(self.model.p_strong) != 1:
            raise DataError(
                f"model.p_strong has {len(self.model.p_strong)} entries, but a router has one strong model; "
                "give dataclasses.replace(model, p_strong=(that one,))"
            )
        ours, theirs = np.asarray(self.model.observation), np.asarray(self.law.rows)
        if ours.shape != theirs.shape or np.abs(ours - theirs).max() > _SAME:
            raise DataError("model.observation is not law.rows; give dataclasses.replace(model, observation=law.rows)")

    def __repr__(self) -> str:
        """The settings, without the tables."""
        law, model = self.law, self.model
        seen = f"{law.bins} x {law.bins} bins of (least earlier, current) score" if law.pair else f"{law.bins} bins"
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("law", "model")]
        shown = [f"{name}={value!r}" for name in names if (value := getattr(self, name)) is not None]
        shown += [f"p_weak={model.p_weak:.4g}", f"p_strong={model.p_strong[0]:.4g}", f"law=<{seen}>"]
        return f"{type(self).__name__}({', '.join(shown)})"


@record(repr=False)
class _Filtered(_OnBelief, ABC):
    """`history` is that of `StepFilter`; "memoryless" gets the true prior of each step under this policy."""

    history: History = Field(default="filter", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history != "memoryless":
            _ = self.filter  # so that a filter that counts twice warns now

    @cached_property
    def filter(self) -> StepFilter:
        """What turns scores into the belief."""
        bare = StepFilter(self.law, self.model.p_weak, self.model.p_strong, self.history)
        return bare.with_priors(self._writer, len(self.model.hazard) - 1) if self.history == "memoryless" else bare

    @abstractmethod
    def _writer(self, step: int, belief: Belief) -> int:
        """0 to keep a draft of usual length, 1 to have the strong model write it."""


@record(repr=False)
class BeliefThreshold(_Filtered):
    """The strong model rewrites a draft iff the belief in "wrong just now" passes `tau`, strictly: 1 never escalates.

    Unlike a threshold on the score it does not go on paying after an error that is there to stay.

    Args:
        model: fitted; its chances of a right step are used, its hazard and tokens are not.
        law: of the scores, with the rows of `model.observation`.
        tau: in [0, 1]; the operating point.
        history: "filter", "memoryless" or "published", see `StepFilter`.

    Raises a ValueError that names the field for a model with several strong models, a law that is not the model's, and
    a `tau` out of range.

    Example:
        >>> rows = ((0.2, 0.8), (0.7, 0.3), (0.9, 0.1))
        >>> model = RoutingPomdp(0.8, (1.0,), (0.0, 0.0, 1.0), rows, tokens_per_step=20)
        >>> law = ObservationLaw((0.0, 0.5, 1.0), rows)
        >>> BeliefThreshold(model, law, tau=0.3).point
        0.3
    """

    tau: float = Field(default=0.5, ge=0, le=1)

    name: ClassVar[str] = "belief"
    dial: ClassVar[str] = "tau"

    def decide(self, view: View) -> Action:
        """Escalate iff the draft's belief in "wrong just now" is above `tau`."""
        now = self.filter.belief(*self._seen(view))[2]
        digits = 2 if f"{now:.2f}" != f"{self.tau:.2f}" else 6
        reason = f"P(wrong just now) {now:.{digits}f} {'>' if now > self.tau else '<='} {self.tau:.{digits}f}"
        return Escalate(reason=reason) if now > self.tau else Keep(reason)

    def _writer(self, step: int, belief: Belief) -> int:
        return int(belief[2] > self.tau)


@record(repr=False)
class Planned(_Filtered):
    """The optimal policy of the fitted model: escalate iff that is worth more than keeping, at a price per token.

    The price of a rewrite is that of the draft's own tokens. A draft with an answer, or that ends the message, is
    decided on as the last step. Steps beyond the model's hazard are taken as the last one it knows. The plan is solved
    at the first decision (0.05 s for 20 bins and 30 steps, 0.3 s for 400).

    Args:
        model: fitted.
        law: of the scores, with the rows of `model.observation`.
        cost_per_token: of the strong model, in units of `model.reward`, at least 0; the operating point.
        history: "filter", "memoryless" or "published", see `StepFilter`; the plan is optimal for "filter".

    Raises a ValueError that names the field for a model with several strong models, a law that is not the model's, and
    a price that is none.

    Example:
        >>> rows = ((0.2, 0.8), (0.7, 0.3), (0.9, 0.1))
        >>> model = RoutingPomdp(0.8, (1.0,), (0.0, 0.0, 1.0), rows, tokens_per_step=20)
        >>> law = ObservationLaw((0.0, 0.5, 1.0), rows)
        >>> Planned(model, law, cost_per_token=0.01).at(0.02).point
        0.02
    """

    cost_per_token: float = Field(default=0.25, ge=0, allow_inf_nan=False)

    name: ClassVar[str] = "planned"
    dial: ClassVar[str] = "cost_per_token"

    @cached_property
    def plan(self) -> Plan:
        """The solved model."""
        return self.model.solve(self.cost_per_token)

    def decide(self, view: View) -> Action:
        """What is worth most at the draft's belief, step and tokens."""
        last = _ends(view)
        belief = self.filter.belief(*self._seen(view))
        values = self.plan.action_values(view.index, belief, view.tokens, last=last)
        return _better(values, " at the last step" if last else "")

    def _writer(self, step: int, belief: Belief) -> int:
        keep, strong = self.plan.action_values(step, belief, self.model.tokens_per_step)
        return int(strong > keep)


@record(repr=False)
class Published(_OnBelief):
    """TRIM-POMDP's published decision rule, for reproduction: memoryless belief under a uniform prior, closeness gate.

    Keeps the draft where another state leads "wrong just now" by `gate` or more, whatever the price, and at steps that
    the plan does not have; else as the plan with the published hazard says.

    Args:
        model: TRIM's, or a fitted one.
        law: of the scores, with the rows of `model.observation`; the published one is of pairs.
        cost_per_token: of the strong model, in units of `model.reward`, at least 0; the operating point.
        gate: 0.4 in the published results; anything above 1 switches it off.

    Raises a ValueError as `Planned` does.

    Example:
        >>> rows = ((0.2, 0.8), (0.7, 0.3), (0.9, 0.1))
        >>> model = RoutingPomdp(0.8, (1.0,), (0.0, 0.0, 1.0), rows, tokens_per_step=20)
        >>> law = ObservationLaw((0.0, 0.5, 1.0), rows)
        >>> Published(model, law, cost_per_token=0.01).gate
        0.4
    """

    cost_per_token: float = Field(default=0.25, ge=0, allow_inf_nan=False)
    gate: float = Field(default=0.4, ge=0, allow_inf_nan=False)

    name: ClassVar[str] = "published"
    dial: ClassVar[str] = "cost_per_token"

    @cached_property
    def filter(self) -> StepFilter:
        """What turns scores into the belief."""
        return StepFilter(self.law, self.model.p_weak, self.model.p_strong, "published")

    @cached_property
    def plan(self) -> Plan:
        """The model solved with the published hazard."""
        return self.model.solve(self.cost_per_token, published_hazard=True)

    def decide(self, view: View) -> Action:
        """Escalate iff the gate lets it and the plan finds it worth more."""
        belief = self.filter.belief(*self._seen(view))
        lead = max(belief) - belief[2]
        if lead >= self.gate:
            return Keep(f"wrong just now is {lead:.2f} behind, gate {self.gate:.2f}")
        if view.index >= len(self.plan.curves):
            return Keep(f"the plan has {len(self.plan.curves)} steps")
        return _better(self.plan.action_values(view.index, belief, view.tokens))


def _ends(view: View) -> bool:
    """Whether the solution ends with the draft, as far as is known: it has an answer, or ends the message."""
    draft = view.draft
    return draft is not None and (view.draft_finish in ("answer", "eos") or answered([*view.steps, draft]))


def _better(values: tuple[float, ...], where: str = "") -> Action:
    keep, strong = values
    if strong <= keep:
        return Keep(f"worth {keep:.2f} kept, {strong:.2f} rewritten{where}")
    return Escalate(reason=f"worth {strong:.2f} rewritten, {keep:.2f} kept{where}")
