"""Every concern of a call as a wrapper of the same shape: `await generate(request)` or `await ascore(problem, steps)`.

    Metered(Stored(Guarded(model)))     comparisons: a known answer is charged as if it were asked for
    Stored(Metered(Guarded(model)))     resumed runs: what an earlier start has paid for is free

`Wrappers` puts them together; nothing else does. A request that a cap refuses comes back as a completion with finish
"budget", a failed one with "error" and its `Failure`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from stepwise.errors import BackendError, BudgetExceededError
from stepwise.models.base import Backend, Completion, Generator, Request
from stepwise.models.budget import ACCOUNT, Ledger
from stepwise.models.cached import Stored, StoredScorer
from stepwise.models.callbacks import Callbacks, CalledModel, Said, reported
from stepwise.models.driver import driver
from stepwise.models.failures import error_of, failure_of
from stepwise.models.scorers.base import Scored, Scorer, WrappedScorer
from stepwise.models.store import CallCache
from stepwise.models.wrapped import Wrapped
from stepwise.prompt import SolvePrompt
from stepwise.steps import SEPARATOR
from stepwise.types import Failure, Problem, Usage

T = TypeVar("T")
_PROMPT = SolvePrompt()


class _Meter(NamedTuple):
    """What every call of a role goes through, be it a model's or a scorer's: caps first, then DSPy hears of it.

    The most that it may cost is reserved in `ledger` before it is asked; where the coroutine that asks has an account
    of its own (`ACCOUNT`, a problem's), its caps hold too. DSPy hears of it as `stepwise.models.callbacks` says, but
    not where there are no `callbacks`. `prompt` is what is put around a question, in at most `frame` tokens.
    """

    ledger: Ledger
    role: str
    prompt: SolvePrompt
    callbacks: Callbacks | None
    frame: int

    def chat(self, question: str, steps: Sequence[str]) -> list[Any]:
        """A question and the steps of its solution, as DSPy is told of them."""
        begun = [{"role": "assistant", "content": SEPARATOR.join(steps)}] if steps else []
        return [*self.prompt.messages(question), *begun]

    async def call(
        self,
        held: Any,
        called: CalledModel,
        chat: Sequence[Any],
        work: Callable[[], Awaitable[T]],
        read: Callable[[T], Said],
    ) -> T:
        """The result of `work`, a call under the reservation `held`, which is settled at what `read` says of it."""
        try:
            if self.callbacks is None:
                result = await work()
            else:
                result = await reported(called, chat, self.callbacks, work, read)
        except BaseException as error:
            if isinstance(error, BackendError) and error.costs is not None:  # a reply came, and was paid for
                held.settle(*error.costs)
            else:
                held.cancel()
            raise
        said = read(result)
        held.settle(said.usage, said.perhaps)
        return result


class _Metered(Wrapped):
    """`model` behind a meter. A model that must be tried out first (an API) does it on the run's account."""

    def __init__(self, model: Generator, meter: _Meter) -> None:
        super().__init__(model)
        self._meter = meter

    async def generate(self, request: Request) -> Completion:
        """The model's completion; what a cap refuses has the finish "budget"."""
        calls = request.n * self.model.calls_per_sample
        read, meter = prompt_bound(request, self._meter.frame), self._meter
        try:
            if self.model.remote and self.model.probe_bound.calls:
                await self.ready()
            held = await (ACCOUNT.get() or meter.ledger).areserve(
                meter.role, calls * request.max_tokens, prompt_tokens=calls * read, calls=calls,
                least_tokens=calls * request.least_tokens,
            )  # fmt: skip
        except BudgetExceededError as refusal:
            return Completion.of_failure(failure_of(refusal), n=request.n)
        if held.cut_by:
            request = dataclasses.replace(request, max_tokens=held.max_tokens // calls)
        settings = {name: getattr(request, name) for name in ("temperature", "max_tokens", "n", "seed")}
        chat = request.messages or meter.chat(request.problem.question, [step.text for step in request.prefix])
        result = await meter.call(
            held, CalledModel(self.name, meter.role, settings), chat, lambda: self.model.generate(request), _said
        )
        return _cut_short(result, request, held.cut_by) if held.cut_by else result

    async def ready(self) -> None:
        """Probe on the run's account."""
        most, ledger = self.model.probe_bound, self._meter.ledger
        if not most.calls:
            return
        with await ledger.areserve(
            self._meter.role, most.generated_tokens, prompt_tokens=most.prompt_tokens, calls=most.calls
        ) as held:
            spent = await asyncio.to_thread(self.model.prepare)
            if spent.calls:
                held.settle(spent)


class _MeteredScorer(WrappedScorer):
    """`scorer` behind a meter: the reading of each step without a score is reserved."""

    def __init__(self, scorer: Scorer, meter: _Meter) -> None:
        super().__init__(scorer)
        self._meter = meter

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """The scorer's; a refusal is a `Scored` with a failure of kind "budget"."""
        question, new = problem.question if isinstance(problem, Problem) else problem, len(steps) - known
        read = len("".join([question, *steps]).encode("utf-8", "replace")) + self._meter.frame
        try:
            ledger = ACCOUNT.get() or self._meter.ledger
            held = await ledger.areserve("scorer", 0, prompt_tokens=new * read, calls=new)
        except BudgetExceededError as refusal:
            return Scored.of_failure(failure_of(refusal), Usage(self.name))
        return await self._meter.call(
            held, CalledModel(self.name, "scorer", {}), self._meter.chat(question, steps),
            lambda: self.scorer.ascore(problem, steps, known), _scored,
        )  # fmt: skip


def _said(result: Completion) -> Said:
    usage, perhaps = result.costs
    failure = None if result.failed is None else error_of(result.failed)
    return Said([sample.text for sample in result.samples], usage, failure, perhaps)


def _scored(result: Scored) -> Said:
    failure = None if result.failed is None else error_of(result.failed)
    return Said([" ".join(f"{score:.3f}" for score in result.scores)], result.usage, failure)


def _cut_short(result: Completion, request: Request, cap: str) -> Completion:
    """`result` of a request that asked for what `cap` had left: a text that ended there was cut by the cap."""
    if result.finish != "length" or result.usage.generated_tokens < request.max_tokens:
        return result
    reason = f"{cap} had {request.max_tokens} tokens left, too few for this; raise it"
    return dataclasses.replace(result, finish="budget", error=reason, failure=Failure("budget", reason, cap))


def prompt_bound(request: Request, frame: int = 0) -> int:
    """The most tokens that a model reads for one sample of `request`: the bytes of the text, and the `frame` around.

    >>> prompt_bound(Request(Problem("p", "1 + 1?"), (Step("One.", "weak"),)), frame=8)
    18
    """
    if request.token_ids:
        return len(request.token_ids)
    if request.messages:  # a template may put a few tokens around each; some servers show the model the schema
        asked = json.dumps([request.messages, request.schema], ensure_ascii=False, default=str)
        return len(asked.encode("utf-8", "replace")) + 16 * len(request.messages)
    texts = [request.problem.question, *(step.text for step in request.prefix)]
    return len("".join(texts).encode("utf-8", "replace")) + frame


class Guarded(Wrapped):
    """`model`, with a breaker: a model that is gone is not asked again, and everything that waits for it stops at once.

    One request that fails on and on costs itself alone; `patience` of them in a row say that the model is gone. What
    the client itself tries again, and how often, is its own affair.

    Example:
        weak = Guarded(sw.load_backend("openai/NAME"), patience=3)
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
            self._gone, error = failure, error_of(failure)
            if isinstance(error, BackendError):
                error.costs = result.costs
            raise error
        return result


# ----- the one place where they are put together


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
        model = _Metered(model, self._meter(role))
        return Stored(model, store, role=role) if store is not None and store.replays_are_free else model

    def scorer(self, scorer: Scorer, settings: Any = None) -> Scorer:
        """The same for a scorer; `settings`, plain JSON, tell scorers of one name apart in the store."""
        store = self.store if self.keep_local or scorer.remote else None
        if store is not None and not store.replays_are_free:
            scorer = StoredScorer(scorer, store, settings=settings)
        scorer = _MeteredScorer(scorer, self._meter("scorer"))
        free = store is not None and store.replays_are_free
        return StoredScorer(scorer, store, settings=settings) if free else scorer

    def _meter(self, role: str) -> _Meter:
        frame = len(self.prompt.model_dump_json()) + 64  # a chat template adds a few tokens to the prompt
        return _Meter(self.ledger, role, self.prompt, self.callbacks, frame)
