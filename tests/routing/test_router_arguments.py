"""What a router takes and shows: arguments, settings, problems, a running event loop."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

import stepwise as sw
from stepwise.errors import ConfigError
from stepwise.routing import Never, Threshold
from tests.fakes import ScriptedBackend
from tests.routing.lab_world import LabWorld


@pytest.fixture
def world() -> LabWorld:
    return LabWorld(12, "train")


def router(world: LabWorld, policy: Any = None, **settings: Any) -> sw.StepRouter:
    return sw.StepRouter(world.weak, world.strong, world.scorer, policy, **settings)


def test_the_router_shows_its_arguments_and_returns_typed_predictions(world: LabWorld) -> None:
    shown = inspect.signature(sw.StepRouter).parameters
    assert list(shown)[:4] == ["weak", "strong", "scorer", "policy"]
    assert shown["max_steps"].default == 30
    made = router(world)
    assert list(inspect.signature(made).parameters) == ["question", "problem"]
    prediction = made(world.problems[0])
    assert prediction.trace.answer == prediction.answer
    assert type(prediction).__annotations__ == {"answer": "str | None", "trace": "Trace"}


def test_settings_may_be_dictionaries_and_are_held(world: LabWorld) -> None:
    made = router(world, sw.Threshold(1.01), budget={"strong_tokens": 30}, sampling={"max_step_tokens": 16})
    traces = made.solve_all(world.problems, progress=False)
    assert 0 < made.cost(traces).strong_tokens <= 30
    for settings, says in (
        ({"budget": {"strong_token": 5}}, "budget: .*did you mean 'strong_tokens'"),
        ({"budget": 5}, "budget is 5 .int.; give BudgetConfig, or a dictionary of strong_tokens"),
        ({"sampling": {"temperature": "hot"}}, "sampling: .*temperature is 'hot'"),
        ({"prompt": {"user": "hi"}}, "user='hi' has no {question}"),
    ):
        with pytest.raises(ConfigError, match=says):
            router(world, **settings)


def test_a_text_is_one_problem_and_rows_are_problems() -> None:
    text, row = "How many?", {"question": "How many?", "answer": "4"}
    for problems in (text, [row], row):
        models = [ScriptedBackend(lambda problem, prefix, seed: "So \\boxed{4}.") for _ in range(2)]
        (trace,) = sw.StepRouter(*models, policy=Never()).solve_all(problems, progress=False)
        assert trace.problem.question == text
        assert trace.answer == "4"


def test_the_router_is_used_where_an_event_loop_runs(world: LabWorld) -> None:
    async def main() -> list[str | None]:
        made = router(world, Threshold(0.5))
        first = made(world.problems[0])
        second = await made.acall(problem=world.problems[1])
        return [first.answer, second.answer, *(t.answer for t in made.solve_all(world.problems[:2], progress=False))]

    answers = asyncio.run(main())
    assert answers[:2] == answers[2:]
