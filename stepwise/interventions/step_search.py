"""Where a solution goes wrong, from how often the weak model ends right from behind its steps. No model is asked here.

What differs from Math-Shepherd (arXiv 2312.08935, section 3.2), which calls a step right if any rollout behind it ends
right:
1. `bisect` finds the first error alone, by halving, in solutions that ended wrong: a boundary is bad where its rate of
   right ends is below half of the rate at the start, by the posteriors of both (`is_bad`). More rollouts are made until
   that is decided; what they do not decide is undecided: its steps have no label. The boundaries next to the place are
   looked at too; where they contradict it, nothing is said of the solution. This is for errors that seldom recover.
2. `every_step` has the rate itself ("soft"), Math-Shepherd's label ("hard"), and whether the rate is at least .8 of the
   one before the step ("progress", GenPRM, arXiv 2504.00891, section 3.2).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from stepwise.data.step_labels import Label
from stepwise.records import Section

_GRID = (np.arange(400) + 0.5) / 400  # rates


class LabelSettings(Section):
    """How many of what.

    >>> LabelSettings(attempts=4).rollouts
    8
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    attempts: int = Field(default=8, ge=1)
    """solutions of each problem; the share that ends right is the rate at the start"""
    labelled: int = Field(default=2, ge=1)
    """most solutions of a problem that ended wrong, and most that ended right, which get labels"""
    by: Literal["rollouts", "critic", "both"] = "rollouts"
    """who says where a wrong solution goes wrong; both: kept where the two agree"""
    label: Literal["bisect", "hard", "soft", "progress"] = "bisect"
    """what rollouts make of a step: the first error by halving; any right end behind it; their share; its change"""
    rollouts: int = Field(default=8, ge=1)
    """rollouts from a boundary at a time"""
    most: int = Field(default=32, ge=1)
    """bisect: most rollouts from a boundary until it is decided"""
    level: float = Field(default=0.1, gt=0, lt=0.5)
    """bisect: a boundary is decided where the other verdict has at most this probability"""
    progress: float = Field(default=0.8, gt=0, le=1)
    """progress: least share of the rate before a step that is left after it"""
    max_tokens: int = Field(default=1024, ge=1)
    """most tokens of one solution, and of one rollout"""
    check: int = Field(default=100, ge=0)
    """solutions with labels of people on which the rollouts are checked first, where there are any"""
    chunk: int = Field(default=8, ge=1)
    """problems that are done together, and done again together after an interruption"""
    concurrency: int = Field(default=1, ge=1)
    """calls of the critic at a time"""


def is_bad(right: int, judged: int, start: tuple[int, int], level: float) -> bool | None:
    """Whether the rate of right ends behind a boundary is below half of the rate at the start, (right, judged) there;
    None where either has a posterior probability above `level` (Jeffreys' prior for both rates).

    >>> is_bad(0, 16, (6, 8), 0.1), is_bad(7, 8, (6, 8), 0.1), is_bad(1, 4, (3, 8), 0.1)
    (True, False, None)
    """
    probability = _below_half(right, judged, *start)
    return True if probability >= 1 - level else False if probability <= level else None


@lru_cache(maxsize=100_000)
def _below_half(right: int, judged: int, start_right: int, start_judged: int) -> float:
    def density(successes: int, n: int) -> Any:
        logs = (successes - 0.5) * np.log(_GRID) + (n - successes - 0.5) * np.log1p(-_GRID)
        weights = np.exp(logs - logs.max())
        return weights / weights.sum()

    up_to = np.cumsum(density(right, judged))
    return float(density(start_right, start_judged) @ np.interp(_GRID / 2, _GRID, up_to, left=0.0))


Search = Generator[int, bool | None, tuple[Label, ...]]
"""Asks for boundaries (how many steps are kept), is told whether each is bad, and returns labels."""


def bisect(steps: int) -> Search:
    """The first error of a solution of so many steps that ended wrong, as the module's docstring says.

    >>> search = bisect(4)
    >>> next(search), search.send(True), search.send(False)  # what follows 2 steps is bad, what follows 1 is not
    (2, 1, 3)
    """
    low, high = 0, steps  # a boundary that is not bad, and a bad one behind it
    known: dict[int, bool | None] = {low: False, high: True}
    while high - low > 1:
        middle = (low + high) // 2
        known[middle] = bad = yield middle
        if bad is None:
            return (1.0,) * low + (None,) * (steps - low)
        low, high = (low, middle) if bad else (middle, high)
    for place, expected in ((low - 1, False), (high + 1, True)):
        if 0 < place < steps and place not in known:
            known[place] = yield place
        if known.get(place, expected) is (not expected):
            return (None,) * steps
    return (1.0,) * low + (0.0,) + (None,) * (steps - high)


def every_step(rates: Sequence[float | None], kind: str, progress: float) -> tuple[Label, ...]:
    """Labels from the rates at all boundaries, the start first and the outcome last.

    >>> every_step([0.5, 0.5, 0.25, 0.0], "hard", 0.8), every_step([0.5, 0.5, 0.25, 0.0], "progress", 0.8)
    ((1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    """
    labels: list[Label] = []
    for before, after in pairwise(rates):
        if after is None or (kind == "progress" and not before):
            labels.append(None)
        elif kind == "soft":
            labels.append(after)
        else:
            labels.append(float(after > 0 if kind == "hard" else after >= progress * (before or 0.0)))
    return tuple(labels)
