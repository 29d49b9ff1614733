"""A worker's side of the books (`stepwise.models.books`): what looks like the ledger, the store and the directory of a
run in one process, and asks.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from stepwise.config import BudgetConfig, CapsConfig, Config
from stepwise.models.budget import Ledger
from stepwise.models.reservations import take_tallies
from stepwise.models.store import Answer
from stepwise.types import Usage


class BooksLine(Protocol):
    """The way from a worker to the books.

    Example:
        line.call("of_ledger", "summary")
    """

    def call(self, method: str, *args: Any) -> Any:
        """Ask, and wait for what `method` of the books says."""

    async def acall(self, method: str, *args: Any) -> Any:
        """The same for a coroutine."""

    def tell(self, method: str, *args: Any) -> None:
        """Say, and do not wait."""

    def flush(self) -> None:
        """Wait until all is said."""


class Desk:
    """A worker's side of the books: `ledger`, `store` (None where no answers are kept) and, as `CURRENT`, itself.

    Example:
        desk = Desk(config, line, keeps=False)
        with desk.task("12/1"):
            rows = work(models_with(desk.ledger, desk.store), problems)
    """

    def __init__(self, config: Config, line: BooksLine, *, keeps: bool) -> None:
        self._line, self._task, self._asked = line, "", 0.0
        self._desk, self._names = uuid.uuid4().hex[:12], itertools.count()
        self._capped = any(getattr(config.budget, name) is not None for name in CapsConfig.model_fields)
        prices = Ledger.for_config(config)._prices
        self.ledger = Ledger(BudgetConfig(problem=config.budget.problem), prices, above=self)
        self.store: Any = _DeskStore(self) if keeps else None

    def run(self, task: str, work: Callable[[], Any]) -> Any:
        """The result of `work`, all calls of which are those of `task`; it has been told when this returns."""
        self._task, self._asked, began = task, 0.0, time.monotonic()
        try:
            result = work()
        finally:
            self._line.flush()
        self._line.call("end", task, take_tallies(self.ledger), time.monotonic() - began, self._asked)
        return result

    def call(self, method: str, *args: Any) -> Any:
        """What the books say; the seconds until then are counted."""
        began = time.monotonic()
        try:
            return self._line.call(method, *args)
        finally:
            self._asked += time.monotonic() - began

    async def hold(
        self, role: str, max_tokens: int, prompt_tokens: int, calls: int, least_tokens: int
    ) -> tuple[str, int, str]:
        """See `stepwise.models.reservations.Above`."""
        if not self._capped:
            return "", max_tokens, ""
        name = f"{self._desk}-{next(self._names)}"
        asked = (name, self._task, role, max_tokens, prompt_tokens, calls)
        # At once, with the loop held up: which calls share a batch must not depend on how fast the books are.
        granted = self.call("hold", *asked)
        return (name, *(granted or await self._line.acall("wait", *asked, least_tokens)))

    def settle(self, name: str, role: str, usage: Usage, perhaps: Usage | None) -> None:
        """See `Above`; until it has arrived, a call under a cap counts at its most."""
        if name:
            self._line.tell("settle", name, usage, perhaps)
        else:
            self._line.tell("spend", role, usage, perhaps)

    def release(self, name: str) -> None:
        """See `Above`."""
        if name:
            self._line.tell("release", name)

    def ask(self, method: str, *args: Any) -> Any:
        """See `Above`."""
        if not self._capped:
            return None if method == "unspent" else ""
        return self.call("of_ledger", method, *args)

    def frozen(self, key: str) -> dict[str, Any]:
        """As of the run's directory."""
        return dict(self._line.call("frozen", key))

    def freeze(self, key: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """As of the run's directory."""
        return dict(self._line.call("freeze", key, dict(facts)))


class _DeskStore:
    """`CallCache` as far as wrappers and routers use it, kept in the books."""

    replays_are_free = True

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def find(self, key: str) -> Any:
        return self._desk.call("find", key)

    def begin(self, key: str, role: str, problem: str, most: Usage) -> None:
        self._desk.call("begin", key, role, problem, most, self._desk._task)

    def add(self, answers: Iterable[Answer]) -> None:
        self._desk.call("add", [tuple(answer) for answer in answers], self._desk._task)

    def count(self, role: str, hits: int, misses: int) -> None:
        """How many were found is not counted."""

    def spent(self, problem: str) -> Any:
        return self._desk.call("of_store", "spent", problem)

    def perhaps(self, problem: str) -> Any:
        return self._desk.call("of_store", "perhaps", problem)
