"""The caps of a run over all its starts: what each call cost is on disk before anybody hears of what was bought."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import defaultdict
from pathlib import Path
from typing import get_args

from stepwise.config import BudgetConfig, CapsConfig, Config, Roles
from stepwise.errors import BudgetExceededError, ConfigError
from stepwise.io import append_rows, append_text, read_rows, rows_text
from stepwise.models.budget import Ledger
from stepwise.runs.directory import RunDirectory
from stepwise.types import Omitted, Usage

_SPENT = "spent.jsonl"


def uncapped(config: Config) -> Config:
    """The configuration without its caps: they end a collection, and change nothing in what it has collected, so that
    it goes on in the same directory when they are raised.

    >>> uncapped(Config.load(None, ["budget.calls=100"])) == Config.lab()
    True
    """
    return config.model_copy(update={"budget": BudgetConfig()})


@dataclasses.dataclass(frozen=True)
class _Spent:
    """A row of spent.jsonl: what one call by `role` cost, and for what where it is not what the run is made of."""

    role: str
    usage: Usage
    apart: Omitted = ""


def spent_in(folder: Path) -> list[tuple[str, Usage]]:
    """Role and usage of each call of the run in `folder`, over all its starts.

    Example:
        sum(usage.generated_tokens for role, usage in spent_in(Path("out/int")) if role == "weak")
    """
    return [(row.role, row.usage) for row in read_rows(folder / _SPENT, _Spent)]


class Caps:
    """The caps of a configuration, and what all starts of a run have spent by its spent.jsonl.

    Where the calls are no results by themselves (not `are_results`), a run that failed before it had any keeps nothing.
    What is spent `apart`, such as on an evaluation, counts, but tells nothing of what more of the run would cost.
    Without `syncs` a crash of the machine may lose what was spent since the last `sync`. Raises ConfigError where a cap
    on money lacks a price.

    Example:
        caps = Caps(config, directory)
        caps.check(done=40, coming=20)  # raises where 20 more problems would pass a cap
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        *,
        are_results: bool = True,
        apart: str = "",
        syncs: bool = True,
    ) -> None:
        self.config, self.ledger, self._apart = config, Ledger.for_config(config, self._write), apart
        self._syncs = syncs
        self._aside: defaultdict[str, float] = defaultdict(float)
        self._path, self._lock = directory.claim(_SPENT, is_input=not are_results), threading.Lock()
        for row in read_rows(self._path, _Spent):
            before = self.ledger.remaining()
            self.ledger.record(row.role, row.usage)
            for name, left in self.ledger.remaining().items() if row.apart else ():
                self._aside[name] += (before[name] or 0.0) - (left or 0.0)
        self._directory = directory

    def under(self, caps: CapsConfig, name: str, file: str) -> Ledger:
        """A ledger under this one with caps of its own, over all starts too: its calls stand in `file`."""
        if caps.money is not None and None in [self.config.role(role).prices for role in get_args(Roles)]:
            raise ConfigError(f"{name}.money is set, but a model has no price; set price_in and price_out of each")
        path = self._directory.claim(file, is_input=True)
        spent: dict[str, Usage] = {}
        for row in read_rows(path, _Spent):
            spent[row.role] = spent.get(row.role, Usage()) + row.usage
        return self.ledger.under(caps, name, spent, lambda role, usage: append_rows(path, [_Spent(role, usage)]))

    def check(self, done: int, coming: int, what: str = "problems") -> None:
        """Raise BudgetExceededError where `coming` problems, at the mean cost of the `done` ones, would not fit.

        A chunk, or a step of training, that meets a cap half way is lost with all that it cost, so it had better not
        begin. What is reserved by calls in flight is not taken for spent: it is many times what most of them take.
        """
        for name, left in self.ledger.remaining(settled=True).items():
            cap = getattr(self.config.budget, name)
            if left is None or not done:
                continue
            paid = cap - left - self._aside[name]
            if paid / done * coming > left:
                raise BudgetExceededError(
                    f"budget.{name} = {cap:,.10g}: {paid:,.10g} spent on {done} {what}, so the next {coming} would "
                    f"take about {paid / done * coming:,.4g} and do not fit; raise budget.{name}",
                    cap=f"budget.{name}",
                )

    def _write(self, role: str, usage: Usage) -> None:
        """Write down what a call cost."""
        with self._lock:
            append_text(self._path, rows_text([_Spent(role, usage, self._apart)]), sync=self._syncs)

    def sync(self) -> None:
        """Have all that was written survive a crash of the machine too."""
        with self._path.open("ab") as file:
            os.fsync(file.fileno())

    def add(self, role: str, usage: Usage, perhaps: Usage | None = None) -> None:
        """Count and write down what was spent without a call of this start, or by a worker elsewhere."""
        self._write(role, usage if perhaps is None else usage + perhaps)
        self.ledger.record(role, usage, perhaps)
