"""Scores read from label tokens.

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
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile
from threading import Lock
from typing import TYPE_CHECKING

from stepwise.prompt import SolvePrompt
from stepwise.scorers.base import Item, Scored
from stepwise.types import Problem, Usage, as_problem

if TYPE_CHECKING:
    from stepwise.engine import Engine


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
