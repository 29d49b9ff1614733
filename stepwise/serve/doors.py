"""A router by one string: "stepwise/router.toml" for LiteLLM, and so for DSPy; models of any other provider as before.

    litellm.completion(model="stepwise/router.toml", messages=[...])          # after sw.register_litellm()
    dspy.configure(lm=sw.lm("stepwise/router.toml/router-threshold-0.4"))

What stands before ".toml" is the path of a configuration, what follows it a model name of `names.Policies`. Its models
are loaded at the first call and stay loaded; the caps of its [budget] count from there on, for this process.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from stepwise.config import Config, LoadConfig
from stepwise.errors import ConfigError
from stepwise.models import provider
from stepwise.models.engine.context import no_interrupt
from stepwise.models.litellm_handler import import_litellm
from stepwise.serve.requests import ApiError

T = TypeVar("T")
PROVIDER = "stepwise"
_NAME = re.compile(r"(?P<path>.+\.toml)(?:/(?P<model>[\w.-]+))?(?:@(?P<hash>[0-9a-f]{12}))?", re.DOTALL)
_SENT_ALONG = ("stream", "max_retries", "extra_headers")  # by LiteLLM and DSPy; they change no answer
_lock = threading.Lock()
_open: dict[tuple[str, str], _Router] = {}


def register_litellm() -> None:
    """Make `llamacpp/...` and `stepwise/...` known to LiteLLM, beside the providers that are there; twice does nothing.

    Needed only where LiteLLM is called directly: `lm` does it by itself.

    Example:
        sw.register_litellm()
        litellm.completion("stepwise/router.toml", messages=[{"role": "user", "content": "What is 2 + 2?"}])
    """
    provider.register_litellm()
    litellm = import_litellm()
    with _lock:
        if not any(item["provider"] == PROVIDER for item in litellm.custom_provider_map):
            from litellm.llms.custom_llm import CustomLLM

            handler = type("RouterHandler", (RouterHandler, CustomLLM), {})()
            litellm.custom_provider_map.append({"provider": PROVIDER, "custom_handler": handler})
        litellm.utils.custom_llm_setup()


def lm(
    spec: str | Path | Mapping[str, Any] | LoadConfig, *, engine: Literal["litellm", "native"] = "litellm",
    **settings: Any,
) -> Any:  # fmt: skip
    """A dspy.LM for any model: "llamacpp/lab-weak", "openai/...", a ModelConfig, or a router, "stepwise/router.toml".

    For a router see the module; `settings` are then keywords of dspy.LM. For a model see `stepwise.models.provider.lm`,
    to which everything goes. Raises ConfigError, BackendError, and MissingDependencyError without LiteLLM.

    Example:
        >>> lm("llamacpp/lab-critic", engine="native").model.partition("@")[0]
        'llamacpp/lab-critic'
    """
    if not isinstance(spec, str) or not spec.startswith(f"{PROVIDER}/"):
        return provider.lm(spec, engine=engine, **settings)
    if engine != "litellm":
        raise ConfigError(f"engine is {engine!r}; a router is asked through LiteLLM, leave it out")
    import dspy

    register_litellm()
    path, model, _ = _parts(spec.removeprefix(f"{PROVIDER}/"))
    return dspy.LM(f"{PROVIDER}/{path}/{model}@{Config.load(path).hash}", engine="litellm", **settings)


def close_routers() -> int:
    """Close the routers that calls have loaded; says how many. The next call loads anew.

    >>> close_routers()
    0
    """
    with _lock:
        routers = [_open.pop(key) for key in list(_open)]
    with no_interrupt():  # all of them
        for router in routers:
            router.close()
    return len(routers)


class _Router:
    """A configuration's service, on a driver's loop in a thread of its own."""

    def __init__(self, config: Config) -> None:
        from stepwise.models.budget import Ledger
        from stepwise.serve.service import Service

        ledger, ready = Ledger.for_config(config), threading.Event()
        self._errors: list[BaseException] = []
        self._ended = threading.Event()
        self._models = Service.router(config)

        async def main() -> None:
            self.service, self._loop = Service(self._models, config, ledger), asyncio.get_running_loop()
            self._end = asyncio.Event()
            ready.set()
            await self._end.wait()
            await self.service.stop(reason="the router was closed")

        def work() -> None:
            from stepwise.models.driver import Driver

            try:
                Driver(exact=False).run([main()])
            except BaseException as error:
                self._errors.append(error)
            finally:
                ready.set()
                self._ended.set()

        with no_interrupt():  # what was begun can be closed before Ctrl-C is heard
            threading.Thread(target=work, name="stepwise-router", daemon=True).start()
            ready.wait()
        for error in self._errors:
            self._models.close()
            raise error

    def start(self, work: Coroutine[Any, Any, T]) -> Any:
        """`work` on the router's loop, as a future of `concurrent.futures`."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns; where Ctrl-C breaks the wait off, nothing more is asked of any model for it."""
        future = self.start(work)
        try:
            return future.result()  # type: ignore[no-any-return]
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Let open steps end, and free the models."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._end.set)
        with no_interrupt():
            self._ended.wait()
            self._models.close()


def _parts(name: str) -> tuple[str, str, str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f'"{PROVIDER}/{name}" names no router; write the path of a configuration, "{PROVIDER}/router.toml", and '
            f'after it a policy, "{PROVIDER}/router.toml/router-threshold-0.4"'
        )
    return match["path"], match["model"] or "router", match["hash"] or ""


def open_router(name: str) -> tuple[_Router, str]:
    """The router of "router.toml/router-threshold-0.4", loaded at the first call, and the model name in it. Raises
    ConfigError for a name that is none, or a configuration that was changed since.

    Example:
        router, model = open_router("router.toml")
        router.start(router.service.chat({"model": model, "messages": messages})).result()
    """
    path, model, hash = _parts(name)
    config = Config.load(path)
    if hash and hash != config.hash:
        raise ConfigError(f"{path} was changed since (its hash is now {config.hash}); call stepwise.lm again")
    key = str(Path(path).resolve()), config.hash
    with _lock:
        if key not in _open:
            _open[key] = _Router(config)
        return _open[key], model


class RouterHandler:
    """What LiteLLM calls for `stepwise/...`; errors are LiteLLM's. `register_litellm` hands it over.

    Example:
        litellm.completion("stepwise/router.toml/router-never", messages=messages, stream=True)
    """

    def completion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
        """A ModelResponse; what is ours to say of it (`service`) stands in its `stepwise`."""
        router, body = self._asked(model, messages, kwargs)
        with _Errors(model):
            return _filled(kwargs["model_response"], router.ask(router.service.chat(body)), model)

    async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
        """`completion` as a coroutine."""
        router, body = await asyncio.to_thread(self._asked, model, messages, kwargs)
        with _Errors(model):
            result = await asyncio.wrap_future(router.start(router.service.chat(body)))
            return _filled(kwargs["model_response"], result, model)

    def streaming(self, model: str, messages: list[Any], **kwargs: Any) -> Iterator[dict[str, Any]]:
        """A chunk a step; the last has the finish reason and the usage."""
        router, body = self._asked(model, messages, kwargs)
        chunks = router.service.stream({**body, "stream": True, "stream_options": {"include_usage": True}})
        with _Errors(model):
            try:
                yield from _chunks(iter(lambda: router.start(_next(chunks)).result(), None))
            finally:
                router.start(_close(chunks)).result()

    async def astreaming(self, model: str, messages: list[Any], **kwargs: Any) -> AsyncIterator[dict[str, Any]]:
        """`streaming` for asyncio."""
        chunks = self.streaming(model, messages, **kwargs)
        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
        finally:
            chunks.close()  # type: ignore[attr-defined]

    @staticmethod
    def _asked(model: str, messages: list[Any], kwargs: Mapping[str, Any]) -> tuple[_Router, dict[str, Any]]:
        given = {key: value for key, value in kwargs["optional_params"].items() if key not in _SENT_ALONG}
        try:
            router, name = open_router(model)
            return router, {"model": name, "messages": messages, **given}
        except ConfigError as error:
            raise import_litellm().BadRequestError(str(error), model=model, llm_provider=PROVIDER) from error


class _Errors:
    """Turns an `ApiError` into LiteLLM's of the same meaning."""

    def __init__(self, model: str) -> None:
        self._model = model

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, ApiError):
            return
        litellm = import_litellm()
        of = {400: litellm.BadRequestError, 404: litellm.NotFoundError, 429: litellm.RateLimitError,
              503: litellm.ServiceUnavailableError, 504: litellm.Timeout}  # fmt: skip
        code = error.body["error"]["code"]
        cls = of.get(error.status, litellm.InternalServerError)
        cls = litellm.ContextWindowExceededError if code == "context_length_exceeded" else cls
        raise cls(str(error), model=self._model, llm_provider=PROVIDER) from error


async def _next(chunks: Any) -> Any:
    return await anext(chunks, None)


async def _close(chunks: Any) -> None:
    await chunks.aclose()


def _filled(response: Any, result: Mapping[str, Any], model: str) -> Any:
    """LiteLLM's own response object with what the router said."""
    from litellm.types.utils import Choices, Message, Usage

    response.choices = [
        Choices(index=choice["index"], message=Message(**choice["message"]), finish_reason=choice["finish_reason"])
        for choice in result["choices"]
    ]
    response.id, response.model, response.usage = result["id"], f"{PROVIDER}/{model}", Usage(**result["usage"])
    response.stepwise = result["stepwise"]
    return response


def _chunks(chunks: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """LiteLLM's chunks; the end waits for the usage, which comes after it."""
    end: Mapping[str, Any] | None = None
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["finish_reason"]:
                end = choice
            else:
                yield _chunk(choice)
        if not chunk["choices"] and end is not None:
            yield {**_chunk(end), "is_finished": True, "finish_reason": end["finish_reason"], "usage": chunk["usage"]}


def _chunk(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": choice["delta"].get("content", ""), "is_finished": False, "finish_reason": "", "usage": None,
            "index": choice["index"], "tool_use": None}  # fmt: skip
