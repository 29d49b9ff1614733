"""A request on its way: its answers, what has come of them, and the two forms in which a client gets it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from stepwise.errors import visible
from stepwise.models.budget import Ledger
from stepwise.serve.answers import ServedAnswer, Tell
from stepwise.serve.metrics import ROLES, Metrics
from stepwise.serve.names import Served
from stepwise.serve.requests import ApiError, ChatRequest
from stepwise.types import Step, Usage

Chunk = dict[str, Any]
_STATUS = {"refused": (400, "invalid_request_error"), "again": (503, "server_error"), "gone": (502, "server_error")}


class Asked:
    """The answers to one request, and the queue in which their pieces come: (number, text, step), without a step at the
    end of an answer, None at the end of all.

    Example:
        asked = Asked(request, served, 1, account, Metrics())
        chunk = await asked.completion(timeout=60)
    """

    def __init__(self, request: ChatRequest, served: Served, seed: int, account: Ledger, metrics: Metrics) -> None:
        self.request, self.served, self.seed, self.account = request, served, seed, account
        self.answers: list[ServedAnswer] = []
        self.queue: asyncio.Queue[tuple[int, str, Step | None] | None] = asyncio.Queue()
        self.began = time.monotonic()
        self._metrics, self._told = metrics, False
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def teller(self, number: int) -> Tell:
        """What the answer with this number is told by."""

        def tell(text: str, step: Step) -> None:
            if not self._told:
                self._told = True
                self._metrics.first.add(time.monotonic() - self.began)
            self.queue.put_nowait((number, text, step))

        return tell

    def stop(self, reason: str) -> None:
        """Let each answer end after the step that is being made."""
        for answer in self.answers:
            answer.stop_note = answer.stop_note or reason

    async def _pieces(self, timeout: float) -> AsyncIterator[tuple[int, str, Step | None]]:
        """What comes, until all is there or the time is over."""
        until = self.began + timeout
        while True:
            try:
                piece = await asyncio.wait_for(self.queue.get(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                self.stop(f"the request took more than {timeout:g} s")
                return
            if piece is None:
                return
            yield piece

    async def completion(self, timeout: float) -> Chunk:
        """All of it in one object; raises `ApiError` where an answer failed, or nothing came of one."""
        async for _ in self._pieces(timeout):
            pass
        self._raise_faults()
        choices = [
            {"index": number, "message": {"role": "assistant", "content": answer.text}, "logprobs": None,
             "finish_reason": answer.finish_reason}
            for number, answer in enumerate(self.answers)
        ]  # fmt: skip
        return self._object("chat.completion", choices, usage=self.usage(), stepwise=self.extension())

    async def chunks(self, timeout: float) -> AsyncIterator[Chunk]:
        """One chunk a step, one at the end of each answer; the last of these has what all took."""
        wants = self.request.stream_options.include_usage
        kind, more = "chat.completion.chunk", {"usage": None} if wants else {}
        begun: set[int] = set()
        ended: set[int] = set()
        async for number, text, step in self._pieces(timeout):
            if step is None:
                ended.add(number)
                continue
            delta = {"content": text} if number in begun else {"role": "assistant", "content": text}
            begun.add(number)
            told = {"stepwise": _shown(step)} if self.request.stepwise.steps else {}
            yield self._object(kind, [_choice(number, delta)], **more, **told)
        self._raise_faults()
        for number, answer in enumerate(self.answers):
            last = {"stepwise": self.extension()} if number == len(self.answers) - 1 else {}
            delta = {} if number in begun else {"role": "assistant", "content": ""}
            yield self._object(kind, [_choice(number, delta, answer.finish_reason)], **more, **last)
        if wants:
            yield self._object(kind, [], usage=self.usage())

    def _object(self, kind: str, choices: list[Chunk], **more: Any) -> Chunk:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.request.model,
                "choices": choices, **more}  # fmt: skip

    def _raise_faults(self) -> None:
        for answer in self.answers:
            if (fault := _fault(answer)) is not None:
                raise fault

    def usage(self) -> Chunk:
        """Tokens as OpenAI counts them: of the prompt, once, and of the steps that stand."""
        prompts = [next((step.usage for step in answer.trace().written), Usage()) for answer in self.answers]
        first = prompts[0] if prompts else Usage()
        generated = sum(answer.tokens for answer in self.answers)
        cached = max(0, first.prompt_tokens - first.evaluated_tokens)
        return {"prompt_tokens": first.prompt_tokens, "completion_tokens": generated,
                "total_tokens": first.prompt_tokens + generated,
                "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip

    def extension(self) -> Chunk:
        """What is ours to say: policy, seed, tokens and money by role, how each answer ended and what was down; with
        `steps`, the author, score and decision of each.
        """
        spent = {role: self.account.usage(role) for role in ROLES}
        return {
            "policy": self.served.label, "calibrated": self.served.calibrated, "note": self.served.note,
            "seed": self.seed,
            "usage": {role: _usage(usage) for role, usage in spent.items() if usage.calls},
            "cost": self.account.usage().cost,
            "choices": [self._ending(answer) for answer in self.answers],
        }  # fmt: skip

    def _ending(self, answer: ServedAnswer) -> Chunk:
        steps = {"steps": [_shown(step) for step in answer.steps]} if self.request.stepwise.steps else {}
        return {"finish": answer.finish or "timeout", "note": visible(answer.note),
                "down": [visible(fault) for fault in answer.faults], **steps}  # fmt: skip


def _choice(number: int, delta: Chunk, reason: str | None = None) -> Chunk:
    return {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}


def _shown(step: Step) -> Chunk:
    return {"author": step.author, "score": step.score, "decision": visible(step.decision), "text": step.text,
            "model": step.usage.model}  # fmt: skip


def _usage(usage: Usage) -> Chunk:
    return {"calls": usage.calls, "prompt_tokens": usage.prompt_tokens, "evaluated_tokens": usage.evaluated_tokens,
            "generated_tokens": usage.generated_tokens, "cost": usage.cost}  # fmt: skip


def _fault(answer: ServedAnswer) -> ApiError | None:
    """Why there is no answer; None where there is one, if only its beginning."""
    if answer.finish == "error":
        status, kind = _STATUS.get(answer.failure.kind if answer.failure else "", (500, "server_error"))
        return ApiError(status, answer.note, kind=kind)
    if answer.text or answer.finish in ("answer", "capped", "eos", "length", "repeat", "steps"):
        return None
    if answer.finish == "budget":
        return ApiError(429, answer.note, kind="insufficient_quota", code="insufficient_quota")
    return ApiError(503 if answer.finish else 504, answer.stop_note or answer.note, kind="server_error")
