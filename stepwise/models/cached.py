"""A backend around a backend that asks for every continuation once.

Policies that reach the same prefix of a solution ask for the same continuation there (the router's seeds depend on the
place alone), so they share it: common random numbers make their comparison paired, and most of it free.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from itertools import islice
from typing import Any

from pydantic import TypeAdapter

from stepwise.errors import BackendError, DataError
from stepwise.models.base import Backend, Completion, Request
from stepwise.models.engine.tree import PrefixTree, ids_array
from stepwise.models.store import Answer, CallCache, key_of
from stepwise.types import Usage

_KEPT = TypeAdapter(list[Completion])
_NOT_IN_KEY = ("problem", "prefix", "top_logprobs")


class CachedBackend:
    """`backend`, whose continuations are kept in `cache` (None: in memory). Thread safe where `backend` is.

    Two requests are the same where model and adapter (their name), prompt, problem, the token ids of the prefix, all
    settings and the seed are; texts count where the backend does not tell ids. One that wants fewer `top_logprobs` is
    answered from one that wanted more. A continuation that failed is asked for again.

    What a known continuation cost is told as if it were made now. `evaluated_tokens` depends on what the model still
    holds; so where the backend tells the ids of a prefix, each new continuation and each known one is told as a model
    that keeps every prefix since the last `forget()` would have it. `spent` is what the backend itself was asked for;
    the cache counts hits and misses under `role`. Everything else is the backend's own.
    """

    def __init__(self, backend: Backend, cache: CallCache | None = None, *, role: str = "model") -> None:
        self.backend, self.role = backend, role
        self.cache = cache if cache is not None else CallCache()
        self.spent = Usage()
        self._seen: PrefixTree[None] = PrefixTree()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name == "backend":  # not made yet, as while it is copied
            raise AttributeError(name)
        return getattr(self.backend, name)

    @property
    def hits(self) -> int:
        """Requests under this role that were found."""
        return self.cache.hits.get(self.role, 0)

    @property
    def misses(self) -> int:
        """Requests under this role that went to the backend."""
        return self.cache.misses.get(self.role, 0)

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        """As the backend would, which is asked for what is not known; raises `BackendError` as it does."""
        ids = [self._ids(request) for request in requests]
        keys = [self._key(request, own) for request, own in zip(requests, ids, strict=True)]
        asked: dict[str, Request] = {}
        for key, request in zip(keys, requests, strict=True):
            if key not in asked or asked[key].top_logprobs < request.top_logprobs:
                asked[key] = request
        found = {key: self._find(key, request) for key, request in asked.items()}
        made = {key: known for key, known in found.items() if known is not None}
        wanted = {key: request for key, request in asked.items() if key not in made}
        self.cache.count(self.role, len(requests) - len(wanted), len(wanted))
        made |= self._ask(wanted) if wanted else {}
        results = []
        for number, (key, request, own) in enumerate(zip(keys, requests, ids, strict=True)):
            results += [self._told(number, one, request, own) for one in made[key]]
        return results

    def paid(self, request: Request) -> bool:
        """Whether the continuation is known and was counted before; see `CallCache.paid`."""
        if not self.cache.replays_are_free:
            return False
        key = self._key(request, self._ids(request))
        return self.cache.paid(key) and self._find(key, request) is not None

    def forget(self) -> None:
        """Count from cold what is evaluated from now on. The continuations stay, and so does what the model holds."""
        with self._lock:
            self._seen = PrefixTree()

    def _ask(self, wanted: dict[str, Request]) -> dict[str, list[Completion]]:
        fresh = iter(self.backend.continue_solutions(list(wanted.values())))
        made: dict[str, list[Completion]] = {}
        rows = []
        for key, request in wanted.items():
            own = list(islice(fresh, request.n))
            if len(own) < request.n:
                raise BackendError(
                    f"backend {self.backend.name!r} left requests without an answer; it must answer each"
                )
            usage = sum((one.usage for one in own), Usage())
            value = None
            if all(one.finish != "error" for one in own):
                value = {
                    "top": request.top_logprobs,
                    "made": _KEPT.dump_python(own, mode="json", exclude_defaults=True),
                }
            rows.append(Answer(key, self.role, request.problem.id, usage, value))
            made[key] = own
        with self._lock:
            self.spent = sum((row.usage for row in rows), self.spent)
        self.cache.add(rows)
        return made

    def _find(self, key: str, request: Request) -> list[Completion] | None:
        value = self.cache.find(key)
        if value is None or value["top"] < request.top_logprobs:
            return None
        return _KEPT.validate_python(value["made"])

    def _told(self, number: int, one: Completion, request: Request, ids: list[int]) -> Completion:
        """A continuation as the answer to request `number`."""
        top, usage = one.top_logprobs, one.usage
        if top is not None:
            top = tuple(row[: request.top_logprobs] for row in top) if request.top_logprobs else None
        if ids and one.finish != "error":
            usage = dataclasses.replace(usage, evaluated_tokens=self._fresh(ids, one.token_ids))
        return dataclasses.replace(one, request=number, usage=usage, top_logprobs=top)

    def _fresh(self, ids: list[int], drawn: Sequence[int]) -> int:
        """How many tokens of the prefix a model that keeps every prefix has to run through; it keeps this one too."""
        prefix = ids_array(ids)
        with self._lock:
            known = next((length for length, _ in self._seen.matches(prefix)), 0)
            self._seen.insert(prefix + ids_array(drawn[:-1]), None)  # the last one was drawn, not run through
        return len(ids) - min(known, len(ids) - 1)

    def _ids(self, request: Request) -> list[int]:
        """The ids that the continuation follows on, none where the backend does not tell or refuses the request."""
        tell = getattr(self.backend, "prefix_ids", None)
        if tell is None:
            return []
        try:
            return list(tell(request))
        except (BackendError, DataError):
            return []

    def _key(self, request: Request, ids: list[int]) -> str:
        engine = getattr(self.backend, "engine", None)  # knows of an adapter attached a moment ago
        name = (engine or self.backend).name
        texts = [[step.text, step.token_ids if step.usage.model == name else ()] for step in request.prefix]
        settings = {
            field.name: getattr(request, field.name)
            for field in dataclasses.fields(request)
            if field.name not in _NOT_IN_KEY
        }
        return key_of(
            {
                **settings,
                "model": name,
                "prompt": getattr(getattr(self.backend, "prompt", None), "hash", ""),
                "problem": [request.problem.id, request.problem.question],
                "prefix": ids or texts,
            }
        )
