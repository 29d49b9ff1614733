"""What is handed to a router is of the right kind, and is told where it belongs where it is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dspy
import pytest

import stepwise as sw
from stepwise.config import Config, ScorerConfig
from stepwise.errors import ConfigError
from stepwise.interventions.settings import Writers
from stepwise.models.lab_judges import is_lab_model
from stepwise.prompt import SolvePrompt
from stepwise.routing import Judged, Keep, Never, ScoreDrop, Threshold
from stepwise.routing.planning import check_routing, plan_routing
from tests.fakes import ScriptedBackend
from tests.routing.lab_world import LabWorld

LAB_SCORER = "llamacpp/lab-scorer"


class Still(sw.Policy):
    def decide(self, view: Any) -> Keep:
        return Keep()


class Flat(sw.Scorer):
    def score(self, problem: Any, steps: Any) -> list[float]:
        return [0.5] * len(steps)


@pytest.fixture
def world() -> LabWorld:
    return LabWorld(2, "train")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"scorer": Still}, "scorer: Still is a Policy, where a Scorer is wanted; give it as policy="),
        ({"scorer": Still()}, "scorer: Still is a Policy, where a Scorer is wanted; give it as policy="),
        ({"policy": Flat}, "policy: Flat is a Scorer, where a Policy is wanted; give it as scorer="),
        ({"policy": Flat()}, "policy: Flat is a Scorer, where a Policy is wanted; give it as scorer="),
        ({"policy": ScoreDrop}, r"ScoreDrop is a Signal, where a Policy is wanted; give it as .*Signalled\(signal"),
        ({"policy": sw.lab.generate("test", 1)[0]}, "LabProblem is no Policy; give one, or a class that inherits"),
    ],
)
def test_what_is_of_another_kind_is_told_where_it_belongs(world: LabWorld, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sw.StepRouter(world.weak, world.strong, **given)


# The lab's scorer, by whatever way it comes, is for the lab's models.


@pytest.fixture(scope="module")
def scorer() -> Any:
    loaded = sw.load_scorer(LAB_SCORER)
    yield loaded
    loaded.close()


def copied(folder: Path) -> str:
    """The lab's scorer under a name that says nothing of it."""
    return f"llamacpp/{shutil.copy(sw.lab.model_path('lab-scorer'), folder / 'prm.gguf')}"


class Wrapped(sw.Scorer):
    def __init__(self, *inner: Any):
        self.parts = [*inner]

    def score(self, problem: Any, steps: Any) -> list[float]:
        return list(self.parts[0].score(problem, steps))


WAYS = ["name", "other key", "another file", "object", "in an object", "behind a server", "import path of an object"]


@pytest.mark.parametrize("way", WAYS)
def test_the_labs_scorer_is_refused_for_other_models(
    way: str, world: LabWorld, scorer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: Any = {
        "name": LAB_SCORER,
        "other key": ScorerConfig(model=LAB_SCORER, context=1024),
        "another file": copied(tmp_path),
        "object": scorer,
        "in an object": Wrapped(scorer),
        "behind a server": ScorerConfig(kind="judge", model="openai/lab-critic", api_base="http://127.0.0.1:9/v1"),
        "import path of an object": "scorer_of_mine:scorer",
    }[way]
    if way.startswith("import"):
        (tmp_path / "scorer_of_mine.py").write_text(
            f"import stepwise as sw\n\nscorer = sw.load_scorer({LAB_SCORER!r})\n", encoding="utf-8"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="is of the lab and knows nothing but lab problems, but the weak model is"):
        sw.StepRouter(world.weak, world.strong, given)


@pytest.mark.parametrize("policy", [Judged("llamacpp/lab-critic"), Judged("openai/lab-critic"), Judged()])
def test_the_labs_critic_as_a_policy_is_refused_for_other_models(world: LabWorld, policy: Judged) -> None:
    with dspy.context(lm=sw.lm(LAB_SCORER)):  # what `Judged()` asks
        with pytest.raises(ConfigError, match="policy: judged is of the lab"):
            sw.StepRouter(world.weak, world.strong, None, policy)
        with pytest.raises(ConfigError, match="policy: judged is of the lab"):
            check_routing(Config(models={"weak": {"model": "openai/NAME"}}), [policy])
        sw.StepRouter(world.weak, world.strong, None, policy, allow_lab=True)
        check_routing(Config.lab(), [policy])


def test_a_critic_is_seen_through_its_model_and_its_scorer(scorer: Any) -> None:
    assert is_lab_model(sw.ErrorLocalizer(method="scorer", scorer=scorer))
    assert is_lab_model(sw.ErrorLocalizer("llamacpp/lab-critic"))
    assert not is_lab_model(sw.ErrorLocalizer("openai/NAME"))
    assert not is_lab_model(sw.ModelConfig(model="openai/my-lab-critic-2")), "a name that only begins or ends so"


def test_a_critic_that_asks_no_model_is_taken_for_every_model() -> None:
    mine = Config(models={"weak": {"model": "openai/NAME"}}, critic={"method": "reference"})
    Writers(mine).refuse_lab()
    with pytest.raises(ConfigError, match="critic: llamacpp/lab-critic is of the lab"):
        Writers(mine.model_copy(update={"critic": Config().critic})).refuse_lab()


def test_it_is_taken_for_them_where_that_is_asked_for_or_nothing_is_scored(world: LabWorld, scorer: Any) -> None:
    sw.StepRouter(world.weak, world.strong, scorer, allow_lab=True)
    router = sw.StepRouter(world.weak, world.strong, scorer, "never")
    with pytest.raises(ConfigError, match="is of the lab"):
        router.with_policy(Threshold(0.5)).solve_all([world.problems[0]], progress=False)


@pytest.mark.parametrize("model", ["openai/NAME", "llamacpp/lab-weak"])
@pytest.mark.parametrize("table", [{}, {"threads": 2}, {"model": "llamacpp/lab-critic"}])
def test_the_plan_refuses_what_the_run_refuses(model: str, table: dict[str, Any]) -> None:
    config = Config(models={"weak": {"model": model}}, scorer=table)
    policies, problems = [Threshold(0.5)], [made.problem for made in sw.lab.generate("test", 2)]
    if model == "llamacpp/lab-weak":
        assert plan_routing(config, policies, problems)
        return
    with pytest.raises(ConfigError, match=r"scorer: .* is of the lab"):
        plan_routing(config, policies, problems)
    assert plan_routing(config.model_copy(update={"allow_lab": True}), policies, problems)
    assert plan_routing(config, [Never()], problems)


def test_another_vocabulary_is_not_the_labs(tiny_gguf_path: Path) -> None:
    assert is_lab_model(sw.ModelConfig(model="llamacpp/lab-critic"))
    assert not is_lab_model(sw.ModelConfig(model=f"llamacpp/{tiny_gguf_path}"))


# The prompt of a router is the one that its models are asked under.

PROMPT = SolvePrompt(system="One calculation a step.")


class Prompted(ScriptedBackend):
    prompt, prompt_hash = PROMPT, PROMPT.hash


def prompted() -> Prompted:
    return Prompted({"1 + 1?": ["It is \\boxed{2}."]})


def test_the_prompt_of_models_that_are_handed_in_is_the_routers(world: LabWorld) -> None:
    router = sw.StepRouter(prompted(), prompted(), None, "never")
    assert router.prompt == PROMPT
    assert router.card.prompt == PROMPT.hash


def test_a_prompt_that_would_not_hold_is_refused(world: LabWorld) -> None:
    other = SolvePrompt(system="Be brief.")
    with pytest.raises(ConfigError, match=f"weak: .* under another prompt .{PROMPT.hash}.*{other.hash}"):
        sw.StepRouter(prompted(), prompted(), None, "never", prompt=other)
    with pytest.raises(ConfigError, match="weak: ScriptedBackend does not say which prompt it puts around questions"):
        sw.StepRouter(world.weak, prompted(), None, "never", prompt=PROMPT)
    assert sw.StepRouter(prompted(), prompted(), None, "never", prompt=PROMPT).prompt == PROMPT
