"""Process reward models behind one protocol: the probability that each step is right, given all before it.

What `LabelTokenScorer` does differently from Math-Shepherd (arXiv 2312.08935):
1. One marker token stands after every step, at the end of its blank line, and stays in the context.
2. The score is the softmax over two label tokens alone, read at the marker; the label itself is never written.
3. A step appended to a known prefix costs its own tokens and the marker: the prefix is in the engine's cache and its
   scores are kept.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import takewhile
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from stepwise.errors import ConfigError, ScorerError
from stepwise.prompt import SolvePrompt
from stepwise.types import Problem, Usage, as_problem

if TYPE_CHECKING:
    from stepwise.config import ScorerConfig
    from stepwise.engine import Engine

Item = tuple[Problem | str, Sequence[str]]


@runtime_checkable
class Scorer(Protocol):
    """One probability per step. `incremental`: a step appended to a solution scored before costs its own tokens only.

    `usage` is what this scorer has spent since it was loaded; `parameters` is the number of weights, None if unknown.
    """

    name: str
    incremental: bool
    parameters: int | None
    usage: Usage

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """Scores in [0, 1] for each (problem, steps), one per step."""
        ...

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        ...


class Scored(NamedTuple):
    """Scores of one solution, and what scoring it cost; `error` says what happened where it could not be scored."""

    scores: list[float]
    usage: Usage
    error: str = ""

    def checked(self, name: str, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """The scores; raises `ScorerError` for an error, and for what `validate_scores` refuses."""
        if self.error:
            raise ScorerError(f"scorer {name!r}, problem {as_problem(problem).id!r}: {self.error}")
        return validate_scores(name, problem, steps, self.scores)


def validate_scores(name: str, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> list[float]:
    """`scores` as a list of floats; raises `ScorerError` unless there is one per step, each a number in [0, 1]."""
    where = f"scorer {name!r}, problem {as_problem(problem).id!r}"
    if len(scores) != len(steps):
        raise ScorerError(
            f"{where}: {len(scores)} scores for {len(steps)} steps; a scorer must return one probability per step"
        )
    for index, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise ScorerError(
                f"{where}, step {index}: the score is {score!r}; it must be a probability in [0, 1] "
                "(a logit must go through a sigmoid or softmax first)"
            )
    return [float(score) for score in scores]


def score_items(scorer: Scorer, items: Sequence[Item]) -> list[Scored]:
    """Validated scores (or an error) and the cost of each item, from any scorer; how the library asks for scores.

    A scorer with a method `score_detailed(items) -> list[Scored]` says itself what each item cost. For another, what
    its `usage` grew by is divided over the items: exact in the sum, as long as no other thread uses the scorer
    meanwhile.
    """
    detailed: Callable[[Sequence[Item]], list[Scored]] | None = getattr(scorer, "score_detailed", None)
    if detailed is not None:
        results = detailed(items)
    else:
        before = scorer.usage
        rows = scorer.score_batch(items)
        results = [
            Scored(row, usage) for row, usage in zip(rows, _shares(before, scorer.usage, len(rows)), strict=True)
        ]
    if len(results) != len(items):
        raise ScorerError(
            f"scorer {scorer.name!r}: {len(results)} results for {len(items)} solutions; return one list per solution"
        )
    return [
        result if result.error else result._replace(scores=result.checked(scorer.name, *item))
        for item, result in zip(items, results, strict=True)
    ]


def _shares(before: Usage, after: Usage, n: int) -> list[Usage]:
    """`after` - `before` in `n` parts that add up to it, the larger ones first."""
    counts = ("calls", "prompt_tokens", "evaluated_tokens", "generated_tokens", "retries")
    grown = {key: getattr(after, key) - getattr(before, key) for key in counts}
    cost = None if after.cost is None else (after.cost - (before.cost or 0.0)) / max(n, 1)
    return [
        Usage(after.model, **{key: total // n + (place < total % n) for key, total in grown.items()}, cost=cost)
        for place in range(n)
    ]


class LabelTokenScorer:
    """P(step is right) from two label tokens, read at a marker after each step (Math-Shepherd's way), on the engine.

    A solution is scored as: the solve prompt's ids, then for each step its ids with the blank line after it and one
    marker token. The score is softmax over the logits of `good` and `bad` at the marker. Scores are kept per prefix,
    up to `memory` of them, so a known solution costs nothing and an appended step its own tokens and the marker.
    Raises `ConfigError` when the vocabulary lacks one of the three tokens. Thread safe.
    """

    incremental = True

    def __init__(
        self,
        engine: Engine,
        *,
        prompt: SolvePrompt | None = None,
        marker: str = "<|score|>",
        good: str = "<|good|>",
        bad: str = "<|bad|>",
        memory: int = 200_000,
    ):
        self.name = engine.name
        self.parameters: int | None = engine.parameters
        self.usage = Usage(self.name)
        self.prompt = prompt or SolvePrompt()
        self.engine = engine
        self.memory = memory
        self._marker, self._good, self._bad = (engine.token_id(token) for token in (marker, good, bad))
        self._step_ids = lru_cache(maxsize=16_384)(engine.step_ids)
        self._prompt_ids = lru_cache(maxsize=1_024)(lambda question: engine.prompt_ids(self.prompt, question))
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._lock = Lock()

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """Scores and cost of each item; where the engine fails for one (a solution too long), its `error` says why."""
        keys = [self._keys(as_problem(problem).question, steps) for problem, steps in items]
        with self._lock:
            scores = [[self._known[key] for key in takewhile(self._known.__contains__, row)] for row in keys]
        todo = [place for place, row in enumerate(keys) if len(scores[place]) < len(row)]
        sequences = [self._sequence(*items[place]) for place in todo]
        wanted = [markers[len(scores[place]) :] for place, (_, markers) in zip(todo, sequences, strict=True)]
        read = self.engine.score([ids for ids, _ in sequences], wanted, [self._good, self._bad]) if todo else []
        results = [Scored(known, Usage(self.name)) for known in scores]
        with self._lock:
            for place, (ids, _), found in zip(todo, sequences, read, strict=True):
                fresh = [_share(good, bad) for good, bad in found.logits.tolist()]
                usage = Usage(self.name, 1, len(ids), found.evaluated_tokens)
                if not found.error:
                    self._known.update(zip(keys[place][len(scores[place]) :], fresh, strict=True))
                results[place] = Scored([*scores[place], *fresh], usage, found.error)
                self.usage += usage
            while len(self._known) > self.memory:
                self._known.popitem(last=False)
        return results

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """Scores in [0, 1] for each (problem, steps); raises `ScorerError` where the engine fails for one."""
        return [
            scored.checked(self.name, *item) for item, scored in zip(items, self.score_detailed(items), strict=True)
        ]

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        return self.score_batch([(problem, steps)])[0]

    def forget(self) -> None:
        """Drop every score and cached prefix, so that what follows is measured from cold."""
        with self._lock:
            self._known.clear()
        self.engine.forget()

    def close(self) -> None:
        """Free the engine; calling it twice does nothing."""
        self.engine.close()

    def _sequence(self, problem: Problem | str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """Ids of the whole solution, and the position of the marker after each step."""
        ids, markers = list(self._prompt_ids(as_problem(problem).question)), []
        for text in steps:
            ids += [*self._step_ids(text), self._marker]
            markers.append(len(ids) - 1)
        return ids, markers

    def _keys(self, question: str, steps: Sequence[str]) -> list[bytes]:
        """A key for each prefix of the solution; the engine's name tells adapters apart."""
        key, keys = hashlib.sha256(f"{self.engine.name}\n{question}".encode()).digest(), []
        for text in steps:
            key = hashlib.sha256(key + text.encode()).digest()
            keys.append(key)
        return keys


def _share(good: float, bad: float) -> float:
    """Softmax of `good` among the two."""
    gap = bad - good
    return 1 / (1 + math.exp(gap)) if gap < 0 else math.exp(-gap) / (1 + math.exp(-gap))


class ConstantScorer:
    """Gives every step the score `p`: a control, and a stand-in where a scorer is asked for but not wanted."""

    incremental = True
    parameters: int | None = 0

    def __init__(self, p: float):
        self.name = f"constant {p}"
        self.usage = Usage(self.name)
        self.p = validate_scores(self.name, "", [""], [p])[0]

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """`p` for each step."""
        return [[self.p] * len(steps) for _, steps in items]

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        return self.score_batch([(problem, steps)])[0]


class PerfectScorer:
    """Knows which steps are right: the bound that no scorer beats, where a checker exists (the lab's problems have
    one).

    `check(problem, steps)` says of each step whether it is right given the problem and the steps before it as
    written; a right step scores 1.0, a wrong one 0.0. Free of cost.
    """

    incremental = True
    parameters: int | None = 0

    def __init__(self, check: Callable[[Problem, Sequence[str]], Sequence[bool]], name: str = "perfect"):
        self.name = name
        self.usage = Usage(name)
        self.check = check

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """1.0 for each right step, 0.0 for each wrong one; raises `ScorerError` when the checker's verdicts do not
        fit.
        """
        rows = [[1.0 if right else 0.0 for right in self.check(as_problem(problem), steps)] for problem, steps in items]
        return [validate_scores(self.name, *item, row) for item, row in zip(items, rows, strict=True)]

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        return self.score_batch([(problem, steps)])[0]


def load_scorer(spec: str | ScorerConfig | Scorer, *, prompt: SolvePrompt | None = None) -> Scorer:
    """The scorer that `spec` names: "llamacpp/lab-scorer" or a `ScorerConfig` (a GGUF with label tokens), or a scorer
    as it is.

    `prompt` must be the one that the solutions are written under. Raises `ConfigError` for a model behind an API, which
    gives no logits of chosen tokens, and for a vocabulary without the label tokens; `BackendError` when it cannot be
    loaded.
    """
    from stepwise.config import ScorerConfig

    if isinstance(spec, str):
        spec = ScorerConfig(model=spec)
    if not isinstance(spec, ScorerConfig):
        return spec
    if not spec.local:
        raise ConfigError(
            f'scorer.model is "{spec.model}"; a label-token scorer reads the logits of a local model: '
            'write model = "llamacpp/path.gguf"'
        )
    from stepwise.engine import load_engine

    return LabelTokenScorer(load_engine(spec), prompt=prompt, marker=spec.marker, good=spec.good, bad=spec.bad)
