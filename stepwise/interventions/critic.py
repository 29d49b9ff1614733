"""The critic's modules, asked for many items at once with random numbers of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stepwise.errors import BackendError, BudgetExceededError
from stepwise.interventions.settings import CollectSettings
from stepwise.models.failures import failure_of


def model_name(module: Any) -> str:
    """Name of the model, or scorer, that a module asks."""
    return str(module.get_lm().model) if module.predictors() else str(getattr(module.scorer, "name", ""))


def ask_all(
    module: Any,
    items: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    settings: CollectSettings,
    label: str,
    greedy: Sequence[bool] | None = None,
) -> list[Any]:
    """The module's predictions, without DSPy's cache, a local model with the seed of each item.

    `greedy` says which items are asked at a temperature of 0, whatever the module's own is. Raises BackendError, naming
    `label`, where the model is not there, and BudgetExceededError where a cap refused it; what one item alone brought
    about is its `failure`.
    """
    if not items:
        return []
    from stepwise.critics.module import run_all

    cold = greedy or [False] * len(items)
    given = [
        {"item": item, "seed": seed, "greedy": first} for item, seed, first in zip(items, seeds, cold, strict=True)
    ]
    found = run_all(_until_gone(_seeded(module)), given, concurrency=settings.concurrency)
    for made in found:
        error = made.get("error")
        if error is not None and error.kind == "budget":
            raise BudgetExceededError(error.reason, cap=error.cap)
        if error is not None and error.kind != "refused":
            raise BackendError(
                f"{label}: {model_name(module)} failed, so nothing of this chunk is kept: {made.failure}"
            )
    return found


def _until_gone(ask: Callable[..., Any]) -> Callable[..., Any]:
    """`ask`, until its model is gone: from then on the same error at once, without the retries of each call."""
    gone: list[Exception] = []

    def call(**given: Any) -> Any:
        if gone:
            raise gone[0]
        try:
            return ask(**given)
        except Exception as error:
            if failure_of(error).kind != "refused":
                gone.append(error)
            raise

    return call


def _seeded(module: Any) -> Callable[..., Any]:
    def call(item: dict[str, Any], seed: int, greedy: bool) -> Any:
        import copy

        if not module.predictors():
            return module(**item)
        lm, own = module.get_lm(), copy.deepcopy(module)
        local = str(lm.model).startswith("llamacpp/")  # not every API takes a seed
        own.set_lm(
            lm.copy(cache=False, **({"seed": seed} if local else {}), **({"temperature": 0.0} if greedy else {}))
        )
        return own(**item)

    return call
