"""[budget] over all stages of all rounds: what the other stages have left, and a policy measured within it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.config import BudgetConfig, CapsConfig, Config
from stepwise.errors import BudgetExceededError
from stepwise.models.base import Generator
from stepwise.models.budget import Ledger
from stepwise.models.caps import spent_in
from stepwise.models.scorers.base import Scorer
from stepwise.models.store import CallCache
from stepwise.routing import Policy
from stepwise.routing.compare import Measured, judge
from stepwise.routing.deciding import label_of
from stepwise.types import Problem, Usage

if TYPE_CHECKING:
    from stepwise.routing.router import StepRouter


def left_for(cfg: Config, loop: Path, stage: Path | None = None) -> BudgetConfig:
    """The caps of `cfg` less what the stages of all rounds in the directory `loop` have spent over all starts, but for
    `stage` (its folder, or its file of answers), which counts its own. ConfigError where a cap on money lacks a price.

    Example:
        budget = left_for(config, Path("out/loop"), Path("out/loop/round-1/collect"))
    """
    if not any(getattr(cfg.budget, name) is not None for name in CapsConfig.model_fields):
        return cfg.budget
    spent: list[tuple[str, Usage]] = []
    for folder in loop.glob("round-*"):
        for path in folder.glob("*answers.jsonl"):
            if path != stage:
                with CallCache(path) as cache:
                    spent += [*cache.spent().items(), *cache.perhaps().items()]
        for path in folder.glob("*/spent.jsonl"):
            if path.parent != stage:
                spent += spent_in(path.parent)
    return less(cfg, spent)


def less(cfg: Config, spent: Iterable[tuple[str, Usage]]) -> BudgetConfig:
    """The caps of `cfg` less what was `spent`, by role.

    >>> less(Config.load(None, ["budget.calls=5"]), [("weak", Usage(calls=2))]).calls
    3
    """
    ledger = Ledger.for_config(cfg)
    for role, usage in spent:
        ledger.record(role, usage)
    left: dict[str, Any] = {
        name: value if value is None else max(0.0, value) if name == "money" else max(0, int(value))
        for name, value in ledger.remaining().items()
    }
    return BudgetConfig(**left, problem=cfg.budget.problem)


def measure(router: StepRouter, policy: Policy, problems: Sequence[Problem]) -> Measured:
    """As `compare`, but that a cap of the run ends it: a policy that was kept from asking is not measured.

    Example:
        measure(router, Threshold(0.5), problems).accuracy
    """
    arm = router.with_policy(policy)
    for model in arm.models:
        if isinstance(model, Generator | Scorer):
            model.reset_cache()
    began = time.perf_counter()
    traces = arm.solve_all(problems, description=f"{label_of(policy):<22}")
    refuse_cut(arm, f"measuring {label_of(policy)}")
    return judge(arm, traces, time.perf_counter() - began)


def refuse_cut(router: StepRouter, stage: str, *files: Path) -> None:
    """Raise BudgetExceededError where a cap of the run has forbidden a request; `files`, cut short by it, are removed.

    Example:
        refuse_cut(router, "routing", Path("out/loop/round-1/traces.jsonl"))
    """
    if caps := [key for key in router.ledger.refused if ".problem." not in key]:
        for path in files:
            path.unlink(missing_ok=True)
        raise BudgetExceededError(
            f"{stage}: {caps[0]}, which holds for all stages of the loop together, is spent; raise it, and the loop "
            "goes on",
            cap=caps[0],
        )
