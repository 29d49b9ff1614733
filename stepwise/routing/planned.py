"""Policies on the belief over right, wrong earlier and wrong just now: a threshold on it, the solved plan, TRIM's own.

What differs from TRIM-POMDP (arXiv 2601.10245):
1. `Planned` looks the filtered belief up in the exact plan, for the draft's own number of tokens. `Published` has the
   published belief, closeness gate and hazard, and looks up exactly too: the published code snaps the belief to
   multiples of 0.025 and the number of tokens to the nearest of 18 bins.
2. `Planned` decides on a draft that ends the solution as on the last step; the published table has no such entry, nor
   has `Published`.
3. `BeliefThreshold` needs no plan; it is the baseline that a plan has to beat.
4. `Planned` may also have the strong model write several steps on end, or all that are left, where drafts have a price.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.errors import DataError
from stepwise.routing.belief import Belief, History, ObservationLaw, StepFilter
from stepwise.routing.policy import Action, Escalate, HandOver, Keep, View, When
from stepwise.routing.pomdp import Plan, RoutingPomdp
from stepwise.routing.runs import Run
from stepwise.routing.sandwich import Sandwich
from stepwise.steps import extract_answer

_FROZEN = ConfigDict(extra="forbid")
_SAME = 1e-9  # how far two tables of one law may be apart by rounding


@dataclass(frozen=True, config=_FROZEN, repr=False)
class _OnBelief:
    """Asked after each draft; decides on the belief that the scores so far give under a fitted model."""

    model: RoutingPomdp
    law: ObservationLaw

    when: ClassVar[When] = "after"
    needs_scores: ClassVar[bool] = True
    operating: ClassVar[str]  # the field that is the operating point

    def __post_init__(self) -> None:
        if len(self.model.p_strong) != 1:
            raise DataError(
                f"model.p_strong has {len(self.model.p_strong)} entries, but a router has one strong model; "
                "give dataclasses.replace(model, p_strong=(that one,))"
            )
        ours, theirs = self.model.observation, self.law.rows
        if len(ours[0]) != len(theirs[0]) or any(
            abs(a - b) > _SAME for row, other in zip(ours, theirs, strict=True) for a, b in zip(row, other, strict=True)
        ):
            raise DataError("model.observation is not law.rows; give dataclasses.replace(model, observation=law.rows)")

    @property
    def point(self) -> float | None:
        """The operating point: see the class."""
        return float(getattr(self, self.operating))

    def at(self, x: float) -> Self:
        """The same policy at operating point `x`."""
        setting: dict[str, Any] = {self.operating: x}
        return dataclasses.replace(self, **setting)

    def __repr__(self) -> str:
        """The settings, without the tables."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        law, model = fields.pop("law"), fields.pop("model")
        strong = fields.pop("strong_law", None)
        seen = f"{law.bins} x {law.bins} bins of (least earlier, current) score" if law.pair else f"{law.bins} bins"
        shown = [f"{name}={value!r}" for name, value in fields.items()]
        shown += [f"p_weak={model.p_weak:.4g}", f"p_strong={model.p_strong[0]:.4g}", f"law=<{seen}>"]
        return f"{type(self).__name__}({', '.join(shown)}{', strong_law=...' if strong else ''})"


@dataclass(frozen=True, config=_FROZEN, repr=False)
class _Filtered(_OnBelief, ABC):
    """`history` and `strong_law` are those of `StepFilter`; "memoryless" gets the true prior of each step under this
    policy.
    """

    history: History = Field(default="filter", kw_only=True)
    strong_law: ObservationLaw | None = Field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._bare  # so that settings that do not go together are refused now

    @cached_property
    def filter(self) -> StepFilter:
        """What turns scores into the belief."""
        steps = len(self.model.hazard) - 1
        return self._bare.with_priors(self._writer, steps) if self.history == "memoryless" else self._bare

    @cached_property
    def _bare(self) -> StepFilter:
        return StepFilter(self.law, self.model.p_weak, self.model.p_strong, self.history, self.strong_law)

    @abstractmethod
    def _writer(self, step: int, belief: Belief) -> int:
        """0 to keep a draft of usual length, 1 to have the strong model write it."""


@dataclass(frozen=True, config=_FROZEN, repr=False)
class BeliefThreshold(_Filtered):
    """The strong model rewrites a draft iff the belief in "wrong just now" passes `tau`, strictly: 1 never escalates.

    Unlike a threshold on the score it does not go on paying after an error that is there to stay.

    Args:
        model: fitted; its chances of a right step are used, its hazard and tokens are not.
        law: of the scores, with the rows of `model.observation`.
        tau: in [0, 1]; the operating point.
        history: "filter", "memoryless" or "published", see `StepFilter`.
        strong_law: of the score of a strong model's own step, where that is to count; see `StepFilter`.

    Raises a ValueError that names the field for a model with several strong models, a law that is not the model's, and
    a `tau` out of range.
    """

    tau: float = Field(default=0.5, ge=0, le=1)

    name: ClassVar[str] = "belief"
    operating: ClassVar[str] = "tau"

    def decide(self, view: View) -> Action:
        """Escalate iff the draft's belief in "wrong just now" is above `tau`."""
        now = self.filter.belief(view.steps, view.draft)[2]
        digits = 2 if f"{now:.2f}" != f"{self.tau:.2f}" else 6
        reason = f"P(wrong just now) {now:.{digits}f} {'>' if now > self.tau else '<='} {self.tau:.{digits}f}"
        return Escalate(reason=reason) if now > self.tau else Keep(reason)

    def _writer(self, step: int, belief: Belief) -> int:
        return int(belief[2] > self.tau)


@dataclass(frozen=True, config=_FROZEN, repr=False)
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
        strong_law: of the score of a strong model's own step, where that is to count; the plan knows nothing of it.
        stay: numbers of steps that the strong model may also write on end, each at least 2, its drafts being saved.
        hand_over: whether it may also write all that is left.
        draft_share: price of a drafted and scored token, as a share of a strong token's; at 0, as published, a run
            is never worth more than single steps.

    Raises a ValueError that names the field for a model with several strong models, a law that is not the model's, and
    a price that is none.
    """

    cost_per_token: float = Field(default=0.25, ge=0, allow_inf_nan=False)
    stay: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(), kw_only=True)
    hand_over: bool = Field(default=False, kw_only=True)
    draft_share: float = Field(default=0.0, ge=0, allow_inf_nan=False, kw_only=True)

    name: ClassVar[str] = "planned"
    operating: ClassVar[str] = "cost_per_token"

    @cached_property
    def plan(self) -> Plan:
        """The solved model."""
        runs = (1, *self.stay, *([len(self.model.hazard)] if self.hand_over else []))
        return self.model.solve(
            self.cost_per_token, runs=runs, cost_per_draft_token=self.cost_per_token * self.draft_share
        )

    @cached_property
    def _worth(self) -> _Lookup:
        return _Lookup(self.plan)

    def decide(self, view: View) -> Action:
        """What is worth most at the draft's belief, step and tokens."""
        last = ends(view)
        belief = self.filter.belief(view.steps, view.draft)
        values = self._worth(view.index, belief, view.tokens, last)
        return _best(values, self.plan, " at the last step" if last else "")

    def _writer(self, step: int, belief: Belief) -> int:
        keep, *strong = self._worth(step, belief, self.model.tokens_per_step)
        return int(max(strong) > keep)


@dataclass(frozen=True, config=_FROZEN, repr=False)
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
    """

    cost_per_token: float = Field(default=0.25, ge=0, allow_inf_nan=False)
    gate: float = Field(default=0.4, ge=0, allow_inf_nan=False)

    name: ClassVar[str] = "published"
    operating: ClassVar[str] = "cost_per_token"

    @cached_property
    def filter(self) -> StepFilter:
        """What turns scores into the belief."""
        return StepFilter(self.law, self.model.p_weak, self.model.p_strong, "published")

    @cached_property
    def plan(self) -> Plan:
        """The model solved with the published hazard."""
        return self.model.solve(self.cost_per_token, published_hazard=True)

    @cached_property
    def _worth(self) -> _Lookup:
        return _Lookup(self.plan)

    def decide(self, view: View) -> Action:
        """Escalate iff the gate lets it and the plan finds it worth more."""
        belief = self.filter.belief(view.steps, view.draft)
        lead = max(belief) - belief[2]
        if lead >= self.gate:
            return Keep(f"wrong just now is {lead:.2f} behind, gate {self.gate:.2f}")
        if view.index >= len(self.plan.curves):
            return Keep(f"the plan has {len(self.plan.curves)} steps")
        return _best(self._worth(view.index, belief, view.tokens), self.plan)


class _Lookup:
    """`Plan.action_values` of one strong model by bisection on lists, which for one belief is faster than arrays."""

    def __init__(self, plan: Plan) -> None:
        self.q, self.price, self.reward = plan.model.p_strong[0], plan.prices[0], plan.model.reward
        lines = {id(curve): _lists(curve) for curve in plan.curves}
        self.steps = [[_Worth(option.then, lines) for option in options] for options in plan.options]

    def __call__(self, step: int, belief: Belief, tokens: float, last: bool = False) -> list[float]:
        """Worth of keeping and of the strong model, for each of the plan's runs; at the last step all are one."""
        kept, written, fee = belief[0], self.q * (belief[0] + belief[2]), self.price * tokens
        if last:
            return [self.reward * kept, self.reward * written - fee]
        keep, *runs = self.steps[min(step, len(self.steps) - 1)]
        return [keep(kept), *(run(written) - fee for run in runs)]


class _Worth:
    """What follows an action, at one place."""

    def __init__(self, then: Sandwich | Run | None, lines: Mapping[int, tuple[list[float], ...]]) -> None:
        run = then if isinstance(then, Run) else Run(0.0, 0.0, 1.0, 1.0, then)
        self.offset, self.slope, self.weight, self.shrink = run.offset, run.slope, run.weight, run.shrink
        self.lines = lines[id(run.curve)] if run.curve is not None else None

    def __call__(self, y: float) -> float:
        worth = self.offset + self.slope * y
        if self.lines is None:
            return worth
        inner, crossing, low, low_slope, high, high_slope = self.lines
        x = self.shrink * y
        i = bisect_right(inner, x)
        j = i + (x > crossing[i])
        return worth + self.weight * (low[j] + high[i] + (low_slope[j] + high_slope[i]) * x) / 2


def _lists(c: Sandwich) -> tuple[list[float], ...]:
    parts = (c.nodes[1:-1], c.crossing, c.tangent_offset, c.tangent_slope, c.chord_offset, c.chord_slope)
    return tuple(part.tolist() for part in parts)


def ends(view: View) -> bool:
    """Whether the solution ends with the draft, as far as is known: it has an answer, or ends the message."""
    return view.draft is not None and (
        view.draft_finish in ("answer", "eos") or extract_answer(view.draft.text) is not None
    )


def _best(values: Sequence[float], plan: Plan, where: str = "") -> Action:
    keep, *others = values
    strong = max(others)
    if strong <= keep:
        return Keep(f"worth {keep:.2f} kept, {strong:.2f} rewritten{where}")
    steps = plan.runs[others.index(strong)]
    if steps >= len(plan.model.hazard):
        return HandOver(f"worth {strong:.2f} handed over, {keep:.2f} kept{where}")
    on_end = f" for {steps} steps" if steps > 1 else ""
    return Escalate(steps, f"worth {strong:.2f} rewritten{on_end}, {keep:.2f} kept{where}")


POLICIES: dict[str, Any] = {cls.name: cls for cls in (BeliefThreshold, Planned, Published)}
