from __future__ import annotations

from types import SimpleNamespace

import pytest

from stepwise.config import Config
from stepwise.interventions.collection import _Account, _short
from stepwise.models.budget import Ledger
from stepwise.types import Usage


def account(
    *overrides: str, cost: float | None = 0.42, guided: int = 200, problems: int = 40, before: int = 10
) -> _Account:
    """`problems` are done, `before` of them by an earlier start."""
    ledger = Ledger.for_config(Config.load(None, list(overrides)))
    ledger.record("weak", Usage("weak", 1, 0, 0, 10_000, cost=0.0))
    made = _Account(ledger)

    def rows(guided: int, right: int, examples: int) -> dict[str, list[SimpleNamespace | None]]:
        rollouts = [SimpleNamespace(verdict="CORRECT" if i < right else "WRONG", phase="filter") for i in range(guided)]
        return {"guided": [*rollouts], "examples": [None] * examples}

    made.add(rows(0, 0, 1), before, before=True)
    if problems > before:
        ledger.record("weak", Usage("weak", 1, 0, 0, 300_000, cost=cost))
        made.add(rows(guided, 24 if guided else 0, 40), problems - before)
    return made


PRICES = ["models.weak.model=openai/x", "models.weak.price_in=0", "models.weak.price_out=0"]
MONEY = [*PRICES, "budget.money=5", "models.critic.price_in=0", "models.critic.price_out=0"]


def test_one_line_has_examples_success_tokens_money_rate_and_time() -> None:
    assert account(*MONEY).note(60.0) == (
        "examples 41, guided 12% right, 310k tokens, 0.42 of 5.00 spent, 5.0k tokens/s"
    )


@pytest.mark.parametrize(
    ("changed", "said", "unsaid"),
    [
        (account("models.weak.model=openai/x", cost=None), "no price known", "spent"),
        (account(cost=0.0), "310k tokens, 5.0k", "spent"),
        (account(*PRICES), "0.42 spent", " of "),
        (account("budget.total_tokens=400_000"), "310k of 400k tokens", "5.00"),
        (account(guided=0), "examples 41, 310k", "guided"),
        (account(*MONEY, problems=40, before=40), "spent", "tokens/s"),  # nothing was done here: there is no rate yet
    ],
)
def test_what_is_not_known_is_left_out(changed: _Account, said: str, unsaid: str) -> None:
    line = changed.note(60.0)
    assert said in line
    assert unsaid not in line


def test_counts_are_short() -> None:
    assert [_short(n) for n in (0, 950, 1_000, 31_400, 2_440_000, 24_000_000)] == [
        "0", "950", "1.0k", "31k", "2.4M", "24M",
    ]  # fmt: skip
