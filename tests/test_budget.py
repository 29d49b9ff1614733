import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.config import BudgetConfig, CapsConfig, Config
from stepwise.errors import BudgetExceededError, ConfigError, DataError
from stepwise.models.budget import Ledger
from stepwise.types import Usage


def spent(generated: int, prompt: int = 0, calls: int = 1, model: str = "m") -> Usage:
    return Usage(model, calls=calls, prompt_tokens=prompt, evaluated_tokens=prompt, generated_tokens=generated)


def can_spend(ledger: Ledger, role: str, tokens: int, **more: int) -> bool:
    """Whether a reservation fits now."""
    try:
        ledger.reserve(role, tokens, **more).cancel()
    except BudgetExceededError:
        return False
    return True


def allowed_tokens(ledger: Ledger, role: str, **more: int) -> int | None:
    """The largest reservation that fits now, None without a cap, 0 also where none does."""
    if can_spend(ledger, role, 10**12, **more):
        return None
    low, high = 0, 10**12
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if can_spend(ledger, role, middle, **more) else (low, middle)
    return low


def test_without_caps_everything_is_allowed_and_counted() -> None:
    ledger = Ledger()
    with ledger.reserve("strong", 10**9) as reservation:
        reservation.settle(spent(7, prompt=3))
    ledger.record("weak", spent(5, model="w"))
    assert allowed_tokens(ledger, "strong") is None
    assert ledger.usage("strong") == spent(7, prompt=3)
    assert ledger.usage().generated_tokens == 12
    assert ledger.usage("critic") == Usage()
    assert set(ledger.remaining().values()) == {None}


def test_what_is_reserved_counts_until_it_is_settled_or_given_back() -> None:
    ledger = Ledger(BudgetConfig(strong_tokens=100))
    first = ledger.reserve("strong", 60)
    assert not can_spend(ledger, "strong", 41)
    assert can_spend(ledger, "strong", 40)
    assert can_spend(ledger, "weak", 10**6)
    with pytest.raises(BudgetExceededError, match=r"budget.strong_tokens = 100: 0 spent, 60 reserved, and strong asks"):
        ledger.reserve("strong", 41)
    first.settle(spent(10))
    assert allowed_tokens(ledger, "strong") == 90
    with ledger.reserve("strong", 90):
        assert allowed_tokens(ledger, "strong") == 0
    assert ledger.remaining()["strong_tokens"] == 90


def test_a_reservation_is_settled_once() -> None:
    reservation = Ledger().reserve("weak", 5)
    reservation.settle(spent(5))
    reservation.cancel()
    with pytest.raises(DataError, match="already settled"):
        reservation.settle(spent(5))


def test_a_reservation_is_given_back_when_the_call_fails() -> None:
    ledger = Ledger(BudgetConfig(total_tokens=10))

    def failing_call() -> None:
        with ledger.reserve("weak", 10):
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        failing_call()
    assert allowed_tokens(ledger, "weak") == 10


def test_calls_are_counted_for_every_role_but_the_scorer() -> None:
    ledger = Ledger(BudgetConfig(calls=3))
    ledger.record("scorer", spent(0, prompt=50, calls=9))
    ledger.record("weak", spent(4, calls=2))
    assert ledger.remaining()["calls"] == 1
    assert not can_spend(ledger, "weak", 1, calls=2)
    assert can_spend(ledger, "scorer", 0, calls=20)
    ledger.reserve("critic", 1).settle(spent(1))
    assert allowed_tokens(ledger, "critic") == 0


def test_money_is_exact_and_bounded_by_both_prices() -> None:
    ledger = Ledger(BudgetConfig(money=0.3), {"strong": (1000.0, 100_000.0), "weak": (0.0, 0.0)})
    assert allowed_tokens(ledger, "strong", prompt_tokens=100) == 2
    for _ in range(3):  # in floating point 0.1 + 0.1 + 0.1 is more than 0.3
        ledger.reserve("strong", 1).settle(spent(1))
    assert ledger.remaining()["money"] == 0.0
    assert not can_spend(ledger, "strong", 0, prompt_tokens=1)
    assert can_spend(ledger, "weak", 10**6, prompt_tokens=10**6)
    assert ledger.usage("strong").cost == pytest.approx(0.3)


def test_a_cost_that_the_provider_states_wins_over_the_price_list() -> None:
    ledger = Ledger(prices={"strong": (1e6, 1e6)})
    ledger.record("strong", Usage("m", calls=1, generated_tokens=5, cost=0.25))
    assert ledger.usage("strong").cost == 0.25


def test_an_unknown_price_stays_unknown_and_forbids_a_cap_on_money() -> None:
    ledger = Ledger()
    ledger.record("strong", spent(5))
    assert ledger.usage("strong").cost is None
    assert "no price known" in ledger.summary()
    with pytest.raises(ConfigError, match="price_in"):
        Ledger(BudgetConfig(money=1.0)).reserve("strong", 1)
    config = Config.load(None, ["budget.money=1", "models.strong.model=openai/x"])
    with pytest.raises(ConfigError, match=r"models\.strong has no price; set models\.strong\.price_in"):
        Ledger.for_config(config)


def test_a_configuration_gives_caps_and_prices() -> None:
    overrides = [
        "budget.calls=2",
        "models.strong.model=openai/x",
        "models.strong.price_in=1",
        "models.strong.price_out=2",
    ]
    ledger = Ledger.for_config(Config.load(None, overrides))
    ledger.record("strong", spent(1_000_000, prompt=1_000_000))
    ledger.record("weak", spent(10))
    assert ledger.usage("strong").cost == 3.0
    assert ledger.usage("weak").cost == 0.0
    assert ledger.remaining()["calls"] == 0


def test_an_overrun_is_recorded_as_it_is_and_stops_what_follows() -> None:
    ledger = Ledger(BudgetConfig(strong_tokens=10))
    ledger.reserve("strong", 10).settle(spent(13))
    assert ledger.remaining()["strong_tokens"] == -3
    assert allowed_tokens(ledger, "strong") == 0
    with pytest.raises(BudgetExceededError):
        ledger.reserve("strong", 1)


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": -1}, {"max_tokens": 1, "prompt_tokens": -1}, {"max_tokens": 1, "calls": -2}]
)
def test_negative_amounts_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match="must be 0 or more"):
        Ledger().reserve("weak", **wrong)


def test_the_summary_reads_like_a_bill() -> None:
    ledger = Ledger(BudgetConfig(total_tokens=1000), {"weak": (0.0, 0.0)})
    ledger.record("weak", spent(100, prompt=2000, calls=3, model="llamacpp/lab-weak"))
    assert ledger.summary().splitlines() == [
        "weak (llamacpp/lab-weak): 3 calls, 2,000 prompt tokens (2,000 evaluated), 100 generated, money 0",
        "all (llamacpp/lab-weak): 3 calls, 2,000 prompt tokens (2,000 evaluated), 100 generated, money 0",
        "cap on total_tokens: 1,000, 900 left",
    ]


@given(
    st.integers(0, 200),
    st.integers(0, 40),
    st.lists(st.tuples(st.sampled_from(["weak", "strong"]), st.integers(0, 60), st.floats(0, 1)), max_size=30),
)
def test_caps_hold_for_any_order_of_work(strong_cap: int, calls_cap: int, work: list[tuple[str, int, float]]) -> None:
    ledger = Ledger(BudgetConfig(strong_tokens=strong_cap, calls=calls_cap, total_tokens=400))
    waiting = []
    for role, tokens, share in work:
        allowed = allowed_tokens(ledger, role)
        assert allowed is not None
        assert can_spend(ledger, role, tokens) == (tokens <= allowed and can_spend(ledger, role, 0))
        if can_spend(ledger, role, tokens):
            waiting.append((ledger.reserve(role, tokens), spent(int(tokens * share))))
        if len(waiting) > 3:
            reservation, usage = waiting.pop(0)
            reservation.settle(usage)
    for reservation, usage in waiting:
        reservation.settle(usage)
    assert ledger.usage("strong").generated_tokens <= strong_cap
    assert ledger.usage().calls <= calls_cap
    assert ledger.usage().generated_tokens <= 400


def test_caps_hold_when_threads_reserve_at_once() -> None:
    ledger = Ledger(BudgetConfig(strong_tokens=500))
    start = threading.Barrier(8)

    def worker() -> None:
        start.wait()
        for _ in range(200):
            try:
                with ledger.reserve("strong", 7) as reservation:
                    reservation.settle(spent(5))
            except BudgetExceededError:
                return

    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = ledger.usage("strong").generated_tokens
    assert 500 - 8 * 7 < total <= 500
    assert ledger.remaining()["strong_tokens"] == 500 - total


# --- caps on one problem ----------------------------------------------------------------------------------------------


def both(strong: int | None = None, strong_problem: int | None = None, **problem: float) -> Ledger:
    caps = CapsConfig.model_validate({"strong_tokens": strong_problem, **problem})
    return Ledger(BudgetConfig(strong_tokens=strong, problem=caps))


def test_a_problem_that_reached_its_cap_leaves_the_others_theirs() -> None:
    ledger = both(strong_problem=50)
    first, second = ledger.for_problem(), ledger.for_problem()
    first.reserve("strong", 50).settle(spent(50))
    with pytest.raises(BudgetExceededError, match=r"budget\.problem\.strong_tokens = 50: 50 spent") as refused:
        first.reserve("strong", 1)
    assert refused.value.cap == "budget.problem.strong_tokens"
    assert (allowed_tokens(first, "strong"), allowed_tokens(second, "strong")) == (0, 50)
    assert ledger.usage("strong").generated_tokens == 50
    assert allowed_tokens(ledger, "strong") is None


def test_what_one_problem_reserves_is_taken_from_the_run_until_it_is_settled() -> None:
    ledger = both(strong=60, strong_problem=50)
    first, second = ledger.for_problem(), ledger.for_problem()
    held = first.reserve("strong", 50)
    assert (allowed_tokens(second, "strong"), second.remaining()["strong_tokens"]) == (10, 10.0)
    with pytest.raises(BudgetExceededError) as refused:
        second.reserve("strong", 11)
    assert refused.value.cap == "budget.strong_tokens"
    held.settle(spent(5))
    assert (allowed_tokens(first, "strong"), allowed_tokens(second, "strong")) == (45, 50)
    assert ledger.remaining()["strong_tokens"] == 55.0


def test_a_refusal_at_either_level_reserves_nothing_at_the_other() -> None:
    ledger = both(strong=60, strong_problem=50)
    account = ledger.for_problem()
    with pytest.raises(BudgetExceededError):
        account.reserve("strong", 51)
    ledger.reserve("strong", 30)
    with pytest.raises(BudgetExceededError):
        account.reserve("strong", 31)
    assert ledger.remaining()["strong_tokens"] == 30.0
    assert account.usage() == Usage()
    assert can_spend(account, "strong", 30)


def test_the_cap_that_leaves_the_least_is_the_one_that_is_named() -> None:
    run = Ledger(BudgetConfig(strong_tokens=20, problem=CapsConfig(strong_tokens=12)), roles=["strong"])
    run.record("strong", Usage("m", 1, 1, 1, 20))
    with pytest.raises(
        BudgetExceededError, match=r"^budget\.strong_tokens = 20: 20 spent"
    ):  # the problem has all of its 12
        run.for_problem().reserve("strong", 64)


def test_earlier_attempts_count_for_the_problem_and_not_again_for_the_run() -> None:
    ledger = both(strong=100, strong_problem=50)
    account = ledger.for_problem({"strong": spent(30), "weak": spent(9)})
    assert allowed_tokens(account, "strong") == 20
    assert allowed_tokens(ledger, "strong") == 100


def test_calls_and_money_are_capped_for_a_problem_too() -> None:
    caps = BudgetConfig(problem=CapsConfig(calls=2, money=0.3))
    account = Ledger(caps, {"strong": (0.0, 100_000.0)}).for_problem()
    assert allowed_tokens(account, "strong") == 3
    account.reserve("strong", 1).settle(spent(1))
    account.record("scorer", Usage("s", calls=7, cost=0.1))
    assert allowed_tokens(account, "strong") == 1
    account.reserve("strong", 1).settle(spent(1))
    assert account.remaining()["money"] == 0.0
    assert not can_spend(account, "strong", 0)


def test_a_cap_on_a_problems_money_needs_prices() -> None:
    with pytest.raises(ConfigError, match=r"budget\.problem\.money is set, but no price is known for strong"):
        both(money=1.0).for_problem().reserve("strong", 1)
    config = Config.load(None, ["budget.problem.money=1", "models.strong.model=openai/x"])
    with pytest.raises(ConfigError, match=r"budget\.problem\.money is set, but models\.strong has no price"):
        Ledger.for_config(config)


def test_both_levels_hold_when_threads_reserve_at_once() -> None:
    ledger = both(strong=500, strong_problem=90)
    accounts = [ledger.for_problem() for _ in range(8)]
    start = threading.Barrier(16)

    def worker(account: Ledger) -> None:
        start.wait()
        while True:
            try:
                with account.reserve("strong", 7) as reservation:
                    reservation.settle(spent(5))
            except BudgetExceededError:
                return

    threads = [threading.Thread(target=worker, args=(account,)) for account in accounts for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    each = [account.usage("strong").generated_tokens for account in accounts]
    assert max(each) <= 90
    assert 500 - 16 * 7 < sum(each) <= 500
    assert sum(each) == ledger.usage("strong").generated_tokens == 500 - ledger.remaining()["strong_tokens"]
