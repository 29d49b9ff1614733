import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from stepwise.config import Config, ModelConfig
from stepwise.interventions.settings import CollectSettings
from stepwise.routing import Never, Threshold
from stepwise.routing.planning import plan_routing
from stepwise.runs.plan import PlannedCalls, _money, plan_collecting, show_plan
from stepwise.types import Problem

PLANNED = PlannedCalls("strong", calls=10, prompt_tokens=1_000_000, generated_tokens=500_000)


def shown(plan: list[PlannedCalls], *overrides: str) -> str:
    text = io.StringIO()
    show_plan(
        plan, Config.load(None, ["models.weak.model=llamacpp/none.gguf", *overrides]), Console(file=text, width=200)
    )
    return text.getvalue()


def test_money_is_tokens_times_prices_and_unknown_without_them() -> None:
    assert _money(PLANNED, ModelConfig(model="openai/x", price_in=3.0, price_out=4.0)) == 5.0
    assert _money(PLANNED, ModelConfig(model="openai/x")) is None
    assert _money(PLANNED, ModelConfig(model="llamacpp/lab-weak")) == 0.0


def test_the_table_sums_up_and_one_unknown_price_makes_the_sum_unknown() -> None:
    both = [PLANNED, PlannedCalls("weak", 5, 1000, 100)]
    known = shown(both, "models.strong.model=openai/x", "models.strong.price_in=1", "models.strong.price_out=2")
    assert "1,001,000" in known
    assert "500,100" in known
    assert known.count("2.0000") == 2
    assert shown(both, "models.strong.model=openai/x").count("no price known") == 2


def test_a_program_without_models_says_so() -> None:
    assert shown([]) == "This program asks no model for anything.\n"


def collecting(*overrides: str, n: int = 3, **settings: Any) -> dict[str, PlannedCalls]:
    problems = [Problem(f"p{i}", "Add 1 and 2.", "3", "1 + 2 = 3, so \\boxed{3}.") for i in range(n)]
    given = CollectSettings(**{"rollouts": 2, "guided": 8, "batch": 4, "max_tokens": 100, "fresh": 0, **settings})
    return {part.role: part for part in plan_collecting(Config.load(None, overrides), given, problems)}


def test_a_collection_asks_at_most_for_every_attempt_and_every_guided_rollout_at_full_length() -> None:
    planned = collecting("critic.candidates=3")
    assert planned["weak"].calls == 3 * (2 + 2 * (3 * 8 + 8))  # 8 more to compare the three
    assert planned["weak"].generated_tokens == planned["weak"].calls * 100
    assert planned["critic"].calls == 2 * (3 * 2 * (1 + 3))  # each reply may be asked for twice
    assert planned["critic"].generated_tokens == planned["critic"].calls * 1024
    assert collecting("critic.candidates=3", fresh=4)["weak"].calls == planned["weak"].calls + 3 * 2 * 4
    assert "critic" not in collecting("critic.method=reference")
    fewer = collecting("critic.candidates=3", attempts=1)
    assert fewer["weak"].calls == 3 * (2 + 3 * 8 + 8)
    assert collecting("models.weak.model=openai/x")["weak"].prompt_tokens > collecting()["weak"].prompt_tokens


CRITIQUES = ("scorer.kind=generative", "scorer.votes=2", "scorer.critique_tokens=50")


def test_critiques_are_counted_as_tokens_that_are_written() -> None:
    read = collecting("critic.method=scorer")["scorer"]
    assert read.generated_tokens == 0
    written = collecting("critic.method=scorer", *CRITIQUES)["scorer"]
    assert written.calls > 2 * read.calls  # one for each step and vote
    assert written.generated_tokens == written.calls * 50
    config = Config.load(None, [*CRITIQUES, "routing.max_steps=7"])
    (*_, routed) = plan_routing(config, [Threshold(0.5)], [Problem("p", "1 + 1?", "2")])
    assert (routed.role, routed.generated_tokens) == ("scorer", 2 * 7 * 50)


def test_the_likely_case_of_a_collection_is_within_the_worst_one_for_every_role() -> None:
    for overrides in (
        [],
        ["critic.method=scorer"],
        ["critic.method=scorer", *CRITIQUES],
        ["critic.method=reference"],
        ["critic.method=vote"],
        ["critic.solve_first=true"],
    ):
        for settings in ({}, {"enough": None}, {"miss": 0.81}, {"attempts": 1}, {"rollouts": 1, "guided": 1}):
            for part in collecting(*overrides, **settings).values():
                assert part.likely is not None
                assert part.likely.role == part.role
                assert 0 < part.likely.calls <= part.calls
                assert part.likely.prompt_tokens <= part.prompt_tokens
                assert part.likely.generated_tokens <= part.generated_tokens


def test_the_likely_case_stands_under_the_worst_one_and_is_summed_up_where_every_role_has_one() -> None:
    likely = dataclasses.replace(PLANNED, calls=7, likely=PlannedCalls("strong", 3, 123, 45))
    both = shown([likely, dataclasses.replace(PLANNED, role="weak", likely=PlannedCalls("weak", 1, 1000, 100))])
    rows = [line.split()[:4] for line in both.splitlines() if line.split()[:1] == ["likely"]]
    assert rows == [["likely", "3", "123", "45"], ["likely", "1", "1,000", "100"], ["likely", "4", "1,123", "145"]]
    assert "three steps in ten are escalated" in both  # of a collection, which asks a critic, another text
    asks = dataclasses.replace(PLANNED, role="critic", likely=PlannedCalls("critic", 1, 1000, 100))
    assert "half of the attempts fail" in shown([asks])
    assert sum("likely" in line for line in shown([likely, PLANNED]).splitlines()) == 1
    assert "half of the attempts fail" not in shown([PLANNED])


def test_no_figure_of_the_table_is_cut_on_a_narrow_terminal() -> None:
    text = io.StringIO()
    planned = [PlannedCalls("weak", 174_108, 50_037_448, 1_178_286_592), PlannedCalls("critic", 1, 9_999_999, 1)]
    show_plan(planned, Config.lab(), Console(file=text, width=80))
    for figure in ("174,108", "50.0M", "1,178.3M", "9,999,999", "0.0000"):
        assert figure in text.getvalue()
    assert "…" not in text.getvalue()


def test_caps_below_the_bound_are_named_and_others_are_not() -> None:
    config = Config.load(None, ["budget.strong_tokens=100", "budget.calls=100000"])
    text = io.StringIO()
    show_plan([PlannedCalls("strong", 6, 10, 2304)], config, Console(file=text, width=200))
    assert "budget.strong_tokens = 100 is less than the 2,304 that this could take" in text.getvalue()
    assert "budget.calls" not in text.getvalue()


def test_likely_money_bills_what_an_api_was_sent_before_at_the_price_of_its_cache() -> None:
    api = ["models.weak.model=openai/w", "models.weak.price_in=2", "models.weak.price_out=4"]
    problems = [Problem(f"p{i}", "What is 1 + 1? " * 20, "2") for i in range(10)]
    weak = plan_routing(Config.load(None, api), [Never()], problems)[0]
    assert weak.likely is not None
    assert 0 < weak.likely.cached_tokens < weak.likely.prompt_tokens
    text = io.StringIO()
    show_plan([weak], Config.load(None, [*api, "models.weak.price_cached_in=0.2"]), Console(file=text, width=120))
    rows = [line.split() for line in text.getvalue().splitlines()]
    worst, likely = [float(row[-1]) for row in rows if row and row[0] in ("weak", "likely")][:2]
    fresh = weak.likely.prompt_tokens - weak.likely.cached_tokens
    assert worst == pytest.approx((2 * weak.prompt_tokens + 4 * weak.generated_tokens) / 1e6, abs=1e-4)
    money = (2 * fresh + 0.2 * weak.likely.cached_tokens + 4 * weak.likely.generated_tokens) / 1e6
    assert likely == pytest.approx(money, abs=1e-4)
    assert "price_cached_in" in text.getvalue()
