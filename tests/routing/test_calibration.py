"""Operating points for a budget: what is chosen, what is refused, and what holds on other problems."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stepwise.config import BudgetConfig, CapsConfig, SamplingConfig
from stepwise.errors import ConfigError, DataError
from stepwise.models.store import CallCache
from stepwise.routing import Always, Models, Never, Policy, Random, Signalled, StepRouter, Threshold
from stepwise.routing.calibration import calibrate
from stepwise.routing.calibration_result import Calibrated
from stepwise.routing.compare import compare
from stepwise.routing.deciding import label_of
from stepwise.routing.dials import dial_of
from stepwise.routing.metrics import cost_of
from stepwise.routing.names import ModelNames
from stepwise.routing.policy import When
from stepwise.routing.query import QueryRandom
from stepwise.routing.saved import load_policy, save_policy
from stepwise.routing.signals import ScoreDrop
from stepwise.types import Problem
from tests.routing import world

FIRST, OTHERS = world.problems(26)[:13], world.problems(26)[13:]


def router(made: Models | None = None, **settings: Any) -> StepRouter:
    made = made or world.models()
    return StepRouter(made.weak, made.strong, made.scorer, sampling=SamplingConfig(max_step_tokens=16), **settings)


def found(policy: Policy, budget: float, **settings: Any) -> Calibrated:
    arm = settings.pop("router", None) or router()
    settings.setdefault("rounds", 6)
    return calibrate(
        policy, FIRST, budget=budget, router=arm, measure_on=OTHERS, progress=False, samples=100, **settings
    )


@pytest.mark.parametrize(
    ("policy", "share"),
    [(Threshold(), 0.25), (Random(), 0.6), (QueryRandom(), 0.5), (Signalled(ScoreDrop(), 0.0), 0.3)],
)
def test_the_setting_that_spends_most_within_the_budget_is_found_whichever_way_the_policy_turns(
    policy: Policy, share: float
) -> None:
    made = found(policy, share, unit="share")
    costs = [point.cost.value for point in made.curve]
    assert costs == sorted(costs)  # type: ignore[type-var]
    spent = max(cost for cost in costs if cost is not None and cost <= made.limit)
    assert 0.75 * made.limit < spent <= made.limit
    assert made.policy.point in [point.setting for point in made.curve if point.cost.value == spent]
    assert type(made.policy) is type(policy)
    assert made.reached
    assert ("are used" in made.note) == (spent < 0.9 * made.limit)
    assert made.achieved.share.value == pytest.approx(share, abs=0.25)  # other problems


def test_what_is_reported_is_measured_on_the_other_problems_with_intervals_around_it() -> None:
    made = found(Threshold(), 18)
    arm = router()
    (alone,) = compare(arm, [made.policy], OTHERS, progress=False)
    achieved = made.achieved
    assert achieved.cost.value == pytest.approx(alone.point.cost)
    assert achieved.accuracy.value == pytest.approx(alone.point.accuracy)
    assert achieved.weak_accuracy.value is not None
    assert achieved.accuracy.value is not None
    assert achieved.accuracy.value > achieved.weak_accuracy.value
    for figure in dataclasses.astuple(achieved)[1:]:
        value, low, high, _ = figure.values() if isinstance(figure, dict) else figure
        assert low <= value <= high
    assert achieved.cost.low is not None
    assert achieved.cost.high is not None
    assert achieved.cost.low < achieved.cost.high
    for point in made.curve:
        assert point.accuracy.low is not None


def test_a_hard_budget_holds_on_the_other_problems_to_the_token() -> None:
    soft, hard = found(Random(), 8, rounds=3), found(Random(), 8, rounds=3, hard=True)
    assert hard.policy == soft.policy
    assert hard.achieved.cost.value is not None
    assert hard.achieved.cost.value <= 8
    caps = BudgetConfig(strong_tokens=100)
    capped = found(Random(), 8, rounds=0, hard=True, router=router(budget=caps))
    assert capped.achieved.cost.value is not None
    assert capped.achieved.cost.value * len(OTHERS) <= 100


@pytest.mark.parametrize("cap", [0, 33])
def test_the_caps_of_the_router_hold_at_every_setting(cap: int) -> None:
    seen: list[int] = []

    class Spying(StepRouter):
        def solve_all(self, *args: Any, **kwargs: Any) -> Any:
            traces = super().solve_all(*args, **kwargs)
            seen.extend(cost_of([trace]).strong_tokens for trace in traces)
            return traces

    made = world.models()
    spy = Spying(
        made.weak,
        made.strong,
        made.scorer,
        sampling=SamplingConfig(max_step_tokens=16),
        budget=BudgetConfig(problem=CapsConfig(strong_tokens=cap)),
    )
    found(Threshold(), 20, rounds=2, router=spy)
    assert len(seen) >= len(FIRST) * 5
    assert max(seen) <= cap


def test_a_budget_of_zero_is_the_weak_model_alone() -> None:
    made = found(Threshold(), 0)
    assert made.reached
    assert made.achieved.cost.value == 0
    assert made.achieved.accuracy == made.achieved.weak_accuracy
    assert made.achieved.pgr.value == 0


def test_a_budget_that_cannot_be_met_or_used_up_gives_the_nearest_setting_and_says_so() -> None:
    above = found(Always(), 3)
    assert (above.reached, above.policy) == (False, Always())
    assert "the cheapest" in above.note
    below = found(Threshold(), 10_000)
    assert below.reached
    assert "cannot be used up" in below.note
    assert below.policy.point == 1.01


def test_where_the_weak_model_is_better_nothing_is_spent_and_that_is_said() -> None:
    made = world.models()
    turned = found(Threshold(), 30, router=router(Models(made.strong, made.weak, made.scorer)))
    assert "no better" in turned.note
    assert turned.achieved.cost.value == 0
    assert turned.policy.point == 0.0


@pytest.mark.parametrize(("budget", "unit"), [(-1, "strong_tokens"), (float("nan"), "strong_tokens"), (1.2, "share")])
def test_a_budget_out_of_range_is_refused(budget: float, unit: str) -> None:
    with pytest.raises(DataError, match="budget is"):
        found(Threshold(), budget, unit=unit)


def test_problems_that_are_in_both_sets_are_refused_whatever_their_id() -> None:
    again = dataclasses.replace(FIRST[3], id="another id", question=f"  {FIRST[3].question.upper()}")
    with pytest.raises(DataError, match="another id"):
        calibrate(Threshold(), FIRST, budget=5, router=router(), measure_on=[*OTHERS, again], progress=False)
    with pytest.raises(DataError, match="no gold answer"):
        calibrate(Threshold(), FIRST, budget=5, router=router(), measure_on=[Problem("x", "What?")], progress=False)
    with pytest.raises(DataError, match="give both"):
        calibrate(Threshold(), [], budget=5, router=router(), measure_on=OTHERS, progress=False)


@dataclasses.dataclass(frozen=True)
class Foreign(Policy):
    """A policy of somebody else's: spends less the higher its operating point."""

    point: float = 0.0

    name: ClassVar[str] = "foreign"
    when: ClassVar[When] = "before"
    needs_scores: ClassVar[bool] = False

    def decide(self, view: Any) -> Any:
        return Random(min(1.0, max(0.0, 1 - self.point / 10))).decide(view)

    def at(self, x: float) -> Foreign:
        return Foreign(x)


def test_bounds_that_are_missing_are_said_before_any_model_is_asked() -> None:
    made = world.models()
    with pytest.raises(ConfigError, match="--bounds LOW HIGH"):
        found(Foreign(), 12, router=router(made))
    assert made.weak.requests == made.strong.requests == []  # type: ignore[attr-defined]


def test_a_budget_that_steps_of_the_cost_leave_unused_is_said() -> None:
    tried = found(Threshold(), 12, settings=[0.0, 1.01])
    assert tried.reached
    assert "only 0.0 are used: the next setting that was tried, 1.01 after 0, takes" in tried.note


def test_a_budget_that_is_passed_on_other_problems_is_said_with_its_interval() -> None:
    never = found(Threshold(), 0.0, settings=[0.0, 1.01])
    assert "on the other problems" not in never.note
    some = [0.0, 0.3, 0.5, 1.01]
    limits = [p.cost.value or 0.0 for p in found(Threshold(), 12, settings=some).curve]
    noted = [found(Threshold(), limit, settings=some) for limit in sorted(set(limits))[1:3]]
    for made in noted:
        passed = (made.achieved.cost.value or 0.0) > made.limit
        assert ("more than the budget of" in made.note) == passed


def test_problems_are_whatever_load_problems_takes() -> None:
    rows = [{"id": p.id, "question": p.question, "answer": p.answer} for p in FIRST]
    made = calibrate(Never(), rows, budget=12, router=router(), measure_on=OTHERS, progress=False, samples=10)
    assert made.achieved.problems == len(OTHERS)


def test_a_policy_that_is_not_known_needs_bounds_or_settings() -> None:
    with pytest.raises(ConfigError, match="bounds"):
        found(Foreign(), 10)
    for how in ({"bounds": (0.0, 10.0), "rounds": 3}, {"settings": [2.0, 5.0, 7.5, 9.0, 5.0]}):
        made = found(Foreign(), 12, **how)
        assert made.reached
        assert made.limit / 2 < max(p.cost.value or 0.0 for p in made.curve if (p.cost.value or 0.0) <= 12)
    assert sorted(point.setting for point in made.curve) == [2.0, 5.0, 7.5, 9.0]  # type: ignore[type-var]


def test_known_prefixes_are_not_asked_for_again_and_a_second_calibration_asks_nobody(tmp_path: Path) -> None:
    made = world.models()
    with CallCache(tmp_path / "cache.jsonl") as cache:
        first = found(Threshold(), 12, router=router(made, cache=cache), rounds=2)
        assert cache.hit_rate is not None
        assert cache.hit_rate > 0.3
    asked = len(made.weak.requests)  # type: ignore[attr-defined]
    with CallCache(tmp_path / "cache.jsonl") as cache:
        assert found(Threshold(), 12, router=router(made, cache=cache), rounds=2) == first
    assert len(made.weak.requests) == asked  # type: ignore[attr-defined]


def test_a_calibration_is_read_back_as_it_was_written_and_its_policy_is_read_from_the_same_file(tmp_path: Path) -> None:
    made = found(Signalled(ScoreDrop(), 0.0), 12)
    first, second, third, *_ = str(made).splitlines()
    assert first == f"{label_of(made.policy)}, set for 12.0 strong tokens a problem"
    assert f"strong tokens a problem {made.achieved.cost}, accuracy {made.achieved.accuracy}" in second
    assert third.startswith(f"weak model alone: accuracy {made.achieved.weak_accuracy}; strong: ")
    made.save(tmp_path / "set.json")
    assert Calibrated.load(tmp_path / "set.json") == made
    policy, card, _ = load_policy(tmp_path / "set.json")
    assert policy == made.policy
    assert (
        card
        == router().card
        == ModelNames("w", "s", "scripted-scorer", prompt=router().prompt.hash, splitter="paragraphs")
    )
    save_policy(tmp_path / "other.json", Never())
    with pytest.raises(DataError, match="holds no calibration"):
        Calibrated.load(tmp_path / "other.json")


def test_a_policy_set_for_other_models_is_refused_by_its_card() -> None:
    card = ModelNames("w", "s", "p", prompt="0")
    card.check(dataclasses.replace(card, scorer="q"), scorer=False)
    for other in ({"weak": "v"}, {"strong": "t"}, {"scorer": "q"}):
        with pytest.raises(ConfigError, match="the policy is for the"):
            card.check(dataclasses.replace(card, **other))
    with pytest.raises(ConfigError, match="prompt"):
        card.check(dataclasses.replace(card, prompt="1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[1]", "no JSON object"),
        ('{"policy": "threshhold"}', "did you mean"),
        ('{"policy": {"policy": "never"}, "card": {"weak": 1}}', "field card"),
    ],
)
def test_a_file_that_holds_no_policy_is_refused_with_the_reason(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises((DataError, ConfigError), match=message):
        load_policy(path)


def test_bounds_that_span_decades_are_halved_on_a_logarithmic_scale() -> None:
    def middle(*bounds: float) -> float | None:
        return dial_of(Threshold(0.5), bounds, lambda _: None)(0.5).point  # type: ignore[arg-type,return-value]

    assert middle(0.0001, 0.81) == pytest.approx(0.009)
    assert middle(0.1, 0.9) == pytest.approx(0.5)
