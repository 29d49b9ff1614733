"""Models that follow a script: they stand in for backends and scorers, count what they are asked, and can be told to
fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stepwise.errors import BackendError
from stepwise.models.base import Capabilities, Completion, Request
from stepwise.models.scorers import BatchScorer, Item, Scored
from stepwise.models.wrapped import BatchGenerator
from stepwise.types import Finish, Problem, Usage, as_problem


@dataclass(frozen=True)
class Line:
    """One scripted continuation; `finish` "" means "answer" where the text has a box, else "step"."""

    text: str = ""
    finish: Finish | str = ""
    error: str = ""


Script = Callable[[Problem, tuple[str, ...], int], "str | Line"]


def n_tokens(text: str) -> int:
    """The fake tokenizer: words, and one for the blank line or the end of the message."""
    return len(text.split()) + 1


class ScriptedBackend(BatchGenerator):
    """Continues solutions from a script; requests are recorded batch by batch in `batches`.

    The script is a mapping from problem id to the steps of a solution (the step at the length of the prefix is given,
    an end-of-message after the last), or a function of (problem, prefix texts, seed of the sample).
    `evaluated_tokens` counts the tokens of a prefix that were never part of an earlier prefix or continuation of the
    same problem, as a perfect cache would.
    """

    def __init__(
        self, script: Script | Mapping[str, Sequence[str | Line]], name: str = "scripted", parameters: int | None = 1000
    ):
        super().__init__()
        self.name = name
        self.parameters = parameters
        self.capabilities = Capabilities(prefill=True, batch=True, token_ids=True)
        self.batches: list[list[Request]] = []
        self.closed = 0
        self.broken = False
        self._script = script if callable(script) else _follow(script)
        self._known: dict[str, set[tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in order."""
        return [request for batch in self.batches for request in batch]

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        with self._lock:
            if self.broken:
                raise BackendError(f"{self.name} was told to fail")
            self.batches.append(list(requests))
            return [self._one(at, sample, r) for at, r in enumerate(requests) for sample in range(r.n)]

    def _one(self, at: int, sample: int, request: Request) -> Completion:
        prefix = tuple(step.text for step in request.prefix)
        line = self._script(request.problem, prefix, request.seed + sample)
        line = line if isinstance(line, Line) else Line(line)
        known = self._known.setdefault(request.problem.id, set())
        texts = (request.problem.question, *prefix)
        fresh = sum(n_tokens(text) for i, text in enumerate(texts) if texts[: i + 1] not in known)
        known.update(texts[: i + 1] for i in range(len(texts)))
        prompt = sum(map(n_tokens, texts))
        if line.finish == "error" or line.error:
            return Completion(at, sample, "", "error", usage=Usage(self.name, 1, prompt), error=line.error or "failed")
        text, finish = line.text, line.finish or ("answer" if "\\boxed{" in line.text else "step")
        words = n_tokens(text)
        if words > request.max_tokens:
            text, finish, words = " ".join(text.split()[: request.max_tokens]), "length", request.max_tokens
        known.add((*texts, text))
        usage = Usage(self.name, 1, prompt, fresh, words, cost=0.0)
        return Completion(at, sample, text, finish, tuple(range(words)), None, usage)

    def close(self) -> None:
        self.closed += 1


def _follow(script: Mapping[str, Sequence[str | Line]]) -> Script:
    def line(problem: Problem, prefix: tuple[str, ...], seed: int) -> str | Line:
        steps = script[problem.id]
        return steps[len(prefix)] if len(prefix) < len(steps) else Line("", "eos")

    return line


class ScriptedScorer(BatchScorer):
    """Scores from a mapping of step texts (`default` for others) or from a function of (problem, steps); counts its
    calls.
    """

    @property
    def identity(self) -> str:
        """Its script may be a method of anything."""
        return self.name

    def __init__(
        self,
        script: Mapping[str, float] | Callable[[Problem, tuple[str, ...]], Sequence[float]],
        default: float = 0.9,
        name: str = "scripted-scorer",
    ):
        super().__init__(name)
        self.incremental = True
        self.parameters: int | None = 10
        self.batches: list[list[tuple[Problem, tuple[str, ...]]]] = []
        self._script = script if callable(script) else lambda _, steps: [script.get(step, default) for step in steps]
        self._known: set[tuple[str, ...]] = set()

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        batch = [(as_problem(problem), tuple(steps)) for problem, steps in items]
        self.batches.append(batch)
        results = []
        for problem, steps in batch:
            fresh = [i for i in range(1, len(steps) + 1) if (problem.id, *steps[:i]) not in self._known]
            self._known.update((problem.id, *steps[:i]) for i in fresh)
            prompt = sum(map(n_tokens, steps))
            usage = Usage(self.name, 1, prompt, sum(n_tokens(steps[i - 1]) for i in fresh))
            self.usage += usage
            results.append(Scored(list(self._script(problem, steps)), usage))
        return results
