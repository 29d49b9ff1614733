"""Who writes, under the caps of [budget]: nothing is asked for that could pass one.

What was paid for is written down as it is told, in spent.jsonl, so that the caps hold over all starts of a run, those
that were killed included. A call that was broken off is not counted.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepwise.config import CapsConfig, Config
from stepwise.errors import BudgetExceededError
from stepwise.interventions.rows import spent
from stepwise.interventions.writers import Task, Writers, one_candidate
from stepwise.io import append_rows, read_rows
from stepwise.models.base import Backend, Completion, Generator, Request, Wrapped
from stepwise.models.budget import Ledger
from stepwise.models.wrappers import Budgeted
from stepwise.runs.directory import RunDirectory
from stepwise.runs.plan import plan_localizing, plan_proposing
from stepwise.types import Usage, as_problem


@dataclasses.dataclass(frozen=True)
class Spent:
    """A row of spent.jsonl: what one call by `role` cost."""

    role: str
    usage: Usage


class Caps:
    """The caps of a configuration, and what all starts of a run have spent by the file `path`.

    Raises ConfigError where a cap on money lacks a price.
    """

    def __init__(self, config: Config, path: Path) -> None:
        self.config, self.ledger = config, Ledger.for_config(config)
        self._path, self._lock = path, threading.Lock()
        self.record(read_rows(path, Spent))

    @classmethod
    def of(cls, config: Config, directory: RunDirectory) -> Caps | None:
        """Those of a run; None where there are none, so that nothing is written for them."""
        capped = any(getattr(config.budget, name) is not None for name in CapsConfig.model_fields)
        return cls(config, directory.claim("spent.jsonl")) if capped else None

    def capped(self, writers: Writers) -> Writers:
        """The same models for a collection, which raise BudgetExceededError instead of passing a cap."""
        weak = Budgeted(_Recorded(writers.weak, self), self.ledger, "weak", self.config.prompt)
        return Writers(
            self.config, weak=weak, localizer=writers.localizer, proposer=writers.proposer, reserve=self.reserve
        )

    @contextmanager
    def reserve(self, task: Task, item: Mapping[str, Any]) -> Iterator[Callable[[Usage], None]]:
        """Set aside the most that a critic's call with `item` may cost; yields what is to hear of the true cost."""
        problem = as_problem(item["problem"])
        texts = [problem.question, problem.reference or "", problem.answer or "", *item["steps"]]
        sizes = [(sum(len(text.encode("utf-8", "replace")) for text in texts), len(item["steps"]))]
        role = "scorer" if task == "locate" and self.config.critic.method == "scorer" else "critic"
        planned = (plan_localizing if task == "locate" else plan_proposing)(one_candidate(self.config), sizes)
        with self.ledger.reserve(
            role,
            sum(part.generated_tokens for part in planned),
            prompt_tokens=sum(part.prompt_tokens for part in planned),
            calls=sum(part.calls for part in planned),
        ) as held:

            def settle(usage: Usage) -> None:
                held.settle(usage)
                self.write(role, usage)

            yield settle

    def record(self, rows: Sequence[Spent]) -> None:
        """Count what is written down already."""
        for row in rows:
            self.ledger.record(row.role, row.usage)

    def check(self, done: int, coming: int) -> None:
        """Raise BudgetExceededError where `coming` problems, at the mean cost of the `done` ones, would not fit.

        A chunk that meets a cap half way is lost with all that it cost, so it had better not begin.
        """
        for name, left in self.ledger.remaining().items():
            cap = getattr(self.config.budget, name)
            if left is None or not done:
                continue
            paid = cap - left
            if paid / done * coming > left:
                raise BudgetExceededError(
                    f"budget.{name} = {cap:,.10g}: {paid:,.10g} spent on {done} problems, so the next {coming} would "
                    f"take about {paid / done * coming:,.4g} and do not fit; raise budget.{name}",
                    cap=f"budget.{name}",
                )

    def catch_up(self, sealed: Ledger) -> None:
        """Count what sealed chunks have cost beyond what is written down: it was spent when there was no cap."""
        for role in ("weak", "critic", "scorer"):
            all_of_it, known = sealed.usage(role), self.ledger.usage(role)
            names = ("calls", "prompt_tokens", "evaluated_tokens", "generated_tokens")
            more = {name: max(0, getattr(all_of_it, name) - getattr(known, name)) for name in names}
            if any(more.values()):
                usage = Usage(all_of_it.model, **more)
                self.ledger.record(role, usage)
                append_rows(self._path, [Spent(role, usage)])

    def write(self, role: str, usage: Usage) -> None:
        """Write down what a call cost."""
        with self._lock:
            append_rows(self._path, [Spent(role, usage)])


class _Recorded(Wrapped):
    """`model`, whose calls are written down before anybody hears of what they gave."""

    def __init__(self, model: Generator | Backend, caps: Caps) -> None:
        super().__init__(model)
        self._caps = caps

    async def generate(self, request: Request) -> Completion:
        result = await self.model.generate(request)
        self._caps.write("weak", spent(result.samples))
        return result

    def prepare(self) -> Usage:
        usage = self.model.prepare()
        if usage.calls:
            self._caps.write("weak", usage)
        return usage
