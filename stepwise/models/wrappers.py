"""Every concern of a call as a wrapper of the same shape: `await generate(request)` or `await ascore(problem, steps)`.

    Budgeted(Reported(Stored(Guarded(model))))     comparisons: a known answer is charged as if it were asked for
    Stored(Budgeted(Reported(Guarded(model))))     resumed runs: what an earlier start has paid for is free

`composed` puts them together; nothing else does. A request that a cap refuses comes back as a completion with finish
"budget", a failed one with "error" and its `Failure`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from stepwise.errors import BudgetExceededError
from stepwise.models.base import Completion, Generator, Request, Wrapped
from stepwise.models.budget import ACCOUNT, Ledger
from stepwise.models.cached import Stored, StoredScorer
from stepwise.models.failures import error_of, failure_of
from stepwise.models.scorers.base import Scored, Scorer, WrappedScorer
from stepwise.models.store import CallCache
from stepwise.prompt import SolvePrompt
from stepwise.types import Failure, Problem, Usage

T = TypeVar("T")


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
        read = _text_bound([request.problem.question, *(step.text for step in request.prefix)], self._prompt)
        try:
            if self.model.remote and self.model.probe_bound.calls:
                await self.ready()
            held = await account.areserve(
                self.role, calls * request.max_tokens, prompt_tokens=calls * read, calls=calls
            )
        except BudgetExceededError as refusal:
            return Completion.of_failure(failure_of(refusal), n=request.n)
        try:
            result = await self.model.generate(request)
        except BaseException:
            held.cancel()
            raise
        held.settle(sum((sample.usage for sample in result.samples), Usage()))
        return result

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


def _text_bound(texts: Sequence[str], prompt: SolvePrompt) -> int:
    """The most tokens that a model reads of `texts` under `prompt`: their bytes; the chat template adds a few."""
    return len("".join(texts).encode("utf-8", "replace")) + len(prompt.model_dump_json()) + 64


class Reported(Wrapped):
    """`model`, of whose calls DSPy hears: its callbacks (and `callbacks`) at start and end, its usage tracker after."""

    def __init__(self, model: Generator, callbacks: Callable[[], Iterable[Any]]) -> None:
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

    def __init__(self, model: Generator, patience: int = 3) -> None:
        super().__init__(model)
        self._patience, self._failures = patience, 0
        self._gone: Failure | None = None

    async def generate(self, request: Request) -> Completion:
        """Ask; raises `BackendError` where the model is gone."""
        if self._gone is not None:
            raise error_of(self._gone)
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
        tracker.add_usage(model.name, {
            "prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.generated_tokens,
            "total_tokens": spent.prompt_tokens + spent.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": spent.prompt_tokens - spent.evaluated_tokens},
        })  # fmt: skip
    return result  # type: ignore[no-any-return]


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

    def __init__(self, scorer: Scorer, callbacks: Callable[[], Iterable[Any]]) -> None:
        super().__init__(scorer)
        self._callbacks = callbacks

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """Tell, ask, tell."""
        work = self.scorer.ascore(problem, steps, known)
        return await _reported(self.scorer, self._callbacks(), {"requests": [(problem, steps)]}, work,
                              lambda result: [result.usage])  # fmt: skip


# ----- the one place where they are put together


def composed(
    model: Generator,
    *,
    role: str,
    ledger: Ledger,
    prompt: SolvePrompt,
    store: CallCache | None = None,
    callbacks: Callable[[], Iterable[Any]] | None = None,
) -> Generator:
    """`model` with every concern of a call around it, in the order that the module's docstring gives."""
    resumed = store is not None and store.replays_are_free
    model = Guarded(model)
    if store is not None and not resumed:
        model = Stored(model, store, role=role)
    if callbacks is not None:
        model = Reported(model, callbacks)
    model = Budgeted(model, ledger, role, prompt)
    return Stored(model, store, role=role) if resumed else model


def composed_scorer(
    scorer: Scorer,
    *,
    ledger: Ledger,
    prompt: SolvePrompt,
    store: CallCache | None = None,
    settings: Any = None,
    callbacks: Callable[[], Iterable[Any]] | None = None,
) -> Scorer:
    """`composed` for a scorer; `settings`, plain JSON, tell scorers of one name apart in the store."""
    resumed = store is not None and store.replays_are_free
    if store is not None and not resumed:
        scorer = StoredScorer(scorer, store, settings=settings)
    if callbacks is not None:
        scorer = ReportedScorer(scorer, callbacks)
    scorer = BudgetedScorer(scorer, ledger, prompt)
    return StoredScorer(scorer, store, settings=settings) if resumed else scorer
