"""inspect_ai asks a router by one string; its verdicts are those of the same router asked by us."""

from __future__ import annotations

from pathlib import Path

import pytest

import stepwise as sw
from stepwise.config import Config
from stepwise.routing.policies import Threshold
from stepwise.serve.doors import close_routers

inspect_ai = pytest.importorskip("inspect_ai", reason="needs pip install inspect-ai")
pytest.importorskip("stepwise.serve.inspecting")  # what its entry point imports where stepwise is installed


def test_a_task_has_the_verdicts_of_the_router_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import Score, Target, accuracy, scorer
    from inspect_ai.solver import TaskState, generate

    monkeypatch.chdir(tmp_path)
    Path("router.toml").write_text("sampling = { temperature = 0.0 }\n")
    problems = [made.problem for made in sw.lab.generate("test", 6)]

    @scorer(metrics=[accuracy()])
    def verdict():  # type: ignore[no-untyped-def]
        async def score(state: TaskState, target: Target) -> Score:
            return Score(value=sw.grade(state.output.completion, target.text).value == "CORRECT")

        return score

    samples = [Sample(input=p.question, target=p.answer, id=p.id) for p in problems]
    task = inspect_ai.Task(dataset=samples, solver=generate(), scorer=verdict())
    try:
        (log,) = inspect_ai.eval(
            task, model="stepwise/router.toml/router-threshold-0.9", max_connections=1, temperature=0.0, seed=0,
            display="none", log_dir=str(tmp_path / "logs"),
        )  # fmt: skip
    finally:
        close_routers()
    assert log.status == "success"
    with sw.StepRouter.from_config(Config.load("router.toml")) as router:
        traces = router.with_policy(Threshold(0.9)).solve_all(problems, progress=False)
    ours = {trace.problem.id: sw.grade(trace.text, trace.problem.answer).value == "CORRECT" for trace in traces}
    theirs = {sample.id: bool(sample.scores["verdict"].value) for sample in log.samples}
    assert theirs == ours
    assert {sample.id: sample.output.completion for sample in log.samples} == {t.problem.id: t.text for t in traces}
    spent = [sample.output.metadata["stepwise"]["usage"].get("strong", {}) for sample in log.samples]
    strong = sum(usage.get("generated_tokens", 0) for usage in spent)
    assert strong == router.cost(traces).strong_tokens > 0


def test_what_the_router_does_not_take_is_an_error_of_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inspect_ai.dataset import Sample
    from inspect_ai.solver import generate

    monkeypatch.chdir(tmp_path)
    Path("router.toml").write_text("seed = 1\n")
    task = inspect_ai.Task(dataset=[Sample(input="1 + 1?")], solver=generate())
    try:
        (log,) = inspect_ai.eval(
            task, model="stepwise/router.toml", logprobs=True, display="none", log_dir=str(tmp_path / "logs")
        )
    finally:
        close_routers()
    assert log.status == "error"
    assert "logprobs" in log.error.message
