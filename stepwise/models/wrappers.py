"""Every concern of a call as a wrapper of the same shape: `await generate(request)` or `await ascore(problem, steps)`.

    Budgeted(Reported(Stored(Guarded(model))))     comparisons: a known answer is charged as if it were asked for
    Stored(Budgeted(Reported(Guarded(model))))     resumed runs: what an earlier start has paid for is free

`Wrappers` puts them together; nothing else does. A request that a cap refuses comes back as a completion with finish
"budget", a failed one with "error" and its `Failure`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stepwise.errors import BudgetExceededError
from stepwise.models.base import Backend, Completion, Generator, Request, Wrapped
from stepwise.models.budget import ACCOUNT, Ledger
from stepwise.models.cached import Stored, StoredScorer
from stepwise.models.driver import driver
from stepwise.models.failures import error_of, failure_of
from stepwise.models.scorers.base import Scored, Scorer, WrappedScorer
from stepwise.models.store import CallCache
from stepwise.prompt import SolvePrompt
from stepwise.types import Failure, Problem, Usage

T = TypeVar("T")
_PROMPT = SolvePrompt()


class Budgeted(Wrapped):
    """`model` under the caps of `ledger`, as `role`: the most that a request may cost is reserved before it is asked.

    Where the coroutine that asks has an account of its own (`ACCOUNT`, a problem's), its caps hold too. `prompt` is
    what the model puts around a question; it only bounds what a request may cost. A model that must be tried out first
    (an API) does it on the ledger's account.
    """

    def __init__(self, model: Generator, ledger: Ledger, role: str, prompt: SolvePrompt) -> None:
        super().__init__(model)
        self.ledger, self.role, self._prompt = ledger, role, prompt

    async def generate(self, request: Request) -> Completion:
        """Reserve, ask, settle."""
        account = ACCOUNT.get() or self.ledger
        calls = request.n * self.model.calls_per_sample
        read = prompt_bound(request, self._prompt)
        try:
            if self.model.remote and self.model.probe_bound.calls:
                await self.ready()
            held = await account.areserve(
                self.role, calls * request.max_tokens, prompt_tokens=calls * read, calls=calls,
                least_tokens=calls * request.least_tokens,
            )  # fmt: skip
        except BudgetExceededError as refusal:
            return Completion.of_failure(failure_of(refusal), n=request.n)
        if held.cut_by:
            request = dataclasses.replace(request, max_tokens=held.max_tokens // calls)
        try:
            result = await self.model.generate(request)
        except BaseException:
            held.cancel()
            raise
        held.settle(*result.costs)
        return cut_short(result, request, held.cut_by) if held.cut_by else result

    async def ready(self) -> None:
        """Probe on the run's account."""
        most = self.model.probe_bound
        if not most.calls:
            return
        with await self.ledger.areserve(
            self.role, most.generated_tokens, prompt_tokens=most.prompt_tokens, calls=most.calls
        ) as held:
            spent = await asyncio.to_thread(self.model.prepare)
            if spent.calls:
                held.settle(spent)


def cut_short(result: Completion, request: Request, cap: str) -> Completion:
    """`result` of a request that asked for what `cap` had left: a text that ended there was cut by the cap."""
    if result.finish != "length" or result.usage.generated_tokens < request.max_tokens:
        return result
    reason = f"{cap} had {request.max_tokens} tokens left, too few for this; raise it"
    return dataclasses.replace(result, finish="budget", error=reason, failure=Failure("budget", reason, cap))


def prompt_bound(request: Request, prompt: SolvePrompt) -> int:
    """The most tokens that a model reads for one sample of `request`."""
    if request.token_ids:
        return len(request.token_ids)
    if request.messages:  # a template may put a few tokens around each; some servers show the model the schema
        asked = json.dumps([request.messages, request.schema], ensure_ascii=False, default=str)
        return len(asked.encode("utf-8", "replace")) + 16 * len(request.messages)
    return _text_bound([request.problem.question, *(step.text for step in request.prefix)], prompt)


def _text_bound(texts: Sequence[str], prompt: SolvePrompt) -> int:
    """The most tokens that a model reads of `texts` under `prompt`: their bytes; the chat template adds a few."""
    return len("".join(texts).encode("utf-8", "replace")) + len(prompt.model_dump_json()) + 64


class Reported(Wrapped):
    """`model`, of whose calls DSPy hears: its callbacks (and `callbacks`) at start and end, its usage tracker after."""

    def __init__(self, model: Generator, callbacks: Callbacks) -> None:
        super().__init__(model)
        self._callbacks = callbacks

    async def generate(self, request: Request) -> Completion:
        """Tell, ask, tell."""
        work = self.model.generate(request)
        return await _reported(self.model, self._callbacks(), {"requests": [request]}, work,
                              lambda result: [sample.usage for sample in result.samples])  # fmt: skip


class Guarded(Wrapped):
    """`model`, with a breaker: a model that is gone is not asked again, and everything that waits for it stops at once.

    One request that fails on and on costs itself alone; `patience` of them in a row say that the model is gone. What
    the client itself tries again, and how often, is its own affair.
    """

    def __init__(self, model: Generator | Backend, patience: int = 3) -> None:
        super().__init__(model)
        self._patience, self._failures = patience, 0
        self._gone: Failure | None = None

    async def generate(self, request: Request) -> Completion:
        """Ask; raises `BackendError` where the model is gone."""
        if self._gone is not None:
            raise error_of(self._gone)
        if (running := driver()) is not None and running.stopped_by is not None:
            raise asyncio.CancelledError  # the run stops: nothing more is bought
        result = await self.model.generate(request)
        failure = result.failed
        if failure is None or failure.kind in ("refused", "budget"):
            self._failures = 0
            return result
        self._failures += 1
        if failure.kind == "gone" or self._failures >= self._patience:
            self._gone = failure
            raise error_of(failure)
        return result


async def _reported(
    model: Any,
    callbacks: Iterable[Any],
    inputs: dict[str, Any],
    work: Awaitable[T],
    usages: Callable[[T], Sequence[Usage]],
) -> T:
    """The result of `work`, a call of `model` that DSPy's callbacks and usage tracker hear of."""
    import dspy

    call_id, listeners = uuid.uuid4().hex, [*(dspy.settings.get("callbacks") or ()), *callbacks]
    for listener in listeners:
        listener.on_lm_start(call_id=call_id, instance=model, inputs=inputs)
    result: Any = None
    failure: BaseException | None = None
    try:
        result = await work
    except BaseException as error:
        failure = error
        raise
    finally:
        for listener in listeners:
            listener.on_lm_end(call_id=call_id, outputs=result, exception=failure)
    spent = sum(usages(result), Usage())
    if (tracker := dspy.settings.usage_tracker) is not None:
        tracker.add_usage(model.name, usage_entry(spent))
    return result  # type: ignore[no-any-return]


def usage_entry(usage: Usage) -> dict[str, Any]:
    """`usage` as DSPy's usage trackers have it."""
    return {
        "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.generated_tokens,
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.prompt_tokens - usage.evaluated_tokens},
    }  # fmt: skip


# ----- scorers


class BudgetedScorer(WrappedScorer):
    """`scorer` under the caps of `ledger`: the reading of each step without a score is reserved before it is asked."""

    def __init__(self, scorer: Scorer, ledger: Ledger, prompt: SolvePrompt) -> None:
        super().__init__(scorer)
        self.ledger, self._prompt = ledger, prompt

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """Reserve, ask, settle; a refusal is a `Scored` with a failure of kind "budget"."""
        new = len(steps) - known
        question = problem.question if isinstance(problem, Problem) else problem
        read = new * _text_bound([question, *steps], self._prompt)
        try:
            account = ACCOUNT.get() or self.ledger
            held = await account.areserve("scorer", 0, prompt_tokens=read, calls=new)
        except BudgetExceededError as refusal:
            return Scored([], Usage(self.name), str(refusal), failure_of(refusal))
        try:
            result = await self.scorer.ascore(problem, steps, known)
        except BaseException:
            held.cancel()
            raise
        held.settle(result.usage)
        return result


class ReportedScorer(WrappedScorer):
    """`scorer`, of whose calls DSPy hears."""

    def __init__(self, scorer: Scorer, callbacks: Callbacks) -> None:
        super().__init__(scorer)
        self._callbacks = callbacks

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """Tell, ask, tell."""
        work = self.scorer.ascore(problem, steps, known)
        return await _reported(self.scorer, self._callbacks(), {"requests": [(problem, steps)]}, work,
                              lambda result: [result.usage])  # fmt: skip


# ----- the one place where they are put together


Callbacks = Callable[[], Iterable[Any]]
"""What gives DSPy's callbacks, asked at each call."""


@dataclass(frozen=True)
class Wrappers:
    """What one run puts around its models: the caps of `ledger`, the answers of `store`, `callbacks` of DSPy's that
    hear of each call. `prompt` bounds what a request may cost; `run` is the hash of the run's configuration.
    Without `keep_local` only answers over an API are kept: what must be equal to the byte when it is done again asks
    the models of this process for all of it anew. `reply_tokens`: what a critic without a limit of its own is reckoned
    to write in one call.

        weak = Wrappers(Ledger(config.budget), store=CallCache("answers.jsonl")).model(load_backend(spec), "weak")
    """

    ledger: Ledger
    prompt: SolvePrompt = _PROMPT
    store: CallCache | None = None
    callbacks: Callbacks | None = None
    run: str = ""
    keep_local: bool = True
    reply_tokens: int = 4096

    def model(self, model: Generator | Backend, role: str) -> Generator:
        """`model` with every concern of a call around it, in the order that the module's docstring gives."""
        model = Guarded(model)
        store = self.store if self.keep_local or model.remote else None
        if store is not None and not store.replays_are_free:
            model = Stored(model, store, role=role)
        if self.callbacks is not None:
            model = Reported(model, self.callbacks)
        model = Budgeted(model, self.ledger, role, self.prompt)
        return Stored(model, store, role=role) if store is not None and store.replays_are_free else model

    def scorer(self, scorer: Scorer, settings: Any = None) -> Scorer:
        """The same for a scorer; `settings`, plain JSON, tell scorers of one name apart in the store."""
        store = self.store if self.keep_local or scorer.remote else None
        if store is not None and not store.replays_are_free:
            scorer = StoredScorer(scorer, store, settings=settings)
        if self.callbacks is not None:
            scorer = ReportedScorer(scorer, self.callbacks)
        scorer = BudgetedScorer(scorer, self.ledger, self.prompt)
        free = store is not None and store.replays_are_free
        return StoredScorer(scorer, store, settings=settings) if free else scorer
