"""What a backend is: it turns the prefix of a solution into its continuation.

Backends know nothing of routing or training. A model that fails for one item answers that item with
`finish="error"`; it raises only when the whole call is impossible (`BackendError`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.errors import DataError
from stepwise.types import Failure, Finish, Problem, Step, Usage

_FROZEN = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_FROZEN)
class Capabilities:
    """What a backend can do, found by a probe when it is loaded.

    `prefill`: continues an assistant message where it stands. `batch`: many requests share a forward pass.
    `token_ids`: the ids it returns are the ids it sampled, and it takes them back unchanged.
    """

    prefill: bool = False
    logprobs: bool = False
    grammar: bool = False
    batch: bool = False
    adapters: bool = False
    token_ids: bool = False


@dataclass(frozen=True, config=_FROZEN)
class Request:
    """Continue the solution of `problem` after the steps of `prefix`.

    `stop="step"` ends at the first blank line, `"solution"` at the final answer or the end of the message. `n` samples
    are drawn; the random numbers of sample i depend on (`seed`, i) alone, not on what else is in the batch (the logits
    do, in their last digits). `temperature=0` is greedy. `top_p=1` and `top_k=0` switch truncation off. `max_tokens`
    bounds the tokens of this continuation. `top_logprobs`: of how many of the likeliest tokens the log-probability is
    told at each position (needs the capability `logprobs`); 20 is what the common servers give at most.
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


def check_question(request: Request) -> None:
    """Raises DataError for a question that says nothing: a model would answer it with an invention."""
    if not request.problem.question.strip():
        raise DataError(f"problem {request.problem.id!r}: the question is empty; give its text")


@dataclass(frozen=True, config=_FROZEN)
class Completion:
    """One sample for request number `request` (0-based position in the call), sample number `sample`.

    `text` has no blank line at its end. `token_ids` are the ids as sampled, the blank line's or the end-of-sequence
    token's included; `logprobs` (natural log, one per id, of the untempered and untruncated distribution) where the
    backend has them. `top_logprobs` (of the same distribution, likeliest first) has an entry for each token drawn,
    those cut off included; None where they were not asked for or are not known. `finish`: "step" at a blank line;
    "answer" once a box is closed; "eos" at the end of the message
    without a box; "length"; "repeat" where the text repeats itself; "error" and "budget", with what happened in `error`
    for a person and in `failure` for the program. `rest` are the other samples of the same request, as `generate` gives
    them; each has a usage of its own.
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

    @property
    def samples(self) -> tuple[Completion, ...]:
        """All that the request asked for: itself and `rest`."""
        return (self, *self.rest)

    @property
    def failed(self) -> Failure | None:
        """Why there is no text, None where there is one; a model that gives no reason refused the request."""
        if self.finish not in ("error", "budget"):
            return None
        return self.failure or Failure("refused", self.error or "no reason given")

    @classmethod
    def of_failure(cls, failure: Failure, usage: Usage | None = None, *, request: int = 0, n: int = 1) -> Completion:
        """What answers a request of `n` samples that could not be done; the first sample carries `usage`."""
        finish: Finish = "budget" if failure.kind == "budget" else "error"
        first, *rest = (
            cls(request, i, "", finish, usage=(usage or Usage()) if not i else Usage(), error=failure.reason,
                failure=failure)
            for i in range(n)
        )  # fmt: skip
        return dataclasses.replace(first, rest=tuple(rest))


@runtime_checkable
class Backend(Protocol):
    """The one door to a model. `name` identifies weights and adapter; `parameters` is the number of weights, None if
    unknown.
    """

    name: str
    parameters: int | None

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
