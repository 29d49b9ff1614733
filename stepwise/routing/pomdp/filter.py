"""What the scores of a solution say about it: the belief over right, wrong earlier and wrong just now (TRIM-POMDP).

What differs from the published code (arXiv 2601.10245):
1. The belief is filtered over the steps: what earlier scores said, who wrote each step and the weak model's chance of a
   right step make the prior of the next. Published is each step on its own under a uniform prior (`"published"`), which
   calls an earlier error possible even at the first step; `"memoryless"` is each step on its own under its true prior.
2. The observation is the current score by default. Published is the pair (least earlier score, current score) as if
   drawn anew at every step; the least earlier score is carried along, so a filter on the pair counts it at each step.
3. A score's likelihood is its bin's, found by bisection; published is a kernel density, evaluated at every decision.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from stepwise.errors import DataError
from stepwise.types import Step

Belief = tuple[float, float, float]
History = Literal["filter", "memoryless", "published"]
Row = tuple[float, ...]
_SUM = 1e-6  # how far probabilities may be from adding up to 1


@dataclass(frozen=True)
class ObservationLaw:
    """How likely each score is in each state, as a table over bins.

    Args:
        edges: of the bins, growing from 0 to 1; bin i holds edges[i] <= score < edges[i + 1], the last one also 1.
        rows: P(bin | state), a row for each of right, wrong earlier, wrong just now. With `pair`, P(pair of bins |
            state), the bin of the current score running fastest: column = bins * (bin of least earlier) + bin.
        pair: whether an observation is (least earlier score, current score); the least is 1 at the first step.

    As plain JSON by `stepwise.records.to_json` and `from_json`. Raises `DataError` for edges that do not grow from 0 to
    1 and for rows that are not probabilities over these bins.

    Example:
        >>> law = ObservationLaw((0.0, 0.5, 1.0), ((0.2, 0.8), (0.7, 0.3), (0.9, 0.1)))
        >>> law.rows[0][1]  # P(score >= 0.5 | right)
        0.8
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    edges: tuple[float, ...]
    rows: tuple[Row, Row, Row]
    pair: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(map(float, self.edges)))
        object.__setattr__(self, "rows", tuple(tuple(map(float, row)) for row in self.rows))
        grows = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if len(self.edges) < 2 or self.edges[0] != 0 or self.edges[-1] != 1 or not grows:
            raise DataError(f"edges are {self.edges!r}; give numbers that grow from 0.0 to 1.0")
        check_rows("rows", self.rows)
        columns = self.bins**2 if self.pair else self.bins
        if len(self.rows[0]) != columns:
            raise DataError(f"rows have {len(self.rows[0])} entries for {columns} observations; give one for each")

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], observation: Literal["pair", "score"] = "pair") -> ObservationLaw:
        """The law in TRIM's published parameters, as plain JSON: of (least earlier score, current score), as published,
        or of the current score alone.
        """
        if observation not in ("pair", "score"):
            raise DataError(f'observation is {observation!r}; give "pair" or "score"')
        table = next(iter(published_part(d, "observation").values()))
        pairs, rows = table["pairs"], table["prob"]
        bins = round(len(pairs) ** 0.5)
        if [tuple(int(value * bins) for value in pair) for pair in pairs] != [divmod(i, bins) for i in range(bins**2)]:
            raise DataError("observation.pairs is not a square grid of bin centres; give TRIM's published layout")
        law = cls(tuple(i / bins for i in range(bins + 1)), (rows[0], rows[1], rows[2]), pair=True)
        return law if observation == "pair" else law.score_only()

    @property
    def bins(self) -> int:
        """Number of bins of a score."""
        return len(self.edges) - 1

    def score_only(self) -> ObservationLaw:
        """The law of the current score alone."""
        if not self.pair:
            return self
        first, second, third = (tuple(sum(row[i :: self.bins]) for i in range(self.bins)) for row in self.rows)
        return ObservationLaw(self.edges, (first, second, third))

    def column(self, score: float, least: float = 1.0) -> int:
        """Index in a row of what is seen: `score` in [0, 1], after steps of which the worst scored `least`.

        Raises `DataError` where a score is not in [0, 1].
        """
        _check_score(score)
        _check_score(least)
        bins = len(self.edges) - 1
        column = bisect_right(self.edges, score, 1, bins) - 1
        return column + bins * (bisect_right(self.edges, least, 1, bins) - 1) if self.pair else column

    def likelihoods(self, score: float, least: float = 1.0) -> Belief:
        """P(what is seen | state) of the three states; see `column`."""
        return self.columns[self.column(score, least)]

    @cached_property
    def columns(self) -> tuple[Belief, ...]:
        """P(observation | state) of the three states, for each observation."""
        return tuple(zip(*self.rows, strict=True))


@dataclass(frozen=True)
class StepFilter:
    """The belief over (right, wrong earlier, wrong just now) at each drafted step of a solution.

    Before a draft, x is the chance that all steps so far are right; the draft is then right with p x, comes after an
    error with 1 - x, and is the first error with (1 - p) x. Its score turns that into the belief b. Keeping the draft
    gives x = b[0] for the next step, having strong model j write the step gives x = q_j (b[0] + b[2]).

    Args:
        law: of the score of a draft. A filter on the pair warns: it counts the least earlier score at every step.
        p_weak: p, chance that the weak model's next step is right after right ones.
        p_strong: q_j for each strong model; may be empty where none ever writes.
        history: "filter" is the above; "memoryless" takes x from `priors`, so that earlier scores do not matter, and
            "published" takes the normalised likelihoods alone (uniform prior), as TRIM's published code does.
        priors: of "memoryless": x before each step, the last one for all steps after it; see `with_priors`. Without
            any, x follows from who wrote the steps before (p or q_j for each).

    A score of None is no evidence, and so is an observation that was never seen in fitting: one to which the law gives
    no chance in any state that is possible leaves the belief at the prior. Raises `DataError` for what is no
    probability, here and in scores.

    Example:
        >>> law = ObservationLaw((0.0, 0.5, 1.0), ((0.2, 0.8), (0.7, 0.3), (0.9, 0.1)))
        >>> StepFilter(law, p_weak=0.8).beliefs([0.3]).round(2).tolist()
        [[0.47, 0.0, 0.53]]
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    law: ObservationLaw
    p_weak: float
    p_strong: Row = ()
    history: History = "filter"
    priors: Row = ()

    def __post_init__(self) -> None:
        check_probabilities("p_weak", [self.p_weak])
        for name in ("p_strong", "priors"):
            if getattr(self, name):
                check_probabilities(name, getattr(self, name))
        if self.history not in ("filter", "memoryless", "published"):
            raise DataError(f'history is {self.history!r}; give "filter", "memoryless" or "published"')
        if self.priors and self.history != "memoryless":
            raise DataError(f'priors need history="memoryless"; with {self.history!r} nothing reads them')
        if self.law.pair and self.history == "filter":
            warnings.warn(
                "the least earlier score is carried along from step to step, so a filter on the pair counts it again "
                "at every step; law.score_only() gives the law of the current score",
                stacklevel=3,
            )

    def beliefs(
        self,
        scores: Sequence[float | None],
        writers: Sequence[int] | None = None,
        own_scores: Sequence[float | None] | None = None,
    ) -> NDArray[np.float64]:
        """The belief at each of T drafted steps, once its score is seen and before it is decided on: shape (T, 3).

        Args:
            scores: of the drafts, None where one was not scored (or not written).
            writers: of the steps that stand: 0 where the draft was kept, j where strong model j (1-based) wrote it
                anew; None: every draft was kept. The last one has no effect.
            own_scores: of the steps that strong models wrote, None where unknown; with a law of pairs they count
                for the least earlier score.

        Raises `DataError` where lengths differ, a score is not in [0, 1] or there is no such strong model.
        """
        writers = [0] * len(scores) if writers is None else writers
        own_scores = [None] * len(scores) if own_scores is None else own_scores
        if not len(scores) == len(writers) == len(own_scores):
            lengths = f"{len(scores)} scores, {len(writers)} writers and {len(own_scores)} own_scores"
            raise DataError(f"there are {lengths}; give one of each for every step")
        return np.array(list(self._walk(zip(scores, writers, own_scores, strict=True)))).reshape(-1, 3)

    def belief(self, steps: Sequence[Step], draft: Step | None) -> Belief:
        """The belief at `draft` after `steps` of a trace; without a draft, the prior of one.

        A step that the weak model did not write is taken as the (first) strong model's. What was seen at it is then the
        score of the draft it replaced, the last of `discarded`; drafts drawn again before that are not looked at. An
        empty draft cannot be scored and counts as 0.0 here.
        """
        *_, last = self._walk([*map(_seen, steps), (None if draft is None else draft_score(draft), 0, None)])
        return last

    def _walk(self, seen: Iterable[Seen]) -> Iterator[Belief]:
        """The belief at each drafted step, from what is seen at them in turn."""
        x, least = self.priors[0] if self.priors else 1.0, 1.0
        for following, (score, writer, own) in enumerate(seen, start=1):
            belief = self.drafted(x, score, least)
            yield belief
            if self.history == "filter":
                x = self.committed(belief, writer)
            elif self.priors:
                x = self.priors[min(following, len(self.priors) - 1)]
            elif self.history == "memoryless":
                x = self.committed(self.drafted(x, None), writer)
            stands = own if writer else score
            if stands is not None:
                _check_score(stands)
                least = min(least, stands)

    def drafted(self, x: float, score: float | None, least: float = 1.0) -> Belief:
        """The belief at a draft with `score`, where all steps before are right with chance `x` and the worst of them
        scored `least`.
        """
        prior = _UNIFORM if self.history == "published" else self._prior(x)
        if score is None:
            return prior
        return _posterior(prior, self.law.likelihoods(score, least))[0]

    def committed(self, belief: Belief, writer: int = 0) -> float:
        """The chance that all steps are right once the one with `belief` is kept (0) or written by strong model
        `writer` (1-based).
        """
        if not writer:
            return belief[0]
        if not 0 < writer <= len(self.p_strong):
            raise DataError(
                f"writer is {writer}, but p_strong has {len(self.p_strong)} entries; give one for each model"
            )
        return self.p_strong[writer - 1] * (belief[0] + belief[2])

    def with_priors(self, rule: Callable[[int, Belief], int], steps: int) -> StepFilter:
        """The memoryless filter with the true prior of each step, for when `rule` decides at every step.

        `rule(step, belief)` is the writer (see `beliefs`). Under a memoryless rule the share of solutions that are
        right before each step follows from the model alone; observations are drawn from `law` anew at each step.
        """
        x, priors = 1.0, list[float]()
        for step in range(steps):
            priors.append(x)
            prior, x = self._prior(x), 0.0
            for likelihoods in self.law.columns:
                belief, chance = _posterior(prior, likelihoods)
                x += chance * self.committed(belief, rule(step, belief))
            x = min(x, 1.0)
        return replace(self, history="memoryless", priors=tuple(priors))

    def _prior(self, x: float) -> Belief:
        return self.p_weak * x, 1.0 - x, (1.0 - self.p_weak) * x


Seen = tuple[float | None, int, float | None]  # score of the draft, who wrote the step that stands, its own score
_UNIFORM: Belief = (1 / 3, 1 / 3, 1 / 3)


def _posterior(prior: Belief, likelihoods: Belief) -> tuple[Belief, float]:
    """The belief after an observation, and the chance of that observation; the prior where it has none."""
    right, earlier, now = prior[0] * likelihoods[0], prior[1] * likelihoods[1], prior[2] * likelihoods[2]
    mass = right + earlier + now
    return ((right / mass, earlier / mass, now / mass) if mass > 0 else prior), mass


def _seen(step: Step) -> Seen:
    if step.author == "weak":
        return step.score, 0, None
    return draft_score(step.discarded[-1]) if step.discarded else None, 1, step.score


def draft_score(draft: Step) -> float | None:
    """A draft's score; an empty one cannot be scored and counts as 0.0.

    >>> draft_score(Step("So 3.", "weak", 0.3)), draft_score(Step("", "weak")), draft_score(Step("So 3.", "weak"))
    (0.3, 0.0, None)
    """
    return draft.score if draft.score is not None or draft.text.strip() else 0.0


def check_probabilities(name: str, values: Sequence[float]) -> None:
    """Raises `DataError` naming `name` unless `values` are probabilities, at least one.

    >>> check_probabilities("hazard", [0.0, 0.2, 1.0])  # and raises for [0.5, 1.2]
    """
    if not values:
        raise DataError(f"{name} is empty; give at least one probability")
    for value in values:
        if not 0 <= value <= 1:
            raise DataError(f"{name} has {value!r}; a probability lies in [0, 1]")


def check_rows(name: str, rows: Sequence[Sequence[float]]) -> None:
    """Raises `DataError` naming `name` unless `rows` are three distributions over the same observations.

    >>> check_rows("observation", [(0.2, 0.8), (0.7, 0.3), (0.9, 0.1)])  # and raises for (0.2, 0.9)
    """
    lengths = [len(row) for row in rows]
    if len(lengths) != 3 or len(set(lengths)) != 1 or not lengths[0]:
        raise DataError(f"{name} has rows of lengths {lengths}; give three of one length, one for each state")
    for state, row in enumerate(rows):
        if not all(value >= 0 for value in row) or not abs(sum(row) - 1.0) <= _SUM:
            raise DataError(
                f"{name}[{state}] has {min(row):.9g} as its least entry and adds up to {sum(row):.9g}; "
                "give probabilities that add up to 1"
            )


def published_part(d: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """The first part of TRIM's published parameters whose key begins with `prefix`; raises `DataError` without one.

    >>> published_part({"terminal_math": {"slm": 3}, "defaults": {"p_slm": 0.8}}, "terminal")
    {'slm': 3}
    """
    for key, part in d.items():
        if key.startswith(prefix) and isinstance(part, Mapping) and part:
            return part
    raise DataError(f"the parameters have no {prefix!r}, only {', '.join(map(repr, d))}; give TRIM's published layout")


def _check_score(value: float) -> None:
    if not 0 <= value <= 1:
        raise DataError(f"score is {value!r}; give a probability in [0, 1], or None where a step was not scored")
