"""A dspy.LM that follows a script: it stands in for a language model, and remembers the messages of every call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import dspy
from dspy.clients.engines.dummy_engine import AsyncDummyEngine, DummyEngine
from dspy.lm15 import Message, Response, TextPart, Usage
from dspy.utils import DummyLM

Messages = list[dict[str, Any]]


class ScriptedLM(DummyLM):
    """Replies from `script`: texts, one for each call in turn, or a function of the messages of a call.

    `calls` holds the messages of every call; tokens are words. A script of texts that has ended is an AssertionError.
    Nothing is cached. Copies (DSPy makes them) share the script and `calls`.
    """

    def __init__(self, script: Iterable[str] | Callable[[Messages], str], model: str = "scripted") -> None:
        super().__init__([])
        self.model = model
        self.calls: list[Messages] = []
        self._replies = script if callable(script) else _in_turn(script)
        self._engine_spec = _Engine(self)
        self._async_engine_spec = AsyncDummyEngine(self._engine_spec)

    def copy(self, **kwargs: Any) -> ScriptedLM:
        """See DSPy."""
        copied = dspy.BaseLM.copy(self, **kwargs)
        copied.calls, copied._replies = self.calls, self._replies
        copied._engine_spec = _Engine(copied)
        copied._async_engine_spec = AsyncDummyEngine(copied._engine_spec)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptedLM:
        """The same model: DSPy's optimizers copy programs with what they hold."""
        return self


class _Engine(DummyEngine):
    def _complete_messages(self, messages: Messages) -> Response:
        self.owner.calls.append(messages)
        reply = self.owner._replies(messages)
        prompt = sum(len(str(message["content"]).split()) for message in messages)
        usage = Usage(input_tokens=prompt, output_tokens=len(reply.split()), total_tokens=prompt + len(reply.split()))
        text = Message.assistant([TextPart(reply)])
        return Response(id=None, model=self.owner.model, message=text, finish_reason="stop", usage=usage)


def _in_turn(script: Iterable[str]) -> Callable[[Messages], str]:
    replies, lock = iter(script), threading.Lock()

    def reply(messages: Messages) -> str:
        with lock:
            text = next(replies, None)
        assert text is not None, f"the script has ended, but the model was asked: {messages[-1]['content']!r}"
        return text

    return reply
