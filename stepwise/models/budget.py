"""What was spent, by role, and hard caps that hold exactly even when many calls are in flight.

Work is reserved at its worst case before it starts and settled at what it cost afterwards:

    with ledger.reserve("strong", 64, prompt_tokens=300) as reservation:
        reservation.settle(backend.continue_solutions([request])[0].usage)

A cap compares spent + reserved with the limit, so it can be passed only by a model that breaks its own `max_tokens` (or
a caller that understates `prompt_tokens`); such an overrun is recorded as it is, and every later reservation refused.

Caps on one problem work the same way: `ledger.for_problem()` is a ledger of its own whose reservations must fit there
and in the run's at once.

A coroutine waits for its turn instead (`areserve`): it is refused only where it would not fit beside what is spent once
everything in flight has settled, and one that can do with less gets what is left then. Turns are given in the order of
asking, and whoever holds a reservation asks for no other, so that nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from fractions import Fraction
from functools import partial
from typing import Any, Self, get_args

from stepwise.config import BudgetConfig, CapsConfig, Config, Prices, Roles
from stepwise.errors import BudgetExceededError, ConfigError, DataError
from stepwise.models.reservations import (
    Above,
    Amount,
    Reservation,
    Turn,
    amounts_of,
    give_turns,
    money_for,
    priced,
    prices_of,
    summary_of,
)
from stepwise.plugins import check_choice
from stepwise.types import Usage

_NAMES = ("strong_tokens", "total_tokens", "calls", "money")
_ROLES = ("weak", "strong", "critic", "scorer")
_NOTHING: dict[str, Amount] = dict.fromkeys(_NAMES, 0)
ACCOUNT: ContextVar[Ledger | None] = ContextVar("stepwise_account", default=None)
"""The account of the problem that the running coroutine is about."""


class Ledger:
    """Usage by role under the caps of a `BudgetConfig`; every method may be called from any thread.

    `prices` maps a role to its prices; a role that is not there, or None, has no known price, and its cost stays None.
    The role "strong" counts for `strong_tokens`; the calls of "scorer" do not count for `calls`. A request that a
    server refused or lost and that was sent again is one call; how often that was stands in `Usage.retries`. A sample
    for which a model has to be asked twice is two calls, and both are reserved beforehand.

    A request that a server did not answer (it hung, the connection broke, the process was killed) may have been billed:
    it counts for the caps at the most that it can have cost, apart from what is known (`perhaps`). A judge's scores are
    reserved as what they read, once per step; what it writes, and a second try, are counted afterwards, so they may
    pass a cap before the next reservation is refused.

    `on_spent` hears of each role and what it has spent when that is settled, before anybody hears of what was bought.
    `roles` stand in the summary even where they have spent nothing. `above` is the ledger of a run of which this one, a
    worker's, is a part: what is reserved here must fit there too.

    >>> ledger = Ledger(CapsConfig(strong_tokens=100), roles=["strong"])
    >>> with ledger.reserve("strong", 64) as reservation:
    ...     reservation.settle(Usage(calls=1, generated_tokens=40))
    >>> ledger.usage("strong").generated_tokens, ledger.remaining()["strong_tokens"]
    (40, 60.0)
    """

    def __init__(
        self,
        caps: CapsConfig | Mapping[str, Any] | None = None,
        prices: Mapping[str, Prices | None] | None = None,
        on_spent: Callable[[str, Usage], None] | None = None,
        roles: Sequence[str] = (),
        above: Above | None = None,
    ) -> None:
        self._limit(caps)
        self._above = above
        self._prices, self._on_spent = dict(prices or {}), on_spent
        self._spent = dict(_NOTHING)
        self._held = dict(_NOTHING)
        self._usage: dict[str, Usage] = {role: Usage() for role in roles}
        self._perhaps: dict[str, Usage] = {}
        self._places: dict[tuple[str, str], Usage] = {}  # by role and model, each of its endpoints for itself
        self._lock: Any = threading.Lock()  # or `replicas.SharedCaps`
        self._name = "budget"
        self._levels: tuple[Ledger, ...] = (self,)  # this ledger and those it is part of; all share one lock
        self._queue: deque[Turn] = deque()  # of the run's ledger: who waits, first to last
        self._refused: dict[str, int] = {}  # of the run's ledger: requests that a cap forbade, by its key
        self._cut: dict[str, int] = {}  # of the run's ledger: answers that ended where a cap had no more, by its key
        self._most: dict[str, Amount] = {}  # of the run's ledger: the highest spending of one problem

    @classmethod
    def for_config(
        cls,
        config: Config,
        on_spent: Callable[[str, Usage], None] | None = None,
        roles: Sequence[Roles] = get_args(Roles),
    ) -> Self:
        """A ledger with the caps and prices of a configuration; ConfigError where a cap on money lacks a price."""
        return cls(config.budget, prices_of(config, roles), on_spent)

    def _limit(self, caps: Any) -> None:
        caps = caps if isinstance(caps, CapsConfig) else BudgetConfig.of(caps, "caps")
        limits = {name: getattr(caps, name, None) for name in _NAMES}
        self._given = caps
        self._caps = {name: Fraction(str(limit)) for name, limit in limits.items() if limit is not None}
        self._problem_caps: CapsConfig | None = getattr(caps, "problem", None)

    @property
    def caps(self) -> Any:
        """The caps that it was made with. New ones hold from there on, for what was spent before too; those of a
        problem for the problems that begin then.
        """
        return self._given

    @caps.setter
    def caps(self, caps: CapsConfig | None) -> None:
        with self._lock:
            self._limit(caps)
            give_turns(self._levels[-1]._queue)

    def for_problem(self, spent: Mapping[str, Usage] | None = None) -> Ledger:
        """The account of one problem: under the caps of `budget.problem`, and in the same breath under this ledger's.

        `spent`, by role, is what earlier attempts at the problem cost: it counts for the problem's caps only, since
        this ledger has it already (or gets it by `record`).
        """
        return self.under(self._problem_caps, "budget.problem", spent)

    def under(
        self,
        caps: CapsConfig | None,
        name: str,
        spent: Mapping[str, Usage] | None = None,
        on_spent: Callable[[str, Usage], None] | None = None,
    ) -> Ledger:
        """A ledger with caps of its own, called `name` in errors, whose reservations must fit here too.

        `spent`, by role, counts for its own caps only; its problems have the caps that problems have here.
        """
        child = Ledger(caps, self._prices, on_spent)
        child._name, child._lock, child._levels = name, self._lock, (child, *self._levels)
        child._problem_caps = self._problem_caps
        for role, usage in (spent or {}).items():
            child._add(role, usage, child._usage)
        return child

    def reserve(self, role: str, max_tokens: int, *, prompt_tokens: int = 0, calls: int = 1) -> Reservation:
        """Set aside at most `max_tokens` generated tokens over `calls` calls that read `prompt_tokens` in all.

        `prompt_tokens` matters for a cap on money only; give an upper bound (the bytes of the text are one for
        byte-level tokenizers). Raises BudgetExceededError, naming the cap, when it does not fit beside what is spent
        and reserved.
        """
        ask = self._ask(role, max_tokens, prompt_tokens, calls)
        with self._lock:
            if short := self._short(ask):
                raise self._refusal(role, ask, *short)
            self._hold(ask, 1)
        return Reservation(self, role, ask, max_tokens)

    async def areserve(
        self, role: str, max_tokens: int, *, prompt_tokens: int = 0, calls: int = 1, least_tokens: int = 0
    ) -> Reservation:
        """`reserve` for a coroutine, which waits while what is in flight may still give back what it needs.

        Where that will not do, it gets what is left, if that is at least `least_tokens` (0: all or nothing).
        """
        held = await self._areserve(role, max_tokens, prompt_tokens, calls, least_tokens)
        if (above := self._levels[-1]._above) is not None:
            await held.reserve_above(above, prompt_tokens, calls, least_tokens)
        return held

    async def _areserve(
        self, role: str, max_tokens: int, prompt_tokens: int, calls: int, least_tokens: int
    ) -> Reservation:
        asked, queue = partial(self._ask, role, prompt_tokens=prompt_tokens, calls=calls), self._levels[-1]._queue
        ask = asked(max_tokens)
        with self._lock:
            if not queue and not self._short(ask):
                self._hold(ask, 1)
                return Reservation(self, role, ask, max_tokens)
            turn = Turn(self, role, ask, max_tokens, asked, least_tokens)
            queue.append(turn)
            give_turns(queue)
        try:
            await turn.given
        except asyncio.CancelledError:
            with self._lock:
                if turn in queue:
                    queue.remove(turn)
                elif turn.granted:
                    self._hold(turn.ask, -1)
                give_turns(queue)
            raise
        return Reservation(self, role, turn.ask, turn.max_tokens, turn.cut_by)

    def record(self, role: str, usage: Usage, perhaps: Usage | None = None) -> None:
        """Add what was spent, and perhaps billed, without a reservation (by an earlier start, for example)."""
        self._close(role, _NOTHING, usage, perhaps)

    def perhaps(self, role: str | None = None) -> Usage:
        """The most that requests without an answer were billed: a role's, or all."""
        with self._lock:
            return self._perhaps.get(role, Usage()) if role else sum(self._perhaps.values(), Usage())

    def usage(self, role: str | None = None) -> Usage:
        """What a role has spent so far; None for all of them together, the scorer's calls included (which the cap on
        calls leaves out). Its cost is None where a price is unknown. Raises ConfigError for a role that is not known.
        """
        with self._lock:
            if role is not None:
                if role not in self._usage:
                    check_choice("role", role, {*_ROLES, *self._prices})
                return self._usage.get(role, Usage())
            return sum(self._usage.values(), Usage())

    def remaining(self, *, settled: bool = False) -> dict[str, float | None]:
        """What is left of each cap, reservations taken off, or as if all were given back (`settled`); None where there
        is no cap, negative after an overrun.

        For the account of a problem the nearer of its own cap and the run's. `budget.problem`, a cap on each of many
        problems, is in no ledger of a run.
        """
        with self._lock:
            lefts = {
                name: [level._caps[name] - level._spent[name] - (0 if settled else level._held[name])
                       for level in self._levels if name in level._caps]
                for name in _NAMES
            }  # fmt: skip
        return {name: float(min(left)) if left else None for name, left in lefts.items()}

    @property
    def refused(self) -> dict[str, int]:
        """How many requests a cap forbade, by its key, here and in all ledgers under the same run's."""
        with self._lock:
            return dict(self._levels[-1]._refused)

    def unspent(self, name: str) -> int | None:
        """What is left of the nearer cap called `name` once all that is in flight were given back; None without one."""
        with self._lock:
            left = [level._caps[name] - level._spent[name] for level in self._levels if name in level._caps]
        if (above := self._levels[-1]._above) is not None:
            left += [fit for fit in [above.ask("unspent", name)] if fit is not None]
        return max(0, int(min(left))) if left else None

    def left_of(self, key: str) -> str:
        """In words, what the cap with that key has left once all that is in flight were given back."""
        name, above = key.rpartition(".")[2], self._levels[-1]._above
        if above is not None and not any(key == f"{level._name}.{name}" for level in self._levels[:-1]):
            return str(above.ask("left_of", key))
        with self._lock:
            level = next(level for level in self._levels if key == f"{level._name}.{name}")
            cap, left = level._caps[name], level._caps[name] - level._spent[name]
        return f"{key} has {max(0.0, float(left)):.10g} of {float(cap):.10g} left"

    def summary(self) -> str:
        """A few lines for a person: one per role, one for the total, one per cap, what it refused and cut short."""
        with self._lock:
            return summary_of(self)

    __str__ = summary

    def _ask(self, role: str, max_tokens: int, prompt_tokens: int, calls: int) -> dict[str, Amount]:
        for name, value in (("max_tokens", max_tokens), ("prompt_tokens", prompt_tokens), ("calls", calls)):
            if value < 0:
                raise DataError(f"{name} is {value}; it must be 0 or more")
        price = self._prices.get(role)
        capped = next((level._name for level in self._levels if "money" in level._caps), "")
        if price is None and capped:
            raise ConfigError(
                f"{capped}.money is set, but no price is known for {role}; set its price_in and price_out"
            )
        money = money_for(price, prompt_tokens, max_tokens) if price and any(price) else 0
        return amounts_of(role, max_tokens, calls, money)

    def _short(self, ask: Mapping[str, Amount], *, settled: bool = False) -> tuple[Ledger, str] | None:
        """Of the caps that `ask` would pass the one that leaves the least of it, and whose it is; None when it fits; an
        amount of 0 always fits. `settled`: as if all that is reserved were given back. Needs the lock.
        """
        lefts = [
            (float((cap - level._spent[name] - (0 if settled else level._held[name])) / ask[name]), level, name)
            for level in self._levels
            for name, cap in level._caps.items()
            if ask[name] > 0
        ]
        left, level, name = min(lefts, key=lambda each: each[0], default=(1.0, self, ""))
        return (level, name) if left < 1 else None

    def _refusal(self, role: str, ask: Mapping[str, Amount], level: Ledger, name: str) -> BudgetExceededError:
        key = f"{level._name}.{name}"
        counts = self._levels[-1]._refused
        counts[key] = counts.get(key, 0) + 1
        return BudgetExceededError(
            f"{key} = {float(level._caps[name]):.10g}: {float(level._spent[name]):.10g} spent, "
            f"{float(level._held[name]):.10g} reserved, and {role} asks for up to {float(ask[name]):.10g} more; "
            f"raise {key} or ask for less",
            cap=key,
        )

    def _hold(self, ask: Mapping[str, Amount], sign: int) -> None:
        """Set `ask` aside at every level, or give it back. Needs the lock."""
        for level in self._levels:
            for name in _NAMES:
                level._held[name] += sign * ask[name]

    def _close(
        self, role: str, held: Mapping[str, Amount], usage: Usage | None, perhaps: Usage | None = None, cut: str = ""
    ) -> None:
        run = self._levels[-1]
        queue = run._queue
        with self._lock:
            if cut:
                run._cut[cut] = run._cut.get(cut, 0) + 1
            self._hold(held, -1)
            for level in self._levels:
                if usage is not None:
                    level._add(role, usage, level._usage)
                if perhaps is not None and perhaps.calls:
                    level._add(role, perhaps, level._perhaps)
                if level._name == "budget.problem":
                    run._most = {name: max(run._most.get(name, 0), level._spent[name]) for name in _NAMES}
            if queue:
                give_turns(queue)

    def _add(self, role: str, usage: Usage, account: dict[str, Usage]) -> None:
        """Count what was spent in this ledger alone, with its cost where a price is known. Needs the lock."""
        usage, money = priced(usage, self._prices.get(role))
        for name, amount in amounts_of(role, usage.generated_tokens, usage.calls, money).items():
            self._spent[name] += amount
        account[role] = account.get(role, Usage()) + usage
        if account is self._usage and usage.model:
            self._places[role, usage.model] = self._places.get((role, usage.model), Usage()) + usage
