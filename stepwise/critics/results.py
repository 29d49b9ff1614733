"""Predictions without a result, and what calls cost."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError

from stepwise.errors import redact
from stepwise.models.failures import failure_of
from stepwise.types import Failure, Usage

T = TypeVar("T")


async def caught(work: Awaitable[T]) -> T | AdapterParseError:
    """What `work` gives, or the error of a reply that could not be read.

    Example:
        reply = await caught(predict.acall(problem=problem, attempt=attempt))
        if isinstance(reply, AdapterParseError):
            print("could not be read")
    """
    try:
        return await work
    except AdapterParseError as error:
        return error


def failed(reason: str, error: Failure | None = None, **values: Any) -> dspy.Prediction:
    """A prediction without a result: every field that a module documents is there, None or empty.

    >>> prediction = failed("the reply is not a JSON object")
    >>> prediction.failure, prediction.first_error, prediction.error.kind
    ('the reply is not a JSON object', None, 'refused')
    """
    names = ("localization", "first_error", "critical_error", "intervention", "right", "reason", "decision", "solution")
    empty: dict[str, Any] = dict.fromkeys(names)
    empty |= {name: [] for name in ("verdicts", "checks", "candidates", "reviews", "warnings", "repairs")}
    error = error or Failure("refused", reason)
    return dspy.Prediction(**{**empty, "usage": Usage(), **values}, failure=reason, error=error)


def failed_by(error: Exception) -> dspy.Prediction:
    """What stands for the prediction of an item that met an error.

    >>> failed_by(TimeoutError("no answer in 60 s")).error.kind
    'again'
    """
    return failed(f"{type(error).__name__}: {redact(str(error))}", failure_of(error))


def usage_of(tracker: Any) -> Usage:
    """The library's usage from DSPy's tracker; answers from DSPy's cache cost nothing and are not in it.

    Example:
        with dspy.track_usage() as tracker:
            result = localizer(problem=problem, steps=steps)
        print(usage_of(tracker).generated_tokens)
    """
    total = Usage()
    for model, entries in tracker.usage_data.items():
        for entry in entries:
            prompt, details = int(entry.get("prompt_tokens") or 0), entry.get("prompt_tokens_details") or {}
            evaluated = prompt - int(details.get("cached_tokens") or 0)
            total += Usage(model, 1, prompt, evaluated, int(entry.get("completion_tokens") or 0))
    return total
