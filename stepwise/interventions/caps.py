"""Who writes, under the caps of [budget]: nothing is asked for that could pass one.

What was paid for is written down as it is told, in spent.jsonl, so that the caps hold over all starts of a run, those
that were killed included. A call that was broken off is not counted.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stepwise.config import CapsConfig, Config
from stepwise.errors import BudgetExceededError
from stepwise.interventions.writers import Writers
from stepwise.io import append_rows, read_rows
from stepwise.models.base import Backend, Completion, Request
from stepwise.models.budget import Ledger, Reservation
from stepwise.models.wrappers import request_bound
from stepwise.runs.directory import RunDirectory
from stepwise.runs.plan import PlannedCalls, plan_localizing, plan_proposing
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
        locates = "scorer" if self.config.critic.method == "scorer" else "critic"
        one = self.config.model_copy(update={"critic": self.config.critic.model_copy(update={"candidates": 1})})
        return Writers(
            self.config,
            weak=_CappedBackend(writers.weak, self),
            localizer=_CappedModule(writers.localizer, self, locates, lambda size: plan_localizing(one, [size])),
            proposer=_CappedModule(writers.proposer, self, "critic", lambda size: plan_proposing(one, [size])),
        )

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
            spent = cap - left
            if spent / done * coming > left:
                raise BudgetExceededError(
                    f"budget.{name} = {cap:,.10g}: {spent:,.10g} spent on {done} problems, so the next {coming} would "
                    f"take about {spent / done * coming:,.4g} and do not fit; raise budget.{name}",
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

    def settle(self, held: Reservation, role: str, usage: Usage) -> None:
        """Count what a reserved call really cost, and write it down."""
        held.settle(usage)
        with self._lock:
            append_rows(self._path, [Spent(role, usage)])


class _CappedBackend:
    """The weak model: as many requests at a time as the caps allow."""

    def __init__(self, backend: Backend, caps: Caps) -> None:
        self._backend, self._caps = backend, caps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        self._prepare()
        waiting, found = list(enumerate(requests)), list[Completion]()
        while waiting:
            with ExitStack() as stack:
                taken, refused = list[tuple[int, Reservation]](), None
                for at, request in waiting:
                    try:
                        taken.append((at, stack.enter_context(self._reserve(request))))
                    except BudgetExceededError as refusal:
                        refused = refusal
                        break
                if refused is not None and not taken:
                    raise refused
                written = self._backend.continue_solutions([requests[at] for at, _ in taken])
                for number, (at, held) in enumerate(taken):
                    own = [dataclasses.replace(made, request=at) for made in written if made.request == number]
                    self._caps.settle(held, "weak", sum((made.usage for made in own), Usage()))
                    found += own
            waiting = waiting[len(taken) :]
        return found

    def _reserve(self, request: Request) -> Reservation:
        calls = getattr(self._backend, "calls_per_sample", 1)  # an API may be asked again
        tokens, read, calls = request_bound(request, self._caps.config.prompt, calls)
        return self._caps.ledger.reserve("weak", tokens, prompt_tokens=read, calls=calls)

    def _prepare(self) -> None:
        """Have a model that must be tried out first (an API) do it on the run's account."""
        own: Any = self._backend
        if hasattr(own, "prepare"):
            most: Usage = own.probe_bound
            with self._caps.ledger.reserve(
                "weak", most.generated_tokens, prompt_tokens=most.prompt_tokens, calls=most.calls
            ) as held:
                spent: Usage = own.prepare()
                if spent.calls:
                    self._caps.settle(held, "weak", spent)


class _CappedModule:
    """A module of the critic, of which every call reserves the most that it may cost."""

    def __init__(
        self, module: Any, caps: Caps, role: str, most: Callable[[tuple[int, int]], Sequence[PlannedCalls]]
    ) -> None:
        self._module, self._caps, self._role, self._most = module, caps, role, most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> _CappedModule:
        return _CappedModule(copy.deepcopy(self._module, memo), self._caps, self._role, self._most)

    def __call__(self, **item: Any) -> Any:
        problem = as_problem(item["problem"])
        texts = [problem.question, problem.reference or "", problem.answer or "", *item["steps"]]
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        asked = self._most((size, len(item["steps"])))
        with self._caps.ledger.reserve(
            self._role,
            sum(part.generated_tokens for part in asked),
            prompt_tokens=sum(part.prompt_tokens for part in asked),
            calls=sum(part.calls for part in asked),
        ) as held:
            made = self._module(**item)
            self._caps.settle(held, self._role, made.usage)
        return made
