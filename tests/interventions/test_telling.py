from __future__ import annotations

from types import SimpleNamespace

import pytest

from stepwise.config import Config
from stepwise.interventions.collection import Account, _short
from stepwise.types import Usage


def account(
    *overrides: str, cost: float | None = 0.42, guided: int = 200, problems: int = 40, before: int = 10
) -> Account:
    """100 problems, of which `problems` are done, `before` of them by an earlier start."""
    made = Account(Config.load(None, list(overrides)), 100)

    def rows(
        tokens: int, guided: int, right: int, cost: float | None, examples: int
    ) -> dict[str, list[SimpleNamespace]]:
        written = [SimpleNamespace(usage=Usage("weak", 1, 0, 0, tokens, cost=cost))]
        rollouts = [SimpleNamespace(usage=Usage(), verdict="CORRECT" if i < right else "WRONG") for i in range(guided)]
        return {"rollouts": written, "located": [], "candidates": [], "guided": rollouts, "examples": [None] * examples}

    made.add(rows(10_000, 0, 0, 0.0, 1), before, before=True)
    if problems > before:
        made.add(rows(300_000, guided, 24 if guided else 0, cost, 40), problems - before)
    return made


PRICES = ["models.weak.model=openai/x", "models.weak.price_in=0", "models.weak.price_out=0"]
MONEY = [*PRICES, "budget.money=5", "models.critic.price_in=0", "models.critic.price_out=0"]


def test_one_line_has_examples_success_tokens_money_rate_and_time() -> None:
    assert account(*MONEY).note(60.0) == (
        "examples 41, guided 12% right, 310k tokens, 0.42 of 5.00 spent, 5.0k tokens/s, about 2 min left"
    )


@pytest.mark.parametrize(
    ("changed", "said", "unsaid"),
    [
        (account("models.weak.model=openai/x", cost=None), "no price known", "spent"),
        (account(cost=0.0), "310k tokens, 5.0k", "spent"),
        (account(*PRICES), "0.42 spent", " of "),
        (account("budget.total_tokens=400_000"), "310k of 400k tokens", "5.00"),
        (account(guided=0), "examples 41, 310k", "guided"),
        (account(problems=100), "tokens/s", "left"),
        (account(*MONEY, problems=40, before=40), "spent", "tokens/s"),  # nothing was done here: there is no rate yet
    ],
)
def test_what_is_not_known_is_left_out(changed: Account, said: str, unsaid: str) -> None:
    line = changed.note(60.0)
    assert said in line
    assert unsaid not in line


def test_counts_are_short() -> None:
    assert [_short(n) for n in (0, 950, 1_000, 31_400, 2_440_000, 24_000_000)] == [
        "0", "950", "1.0k", "31k", "2.4M", "24M",
    ]  # fmt: skip
