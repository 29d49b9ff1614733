"""Fitting TRIM's routing POMDP (arXiv 2601.10245) to traces: which parameters, how sure, and for which models.

What differs from the published fit:
1. p_weak and p_strong are counted on step labels, after right steps only; published takes the first step that the
   reward model scores below 0.35 for the first error, so the scorer is judged by itself.
2. Scores are binned at quantiles and shrunk toward the pooled law; published smears a kernel density over [0, 1].
3. Everything has an interval (bootstrap over problems), and what the filter makes of it is measured on problems that it
   was not fitted on.
4. The hazard is counted with traces that were cut off taken as cut off; published clips them to 30 steps.
5. Too little data is refused, with what is missing.
6. Scores of one trace resemble one another, which the model denies; the laws are tempered where held-out labels ask for
   it, so that the filter is not surer than it should be.
7. A fit without labels is refused where it cannot be told (see `evals/identify.py` for where that is).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepwise.errors import DataError, reason_of
from stepwise.io import read_json, write_text
from stepwise.records import from_json, record, to_json
from stepwise.routing.names import ModelNames
from stepwise.routing.pomdp.estimate import LEAST_STRONG, MAX_CORRELATION, estimate, independent
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.routing.pomdp.fit_check import HeldOut, choose, held_out, intervals_of, pair_law
from stepwise.routing.pomdp.fit_data import EARLIER, NOW, RIGHT, STATES, FitTrace, lag_correlation
from stepwise.routing.pomdp.solve import RoutingPomdp
from stepwise.routing.token_signals import AsScore, as_token_signal
from stepwise.stats import Interval
from stepwise.types import InNotebook

_LEAST = (100, 50, 50)  # labelled drafts in each state
_LEAST_ENDED, _LEAST_PROBLEMS = 30, 30
_LEAST_WRONG = 50  # labelled traces with a wrong step that make up for labels missing elsewhere
_LEAST_OUTCOMES = 300  # solved and failed traces each, where there are fewer labels than that


@record()
class FitCard:
    """What a fit is good for and how sure it is.

    Attributes:
        weak, strong, scorer: names of the models it was fitted for; `config`: hash of their configuration.
        labels: where labels came from: "lab", "column", or "none" (answers and scores, by EM).
        drafts: labelled drafts by state; `strong_steps` those of the strong model after right steps.
        p_strong_given: whether p_strong was handed in.
        intervals: 95 % bootstrap over problems: p_weak, p_strong, steps, tokens_per_step, auroc (wrong just now against
            right, of the score alone).
        lag_correlation: of neighbouring scores in the state "right"; the model takes it for 0.
        held_out: of the filter with `law`; `held_out_pair`: of the memoryless belief with `pair_law`.
        splitter: where the steps of the traces end.
        power: that the likelihood ratios of the law were raised to; below 1 where scores of a trace repeat one another.

    Example:
        card = RouterFit.load("router_fit.json").card
        print(card.weak, card.drafts, card.intervals["p_weak"], card.lag_correlation)
    """

    weak: str
    strong: str
    scorer: str
    config: str
    labels: str
    problems: int
    traces: int
    drafts: tuple[int, int, int]
    strong_steps: int
    p_strong_given: bool
    intervals: dict[str, Interval]
    lag_correlation: float | None
    power: float = 1.0
    held_out: HeldOut | None = None
    held_out_pair: HeldOut | None = None
    splitter: str = ""

    @property
    def models(self) -> ModelNames:
        """The models it was fitted for."""
        return ModelNames(self.weak, self.strong, self.scorer, self.config, splitter=self.splitter)


@record()
class RouterFit(InNotebook):
    """Parameters of the routing POMDP with the card of their fit. Plain JSON by `save` and `load`.

    `hazard[k]` = P(a solution has k steps | at least k), its last entry 1; `law`: of the current score, for a filter;
    `pair_law`: of (least earlier score, score), for a memoryless belief, None where labels were too few; `signal`:
    what stood in for the scores, None for a scorer's.

    Example:
        fit = RouterFit.load("router_fit.json")
        policy = Planned(fit.pomdp(), fit.law, cost_per_token=0.01)
    """

    p_weak: float
    p_strong: tuple[float, ...]
    hazard: tuple[float, ...]
    law: ObservationLaw
    tokens_per_step: float
    card: FitCard
    pair_law: ObservationLaw | None = None
    signal: AsScore = None

    def __post_init__(self) -> None:
        self.pomdp()  # its checks are ours

    def __str__(self) -> str:
        def shown(key: str, value: float) -> str:
            ends = self.card.intervals.get(key)
            return f"{value:.3g}" + (f" ({ends[1]:.3g} to {ends[2]:.3g})" if ends else "")

        return (
            f"fitted to {self.card.traces} traces of {self.card.problems} problems: a draft is right with "
            f"{shown('p_weak', self.p_weak)}, a strong step with {shown('p_strong', self.p_strong[0])}, "
            f"{shown('tokens_per_step', self.tokens_per_step)} tokens a step"
        )

    def pomdp(self, reward: float = 100.0) -> RoutingPomdp:
        """The model to solve, its observation the bin of the current score."""
        return RoutingPomdp(self.p_weak, self.p_strong, self.hazard, self.law.rows, self.tokens_per_step, reward)

    def save(self, path: str | Path) -> None:
        """Write one JSON object."""
        write_text(path, to_json(self) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> RouterFit:
        """The inverse of `save`; raises `DataError` for a file that is missing or holds no fit."""
        row = read_json(path, "make one with stepwise fit_router")
        if isinstance(row.get("card"), dict):
            row["card"].pop("difficulty", None)  # before 0.1.0 it held classes of problems, for another solver
        try:
            return from_json(cls, json.dumps(row))
        except ValueError as error:
            raise DataError(f"{path} holds no fit ({reason_of(error)}); make one with stepwise fit_router") from None


def fit_router(
    traces: Sequence[FitTrace],
    *,
    weak: str,
    strong: str,
    scorer: str,
    config: str = "",
    splitter: str = "",
    signal: AsScore = None,
    labels: str = "column",
    p_strong: float | None = None,
    tokens_per_step: float | None = None,
    bins: int | None = None,
    max_steps: int = 30,
    recovery: float | None = None,
    samples: int = 200,
    seed: int = 0,
) -> RouterFit:
    """Fit the routing POMDP to traces of one weak model, one strong model and one scorer.

    Args:
        traces: labelled, or some of them (the rest by EM from scores and answers).
        weak: name of the weak model; like the next six, for the card.
        strong: name of the strong model.
        scorer: name of the scorer.
        config: hash of the configuration.
        splitter: where the steps of the traces end.
        signal: what the scores of the traces are, where they are no scorer's (`token_signals`).
        labels: where labels came from.
        p_strong: where it is known; else it is counted on strong steps after right ones.
        tokens_per_step: where the traces do not say.
        bins: of the score; None picks the number that predicts held-out labels best.
        max_steps: solutions end there at the latest.
        recovery: P(solved | a wrong step stands), used where traces without labels say whether they were solved; None
            takes it from labelled traces. It cannot be told from answers, so without labels it must be given.
        samples: of the bootstrap over problems.
        seed: of folds and bootstrap.

    Raises `DataError` where there is too little data (the message says what is missing), where a draft has no score,
    and where labels are missing and the rest cannot make up for them.

    Example:
        alone = router.with_policy("never").solve_all(sw.lab.generate("train", 200))
        traces = [from_lab_trace(trace) for trace in alone]
        fit = fit_router(traces, weak="lab-weak", strong="lab-strong", scorer="lab-scorer", labels="lab", p_strong=0.99)
        fit.save("router_fit.json")
    """
    if p_strong is not None and not 0 <= p_strong <= 1:
        raise DataError(f"p_strong is {p_strong!r}; a probability lies in [0, 1]")
    if recovery is not None and not 0 <= recovery < 1:
        raise DataError(f"recovery is {recovery!r}; give a share of at least 0 and below 1")
    if tokens_per_step is not None and not tokens_per_step > 0:
        raise DataError(f"tokens_per_step is {tokens_per_step!r}; give a number above 0")
    if bins is not None and bins < 2:
        raise DataError(f"bins is {bins}; with fewer than 2 the score says nothing, so give at least 2")
    missing = [(t.problem, i) for t in traces for i, step in enumerate(t.steps) if step.drafted and step.score is None]
    if missing:
        raise DataError(
            f"{len(missing)} drafts have no score, the first at step {missing[0][1]} of {missing[0][0]!r}; score them "
            "(--score), or leave those traces out"
        )
    _check_enough(traces, p_strong=p_strong, recovery=recovery)
    labelled = [trace for trace in traces if trace.labelled]
    measurable = _wrong(labelled) >= _LEAST_WRONG
    bins, power = choose(labelled, bins, seed=seed) if measurable else (bins or 8, 1.0)
    given: dict[str, Any] = {
        "p_strong": p_strong,
        "tokens_per_step": tokens_per_step,
        "max_steps": max_steps,
        "recovery": recovery,
        "power": power,
    }
    fitted = estimate(traces, bins=bins, **given)
    intervals = intervals_of(traces, fitted.edges, samples=samples, seed=seed, **given)
    card = FitCard(
        weak,
        strong,
        scorer,
        config,
        labels,
        problems=len({trace.problem for trace in traces}),
        traces=len(traces),
        drafts=_states_of(labelled),
        strong_steps=round(fitted.counts.strong_right + fitted.counts.strong_wrong),
        p_strong_given=p_strong is not None,
        intervals={name: value for name, value in intervals.items() if given.get(name) is None},
        lag_correlation=lag_correlation(labelled),
        power=power,
        held_out=held_out(labelled, bins, power, seed=seed) if measurable else None,
        held_out_pair=held_out(labelled, bins, seed=seed, pair=True) if measurable else None,
        splitter=splitter,
    )
    pair = pair_law(labelled) if measurable else None
    law, tokens = fitted.law, fitted.tokens_per_step
    return RouterFit(fitted.p_weak, (fitted.p_strong,), fitted.hazard, law, tokens, card, pair, as_token_signal(signal))


def _check_enough(traces: Sequence[FitTrace], *, p_strong: float | None = None, recovery: float | None = None) -> None:
    """Raise `DataError` that names each thing there is too little of, what is missing, and about how many traces."""
    if not traces:
        raise DataError("no traces to fit on; route some problems first (stepwise route)")
    labelled = [trace for trace in traces if trace.labelled]
    if len(labelled) == len(traces):
        drafts = _states_of(labelled)
        has = [(f"drafts {name}", n, least) for name, n, least in zip(STATES, drafts, _LEAST, strict=True)]
    else:
        has = _outcomes(traces, labelled, recovery)
    if p_strong is None:
        has += _strong_steps(traces, labelled)
    has.append(("traces that ended by themselves", sum(trace.ended for trace in traces), _LEAST_ENDED))
    has.append(("problems", len({trace.problem for trace in traces}), _LEAST_PROBLEMS))
    short = [(name, count, least) for name, count, least in has if count < least]
    if short:
        parts = "; ".join(f"{name}: {count} of {least}, {least - count} missing" for name, count, least in short)
        about = ""
        if all(count for _, count, _ in short):
            more = max((least - count) * len(traces) / count for _, count, least in short)
            about = f"; at this rate about {int(np.ceil(more))} more traces like these"
        raise DataError(f"too little data to fit on: {parts}{about}")


_Has = list[tuple[str, int, int]]  # what, how many there are, how many there must be


def _wrong(labelled: Sequence[FitTrace]) -> int:
    return sum(trace.first_error is not None for trace in labelled)


def _outcomes(traces: Sequence[FitTrace], labelled: Sequence[FitTrace], recovery: float | None) -> _Has:
    """What a fit with labels missing needs: labelled wrong traces, or many outcomes and independent scores."""
    wrong = _wrong(labelled)
    if recovery is None and not wrong:
        raise DataError(
            "without labels it cannot be told how many wrong traces end right all the same, and p_weak depends on it; "
            "give recovery (0.0 where a wrong step always spoils the answer)"
        )
    if wrong < _LEAST_WRONG and not independent(traces):
        value = lag_correlation(traces)
        seen = "too few solved traces to tell" if value is None else f"{value:.2f}, above {MAX_CORRELATION}"
        raise DataError(
            f"without labels the laws of wrong steps cannot be told: scores of neighbouring right steps correlate ("
            f"{seen}), and EM then takes a trace's own level for an error; label traces with a wrong step: {wrong} of "
            f"{_LEAST_WRONG}, {_LEAST_WRONG - wrong} missing"
        )
    ends = [trace.solved for trace in traces if not trace.labelled and trace.solved is not None]
    least = _LEAST_OUTCOMES if wrong < _LEAST_WRONG else 0
    return [
        ("solved traces without labels", sum(ends), least),
        ("failed traces without labels", len(ends) - sum(ends), least),
    ]


def _strong_steps(traces: Sequence[FitTrace], labelled: Sequence[FitTrace]) -> _Has:
    """Strong steps that say something of p_strong."""
    usable = sum(
        step.replaced and (trace.first_error is None or i <= trace.first_error)
        for trace in labelled
        for i, step in enumerate(trace.steps)
    )
    if usable >= LEAST_STRONG or len(labelled) == len(traces):
        return [("labelled strong steps after right ones (or give p_strong)", usable, LEAST_STRONG)]
    ends = [t.solved for t in traces if any(s.replaced for s in t.steps) and t.solved is not None]
    name = "{} traces with strong steps at random places (or give p_strong)"
    return [
        (name.format("solved"), sum(ends), LEAST_STRONG),
        (name.format("failed"), len(ends) - sum(ends), LEAST_STRONG),
    ]


def _states_of(traces: Sequence[FitTrace]) -> tuple[int, int, int]:
    """Number of drafts in each state, in labelled traces."""
    drafts = Counter(
        state for trace in traces for state, step in zip(trace.states, trace.steps, strict=True) if step.drafted
    )
    return drafts[RIGHT], drafts[EARLIER], drafts[NOW]
