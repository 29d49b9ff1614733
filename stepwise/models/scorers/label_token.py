"""Scores read from label tokens.

What `LabelTokenScorer` does differently from Math-Shepherd (arXiv 2312.08935):
1. One marker token stands after every step, at the end of its blank line, and stays in the context.
2. The score is the softmax over two label tokens alone, read at the marker; the label itself is never written.
3. A step appended to a known prefix costs its own tokens and the marker on the engine: the prefix is in its cache and
   the scores are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from stepwise.models.engine import Engine
from stepwise.models.scorers.base import Scored
from stepwise.models.scorers.prefix import PrefixScorer, Task
from stepwise.prompt import SolvePrompt
from stepwise.types import Problem, Usage


class LabelTokenScorer(PrefixScorer):
    """P(step is right) from two label tokens, read at a marker after each step (Math-Shepherd's way).

    A solution is scored as: the solve prompt, then each step with the blank line after it and one marker token. The
    score is softmax over the logits of `good` and `bad` at the marker. Raises `ConfigError` when the vocabulary lacks
    one of the three tokens.
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
        super().__init__(engine.name, memory=memory)
        self.parameters, self.memory_bytes = engine.parameters, engine.memory_bytes
        self.prompt = prompt or SolvePrompt()
        self.engine = engine
        self._marker, self._good, self._bad = (engine.token_id(token) for token in (marker, good, bad))
        self._step_ids = lru_cache(maxsize=16_384)(engine.step_ids)
        self._prompt_ids = lru_cache(maxsize=1_024)(lambda question: engine.prompt_ids(self.prompt, question))

    @property
    def identity(self) -> str:
        """The engine's name of now: an adapter may have been attached since."""
        return self.engine.name

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`; all tasks go to the engine in one call."""
        sequences = [self._sequence(task) for task in tasks]
        read = self.engine.score(
            [ids for ids, _ in sequences],
            [markers[task.first :] for task, (_, markers) in zip(tasks, sequences, strict=True)],
            [self._good, self._bad],
        )
        return [self._scored(len(ids), found) for (ids, _), found in zip(sequences, read, strict=True)]

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """On the engine, a solution joins the running batch as soon as it is asked about."""
        begun = self._begin(problem, steps)
        if begun.task is None:
            return self._end(begun, None)
        ids, markers = self._sequence(begun.task)
        (read,) = await self.engine.ascore([ids], [markers[begun.task.first :]], [self._good, self._bad])
        return self._end(begun, self._scored(len(ids), read))

    @property
    def engines(self) -> tuple[Any, ...]:
        """The engine."""
        return (self.engine,)

    @property
    def prompt_hash(self) -> str:  # type: ignore[override]
        """Of the solve prompt."""
        return self.prompt.hash

    def reset_cache(self) -> None:
        """Drop every score and cached prefix, so that what follows is measured from cold."""
        super().reset_cache()
        self.engine.reset_cache()

    def close(self) -> None:
        """Free the engine; calling it twice does nothing."""
        super().reset_cache()
        self.engine.close()

    def _scored(self, length: int, reading: Any) -> Scored:
        """The scores of a solution of `length` pieces, whose reading counts as one call on all of them."""
        usage = Usage(self.name, 1, length, reading.evaluated_tokens)
        if reading.error:
            return Scored([], usage, reading.error)
        return Scored([label_score(good, bad) for good, bad in reading.logits.tolist()], usage)

    def _sequence(self, task: Task) -> tuple[list[Any], list[int]]:
        """The whole solution, and the position of the marker after each step."""
        ids, markers = list(self._prompt_ids(task.question)), []
        for text in task.steps:
            ids += [*self._step_ids(text), self._marker]
            markers.append(len(ids) - 1)
        return ids, markers


def label_score(good: float, bad: float) -> float:
    """Softmax of `good` among the two logits (or log-probabilities)."""
    gap = bad - good
    return 1 / (1 + math.exp(gap)) if gap < 0 else math.exp(-gap) / (1 + math.exp(-gap))
