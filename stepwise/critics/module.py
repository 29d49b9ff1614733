"""What the modules share: one coroutine each, run for callers who wait and for asyncio; batches; failures as data.

A module is `__init__` and the coroutine `run`, which calls predictors by `await self.call(...)`. A caller who waits
(`module(...)`, `run_all`) has the coroutine run in a loop of its own, and every call of a model in a thread, by the
model's synchronous side; `module.acall(...)` awaits the asynchronous one. Either way what is set by
`dspy.context`, callbacks, traces and usage trackers reach every call.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import threading
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError

from stepwise.config import Config, CriticConfig, ModelConfig, is_lab_critic
from stepwise.critics import signatures
from stepwise.critics.formats import Format, adapter
from stepwise.critics.formats.dspy_adapters import held, repair_reasons
from stepwise.critics.inputs import Steps, as_steps, attempt_of, fitted, question_and_reference
from stepwise.critics.parameters import Predictor, Settings
from stepwise.critics.results import failed, failed_by, usage_of
from stepwise.errors import ConfigError
from stepwise.models import provider
from stepwise.models.calls import PROVIDER
from stepwise.models.driver import outside
from stepwise.models.failures import is_gone
from stepwise.runs.progress import progress as progress_bar
from stepwise.types import Problem, Usage

T = TypeVar("T")
CONCURRENCY = 8
OnResult = Callable[[int, dspy.Prediction], None]
# What the calls in flight go through: a pool of threads (synchronous callers) or a semaphore of the running loop.
_gate: ContextVar[ThreadPoolExecutor | asyncio.Semaphore | None] = ContextVar("stepwise_gate", default=None)
# Of one run: the calls whose replies could not be read, as DSPy's traces have calls; what was cut from the prompt.
_unread: ContextVar[list[tuple[Any, dict[str, Any], dspy.Prediction]]] = ContextVar("stepwise_unread")
_cut: ContextVar[list[str]] = ContextVar("stepwise_cut")


class CriticModule(dspy.Module):  # type: ignore[misc]
    """Base of the modules. `lm` is a model's name, a ModelConfig or a dspy.LM; None: the one DSPy is configured with.

    `adapter` is a format ("compact", "chat", "json") or a dspy.Adapter, None for the one DSPy is configured with, and
    the compact one where there is none; `bare` as in `formats.adapter`, None: as the model was trained (lab-critic: no
    instructions). A local model that is named is asked as [critic] says: greedily, for at most 1,024 tokens a reply.
    What goes into a prompt is cut to `max_chars`.
    Every prediction has `failure` (None, or why there is no result) and `error` (the same as a `Failure`), `repairs`
    (reasons of second calls), `warnings` (what was cut) and `usage`.

    `save` writes prompts, examples, settings and the names of language models; make the module as it was made, then
    `load`. Not in the file: keys of APIs (they must be in the environment), a scorer (only its name, which must be the
    same) and an adapter that is an object. An address (`api_base`) is in the file, but DSPy drops it, with no more than
    a line in the log, unless the file is trusted: `load(path, allow_unsafe_lm_state=True)`; without it a model behind
    an address of its own would be asked for at its provider's public one. What an optimizer returns is frozen, to DSPy:
    as part of a larger program it is not saved with it, so optimize the larger program, or save the part alone.

    Example:
        localizer = sw.ErrorLocalizer("openai/NAME", adapter="json")  # a CriticModule
        result = localizer(problem=problem, steps=steps)
        print(result.first_error, result.failure, result.usage.generated_tokens)
    """

    scorer: Any = None

    def __init__(
        self,
        predictors: Mapping[str, Any],
        lm: Any = None,
        adapter: Format | Any | None = None,
        fixed: Sequence[str] = (),
        callbacks: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        super().__init__(callbacks=list(callbacks))
        form = adapter if adapter is None or isinstance(adapter, str) else None
        self.settings = Settings(fixed, adapter=form, **settings)
        self._adapter = None if isinstance(adapter, str) else adapter
        for name, signature in predictors.items():
            setattr(self, name, Predictor(signature))
        if lm is not None:
            self.set_lm(_named_lm(lm, CriticConfig()) if isinstance(lm, str | ModelConfig) else lm)

    @abstractmethod
    async def run(self, *args: Any, **kwargs: Any) -> dspy.Prediction:
        """The prediction: what a module is called with, and what it does. A reply that cannot be read may be raised."""

    def forward(self, *args: Any, **kwargs: Any) -> dspy.Prediction:
        """What `run` gives, for callers who wait, within a running loop or without one."""
        return _waited(self.aforward(*args, **kwargs))

    async def aforward(self, *args: Any, **kwargs: Any) -> dspy.Prediction:
        """What `run` gives, with `failure`, `error`, `repairs` and `usage`."""
        gate = _gate.get() or asyncio.Semaphore(CONCURRENCY)
        name, given = type(self).__name__, attempt_of(list(inspect.signature(self.run).parameters), args, kwargs)
        if dspy.settings.lm is None and any(predictor.lm is None for predictor in self.predictors()):
            raise ConfigError(
                f'{name} has no language model; give one, {name}("llamacpp/lab-critic"), or set one for all of DSPy, '
                'dspy.configure(lm=sw.lm("llamacpp/lab-critic"))'
            )
        with (
            dspy.context(adapter=self._format()),
            dspy.track_usage() as tracker,
            held(repair_reasons, []) as repairs,
            held(_unread, []) as unread,
            held(_cut, []) as cut,
            held(_gate, gate),
        ):
            try:
                prediction = await self.run(**given)
            except AdapterParseError as error:
                prediction = failed(str(error))
            if prediction.failure is not None and dspy.settings.trace is not None:
                dspy.settings.trace.extend(unread)  # else no optimizer would ever see what failed
        prediction.error, prediction.warnings = prediction.get("error"), [*cut, *prediction.get("warnings", [])]
        prediction.repairs = list(repairs)
        prediction.usage = prediction.get("usage", Usage()) + usage_of(tracker)
        return prediction

    def setting(self, name: str) -> Any:
        """One of the settings that are saved with the module."""
        return self.settings.values[name]

    async def call(
        self, predictor: Any, inputs: Mapping[str, Any], signature: Any = None, config: Mapping[str, Any] | None = None
    ) -> dspy.Prediction:
        """What `predictor` says, asked once more where its reply could not be read; AdapterParseError where that failed
        too. `signature` replaces the predictor's own for this call, `config` goes to the model. Numbers of steps count
        from 0 here, and from `first_number` in the prompt, in its examples and in the reply.
        """
        first = self.first_number
        inputs = signatures.shifted(inputs, first)
        arguments = {**inputs, "config": dict(config or {}), **({} if signature is None else {"signature": signature})}
        if predictor.demos:
            arguments["demos"] = [_counted_from(first, demo) for demo in predictor.demos]
        reply = await self._asked(predictor, arguments, inputs)
        return dspy.Prediction(**signatures.shifted(dict(reply.items()), -first))

    @property
    def first_number(self) -> int:
        """The number of the first step in prompts and replies: 1, or 0 in lab-critic's own format."""
        return 0 if getattr(dspy.settings.adapter, "bare", False) else 1

    async def _asked(self, predictor: Any, arguments: dict[str, Any], inputs: dict[str, Any]) -> dspy.Prediction:
        gate, lm = _gate.get(), predictor.lm or dspy.settings.lm
        client = {} if getattr(lm, "has_client", False) else provider.client_of(lm)
        arguments["config"].update(client)
        try:
            if isinstance(gate, ThreadPoolExecutor):
                call = partial(copy_context().run, predictor, **arguments)
                return await asyncio.get_running_loop().run_in_executor(gate, call)
            async with gate or nullcontext():
                asked = asyncio.to_thread(predictor, **arguments) if client else predictor.acall(**arguments)
                # A server answers when it likes, and counts as running; a local model is the driver's to move.
                return await (asked if _is_local(predictor) else outside(asked))
        except AdapterParseError as error:
            _unread.get().append((predictor, inputs, dspy.Prediction(unreadable=str(error))))
            raise

    def prepared(
        self, problem: Problem | str, steps: Steps, reference: str | None = None
    ) -> tuple[dict[str, str], list[str]]:
        """Problem and reference (where there is one) as inputs of a signature, and the texts of the steps, cut to
        `max_chars`; raises DataError for an empty attempt or question.
        """
        texts = as_steps(steps)
        question, solution = question_and_reference(problem, reference)
        question, solution, texts, warnings = fitted(question, solution, texts, self.setting("max_chars"))
        _cut.get().extend(warnings)
        return {"problem": question, **({} if solution is None else {"reference": solution})}, texts

    def sampling(self, number: int | None = None, temperature: float = 0.0) -> dict[str, Any]:
        """Settings of a call: those of sample `number`, by default at `temperature`; of a single call where it is None.

        Rollout ids keep DSPy's cache from making one sample of many.
        """
        own = self.setting("temperature")
        if number is None:
            return {} if own is None else {"temperature": own}
        return {"temperature": temperature if own is None else own, "rollout_id": number + 1}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with the same scorer and adapter: DSPy copies modules to load and to optimize them."""
        for shared in (self._adapter, self.scorer):
            memo[id(shared)] = shared
        other: Self = type(self).__new__(type(self))
        memo[id(self)] = other
        dspy.Module.__setstate__(other, copy.deepcopy(dspy.Module.__getstate__(self), memo))
        return other

    def _format(self) -> Any:
        form, bare = self.setting("adapter"), self.setting("bare")
        if bare is None:
            bare = form in (None, "compact") and any(_is_lab_critic(each) for each in self.predictors())
        if form is not None:
            return adapter(form, bare=bare)
        return self._adapter or dspy.settings.adapter or adapter("compact", bare=bare)


class SingleCall(CriticModule):
    """Base of the modules that ask one thing: `asks` is its name, and its signature.

    Example:
        judge = sw.StepJudge("llamacpp/lab-critic")  # a SingleCall
        print(judge(problem=problem, steps=steps).right)
    """

    asks: ClassVar[tuple[str, Any]]

    def __init__(
        self,
        lm: Any = None,
        *,
        adapter: Format | Any | None = None,
        bare: bool | None = None,
        max_chars: int = 40_000,
        callbacks: Sequence[Any] = (),
    ) -> None:
        super().__init__(dict([self.asks]), lm, adapter, bare=bare, max_chars=max_chars, callbacks=callbacks)


def _counted_from(first: int, demo: Any) -> Any:
    """An example whose steps are numbered from `first`, as the prompt's are; those of the user count from 0."""
    shown = str(demo.get("attempt", ""))[:3]
    if shown not in ("[0]", "[1]"):
        return demo
    moved = signatures.shifted(dict(demo.items()), first - int(shown[1]))
    return type(demo)(base=demo, **moved)


def _is_local(predictor: Any) -> bool:
    return _model_of(predictor).startswith(f"{PROVIDER}/")


def _is_lab_critic(predictor: Any) -> bool:
    lm = predictor.lm or dspy.settings.lm
    adapter = getattr(lm, "kwargs", {}).get("adapter")
    return is_lab_critic(_model_of(predictor).partition("@")[0], adapter)  # behind the @ are hashes


def _model_of(predictor: Any) -> str:
    return str(getattr(predictor.lm or dspy.settings.lm, "model", ""))


def critic_lm(config: Config) -> Any:
    """The dspy.LM of models.critic, at the temperature and length of [critic].

    Example:
        with dspy.context(lm=critic_lm(sw.Config.load("mine.toml"))):
            found = sw.ErrorLocalizer()(problem=problem, steps=steps)
    """
    return provider.lm(config.models.critic, **_reply_settings(config.critic))


def _reply_settings(critic: CriticConfig) -> dict[str, Any]:
    return {"temperature": critic.temperature, "max_tokens": critic.max_tokens}


def _named_lm(model: str | ModelConfig, critic: CriticConfig) -> Any:
    """The dspy.LM of a name; what an API takes is its own affair."""
    name = model if isinstance(model, str) else model.model
    return provider.lm(model, **(_reply_settings(critic) if name.startswith((f"{PROVIDER}/", "hf:")) else {}))


def run_all(
    module: Callable[..., dspy.Prediction],
    items: Iterable[dict[str, Any]],
    *,
    concurrency: int = CONCURRENCY,
    progress: str | None = None,
    on_result: OnResult | None = None,
) -> list[dspy.Prediction]:
    """`module(**item)` for every item, in order; whatever one meets (an error, bad input) is that item's `failure`.
    A refused key, or a model that is not there, is that of all items after it too, which are not asked about.

    At most `concurrency` items are at work, and of these modules as many calls in flight. `progress` names the bar to
    show; `on_result` hears of each item as it is done (index and prediction), never twice at a time. After Ctrl-C no
    item begins, and those at work are waited for.

    Example:
        items = [{"problem": problem, "steps": steps} for steps in attempts]
        found = run_all(sw.ErrorLocalizer("openai/NAME"), items, concurrency=8, progress="locating")
    """
    if concurrency < 1:
        raise ConfigError(f"concurrency is {concurrency}; give at least 1")
    given, lock, gone = list(items), threading.Lock(), list[Exception]()
    bar = progress_bar(progress, len(given)) if progress else nullcontext(lambda _: None)
    with bar as advance, ThreadPoolExecutor(concurrency) as calls:

        def work(index: int) -> dspy.Prediction:
            _gate.set(calls)
            try:
                result = module(**given[index]) if not gone else failed_by(gone[0])
            except Exception as error:
                result = failed_by(error)
                if is_gone(error):
                    gone.append(error)
            with lock:
                if on_result is not None:
                    on_result(index, result)
                advance(1)
            return result

        with ThreadPoolExecutor(concurrency) as pool:
            contexts = [copy_context() for _ in given]
            return list(pool.map(lambda index: contexts[index].run(work, index), range(len(given))))


def _waited(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, run in a loop of its own: in this thread, or in another where this one has a running loop."""

    def run() -> T:
        if isinstance(_gate.get(), ThreadPoolExecutor):
            return asyncio.run(work)
        with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="stepwise-critic") as pool:
            _gate.set(pool)
            return asyncio.run(work)

    context = copy_context()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return context.run(run)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(context.run, run).result()
