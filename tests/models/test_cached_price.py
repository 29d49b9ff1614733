"""Prompt tokens that a provider reads from its cache are counted at their own price, where there is one."""

from __future__ import annotations

from typing import Any

import pytest

from stepwise.config import BudgetConfig, Config, ModelConfig
from stepwise.errors import ConfigError
from stepwise.models.budget import Ledger
from stepwise.types import Usage
from tests.models.test_litellm import behind, one, reply


def test_a_ledger_counts_cached_tokens_at_their_price() -> None:
    usage = Usage("m", 1, prompt_tokens=1000, evaluated_tokens=100, generated_tokens=10)
    for prices, cost in (((2.0, 4.0), 0.00204), ((2.0, 4.0, 0.2), 0.00042), ((2.0, 4.0, 0.0), 0.00024)):
        ledger = Ledger(BudgetConfig(money=1.0), {"strong": prices})
        ledger.record("strong", usage)
        assert ledger.usage("strong").cost == pytest.approx(cost, rel=1e-12)
        assert ledger.remaining()["money"] == pytest.approx(1.0 - cost, rel=1e-12)


def test_without_a_price_nothing_is_known() -> None:
    assert ModelConfig(model="openai/m").prices is None
    assert ModelConfig(model="openai/m", price_in=2.0, price_out=4.0).prices == (2.0, 4.0)
    assert ModelConfig(model="openai/m", price_in=2.0, price_out=4.0, price_cached_in=0.2).prices == (2.0, 4.0, 0.2)
    with pytest.raises(ConfigError, match="price_cached_in needs price_in"):
        Config.load(None, ["models.strong.price_cached_in=0.2"])


@pytest.mark.parametrize(
    ("said", "read", "fresh"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 80}}, 100, 20),
        ({"input_tokens": 20, "output_tokens": 5, "cache_read_input_tokens": 80}, 100, 20),
        ({"input_tokens": 20, "output_tokens": 5, "cache_creation_input_tokens": 80}, 100, 100),
        ({"input_tokens": 20, "output_tokens": 5}, 20, 20),
    ],
)
def test_cache_reads_are_taken_from_a_usage_in_either_form(said: dict[str, Any], read: int, fresh: int) -> None:
    answer = reply("So \\boxed{4}.")
    answer.body["usage"] = said
    prices = {"price_in": 2.0, "price_out": 4.0, "price_cached_in": 0.2}
    with behind(lambda *_: answer, **prices) as (backend, _):
        usage = one(backend).usage
    assert (usage.prompt_tokens, usage.evaluated_tokens, usage.generated_tokens) == (read, fresh, 5)
    assert usage.cost == pytest.approx((2.0 * fresh + 0.2 * (read - fresh) + 4.0 * 5) / 1e6)
