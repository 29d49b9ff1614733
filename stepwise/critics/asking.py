"""What the modules share: typed calls in plain or asynchronous code, batches, failures as data, inputs that fit.

A module says what it asks as a generator of batches of `Ask`; `Asking` runs them, in threads or as coroutines. So each
module is written once, keeps nothing between calls, and its usage, repairs and failures are counted in one place.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import dspy
from dspy.utils.exceptions import AdapterParseError

from stepwise.config import Config, ModelConfig
from stepwise.critics.formats import Format, adapter
from stepwise.critics.formats.dspy_adapters import recorded_repairs
from stepwise.critics.parameters import Settings
from stepwise.errors import ConfigError, redact
from stepwise.types import Usage

CONCURRENCY = 8
# What limits the calls of all items of a `run_all`, of an `arun_all`.
_threads: contextvars.ContextVar[threading.Semaphore | None] = contextvars.ContextVar("stepwise_threads", default=None)
_tasks: contextvars.ContextVar[asyncio.Semaphore | None] = contextvars.ContextVar("stepwise_tasks", default=None)


@dataclass(frozen=True)
class Ask:
    """One call of a predictor. `signature` replaces the predictor's own for this call, `config` goes to the model."""

    predictor: Any
    inputs: dict[str, Any]
    signature: Any = None
    config: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """What the predictor is called with."""
        signature = {} if self.signature is None else {"signature": self.signature}
        return {**self.inputs, **signature, "config": self.config}


class Answer(NamedTuple):
    """The prediction, or None and why there is none: a reply that could not be read, raw text included."""

    prediction: Any | None
    failure: str | None = None


Plan = Generator[list[Ask], list[Answer], dspy.Prediction]


class Asking(dspy.Module):  # type: ignore[misc]
    """Base of the modules. `lm` is a model's name, a ModelConfig or a dspy.LM; None: the one DSPy is configured with.

    `adapter` is a format ("compact", "chat", "json") or a dspy.Adapter, None for the one DSPy is configured with, and
    the compact one where there is none. Every prediction has `failure` (None, or why there is no result), `repairs`
    (reasons of second calls), `warnings` (what was cut) and `usage`.

    `save` writes prompts, examples, settings and the names of language models; make the module as it was made, then
    `load`. Not in the file: keys of APIs (they must be in the environment), a scorer (only its name, which must be the
    same) and an adapter that is an object. An address (`api_base`) is in the file, but DSPy drops it, with no more than
    a line in the log, unless the file is trusted: `load(path, allow_unsafe_lm_state=True)`; without it a model behind
    an address of its own would be asked for at its provider's public one. What an optimizer returns is frozen, to DSPy:
    as part of a larger program it is not saved with it, so optimize the larger program, or save the part alone.
    """

    def __init__(
        self,
        lm: Any = None,
        adapter: Format | Any | None = None,
        *,
        bare: bool = False,
        fixed: Sequence[str] = (),
        **values: Any,
    ) -> None:
        super().__init__()
        form = adapter if adapter is None or isinstance(adapter, str) else None
        self.settings = Settings(fixed, adapter=form, bare=bare, **values)
        self._adapter = None if isinstance(adapter, str) else adapter
        self._make_predictors()
        if lm is not None:
            from stepwise.models.provider import lm as load

            self.set_lm(load(lm) if isinstance(lm, str | ModelConfig) else lm)

    @abstractmethod
    def _make_predictors(self) -> None:
        """Give the module its predictors, from `settings`."""

    @abstractmethod
    def plan(self, **inputs: Any) -> Plan:
        """What is asked, batch by batch; the return value is the prediction."""

    def setting(self, name: str) -> Any:
        """One of the settings that are saved with the module."""
        return self.settings.values[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with the same scorer and adapter: DSPy copies modules to load and to optimize them."""
        for shared in (self._adapter, getattr(self, "scorer", None)):
            memo[id(shared)] = shared
        other: Self = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    def _format(self) -> Any:
        form, bare = self.setting("adapter"), self.setting("bare")
        if form is not None:
            return adapter(form, bare=bare)
        return self._adapter or dspy.settings.adapter or adapter("compact", bare=bare)

    def run(self, plan: Plan) -> dspy.Prediction:
        """The prediction of a plan, each batch in threads."""
        with dspy.context(adapter=self._format()), dspy.track_usage() as tracker, recorded_repairs() as repairs:
            answers, unread = None, _Unread()
            while True:
                try:
                    asks = plan.send(answers)  # type: ignore[arg-type]
                except StopIteration as stop:
                    return _completed(stop.value, tracker, repairs, unread)
                answers = unread.noted(asks, _in_threads([_ask_of(ask) for ask in asks]))

    async def arun(self, plan: Plan) -> dspy.Prediction:
        """The prediction of a plan, each batch as concurrent coroutines."""
        with dspy.context(adapter=self._format()), dspy.track_usage() as tracker, recorded_repairs() as repairs:
            answers, unread = None, _Unread()
            while True:
                try:
                    asks = plan.send(answers)  # type: ignore[arg-type]
                except StopIteration as stop:
                    return _completed(stop.value, tracker, repairs, unread)
                gate = _tasks.get() or asyncio.Semaphore(CONCURRENCY)
                answers = unread.noted(asks, await asyncio.gather(*(_aask(ask, gate) for ask in asks)))


def critic_lm(config: Config) -> Any:
    """The dspy.LM of models.critic, at the temperature and length of [critic]."""
    from stepwise.models.provider import lm as load

    model = config.role("critic")
    return load(model, temperature=config.critic.temperature, max_tokens=config.critic.max_tokens)


def _ask_of(ask: Ask) -> Callable[[], Answer]:
    def call() -> Answer:
        try:
            with _threads.get() or nullcontext():
                return Answer(ask.predictor(**ask.arguments()))
        except AdapterParseError as error:
            return Answer(None, str(error))

    return call


async def _aask(ask: Ask, gate: asyncio.Semaphore) -> Answer:
    async with gate:
        try:
            return Answer(await ask.predictor.acall(**ask.arguments()))
        except AdapterParseError as error:
            return Answer(None, str(error))


def _in_threads(calls: Sequence[Callable[[], Answer]], concurrency: int = CONCURRENCY) -> list[Answer]:
    if len(calls) == 1:
        return [calls[0]()]
    with ThreadPoolExecutor(max(1, min(concurrency, len(calls)))) as pool:
        return list(pool.map(lambda pair: pair[0].run(pair[1]), [(contextvars.copy_context(), c) for c in calls]))


class _Unread(list[tuple[Any, dict[str, Any], dspy.Prediction]]):
    """The calls whose replies could not be read, as DSPy's traces have calls."""

    def noted(self, asks: Sequence[Ask], answers: Sequence[Answer]) -> list[Answer]:
        """`answers`, after a look at which of them failed."""
        for ask, answer in zip(asks, answers, strict=True):
            if answer.failure is not None:
                self.append((ask.predictor, ask.inputs, dspy.Prediction(unreadable=answer.failure)))
        return list(answers)


def _completed(prediction: dspy.Prediction, tracker: Any, repairs: list[str], unread: _Unread) -> dspy.Prediction:
    if prediction.failure is not None and dspy.settings.trace is not None:
        dspy.settings.trace.extend(unread)  # else no optimizer would ever see what failed
    prediction.repairs = list(repairs)
    prediction.usage = prediction.get("usage", Usage()) + usage_of(tracker)
    return prediction


def usage_of(tracker: Any) -> Usage:
    """The library's usage from DSPy's tracker; answers from DSPy's cache cost nothing and are not in it."""
    total = Usage()
    for model, entries in tracker.usage_data.items():
        for entry in entries:
            prompt, details = int(entry.get("prompt_tokens") or 0), entry.get("prompt_tokens_details") or {}
            evaluated = prompt - int(details.get("cached_tokens") or 0)
            total += Usage(model, 1, prompt, evaluated, int(entry.get("completion_tokens") or 0))
    return total


def run_all(
    module: dspy.Module,
    items: Iterable[dict[str, Any]],
    *,
    concurrency: int = CONCURRENCY,
    progress: str | None = None,
    on_result: Callable[[int, dspy.Prediction], None] | None = None,
) -> list[dspy.Prediction]:
    """`module(**item)` for every item, in order; whatever one meets (an error, bad input) is that item's `failure`.

    At most `concurrency` items are at work, and of these modules as many calls in flight. `progress` names the bar to
    show; `on_result` hears of each item as it is done (index and prediction), never twice at a time.
    """
    given = list(items)
    with _reporting(len(given), concurrency, progress, on_result) as done:

        def call(index: int) -> dspy.Prediction:
            _threads.set(gate)
            try:
                result = module(**given[index])
            except Exception as error:
                result = _failed_by(error)
            return done(index, result)

        gate = threading.BoundedSemaphore(concurrency)
        with ThreadPoolExecutor(concurrency) as pool:
            contexts = [contextvars.copy_context() for _ in given]
            return list(pool.map(lambda index: contexts[index].run(call, index), range(len(given))))


async def arun_all(
    module: dspy.Module,
    items: Iterable[dict[str, Any]],
    *,
    concurrency: int = CONCURRENCY,
    progress: str | None = None,
    on_result: Callable[[int, dspy.Prediction], None] | None = None,
) -> list[dspy.Prediction]:
    """`run_all` for asyncio."""
    given = list(items)
    with _reporting(len(given), concurrency, progress, on_result) as done:
        slots, gate = asyncio.Semaphore(concurrency), asyncio.Semaphore(concurrency)

        async def call(index: int) -> dspy.Prediction:
            _tasks.set(gate)  # in the task's own context
            async with slots:
                try:
                    result = await module.acall(**given[index])
                except Exception as error:
                    result = _failed_by(error)
            return done(index, result)

        return list(await asyncio.gather(*map(call, range(len(given)))))


@contextmanager
def _reporting(
    total: int, concurrency: int, progress: str | None, on_result: Callable[[int, dspy.Prediction], None] | None
) -> Iterator[Callable[[int, dspy.Prediction], dspy.Prediction]]:
    """Yields what is to be called with each item that is done; it tells `on_result` and moves the bar on."""
    from stepwise.runs.progress import progress as bar

    if concurrency < 1:
        raise ConfigError(f"concurrency is {concurrency}; give at least 1")
    lock = threading.Lock()
    with bar(progress, total) if progress else nullcontext(lambda _: None) as advance:

        def done(index: int, result: dspy.Prediction) -> dspy.Prediction:
            with lock:
                if on_result is not None:
                    on_result(index, result)
                advance(1)
            return result

        yield done


def _failed_by(error: Exception) -> dspy.Prediction:
    return failed(f"{type(error).__name__}: {redact(str(error))}")


def failed(reason: str, **values: Any) -> dspy.Prediction:
    """A prediction without a result: every field that a module documents is there, None or empty."""
    names = ("localization", "first_error", "critical_error", "intervention", "right", "reason")
    empty: dict[str, Any] = dict.fromkeys(names) | {
        name: [] for name in ("verdicts", "checks", "candidates", "reviews", "warnings")
    }
    return dspy.Prediction(**{**empty, "usage": Usage(), **values}, failure=reason, repairs=[])
