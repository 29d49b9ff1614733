"""A router's state: saved and loaded with its policy and settings, alone and inside programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

from stepwise import StepJudge, StepRouter, routing
from stepwise.config import BudgetConfig, SamplingConfig
from stepwise.errors import ConfigError
from stepwise.prompt import SolvePrompt
from stepwise.routing import Always, Never, Random, Threshold
from tests.fakes import ScriptedBackend
from tests.routing import world


def router(policy: Any = None, **settings: Any) -> StepRouter:
    made = world.models()
    return StepRouter(made.weak, made.strong, made.scorer, policy, **settings)


def test_caps_and_what_was_spent_survive_loading_and_a_new_budget_holds_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    router(Always(), budget={"strong_tokens": 300}).save(tmp_path / "router.json")
    capped, free = router(Always(), budget={"strong_tokens": 50}), router()
    for _ in range(4):
        capped.solve_all(world.problems(2), progress=False)
        capped.load(tmp_path / "router.json")
    assert 42 < capped.ledger.usage("strong").generated_tokens <= 50
    assert capped.budget == BudgetConfig(strong_tokens=50)
    assert "the caps of this router stay ({'strong_tokens': 50})" in caplog.text
    free.load(tmp_path / "router.json")
    free.solve_all(world.problems(2), progress=False)
    spent = free.ledger.usage("strong").generated_tokens
    assert free.ledger.remaining()["strong_tokens"] == 300 - spent < 300
    free.budget = {"strong_tokens": 0, "problem": {"calls": 2}}
    traces = free.solve_all(world.problems(2), progress=False)
    assert (free.ledger.usage("strong").generated_tokens, free.ledger.remaining()["strong_tokens"]) == (spent, -spent)
    assert {trace.finish for trace in traces} == {"budget"}
    with pytest.raises(ConfigError, match="strong_token"):
        free.budget = {"strong_token": 5}


SETTINGS: dict[str, Any] = {
    "sampling": SamplingConfig(temperature=0.3, max_step_tokens=77),
    "budget": BudgetConfig(strong_tokens=5000),
    "max_steps": 12,
    "seed": 4,
    "window": 3,
}


@pytest.mark.parametrize("policy", [Threshold(0.61), Random(0.25, seed=3), Never(), Always()])
def test_saving_and_loading_carries_policy_and_settings_through_json(policy: Any, tmp_path: Path) -> None:
    saved, loaded = router(policy, **SETTINGS), router()
    saved.save(tmp_path / "router.json")
    loaded.load(tmp_path / "router.json")
    assert (loaded.policy, loaded.settings, loaded.budget) == (policy, saved.settings, saved.budget)
    assert loaded.dump_state() == saved.dump_state()
    assert json.loads((tmp_path / "router.json").read_text())["policy"]["policy"] == policy.name
    problems = world.problems(5)
    assert loaded.solve_all(problems, progress=False) == saved.solve_all(problems, progress=False)


def test_a_state_for_other_models_or_another_prompt_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    router(Threshold(0.61)).save(tmp_path / "router.json")
    other = StepRouter(ScriptedBackend({}, "another"), ScriptedBackend({}, "s"), policy=Never())
    with pytest.raises(ConfigError, match=r"'weak': 'w'.*'weak': 'another'"):
        other.load(tmp_path / "router.json")
    assert other.policy == Never()
    exact, made = SolvePrompt(system="Be exact."), world.models()
    for model in made[:2]:
        model.prompt_hash = exact.hash  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="saved with prompt"):
        StepRouter(made.weak, made.strong, made.scorer, prompt=exact).load(tmp_path / "router.json")


POLICIES = [
    routing.Random(0.25, seed=3),
    routing.Threshold(0.61),
    routing.Judged("openai/x", api_key_env="SOME_KEY", scored=True),
    routing.Signalled(routing.StepScore(), 0.4),
    routing.Cascade("least_score", 0.3),
]


class Routed(dspy.Module):  # type: ignore[misc]
    """A router, and a judge of what it wrote."""

    def __init__(self, policy: Any = None, **settings: Any) -> None:
        super().__init__()
        made = world.models()
        self.parts = {"router": StepRouter(made.weak, made.strong, made.scorer, policy, **settings)}
        self.judge = StepJudge()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_router_inside_a_program_of_the_user_is_saved_with_its_policy(policy: Any, tmp_path: Path) -> None:
    saved, loaded = Routed(policy, seed=4, max_steps=12), Routed()
    saved.save(tmp_path / "routed.json")
    loaded.load(tmp_path / "routed.json")
    assert (loaded.parts["router"].policy, loaded.parts["router"].settings.seed) == (policy, 4)
    assert loaded.dump_state() == saved.dump_state()
    copied = saved.deepcopy()
    copied.parts["router"].load_state({**saved.parts["router"].dump_state(), "seed": 5})
    assert saved.parts["router"].settings.seed == 4
    assert copied.dump_state() != saved.dump_state() == saved.reset_copy().dump_state()
    assert saved.parts["router"].dump_state()["policy"]["policy"] == policy.name


def test_the_modules_of_a_saved_policy_are_allowed_where_the_router_of_a_program_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "early_policies.py").write_text(
        "import stepwise as sw\n\n\nclass Early(sw.Policy):\n    when = 'before'\n\n"
        "    def decide(self, view):\n        return sw.Keep()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    class Program(dspy.Module):  # type: ignore[misc]
        def __init__(self, **settings: Any) -> None:
            super().__init__()
            self.router = router(**settings)

    Program(policy="early_policies:Early").save(tmp_path / "program.json")
    with pytest.raises(ConfigError, match="of a router within a program: where it is made"):
        Program().load(tmp_path / "program.json")
    program = Program(allow_import=["early_policies"])
    program.load(tmp_path / "program.json")
    assert type(program.router.policy).__name__ == "Early"
