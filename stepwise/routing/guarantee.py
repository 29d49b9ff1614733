"""A promise about a router that holds with a stated confidence, for whatever models and problems there are.

"On problems like these, expected accuracy is at most 5 points below the strong model alone" (or "expected spend is at
most B strong tokens a problem") is tested on problems that chose nothing:

1. One loss per problem: strong right minus routed right, in {-1, 0, 1}, both really run; or the strong tokens spent, in
   [0, cap], where the cap of the run per problem makes that range true.
2. Learn then test (Angelopoulos et al., arXiv 2110.01052): settings stand in an order that was fixed on other problems,
   from the safest one downwards; each is tested at the full level, the last before the first failure is taken. Nothing
   has to be monotone in the setting, which step routing is not.
3. The test bets against "the mean loss is at least the limit" (Waudby-Smith and Ramdas, arXiv 2010.09686, section 4):
   problem by problem, in an order drawn by a seed, with stakes that follow what was seen before. If that were true, the
   bettor's capital would ever reach 1 / (1 - confidence) in at most 1 - confidence of all draws (Ville's inequality).
   Different from theirs: the stake is the one that grows fastest where nothing is lost, which is what one hopes for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from stepwise.errors import DataError
from stepwise.records import record

Kind = Literal["accuracy", "spend"]
_PRIOR = 0.025  # mean square of the gain before anything is seen, as a share of the squared range
_BOLDEST = 0.9  # of the stake with which the worst loss would ruin the bettor
_POWER = 0.8


@record()
class Promise:
    """What holds of the expected loss over problems like those it was tested on.

    Attributes:
        kind: "accuracy": the accuracy that is lost against the strong model alone; "spend": strong tokens a problem.
        limit: what the expectation is at most: accuracy as a fraction, or tokens.
        confidence: how sure that is, over draws of the problems.
        problems: how many it was tested on, and what was seen on them: `mean`, the mean loss, and `moved`, the share of
            problems on which the loss is not 0.
        tested: settings that were run, the one that failed included.

    Example:
        >>> str(Promise("accuracy", 0.05, 0.9, problems=600, mean=0.01, moved=0.1, tested=4))
        'expected accuracy is at most 5.0 points below the strong model alone (confidence 90 %, 600 problems)'
    """

    kind: Kind
    limit: float
    confidence: Annotated[float, Field(gt=0, lt=1)]
    problems: int
    mean: float
    moved: float
    tested: int

    def __str__(self) -> str:
        what = f"expected spend is at most {self.limit:g} strong tokens a problem"
        if self.kind == "accuracy":
            what = f"expected accuracy is at most {100 * self.limit:.1f} points below the strong model alone"
        return f"{what} (confidence {100 * self.confidence:g} %, {self.problems} problems)"


class Tested(NamedTuple):
    """What `certify` comes to: the setting and its promise, None where not even the safest setting passes.

    >>> Tested("Always", promise=None, note="Threshold 0.9 is not shown to be within 0.05").setting
    'Always'
    """

    setting: Any
    promise: Promise | None
    note: str = ""


def evidence(losses: Sequence[float], limit: float, low: float, high: float, seed: int = 0) -> float:
    """The most that a bettor who began with 1 ever had, who bets that the mean of `losses` lies below `limit`.

    Losses lie in [low, high], the limit within. Where the mean is at least the limit, this reaches 1 / (1 - confidence)
    with a probability of at most 1 - confidence. Raises `DataError` for a loss or a limit out of range.

    Example:
        >>> evidence([0.0] * 80, 0.05, -1, 1) > 10 > evidence([0.0] * 76 + [1.0] * 4, 0.05, -1, 1)
        True
    """
    values = np.asarray(losses, float)  # (problems,)
    if not values.size or values.min() < low or values.max() > high:
        raise DataError(f"evidence: losses are {values.tolist()[:8]}; give at least one, each in [{low:g}, {high:g}]")
    if not low < limit < high:
        raise DataError(f"evidence: the limit is {limit:g}; it must lie between {low:g} and {high:g}")
    gains = limit - np.random.default_rng(seed).permutation(values)
    # Seen before each bet: the mean gain, which is the limit where nothing is lost, and the mean square. One imagined
    # problem stands before the first.
    count = np.arange(len(gains)) + 1
    target = limit if low < 0 else np.maximum((limit / 2 + np.concatenate([[0.0], gains.cumsum()[:-1]])) / count, 0.0)
    square = (_PRIOR * (high - low) ** 2 + np.concatenate([[0.0], (gains**2).cumsum()[:-1]])) / count
    stakes = np.minimum(target / square, _BOLDEST / (high - limit))
    return float(np.exp(min(np.log1p(stakes * gains).cumsum().max(), 700.0)))


def problems_needed(limit: float, moved: float, confidence: float, mean: float = 0.0, power: float = _POWER) -> int:
    """About how many problems it takes to certify that a loss in {-1, 0, 1} has an expectation of at most `limit`.

    By the normal law, for a true expectation of `mean` and a share `moved` of problems where the loss is not 0; the
    test above needs somewhat more, since it assumes nothing.

    Example:
        >>> problems_needed(0.02, 0.10, 0.9), problems_needed(0.02, 0.30, 0.9)
        (1127, 3381)
    """
    if limit <= mean:
        raise DataError(f"problems_needed: a mean loss of {mean:g} is not below the limit of {limit:g}; no n is enough")
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    return math.ceil(z * z * (moved - mean * mean) / (limit - mean) ** 2)


def certify(
    order: Iterable[Callable[[], Any]],
    losses: Callable[[Any], Sequence[float]],
    *,
    kind: Kind,
    limit: float,
    confidence: float,
    span: tuple[float, float],
) -> Tested:
    """The last setting of `order` before the first that fails its test, with the promise that holds of it.

    `order` runs the settings one after another, the safest first, which is the fallback and needs no test where its
    loss is 0 on every problem; each gives a `Measured`, or whatever has a label. `losses` gives one per problem, within
    `span`.

    >>> from types import SimpleNamespace
    >>> settings = {"always": [0.0] * 100, "careful": [0.0] * 99 + [1.0], "cheap": [0.0] * 60 + [1.0] * 40}
    >>> order = [lambda name=name: SimpleNamespace(label=name) for name in settings]
    >>> losses = lambda setting: settings[setting.label]
    >>> certify(order, losses, kind="accuracy", limit=0.1, confidence=0.9, span=(-1, 1)).setting.label
    'careful'
    """
    best: Tested | None = None
    tested, note = 0, ""
    for run in order:
        measured = run()
        values = np.asarray(losses(measured), float)
        tested += 1
        mean, moved = float(values.mean()), float((values != 0).mean())
        safe = best is None and not moved
        if not safe and evidence(values.tolist(), limit, *span) < 1 / (1 - confidence):
            note = _shortfall(measured, kind, limit, confidence, mean, moved, len(values))
            best = best or Tested(measured, None, note)
            break
        best = Tested(measured, Promise(kind, limit, confidence, len(values), mean, moved, tested))
    if best is None:
        raise DataError("certify: there is no setting to test; give at least one")
    promise = best.promise and Promise(**{**vars(best.promise), "tested": tested})
    return Tested(best.setting, promise, note)


def _shortfall(
    measured: Any, kind: Kind, limit: float, confidence: float, mean: float, moved: float, problems: int
) -> str:
    """Why a setting is not certified, in words, with the number of problems that it would take."""
    if kind == "spend":
        return f"{measured.label} was not certified: it spent {mean:.1f} a problem on {problems}, limit {limit:g}"
    seen = f"{measured.label} was not certified: it lost {100 * mean:.1f} points on {problems} problems"
    needed = problems_needed(limit, moved, confidence)
    return f"{seen}; a setting that loses nothing would need about {needed} for a limit of {100 * limit:.1f} points"
