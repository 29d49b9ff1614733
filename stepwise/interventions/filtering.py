"""How many guided rollouts a candidate gets, and which of an attempt's candidates is the best: rules without a model.

What differs from InT (arXiv 2601.14209), which asks for 32 rollouts of every candidate:
1. Where one success is enough, a candidate is asked no further after it.
2. A candidate without a success is given up after the least n with (1 - floor)^n <= miss. So one that would succeed at
   a rate of `floor` is lost with probability `miss` at most, and one with a higher rate less often.
3. Rollouts are asked for in batches of 2, 2, 4, 8, ...: at most about as many are in vain as were needed.
4. Where a chunk may have only so many, those candidates come first that are likeliest to succeed with the next one.
   Under one prior for all, a failure can only lower that probability, so they are the ones with the fewest failures;
   for the same reason no rule finds more candidates with the same rollouts than giving up after n failures.
5. The best of several candidates is the one with the highest posterior mean rate, and rollouts that are meant to tell
   them apart go to the two best. A posterior does not depend on when one stopped, a share of successes does.

The prior is a beta distribution. `INT_PRIOR` has InT's published counts: 14,766 candidates, 20,170 of 472,320 rollouts
right, 2,213 candidates with a success in 32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stepwise.errors import DataError

_POINTS = 2000


@dataclass(frozen=True)
class StopRule:
    """When a candidate has had enough guided rollouts; `most`, `enough`, `floor`, `miss`, `batch` as CollectSettings
    has them.
    """

    most: int = 32
    enough: int | None = 1
    floor: float = 0.1
    miss: float = 0.3
    batch: int = 8

    @property
    def drop_after(self) -> int | None:
        """Failures, with no success, after which a candidate is given up; None where that is never."""
        return drop_after(self.floor, self.miss)

    def next_batch(self, successes: int, asked: int) -> int:
        """How many rollouts to ask for next, of a candidate with so many `successes` in `asked`; 0: no more."""
        end = self.most
        if self.enough is not None and successes >= self.enough:
            return 0
        if not successes and self.drop_after is not None:
            end = min(end, self.drop_after)
        if self.enough is None and (successes or self.drop_after is None):
            return min(self.batch, end - asked)  # all are asked for in any case
        return max(0, min(max(2, asked), self.batch, end - asked))

    def worst(self) -> tuple[int, int]:
        """The most (rollouts, batches) that one candidate can take."""
        found = []
        for late in range(self.most):  # the batch with the first success
            asked = batches = 0
            while size := self.next_batch(batches > late, asked):
                asked, batches = asked + size, batches + 1
            found.append((asked, batches))
        return max(rollouts for rollouts, _ in found), max(batches for _, batches in found)


@dataclass(frozen=True)
class Beta:
    """A beta distribution of success rates, both parameters above 0."""

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


def drop_after(floor: float, miss: float) -> int | None:
    """The least n with (1 - floor)^n <= miss, in exact arithmetic; None for a `miss` of 0.

    Raises DataError where `floor` does not lie in (0, 1) or `miss` in [0, 1).
    """
    if not 0 < floor < 1 or not 0 <= miss < 1:
        raise DataError(f"floor is {floor} and miss is {miss}; floor must lie between 0 and 1, and miss in [0, 1)")
    if miss == 0:
        return None
    fails, bound = 1 - Fraction(str(floor)), Fraction(str(miss))
    n = max(1, math.floor(math.log(miss) / math.log1p(-floor)) - 1)
    while fails**n > bound:
        n += 1
    return n


def fit_beta(mean: float, found: float, most: int = 32) -> Beta:
    """The beta distribution with this mean rate, of which a share `found` has a success in `most` rollouts.

    Raises DataError where there is none: `found` must lie between `mean` and 1 - (1 - mean)^most.
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


def shared_out(
    wanted: Mapping[str, int], counts: Mapping[str, tuple[int, int]], left: int | None, prior: Beta = INT_PRIOR
) -> dict[str, int]:
    """What each candidate (an id) gets of its next batch `wanted`, where only `left` rollouts are left for all.

    `counts` has (successes, asked) so far. Those likeliest to succeed with the next one come first, of equal ones the
    first.
    """
    given: dict[str, int] = {}
    for name in ranked({name: counts[name] for name in wanted}, prior):
        given[name] = wanted[name] if left is None else min(wanted[name], left)
        left = None if left is None else left - given[name]
    return {name: given[name] for name in wanted if given[name]}


def ranked(counts: Mapping[str, tuple[int, int]], prior: Beta = INT_PRIOR) -> list[str]:
    """Candidates (ids) with (successes, asked), the highest posterior mean rate first, of equal ones the first."""
    return sorted(counts, key=lambda name: -prior.rate(*counts[name]))


def next_to_compare(counts: Mapping[str, tuple[int, int]], prior: Beta = INT_PRIOR) -> str:
    """Of the two best candidates the one with fewer rollouts, of equal ones the better: who is to get the next."""
    return min(ranked(counts, prior)[:2], key=lambda name: counts[name][1])


def replay(outcomes: Sequence[bool], rule: StopRule) -> tuple[int, int]:
    """(successes, rollouts) that `rule` sees of a candidate whose rollouts end as `outcomes` say, in this order.

    Raises DataError where there are fewer than the rule asks for.
    """
    asked = successes = 0
    while size := rule.next_batch(successes, asked):
        if asked + size > len(outcomes):
            raise DataError(f"the rule asks for {asked + size} rollouts, and {len(outcomes)} are there; give as many")
        successes += sum(outcomes[asked : asked + size])
        asked += size
    return successes, asked
