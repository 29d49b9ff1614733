"""What a backend is: it turns the prefix of a solution into its continuation.

Backends know nothing of routing or training. A model that fails for one item answers that item with
`finish="error"`; it raises only when the whole call is impossible (`BackendError`).
"""

from __future__ import annotations

import asyncio
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, Self, runtime_checkable

from pydantic import Field

from stepwise.errors import DataError
from stepwise.models.driver import Driver
from stepwise.records import items_of, record
from stepwise.runs.progress import stage
from stepwise.types import Failure, Finish, Omitted, Problem, Step, TokenStats, Usage


@record()
class Capabilities:
    """What a backend can do, found by a probe when it is loaded.

    `prefill`: continues an assistant message where it stands. `batch`: many requests share a forward pass.
    `token_ids`: the ids it returns are the ids it sampled, and it takes them back unchanged. `entropy`: it knows the
    whole distribution at each token. `states`: it gives the states of its last layer.

    Example:
        >>> Capabilities(prefill=True).logprobs
        False
    """

    prefill: bool = False
    logprobs: bool = False
    grammar: bool = False
    batch: bool = False
    adapters: bool = False
    token_ids: bool = False
    entropy: bool = False
    states: bool = False


@record()
class Request:
    """Continue the solution of `problem` after the steps of `prefix`, or, where there are `messages`, answer them.

    `stop="step"` ends at the first blank line, `"solution"` at the final answer or the end of the message. `n` samples
    are drawn, from number `sample` on; the random numbers of sample i depend on (`seed`, i) alone, not on what else is
    in the batch (the logits do, in their last digits). `temperature=0` is greedy. `top_p=1` and `top_k=0` switch
    truncation off. `max_tokens` bounds the tokens of this continuation. `top_logprobs`: of how many of the likeliest
    tokens the log-probability is told at each position (needs the capability `logprobs`); 20 is what the common servers
    give at most.

    `messages` are a chat, as {"role": ..., "content": ...}; then problem and prefix only say what it is about, and the
    answer ends where the message does. `schema` is what it is held to, a `response_format` or a GBNF text, `options`
    has further settings of the call. `token_ids`, for a model that takes them, are continued in place of problem and
    prefix; the completion's ids are then as sampled, whatever was cut.

    `run` (the hash of a configuration), `role` and `attempt` say, beside problem and step, what it is asked for.
    `least_tokens`: where a cap leaves less than `max_tokens`, but so many, it is asked for what is left; what is cut by
    that comes back with the finish "budget", its text and what it cost. 0: all or nothing. `states`: whether the
    completion is to have the states of the step, where the model has them. `marker`: a text that is one token, by which
    the model asks for help; it is never drawn, or with `may_call` only as the first token, which ends the sample.

        Request(Problem("p", "What is 2 + 2?"), max_tokens=64)
        Request(problem, messages=({"role": "user", "content": "Is it right?"},), schema='root ::= "yes" | "no"')

    Example:
        >>> Request(Problem("p", "What is 2 + 2?"), (Step("2 + 2 = 4.", "weak"),)).step
        1
    """

    problem: Problem
    prefix: tuple[Step, ...] = ()
    stop: Literal["step", "solution"] = "step"
    max_tokens: int = Field(default=256, ge=1)
    n: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    top_logprobs: int = Field(default=0, ge=0, le=20)
    role: str = ""
    run: str = ""
    attempt: int = Field(default=0, ge=0)
    sample: int = Field(default=0, ge=0)
    token_ids: tuple[int, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    schema: Any = None
    options: Mapping[str, Any] = Field(default_factory=dict)
    least_tokens: int = Field(default=0, ge=0)
    states: bool = False
    marker: str = ""
    may_call: bool = False

    @property
    def step(self) -> int:
        """0-based index of the step that is asked for."""
        return len(self.prefix)


def as_requests(requests: Any) -> list[Request]:
    """One request or several as a list; raises DataError for what is none.

    >>> len(as_requests(Request(Problem("p", "1 + 1?"))))
    1
    """
    return items_of(requests, Request, "requests", "give a list of Request, such as [Request(problem)]")


def check_question(request: Request) -> None:
    """Raises DataError for a question that says nothing: a model would answer it with an invention.

    >>> check_question(Request(Problem("p", "1 + 1?")))  # and raises for one that is blank
    """
    if not (request.messages or request.token_ids or request.problem.question.strip()):
        raise DataError(f"problem {request.problem.id!r}: the question is empty; give its text")


@record()
class Completion:
    """One sample for request number `request` (0-based position in the call), sample number `sample`.

    `text` has no blank line at its end. `token_ids` are the ids as sampled, the blank line's or the end-of-sequence
    token's included; `logprobs` (natural log, one per id, of the untempered and untruncated distribution) where the
    backend has them. `top_logprobs` (of the same distribution, likeliest first) has an entry for each token drawn,
    those cut off included; None where they were not asked for or are not known. `finish`: "step" at a blank line;
    "answer" once a box is closed; "eos" at the end of the message
    without a box; "length"; "repeat" where the text repeats itself; "error" and "budget", with what happened in `error`
    for a person and in `failure` for the program. `rest` are the other samples of the same request, as `generate` gives
    them; each has a usage of its own. `end`: how many bytes of `token_ids` count as text, where ids were asked for that
    run on behind it (`Request.token_ids`). `perhaps`: the most that tries which a server did not answer were billed
    beside `usage`. `token_stats` sums up how sure the model was of the tokens drawn, cut or not, where it tells.
    `thought`: the mark of a thought that the chat template opened ahead of the solution ("<think>"). `states`: the
    step's vector as `stepwise.models.states.pack` writes it, "" where it was not asked for or is not known. `call`: the
    log-probability of `Request.marker` as the first token.

    Example:
        >>> Completion(0, 0, "2 + 2 = 4.", "step").failed is None
        True
    """

    request: int
    sample: int
    text: str
    finish: Finish
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    usage: Usage = Usage()
    error: str = ""
    top_logprobs: tuple[tuple[float, ...], ...] | None = None
    failure: Failure | None = None
    rest: tuple[Completion, ...] = ()
    end: int | None = None
    perhaps: Usage = Usage()
    token_stats: TokenStats | None = None
    thought: Omitted = ""
    states: Omitted = ""
    call: float | None = None

    @property
    def samples(self) -> tuple[Completion, ...]:
        """All that the request asked for: itself and `rest`."""
        return (self, *self.rest)

    @property
    def costs(self) -> tuple[Usage, Usage]:
        """What all samples cost, and the most that tries without an answer were billed beside it."""
        usage, perhaps = self.usage, self.perhaps
        for other in self.rest:
            usage, perhaps = usage + other.usage, perhaps + other.perhaps
        return usage, perhaps

    @property
    def failed(self) -> Failure | None:
        """Why there is no text, None where there is one; a model that gives no reason refused the request."""
        if self.finish not in ("error", "budget"):
            return None
        return self.failure or Failure("refused", self.error or "no reason given")

    @classmethod
    def of_failure(
        cls, failure: Failure, usage: Usage | None = None, *, request: int = 0, n: int = 1, perhaps: Usage | None = None
    ) -> Completion:
        """What answers a request of `n` samples that could not be done; the first sample carries what it cost."""
        finish: Finish = "budget" if failure.kind == "budget" else "error"
        first, *rest = (
            cls(request, i, "", finish, usage=(usage or Usage()) if not i else Usage(), error=failure.reason,
                failure=failure)
            for i in range(n)
        )  # fmt: skip
        return dataclasses.replace(first, rest=tuple(rest), perhaps=perhaps or Usage())


@runtime_checkable
class Backend(Protocol):
    """The least that a model must have: `name` identifies weights and adapter; `parameters` is the number of weights,
    None if unknown. `generator_of` puts a coroutine in front of it; the models of this package are `Generator`s.

    Example:
        class Parrot:  # handed to StepRouter as it is
            name, parameters, capabilities = "parrot", None, Capabilities()

            def continue_solutions(self, requests):
                return [Completion(i, 0, r.problem.question, "step") for i, r in enumerate(requests)]

            def close(self): ...
    """

    @property
    def name(self) -> str:
        """One name, one distribution."""
        ...

    @property
    def parameters(self) -> int | None:
        """Number of weights, None if unknown."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; a model behind an API may be asked for it only now."""
        ...

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        """A flat list in request order, `n` per request; never raises for one item."""
        ...

    def close(self) -> None:
        """Free the model; calling it twice does nothing."""
        ...


class Generator(ABC):
    """A model with one method: `await generate(request)`. Wrappers have the same shape, see `stepwise.models.wrappers`.

    `calls_per_sample`: the most calls that one sample takes (an API may be asked again). `probe_bound`: the most that
    `prepare` spends. `engines`: what a driver must move for it. `prompt_hash`: of what it puts around a question.
    `remote`: it answers when it likes, so that nothing that waits for it can be exact.

    Example:
        completion = await sw.load_backend("llamacpp/lab-weak").generate(sw.Request(problem, n=4))
        print([sample.text for sample in completion.samples])
    """

    name: str
    parameters: int | None = None
    capabilities: Capabilities
    calls_per_sample: int = 1
    prompt_hash: str = ""
    remote: bool = False

    @abstractmethod
    async def generate(self, request: Request) -> Completion:
        """The first of `request.n` samples, which has the others as `rest`; what fails is a completion that says so."""

    @property
    def engines(self) -> tuple[Any, ...]:
        """The engines of this process that it runs on."""
        return ()

    @property
    def probe_bound(self) -> Usage:
        """The most that `prepare` spends."""
        return Usage()

    def prepare(self) -> Usage:
        """Find out what the model can do, where nobody has yet, and what that cost; blocks the calling thread."""
        return Usage()

    async def ready(self) -> None:
        """`prepare` where it is needed. Raises BudgetExceededError where a wrapper's cap forbids it."""
        if self.probe_bound.calls:
            await asyncio.to_thread(self.prepare)

    def prefix_ids(self, request: Request) -> list[int]:
        """The token ids that the completion follows on, [] where they are not known or the request is refused."""
        return []

    def parts(self, request: Request) -> list[Request]:
        """The requests, of one call each, that `request` is to this model: their answers come, and are kept, one by
        one. Known once it is `ready`.
        """
        return [request]

    def reset_cache(self) -> None:  # noqa: B027
        """Drop every cached prefix, so that what follows is measured from cold."""

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        """The synchronous door: a flat list in request order, `n` per request; never raises for one item."""
        requests = as_requests(requests)
        with stage("answers", len(requests)) as advance:

            async def answered(request: Request) -> Completion:
                completion = await self.generate(request)
                advance(1)
                return completion

            results = Driver(self.engines).run([answered(request) for request in requests])
        return [
            dataclasses.replace(sample, request=number, rest=())
            for number, result in enumerate(results)
            for sample in result.samples
        ]

    def close(self) -> None:  # noqa: B027
        """Free the model; calling it twice does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def first_of(samples: Sequence[Completion]) -> Completion:
    """The first sample, with the others as its `rest`.

    >>> first = first_of([Completion(0, 0, "So 3.", "step"), Completion(0, 1, "So 4.", "step")])
    >>> [sample.text for sample in first.samples]
    ['So 3.', 'So 4.']
    """
    return dataclasses.replace(samples[0], rest=tuple(samples[1:]))
