"""Coroutines that wait for their turn under a cap: who is granted, who is refused, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from stepwise.config import BudgetConfig, CapsConfig
from stepwise.errors import BudgetExceededError, ConfigError
from stepwise.models.budget import Ledger
from stepwise.types import Usage


async def _spend(ledger: Ledger, log: list[str], name: str, ask: int, cost: int) -> None:
    try:
        held = await ledger.areserve("strong", ask)
    except BudgetExceededError:
        log.append(f"{name} refused")
        return
    with held:
        log.append(f"{name} asks")
        await asyncio.sleep(0.001)
        held.settle(Usage(calls=1, generated_tokens=cost))


def _run(*works: Coroutine[Any, Any, None]) -> None:
    async def together() -> None:
        await asyncio.gather(*works)

    asyncio.run(together())


def test_a_coroutine_is_refused_only_where_what_is_in_flight_can_give_nothing_back() -> None:
    ledger, log = Ledger(BudgetConfig(strong_tokens=100)), list[str]()
    _run(*(_spend(ledger, log, f"{i}", 60, 20) for i in range(5)))
    # One at a time, since two reservations of 60 do not fit; after 60 spent a request for 60 never will.
    assert log == ["0 asks", "1 asks", "2 asks", "3 refused", "4 refused"]
    assert ledger.remaining()["strong_tokens"] == 40


def test_turns_are_given_in_the_order_of_asking_and_nobody_takes_what_another_waits_for() -> None:
    ledger, log = Ledger(BudgetConfig(strong_tokens=100)), list[str]()
    _run(
        _spend(ledger, log, "large", 90, 10),
        _spend(ledger, log, "larger", 85, 10),
        _spend(ledger, log, "small", 5, 5),  # would fit beside the first, but the second came before
    )
    assert log == ["large asks", "larger asks", "small asks"]


def test_who_does_not_need_a_cap_waits_for_nobody() -> None:
    ledger, log = Ledger(BudgetConfig(strong_tokens=100)), list[str]()

    async def weak() -> None:
        with await ledger.areserve("weak", 50) as held:
            log.append("weak asks")
            held.settle(Usage(calls=1, generated_tokens=50))

    _run(_spend(ledger, log, "first", 90, 10), _spend(ledger, log, "second", 90, 10), weak())
    assert log == ["first asks", "weak asks", "second asks"]


def test_a_problem_that_waits_for_its_own_cap_holds_nobody_else_up() -> None:
    ledger, log = Ledger(BudgetConfig(problem=CapsConfig(strong_tokens=50))), list[str]()
    mine, other = ledger.for_problem(), ledger.for_problem()
    _run(_spend(mine, log, "mine", 40, 5), _spend(mine, log, "mine again", 40, 5), _spend(other, log, "other", 40, 5))
    assert log == ["mine asks", "other asks", "mine again asks"]


def test_a_cancelled_turn_gives_way() -> None:
    ledger, log = Ledger(BudgetConfig(strong_tokens=100)), list[str]()

    async def work() -> None:
        first = asyncio.ensure_future(_spend(ledger, log, "first", 90, 10))
        second = asyncio.ensure_future(_spend(ledger, log, "second", 90, 10))
        third = asyncio.ensure_future(_spend(ledger, log, "third", 90, 10))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)

    asyncio.run(work())
    assert log == ["first asks", "third asks"]
    assert ledger.remaining()["strong_tokens"] == 80


def test_what_is_left_for_a_policy_leaves_other_problems_reservations_out() -> None:
    ledger = Ledger(BudgetConfig(strong_tokens=100, problem=CapsConfig(strong_tokens=80)))
    mine, other = ledger.for_problem(), ledger.for_problem()
    other.reserve("strong", 70)
    assert mine.unspent("strong_tokens") == 80
    other.record("strong", Usage(generated_tokens=30))
    assert mine.unspent("strong_tokens") == 70
    assert mine.unspent("money") is None


def test_who_can_do_with_less_gets_what_is_left_once_all_in_flight_has_settled() -> None:
    ledger, given = Ledger(BudgetConfig(strong_tokens=100)), list[tuple[str, int, str]]()

    async def step(name: str, cost: int) -> None:
        try:
            held = await ledger.areserve("strong", 60, least_tokens=10)
        except BudgetExceededError:
            given.append((name, 0, "refused"))
            return
        with held:
            given.append((name, held.max_tokens, held.cut_by))
            await asyncio.sleep(0.001)
            held.settle(Usage(calls=1, generated_tokens=min(cost, held.max_tokens)))

    _run(step("a", 35), step("b", 35), step("c", 18), step("d", 50), step("e", 50))
    cap = "budget.strong_tokens"
    assert given == [("a", 60, ""), ("b", 60, ""), ("c", 30, cap), ("d", 12, cap), ("e", 0, "refused")]
    assert ledger.remaining()["strong_tokens"] == 0


def test_a_role_that_nobody_has_is_refused() -> None:
    assert Ledger(roles=["sampler"]).usage("sampler") == Ledger().usage("critic") == Usage()
    with pytest.raises(ConfigError, match="did you mean 'strong'"):
        Ledger().usage("strnog")
