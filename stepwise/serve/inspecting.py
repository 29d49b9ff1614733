"""A router as a model of inspect_ai, which finds this file by its entry point:

    inspect eval task.py --model stepwise/router.toml

What stands behind "stepwise/" is as in `serve.doors`. Settings of inspect that change no answer (retries, connections,
its cache) are its own; what a server of ours refuses (tools, logprobs, a schema) is refused here, too.
"""

from __future__ import annotations

import asyncio
from typing import Any

from stepwise.errors import MissingDependencyError
from stepwise.serve.doors import PROVIDER, open_router
from stepwise.serve.requests import ApiError

try:
    from inspect_ai import model as inspect
except ImportError:
    raise MissingDependencyError("this needs inspect_ai, which is not installed; pip install inspect-ai") from None

_NAMES = {"stop_seqs": "stop", "num_choices": "n"}  # ours of theirs, where they differ
_THEIRS = frozenset({
    "max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections",
    "system_message", "cache", "batch", "max_tool_output", "parallel_tool_calls", "internal_tools",
})  # fmt: skip


@inspect.modelapi(name=PROVIDER)
class InspectRouter(inspect.ModelAPI):
    """What inspect_ai asks for "stepwise/router.toml". Its samples are counted against the caps of the configuration.

    Example:
        inspect_ai.eval(task, model="stepwise/router.toml/router-threshold-0.9", max_connections=1)
    """

    def __init__(
        self, model_name: str, base_url: str | None = None, api_key: str | None = None,
        config: Any = None, **model_args: Any,
    ) -> None:  # fmt: skip
        super().__init__(model_name, base_url, api_key, [], config or inspect.GenerateConfig())
        self._router, self._model = open_router(model_name)

    async def generate(self, input: list[Any], tools: list[Any], tool_choice: Any, config: Any) -> Any:
        """A ModelOutput; raises `ApiError` for what the router does not take."""
        given = config.model_dump(exclude_none=True, exclude=set(_THEIRS))
        body = {_NAMES.get(key, key): value for key, value in given.items()}
        messages = [{"role": message.role, "content": message.text} for message in input]
        body |= {"model": self._model, "messages": messages} | ({"tools": tools} if tools else {})
        reply = await asyncio.wrap_future(self._router.start(self._router.service.chat(body)))
        usage, name = reply["usage"], f"{PROVIDER}/{self.model_name}"
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return inspect.ModelOutput(
            model=name,
            choices=[
                inspect.ChatCompletionChoice(
                    message=inspect.ChatMessageAssistant(
                        content=choice["message"]["content"], model=name, source="generate"
                    ),
                    stop_reason="stop" if choice["finish_reason"] == "stop" else "max_tokens",
                )
                for choice in reply["choices"]
            ],
            usage=inspect.ModelUsage(
                input_tokens=usage["prompt_tokens"] - cached, input_tokens_cache_read=cached,
                output_tokens=usage["completion_tokens"], total_tokens=usage["total_tokens"],
            ),
            metadata={"stepwise": reply["stepwise"]},
        )  # fmt: skip

    def should_retry(self, ex: Exception) -> bool:
        """Too many wait, a model is gone for now, or nothing came in time."""
        return isinstance(ex, ApiError) and ex.status in (429, 503, 504)
