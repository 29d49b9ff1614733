"""Many items for one module, each with random numbers of its own, until all are done or the model is gone."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import dspy

from stepwise.critics.module import CriticModule, failed_by
from stepwise.models.driver import Driver
from stepwise.models.failures import error_of
from stepwise.models.provider import engines_of
from stepwise.types import Usage


def model_name(module: Any) -> str:
    """Name of the model, or scorer, that a module asks."""
    return str(module.get_lm().model if module.predictors() else module.scorer.name)


def ask_all(
    module: Any,
    items: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    *,
    label: str,
    concurrency: int = 1,
    greedy: Sequence[bool] | None = None,
    reserve: Callable[[dict[str, Any]], AbstractContextManager[Callable[[Usage], None]]] | None = None,
) -> list[dspy.Prediction]:
    """The module's predictions, without DSPy's cache, a local model with the seed of each item.

    `greedy` says which items are asked at a temperature of 0, whatever the module's own is. `reserve` is around the
    call for an item: it may refuse it, and what it yields hears of the cost. What one item alone brought
    about is its `failure`, and `error` the same as an object. Raises BackendError, naming `label`, where the model is
    not there, and BudgetExceededError where a cap refused it.
    """
    stopped: list[dspy.Prediction] = []

    async def ask(item: dict[str, Any], seed: int, cold: bool) -> dspy.Prediction:
        if stopped:  # the same at once, without the retries of each call
            return stopped[0]
        try:
            own = _seeded(module, seed, cold)
            with reserve(item) if reserve else nullcontext() as settle:
                if isinstance(own, CriticModule):
                    prediction = await own.acall(**item)
                else:
                    prediction = await asyncio.to_thread(own, **item)
                if settle is not None:
                    settle(prediction.usage)
            return prediction
        except Exception as error:
            prediction = failed_by(error)
            if prediction.error.kind != "refused":
                stopped.append(prediction)
            return prediction

    tasks = list(zip(items, seeds, greedy or [False] * len(items), strict=True))
    predictions = Driver(_engines(module)).run([ask(*task) for task in tasks], window=concurrency)
    if stopped:
        failure, text = stopped[0].error, stopped[0].failure
        if failure.kind == "budget":
            raise error_of(failure)
        where = f"{label}: {model_name(module)} failed, so nothing of this chunk is kept"
        raise error_of(dataclasses.replace(failure, reason=text), where)
    return predictions


def _engines(module: Any) -> tuple[Any, ...]:
    """The engines of this process that the module's models run on: the driver moves them."""
    return engines_of(module.get_lm()) if module.predictors() else module.scorer.engines


def _seeded(module: Any, seed: int, cold: bool) -> Any:
    """The module as it is to be asked for one item."""
    if not module.predictors():
        return module
    lm, own = module.get_lm(), copy.deepcopy(module)
    local = str(lm.model).startswith("llamacpp/")  # not every API takes a seed
    own.set_lm(lm.copy(cache=False, **({"seed": seed} if local else {}), **({"temperature": 0.0} if cold else {})))
    return own
