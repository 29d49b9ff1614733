"""Routing by a language model: what it is shown, what its words do, and what happens where it says nothing usable."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from stepwise import lab
from stepwise.config import BudgetConfig
from stepwise.critics import StepDecider
from stepwise.critics.formats.compact_format import write_fields
from stepwise.critics.signatures import DecideStep
from stepwise.errors import BackendError, ConfigError
from stepwise.models.shared import close_engines
from stepwise.routing import Escalate, Judged, Keep, Look, StepRouter, View, policy_from_dict, policy_to_dict
from stepwise.types import Problem, Step
from tests.critics.critic import UNREADABLE, fields, prompts
from tests.routing import world
from tests.scripted_lm import Messages, ScriptedLM

PROBLEM = Problem("p", "How many are left?", "37", reference="41 - 4 = 37")
VIEW = View(PROBLEM, (Step("There are 41.", "weak", 0.914), Step("Four go.", "strong")), Step("41 - 4 = 39.", "weak"))


def decided(decision: str, reason: str = "because") -> str:
    return write_fields(DecideStep, {"reason": reason, "decision": decision})


def asked(view: View, *replies: str, policy: Judged | None = None) -> tuple[Any, ScriptedLM]:
    lm = ScriptedLM(replies)
    with dspy.context(lm=lm):
        return asyncio.run((policy or Judged()).decide(view)), lm


def test_the_model_sees_problem_steps_scores_and_budget_and_its_word_is_done() -> None:
    action, lm = asked(VIEW, decided("escalate", "39 is\nwrong"))
    assert (action, action.reason) == (Escalate(), "the judge: 39 is wrong")
    (prompt,) = prompts(lm)
    assert fields(prompt) == ["problem", "attempt", "scores", "budget"]
    assert prompt.splitlines()[:6] == [
        "#problem: How many are left?", "#attempt: [1] There are 41.", "[2] Four go.", "[3] 41 - 4 = 39.",
        "#scores: [1] 0.91 [2] ? [3] ?", "#budget: no limit",
    ]  # fmt: skip
    assert "37" not in prompt  # neither the answer nor the reference: a router has none
    action, lm = asked(dataclasses.replace(VIEW, strong_tokens_left=120), decided("keep"))
    assert (action, action.reason) == (Keep(), "the judge: because")
    assert "#budget: 120\n" in prompts(lm)[0]


def test_what_cannot_be_read_is_asked_for_again_and_then_the_draft_is_kept_with_the_reason() -> None:
    action, lm = asked(VIEW, UNREADABLE, decided("escalate"))
    assert (action, len(lm.calls)) == (Escalate(), 2)
    action, lm = asked(VIEW, UNREADABLE, "#reason: hm\n#decision: perhaps")
    assert (action, len(lm.calls)) == (Keep(), 2)
    assert action.reason.startswith("the judge's answer cannot be read: asked twice")
    assert UNREADABLE in action.reason


def test_a_judge_that_does_not_answer_keeps_and_one_that_refuses_stops() -> None:
    def raising(error: Exception) -> Any:
        def script(messages: Messages) -> str:
            raise error

        lm = ScriptedLM(script)
        lm.num_retries = 0
        with dspy.context(lm=lm):
            return asyncio.run(Judged().decide(VIEW))

    assert raising(dspy.LMTimeoutError("too late")).reason.startswith("the judge did not answer: ")
    assert raising(dspy.ContextWindowExceededError(message="too long")) == Keep()
    with pytest.raises(BackendError, match="wrong key"):
        raising(dspy.LMAuthError("wrong key"))


def test_an_empty_draft_is_escalated_without_a_question() -> None:
    action, lm = asked(dataclasses.replace(VIEW, draft=Step(" \n", "weak")))
    assert (action, lm.calls) == (Escalate(), [])


def test_scores_are_asked_for_once_where_they_are_wanted() -> None:
    policy = Judged(scored=True)
    assert asked(VIEW, policy=policy)[0] == Look("scores")
    scored = dataclasses.replace(VIEW, draft=Step("41 - 4 = 39.", "weak", 0.2), looked=frozenset({"scores"}))
    action, lm = asked(scored, decided("keep"), policy=policy)
    assert action == Keep()
    assert "#scores: [1] 0.91 [2] ? [3] 0.20\n" in prompts(lm)[0]
    made = world.models()
    with pytest.raises(ConfigError, match="looks at scores"):
        StepRouter(made.weak, made.strong, policy=policy)


def sees_slips(messages: Messages) -> str:
    """Escalates a draft that slips, while there is budget."""
    prompt = messages[1]["content"]
    (draft,) = re.findall(r"\[\d+\] (.*)\n#scores", prompt)
    return decided("escalate" if "slip" in draft else "keep")


@pytest.mark.parametrize("scored", [False, True])
def test_a_router_follows_the_judge_and_dspy_hears_what_the_judge_cost(scored: bool) -> None:
    made, lm = world.models(), ScriptedLM(sees_slips, "judge")
    router = StepRouter(
        made.weak, made.strong, made.scorer, Judged(scored=scored), budget=BudgetConfig(strong_tokens=10_000)
    )
    with dspy.context(lm=lm), dspy.track_usage() as tracker:
        traces = router.solve_all(world.problems(8), progress=False)
    assert all(map(world.right, traces))  # every slip was seen
    steps = [step for trace in traces for step in trace.steps]
    assert {step.author for step in steps if step.discarded} == {"strong"}
    assert all("slip" in draft.text for step in steps for draft in step.discarded)
    assert {step.decision.partition(":")[0] for step in steps} == {"keep", "escalate"}
    assert len(lm.calls) == len(steps) == len(tracker.usage_data["judge"])
    assert re.search(r"#budget: \d+", prompts(lm)[0])
    assert ("?" in re.search("#scores: (.*)", prompts(lm)[0])[1]) != scored  # type: ignore[index]


@pytest.mark.parametrize(
    "policy", [Judged(), Judged("openai/x", "http://localhost:1/v1", "SOME_KEY", None, "json", scored=True)]
)
def test_it_is_plain_json_and_loads_no_model_before_it_decides(policy: Judged, tmp_path: Path) -> None:
    assert policy_from_dict(json.loads(json.dumps(policy_to_dict(policy)))) == policy
    assert (policy.point, policy.at(0.3)) == (None, policy)
    made = world.models()
    saved, loaded = (StepRouter(made.weak, made.strong, made.scorer, p) for p in (policy, None))
    saved.save(tmp_path / "router.json")
    loaded.load(tmp_path / "router.json")
    assert loaded.policy == policy
    with pytest.raises(ConfigError, match="format"):
        policy_from_dict({"policy": "judged", "format": "xml"})


def test_importing_it_loads_no_heavy_package() -> None:
    code = (
        "import sys; from stepwise.routing import Judged; Judged('llamacpp/lab-weak');"
        "print([m for m in ('dspy', 'litellm', 'llama_cpp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_named_model_is_loaded_at_the_first_decision_and_is_held_to_the_format(tmp_path: Path) -> None:
    path = shutil.copy(lab.model_path("lab-weak"), tmp_path / "a.gguf")  # a name for which DSPy has no answer on disk
    try:
        with dspy.track_usage() as tracker:
            action = asyncio.run(Judged(f"llamacpp/{path}").decide(VIEW))
        assert isinstance(action, Keep | Escalate)
        assert action.reason.startswith("the judge: ")
        ((name, calls),) = tracker.usage_data.items()
        assert name.startswith(f"llamacpp/{path}@")
        assert len(calls) == 1
    finally:
        close_engines()
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        asyncio.run(Judged("openai/x", api_key_env="NO_SUCH_KEY").decide(VIEW))


def test_the_decider_is_a_module_like_the_others(tmp_path: Path) -> None:
    decider, loaded = StepDecider(max_chars=60), StepDecider()
    decider.save(tmp_path / "decider.json")
    loaded.load(tmp_path / "decider.json")
    steps = ["x" * 400, "a draft"]
    with dspy.context(lm=ScriptedLM([decided("keep")] * 2)):
        first, again = (module(problem="?", steps=steps, scores=[0.5], budget=7) for module in (decider, loaded))
    assert first == again
    assert (first.decision, first.reason, len(first.warnings)) == ("keep", "because", 2)
    with dspy.context(lm=ScriptedLM([UNREADABLE] * 2)):
        lost = decider(problem="?", steps=steps)
    assert (lost.decision, lost.usage.calls) == (None, 2)
    assert UNREADABLE in lost.failure
