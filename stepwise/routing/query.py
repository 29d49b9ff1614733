"""Query-level baselines: one model for a whole problem, chosen at random, by the question, or by checking an answer.

What differs from the papers:
1. `QueryClassifier` has RouteLLM's idea (arXiv 2406.18665): a model of "the strong model is needed", trained on labels,
   from the question alone. RouteLLM learns from human preferences with embeddings or a language model; here it is a
   logistic regression on hashed word n-grams, fitted on the graded traces of the two models at hand.
2. `Cascade` has AutoMix's (arXiv 2310.12963): the weak model solves, the solution is checked, and below a threshold the
   strong model solves the problem anew. AutoMix's check has three examples in its prompt and its router may be a POMDP;
   here the check has none and the router is the threshold. The scorer's least score is a second kind of check.
3. The weak model's discarded solution is paid for, in tokens and in parameter-tokens.
"""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.errors import DataError
from stepwise.models.scorers.judge import parse
from stepwise.routing.policy import Action, HandOver, Keep, Look, View, When
from stepwise.types import Trace

_FROZEN = ConfigDict(extra="forbid", allow_inf_nan=False)
_WORD = re.compile(r"\d+|[^\W\d]+|\S")


@dataclass(frozen=True, config=_FROZEN)
class QueryRandom:
    """Each problem goes to the strong model whole with probability `p`; with one seed a higher rate only adds."""

    p: float = Field(default=0.3, ge=0, le=1)
    seed: int = 0

    name: ClassVar[str] = "query_random"
    when: ClassVar[When] = "question"
    needs_scores: ClassVar[bool] = False

    def decide(self, view: View) -> Action:
        """Hand over with probability `p`."""
        draw = view.uniform(self.seed)
        reason = f"draw {draw:.2f} {'<' if draw < self.p else '>='} {self.p:.2f}"
        return HandOver(reason) if draw < self.p else Keep(reason)

    @property
    def point(self) -> float | None:
        """The rate `p`."""
        return self.p

    def at(self, x: float) -> Self:
        """The same draws at rate `x`."""
        return dataclasses.replace(self, p=x)


@dataclass(frozen=True, config=_FROZEN)
class QueryClassifier:
    """Hands a problem over iff its chance to need the strong model, by its question, is above `threshold`, strictly.

    Args:
        weights: of the hashed n-grams, one for each bucket; `query_fit.fit_query_classifier` makes them.
        bias: added to their sum.
        threshold: in [0, 1]; the operating point.
        fitted_on: keys of the questions that the weights were fitted on; see `query_fit.refuse_overlap`.
        calibrated_on: likewise of those that the threshold was chosen on.
    """

    weights: Annotated[tuple[float, ...], Field(min_length=1)] = dataclasses.field(repr=False)
    bias: float
    threshold: float = Field(default=0.5, ge=0, le=1)
    fitted_on: tuple[str, ...] = Field(default=(), repr=False)
    calibrated_on: tuple[str, ...] = Field(default=(), repr=False)

    name: ClassVar[str] = "query_classifier"
    when: ClassVar[When] = "question"
    needs_scores: ClassVar[bool] = False

    def chance(self, question: str) -> float:
        """The chance that this question needs the strong model, in [0, 1]."""
        where, height = buckets(question, len(self.weights))
        total = self.bias + height * sum(self.weights[i] for i in where)
        return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, total))))

    def decide(self, view: View) -> Action:
        """Hand over iff the chance is above the threshold."""
        chance = self.chance(view.problem.question)
        above = chance > self.threshold
        reason = f"needs the strong model with {chance:.3f} {'>' if above else '<='} {self.threshold:.3f}"
        return HandOver(reason) if above else Keep(reason)

    @property
    def point(self) -> float | None:
        """The threshold."""
        return self.threshold

    def at(self, x: float) -> Self:
        """The policy with threshold `x`."""
        return dataclasses.replace(self, threshold=x)


@dataclass(frozen=True, config=_FROZEN)
class Cascade:
    """The weak model solves; a solution whose check is below `threshold`, strictly, or that has no answer is handed
    over: the strong model solves the problem anew.

    Args:
        check: "verification", the share of `samples` answers of the weak model that call its own solution right (those
            that cannot be read count as no), or "least_score", the least of the scorer's scores.
        threshold: in [0, 1.01]; the operating point. Above 1 everything is handed over.
        samples: of the verification.
        calibrated_on: keys of the questions that the threshold was chosen on; see `query_fit.refuse_overlap`.
    """

    check: Literal["verification", "least_score"] = "verification"
    threshold: float = Field(default=0.5, ge=0, le=1.01)
    samples: int = Field(default=8, ge=1, le=64)
    calibrated_on: tuple[str, ...] = Field(default=(), repr=False)

    name: ClassVar[str] = "cascade"
    when: ClassVar[When] = "solution"
    needs_scores: ClassVar[bool] = False

    @property
    def looks(self) -> Mapping[str, str]:
        """See `Policy`."""
        return {"verification" if self.check == "verification" else "scores": self.name}

    @property
    def calls_per_step(self) -> Mapping[str, int]:
        """See `Policy`; the verification, which comes once, counts as if it came at every step."""
        return {"weak": 1 + (self.samples if self.check == "verification" else 0)}

    @property
    def family(self) -> str:
        """What a comparison calls it at any threshold."""
        return f"{self.name} by {self.check.replace('_', ' ')}"

    def value(self, view: View) -> float | None:
        """The check of a whole solution, None before it was looked for."""
        if next(iter(self.looks)) not in view.looked:
            return None
        if self.check == "verification":
            return sum(said is True for said in view.verification) / self.samples
        return min((score for score in view.scores if score is not None), default=0.0)

    def checked(self, trace: Trace) -> float:
        """The check of the weak model's solution as a trace of this cascade at threshold 0 tells it; -1 without an
        answer. Raises `DataError` where there is none.
        """
        if trace.finish != "answer" or any(step.author == "strong" for step in trace.steps):
            return -1.0
        scores = [step.score for step in trace.steps if step.score is not None]
        said = [parse(part.text, "verdict") for part in trace.abandoned if part.decision.startswith("verification")]
        if not (scores if self.check == "least_score" else said):
            raise DataError(
                f"the trace of problem {trace.problem.id!r} has no {self.check.replace('_', ' ')}; make it with this "
                "cascade at threshold 0"
            )
        return min(scores) if self.check == "least_score" else sum(value == 1.0 for value in said) / self.samples

    def decide(self, view: View) -> Action | Look:
        """Check the solution, then keep it or hand the problem over."""
        if view.ended != "answer":
            return HandOver(f"the weak model's solution ended in {view.ended!r}")
        value = self.value(view)
        if value is None:
            return Look("verification", self.samples) if self.check == "verification" else Look("scores")
        below = value < self.threshold
        reason = f"{self.check.replace('_', ' ')} {value:.3f} {'<' if below else '>='} {self.threshold:.3f}"
        return HandOver(reason) if below else Keep(reason)

    @property
    def point(self) -> float | None:
        """The threshold."""
        return self.threshold

    def at(self, x: float) -> Self:
        """The policy with threshold `x`."""
        return dataclasses.replace(self, threshold=x)


POLICIES: dict[str, Any] = {cls.name: cls for cls in (QueryRandom, QueryClassifier, Cascade)}


def buckets(question: str, size: int) -> tuple[list[int], float]:
    """Which of `size` buckets the 1- and 2-grams of a question's words fall into, and the height 1 / sqrt(how many).

    Words are taken in lower case and numbers by their count of digits, so that it is the kind of question that counts.
    The numbers of sentences and of numbers are n-grams too: they tell how long a solution will be.
    """
    words = [f"<{len(word)} digits>" if word.isdigit() else word for word in _WORD.findall(question.lower())]
    grams = {*words, *(f"{a} {b}" for a, b in pairwise(words))}
    grams |= {f"<{sum(word.endswith('digits>') for word in words)} numbers>", f"<{words.count('.')} sentences>"}
    found = sorted({zlib.crc32(gram.encode("utf-8", "replace")) % size for gram in grams})
    return found, 1.0 / math.sqrt(len(found))
