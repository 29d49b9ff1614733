"""Guided rollouts: who is asked next, when a candidate has had enough, and which of an attempt's candidates is kept.

What differs from InT (arXiv 2601.14209), which asks for 32 rollouts of every candidate:
1. Where one success is enough, a candidate is asked no further after it.
2. A candidate without a success is given up after the least n with (1 - floor)^n <= miss. So one that would succeed at
   a rate of `floor` is lost with probability `miss` at most, and one with a higher rate less often.
3. Rollouts are asked for in batches of 2, 2, 4, 8, ...: at most about as many are in vain as were needed.
4. The best of several candidates is the one with the highest posterior mean rate, and rollouts that are meant to tell
   them apart go to the two best. A posterior does not depend on when one stopped, a share of successes does.

5. How many successes a candidate needs follows from a test against luck (`acceptance`): the count in all `guided`
   rollouts, so that it may be stopped when it has so many, or can no longer have them, and the test holds its level.

Rules 1 to 3 are `CollectSettings.next_batch`. The prior is a beta distribution; `INT_PRIOR` has InT's published counts:
14,766 candidates, 20,170 of 472,320 rollouts right, 2,213 candidates with a success in 32. No model is asked here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stepwise.errors import DataError
from stepwise.grading import Verdict
from stepwise.interventions.acceptance import needed
from stepwise.interventions.rows import Candidate, GuidedRollout
from stepwise.interventions.settings import CollectSettings

Phase = Literal["filter", "compare", "fresh"]
_POINTS = 2000


@dataclass(frozen=True)
class Wanted:
    """`n` guided rollouts of a candidate, the first of which is its number `first`.

    >>> from stepwise.interventions.rows import Made
    >>> Wanted(Candidate("c", "p", "p/r0", 1, "So 3.", Made("critic", "", "", 0)), first=8, n=8, phase="filter").first
    8
    """

    candidate: Candidate
    first: int
    n: int
    phase: Phase


Sample = Callable[[Sequence[Wanted]], list[GuidedRollout]]
"""Makes and grades the rollouts that are wanted, all together."""


def guided_by(candidates: Sequence[Candidate], sample: Sample, settings: CollectSettings) -> list[GuidedRollout]:
    """The rollouts of all candidates, one after the other: filtered, compared, measured afresh as `settings` say.

    Example:
        rollouts = guided_by(candidates, lambda wanted: [roll for part in wanted for roll in sample(part)], settings)
    """
    rows: dict[str, list[GuidedRollout]] = {candidate.id: [] for candidate in candidates}

    def ask(sizes: Mapping[str, int], phase: Phase) -> None:
        wanted = [Wanted(row, len(rows[row.id]), sizes[row.id], phase) for row in candidates if sizes.get(row.id)]
        for rollout in sample(wanted) if wanted else []:
            rows[rollout.candidate].append(rollout)

    def tried() -> dict[str, tuple[int, int]]:
        """(successes, rollouts), those that could not be judged included: they are paid for."""
        return {
            name: (sum(row.verdict is Verdict.CORRECT for row in outcomes), len(outcomes))
            for name, outcomes in rows.items()
        }

    # Ask until the rule has enough of every candidate.
    least = {row.id: _needed(row, settings) for row in candidates}
    sizes = {name: settings.next_batch(0, 0, least[name]) for name in rows}
    while any(sizes.values()):
        ask(sizes, "filter")
        counts = tried()
        won = {row.failure for row in candidates if counts[row.id][0] >= least[row.id] and settings.keep == "first"}
        sizes = {
            row.id: settings.next_batch(*counts[row.id], least[row.id]) for row in candidates if row.failure not in won
        }
    counts = tried()

    # Tell rivals apart: a few more at a time for one of the two best of each attempt.
    rivals: defaultdict[str, list[str]] = defaultdict(list)
    for row in candidates:
        if counts[row.id][0] >= least[row.id] and settings.keep == "best":
            rivals[row.failure].append(row.id)
    for done in range(0, settings.compare, settings.compare_batch):
        counts, size = tried(), min(settings.compare_batch, settings.compare - done)
        several = [names for names in rivals.values() if len(names) > 1]
        ask({_next_to_compare({name: counts[name] for name in names}): size for names in several}, "compare")

    rollouts = [row for outcomes in rows.values() for row in outcomes]
    if settings.fresh:
        ask({row.id: settings.fresh for row in chosen(candidates, rollouts, settings)}, "fresh")
    return [row for outcomes in rows.values() for row in outcomes]


def chosen(
    candidates: Sequence[Candidate], guided: Iterable[GuidedRollout], settings: CollectSettings
) -> list[Candidate]:
    """Those that are accepted: of each attempt the one with the best posterior mean rate, or all (`settings.keep`).

    Example:
        for row in chosen(candidates, guided, CollectSettings(keep="best")):
            print(row.failure, row.content)
    """
    rollouts = defaultdict(list)
    for rollout in guided:
        rollouts[rollout.candidate].append(rollout)
    counts = counts_of(rollout for tried in rollouts.values() for rollout in tried)
    good = {row.id: row for row in candidates if accepted(row, rollouts[row.id], settings)}
    best: dict[str, str] = {}
    for name in ranked({name: counts[name] for name in good}):
        best.setdefault(good[name].failure, name)
    return [row for row in good.values() if settings.keep == "all" or best[row.failure] == row.id]


def accepted(row: Candidate, guided: Iterable[GuidedRollout], settings: CollectSettings) -> bool:
    """Whether a candidate has the successes that it needs among its guided rollouts; those that were made to compare or
    to measure it accept nothing.

    Example:
        print(accepted(candidate, guided, CollectSettings(accept="success")))
    """
    return sum(one.phase == "filter" and one.verdict is Verdict.CORRECT for one in guided) >= _needed(row, settings)


def _needed(row: Candidate, settings: CollectSettings) -> int:
    """Successes with which a candidate is accepted: one, or what luck would not give in `settings.guided` rollouts."""
    return 1 if settings.accept == "success" or row.rate is None else needed(settings.guided, row.rate, settings.level)


def counts_of(rows: Iterable[GuidedRollout], *, fresh: bool = False) -> dict[str, tuple[int, int]]:
    """(successes, judged) by candidate (id): of the rollouts that chose it, or of the `fresh` ones alone.

    >>> from stepwise.interventions.rows import Made
    >>> made = Made("weak", "", "", 0)
    >>> row = GuidedRollout("c/g0", "p", 0, "So 4.", "answer", made, verdict=Verdict.CORRECT, candidate="c")
    >>> counts_of([row])
    {'c': (1, 1)}
    """
    outcomes: defaultdict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row.verdict is not None and (row.phase == "fresh") == fresh:
            outcomes[row.candidate].append(row.verdict is Verdict.CORRECT)
    return {name: (sum(found), len(found)) for name, found in outcomes.items()}


@dataclass(frozen=True)
class Beta:
    """A beta distribution of success rates, both parameters above 0.

    >>> prior = Beta(1.0, 1.0)
    >>> prior.rate(3, 4), round(prior.fails(1), 3)  # (1 + 3) / (2 + 4), and one half
    (0.6666666666666666, 0.5)
    """

    a: float
    b: float

    def rate(self, successes: int = 0, asked: int = 0) -> float:
        """The posterior mean rate: the probability that the next rollout succeeds."""
        return (self.a + successes) / (self.a + self.b + asked)

    def fails(self, n: int) -> float:
        """Probability that all of `n` rollouts of a candidate fail: B(a, b + n) / B(a, b)."""
        a, b = self.a, self.b
        return math.exp(math.lgamma(b + n) + math.lgamma(a + b) - math.lgamma(b) - math.lgamma(a + b + n))

    def found(self, n: int, most: int = 32) -> float:
        """Of the candidates with a success in `most`, the share that has one in the first `n`."""
        return (1 - self.fails(n)) / (1 - self.fails(most))

    def found_above(self, floor: float, n: int) -> float:
        """Of the candidates with a rate of at least `floor` (above 0), the share with a success in `n` rollouts."""
        # The midpoint rule in q = (1 - rate)^b, in which the density has no pole at a rate of 1.
        total = missed = 0.0
        top = (1 - floor) ** self.b
        for k in range(_POINTS):
            rate = 1 - (top * (k + 0.5) / _POINTS) ** (1 / self.b)
            weight = rate ** (self.a - 1)
            total, missed = total + weight, missed + weight * (1 - rate) ** n
        return 1 - missed / total

    def cost(self, n: int) -> float:
        """Mean rollouts of a candidate that are asked for one by one up to a success, or to `n` failures."""
        return sum(self.fails(k) for k in range(n))


def fit_beta(mean: float, found: float, most: int = 32) -> Beta:
    """The beta distribution with this mean rate, of which a share `found` has a success in `most` rollouts.

    Raises DataError where there is none: `found` must lie between `mean` and 1 - (1 - mean)^most.

    >>> beta = fit_beta(mean=0.1, found=0.5)
    >>> round(1 - beta.fails(32), 3)
    0.5
    """
    if not 0 < mean < found < 1 - (1 - mean) ** most:
        raise DataError(
            f"no beta distribution has a mean of {mean:.4g} and {found:.4g} with a success in {most}; the latter must "
            f"lie between the mean and {1 - (1 - mean) ** most:.4g}"
        )
    low, high = 1e-9, 1e9  # of a + b: the larger, the more alike the candidates
    for _ in range(200):
        middle = math.sqrt(low * high)
        if 1 - Beta(mean * middle, (1 - mean) * middle).fails(most) < found:
            low = middle
        else:
            high = middle
    return Beta(mean * low, (1 - mean) * low)


INT_PRIOR = Beta(0.03775, 0.84617)
"""`fit_beta(20170 / 472320, 2213 / 14766)`"""


def ranked(counts: Mapping[str, tuple[int, int]], prior: Beta = INT_PRIOR) -> list[str]:
    """Candidates (ids) with (successes, asked), the highest posterior mean rate first, of equal ones the first.

    >>> ranked({"lucky": (1, 2), "known": (20, 32)})  # 1 of 2 says less than 20 of 32
    ['known', 'lucky']
    """
    return sorted(counts, key=lambda name: -prior.rate(*counts[name]))


def _next_to_compare(counts: Mapping[str, tuple[int, int]], prior: Beta = INT_PRIOR) -> str:
    """Of the two best candidates the one with fewer rollouts, of equal ones the better: who is to get the next."""
    return min(ranked(counts, prior)[:2], key=lambda name: counts[name][1])


def replay(outcomes: Sequence[bool], settings: CollectSettings) -> tuple[int, int]:
    """(successes, rollouts) of a candidate whose rollouts end as `outcomes` say, in this order.

    Raises DataError where there are fewer than the settings ask for.

    >>> replay([False, False, False, True] + [False] * 28, CollectSettings())  # 2 in vain, then 2 with a success
    (1, 4)
    """
    asked = successes = 0
    while size := settings.next_batch(successes, asked):
        if asked + size > len(outcomes):
            raise DataError(f"the rule asks for {asked + size} rollouts, and {len(outcomes)} are there; give as many")
        successes += sum(outcomes[asked : asked + size])
        asked += size
    return successes, asked
