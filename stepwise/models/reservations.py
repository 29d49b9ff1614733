"""What a ledger sets aside, and who waits for it; see `stepwise.models.budget`."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from stepwise.config import CapsConfig, Config, Prices, Roles
from stepwise.errors import BudgetExceededError, ConfigError, DataError
from stepwise.types import Usage

if TYPE_CHECKING:
    from stepwise.models.budget import Ledger

Amount = int | Fraction  # counts are whole numbers, money is exact


class Above(Protocol):
    """The ledger of a run of which a worker's ledger is a part: a `stepwise.models.desk.Desk`.

    Example:
        ledger = Ledger(caps, prices, above=desk)
    """

    async def hold(
        self, role: str, max_tokens: int, prompt_tokens: int, calls: int, least_tokens: int
    ) -> tuple[str, int, str]:
        """Set aside as `Ledger.areserve` does: its name, the tokens that were granted, and the cap that cut them."""

    def settle(self, name: str, role: str, usage: Usage, perhaps: Usage | None) -> None:
        """What it came to."""

    def release(self, name: str) -> None:
        """Give it back."""

    def ask(self, method: str, *args: Any) -> Any:
        """What a method of the run's ledger says."""


@dataclasses.dataclass(slots=True)
class Reservation:
    """An amount set aside by `Ledger.reserve`. Leaving the `with` block without `settle` gives it back.

    `max_tokens` is what it is for; less than was asked for where the cap `cut_by` has no more (`areserve`).

    Example:
        with ledger.reserve("strong", max_tokens=64, prompt_tokens=200) as reservation:
            completion = ask(max_tokens=reservation.max_tokens)
            reservation.settle(completion.usage)
    """

    _ledger: Ledger
    _role: str
    _amount: Mapping[str, Amount]
    max_tokens: int
    cut_by: str = ""
    above: Above | None = None
    """where it is set aside too, and under which name"""
    name: str = ""
    _open: bool = True

    async def reserve_above(self, above: Above, prompt_tokens: int, calls: int, least_tokens: int) -> None:
        """Set the same aside there too, or what is left there; given back here where it is refused."""
        try:
            asked = (self._role, self.max_tokens, prompt_tokens, calls, least_tokens)
            self.name, self.max_tokens, cut = await above.hold(*asked)
        except BaseException:
            self.cancel()
            raise
        self.above, self.cut_by = above, cut or self.cut_by

    def settle(self, usage: Usage, perhaps: Usage | None = None) -> None:
        """Replace the reservation by what the work really cost, and the most that tries without an answer were billed;
        a second settlement raises DataError.
        """
        if not self._open:
            raise DataError(f"this reservation of {self._role} is already settled or cancelled; reserve again")
        self._open = False
        for level in self._ledger._levels:
            if level._on_spent is not None:
                level._on_spent(self._role, usage if perhaps is None else usage + perhaps)
        if self.above is not None:
            self.above.settle(self.name, self._role, usage, perhaps)
        cut = self.cut_by if usage.generated_tokens >= self.max_tokens else ""  # all that the cap had left was used up
        self._ledger._close(self._role, self._amount, usage, perhaps, cut)

    def cancel(self) -> None:
        """Give the reservation back; after a settlement it does nothing."""
        if self._open:
            self._open = False
            if self.above is not None:
                self.above.release(self.name)
            self._ledger._close(self._role, self._amount, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Turn:
    """Somebody who waits for `max_tokens`, or for as few as `least`; `asked` makes amounts of tokens.

    Example:
        reservation = await ledger.areserve("strong", max_tokens=64, least_tokens=16)  # waits for its turn
    """

    def __init__(
        self, ledger: Ledger, role: str, ask: Mapping[str, Amount], max_tokens: int,
        asked: Callable[[int], Mapping[str, Amount]], least: int,
    ) -> None:  # fmt: skip
        self.ledger, self.role, self.ask, self.granted = ledger, role, ask, False
        self.max_tokens, self.cut_by, self._asked, self._least = max_tokens, "", asked, least
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self.given: asyncio.Future[None] = self._loop.create_future()

    def fits_cut(self, cap: str) -> bool:
        """Ask for no more than `cap` will have left, where that is enough. Needs the lock."""
        low, high = self._least, self.max_tokens  # `high` does not fit
        if not 0 < low < high or self.ledger._short(self._asked(low), settled=True):
            return False
        while high - low > 1:
            middle = (low + high) // 2
            short = self.ledger._short(self._asked(middle), settled=True)
            low, high = (low, middle) if short else (middle, high)
        self.max_tokens, self.ask, self.cut_by = low, self._asked(low), cap
        return True

    def tell(self, refusal: BudgetExceededError | None) -> None:
        """Let the coroutine go on, or raise; from any thread."""
        self.granted = refusal is None

        def act() -> None:
            if self.given.done():
                return
            if refusal is None:
                self.given.set_result(None)
            else:
                self.given.set_exception(refusal)

        if threading.get_ident() == self._thread:
            act()
        else:
            self._loop.call_soon_threadsafe(act)


def give_turns(queue: deque[Turn]) -> None:
    """Grant or refuse whoever waits and may know by now, in order; nobody takes what an earlier one waits for.
    Needs the lock.

    Example:
        give_turns(run_ledger._queue)  # after something was given back
    """
    wanted: set[tuple[int, str]] = set()  # caps that somebody before waits for
    for turn in list(queue):
        ledger, ask = turn.ledger, turn.ask
        needs = {(id(level), name) for level in ledger._levels for name in level._caps if ask[name] > 0}
        never = None if needs & wanted else ledger._short(ask, settled=True)
        if never and turn.fits_cut(f"{never[0]._name}.{never[1]}"):
            never, ask = None, turn.ask
        if never:
            queue.remove(turn)
            turn.tell(ledger._refusal(turn.role, ask, *never))
        elif needs & wanted or ledger._short(ask):
            wanted |= needs
        else:
            queue.remove(turn)
            ledger._hold(ask, 1)
            turn.tell(None)


def reserve_at_once(
    ledger: Ledger, role: str, max_tokens: int, *, prompt_tokens: int = 0, calls: int = 1
) -> Reservation | None:
    """`Ledger.areserve` where nobody has to wait; None where it would have to.

    Example:
        held = reserve_at_once(ledger, "strong", 64) or await ledger.areserve("strong", 64)
    """
    ask = ledger._ask(role, max_tokens, prompt_tokens, calls)
    with ledger._lock:
        if ledger._levels[-1]._queue or ledger._short(ask):
            return None
        ledger._hold(ask, 1)
    return Reservation(ledger, role, ask, max_tokens)


def reserved_before(
    ledger: Ledger, role: str, max_tokens: int, *, prompt_tokens: int = 0, calls: int = 1
) -> Reservation:
    """What was reserved before this ledger was made anew, whatever is left by now.

    Example:
        reserved_before(ledger, "strong", 64).settle(Usage("M", 1, 200, 200, 40))
    """
    ask = ledger._ask(role, max_tokens, prompt_tokens, calls)
    with ledger._lock:
        ledger._hold(ask, 1)
    return Reservation(ledger, role, ask, max_tokens)


Tallies = tuple[Mapping[str, Amount], Mapping[str, int], Mapping[str, int]]
"""The highest spending of one problem, refusals and cuts by cap."""


def take_tallies(ledger: Ledger) -> Tallies:
    """What a worker's ledger counted since the last call, for the ledger above.

    Example:
        add_tallies(run_ledger, *take_tallies(worker_ledger))
    """
    with ledger._lock:
        tallies = ledger._most, ledger._refused, ledger._cut
        ledger._most, ledger._refused, ledger._cut = {}, {}, {}
    return tallies


def add_tallies(ledger: Ledger, most: Mapping[str, Amount], refused: Mapping[str, int], cut: Mapping[str, int]) -> None:
    """Count what `take_tallies` of a worker's ledger gave.

    Example:
        add_tallies(run_ledger, *take_tallies(worker_ledger))
    """
    with ledger._lock:
        ledger._most |= {name: max(amount, ledger._most.get(name, 0)) for name, amount in most.items()}
        for mine, theirs in ((ledger._refused, refused), (ledger._cut, cut)):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count


def amounts_of(role: str, generated: int, calls: int, money: Amount) -> dict[str, Amount]:
    """Amounts as the caps count them.

    >>> amounts_of("scorer", generated=4, calls=1, money=0)["calls"]  # of working models alone
    0
    """
    strong = generated if role == "strong" else 0
    counted = 0 if role == "scorer" else calls
    return {"strong_tokens": strong, "total_tokens": generated, "calls": counted, "money": money}


def money_for(price: Prices, prompt_tokens: int, generated_tokens: int, cached_tokens: int = 0) -> Fraction:
    """Exact money; the prices are read as the decimals they were written as. `cached_tokens` are those of the prompt
    that came from a cache.

    >>> money_for((3.0, 15.0), prompt_tokens=1000, generated_tokens=200)
    Fraction(3, 500)
    """
    read, written, cached = (Fraction(str(each)) for each in (*price[:2], price[-1] if price[2:] else price[0]))
    fresh = prompt_tokens - cached_tokens
    return (read * fresh + cached * cached_tokens + written * generated_tokens) / 1_000_000


def prices_of(config: Config, roles: Sequence[Roles]) -> dict[str, Prices | None]:
    """Prices by role; ConfigError where a cap on money lacks one.

    >>> prices_of(Config.lab(), ["weak"])
    {'weak': (0.0, 0.0)}
    """
    prices: dict[str, Prices | None] = {role: config.role(role).prices for role in roles}
    for role, price in prices.items():
        for key, caps in (("budget", config.budget), ("budget.problem", config.budget.problem)):
            if caps.money is not None and price is None:
                table = "scorer" if role == "scorer" else f"models.{role}"
                raise ConfigError(f"{key}.money is set, but {table} has no price; set {table}.price_in and .price_out")
    return prices


def spent_line(role: str, usage: Usage) -> str:
    """What a role has spent, on one line.

    >>> spent_line("weak", Usage("lab-weak", 2, 40, 30, 12))
    'weak (lab-weak): 2 calls, 40 prompt tokens (30 evaluated), 12 generated, no price known'
    """
    is_nothing = usage == Usage(usage.model)
    money = "no price known" if usage.cost is None and not is_nothing else f"money {usage.cost or 0:,.6g}"
    name = f" ({usage.model})" if usage.model else ""
    return (
        f"{role}{name}: {usage.calls:,} calls, {usage.prompt_tokens:,} prompt tokens "
        f"({usage.evaluated_tokens:,} evaluated), {usage.generated_tokens:,} generated, {money}"
    )


def by_endpoint(ledger: Ledger) -> list[str]:
    """What each endpoint of a role took, a line each; nothing of a role that is one model at one place.

    Example:
        print(by_endpoint(router.ledger))
    """
    places = dict(ledger._places)
    roles = [role for role, _ in places]
    return [spent_line(f"of {role}", usage) for (role, _), usage in places.items() if roles.count(role) > 1]


def summary_of(ledger: Ledger) -> str:
    """What a ledger has spent, its caps, and what they refused and cut short, a line each. Needs the lock.

    Example:
        print(ledger.summary())
    """
    lefts = {name: cap - ledger._spent[name] - ledger._held[name] for name, cap in ledger._caps.items()}
    unanswered = {f"{role}, perhaps billed without an answer": usage for role, usage in ledger._perhaps.items()}
    lines = [spent_line(role, usage) for role, usage in ledger._usage.items()]
    lines.append(spent_line("all", sum(ledger._usage.values(), Usage())))
    lines += by_endpoint(ledger)
    lines += [spent_line(role, usage) for role, usage in unanswered.items()]
    lines += [
        f"cap on {name}: {float(ledger._caps[name]):,.10g}, {float(left):,.10g} left" for name, left in lefts.items()
    ]
    each = [(name, getattr(ledger._problem_caps, name, None)) for name in CapsConfig.model_fields]
    lines += [
        f"cap on {name} of each problem: {cap:,.10g}, at most {float(ledger._most.get(name, 0)):,.10g} spent by one"
        for name, cap in each if cap is not None
    ]  # fmt: skip
    lines += [f"requests refused by {key}: {count:,}" for key, count in ledger._refused.items()]
    lines += [f"answers cut short by {key}: {count:,}" for key, count in ledger._cut.items()]
    return "\n".join(lines)


def cost_at(usage: Usage, price: Prices | None) -> float | None:
    """What `usage` cost: what the provider said, else by the price; None where neither is known.

    >>> cost_at(Usage("m", 1, 1_000_000, 1_000_000, 0), (3.0, 15.0)), cost_at(Usage("m", 1), None)
    (3.0, None)
    """
    return priced(usage, price)[0].cost


def priced(usage: Usage, price: Prices | None) -> tuple[Usage, Fraction]:
    """`usage` with its cost where it or a price is known, and the money exactly, 0 where it is not.

    >>> priced(Usage("m", 1, 1_000_000, 1_000_000, 0), (3.0, 15.0))[1]
    Fraction(3, 1)
    """
    if usage.cost is not None or price is None:
        return usage, Fraction(str(usage.cost or 0))
    cached = usage.prompt_tokens - usage.evaluated_tokens
    money = money_for(price, usage.prompt_tokens, usage.generated_tokens, cached) if any(price) else Fraction(0)
    return dataclasses.replace(usage, cost=float(money)), Fraction(money)
