"""Four claims about step-level routing, each put to the rows of `evals.routing`: shown, refuted or not decided.

Families and settings are chosen on a random half of the problems and measured on the other half. Intervals are
bootstrap intervals over problems, paired across the arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stepwise.routing.estimates import Estimate, Outcomes, estimate
from stepwise.routing.metrics import OperatingPoint, accuracy_at, cheapest, cpt_interpolated, pgr
from stepwise.routing.mixing import halves
from stepwise.routing.pomdp.fit import FitCard

from .routing_rows import Curves, Row

EQUAL_COSTS = (0.05, 0.1, 0.2, 0.3)  # of the strong model's alone
FILTERED = (("planned", "published"), ("planned", "published, no gate"), ("belief", "belief, published"))


class Ends(NamedTuple):
    """The two models alone."""

    weak: Outcomes
    strong: Outcomes


class Chosen(NamedTuple):
    """A setting chosen on one half: on the other, its cost as a share of the strong model's alone, and its PGR."""

    arm: str
    label: str
    share: float
    pgr: Estimate

    @property
    def error(self) -> float:
        """Standard error of the PGR, from its 95 % interval."""
        low, high = self.pgr.low or 0.0, self.pgr.high or 0.0
        return (high - low) / 3.92

    def __str__(self) -> str:
        return f"{self.label}: PGR {self.pgr.value:.2f} (s.e. {self.error:.2f}) at {self.share:.0%}"


def choose(arms: Curves, ends: Ends, x: float, *, samples: int) -> Chosen | None:
    """Of all settings of these arms the cheapest that recovers `x` of the gap on one half, measured on the other.

    None where none does.
    """
    settings = [(arm, one) for arm, curve in arms.items() for one in curve]
    here, there = halves(len(ends.weak.correct))
    if not here or not settings:
        return None
    best = cheapest(
        [one.part(here).point for _, one in settings], ends.weak.part(here).point, ends.strong.part(here).point, x
    )
    if best is None:
        return None
    arm, one = settings[best]
    measured = [ends.weak.part(there), ends.strong.part(there), one.part(there)]
    found = estimate(lambda p: pgr(p[2], p[0], p[1]), measured, samples=samples)
    return Chosen(arm, one.label, measured[2].point.cost / measured[1].point.cost, found)


def best_family(arms: Curves, ends: Ends, x: float, problems: Sequence[int]) -> str | None:
    """The arm whose frontier recovers `x` at the least cost on these problems; None where none does."""
    weak, strong = (one.part(problems).point for one in ends)
    costs = {
        arm: cpt_interpolated([one.part(problems).point for one in curve], weak, strong, x)
        for arm, curve in arms.items()
    }
    known = {arm: cost for arm, cost in costs.items() if cost is not None}
    return min(known, key=lambda arm: known[arm]) if known else None


def cpt_ratio(one: Sequence[Outcomes], other: Sequence[Outcomes], ends: Ends, x: float, *, samples: int) -> Estimate:
    """CPT of the first arm over that of the second, both on their frontiers; None where one does not get there."""

    def ratio(points: Sequence[OperatingPoint]) -> float | None:
        own, others = points[2 : 2 + len(one)], points[2 + len(one) :]
        above, below = (cpt_interpolated(p, points[0], points[1], x) for p in (own, others))
        return None if above is None or not below else above / below

    return estimate(ratio, [*ends, *one, *other], samples=samples, none_is_dear=True)


def accuracy_difference(
    one: Sequence[Outcomes], other: Sequence[Outcomes], ends: Ends, *, samples: int, shares: Sequence[float]
) -> Estimate:
    """Mean over costs (as shares of the strong model's alone) of the first arm's accuracy less the second's."""

    def gap(points: Sequence[OperatingPoint]) -> float | None:
        weak, strong, own, others = points[0], points[1], points[2 : 2 + len(one)], points[2 + len(one) :]
        gaps = []
        for share in shares:
            a, b = (accuracy_at([weak, *p], share * strong.cost) for p in (own, others))
            if a is not None and b is not None:
                gaps.append(a - b)
        return sum(gaps) / len(gaps) if gaps else None

    return estimate(gap, [*ends, *one, *other], samples=samples)


def verdict(low: float | None, high: float | None, bound: float = 0.0) -> str:
    """Of "the value is above `bound`" by its interval."""
    if low is None or high is None:
        return "not decided"
    return "shown" if low > bound else "refuted" if high < bound else "not decided at this size"


def step_against_query(step: Curves, query: Curves, ends: Ends, *, samples: int) -> str:
    """(a) Step-level needs at most a third of the strong tokens of the best query-level router for 80 % of the gap."""
    claim = "(a) step-level needs at most a third of the strong tokens of the best query-level router at CPT80: "
    here, there = halves(len(ends.weak.correct))
    ours, theirs = (best_family(arms, ends, 0.8, here) for arms in (step, query))
    if ours is None or theirs is None:
        which = "step-level" if ours is None else "query-level"
        return f"{claim}not decided: no {which} arm recovers 80 % of the gap on the choosing half."
    measured = Ends(*(one.part(there) for one in ends))
    found = cpt_ratio(
        [one.part(there) for one in step[ours]],
        [one.part(there) for one in query[theirs]],
        measured,
        0.8,
        samples=samples,
    )
    if found.value is None:
        return f"{claim}not decided: {ours} or {theirs} does not recover 80 % on the measuring half."
    low, high = found.low, found.high
    word = verdict(None if high is None else -high, None if low is None else -low, -1 / 3)
    text = (
        f"{claim}{word}. {ours} over {theirs} (chosen on the other half): {found.value:.2f} of its strong tokens "
        f"({_ends(found)}). As single settings "
    )
    return (
        text
        + "; ".join(
            str(one or "none reached 80 %") for one in (choose(a, ends, 0.8, samples=samples) for a in (step, query))
        )
        + "."
    )


def each_against_query(step: Curves, query: Curves, ends: Ends, *, samples: int) -> str | None:
    """(a) again, for every step-level arm on all problems, over the query-level arm that is best on them."""
    theirs = best_family(query, ends, 0.8, range(len(ends.weak.correct)))
    if theirs is None:
        return None
    found = {arm: cpt_ratio(own, query[theirs], ends, 0.8, samples=samples) for arm, own in step.items()}
    reached = sorted((one.value, arm) for arm, one in found.items() if one.value is not None)
    shown = ", ".join(f"{arm} {value:.2f} ({_ends(found[arm])})" for value, arm in reached)
    return f"(a) for each arm on all problems, its CPT80 over that of {theirs}: {shown}; the others do not get to 80 %."


def filtered_against_published(arms: Curves, ends: Ends, *, samples: int) -> list[str]:
    """(b) The filtered belief beats the published belief at equal cost."""
    lines = []
    for ours, theirs in FILTERED:
        if ours not in arms or theirs not in arms:
            continue
        found = accuracy_difference(arms[ours], arms[theirs], ends, samples=samples, shares=EQUAL_COSTS)
        each = [
            accuracy_difference(arms[ours], arms[theirs], ends, samples=samples, shares=(share,)).value
            for share in EQUAL_COSTS
        ]
        shown = ", ".join(
            "none" if one is None else f"{100 * one:+.1f} at {share:.0%}"
            for one, share in zip(each, EQUAL_COSTS, strict=True)
        )
        value = "unknown" if found.value is None else f"{100 * found.value:+.1f} points of accuracy ({_points(found)})"
        lines.append(
            f"(b) {ours} beats {theirs} at equal strong tokens: {verdict(found.low, found.high)}. On average {value}: "
            f"{shown} of the strong model's tokens."
        )
    return lines


def most_of_the_gap(step: Curves, ends: Ends, *, samples: int) -> str:
    """(c) At least one policy reaches 95 % of the gap with at most 25 % of strong-only's tokens."""
    claim = "(c) at least one policy recovers 95 % of the gap for at most 25 % of strong-only's tokens: "
    found = choose(step, ends, 0.95, samples=samples)
    if found is None:
        return f"{claim}refuted on this sample: no setting recovers 95 % on the choosing half."
    value = found.pgr.value or 0.0
    if found.share > 0.25 or value + found.error < 0.95:
        word = "not held on the measuring half"
    else:
        word = "held" if value - found.error >= 0.95 else "held within one standard error"
    return f"{claim}{word}. {found} of strong-only's tokens, the setting chosen on the other half."


def who_wins(name: str, arms: Curves, ends: Ends, *, samples: int) -> str:
    """(d) Under one cost: the cheapest way to 80 and 95 % of the gap, as shares of the strong model alone."""
    weak, strong = ends.weak.point, ends.strong.point
    parts = [f"(d) in {name} the weak model alone costs {weak.cost / strong.cost:.0%} of the strong model alone"]
    wins = []
    for x in (0.8, 0.95):
        found = choose(arms, ends, x, samples=samples)
        parts.append(f"for {x:.0%} of the gap " + (str(found) + " of its cost" if found else "no setting is enough"))
        wins.append(found is not None and found.share < 1)
    end = {
        (True, True): "routing wins",
        (True, False): "routing wins up to 80 % of the gap and the strong model alone beyond",
        (False, False): "the strong model alone wins",
        (False, True): "routing wins at 95 % by this choice of settings, though not at 80 %",
    }[wins[0], wins[1]]
    return "; ".join(parts) + f": {end}."


def why_step(rows: Sequence[Row]) -> str | None:
    """What a router that knew the truth would pay at the level of problems and of steps: the reason behind (a) and (c).

    None without the arm that is shown the truth.
    """
    alone = {row.seed: row for row in rows if row.arm == "never"}
    strong = {row.seed: row for row in rows if row.arm == "always"}
    told = [row for row in rows if row.arm == "truth at each step"]
    if not told:
        return None
    whole = sum(sum(strong[row.seed].strong_tokens) for row in told)
    problems = sum(
        paid
        for row in told
        for paid, right in zip(strong[row.seed].strong_tokens, alone[row.seed].correct, strict=True)
        if not right
    )
    steps = sum(sum(row.strong_tokens) for row in told)
    solved = sum(sum(row.correct) for row in told) / sum(len(row.correct) for row in told)
    return (
        f"Why: handing over just the problems that the weak model fails takes {problems / whole:.0%} of the strong "
        f"model's tokens, having just the wrong steps written anew takes {steps / whole:.0%} and solves "
        f"{solved:.1%}. What a step-level policy needs beyond that is what its signal costs it in false alarms."
    )


def why_belief(card: FitCard) -> str:
    """What the fit says of the two beliefs on problems it was not fitted on: the reason behind (b)."""
    lag = "unknown" if card.lag_correlation is None else f"{card.lag_correlation:.2f}"
    parts = [
        f"{name}: log-likelihood {held.log_likelihood:.3f} nats per draft, AUROC {held.auroc:.3f}"
        for name, held in (
            ("filter on the score", card.held_out),
            ("memoryless belief on the pair", card.held_out_pair),
        )
        if held is not None
    ]
    auroc = card.intervals.get("auroc")
    known = f"The score itself has AUROC {auroc.value:.3f} ({auroc.low:.3f} to {auroc.high:.3f}). " if auroc else ""
    return (
        f"Why: {known}Neighbouring scores of right steps correlate by {lag}. On held-out problems, {'; '.join(parts)}."
    )


def break_even(rows: Sequence[Row], label: str) -> str:
    """How much larger the strong model has to be for this setting to take fewer parameter-tokens than it does alone,
    where the scorer is as large as the weak model, and where it is as large as the strong one.
    """
    runs = {}
    for key, own in (
        ("routed", [r for r in rows if r.label == label]),
        ("alone", [r for r in rows if r.arm == "always"]),
    ):
        runs[key] = [
            sum(sum(getattr(r, f"{role}_run")) for r in own) / len(own) for role in ("weak", "strong", "scorer")
        ]
    weak, strong, scorer = runs["routed"]
    saved = runs["alone"][1] - strong
    small, large = (
        f"{cheap / left:.1f} times" if left > 0 else "at no size"
        for cheap, left in ((weak + scorer, saved), (weak, saved - scorer))
    )
    read = strong / runs["alone"][1]
    return (
        f"(d) under {label} the strong model runs through {read:.0%} of the tokens that it runs through alone, since "
        "it also reads what others wrote. In parameter-tokens that is less than the strong model alone where its size "
        f"is more than {small} the weak one's and the scorer is as small as the weak model; where the scorer is as "
        f"large as the strong model: {large}."
    )


def _ends(found: Estimate) -> str:
    low, high = ("not reached" if end is None else f"{end:.2f}" for end in (found.low, found.high))
    return f"95 % {low} to {high}"


def _points(found: Estimate) -> str:
    low, high = ("?" if end is None else f"{100 * end:+.1f}" for end in (found.low, found.high))
    return f"95 % {low} to {high}"
