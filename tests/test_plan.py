import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from stepwise.config import Config, ModelConfig
from stepwise.plan import Planned, money, seconds, show_plan

PLANNED = Planned("strong", calls=10, prompt_tokens=1_000_000, generated_tokens=500_000)


def shown(plan: list[Planned], *overrides: str) -> str:
    text = io.StringIO()
    show_plan(
        plan, Config.load(None, ["models.weak.model=llamacpp/none.gguf", *overrides]), Console(file=text, width=200)
    )
    return text.getvalue()


def test_money_is_tokens_times_prices_and_unknown_without_them() -> None:
    assert money(PLANNED, ModelConfig(model="openai/x", price_in=3.0, price_out=4.0)) == 5.0
    assert money(PLANNED, ModelConfig(model="openai/x")) is None
    assert money(PLANNED, ModelConfig(model="llamacpp/lab-weak")) == 0.0


def test_a_larger_file_takes_longer_and_a_missing_one_is_unknown(tmp_path: Path) -> None:
    times = []
    for size in (1, 2_000_000_000):
        path = tmp_path / f"{size}.gguf"
        with path.open("wb") as file:
            file.truncate(size)
        times.append(seconds(PLANNED, ModelConfig(model=f"llamacpp/{path}")))
    assert times[0] is not None
    assert times[1] is not None
    assert times[1] > times[0] > 0
    assert seconds(PLANNED, ModelConfig(model="llamacpp/none.gguf")) is None
    assert seconds(PLANNED, ModelConfig(model="llamacpp/not-a-lab-model")) is None


def test_requests_to_an_api_run_beside_each_other() -> None:
    alone = seconds(PLANNED, ModelConfig(model="openai/x", sequences=1))
    together = seconds(PLANNED, ModelConfig(model="openai/x", sequences=5))
    assert alone is not None
    assert together == pytest.approx(alone / 5)


def test_the_steps_of_one_solution_do_not_run_beside_each_other() -> None:
    model = ModelConfig(model="openai/x", sequences=5)
    two_problems = dataclasses.replace(PLANNED, at_once=2)
    alone, together = seconds(two_problems, model), seconds(PLANNED, model)
    assert alone is not None
    assert together == pytest.approx(alone * 2 / 5)


def test_the_table_sums_up_and_one_unknown_price_makes_the_sum_unknown() -> None:
    both = [PLANNED, Planned("weak", 5, 1000, 100)]
    known = shown(both, "models.strong.model=openai/x", "models.strong.price_in=1", "models.strong.price_out=2")
    assert "1,001,000" in known
    assert "500,100" in known
    assert known.count("2.0000") == 2
    assert shown(both, "models.strong.model=openai/x").count("no price known") == 2


def test_a_program_without_models_says_so() -> None:
    assert shown([]) == "This program asks no model for anything.\n"
