"""Did a step help, or was it luck? A test of its guided rollouts against going on without it.

InT (arXiv 2601.14209) accepts a step after which one of 32 rollouts ends right. Where the model would now and then have
ended right anyway, that is mostly luck. Here a step is accepted where so many right rollouts or more have a probability
of at most `CollectSettings.level` at the rate of simply going on from the correct prefix.

That rate takes no rollouts of its own: it is counted in the attempts that were made anyway. Of attempts that had the
prefix's number of steps right, the share that ended right, over all problems on which as many *other* attempts ended
right. The attempt that is counted is left out of its problem's own number, else a problem without a right attempt would
have a rate of 0 by definition.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from stepwise.critics.form import invented_output
from stepwise.errors import DataError
from stepwise.grading import Verdict
from stepwise.interventions.rows import Candidate, FailedAttempt, Located, Rollout


def luck(successes: int, n: int, rate: float) -> float:
    """P(at least `successes` of `n` rollouts end right) at a `rate` in [0, 1]. Raises DataError for other rates.

    >>> round(luck(1, 32, 0.0007), 3), round(luck(2, 8, 0.1), 3), round(luck(3, 8, 0.1), 3)
    (0.022, 0.187, 0.038)
    """
    if not 0 <= rate <= 1:
        raise DataError(f"rate is {rate}; a share of rollouts lies in [0, 1]")
    return math.fsum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(max(successes, 0), n + 1))


def needed(n: int, rate: float, level: float = 0.1) -> int:
    """The fewest successes in `n` rollouts of which `luck` is at most `level`; n + 1 where even n are no sign.

    >>> needed(32, 0.0007), needed(8, 0.1), needed(4, 0.9)
    (1, 3, 5)
    """
    return next(k for k in range(n + 2) if luck(k, n, rate) <= level)


class PrefixRates:
    """How often the weak model ends right from a correct prefix.

    >>> rates = PrefixRates()
    >>> rates.rate(right=0, depth=2)  # with no attempts seen: one half, by Jeffreys' prior
    0.5
    """

    def __init__(self) -> None:
        # By the right ones among the other attempts at a problem: (ended right, steps that were right).
        self._attempts: defaultdict[int, list[tuple[bool, float]]] = defaultdict(list)
        self._right: dict[str, int] = {}

    def add(
        self, rollouts: Sequence[Rollout], failures: Iterable[FailedAttempt], located: Iterable[Located]
    ) -> PrefixRates:
        """Count the attempts of some problems, all those of a problem together; returns itself."""
        places = {row.failure: row.first_error for row in located if not row.failed}
        first = {(row.problem, row.steps): places.get(row.id) for row in failures}
        problems: defaultdict[str, list[tuple[bool, float]]] = defaultdict(list)
        for row in rollouts:
            if row.verdict is not None:
                error = first.get((row.problem, row.steps))
                right = row.verdict is Verdict.CORRECT and not invented_output(row.text)
                problems[row.problem].append((right, math.inf if right else len(row.steps) if error is None else error))
        for problem, attempts in problems.items():
            self._right[problem] = sum(right for right, _ in attempts)
            for right, depth in attempts:
                self._attempts[self._right[problem] - right].append((right, depth))
        return self

    def rate(self, right: int, depth: int) -> float:
        """The posterior mean rate, under Jeffreys' prior, from behind `depth` right steps of a failed attempt at a
        problem on which `right` attempts ended right.
        """
        reached = [ended for ended, steps in self._attempts.get(right, ()) if steps >= depth]
        return (sum(reached) + 0.5) / (len(reached) + 1)

    def of(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """The candidates with the rate from their prefixes, rounded to six digits."""
        return [
            replace(row, rate=round(self.rate(self._right.get(row.problem, 0), row.location), 6)) for row in candidates
        ]
