"""A scorer around a scorer that asks for the score of every solution once."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from stepwise.models.scorers.base import Item, Scored, Scorer, score_items
from stepwise.models.store import Answer, CallCache, key_of
from stepwise.types import Problem, Usage, as_problem

_USAGE = TypeAdapter(Usage)


class CachedScorer:
    """`scorer`, whose scores are kept in `cache` (None: in memory). Thread safe where `scorer` is.

    What known scores cost is told as if they were computed now: nothing for what was asked since the last `forget()`;
    where an incremental scorer says what reading a solution in one call cost, the tokens that it has not read since
    then; else what it was. `settings`, plain JSON, tells scorers of one name apart. `usage` is what the scorer itself
    was asked for. Where a solution cannot be scored, it is tried again. Everything else is the scorer's own.
    """

    def __init__(
        self, scorer: Scorer, cache: CallCache | None = None, *, role: str = "scorer", settings: Any = None
    ) -> None:
        self.scorer, self.role, self.settings = scorer, role, settings
        self.cache = cache if cache is not None else CallCache()
        self._read: dict[str, int] = {}  # what was asked since `forget`: length of the solution in tokens
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name == "scorer":  # not made yet, as while it is copied
            raise AttributeError(name)
        return getattr(self.scorer, name)

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """Scores and cost of each item; where one cannot be scored, its `error` says why."""
        rows = [self._keys(*item) for item in items]
        found = {row[-1]: self.cache.find(row[-1]) for row in rows}
        wanted = {row[-1]: item for row, item in zip(rows, items, strict=True) if found[row[-1]] is None}
        self.cache.count(self.role, len(items) - len(wanted), len(wanted))
        for (problem, steps), row in zip(items, rows, strict=True):
            if found[row[-1]] is not None:
                self._remind(problem, steps, found[row[-1]]["scores"])
        made = dict(zip(wanted, score_items(self.scorer, list(wanted.values())) if wanted else [], strict=True))
        results, answers, failed = [], [], dict[str, Scored]()
        for row, (problem, _) in zip(rows, items, strict=True):
            fresh = made.pop(row[-1], None)  # once: a second item like it finds it known
            if fresh is not None:
                value = found[row[-1]] = None if fresh.error else self._kept(fresh, row)
                failed |= {row[-1]: fresh} if fresh.error else {}
                answers.append(Answer(row[-1], self.role, as_problem(problem).id, fresh.usage, value))
            value = found[row[-1]]
            results.append(Scored(value["scores"], self._told(value, row)) if value else failed[row[-1]])
        if answers:
            self.cache.add(answers)
        return results

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """Scores in [0, 1] for each (problem, steps); raises `ScorerError` where one cannot be scored."""
        return [
            scored.checked(self.name, *item) for item, scored in zip(items, self.score_detailed(items), strict=True)
        ]

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        return self.score_batch([(problem, steps)])[0]

    def paid(self, problem: Problem | str, steps: Sequence[str]) -> bool:
        """Whether the scores are known and were counted before; see `CallCache.paid`."""
        return self.cache.replays_are_free and self.cache.paid(self._keys(problem, steps)[-1])

    def forget(self) -> None:
        """Count from cold what is read from now on. The scores stay, and so does what the model holds."""
        with self._lock:
            self._read = {}

    def _kept(self, fresh: Scored, row: Sequence[str]) -> dict[str, Any]:
        """What is kept of new scores: with what they cost whoever had asked about the first `after` steps before."""
        after, usage = self._after(row), fresh.usage
        if after >= 0:  # the scorer may have forgotten what it read
            usage = self._reading(usage, row, after, usage.evaluated_tokens)
        return {"scores": fresh.scores, "usage": _USAGE.dump_python(usage, exclude_defaults=True), "after": after}

    def _told(self, value: Mapping[str, Any], row: Sequence[str]) -> Usage:
        """What the scores cost now; from here on the solution is known to have been asked about."""
        after, usage = self._after(row), _USAGE.validate_python(value["usage"])
        if after == len(row) - 1:
            return Usage(self.name)
        with self._lock:
            self._read[row[-1]] = usage.prompt_tokens
        return usage if after == value["after"] else self._reading(usage, row, after, usage.prompt_tokens)

    def _reading(self, usage: Usage, row: Sequence[str], after: int, most: int) -> Usage:
        """`usage` with what follows on the first `after` steps evaluated, at most `most` tokens."""
        told = hasattr(self.scorer, "score_detailed")  # else a share of what a whole batch cost
        if not told or not self.scorer.incremental or usage.calls != 1 or usage.generated_tokens:
            return usage
        read = self._read[row[after]] if after >= 0 else 0
        return dataclasses.replace(usage, evaluated_tokens=max(0, min(most, usage.prompt_tokens - read)))

    def _after(self, row: Sequence[str]) -> int:
        """How many steps of the solution were asked about since `forget`, -1 where it was not asked about at all."""
        with self._lock:
            return next((i for i in reversed(range(len(row))) if row[i] in self._read), -1)

    def _remind(self, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> None:
        """Tell a scorer that keeps scores itself those that it may have made in another process."""
        learn = getattr(self.scorer, "learn", None)
        if learn is not None:
            learn(problem, steps, scores)

    def _keys(self, problem: Problem | str, steps: Sequence[str]) -> list[str]:
        """A key for the question and each further step."""
        name = getattr(self.scorer, "identity", self.scorer.name)
        asked = as_problem(problem)
        prompt = getattr(getattr(self.scorer, "prompt", None), "hash", "")
        keys = [key_of({"scorer": [name, self.settings], "prompt": prompt, "problem": [asked.id, asked.question]})]
        for text in steps:
            keys.append(key_of({"scored": keys[-1], "step": text}))
        return keys
