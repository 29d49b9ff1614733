"""What the modules share: typed calls in plain or asynchronous code, batches, failures as data, inputs that fit.

A module says what it asks as a generator of batches of `Ask`; `Asking` runs them, in threads or as coroutines. So each
module is written once, keeps nothing between calls, and its usage, repairs and failures are counted in one place.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, get_args

import dspy
from dspy.predict.parameter import Parameter
from dspy.utils.exceptions import AdapterParseError
from pydantic import Field

from stepwise.adapters import Format, adapter
from stepwise.adapters.dspy_adapters import recorded_repairs
from stepwise.config import Config, ModelConfig
from stepwise.errors import ConfigError, DataError
from stepwise.redact import redact
from stepwise.signatures import without_reference
from stepwise.steps import split_steps
from stepwise.types import Problem, Trace, Usage

CONCURRENCY = 8
_gate: contextvars.ContextVar[Any] = contextvars.ContextVar("stepwise_gate", default=None)  # of the calls of a batch
Steps = Sequence[str] | Trace | str
"""An attempt: its steps, a trace, or a whole solution, which is split."""


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


class Settings(Parameter):  # type: ignore[misc]
    """A module's own settings, saved and loaded with its predictors wherever the module stands in a program."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The settings as plain JSON."""
        return dict(self.values)

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> Settings:
        """Take over saved settings; those of models that run here are made known to LiteLLM again."""
        self.values = dict(state)
        return self

    def reset(self) -> None:
        """Nothing is learned here that could be reset."""


class Asking(dspy.Module):  # type: ignore[misc]
    """Base of the modules. `lm` is a model's name, a ModelConfig or a dspy.LM; None: the one DSPy is configured with.

    `adapter` is a format ("compact", "chat", "json") or a dspy.Adapter, None for the one DSPy is configured with, and
    the compact one where there is none. Every prediction has `failure` (None, or why there is no result), `repairs`
    (reasons of second calls), `warnings` (what was cut) and `usage`.
    """

    def __init__(
        self, lm: Any = None, adapter: Format | Any | None = None, *, bare: bool = False, **values: Any
    ) -> None:
        super().__init__()
        form = adapter if adapter is None or isinstance(adapter, str) else None
        self.settings = Settings(adapter=form, bare=bare, **values)
        self._adapter = None if isinstance(adapter, str) else adapter
        self._make_predictors()
        if lm is not None:
            from stepwise.backends.provider import lm as load

            self.set_lm(load(lm) if isinstance(lm, str | ModelConfig) else lm)

    def _make_predictors(self) -> None:
        raise NotImplementedError

    def plan(self, **inputs: Any) -> Plan:
        """What is asked, batch by batch; the return value is the prediction."""
        raise NotImplementedError

    def setting(self, name: str) -> Any:
        """One of the settings that are saved with the module."""
        return self.settings.values[name]

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """See DSPy; models that run in this process are known to LiteLLM afterwards."""
        from stepwise.backends.provider import register_litellm

        register_litellm()
        super().load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)

    def _format(self) -> Any:
        form, bare = self.setting("adapter"), self.setting("bare")
        if form is not None:
            return adapter(form, bare=bare)
        return self._adapter or dspy.settings.adapter or adapter("compact", bare=bare)

    def run(self, plan: Plan) -> dspy.Prediction:
        """The prediction of a plan, each batch in threads."""
        with dspy.context(adapter=self._format()), dspy.track_usage() as tracker, recorded_repairs() as repairs:
            answers: list[Answer] | None = None
            while True:
                try:
                    asks = plan.send(answers)  # type: ignore[arg-type]
                except StopIteration as stop:
                    return _completed(stop.value, tracker, repairs)
                answers = _in_threads([_ask_of(ask) for ask in asks])

    async def arun(self, plan: Plan) -> dspy.Prediction:
        """The prediction of a plan, each batch as concurrent coroutines."""
        with dspy.context(adapter=self._format()), dspy.track_usage() as tracker, recorded_repairs() as repairs:
            answers: list[Answer] | None = None
            while True:
                try:
                    asks = plan.send(answers)  # type: ignore[arg-type]
                except StopIteration as stop:
                    return _completed(stop.value, tracker, repairs)
                gate = _gate.get() or asyncio.Semaphore(CONCURRENCY)
                answers = list(await asyncio.gather(*(_aask(ask, gate) for ask in asks)))


def critic_lm(config: Config) -> Any:
    """The dspy.LM of models.critic, at the temperature and length of [critic]."""
    from stepwise.backends.provider import lm as load

    model = config.role("critic")
    return load(model, temperature=config.critic.temperature, max_tokens=config.critic.max_tokens)


def _ask_of(ask: Ask) -> Callable[[], Answer]:
    def call() -> Answer:
        try:
            with _gate.get() or nullcontext():
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


def _completed(prediction: dspy.Prediction, tracker: Any, repairs: list[str]) -> dspy.Prediction:
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
            _gate.set(gate)
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
            _gate.set(gate)  # in the task's own context
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
    from stepwise.progress import progress as bar

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
    """A prediction without a result."""
    empty = {"localization": None, "first_error": None, "intervention": None, "right": None, "warnings": []}
    return dspy.Prediction(**{**empty, "usage": Usage(), **values}, failure=reason, repairs=[])


def as_steps(steps: Steps) -> list[str]:
    """The texts of the steps of an attempt; a whole solution is split. Raises DataError where there are none."""
    if isinstance(steps, Trace):
        found = [step.text for step in steps.steps]
    elif isinstance(steps, str):
        found = split_steps(steps)
    elif isinstance(steps, Sequence):
        found = list(steps)
    else:
        raise DataError(f"steps is {steps!r}; give the texts of the steps, a Trace, or the whole solution as one text")
    for index, text in enumerate(found):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"steps[{index}] is {text!r}; give the text of a step")
    if not found:
        raise DataError("steps is empty: there is nothing to check; give at least one step")
    return [_encodable(text) for text in found]


def _encodable(text: str) -> str:
    """`text` with "?" for each lone surrogate, which no model takes."""
    return text.encode("utf-8", "replace").decode()


def question_and_reference(problem: Problem | str, reference: str | None) -> tuple[str, str | None]:
    """The texts that go into a prompt; `reference` defaults to the problem's own. Raises DataError for no question."""
    question = problem.question if isinstance(problem, Problem) else problem
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"problem is {question!r}; give the text of a problem")
    if reference is None and isinstance(problem, Problem):
        reference = problem.reference
    if not isinstance(reference, str | None):
        raise DataError(f"reference is {reference!r}; give the text of a right solution, or None")
    return _encodable(question), _encodable(reference) if reference is not None and reference.strip() else None


def fitting(signature: Any, given: dict[str, Any]) -> Any:
    """`signature`, or its form without a reference where `given` has none."""
    return signature if "reference" in given else without_reference(signature)


def bounded(signature: Any, **highest: int) -> Any:
    """`signature` with its whole-number outputs limited to 0..highest, None still allowed where it was."""
    for name, most in highest.items():
        limited = Annotated[int, Field(ge=0, le=most)]
        optional = type(None) in get_args(signature.output_fields[name].annotation)
        signature = signature.with_updated_fields(name, type_=limited | None if optional else limited)
    return signature


def at_most_rows(signature: Any, name: str, most: int) -> Any:
    """`signature` with its list output `name` limited to 1..most items: a model cannot list steps without end."""
    items: Any = signature.output_fields[name].annotation
    limited: Any = Annotated[items, Field(min_length=1, max_length=most)]
    return signature.with_updated_fields(name, type_=limited)


def cut_middle(text: str, longest: int, name: str, warnings: list[str]) -> str:
    """`text`, or its beginning and end with a mark between them, and a line in `warnings`."""
    if len(text) <= longest:
        return text
    kept = max(0, longest - 40)
    left_out = len(text) - kept
    warnings.append(f"{name} has {len(text)} characters; {left_out} in its middle were left out")
    return f"{text[: kept - kept // 2]} [... {left_out} characters left out ...] {text[len(text) - kept // 2 :]}"


def fitted(
    question: str, reference: str | None, steps: Sequence[str], longest: int
) -> tuple[str, str | None, list[str], list[str]]:
    """The three parts within `longest` characters in all, and warnings of what was left out.

    First the middle of the reference goes, then that of the longest steps, last that of the question; every step keeps
    its place, its number and its end. What is too long even so is left, with a warning.
    """
    warnings: list[str] = []
    kept = list(steps)
    overflow = len(question) + len(reference or "") + sum(map(len, kept)) - longest
    if overflow > 0 and reference is not None:
        shorter = cut_middle(reference, max(len(reference) - overflow, longest // 4), "the reference", warnings)
        overflow -= len(reference) - len(shorter)
        reference = shorter
    while overflow > 0 and max(map(len, kept)) > 200:
        place = max(range(len(kept)), key=lambda i: len(kept[i]))
        shorter = cut_middle(kept[place], max(200, len(kept[place]) - max(overflow, 100)), f"step {place}", warnings)
        overflow -= len(kept[place]) - len(shorter)
        kept[place] = shorter
    if overflow > 0:
        shorter = cut_middle(question, max(400, len(question) - overflow), "the problem", warnings)
        overflow -= len(question) - len(shorter)
        question = shorter
    if overflow > 0:
        warnings.append(f"what is left has {longest + overflow} characters, more than max_chars={longest}; it is sent")
    return question, reference, kept, warnings
