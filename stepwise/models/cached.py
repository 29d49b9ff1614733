"""Wrappers that ask for every answer once: it is on disk when it arrives, and whoever asks the same finds it.

Policies that reach the same prefix of a solution ask for the same completion there (the router's seeds depend on the
place alone), so they share it: common random numbers make their comparison paired, and most of it free. Equal requests
in flight are asked once; the answer is kept even where the first who asked has gone meanwhile.

What a known answer cost is told as if it were made now. How many tokens a model evaluates depends on what it still
holds; so each answer is told as a model that keeps every prefix since the last `reset_cache()` would have it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from pydantic import TypeAdapter

from stepwise.errors import BudgetExceededError
from stepwise.models.api import SENDING
from stepwise.models.base import Backend, Completion, Generator, Request, first_of
from stepwise.models.driver import driver
from stepwise.models.engine.cache import PrefixTree, ids_array
from stepwise.models.failures import failure_of
from stepwise.models.scorers.base import Scored, Scorer, WrappedScorer
from stepwise.models.store import Answer, CallCache, key_of
from stepwise.models.wrapped import Wrapped
from stepwise.types import Problem, Usage, as_problem

_KEPT = TypeAdapter(list[Completion])
_USAGE = TypeAdapter(Usage)
_IN_KEY = ("stop", "max_tokens", "n", "temperature", "top_p", "top_k", "seed")


class _Flights:
    """Questions that are being asked, by event loop and key."""

    def __init__(self) -> None:
        self._tasks: dict[Any, asyncio.Task[Any]] = {}

    async def ask(self, key: Any, ask: Callable[[], Awaitable[Any]], remote: bool) -> tuple[Any, bool]:
        """The answer to `key`, and whether it was asked for here: of several who ask at once only the first does, and
        its cancellation does not end it for the others. What a server (`remote`) has been sent is waited for and kept
        also where the run stops.
        """
        place = (asyncio.get_running_loop(), key)
        task, first = self._tasks.get(place), False
        if task is None:
            task, first = asyncio.ensure_future(ask()), True
            self._tasks[place] = task
            task.add_done_callback(lambda _: self._tasks.pop(place, None))
            if remote and (running := driver()) is not None:
                running.flights.add(task)
                task.add_done_callback(running.flights.discard)
        return await asyncio.shield(task), first


class Stored(Wrapped):
    """`model`, whose completions are kept in `store` (None: in memory) under `role`. Thread safe where `model` is.

    Two requests are the same where model and adapter (their name), prompt, problem, the token ids of the prefix, all
    settings and the seed are; texts count where the model does not tell ids. One that wants fewer `top_logprobs` is
    answered from one that wanted more. What failed is asked for again, and counts in what was spent.

    Example:
        weak = Stored(sw.load_backend("llamacpp/lab-weak"), CallCache("answers.jsonl"), role="weak")
    """

    def __init__(self, model: Generator | Backend, store: CallCache | None = None, *, role: str = "model") -> None:
        super().__init__(model)
        self.role = role
        self.store = store if store is not None else CallCache()
        self._seen: PrefixTree[None] = PrefixTree()
        self._lock = threading.Lock()
        self._flights = _Flights()

    async def generate(self, request: Request) -> Completion:
        """The known completions, or the model's, which are kept: each call of a server by itself, when it answers."""
        if request.n > 1 and self.model.remote and self._find(self._key(request, []), request) is None:
            try:
                await self.model.ready()
            except BudgetExceededError as refusal:
                return Completion.of_failure(failure_of(refusal), n=request.n)
            parts = self.model.parts(request)
            if len(parts) > 1:
                return first_of([*chain(*[each.samples for each in await asyncio.gather(*map(self._one, parts))])])
        return await self._one(request)

    async def _one(self, request: Request) -> Completion:
        ids = self.model.prefix_ids(request)
        key = self._key(request, ids)
        samples, asked = self._find(key, request), False
        while samples is None:
            (samples, wanted), asked = await self._flights.ask(key, lambda: self._ask(key, request), self.model.remote)
            if wanted < request.top_logprobs and samples[0].failed is None:
                samples = None  # whoever asked first wanted less of it
        self.store.count(self.role, int(not asked), int(asked))
        told = [self._told(sample, request, ids) for sample in samples]
        return first_of(told if asked else [dataclasses.replace(sample, perhaps=Usage()) for sample in told])

    async def _ask(self, key: str, request: Request) -> tuple[list[Completion], int]:
        """Ask the model and keep what it says: the samples, and how many log-probabilities were asked for."""
        if self.model.remote:
            SENDING.set(lambda most: self.store.begin(key, self.role, request.problem.id, most))
        result = await self.model.generate(request)
        samples = [dataclasses.replace(sample, rest=()) for sample in result.samples]
        (usage, perhaps), value = result.costs, None
        if result.finish == "budget" and not usage.calls:  # nobody was asked
            return samples, request.top_logprobs
        if all(sample.failed is None for sample in samples):
            bare = [dataclasses.replace(sample, perhaps=Usage()) for sample in samples]
            rows = _KEPT.dump_python(bare, mode="json", exclude_defaults=True)
            value = {"top": request.top_logprobs, "made": rows}
        self.store.add([Answer(key, self.role, request.problem.id, usage, value, perhaps)])
        return samples, request.top_logprobs

    def _find(self, key: str, request: Request) -> list[Completion] | None:
        value = self.store.find(key)
        if value is None or value["top"] < request.top_logprobs:
            return None
        return _KEPT.validate_python(value["made"])

    def _told(self, sample: Completion, request: Request, ids: list[int]) -> Completion:
        """A sample as the answer to `request`."""
        top, usage = sample.top_logprobs, sample.usage
        if top is not None:
            top = tuple(row[: request.top_logprobs] for row in top) if request.top_logprobs else None
        if ids and sample.failed is None:
            usage = dataclasses.replace(usage, evaluated_tokens=self._fresh(ids, sample.token_ids))
        return dataclasses.replace(sample, request=0, usage=usage, top_logprobs=top)

    def _fresh(self, ids: list[int], drawn: Sequence[int]) -> int:
        """How many tokens of the prefix a model that keeps every prefix has to run through; it keeps this one too."""
        prefix = ids_array(ids)
        with self._lock:
            known = next((length for length, _ in self._seen.matches(prefix)), 0)
            self._seen.insert(prefix + ids_array(drawn[:-1]), None)  # the last one was drawn, not run through
        return len(ids) - min(known, len(ids) - 1)

    def _key(self, request: Request, ids: list[int]) -> str:
        name = self.model.name
        texts = [[step.text, step.token_ids if step.usage.model == name else ()] for step in request.prefix]
        parts = {field: getattr(request, field) for field in _IN_KEY}
        parts |= {"model": name, "prompt": self.model.prompt_hash}
        parts |= {"sample": request.sample} if request.sample else {}  # so that files of earlier versions are found
        parts |= {"marker": request.marker, "may_call": request.may_call} if request.marker else {}
        if request.messages:
            chat = {"messages": request.messages, "schema": request.schema, "options": request.options}
            return key_of({**parts, **chat, "problem": request.problem.id, "attempt": request.attempt})
        problem = [request.problem.id, request.problem.question]
        return key_of({**parts, "problem": problem, "prefix": ids or texts})

    def reset_cache(self) -> None:
        """Count from cold what is evaluated from now on. The completions stay, and so does what the model holds."""
        with self._lock:
            self._seen = PrefixTree()


class StoredScorer(WrappedScorer):
    """`scorer`, whose scores are kept in `store` (None: in memory). Thread safe where `scorer` is.

    What known scores cost: nothing for what was asked since the last `reset_cache()`; where an incremental scorer says
    what reading a solution in one call cost, the tokens that it has not read since then; else what it was. `settings`,
    plain JSON, tells scorers of one name apart. `usage` is what the scorer itself was asked for. Where a solution
    cannot be scored, it is tried again.

    Example:
        scorer = StoredScorer(sw.load_scorer("llamacpp/lab-scorer"), CallCache("answers.jsonl"))
    """

    def __init__(
        self,
        scorer: Scorer,
        store: CallCache | None = None,
        *,
        role: str = "scorer",
        settings: Any = None,
    ) -> None:
        super().__init__(scorer)
        self.role, self.settings = role, settings
        self.store = store if store is not None else CallCache()
        self._read: dict[str, int] = {}  # what was asked since `reset_cache`: length of the solution in tokens
        self._lock = threading.Lock()
        self._flights = _Flights()

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """The known scores, or the scorer's, which are kept."""
        row = self._keys(problem, steps)
        value = self.store.find(row[-1])
        if value is None:
            result: Scored
            result, asked = await self._flights.ask(
                row[-1], lambda: self._ask(problem, steps, known, row), self.scorer.remote
            )
            self.store.count(self.role, int(not asked), int(asked))
            if result.error:
                return result if asked else result._replace(usage=Usage(self.name))
            value = self.store.find(row[-1])
        else:
            self.store.count(self.role, 1, 0)
            # A scorer that keeps scores itself may have made these in another process.
            self.scorer.learn(problem, steps, value["scores"])
        return Scored(value["scores"], self._told(value, row))

    async def _ask(self, problem: Problem | str, steps: Sequence[str], known: int, row: list[str]) -> Scored:
        result = await self.scorer.ascore(problem, steps, known)
        if result.failure is None or result.failure.kind != "budget":
            value = None if result.error else self._kept(result, row)
            self.store.add([Answer(row[-1], self.role, as_problem(problem).id, result.usage, value)])
        return result

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
        if not self.incremental or usage.calls != 1 or usage.generated_tokens:
            return usage
        read = self._read[row[after]] if after >= 0 else 0
        return dataclasses.replace(usage, evaluated_tokens=max(0, min(most, usage.prompt_tokens - read)))

    def _after(self, row: Sequence[str]) -> int:
        """How many steps of the solution were asked about since `reset_cache`, -1 where it was not asked about."""
        with self._lock:
            return next((i for i in reversed(range(len(row))) if row[i] in self._read), -1)

    def _keys(self, problem: Problem | str, steps: Sequence[str]) -> list[str]:
        """A key for the question and each further step."""
        asked = as_problem(problem)
        keys = [
            key_of(
                {
                    "scorer": [self.scorer.identity, self.settings],
                    "prompt": self.scorer.prompt_hash,
                    "problem": [asked.id, asked.question],
                }
            )
        ]
        for text in steps:
            keys.append(key_of({"scored": keys[-1], "step": text}))
        return keys

    def reset_cache(self) -> None:
        """Count from cold what is read from now on. The scores stay, and so does what the model holds."""
        with self._lock:
            self._read = {}
