"""Every concern of a call as a wrapper of the same shape: `await generate(request)` or `await ascore(problem, steps)`.

    Budgeted(Reported(Stored(model)))     comparisons: a known answer is charged as if it were asked for
    Stored(Budgeted(Reported(model)))     resumed runs: what an earlier start has paid for is free

`composed` puts them together; nothing else does. A request that a cap refuses comes back as a completion with finish
"budget", a failed one with "error" and its `Failure`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from stepwise.errors import BudgetExceededError
from stepwise.models.base import Capabilities, Completion, Generator, Request
from stepwise.models.budget import Ledger, Reservation
from stepwise.models.failures import error_of, failure_of
from stepwise.prompt import SolvePrompt
from stepwise.types import Problem, Usage

T = TypeVar("T")


class Wrapped(Generator):
    """What every wrapper passes on from the model inside."""

    def __init__(self, model: Generator) -> None:
        self.model = model

    @property
    def name(self) -> str:  # type: ignore[override]
        """The model's."""
        return self.model.name

    @property
    def parameters(self) -> int | None:  # type: ignore[override]
        """The model's."""
        return self.model.parameters

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """The model's."""
        return self.model.capabilities

    @property
    def calls_per_sample(self) -> int:  # type: ignore[override]
        """The model's."""
        return self.model.calls_per_sample

    @property
    def prompt_hash(self) -> str:  # type: ignore[override]
        """The model's."""
        return self.model.prompt_hash

    @property
    def engines(self) -> tuple[Any, ...]:
        """The model's."""
        return self.model.engines

    @property
    def probe_bound(self) -> Usage:
        """The model's."""
        return self.model.probe_bound

    async def generate(self, request: Request) -> Completion:
        """The model's."""
        return await self.model.generate(request)

    async def prepare(self) -> Usage:
        """The model's."""
        return await self.model.prepare()

    def prefix_ids(self, request: Request) -> list[int]:
        """The model's."""
        return self.model.prefix_ids(request)

    def forget(self) -> None:
        """Drop the model's cached prefixes."""
        self.model.forget()

    def close(self) -> None:
        """Free the model."""
        self.model.close()


class Budgeted(Wrapped):
    """`model` under the caps of `account`, as `role`: the most that a request may cost is reserved before it is asked.

    `prompt` is what the model puts around a question; it only bounds what a request may cost. A model that must be
    tried out first (an API) does it on the account.
    """

    def __init__(self, model: Generator, account: Ledger, role: str, prompt: SolvePrompt) -> None:
        super().__init__(model)
        self.account, self.role, self._prompt = account, role, prompt

    async def generate(self, request: Request) -> Completion:
        """Reserve, ask, settle."""
        try:
            await self._prepared()
            tokens, read, calls = request_bound(request, self._prompt, self.model.calls_per_sample)
            held = await self.account.areserve(self.role, tokens, prompt_tokens=read, calls=calls)
        except BudgetExceededError as refusal:
            return Completion.of_failure(failure_of(refusal), n=request.n)
        with held:
            result = await self.model.generate(request)
            held.settle(sum((sample.usage for sample in result.samples), Usage()))
        return result

    async def _prepared(self) -> None:
        most = self.model.probe_bound
        if not most.calls:
            return
        held: Reservation
        with await self.account.areserve(
            self.role, most.generated_tokens, prompt_tokens=most.prompt_tokens, calls=most.calls
        ) as held:
            spent = await self.model.prepare()
            if spent.calls:
                held.settle(spent)


def request_bound(request: Request, prompt: SolvePrompt, calls_per_sample: int = 1) -> tuple[int, int, int]:
    """The most that a request can cost: (generated tokens, prompt tokens, calls).

    Bytes bound the tokens of a prompt; the chat template adds a few.
    """
    calls = request.n * calls_per_sample
    text = "".join([request.problem.question, *(step.text for step in request.prefix)])
    return calls * request.max_tokens, calls * text_bound(text, prompt), calls


def text_bound(text: str, prompt: SolvePrompt) -> int:
    """Bytes of `text` under `prompt`, which bound its tokens."""
    return len(text.encode("utf-8", "replace")) + len(prompt.model_dump_json()) + 64


class Reported(Wrapped):
    """`model`, of whose calls DSPy hears: its callbacks (and `callbacks`) at start and end, its usage tracker after."""

    def __init__(self, model: Generator, callbacks: Callable[[], Iterable[Any]]) -> None:
        super().__init__(model)
        self._callbacks = callbacks

    async def generate(self, request: Request) -> Completion:
        """Tell, ask, tell."""
        work = self.model.generate(request)
        return await reported(self.model, self._callbacks(), {"requests": [request]}, work,
                              lambda result: [sample.usage for sample in result.samples])  # fmt: skip


async def reported(
    model: Any, callbacks: Iterable[Any], inputs: dict[str, Any], work: Awaitable[T], usages: Callable[[T], Sequence[Usage]]
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
