"""Many items for one module, each with random numbers of its own, until all are done or the model is gone.

The language models of the module are asked through the wrappers of `stepwise.models.wrappers`: every call that DSPy
makes becomes a `Request` with messages, which says what it is about, so caps, store and usage apply there once, as they
do to the models that write steps.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import dspy
from dspy import lm15
from dspy.utils.usage_tracker import UsageTracker

from stepwise import critics
from stepwise.critics.inputs import as_steps
from stepwise.critics.module import CriticModule
from stepwise.critics.results import failed_by, usage_of
from stepwise.models import provider
from stepwise.models.api import SENDING
from stepwise.models.base import Completion, Generator, Request, first_of
from stepwise.models.callbacks import usage_entry
from stepwise.models.calls import PROVIDER
from stepwise.models.driver import Driver, outside
from stepwise.models.failures import error_of, failure_of
from stepwise.models.native import chat_of
from stepwise.models.provider import engines_of
from stepwise.models.wrappers import Wrappers, prompt_bound
from stepwise.runs.progress import stage
from stepwise.types import Step, Usage, as_problem

_call: ContextVar[Callable[[], Awaitable[Any]]] = ContextVar("stepwise_lm_call")


def model_name(module: Any) -> str:
    """Name of the model, or scorer, that a module asks; "reference" where it asks none.

    Example:
        model_name(ErrorLocalizer("llamacpp/lab-critic"))  # "llamacpp/lab-critic" and hashes of its weights
    """
    if module.predictors():
        return str(module.get_lm().model)
    return str(module.scorer.name) if module.scorer is not None else critics.REFERENCE


def ask_all(
    module: Any,
    items: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    *,
    label: str,
    concurrency: int = 1,
    greedy: Sequence[bool] | None = None,
    attempts: Sequence[int] | None = None,
    around: Wrappers | None = None,
) -> list[dspy.Prediction]:
    """The module's predictions, without DSPy's cache, a local model with the seed of each item.

    `greedy` says which items are asked at a temperature of 0, whatever the module's own is; `attempts` how often each
    was asked before. `around` is put around every call of its model or scorer. What one item alone brought about is its
    `failure`, and `error` the same as an object. Raises BackendError, naming `label`, where the model is not there, and
    BudgetExceededError where a cap refused a call.

    Example:
        items = [{"problem": "2 + 2 + 1?", "steps": ["2 + 2 = 5."]}]
        ask_all(ErrorLocalizer("llamacpp/lab-critic"), items, [0], label="the critic")[0].first_error
    """
    stopped: list[dspy.Prediction] = []
    model = around.model(_LanguageModel(module.get_lm()), "critic") if around and module.predictors() else None
    scored = isinstance(module, CriticModule) and module.scorer is not None
    scorer = around.scorer(module.scorer) if around and not model and scored else None
    limits: dict[str, Any] = {"run": around.run, "max_tokens": around.reply_tokens} if around else {}

    async def ask(item: dict[str, Any], seed: int, cold: bool, attempt: int) -> dspy.Prediction:
        if stopped:  # the same at once, without the retries of each call
            return stopped[0]
        try:
            own = _seeded(module, seed, cold)
            if model is not None:
                steps = tuple(Step(text, "attempt") for text in as_steps(item["steps"]))
                about = Request(as_problem(item["problem"]), steps, seed=seed, role="critic", attempt=attempt,
                                **limits)  # fmt: skip
                own.set_lm(_wrapped_lm(own.get_lm(), model, about))
            elif scorer is not None:
                own = copy.deepcopy(own)
                own.scorer = scorer
            if isinstance(own, CriticModule):
                prediction = await own.acall(**item)
            else:
                prediction = await asyncio.to_thread(own, **item)
            error = prediction.get("error")
            stop = error is not None and error.kind == "budget"
        except Exception as raised:
            prediction = failed_by(raised)
            stop = prediction.error.kind != "refused"
        if stop:
            stopped.append(prediction)
        return prediction

    async def counted(*task: Any) -> dspy.Prediction:
        prediction = await ask(*task)
        advance(1)
        return prediction

    tasks = zip(items, seeds, greedy or [False] * len(items), attempts or [0] * len(items), strict=True)
    with stage(label, len(items)) as advance:
        predictions = Driver(_engines(module)).run([counted(*task) for task in tasks], window=concurrency)
    if stopped:
        failure, text = stopped[0].error, stopped[0].failure
        if failure.kind == "budget":
            raise error_of(failure)
        where = f"{label}: {model_name(module)} failed, so nothing of this chunk is kept"
        raise error_of(dataclasses.replace(failure, reason=text), where)
    return predictions


def _engines(module: Any) -> tuple[Any, ...]:
    """The engines of this process that the module's models run on: the driver moves them."""
    if module.predictors():
        return engines_of(module.get_lm())
    return () if module.scorer is None else module.scorer.engines


def _seeded(module: Any, seed: int, cold: bool) -> Any:
    """The module as it is to be asked for one item."""
    if not module.predictors():
        return module
    lm, own = module.get_lm(), copy.deepcopy(module)
    local = str(lm.model).startswith("llamacpp/")  # not every API takes a seed
    own.set_lm(lm.copy(cache=False, **({"seed": seed} if local else {}), **({"temperature": 0.0} if cold else {})))
    return own


# ----- a DSPy language model as a model of the library


def _wrapped_lm(lm: Any, model: Generator, about: Request) -> Any:
    """A copy of `lm` whose calls are answered by `model`, as requests that are `about` the same thing."""
    wrapped = lm.copy()
    kind: Any = type(lm)
    wrapped.__class__ = _class_of(kind)
    wrapped._model, wrapped._about = model, about
    return wrapped


@lru_cache(maxsize=16)
def _class_of(kind: Any) -> Any:
    return type(f"Wrapped{kind.__name__}", (_Wrapped, kind), {})


class _LanguageModel(Generator):
    """A dspy.LM: what is asked of it is the call that is being made."""

    def __init__(self, lm: Any) -> None:
        self.name = str(lm.model)
        self.remote = not self.name.startswith(f"{PROVIDER}/")

    async def generate(self, request: Request) -> Completion:
        """The texts that the call gives; what it raises is a failure with what it cost."""
        read = prompt_bound(request)
        bound = Usage(self.name, 1, read, read, request.n * request.max_tokens)
        if self.remote and (sending := SENDING.get()) is not None:
            sending(bound)
        with dspy.context(usage_tracker=(tracker := UsageTracker())):
            try:
                call = _call.get()()
                # A server answers when it likes, and counts as running; a local model is the driver's to move.
                outputs = await (outside(call) if self.remote else call)
            except Exception as error:
                failure, usage = failure_of(error), usage_of(tracker)
                lost = isinstance(error, dspy.LMTimeoutError | dspy.LMTransportError)
                return Completion.of_failure(failure, usage, n=request.n, perhaps=bound if lost else None)
        if isinstance(outputs, lm15.Response):
            outputs = [outputs.message.text or ""]
        texts = [output if isinstance(output, str) else (output or {}).get("text") or "" for output in outputs]
        usages = [usage_of(tracker), *[Usage()] * len(texts)]
        return first_of([Completion(0, i, text, "eos", usage=usages[i]) for i, text in enumerate(texts)])


class _Wrapped:
    """What a wrapped language model does differently from its class; a hosted one is asked by our client."""

    has_client = True  # which it adds itself, for `CriticModule` not to

    kwargs: dict[str, Any]
    model: str
    _model: Generator
    _about: Request

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        async def call() -> Any:
            above: Any = super(_Wrapped, self)
            return above.__call__(prompt, messages=messages, **self._client(prompt), **kwargs)

        work = self._answer(call, prompt, messages, kwargs)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
        return Driver().run([work])[0]

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """See DSPy."""

        async def call() -> Any:
            above: Any = super(_Wrapped, self)
            if client := self._client(prompt):  # a client that waits
                return await asyncio.to_thread(above.__call__, prompt, messages=messages, **client, **kwargs)
            return await above.acall(prompt, messages=messages, **kwargs)

        return await self._answer(call, prompt, messages, kwargs)

    def _client(self, prompt: Any) -> dict[str, Any]:
        """The argument for LiteLLM; a `lm15.Request` has no place for it."""
        return {} if isinstance(prompt, lm15.Request) else provider.client_of(self)

    async def _answer(
        self, call: Callable[[], Awaitable[Any]], prompt: Any, messages: Any, kwargs: dict[str, Any]
    ) -> Any:
        """The texts; of a `lm15.Request` the `Response`, as DSPy 3.4 and 3.5 have it."""
        raised: list[Exception] = []

        async def caught() -> Any:
            try:
                return await call()
            except Exception as error:
                raised.append(error)
                raise

        _call.set(caught)
        canonical = isinstance(prompt, lm15.Request)  # how DSPy 3.5 is to ask
        if canonical:
            messages, params = chat_of(prompt)
            kwargs = {**kwargs, **params, "response_format": prompt.config.response_format}
        completion = await self._model.generate(
            self._request(messages or [{"role": "user", "content": prompt}], kwargs)
        )
        samples = completion.samples
        usage = sum((sample.usage for sample in samples), Usage())
        if (tracker := dspy.settings.usage_tracker) is not None and usage.calls:
            tracker.add_usage(self._model.name, usage_entry(usage))
        if completion.failed is not None:
            raise raised[-1] if raised else error_of(completion.failed)
        if not canonical:
            return [sample.text for sample in samples]
        said = lm15.Message.assistant([lm15.TextPart(samples[0].text)])
        spent = lm15.Usage(input_tokens=usage.prompt_tokens, output_tokens=usage.generated_tokens)
        return lm15.Response(id=None, model=self._model.name, message=said, finish_reason="stop", usage=spent)

    def _request(self, messages: Sequence[Any], kwargs: dict[str, Any]) -> Request:
        """The call as a request."""
        given = {key: value for key, value in {**self.kwargs, **kwargs}.items() if value is not None}
        given = {key: value for key, value in given.items() if not key.startswith("api_")}
        held = given.pop("grammar", None) or given.pop("response_format", None)
        limit = given.pop("max_tokens", None) or given.pop("max_completion_tokens", None)
        rollout = given.pop("rollout_id", None)
        return dataclasses.replace(
            self._about, messages=tuple(messages), schema=held, max_tokens=limit or self._about.max_tokens,
            n=given.pop("n", 1), temperature=given.pop("temperature", 0.7), sample=(rollout or 1) - 1, options=given,
        )  # fmt: skip
