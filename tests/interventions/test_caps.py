"""Caps on a collection: kept, counted over all starts, and what was sealed becomes a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import Config
from stepwise.data.examples import read_examples
from stepwise.errors import BudgetExceededError, ConfigError
from stepwise.interventions.collection import collect, read_stage
from stepwise.interventions.rows import ROWS
from stepwise.io import read_rows
from stepwise.models.base import Completion, Request
from stepwise.models.caps import Caps
from stepwise.runs.directory import opened
from stepwise.types import Usage
from tests.fakes import ScriptedBackend
from tests.interventions import world

N = 6
SETTINGS = world.SETTINGS.model_copy(update={"max_tokens": 30})  # a solution has 25
PRICES = ["models.weak.price_in=0", "models.weak.price_out=1000000", "models.critic.price_in=0"]
PRICES += ["models.critic.price_out=0", "critic.max_tokens=64"]


class Weak(ScriptedBackend):
    """The world's weak model, whose usage says nothing of money: the price does."""

    def __init__(self) -> None:
        super().__init__(world.written, "weak")

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        made = super().continue_solutions(requests)
        return [dataclasses.replace(one, usage=dataclasses.replace(one.usage, cost=None)) for one in made]


def run(out: Path, *overrides: str, weak: Any = None, **more: Any) -> Path:
    cfg = Config.load(None, ["critic.candidates=2", *PRICES, *overrides])
    more = {"writers": world.writers(weak or Weak())} | more
    return collect(world.problems(N), cfg, out, settings=SETTINGS, **more)


def spent(out: Path, role: str = "") -> Usage:
    rows = read_rows(out / "spent.jsonl")
    return sum((Usage(**row["usage"]) for row in rows if role in ("", row["role"])), Usage())


def rows(out: Path) -> dict[str, list[Any]]:
    """The rows of all stages, without the hash of the configuration, which caps are part of."""
    return {name: [row.text if hasattr(row, "text") else row.id for row in read_stage(out, name)] for name in ROWS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that no cap stops."""
    out = tmp_path_factory.mktemp("whole")
    run(out, "budget.total_tokens=1_000_000", "budget.money=1_000_000", "budget.calls=100_000")
    return out


def told(out: Path) -> int:
    """Tokens of all rows of the sealed chunks."""
    names = ("rollouts", "located", "candidates", "guided")
    return sum(row.usage.generated_tokens for name in names for row in read_stage(out, name))


def test_a_cap_that_is_not_reached_changes_nothing_and_all_that_was_paid_is_written_down(
    whole: Path, tmp_path: Path
) -> None:
    run(tmp_path)
    assert rows(whole) == rows(tmp_path)
    assert spent(tmp_path).generated_tokens == spent(whole).generated_tokens == told(whole) > 0


@pytest.mark.parametrize("cap", ["budget.money", "budget.total_tokens", "budget.calls"])
def test_no_cap_is_passed_and_the_sealed_chunks_become_a_dataset(whole: Path, tmp_path: Path, cap: str) -> None:
    def counted(out: Path) -> int:
        used = spent(out, "weak" if "money" in cap else "")
        return used.calls if cap == "budget.calls" else used.generated_tokens

    limit = counted(whole) * 5 // 6
    with pytest.raises(BudgetExceededError, match=cap):
        run(tmp_path, f"{cap}={limit}")
    assert counted(tmp_path) <= limit
    sealed = read_stage(tmp_path, "examples")
    assert read_examples(tmp_path / "dataset.jsonl") == sealed
    assert 0 < len(sealed) < len(read_stage(whole, "examples"))


def test_a_chunk_that_would_not_fit_is_not_begun_so_that_nothing_is_paid_for_in_vain(
    whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(BudgetExceededError, match="do not fit"):
        run(tmp_path, f"budget.calls={spent(whole).calls * 5 // 6}")
    assert spent(tmp_path).generated_tokens == told(tmp_path) > 0


def test_a_cap_inside_the_first_chunk_stops_it_and_leaves_no_chunk(tmp_path: Path) -> None:
    weak = Weak()
    with pytest.raises(BudgetExceededError, match=r"budget\.money = 150"):
        run(tmp_path, "budget.money=150", weak=weak)
    assert not list((tmp_path / "chunks").iterdir())
    assert 0 < spent(tmp_path, "weak").generated_tokens <= 150  # the critic is free
    assert read_examples(tmp_path / "dataset.jsonl") == []


def test_where_only_some_requests_fit_they_are_asked_a_few_at_a_time(tmp_path: Path) -> None:
    weak = Weak()
    # Three rollouts of one problem reserve 90 tokens, so the two problems of a chunk are asked one by one.
    with pytest.raises(BudgetExceededError):
        run(tmp_path, "budget.total_tokens=170", weak=weak)
    assert [len(batch) for batch in weak.batches[:2]] == [1, 1]


def test_what_the_critic_asks_for_is_reserved_too(tmp_path: Path) -> None:
    weak = Weak()
    with pytest.raises(BudgetExceededError, match="critic asks for up to 200"):
        run(tmp_path, "budget.total_tokens=250", weak=weak, writers=world.writers(weak, max_tokens=200))


def test_what_a_killed_start_paid_counts_for_the_next(tmp_path: Path) -> None:
    config = Config.load(None, [*PRICES, "budget.money=1000"])
    with opened(tmp_path, program="collect", config=config, arguments={}) as directory:
        Caps(config, directory).add("weak", Usage("weak", 1, 0, 0, 990))
        assert Caps(config, directory).ledger.remaining()["money"] == 10


def test_what_was_spent_apart_counts_and_says_nothing_of_what_is_coming(tmp_path: Path) -> None:
    config = Config.load(None, ["budget.total_tokens=1000"])
    with opened(tmp_path, program="collect", config=config, arguments={}) as directory:
        Caps(config, directory, apart="evaluation").add("weak", Usage("weak", 1, 0, 0, 600))
        caps = Caps(config, directory)
        assert caps.ledger.remaining()["total_tokens"] == 400
        caps.add("weak", Usage("weak", 1, 0, 0, 100))
        caps.check(1, 3)  # 100 each
        with pytest.raises(BudgetExceededError, match="100 spent on 1 problems, so the next 4 would"):
            caps.check(1, 4)


def test_a_cap_on_money_needs_a_price_before_any_model_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.critic has no price"):
        collect(
            world.problems(2),
            Config.load(None, ["budget.money=1", "models.critic.model=openai/x"]),
            tmp_path,
            settings=SETTINGS,
        )
