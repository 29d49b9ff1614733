"""What a ledger sets aside, and who waits for it; see `stepwise.models.budget`."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Self

from stepwise.config import CapsConfig, Prices
from stepwise.errors import BudgetExceededError, DataError
from stepwise.types import Usage

if TYPE_CHECKING:
    from stepwise.models.budget import Ledger

Amount = int | Fraction  # counts are whole numbers, money is exact


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
    _open: bool = True

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
        cut = self.cut_by if usage.generated_tokens >= self.max_tokens else ""  # all that the cap had left was used up
        self._ledger._close(self._role, self._amount, usage, perhaps, cut)

    def cancel(self) -> None:
        """Give the reservation back; after a settlement it does nothing."""
        if self._open:
            self._open = False
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


def summary_of(ledger: Ledger) -> str:
    """What a ledger has spent, its caps, and what they refused and cut short, a line each. Needs the lock.

    Example:
        print(ledger.summary())
    """
    lefts = {name: cap - ledger._spent[name] - ledger._held[name] for name, cap in ledger._caps.items()}
    unanswered = {f"{role}, perhaps billed without an answer": usage for role, usage in ledger._perhaps.items()}
    lines = [spent_line(role, usage) for role, usage in ledger._usage.items()]
    lines.append(spent_line("all", sum(ledger._usage.values(), Usage())))
    roles = [role for role, _ in ledger._places]
    lines += [spent_line(f"of {role}", usage) for (role, _), usage in ledger._places.items() if roles.count(role) > 1]
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
