"""The service: requests in, answers out. It knows no HTTP; `app` and `doors` stand in front of it.

1. All requests share the models, whose engines make batches of what is in the making: one joins at the next token.
   `serve.max_open` answers are in the making, or as many as the engines' curves want; others wait in order, and more
   than `serve.max_waiting` are refused with a 429.
2. An answer is a task of the service. A client that leaves, a timeout and the end of the server let the step that is
   being made end: what was bought is counted, then the slot is free. Nothing is kept of requests and answers, unless
   there is a store: a request that comes again, by its seed or its X-Request-Id, finds there what was answered before.
3. What a request may cost is reserved from its account (`budget.problem`), that of its key and the server's at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

from stepwise.config import Config
from stepwise.data.problems import load_problems
from stepwise.errors import StepwiseError
from stepwise.models.base import Request
from stepwise.models.budget import Ledger
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.shared import open_problems
from stepwise.models.store import CallCache
from stepwise.models.wrappers import Wrappers
from stepwise.routing.policies import Never
from stepwise.routing.router import StepRouter
from stepwise.seeds import stable_hash
from stepwise.serve.answers import Limits, answer_for
from stepwise.serve.asked import Asked, Chunk
from stepwise.serve.metrics import Metrics
from stepwise.serve.names import Policies
from stepwise.serve.requests import ApiError, ChatRequest, place_of
from stepwise.types import Problem

_log = logging.getLogger(__package__)


class Service:
    """Answers chat requests with the router of `config`, under the caps of `ledger`, in the running event loop.

    `ledgers` has one for each key, by its name in [serve.api_keys]; a request without a key counts for `ledger`.
    Where there is a `store`, answers of models are kept in it. The router's models are the caller's to close.

    Example:
        with Service.router(config) as router:
            service = Service(router, config, Ledger.for_config(config))
            reply = await service.chat({"model": "router", "messages": [{"role": "user", "content": "1 + 1?"}]})
    """

    def __init__(
        self, router: StepRouter, config: Config, ledger: Ledger, ledgers: Mapping[str, Ledger] | None = None,
        store: CallCache | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self.config, self.settings, self.models = config, config.serve, router.models
        self.ledger, self._ledgers = ledger, dict(ledgers or {})
        self.policies = Policies(config, router.models, router.card)
        self.metrics, self.stopping = Metrics(), ""
        self._route = router.settings
        slots = self.settings.max_open or open_problems(router.models.weak, router.models.strong)
        self._slots = asyncio.Semaphore(slots or router.settings.window or 16)
        self._open = 0  # requests, those that wait included
        self._most = (slots or router.settings.window or 16) + self.settings.max_waiting
        self._asked: dict[asyncio.Task[None], Asked] = {}

    @classmethod
    def router(cls, config: Config) -> StepRouter:
        """The loaded models that a service of `config` stands on."""
        return StepRouter.from_config(config, policy=Never())

    # ----- one request

    async def chat(self, body: Any, key: str = "", name: str = "") -> Chunk:
        """A chat completion in OpenAI's form, for a request in the same that is no stream; raises `ApiError`.

        `name` tells the request from all others: where answers are kept, one without a seed finds its own again by it.
        """
        request = ChatRequest.read(body)
        if request.stream:
            raise ApiError(400, "stream: this door has no streams", param="stream")
        asked = self._begin(request, key, name)
        try:
            return await asked.completion(self.settings.timeout)
        finally:
            asked.stop("the client left")

    async def stream(self, body: Any, key: str = "", name: str = "") -> AsyncIterator[Chunk]:
        """Chunks of a chat completion; raises `ApiError`, before the first chunk or after it. `name` as in `chat`."""
        asked = self._begin(ChatRequest.read(body), key, name)
        try:
            async for chunk in asked.chunks(self.settings.timeout):
                yield chunk
        finally:
            asked.stop("the client left")

    def _begin(self, request: ChatRequest, key: str, name: str) -> Asked:
        """The request with its answers on their way; raises `ApiError` where it is refused."""
        if self.stopping:
            raise ApiError(503, "the server is stopping", kind="server_error", retry_after=5)
        served = self.policies.find(request.model)
        limit = min(request.max_tokens or self.settings.max_tokens, self.settings.max_tokens)
        if request.n > self.settings.max_n:
            raise ApiError(400, f"n: at most {self.settings.max_n}", param="n")
        if request.max_tokens is not None and request.max_tokens > self.settings.max_tokens:
            raise ApiError(400, f"max_tokens: at most {self.settings.max_tokens}", param="max_tokens")
        if self._open >= self._most:
            raise ApiError(429, "too many requests are waiting; try again later", kind="rate_limit_error",
                           code="rate_limit_exceeded", retry_after=self.metrics.retry_after())  # fmt: skip
        problem = load_problems([request.question])[0]
        for model in (self.models.weak, self.models.strong):
            self._check_length(model, problem)
        given = {each: getattr(request, each) for each in ("temperature", "top_p")}
        drawing = {each: value for each, value in given.items() if value is not None}
        sampling = self._route.sampling.model_copy(update=drawing)
        drawn = stable_hash(name) if name and self._store is not None else secrets.randbits(31)
        seed = drawn if request.seed is None else request.seed
        ledger = self._ledgers.get(key, self.ledger)
        account = ledger.for_problem()
        around = Wrappers(ledger, self._route.prompt, self._store, run=self._route.run)  # a breaker of its own
        limits = Limits(limit, tuple(request.stop), self.settings.on_failure == "keep")
        asked = Asked(request, served, seed, account, self.metrics)
        for number in range(request.n):
            settings = dataclasses.replace(
                self._route, sampling=sampling, seed=seed if not number else stable_hash(seed, "choice", number)
            )
            asked.answers.append(answer_for(
                served.policy, problem, self.models.wrapped(around), settings, account, limits, asked.teller(number)
            ))  # fmt: skip
        self._open += 1
        self.metrics.waiting += request.n
        task = asyncio.create_task(self._work(asked))
        self._asked[task] = asked
        task.add_done_callback(self._asked.pop)
        return asked

    def _check_length(self, model: Any, problem: Problem) -> None:
        """Raise OpenAI's error for a question that does not fit into a local model."""
        if not isinstance(model, LlamaCppBackend):
            return
        count, most = len(model.prefix_ids(Request(problem))), model.engine.context
        if count >= most:
            raise ApiError(
                400, f"This model's maximum context length is {most} tokens, and the messages have {count}.",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip

    async def _work(self, asked: Asked) -> None:
        """Make all answers of a request; its errors are told to who waits for it."""
        try:
            await asyncio.gather(*(self._answer(asked, number) for number in range(len(asked.answers))))
        finally:
            self._open -= 1
            self.metrics.ended(asked.account, asked.began)
            asked.queue.put_nowait(None)

    async def _answer(self, asked: Asked, number: int) -> None:
        answer = asked.answers[number]
        async with self._slots:
            self.metrics.waiting -= 1
            self.metrics.running += 1
            try:
                if not answer.stop_note:
                    await answer.run()
                else:
                    answer.finish, answer.note = "interrupted", answer.stop_note
            except Exception as error:
                answer.finish, answer.note = "error", str(error)
                if not isinstance(error, StepwiseError):
                    _log.error("an answer failed: %s", place_of(error))
                    answer.note = "the server failed; its log says more"
            finally:
                self.metrics.running -= 1
        asked.queue.put_nowait((number, "", None))

    async def stop(self, seconds: float | None = None, reason: str = "the server is stopping") -> None:
        """Refuse what is new, and let each answer end after the step that is being made; what takes more than `seconds`
        ends without it.
        """
        self.stopping = reason
        for asked in self._asked.values():
            asked.stop(reason)
        if self._asked:
            _, late = await asyncio.wait(self._asked, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
